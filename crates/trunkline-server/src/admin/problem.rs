//! What went wrong, in a form that a client can act on.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use trunkline::backend::{BackendKind, ConsumeError, PublishError, StreamError, Unsupported};

/// The body of every answer that is no success.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorJson {
    /// What happened, for people.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What happened, for programs: `code` and what belongs to it.
    #[serde(flatten)]
    pub problem: Problem,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case", rename_all_fields = "camelCase")]
#[expect(missing_docs, reason = "the names are those of the errors that they stand for")]
#[non_exhaustive]
pub enum Problem {
    Unauthorized,
    ForeignOrigin,
    NotFound,
    MethodNotAllowed,
    BadRequest,
    RequestTooLarge,
    RequestTimeout,
    NoStream {
        stream: String,
    },
    NoConsumer {
        stream: String,
        consumer: String,
    },
    NoMember,
    TooManyMembers {
        limit: usize,
    },
    BadName {
        name: String,
    },
    NoSubjects {
        stream: String,
    },
    Overlap {
        stream: String,
        pattern: String,
        other: String,
        other_pattern: String,
    },
    Conflict {
        what: String,
        found: String,
        wanted: String,
    },
    ForeignOffset {
        offset: String,
    },
    OffsetAhead {
        stream: String,
        offset: String,
        last: String,
    },
    NotDeletable {
        stream: String,
    },
    NotConnected {
        server: String,
        reason: String,
    },
    OutcomeUnknown {
        server: String,
        waited_ms: u64,
    },
    TooLarge {
        size: usize,
        limit: usize,
    },
    Denied {
        reason: String,
    },
    Unsupported {
        operation: String,
        backend: String,
    },
    Closed,
    /// Anything that has no code of its own.
    #[serde(other)]
    Internal,
}

impl Problem {
    /// The HTTP status it comes with.
    pub fn status(&self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::ForeignOrigin | Self::Denied { .. } => 403,
            Self::NotFound | Self::NoStream { .. } | Self::NoConsumer { .. } | Self::NoMember => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::Overlap { .. } | Self::Conflict { .. } => 409,
            Self::RequestTooLarge | Self::TooLarge { .. } => 413,
            Self::TooManyMembers { .. } => 429,
            Self::Internal => 500,
            Self::Unsupported { .. } | Self::NotDeletable { .. } => 501,
            Self::NotConnected { .. } | Self::Closed => 503,
            Self::OutcomeUnknown { .. } => 504,
            Self::BadRequest
            | Self::BadName { .. }
            | Self::NoSubjects { .. }
            | Self::ForeignOffset { .. }
            | Self::OffsetAhead { .. } => 400,
        }
    }

    /// What to do about it, where that is not plain.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unauthorized => {
                "send `Authorization: Bearer TOKEN` with the token that `trunkline up` printed (server.auth.admin_token)"
            }
            Self::ForeignOrigin => "the admin API answers pages of its own origin only",
            Self::NoStream { .. } => {
                "streams are made by messaging.streams; `trunkline stream ls` lists them"
            }
            Self::NoConsumer { .. } => {
                "a consumer is made when it first runs: `trunkline consume STREAM CONSUMER`"
            }
            Self::NoMember => "join again: the server drops members whose client says nothing for a while",
            Self::TooManyMembers { .. } => "stop workers that are not needed",
            Self::OffsetAhead { .. } => "the offset is from another life of the stream; start from 0-0 or $",
            Self::Overlap { .. } => "each subject is stored by one stream only; change messaging.streams",
            Self::TooLarge { .. } => "raise server.limits.max_payload",
            _ => return None,
        })
    }
}

impl From<&StreamError> for Problem {
    fn from(error: &StreamError) -> Self {
        match error.clone() {
            StreamError::NotConnected { server, reason } => Self::NotConnected { server, reason },
            StreamError::NoStream(stream) => Self::NoStream { stream },
            StreamError::BadName(name) => Self::BadName { name },
            StreamError::NoSubjects(stream) => Self::NoSubjects { stream },
            StreamError::Overlap { stream, pattern, other, other_pattern } => Self::Overlap {
                stream,
                pattern: pattern.to_string(),
                other,
                other_pattern: other_pattern.to_string(),
            },
            StreamError::Conflict { what, found, wanted } => Self::Conflict { what, found, wanted },
            StreamError::ForeignOffset(offset) => Self::ForeignOffset { offset: offset.to_string() },
            StreamError::OffsetAhead { stream, offset, last } => {
                Self::OffsetAhead { stream, offset: offset.to_string(), last: last.to_string() }
            }
            StreamError::NotDeletable(stream) => Self::NotDeletable { stream },
            StreamError::Denied { reason, .. } => Self::Denied { reason },
            StreamError::Closed => Self::Closed,
            StreamError::Unsupported(error) => Self::from(&error),
            _ => Self::Internal,
        }
    }
}

impl From<&Unsupported> for Problem {
    fn from(error: &Unsupported) -> Self {
        Self::Unsupported { operation: error.operation.to_owned(), backend: error.backend.to_string() }
    }
}

impl From<&ConsumeError> for Problem {
    fn from(error: &ConsumeError) -> Self {
        match error.clone() {
            ConsumeError::NotConnected { server, reason } => Self::NotConnected { server, reason },
            ConsumeError::Gone { stream, consumer } => Self::NoConsumer { stream, consumer },
            ConsumeError::Denied { reason, .. } => Self::Denied { reason },
            ConsumeError::Closed => Self::Closed,
            _ => Self::Internal,
        }
    }
}

impl From<&PublishError> for Problem {
    fn from(error: &PublishError) -> Self {
        match error.clone() {
            PublishError::NotConnected { server, reason } => Self::NotConnected { server, reason },
            PublishError::OutcomeUnknown { server, waited } => {
                Self::OutcomeUnknown { server, waited_ms: super::millis(waited) }
            }
            // Whether it stays stored is what nobody knows.
            PublishError::NotReplicated { server, .. } => Self::OutcomeUnknown { server, waited_ms: 0 },
            PublishError::TooLarge { size, limit } => Self::TooLarge { size, limit },
            PublishError::Denied { reason, .. } => Self::Denied { reason },
            PublishError::Reserved(_) => Self::Denied { reason: error.to_string() },
            PublishError::Closed => Self::Closed,
            PublishError::Unsupported(error) => Self::from(&error),
            _ => Self::Internal,
        }
    }
}

impl ErrorJson {
    /// The error as operations on streams have it; `server` is who said it.
    pub fn into_stream_error(self, server: &str) -> StreamError {
        let Self { error, problem, .. } = self;
        let unclear = || StreamError::NotConnected { server: server.to_owned(), reason: error.clone() };
        match problem {
            Problem::NotConnected { server, reason } => StreamError::NotConnected { server, reason },
            Problem::NoStream { stream } => StreamError::NoStream(stream),
            Problem::BadName { name } => StreamError::BadName(name),
            Problem::NoSubjects { stream } => StreamError::NoSubjects(stream),
            Problem::Overlap { stream, pattern, other, other_pattern } => {
                match (pattern.parse(), other_pattern.parse()) {
                    (Ok(pattern), Ok(other_pattern)) => {
                        StreamError::Overlap { stream, pattern, other, other_pattern }
                    }
                    _ => unclear(),
                }
            }
            Problem::Conflict { what, found, wanted } => StreamError::Conflict { what, found, wanted },
            Problem::ForeignOffset { offset } => match offset.parse() {
                Ok(offset) => StreamError::ForeignOffset(offset),
                Err(_) => unclear(),
            },
            Problem::OffsetAhead { stream, offset, last } => match (offset.parse(), last.parse()) {
                (Ok(offset), Ok(last)) => StreamError::OffsetAhead { stream, offset, last },
                _ => unclear(),
            },
            Problem::NotDeletable { stream } => StreamError::NotDeletable(stream),
            Problem::Closed => StreamError::Closed,
            Problem::Unsupported { backend, .. } => StreamError::Unsupported(Unsupported {
                operation: "what was asked for",
                backend: kind(&backend),
            }),
            _ => unclear(),
        }
    }

    /// The error as a publish has it; `server` is who said it.
    pub fn into_publish_error(self, server: &str) -> PublishError {
        match self.problem {
            Problem::NotConnected { server, reason } => PublishError::NotConnected { server, reason },
            Problem::OutcomeUnknown { server, waited_ms } => {
                PublishError::OutcomeUnknown { server, waited: Duration::from_millis(waited_ms) }
            }
            Problem::TooLarge { size, limit } => PublishError::TooLarge { size, limit },
            Problem::Closed => PublishError::Closed,
            Problem::Unsupported { backend, .. } => PublishError::Unsupported(Unsupported {
                operation: "publishing it with a deduplication id",
                backend: kind(&backend),
            }),
            // Refused before anything was published.
            _ => PublishError::NotConnected { server: server.to_owned(), reason: self.error },
        }
    }
}

/// The backend by its name in the configuration.
fn kind(name: &str) -> BackendKind {
    match name {
        "redis" => BackendKind::Redis,
        "nats" => BackendKind::Nats,
        _ => BackendKind::InMemory,
    }
}
