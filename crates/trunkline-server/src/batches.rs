//! Which threads are in the midst of a batch: what they have staged for others is not written yet.
//!
//! A client that unsubscribes and sends PING may leave once it has the PONG, and drops whatever comes then: of a queue group
//! that would be lost to everybody. So the PONG waits for the batches of other threads that may have taken the client for
//! somebody who listens. There is no end to batches on a busy server, but each of them is over in milliseconds.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use parking_lot::RwLock;
use smallvec::SmallVec;

/// The beginnings and ends of one thread's batches together: odd in the midst of one.
type Count = Arc<AtomicU64>;

/// Guards the list alone, of all threads that have had a batch; written when the first one of a thread begins, and when the
/// thread ends.
static COUNTS: RwLock<Vec<Count>> = RwLock::new(Vec::new());

thread_local! {
    static OWN: Own = Own::new();
}

/// The count of this thread.
struct Own(Count);

impl Own {
    fn new() -> Self {
        let count = Count::default();
        COUNTS.write().push(count.clone());
        Self(count)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        COUNTS.write().retain(|count| !Arc::ptr_eq(count, &self.0));
    }
}

/// This thread is in the midst of a batch until this is dropped.
pub(crate) struct Batch {
    /// It is part of a longer one.
    within: bool,
    /// It is this thread's.
    thread: PhantomData<*const ()>,
}

impl Batch {
    /// To be called before anybody is looked for who listens.
    #[inline]
    pub(crate) fn begin() -> Self {
        let begin = |own: &Own| {
            let count = own.0.load(Ordering::Relaxed);
            if count % 2 == 1 {
                return true;
            }
            own.0.store(count + 1, Ordering::Relaxed);
            // Together with the one in `Others::now`: who ends a subscription sees this batch, or this batch sees that it
            // has ended.
            fence(Ordering::SeqCst);
            false
        };
        // A thread that ends serves nobody any more.
        Self { within: OWN.try_with(begin).unwrap_or(true), thread: PhantomData }
    }
}

impl Drop for Batch {
    #[inline]
    fn drop(&mut self) {
        if !self.within {
            // Behind everything that the batch has written.
            let _ = OWN.try_with(|own| own.0.fetch_add(1, Ordering::Release));
        }
    }
}

/// Batches of other threads that were under way at some moment.
pub(crate) struct Others(SmallVec<[(Count, u64); 4]>);

impl Others {
    /// Those that may still take what ended just now for something that goes on.
    pub(crate) fn now() -> Self {
        fence(Ordering::SeqCst);
        let own = OWN.try_with(|own| own.0.clone()).ok();
        let counts = COUNTS.read();
        let others = counts.iter().filter(|count| own.as_ref().is_none_or(|own| !Arc::ptr_eq(own, count)));
        let counted = others.map(|count| (count.clone(), count.load(Ordering::Acquire)));
        Self(counted.filter(|(_, batches)| batches % 2 == 1).collect())
    }

    /// Whether all of them are.
    pub(crate) fn are_over(&self) -> bool {
        self.0.iter().all(|(count, batches)| count.load(Ordering::Acquire) != *batches)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Other tests have batches, too: these are about one thread.
    fn of(thread: &Count) -> bool {
        Others::now().0.iter().any(|(count, _)| Arc::ptr_eq(count, thread))
    }

    #[test]
    fn a_batch_is_waited_for_and_not_those_behind_it() {
        let (orders, to_do) = mpsc::channel::<()>();
        let (done, reports) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let report = || done.send(OWN.with(|own| own.0.clone())).unwrap();
            for _ in 0..2 {
                let batch = Batch::begin();
                // One inside of it changes nothing, neither when it begins nor when it ends.
                let within = Batch::begin();
                report();
                to_do.recv().unwrap();
                drop(within);
                report();
                to_do.recv().unwrap();
                drop(batch);
            }
            report();
            to_do.recv().unwrap();
        });
        let first = reports.recv().unwrap();
        let mut others = Others::now();
        assert!(of(&first) && !others.are_over());
        orders.send(()).unwrap();
        reports.recv().unwrap();
        assert!(of(&first) && !others.are_over());
        orders.send(()).unwrap();
        let second = reports.recv().unwrap();
        assert!(of(&second), "there is another one");
        others.0.retain(|(count, _)| Arc::ptr_eq(count, &first));
        assert!(others.are_over(), "which nobody has to wait for");
        orders.send(()).unwrap();
        reports.recv().unwrap();
        orders.send(()).unwrap();
        let none = reports.recv().unwrap();
        assert!(!of(&none));
        orders.send(()).unwrap();
        thread.join().unwrap();
        assert!(!COUNTS.read().iter().any(|count| Arc::ptr_eq(count, &first)), "the thread has ended");
    }

    #[test]
    fn all_of_them_are_waited_for() {
        let [over, goes_on] = [2, 1].map(|count| Arc::new(AtomicU64::new(count)));
        let others = Others([(over, 1), (goes_on.clone(), 1)].into_iter().collect());
        assert!(!others.are_over());
        goes_on.fetch_add(1, Ordering::Release);
        assert!(others.are_over());
    }

    #[test]
    fn nobody_waits_for_the_batch_at_hand() {
        let _batch = Batch::begin();
        assert!(!of(&OWN.with(|own| own.0.clone())));
    }
}
