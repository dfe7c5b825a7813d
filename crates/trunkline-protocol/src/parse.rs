//! What clients send: the parser on the server's hottest path.
//!
//! It follows nats-server's rules for connections of kind CLIENT. Commands in any case; arguments
//! separated by runs of spaces and tabs; a control line ends in CRLF or in a bare LF, a payload in
//! CRLF only; whatever follows `PING`, `PONG` or `+OK` up to the line end is ignored; `INFO`, `+OK`
//! and `-ERR` are understood. It differs where nats-server would guess: a size of more than 9
//! digits is read rather than refused (and then exceeds the limit), a count that is not a number is
//! an error rather than "now", and so is a carriage return inside a line.

use crate::error::ProtocolError;
use crate::scan::{self, Arguments, Body, Sizes, Start, is_separator, verb3, verb4};

/// Bounds on what one operation may occupy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a control line's arguments; verb, first separator and line end are not
    /// counted. Default 4096. Key `server.limits.max_control_line`.
    pub max_control_line: usize,
    /// Most bytes of header block and payload together. Default 1 MiB. Key
    /// `server.limits.max_payload`.
    pub max_payload: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_control_line: 4096, max_payload: 1024 * 1024 }
    }
}

/// What the start of a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<Op> {
    /// A whole operation, and how many bytes it took.
    Op(Op, usize),
    /// The beginning of an operation.
    Incomplete {
        /// How many bytes the buffer must hold, counted from its start, before it is worth asking
        /// again: at least one more than it holds, and exactly the end of the operation once its
        /// control line was seen.
        need: usize,
    },
}

/// The answer of [`parse`].
pub type Parsed<'a> = Progress<ClientOp<'a>>;

/// One operation of a client. Slices borrow from the parsed buffer; subjects and sids are not
/// empty, contain no space, tab, CR or LF, and are not checked further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientOp<'a> {
    /// `CONNECT`, with its JSON text.
    Connect(&'a [u8]),
    /// `PING`
    Ping,
    /// `PONG`
    Pong,
    /// `PUB` or `HPUB`
    Pub {
        /// Where to.
        subject: &'a [u8],
        /// Where answers should go.
        reply: Option<&'a [u8]>,
        /// The header block as sent, from `NATS/1.0` to the empty line; `None` for `PUB`, and for
        /// `HPUB` with size 0.
        header: Option<&'a [u8]>,
        /// The bytes.
        payload: &'a [u8],
    },
    /// `SUB`
    Sub {
        /// The pattern to subscribe to.
        subject: &'a [u8],
        /// The queue group to join.
        queue: Option<&'a [u8]>,
        /// The client's name for the subscription.
        sid: &'a [u8],
    },
    /// `UNSUB`
    Unsub {
        /// The client's name for the subscription.
        sid: &'a [u8],
        /// After how many deliveries, those already made included; `None`, also for 0, is now.
        max: Option<u64>,
    },
    /// `+OK`, which means nothing from a client.
    Ok,
    /// `-ERR`, with its text; nats-server logs it and closes the connection.
    Err(&'a [u8]),
    /// `INFO`, which means nothing from a client.
    Info,
}

/// Reads the operation at the start of `buf`. Bytes behind it are not looked at.
///
/// # Errors
///
/// As soon as the bytes so far cannot become an operation; in particular
/// [`ProtocolError::MaxPayload`] comes before the payload does.
#[inline]
pub fn parse<'a>(buf: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, ProtocolError> {
    const PUB: u32 = verb3(*b"PUB\0");
    const SUB: u32 = verb3(*b"SUB\0");
    const HPUB: u32 = verb4(*b"HPUB");

    if let Some((head, &[after, ..])) = buf.split_first_chunk::<4>() {
        if verb3(*head) == PUB && is_separator(head[3]) {
            return publish(buf, limits);
        }
        if verb4(*head) == HPUB && is_separator(after) {
            return publish_with_header(buf, limits);
        }
        if verb3(*head) == SUB && is_separator(head[3]) {
            return subscribe(buf, limits);
        }
    }
    seldom(buf, limits)
}

#[inline(always)]
fn publish<'a>(buf: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, ProtocolError> {
    let Some((args, next)) = Arguments::<3>::read(buf, 3, limits, "PUB", "subject [reply] size")? else {
        return Ok(one_more(buf));
    };
    let (subject, reply, size) = match *args.as_slice() {
        [subject, size] => (subject, None, size),
        [subject, reply, size] => (subject, Some(reply), size),
        _ => return Err(args.count_error()),
    };
    let sizes = Sizes::new(0, scan::number(size, "PUB")?, limits, "PUB")?;
    with_body(buf, next, sizes, subject, reply)
}

fn publish_with_header<'a>(buf: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, ProtocolError> {
    let Some((args, next)) =
        Arguments::<4>::read(buf, 4, limits, "HPUB", "subject [reply] header-size total-size")?
    else {
        return Ok(one_more(buf));
    };
    let (subject, reply, header, total) = match *args.as_slice() {
        [subject, header, total] => (subject, None, header, total),
        [subject, reply, header, total] => (subject, Some(reply), header, total),
        _ => return Err(args.count_error()),
    };
    let sizes = Sizes::new(scan::number(header, "HPUB")?, scan::number(total, "HPUB")?, limits, "HPUB")?;
    with_body(buf, next, sizes, subject, reply)
}

#[inline(always)]
fn with_body<'a>(
    buf: &'a [u8],
    start: usize,
    sizes: Sizes,
    subject: &'a [u8],
    reply: Option<&'a [u8]>,
) -> Result<Parsed<'a>, ProtocolError> {
    Ok(match scan::body(buf, start, sizes)? {
        Ok(Body { header, payload, next }) => {
            Progress::Op(ClientOp::Pub { subject, reply, header, payload }, next)
        }
        Err(need) => Progress::Incomplete { need },
    })
}

fn subscribe<'a>(buf: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, ProtocolError> {
    let Some((args, next)) = Arguments::<3>::read(buf, 3, limits, "SUB", "subject [queue] sid")? else {
        return Ok(one_more(buf));
    };
    let (subject, queue, sid) = match *args.as_slice() {
        [subject, sid] => (subject, None, sid),
        [subject, queue, sid] => (subject, Some(queue), sid),
        _ => return Err(args.count_error()),
    };
    Ok(Progress::Op(ClientOp::Sub { subject, queue, sid }, next))
}

fn unsubscribe<'a>(buf: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, ProtocolError> {
    let Some((args, next)) = Arguments::<2>::read(buf, 5, limits, "UNSUB", "sid [max]")? else {
        return Ok(one_more(buf));
    };
    let (sid, max) = match *args.as_slice() {
        [sid] => (sid, None),
        [sid, max] => (sid, Some(scan::number(max, "UNSUB")?).filter(|&max| max > 0)),
        _ => return Err(args.count_error()),
    };
    Ok(Progress::Op(ClientOp::Unsub { sid, max }, next))
}

/// Everything but a publish or a subscribe that has more than four bytes: the other verbs, and
/// short buffers.
#[inline(never)]
fn seldom<'a>(buf: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, ProtocolError> {
    /// The verbs, and whether a separator must follow at once.
    const VERBS: [(&[u8], bool); 10] = [
        (b"PING", false),
        (b"PONG", false),
        (b"UNSUB", true),
        (b"CONNECT", false),
        (b"PUB", true),
        (b"SUB", true),
        (b"HPUB", true),
        (b"INFO", false),
        (b"+OK", false),
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

/// An operation whose `verb` was found, and behind it the separator it asks for.
fn simple<'a>(verb: &[u8], buf: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, ProtocolError> {
    match verb {
        b"PUB" => return publish(buf, limits),
        b"HPUB" => return publish_with_header(buf, limits),
        b"SUB" => return subscribe(buf, limits),
        b"UNSUB" => return unsubscribe(buf, limits),
        _ => {}
    }
    let Some(line) = scan::line(buf, verb.len(), limits)? else {
        return Ok(one_more(buf));
    };
    let op = match verb {
        b"PING" => ClientOp::Ping,
        b"PONG" => ClientOp::Pong,
        b"CONNECT" => ClientOp::Connect(scan::trim_start(line.text)),
        b"+OK" => ClientOp::Ok,
        b"-ERR" => ClientOp::Err(scan::trim_start(line.text)),
        _ => ClientOp::Info,
    };
    Ok(Progress::Op(op, line.next))
}

fn one_more<Op>(buf: &[u8]) -> Progress<Op> {
    Progress::Incomplete { need: buf.len() + 1 }
}
