//! What a server is started with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trunkline::Front;
use trunkline::backend::Backend;
use trunkline::backend::memory::Hub;
use trunkline::config::{Config, Secret, Server as ServerConfig};
use trunkline::memory::MemoryBudget;
use trunkline::observe::Observer;
use trunkline::redelivery::RetryPolicy;
use trunkline::status::BackendStatus;
use trunkline::{Bus, BusOptions, Start, Telemetry};

use crate::admin::ComponentsJson;
use crate::auth::AuthOptions;
use crate::promises::Promises;
use crate::reload::AuthSource;
use crate::server::StartError;
use crate::tls::TlsOptions;
use crate::websocket::WebSocketOptions;

/// How to start a [`Server`](crate::Server).
#[derive(Clone)]
pub struct ServerOptions {
    /// Where NATS clients connect; port 0 is any free one. Default `127.0.0.1:4222`, key `server.listen`.
    pub listen: SocketAddr,
    /// Where health, monitoring and metrics are served; `None` serves none. Default `127.0.0.1:8222`, key `server.http`.
    pub http: Option<SocketAddr>,
    /// Where probes and metrics are served apart, for any machine that can reach it; `None` serves them at `http` alone. Key
    /// `server.metrics_listen`.
    pub metrics: Option<SocketAddr>,
    /// Whether HTTP is served over TLS, with the certificate of `tls`. Default no, key `server.tls.http`.
    pub http_tls: bool,
    /// Name shown to clients; `None` is the server's id.
    pub name: Option<String>,
    /// Where clients are told that the server is; `None` is where it listens.
    pub advertise: Option<Advertised>,
    /// Version shown to clients, by which some of them decide what they may ask for. Default is the one of this crate.
    pub version: String,
    /// Whether traces of the protocol ([`PROTOCOL_TRACE`](crate::PROTOCOL_TRACE)) show headers and payloads of messages, as
    /// nats-server's do. Default no.
    pub trace_payloads: bool,
    /// Whether clients may use headers. Without, the server says so in INFO, `HPUB` ends the connection, and clients get
    /// messages without theirs. Default yes.
    pub headers: bool,
    /// Path under which everything but the admin API and the dashboard is served over HTTP, such as `/nats`. Default none.
    pub http_base_path: String,
    /// Words by which an operator tells servers apart, shown by `/varz`. Default none.
    pub tags: Vec<String>,
    /// What an operator has to say of the server, by names; shown by `/varz`. Default nothing.
    pub metadata: BTreeMap<String, String>,
    /// Bounds.
    pub limits: Limits,
    /// Threads that serve connections and nothing else; with 0, the runtime that the server is started on serves them, and
    /// so it does where the server is a bridge. Default 0.
    pub threads: usize,
    /// Who may connect, and what they may do. Keys `server.auth`, `server.users`, `server.permissions` and
    /// `server.accounts`.
    pub auth: AuthOptions,
    /// Where users and permissions are read from again, for [`Server::reload_from_source`](crate::Server::reload_from_source)
    /// and when a client that may publish on `{root}.system.policy.reload` asks for it; `None` leaves them to
    /// [`Server::reload`](crate::Server::reload).
    pub auth_source: Option<AuthSource>,
    /// TLS for NATS clients and for those of WebSocket; `None` serves them in plain text. Section `server.tls`.
    pub tls: Option<TlsOptions>,
    /// Where NATS clients connect over WebSocket; `None` is nowhere. Section `server.websocket`.
    pub websocket: Option<WebSocketOptions>,
    /// Whether addresses that other machines reach may be served without TLS. Key `server.plaintext`.
    pub plaintext: bool,
    /// The bus it is a front of.
    pub front: Front,
    /// What everything that clients make this process keep is charged to, and bounded by; `None` is that of the backend. Key
    /// `runtime.resources.memory`.
    pub memory: Option<Arc<MemoryBudget>>,
    /// On a bridge, the longest time from what a client asks for to its outcome; past it the client is cut off. Default
    /// 5 s, key `messaging.publish_timeout`.
    pub publish_timeout: Duration,
    /// First token of the platform's subjects, for `{root}.system.health`. Default `nachos`, key `messaging.subject_root`.
    pub subject_root: String,
    /// How the backend is, for `/readyz`, metrics and `{root}.system.health`; `None` is what a bridge's backend says, or an
    /// `in_memory` one that works.
    pub backend_status: Option<watch::Receiver<BackendStatus>>,
    /// How often the server's health is published on `{root}.system.health`; a change of the backend's state is
    /// published at once, other changes within a quarter of a second. Default 10 s.
    pub health_interval: Duration,
    /// Counters of a bus in this process, shown on `/metrics` beside the server's.
    pub telemetry: Option<Telemetry>,
    /// That bus, for what of its health is not that of its backend: what waits in its outbox.
    pub bus: Option<Bus>,
    /// Whether `/healthz` answers what nats-server's does, and no more. Default no.
    pub nats_probes: bool,
    /// Token of the admin API; `None` makes a new one at every start. Key `server.auth.admin_token`.
    pub admin_token: Option<Secret>,
    /// What the admin API works on; `None` is what the server is a front of.
    pub backend: Option<Arc<dyn Backend>>,
    /// What the admin API tells its clients to do by default.
    pub admin_defaults: AdminDefaults,
    /// What runs beside the bus, for `/api/v1/components`; `None` is nothing.
    pub components: Option<watch::Receiver<ComponentsJson>>,
    /// Streams that `/readyz` says are missing when they are: those of key `messaging.streams`.
    pub promised_streams: Vec<String>,
    /// What sees the messages of the bus, for `/api/v1/conversations` and `/api/v1/observations`; the server runs it. `None`
    /// is the one of the hub that it is a front of, if there is one.
    pub observer: Option<Arc<Observer>>,
}

/// Defaults of consumers that run in clients of the admin API; keys `messaging.consumer.*` and
/// `messaging.initial_stream_id`.
#[derive(Debug, Clone)]
pub struct AdminDefaults {
    /// How often a message is delivered, and after which delays.
    pub retry: RetryPolicy,
    /// Longest time a delivery may stay unsettled.
    pub ack_wait: Duration,
    /// Where a new consumer starts.
    pub initial_start: Start,
}

impl From<&BusOptions> for AdminDefaults {
    fn from(options: &BusOptions) -> Self {
        Self {
            retry: options.retry.clone(),
            ack_wait: options.ack_wait,
            initial_start: options.initial_start,
        }
    }
}

impl std::fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerOptions")
            .field("listen", &self.listen)
            .field("http", &self.http)
            .field("limits", &self.limits)
            .field("subject_root", &self.subject_root)
            .finish_non_exhaustive()
    }
}

/// An address that INFO names in place of the one that the server listens on: behind a proxy, or in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertised {
    /// A name or an address.
    pub host: String,
    /// `None` is the port that the server listens on.
    pub port: Option<u16>,
}

impl ServerOptions {
    /// Defaults, in front of `hub`.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self::in_front_of(Front::Hub(hub))
    }

    /// Defaults, in front of a hub in this process or as a bridge to a backend.
    pub fn in_front_of(front: Front) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4222)),
            http: Some(SocketAddr::from(([127, 0, 0, 1], 8222))),
            metrics: None,
            http_tls: false,
            name: None,
            advertise: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trace_payloads: false,
            headers: true,
            http_base_path: String::new(),
            tags: Vec::new(),
            metadata: BTreeMap::new(),
            limits: Limits::default(),
            threads: 0,
            auth: AuthOptions::default(),
            auth_source: None,
            tls: None,
            websocket: None,
            plaintext: false,
            front,
            memory: None,
            publish_timeout: Duration::from_secs(5),
            subject_root: "nachos".to_owned(),
            backend_status: None,
            health_interval: Duration::from_secs(10),
            telemetry: None,
            bus: None,
            nats_probes: false,
            admin_token: None,
            backend: None,
            admin_defaults: AdminDefaults::from(&BusOptions::default()),
            components: None,
            promised_streams: Vec::new(),
            observer: None,
        }
    }
}

impl ServerOptions {
    /// What the configuration says, in front of a hub or as a bridge.
    ///
    /// # Errors
    /// TLS or WebSocket settings that cannot be kept.
    pub fn from_config(config: &Config, front: Front) -> Result<Self, StartError> {
        let (server, unset) = (&config.server, ServerConfig::default());
        let websocket = WebSocketOptions::from_config(&server.websocket);
        if websocket.is_none() && server.websocket != unset.websocket {
            return Err(StartError::WebSocketAddress);
        }
        Ok(Self {
            listen: server.listen,
            http: server.http,
            metrics: server.metrics_listen,
            http_tls: server.tls.http,
            limits: Limits::from(&server.limits),
            auth: AuthOptions::from(server),
            tls: TlsOptions::from_config(&server.tls)?,
            websocket,
            plaintext: server.plaintext,
            subject_root: config.messaging.subject_root.clone(),
            publish_timeout: config.messaging.publish_timeout,
            promised_streams: Promises::of(&config.messaging),
            admin_token: server.auth.admin_token.clone(),
            ..Self::in_front_of(front)
        })
    }
}

impl From<&trunkline::config::Limits> for Limits {
    fn from(limits: &trunkline::config::Limits) -> Self {
        // A limit as this machine counts; what does not fit is more than it could ever hold.
        let count = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        let default = Self::default();
        Self {
            max_payload: count(limits.max_payload),
            max_control_line: count(limits.max_control_line),
            max_connections: count(limits.max_connections),
            connection_rate: limits.connection_rate,
            max_subscriptions: limits.max_subscriptions.map_or(default.max_subscriptions, count),
            max_pending: count(limits.max_pending),
            ping_interval: limits.ping_interval,
            ping_max: limits.ping_max,
            write_deadline: limits.write_deadline,
            ..default
        }
    }
}

/// Bounds of a server; keys `server.limits.*`.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most bytes of headers and payload of a message. Default 1 MiB.
    pub max_payload: usize,
    /// Most bytes of a protocol line. Default 4096.
    pub max_control_line: usize,
    /// Most connections at a time. Default 65536.
    pub max_connections: usize,
    /// Most connections that one address may open within a second. Without a limit by default.
    pub connection_rate: Option<u32>,
    /// Most subscriptions of one connection. Default 1,000,000.
    pub max_subscriptions: usize,
    /// Most tokens of a subscription's subject. Without a limit by default.
    pub max_subscription_tokens: Option<usize>,
    /// Most bytes that wait for one client; past it the client is cut off as a slow consumer. Default 64 MiB.
    pub max_pending: usize,
    /// A client that is quiet for so long is sent a PING. Default 2 min.
    pub ping_interval: Duration,
    /// The same for a client over WebSocket, where it is another.
    pub websocket_ping_interval: Option<Duration>,
    /// So many unanswered PINGs make a connection stale. Default 2.
    pub ping_max: u32,
    /// A client that takes nothing of what waits for so long is cut off as a slow consumer. Default 10 s.
    pub write_deadline: Duration,
    /// Connections that ended and are still shown by monitoring; the oldest goes first. Default 1024.
    pub closed_connections: usize,
    /// Most HTTP connections at a time; others wait to be accepted. Default 256.
    pub http_connections: usize,
    /// Longest wait for an HTTP client: for the head of its next request, or for it to take some of its answer.
    /// Default 10 s.
    pub http_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload: 1 << 20,
            max_control_line: 4096,
            max_connections: 65_536,
            connection_rate: None,
            max_subscriptions: 1_000_000,
            max_subscription_tokens: None,
            max_pending: 64 << 20,
            ping_interval: Duration::from_secs(120),
            websocket_ping_interval: None,
            ping_max: 2,
            write_deadline: Duration::from_secs(10),
            closed_connections: 1024,
            http_connections: 256,
            http_timeout: Duration::from_secs(10),
        }
    }
}
