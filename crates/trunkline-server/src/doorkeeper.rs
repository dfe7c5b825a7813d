//! How many connections each address has opened of late (`server.limits.connection_rate`), and how many handshakes began.
//!
//! The count is of a whole second, and begins anew with the next: what it is to bound is storms, and not the pace of anybody.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;

/// How long a connection counts.
const WINDOW: Duration = Duration::from_secs(1);
/// Most addresses; past it those go that have not come within the window, and all of them where there are none: a storm of so
/// many addresses is none of one address.
const ADDRESSES_MAX: usize = 8192;

/// Whose address it is: whoever has one IPv6 address has the 64 bits behind it, too.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[derive(Debug, Clone, Copy)]
struct Arrivals {
    count: u32,
    since: Instant,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Doorkeeper {
    /// Held for a look and a change; only who accepts connections takes it, and only where there is a limit.
    table: Mutex<HashMap<IpAddr, Arrivals, foldhash::quality::RandomState>>,
}

impl Doorkeeper {
    /// Counts a connection of this address, and says how many there were within the same second, this one included.
    pub(crate) fn count(&self, address: IpAddr, now: Instant) -> u32 {
        let address = network_of(address);
        let mut table = self.table.lock();
        if table.len() >= ADDRESSES_MAX && !table.contains_key(&address) {
            table.retain(|_, arrivals| is_fresh(arrivals, now));
            if table.len() >= ADDRESSES_MAX {
                table.clear();
            }
        }
        let arrivals = table.entry(address).or_insert(Arrivals { count: 0, since: now });
        if !is_fresh(arrivals, now) {
            *arrivals = Arrivals { count: 0, since: now };
        }
        arrivals.count = arrivals.count.saturating_add(1);
        arrivals.count
    }
}

/// How many handshakes have begun of late, whoever began them.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Held for a look and a change, and only where there is a limit.
    window: Mutex<Option<Arrivals>>,
    /// Since this was last told.
    refused: AtomicU64,
}

impl Pace {
    /// Counts a handshake, and says whether it may begin.
    pub(crate) fn admits(&self, limit: u32, now: Instant) -> bool {
        let mut window = self.window.lock();
        let arrivals = window.filter(|arrivals| is_fresh(arrivals, now));
        let mut arrivals = arrivals.unwrap_or(Arrivals { count: 0, since: now });
        arrivals.count = arrivals.count.saturating_add(1);
        *window = Some(arrivals);
        let admits = arrivals.count <= limit;
        self.refused.fetch_add(u64::from(!admits), Ordering::Relaxed);
        admits
    }

    /// Those that were refused since the last call.
    pub(crate) fn take_refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }
}

fn is_fresh(arrivals: &Arrivals, now: Instant) -> bool {
    now.saturating_duration_since(arrivals.since) < WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_counted_for_itself_and_for_a_second() {
        let (doorkeeper, start) = (Doorkeeper::default(), Instant::now());
        let count = |address: &str, after: u64| {
            doorkeeper.count(address.parse().unwrap(), start + Duration::from_millis(after))
        };
        assert_eq!([count("10.0.0.1", 0), count("10.0.0.1", 999), count("10.0.0.2", 999)], [1, 2, 1]);
        assert_eq!([count("10.0.0.1", 1000), count("10.0.0.1", 1500)], [1, 2]);
        assert_eq!(count("::ffff:10.0.0.1", 1500), 3, "it is the same address");
        assert_eq!(
            [count("2001:db8::1", 0), count("2001:db8::ffff:2", 0), count("2001:db8:0:1::1", 0)],
            [1, 2, 1]
        );
    }

    #[test]
    fn a_pace_is_kept_for_a_second_by_all_together() {
        let (pace, start) = (Pace::default(), Instant::now());
        let admits = |after: u64| pace.admits(2, start + Duration::from_millis(after));
        assert_eq!([admits(0), admits(500), admits(999)], [true, true, false]);
        assert_eq!((pace.take_refused(), pace.take_refused()), (1, 0));
        assert_eq!([admits(1000), admits(1001), admits(1002)], [true, true, false]);
    }

    #[test]
    fn no_more_addresses_are_kept_than_may_be() {
        let (doorkeeper, start) = (Doorkeeper::default(), Instant::now());
        for n in 0..3 * ADDRESSES_MAX as u32 {
            let after = Duration::from_micros(u64::from(n) * 100);
            doorkeeper.count(std::net::Ipv4Addr::from_bits(n).into(), start + after);
            assert!(doorkeeper.table.lock().len() <= ADDRESSES_MAX);
        }
    }
}
