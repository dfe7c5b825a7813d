//! Who gives up its place when all places of the HTTP listener are taken: whoever has been waited for longest. Without that
//! a few hundred requests that never end would keep every probe out, and a server that is well would be taken for dead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The connections of a listener that nothing is being done for.
#[derive(Debug)]
pub(super) struct Guests {
    /// Guards who waits, in the order in which they began to. Held for a look or a change, never while one is sent away.
    waiting: Mutex<BTreeMap<u64, CancellationToken>>,
    next: AtomicU64,
    evicted: Arc<AtomicU64>,
}

impl Guests {
    /// Counts in `evicted` who was sent away.
    pub(super) fn new(evicted: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), next: AtomicU64::new(0), evicted })
    }

    /// Somebody came; nothing was asked for so far.
    pub(super) fn welcome(self: &Arc<Self>) -> Guest {
        let guest = Guest { guests: self.clone(), leave: CancellationToken::new(), place: Mutex::new(None) };
        guest.rest();
        guest
    }

    /// Sends away whoever has been waited for longest; `false` when something is being done for everybody.
    pub(super) fn send_one_away(&self) -> bool {
        let Some((_, oldest)) = self.waiting.lock().pop_first() else { return false };
        self.evicted.fetch_add(1, Ordering::Relaxed);
        oldest.cancel();
        true
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Arc<Guests>,
    leave: CancellationToken,
    /// Where it stands among those who are waited for.
    place: Mutex<Option<u64>>,
}

impl Guest {
    /// Its request is whole: it keeps its place until there is an answer.
    pub(super) fn is_served(&self) {
        if let Some(place) = self.place.lock().take() {
            self.guests.waiting.lock().remove(&place);
        }
    }

    /// It is waited for again.
    pub(super) fn rest(&self) {
        let place = self.guests.next.fetch_add(1, Ordering::Relaxed);
        *self.place.lock() = Some(place);
        self.guests.waiting.lock().insert(place, self.leave.clone());
    }

    /// Waits until it has to go.
    pub(super) async fn sent_away(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.is_served();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_been_waited_for_longest_goes_and_who_is_served_stays() {
        let evicted = Arc::new(AtomicU64::new(0));
        let guests = Guests::new(evicted.clone());
        let [served, first, second, gone] = [(); 4].map(|()| guests.welcome());
        served.is_served();
        drop(gone);
        assert!(guests.send_one_away());
        assert!(first.leave.is_cancelled() && !second.leave.is_cancelled());
        second.is_served();
        assert!(!guests.send_one_away(), "something is being done for both who are left");
        second.rest();
        served.rest();
        assert!(guests.send_one_away() && second.leave.is_cancelled() && !served.leave.is_cancelled());
        drop((served, first, second));
        assert!(!guests.send_one_away());
        assert_eq!(evicted.load(Ordering::Relaxed), 2);
    }
}
