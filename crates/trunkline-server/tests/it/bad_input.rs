//! Bytes that no client should send: answered, counted, and nobody else's business.

use super::client::{Raw, within};
use super::fixture::Fixture;

/// Sends `input` on a new connection after INFO; the answer must be this and the end of the connection.
async fn check_refused(fixture: &mut Fixture, input: &[u8], answer: &str) {
    let mut raw = Raw::connect(fixture.nats()).await;
    // A server that has seen enough may close while the rest is still being sent.
    let _ = raw.try_send(input).await;
    let shown = String::from_utf8_lossy(&input[..input.len().min(60)]).into_owned();
    assert_eq!(raw.until_closed().await, answer, "{shown:?}");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_an_unknown_operation() {
    let mut fixture = Fixture::start().await;
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for input in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x00\x01\x02\xff\r\n", hello, b"\xff", b"{}\r\n", b"PUBLISH\r\n"]
    {
        check_refused(&mut fixture, input, "-ERR 'Unknown Protocol Operation'\r\n").await;
    }
    fixture.varz_becomes("connections", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_line_has_a_bound_whether_it_ends_or_not() {
    let mut fixture = Fixture::start().await;
    let long = "a".repeat(5000);
    let answer = "-ERR 'maximum control line exceeded'\r\n";
    for input in [format!("PUB {long} 1\r\nx\r\n"), format!("SUB {long} 1\r\n"), format!("PUB {long}{long}")]
    {
        check_refused(&mut fixture, input.as_bytes(), answer).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_has_a_bound_that_is_told_before_it_is_sent() {
    let mut fixture = Fixture::with(|options| options.limits.max_payload = 1000).await;
    let answer = "-ERR 'Maximum Payload Violation'\r\n";
    let connect = "CONNECT {\"verbose\":false,\"headers\":true}\r\n";
    check_refused(&mut fixture, b"PUB a 1001\r\n", answer).await;
    check_refused(&mut fixture, b"PUB a 2147483647\r\n", answer).await;
    check_refused(&mut fixture, format!("{connect}HPUB a 12 1001\r\n").as_bytes(), answer).await;
    let mut raw = fixture.client().await;
    let payload = "x".repeat(1000);
    raw.send(format!("SUB a 1\r\nPUB a 1000\r\n{payload}\r\n")).await;
    raw.expect(format!("MSG a 1 1000\r\n{payload}\r\n")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_that_are_none_end_the_connection_with_an_error() {
    let mut fixture = Fixture::start().await;
    for line in [
        "PUB a -1",
        "PUB a x",
        "PUB a",
        "PUB",
        "PUB a b c d",
        "PUB a 99999999999999999999999999",
        "HPUB a 12 -12",
        "HPUB a -1 5",
        "HPUB a 20 10",
        "HPUB a 5",
        "SUB",
        "SUB a",
        "SUB a b c d",
        "UNSUB",
        "UNSUB 1 -5",
        "UNSUB 1 x",
    ] {
        let mut raw = Raw::connect(fixture.nats()).await;
        raw.send("CONNECT {\"verbose\":false,\"headers\":true}\r\n").await;
        let _ = raw.try_send(format!("{line}\r\n").as_bytes()).await;
        let answer = raw.until_closed().await;
        assert!(answer.starts_with("-ERR '") && answer.ends_with("'\r\n"), "{line}: {answer:?}");
    }
    fixture.bystander_is_fine().await;
    fixture.varz_becomes("connections", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_without_its_line_end_is_a_parser_error() {
    let mut fixture = Fixture::start().await;
    let mut raw = Raw::connect(fixture.nats()).await;
    raw.send("PUB a 2\r\nabcdefgh\r\n").await;
    let answer = raw.until_closed().await;
    assert!(answer.starts_with("-ERR '"), "{answer:?}");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_that_is_no_json_object_ends_the_connection() {
    let mut fixture = Fixture::start().await;
    for json in ["{bad}", "[]", "1", "{\"verbose\":\"yes\"}", "{\"verbose\":true"] {
        let mut raw = Raw::connect(fixture.nats()).await;
        raw.send(format!("CONNECT {json}\r\n")).await;
        let answer = within(json, raw.until_closed()).await;
        assert_eq!(answer, "-ERR 'Parser Error'\r\n", "{json}");
    }
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_go_at_any_byte() {
    let mut fixture = Fixture::start().await;
    let conversation = "CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB a.* q 1\r\nHPUB a.b r 12 14\r\n\
                        NATS/1.0\r\n\r\nhi\r\nPUB a.b 5\r\nhello\r\nUNSUB 1 3\r\nPING\r\n";
    for end in 0..conversation.len() {
        let mut raw = Raw::connect(fixture.nats()).await;
        raw.send(&conversation[..end]).await;
    }
    fixture.bystander_is_fine().await;
    fixture.varz_becomes("connections", 1).await;
    fixture.varz_becomes("subscriptions", 1).await;
    assert_eq!(fixture.varz().await["slow_consumers"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_byte_at_a_time_is_understood_when_it_is_complete() {
    let mut fixture = Fixture::start().await;
    let mut raw = Raw::connect(fixture.nats()).await;
    let conversation = "CONNECT {\"verbose\":true,\"headers\":true}\r\nSUB a 1\r\nHPUB a 12 14\r\n\
                        NATS/1.0\r\n\r\nhi\r\nPING\r\n";
    for byte in conversation.as_bytes() {
        raw.send([*byte]).await;
        // Lets the byte travel alone: the other end of the connection is in this process.
        tokio::task::yield_now().await;
    }
    raw.expect("+OK\r\n+OK\r\n").await;
    // The +OK for the message comes before the message, as from nats-server.
    raw.expect("+OK\r\nHMSG a 1 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPONG\r\n").await;
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_completes_an_operation_is_stale() {
    let mut fixture = Fixture::with(|options| {
        options.limits.ping_interval = std::time::Duration::from_millis(100);
        options.limits.ping_max = 2;
    })
    .await;
    let mut raw = Raw::connect(fixture.nats()).await;
    raw.send("PUB a 100000\r\n").await;
    let mut trickle = tokio::time::interval(std::time::Duration::from_millis(10));
    let mut sent = 0;
    while raw.try_send(b"x").await.is_ok() {
        sent += 1;
        assert!(sent < 3000, "still connected after {sent} bytes");
        trickle.tick().await;
    }
    let said = raw.until_closed().await;
    assert!(said.is_empty() || said.starts_with("PING\r\n"), "{said:?}");
    fixture.varz_becomes("stale_connections", 1).await;
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_is_told_that_it_is_stale() {
    let mut fixture = Fixture::with(|options| {
        options.limits.ping_interval = std::time::Duration::from_millis(100);
        options.limits.ping_max = 1;
    })
    .await;
    let mut raw = Raw::connect(fixture.nats()).await;
    assert_eq!(raw.until_closed().await, "PING\r\n-ERR 'Stale Connection'\r\n");
    fixture.varz_becomes("stale_connections", 1).await;
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_need_to_be_asked_for() {
    let mut fixture = Fixture::start().await;
    let hpub = "CONNECT {\"verbose\":false}\r\nHPUB a 12 12\r\nNATS/1.0\r\n\r\n\r\n";
    check_refused(&mut fixture, hpub.as_bytes(), "-ERR 'message headers not supported'\r\n").await;
    let no_responders = "CONNECT {\"verbose\":false,\"no_responders\":true}\r\n";
    let answer = "-ERR 'no responders requires headers support'\r\n";
    check_refused(&mut fixture, no_responders.as_bytes(), answer).await;
}
