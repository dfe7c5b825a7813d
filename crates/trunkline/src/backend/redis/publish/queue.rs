//! What waits to be sent, in order, between the publishers and the one task that sends it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use trunkline_core::Subject;

use super::ticket::Ticket;
use crate::backend::PublishError;

/// So many waiting messages are worth a batch although others are under way.
pub(super) const ENOUGH: usize = 96;

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
    /// Nothing waits and nothing is under way: what is added is sent at once.
    idle: AtomicBool,
    /// How often a message had to be given back that others with the same number may stand behind. Counted before its
    /// publisher is told, by who takes messages or, of one that never got in, before those behind it did: so nothing is
    /// taken by an old number.
    breaks: AtomicU64,
}

struct State {
    orders: VecDeque<Order>,
    /// No message in the queue has an earlier deadline.
    soonest: Option<Instant>,
    /// How many orders may still be added.
    room: usize,
    /// Orders that were put in front without taking room: so many give none back when they are taken.
    unpaid: usize,
    /// Those for which there was no room, in order. Whoever takes an order lets the first of them in, so that nothing
    /// that comes later stands before them, whenever their publishers are looked at again.
    outside: VecDeque<Outsider>,
    /// Tells who waits outside apart.
    next: u64,
    closed: bool,
}

/// An order that waits for room.
struct Outsider {
    id: u64,
    order: Order,
    inside: oneshot::Sender<()>,
}

/// A place among those who wait for room, given up when dropped.
pub(super) struct Outside {
    queue: Arc<Queue>,
    id: u64,
    told: oneshot::Receiver<()>,
}

impl Outside {
    /// Waits until the order has come in, or the queue is closed.
    ///
    /// # Cancel safety
    /// May be called again.
    pub(super) async fn inside(&mut self) {
        let _ = (&mut self.told).await;
    }

    /// Gives the place up, and says whether the order was still there: it may have come in this moment. Where the order
    /// must be kept, it is broken by that before anybody behind it comes in.
    pub(super) fn withdraw(&self) -> bool {
        let mut state = self.queue.state.lock();
        let at = state.outside.iter().position(|outsider| outsider.id == self.id);
        let outsider = at.and_then(|at| state.outside.remove(at));
        if let Some(Outsider { order: Order::Publish(item), .. }) = &outsider
            && item.unbroken_since.is_some()
        {
            self.queue.note_break();
        }
        // Dropped outside of the lock: it tells its publisher.
        drop(state);
        outsider.is_some()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl State {
    fn note(&mut self, order: &Order) {
        if let Order::Publish(item) = order
            && self.soonest.is_none_or(|soonest| item.deadline < soonest)
        {
            self.soonest = Some(item.deadline);
        }
    }

    /// So many orders were taken: gives their room to those who wait for it, who are to be told.
    #[must_use = "to be told outside of the lock"]
    fn give_back(&mut self, orders: usize) -> Vec<oneshot::Sender<()>> {
        let unpaid = self.unpaid.min(orders);
        self.unpaid -= unpaid;
        self.room += orders - unpaid;
        let mut let_in = Vec::new();
        while self.room > 0
            && let Some(outsider) = self.outside.pop_front()
        {
            self.room -= 1;
            self.note(&outsider.order);
            self.orders.push_back(outsider.order);
            let_in.push(outsider.inside);
        }
        let_in
    }
}

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        let state = State {
            orders: VecDeque::new(),
            soonest: None,
            room: most.max(1),
            unpaid: 0,
            outside: VecDeque::new(),
            next: 0,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            filled: Notify::new(),
            idle: AtomicBool::new(false),
            breaks: AtomicU64::new(0),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::SeqCst)
    }

    pub(super) fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::SeqCst);
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

    /// Adds an order, if there is room. One that a closed queue gets is dropped.
    ///
    /// # Errors
    /// The order, where there is none.
    #[expect(
        clippy::result_large_err,
        reason = "what has no room is handed back as it came, without a box for each message"
    )]
    fn try_add(&self, order: Order) -> Result<(), Order> {
        let flush = matches!(order, Order::Flush(_));
        let waiting = {
            let mut state = self.state.lock();
            if state.closed {
                // Dropped outside of the lock: that tells its publisher.
                drop(state);
                drop(order);
                return Ok(());
            }
            if state.room == 0 {
                return Err(order);
            }
            state.room -= 1;
            state.note(&order);
            state.orders.push_back(order);
            state.orders.len()
        };
        // The writer looks at the whole queue each time it has an answer; these are what it may be waiting for otherwise.
        if waiting == ENOUGH || flush || waiting == 1 && self.is_idle() {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Adds an order, behind all that were added before, those that wait for room included. Without room it waits outside.
    pub(super) fn add(self: &Arc<Self>, order: Order) -> Option<Outside> {
        let mut order = order;
        loop {
            order = self.try_add(order).err()?;
            let mut state = self.state.lock();
            if state.closed || state.room > 0 {
                continue;
            }
            let id = state.next;
            state.next += 1;
            let (inside, told) = oneshot::channel();
            state.outside.push_back(Outsider { id, order, inside });
            return Some(Outside { queue: self.clone(), id, told });
        }
    }

    /// So many orders were taken.
    fn taken(&self, mut state: MutexGuard<'_, State>, orders: usize) {
        let let_in = state.give_back(orders);
        drop(state);
        if !let_in.is_empty() {
            self.filled.notify_one();
        }
        for inside in let_in {
            // Its publisher may have gone this moment: then the order goes its way, as any that is dropped inside.
            let _ = inside.send(());
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
                self.taken(state, 1);
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
        self.taken(state, items.len());
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
        self.taken(state, taken.len());
        taken
    }

    /// Refuses everything from now on, and drops what waits.
    pub(super) fn close(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.closed = true;
            (std::mem::take(&mut state.orders), std::mem::take(&mut state.outside))
        };
        drop(waiting);
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
        let queue = Arc::new(Queue::new(1));
        assert!(queue.add(item("a", LONG).0).is_none());
        let (second, _waiting) = item("b", LONG);
        let Some(mut outside) = queue.add(second) else { panic!("there is no room") };
        assert!(outside.inside().now_or_never().is_none());
        assert_eq!(queue.take(10, 100).len(), 1);
        assert!(outside.inside().now_or_never().is_some());
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn who_waits_for_room_is_overtaken_by_nobody_even_when_not_looked_at() {
        let queue = Arc::new(Queue::new(2));
        let mut waiting = Vec::new();
        let mut add = |subject: &str| {
            let (order, ticket) = item(subject, LONG);
            waiting.push(ticket);
            queue.add(order)
        };
        let subjects =
            |items: Vec<Item>| -> Vec<String> { items.iter().map(|item| item.subject.to_string()).collect() };
        assert!(add("a").is_none() && add("b").is_none());
        let mut outside: Vec<_> = ["c", "d", "e", "f"].map(|subject| add(subject).expect("no room")).into();
        assert!(outside.remove(2).withdraw());
        assert_eq!(subjects(queue.take(10, 1000)), ["a", "b"]);
        outside.push(add("late").expect("there is room for those who wait only"));
        assert!(!outside[0].withdraw(), "it has come in");
        assert_eq!(subjects(queue.take(1, 1000)), ["c"]);
        assert_eq!(subjects(queue.take(10, 1000)), ["d", "f"]);
        assert_eq!(subjects(queue.take(10, 1000)), ["late"]);
        assert!(outside.into_iter().all(|mut outside| outside.inside().now_or_never().is_some()));
        assert!(add("g").is_none() && add("h").is_none());
        assert!(add("i").is_some(), "as much room as there was");
    }

    #[test]
    fn giving_up_outside_breaks_the_order_of_those_behind() {
        let queue = Arc::new(Queue::new(1));
        assert!(queue.add(item("a", LONG).0).is_none());
        for (since, breaks) in [(None, 0), (Some(0), 1)] {
            let (mut order, _waiting) = item("b", LONG);
            if let Order::Publish(item) = &mut order {
                item.unbroken_since = since;
            }
            drop(queue.add(order));
            assert_eq!(queue.breaks(), breaks);
        }
    }

    #[test]
    fn a_batch_ends_at_a_flush_and_at_its_bounds() {
        let queue = Arc::new(Queue::new(10));
        let waiting: Vec<_> = ["a", "b", "c"]
            .map(|subject| {
                let (order, waiting) = item(subject, LONG);
                assert!(queue.add(order).is_none());
                waiting
            })
            .into_iter()
            .collect();
        let (done, _flushed) = oneshot::channel();
        assert!(queue.add(Order::Flush(done)).is_none());
        assert_eq!(queue.take(10, 15).len(), 2, "the bytes of the first do not reach the bound");
        assert!(!queue.flush_is_first());
        assert_eq!(queue.take(10, 100).len(), 1);
        assert!(queue.flush_is_first() && queue.take_flush().is_some());
        drop(waiting);
    }

    #[test]
    fn what_is_too_late_is_taken_out_and_the_rest_stays_in_order() {
        let queue = Arc::new(Queue::new(10));
        for (subject, timeout) in [("a", LONG), ("b", Duration::ZERO), ("c", LONG)] {
            assert!(queue.add(item(subject, timeout).0).is_none());
        }
        let expired = queue.expired(Instant::now());
        assert_eq!(expired.iter().map(|item| item.subject.as_str()).collect::<Vec<_>>(), ["b"]);
        let left = queue.take(10, 100);
        assert_eq!(left.iter().map(|item| item.subject.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn closing_tells_everybody() {
        let queue = Arc::new(Queue::new(10));
        let (order, before) = item("a", LONG);
        assert!(queue.add(order).is_none());
        queue.close();
        let (order, after) = item("b", LONG);
        assert!(queue.add(order).is_none(), "nothing to wait for");
        for waiting in [before, after] {
            assert_eq!(waiting.now_or_never(), Some(Err(PublishError::Closed)));
        }
    }
}
