//! What a server is started with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use trunkline::backend::memory::Hub;

/// How to start a [`Server`](crate::Server).
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where NATS clients connect; port 0 is any free one. Default `127.0.0.1:4222`, key `server.listen`.
    pub listen: SocketAddr,
    /// Where health, monitoring and metrics are served; `None` serves none. Default `127.0.0.1:8222`, key `server.http`.
    pub http: Option<SocketAddr>,
    /// Name shown to clients; `None` is the server's id.
    pub name: Option<String>,
    /// Bounds.
    pub limits: Limits,
    /// The bus it is a front of.
    pub hub: Arc<Hub>,
    /// First token of the platform's subjects, for `{root}.system.health`. Default `nachos`, key `messaging.subject_root`.
    pub subject_root: String,
}

impl ServerOptions {
    /// Defaults, in front of `hub`.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4222)),
            http: Some(SocketAddr::from(([127, 0, 0, 1], 8222))),
            name: None,
            limits: Limits::default(),
            hub,
            subject_root: "nachos".to_owned(),
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
    /// Most subscriptions of one connection. Default 1,000,000.
    pub max_subscriptions: usize,
    /// Most bytes that wait for one client; past it the client is cut off as a slow consumer. Default 64 MiB.
    pub max_pending: usize,
    /// A client that is quiet for so long is sent a PING. Default 2 min.
    pub ping_interval: Duration,
    /// So many unanswered PINGs make a connection stale. Default 2.
    pub ping_max: u32,
    /// A client that takes nothing of what waits for so long is cut off as a slow consumer. Default 10 s.
    pub write_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload: 1 << 20,
            max_control_line: 4096,
            max_connections: 65_536,
            max_subscriptions: 1_000_000,
            max_pending: 64 << 20,
            ping_interval: Duration::from_secs(120),
            ping_max: 2,
            write_deadline: Duration::from_secs(10),
        }
    }
}
