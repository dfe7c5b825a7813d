//! What waits to be sent, in order, between the publishers and the one task that sends it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore, oneshot};
use trunkline_core::Subject;

use super::ticket::Ticket;
use crate::backend::PublishError;

/// So many waiting messages are worth a batch although others are under way.
pub(super) const ENOUGH: usize = 128;

/// One message on its way.
pub(super) struct Item {
    pub(super) subject: Subject,
    pub(super) reply: Option<Subject>,
    pub(super) entry: Vec<u8>,
    pub(super) dedupe_id: Option<String>,
    /// It is to be sent only if the order has not been broken since.
    pub(super) unbroken_since: Option<u64>,
    /// How often it was sent by routes that turned out to be old, or to a server that does not have the stream.
    pub(super) refused: usize,
    /// How long its publisher waits, and until when.
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
    pub(super) ticket: Ticket,
}

pub(super) enum Order {
    Publish(Item),
    Flush(oneshot::Sender<Result<(), PublishError>>),
}

/// See the module's text.
pub(super) struct Queue {
    /// Held to add or take orders; nobody is woken inside.
    state: Mutex<State>,
    /// The queue has something, or enough for a batch.
    filled: Notify,
    /// One permit for each order that may still be added.
    room: Semaphore,
    /// How often a message had to be given back that others with the same number may stand behind. Counted before its
    /// publisher is told, by who takes messages or, of one that never got in, before those behind it did: so nothing is
    /// taken by an old number.
    breaks: AtomicU64,
}

struct State {
    orders: VecDeque<Order>,
    /// No message in the queue has an earlier deadline.
    soonest: Option<Instant>,
    /// Orders that were put in front without a permit: so many give none back when they are taken.
    unpaid: usize,
    closed: bool,
}

impl State {
    fn note(&mut self, order: &Order) {
        if let Order::Publish(item) = order
            && self.soonest.is_none_or(|soonest| item.deadline < soonest)
        {
            self.soonest = Some(item.deadline);
        }
    }

    /// How many permits so many orders give back.
    fn paid(&mut self, orders: usize) -> usize {
        let unpaid = self.unpaid.min(orders);
        self.unpaid -= unpaid;
        orders - unpaid
    }
}

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        let state = State { orders: VecDeque::new(), soonest: None, unpaid: 0, closed: false };
        let room = Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS));
        Self { state: Mutex::new(state), filled: Notify::new(), room, breaks: AtomicU64::new(0) }
    }

    pub(super) fn breaks(&self) -> u64 {
        self.breaks.load(Ordering::SeqCst)
    }

    /// A message is given back to its publisher: those behind it that must not overtake it stay here, too.
    pub(super) fn note_break(&self) {
        self.breaks.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a message would overtake one that was given back.
    pub(super) fn is_behind_break(&self, item: &Item) -> bool {
        item.unbroken_since.is_some_and(|since| since != self.breaks())
    }

    /// Adds an order, if there is room.
    ///
    /// # Errors
    /// The order, where there is none.
    #[expect(
        clippy::result_large_err,
        reason = "what has no room is handed back as it came, without a box for each message"
    )]
    pub(super) fn try_add(&self, order: Order) -> Result<(), Order> {
        match self.room.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => return Err(order),
        }
        self.push(order);
        Ok(())
    }

    /// Waits for room and adds an order. Whoever waits longest is first.
    pub(super) async fn add(&self, order: Order) {
        if let Ok(permit) = self.room.acquire().await {
            permit.forget();
        }
        self.push(order);
    }

    fn push(&self, order: Order) {
        let waiting = {
            let mut state = self.state.lock();
            if state.closed {
                // Dropped outside of the lock: that tells its publisher.
                drop(state);
                return drop(order);
            }
            state.note(&order);
            state.orders.push_back(order);
            state.orders.len()
        };
        // The writer looks at the whole queue each time; these are the lengths it may be waiting for.
        if waiting == 1 || waiting == ENOUGH {
            self.filled.notify_one();
        }
    }

    /// Puts an order in front of all others; it was in the queue before, or there are few of its kind.
    pub(super) fn put_first(&self, order: Order) {
        let mut state = self.state.lock();
        state.note(&order);
        state.unpaid += 1;
        state.orders.push_front(order);
    }

    /// Waits until something was added to an empty queue, or enough to one that was not.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    pub(super) fn len(&self) -> usize {
        self.state.lock().orders.len()
    }

    /// Whether a flush is first.
    pub(super) fn flush_is_first(&self) -> bool {
        matches!(self.state.lock().orders.front(), Some(Order::Flush(_)))
    }

    /// Takes the flush that is first.
    pub(super) fn take_flush(&self) -> Option<oneshot::Sender<Result<(), PublishError>>> {
        let mut state = self.state.lock();
        match state.orders.pop_front() {
            Some(Order::Flush(done)) => {
                self.room.add_permits(state.paid(1));
                Some(done)
            }
            Some(other) => {
                state.orders.push_front(other);
                None
            }
            None => None,
        }
    }

    /// Takes messages up to these bounds, or to a flush.
    pub(super) fn take(&self, messages: usize, bytes: usize) -> Vec<Item> {
        let mut state = self.state.lock();
        let mut items = Vec::with_capacity(messages.min(state.orders.len()));
        let mut taken = 0;
        while items.len() < messages && taken < bytes {
            match state.orders.pop_front() {
                Some(Order::Publish(item)) => {
                    taken += item.entry.len();
                    items.push(item);
                }
                Some(flush) => {
                    state.orders.push_front(flush);
                    break;
                }
                None => break,
            }
        }
        let paid = state.paid(items.len());
        drop(state);
        self.room.add_permits(paid);
        items
    }

    /// Takes out the messages whose time is over.
    pub(super) fn expired(&self, now: Instant) -> Vec<Item> {
        let state = self.state.lock();
        if state.soonest.is_none_or(|soonest| now < soonest) {
            return Vec::new();
        }
        self.take_from(state, |item| item.deadline <= now)
    }

    /// Takes out the messages that are `wanted`, wherever they stand.
    pub(super) fn take_out(&self, wanted: impl FnMut(&Item) -> bool) -> Vec<Item> {
        self.take_from(self.state.lock(), wanted)
    }

    fn take_from(
        &self,
        mut state: MutexGuard<'_, State>,
        mut wanted: impl FnMut(&Item) -> bool,
    ) -> Vec<Item> {
        let (mut taken, mut kept) = (Vec::new(), VecDeque::with_capacity(state.orders.len()));
        let mut soonest: Option<Instant> = None;
        for order in state.orders.drain(..) {
            match order {
                Order::Publish(item) if wanted(&item) => taken.push(item),
                order => {
                    if let Order::Publish(item) = &order {
                        soonest = Some(soonest.map_or(item.deadline, |soonest| soonest.min(item.deadline)));
                    }
                    kept.push_back(order);
                }
            }
        }
        state.orders = kept;
        state.soonest = soonest;
        let paid = state.paid(taken.len());
        drop(state);
        self.room.add_permits(paid);
        taken
    }

    /// Refuses everything from now on, and drops what waits.
    pub(super) fn close(&self) {
        let orders = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.orders)
        };
        self.room.close();
        drop(orders);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::ticket::{Waiting, ticket};
    use super::*;

    fn item(subject: &str, timeout: Duration) -> (Order, Waiting) {
        let (ticket, waiting) = ticket();
        let item = Item {
            subject: Subject::new(subject.to_owned()).expect("a subject"),
            reply: None,
            entry: vec![0; 10],
            dedupe_id: None,
            unbroken_since: None,
            refused: 0,
            timeout,
            deadline: Instant::now() + timeout,
            ticket,
        };
        (Order::Publish(item), waiting)
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_full_queue_takes_more_once_something_was_taken() {
        let queue = Queue::new(1);
        assert!(queue.try_add(item("a", LONG).0).is_ok());
        let (second, _waiting) = item("b", LONG);
        let Err(second) = queue.try_add(second) else { panic!("there is no room") };
        let mut adding = Box::pin(queue.add(second));
        assert!((&mut adding).now_or_never().is_none());
        assert_eq!(queue.take(10, 100).len(), 1);
        assert!(adding.now_or_never().is_some());
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn a_batch_ends_at_a_flush_and_at_its_bounds() {
        let queue = Queue::new(10);
        let waiting: Vec<_> = ["a", "b", "c"]
            .map(|subject| {
                let (order, waiting) = item(subject, LONG);
                assert!(queue.try_add(order).is_ok());
                waiting
            })
            .into_iter()
            .collect();
        let (done, _flushed) = oneshot::channel();
        assert!(queue.try_add(Order::Flush(done)).is_ok());
        assert_eq!(queue.take(10, 15).len(), 2, "the bytes of the first do not reach the bound");
        assert!(!queue.flush_is_first());
        assert_eq!(queue.take(10, 100).len(), 1);
        assert!(queue.flush_is_first() && queue.take_flush().is_some());
        drop(waiting);
    }

    #[test]
    fn what_is_too_late_is_taken_out_and_the_rest_stays_in_order() {
        let queue = Queue::new(10);
        for (subject, timeout) in [("a", LONG), ("b", Duration::ZERO), ("c", LONG)] {
            assert!(queue.try_add(item(subject, timeout).0).is_ok());
        }
        let expired = queue.expired(Instant::now());
        assert_eq!(expired.iter().map(|item| item.subject.as_str()).collect::<Vec<_>>(), ["b"]);
        let left = queue.take(10, 100);
        assert_eq!(left.iter().map(|item| item.subject.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn closing_tells_everybody() {
        let queue = Queue::new(10);
        let (order, before) = item("a", LONG);
        assert!(queue.try_add(order).is_ok());
        queue.close();
        let (order, after) = item("b", LONG);
        queue.add(order).now_or_never().expect("nothing to wait for");
        for waiting in [before, after] {
            assert_eq!(waiting.now_or_never(), Some(Err(PublishError::Closed)));
        }
    }
}
