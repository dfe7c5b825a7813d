//! Trunkline: one message bus for AI-agent platforms, over memory, Redis Streams or NATS.

pub mod backend;
pub mod bus;
pub mod config;
pub mod envelope;
pub mod status;
pub mod telemetry;
pub mod topics;

pub use bus::connect::ConnectError;
pub use bus::consume::{Consumer, ConsumerBuilder, ConsumerError, Delivered, Key, Pulled, Puller};
pub use bus::context::Context;
pub use bus::handler::{BoxError, Failure, HandlerError, Retry};
pub use bus::received::Received;
pub use bus::request::RequestError;
pub use bus::request_stream::{RawReplyStream, ReplyStream, StreamReplyError};
pub use bus::respond::{Reply, ReplySink, Request, RespondError, Responder, SinkError};
pub use bus::stream::{Replay, Replayed, StreamHandle};
pub use bus::subscribe::{Event, Subscription};
pub use bus::{Bus, BusOptions, BusStatus};
pub use envelope::{DecodeError, Envelope, Payload, Trace};
pub use telemetry::{Counters, Telemetry};
pub use topics::{Topic, Topics};
pub use trunkline_core::{
    HeaderError, Headers, Message, OffsetError, Pattern, StreamOffset, Subject, SubjectError, Token,
    redelivery,
};
