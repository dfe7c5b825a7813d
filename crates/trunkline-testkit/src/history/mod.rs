//! What happened on a bus, as those who used it saw it: recorded while it happens, checked when it is over.
//!
//! The record is made at the rim, of calls and their answers, never of what a backend believes. Each entry has
//! a tick, which orders it among all others, and the time since the start. What a call covers is bounded by the
//! entry made before it and the one made after its answer, so that a check never blames a backend for what a
//! scheduler did.

mod check;
mod consumer;
mod handled;
mod live;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use trunkline::backend::{Settle, Settled};
use trunkline::redelivery::DeadReason;
use trunkline::{Pattern, StreamOffset, Subject};

pub use check::{Expectations, Violation, check};

/// Names a published message: who published it, and the how-manyth of theirs it is, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// Who published it.
    pub publisher: u32,
    /// The how-manyth of this publisher.
    pub number: u32,
}

impl MessageId {
    /// The payload of the message with this id.
    pub fn to_payload(self) -> String {
        format!("{}:{}", self.publisher, self.number)
    }

    /// Reads a payload that [`MessageId::to_payload`] wrote.
    pub fn from_payload(payload: &[u8]) -> Option<Self> {
        let (publisher, number) = std::str::from_utf8(payload).ok()?.split_once(':')?;
        Some(Self { publisher: publisher.parse().ok()?, number: number.parse().ok()? })
    }
}

/// What a publisher was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Kept at this offset.
    Stored(StreamOffset),
    /// Accepted, and a flush after it proved receipt.
    Received,
    /// The outcome is unknown: it may come, or not.
    Unknown,
    /// Refused: it must never come.
    Refused,
}

/// What was seen of one member's settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The backend answered.
    Known(Settled),
    /// The call failed: it may have counted, or not.
    Unknown,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A publisher is about to publish.
    Publishing {
        /// The message.
        id: MessageId,
        /// Where to.
        subject: Subject,
    },
    /// A publisher was told the outcome.
    Published {
        /// The message.
        id: MessageId,
        /// The outcome.
        told: Told,
    },
    /// `subscribe` returned.
    Subscribed {
        /// The subscription.
        reader: u32,
        /// What to.
        pattern: Pattern,
        /// The queue group it shares with others of the same pattern.
        group: Option<u32>,
    },
    /// A subscription is about to end.
    Stopping {
        /// The subscription.
        reader: u32,
    },
    /// A subscription that was dropped, not stopped, is gone.
    Dropped {
        /// The subscription.
        reader: u32,
    },
    /// A stopped subscription has given everything. One that was dropped instead never gets here.
    Ended {
        /// The subscription.
        reader: u32,
    },
    /// A subscription gave a message.
    Received {
        /// The subscription.
        reader: u32,
        /// The message.
        id: MessageId,
    },
    /// A subscription reported a gap.
    Missed {
        /// The subscription.
        reader: u32,
        /// How many messages, where known.
        count: Option<u64>,
    },
    /// A member is about to fetch.
    Fetching {
        /// The member.
        member: u32,
    },
    /// A fetch failed or was dropped: deliveries may be lost until their lease ends.
    FetchAbandoned {
        /// The member.
        member: u32,
    },
    /// A member was given a delivery.
    Delivered {
        /// The member.
        member: u32,
        /// The message.
        id: MessageId,
        /// Where it is stored.
        offset: StreamOffset,
        /// Which delivery it is.
        attempt: u32,
    },
    /// A member is about to settle a delivery.
    Settling {
        /// The member.
        member: u32,
        /// The message.
        offset: StreamOffset,
        /// Which delivery of it.
        attempt: u32,
        /// How.
        how: Settle,
    },
    /// A settlement was answered, or failed.
    Settled {
        /// The member.
        member: u32,
        /// The message.
        offset: StreamOffset,
        /// Which delivery of it.
        attempt: u32,
        /// How.
        how: Settle,
        /// The answer.
        answer: Answer,
    },
    /// A member is about to leave, or to die: its leases may end from here on.
    Departing {
        /// The member.
        member: u32,
    },
    /// A handler of the bus ended well.
    Succeeded {
        /// The message.
        id: MessageId,
    },
    /// A dead letter of a message was found.
    DeadLettered {
        /// The message.
        id: MessageId,
        /// Why.
        reason: DeadReason,
    },
}

impl Event {
    /// The stored message that it is about, if it is about one.
    pub fn offset(&self) -> Option<StreamOffset> {
        match self {
            Self::Delivered { offset, .. } | Self::Settling { offset, .. } | Self::Settled { offset, .. } => {
                Some(*offset)
            }
            _ => None,
        }
    }
}

/// An event and when it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The time since the history began.
    pub at: Duration,
    /// What happened.
    pub event: Event,
}

/// A history under way. Shared by all who take part.
#[derive(Debug)]
pub struct History {
    start: Instant,
    /// The entries; their index is the tick. Held only to append one, so that time and tick agree in order.
    entries: Mutex<Vec<Entry>>,
}

impl History {
    /// A history that begins now.
    pub fn new() -> Self {
        Self { start: Instant::now(), entries: Mutex::new(Vec::new()) }
    }

    /// How long ago it was begun: what [`Entry::at`] counts from.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Records an event.
    pub fn record(&self, event: Event) {
        // Whoever panicked while recording has failed the test already.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(Entry { at: self.start.elapsed(), event });
    }

    /// What was recorded so far, in order.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}
