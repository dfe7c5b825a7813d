//! What servers send, as a client reads it, and what a client writes.

use trunkline_protocol::client::{self, LIMITS, ServerOp, ServerParsed, parse_server};
use trunkline_protocol::{ConnectOptions, ProtocolError, encode};

fn msg<'a>(
    subject: &'a str,
    sid: &'a str,
    reply: Option<&'a str>,
    header: Option<&'a str>,
    payload: &'a str,
) -> ServerOp<'a> {
    ServerOp::Msg {
        subject: subject.as_bytes(),
        sid: sid.as_bytes(),
        reply: reply.map(str::as_bytes),
        header: header.map(str::as_bytes),
        payload: payload.as_bytes(),
    }
}

#[test]
fn server_operations_are_read() {
    fn check(text: &str, expected: ServerOp<'_>) {
        let whole = text.as_bytes();
        assert_eq!(parse_server(whole, &LIMITS), Ok(ServerParsed::Op(expected, whole.len())), "{text:?}");
        for len in 0..whole.len() {
            match parse_server(&whole[..len], &LIMITS) {
                Ok(ServerParsed::Incomplete { need }) => {
                    assert!(len < need && need <= whole.len(), "{len} bytes of {text:?} need {need}");
                }
                other => panic!("{len} bytes of {text:?}: {other:?}"),
            }
        }
    }
    check("INFO {\"a\":1} \r\n", ServerOp::Info(b"{\"a\":1}"));
    check("PING\r\n", ServerOp::Ping);
    check("PONG\r\n", ServerOp::Pong);
    check("+OK\r\n", ServerOp::Ok);
    check("-ERR 'Stale Connection'\r\n", ServerOp::Err(b"Stale Connection"));
    check("-ERR bare\n", ServerOp::Err(b"bare"));
    check("MSG a 1 2\r\nhi\r\n", msg("a", "1", None, None, "hi"));
    check("msg a 1 r 0\r\n\r\n", msg("a", "1", Some("r"), None, ""));
    check("HMSG a 1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", msg("a", "1", None, Some("NATS/1.0\r\n\r\n"), "hi"));
    check(
        "HMSG r 3 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
        msg("r", "3", None, Some("NATS/1.0 503\r\n\r\n"), ""),
    );
    check("HMSG a 1 r 12 12\r\nNATS/1.0\r\n\r\n\r\n", msg("a", "1", Some("r"), Some("NATS/1.0\r\n\r\n"), ""));
}

#[test]
fn what_no_server_sends_is_refused() {
    fn check(text: &str, expected: &str) {
        match parse_server(text.as_bytes(), &LIMITS) {
            Err(error) => assert_eq!(error.to_string(), expected, "{text:?}"),
            Ok(parsed) => panic!("{text:?}: {parsed:?}"),
        }
    }
    check("PUB a 1\r\n", "unknown operation \"PUB a 1\"");
    check("MSG\r\n", "unknown operation \"MSG\"");
    check("MSG a 1\r\n", "MSG: wrong number of arguments, expected subject sid [reply] size");
    check("MSG a 1 r 2 3\r\n", "MSG: wrong number of arguments, expected subject sid [reply] size");
    check("MSG a 1 x\r\n", "MSG: \"x\" is not a number of at most 19 digits");
    check("MSG a 1 1\r\nhi\r\n", "payload of 1 bytes is not followed by CRLF");
    check(
        "HMSG a 1 3\r\n",
        "HMSG: wrong number of arguments, expected subject sid [reply] header-size total-size",
    );
    check("HMSG a 1 3 2\r\n", "HMSG: header of 3 bytes in a message of 2");
    assert_eq!(
        parse_server(b"MSG a 1 67108865\r\n", &LIMITS),
        Err(ProtocolError::MaxPayload { size: 67_108_865, limit: 67_108_864 })
    );
}

#[test]
fn client_lines_are_snapshots() {
    fn check(write: impl Fn(&mut Vec<u8>), expected: &str) {
        let mut out = Vec::new();
        write(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
    check(|out| client::publish(out, b"a", None, None, b"hi"), "PUB a 2\r\nhi\r\n");
    check(|out| client::publish(out, b"a", Some(b"r"), None, b""), "PUB a r 0\r\n\r\n");
    check(
        |out| client::publish(out, b"a", Some(b"r"), Some(b"NATS/1.0\r\n\r\n"), b"hi"),
        "HPUB a r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
    );
    check(|out| client::subscribe(out, b"a.>", None, b"1"), "SUB a.> 1\r\n");
    check(|out| client::subscribe(out, b"a", Some(b"q"), b"1"), "SUB a q 1\r\n");
    check(|out| client::unsubscribe(out, b"1", None), "UNSUB 1\r\n");
    check(|out| client::unsubscribe(out, b"1", Some(5)), "UNSUB 1 5\r\n");
    check(client::ping, "PING\r\n");
    check(client::pong, "PONG\r\n");
    let options = ConnectOptions { verbose: false, name: Some("n".into()), ..ConnectOptions::default() };
    check(
        |out| client::connect(out, &options),
        "CONNECT {\"verbose\":false,\"pedantic\":true,\"echo\":true,\"headers\":false,\"no_responders\":false,\
         \"tls_required\":false,\"protocol\":0,\"name\":\"n\"}\r\n",
    );
}

#[test]
fn a_no_responders_answer_reads_as_status_503() {
    let mut out = Vec::new();
    encode::no_responders(&mut out, b"_INBOX.1", b"4", b"a.b");
    let Ok(ServerParsed::Op(ServerOp::Msg { header: Some(header), payload, .. }, _)) =
        parse_server(&out, &LIMITS)
    else {
        panic!("{out:?}");
    };
    let lines = trunkline_protocol::header_lines(header).expect("a valid block");
    assert_eq!((lines.status(), payload), (Some(503), &b""[..]));
    assert_eq!(lines.collect::<Vec<_>>(), [(&b"Nats-Subject"[..], &b"a.b"[..])]);
}
