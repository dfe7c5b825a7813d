//! What `up` and the guardian of a component say to each other, over a socket that is the guardian's stdin.
//!
//! Orders are single bytes. Reports are lines of JSON. That the socket ends means that the other has gone.

use serde::{Deserialize, Serialize};

/// What a guardian is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Ask the component to end.
    Terminate,
    /// End it with all that it started.
    Kill,
}

impl Order {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Terminate => b't',
            Self::Kill => b'k',
        }
    }

    pub(super) fn of(byte: u8) -> Option<Self> {
        [Self::Terminate, Self::Kill].into_iter().find(|order| order.byte() == byte)
    }
}

/// What a guardian tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// The component runs.
    Started { pid: u32 },
    /// It could not be run.
    NotStarted { reason: String },
    /// It has ended, and with it everything that it had started.
    Ended { code: Option<i32>, signal: Option<i32> },
}
