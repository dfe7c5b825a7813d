//! The same protocol seen from a client: what servers send is parsed, what clients send is written.
//!
//! Small on purpose: load generators and tests need it, and it keeps both directions honest,
//! because what one side writes the other must read.

use crate::connect::ConnectOptions;
use crate::error::ProtocolError;
use crate::parse::{Limits, Progress};
use crate::scan::{self, Arguments, Body, Sizes, Start, is_separator, verb3, verb4};

/// Bounds for a client, wide enough for any server: `INFO` may list many servers, and payloads may
/// be large.
pub const LIMITS: Limits = Limits { max_control_line: 256 * 1024, max_payload: 64 * 1024 * 1024 };

/// One operation of a server. Slices borrow from the parsed buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerOp<'a> {
    /// `INFO`, with its JSON text.
    Info(&'a [u8]),
    /// `MSG` or `HMSG`
    Msg {
        /// The subject it was published to.
        subject: &'a [u8],
        /// The subscription it is for.
        sid: &'a [u8],
        /// Where answers should go.
        reply: Option<&'a [u8]>,
        /// The header block, from `NATS/1.0` to the empty line.
        header: Option<&'a [u8]>,
        /// The bytes.
        payload: &'a [u8],
    },
    /// `PING`
    Ping,
    /// `PONG`
    Pong,
    /// `+OK`
    Ok,
    /// `-ERR`, with the text between its quotes.
    Err(&'a [u8]),
}

/// The answer of [`parse_server`].
pub type ServerParsed<'a> = Progress<ServerOp<'a>>;

/// Reads the operation at the start of `buf`. Bytes behind it are not looked at.
///
/// # Errors
///
/// As soon as the bytes so far cannot become an operation.
#[inline]
pub fn parse_server<'a>(buf: &'a [u8], limits: &Limits) -> Result<ServerParsed<'a>, ProtocolError> {
    const MSG: u32 = verb3(*b"MSG\0");
    const HMSG: u32 = verb4(*b"HMSG");

    if let Some((head, &[after, ..])) = buf.split_first_chunk::<4>() {
        if verb3(*head) == MSG && is_separator(head[3]) {
            return message(buf, limits);
        }
        if verb4(*head) == HMSG && is_separator(after) {
            return message_with_header(buf, limits);
        }
    }
    seldom(buf, limits)
}

#[inline(always)]
fn message<'a>(buf: &'a [u8], limits: &Limits) -> Result<ServerParsed<'a>, ProtocolError> {
    let Some((args, next)) = Arguments::<4>::read(buf, 3, limits, "MSG", "subject sid [reply] size")? else {
        return Ok(one_more(buf));
    };
    let (subject, sid, reply, size) = match *args.as_slice() {
        [subject, sid, size] => (subject, sid, None, size),
        [subject, sid, reply, size] => (subject, sid, Some(reply), size),
        _ => return Err(args.count_error()),
    };
    let sizes = Sizes::new(0, scan::number(size, "MSG")?, limits, "MSG")?;
    Ok(match scan::body(buf, next, sizes)? {
        Ok(Body { header, payload, next }) => {
            Progress::Op(ServerOp::Msg { subject, sid, reply, header, payload }, next)
        }
        Err(need) => Progress::Incomplete { need },
    })
}

fn message_with_header<'a>(buf: &'a [u8], limits: &Limits) -> Result<ServerParsed<'a>, ProtocolError> {
    let Some((args, next)) =
        Arguments::<5>::read(buf, 4, limits, "HMSG", "subject sid [reply] header-size total-size")?
    else {
        return Ok(one_more(buf));
    };
    let (subject, sid, reply, header, total) = match *args.as_slice() {
        [subject, sid, header, total] => (subject, sid, None, header, total),
        [subject, sid, reply, header, total] => (subject, sid, Some(reply), header, total),
        _ => return Err(args.count_error()),
    };
    let sizes = Sizes::new(scan::number(header, "HMSG")?, scan::number(total, "HMSG")?, limits, "HMSG")?;
    Ok(match scan::body(buf, next, sizes)? {
        Ok(Body { header, payload, next }) => {
            Progress::Op(ServerOp::Msg { subject, sid, reply, header, payload }, next)
        }
        Err(need) => Progress::Incomplete { need },
    })
}

/// Everything but a message that has more than four bytes: the other verbs, and short buffers.
#[inline(never)]
fn seldom<'a>(buf: &'a [u8], limits: &Limits) -> Result<ServerParsed<'a>, ProtocolError> {
    /// The verbs, and whether a separator must follow at once.
    const VERBS: [(&[u8], bool); 7] = [
        (b"+OK", false),
        (b"PING", false),
        (b"PONG", false),
        (b"MSG", true),
        (b"HMSG", true),
        (b"INFO", true),
        (b"-ERR", true),
    ];
    if buf.is_empty() {
        return Ok(one_more(buf));
    }
    for (verb, separated) in VERBS {
        match scan::starts(buf, verb) {
            Start::Other => continue,
            Start::Part => return Ok(one_more(buf)),
            Start::Whole => {}
        }
        return match buf.get(verb.len()) {
            None => Ok(one_more(buf)),
            Some(&behind) if separated && !is_separator(behind) => Err(scan::unknown(buf)),
            Some(_) => simple(verb, buf, limits),
        };
    }
    Err(scan::unknown(buf))
}

fn simple<'a>(verb: &[u8], buf: &'a [u8], limits: &Limits) -> Result<ServerParsed<'a>, ProtocolError> {
    match verb {
        b"MSG" => return message(buf, limits),
        b"HMSG" => return message_with_header(buf, limits),
        _ => {}
    }
    let Some(line) = scan::line(buf, verb.len(), limits)? else {
        return Ok(one_more(buf));
    };
    let op = match verb {
        b"PING" => ServerOp::Ping,
        b"PONG" => ServerOp::Pong,
        b"+OK" => ServerOp::Ok,
        b"-ERR" => ServerOp::Err(unquoted(line.text.trim_ascii())),
        _ => ServerOp::Info(line.text.trim_ascii()),
    };
    Ok(Progress::Op(op, line.next))
}

fn one_more<Op>(buf: &[u8]) -> Progress<Op> {
    Progress::Incomplete { need: buf.len() + 1 }
}

fn unquoted(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"'").and_then(|text| text.strip_suffix(b"'")).unwrap_or(text)
}

/// Appends `CONNECT`.
pub fn connect(out: &mut Vec<u8>, options: &ConnectOptions) {
    out.extend_from_slice(b"CONNECT ");
    serde_json::to_writer(&mut *out, options).expect("strings, numbers and flags always become JSON");
    out.extend_from_slice(b"\r\n");
}

/// Appends a publish: `PUB`, or `HPUB` when there is a header block.
#[inline]
pub fn publish(
    out: &mut Vec<u8>,
    subject: &[u8],
    reply: Option<&[u8]>,
    header: Option<&[u8]>,
    payload: &[u8],
) {
    let optional = reply.map_or(0, <[u8]>::len) + header.map_or(0, <[u8]>::len);
    out.reserve(64 + subject.len() + optional + payload.len());
    out.extend_from_slice(if header.is_some() { b"HPUB " } else { b"PUB " });
    out.extend_from_slice(subject);
    out.push(b' ');
    if let Some(reply) = reply {
        out.extend_from_slice(reply);
        out.push(b' ');
    }
    let header_len = header.map_or(0, <[u8]>::len);
    let mut digits = itoa::Buffer::new();
    if header.is_some() {
        out.extend_from_slice(digits.format(header_len).as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(digits.format(header_len + payload.len()).as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(header.unwrap_or_default());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Appends `SUB`.
pub fn subscribe(out: &mut Vec<u8>, subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) {
    out.extend_from_slice(b"SUB ");
    out.extend_from_slice(subject);
    out.push(b' ');
    if let Some(queue) = queue {
        out.extend_from_slice(queue);
        out.push(b' ');
    }
    out.extend_from_slice(sid);
    out.extend_from_slice(b"\r\n");
}

/// Appends `UNSUB`, after `max` deliveries or now.
pub fn unsubscribe(out: &mut Vec<u8>, sid: &[u8], max: Option<u64>) {
    out.extend_from_slice(b"UNSUB ");
    out.extend_from_slice(sid);
    if let Some(max) = max {
        out.push(b' ');
        out.extend_from_slice(itoa::Buffer::new().format(max).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

pub use crate::encode::{ping, pong};
