//! Messages, deliveries and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use trunkline::backend::{AckToken, Delivery, Fetched, Lease, Receipt, Settle, Settled, StoredMessage};
use trunkline::{Headers, Message};

use super::{Unreadable, millis, parse, parse_time, time_text};

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageJson {
    /// Where it was published.
    pub subject: String,
    /// Where an answer goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// Names and values in their order; a name may come several times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// The body.
    pub payload_base64: String,
}

impl From<&Message> for MessageJson {
    fn from(message: &Message) -> Self {
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            subject: message.subject.to_string(),
            reply: message.reply.as_ref().map(ToString::to_string),
            headers: message.headers.iter().map(pair).collect(),
            payload_base64: BASE64.encode(&message.payload),
        }
    }
}

impl TryFrom<MessageJson> for Message {
    type Error = Unreadable;

    fn try_from(json: MessageJson) -> Result<Self, Unreadable> {
        let mut headers = Headers::new();
        for (name, value) in json.headers {
            let added = headers.append(name.clone(), value);
            added.map_err(|error| Unreadable::new("headers", name, error))?;
        }
        let payload = BASE64
            .decode(&json.payload_base64)
            .map_err(|error| Unreadable::new("payloadBase64", shortened(&json.payload_base64), error))?;
        Ok(Self {
            subject: parse("subject", &json.subject)?,
            reply: json.reply.as_deref().map(|reply| parse("reply", reply)).transpose()?,
            headers,
            payload: payload.into(),
        })
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(32).collect()
}

/// A message of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredJson {
    /// Where it stands.
    pub offset: String,
    /// When it was stored.
    pub time: String,
    /// The message.
    #[serde(flatten)]
    pub message: MessageJson,
}

impl From<&StoredMessage> for StoredJson {
    fn from(stored: &StoredMessage) -> Self {
        Self {
            offset: stored.offset.to_string(),
            time: time_text(stored.time),
            message: MessageJson::from(&*stored.message),
        }
    }
}

impl TryFrom<StoredJson> for StoredMessage {
    type Error = Unreadable;

    fn try_from(json: StoredJson) -> Result<Self, Unreadable> {
        Ok(Self {
            offset: parse("offset", &json.offset)?,
            time: parse_time("time", &json.time)?,
            message: Arc::new(json.message.try_into()?),
        })
    }
}

/// A publish: the message, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Publish {
    /// The message.
    #[serde(flatten)]
    pub message: MessageJson,
    /// Suppress a second message with this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_id: Option<String>,
    /// Longest wait for the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// What a publish came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "receipt", rename_all = "camelCase")]
pub enum ReceiptJson {
    /// Handed on; no stream keeps it.
    Accepted,
    /// Kept by a stream.
    Stored {
        /// The stream.
        stream: String,
        /// Where it stands.
        offset: String,
        /// It is the earlier message with the same deduplication id.
        duplicate: bool,
    },
    /// Kept until the backend is back.
    Queued,
}

impl From<Receipt> for ReceiptJson {
    fn from(receipt: Receipt) -> Self {
        match receipt {
            Receipt::Stored { stream, offset, duplicate } => {
                Self::Stored { stream, offset: offset.to_string(), duplicate }
            }
            Receipt::Queued => Self::Queued,
            _ => Self::Accepted,
        }
    }
}

impl TryFrom<ReceiptJson> for Receipt {
    type Error = Unreadable;

    fn try_from(json: ReceiptJson) -> Result<Self, Unreadable> {
        Ok(match json {
            ReceiptJson::Accepted => Self::Accepted,
            ReceiptJson::Queued => Self::Queued,
            ReceiptJson::Stored { stream, offset, duplicate } => {
                Self::Stored { stream, offset: parse("offset", &offset)?, duplicate }
            }
        })
    }
}

/// A fetch: at most how many deliveries, and how long to wait for the first.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fetch {
    /// At most so many; [`FETCH_MAX`](super::FETCH_MAX) is the bound.
    pub max: usize,
    /// So long; [`FETCH_WAIT_MAX`](super::FETCH_WAIT_MAX) is the bound.
    pub wait_ms: u64,
}

/// A delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryJson {
    /// Which delivery of the message it is, from 1.
    pub attempt: u32,
    /// JetStream's ack subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_subject: Option<String>,
    /// The message.
    #[serde(flatten)]
    pub stored: StoredJson,
}

/// What a fetch brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchedJson {
    /// The deliveries.
    pub deliveries: Vec<DeliveryJson>,
    /// Messages that limits removed before they could be settled.
    pub missed: u64,
}

impl From<&Fetched> for FetchedJson {
    fn from(fetched: &Fetched) -> Self {
        let delivery = |delivery: &Delivery| DeliveryJson {
            attempt: delivery.attempt,
            ack_subject: delivery.token.ack_subject.as_ref().map(ToString::to_string),
            stored: StoredJson {
                offset: delivery.offset.to_string(),
                time: time_text(delivery.time),
                message: MessageJson::from(&*delivery.message),
            },
        };
        Self { deliveries: fetched.deliveries.iter().map(delivery).collect(), missed: fetched.missed }
    }
}

impl TryFrom<FetchedJson> for Fetched {
    type Error = Unreadable;

    fn try_from(json: FetchedJson) -> Result<Self, Unreadable> {
        let delivery = |json: DeliveryJson| {
            let ack_subject = json.ack_subject.as_deref().map(|s| parse("ackSubject", s)).transpose()?;
            let StoredMessage { offset, time, message } = json.stored.try_into()?;
            let token = AckToken { offset, attempt: json.attempt, ack_subject };
            Ok(Delivery { message, offset, time, attempt: json.attempt, token })
        };
        let deliveries = json.deliveries.into_iter().map(delivery).collect::<Result<_, _>>()?;
        Ok(Self { deliveries, missed: json.missed })
    }
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "settle", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum SettleJson {
    /// Done.
    Ack,
    /// Deliver again after the delay.
    Nak {
        /// The delay.
        delay_ms: u64,
    },
    /// Never deliver again.
    Term,
    /// Still at work.
    Progress,
}

/// One settlement.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettlementJson {
    /// Which message.
    pub offset: String,
    /// Which delivery of it.
    pub attempt: u32,
    /// JetStream's ack subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_subject: Option<String>,
    /// What becomes of it.
    #[serde(flatten)]
    pub settle: SettleJson,
}

impl From<&(AckToken, Settle)> for SettlementJson {
    fn from((token, settle): &(AckToken, Settle)) -> Self {
        let settle = match settle {
            Settle::Ack => SettleJson::Ack,
            Settle::Nak(delay) => SettleJson::Nak { delay_ms: millis(*delay) },
            Settle::Term => SettleJson::Term,
            Settle::Progress => SettleJson::Progress,
        };
        Self {
            offset: token.offset.to_string(),
            attempt: token.attempt,
            ack_subject: token.ack_subject.as_ref().map(ToString::to_string),
            settle,
        }
    }
}

impl TryFrom<SettlementJson> for (AckToken, Settle) {
    type Error = Unreadable;

    fn try_from(json: SettlementJson) -> Result<Self, Unreadable> {
        let ack_subject = json.ack_subject.as_deref().map(|s| parse("ackSubject", s)).transpose()?;
        let token = AckToken { offset: parse("offset", &json.offset)?, attempt: json.attempt, ack_subject };
        let settle = match json.settle {
            SettleJson::Ack => Settle::Ack,
            SettleJson::Nak { delay_ms } => Settle::Nak(Duration::from_millis(delay_ms)),
            SettleJson::Term => Settle::Term,
            SettleJson::Progress => Settle::Progress,
        };
        Ok((token, settle))
    }
}

/// Settlements; the answer has one `true` for each that counted and one `false` for each whose lease was lost, in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settlements {
    /// At most [`SETTLE_MAX`](super::SETTLE_MAX).
    pub settlements: Vec<SettlementJson>,
}

/// The answer to [`Settlements`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettledJson {
    /// Whether each counted.
    pub settled: Vec<bool>,
}

impl From<Vec<Settled>> for SettledJson {
    fn from(settled: Vec<Settled>) -> Self {
        Self { settled: settled.into_iter().map(|settled| settled == Settled::Done).collect() }
    }
}

impl From<SettledJson> for Vec<Settled> {
    fn from(json: SettledJson) -> Self {
        let settled = |counted| if counted { Settled::Done } else { Settled::LeaseLost };
        json.settled.into_iter().map(settled).collect()
    }
}

/// Asks for the lease of a keyed consumer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseRequest {
    /// For how long.
    pub ttl_ms: u64,
}

/// Whether a member is the active one of a keyed consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "lease", rename_all = "camelCase")]
pub enum LeaseJson {
    /// It is.
    Held {
        /// It was not before.
        new: bool,
    },
    /// Another member is.
    Standby,
}

impl From<Lease> for LeaseJson {
    fn from(lease: Lease) -> Self {
        match lease {
            Lease::Held { new } => Self::Held { new },
            Lease::Standby => Self::Standby,
        }
    }
}

impl From<LeaseJson> for Lease {
    fn from(json: LeaseJson) -> Self {
        match json {
            LeaseJson::Held { new } => Self::Held { new },
            LeaseJson::Standby => Self::Standby,
        }
    }
}
