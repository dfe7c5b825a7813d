//! How a message looks on stdout: a line for people, a JSON object for programs, or its payload as it is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use trunkline::backend::Gap;
use trunkline::{Headers, Message};

use crate::output::{self, OutputError};

/// Longest payload that a line for people shows in full, in characters.
const SHOWN_CHARS_MAX: usize = 4096;

/// The flags that choose a form.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ShowArgs {
    /// One JSON object a line: subject, reply, headers, payload
    #[arg(long, conflicts_with = "raw")]
    pub(crate) json: bool,

    /// Payloads only, byte for byte, with nothing between them
    #[arg(long)]
    pub(crate) raw: bool,

    /// Show headers too
    #[arg(long)]
    headers: bool,
}

impl ShowArgs {
    /// Prints a message.
    ///
    /// # Errors
    /// stdout is closed or full.
    pub(crate) fn message(self, message: &Message) -> Result<(), OutputError> {
        match self {
            Self { raw: true, .. } => output::bytes(&message.payload),
            Self { json: true, .. } => output::json(&as_json(message)),
            Self { headers, .. } => output::line(&as_text(message, headers)),
        }
    }

    /// Prints a reply, of which people want the payload and not the inbox it came to.
    ///
    /// # Errors
    /// stdout is closed or full.
    pub(crate) fn reply(self, message: &Message) -> Result<(), OutputError> {
        match self {
            Self { raw: false, json: false, headers } => {
                let mut text = if headers { header_lines(&message.headers) } else { String::new() };
                text.push_str(&payload_text(&message.payload));
                output::line(&text)
            }
            _ => self.message(message),
        }
    }

    /// Prints that messages are missing here; with `--raw` on stderr, where it cannot be taken for a payload.
    ///
    /// # Errors
    /// stdout is closed or full.
    pub(crate) fn gap(self, gap: Gap) -> Result<(), OutputError> {
        let text = match gap.missed {
            Some(missed) => format!("gap: {missed} messages are missing here"),
            None => "gap: an unknown number of messages is missing here".to_owned(),
        };
        match self {
            Self { raw: true, .. } => {
                tracing::warn!("{text}");
                Ok(())
            }
            Self { json: true, .. } => output::json(&json!({"gap": {"missed": gap.missed}})),
            _ => output::line(&text),
        }
    }
}

/// The JSON form. `payload` is the parsed envelope where the body is one and text otherwise; a body that is not UTF-8 is
/// `payloadBase64`. What text it was is never lost: only envelopes are parsed.
pub(crate) fn as_json(message: &Message) -> Value {
    let mut object = Map::new();
    object.insert("subject".to_owned(), message.subject.as_str().into());
    if let Some(reply) = &message.reply {
        object.insert("reply".to_owned(), reply.as_str().into());
    }
    object.insert("headers".to_owned(), headers_json(&message.headers));
    let (key, payload) = match std::str::from_utf8(&message.payload) {
        Ok(text) => ("payload", envelope_of(text).unwrap_or_else(|| text.into())),
        Err(_) => ("payloadBase64", BASE64.encode(&message.payload).into()),
    };
    object.insert(key.to_owned(), payload);
    Value::Object(object)
}

/// The body, if it is a JSON object with a string `id` and a string `type`.
fn envelope_of(text: &str) -> Option<Value> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let value: Value = serde_json::from_str(text).ok()?;
    let is_envelope = ["id", "type"].iter().all(|key| value.get(key).is_some_and(Value::is_string));
    is_envelope.then_some(value)
}

/// Each name once, with the list of its values, because a name may come several times.
pub(crate) fn headers_json(headers: &Headers) -> Value {
    let mut object: Map<String, Value> = Map::new();
    for (name, value) in headers.iter() {
        let values = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(values) = values {
            values.push(value.into());
        }
    }
    Value::Object(object)
}

fn as_text(message: &Message, headers: bool) -> String {
    let mut text = message.subject.to_string();
    if let Some(reply) = &message.reply {
        text.push_str(&format!("  (reply to {reply})"));
    }
    if headers {
        text.push('\n');
        text.push_str(&header_lines(&message.headers));
        text.push_str(&payload_text(&message.payload));
    } else {
        text.push_str("  ");
        text.push_str(&payload_text(&message.payload));
    }
    text
}

fn header_lines(headers: &Headers) -> String {
    headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
}

/// The payload as one piece of text that cannot steer a terminal.
pub(crate) fn payload_text(payload: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(payload) else {
        return format!("({} bytes, not UTF-8)", payload.len());
    };
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARS_MAX)
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect();
    if shown.len() < text.len() && text.chars().count() > SHOWN_CHARS_MAX {
        shown.push_str(&format!("… ({} bytes)", payload.len()));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: impl Into<bytes::Bytes>) -> Message {
        Message::new("a.b".parse().unwrap(), payload)
    }

    #[test]
    fn envelopes_are_parsed_text_is_kept_and_bytes_become_base64() {
        let cases = [
            (
                &br#"{"id":"1","type":"t","payload":{"x":1}}"#[..],
                "payload",
                json!({"id":"1","type":"t","payload":{"x":1}}),
            ),
            (br#"{"id":"1"}"#, "payload", json!(r#"{"id":"1"}"#)),
            (b"17", "payload", json!("17")),
            (b"", "payload", json!("")),
            (b"\xff\x00", "payloadBase64", json!("/wA=")),
        ];
        for (payload, key, expected) in cases {
            let object = as_json(&message(payload));
            assert_eq!(object[key], expected, "{payload:?}");
        }
    }

    #[test]
    fn a_header_name_keeps_all_its_values() {
        let mut message = message("x");
        message.reply = Some("r".parse().unwrap());
        for (name, value) in [("A", "1"), ("B", "2"), ("A", "3")] {
            message.headers.append(name, value).unwrap();
        }
        let object = as_json(&message);
        assert_eq!(object["headers"], json!({"A": ["1", "3"], "B": ["2"]}));
        assert_eq!(object["reply"], "r");
    }

    #[test]
    fn text_for_people_cannot_steer_the_terminal() {
        assert_eq!(payload_text(b"a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\nc");
        assert_eq!(payload_text(b"\xff"), "(1 bytes, not UTF-8)");
        assert!(payload_text(&[b'x'; 5000]).ends_with("… (5000 bytes)"));
    }
}
