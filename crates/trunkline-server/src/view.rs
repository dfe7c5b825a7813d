//! What monitoring sees of a connection: a value, taken at a moment and safe to keep after the connection is gone.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use crate::arrival::Secured;
use crate::client::{Client, Kind};
use crate::closed::Closed;
use crate::outbox::SlowBy;

/// Messages and their bytes, in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}

/// A connection at one moment.
#[derive(Debug, Clone)]
pub(crate) struct ClientView {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    pub(crate) kind: Kind,
    pub(crate) secured: Option<Secured>,
    pub(crate) started: SystemTime,
    /// When an operation came from it, or messages went to it. Deliveries are noticed once a second at the latest.
    pub(crate) last_active: SystemTime,
    pub(crate) uptime: Duration,
    pub(crate) idle: Duration,
    pub(crate) rtt: Option<Duration>,
    pub(crate) pending_bytes: usize,
    /// From the client.
    pub(crate) received: Count,
    /// To the client.
    pub(crate) sent: Count,
    pub(crate) subscriptions: u64,
    /// Messages that a bridge could not give it, where their number is known.
    pub(crate) missed: u64,
    /// Gaps of any size in what a bridge gave it.
    pub(crate) gaps: u64,
    /// Messages and subscriptions that it was refused for want of permission.
    pub(crate) denied: u64,
    /// Who it is, or has failed to prove to be.
    pub(crate) user: Option<String>,
    /// Where it is, once it was let in.
    pub(crate) account: Option<Box<str>>,
    pub(crate) name: Option<String>,
    pub(crate) lang: Option<String>,
    pub(crate) version: Option<String>,
}

impl ClientView {
    /// `now_ms` are the milliseconds of the server's life, `server_started` when it began.
    pub(crate) fn of(client: &Client, now_ms: u64, server_started: SystemTime) -> Self {
        client.note_deliveries(now_ms);
        let active_ms = client.last_active_ms().max(client.last_delivery_ms()).min(now_ms);
        let millis = Duration::from_millis;
        let connect = client.connect();
        let said = |field: fn(&trunkline_protocol::ConnectOptions) -> &Option<String>| {
            connect.and_then(|options| field(options).clone())
        };
        Self {
            id: client.id,
            address: client.address,
            kind: client.kind,
            secured: client.secured().cloned(),
            started: client.started,
            // A client that did nothing yet was active when it came, to the nanosecond.
            last_active: client.started.max(server_started + millis(active_ms)),
            uptime: client.started.elapsed().unwrap_or_default(),
            idle: millis(now_ms - active_ms),
            rtt: client.rtt(),
            pending_bytes: client.outbox.pending(),
            received: client.received.count(),
            sent: client.sent.count(),
            subscriptions: client.subscriptions.load(Ordering::Relaxed),
            missed: client.missed.load(Ordering::Relaxed),
            gaps: client.gaps.load(Ordering::Relaxed),
            denied: client.denied.load(Ordering::Relaxed),
            user: client.shown_name(),
            account: client.identity().map(|identity| identity.account.name.clone()),
            name: said(|options| &options.name),
            lang: said(|options| &options.lang),
            version: said(|options| &options.version),
        }
    }
}

/// A connection that ended.
#[derive(Debug, Clone)]
pub(crate) struct Departed {
    pub(crate) view: ClientView,
    pub(crate) stopped: SystemTime,
    pub(crate) why: Closed,
    /// Which bound it had reached, if it was cut off as a slow consumer.
    pub(crate) slow: Option<SlowBy>,
}
