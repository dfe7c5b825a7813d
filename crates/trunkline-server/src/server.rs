//! Starting, accepting, looking after connections, stopping.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::backend::memory::MemoryBackend;
use trunkline::backend::{Backend, BackendKind};
use trunkline::memory::Relief;
use trunkline::{Bus, BusOptions, Front, Pattern, Subject, Token, Topics, observe};
use trunkline_core::SubjectError;
use trunkline_protocol::ServerError;

use crate::auth::{Auth, AuthError, AuthOptions, Reloaded};
use crate::bridge::Bridge;
use crate::bridge::orders::Orders;
use crate::client::{Client, Kind};
use crate::connection::Connection;
use crate::health::{HEALTH_TYPE, Health};
use crate::http::{self, Api, Members, Monitor, Token as AdminToken, Views};
use crate::lame_duck;
use crate::memory;
use crate::options::ServerOptions;
use crate::outbox::{Ending, Outbox};
use crate::promises::Promises;
use crate::reload::{RELOAD_SUBJECT, ReloadError, ReloadOptions, Reloader};
use crate::shared::{Entry, Shared, Shown};
use crate::socket::Socket;
use crate::threads::{self, Place, Threads};
use crate::tls::{self, TlsError, TlsOptions};
use crate::websocket::{OriginError, Origins, WebListener, WebSocketOptions};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Pause after an accept that failed for want of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} ({setting})")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The configuration key that names it.
        setting: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The threads for connections cannot be started.
    #[error("cannot start {count} threads for connections")]
    Threads {
        /// How many were to be started.
        count: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address can be reached from other machines, and this server asks nobody who they are.
    #[error(
        "{setting} is {address}, which is reachable from other machines, and the server has no authentication"
    )]
    Exposed {
        /// The address.
        address: SocketAddr,
        /// The configuration key that names it.
        setting: &'static str,
    },
    /// The address can be reached from other machines, and passwords and messages would travel there in plain text.
    #[error("{setting} is {address}, which is reachable from other machines, and the server has no TLS")]
    Plaintext {
        /// The address.
        address: SocketAddr,
        /// The configuration key that names it.
        setting: &'static str,
    },
    /// Certificates or keys that cannot be used.
    #[error("TLS cannot be served")]
    Tls(#[from] TlsError),
    /// An origin that cannot be one.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The WebSocket listener is configured, all but its address.
    #[error("server.websocket is set, and server.websocket.listen is not")]
    WebSocketAddress,
    /// Users that cannot be put in force.
    #[error("the users of the server cannot be put in force")]
    Auth(#[from] AuthError),
    /// Accounts are spaces of subjects apart, and the backend of a bridge has only one.
    #[error("server.accounts is set, and backend {backend} has one space of subjects for all accounts")]
    Accounts {
        /// The backend.
        backend: BackendKind,
    },
    /// The system gives no random bytes to make the admin token of.
    #[error("the admin token cannot be made: {reason}")]
    AdminToken {
        /// What the system said.
        reason: String,
    },
    /// The first token of the platform's subjects cannot be one.
    #[error("{root:?} cannot begin a subject (messaging.subject_root)")]
    SubjectRoot {
        /// What was given.
        root: String,
        /// What is wrong with it.
        source: SubjectError,
    },
}

impl StartError {
    /// What the operator can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Bind { setting, .. } => {
                format!("set {setting} to another address; port 0 is any free one")
            }
            Self::Threads { .. } => "set runtime.resources.cpus to fewer, or raise the limit of processes".to_owned(),
            Self::Exposed { setting, .. } => {
                format!("set server.users or server.auth, or {setting} to a loopback address such as 127.0.0.1:4222")
            }
            Self::Plaintext { setting, .. } => {
                format!(
                    "set server.tls.cert_file and key_file (for server.listen and server.websocket.listen), server.plaintext to true if the network is to be trusted, or {setting} to a loopback address"
                )
            }
            Self::Tls(error) => error.hint(),
            Self::Origin(_) => "an origin has a scheme, a host, and a port where it is not the scheme's own: https://chat.example.org".to_owned(),
            Self::WebSocketAddress => "set server.websocket.listen to an address such as 127.0.0.1:8443".to_owned(),
            Self::Auth(error) => match error {
                AuthError::Hash { .. } => "`trunkline passwd` makes a hash for server.users and server.auth".to_owned(),
                AuthError::Nkey { .. } => "a public nkey begins with U; its seed, with SU, stays with the client".to_owned(),
                _ => "`trunkline config keys` says what server.users and server.auth take".to_owned(),
            },
            Self::Accounts { .. } => {
                "use one server with its own messaging.stream_prefix for each account, or permissions in one account"
                    .to_owned()
            }
            Self::AdminToken { .. } => "set server.auth.admin_token".to_owned(),
            Self::SubjectRoot { .. } => "set messaging.subject_root to a word such as nachos".to_owned(),
        }
    }
}

/// A running server. Dropping it stops it without waiting; [`Server::shutdown`] is the orderly way.
pub struct Server {
    shared: Arc<Shared>,
    http: Option<SocketAddr>,
    /// Where probes and metrics are served apart.
    metrics: Option<SocketAddr>,
    token: AdminToken,
    reloader: Arc<Reloader>,
    /// Ends looking after, and HTTP, and with them accepting.
    stop: CancellationToken,
    /// Ends accepting alone.
    closed: CancellationToken,
    /// Cancelled once nobody can connect any more.
    unreachable: CancellationToken,
    /// Every task of the server, connections included.
    tasks: TaskTracker,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("nats", &self.shared.address)
            .field("http", &self.http)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Binds and starts serving.
    ///
    /// # Errors
    /// An address that is taken or not allowed, a bad subject root, see [`StartError`].
    pub async fn start(options: ServerOptions) -> Result<Self, StartError> {
        let bad_root = |source| StartError::SubjectRoot { root: options.subject_root.clone(), source };
        let health_subject =
            Subject::new(format!("{}.{HEALTH_TYPE}", options.subject_root)).map_err(bad_root)?;
        let reload_subject =
            Pattern::new(format!("{}.{RELOAD_SUBJECT}", options.subject_root)).map_err(bad_root)?;
        let dead_letters = Pattern::new(format!("{}.dead.>", options.subject_root)).map_err(bad_root)?;
        let root = Token::new(options.subject_root.as_str()).map_err(bad_root)?;
        Topics::new(root.clone()).map_err(bad_root)?;
        let token = AdminToken::new(options.admin_token.map(|token| token.expose().to_owned()))
            .map_err(|error| StartError::AdminToken { reason: error.to_string() })?;
        let plan = plan(options.tls.as_ref(), options.websocket.as_ref(), options.http_tls)?;
        let read = plan.clone();
        let tls = tokio::task::spawn_blocking(move || read.read()).await;
        let tls = tls.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        let encrypted = plan.clients.as_ref().is_some_and(|tls| !tls.allow_non_tls);
        let rule =
            |encrypted| Exposure { auth: options.auth.is_required(), safe: encrypted || options.plaintext };
        let http = options.http.map(|wanted| listen(wanted, "server.http", rule(plan.http.is_some())));
        let http = http.transpose()?;
        let metrics = options.metrics.map(|wanted| listen(wanted, METRICS_LISTEN, Exposure::PROBES));
        let metrics = metrics.transpose()?;
        let (listener, address) = listen(options.listen, "server.listen", rule(encrypted))?;
        let (web_listener, web) = match options.websocket {
            Some(options) => {
                let setting = "server.websocket.listen";
                let (secure, origins) = (plan.web.is_some(), Arc::new(Origins::new(&options)?));
                let (listener, address) = listen(options.listen, setting, rule(secure))?;
                (Some(listener), Some(WebListener { options, address, origins, secure }))
            }
            None => (None, None),
        };
        let observer = options.observer.or_else(|| match &options.front {
            Front::Hub(hub) => hub.observer().cloned(),
            Front::Bridge(_) => None,
        });
        let (hub, bridge, backend): (_, _, Arc<dyn Backend>) = match options.front {
            Front::Hub(hub) => (hub.clone(), None, Arc::new(MemoryBackend::connect_to(&hub))),
            Front::Bridge(backend) => {
                let bridge = Bridge::new(backend.clone(), options.publish_timeout);
                (Arc::default(), Some(Arc::new(bridge)), backend)
            }
        };
        if let Some(bridge) = &bridge
            && !options.auth.accounts.is_empty()
        {
            return Err(StartError::Accounts { backend: bridge.backend.capabilities().kind });
        }
        let auth = Auth::new(&options.auth, hub.clone(), dead_letters.clone())?;
        let budget = options.memory.or_else(|| backend.memory()).unwrap_or_default();
        let status = options.backend_status.or_else(|| bridge.as_ref().map(|bridge| bridge.backend.status()));
        let shared = Shared::new(
            (hub, bridge, budget),
            auth,
            (tls, web),
            dead_letters,
            options.limits.clone(),
            Shown {
                name: options.name,
                version: options.version,
                trace_payloads: options.trace_payloads,
                tags: options.tags,
            },
            address,
        );
        let shared = Arc::new(shared);
        let relief: Weak<dyn Relief> = Arc::downgrade(&(shared.clone() as Arc<dyn Relief>));
        shared.memory.set_relief(relief);
        let promises = Arc::new(Promises::new(options.promised_streams));
        let beside = (options.components.clone(), options.bus, promises.clone());
        let health = Arc::new(Health::new(shared.clone(), backend.clone(), status, beside));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let count = if shared.bridge.is_some() { 0 } else { options.threads };
        let threads =
            Threads::start(count, &stop, &tasks).map_err(|source| StartError::Threads { count, source })?;
        let threads = Arc::new(threads);
        let closed = stop.child_token();
        let unreachable = CancellationToken::new();
        let listeners = [(Some(listener), Kind::Nats), (web_listener, Kind::WebSocket)];
        let accepting: Vec<_> = listeners
            .into_iter()
            .filter_map(|(listener, kind)| Some((listener?, kind)))
            .map(|(listener, kind)| {
                let accepting = Accepting {
                    kind,
                    shared: shared.clone(),
                    threads: threads.clone(),
                    tasks: tasks.clone(),
                };
                tasks.spawn(accepting.run(listener, closed.clone()))
            })
            .collect();
        let ended = unreachable.clone();
        tasks.spawn(async move {
            for listener in accepting {
                // One that broke has let go of its address, too.
                let _ = listener.await;
            }
            ended.cancel();
        });
        tasks.spawn(look_after(shared.clone(), stop.clone()));
        tasks.spawn(memory::keep(shared.clone(), stop.clone()));
        if let Some(observer) = &observer {
            shared.set_observer(observer);
            tasks.spawn(observer.clone().run(stop.clone()));
            tasks.spawn(shared.clone().run_observers(tasks.clone(), stop.clone()));
            if shared.bridge.is_some() {
                tasks.spawn(observe::collect(observer.clone(), backend.clone(), stop.clone()));
            }
        }
        tasks.spawn(promises.watch(backend.clone(), stop.clone()));
        tasks.spawn(health.clone().tell((health_subject, options.health_interval), stop.clone()));
        let monitor = Arc::new(Monitor::new(
            shared.clone(),
            health.clone(),
            options.telemetry.clone(),
            (http.as_ref().map(|(_, address)| *address), options.nats_probes),
        ));
        let secure = |shared: &Arc<Shared>| {
            let shared = shared.clone();
            move || shared.tls.http.get()
        };
        let bounds = http::Bounds::of(&shared);
        let metrics = metrics.map(|(listener, address)| {
            let app = http::probes(monitor.clone(), address);
            let (bounds, secure) = (bounds.clone(), secure(&shared));
            tasks.spawn(http::serve(listener, app, bounds, secure, stop.clone(), tasks.clone()));
            address
        });
        let http = http.map(|(listener, address)| {
            let seen = options.backend.unwrap_or(backend);
            let own = BusOptions {
                subject_root: root,
                source: "dashboard".to_owned(),
                // Dead letters that are sent back from there are in the record as from anywhere.
                observer: observer.clone(),
                ..BusOptions::default()
            };
            let bus = Bus::with_backend(seen.clone(), own);
            let seen_by = (Some(shared.clone()), observer.clone());
            let views = Views::new(bus, health.status(), options.telemetry.clone(), seen_by);
            let limits = shared.limits();
            let api = Arc::new(Api::new(
                seen,
                (token.clone(), shared.clone()),
                options.subject_root,
                limits.max_payload,
                (options.admin_defaults, options.components),
                (observer, limits.http_timeout),
            ));
            tasks.spawn(expire_members(api.members().clone(), stop.clone()));
            let app = http::router(monitor, address, api, Arc::new(views));
            tasks.spawn(http::serve(listener, app, bounds, secure(&shared), stop.clone(), tasks.clone()));
            address
        });
        let web = shared.web.as_ref().map(|web| web.address);
        let exposed =
            [Some(shared.address), http, web].into_iter().flatten().find(|it| !it.ip().is_loopback());
        let reloader = Arc::new(Reloader::new(shared.clone(), options.auth_source, exposed));
        if reloader.has_source() {
            tasks.spawn(reloader.clone().listen(reload_subject, stop.clone()));
        }
        Ok(Self { shared, http, metrics, token, reloader, stop, closed, unreachable, tasks })
    }

    /// The id of this run of the server, as INFO has it.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The name of the server; its id where none was given.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Where NATS clients connect.
    pub fn nats_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// Where NATS clients connect over WebSocket.
    pub fn websocket_addr(&self) -> Option<SocketAddr> {
        self.shared.web.as_ref().map(|web| web.address)
    }

    /// As [`Server::websocket_addr`], with `ws` or `wss` before it.
    pub fn websocket_url(&self) -> Option<String> {
        let web = self.shared.web.as_ref()?;
        Some(format!("{}://{}", if web.secure { "wss" } else { "ws" }, web.address))
    }

    /// Where health, monitoring and metrics are served.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http
    }

    /// As [`Server::http_addr`], with `http` or `https` before it.
    pub fn http_url(&self) -> Option<String> {
        self.url(self.http)
    }

    /// Where probes and metrics are served apart, with `http` or `https` before it.
    pub fn metrics_url(&self) -> Option<String> {
        self.url(self.metrics)
    }

    fn url(&self, address: Option<SocketAddr>) -> Option<String> {
        let scheme = if self.shared.tls.http.get().is_some() { "https" } else { "http" };
        Some(format!("{scheme}://{}", address?))
    }

    /// The token of the admin API.
    pub fn admin_token(&self) -> &str {
        self.token.expose()
    }

    /// Puts other users and permissions in force, without a pause: connections that may stay do so, with their permissions
    /// as they are now; the others are closed with `-ERR 'Authorization Violation'`, and subscriptions that are not permitted
    /// any more end with an error. From when it returns, nothing new is let through that is not permitted any more.
    ///
    /// # Errors
    /// [`ReloadError`]: nothing has changed then.
    pub fn reload(&self, auth: &AuthOptions) -> Result<Reloaded, ReloadError> {
        self.reloader.put_in_force(auth, None)
    }

    /// As [`Server::reload`], with bounds and certificates beside users and permissions: all of it, or nothing. Certificates
    /// count for connections that come, and so do [`Limits::max_pending`](crate::Limits::max_pending) and those of HTTP;
    /// the other bounds count for all from their next operation on, and clients beyond
    /// [`Limits::max_connections`](crate::Limits::max_connections) are closed.
    ///
    /// # Errors
    /// [`ReloadError`]: nothing has changed then.
    ///
    /// # Cancel safety
    /// What has been begun may still be put in force.
    pub async fn reload_all(&self, options: ReloadOptions) -> Result<Reloaded, ReloadError> {
        self.reloader.reload_all(options).await
    }

    /// As [`Server::reload`], with what [`ServerOptions::auth_source`] says now.
    ///
    /// # Errors
    /// [`ReloadError`]: nothing has changed then.
    ///
    /// # Cancel safety
    /// What has been begun may still be put in force.
    pub async fn reload_from_source(&self) -> Result<Reloaded, ReloadError> {
        self.reloader.reload().await
    }

    /// Asks the clients to leave, as nats-server's lame duck mode does: no new connections; clients are told by INFO that
    /// they should go elsewhere; after `grace` those that are still here are closed one by one, the last of them `within`
    /// the beginning. Returns when nobody is left, or when that time is over; [`Server::shutdown`] is to follow.
    ///
    /// # Cancel safety
    /// New connections stay refused; clients that were not closed stay.
    pub async fn lame_duck(&self, grace: Duration, within: Duration) {
        self.closed.cancel();
        // Whoever is told to go elsewhere must not find this server again.
        self.unreachable.cancelled().await;
        self.shared.begin_lame_duck();
        lame_duck::see_off(&self.shared, grace, within).await;
    }

    /// Stops: no new connections; what waits is sent, until `within` is over; then everything is closed. Returns how many
    /// connections had to be cut.
    pub async fn shutdown(&self, within: Duration) -> usize {
        self.stop.cancel();
        self.shared.end_all(Ending::WhenFlushed);
        self.tasks.close();
        if tokio::time::timeout(within, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let cut = self.shared.connections();
        self.shared.end_all(Ending::Now);
        self.tasks.wait().await;
        cut
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
        self.shared.end_all(Ending::Now);
    }
}

/// Which listener is to have which TLS.
fn plan(
    tls: Option<&TlsOptions>,
    web: Option<&WebSocketOptions>,
    http_tls: bool,
) -> Result<tls::Plan, TlsError> {
    let web = web.filter(|web| !web.no_tls).and_then(|web| web.tls.as_ref().or(tls));
    let http = tls.filter(|_| http_tls).map(TlsOptions::for_http);
    match http_tls && http.is_none() {
        true => Err(TlsError::for_http()),
        false => Ok(tls::Plan { clients: tls.cloned(), web: web.cloned(), http }),
    }
}

/// The key of the address where probes and metrics are served apart.
pub(crate) const METRICS_LISTEN: &str = "server.metrics_listen";

/// What decides whether other machines may reach the server.
#[derive(Clone, Copy)]
pub(crate) struct Exposure {
    /// Clients are asked who they are.
    pub(crate) auth: bool,
    /// What is sent there is encrypted, or the operator trusts the network.
    pub(crate) safe: bool,
}

impl Exposure {
    /// Probes and metrics apart are for machines that have no credentials.
    pub(crate) const PROBES: Self = Self { auth: true, safe: true };
}

/// Binds an address of the configuration, and says which it has become.
pub(crate) fn listen(
    wanted: SocketAddr,
    setting: &'static str,
    rule: Exposure,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let listener = bind(wanted, setting, rule)?;
    let address = local_address(&listener, wanted, setting)?;
    Ok((listener, address))
}

fn bind(address: SocketAddr, setting: &'static str, rule: Exposure) -> Result<TcpListener, StartError> {
    if !address.ip().is_loopback() {
        if !rule.auth {
            return Err(StartError::Exposed { address, setting });
        }
        if !rule.safe {
            return Err(StartError::Plaintext { address, setting });
        }
    }
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| StartError::Bind { address, setting, source })
}

fn local_address(
    listener: &TcpListener,
    address: SocketAddr,
    setting: &'static str,
) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Bind { address, setting, source })
}

/// What it takes to serve whoever connects to a listener.
struct Accepting {
    kind: Kind,
    shared: Arc<Shared>,
    threads: Arc<Threads>,
    tasks: TaskTracker,
}

impl Accepting {
    /// Owned by the server's tracker; ends by `stop`.
    async fn run(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, address)) => self.welcome(socket, address),
                Err(error) => {
                    // Out of file descriptors, mostly: those who wait are served when others have left.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn welcome(&self, socket: TcpStream, address: SocketAddr) {
        let (shared, kind) = (&self.shared, self.kind);
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%address, %error, "connection lost before it was served");
            return;
        }
        if !shared.may_come(address.ip()) {
            // In plain text, and only where that is what the client speaks.
            if kind == Kind::Nats && shared.tls.clients.get().is_none() {
                tell_there_are_too_many(&socket);
            }
            return;
        }
        let (socket, place) = match self.threads.place(socket) {
            Ok(placed) => placed,
            Err(error) => return tracing::warn!(%address, %error, "a connection cannot be served"),
        };
        let socket = Arc::new(Socket::new(socket));
        let outbox = Outbox::new(socket.clone(), shared.limits().max_pending, &shared.memory);
        let orders = shared.bridge.as_ref().map(|_| Arc::new(Orders::new(&shared.memory)));
        let nonce = shared.auth.nonce();
        let memory = shared.memory.clone();
        let client = Client::new(shared.next_client_id(), (address, kind), outbox, nonce, orders, memory);
        let client = Arc::new(client);
        client.touch(shared.now_ms());
        match shared.enter(&client) {
            Entry::Served => {
                let runtime = place.as_ref().map(Place::runtime).cloned();
                let connection = Connection::new(shared.clone(), client, socket, place);
                threads::spawn(runtime.as_ref(), &self.tasks, Box::new(connection).run());
            }
            // It would not understand.
            Entry::Full if kind == Kind::WebSocket => {}
            Entry::Full => tell_there_are_too_many(socket.tcp()),
            Entry::Stopping => {}
        }
    }
}

/// Not through the runtime, which has yet to learn that one can write to the socket. Nobody waits for the client: it may
/// have to do without.
fn tell_there_are_too_many(socket: &TcpStream) {
    let mut line = Vec::new();
    ServerError::MaxConnections.write(&mut line);
    let _ = socket2::SockRef::from(socket).send(&line);
}

/// Owned by the server's tracker; ends by `stop`.
async fn expire_members(members: Arc<Members>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => members.expire(tokio::time::Instant::now()),
        }
    }
}

/// Owned by the server's tracker; ends by `stop`.
async fn look_after(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        // Often enough for the shortest of the times it watches, which a reload may change.
        let limits = shared.limits();
        let shortest = limits.ping_interval.min(limits.write_deadline);
        let period = (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(1));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(period) => shared.look_after(),
        }
    }
}
