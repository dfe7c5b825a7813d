//! What must hold for any input: splits change nothing, garbage is survived, what is written is
//! read back.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use trunkline_protocol::client::{self, ServerOp, parse_server};
use trunkline_protocol::{
    ClientOp, HeaderBlock, Limits, PlainPub, Progress, ProtocolError, encode, header_lines, parse,
    strip_headers,
};

const LIMITS: Limits = Limits { max_control_line: 256, max_payload: 1024 };

/// An operation that owns its bytes, of either side.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owned {
    Ping,
    Pong,
    Ok,
    Info(Vec<u8>),
    Err(Vec<u8>),
    Connect(Vec<u8>),
    Msg { subject: Vec<u8>, sid: Vec<u8>, reply: Option<Vec<u8>>, header: Option<Vec<u8>>, payload: Vec<u8> },
    Sub { subject: Vec<u8>, queue: Option<Vec<u8>>, sid: Vec<u8> },
    Unsub { sid: Vec<u8>, max: Option<u64> },
}

impl From<ClientOp<'_>> for Owned {
    fn from(op: ClientOp<'_>) -> Self {
        match op {
            ClientOp::Connect(json) => Self::Connect(json.to_vec()),
            ClientOp::Ping => Self::Ping,
            ClientOp::Pong => Self::Pong,
            ClientOp::Ok => Self::Ok,
            ClientOp::Info => Self::Info(Vec::new()),
            ClientOp::Err(text) => Self::Err(text.to_vec()),
            ClientOp::Pub { subject, reply, header, payload } => Self::Msg {
                subject: subject.to_vec(),
                sid: Vec::new(),
                reply: reply.map(<[u8]>::to_vec),
                header: header.map(<[u8]>::to_vec),
                payload: payload.to_vec(),
            },
            ClientOp::Sub { subject, queue, sid } => {
                Self::Sub { subject: subject.to_vec(), queue: queue.map(<[u8]>::to_vec), sid: sid.to_vec() }
            }
            ClientOp::Unsub { sid, max } => Self::Unsub { sid: sid.to_vec(), max },
        }
    }
}

impl From<ServerOp<'_>> for Owned {
    fn from(op: ServerOp<'_>) -> Self {
        match op {
            ServerOp::Info(json) => Self::Info(json.to_vec()),
            ServerOp::Ping => Self::Ping,
            ServerOp::Pong => Self::Pong,
            ServerOp::Ok => Self::Ok,
            ServerOp::Err(text) => Self::Err(text.to_vec()),
            ServerOp::Msg { subject, sid, reply, header, payload } => Self::Msg {
                subject: subject.to_vec(),
                sid: sid.to_vec(),
                reply: reply.map(<[u8]>::to_vec),
                header: header.map(<[u8]>::to_vec),
                payload: payload.to_vec(),
            },
        }
    }
}

impl Owned {
    fn write_as_client(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ping => client::ping(out),
            Self::Pong => client::pong(out),
            Self::Ok => encode::ok(out),
            Self::Info(_) => out.extend_from_slice(b"INFO {}\r\n"),
            Self::Err(text) => out.extend_from_slice(&[b"-ERR ", &text[..], b"\r\n"].concat()),
            Self::Connect(json) => out.extend_from_slice(&[b"CONNECT ", &json[..], b"\r\n"].concat()),
            Self::Msg { subject, reply, header, payload, .. } => {
                client::publish(out, subject, reply.as_deref(), header.as_deref(), payload);
            }
            Self::Sub { subject, queue, sid } => client::subscribe(out, subject, queue.as_deref(), sid),
            Self::Unsub { sid, max } => client::unsubscribe(out, sid, *max),
        }
    }

    fn write_as_server(&self, out: &mut Vec<u8>) {
        match self {
            Self::Info(json) => out.extend_from_slice(&[b"INFO ", &json[..], b"\r\n"].concat()),
            Self::Err(text) => out.extend_from_slice(&[b"-ERR '", &text[..], b"'\r\n"].concat()),
            Self::Msg { subject, sid, reply, header, payload } => {
                encode::msg(out, subject, sid, reply.as_deref(), header.as_deref(), payload);
            }
            Self::Ping => encode::ping(out),
            Self::Pong => encode::pong(out),
            Self::Ok => encode::ok(out),
            Self::Connect(_) | Self::Sub { .. } | Self::Unsub { .. } => {
                unreachable!("no server sends {self:?}")
            }
        }
    }
}

/// A subject, sid, reply or queue group: anything that is not a separator or a line end.
fn token() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>().prop_filter("a separator", |byte| !b" \t\r\n".contains(byte)), 1..20)
}

/// The start of a header block is not looked at by the parsers, so any bytes will do; but it is not
/// empty.
fn header() -> impl Strategy<Value = Option<Vec<u8>>> {
    option::of(vec(any::<u8>(), 1..60))
}

/// Payloads are often made of bytes that mean something to the protocol.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..200),
        vec(prop::sample::select(b"\r\n PUB019".to_vec()), 0..40),
        vec(any::<u8>(), 900..=960),
    ]
}

fn message(sid: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Owned> {
    (token(), sid, option::of(token()), header(), payload()).prop_map(
        |(subject, sid, reply, header, payload)| Owned::Msg { subject, sid, reply, header, payload },
    )
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    "[a-z{}\":]([a-z{}\": ]{0,80}[a-z{}\":])?".prop_map(String::into_bytes)
}

fn client_op() -> impl Strategy<Value = Owned> {
    prop_oneof![
        6 => message(Just(Vec::new())),
        2 => (token(), option::of(token()), token())
            .prop_map(|(subject, queue, sid)| Owned::Sub { subject, queue, sid }),
        2 => (token(), option::of(1..10_000_000_000_000_000_000_u64)).prop_map(|(sid, max)| Owned::Unsub { sid, max }),
        1 => text().prop_map(Owned::Connect),
        1 => Just(Owned::Ping),
        1 => Just(Owned::Pong),
        1 => Just(Owned::Ok),
        1 => Just(Owned::Info(Vec::new())),
        1 => text().prop_map(Owned::Err),
    ]
}

fn server_op() -> impl Strategy<Value = Owned> {
    prop_oneof![
        6 => message(token()),
        1 => text().prop_map(Owned::Info),
        1 => Just(Owned::Ping),
        1 => Just(Owned::Pong),
        1 => Just(Owned::Ok),
        1 => text().prop_map(Owned::Err),
    ]
}

fn publish(out: &mut Vec<u8>, verb: &str, subject: &str, zeros: &str, end: &str, payload: &[u8]) {
    out.extend_from_slice(format!("{verb} {subject}{zeros}{}{end}", payload.len()).as_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// A publish, mostly on the same subject and written in the same way as the others.
fn plain_line() -> impl Strategy<Value = Vec<u8>> {
    let seldom = |usual, others: &'static [&'static str]| prop_oneof![12 => Just(usual), 1 => prop::sample::select(others)];
    let verb = seldom("PUB", &["pub", "PuB", "HPUB"]);
    let subject = seldom("a.b ", &["a.b  ", "\ta.b\t", "a.c ", "a.b r ", "a.b 0 ", "a.bc ", "a "]);
    let zeros = seldom("", &["0", "00", "1", "99999999999"]);
    let end = seldom("\r\n", &["\n", " \r\n", "\r\n\r\n", "\r"]);
    (verb, subject, zeros, end, payload()).prop_map(|(verb, subject, zeros, end, payload)| {
        let mut out = Vec::new();
        publish(&mut out, verb, subject, zeros, end, &payload);
        out
    })
}

/// Either parser, with what it finds copied out.
type Parser = fn(&[u8]) -> Result<Progress<Owned>, ProtocolError>;

fn from_client(buf: &[u8]) -> Result<Progress<Owned>, ProtocolError> {
    Ok(match parse(buf, &LIMITS)? {
        Progress::Op(op, consumed) => Progress::Op(op.into(), consumed),
        Progress::Incomplete { need } => Progress::Incomplete { need },
    })
}

fn from_server(buf: &[u8]) -> Result<Progress<Owned>, ProtocolError> {
    Ok(match parse_server(buf, &LIMITS)? {
        Progress::Op(op, consumed) => Progress::Op(op.into(), consumed),
        Progress::Incomplete { need } => Progress::Incomplete { need },
    })
}

/// Feeds `bytes` as reads of the given sizes, the way a connection does: it keeps the unparsed
/// rest, and asks again only when `need` is met. Gives the operations found and the bytes left
/// over, or the first error.
fn feed(parser: Parser, bytes: &[u8], reads: &[usize]) -> Result<(Vec<Owned>, usize), ProtocolError> {
    let mut ops = Vec::new();
    let (mut start, mut end, mut need) = (0, 0, 1);
    let mut reads = reads.iter().copied().cycle();
    while end < bytes.len() {
        end = bytes.len().min(end + reads.next().unwrap_or(1).max(1));
        while end - start >= need {
            match parser(&bytes[start..end])? {
                Progress::Op(op, consumed) => {
                    assert!(
                        0 < consumed && consumed <= end - start,
                        "{consumed} bytes consumed of {}",
                        end - start
                    );
                    ops.push(op);
                    (start, need) = (start + consumed, 1);
                }
                Progress::Incomplete { need: more } => {
                    assert!(more > end - start, "{more} needed, {} there", end - start);
                    need = more;
                }
            }
        }
    }
    Ok((ops, bytes.len() - start))
}

proptest! {
    #[test]
    fn any_split_of_client_operations_reads_as_the_same_operations(
        ops in vec(client_op(), 1..8),
        reads in vec(1..80_usize, 1..10),
    ) {
        let mut bytes = Vec::new();
        ops.iter().for_each(|op| op.write_as_client(&mut bytes));
        prop_assert_eq!(feed(from_client, &bytes, &[bytes.len()]), Ok((ops.clone(), 0)));
        prop_assert_eq!(feed(from_client, &bytes, &[1]), Ok((ops.clone(), 0)));
        prop_assert_eq!(feed(from_client, &bytes, &reads), Ok((ops, 0)));
    }

    #[test]
    fn a_publish_that_is_read_from_the_one_before_it_is_the_one_that_is_there(
        lines in vec(plain_line(), 2..6),
        garbled in option::of((any::<prop::sample::Index>(), any::<u8>())),
        end in any::<prop::sample::Index>(),
    ) {
        let mut bytes = lines.concat();
        if let Some((at, byte)) = garbled {
            *at.get_mut(&mut bytes) = byte;
        }
        bytes.truncate(end.index(bytes.len() + 1).max(bytes.len() / 2));
        let Ok(Progress::Op(ClientOp::Pub { subject, reply: None, header: None, payload }, taken)) = parse(&bytes, &LIMITS)
        else {
            return Ok(());
        };
        let Some(mut last) = PlainPub::new(&bytes[..taken], payload.len()) else { return Ok(()) };
        prop_assert_eq!((last.payload(), last.len()), (payload, taken));
        let mut at = taken;
        while let Some(next) = last.next(&bytes[at..], &LIMITS) {
            let payload = next.payload();
            let op = ClientOp::Pub { subject, reply: None, header: None, payload };
            prop_assert_eq!(parse(&bytes[at..], &LIMITS), Ok(Progress::Op(op, next.len())));
            prop_assert_eq!(Some(next), PlainPub::new(&bytes[at..at + next.len()], payload.len()));
            let mut written = Vec::new();
            encode::msg(&mut written, subject, b"7", None, None, payload);
            let mut copied = Vec::new();
            encode::plain_msgs(&mut copied, subject, b"7", &[next]);
            prop_assert_eq!(copied, written);
            at += next.len();
            last = next;
        }
    }

    #[test]
    fn publishes_on_one_subject_that_are_written_alike_are_all_read_from_the_first(
        payloads in vec(payload(), 1..6),
        limit in 0..2000_usize,
    ) {
        let mut bytes = Vec::new();
        payloads.iter().for_each(|payload| publish(&mut bytes, "PUB", "a.b ", "", "\r\n", payload));
        let limits = Limits { max_payload: limit, ..LIMITS };
        let within = payloads.iter().take_while(|payload| payload.len() <= limit).count();
        let Ok(Progress::Op(_, first)) = parse(&bytes, &limits) else {
            prop_assert_eq!(within, 0);
            return Ok(());
        };
        let mut at = first;
        let mut last = PlainPub::new(&bytes[..first], payloads[0].len()).unwrap();
        for payload in &payloads[1..within] {
            last = last.next(&bytes[at..], &limits).unwrap();
            prop_assert_eq!(last.payload(), &payload[..]);
            at += last.len();
        }
        prop_assert_eq!(last.next(&bytes[at..], &limits), None);
    }

    #[test]
    fn any_split_of_server_operations_reads_as_the_same_operations(
        ops in vec(server_op(), 1..8),
        reads in vec(1..80_usize, 1..10),
    ) {
        let mut bytes = Vec::new();
        ops.iter().for_each(|op| op.write_as_server(&mut bytes));
        prop_assert_eq!(feed(from_server, &bytes, &[bytes.len()]), Ok((ops.clone(), 0)));
        prop_assert_eq!(feed(from_server, &bytes, &[1]), Ok((ops.clone(), 0)));
        prop_assert_eq!(feed(from_server, &bytes, &reads), Ok((ops, 0)));
    }

    #[test]
    fn garbage_is_answered_alike_however_it_is_split(
        garbage in prop_oneof![
            vec(any::<u8>(), 0..300),
            vec(prop::sample::select(b"HPUBSUNSUBMSGINFOPINGPONG+OK-ERR \t\r\n0123".to_vec()), 0..60),
            // Mostly well-formed: a sequence of operations with some of its bytes changed.
            (vec(client_op(), 1..4), vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)).prop_map(|(ops, changes)| {
                let mut bytes = Vec::new();
                ops.iter().for_each(|op| op.write_as_client(&mut bytes));
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                bytes
            }),
        ],
        reads in vec(1..80_usize, 1..10),
    ) {
        for parser in [from_client as Parser, from_server] {
            let wire = |result: Result<(Vec<Owned>, usize), ProtocolError>| result.map_err(|error| error.wire());
            let whole = wire(feed(parser, &garbage, &[garbage.len()]));
            prop_assert_eq!(&wire(feed(parser, &garbage, &[1])), &whole);
            prop_assert_eq!(&wire(feed(parser, &garbage, &reads)), &whole);
        }
    }

    #[test]
    fn header_blocks_read_as_they_were_written(
        headers in vec(("[!-9;-~]{1,12}", "([!-~å]([ -~å]{0,30}[!-~å])?)?"), 0..6),
        status in option::of((100..=999_u16, "([!-~]([ -~]{0,20}[!-~])?)?")),
        payload in payload(),
    ) {
        let mut message = Vec::new();
        let mut block = match &status {
            None => HeaderBlock::new(&mut message),
            Some((status, text)) => HeaderBlock::with_status(&mut message, *status, text.as_bytes())?,
        };
        for (name, value) in &headers {
            block.append(name.as_bytes(), value.as_bytes())?;
        }
        let len = block.finish();
        prop_assert_eq!(len, message.len());
        message.extend_from_slice(&payload);

        prop_assert_eq!(strip_headers(&message), Ok(&payload[..]));
        let lines = header_lines(&message[..len])?;
        prop_assert_eq!(lines.status(), status.as_ref().map(|(status, _)| *status));
        let text = status.as_ref().map(|(_, text)| text.as_bytes()).filter(|text| !text.is_empty());
        prop_assert_eq!(lines.description(), text);
        let expected: Vec<_> = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        prop_assert_eq!(lines.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn garbage_in_a_header_block_is_survived(
        garbage in prop_oneof![
            vec(any::<u8>(), 0..100),
            vec(prop::sample::select(b"ab:  \r\n0123".to_vec()), 0..60),
        ],
        framed in any::<bool>(),
    ) {
        let block = if framed { [b"NATS/1.0", &garbage[..], b"\r\n\r\n"].concat() } else { garbage };
        if let Ok(lines) = header_lines(&block) {
            for (name, value) in lines {
                prop_assert!(!name.is_empty());
                prop_assert!(!name.contains(&b'\n') && !name.contains(&b'\r'));
                prop_assert!(!value.contains(&b'\n') && !value.contains(&b'\r'));
            }
            prop_assert_eq!(strip_headers(&block), Ok(&b""[..]));
        }
    }
}
