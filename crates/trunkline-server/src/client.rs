//! A connected client, as the rest of the server sees it.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytestring::ByteString;
use parking_lot::Mutex;
use trunkline::backend::memory::Hub;
use trunkline::memory::{Charge, MemoryBudget};
use trunkline_protocol::{ConnectOptions, encode};

use crate::arrival::Secured;
use crate::auth::{Connection, Identity, TOKEN_SHOWN};
use crate::bridge::orders::Orders;
use crate::closed::Closed;
use crate::outbox::{Ending, Outbox, Written};
use crate::subscription::{Subscription, Subscriptions};
use crate::trace;
use crate::view::Count;

/// Patterns of a client that are told where a few are enough.
const PATTERNS_SHOWN: usize = 32;

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
    pub(crate) memory: Arc<MemoryBudget>,
    /// For what it takes by being there; set when it is let in.
    charge: OnceLock<Charge>,
    /// Its encryption, once the handshake is over.
    secured: OnceLock<Box<Secured>>,
    /// Handshakes are over, and INFO was sent: from now on it may be sent lines of the protocol.
    settled: AtomicBool,
    /// Where its subscriptions are; set once it is known whose client it is. Not held: the caches of a hub may remember
    /// subscriptions, and with them this, for as long as nobody publishes, and would keep each other for ever.
    pub(crate) hub: OnceLock<Weak<Hub>>,
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
