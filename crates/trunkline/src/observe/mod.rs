//! What is seen of messages: who sent what to whom, when, at which attempt, and what came of it.
//!
//! [`Observation`] is one such fact. The admin API serves them as JSON, `trunkline trace` and the dashboard draw them, and
//! where no server sees the messages themselves the bus libraries publish them on `{root}.system.trace`. Seeing never
//! changes what is delivered.

mod observation;
mod summary;

pub use observation::{Body, Observation, Outcome, What};
pub use summary::{ConversationList, ConversationRecord, ConversationState, ConversationSummary};
