//! Why there is no bus.

use trunkline_core::{OffsetError, StreamOffset, SubjectError};

use crate::backend::nats::NatsConnectError;
#[cfg(feature = "redis")]
use crate::backend::redis::RedisConnectError;
use crate::backend::{BackendKind, StreamError, Unsupported};

/// Why a bus could not be had as configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// NATS cannot be reached or used, and `messaging.fallback` is `fail`.
    #[error("backend nats cannot be used (messaging.fallback is fail)")]
    Nats(#[source] NatsConnectError),
    /// Redis cannot be reached or used, and `messaging.fallback` is `fail`.
    #[cfg(feature = "redis")]
    #[error("backend redis cannot be used (messaging.fallback is fail)")]
    Redis(#[source] RedisConnectError),
    /// This build has no such backend, and `messaging.fallback` is `fail`.
    #[error("backend {backend} is not in this build (messaging.fallback is fail)")]
    NotInBuild {
        /// The backend that was asked for.
        backend: BackendKind,
    },
    /// A stream of `messaging.streams` cannot be made.
    #[error("a configured stream cannot be made (messaging.streams)")]
    Stream(#[source] StreamError),
    /// Streams are configured, and the backend has none.
    #[error("streams are configured (messaging.streams)")]
    NoStreams(#[source] Unsupported),
    /// The saved offset is one of another backend.
    #[error("offset {offset} is not one of backend {backend} (messaging.initial_stream_id)")]
    ForeignStart {
        /// The backend.
        backend: BackendKind,
        /// The offset.
        offset: StreamOffset,
    },
    /// `messaging.subject_root` is no token, or too long.
    #[error("the root of the subjects cannot be used (messaging.subject_root)")]
    Root(#[source] SubjectError),
    /// `messaging.initial_stream_id` is no offset.
    #[error("the start of new readers is no offset (messaging.initial_stream_id)")]
    InitialStart(#[source] OffsetError),
}

impl ConnectError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Nats(error) => error.is_retryable(),
            #[cfg(feature = "redis")]
            Self::Redis(error) => error.is_retryable(),
            Self::Stream(error) => error.is_retryable(),
            _ => false,
        }
    }

    /// What the operator can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Nats(error) => Some(error.hint()),
            #[cfg(feature = "redis")]
            Self::Redis(error) => Some(error.hint()),
            Self::NotInBuild { .. } => {
                Some("set messaging.backend to in_memory or nats, or messaging.fallback to in_memory")
            }
            Self::NoStreams(error) => Some(error.hint()),
            Self::ForeignStart { .. } => Some(
                "redis writes offsets as MS-SEQ, the others as N; use $ or 0-0 after a change of backend",
            ),
            _ => None,
        }
    }
}
