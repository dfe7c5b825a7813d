//! Trunkline: one message bus for AI-agent platforms, over memory, Redis Streams or NATS.

pub mod backend;
pub mod config;
pub mod status;

pub use trunkline_core::{
    HeaderError, Headers, Message, OffsetError, Pattern, StreamOffset, Subject, SubjectError, Token,
    redelivery,
};
