//! The parsers of both directions: where input is cut changes nothing, and what was read can be written and read again.

use trunkline_protocol::client::{self, ServerOp, parse_server};
use trunkline_protocol::{ClientOp, Limits, Progress, ProtocolError, encode, parse};

use crate::pieces;

const LIMITS: Limits = Limits { max_control_line: 128, max_payload: 256 };

/// What a parser found: operations as text, how many bytes are left, and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    operations: Vec<String>,
    left: usize,
    error: Option<&'static str>,
}

/// A parser, with what it finds shown as text and checked to be what it is when it is written again.
type Parser = fn(&[u8]) -> Result<Progress<String>, ProtocolError>;

/// Feeds pieces as a connection does: the rest of each is kept, and the parser asked again when `need` is met.
fn feed<'a>(parser: Parser, pieces: impl Iterator<Item = &'a [u8]>) -> Found {
    let (mut operations, mut kept, mut need) = (Vec::new(), Vec::new(), 1);
    for piece in pieces {
        kept.extend_from_slice(piece);
        let mut start = 0;
        while kept.len() - start >= need {
            match parser(&kept[start..]) {
                Ok(Progress::Op(operation, taken)) => {
                    assert!(0 < taken && taken <= kept.len() - start);
                    operations.push(operation);
                    (start, need) = (start + taken, 1);
                }
                Ok(Progress::Incomplete { need: more }) => {
                    assert!(more > kept.len() - start, "{more} are needed, which are there");
                    let most = LIMITS.max_control_line + LIMITS.max_payload + 16;
                    assert!(more <= most, "{more} are needed, {most} are allowed");
                    need = more;
                }
                Err(error) => {
                    assert!(error.to_string().len() < 300);
                    return Found { operations, left: 0, error: Some(error.wire()) };
                }
            }
        }
        kept.drain(..start);
    }
    // A size that was wrong may show one byte before there is enough to go on.
    let error = parser(&kept).err().map(|error| error.wire());
    Found { operations, left: if error.is_some() { 0 } else { kept.len() }, error }
}

fn check(parser: Parser, data: &[u8]) {
    let whole = feed(parser, [data].into_iter());
    let seed = data.first().copied().unwrap_or_default();
    assert_eq!(feed(parser, data.chunks(1)), whole, "byte by byte");
    assert_eq!(feed(parser, pieces(data, seed)), whole, "in pieces");
}

/// No argument of an operation could break the line that it is written to again.
fn is_argument(bytes: &[u8]) {
    assert!(!bytes.is_empty() && !bytes.iter().any(|byte| b" \t\r\n".contains(byte)), "{bytes:?}");
}

/// What clients send.
pub(crate) fn client_ops(data: &[u8]) {
    check(from_client, data);
}

fn from_client(buffer: &[u8]) -> Result<Progress<String>, ProtocolError> {
    Ok(match parse(buffer, &LIMITS)? {
        Progress::Op(op, taken) => {
            rewrite_client(&op);
            Progress::Op(format!("{op:?}"), taken)
        }
        Progress::Incomplete { need } => Progress::Incomplete { need },
    })
}

fn rewrite_client(op: &ClientOp<'_>) {
    let mut out = Vec::new();
    match *op {
        ClientOp::Pub { subject, reply, header, payload } => {
            is_argument(subject);
            reply.into_iter().for_each(is_argument);
            assert!(payload.len() + header.map_or(0, <[u8]>::len) <= LIMITS.max_payload);
            client::publish(&mut out, subject, reply, header, payload);
        }
        ClientOp::Sub { subject, queue, sid } => {
            [Some(subject), queue, Some(sid)].into_iter().flatten().for_each(is_argument);
            client::subscribe(&mut out, subject, queue, sid);
        }
        ClientOp::Unsub { sid, max } => {
            is_argument(sid);
            client::unsubscribe(&mut out, sid, max);
        }
        _ => return,
    }
    // A line with its arguments far apart may have been shorter than the limit allows for none.
    let limits = Limits { max_control_line: LIMITS.max_control_line + 64, ..LIMITS };
    assert_eq!(
        parse(&out, &limits),
        Ok(Progress::Op(*op, out.len())),
        "{:?}",
        out.escape_ascii().to_string()
    );
}

/// What servers send.
pub(crate) fn server_ops(data: &[u8]) {
    check(from_server, data);
}

fn from_server(buffer: &[u8]) -> Result<Progress<String>, ProtocolError> {
    Ok(match parse_server(buffer, &LIMITS)? {
        Progress::Op(op, taken) => {
            rewrite_server(&op);
            Progress::Op(format!("{op:?}"), taken)
        }
        Progress::Incomplete { need } => Progress::Incomplete { need },
    })
}

fn rewrite_server(op: &ServerOp<'_>) {
    let ServerOp::Msg { subject, sid, reply, header, payload } = *op else { return };
    [Some(subject), Some(sid), reply].into_iter().flatten().for_each(is_argument);
    let mut out = Vec::new();
    encode::msg(&mut out, subject, sid, reply, header, payload);
    let limits = Limits { max_control_line: LIMITS.max_control_line + 64, ..LIMITS };
    assert_eq!(parse_server(&out, &limits), Ok(Progress::Op(*op, out.len())));
}
