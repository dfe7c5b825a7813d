//! What clients send and what they are sent, operation by operation, for who wants to see it: nats-server's `-V`.
//!
//! It is asked for by the level `trace` of the target [`PROTOCOL_TRACE`]. Where nobody asks, a batch pays for one look at a
//! flag when it is read, and for another where it is written.

use std::io::IoSlice;

use trunkline_protocol::client::{LIMITS, ServerOp, parse_server};
use trunkline_protocol::{ClientOp, Progress};

use crate::client::Client;

/// The target of events that show what clients send and what they are sent; at level `trace`. An event with a field
/// `payload` has the bytes of the message that the event before it is about, `header_bytes` of them its headers.
pub const PROTOCOL_TRACE: &str = "trunkline_server::protocol";

/// An event about a client: with its number, its address, and who it says it is.
macro_rules! about {
    ($level:ident, $client:expr, $($rest:tt)+) => {
        $crate::trace::about!(target: module_path!(), $level, $client, $($rest)+)
    };
    (target: $target:expr, $level:ident, $client:expr, $($rest:tt)+) => {
        tracing::$level!(
            target: $target,
            client = $client.id,
            address = %$client.address,
            via = $client.via(),
            name = $client.label(),
            login = $client.login(),
            $($rest)+
        )
    };
}
pub(crate) use about;

/// The same for who watches the protocol.
macro_rules! show {
    ($client:expr, $($rest:tt)+) => {
        about!(target: PROTOCOL_TRACE, trace, $client, $($rest)+)
    };
}

/// Whether anybody wants to see it.
#[inline]
pub(crate) fn is_wanted() -> bool {
    tracing::enabled!(target: PROTOCOL_TRACE, tracing::Level::TRACE)
}

/// Shows an operation of a client, in nats-server's form. Secrets in it are not shown, and what is in messages only to who
/// is to see that.
#[cold]
pub(crate) fn received(client: &Client, op: &ClientOp<'_>) {
    let line = describe(op);
    show!(client, "<<- [{line}]");
    if let ClientOp::Pub { header, payload, .. } = op
        && client.shows_payloads
    {
        let (header_bytes, payload) = (header.map_or(0, <[u8]>::len), with_header(*header, payload));
        show!(client, header_bytes, payload = &payload[..], "<<- MSG_PAYLOAD");
    }
}

/// Shows what a client is sent, as it is handed over to be sent.
#[cold]
pub(crate) fn sent(client: &Client, slices: &[IoSlice<'_>]) {
    let bytes = slices.iter().fold(Vec::new(), |mut bytes, slice| {
        bytes.extend_from_slice(slice);
        bytes
    });
    let mut rest = &bytes[..];
    // What is not whole is of another form, which nobody here writes.
    while let Ok(Progress::Op(op, taken)) = parse_server(rest, &LIMITS) {
        rest = &rest[taken..];
        // INFO is not shown by nats-server, either.
        let Some(line) = describe_sent(&op) else { continue };
        show!(client, "->> [{line}]");
        if let ServerOp::Msg { header, payload, .. } = op
            && client.shows_payloads
        {
            let (header_bytes, payload) = (header.map_or(0, <[u8]>::len), with_header(header, payload));
            show!(client, header_bytes, payload = &payload[..], "->> MSG_PAYLOAD");
        }
    }
}

/// Shows that a subscription is over.
#[cold]
pub(crate) fn unsubscribed(client: &Client, sid: &[u8]) {
    let sid = String::from_utf8_lossy(sid);
    show!(client, "<-> [DELSUB {sid}]");
}

fn with_header(header: Option<&[u8]>, payload: &[u8]) -> Vec<u8> {
    [header.unwrap_or_default(), payload].concat()
}

fn describe(op: &ClientOp<'_>) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes);
    match op {
        ClientOp::Connect(json) => format!("CONNECT {}", without_secrets(json)),
        ClientOp::Ping => "PING".to_owned(),
        ClientOp::Pong => "PONG".to_owned(),
        ClientOp::Pub { subject, reply, header: None, payload } => {
            format!("PUB {}{} {}", text(subject), optional(*reply), payload.len())
        }
        ClientOp::Pub { subject, reply, header: Some(header), payload } => {
            let (headers, total) = (header.len(), header.len() + payload.len());
            format!("HPUB {}{} {headers} {total}", text(subject), optional(*reply))
        }
        ClientOp::Sub { subject, queue, sid } => {
            format!("SUB {}{} {}", text(subject), optional(*queue), text(sid))
        }
        ClientOp::Unsub { sid, max } => {
            format!("UNSUB {}{}", text(sid), max.map_or_else(String::new, |max| format!(" {max}")))
        }
        ClientOp::Ok => "+OK".to_owned(),
        ClientOp::Err(error) => format!("-ERR {}", text(error)),
        ClientOp::Info => "INFO".to_owned(),
    }
}

/// `None` for what is not shown.
fn describe_sent(op: &ServerOp<'_>) -> Option<String> {
    let text = |bytes| String::from_utf8_lossy(bytes);
    Some(match op {
        ServerOp::Info(_) => return None,
        ServerOp::Ping => "PING".to_owned(),
        ServerOp::Pong => "PONG".to_owned(),
        ServerOp::Ok => "OK".to_owned(),
        ServerOp::Err(error) => format!("-ERR {}", text(error)),
        ServerOp::Msg { subject, sid, reply, header: None, payload } => {
            format!("MSG {} {}{} {}", text(subject), text(sid), optional(*reply), payload.len())
        }
        ServerOp::Msg { subject, sid, reply, header: Some(header), payload } => {
            let (headers, total) = (header.len(), header.len() + payload.len());
            format!("HMSG {} {}{} {headers} {total}", text(subject), text(sid), optional(*reply))
        }
    })
}

/// What is not given leaves no gap.
fn optional(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(String::new, |bytes| format!(" {}", String::from_utf8_lossy(bytes)))
}
/// Fields of CONNECT that anybody may know.
const SHOWN: [&str; 12] = [
    "verbose",
    "pedantic",
    "tls_required",
    "user",
    "nkey",
    "name",
    "lang",
    "version",
    "protocol",
    "echo",
    "headers",
    "no_responders",
];

/// CONNECT as JSON, with what only the client may know left out.
fn without_secrets(json: &[u8]) -> String {
    let Ok(mut object) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(json) else {
        // What is not understood may have a secret anywhere.
        return "[REDACTED]".to_owned();
    };
    // By what may be shown: who misspells the name of a secret has not given it away.
    for (name, value) in &mut object {
        if !SHOWN.contains(&name.as_str()) && !value.is_null() {
            *value = "[REDACTED]".into();
        }
    }
    serde_json::Value::from(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_look_as_on_nats_server() {
        let check = |op: ClientOp<'_>, line: &str| assert_eq!(describe(&op), line);
        check(ClientOp::Sub { subject: b"bar", queue: None, sid: b"1" }, "SUB bar 1");
        check(ClientOp::Sub { subject: b"q.*", queue: Some(b"w"), sid: b"2" }, "SUB q.* w 2");
        check(ClientOp::Pub { subject: b"foo", reply: None, header: None, payload: b"x" }, "PUB foo 1");
        let header = Some(&b"NATS/1.0\r\na: b\r\n\r\n"[..]);
        check(ClientOp::Pub { subject: b"bar", reply: None, header, payload: b"hello" }, "HPUB bar 18 23");
        check(ClientOp::Unsub { sid: b"1", max: None }, "UNSUB 1");
    }

    #[test]
    fn what_is_sent_looks_as_on_nats_server() {
        let check = |line: &str, shown: Option<&str>| {
            let Ok(Progress::Op(op, taken)) = parse_server(line.as_bytes(), &LIMITS) else {
                panic!("{line:?}");
            };
            assert_eq!(describe_sent(&op).as_deref(), shown, "{line:?}");
            assert_eq!(taken, line.len());
        };
        check("MSG foo 1 5\r\nhello\r\n", Some("MSG foo 1 5"));
        check("MSG foo 1 re 2\r\nhi\r\n", Some("MSG foo 1 re 2"));
        check("HMSG bar.x 3 re 18 20\r\nNATS/1.0\r\na: b\r\n\r\nhi\r\n", Some("HMSG bar.x 3 re 18 20"));
        check("+OK\r\n", Some("OK"));
        check("-ERR 'Invalid Subject'\r\n", Some("-ERR Invalid Subject"));
        check("INFO {}\r\n", None);
    }

    #[test]
    fn secrets_of_connect_are_not_shown() {
        let shown =
            describe(&ClientOp::Connect(br#"{"user":"a","pass":"s3cret","auth_token":"t0ken","sig":null}"#));
        assert_eq!(shown, r#"CONNECT {"user":"a","pass":"[REDACTED]","auth_token":"[REDACTED]","sig":null}"#);
        assert_eq!(describe(&ClientOp::Connect(b"s3cret")), "CONNECT [REDACTED]");
        let shown =
            describe(&ClientOp::Connect(br#"{"verbose":true,"password":"s3cret","jwt":"x","sig":"y"}"#));
        assert_eq!(
            shown,
            r#"CONNECT {"verbose":true,"password":"[REDACTED]","jwt":"[REDACTED]","sig":"[REDACTED]"}"#
        );
    }
}
