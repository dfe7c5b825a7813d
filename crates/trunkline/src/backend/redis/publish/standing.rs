//! What a publisher remembers of the streams it writes to: by which way the next batch goes.
//!
//! A long batch goes as a transaction of plain commands, which costs the server least. Its ids are made here, so it only
//! succeeds while nobody else writes to the stream; a publisher that was outrun takes the way through a script for a
//! while, which always succeeds. What goes behind a transaction under way must be one, too, and is refused with it:
//! otherwise it would overtake.

use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::super::entry::EntryId;
use super::super::routes::Home;

/// Limits by age and bytes are applied at most so often by one publisher; reading applies them, too.
const TRIM_INTERVAL: Duration = Duration::from_millis(500);
/// Limits by bytes are applied also after this part of them was written.
const TRIM_BYTES_PART: u64 = 32;
/// Streams remembered.
const STREAMS_MAX: usize = 1024;
/// Fewer messages are not worth a transaction.
const LED_MIN: usize = 16;
/// For how long the server's clock is told from ours since it was heard last.
const CLOCK_MAX: Duration = Duration::from_secs(1);
/// How long a publisher that was outrun takes the other way.
const OUTRUN: Duration = Duration::from_secs(1);

/// How a batch is appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the lean script, with the limits that it is to apply.
    Lean(Limits),
    /// Through the script for duplicates and requests.
    Full(Limits),
    /// As plain commands behind a script that checks.
    Led(Led),
}

/// Limits by age and bytes that are due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) age: Option<Duration>,
    pub(super) bytes: Option<u64>,
}

/// A transaction of plain commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Led {
    /// Time in the ids, and number of the message before the first.
    pub(super) after: EntryId,
    /// Number of the transaction, and of the one it must follow (0: any).
    pub(super) name: u64,
    pub(super) follows: u64,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Standings {
    /// No batch goes as a transaction: which server has the stream may change while it is under way.
    scripts_only: bool,
    streams: HashMap<String, Standing, foldhash::fast::RandomState>,
    names: u64,
}

#[derive(Default)]
struct Standing {
    trimmed_age: Option<Instant>,
    trimmed_bytes: Option<Instant>,
    /// Bytes written since.
    written: u64,
    /// Time in the newest id and number of the newest message, once what is under way is stored.
    newest: Option<EntryId>,
    /// The server's clock in ms, and when it was heard.
    clock: Option<(u64, Instant)>,
    /// Batches under way; transactions among them, and such as go through the full script; name of the latest transaction.
    under_way: usize,
    led: usize,
    full: usize,
    latest: u64,
    outrun_until: Option<Instant>,
}

impl Standings {
    /// None yet. With `scripts_only` no batch goes as a transaction.
    pub(super) fn new(scripts_only: bool) -> Self {
        Self { scripts_only, ..Self::default() }
    }

    /// Forgets the streams: they may have other limits now. Nothing must be under way.
    pub(super) fn clear(&mut self) {
        self.streams.clear();
    }

    /// Whether a batch has to wait until what is under way is answered.
    pub(super) fn must_wait(&self, home: &Home, plain: bool, messages: usize) -> bool {
        let Some(standing) = self.streams.get(&home.key) else { return false };
        let now = Instant::now();
        let leads = !self.scripts_only && standing.may_lead(home, plain, messages, now);
        match (standing.led, standing.under_way) {
            (0, 0) => false,
            // Behind scripts alone: worth the wait, because then it is known where the stream stands.
            (0, _) => leads && standing.full == 0,
            _ => !leads || standing.newest.is_none() || standing.clock_now(now).is_none(),
        }
    }

    /// Whether a batch may go as a transaction.
    pub(super) fn may_lead(&self, home: &Home, plain: bool, messages: usize) -> bool {
        let standing = self.streams.get(&home.key).filter(|standing| standing.newest.is_some());
        standing.is_some_and(|standing| {
            !self.scripts_only && standing.may_lead(home, plain, messages, Instant::now())
        })
    }

    /// The way of a batch that need not wait; it is under way from now on.
    pub(super) fn send(&mut self, home: &Home, plain: bool, messages: usize, bytes: usize) -> Way {
        self.take_way(home, (plain, !self.scripts_only), messages, bytes)
    }

    /// As [`Standings::send`], through a script in any case. Nothing must be under way.
    pub(super) fn send_by_script(&mut self, home: &Home, plain: bool, messages: usize, bytes: usize) -> Way {
        self.take_way(home, (plain, false), messages, bytes)
    }

    fn take_way(
        &mut self,
        home: &Home,
        (plain, may_lead): (bool, bool),
        messages: usize,
        bytes: usize,
    ) -> Way {
        if self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(&home.key) {
            self.streams.retain(|_, standing| standing.under_way > 0);
        }
        let now = Instant::now();
        let standing = self.streams.entry_ref(&home.key).or_default();
        let limits = standing.limits_due(home, now);
        let leads =
            may_lead && standing.may_lead(home, plain, messages, now) && standing.led == standing.under_way;
        let way = match (standing.newest, standing.clock_now(now)) {
            (Some((ms, number)), Some(clock)) if leads => {
                self.names += 1;
                let follows = if standing.led > 0 { standing.latest } else { 0 };
                (standing.latest, standing.led) = (self.names, standing.led + 1);
                Way::Led(Led { after: (ms.max(clock), number), name: self.names, follows })
            }
            _ if plain => Way::Lean(limits),
            _ => {
                standing.full += 1;
                Way::Full(limits)
            }
        };
        standing.written += bytes as u64;
        standing.trimmed(&way, now);
        standing.newest = match &way {
            Way::Led(led) => Some((led.after.0, led.after.1 + messages as u64)),
            // The server makes the ids; until it has told them, nothing can be built on them.
            Way::Lean(_) | Way::Full(_) => None,
        };
        standing.under_way += 1;
        way
    }

    /// A batch was stored: the newest of its ids, where they follow each other, and the server's clock where it was told.
    pub(super) fn stored(&mut self, home: &Home, way: &Way, newest: Option<EntryId>, clock: Option<u64>) {
        let Some(standing) = self.answered(home, way) else { return };
        if let Some(clock) = clock {
            standing.clock = Some((clock, Instant::now()));
        }
        if standing.under_way == 0 && !matches!(way, Way::Led(_)) {
            standing.newest = newest;
        }
    }

    /// A batch was refused, or nobody knows what became of it.
    pub(super) fn failed(&mut self, home: &Home, way: &Way, outrun: bool) {
        let Some(standing) = self.answered(home, way) else { return };
        standing.newest = None;
        if outrun {
            standing.outrun_until = Some(Instant::now() + OUTRUN);
        }
    }

    fn answered(&mut self, home: &Home, way: &Way) -> Option<&mut Standing> {
        let standing = self.streams.get_mut(&home.key)?;
        standing.under_way = standing.under_way.saturating_sub(1);
        match way {
            Way::Led(_) => standing.led = standing.led.saturating_sub(1),
            Way::Full(_) => standing.full = standing.full.saturating_sub(1),
            Way::Lean(_) => {}
        }
        Some(standing)
    }
}

impl Standing {
    /// Whether a batch may go as a transaction, once it is known where the stream stands.
    fn may_lead(&self, home: &Home, plain: bool, messages: usize, now: Instant) -> bool {
        let worth_it =
            self.led > 0 || messages >= LED_MIN && self.outrun_until.is_none_or(|until| now >= until);
        plain && worth_it && home.limits.expiry.is_none() && self.limits_due(home, now) == Limits::default()
    }

    /// The server's clock, as far as it was heard of lately.
    fn clock_now(&self, now: Instant) -> Option<u64> {
        let (clock, heard) = self.clock?;
        let elapsed = now.duration_since(heard);
        (elapsed <= CLOCK_MAX).then(|| clock + u64::try_from(elapsed.as_millis()).unwrap_or(0))
    }

    /// The limits by age and bytes that are to be applied with the next batch.
    fn limits_due(&self, home: &Home, now: Instant) -> Limits {
        let is_due =
            |last: Option<Instant>, interval| last.is_none_or(|last| now.duration_since(last) >= interval);
        Limits {
            age: home.limits.max_age.filter(|age| is_due(self.trimmed_age, TRIM_INTERVAL.min(*age / 4))),
            bytes: home.limits.max_bytes.filter(|bytes| {
                self.written >= bytes / TRIM_BYTES_PART || is_due(self.trimmed_bytes, TRIM_INTERVAL)
            }),
        }
    }

    fn trimmed(&mut self, way: &Way, now: Instant) {
        let (Way::Lean(limits) | Way::Full(limits)) = way else { return };
        if limits.age.is_some() {
            self.trimmed_age = Some(now);
        }
        if limits.bytes.is_some() {
            (self.trimmed_bytes, self.written) = (Some(now), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::routes::Limits as StreamLimits;
    use super::*;

    fn home(max_age: Option<Duration>) -> Home {
        Home {
            name: "s".to_owned(),
            config: None,
            limits: StreamLimits { max_age, ..StreamLimits::default() },
            key: "p:{s}".to_owned(),
            stores: true,
        }
    }

    /// Standings that know where the stream stands.
    fn known(home: &Home) -> Standings {
        let mut standings = Standings::default();
        let way = standings.send(home, true, 1, 10);
        assert!(matches!(way, Way::Lean(_)), "{way:?}");
        standings.stored(home, &way, Some((5, 7)), Some(5));
        standings
    }

    fn led(way: Way) -> Led {
        match way {
            Way::Led(led) => led,
            other => panic!("{other:?} is no transaction"),
        }
    }

    #[test]
    fn long_batches_follow_each_other_as_transactions() {
        let home = home(None);
        let mut standings = known(&home);
        let first = led(standings.send(&home, true, LED_MIN, 10));
        assert_eq!((first.after.1, first.follows), (7, 0));
        assert!(first.after.0 >= 5);
        assert!(!standings.must_wait(&home, true, 1));
        let second = led(standings.send(&home, true, 1, 10));
        assert_eq!((second.after.1, second.follows), (7 + LED_MIN as u64, first.name));
        assert!(standings.must_wait(&home, false, 1), "it would overtake what is refused");
        standings.stored(&home, &Way::Led(first), None, Some(6));
        standings.stored(&home, &Way::Led(second), None, Some(6));
        assert!(!standings.must_wait(&home, false, 1));
        assert!(matches!(standings.send(&home, false, 1, 10), Way::Full(_)));
    }

    #[test]
    fn short_batches_take_the_script_and_long_ones_wait_for_its_answer() {
        let home = home(None);
        let mut standings = known(&home);
        assert!(!standings.must_wait(&home, true, LED_MIN - 1));
        let short = standings.send(&home, true, LED_MIN - 1, 10);
        assert!(matches!(short, Way::Lean(_)));
        assert!(standings.must_wait(&home, true, LED_MIN));
        standings.stored(&home, &short, Some((6, 22)), Some(6));
        assert_eq!(led(standings.send(&home, true, LED_MIN, 10)).after.1, 22);
    }

    #[test]
    fn who_was_outrun_takes_the_script() {
        let home = home(None);
        let mut standings = known(&home);
        let way = Way::Led(led(standings.send(&home, true, LED_MIN, 10)));
        standings.failed(&home, &way, true);
        let way = standings.send(&home, true, LED_MIN, 10);
        assert!(matches!(way, Way::Lean(_)), "{way:?}");
        standings.stored(&home, &way, Some((9, 30)), Some(9));
        assert!(matches!(standings.send(&home, true, LED_MIN, 10), Way::Lean(_)));
    }

    #[test]
    fn limits_by_age_are_applied_from_time_to_time() {
        let home = home(Some(Duration::from_secs(3600)));
        let mut standings = Standings::default();
        let first = standings.send(&home, true, 1, 10);
        assert!(matches!(first, Way::Lean(Limits { age: Some(_), .. })), "{first:?}");
        let second = standings.send(&home, true, 1, 10);
        assert!(matches!(second, Way::Lean(Limits { age: None, .. })), "{second:?}");
    }
}
