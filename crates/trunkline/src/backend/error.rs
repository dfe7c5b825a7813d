//! What the operations of a backend can fail with.

use std::time::Duration;

use trunkline_core::{HeaderError, Pattern, StreamOffset, Subject};

use crate::config::Backend as BackendKind;

/// An operation that this backend cannot do at all; asking again will not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{operation} is not supported by backend {backend}")]
pub struct Unsupported {
    /// What was asked for.
    pub operation: &'static str,
    /// Of which backend.
    pub backend: BackendKind,
}

impl Unsupported {
    /// What needs a later server than the one that is there.
    pub(crate) const ORDER_BY_KEY: &str = "order by key, on a NATS server before 2.10.15,";

    /// What the operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self.backend {
            BackendKind::Nats if self.operation == Self::ORDER_BY_KEY => {
                "use NATS 2.10.15 or later: earlier ones deliver a message twice in a way that breaks the order"
            }
            BackendKind::Nats => {
                "start the NATS server with JetStream and store the subject in a stream, or use backend in_memory or redis"
            }
            BackendKind::InMemory | BackendKind::Redis => "see the table of guarantees on `Backend`",
        }
    }
}

/// Why a message was not published, or not surely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// There is no connection and nothing has left: the message was not published.
    #[error("not connected to {server}: {reason}")]
    NotConnected {
        /// Which server, without credentials.
        server: String,
        /// Why there is no connection.
        reason: String,
    },
    /// The message may or may not have been published.
    #[error(
        "no confirmation from {server} within {waited:?}, the message may or may not have been published"
    )]
    OutcomeUnknown {
        /// Which server, without credentials.
        server: String,
        /// How long was waited (`messaging.publish_timeout`).
        waited: Duration,
    },
    /// The message is stored on the server, but not surely on as many replicas as were asked for: a failover may lose it.
    #[error(
        "stored on {server}, but {replicas} replicas have confirmed it, wanted are {wanted} (messaging.wait_replicas)"
    )]
    NotReplicated {
        /// Which server, without credentials.
        server: String,
        /// How many replicas have it.
        replicas: u64,
        /// How many were wanted.
        wanted: u64,
    },
    /// The message is too large.
    #[error("payload is {size} bytes, limit is {limit} (server.limits.max_payload)")]
    TooLarge {
        /// Bytes of headers and payload.
        size: usize,
        /// The limit in force.
        limit: usize,
    },
    /// Only the bus itself publishes here.
    #[error("subject {0} is reserved: only the bus publishes dead letters")]
    Reserved(Subject),
    /// The server's permissions do not allow it.
    #[error("publishing to {subject} was denied: {reason}")]
    Denied {
        /// Where to.
        subject: Subject,
        /// What the server said.
        reason: String,
    },
    /// The payload could not be written as JSON.
    #[error("payload for {subject} cannot be written as JSON: {reason}")]
    Encode {
        /// Where to.
        subject: Subject,
        /// What the writer said.
        reason: String,
    },
    /// A header that was set on the message is none.
    #[error("header cannot be sent")]
    Header(#[from] HeaderError),
    /// The server is away, and there is no more room to keep what is published until it is back.
    #[error("the outbox is full: {waiting} {what} of at most {limit} ({setting})")]
    OutboxFull {
        /// What there is too much of: `messages` or `bytes`.
        what: &'static str,
        /// How many wait; of bytes, with those of this message.
        waiting: u64,
        /// The limit in force.
        limit: u64,
        /// The key that sets it.
        setting: &'static str,
    },
    /// The bus is draining or closed.
    #[error("the bus is closed")]
    Closed,
    /// The backend cannot do what the options ask for.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

impl PublishError {
    /// One word for programs, JSON and spans.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotConnected { .. } => "not_connected",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
            Self::NotReplicated { .. } => "not_replicated",
            Self::TooLarge { .. } => "too_large",
            Self::Reserved(_) => "reserved",
            Self::Denied { .. } => "denied",
            Self::Encode { .. } => "encode",
            Self::Header(_) => "header",
            Self::OutboxFull { .. } => "outbox_full",
            Self::Closed => "closed",
            Self::Unsupported(_) => "unsupported",
        }
    }

    /// Whether the same publish may succeed later. `OutcomeUnknown` and `NotReplicated` are: with a deduplication id, or
    /// where twice does no harm.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NotConnected { .. }
                | Self::OutcomeUnknown { .. }
                | Self::NotReplicated { .. }
                | Self::OutboxFull { .. }
        )
    }
}

/// Why a subscription did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// There is no connection.
    #[error("not connected to {server}: {reason}")]
    NotConnected {
        /// Which server, without credentials.
        server: String,
        /// Why there is no connection.
        reason: String,
    },
    /// The server's permissions do not allow it.
    #[error("subscribing to {pattern} was denied: {reason}")]
    Denied {
        /// What to.
        pattern: Pattern,
        /// What the server said.
        reason: String,
    },
    /// The start offset is of another backend's form.
    #[error("offset {0} is not one of this backend")]
    ForeignOffset(StreamOffset),
    /// The start offset lies past the newest message: it was saved from another life of the stream, and waiting there
    /// would skip messages.
    #[error("offset {offset} is past the end of stream {stream:?}, whose newest message is {last}")]
    OffsetAhead {
        /// The stream.
        stream: String,
        /// The offset asked for.
        offset: StreamOffset,
        /// The newest one stored.
        last: StreamOffset,
    },
    /// A start in the past was asked for, and no stream covers the pattern.
    #[error("no stream stores {0}, so a subscription cannot start in its past")]
    NotStored(Pattern),
    /// The bus is draining or closed.
    #[error("the bus is closed")]
    Closed,
    /// The backend cannot do what the options ask for.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

impl SubscribeError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotConnected { .. })
    }
}

/// Why an operation on streams failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// There is no connection, or no answer in time.
    #[error("not connected to {server}: {reason}")]
    NotConnected {
        /// Which server, without credentials.
        server: String,
        /// Why there is no connection.
        reason: String,
    },
    /// There is no such stream.
    #[error("no stream named {0:?}")]
    NoStream(String),
    /// A name with other characters than letters, digits, `_` and `-`, or empty, or over 64 bytes.
    #[error("{0:?} is no name of a stream or consumer, expected [A-Za-z0-9_-]+ of at most 64 bytes")]
    BadName(String),
    /// A stream without subjects stores nothing.
    #[error("stream {0:?} has no subjects")]
    NoSubjects(String),
    /// Two streams would store the same message.
    #[error("pattern {pattern} of stream {stream:?} overlaps {other_pattern} of stream {other:?}")]
    Overlap {
        /// The new stream.
        stream: String,
        /// Its pattern.
        pattern: Pattern,
        /// The stream that is there.
        other: String,
        /// Its pattern.
        other_pattern: Pattern,
    },
    /// What is there cannot be changed into what was asked for.
    #[error("{what} exists with {found}, and cannot be changed to {wanted}")]
    Conflict {
        /// Stream or consumer, by name.
        what: String,
        /// What is there.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The stream would do harm, or the server does not take it.
    #[error("stream {stream:?} is refused: {reason}")]
    Refused {
        /// The stream.
        stream: String,
        /// Why.
        reason: String,
    },
    /// The server's permissions do not allow what the operation needs.
    #[error("publishing to {subject} was denied: {reason}")]
    Denied {
        /// Where the request to the server went.
        subject: String,
        /// What the server said.
        reason: String,
    },
    /// The offset is of another backend's form.
    #[error("offset {0} is not one of this backend")]
    ForeignOffset(StreamOffset),
    /// The start offset lies past the newest message: it was saved from another life of the stream, and waiting there
    /// would skip messages.
    #[error("offset {offset} is past the end of stream {stream:?}, whose newest message is {last}")]
    OffsetAhead {
        /// The stream.
        stream: String,
        /// The offset asked for.
        offset: StreamOffset,
        /// The newest one stored.
        last: StreamOffset,
    },
    /// Single messages cannot be taken out of this stream.
    #[error("single messages cannot be deleted from stream {0:?}, its backend removes whole streams only")]
    NotDeletable(String),
    /// The bus is draining or closed.
    #[error("the bus is closed")]
    Closed,
    /// The backend has no streams.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

impl StreamError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotConnected { .. })
    }
}

/// Why a member could not fetch or settle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// There is no connection, or no answer in time.
    #[error("not connected to {server}: {reason}")]
    NotConnected {
        /// Which server, without credentials.
        server: String,
        /// Why there is no connection.
        reason: String,
    },
    /// The stream or the consumer was removed.
    #[error("consumer {consumer:?} of stream {stream:?} is gone")]
    Gone {
        /// The stream.
        stream: String,
        /// The consumer.
        consumer: String,
    },
    /// The server's permissions do not allow what the member needs.
    #[error("publishing to {subject} was denied: {reason}")]
    Denied {
        /// Where the request to the server went.
        subject: String,
        /// What the server said.
        reason: String,
    },
    /// The bus is draining or closed, or the member has left.
    #[error("the bus is closed")]
    Closed,
}

impl ConsumeError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotConnected { .. })
    }
}

/// Why a drain did not finish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DrainError {
    /// The deadline passed first.
    #[error("deadline passed with {left} messages or handlers unfinished")]
    Deadline {
        /// How much was left.
        left: u64,
    },
    /// The server stayed away until the deadline, and what waited in the outbox is lost.
    #[error("deadline passed with {left} messages in the outbox, which are lost (messaging.outbox)")]
    OutboxLeft {
        /// How many.
        left: u64,
    },
    /// The server could not be reached to finish.
    #[error("not connected to {server}: {reason}")]
    NotConnected {
        /// Which server, without credentials.
        server: String,
        /// Why there is no connection.
        reason: String,
    },
}
