//! What clients send: one table per rule, one `check` per boundary.

use trunkline_protocol::{ClientOp, Limits, Parsed, ProtocolError, parse};

fn msg<'a>(
    subject: &'a str,
    reply: Option<&'a str>,
    header: Option<&'a str>,
    payload: &'a str,
) -> ClientOp<'a> {
    ClientOp::Pub {
        subject: subject.as_bytes(),
        reply: reply.map(str::as_bytes),
        header: header.map(str::as_bytes),
        payload: payload.as_bytes(),
    }
}

fn sub<'a>(subject: &'a str, queue: Option<&'a str>, sid: &'a str) -> ClientOp<'a> {
    ClientOp::Sub { subject: subject.as_bytes(), queue: queue.map(str::as_bytes), sid: sid.as_bytes() }
}

fn unsub(sid: &str, max: Option<u64>) -> ClientOp<'_> {
    ClientOp::Unsub { sid: sid.as_bytes(), max }
}

/// `text` is one whole operation: alone, with another behind it, and only when its last byte is
/// there.
fn check(text: &str, expected: ClientOp<'_>) {
    let limits = Limits::default();
    let whole = text.as_bytes();
    assert_eq!(parse(whole, &limits), Ok(Parsed::Op(expected, whole.len())), "{text:?}");
    // Much behind it takes another path through the parser than little does.
    let followed = [whole, b"PUB next 200\r\n", &[b'x'; 200]].concat();
    assert_eq!(parse(&followed, &limits), Ok(Parsed::Op(expected, whole.len())), "{text:?} and more");
    for len in 0..whole.len() {
        match parse(&whole[..len], &limits) {
            Ok(Parsed::Incomplete { need }) => {
                assert!(len < need && need <= whole.len(), "{len} bytes of {text:?} need {need}");
            }
            other => panic!("{len} bytes of {text:?}: {other:?}"),
        }
    }
}

/// `text` is refused with the wire text and the message for people.
fn refuse(text: &str, wire: &str, display: &str) {
    match parse(text.as_bytes(), &Limits::default()) {
        Err(error) => {
            assert_eq!(error.wire(), wire, "{text:?}");
            assert_eq!(error.to_string(), display, "{text:?}");
        }
        Ok(parsed) => panic!("{text:?}: {parsed:?}"),
    }
    if text.ends_with('\n') {
        let followed = format!("{text}{}", "PING\r\n".repeat(20));
        let error = parse(followed.as_bytes(), &Limits::default()).expect_err(text);
        assert_eq!(error.wire(), wire, "{text:?} and more");
    }
}

#[test]
fn publishes_are_read_in_every_spelling() {
    check("PUB foo 5\r\nhello\r\n", msg("foo", None, None, "hello"));
    check("PUB foo bar 5\r\nhello\r\n", msg("foo", Some("bar"), None, "hello"));
    check("pub foo 0\r\n\r\n", msg("foo", None, None, ""));
    check("pUb\tfoo\t1\r\nx\r\n", msg("foo", None, None, "x"));
    check("PUB  \t foo \t  bar\t\t3 \t\r\nabc\r\n", msg("foo", Some("bar"), None, "abc"));
    check("PUB foo 3\nabc\r\n", msg("foo", None, None, "abc"));
    check("PUB foo 0000000000000000002\r\n\r\n\r\n", msg("foo", None, None, "\r\n"));
    check("PUB 5 5\r\n\n\r\n\r\n\r\n", msg("5", None, None, "\n\r\n\r\n"));
    check("PUB fo\u{1}å.* 1\r\n1\r\n", msg("fo\u{1}å.*", None, None, "1"));
}

#[test]
fn arguments_may_begin_and_end_at_any_byte_of_the_line() {
    for len in 1..140 {
        let (subject, reply) = ("s".repeat(len), "r".repeat(140 - len));
        check(&format!("PUB {subject} 1\r\nx\r\n"), msg(&subject, None, None, "x"));
        check(&format!("PUB\t{subject}\t{reply} 1\n1\r\n"), msg(&subject, Some(&reply), None, "1"));
        check(&format!("SUB {}{subject}  q\t1\r\n", " ".repeat(len)), sub(&subject, Some("q"), "1"));
        check(&format!("HPUB {subject} {reply} 1 2\r\nhp\r\n"), msg(&subject, Some(&reply), Some("h"), "p"));
    }
}

#[test]
fn publishes_with_headers_are_split_at_the_header_size() {
    let header = "NATS/1.0\r\nA: b\r\n\r\n";
    check("HPUB foo 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n", msg("foo", None, Some(header), "hi"));
    check("hpub foo bar 18 18\nNATS/1.0\r\nA: b\r\n\r\n\r\n", msg("foo", Some("bar"), Some(header), ""));
    check(
        "hPuB\tfoo  bar\t18\t 19 \r\nNATS/1.0\r\nA: b\r\n\r\n!\r\n",
        msg("foo", Some("bar"), Some(header), "!"),
    );
    check("HPUB foo 0 2\r\nhi\r\n", msg("foo", None, None, "hi"));
    check("HPUB foo 0 0\r\n\r\n", msg("foo", None, None, ""));
}

#[test]
fn subscribes_and_unsubscribes_are_read_in_every_spelling() {
    check("SUB foo 1\r\n", sub("foo", None, "1"));
    check("SUB foo.* q a-b\r\n", sub("foo.*", Some("q"), "a-b"));
    check("sub\t> \t 1 \r\n", sub(">", None, "1"));
    check("Sub foo 1\n", sub("foo", None, "1"));
    check("UNSUB 1\r\n", unsub("1", None));
    check("UNSUB 1 5\r\n", unsub("1", Some(5)));
    check("UNSUB 1 0\r\n", unsub("1", None));
    check("unsub\t1\t 18446744073 \n", unsub("1", Some(18_446_744_073)));
}

#[test]
fn connect_and_short_operations_are_read_in_every_spelling() {
    check("CONNECT {}\r\n", ClientOp::Connect(b"{}"));
    check("connect \t {\"a\": 1} \r\n", ClientOp::Connect(b"{\"a\": 1} "));
    check("CONNECT{}\n", ClientOp::Connect(b"{}"));
    check("CONNECT\r\n", ClientOp::Connect(b""));
    check("PING\r\n", ClientOp::Ping);
    check("ping\n", ClientOp::Ping);
    check("PING whatever follows\r\n", ClientOp::Ping);
    check("PONG\r\n", ClientOp::Pong);
    check("pOnG \n", ClientOp::Pong);
    check("+OK\r\n", ClientOp::Ok);
    check("INFO {}\r\n", ClientOp::Info);
    check("-ERR 'gone'\r\n", ClientOp::Err(b"'gone'"));
}

#[test]
fn other_operations_are_refused_at_their_first_wrong_byte() {
    fn check(text: &str) {
        let seen = text.lines().next().unwrap_or_default();
        refuse(
            text,
            "Unknown Protocol Operation",
            &format!("unknown operation \"{}\"", seen.as_bytes().escape_ascii()),
        );
    }
    check("X");
    check("PX");
    check("PUS");
    check("PUBX");
    check("PUB\r\n");
    check("PUB\n");
    check("PUBfoo 1\r\n");
    check("P\u{15}B foo 1\r\n");
    check("HPUB\r\n");
    check("HPUBS a 1");
    check("HMSG a 1 1 1\r\n");
    check("SUB\r\n");
    check("SUBS");
    check("UNSUB\r\n");
    check("UNSUBX");
    check("CONNEXT");
    check("MSG a 1 1\r\n");
    check("RMSG a 1 1\r\n");
    check("LMSG a 1 1\r\n");
    check("RS+ a b\r\n");
    check("A+ a\r\n");
    check("GET / HTTP/1.1\r\n");
    check(" PING\r\n");
    check("-ERR\r\n");
    check("\u{0}");
    refuse("\r\n", "Unknown Protocol Operation", "unknown operation \"\"");
}

#[test]
fn wrong_arguments_are_refused() {
    fn check(text: &str, display: &str) {
        refuse(text, "Parser Error", display);
    }
    let expected = "PUB: wrong number of arguments, expected subject [reply] size";
    check("PUB \r\n", expected);
    check("PUB foo\r\n", expected);
    check("PUB a b c 1\r\n", expected);
    check("PUB a b 1 x\r\n", expected);
    check("PUB foo bar\r\n", "PUB: \"bar\" is not a number of at most 19 digits");
    check("PUB foo -1\r\n", "PUB: \"-1\" is not a number of at most 19 digits");
    check("PUB foo +1\r\n", "PUB: \"+1\" is not a number of at most 19 digits");
    check("PUB foo 1.0\r\n", "PUB: \"1.0\" is not a number of at most 19 digits");
    check("PUB foo 0x1\r\n", "PUB: \"0x1\" is not a number of at most 19 digits");
    check("PUB foo 1:\r\n", "PUB: \"1:\" is not a number of at most 19 digits");
    check("PUB foo 1/\r\n", "PUB: \"1/\" is not a number of at most 19 digits");
    check(
        "PUB foo 18446744073709551616\r\n",
        "PUB: \"18446744073709551616\" is not a number of at most 19 digits",
    );
    check("PUB fo\ro 1\r\n", "PUB: carriage return inside the line");
    check("PUB foo 1\r\r\nx\r\n", "PUB: carriage return inside the line");
    check("PUB \r 1\r\n", "PUB: carriage return inside the line");

    let expected = "HPUB: wrong number of arguments, expected subject [reply] header-size total-size";
    check("HPUB foo\r\n", expected);
    check("HPUB foo 1\r\n", expected);
    check("HPUB a b c 1 2\r\n", expected);
    check("HPUB foo x 2\r\n", "HPUB: \"x\" is not a number of at most 19 digits");
    check("HPUB foo 2 x\r\n", "HPUB: \"x\" is not a number of at most 19 digits");
    check("HPUB foo 3 2\r\n", "HPUB: header of 3 bytes in a message of 2");

    check("SUB foo\r\n", "SUB: wrong number of arguments, expected subject [queue] sid");
    check("SUB a b c d\r\n", "SUB: wrong number of arguments, expected subject [queue] sid");
    check("SUB a\rb 1\r\n", "SUB: carriage return inside the line");
    check("UNSUB \r\n", "UNSUB: wrong number of arguments, expected sid [max]");
    check("UNSUB 1 2 3\r\n", "UNSUB: wrong number of arguments, expected sid [max]");
    check("UNSUB 1 all\r\n", "UNSUB: \"all\" is not a number of at most 19 digits");
    check("UNSUB 1 -1\r\n", "UNSUB: \"-1\" is not a number of at most 19 digits");
}

#[test]
fn a_payload_must_be_followed_by_crlf() {
    fn check(text: &str, size: usize) {
        let display = format!("payload of {size} bytes is not followed by CRLF");
        refuse(text, "Unknown Protocol Operation", &display);
    }
    check("PUB foo 5\r\nhello!\r\n", 5);
    check("PUB foo 5\r\nhello!", 5);
    check("PUB foo 5\r\nhello\n", 5);
    check("PUB foo 5\r\nhello\rPING", 5);
    check("PUB foo 0\r\nPING\r\n", 0);
    check("HPUB foo 2 4\r\nabcde\r\n", 4);
}

#[test]
fn need_is_the_end_of_the_operation_once_its_control_line_was_seen() {
    fn check(text: &str, expected: usize) {
        assert_eq!(
            parse(text.as_bytes(), &Limits::default()),
            Ok(Parsed::Incomplete { need: expected }),
            "{text:?}"
        );
    }
    check("", 1);
    check("P", 2);
    check("PUB foo 100\r", 13);
    check("PUB foo 100\r\n", 13 + 102);
    check("PUB foo 100\n", 12 + 102);
    check("PUB foo 3\r\nabc", 16);
    check("PUB foo 3\r\nabc\r", 16);
    check("HPUB foo 18 1048576\r\nNATS", 21 + 1_048_578);
    check("CONNECT {", 10);
}

#[test]
fn a_payload_over_the_limit_is_refused_with_its_control_line() {
    fn check(line: &str, max_payload: usize, expected: Result<usize, u64>) {
        let limits = Limits { max_payload, ..Limits::default() };
        let expected = match expected {
            Ok(need) => Ok(Parsed::Incomplete { need }),
            Err(size) => Err(ProtocolError::MaxPayload { size, limit: max_payload }),
        };
        assert_eq!(parse(line.as_bytes(), &limits), expected, "{line:?} of {max_payload}");
    }
    check("PUB a 10\r\n", 10, Ok(22));
    check("PUB a 11\r\n", 10, Err(11));
    check("PUB a 0\r\n", 0, Ok(11));
    check("PUB a 1\r\n", 0, Err(1));
    check("PUB a 9999999999999999999\r\n", 1 << 20, Err(9_999_999_999_999_999_999));
    check("PUB a 9999999999999999999\r\n", usize::MAX, Ok(10_000_000_000_000_000_028));
    check("HPUB a 5 10\r\n", 10, Ok(25));
    check("HPUB a 5 11\r\n", 10, Err(11));
    check("PUB a 11", 10, Ok(9));
}

#[test]
fn a_control_line_over_the_limit_is_refused_whether_or_not_it_ends() {
    /// `line` has as many `x` in place of `#` as make its arguments `len` bytes.
    fn check(line: &str, len: usize, refused: bool) {
        let limits = Limits { max_control_line: 32, ..Limits::default() };
        let (verb, args) = line.split_once(' ').expect("a verb and its arguments");
        let args = args.replace('#', &"x".repeat(len + 1 - args.trim_end().len()));
        let line = format!("{verb} {args}");
        // With much behind it, a line takes another path through the parser.
        let behind = if line.ends_with('\n') { 100 } else { 0 };
        let followed = format!("{line}{}", " ".repeat(behind));
        for text in [line, followed] {
            let parsed = parse(text.as_bytes(), &limits);
            let too_long = parsed == Err(ProtocolError::ControlLine { limit: 32 });
            assert_eq!(too_long, refused, "{text:?}: {parsed:?}");
        }
    }
    for verb in [
        "PUB # 1",
        "SUB # 1",
        "UNSUB #",
        "CONNECT #",
        "PING #",
        "PONG #",
        "INFO #",
        "-ERR #",
        "HPUB # 1 1",
        "+OK #",
    ] {
        for end in ["\r\n", "\n"] {
            check(&format!("{verb}{end}"), 32, false);
            check(&format!("{verb}{end}"), 33, true);
        }
        // One byte more may still turn out to be the CR of a line that just fits.
        check(verb, 33, false);
        check(verb, 34, true);
        check(verb, 1000, true);
    }
}

#[test]
fn the_default_limits_are_those_of_nats_server() {
    assert_eq!(Limits::default(), Limits { max_control_line: 4096, max_payload: 1_048_576 });
}
