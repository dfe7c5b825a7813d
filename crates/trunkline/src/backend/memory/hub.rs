//! The hub: one routing table and one set of streams, for every connection of a process.

use std::any::Any;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use trunkline_core::{Headers, MatchSet, Message, Pattern, Role, Router, StreamOffset, Subject};

use super::inbox::Inbox;
use super::streams::{StreamHandle, StreamTable};
use crate::backend::{BackendKind, PublishError, PublishOptions, Receipt, Unsupported};
use crate::memory::{Holding, MemoryBudget};
use crate::observe::{Observer, Published, Receiver};

/// Most receivers of a message that an observer is told of.
const NAMED_MAX: usize = 64;

/// Bounds of a hub.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Largest headers and payload together, in bytes. Default 1 MiB, key `server.limits.max_payload`.
    pub max_payload: usize,
    /// Most messages that wait for one live subscription. Default 65536, key `messaging.max_pending`.
    pub max_pending: usize,
    /// How long a deduplication id is remembered. Default 2 min, key `messaging.dedupe_window`.
    pub dedupe_window: Duration,
    /// Most bytes of a stream whose configuration sets no `max_bytes`: memory is finite. Default 256 MiB.
    pub stream_bytes_max: u64,
    /// What everything in memory is charged to, and bounded by. Default without a limit, key `runtime.resources.memory`.
    pub memory: Arc<MemoryBudget>,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            max_payload: 1 << 20,
            max_pending: 65_536,
            dedupe_window: Duration::from_secs(120),
            stream_bytes_max: 256 << 20,
            memory: Arc::default(),
        }
    }
}

/// Where the routing table leads to.
#[derive(Clone)]
pub enum Target {
    /// A live subscription in this process.
    Inbox(Arc<Inbox>),
    /// A subscription of a session of the embedded server.
    Session(Arc<dyn SessionSink>),
    /// A stream that stores the message.
    Stream(StreamHandle),
    /// Marks subjects on which only the bus itself publishes.
    Reserved,
    /// Marks subjects whose messages [`Hub::observer`] sees.
    Observed,
}

/// A subscription of somebody outside this process, as the server keeps it.
pub trait SessionSink: Any + Send + Sync {
    /// Takes a message that was published in this process.
    fn deliver(&self, message: &Arc<Message>) -> Delivered;

    /// The number of its client, by which the observer knows it.
    fn client(&self) -> u64;

    /// The server's own type again.
    fn as_any(&self) -> &dyn Any;
}

/// What became of a message at one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// Taken.
    Done,
    /// Dropped and counted there: the receiver does not keep up.
    Full,
    /// There is nobody any more.
    Gone,
}

/// Counters of a hub since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HubStats {
    /// Messages published by components of this process.
    pub published: u64,
    /// Deliveries to subscriptions of this process and, from this process, to sessions.
    pub delivered: u64,
    /// Deliveries dropped because the receiver did not keep up.
    pub dropped: u64,
    /// Requests that nobody listened for.
    pub no_responders: u64,
    /// Messages that streams gave up for want of memory, before their own limits would have removed them.
    pub discarded: u64,
}

/// One bus in memory. Components of the process reach it through [`MemoryBackend`](super::MemoryBackend), clients of the
/// embedded server through their sessions.
pub struct Hub {
    router: Router<Target>,
    pub(super) streams: StreamTable,
    options: HubOptions,
    id: String,
    connections: AtomicU64,
    published: AtomicU64,
    delivered: AtomicU64,
    dropped: AtomicU64,
    no_responders: AtomicU64,
    discarded: AtomicU64,
    /// What the account has of the routing table.
    routes_bytes: AtomicUsize,
    /// Sees the messages, where somebody wants to see them.
    observer: OnceLock<Arc<Observer>>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("id", &self.id).field("router", &self.router).finish_non_exhaustive()
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new(HubOptions::default())
    }
}

impl Hub {
    /// An empty hub.
    pub fn new(options: HubOptions) -> Self {
        Self {
            router: Router::new(),
            streams: StreamTable::default(),
            options,
            id: uuid::Uuid::now_v7().simple().to_string(),
            connections: AtomicU64::new(0),
            published: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            no_responders: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
            routes_bytes: AtomicUsize::new(0),
            observer: OnceLock::new(),
        }
    }

    /// The routing table.
    pub fn router(&self) -> &Router<Target> {
        &self.router
    }

    /// Its bounds.
    pub fn options(&self) -> &HubOptions {
        &self.options
    }

    /// What everything in memory is charged to.
    pub fn memory(&self) -> &Arc<MemoryBudget> {
        &self.options.memory
    }

    /// Charges what the routing table takes now. To be called by whoever changes it much; two at a time may leave the
    /// account behind by one change, until the next.
    pub fn charge_routes(&self) {
        let now = self.router.held_bytes();
        let before = self.routes_bytes.swap(now, Ordering::Relaxed);
        self.options.memory.enter(Holding::Subscriptions, before, now);
    }

    /// Name of this hub, one token, unique for all practical purposes.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// From now on clients of the embedded server may not publish on subjects that match; components of this process are
    /// held to it by the bus.
    pub fn reserve(&self, pattern: &Pattern) {
        self.router.insert(pattern, Role::Tap, Target::Reserved);
    }

    /// From now on `observer` sees what is published under its root, and the answers to it. It is a tap: nobody who
    /// publishes or subscribes can tell. The first one stays.
    pub fn observe(&self, observer: &Arc<Observer>) {
        if self.observer.set(observer.clone()).is_ok() {
            observer.sees_messages_itself();
            self.router.insert(&observer.pattern(), Role::Tap, Target::Observed);
        }
    }

    /// What sees the messages of this hub.
    pub fn observer(&self) -> Option<&Arc<Observer>> {
        self.observer.get()
    }

    /// Counters since the start.
    pub fn stats(&self) -> HubStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HubStats {
            published: get(&self.published),
            delivered: get(&self.delivered),
            dropped: get(&self.dropped),
            no_responders: get(&self.no_responders),
            discarded: get(&self.discarded),
        }
    }

    pub(super) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// Publishes a message whose targets are known.
    ///
    /// # Errors
    /// [`PublishError::TooLarge`]; [`PublishError::Unsupported`] for deduplication where no stream stores the message.
    pub fn publish_to(
        &self,
        targets: &MatchSet<Target>,
        message: Message,
        options: &PublishOptions,
    ) -> Result<Receipt, PublishError> {
        let size = message.headers.size_bytes() + message.payload.len();
        if size > self.options.max_payload {
            return Err(PublishError::TooLarge { size, limit: self.options.max_payload });
        }
        if options.dedupe_id.is_some() && targets.stores.is_empty() {
            let operation = "deduplication of a subject that no stream stores";
            return Err(Unsupported { operation, backend: BackendKind::InMemory }.into());
        }
        self.published.fetch_add(1, Ordering::Relaxed);
        let observer = self.observer.get().filter(|observer| observer.begins(is_observed(targets), &message));
        let message = Arc::new(message);
        // Stored before delivered: who reacts to the live message finds it in the stream.
        let receipt = self.store(targets, &message, options.dedupe_id.as_deref());
        if matches!(receipt, Receipt::Stored { duplicate: true, .. }) {
            return Ok(receipt);
        }
        let offset = match &receipt {
            Receipt::Stored { offset, .. } => Some(*offset),
            _ => None,
        };
        let mut sight = Sight::default();
        if targets.nobody_listens()
            && targets.stores.is_empty()
            && let Some(reply) = &message.reply
        {
            sight.nobody = true;
            self.answer_no_responders(reply);
        }
        self.deliver_seen(targets, &message, offset, observer.is_some().then_some(&mut sight));
        if let Some(observer) = observer {
            observer.published(Published {
                time: jiff::Timestamp::now(),
                from: None,
                to: sight.to,
                missed: sight.missed,
                stored: offset.and_then(|offset| Some((stream_of(targets)?.to_owned(), offset))),
                nobody: sight.nobody,
                redriven: options.dedupe_id.as_ref().is_some_and(|id| id.starts_with("rd:")),
                message,
            });
        }
        Ok(receipt)
    }

    /// Gives a message to the streams that store its subject; patterns of streams do not overlap, so there is at most one.
    pub fn store(
        &self,
        targets: &MatchSet<Target>,
        message: &Arc<Message>,
        dedupe_id: Option<&str>,
    ) -> Receipt {
        let mut receipt = Receipt::Accepted;
        for target in &targets.stores {
            if let Target::Stream(stream) = target
                && let Some(stored) = stream.append(message, dedupe_id)
            {
                receipt = stored;
            }
        }
        let memory = &self.options.memory;
        if !targets.stores.is_empty() && memory.held(Holding::Streams) > memory.share(Holding::Streams) {
            self.discard_oldest();
        }
        receipt
    }

    /// All streams together have more than their share of the memory: limits win over unread messages, here as anywhere.
    /// The largest stream gives way, so that none pays for another.
    #[cold]
    fn discard_oldest(&self) {
        let discarded = self.streams.give_way(&self.options.memory);
        if self.discarded.fetch_add(discarded, Ordering::Relaxed) == 0 && discarded > 0 {
            tracing::warn!(
                limit = self.options.memory.configured(),
                "streams have used up their share of runtime.resources.memory: from now on the oldest messages of the \
                 largest stream go, and consumers count what they miss; further ones are counted and not logged"
            );
        }
    }

    /// Gives a message to everybody who listens and to every tap.
    pub fn deliver(&self, targets: &MatchSet<Target>, message: &Arc<Message>, offset: Option<StreamOffset>) {
        self.deliver_seen(targets, message, offset, None);
    }

    fn deliver_seen(
        &self,
        targets: &MatchSet<Target>,
        message: &Arc<Message>,
        offset: Option<StreamOffset>,
        mut sight: Option<&mut Sight>,
    ) {
        let (mut delivered, mut dropped) = (0, 0);
        let mut count = |(outcome, target): (Delivered, &Target)| {
            match outcome {
                Delivered::Done => delivered += 1,
                Delivered::Full => dropped += 1,
                Delivered::Gone => {}
            }
            if let Some(sight) = &mut sight {
                sight.note(outcome, target);
            }
        };
        for target in &targets.subscribers {
            count((give(target, message, offset), target));
        }
        for queue in &targets.queues {
            count(give_one(&queue.members, message, offset));
        }
        for target in &targets.taps {
            give(target, message, offset);
        }
        if delivered > 0 {
            self.delivered.fetch_add(delivered, Ordering::Relaxed);
        }
        if dropped > 0 {
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    /// Counts what became of a message that a session gave to a subscription of this process.
    pub fn count(&self, outcome: Delivered) {
        match outcome {
            Delivered::Done => self.delivered.fetch_add(1, Ordering::Relaxed),
            Delivered::Full => self.dropped.fetch_add(1, Ordering::Relaxed),
            Delivered::Gone => return,
        };
    }

    /// Tells whoever listens on `reply` that nobody listens for its request.
    pub fn answer_no_responders(&self, reply: &Subject) {
        self.no_responders.fetch_add(1, Ordering::Relaxed);
        let mut headers = Headers::new();
        headers.append("Status", "503").expect("a valid header");
        let answer = Message { subject: reply.clone(), reply: None, headers, payload: bytes::Bytes::new() };
        let targets = self.router.matches(reply.as_bytes());
        self.deliver(&targets, &Arc::new(answer), None);
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let before = self.routes_bytes.swap(0, Ordering::Relaxed);
        self.options.memory.enter(Holding::Subscriptions, before, 0);
    }
}

fn give(target: &Target, message: &Arc<Message>, offset: Option<StreamOffset>) -> Delivered {
    match target {
        Target::Inbox(inbox) => inbox.push(message.clone(), offset),
        Target::Session(session) => session.deliver(message),
        Target::Stream(_) | Target::Reserved | Target::Observed => Delivered::Gone,
    }
}

/// Whether messages to these targets are seen by an observer.
pub fn is_observed(targets: &MatchSet<Target>) -> bool {
    targets.taps.iter().any(|tap| matches!(tap, Target::Observed))
}

/// The name of the stream among these targets.
pub fn stream_of(targets: &MatchSet<Target>) -> Option<&str> {
    targets.stores.iter().find_map(|target| match target {
        Target::Stream(stream) => Some(stream.name()),
        _ => None,
    })
}

/// What is told to an observer of one message.
#[derive(Default)]
struct Sight {
    to: Vec<Receiver>,
    missed: Vec<Receiver>,
    nobody: bool,
}

impl Sight {
    fn note(&mut self, outcome: Delivered, target: &Target) {
        let list = match outcome {
            Delivered::Done => &mut self.to,
            Delivered::Full => &mut self.missed,
            Delivered::Gone => return,
        };
        if list.len() >= NAMED_MAX {
            return;
        }
        match target {
            Target::Inbox(inbox) => list.extend(inbox.owner().cloned().map(Receiver::Named)),
            Target::Session(session) => list.push(Receiver::Client(session.client())),
            Target::Stream(_) | Target::Reserved | Target::Observed => {}
        }
    }
}

/// One member gets it: a random one, or the next that can take it. Only when none can is it dropped, at a member that
/// tells its reader so.
fn give_one<'a>(
    members: &'a [Target],
    message: &Arc<Message>,
    offset: Option<StreamOffset>,
) -> (Delivered, &'a Target) {
    let first = fastrand::usize(..members.len());
    for n in 0..members.len() {
        let member = &members[(first + n) % members.len()];
        let outcome = match member {
            Target::Inbox(inbox) => inbox.offer(message.clone(), offset),
            other => give(other, message, offset),
        };
        if outcome == Delivered::Done {
            return (outcome, member);
        }
    }
    // Sessions that could not take it are gone; an inbox that could not is full.
    let all = (0..members.len()).map(|n| &members[(first + n) % members.len()]);
    let mut inboxes = all.filter_map(|member| match member {
        Target::Inbox(inbox) => Some((inbox.push(message.clone(), offset), member)),
        _ => None,
    });
    inboxes.find(|(outcome, _)| *outcome != Delivered::Gone).unwrap_or((Delivered::Gone, &members[first]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session whose connection is over and which has not left the routing table yet.
    struct Gone;

    impl SessionSink for Gone {
        fn deliver(&self, _: &Arc<Message>) -> Delivered {
            Delivered::Gone
        }

        fn client(&self) -> u64 {
            0
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    #[test]
    fn what_no_member_of_a_queue_group_can_take_is_reported_by_one_that_reads() {
        let hub = Hub::default();
        let pattern: Pattern = "work".parse().unwrap();
        let inbox = Arc::new(Inbox::new(1));
        let member = || Role::QueueMember("q".into());
        hub.router().insert(&pattern, member(), Target::Inbox(inbox.clone()));
        hub.router().insert(&pattern, member(), Target::Session(Arc::new(Gone)));
        let targets = hub.router().matches(b"work");
        for _ in 0..101 {
            let message = Message::new("work".parse().unwrap(), "");
            hub.publish_to(&targets, message, &PublishOptions::default()).unwrap();
        }
        // Whichever member was drawn first.
        assert_eq!((hub.stats().delivered, hub.stats().dropped), (1, 100));
    }
}
