//! The flags that make a message: headers, and an envelope with its trace around the payload.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use trunkline::{Envelope, HeaderError, Headers, Payload, Trace};

use crate::failure::{Explain, Failure, Kind};
use crate::payload::PayloadArgs;

/// A header as `NAME:VALUE`.
#[derive(Debug, Clone)]
pub(crate) struct HeaderArg {
    name: String,
    value: String,
}

impl FromStr for HeaderArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').ok_or("expected NAME:VALUE")?;
        let header = Self { name: name.trim().to_owned(), value: value.trim().to_owned() };
        Headers::new()
            .append(header.name.clone(), header.value.clone())
            .map_err(|error| error.to_string())?;
        Ok(header)
    }
}

impl HeaderArg {
    /// Adds it.
    ///
    /// # Errors
    /// None in practice: what could not be added was refused when it was read.
    pub(crate) fn append_to(&self, headers: &mut Headers) -> Result<(), HeaderError> {
        headers.append(self.name.clone(), self.value.clone())
    }
}

/// Payload, headers and envelope of a message.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct MessageArgs {
    #[command(flatten)]
    payload: PayloadArgs,

    /// Add a header; may be given several times
    #[arg(id = "header", short = 'H', long, value_name = "NAME:VALUE")]
    headers: Vec<HeaderArg>,

    #[command(flatten)]
    envelope: EnvelopeArgs,
}

/// Heading of the flags below in the help; set on each, or it would go on over the flags that follow.
const ENVELOPE: &str = "Envelope (each of these wraps the payload in one)";

/// Envelope and trace. Each of these flags wraps the payload in an envelope.
#[derive(Debug, Clone, clap::Args)]
struct EnvelopeArgs {
    /// Wrap the payload in an envelope with a fresh id
    #[arg(help_heading = ENVELOPE, long)]
    envelope: bool,

    /// Type of the envelope [default: message]
    #[arg(help_heading = ENVELOPE, long = "type", value_name = "TYPE")]
    kind: Option<String>,

    /// Who sends it [default: cli]
    #[arg(help_heading = ENVELOPE, long, value_name = "NAME")]
    source: Option<String>,

    /// Conversation it belongs to
    #[arg(help_heading = ENVELOPE, long, value_name = "ID")]
    conversation: Option<String>,

    /// Persona that speaks
    #[arg(help_heading = ENVELOPE, long, value_name = "ID")]
    persona: Option<String>,

    /// Tool it is about
    #[arg(help_heading = ENVELOPE, long, value_name = "ID")]
    tool: Option<String>,

    /// Skill it is about
    #[arg(help_heading = ENVELOPE, long, value_name = "ID")]
    skill: Option<String>,

    /// Correlation id [default: the id of the envelope]
    #[arg(help_heading = ENVELOPE, long, value_name = "ID")]
    correlation: Option<String>,
}

/// A header that cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("a header cannot be sent")]
pub(crate) struct MessageError(#[from] HeaderError);

impl Explain for MessageError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        Some("give headers as NAME:VALUE".into())
    }
}

/// What is to be published, subject aside.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
    /// Id of the envelope, where there is one.
    pub(crate) id: Option<String>,
}

impl MessageArgs {
    /// Reads the payload and puts headers and envelope around it. Every call makes a fresh envelope id.
    ///
    /// # Errors
    /// A payload that cannot be read; see `PayloadError`.
    pub(crate) async fn read(&self, patience: Duration) -> Result<Content, Failure> {
        let body = self.payload.read(patience).await?;
        let mut headers = Headers::new();
        for header in &self.headers {
            header.append_to(&mut headers).map_err(MessageError)?;
        }
        Ok(match self.envelope.is_wanted() {
            false => Content { headers, payload: body, id: None },
            true => {
                let envelope = self.envelope.around(&body);
                Content { headers, payload: envelope.to_bytes(), id: Some(envelope.id) }
            }
        })
    }
}

impl EnvelopeArgs {
    fn is_wanted(&self) -> bool {
        let texts = [
            &self.kind,
            &self.source,
            &self.conversation,
            &self.persona,
            &self.tool,
            &self.skill,
            &self.correlation,
        ];
        self.envelope || texts.into_iter().any(Option::is_some)
    }

    /// JSON goes in as JSON, other text as a string, anything else as bytes.
    fn around(&self, body: &Bytes) -> Envelope {
        let payload = match (serde_json::from_slice::<Value>(body), std::str::from_utf8(body)) {
            (Ok(json), _) => Payload::Json(json),
            (Err(_), Ok("")) => Payload::Json(Value::Null),
            (Err(_), Ok(text)) => Payload::Json(text.into()),
            (Err(_), Err(_)) => Payload::Bytes(body.clone()),
        };
        let mut envelope = Envelope::new(self.kind.as_deref().unwrap_or("message"), Value::Null);
        envelope.payload = payload;
        envelope.source = Some(self.source.clone().unwrap_or_else(|| "cli".to_owned()));
        envelope.trace = Trace {
            conversation_id: self.conversation.clone(),
            persona_id: self.persona.clone(),
            tool_id: self.tool.clone(),
            skill_id: self.skill.clone(),
            ..Trace::default()
        };
        if let Some(correlation) = &self.correlation {
            envelope.correlation_id = Some(correlation.clone());
        }
        envelope
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        message: MessageArgs,
    }

    async fn content(arguments: &[&str]) -> Content {
        let line = Line::try_parse_from([&["x"], arguments].concat()).unwrap();
        line.message.read(Duration::from_secs(1)).await.unwrap()
    }

    #[tokio::test]
    async fn without_envelope_flags_the_payload_stays_as_it_is() {
        let plain = content(&["{\"a\" : 1}", "-H", "X-One: 1", "--header", "X-One:2"]).await;
        assert_eq!(plain.payload, "{\"a\" : 1}");
        assert_eq!(plain.id, None);
        assert_eq!(plain.headers.get_all("X-One").collect::<Vec<_>>(), ["1", "2"]);
    }

    #[tokio::test]
    async fn a_trace_flag_is_enough_for_an_envelope() {
        let wrapped =
            content(&["{\"a\":1}", "--conversation", "c-1", "--tool", "search", "--type", "tool.call"]).await;
        let envelope = Envelope::from_bytes(&wrapped.payload).unwrap();
        assert_eq!(envelope.kind, "tool.call");
        assert_eq!(envelope.trace.conversation_id.as_deref(), Some("c-1"));
        assert_eq!(envelope.trace.tool_id.as_deref(), Some("search"));
        assert_eq!(envelope.payload, Payload::Json(serde_json::json!({"a": 1})));
        assert_eq!(wrapped.id, Some(envelope.id));
    }

    #[tokio::test]
    async fn text_and_bytes_fit_into_an_envelope() {
        for (text, payload) in [("hello", "hello".into()), ("", Value::Null), ("17", 17.into())] {
            let wrapped = content(&[text, "--envelope"]).await;
            let envelope = Envelope::from_bytes(&wrapped.payload).unwrap();
            assert_eq!(envelope.payload, Payload::Json(payload), "{text:?}");
        }
    }

    #[test]
    fn headers_that_cannot_be_sent_are_refused_on_the_command_line() {
        for bad in ["novalue", ":x", "a b:c", "a:x\r\ny"] {
            assert!(bad.parse::<HeaderArg>().is_err(), "{bad:?}");
        }
    }
}
