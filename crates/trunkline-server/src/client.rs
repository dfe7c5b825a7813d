//! A connected client and its subscriptions, as the rest of the server sees them.

use std::any::Any;
use std::hash::BuildHasher as _;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytestring::ByteString;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use trunkline::backend::memory::{Delivered, Hub, SessionSink};
use trunkline::memory::{Charge, Holding, MemoryBudget};
use trunkline::{Message, Pattern};
use trunkline_core::{GradualTable, SubscriptionId};
use trunkline_protocol::{ConnectOptions, encode};

use crate::arrival::Secured;
use crate::auth::{Connection, Identity, PatternSet, Replies, TOKEN_SHOWN};
use crate::batches::Batch;
use crate::bridge::orders::Orders;
use crate::closed::Closed;
use crate::outbox::{Ending, Outbox, Written};
use crate::trace;
use crate::view::Count;
use crate::wire::{self, Fit};

/// Patterns of a client that are told where a few are enough.
const PATTERNS_SHOWN: usize = 32;

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

/// Messages and their bytes, in one direction.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

impl Traffic {
    pub(crate) fn count(&self) -> Count {
        Count { messages: self.messages.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// How a client speaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// On TCP or TLS.
    Nats,
    WebSocket,
}

/// A connection from accept to close. The session's own task has the rest of its state.
#[derive(Debug)]
pub(crate) struct Client {
    /// Never used twice by a server.
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    pub(crate) kind: Kind,
    pub(crate) outbox: Outbox,
    /// Whether traces of the protocol show what is in its messages.
    pub(crate) shows_payloads: bool,
    /// From the client.
    pub(crate) received: Traffic,
    /// To the client.
    pub(crate) sent: Traffic,
    pub(crate) subscriptions: AtomicU64,
    /// What its lane is to do, on a bridge.
    pub(crate) orders: Option<Arc<Orders>>,
    /// Messages that the backend had for it and that it was not given, where their number is known. Only on a bridge.
    pub(crate) missed: AtomicU64,
    /// Gaps in what it was given, of known and of unknown size. Only on a bridge.
    pub(crate) gaps: AtomicU64,
    /// Messages and subscriptions that it was refused for want of permission.
    pub(crate) denied: AtomicU64,
    /// Guards the subscriptions. Changed by the session, and by whoever makes a subscription's last delivery; monitoring
    /// looks on. No other lock is taken while it is held.
    pub(crate) table: Mutex<Subscriptions>,
    pub(crate) started: SystemTime,
    /// What it is to sign, where nkeys are in use.
    pub(crate) nonce: Option<Box<str>>,
    /// Bytes of an operation that is not whole, which it has sent and its connection keeps.
    pub(crate) partial_bytes: AtomicUsize,
    /// What its subscriptions are charged to.
    memory: Arc<MemoryBudget>,
    /// For what it takes by being there; set when it is let in.
    charge: OnceLock<Charge>,
    /// Its encryption, once the handshake is over.
    secured: OnceLock<Box<Secured>>,
    /// Handshakes are over, and INFO was sent: from now on it may be sent lines of the protocol.
    settled: AtomicBool,
    /// Where its subscriptions are; set once it is known whose client it is. Not held: the caches of a hub may remember
    /// subscriptions, and with them this, for as long as nobody publishes, and would keep each other for ever.
    hub: OnceLock<Weak<Hub>>,
    /// Guards the pointer alone: who the client is, as its session has last found it. `None` until it is let in.
    identity: Mutex<Option<Arc<Identity>>>,
    /// Who it has failed to prove to be.
    claimed: OnceLock<Box<str>>,
    /// What CONNECT said; unset until it came.
    connect: OnceLock<Arc<ConnectOptions>>,
    headers: AtomicBool,
    /// Milliseconds of the server's life when the last whole operation came.
    last_active: AtomicU64,
    /// Milliseconds of the server's life when it was noticed that messages had gone to the client.
    last_delivery: AtomicU64,
    /// Messages that had gone to the client when that was last looked at.
    seen_sent: AtomicU64,
    pings: Mutex<Pings>,
    ending_reason: OnceLock<Closed>,
    /// Marks what it publishes, when it must not get that back. Only on a bridge.
    origin: OnceLock<ByteString>,
}

#[derive(Debug, Default)]
struct Pings {
    outstanding: u32,
    sent: Option<Instant>,
    /// Milliseconds of the server's life when the last one was sent.
    sent_ms: u64,
    rtt: Option<Duration>,
}

impl Client {
    /// `nonce` is what it is to sign, and `orders` is for its lane, on a bridge.
    pub(crate) fn new(
        id: u64,
        (address, kind): (SocketAddr, Kind),
        outbox: Outbox,
        nonce: Option<Box<str>>,
        orders: Option<Arc<Orders>>,
        memory: Arc<MemoryBudget>,
    ) -> Self {
        Self {
            id,
            address,
            kind,
            partial_bytes: AtomicUsize::new(0),
            memory,
            charge: OnceLock::new(),
            outbox,
            shows_payloads: false,
            received: Traffic::default(),
            sent: Traffic::default(),
            subscriptions: AtomicU64::new(0),
            orders,
            missed: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            table: Mutex::default(),
            started: SystemTime::now(),
            nonce,
            secured: OnceLock::new(),
            settled: AtomicBool::new(false),
            hub: OnceLock::new(),
            identity: Mutex::default(),
            claimed: OnceLock::new(),
            connect: OnceLock::new(),
            headers: AtomicBool::new(false),
            last_active: AtomicU64::new(0),
            last_delivery: AtomicU64::new(0),
            seen_sent: AtomicU64::new(0),
            pings: Mutex::default(),
            ending_reason: OnceLock::new(),
            origin: OnceLock::new(),
        }
    }

    pub(crate) fn set_charge(&self, charge: Charge) {
        let _ = self.charge.set(charge);
    }

    /// Has somebody cut off, this client or a slower one, if the process has no memory for what was written to it. To be
    /// called after writing, with nothing locked.
    #[inline]
    pub(crate) fn keep_memory(&self) {
        self.memory.keep();
    }

    pub(crate) fn set_secured(&self, secured: Secured) {
        let _ = self.secured.set(Box::new(secured));
    }

    /// What it is, whoever it says it is.
    pub(crate) fn connection(&self) -> Connection<'_> {
        Connection { nonce: self.nonce.as_deref(), secured: self.secured(), kind: Some(self.kind) }
    }

    /// `None` without TLS.
    pub(crate) fn secured(&self) -> Option<&Secured> {
        self.secured.get().map(|secured| &**secured)
    }

    /// Neither CONNECT has come, nor is it on its way out.
    pub(crate) fn is_silent(&self) -> bool {
        self.connect().is_none() && self.outbox.ending() == Ending::No
    }

    /// For how long it has been here.
    pub(crate) fn started_for(&self) -> Duration {
        self.started.elapsed().unwrap_or_default()
    }

    pub(crate) fn set_settled(&self) {
        self.settled.store(true, Ordering::Release);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Whether it understands header blocks.
    pub(crate) fn headers(&self) -> bool {
        self.headers.load(Ordering::Relaxed)
    }

    /// What CONNECT said, once it came.
    pub(crate) fn connect(&self) -> Option<&ConnectOptions> {
        self.connect.get().map(|options| &**options)
    }

    /// Keeps what the first CONNECT said.
    pub(crate) fn set_connect(&self, options: Arc<ConnectOptions>) {
        self.headers.store(options.headers, Ordering::Relaxed);
        let _ = self.connect.set(options);
    }

    /// Keeps who it is. The first time says in which account its subscriptions are; no other is ever set.
    pub(crate) fn set_identity(&self, identity: Arc<Identity>) {
        let _ = self.hub.set(Arc::downgrade(&identity.account.hub));
        *self.identity.lock() = Some(identity);
    }

    /// The connection is over: lets go of the account, which routing caches that remember it would keep otherwise.
    pub(crate) fn part(&self) {
        *self.identity.lock() = None;
    }

    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.lock().clone()
    }

    /// Keeps who it has failed to prove to be, for monitoring.
    pub(crate) fn set_claimed(&self, name: &str) {
        if !name.is_empty() {
            let _ = self.claimed.set(name.into());
        }
    }

    /// Who it is, or says that it is.
    pub(crate) fn shown_name(&self) -> Option<String> {
        let identity = self.identity();
        let name = identity.as_ref().and_then(|identity| identity.name.as_deref());
        name.or(self.claimed.get().map(|name| &**name)).map(str::to_owned)
    }

    /// How it came, where that is not as most do; for the log.
    pub(crate) fn via(&self) -> Option<&'static str> {
        (self.kind == Kind::WebSocket).then_some("websocket")
    }

    /// What it says that it is, once it is let in: version, language and name, in nats-server's form. For the log.
    pub(crate) fn label(&self) -> Option<String> {
        self.identity()?;
        let said = self.connect()?;
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let version = given(&said.version).map(|version| format!("v{version}"));
        let parts: Vec<_> = [version, given(&said.lang), given(&said.name)].into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join(":"))
    }

    /// Its account and who it is in it, once it is let in and where it says that: in nats-server's form, for the log.
    pub(crate) fn login(&self) -> Option<String> {
        let identity = self.identity()?;
        let account = &identity.account.name;
        if identity.name.as_deref() == Some(TOKEN_SHOWN) {
            return Some(format!("{account}/token"));
        }
        let said = self.connect();
        let name = identity.name.as_deref().or_else(|| said?.nkey.as_deref().or(said?.user.as_deref()));
        let name = name.filter(|name| !name.is_empty())?;
        let is_nkey = said.is_some_and(|said| said.nkey.as_deref() == Some(name));
        Some(format!("{account}/{}:{name}", if is_nkey { "nkey" } else { "user" }))
    }

    /// The name that it goes by where people look at conversations.
    pub(crate) fn seen_as(&self) -> String {
        let given = self.connect().and_then(|options| options.name.clone()).filter(|name| !name.is_empty());
        given.or_else(|| self.shown_name()).unwrap_or_else(|| format!("cid:{}", self.id))
    }

    /// What it listens to: a few of its patterns, where there are many.
    pub(crate) fn some_patterns(&self) -> Vec<String> {
        let table = self.table.lock();
        table.iter().take(PATTERNS_SHOWN).map(|subscription| subscription.pattern.to_string()).collect()
    }

    /// Keeps the mark of what it publishes and must not get back.
    pub(crate) fn set_origin(&self, origin: ByteString) {
        let _ = self.origin.set(origin);
    }

    pub(crate) fn origin(&self) -> Option<&ByteString> {
        self.origin.get()
    }

    pub(crate) fn touch(&self, now_ms: u64) {
        self.last_active.store(now_ms, Ordering::Relaxed);
    }

    pub(crate) fn last_active_ms(&self) -> u64 {
        self.last_active.load(Ordering::Relaxed)
    }

    /// Notices deliveries since the last call. Whoever delivers leaves no time behind, so that delivering costs no
    /// clock; this is called about once a second instead.
    pub(crate) fn note_deliveries(&self, now_ms: u64) {
        let sent = self.sent.messages.load(Ordering::Relaxed);
        if self.seen_sent.swap(sent, Ordering::Relaxed) != sent {
            self.last_delivery.store(now_ms, Ordering::Relaxed);
        }
    }

    pub(crate) fn last_delivery_ms(&self) -> u64 {
        self.last_delivery.load(Ordering::Relaxed)
    }

    /// The first PING answers INFO with CONNECT before it: what passed since the accept stands for a round trip until
    /// one is measured, as on nats-server.
    pub(crate) fn first_ping_received(&self) {
        let mut pings = self.pings.lock();
        if pings.rtt.is_none() {
            pings.rtt = self.started.elapsed().ok();
        }
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.pings.lock().rtt
    }

    /// Sends a PING, unless `max` are unanswered: then it returns `false`.
    pub(crate) fn ping(&self, max: u32, now_ms: u64) -> bool {
        {
            let mut pings = self.pings.lock();
            if pings.outstanding >= max {
                return false;
            }
            pings.outstanding += 1;
            pings.sent = Some(Instant::now());
            pings.sent_ms = now_ms;
        }
        self.write_later(encode::ping);
        true
    }

    /// Sends it slices in order, as [`Outbox::write`].
    pub(crate) fn write(&self, slices: &[IoSlice<'_>], total: usize) -> Written {
        if trace::is_wanted() {
            trace::sent(self, slices);
        }
        self.outbox.write(slices, total)
    }

    /// Leaves bytes to its connection's task, as [`Outbox::write_later`].
    pub(crate) fn write_later(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Written {
        if !trace::is_wanted() {
            return self.outbox.write_later(encode);
        }
        let mut bytes = Vec::new();
        encode(&mut bytes);
        trace::sent(self, &[IoSlice::new(&bytes)]);
        self.outbox.write_later(|out| out.extend_from_slice(&bytes))
    }

    /// Sends it a last line and ends the connection once that was sent.
    pub(crate) fn end_with(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.write_later(encode);
        self.outbox.end(Ending::WhenFlushed);
    }

    pub(crate) fn pinged_ms(&self) -> u64 {
        self.pings.lock().sent_ms
    }

    /// Why the server ends the connection; the first reason stays.
    pub(crate) fn set_ending_reason(&self, why: Closed) {
        let _ = self.ending_reason.set(why);
    }

    pub(crate) fn ending_reason(&self) -> Option<Closed> {
        self.ending_reason.get().copied()
    }

    pub(crate) fn pong_received(&self) {
        let mut pings = self.pings.lock();
        pings.outstanding = 0;
        pings.rtt = pings.sent.take().map(|sent| sent.elapsed()).or(pings.rtt);
    }

    /// Any whole operation shows that the client lives, as its PONG would.
    pub(crate) fn is_alive(&self) {
        self.pings.lock().outstanding = 0;
    }

    /// A subscription made its last delivery: it is gone at once, so that it does not count as somebody listening and
    /// its name can be used again.
    pub(crate) fn forget_ended(&self, subscription: &Subscription) {
        let hub = self.hub.get().and_then(Weak::upgrade);
        if let (Some(id), Some(hub)) = (subscription.id.get(), hub) {
            hub.router().remove(&subscription.pattern, *id);
            hub.charge_routes();
        }
        let mut table = self.table.lock();
        // The client may have unsubscribed it meanwhile, and have given its name to another.
        if table.get(&subscription.sid).is_some_and(|known| std::ptr::eq(Arc::as_ptr(known), subscription)) {
            table.remove(&subscription.sid);
            self.subscriptions.store(table.len() as u64, Ordering::Relaxed);
            drop(table);
            if trace::is_wanted() {
                trace::unsubscribed(self, &subscription.sid);
            }
        }
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
    use std::sync::Barrier;

    use super::*;
    use trunkline::backend::memory::Target;
    use trunkline_core::Role;

    /// A limit of one and the first delivery come at the same time, from two threads: one of them must end it.
    #[test]
    fn a_limit_that_meets_the_last_delivery_ends_the_subscription() {
        const ROUNDS: usize = 20_000;
        let hub = Arc::new(Hub::default());
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let client = Arc::new(Client::new(
            1,
            (address, Kind::Nats),
            Outbox::without_socket(),
            None,
            None,
            Arc::default(),
        ));
        assert!(client.hub.set(Arc::downgrade(&hub)).is_ok());
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
