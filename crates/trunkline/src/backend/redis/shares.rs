//! Which queue groups this process has a share of, and which it is about to join.
//!
//! Whoever wants to join finds the share of the others or makes one. One that nobody has joined is forgotten with the
//! last who tried, so that what fails leaves nothing behind.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The key of a stream, and the name of a group on it.
pub(super) type GroupKey = (String, String);

/// What may have been joined.
pub(super) trait Joinable {
    /// Whether somebody has joined it; then it stays until it is forgotten.
    fn is_joined(&self) -> bool;
}

/// Shares of queue groups, by stream and group. See the module's text.
pub(super) struct Shares<S>(
    /// Held for one map operation.
    Mutex<HashMap<GroupKey, Known<S>>>,
);

struct Known<S> {
    share: Arc<S>,
    /// How many are about to join it.
    joining: usize,
}

/// A share that is being joined.
pub(super) struct Joining<'a, S: Joinable> {
    shares: &'a Shares<S>,
    key: &'a GroupKey,
    pub(super) share: Arc<S>,
}

impl<S> Default for Shares<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<S: Joinable> Shares<S> {
    /// The share of this group, made where there is none.
    pub(super) fn join<'a>(&'a self, key: &'a GroupKey, make: impl FnOnce() -> S) -> Joining<'a, S> {
        let mut shares = self.0.lock();
        let known = shares.entry(key.clone());
        let known = known.or_insert_with(|| Known { share: Arc::new(make()), joining: 0 });
        known.joining += 1;
        Joining { shares: self, key, share: known.share.clone() }
    }

    /// Forgets the share of this group, if it is the one that is meant.
    pub(super) fn forget(&self, key: &GroupKey, is_meant: impl FnOnce(&S) -> bool) {
        let mut shares = self.0.lock();
        if shares.get(key).is_some_and(|known| is_meant(&known.share)) {
            shares.remove(key);
        }
    }
}

impl<S: Joinable> Drop for Joining<'_, S> {
    fn drop(&mut self) {
        let mut shares = self.shares.0.lock();
        // Where it was forgotten meanwhile the map may have another, which others are joining.
        let Some(known) = shares.get_mut(self.key).filter(|known| Arc::ptr_eq(&known.share, &self.share))
        else {
            return;
        };
        known.joining -= 1;
        if known.joining == 0 && !known.share.is_joined() {
            shares.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    impl Joinable for AtomicBool {
        fn is_joined(&self) -> bool {
            self.load(Ordering::SeqCst)
        }
    }

    fn key() -> GroupKey {
        ("stream".to_owned(), "group".to_owned())
    }

    fn count(shares: &Shares<AtomicBool>) -> usize {
        shares.0.lock().len()
    }

    #[test]
    fn a_share_that_was_joined_stays_until_it_is_forgotten() {
        let (shares, key) = (Shares::default(), key());
        let failing = shares.join(&key, || AtomicBool::new(false));
        let joining = shares.join(&key, || panic!("there is one"));
        joining.share.store(true, Ordering::SeqCst);
        drop(joining);
        drop(failing);
        assert_eq!(count(&shares), 1);
        shares.forget(&key, |_| false);
        assert_eq!(count(&shares), 1);
        shares.forget(&key, AtomicBool::is_joined);
        assert_eq!(count(&shares), 0);
    }

    #[test]
    fn a_share_that_nobody_could_join_is_forgotten_with_the_last_who_tried() {
        let (shares, key) = (Shares::default(), key());
        let first = shares.join(&key, || AtomicBool::new(false));
        let second = shares.join(&key, || panic!("there is one"));
        drop(first);
        assert_eq!(count(&shares), 1, "the other may still join it");
        drop(second);
        assert_eq!(count(&shares), 0);
    }

    #[test]
    fn joins_that_fail_at_the_same_moment_leave_nothing() {
        const THREADS: usize = 3;
        let (shares, key, barrier) = (Shares::default(), key(), Barrier::new(THREADS));
        for round in 0..5000 {
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        let joining = shares.join(&key, || AtomicBool::new(false));
                        barrier.wait();
                        drop(joining);
                    });
                }
            });
            assert_eq!(count(&shares), 0, "left by round {round}");
        }
    }
}
