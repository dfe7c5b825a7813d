//! What a backend owes the bus: the [`Backend`] trait, its table of guarantees, and the backends there are.
//!
//! A backend moves and keeps bytes. Request, retry, dead letters, keys and deadlines live once, in the bus
//! above it, and are the same everywhere. Backends never import each other.

pub mod error;
mod inbox;
pub mod live;
pub mod memory;
pub mod nats;
#[cfg(feature = "redis")]
pub mod redis;
mod runtime;
pub mod stream;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use trunkline_core::{Message, Pattern, StreamOffset, Subject};

pub use error::{ConsumeError, DrainError, PublishError, StreamError, SubscribeError, Unsupported};
pub use live::{Gap, LiveEvent, LiveSource, SubscribeOptions};
pub use stream::{
    AckToken, ConsumerConfig, ConsumerInfo, Delivery, Fetched, Lease, Member, ReadPage, ReadRequest, Settle,
    Settled, Start, StoredMessage, StreamConfig, StreamInfo, Streams,
};

use crate::memory::MemoryBudget;
use crate::status::BackendStatus;

/// A boxed future of a trait method.
pub type Fut<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The backend of a bus: live fan-out, and streams where it has them.
///
/// | | `in_memory` | `redis` | `nats` core | + JetStream |
/// |---|---|---|---|---|
/// | subscription | fan-out; what it could not be given is reported as [`Gap`] and counted | same | same | same |
/// | from when | every message published after `subscribe` returned | same (start offset fixed on the server first) | same (after a flush) | same |
/// | through a reconnect | – | resumes from the last offset | may lose; a [`Gap`] says so | streams resume |
/// | replay from beginning, offset, time | while the process lives | yes | [`Unsupported`] | yes |
/// | consumer: ack, nak, redelivery, dead letter | while the process lives | yes; survives kill −9 of any client | [`Unsupported`] | yes |
/// | publish returns | [`Receipt::Stored`] if a stream matches, else [`Receipt::Accepted`] | `Stored` | `Accepted` (handed to a live connection; `flush` proves receipt) | `Stored` |
/// | what `Stored` survives | nothing past the process | a crash as far as `appendfsync` says; failover may lose what was not replicated, unless `messaging.wait_replicas` | – | R1 disk, R3 quorum |
/// | server away | – | [`PublishError::NotConnected`], or `OutcomeUnknown` once bytes may have left, within `publish_timeout`; [`Receipt::Queued`] only with the outbox on | same | same |
/// | request, nobody answers | `NoResponders` at once | from a registry of responders with heartbeat (2 s, gone after 6 s); listed but dead is `Timeout`; for 3 s after an outage the answer that there is no one waits | at once | at once |
/// | order | first deliveries: per subject, per publisher | per stream | per subject, per publisher | per stream |
/// | keyed order through redelivery | one active member per keyed consumer (lease), the others stand by | same | [`Unsupported`] | same |
/// | late ack of a lost lease | refused | refused and fenced on the server | – | refused by the library |
///
/// Queue groups of live subscriptions share at most once: what a dead member had is gone. On `nats`, a member that stops
/// ends with a [`Gap`] of unknown size, for what the server may have given it while it was leaving.
///
/// Everywhere: consumers give a dead member's unfinished messages to the others; all buffers are bounded; a capability
/// that is missing is a typed [`Unsupported`] at the call.
///
/// Beside each method stands how Redis Streams and JetStream implement it; the trait is meant to stay as it is when they do.
pub trait Backend: Send + Sync + 'static {
    /// What this backend can do; fixed once connected.
    ///
    /// *Redis*: all streams, `no_responders: Registry`. *JetStream*: `streams` only when the server's INFO says `jetstream`.
    fn capabilities(&self) -> Capabilities;

    /// The state of the connection, and every change of it.
    ///
    /// *Redis*: driven by the connection tasks and a 1 s PING, so that a stopped server shows within 2 s.
    /// *NATS*: the client library's connection events and its ping.
    fn status(&self) -> watch::Receiver<BackendStatus>;

    /// A subject of this process alone, below which replies come in. Each call gives another one.
    ///
    /// *Redis*: `_INBOX.<process>.<n>`, all backed by one bounded, expiring stream key of the process. *NATS*: the client's inbox.
    fn new_inbox(&self) -> Subject;

    /// Publishes one message. With `reply` set and nobody listening, a message with header `Status: 503` goes to `reply`.
    ///
    /// *Redis*: XADD in batches, pipelined over one connection to each server, into the configured or family stream; replies
    /// into the inbox key named by the subject; with `reply` the registry of responders beside the stream is asked. *NATS*: PUB, or with a matching
    /// JetStream stream a publish that awaits its PubAck. Both answer `NotConnected` or `OutcomeUnknown` within `o.timeout`.
    ///
    /// # Errors
    /// Inside the [`Publishing`]: see [`PublishError`].
    fn publish(&self, m: Message, o: PublishOptions) -> Publishing;

    /// How often a message with [`PublishOptions::unbroken_since`] was not sent, or not surely, while others may have been
    /// queued behind it. `None` where messages are not queued, or nobody keeps count: then the option has no effect.
    ///
    /// *Redis*: counted by the task that sends. *NATS*: `None`.
    fn breaks(&self) -> Option<u64> {
        None
    }

    /// What its buffers are charged to, where a server in front of it is to share the account; `None` where nobody keeps one.
    fn memory(&self) -> Option<Arc<MemoryBudget>> {
        None
    }

    /// What the server said when it refused a message on `{root}.system.trace` since this was asked last. Nobody waits for
    /// what becomes of reports there, so no publish and no flush fails of it.
    ///
    /// *NATS*: the violation that was reported. Elsewhere `None`: there the outcome of publishing says it.
    fn take_refused_report(&self) -> Option<String> {
        None
    }

    /// Waits until everything published before has been received by the server.
    ///
    /// *Redis*: all outstanding XADDs answered. *NATS*: PING and its PONG.
    ///
    /// # Errors
    /// [`PublishError::NotConnected`], `OutcomeUnknown` when the connection broke with messages under way.
    fn flush(&self) -> Fut<'_, Result<(), PublishError>>;

    /// Starts a live subscription. Every message published after this returned reaches it or is reported as a gap.
    ///
    /// *Redis*: fixes the start as a concrete id on the server before it returns, then joins the shared XREAD of each
    /// group of streams that the pattern touches; a queue group, one for each pattern and name, is a cursor that the
    /// processes move: who moves it has what lies between; `o.responder` enters the subject in the registry. *NATS*: SUB, then PING/PONG; `o.start` is `Unsupported` on core
    /// and an ordered consumer on JetStream.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    fn subscribe(
        &self,
        p: Pattern,
        o: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>>;

    /// Streams and consumers, where there are any.
    ///
    /// # Errors
    /// [`Unsupported`] on NATS without JetStream.
    fn streams(&self) -> Result<&dyn Streams, Unsupported>;

    /// Refuses new work, lets what is under way finish until `by`, and disconnects.
    ///
    /// *Redis*: outstanding XADDs answered, readers stopped, registry entries removed. *NATS*: the client's drain.
    ///
    /// # Errors
    /// [`DrainError::Deadline`] tells what was left.
    fn drain(&self, by: Instant) -> Fut<'_, Result<(), DrainError>>;
}

/// Which backend.
pub use crate::config::Backend as BackendKind;

/// What a backend can do; the conformance suite holds each backend to exactly this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Which backend it is.
    pub kind: BackendKind,
    /// Streams, consumers and replay.
    pub streams: bool,
    /// `subscribe` may start in the past of a stored subject.
    pub subscribe_from_offset: bool,
    /// Stored messages outlive this process.
    pub durable: bool,
    /// Messages published while disconnected are received after a reconnect.
    pub resumes_after_reconnect: bool,
    /// A late ack is refused by the server itself, not only by this library.
    pub fenced_acks: bool,
    /// Publishing with a deduplication id suppresses duplicates.
    pub dedupe: bool,
    /// How a request learns that nobody answers.
    pub no_responders: NoResponders,
}

/// How a request learns that nobody answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoResponders {
    /// The router knows at once.
    AtOnce,
    /// From a registry of responders with heartbeat; a listed but dead one is a timeout.
    Registry,
}

/// How to publish.
#[derive(Debug, Clone, Default)]
pub struct PublishOptions {
    /// Suppress a second message with this id within `messaging.dedupe_window`.
    pub dedupe_id: Option<String>,
    /// Longest wait for an outcome; `None` is `messaging.publish_timeout`.
    pub timeout: Option<Duration>,
    /// Send it only if [`Backend::breaks`] still answers this number when its turn comes; otherwise the answer is
    /// [`PublishError::NotConnected`], and it was not sent. So a message does not overtake one that was published before
    /// it, under the same number, and has to be published again. `None`: send it in any case. Only with a number that the
    /// same backend has answered.
    pub unbroken_since: Option<u64>,
}

/// What a publish came to. Never more than is known.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Receipt {
    /// Handed to the router or a live connection; `flush` proves receipt.
    Accepted,
    /// Kept by a stream.
    Stored {
        /// Name of the stream.
        stream: String,
        /// Where it stands in it.
        offset: StreamOffset,
        /// The deduplication id was seen before: this is the earlier message's offset.
        duplicate: bool,
    },
    /// Kept in the outbox until the server is back (`messaging.outbox`).
    Queued,
}

/// A publish under way: most are over when the call returns, and cost no allocation.
pub enum Publishing {
    /// It is over.
    Ready(Result<Receipt, PublishError>),
    /// It will be over; dropping the future does not take the message back.
    Pending(Fut<'static, Result<Receipt, PublishError>>),
}

impl Publishing {
    /// Waits for the outcome.
    ///
    /// # Errors
    /// See [`PublishError`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome unknown; the message may still be published.
    pub async fn outcome(self) -> Result<Receipt, PublishError> {
        match self {
            Self::Ready(result) => result,
            Self::Pending(future) => future.await,
        }
    }
}

impl std::fmt::Debug for Publishing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(result) => f.debug_tuple("Ready").field(result).finish(),
            Self::Pending(_) => f.write_str("Pending"),
        }
    }
}
