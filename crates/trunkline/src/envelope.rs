//! The envelope: a message as people see it, with its id, time, source, type, correlation, trace and payload.
//!
//! Reading is lenient, because components of any language write envelopes: a JSON object with a string `id` and a
//! string `type` is one, whatever else it holds; a field whose value is not of the expected form is kept as it came, in
//! [`Envelope::extra`]. Nothing in this module publishes or subscribes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;

/// Why a body could not be read as the payload that was asked for. It concerns that one message alone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The payload is JSON of another shape.
    #[error("payload does not have the shape of {wanted}")]
    Shape {
        /// The Rust type that was asked for.
        wanted: &'static str,
        /// What did not fit.
        #[source]
        source: serde_json::Error,
    },
    /// Neither an envelope nor JSON.
    #[error("body of {size} bytes is neither an envelope nor JSON of the shape of {wanted}")]
    NotJson {
        /// The Rust type that was asked for.
        wanted: &'static str,
        /// Bytes in the body.
        size: usize,
        /// What the JSON reader said.
        #[source]
        source: serde_json::Error,
    },
}

/// What an envelope carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// JSON, as the field `payload`; an envelope without payload carries `null`.
    Json(Value),
    /// Bytes, as the field `payloadBase64`.
    Bytes(Bytes),
}

impl Default for Payload {
    fn default() -> Self {
        Self::Json(Value::Null)
    }
}

/// Whom and what a message belongs to: the field `trace` of an envelope.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// The conversation.
    pub conversation_id: Option<String>,
    /// The persona that speaks.
    pub persona_id: Option<String>,
    /// The tool at work.
    pub tool_id: Option<String>,
    /// The skill at work.
    pub skill_id: Option<String>,
    /// Id of the message that caused this one.
    pub causation_id: Option<String>,
    /// Fields that this library does not know, kept as they came.
    pub extra: Map<String, Value>,
}

impl Trace {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn take(mut fields: Map<String, Value>) -> Self {
        Self {
            conversation_id: take_text(&mut fields, "conversationId"),
            persona_id: take_text(&mut fields, "personaId"),
            tool_id: take_text(&mut fields, "toolId"),
            skill_id: take_text(&mut fields, "skillId"),
            causation_id: take_text(&mut fields, "causationId"),
            extra: fields,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut fields = Fields::open(out);
        fields.text("conversationId", self.conversation_id.as_deref());
        fields.text("personaId", self.persona_id.as_deref());
        fields.text("toolId", self.tool_id.as_deref());
        fields.text("skillId", self.skill_id.as_deref());
        fields.text("causationId", self.causation_id.as_deref());
        fields.extra(&self.extra);
        fields.close();
    }
}

/// A message as people see it.
///
/// ```
/// use trunkline::{Envelope, Payload};
/// let envelope = Envelope::new("tool.call", serde_json::json!({"query": "weather in Oslo"}));
/// let bytes = envelope.to_bytes();
/// let read = Envelope::from_bytes(&bytes).expect("it has an id and a type");
/// assert_eq!(read, envelope);
/// assert!(Envelope::from_bytes(br#"{"id": 7}"#).is_none());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// Unique name of the message; a UUIDv7 when this library made it.
    pub id: String,
    /// When it was made, to the millisecond.
    pub timestamp: Option<Timestamp>,
    /// The component that made it.
    pub source: Option<String>,
    /// What kind of message it is, such as `tool.call`: the field `type`.
    pub kind: String,
    /// Made at the first hop and carried through every reply, retry, dead letter and redrive.
    pub correlation_id: Option<String>,
    /// What it carries.
    pub payload: Payload,
    /// Whom and what it belongs to.
    pub trace: Trace,
    /// When nobody will want the answer any more.
    pub deadline: Option<Timestamp>,
    /// Fields that this library does not know, or cannot read, kept as they came.
    pub extra: Map<String, Value>,
}

impl Envelope {
    /// A new envelope with a fresh id, which is its correlation too.
    pub fn new(kind: impl Into<String>, payload: Value) -> Self {
        let id = new_id();
        Self {
            timestamp: Some(now()),
            source: None,
            kind: kind.into(),
            correlation_id: Some(id.clone()),
            payload: Payload::Json(payload),
            trace: Trace::default(),
            deadline: None,
            extra: Map::new(),
            id,
        }
    }

    /// Reads an envelope; `None` for anything that is not a JSON object with a string `id` and a string `type`.
    pub fn from_bytes(body: &[u8]) -> Option<Self> {
        // Most bodies that are no envelopes are told apart by their first byte.
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return None;
        }
        let mut fields: Map<String, Value> = serde_json::from_slice(body).ok()?;
        if !(fields.get("id")?.is_string() && fields.get("type")?.is_string()) {
            return None;
        }
        let payload = take_payload(&mut fields);
        let trace = match fields.remove("trace") {
            Some(Value::Object(trace)) => Trace::take(trace),
            Some(Value::Null) | None => Trace::default(),
            Some(other) => {
                fields.insert("trace".to_owned(), other);
                Trace::default()
            }
        };
        Some(Self {
            id: take_text(&mut fields, "id")?,
            kind: take_text(&mut fields, "type")?,
            timestamp: take_time(&mut fields, "timestamp"),
            source: take_text(&mut fields, "source"),
            correlation_id: take_text(&mut fields, "correlationId"),
            deadline: take_time(&mut fields, "deadline"),
            payload,
            trace,
            extra: fields,
        })
    }

    /// Only when it was made, read without anything that is kept: for who looks at a message that somebody else will read.
    pub(crate) fn made_at(body: &[u8]) -> Option<Timestamp> {
        /// Whatever else there is is passed over.
        #[derive(serde::Deserialize)]
        struct Dated {
            timestamp: Timestamp,
        }
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return None;
        }
        serde_json::from_slice(body).ok().map(|dated: Dated| dated.timestamp)
    }

    /// The JSON text.
    pub fn to_bytes(&self) -> Bytes {
        let body;
        let payload = match &self.payload {
            Payload::Json(value) => {
                body = value.to_string();
                Body::Json(body.as_bytes())
            }
            Payload::Bytes(bytes) => Body::Bytes(bytes),
        };
        let head = Head {
            id: &self.id,
            timestamp: self.timestamp,
            source: self.source.as_deref(),
            kind: &self.kind,
            correlation_id: self.correlation_id.as_deref(),
            trace: &self.trace,
            deadline: self.deadline,
            extra: &self.extra,
        };
        head.encode(payload)
    }

    /// The payload as `T`; bytes are read as JSON.
    ///
    /// # Errors
    /// A payload of another shape.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        match &self.payload {
            Payload::Json(value) => T::deserialize(value)
                .map_err(|source| DecodeError::Shape { wanted: std::any::type_name::<T>(), source }),
            Payload::Bytes(bytes) => decode_body(bytes),
        }
    }
}

/// Reads a whole body as the payload `T`.
pub(crate) fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(body).map_err(|source| DecodeError::NotJson {
        wanted: std::any::type_name::<T>(),
        size: body.len(),
        source,
    })
}

/// A fresh id: a UUIDv7, so that ids sort by the time they were made.
pub(crate) fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// The time, as an envelope shows it.
pub(crate) fn now() -> Timestamp {
    to_the_millisecond(Timestamp::now())
}

/// Cut to the milliseconds that an envelope shows, so that what is read back is what was written.
fn to_the_millisecond(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

/// A payload that is bytes already.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body<'a> {
    /// JSON text, which goes into the envelope as it stands.
    Json(&'a [u8]),
    /// Bytes, which go in as base64.
    Bytes(&'a [u8]),
}

/// All of an envelope but its payload, borrowed from whoever publishes.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(crate) id: &'a str,
    pub(crate) timestamp: Option<Timestamp>,
    pub(crate) source: Option<&'a str>,
    pub(crate) kind: &'a str,
    pub(crate) correlation_id: Option<&'a str>,
    pub(crate) trace: &'a Trace,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) extra: &'a Map<String, Value>,
}

impl Head<'_> {
    /// Writes the envelope around a payload that is not parsed again.
    pub(crate) fn encode(&self, payload: Body<'_>) -> Bytes {
        let size = match payload {
            Body::Json(json) => json.len(),
            Body::Bytes(bytes) => bytes.len().div_ceil(3) * 4,
        };
        let mut out = Vec::with_capacity(size + 384);
        let mut fields = Fields::open(&mut out);
        fields.text("id", Some(self.id));
        fields.time("timestamp", self.timestamp);
        fields.text("source", self.source);
        fields.text("type", Some(self.kind));
        fields.text("correlationId", self.correlation_id);
        match payload {
            Body::Json(json) => fields.name("payload").extend_from_slice(json),
            Body::Bytes(bytes) => fields.text("payloadBase64", Some(&BASE64.encode(bytes))),
        }
        if !self.trace.is_empty() {
            self.trace.write(fields.name("trace"));
        }
        fields.time("deadline", self.deadline);
        fields.extra(self.extra);
        fields.close();
        out.into()
    }
}

/// Writes the fields of one JSON object.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Fields<'a> {
    fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    /// Writes the name and returns where the value goes.
    fn name(&mut self, name: &str) -> &mut Vec<u8> {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        write_json(self.out, name);
        self.out.push(b':');
        self.out
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            write_json(self.name(name), value);
        }
    }

    fn time(&mut self, name: &str, value: Option<Timestamp>) {
        if let Some(value) = value {
            write_json(self.name(name), &format!("{value:.3}"));
        }
    }

    fn extra(&mut self, extra: &Map<String, Value>) {
        for (name, value) in extra {
            write_json(self.name(name), value);
        }
    }

    fn close(self) {
        self.out.push(b'}');
    }
}

fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("text and JSON values always serialise into memory");
}

/// Takes a text out of `fields`. A `null` counts as absent; what is of another type stays.
fn take_text(fields: &mut Map<String, Value>, name: &str) -> Option<String> {
    match fields.get_mut(name)? {
        Value::String(text) => {
            let text = std::mem::take(text);
            // The order of what is left has no meaning, so the cheap removal will do.
            fields.swap_remove(name);
            Some(text)
        }
        Value::Null => {
            fields.swap_remove(name);
            None
        }
        _ => None,
    }
}

fn take_time(fields: &mut Map<String, Value>, name: &str) -> Option<Timestamp> {
    match fields.get(name)? {
        Value::String(text) => {
            let time = text.parse().ok()?;
            fields.swap_remove(name);
            Some(to_the_millisecond(time))
        }
        Value::Null => {
            fields.swap_remove(name);
            None
        }
        _ => None,
    }
}

/// `payload` wins over `payloadBase64`, unless it is `null`.
fn take_payload(fields: &mut Map<String, Value>) -> Payload {
    match fields.swap_remove("payload") {
        Some(value) if !value.is_null() => Payload::Json(value),
        _ => match fields.get("payloadBase64").and_then(Value::as_str).map(|text| BASE64.decode(text)) {
            Some(Ok(bytes)) => {
                fields.swap_remove("payloadBase64");
                Payload::Bytes(bytes.into())
            }
            _ => Payload::default(),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_wire_form_is_the_documented_one() {
        let envelope = Envelope {
            id: "m-2".into(),
            timestamp: Some("2026-11-22T10:15:30.123Z".parse().unwrap()),
            source: Some("gateway".into()),
            kind: "tool.call".into(),
            correlation_id: Some("m-1".into()),
            payload: Payload::Json(json!({"query": "weather in Oslo"})),
            trace: Trace {
                conversation_id: Some("c-42".into()),
                causation_id: Some("m-1".into()),
                ..Trace::default()
            },
            deadline: Some("2026-11-22T10:16:00Z".parse().unwrap()),
            extra: Map::new(),
        };
        let text = r#"{"id":"m-2","timestamp":"2026-11-22T10:15:30.123Z","source":"gateway","type":"tool.call","correlationId":"m-1","payload":{"query":"weather in Oslo"},"trace":{"conversationId":"c-42","causationId":"m-1"},"deadline":"2026-11-22T10:16:00.000Z"}"#;
        assert_eq!(envelope.to_bytes(), text.as_bytes());
        assert_eq!(Envelope::from_bytes(text.as_bytes()), Some(envelope));
    }

    #[test]
    fn only_an_object_with_string_id_and_type_is_an_envelope() {
        for body in [
            &b""[..],
            b"null",
            b"[]",
            b"\xff\xfe",
            br#""text""#,
            br#"{"id":"a"}"#,
            br#"{"id":1,"type":"t"}"#,
            br#"{"id":"a","type":null}"#,
            br#"{"id":"a","type":"t""#,
        ] {
            assert!(Envelope::from_bytes(body).is_none(), "{:?}", String::from_utf8_lossy(body));
        }
        assert!(Envelope::from_bytes(b" \n{\"id\":\"\",\"type\":\"\"}").is_some());
    }

    #[test]
    fn fields_that_are_unknown_or_of_another_form_are_kept() {
        let body = json!({
            "id": "a", "type": "t", "timestamp": 17, "source": null, "correlationId": ["x"],
            "deadline": "soon", "trace": {"conversationId": "c", "spanId": 4, "toolId": 9}, "tenant": {"n": 1}
        });
        let envelope = Envelope::from_bytes(body.to_string().as_bytes()).unwrap();
        assert_eq!(envelope.timestamp, None);
        assert_eq!(envelope.trace.conversation_id.as_deref(), Some("c"));
        let again: Value = serde_json::from_slice(&envelope.to_bytes()).unwrap();
        for field in ["timestamp", "correlationId", "deadline", "tenant"] {
            assert_eq!(again[field], body[field], "{field}");
        }
        assert_eq!(again["trace"], body["trace"]);
        assert_eq!(again["payload"], Value::Null);
    }

    #[test]
    fn bytes_travel_as_base64_and_bad_base64_stays_visible() {
        let envelope = Envelope {
            payload: Payload::Bytes(Bytes::from_static(b"\0\xff[1,2]")),
            ..Envelope::new("t", Value::Null)
        };
        assert_eq!(Envelope::from_bytes(&envelope.to_bytes()), Some(envelope));
        let bad = Envelope::from_bytes(br#"{"id":"a","type":"t","payloadBase64":"%%"}"#).unwrap();
        assert_eq!(bad.payload, Payload::Json(Value::Null));
        assert_eq!(bad.extra["payloadBase64"], "%%");
        let json = Envelope {
            payload: Payload::Bytes(Bytes::from_static(b"[1,2]")),
            ..Envelope::new("t", Value::Null)
        };
        assert_eq!(json.decode::<Vec<u8>>().unwrap(), [1, 2]);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    fn trace() -> impl Strategy<Value = Trace> {
        let id = || proptest::option::of(any::<String>());
        (id(), id(), id(), id(), id(), value()).prop_map(
            |(conversation, persona, tool, skill, cause, extra)| Trace {
                conversation_id: conversation,
                persona_id: persona,
                tool_id: tool,
                skill_id: skill,
                causation_id: cause,
                extra: Map::from_iter([("spanId".to_owned(), extra)]),
            },
        )
    }

    fn time() -> impl Strategy<Value = Option<Timestamp>> {
        // Years 0001 to 9999, which is what RFC 3339 can say.
        proptest::option::of(
            (-62_135_596_800_000i64..253_402_207_200_000)
                .prop_map(|ms| Timestamp::from_millisecond(ms).unwrap()),
        )
    }

    proptest! {
        #[test]
        fn envelopes_round_trip(
            id: String, kind: String,
            source in proptest::option::of(any::<String>()),
            correlation_id in proptest::option::of(any::<String>()),
            payload in prop_oneof![
                value().prop_map(Payload::Json),
                any::<Vec<u8>>().prop_map(|bytes| Payload::Bytes(bytes.into())),
            ],
            trace in trace(), timestamp in time(), deadline in time(), extra in value(),
        ) {
            let extra = Map::from_iter([("x-extra".to_owned(), extra)]);
            let envelope =
                Envelope { id, timestamp, source, kind, correlation_id, payload, trace, deadline, extra };
            prop_assert_eq!(Envelope::from_bytes(&envelope.to_bytes()), Some(envelope));
        }

        #[test]
        fn no_body_makes_the_reader_panic(body: Vec<u8>) {
            let _ = Envelope::from_bytes(&body);
        }
    }
}
