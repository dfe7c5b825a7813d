//! Messages between the bus and the client library.

use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use trunkline_core::{HeaderError, Headers, Message, Subject, SubjectError};

/// Bytes of a header block beside its lines: `NATS/1.0\r\n` and the empty line.
const HEADER_BLOCK_BYTES: usize = 12;

/// Bytes that the server counts against `max_payload`: the header block and the payload.
pub(super) fn payload_bytes(message: &Message) -> usize {
    let headers =
        if message.headers.is_empty() { 0 } else { HEADER_BLOCK_BYTES + message.headers.size_bytes() };
    headers + message.payload.len()
}

/// The message as the client library wants it. Its header map keeps the order of the values of one name, but
/// not the order of different names.
///
/// # Errors
/// The name of a header that NATS cannot carry, because it is not ASCII.
pub(super) fn encode(message: &Message) -> Result<OutboundMessage, String> {
    let headers = match message.headers.is_empty() {
        true => None,
        false => Some(encode_headers(&message.headers)?),
    };
    Ok(OutboundMessage {
        subject: outbound_subject(&message.subject),
        reply: message.reply.as_ref().map(outbound_subject),
        payload: message.payload.clone(),
        headers,
    })
}

/// As [`encode`], of a message that is not needed any more: nothing of it is shared afterwards.
///
/// # Errors
/// As [`encode`], with the subject of the message.
pub(super) fn encode_owned(message: Message) -> Result<OutboundMessage, (Subject, String)> {
    let headers = match message.headers.is_empty() {
        true => None,
        false => match encode_headers(&message.headers) {
            Ok(headers) => Some(headers),
            Err(header) => return Err((message.subject, header)),
        },
    };
    Ok(OutboundMessage {
        subject: as_library_has_it(message.subject),
        reply: message.reply.map(as_library_has_it),
        payload: message.payload,
        headers,
    })
}

fn outbound_subject(subject: &Subject) -> async_nats::Subject {
    as_library_has_it(subject.clone())
}

fn as_library_has_it(subject: Subject) -> async_nats::Subject {
    subject.into_bytes().try_into().expect("a subject is UTF-8")
}

fn encode_headers(headers: &Headers) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter() {
        let parsed: HeaderName = name.parse().map_err(|_| name.to_owned())?;
        let value: HeaderValue = value.parse().map_err(|_| name.to_owned())?;
        map.append(parsed, value);
    }
    Ok(map)
}

/// The token before the last of reply subjects to which the server sends confirmations.
pub(super) const CONFIRMATION: &str = "trunkline-confirmed";
/// Where a stored message's own reply subject stands: the wire's reply subject is that of the confirmation.
const REPLY_TO: &str = "Trunkline-Reply-To";
/// By this JetStream suppresses duplicates.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// A message as JetStream should store it, without the reply subject for the confirmation. An id for deduplication is
/// set when it is asked for and only then: a copy that carries the id of its original would be swallowed.
///
/// # Errors
/// As [`encode`].
pub(super) fn encode_stored(message: &Message, dedupe_id: Option<&str>) -> Result<OutboundMessage, String> {
    if message.headers.is_empty() && message.reply.is_none() && dedupe_id.is_none() {
        return encode(message);
    }
    let mut headers = message.headers.clone();
    headers.remove(MESSAGE_ID);
    let mut set = |name: &str, value: Option<&str>| match value {
        Some(value) => headers.set(name.to_owned(), value.to_owned()).map_err(|_| name.to_owned()),
        None => Ok(()),
    };
    set(MESSAGE_ID, dedupe_id)?;
    set(REPLY_TO, message.reply.as_ref().map(Subject::as_str))?;
    let message =
        Message { subject: message.subject.clone(), reply: None, headers, payload: message.payload.clone() };
    encode(&message)
}

/// As [`payload_bytes`], of what [`encode_stored`] makes.
pub(super) fn stored_bytes(message: &Message, dedupe_id: Option<&str>) -> usize {
    let line = |name: &str, value: &str| name.len() + value.len() + 4;
    let added = dedupe_id.map_or(0, |id| line(MESSAGE_ID, id))
        + message.reply.as_ref().map_or(0, |reply| line(REPLY_TO, reply.as_str()));
    let block = if message.headers.is_empty() && added > 0 { HEADER_BLOCK_BYTES } else { 0 };
    payload_bytes(message) + added + block
}

/// The reply subject of a message as a stream keeps it.
fn stored_reply(headers: &Headers) -> Option<Subject> {
    headers.get(REPLY_TO).and_then(|reply| Subject::new(reply.to_owned()).ok())
}

fn is_confirmation(reply: &str) -> bool {
    reply.rsplit('.').nth(1) == Some(CONFIRMATION)
}

/// Why a message of the server cannot be given to a subscriber.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undeliverable {
    #[error("its subject or reply subject is refused")]
    Subject(#[from] SubjectError),
    #[error("a header is refused")]
    Header(#[from] HeaderError),
}

/// Turns what the client library received into messages of the bus.
#[derive(Default)]
pub(super) struct Decoder {
    /// The text of the subject before, and the subject itself once it came twice: most subscriptions see the same one
    /// again and again, and a clone costs neither a check nor a copy. Those that do not, as inboxes, never pay for
    /// making it one that can be shared.
    last: String,
    last_subject: Option<Subject>,
}

impl Decoder {
    pub(super) fn decode(&mut self, received: async_nats::Message) -> Result<Message, Undeliverable> {
        let subject = self.subject(received.subject)?;
        let confirmed = received.reply.as_deref().is_some_and(is_confirmation);
        let mut reply = match received.reply {
            Some(reply) if !confirmed => Some(Subject::new(reply.into_string())?),
            _ => None,
        };
        let mut headers = Headers::new();
        if let Some(status) = received.status {
            headers.append("Status", status.to_string())?;
            if let Some(description) = received.description {
                headers.append("Description", description)?;
            }
        }
        if let Some(map) = &received.headers {
            decode_headers(map, &mut headers)?;
        }
        if confirmed {
            reply = stored_reply(&headers);
            headers.remove(MESSAGE_ID);
        }
        Ok(Message { subject, reply, headers, payload: received.payload })
    }

    /// A message of a stream, from its parts: what is delivered of one has a reply subject of JetStream's own.
    pub(super) fn decode_stored(
        &mut self,
        subject: async_nats::Subject,
        headers: Option<&HeaderMap>,
        payload: Bytes,
    ) -> Result<Message, Undeliverable> {
        let subject = self.subject(subject)?;
        let mut decoded = Headers::new();
        if let Some(map) = headers {
            decode_headers(map, &mut decoded)?;
        }
        // It is between publisher and server.
        decoded.remove(MESSAGE_ID);
        Ok(Message { subject, reply: stored_reply(&decoded), headers: decoded, payload })
    }

    fn subject(&mut self, subject: async_nats::Subject) -> Result<Subject, SubjectError> {
        if self.last != *subject {
            self.last_subject = None;
            self.last.clear();
            self.last.push_str(&subject);
            return Subject::new(subject.into_string());
        }
        match &self.last_subject {
            Some(last) => Ok(last.clone()),
            None => Ok(self.last_subject.insert(Subject::new(subject.into_string())?).clone()),
        }
    }
}

/// Names come sorted: the map has lost their order, and any fixed one is better than a random one.
fn decode_headers(map: &HeaderMap, headers: &mut Headers) -> Result<(), HeaderError> {
    let mut names: Vec<(&str, &Vec<HeaderValue>)> =
        map.iter().map(|(name, values)| (name.as_ref(), values)).collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    for (name, values) in names {
        for value in values {
            headers.append(name, value.as_str())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(subject: &str) -> async_nats::Message {
        async_nats::Message {
            subject: subject.into(),
            reply: None,
            payload: "x".into(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn headers_keep_case_and_the_order_of_values() {
        let mut headers = Headers::new();
        for (name, value) in [("b", "1"), ("A-a", "2"), ("b", "3"), ("B", "4")] {
            headers.append(name, value).unwrap();
        }
        let mut message = Message::new("s".parse().unwrap(), "payload");
        message.headers = headers;
        assert_eq!(
            payload_bytes(&message),
            b"NATS/1.0\r\nb: 1\r\nA-a: 2\r\nb: 3\r\nB: 4\r\n\r\npayload".len()
        );
        let map = encode(&message).unwrap().headers;
        let got = Decoder::default().decode(async_nats::Message { headers: map, ..received("s") }).unwrap();
        assert_eq!(
            got.headers.iter().collect::<Vec<_>>(),
            [("A-a", "2"), ("B", "4"), ("b", "1"), ("b", "3")]
        );
    }

    #[test]
    fn status_becomes_headers() {
        let status = Some(async_nats::StatusCode::NO_RESPONDERS);
        let got = Decoder::default().decode(async_nats::Message { status, ..received("s") }).unwrap();
        assert_eq!(got.headers.get("Status"), Some("503"));
    }

    #[test]
    fn stored_messages_keep_their_reply_subject_and_no_foreign_id() {
        let mut message = Message::new("s".parse().unwrap(), "x");
        message.reply = Some("re.ply".parse().unwrap());
        message.headers.append("nats-msg-id", "of the original").unwrap();
        let outbound = encode_stored(&message, None).unwrap();
        assert!(outbound.reply.is_none());
        let live = async_nats::Message {
            reply: Some(format!("_INBOX.x.{CONFIRMATION}.7").into()),
            headers: outbound.headers.clone(),
            ..received("s")
        };
        let mut decoder = Decoder::default();
        for got in [
            decoder.decode(live).unwrap(),
            decoder.decode_stored("s".into(), outbound.headers.as_ref(), "x".into()).unwrap(),
        ] {
            assert_eq!(got.reply, message.reply);
            assert_eq!(got.headers.iter().collect::<Vec<_>>(), [("Trunkline-Reply-To", "re.ply")]);
        }
        let map = encode_stored(&message, Some("id")).unwrap().headers;
        assert_eq!(map.as_ref().unwrap().get("Nats-Msg-Id").unwrap().as_str(), "id");
        let got = decoder.decode_stored("s".into(), map.as_ref(), "x".into()).unwrap();
        assert_eq!(got.headers.get("Nats-Msg-Id"), None, "it is between publisher and server");
    }

    #[test]
    fn what_the_bus_cannot_carry_is_an_error() {
        let mut message = Message::new("s".parse().unwrap(), "");
        message.headers.append("naïve", "v").unwrap();
        assert_eq!(encode(&message).unwrap_err(), "naïve");
        let mut decoder = Decoder::default();
        for subject in ["a.*", "a..b", &"a".repeat(2000)] {
            for _ in 0..3 {
                let decoded = decoder.decode(received(subject));
                assert!(matches!(decoded, Err(Undeliverable::Subject(_))), "{subject}");
            }
        }
        for subject in ["ok", "other", "other", "other", "ok", "ok"] {
            assert_eq!(decoder.decode(received(subject)).unwrap().subject, subject);
        }
    }
}
