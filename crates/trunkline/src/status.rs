//! What the bus says about itself.

use std::time::SystemTime;

use crate::config::Backend as BackendKind;

/// The state of a backend's connection, with the reason where it is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendStatus {
    /// Which backend is in use now; after a fallback not the one that was configured.
    pub backend: BackendKind,
    /// Where it is, without credentials; for people.
    pub server: String,
    /// How it is.
    pub state: BackendState,
    /// Since when it has been so.
    pub since: SystemTime,
}

impl BackendStatus {
    /// A status from now on.
    pub fn new(backend: BackendKind, server: impl Into<String>, state: BackendState) -> Self {
        Self { backend, server: server.into(), state, since: SystemTime::now() }
    }
}

/// How a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendState {
    /// The first connection is being made.
    Connecting,
    /// All works.
    Connected,
    /// Messages flow, and something that was promised does not hold: it runs on the fallback, or the server refuses to give
    /// out a stream.
    Degraded {
        /// Why.
        reason: String,
    },
    /// The connection is lost and being made again, for ever.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// Drained; it will not come back.
    Closed,
}

impl BackendState {
    /// One word for people, JSON and metrics: `connecting`, `ok`, `degraded`, `disconnected`, `closed`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "ok",
            Self::Degraded { .. } => "degraded",
            Self::Disconnected { .. } => "disconnected",
            Self::Closed => "closed",
        }
    }

    /// Why it is not well.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Degraded { reason } | Self::Disconnected { reason } => Some(reason),
            _ => None,
        }
    }

    /// Whether what the configuration promises holds now.
    pub fn is_ready(&self) -> bool {
        *self == Self::Connected
    }
}
