//! What is seen of messages: who sent what to whom, when, at which attempt, and what came of it.
//!
//! [`Observation`] is one such fact. The admin API serves them as JSON, `trunkline trace` and the dashboard draw them, and
//! where no server sees the messages themselves the bus libraries publish them on `{root}.system.trace`. Seeing never
//! changes what is delivered.
//!
//! [`Observer`] has the record of a process. Taps and buses hand over raw bytes and go on ([`Batch`]); one task reads them,
//! finds out to which conversation they belong, hides what is to be hidden, and keeps them within a bound.

mod batch;
mod collect;
mod conversation;
mod cut_off;
mod filter;
mod kept;
mod lately;
mod observation;
mod observer;
mod options;
mod record;
mod redact;
mod reports;
mod sighting;
mod summary;
mod witness;

pub use batch::{Batch, RawMessage, Receiver};
pub use collect::collect;
pub use cut_off::CutOff;
pub use filter::{ConversationFilter, ObservationFilter};
pub use observation::{Body, Observation, Outcome, What};
pub use observer::{Followed, Follower, Observer, Published, Report};
pub use options::ObserveOptions;
pub(crate) use reports::Reports;
pub use summary::{ConversationList, ConversationRecord, ConversationState, ConversationSummary};
pub use witness::Handling;
pub(crate) use witness::Witness;
