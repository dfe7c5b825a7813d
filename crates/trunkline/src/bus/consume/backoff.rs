//! Pauses between attempts at a backend that is away: growing, with jitter, for ever.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// How long to wait after failures in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Begins a pause, longer after each failure.
    pub(super) fn pause(&mut self) {
        let longest = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // Half of it is left to chance, so that members of a consumer do not come back all at once.
        self.until = Some(Instant::now() + longest.mul_f64(0.5 + fastrand::f64() / 2.0));
    }

    /// Makes the pause last at least until then.
    pub(super) fn pause_until(&mut self, until: Instant) {
        self.until = self.until.max(Some(until));
    }

    /// The end of the pause, while there is one.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Ends the pause; the next failure makes a longer one.
    pub(super) fn resume(&mut self) {
        self.until = None;
    }

    /// All is well again.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_the_longest_and_start_anew_after_success() {
        let mut backoff = Backoff::default();
        let pause = |backoff: &mut Backoff| {
            backoff.pause();
            backoff.until().unwrap() - Instant::now()
        };
        let first = pause(&mut backoff);
        assert!(first >= FIRST / 2 && first <= FIRST, "{first:?}");
        for _ in 0..20 {
            backoff.resume();
            assert_eq!(backoff.until(), None);
            pause(&mut backoff);
        }
        let last = pause(&mut backoff);
        assert!(last >= LONGEST / 2 && last <= LONGEST, "{last:?}");
        backoff.reset();
        assert!(pause(&mut backoff) <= FIRST);
    }
}
