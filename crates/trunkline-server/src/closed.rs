//! Why connections end, as metrics, monitoring and close frames tell it.

use crate::outbox::SlowBy;

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

    /// As nats-server says it, where it has the reason too.
    pub(crate) fn shown(self, slow: Option<SlowBy>) -> &'static str {
        match self {
            Self::ByClient => "Client Closed",
            Self::ReadError => "Read Error",
            Self::PayloadTooLarge => "Maximum Message Payload Exceeded",
            Self::LineTooLong => "Maximum Control Line Exceeded",
            Self::Protocol => "Protocol Violation",
            // That is what nats-server calls an error that the client reports.
            Self::ClientError => "Parse Error",
            Self::SlowConsumer => match slow {
                Some(SlowBy::Deadline) => "Slow Consumer (Write Deadline)",
                Some(SlowBy::Memory) => "Slow Consumer (Memory Limit)",
                Some(SlowBy::Pending) | None => "Slow Consumer (Pending Bytes)",
            },
            Self::Stale => "Stale Connection",
            Self::Shutdown => "Server Shutdown",
            Self::Backend => "Backend Unavailable",
            Self::Unauthorized => "Authentication Failure",
            Self::AuthTimeout => "Authentication Timeout",
            Self::Handshake => "TLS Handshake Failure",
            Self::TooMany | Self::Silent => "Maximum Connections Exceeded",
            Self::Memory => "Memory Limit",
        }
    }
}
