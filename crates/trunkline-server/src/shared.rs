//! What all connections of a server share: the hub, the limits, the table of clients, the counters.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytestring::ByteString;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::backend::memory::{Hub, SessionSink as _};
use trunkline::memory::{Charge, Holding, MemoryBudget};
use trunkline::observe::{CutOff, Observer};
use trunkline::{Message, Pattern};
use trunkline_protocol::{ServerError, ServerInfo};

use crate::auth::{Account, Auth, AuthError, AuthOptions, Failure, GLOBAL_ACCOUNT, Reloaded};
use crate::bridge::Bridge;
use crate::bridge::orders::End;
use crate::client::{Client, Kind, Subscription};
use crate::doorkeeper::Doorkeeper;
use crate::memory::StagingBounds;
use crate::options::{Advertised, Limits};
use crate::outbox::{Ending, Slow, SlowBy};
use crate::pages::Spares;
use crate::refusals::Refusals;
use crate::tls;
use crate::view::{ClientView, Count, Departed};
use crate::websocket::WebListener;

/// Protocol number: INFO may come at any time.
const PROTOCOL: i64 = 1;
/// Connections that ended and are still shown by monitoring; the oldest goes first.
const DEPARTED_KEPT: usize = 1024;
/// What an idle connection takes, as measured; its tables, tasks and timers, and a small buffer.
const CONNECTION_BYTES: usize = 6 << 10;
/// What WebSocket and TLS add to that.
const WEBSOCKET_BYTES: usize = 8 << 10;
const TLS_BYTES: usize = 24 << 10;

/// A client that has come is given so long to say CONNECT before another may have its place.
const SILENT_MIN: Duration = Duration::from_millis(250);
/// So many clients may be on their way out, and have given their place to others already.
const LEAVING_MAX: usize = 256;
/// So few that may have to be heard yet are not worth a look.
const UNHEARD_MIN: usize = 64;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Closed {
    /// The client closed it.
    ByClient,
    /// Reading from it failed: it was reset, or the network gave it up.
    ReadError,
    /// What it sent was not the protocol, or not allowed.
    Protocol,
    /// A message was larger than `max_payload`.
    PayloadTooLarge,
    /// A line was longer than `max_control_line`.
    LineTooLong,
    /// The client reported an error of its own.
    ClientError,
    /// It did not read what was sent to it.
    SlowConsumer,
    /// It did not answer PINGs.
    Stale,
    /// The server stops.
    Shutdown,
    /// The backend behind a bridge did not confirm what the client had sent.
    Backend,
    /// It did not say who it is, or not the truth, or may not be here any more.
    Unauthorized,
    /// It did not say in time who it is.
    AuthTimeout,
    /// It did not get as far as a session: no TLS, or no WebSocket, or not in time.
    Handshake,
    /// There are fewer clients to be than there were.
    TooMany,
    /// The process had no memory for the rest of what it was sending.
    Memory,
    /// It had not said CONNECT, and its place was needed for another.
    Silent,
}

impl Closed {
    pub(crate) const ALL: [Closed; 16] = [
        Closed::ByClient,
        Closed::ReadError,
        Closed::Protocol,
        Closed::PayloadTooLarge,
        Closed::LineTooLong,
        Closed::ClientError,
        Closed::SlowConsumer,
        Closed::Stale,
        Closed::Shutdown,
        Closed::Backend,
        Closed::Unauthorized,
        Closed::AuthTimeout,
        Closed::Handshake,
        Closed::TooMany,
        Closed::Memory,
        Closed::Silent,
    ];

    /// The value of the metric's label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ByClient => "client",
            Self::ReadError => "read_error",
            Self::Protocol => "protocol_error",
            Self::PayloadTooLarge => "max_payload",
            Self::LineTooLong => "max_control_line",
            Self::ClientError => "client_error",
            Self::SlowConsumer => "slow_consumer",
            Self::Stale => "stale",
            Self::Shutdown => "shutdown",
            Self::Backend => "backend",
            Self::Unauthorized => "unauthorized",
            Self::AuthTimeout => "auth_timeout",
            Self::Handshake => "handshake",
            Self::TooMany => "max_connections",
            Self::Memory => "memory",
            Self::Silent => "no_connect",
        }
    }
}

/// What becomes of a client that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    Served,
    /// There are as many clients as there may be.
    Full,
    Stopping,
}

/// Messages and bytes in both directions.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    /// From clients.
    pub(crate) received: Count,
    /// To clients.
    pub(crate) sent: Count,
}

impl Totals {
    fn add(&mut self, client: &Client) {
        self.received += client.received.count();
        self.sent += client.sent.count();
    }
}

/// What the clients of one account have done, together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Clients now.
    pub(crate) here: u64,
    /// Subscriptions now.
    pub(crate) subscriptions: u64,
    /// Clients that did not read and were cut off.
    pub(crate) slow: u64,
    pub(crate) totals: Totals,
}

impl Tally {
    fn add(&mut self, client: &Client, is_slow: bool) {
        self.slow += u64::from(is_slow);
        self.totals.add(client);
    }
}

/// How a server shows itself, and what it shows.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) name: Option<String>,
    pub(crate) version: String,
    pub(crate) trace_payloads: bool,
    pub(crate) tags: Vec<String>,
    pub(crate) advertise: Option<Advertised>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    /// What sessions are in front of; empty on a bridge.
    pub(crate) hub: Arc<Hub>,
    /// What they are in front of instead.
    pub(crate) bridge: Option<Arc<Bridge>>,
    /// Who may connect, and what they may do.
    pub(crate) auth: Auth,
    /// Subjects on which only the bus itself publishes. The hubs know them, too.
    reserved: Pattern,
    /// What a message on it asks for is only for those who may publish there.
    reload_subject: Pattern,
    /// TLS of all listeners.
    pub(crate) tls: tls::Slots,
    /// Where WebSocket clients come.
    pub(crate) web: Option<WebListener>,
    /// Guards the pointer alone; taken when a client comes, once a second, and by sessions when a reload has come. Sessions
    /// keep what they go by.
    limits: RwLock<Arc<Limits>>,
    pub(crate) id: String,
    pub(crate) name: String,
    /// What clients are told to be connected to.
    pub(crate) version: String,
    /// Whether traces show what is in messages.
    pub(crate) trace_payloads: bool,
    /// What an operator calls it, for monitoring. Held while it is copied.
    pub(crate) tags: RwLock<Vec<String>>,
    /// What INFO says of the address.
    advertise: Option<Advertised>,
    pub(crate) address: SocketAddr,
    pub(crate) started: SystemTime,
    started_instant: Instant,
    /// Guards the table of clients and the totals of those that left, so that both always add up.
    table: Mutex<Table>,
    next_client: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    /// Of those, for the sake of `server.limits.connection_rate`.
    refused_by_rate: AtomicU64,
    /// Asked before a client is made, where there is such a limit.
    doorkeeper: Doorkeeper,
    /// Those who are refused, as the log is told of them, and as they are counted where nothing else counts them.
    pub(crate) refusals: Refusals,
    denied: AtomicU64,
    denied_subscriptions: AtomicU64,
    no_responders: AtomicU64,
    stalled: AtomicU64,
    closed: [AtomicU64; Closed::ALL.len()],
    /// Clients cut off because they did not read, by the bound that they had reached.
    slow: [AtomicU64; SlowBy::ALL.len()],
    refused_subscriptions: AtomicU64,
    /// HTTP connections that had to make room for others.
    pub(crate) http_evicted: Arc<AtomicU64>,
    /// One permit for each thread that may work on a handshake at a time: half of them, so that the others go on serving.
    pub(crate) handshakes: Semaphore,
    /// What everything that clients make this process keep is charged to.
    pub(crate) memory: Arc<MemoryBudget>,
    /// Pages for large operations.
    pub(crate) spares: Arc<Spares>,
    /// Bounds of what a worker thread stages, by the memory there is.
    pub(crate) staging: StagingBounds,
    /// Held by whoever cuts clients off for want of memory, so that two do not do it for the same want; and until when that
    /// would be of no use. Taken before the table and the outboxes.
    pub(crate) relieving: Mutex<Instant>,
    /// Clients are asked to leave.
    lame_duck: AtomicBool,
    /// What sees the messages of a bridge; a hub has its own.
    observer: OnceLock<Arc<Observer>>,
    /// Held while an account is given an observer of its own, so that it gets one.
    making_observer: Mutex<()>,
    /// Wakes who runs observers of further accounts.
    observers_made: Notify,
    /// Wakes who waits for the last client to leave.
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Table {
    clients: HashMap<u64, Arc<Client>, foldhash::fast::RandomState>,
    gone: Totals,
    departed: VecDeque<Departed>,
    /// Those who came and may not have said CONNECT yet, in the order in which they came.
    unheard: VecDeque<Weak<Client>>,
    /// Clients that have given their place to others and are still there.
    leaving: usize,
    /// How many were left in `unheard` when those were last let go of who had been heard.
    silent_after_trim: usize,
    /// No client is let in any more: one that was accepted while the others were told to end would be told nothing.
    stopping: bool,
}

impl Table {
    /// Remembers a client that has yet to say CONNECT.
    fn note_unheard(&mut self, client: &Arc<Client>) {
        self.unheard.push_back(Arc::downgrade(client));
        // What was heard of since, or is gone, is let go of when it is most of the list: so much now and then, and so little
        // each time.
        if self.unheard.len() >= 2 * self.silent_after_trim.max(UNHEARD_MIN) {
            self.unheard.retain(|client| client.upgrade().is_some_and(|client| client.is_silent()));
            self.silent_after_trim = self.unheard.len();
        }
    }

    /// The client that has been silent for longest, if for long enough; from here on it is leaving.
    fn longest_silent(&mut self) -> Option<Arc<Client>> {
        while let Some(first) = self.unheard.front() {
            let silent = first.upgrade().filter(|client| client.is_silent());
            if silent.as_ref().is_some_and(|client| client.started_for() < SILENT_MIN) {
                return None;
            }
            self.unheard.pop_front();
            if let Some(client) = silent.filter(|client| self.clients.contains_key(&client.id)) {
                client.set_ending_reason(Closed::Silent);
                self.leaving += usize::from(client.ending_reason() == Some(Closed::Silent));
                return Some(client);
            }
        }
        None
    }
}

/// Threads of the runtime that this is called on; one where there is none.
fn workers() -> usize {
    tokio::runtime::Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers())
}

impl Shared {
    pub(crate) fn new(
        (hub, bridge, memory): (Arc<Hub>, Option<Arc<Bridge>>, Arc<MemoryBudget>),
        auth: Auth,
        (tls, web): (tls::Slots, Option<WebListener>),
        (reserved, reload_subject): (Pattern, Pattern),
        limits: Limits,
        shown: Shown,
        address: SocketAddr,
    ) -> Self {
        let id = format!("T{}", uuid::Uuid::now_v7().simple()).to_uppercase();
        Self {
            hub,
            bridge,
            auth,
            tls,
            web,
            reserved,
            reload_subject,
            limits: RwLock::new(Arc::new(limits)),
            name: shown.name.unwrap_or_else(|| id.clone()),
            id,
            version: shown.version,
            trace_payloads: shown.trace_payloads,
            tags: RwLock::new(shown.tags),
            advertise: shown.advertise,
            address,
            started: SystemTime::now(),
            started_instant: Instant::now(),
            table: Mutex::default(),
            next_client: AtomicU64::new(1),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            refused_by_rate: AtomicU64::new(0),
            doorkeeper: Doorkeeper::default(),
            refusals: Refusals::default(),
            denied: AtomicU64::new(0),
            denied_subscriptions: AtomicU64::new(0),
            no_responders: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            closed: Default::default(),
            slow: Default::default(),
            refused_subscriptions: AtomicU64::new(0),
            http_evicted: Arc::default(),
            handshakes: Semaphore::new((workers() / 2).max(1)),
            spares: Arc::new(Spares::new(&memory)),
            staging: StagingBounds::of(&memory),
            memory,
            relieving: Mutex::new(Instant::now()),
            lame_duck: AtomicBool::new(false),
            observer: OnceLock::new(),
            making_observer: Mutex::default(),
            observers_made: Notify::new(),
            emptied: Notify::new(),
        }
    }

    /// Says what sees the messages of a bridge. The first one stays.
    pub(crate) fn set_observer(&self, observer: &Arc<Observer>) {
        let _ = self.observer.set(observer.clone());
        self.bridge.iter().for_each(|bridge| bridge.set_observer(observer));
    }

    /// What sees the messages of clients that are on `hub`. The first client of a further account begins a record for it.
    pub(crate) fn observer(&self, hub: &Hub) -> Option<Arc<Observer>> {
        let first = match &self.bridge {
            None if hub.observer().is_some() => return hub.observer().cloned(),
            None => self.hub.observer()?,
            Some(_) => return self.observer.get().cloned(),
        };
        {
            let _making = self.making_observer.lock();
            if hub.observer().is_none() {
                hub.observe(&first.beside());
            }
        }
        // Those that were there have less room from now on.
        for account in self.auth.accounts() {
            account.hub.observer().iter().for_each(|observer| observer.make_room());
        }
        self.observers_made.notify_one();
        hub.observer().cloned()
    }

    /// Runs the observers of further accounts as they come, until `stop`. To be run by one task, whose owner joins it and
    /// what it has `tasks` run.
    pub(crate) async fn run_observers(self: Arc<Self>, tasks: TaskTracker, stop: CancellationToken) {
        let mut running: Vec<Box<str>> = Vec::new();
        while stop.run_until_cancelled(self.observers_made.notified()).await.is_some() {
            for account in self.auth.accounts() {
                let Some(observer) = account.hub.observer() else { continue };
                if *account.name != *GLOBAL_ACCOUNT && !running.contains(&account.name) {
                    running.push(account.name.clone());
                    tasks.spawn(observer.clone().run(stop.clone()));
                }
            }
        }
    }

    /// What sees the messages of an account of this name; `None` where there is no such account. Of one that no client of
    /// came yet nothing is recorded.
    pub(crate) fn observer_of(&self, account: &str) -> Option<Option<Arc<Observer>>> {
        if self.bridge.is_some() {
            return (account == GLOBAL_ACCOUNT).then(|| self.observer.get().cloned());
        }
        let accounts = self.auth.accounts();
        let found = accounts.iter().find(|known| *known.name == *account)?;
        Some(self.hub.observer().and_then(|_| self.observer(&found.hub)))
    }

    /// The bounds that are in force.
    pub(crate) fn limits(&self) -> Arc<Limits> {
        self.limits.read().clone()
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started_instant.elapsed()
    }

    /// Milliseconds since the start.
    pub(crate) fn now_ms(&self) -> u64 {
        self.uptime().as_millis() as u64
    }

    pub(crate) fn next_client_id(&self) -> u64 {
        self.next_client.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether this address may open another connection now.
    pub(crate) fn may_come(&self, address: IpAddr) -> bool {
        let Some(limit) = self.limits().connection_rate else { return true };
        if self.doorkeeper.count(address, Instant::now()) <= limit {
            return true;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        // Whoever storms is not to fill the log, too.
        if (self.refused_by_rate.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two() {
            tracing::warn!(
                %address,
                limit,
                "an address opens more connections within a second than it may (server.limits.connection_rate), refused"
            );
        }
        false
    }

    /// Enters a client, unless the server stops, or there are as many as there may be and all of them have said CONNECT: one
    /// that comes to say something goes before one that says nothing.
    pub(crate) fn enter(&self, client: &Arc<Client>) -> Entry {
        let bytes = self.connection_bytes(client.kind);
        let checked = self.memory.check(Holding::Connections, bytes);
        let limit = self.limits().max_connections;
        let mut table = self.table.lock();
        if table.stopping {
            return Entry::Stopping;
        }
        let is_full = table.clients.len() >= limit || checked.is_err();
        // Whoever gives way is still there until its task has run.
        let may_give_way = is_full && table.leaving < LEAVING_MAX;
        let silent = may_give_way.then(|| table.longest_silent()).flatten();
        if is_full && silent.is_none() {
            drop(table);
            let first = self.refused.fetch_add(1, Ordering::Relaxed).is_power_of_two();
            if let (Err(error), true) = (checked, first) {
                tracing::warn!(address = %client.address, %error, "a connection is refused");
            }
            return Entry::Full;
        }
        self.accepted.fetch_add(1, Ordering::Relaxed);
        client.set_charge(Charge::of(&self.memory, Holding::Connections, bytes));
        table.clients.insert(client.id, client.clone());
        table.note_unheard(client);
        drop(table);
        if let Some(silent) = silent {
            Self::send_away_silent(&silent);
        }
        Entry::Served
    }

    fn send_away_silent(client: &Client) {
        tracing::debug!(client = client.id, address = %client.address, "has not said CONNECT, and its place is needed");
        // Where its handshakes are not over, it would not understand.
        if client.is_settled() {
            client.outbox.end_with(|out| ServerError::MaxConnections.write(out));
            client.outbox.flush();
        }
        client.outbox.end(Ending::Now);
    }

    /// What a connection takes at least, whatever it does.
    fn connection_bytes(&self, kind: Kind) -> usize {
        let secure = match kind {
            Kind::Nats => self.tls.clients.get().is_some(),
            Kind::WebSocket => self.web.as_ref().is_some_and(|web| web.secure),
        };
        let web = usize::from(kind == Kind::WebSocket);
        CONNECTION_BYTES + web * WEBSOCKET_BYTES + usize::from(secure) * TLS_BYTES
    }

    /// A client leaves; `view` is what it was before its session closed.
    pub(crate) fn leave(&self, client: &Client, view: ClientView, why: Closed) {
        let mut table = self.table.lock();
        if table.clients.remove(&client.id).is_some() {
            table.gone.add(client);
            if client.ending_reason() == Some(Closed::Silent) {
                table.leaving -= 1;
            }
            if table.departed.len() == DEPARTED_KEPT {
                table.departed.pop_front();
            }
            let slow = client.outbox.slow().map(|slow| slow.by).filter(|_| why == Closed::SlowConsumer);
            if let Some(identity) = client.identity() {
                identity.account.gone.lock().add(client, slow.is_some());
            }
            table.departed.push_back(Departed { view, stopped: SystemTime::now(), why, slow });
            self.closed[why as usize].fetch_add(1, Ordering::Relaxed);
            if table.clients.is_empty() {
                self.emptied.notify_waiters();
            }
        }
    }

    /// Waits until no client is left.
    pub(crate) async fn nobody_left(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.connections() == 0 {
                return;
            }
            emptied.await;
        }
    }

    pub(crate) fn clients(&self) -> Vec<Arc<Client>> {
        self.table.lock().clients.values().cloned().collect()
    }

    /// What monitoring sees of a client now.
    pub(crate) fn view(&self, client: &Client) -> ClientView {
        ClientView::of(client, self.now_ms(), self.started)
    }

    /// The last connections that ended, oldest first.
    pub(crate) fn departed(&self) -> Vec<Departed> {
        self.table.lock().departed.iter().cloned().collect()
    }

    pub(crate) fn client(&self, id: u64) -> Option<Arc<Client>> {
        self.table.lock().clients.get(&id).cloned()
    }

    pub(crate) fn connections(&self) -> usize {
        self.table.lock().clients.len()
    }

    pub(crate) fn totals(&self) -> Totals {
        let table = self.table.lock();
        let mut totals = table.gone;
        table.clients.values().for_each(|client| totals.add(client));
        totals
    }

    /// What the clients of each account that somebody is or was in have done, by the account's name.
    pub(crate) fn tallies(&self) -> BTreeMap<Box<str>, Tally> {
        let table = self.table.lock();
        let accounts = self.auth.accounts();
        let mut tallies: BTreeMap<_, _> =
            accounts.iter().map(|account| (account.name.clone(), *account.gone.lock())).collect();
        for client in table.clients.values() {
            if let Some(tally) = client.identity().and_then(|who| tallies.get_mut(&who.account.name)) {
                tally.add(client, false);
                tally.here += 1;
                tally.subscriptions += client.subscriptions.load(Ordering::Relaxed);
            }
        }
        tallies
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Connections refused because their address had opened too many within a second.
    pub(crate) fn refused_by_rate(&self) -> u64 {
        self.refused_by_rate.load(Ordering::Relaxed)
    }

    pub(crate) fn closed(&self, why: Closed) -> u64 {
        self.closed[why as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn count_denied(&self, client: &Client) {
        client.denied.fetch_add(1, Ordering::Relaxed);
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages of clients that were refused for want of permission.
    pub(crate) fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }

    pub(crate) fn count_denied_subscription(&self, client: &Client) {
        client.denied.fetch_add(1, Ordering::Relaxed);
        self.denied_subscriptions.fetch_add(1, Ordering::Relaxed);
    }

    /// Subscriptions that were refused or ended for want of permission.
    pub(crate) fn denied_subscriptions(&self) -> u64 {
        self.denied_subscriptions.load(Ordering::Relaxed)
    }

    /// Attempts to authenticate that failed, for whatever reason.
    pub(crate) fn auth_failures(&self) -> u64 {
        Failure::ALL.into_iter().map(|why| self.auth.failures(why)).sum()
    }

    /// Puts other users and permissions in force, and other bounds where there are any.
    pub(crate) fn replace(&self, auth: &AuthOptions, limits: Option<Limits>) -> Result<Reloaded, AuthError> {
        // Before the users: sessions look at both when these are of another generation, and never in between.
        let former = self.limits();
        if let Some(limits) = limits {
            *self.limits.write() = Arc::new(limits);
        }
        let users = self.auth.replace(auth).inspect_err(|_| *self.limits.write() = former)?;
        // Each of them looks by itself; one that is idle has to be told.
        let clients = self.clients();
        clients.iter().for_each(|client| client.outbox.rouse());
        tracing::info!(
            users,
            connections = clients.len(),
            "users and permissions are in force as configured now"
        );
        Ok(Reloaded { users, connections: clients.len(), closed: self.close_excess(clients) })
    }

    /// Closes clients, whichever, until there are as many as there may be. Returns how many.
    fn close_excess(&self, mut clients: Vec<Arc<Client>>) -> usize {
        // Those that are on their way out are nobody's surplus.
        clients.retain(|client| client.outbox.ending() == Ending::No);
        let excess = clients.len().saturating_sub(self.limits().max_connections);
        fastrand::shuffle(&mut clients);
        for client in &clients[..excess] {
            client.set_ending_reason(Closed::TooMany);
            client.outbox.end_with(|out| ServerError::MaxConnections.write(out));
        }
        excess
    }

    /// A client was cut off because it did not read.
    pub(crate) fn count_slow(&self, client: &Client, slow: Slow, patterns: Vec<String>) {
        self.slow[slow.by as usize].fetch_add(1, Ordering::Relaxed);
        let (limit, pending_bytes) = (slow.by.as_str(), slow.pending);
        tracing::warn!(client = client.id, address = %client.address, limit, pending_bytes, "slow consumer: cut off");
        let observer = match client.identity() {
            // Each account has a record of its own, which nobody else may learn anything from.
            Some(identity) => self.observer(&identity.account.hub),
            None => self.observer.get().cloned(),
        };
        if let Some(observer) = observer {
            observer.cut_off(CutOff::now(client.seen_as(), limit, pending_bytes, patterns));
        }
    }

    /// Clients cut off because they did not read, by the bound that they had reached.
    pub(crate) fn slow(&self, by: SlowBy) -> u64 {
        self.slow[by as usize].load(Ordering::Relaxed)
    }

    /// Returns how many there were before.
    pub(crate) fn count_refused_subscription(&self) -> u64 {
        self.refused_subscriptions.fetch_add(1, Ordering::Relaxed)
    }

    /// Subscriptions beyond the most that a client may have, or that there is memory for.
    pub(crate) fn refused_subscriptions(&self) -> u64 {
        self.refused_subscriptions.load(Ordering::Relaxed)
    }

    /// Charges what the routing tables take.
    pub(crate) fn charge_routes(&self) {
        self.auth.accounts().iter().for_each(|account| account.hub.charge_routes());
    }

    pub(crate) fn count_no_responders(&self) {
        self.no_responders.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests of clients that nobody listened for.
    pub(crate) fn no_responders(&self) -> u64 {
        self.no_responders.load(Ordering::Relaxed)
    }

    pub(crate) fn count_stalled(&self) {
        self.stalled.fetch_add(1, Ordering::Relaxed);
    }

    /// Pauses of publishers whose reader did not keep up.
    pub(crate) fn stalled(&self) -> u64 {
        self.stalled.load(Ordering::Relaxed)
    }

    /// Whether only the bus itself publishes on `subject`.
    pub(crate) fn is_reserved(&self, subject: &[u8]) -> bool {
        std::str::from_utf8(subject).is_ok_and(|subject| self.reserved.matches_str(subject))
    }

    /// Whether this is where users and permissions are asked to be read again. Who may not publish there may not have
    /// somebody else answer there, either.
    #[inline]
    pub(crate) fn asks_for_reload(&self, subject: &[u8]) -> bool {
        self.reload_subject.as_bytes() == subject
    }

    /// What marks the messages of a client that must not get them back, on all servers of one backend.
    pub(crate) fn origin(&self, client: &Client) -> ByteString {
        format!("{}.{}", self.id, client.id).into()
    }

    /// Subscriptions of clients and, in front of a hub, of this process.
    pub(crate) fn subscriptions(&self) -> u64 {
        match &self.bridge {
            None => {
                let of = |account: &Arc<Account>| account.hub.router().stats().subscriptions;
                self.auth.accounts().iter().map(of).sum()
            }
            Some(_) => {
                let of = |client: &Arc<Client>| client.subscriptions.load(Ordering::Relaxed);
                self.clients().iter().map(of).sum()
            }
        }
    }

    /// Gives a message to the clients of this server that listen for it, past a backend that cannot be reached. Members of
    /// queue groups get nothing: which of them is to have it, only the backend knows.
    pub(crate) fn deliver_here(&self, message: &Arc<Message>) {
        for client in self.clients() {
            let listens = |s: &&Arc<Subscription>| s.queue.is_none() && s.pattern.matches(&message.subject);
            let listening: Vec<_> = client.table.lock().iter().filter(listens).cloned().collect();
            listening.iter().for_each(|subscription| {
                subscription.deliver(message);
            });
        }
    }

    /// INFO for one client.
    pub(crate) fn info(&self, client: &Client) -> ServerInfo {
        // On a WebSocket the handshake is over by now, and no other can come.
        let tls = self.tls.clients.get().filter(|_| client.kind == Kind::Nats);
        let tls = tls.as_ref().map(|tls| &tls.options);
        let web = self.web.as_ref().filter(|_| client.kind == Kind::WebSocket);
        let address = web.map_or(self.address, |web| web.address);
        // Of the listener for NATS alone, as on nats-server.
        let advertised = self.advertise.as_ref().filter(|_| web.is_none());
        ServerInfo {
            tls_required: tls.is_some_and(|tls| !tls.allow_non_tls),
            tls_available: tls.is_some_and(|tls| tls.allow_non_tls),
            tls_verify: tls.is_some_and(|tls| tls.verifies()),
            server_id: self.id.clone(),
            server_name: self.name.clone(),
            version: self.version.clone(),
            proto: PROTOCOL,
            host: advertised.map_or_else(|| address.ip().to_string(), |advertised| advertised.host.clone()),
            port: advertised.and_then(|advertised| advertised.port).unwrap_or_else(|| address.port()),
            headers: true,
            max_payload: self.limits().max_payload,
            client_id: Some(client.id),
            client_ip: Some(client.address.ip().to_string()),
            auth_required: self.auth.timeout().is_some(),
            nonce: client.nonce.as_deref().map(str::to_owned),
            ldm: self.is_lame_duck(),
            ..ServerInfo::default()
        }
    }

    /// Looks after every client once: PINGs those that are quiet, cuts off those that do not answer or do not read.
    pub(crate) fn look_after(&self) {
        let (now, now_ms) = (Instant::now(), self.now_ms());
        self.refusals.tell_the_rest();
        let limits = self.limits();
        let interval_ms = limits.ping_interval.as_millis() as u64;
        for client in self.clients() {
            // Its handshakes have deadlines of their own.
            if !client.is_settled() {
                continue;
            }
            client.note_deliveries(now_ms);
            if client.outbox.stuck_for(now).is_some_and(|stuck| stuck > limits.write_deadline) {
                client.outbox.cut_off_slow(SlowBy::Deadline);
                continue;
            }
            if now_ms.saturating_sub(client.last_active_ms().max(client.pinged_ms())) < interval_ms {
                continue;
            }
            if !client.ping(limits.ping_max, now_ms) {
                tracing::debug!(client = client.id, address = %client.address, "stale connection");
                client.set_ending_reason(Closed::Stale);
                client.outbox.end_with(|out| ServerError::StaleConnection.write(out));
            }
        }
    }

    /// Lets nobody in any more, and tells those who are here to go elsewhere.
    pub(crate) fn begin_lame_duck(&self) {
        self.lame_duck.store(true, Ordering::Relaxed);
        self.table.lock().stopping = true;
        let clients = self.clients();
        for client in &clients {
            // Others would take an INFO in the middle of a connection for a mistake.
            if client.connect().is_some_and(|options| options.protocol >= PROTOCOL) {
                let info = self.info(client);
                client.outbox.write_later(|out| info.write(out));
            }
        }
        tracing::info!(connections = clients.len(), "clients are asked to go elsewhere");
    }

    pub(crate) fn is_lame_duck(&self) -> bool {
        self.lame_duck.load(Ordering::Relaxed)
    }

    /// Lets every connection send what waits, then end.
    pub(crate) fn end_all(&self, ending: Ending) {
        self.table.lock().stopping = true;
        self.clients().iter().for_each(|client| Self::end_as(client, ending));
    }

    /// Lets a connection send what waits, then end.
    pub(crate) fn end(&self, client: &Client) {
        Self::end_as(client, Ending::WhenFlushed);
    }

    fn end_as(client: &Client, ending: Ending) {
        client.set_ending_reason(Closed::Shutdown);
        match (&client.orders, ending) {
            // Its lane ends the connection once everything is carried out and given out.
            (Some(orders), Ending::WhenFlushed) => orders.end(End::Drain),
            (Some(orders), _) => {
                orders.end(End::Abort);
                client.outbox.end(ending);
            }
            (None, _) => client.outbox.end(ending),
        }
    }
}
