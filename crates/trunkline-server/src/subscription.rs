//! A client's subscriptions, as the routing table knows them and by the client's own names.

use std::any::Any;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytestring::ByteString;
use parking_lot::RwLock;
use smallvec::SmallVec;
use trunkline::backend::memory::{Delivered, SessionSink};
use trunkline::memory::Holding;
use trunkline::{Message, Pattern};
use trunkline_core::{GradualTable, SubscriptionId};
use trunkline_protocol::encode;

use crate::auth::{PatternSet, Replies};
use crate::batches::Batch;
use crate::client::Client;
use crate::outbox::Written;
use crate::wire::{self, Fit};

/// A client's name for a subscription; most are numbers of a few digits.
pub(crate) type Sid = SmallVec<[u8; 8]>;

/// A client's subscriptions by its own names for them. The table moves little at a time: with a million of them a worker
/// thread would do nothing else for tens of milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    random: foldhash::fast::RandomState,
    table: GradualTable<Arc<Subscription>>,
}

impl Subscriptions {
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn get(&self, sid: &[u8]) -> Option<&Arc<Subscription>> {
        self.table.find(self.random.hash_one(sid), |known| *known.sid == *sid)
    }

    /// To be called for a name that is not in use.
    pub(crate) fn insert(&mut self, subscription: Arc<Subscription>) {
        self.table.insert(self.random.hash_one(&*subscription.sid), subscription);
    }

    pub(crate) fn remove(&mut self, sid: &[u8]) -> Option<Arc<Subscription>> {
        self.table.remove(self.random.hash_one(sid), |known| *known.sid == *sid)
    }

    /// In no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Subscription>> {
        self.table.iter()
    }

    /// In no particular order.
    pub(crate) fn into_vec(self) -> Vec<Arc<Subscription>> {
        let mut all = Vec::with_capacity(self.len());
        all.extend(self.table);
        all
    }
}

/// A subscription of a client, as the routing table knows it.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) client: Arc<Client>,
    pub(crate) sid: Sid,
    pub(crate) pattern: Pattern,
    pub(crate) queue: Option<ByteString>,
    /// Its place in the routing table; set right after it got there.
    pub(crate) id: OnceLock<SubscriptionId>,
    delivered: AtomicU64,
    /// Ends itself after so many deliveries; 0 is never.
    max: AtomicU64,
    ended: AtomicBool,
    /// What it was charged with when it was made.
    charged_bytes: u32,
    /// Whether there is a guard: deliveries to the others cost no lock.
    guarded: AtomicBool,
    /// Guards the pointer alone.
    guard: RwLock<Option<Arc<Guard>>>,
}

/// What is to be looked at before a delivery, because of the client's permissions.
#[derive(Debug)]
pub(crate) struct Guard {
    /// What it may not get.
    pub(crate) withheld: Option<PatternSet>,
    /// Where requests are noted that it may answer.
    pub(crate) replies: Option<Arc<Replies>>,
}

impl Subscription {
    pub(crate) fn new(client: Arc<Client>, sid: &[u8], pattern: Pattern, queue: Option<ByteString>) -> Self {
        let charged_bytes = Self::held_bytes(sid, &pattern, queue.as_deref());
        client.memory.enter(Holding::Subscriptions, 0, charged_bytes as usize);
        Self {
            client,
            sid: Sid::from_slice(sid),
            pattern,
            queue,
            charged_bytes,
            id: OnceLock::new(),
            delivered: AtomicU64::new(0),
            max: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            guarded: AtomicBool::new(false),
            guard: RwLock::default(),
        }
    }

    /// About how many bytes of memory a subscription takes, its places in tables included, and the routing table's nodes
    /// left out.
    pub(crate) fn held_bytes(sid: &[u8], pattern: &Pattern, queue: Option<&str>) -> u32 {
        const ITSELF: usize = size_of::<Subscription>() + 2 * size_of::<usize>();
        const IN_TABLE: usize = 2 * (size_of::<Sid>() + size_of::<usize>());
        let texts = 2 * sid.len() + pattern.as_str().len() + queue.map_or(0, str::len);
        u32::try_from(ITSELF + IN_TABLE + texts).unwrap_or(u32::MAX)
    }

    /// Puts other permissions in force.
    pub(crate) fn set_guard(&self, guard: Option<Guard>) {
        let mut current = self.guard.write();
        self.guarded.store(guard.is_some(), Ordering::Release);
        *current = guard.map(Arc::new);
    }

    /// Whether its client may have a message on `subject`; if so, it may be asked to answer to `reply`.
    #[inline]
    pub(crate) fn admits(&self, subject: &[u8], reply: Option<&[u8]>) -> bool {
        !self.guarded.load(Ordering::Acquire) || self.ask_guard(subject, reply)
    }

    #[cold]
    fn ask_guard(&self, subject: &[u8], reply: Option<&[u8]>) -> bool {
        let guard = self.guard.read().clone();
        let Some(guard) = guard else { return true };
        let text = std::str::from_utf8(subject).unwrap_or_default();
        if guard.withheld.as_ref().is_some_and(|withheld| withheld.matches(text)) {
            return false;
        }
        if let (Some(replies), Some(reply)) = (&guard.replies, reply) {
            replies.note(reply, Instant::now());
        }
        true
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// After how many deliveries it ends; 0 is never.
    pub(crate) fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    /// Ends after `max` deliveries in all; `true` when they were made already.
    pub(crate) fn limit(&self, max: u64) -> bool {
        // Sequentially consistent here and in `take_delivery`: of this store and the delivery under way on another thread
        // at least one sees the other. If neither did, the last delivery would end nothing, and the subscription would
        // stay for as long as nobody publishes there: an inbox for one reply, for ever.
        self.max.store(max, Ordering::SeqCst);
        self.delivered.load(Ordering::SeqCst) >= max
    }

    /// Takes the place of one delivery; `false` when the subscription has ended.
    #[inline]
    pub(crate) fn take_delivery(&self) -> bool {
        self.take_deliveries(1) == 1
    }

    /// Takes the places of up to `n` deliveries, and says of how many. A place that was taken is filled: a limit set
    /// meanwhile counts it.
    #[inline]
    pub(crate) fn take_deliveries(&self, n: usize) -> usize {
        if self.has_ended() {
            return 0;
        }
        let n = n as u64;
        let before = self.delivered.fetch_add(n, Ordering::SeqCst);
        let max = self.max.load(Ordering::SeqCst);
        if max == 0 || before + n < max {
            return n as usize;
        }
        if !self.ended.swap(true, Ordering::AcqRel) {
            self.client.forget_ended(self);
        }
        max.saturating_sub(before).min(n) as usize
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// No delivery from here on.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl Drop for Subscription {
    /// Not before: whoever has published on its subjects may remember it for a while.
    fn drop(&mut self) {
        self.client.memory.enter(Holding::Subscriptions, self.charged_bytes as usize, 0);
    }
}

impl SessionSink for Subscription {
    fn deliver(&self, message: &Arc<Message>) -> Delivered {
        let _batch = Batch::begin();
        let reply = message.reply.as_ref().map(|reply| reply.as_bytes());
        if !self.admits(message.subject.as_bytes(), reply) {
            return Delivered::Gone;
        }
        let mut header = Vec::new();
        let fit = wire::header_block(&message.headers, &message.payload, &self.client, &mut header);
        let taken = match fit {
            Fit::Withheld => return if self.has_ended() { Delivered::Gone } else { Delivered::Done },
            // As on nats-server, beside the deliveries that a limit counts.
            Fit::NobodyAnswers => !self.has_ended(),
            Fit::Block | Fit::Without => self.take_delivery(),
        };
        if !taken {
            return Delivered::Gone;
        }
        let header = (fit != Fit::Without).then_some(&header[..]);
        let written = self.client.write_later(|out| {
            encode::msg(out, message.subject.as_bytes(), &self.sid, reply, header, &message.payload);
        });
        match written {
            Written::Closed => Delivered::Gone,
            Written::Pending(_) => {
                let bytes = message.payload.len() + header.map_or(0, <[u8]>::len);
                self.client.sent.messages.fetch_add(1, Ordering::Relaxed);
                self.client.sent.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                self.client.keep_memory();
                Delivered::Done
            }
        }
    }

    fn client(&self) -> u64 {
        self.client.id
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Barrier;

    use trunkline::backend::memory::{Hub, Target};
    use trunkline_core::Role;

    use super::*;
    use crate::client::Kind;
    use crate::outbox::Outbox;

    /// A client in front of this hub.
    fn client(hub: &Arc<Hub>) -> Arc<Client> {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let outbox = Outbox::without_socket();
        let client = Arc::new(Client::new(1, (address, Kind::Nats), outbox, None, None, Arc::default()));
        assert!(client.hub.set(Arc::downgrade(hub)).is_ok());
        client
    }

    #[test]
    fn what_has_ended_takes_no_delivery_whoever_still_remembers_it() {
        let client = client(&Arc::default());
        let one = Subscription::new(client, b"1", "a".parse().unwrap(), None);
        assert!(one.take_delivery());
        one.end();
        assert!(!one.take_delivery());
        assert_eq!((one.take_deliveries(5), one.delivered()), (0, 1));
    }

    /// Between the last delivery and what it ends, the client may have unsubscribed, and have given the name to another.
    #[test]
    fn a_last_delivery_ends_no_other_subscription_of_the_same_name() {
        let client = client(&Arc::default());
        let of_name =
            |pattern: &str| Arc::new(Subscription::new(client.clone(), b"1", pattern.parse().unwrap(), None));
        let (former, later) = (of_name("a"), of_name("b"));
        former.limit(1);
        client.table.lock().insert(later.clone());
        assert!(former.take_delivery());
        assert!(client.table.lock().get(b"1").is_some_and(|known| Arc::ptr_eq(known, &later)));
        later.limit(1);
        assert!(later.take_delivery());
        assert_eq!(client.table.lock().len(), 0);
    }

    /// A limit of one and the first delivery come at the same time, from two threads: one of them must end it.
    #[test]
    fn a_limit_that_meets_the_last_delivery_ends_the_subscription() {
        const ROUNDS: usize = 20_000;
        let hub = Arc::new(Hub::default());
        let client = client(&hub);
        let pattern: Pattern = "inbox".parse().unwrap();
        let subscriptions: Vec<_> = (0..ROUNDS)
            .map(|n| {
                let sid = n.to_string();
                let made = Subscription::new(client.clone(), sid.as_bytes(), pattern.clone(), None);
                let made = Arc::new(made);
                let id = hub.router().insert(&pattern, Role::Subscriber, Target::Session(made.clone()));
                made.id.set(id).unwrap();
                client.table.lock().insert(made.clone());
                made
            })
            .collect();
        let (start, turn) = (Barrier::new(2), AtomicU64::new(0));
        // Both go on to the next round at the same moment, as near as can be on a machine that has other things to do.
        let meet = |round: usize| {
            turn.fetch_add(1, Ordering::SeqCst);
            for spins in 0_u32.. {
                if turn.load(Ordering::SeqCst) >= 2 * (round as u64 + 1) {
                    return;
                }
                match spins % 256 {
                    255 => std::thread::yield_now(),
                    _ => std::hint::spin_loop(),
                }
            }
        };
        let refused = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                for (round, subscription) in subscriptions.iter().enumerate() {
                    meet(round);
                    refused.fetch_add(u64::from(!subscription.take_delivery()), Ordering::Relaxed);
                }
            });
            start.wait();
            for (round, subscription) in subscriptions.iter().enumerate() {
                meet(round);
                if subscription.limit(1) {
                    subscription.end();
                    client.forget_ended(subscription);
                }
            }
        });
        assert_eq!(refused.into_inner(), 0, "deliveries were counted and not made");
        assert_eq!(hub.router().stats().subscriptions, 0, "some of {ROUNDS} were ended by neither");
        assert_eq!(client.table.lock().len(), 0);
    }
}
