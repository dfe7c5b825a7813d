//! Messages as entries of a Redis stream, and what else is read out of answers.
//!
//! The id of an entry is the time in milliseconds, and the running number of the message in its stream; the number tells
//! how many are missing. Its one field `m` is the message: a line `SUBJECT REPLY HEADER-BYTES` (`.` where there is no
//! reply), the header block in its NATS text form, and the payload.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redis::Value;
use trunkline_core::{HeaderError, Headers, Message, StreamOffset, Subject, SubjectError};

use super::link::Failure;
use crate::backend::StoredMessage;

/// In the place of a reply subject; no subject is written like this.
const NO_REPLY: &str = ".";

/// Id of an entry: milliseconds, and the running number where the bus wrote it.
pub(super) type EntryId = (u64, u64);

/// An entry that was read.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: EntryId,
    /// Running number in its stream; `None` where somebody else than the bus wrote it.
    pub(super) index: Option<u64>,
    /// What it carries, unless that is no message of the bus.
    pub(super) message: Result<Arc<Message>, Undecodable>,
}

/// Why an entry is no message.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undecodable {
    #[error("the entry has no field m")]
    NoMessage,
    #[error("the first line is not SUBJECT REPLY HEADER-BYTES")]
    FirstLine,
    #[error("the subject or reply subject is refused")]
    Subject(#[from] SubjectError),
    #[error("the headers are refused")]
    Headers(#[from] HeaderError),
}

impl Undecodable {
    /// Whether the bus has not written it, so that no version of it will read it.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::NoMessage)
    }
}

impl Entry {
    pub(super) fn offset(&self) -> StreamOffset {
        StreamOffset::Entry(self.id.0, self.id.1)
    }

    /// Bytes of what it carries.
    pub(super) fn size_bytes(&self) -> usize {
        self.message.as_ref().map_or(0, |message| message.size_bytes())
    }

    /// The message with its place and time; `None` for what is no message.
    pub(super) fn stored(&self) -> Option<StoredMessage> {
        let message = self.message.as_ref().ok()?.clone();
        Some(StoredMessage { offset: self.offset(), time: time_of(self.id), message })
    }
}

/// When the entry was stored, by the clock of the server.
pub(super) fn time_of(id: EntryId) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(id.0)
}

pub(super) fn encode(message: &Message) -> Vec<u8> {
    let reply = message.reply.as_ref().map_or(NO_REPLY, |reply| reply.as_str());
    let mut headers = Vec::new();
    if !message.headers.is_empty() {
        message.headers.encode(&mut headers);
    }
    let subject = message.subject.as_str();
    // Room for two spaces, a number and the line's end, so that nothing is allocated twice.
    let first = subject.len() + reply.len() + 24;
    let mut out = Vec::with_capacity(first + headers.len() + message.payload.len());
    for part in [subject, " ", reply, " "] {
        out.extend_from_slice(part.as_bytes());
    }
    match headers.len() {
        0 => out.push(b'0'),
        bytes => out.extend_from_slice(bytes.to_string().as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&headers);
    out.extend_from_slice(&message.payload);
    out
}

/// Reads entries of one answer. Neighbours often have the same subject, which is checked and kept once.
#[derive(Default)]
struct Decoder {
    latest: Option<Subject>,
}

impl Decoder {
    fn subject(&mut self, text: &str) -> Result<Subject, SubjectError> {
        match &self.latest {
            Some(latest) if latest.as_str() == text => Ok(latest.clone()),
            _ => {
                let subject = Subject::new(text.to_owned())?;
                Ok(self.latest.insert(subject).clone())
            }
        }
    }
}

fn decode(blob: Bytes, decoder: &mut Decoder) -> Result<Message, Undecodable> {
    let end = line_end(&blob).ok_or(Undecodable::FirstLine)?;
    let line = std::str::from_utf8(&blob[..end]).map_err(|_| Undecodable::FirstLine)?;
    let mut words = line.split(' ');
    let (Some(subject), Some(reply), Some(bytes), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Undecodable::FirstLine);
    };
    let bytes: usize = bytes.parse().map_err(|_| Undecodable::FirstLine)?;
    let start = end + 2;
    let payload_at = start.checked_add(bytes).filter(|at| *at <= blob.len()).ok_or(Undecodable::FirstLine)?;
    let headers = match bytes {
        0 => Headers::new(),
        _ => Headers::decode(&blob[start..payload_at])?,
    };
    Ok(Message {
        subject: decoder.subject(subject)?,
        reply: match reply {
            NO_REPLY => None,
            reply => Some(Subject::new(reply.to_owned())?),
        },
        headers,
        payload: blob.slice(payload_at..),
    })
}

fn line_end(blob: &[u8]) -> Option<usize> {
    // The line has no control characters, so its end is the first one of these.
    let end = blob.iter().position(|byte| *byte == b'\r')?;
    (blob.get(end + 1) == Some(&b'\n')).then_some(end)
}

/// One entry of an answer: `[id, [field, value, …]]`.
pub(super) fn entry(value: Value) -> Result<Entry, Failure> {
    entry_of(value, &mut Decoder::default())
}

fn entry_of(value: Value, decoder: &mut Decoder) -> Result<Entry, Failure> {
    let [id, fields] = array::<2>(value)?;
    let id = entry_id(&id)?;
    let mut index = None;
    let mut message = Err(Undecodable::NoMessage);
    let mut fields = list(fields)?.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        if matches!(name, Value::BulkString(name) if name == b"m") {
            message = decode(blob(value)?, decoder).map(Arc::new);
            index = Some(id.1);
        }
    }
    Ok(Entry { id, index, message })
}

/// Entries of an answer.
pub(super) fn entries(value: Value) -> Result<Vec<Entry>, Failure> {
    let mut decoder = Decoder::default();
    list(value)?.into_iter().map(|value| entry_of(value, &mut decoder)).collect()
}

/// An id as Redis prints it.
pub(super) fn entry_id(value: &Value) -> Result<EntryId, Failure> {
    let id = match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok().and_then(parse_id),
        other => parse_id(&text(other)?),
    };
    id.ok_or_else(|| unexpected(value))
}

pub(super) fn parse_id(text: &str) -> Option<EntryId> {
    let (ms, seq) = text.split_once('-')?;
    Some((ms.parse().ok()?, seq.parse().ok()?))
}

pub(super) fn print_id(id: EntryId) -> String {
    format!("{}-{}", id.0, id.1)
}

/// Adds an id to a command without making a text of it first: there are many in one.
pub(super) fn push_id(command: &mut redis::Cmd, id: EntryId) {
    let mut digits = [0_u8; 41];
    let mut at = digits.len();
    for (number, is_last) in [(id.1, false), (id.0, true)] {
        let mut left = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        if !is_last {
            at -= 1;
            digits[at] = b'-';
        }
    }
    command.arg(&digits[at..]);
}

pub(super) fn unexpected(value: &Value) -> Failure {
    let mut shown = format!("{value:?}");
    if let Some((at, _)) = shown.char_indices().nth(200) {
        shown.truncate(at);
    }
    Failure::Unexpected(shown)
}

/// The elements of an array; nothing is no elements.
pub(super) fn list(value: Value) -> Result<Vec<Value>, Failure> {
    match value {
        Value::Array(values) => Ok(values),
        Value::Nil => Ok(Vec::new()),
        other => Err(unexpected(&other)),
    }
}

/// An array of so many elements.
pub(super) fn array<const N: usize>(value: Value) -> Result<[Value; N], Failure> {
    list(value)?.try_into().map_err(|values| unexpected(&Value::Array(values)))
}

pub(super) fn text(value: &Value) -> Result<String, Failure> {
    match value {
        Value::BulkString(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Ok(text.clone()),
        Value::Int(n) => Ok(n.to_string()),
        Value::Okay => Ok("OK".to_owned()),
        other => Err(unexpected(other)),
    }
}

pub(super) fn number(value: &Value) -> Result<u64, Failure> {
    match value {
        // What would be negative is nothing: counters of a server that was emptied.
        Value::Int(n) => Ok(u64::try_from(*n).unwrap_or(0)),
        Value::Nil => Ok(0),
        other => text(other)?.parse().map_err(|_| unexpected(other)),
    }
}

fn blob(value: Value) -> Result<Bytes, Failure> {
    match value {
        Value::BulkString(bytes) => Ok(bytes.into()),
        other => text(&other).map(Bytes::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way_through_an_entry() {
        let mut headers = Headers::new();
        headers.append("X-Many", "1").unwrap();
        headers.append("X-Many", "").unwrap();
        for (reply, headers, payload) in [
            (None, Headers::new(), &b""[..]),
            (Some("_INBOX.a.1"), headers.clone(), b"\r\n\0\xff"),
            (None, headers, b"{}"),
            (Some("-"), Headers::new(), b"a b c\r\n"),
        ] {
            let message = Message {
                subject: Subject::new("nachos.ä.b").unwrap(),
                reply: reply.map(|reply| Subject::new(reply).unwrap()),
                headers,
                payload: Bytes::copy_from_slice(payload),
            };
            assert_eq!(decode(encode(&message).into(), &mut Decoder::default()).unwrap(), message);
        }
    }

    #[test]
    fn what_is_no_message_is_refused_and_not_cut_short() {
        for blob in
            ["", "a", "a . 0", "a . 0 0\r\n", "a . x\r\n", "a . 3\r\nxx", "a..b . 0\r\n", "a . 2\r\nxx"]
        {
            let decoded = decode(Bytes::from_static(blob.as_bytes()), &mut Decoder::default());
            assert!(decoded.is_err(), "{blob:?}");
        }
        let long = Bytes::from_static(b"a . 18446744073709551615\r\n");
        assert!(decode(long, &mut Decoder::default()).is_err());
    }

    #[test]
    fn ids_are_pushed_as_they_are_printed() {
        for id in [(0, 0), (1, 10), (1_763_800_000_000, 99), (u64::MAX, u64::MAX)] {
            let mut command = redis::Cmd::new();
            push_id(&mut command, id);
            let arguments: Vec<_> = command.args_iter().collect();
            assert!(matches!(&arguments[..], [redis::Arg::Simple(text)] if *text == print_id(id).as_bytes()));
        }
    }
}
