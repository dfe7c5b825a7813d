//! An observation as the record keeps it: its body as bytes, which are read again only when somebody looks.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::redact::Redaction;
use super::{Body, Observation};
use crate::envelope::{Envelope, Payload};

/// What an observation takes beside its texts and its body: its places in the record.
const OVERHEAD_BYTES: usize = size_of::<Observation>() + 160;

/// What is kept of a body.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum KeptBody {
    /// There was none to see.
    Nothing,
    /// So many bytes that were not kept.
    Omitted(u64),
    /// A whole envelope, of which the payload is shown.
    Envelope(Box<[u8]>),
    /// JSON text.
    Json(Box<[u8]>),
    /// Whatever it is.
    Bytes(Box<[u8]>),
}

impl KeptBody {
    /// Of a message's body; `envelope` says whether it is one.
    pub(super) fn of(body: &[u8], envelope: bool, payload_max: usize, redaction: &Redaction) -> Self {
        if body.len() > payload_max {
            return Self::Omitted(body.len() as u64);
        }
        if redaction.is_empty() {
            return match envelope {
                true => Self::Envelope(body.into()),
                false => Self::Bytes(body.into()),
            };
        }
        match envelope.then(|| Envelope::from_bytes(body)).flatten().map(|read| read.payload) {
            Some(Payload::Json(mut value)) => {
                redaction.apply(&mut value);
                Self::Json(value.to_string().into_bytes().into())
            }
            Some(Payload::Bytes(bytes)) => Self::redacted(&bytes, redaction),
            None => Self::redacted(body, redaction),
        }
    }

    /// Of a body that may be anything. One that names a field that is to be hidden, and cannot be read so that its value
    /// could be taken out, is not kept at all.
    fn redacted(body: &[u8], redaction: &Redaction) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(mut value) => {
                redaction.apply(&mut value);
                Self::Json(value.to_string().into_bytes().into())
            }
            Err(_) if redaction.may_be_in(body) => Self::Omitted(body.len() as u64),
            Err(_) => Self::Bytes(body.into()),
        }
    }

    /// Of a body that somebody else has read.
    pub(super) fn of_read(body: Option<Body>, payload_max: usize, redaction: &Redaction) -> Self {
        let kept = |bytes: Vec<u8>| match bytes.len() > payload_max {
            true => Self::Omitted(bytes.len() as u64),
            false if redaction.is_empty() => Self::Bytes(bytes.into()),
            // Whoever has read it may not have been told what to hide.
            false => Self::redacted(&bytes, redaction),
        };
        match body {
            None => Self::Nothing,
            Some(Body::Omitted(bytes)) => Self::Omitted(bytes),
            Some(Body::Json(mut value)) => {
                redaction.apply(&mut value);
                let bytes = value.to_string().into_bytes();
                match bytes.len() > payload_max {
                    true => Self::Omitted(bytes.len() as u64),
                    false => Self::Json(bytes.into()),
                }
            }
            Some(Body::Text(text)) => kept(text.into_bytes()),
            Some(Body::Base64(text)) => match BASE64.decode(&text) {
                Ok(bytes) => kept(bytes),
                Err(_) => Self::Nothing,
            },
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Nothing | Self::Omitted(_) => 0,
            Self::Envelope(bytes) | Self::Json(bytes) | Self::Bytes(bytes) => bytes.len(),
        }
    }

    pub(super) fn show(&self) -> Option<Body> {
        match self {
            Self::Nothing => None,
            Self::Omitted(bytes) => Some(Body::Omitted(*bytes)),
            Self::Envelope(bytes) => match Envelope::from_bytes(bytes).map(|envelope| envelope.payload) {
                Some(Payload::Json(value)) => Some(Body::Json(value)),
                Some(Payload::Bytes(bytes)) => Some(show_bytes(&bytes)),
                None => Some(show_bytes(bytes)),
            },
            Self::Json(bytes) | Self::Bytes(bytes) => Some(show_bytes(bytes)),
        }
    }
}

fn show_bytes(bytes: &[u8]) -> Body {
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        return Body::Json(value);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Body::Text(text.to_owned()),
        Err(_) => Body::Base64(BASE64.encode(bytes)),
    }
}

/// One observation of the record.
#[derive(Debug)]
pub(super) struct Kept {
    /// Under which it is indexed; `None` for what belongs to no conversation.
    pub(super) conversation: Option<Arc<str>>,
    /// All of it but the body.
    pub(super) seen: Observation,
    pub(super) body: KeptBody,
}

impl Kept {
    /// What it takes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let seen = &self.seen;
        let texts = [
            &seen.reply,
            &seen.from,
            &seen.id,
            &seen.kind,
            &seen.correlation_id,
            &seen.causation_id,
            &seen.conversation_id,
            &seen.persona_id,
            &seen.tool_id,
            &seen.skill_id,
            &seen.trace_id,
            &seen.stream,
            &seen.consumer,
            &seen.offset,
            &seen.reason,
        ];
        let texts: usize = texts.into_iter().flatten().map(|text| text.capacity() + 8).sum();
        let to: usize = seen.to.iter().map(|name| name.capacity() + 32).sum();
        let conversation = self.conversation.as_ref().map_or(0, |id| id.len() + 16);
        OVERHEAD_BYTES + seen.subject.capacity() + conversation + texts + to + self.body.bytes()
    }

    /// As the API shows it.
    pub(super) fn show(&self) -> Observation {
        Observation { body: self.body.show(), ..self.seen.clone() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies_are_shown_as_what_they_are() {
        let check = |body: &[u8], envelope: bool, expected: Body| {
            let kept = KeptBody::of(body, envelope, 1000, &Redaction::default());
            assert_eq!(kept.show(), Some(expected.clone()));
            let again = KeptBody::of_read(kept.show(), 1000, &Redaction::default());
            assert_eq!(again.show(), Some(expected));
        };
        check(br#"{"id":"1","type":"t","payload":{"a":1}}"#, true, Body::Json(json!({"a": 1})));
        check(br#"{"id":"1","type":"t","payloadBase64":"/w=="}"#, true, Body::Base64("/w==".to_owned()));
        check(br#"{"a":[1]}"#, false, Body::Json(json!({"a": [1]})));
        check(b"hello", false, Body::Text("hello".to_owned()));
        check(b"", false, Body::Text(String::new()));
        check(b"\xff\x00", false, Body::Base64("/wA=".to_owned()));
        check(&[b'x'; 1001], false, Body::Omitted(1001));
    }

    #[test]
    fn what_is_to_be_hidden_is_not_even_kept() {
        let redaction = Redaction::new(&["pin".to_owned()]);
        for (body, envelope) in [
            (&br#"{"id":"1","type":"t","payload":{"pin":"1234"}}"#[..], true),
            (br#"{"pin":"1234"}"#, false),
            // {"pin":"1234"}
            (br#"{"id":"1","type":"t","payloadBase64":"eyJwaW4iOiIxMjM0In0="}"#, true),
        ] {
            let kept = KeptBody::of(body, envelope, 1000, &redaction);
            assert_eq!(kept, KeptBody::Json(br#"{"pin":"***"}"#.as_slice().into()));
        }
        // Nobody can say where the value ends in what cannot be read, or is nested deeper than is read.
        let deep = format!(
            r#"{{"id":"1","type":"t","payload":{}{{"PIN":1234}}{}}}"#,
            "[".repeat(200),
            "]".repeat(200)
        );
        for (body, envelope) in [
            (deep.as_str(), true),
            (r#"{"pin":1234"#, false),
            ("{\"a\":1}\n{\"pin\" : 1234}\n", false),
            (r#"data: {"Pin":1234}"#, false),
            (r#"{"p\u0069n":1234"#, false),
        ] {
            let kept = KeptBody::of(body.as_bytes(), envelope, 1000, &redaction);
            assert_eq!(kept, KeptBody::Omitted(body.len() as u64), "{body}");
        }
        let packed = KeptBody::of(b"\x81\xa3pin\xcd\x04\xd2", false, 1000, &redaction);
        assert_eq!(packed, KeptBody::Omitted(8));
        for harmless in ["the pin is a secret", "spinning: {\"spin\":1", "\"pin\", he said"] {
            let kept = KeptBody::of(harmless.as_bytes(), false, 1000, &redaction);
            assert_eq!(kept.show(), Some(Body::Text(harmless.to_owned())));
        }
        for body in
            [Body::Text(r#"{"pin":1234}"#.to_owned()), Body::Base64("eyJwaW4iOiIxMjM0In0=".to_owned())]
        {
            let read = KeptBody::of_read(Some(body), 1000, &redaction);
            assert_eq!(read, KeptBody::Json(br#"{"pin":"***"}"#.as_slice().into()));
        }
        let read = KeptBody::of_read(Some(Body::Json(json!({"pin": 1234}))), 1000, &redaction);
        assert_eq!(read, KeptBody::Json(br#"{"pin":"***"}"#.as_slice().into()));
    }
}
