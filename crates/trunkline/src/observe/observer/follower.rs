//! Who follows live what the record takes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::Observer;
use crate::observe::Observation;
use crate::observe::kept::Kept;

/// Most observations that a follower is given at a time.
const PAGE: usize = 256;

/// What a follower gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Followed {
    /// The next observation.
    Observation(Box<Observation>),
    /// So many were gone before the follower came to them.
    Missed(u64),
}

impl Observer {
    /// Follows live, from now on or behind the observation with this number.
    pub fn follow(self: &Arc<Self>, after: Option<u64>) -> Follower {
        self.read(false);
        let record = self.record.lock();
        // A number that is none of this record is from another life of the server: all that this one has is new.
        let at = after.map_or(record.last(), |after| record.resume(after));
        drop(record);
        Follower { observer: self.clone(), at, latest: self.latest.subscribe(), page: Vec::new().into_iter() }
    }
}

/// Reads on in the record as it grows. Nothing is kept for it: one that is too slow misses what the record lets go of, and
/// is told how much.
#[derive(Debug)]
pub struct Follower {
    observer: Arc<Observer>,
    /// The number of the observation it was given last.
    at: u64,
    latest: watch::Receiver<u64>,
    page: std::vec::IntoIter<Arc<Kept>>,
}

impl Follower {
    /// The next observation that `wanted` says yes to; `None` once the observer has stopped.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self, wanted: impl Fn(&Observation) -> bool) -> Option<Followed> {
        loop {
            self.latest.borrow_and_update();
            match self.read_on(&wanted) {
                Some(followed) => return Some(followed),
                None => tokio::select! {
                    biased;
                    changed = self.latest.changed() => changed.ok()?,
                    () = self.observer.closed.cancelled() => return None,
                },
            }
        }
    }

    /// The number up to which everything was given out or not wanted; to follow again after it misses nothing.
    pub fn position(&self) -> u64 {
        self.page.as_slice().first().map_or(self.at, |next| next.seen.seq - 1)
    }

    /// The next observation, if there is one by now.
    pub(in crate::observe) fn next_now(&mut self) -> Option<Followed> {
        self.read_on(&|_| true)
    }

    /// What could not be reported; it counts from there anew.
    pub(in crate::observe) fn take_not_reported(&self) -> u64 {
        self.observer.not_reported.swap(0, Ordering::Relaxed)
    }

    fn read_on(&mut self, wanted: &impl Fn(&Observation) -> bool) -> Option<Followed> {
        loop {
            for kept in self.page.by_ref() {
                if wanted(&kept.seen) {
                    return Some(Followed::Observation(Box::new(kept.show())));
                }
            }
            let (page, missed) = self.observer.record.lock().after(self.at, PAGE);
            self.at = page.last().map_or(self.at + missed, |kept| kept.seen.seq);
            self.page = page.into_iter();
            if missed > 0 {
                return Some(Followed::Missed(missed));
            }
            if self.page.len() == 0 {
                return None;
            }
        }
    }
}
