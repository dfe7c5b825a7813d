//! Dead letters: listed, and sent back to work.

use serde::{Deserialize, Serialize};
use trunkline::DeadLetter;

use super::message::MessageJson;
use super::time_text;

/// Most dead letters of one page.
pub const DEAD_LETTERS_MAX: usize = 200;
/// Most dead letters that one request sends back.
pub const REDRIVE_MAX: usize = 1000;

/// A page of dead letters, oldest first; the answer of `GET /api/v1/dead-letters`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLettersJson {
    /// The stream that keeps them; absent before there was one.
    pub stream: Option<String>,
    /// All that are there, whatever was asked for.
    pub total: u64,
    /// The page.
    pub letters: Vec<DeadLetterJson>,
    /// Where the next page starts.
    pub next: String,
    /// Nothing more was there.
    pub end: bool,
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterJson {
    /// Where it stands among the dead letters.
    pub offset: String,
    /// When it was written.
    pub time: String,
    /// Why: `max_deliver`, `rejected` or `expired`.
    pub reason: String,
    /// Deliveries until then.
    pub attempts: u32,
    /// The stream it came from.
    pub stream: String,
    /// The consumer that could not handle it.
    pub consumer: String,
    /// Where it stood in its stream.
    pub original_offset: Option<String>,
    /// Where it had been published.
    pub original_subject: String,
    /// The dead letter as it is stored; left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageJson>,
}

impl DeadLetterJson {
    /// Of a list.
    pub fn line(letter: &DeadLetter) -> Self {
        Self {
            offset: letter.offset.to_string(),
            time: time_text(letter.time),
            reason: letter.reason.clone(),
            attempts: letter.attempts,
            stream: letter.stream.clone(),
            consumer: letter.consumer.clone(),
            original_offset: letter.original.map(|offset| offset.to_string()),
            original_subject: letter.subject.to_string(),
            message: None,
        }
    }

    /// With body and headers.
    pub fn whole(letter: &DeadLetter) -> Self {
        Self { message: Some(MessageJson::from(&*letter.message)), ..Self::line(letter) }
    }
}

/// Which dead letters are to be sent back: these, or those of a stream or a consumer, or all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Redrive {
    /// These; at most [`REDRIVE_MAX`].
    #[serde(default)]
    pub offsets: Vec<String>,
    /// Without offsets: only those of this stream.
    #[serde(default)]
    pub stream: Option<String>,
    /// Without offsets: only those of consumers with this name.
    #[serde(default)]
    pub consumer: Option<String>,
    /// Without offsets, stream and consumer: all.
    #[serde(default)]
    pub all: bool,
    /// Without offsets: none that stands after this one, so that nothing goes that nobody has seen.
    #[serde(default)]
    pub until: Option<String>,
}

/// What became of dead letters that were to be sent back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedriveJson {
    /// Those that are back at work.
    pub redriven: Vec<RedrivenJson>,
    /// Those that are not.
    pub failed: Vec<NotRedrivenJson>,
    /// There were more than one request sends back.
    pub more: bool,
}

/// A dead letter that is back at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedrivenJson {
    /// Where it stood.
    pub dead_letter: String,
    /// The stream that has it again.
    pub stream: String,
    /// Where it stands there.
    pub offset: Option<String>,
    /// Its subject.
    pub subject: String,
}

/// A dead letter that was not sent back, or may be back and dead at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotRedrivenJson {
    /// Where it stands.
    pub dead_letter: String,
    /// Why, with its causes.
    pub error: String,
}
