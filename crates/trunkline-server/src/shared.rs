//! What all connections of a server share: the hub, the limits, the counters; and in `table` who they are.

mod table;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytestring::ByteString;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::backend::memory::{Hub, SessionSink as _};
use trunkline::memory::MemoryBudget;
use trunkline::observe::{CutOff, Observer};
use trunkline::{Message, Pattern};
use trunkline_protocol::{ServerError, ServerInfo};

use crate::auth::{Account, Auth, AuthError, AuthOptions, Failure, GLOBAL_ACCOUNT, Reloaded};
use crate::bridge::Bridge;
use crate::bridge::orders::End;
use crate::client::{Client, Kind};
use crate::closed::Closed;
use crate::doorkeeper::{Doorkeeper, Pace};
use crate::memory::StagingBounds;
use crate::options::{Advertised, Limits};
use crate::outbox::{Ending, Slow, SlowBy};
use crate::pages::Spares;
use crate::refusals::Refusals;
use crate::subscription::Subscription;
use crate::tls;
use crate::trace::about;
use crate::websocket::WebListener;

pub(crate) use table::Entry;
use table::Table;

/// Protocol number: INFO may come at any time.
const PROTOCOL: i64 = 1;

/// How a server shows itself, and what it shows.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) name: Option<String>,
    pub(crate) version: String,
    pub(crate) trace_payloads: bool,
    pub(crate) headers: bool,
    pub(crate) tags: Vec<String>,
    pub(crate) metadata: BTreeMap<String, String>,
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
    /// Whether clients may use headers.
    pub(crate) headers: bool,
    /// What an operator calls it, for monitoring. Held while it is copied.
    pub(crate) tags: RwLock<Vec<String>>,
    /// What an operator says of it, for monitoring. Held while it is copied.
    pub(crate) metadata: RwLock<BTreeMap<String, String>>,
    /// What INFO says of the address. Held while it is copied.
    advertise: RwLock<Option<Advertised>>,
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
    /// Asked before a handshake, where there is a limit to them.
    pub(crate) handshake_pace: Pace,
    /// Those who are refused, as the log is told of them, and as they are counted where nothing else counts them.
    pub(crate) refusals: Refusals,
    denied: AtomicU64,
    denied_subscriptions: AtomicU64,
    no_responders: AtomicU64,
    /// Clients that were told who they are.
    answers: AtomicU64,
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
            headers: shown.headers,
            tags: RwLock::new(shown.tags),
            metadata: RwLock::new(shown.metadata),
            advertise: RwLock::new(shown.advertise),
            address,
            started: SystemTime::now(),
            started_instant: Instant::now(),
            table: Mutex::default(),
            next_client: AtomicU64::new(1),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            refused_by_rate: AtomicU64::new(0),
            doorkeeper: Doorkeeper::default(),
            handshake_pace: Pace::default(),
            refusals: Refusals::default(),
            denied: AtomicU64::new(0),
            denied_subscriptions: AtomicU64::new(0),
            no_responders: AtomicU64::new(0),
            answers: AtomicU64::new(0),
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

    /// Shows another address to clients that come from now on.
    pub(crate) fn advertise(&self, advertised: Option<Advertised>) {
        *self.advertise.write() = advertised;
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
            client.end_with(|out| ServerError::MaxConnections.write(out));
        }
        excess
    }

    /// A client was cut off because it did not read.
    pub(crate) fn count_slow(&self, client: &Client, slow: Slow, patterns: Vec<String>) {
        self.slow[slow.by as usize].fetch_add(1, Ordering::Relaxed);
        let (limit, pending_bytes) = (slow.by.as_str(), slow.pending);
        let bound = match slow.by {
            SlowBy::Pending => Some(self.limits().max_pending.to_string()),
            SlowBy::Deadline => Some(format!("{:?}", self.limits().write_deadline)),
            SlowBy::Memory => None,
        };
        about!(warn, client, limit, bound, pending_bytes, "slow consumer: cut off");
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

    /// The number of the next answer to a client that asks who it is.
    pub(crate) fn next_answer(&self) -> u64 {
        self.answers.fetch_add(1, Ordering::Relaxed) + 1
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
        let advertised = self.advertise.read().clone().filter(|_| web.is_none());
        let advertised = advertised.as_ref();
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
            headers: self.headers,
            max_payload: self.limits().max_payload,
            client_id: Some(client.id),
            client_ip: Some(client.address.ip().to_string()),
            auth_required: self.auth.timeout().is_some(),
            // Signed in CONNECT, and of no use behind it.
            nonce: client.nonce.as_deref().filter(|_| client.connect().is_none()).map(str::to_owned),
            ldm: self.is_lame_duck(),
            ..ServerInfo::default()
        }
    }

    /// Looks after every client once: PINGs those that are quiet, cuts off those that do not answer or do not read.
    pub(crate) fn look_after(&self) {
        let (now, now_ms) = (Instant::now(), self.now_ms());
        self.refusals.tell_the_rest();
        let refused = self.handshake_pace.take_refused();
        if refused > 0 {
            tracing::warn!(connections = refused, "refused: more handshakes begin within a second than may");
        }
        let limits = self.limits();
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
            let interval = match client.kind {
                Kind::Nats => limits.ping_interval,
                Kind::WebSocket => limits.websocket_ping_interval.unwrap_or(limits.ping_interval),
            };
            let interval_ms = interval.as_millis() as u64;
            if now_ms.saturating_sub(client.last_active_ms().max(client.pinged_ms())) < interval_ms {
                continue;
            }
            if !client.ping(limits.ping_max, now_ms) {
                about!(debug, client, "stale connection");
                client.set_ending_reason(Closed::Stale);
                client.end_with(|out| ServerError::StaleConnection.write(out));
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
                client.write_later(|out| info.write(out));
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
