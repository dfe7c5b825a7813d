//! Subjects, patterns, messages, routing and redelivery decisions of the Trunkline bus.
//!
//! What lives here is decided by values alone: nothing in this crate opens a socket, reads a clock, draws
//! a random number or knows an async runtime. Backends and the server call it and do the acting.

pub mod gradual;
pub mod headers;
pub mod message;
pub mod offset;
pub mod redelivery;
pub mod router;
pub mod subject;

pub use gradual::GradualTable;
pub use headers::{HeaderError, Headers};
pub use message::Message;
pub use offset::{OffsetError, StreamOffset};
pub use router::{MatchCache, MatchSet, Role, Router, SubscriptionId};
pub use subject::{Pattern, Subject, SubjectError, Token};
