//! How much the log is told of those who are refused: one by one, up to so many a second, and the others as a number. Every
//! one is in the metrics; but whoever comes again and again is not to fill the disk, nor to hide among its own lines what
//! others do. And the count of requests over HTTP that were refused, which belong to no client.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Within it so many are told one by one.
const WINDOW: Duration = Duration::from_secs(1);
/// Most that are told one by one within the window.
const TOLD_MAX: u32 = 20;

/// Why a request over HTTP is refused before anybody looks at what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpRefusal {
    /// It calls the server by a name that is not the server's.
    Host,
    /// It comes from a page of another site.
    Origin,
    /// No token and no user, or wrong ones.
    Credentials,
    /// Too many wrong tokens or passwords came from its address; nothing was checked.
    TooMany,
    /// Its user may not use the admin API.
    NotAdmin,
}

impl HttpRefusal {
    pub(crate) const ALL: [HttpRefusal; 5] = [
        HttpRefusal::Host,
        HttpRefusal::Origin,
        HttpRefusal::Credentials,
        HttpRefusal::TooMany,
        HttpRefusal::NotAdmin,
    ];

    /// The value of the metric's label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Origin => "origin",
            Self::Credentials => "credentials",
            Self::TooMany => "too_many",
            Self::NotAdmin => "not_admin",
        }
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Held for a look and a change.
    state: Mutex<State>,
    /// Requests over HTTP, by the reason.
    http: [AtomicU64; HttpRefusal::ALL.len()],
}

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    told: u32,
    /// Of those that have not been told, in whatever window.
    untold: u64,
}

impl Refusals {
    /// Whether the log is to be told of one more; if not, it is counted.
    pub(crate) fn may_tell(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            (state.since, state.told) = (Some(now), 0);
        }
        if state.told < TOLD_MAX {
            state.told += 1;
            return true;
        }
        state.untold += 1;
        false
    }

    /// A request over HTTP is refused.
    pub(crate) fn count_http(&self, why: HttpRefusal) {
        self.http[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests over HTTP that were refused for this reason.
    pub(crate) fn http(&self, why: HttpRefusal) -> u64 {
        self.http[why as usize].load(Ordering::Relaxed)
    }

    /// Requests over HTTP that were refused.
    pub(crate) fn http_total(&self) -> u64 {
        HttpRefusal::ALL.into_iter().map(|why| self.http(why)).sum()
    }

    /// Tells the log how many it has not been told of. To be called about once a second.
    pub(crate) fn tell_the_rest(&self) {
        let untold = std::mem::take(&mut self.state.lock().untold);
        if untold > 0 {
            tracing::warn!(
                untold,
                "more clients and requests were refused than are logged one by one; the metrics count them all"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_second_are_told_and_the_others_are_counted() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let told = |at: Duration, n: u32| (0..n).filter(|_| refusals.may_tell(start + at)).count();
        assert_eq!(told(Duration::ZERO, 100), TOLD_MAX as usize);
        assert_eq!(told(WINDOW - Duration::from_millis(1), 5), 0);
        assert_eq!(refusals.state.lock().untold, 100 - u64::from(TOLD_MAX) + 5);
        assert_eq!(told(WINDOW, 3), 3);
        refusals.tell_the_rest();
        assert_eq!(refusals.state.lock().untold, 0);
    }
}
