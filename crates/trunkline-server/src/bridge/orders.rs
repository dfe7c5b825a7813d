//! What a session has read and its lane has not carried out: a bounded queue between the two.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use trunkline::Message;
use trunkline::memory::{Charge, Holding, MemoryBudget};

use crate::subscription::Subscription;

/// Most orders, and most of their bytes, of one connection: past either the client is not read any further. One batch of
/// reading may go beyond it.
const ORDERS_MAX: usize = 8192;
const BYTES_MAX: usize = 8 << 20;
/// The same while all buffers of the process together have more than they may.
const SHORT_BYTES_MAX: usize = 64 << 10;
/// In what steps the bytes are charged.
const STEP_BYTES: usize = 256 << 10;

/// One thing to do for a client.
pub(crate) enum Order {
    Publish(Outbound),
    Subscribe(Arc<Subscription>),
    Unsubscribe(Arc<Subscription>),
    /// Bytes for the client that say what came of everything before them.
    Say(Vec<u8>),
}

impl Order {
    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Self::Publish(outbound) => outbound.size_bytes,
            Self::Say(bytes) => bytes.len(),
            Self::Subscribe(_) | Self::Unsubscribe(_) => 0,
        }
    }
}

/// A message of a client.
pub(crate) struct Outbound {
    pub(crate) message: Message,
    pub(crate) size_bytes: usize,
}

/// How a lane is to end; only ever raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// Not at all.
    No,
    /// The server stops: nothing new; what was ordered is carried out, and what is on its way to the client still goes there.
    Drain,
    /// The client is gone: what it has published is still carried out.
    Close,
    /// At once.
    Abort,
}

pub(crate) struct Orders {
    /// Held for moving orders in or out, never across an await; no other lock is taken inside.
    queue: Mutex<Queue>,
    /// Wakes the lane: there are orders, or it is to end.
    changed: Notify,
    /// Wakes the connection that waits for room.
    room: Notify,
    /// Cancelled when the lane is to end at once, whatever it waits for.
    abort: CancellationToken,
}

struct Queue {
    orders: VecDeque<Order>,
    /// Orders that are here or under way, and their bytes.
    count: usize,
    bytes: usize,
    /// For those bytes, in steps: what does not pile up is never charged.
    charge: Charge,
    end: End,
}

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queue = self.queue.lock();
        let mut shown = f.debug_struct("Orders");
        shown.field("count", &queue.count).field("bytes", &queue.bytes).field("end", &queue.end).finish()
    }
}

impl Orders {
    pub(crate) fn new(memory: &Arc<MemoryBudget>) -> Self {
        let charge = Charge::new(memory, Holding::Bridge);
        let queue = Queue { orders: VecDeque::new(), count: 0, bytes: 0, charge, end: End::No };
        Self {
            queue: Mutex::new(queue),
            changed: Notify::new(),
            room: Notify::new(),
            abort: CancellationToken::new(),
        }
    }

    /// Takes a batch of orders; nothing once the lane is to end, because nobody is told what came of it.
    pub(crate) fn push(&self, batch: &mut Vec<Order>) {
        {
            let mut queue = self.queue.lock();
            if queue.end != End::No {
                return batch.clear();
            }
            queue.count += batch.len();
            queue.bytes += batch.iter().map(Order::size_bytes).sum::<usize>();
            queue.orders.extend(batch.drain(..));
            queue.charge_bytes();
        }
        self.changed.notify_one();
    }

    /// Moves all orders behind those in `to`, and says whether the lane is to end.
    pub(crate) fn take(&self, to: &mut VecDeque<Order>) -> End {
        let mut queue = self.queue.lock();
        match to.is_empty() {
            true => std::mem::swap(to, &mut queue.orders),
            false => to.append(&mut queue.orders),
        }
        queue.end
    }

    /// So many orders of so many bytes are over.
    pub(crate) fn finished(&self, count: usize, bytes: usize) {
        let has_room = {
            let mut queue = self.queue.lock();
            let was_low = queue.is_low();
            queue.count -= count;
            queue.bytes -= bytes;
            queue.charge_bytes();
            !was_low && queue.is_low()
        };
        if has_room {
            self.room.notify_one();
        }
    }

    /// An order that is here has grown by so many bytes.
    pub(crate) fn grown(&self, bytes: usize) {
        self.queue.lock().bytes += bytes;
    }

    /// Has the lane end.
    pub(crate) fn end(&self, how: End) {
        {
            let mut queue = self.queue.lock();
            queue.end = queue.end.max(how);
        }
        if how == End::Abort {
            self.abort.cancel();
        }
        self.changed.notify_one();
        self.room.notify_one();
    }

    pub(crate) fn is_full(&self) -> bool {
        let queue = self.queue.lock();
        // Where memory is short nobody is ahead of the backend by more than a little.
        let bytes_max = if queue.charge.budget().is_exceeded() { SHORT_BYTES_MAX } else { BYTES_MAX };
        queue.end == End::No && (queue.count > ORDERS_MAX || queue.bytes > bytes_max)
    }

    /// Waits until half of the room is free, or the lane ends.
    pub(crate) async fn has_room(&self) {
        loop {
            let room = self.room.notified();
            {
                let queue = self.queue.lock();
                if queue.end != End::No || queue.is_low() {
                    return;
                }
            }
            room.await;
        }
    }

    /// Waits until the lane is to end at once.
    pub(crate) async fn aborted(&self) {
        self.abort.cancelled().await;
    }

    /// Waits until there are orders, or the lane is to end.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Queue {
    fn charge_bytes(&mut self) {
        self.charge.set(self.bytes / STEP_BYTES * STEP_BYTES);
    }

    fn is_low(&self) -> bool {
        self.count <= ORDERS_MAX / 2 && self.bytes <= BYTES_MAX / 2
    }
}
