//! Flow control of the load. NATS has none of its own: a publisher that outruns a subscriber far enough makes the server cut
//! the subscriber off, which would measure the limit and not the server. All clients live in this process, so
//! publishers wait while they are a whole window ahead of the slowest subscriber, and go on at half of it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::error::BenchError;
use super::halt::{Halt, POLL};
use super::tally::Expect;

/// A counter with a cache line of its own, because its neighbours are written by other threads.
#[derive(Default)]
#[repr(align(128))]
struct Counter(AtomicU64);

/// Progress of all publishers and subscribers of one phase.
pub(super) struct Window {
    limit: u64,
    expect: Expect,
    /// Messages that publishers have claimed the right to send.
    claimed: Counter,
    /// Messages per subscriber.
    received: Box<[Counter]>,
    /// Publishers that wait on `freed`.
    waiting: AtomicUsize,
    /// Guards nothing but the sleep on `freed`; held only to go to sleep and to wake.
    sleep: Mutex<()>,
    freed: Condvar,
}

impl Window {
    /// A window of `limit` messages in front of so many subscribers. With none it never closes.
    pub(super) fn new(limit: u64, subscribers: usize, expect: Expect) -> Self {
        Self {
            limit,
            expect,
            claimed: Counter::default(),
            received: (0..subscribers).map(|_| Counter::default()).collect(),
            waiting: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            freed: Condvar::new(),
        }
    }

    /// Messages that a publisher may claim at once, so that claims alone never fill half of the window.
    pub(super) fn claim_max(limit: u64, publishers: usize) -> u64 {
        (limit / (4 * publishers as u64)).max(1)
    }

    /// Waits until `messages` more fit into the window.
    ///
    /// # Errors
    /// The run has ended, or no subscriber moved for the timeout.
    pub(super) fn claim(&self, messages: u64, role: &str, halt: &Halt) -> Result<(), BenchError> {
        self.claimed.0.fetch_add(messages, Ordering::Relaxed);
        if self.received.is_empty() || self.ahead() <= self.limit {
            return Ok(());
        }
        let mut asleep = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `deliver`: either we see the progress or the subscriber sees that we wait.
        fence(Ordering::SeqCst);
        let mut seen = (self.ahead(), Instant::now());
        let outcome = loop {
            let ahead = self.ahead();
            if ahead <= self.limit / 2 {
                break Ok(());
            }
            if let Err(error) = halt.check() {
                break Err(error);
            }
            if ahead != seen.0 {
                seen = (ahead, Instant::now());
            } else if seen.1.elapsed() >= halt.timeout {
                break Err(BenchError::Stalled { role: role.to_owned(), waited: halt.timeout });
            }
            asleep = self.freed.wait_timeout(asleep, POLL).unwrap_or_else(PoisonError::into_inner).0;
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    /// Notes that a subscriber has `total` messages now, and wakes publishers when half of the window is free.
    pub(super) fn deliver(&self, subscriber: usize, total: u64) {
        self.received[subscriber].0.store(total, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 && self.ahead() <= self.limit / 2 {
            let _asleep = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.freed.notify_all();
        }
    }

    /// Messages that are on their way or have arrived.
    pub(super) fn claimed(&self) -> u64 {
        self.claimed.0.load(Ordering::Relaxed)
    }

    /// What the subscribers have together (a share each), or what the slowest of them has (every message each).
    pub(super) fn received(&self) -> u64 {
        let counts = self.received.iter().map(|counter| counter.0.load(Ordering::Relaxed));
        match self.expect {
            Expect::Share => counts.sum(),
            Expect::Every => counts.min().unwrap_or(0),
        }
    }

    fn ahead(&self) -> u64 {
        self.claimed().saturating_sub(self.received())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn halt(timeout: Duration) -> Halt {
        Halt::new(&Arc::default(), timeout)
    }

    #[test]
    fn the_slowest_of_a_fan_out_and_the_sum_of_a_queue_group_count() {
        for (expect, received) in [(Expect::Every, 3), (Expect::Share, 10)] {
            let window = Window::new(100, 2, expect);
            window.deliver(0, 7);
            window.deliver(1, 3);
            assert_eq!(window.received(), received, "{expect:?}");
        }
    }

    #[test]
    fn a_full_window_stalls_its_publisher() {
        let window = Window::new(10, 1, Expect::Every);
        let halt = halt(Duration::from_millis(1));
        window.claim(10, "publisher 0", &halt).expect("fits");
        let outcome = window.claim(1, "publisher 0", &halt);
        assert!(matches!(outcome, Err(BenchError::Stalled { .. })));
    }

    #[test]
    fn without_subscribers_it_is_never_full() {
        let window = Window::new(1, 0, Expect::Every);
        window.claim(1000, "publisher 0", &halt(POLL)).expect("open");
    }

    #[test]
    fn publishers_and_subscribers_hand_over_without_a_lost_wake_up() {
        let (publishers, claims, limit) = (3, 20_000, 64);
        let claim = Window::claim_max(limit, publishers);
        let window = Window::new(limit, 1, Expect::Every);
        // A wake-up that is lost costs a whole POLL, so that even one in a hundred shows in the time this takes.
        let halt = halt(Duration::from_secs(60));
        let total = publishers as u64 * claims * claim;
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..publishers {
                scope.spawn(|| {
                    for _ in 0..claims {
                        window.claim(claim, "publisher", &halt).expect("the subscriber moves");
                    }
                });
            }
            let mut received = 0;
            while received < total {
                let claimed = window.claimed();
                if claimed == received {
                    std::thread::yield_now();
                }
                received = claimed;
                window.deliver(0, received);
            }
        });
        assert_eq!(window.ahead(), 0);
        assert!(started.elapsed() < Duration::from_secs(30), "publishers slept through wake-ups");
    }
}
