//! Conversations as lists and pages show them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Observation;

/// One conversation in a line: what `GET /api/v1/conversations` lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConversationSummary {
    /// Its id: `conversationId`, or the correlation id of messages that have none.
    pub id: String,
    /// When it was first seen.
    pub first: Timestamp,
    /// When it was last seen.
    pub last: Timestamp,
    /// Messages published in it.
    pub messages: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// How it stands.
    pub state: ConversationState,
    /// Everybody who published, was given or handled something, in the order in which they appeared.
    pub participants: Vec<String>,
    /// Personas, tools and skills that were named.
    pub personas: Vec<String>,
    /// Tools that were named.
    pub tools: Vec<String>,
    /// Skills that were named.
    pub skills: Vec<String>,
    /// Deliveries after the first of their message.
    pub retries: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Gaps.
    pub gaps: u64,
    /// Requests that found nobody, and errors as answers.
    pub errors: u64,
    /// Observations of it that the record no longer has, or never had.
    pub omitted: u64,
}

/// How a conversation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum ConversationState {
    /// Something is still expected: a request without answer, a delivery that comes again.
    Open,
    /// Nothing is.
    Quiet,
    /// A message of it became a dead letter, or found nobody, and nothing came after.
    Failed,
}

/// Conversations, the one seen last first: the answer of `GET /api/v1/conversations`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConversationList {
    /// Whether anything is recorded at all (`observe.enabled`).
    pub enabled: bool,
    /// The page.
    pub conversations: Vec<ConversationSummary>,
    /// Conversations that the record has in all.
    pub total: u64,
    /// Messages that were not recorded because there were more than the record takes.
    pub not_recorded: u64,
}

/// One conversation whole: the answer of `GET /api/v1/conversations/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConversationRecord {
    /// Its line in the list.
    pub summary: ConversationSummary,
    /// What was seen, in the order of `seq`.
    pub observations: Vec<Observation>,
}
