//! One fact about one message.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Something that was seen on the bus. In JSON its fields have the names of the envelope's (`correlationId`), absent ones
/// are left out, and what happened is the field `what`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observation {
    /// Running number within the record that holds it, in the order in which it was seen; 0 before that. A record begins with
    /// the time at which it was made, in microseconds since 1970, so that numbers grow also over a new start.
    #[serde(default)]
    pub seq: u64,
    /// When it happened, to the microsecond; of a handler when it began.
    pub time: Timestamp,
    /// What happened.
    pub what: What,
    /// The message's subject; of a dead letter the subject of the original.
    pub subject: String,
    /// Where its answer is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// Who published it: the envelope's `source`, or the name that the client gave when it connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Who was given it, or who handled it: names of components, clients or consumers. Each name once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// The envelope's `id`. Several observations of one message have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The envelope's `type`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Shared by all messages of one chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Id of the message that caused this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<String>,
    /// The conversation. A reply without one of its own has its request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<String>,
    /// The persona that speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persona_id: Option<String>,
    /// The tool at work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_id: Option<String>,
    /// The skill at work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skill_id: Option<String>,
    /// The W3C trace, 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Bytes of headers and body together.
    #[serde(default)]
    pub size: u64,
    /// What it carried, unless it was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Body>,
    /// The stream that stored it, or from which it was delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// The consumer that it was delivered to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Its offset in the stream, as printed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<String>,
    /// Which delivery of it, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// How handling it ended; of an answer that was published, whether it is one or an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// From its publication to the start of its handler, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_us: Option<u64>,
    /// How long its handler ran, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
    /// Why: the handler's error, the reason of a dead letter, or of a gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Messages that a gap left out, where their number is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
}

impl Observation {
    /// That something happened at a time, cut to the microsecond, to a message of a subject; nothing else is known yet.
    pub fn new(what: What, time: Timestamp, subject: impl Into<String>) -> Self {
        Self {
            seq: 0,
            time: Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time),
            what,
            subject: subject.into(),
            reply: None,
            from: None,
            to: Vec::new(),
            id: None,
            kind: None,
            correlation_id: None,
            causation_id: None,
            conversation_id: None,
            persona_id: None,
            tool_id: None,
            skill_id: None,
            trace_id: None,
            size: 0,
            body: None,
            stream: None,
            consumer: None,
            offset: None,
            attempt: None,
            outcome: None,
            waited_us: None,
            took_us: None,
            reason: None,
            missed: None,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum What {
    /// A message was published; `to` are those it was given to at once.
    Published,
    /// A delivery was handled; `attempt`, `outcome`, `waitedUs` and `tookUs` tell how.
    Handled,
    /// A dead letter was written; `reason` and `attempt` tell why.
    DeadLettered,
    /// A dead letter was published again.
    Redriven,
    /// A request found nobody.
    NoResponders,
    /// Somebody was not given what they asked for; `missed` and `reason` tell how much and why.
    Gap,
}

impl What {
    /// Whether a tap that sees the messages themselves sees it, too.
    pub(super) fn is_of_the_message(self) -> bool {
        matches!(self, Self::Published | Self::DeadLettered | Self::Redriven | Self::NoResponders)
    }
}

/// How handling a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Outcome {
    /// It succeeded, and was acknowledged where that applies.
    Acked,
    /// It failed and comes again.
    Nacked,
    /// It failed for good.
    Terminated,
    /// It was cancelled, or its lease was lost.
    Cancelled,
    /// A request was answered.
    Answered,
    /// A request was answered with an error.
    AnsweredError,
}

/// What a message carried. Fields named in `observe.redact` are replaced by `"***"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Body {
    /// The envelope's payload, or a body that is JSON.
    Json(Value),
    /// A body that is UTF-8.
    Text(String),
    /// Anything else.
    Base64(String),
    /// It is larger than the record keeps, or its place in the record was needed; so many bytes.
    Omitted(u64),
}
