//! What clients send, operation by operation, for who wants to see it: nats-server's `-V`.
//!
//! It is asked for by the level `trace` of the target [`PROTOCOL_TRACE`]. Where nobody asks, a batch pays for one look at a
//! flag.

use trunkline_protocol::ClientOp;

use crate::client::Client;

/// The target of events that show what clients send; at level `trace`.
pub const PROTOCOL_TRACE: &str = "trunkline_server::protocol";

/// Whether anybody wants to see it.
#[inline]
pub(crate) fn is_wanted() -> bool {
    tracing::enabled!(target: PROTOCOL_TRACE, tracing::Level::TRACE)
}

/// Shows an operation, in nats-server's form. Secrets in it are not shown, and what is in messages only where `payloads` are
/// asked for.
#[cold]
pub(crate) fn received(client: &Client, op: &ClientOp<'_>, payloads: bool) {
    let line = describe(op);
    tracing::trace!(target: PROTOCOL_TRACE, client = client.id, address = %client.address, "<<- [{line}]");
    if let ClientOp::Pub { header, payload, .. } = op
        && payloads
    {
        let text = [header.unwrap_or_default(), payload].concat();
        let text = String::from_utf8_lossy(&text);
        tracing::trace!(target: PROTOCOL_TRACE, client = client.id, address = %client.address, "<<- MSG_PAYLOAD: [{text:?}]");
    }
}

fn describe(op: &ClientOp<'_>) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes);
    // What is not given leaves no gap.
    let optional = |bytes: &Option<_>| bytes.map_or_else(String::new, |bytes| format!(" {}", text(bytes)));
    match op {
        ClientOp::Connect(json) => format!("CONNECT {}", without_secrets(json)),
        ClientOp::Ping => "PING".to_owned(),
        ClientOp::Pong => "PONG".to_owned(),
        ClientOp::Pub { subject, reply, header: None, payload } => {
            format!("PUB {}{} {}", text(subject), optional(reply), payload.len())
        }
        ClientOp::Pub { subject, reply, header: Some(header), payload } => {
            let (headers, total) = (header.len(), header.len() + payload.len());
            format!("HPUB {}{} {headers} {total}", text(subject), optional(reply))
        }
        ClientOp::Sub { subject, queue, sid } => {
            format!("SUB {}{} {}", text(subject), optional(queue), text(sid))
        }
        ClientOp::Unsub { sid, max } => {
            format!("UNSUB {}{}", text(sid), max.map_or_else(String::new, |max| format!(" {max}")))
        }
        ClientOp::Ok => "+OK".to_owned(),
        ClientOp::Err(error) => format!("-ERR {}", text(error)),
        ClientOp::Info => "INFO".to_owned(),
    }
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
