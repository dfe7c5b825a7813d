//! Streams, consumers, and the server itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use trunkline::StreamOffset;
use trunkline::backend::{
    ConsumerConfig, ConsumerInfo, ReadPage, Start, StoredMessage, StreamConfig, StreamInfo,
};

use super::message::StoredJson;
use super::{Unreadable, millis, parse, parse_time, time_text};

/// What a client has to know of a server before it does anything.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerJson {
    /// Version of the server.
    pub version: String,
    /// Where the messages are: `in_memory`, `redis` or `nats`.
    pub backend: String,
    /// First token of the platform's subjects.
    pub subject_root: String,
    /// Largest headers and payload together.
    pub max_payload: usize,
    /// Default of consumers.
    pub ack_wait_ms: u64,
    /// Default of consumers.
    pub max_deliver: u32,
    /// Default of consumers.
    pub backoff_ms: Vec<u64>,
    /// Where a new consumer starts unless it says so itself.
    pub initial_start: String,
}

/// `$`, `0-0` for the beginning, an offset after which to start, or a time.
pub fn show_start(start: Start) -> String {
    match start {
        Start::Beginning => "0-0".to_owned(),
        Start::After(offset) => offset.to_string(),
        Start::At(time) => time_text(time),
        _ => "$".to_owned(),
    }
}

/// Reads what [`show_start`] writes.
///
/// # Errors
/// Anything else.
pub fn parse_start(text: &str) -> Result<Start, Unreadable> {
    match text {
        "$" => Ok(Start::New),
        "0-0" => Ok(Start::Beginning),
        text if text.contains('T') => Ok(Start::At(parse_time("from", text)?)),
        text => {
            let allowed = "expected $, 0-0, an offset, or a time such as 2026-11-22T10:15:00Z";
            let offset: StreamOffset = text.parse().map_err(|_| Unreadable::new("from", text, allowed))?;
            Ok(Start::After(offset))
        }
    }
}

/// A stream as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamConfigJson {
    /// Its name.
    pub name: String,
    /// What it stores.
    pub subjects: Vec<String>,
    /// Limit of age.
    #[serde(default)]
    pub max_age_ms: Option<u64>,
    /// Limit of messages.
    #[serde(default)]
    pub max_messages: Option<u64>,
    /// Limit of bytes.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// Copies.
    #[serde(default = "one")]
    pub replicas: u8,
}

fn one() -> u8 {
    1
}

impl From<&StreamConfig> for StreamConfigJson {
    fn from(config: &StreamConfig) -> Self {
        Self {
            name: config.name.clone(),
            subjects: config.subjects.iter().map(ToString::to_string).collect(),
            max_age_ms: config.max_age.map(millis),
            max_messages: config.max_messages,
            max_bytes: config.max_bytes,
            replicas: config.replicas,
        }
    }
}

impl TryFrom<StreamConfigJson> for StreamConfig {
    type Error = Unreadable;

    fn try_from(json: StreamConfigJson) -> Result<Self, Unreadable> {
        let subjects = json.subjects.iter().map(|subject| parse("subjects", subject));
        Ok(Self {
            subjects: subjects.collect::<Result<_, _>>()?,
            max_age: json.max_age_ms.map(Duration::from_millis),
            max_messages: json.max_messages,
            max_bytes: json.max_bytes,
            replicas: json.replicas,
            name: json.name,
        })
    }
}

/// A stream as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamJson {
    /// Its configuration.
    #[serde(flatten)]
    pub config: StreamConfigJson,
    /// Messages kept.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Offset of the oldest one kept.
    pub first: Option<String>,
    /// Offset of the newest one ever stored.
    pub last: Option<String>,
    /// Names of its consumers.
    pub consumers: Vec<String>,
}

impl From<&StreamInfo> for StreamJson {
    fn from(info: &StreamInfo) -> Self {
        Self {
            config: StreamConfigJson::from(&info.config),
            messages: info.messages,
            bytes: info.bytes,
            first: info.first.map(|offset| offset.to_string()),
            last: info.last.map(|offset| offset.to_string()),
            consumers: info.consumers.clone(),
        }
    }
}

impl TryFrom<StreamJson> for StreamInfo {
    type Error = Unreadable;

    fn try_from(json: StreamJson) -> Result<Self, Unreadable> {
        Ok(Self {
            config: json.config.try_into()?,
            messages: json.messages,
            bytes: json.bytes,
            first: json.first.as_deref().map(|offset| parse("first", offset)).transpose()?,
            last: json.last.as_deref().map(|offset| parse("last", offset)).transpose()?,
            consumers: json.consumers,
        })
    }
}

/// Some of the streams, by name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamsJson {
    /// The streams.
    pub streams: Vec<StreamJson>,
    /// How many there are in all.
    pub total: usize,
}

/// A page of a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageJson {
    /// The messages in order.
    pub messages: Vec<StoredJson>,
    /// Where the next page starts.
    pub next: String,
    /// Nothing more was there.
    pub end: bool,
    /// Messages that limits had already removed.
    pub missed: u64,
}

impl From<&ReadPage> for PageJson {
    fn from(page: &ReadPage) -> Self {
        Self {
            messages: page.messages.iter().map(StoredJson::from).collect(),
            next: show_start(page.next),
            end: page.end,
            missed: page.missed,
        }
    }
}

impl TryFrom<PageJson> for ReadPage {
    type Error = Unreadable;

    fn try_from(json: PageJson) -> Result<Self, Unreadable> {
        let messages = json.messages.into_iter().map(StoredMessage::try_from);
        Ok(Self {
            messages: messages.collect::<Result<_, _>>()?,
            next: parse_start(&json.next)?,
            end: json.end,
            missed: json.missed,
        })
    }
}

/// Asks to remove single messages.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteMessages {
    /// At most [`DELETE_MAX`](super::DELETE_MAX).
    pub offsets: Vec<String>,
}

/// How many were removed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deleted {
    /// So many.
    pub deleted: u64,
}

/// A consumer as it should be; its name stands in the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerConfigJson {
    /// Where it starts when it is created.
    pub start: String,
    /// Longest time a delivery may stay unsettled.
    pub ack_wait_ms: u64,
    /// Only messages whose subject matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Order by key is wanted.
    #[serde(default)]
    pub keyed: bool,
}

impl From<&ConsumerConfig> for ConsumerConfigJson {
    fn from(config: &ConsumerConfig) -> Self {
        Self {
            start: show_start(config.start),
            ack_wait_ms: millis(config.ack_wait),
            filter: config.filter.as_ref().map(ToString::to_string),
            keyed: config.keyed,
        }
    }
}

impl ConsumerConfigJson {
    /// The configuration of the consumer of this name.
    ///
    /// # Errors
    /// A start or a filter that is none.
    pub fn named(self, name: String) -> Result<ConsumerConfig, Unreadable> {
        Ok(ConsumerConfig {
            name,
            start: parse_start(&self.start)?,
            ack_wait: Duration::from_millis(self.ack_wait_ms),
            filter: self.filter.as_deref().map(|filter| parse("filter", filter)).transpose()?,
            keyed: self.keyed,
        })
    }
}

/// A consumer as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerJson {
    /// Its name.
    pub name: String,
    /// Its stream.
    pub stream: String,
    /// Its configuration.
    #[serde(flatten)]
    pub config: ConsumerConfigJson,
    /// The newest message ever handed out.
    pub delivered: Option<String>,
    /// Everything up to here is settled.
    pub ack_floor: Option<String>,
    /// Messages handed out and not settled.
    pub pending: u64,
    /// Messages never handed out.
    pub lag: u64,
    /// Deliveries that were repeats.
    pub redelivered: u64,
    /// Messages removed before they were settled.
    pub missed: u64,
    /// Members now.
    pub members: u64,
    /// For how long the oldest pending delivery has been pending.
    pub oldest_pending_ms: Option<u64>,
}

impl ConsumerJson {
    /// The consumer of a stream.
    pub fn new(stream: &str, info: &ConsumerInfo) -> Self {
        Self {
            name: info.config.name.clone(),
            stream: stream.to_owned(),
            config: ConsumerConfigJson::from(&info.config),
            delivered: info.delivered.map(|offset| offset.to_string()),
            ack_floor: info.ack_floor.map(|offset| offset.to_string()),
            pending: info.pending,
            lag: info.lag,
            redelivered: info.redelivered,
            missed: info.missed,
            members: info.members,
            oldest_pending_ms: info.oldest_pending.map(millis),
        }
    }
}

impl TryFrom<ConsumerJson> for ConsumerInfo {
    type Error = Unreadable;

    fn try_from(json: ConsumerJson) -> Result<Self, Unreadable> {
        let offset = |field, text: Option<String>| text.as_deref().map(|o| parse(field, o)).transpose();
        Ok(Self {
            config: json.config.named(json.name)?,
            delivered: offset("delivered", json.delivered)?,
            ack_floor: offset("ackFloor", json.ack_floor)?,
            pending: json.pending,
            lag: json.lag,
            redelivered: json.redelivered,
            missed: json.missed,
            members: json.members,
            oldest_pending: json.oldest_pending_ms.map(Duration::from_millis),
        })
    }
}

/// The consumers of a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumersJson {
    /// Some of them, by name.
    pub consumers: Vec<ConsumerJson>,
    /// How many there are in all.
    pub total: usize,
}

/// A member that the server holds for a client.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// What to ask for it by.
    pub member: String,
    /// Its name in the consumer.
    pub name: String,
    /// After so long without a request it is dropped.
    pub expires_ms: u64,
}
