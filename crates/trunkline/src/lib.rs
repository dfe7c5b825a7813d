//! Trunkline: one message bus for AI-agent platforms, over memory, Redis Streams or NATS.
//!
//! Channels, gateways, LLM proxies, tools, skills and workers talk through a [`Bus`]: they publish and subscribe, request
//! and respond, stream replies chunk by chunk, and consume stored work with retry and dead letters. In one process it needs
//! no server; with another configuration the same code runs on one. What each backend guarantees stands in the table on
//! [`backend::Backend`].
//!
//! ```
//! use trunkline::topics::payload::{ToolCall, ToolResult};
//! use trunkline::{Bus, Delivered, Event, Key, Start};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bus = Bus::in_memory(); // or Bus::connect(Config::load()?).await?
//! let search = bus.topics().tool("search")?;
//!
//! // Answer requests, 32 at a time, sharing them with the other members of the group.
//! let answer = async |_request, call: ToolCall| Ok(ToolResult { output: call.arguments, ..Default::default() });
//! let _responder = bus.respond(search.call(), answer).queue("search").start().await?;
//!
//! // Store every result, and work through them in the order of each conversation.
//! let audit = bus.stream("audit")?;
//! audit.ensure(vec![bus.topics().pattern("tool.*.result")?]).await?;
//! let archive = async |delivered: Delivered| delivered.decode::<ToolResult>().map(drop);
//! let siem = audit.consumer("siem")?.start(Start::Beginning).ordered_by(Key::Conversation);
//! let _consumer = siem.spawn(archive).await?;
//!
//! // Watch live, call the tool, publish a copy of its result.
//! let mut results = bus.subscribe(search.result().pattern()).await?;
//! let call = ToolCall { arguments: "weather in Oslo".into(), ..Default::default() };
//! let result = bus.request(search.call(), &call).conversation("c-42").await?;
//! bus.publish(search.result(), &result).conversation("c-42").await?;
//! let Some(Event::Message(received)) = results.next().await else { return Err("no message".into()) };
//! assert_eq!(received.decode::<ToolResult>()?.output, "weather in Oslo");
//! bus.drain(std::time::Duration::from_secs(5)).await?;
//! # Ok(()) }
//! ```

pub mod backend;
pub mod bus;
pub mod config;
pub mod envelope;
pub mod health;
pub mod memory;
pub mod observe;
pub mod status;
pub mod telemetry;
pub mod topics;

pub use backend::{
    ConsumeError, DrainError, Gap, PublishError, PublishOptions, Receipt, Start, StreamConfig, StreamError,
    SubscribeError, Unsupported,
};
pub use bus::connect::{ConnectError, Front};
pub use bus::consume::{Consumer, ConsumerBuilder, ConsumerError, Delivered, Key, Pulled, Puller};
pub use bus::context::Context;
pub use bus::dead_letters::{DeadLetter, DeadLetterFilter, DeadLetterPage, DeadLetters, RedriveError};
pub use bus::handler::{BoxError, Failure, HandlerError, Retry};
pub use bus::received::Received;
pub use bus::request::RequestError;
pub use bus::request_stream::{RawReplyStream, ReplyStream, StreamReplyError};
pub use bus::respond::{PROBE_HEADER, Reply, ReplySink, Request, RespondError, Responder, SinkError};
pub use bus::spans::Tracer;
pub use bus::stream::{Replay, Replayed, StreamHandle};
pub use bus::subscribe::{Event, Subscription};
pub use bus::{Bus, BusOptions, BusStatus};
pub use envelope::{DecodeError, Envelope, Payload, Trace};
pub use memory::{MemoryBudget, MemoryExhausted};
pub use opentelemetry;
pub use telemetry::{Counters, Telemetry};
pub use topics::{Topic, Topics};
pub use trunkline_core::{
    HeaderError, Headers, Message, OffsetError, Pattern, StreamOffset, Subject, SubjectError, Token,
    redelivery,
};
