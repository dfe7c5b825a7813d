//! Two `up`s on one Redis server are one bus.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use trunkline_testkit::RedisServer;
use trunkline_testkit::clients::{ClientLibrary, check_envelope_across};

use super::Bridge;
use super::raw::{Msg, Raw};

/// The answer of the bus itself to a request that nobody answers.
const NOBODY: &str = "NATS/1.0 503\r\n\r\n";

fn two() -> (RedisServer, Bridge, Bridge) {
    let redis = RedisServer::start_volatile();
    let (one, other) = (Bridge::start(&redis), Bridge::start(&redis));
    (redis, one, other)
}

#[test]
fn components_behind_two_servers_call_each_other_in_any_language() {
    let (_redis, one, other) = two();
    for asking in ClientLibrary::ALL {
        for answering in ClientLibrary::ALL {
            check_envelope_across((asking, &one), (answering, &other));
        }
    }
}

#[test]
fn a_request_learns_at_once_whether_anybody_answers_on_any_server() {
    let (_redis, one, other) = two();
    let (mut asking, mut answering) = (Raw::connect(one.url()), Raw::connect(other.url()));
    asking.subscribe("_INBOX.ask.*", "1");
    let nobody = |asking: &mut Raw, reply: &str| {
        let started = Instant::now();
        asking.publish("tool.call", Some(reply), b"?");
        let answer = asking.message();
        assert_eq!((answer.subject.as_str(), answer.header.as_str()), (reply, NOBODY));
        assert!(answer.payload.is_empty());
        assert!(started.elapsed() < Duration::from_secs(1), "it took {:?}", started.elapsed());
    };
    nobody(&mut asking, "_INBOX.ask.1");

    answering.subscribe("tool.*", "7");
    asking.publish("tool.call", Some("_INBOX.ask.2"), b"?");
    let question = answering.message();
    assert_eq!((question.text(), question.reply.as_deref()), ("?", Some("_INBOX.ask.2")));
    answering.publish("_INBOX.ask.2", None, b"!");
    assert_eq!(asking.message().text(), "!");

    // Once it has left, and has been told that it did, nobody answers any more.
    answering.send("UNSUB 7\r\n");
    answering.flush();
    nobody(&mut asking, "_INBOX.ask.3");
}

#[test]
fn who_did_not_ask_to_be_told_is_not_told_that_nobody_answers() {
    let (_redis, one, _other) = two();
    let mut asking = Raw::connect_with(one.url(), r#"{"verbose":false,"headers":true}"#);
    asking.subscribe("_INBOX.quiet.*", "1");
    asking.publish("nobody.here", Some("_INBOX.quiet.1"), b"?");
    // What is published to the inbox behind it comes alone.
    asking.flush();
    asking.publish("_INBOX.quiet.1", None, b"late");
    assert_eq!(asking.message().text(), "late");
}

#[test]
fn queue_group_over_two_servers_gives_each_message_to_one_member() {
    const COUNT: usize = 400;
    let (_redis, one, other) = two();
    let mut members = [&one, &one, &other, &other].map(|server| {
        let mut member = Raw::connect(server.url());
        member.send("SUB jobs.> big.team 1\r\nSUB done 2\r\n");
        member.flush();
        member
    });
    let mut publisher = Raw::connect(other.url());
    for n in 0..COUNT {
        publisher.publish("jobs.one", None, n.to_string().as_bytes());
    }
    publisher.flush();
    // Leaving the group gives each member what the server had for it, and a group without members takes nothing more.
    let shares = members.each_mut().map(|member| {
        member.send("UNSUB 1\r\nPING\r\n");
        member.messages_before_pong().into_iter().map(|message| message.text().to_owned()).collect::<Vec<_>>()
    });
    let all: BTreeSet<&String> = shares.iter().flatten().collect();
    assert_eq!(shares.iter().map(Vec::len).sum::<usize>(), COUNT, "some came twice or not at all");
    assert_eq!(all.len(), COUNT);
    let of = |range: std::ops::Range<usize>| shares[range].iter().map(Vec::len).sum::<usize>();
    assert!(of(0..2) > 0 && of(2..4) > 0, "one server got nothing: {:?}", shares.map(|share| share.len()));
}

#[test]
fn wildcard_subscriptions_on_every_server_get_every_message() {
    let (_redis, one, other) = two();
    let mut subscribers: Vec<(Raw, &str)> =
        [(&one, "chat.*.in"), (&one, "chat.>"), (&other, "*.web.in"), (&other, ">")]
            .map(|(server, pattern)| {
                let mut subscriber = Raw::connect(server.url());
                subscriber.subscribe(pattern, "1");
                (subscriber, pattern)
            })
            .into();
    for server in [&one, &other] {
        let mut publisher = Raw::connect(server.url());
        publisher.publish("chat.web.in", None, server.url().as_bytes());
        publisher.publish("chat.web.out.late", None, b"");
        publisher.flush();
        for (subscriber, pattern) in &mut subscribers {
            let first = subscriber.message();
            assert_eq!((first.subject.as_str(), first.text()), ("chat.web.in", server.url()), "{pattern}");
            if pattern.ends_with('>') {
                assert_eq!(subscriber.message().subject, "chat.web.out.late", "{pattern}");
            }
        }
    }
}

#[test]
fn headers_and_status_lines_cross_servers_as_they_were_sent() {
    let (_redis, one, other) = two();
    let mut publisher = Raw::connect(one.url());
    let mut subscriber = Raw::connect(other.url());
    let mut plain = Raw::connect_with(other.url(), r#"{"verbose":false,"headers":false}"#);
    subscriber.subscribe("h", "1");
    plain.subscribe("h", "1");
    for (header, payload) in [
        ("NATS/1.0\r\nA: 1\r\na: 2\r\nA: 3\r\nÅ: two  words\r\n\r\n", "body"),
        ("NATS/1.0 503\r\n\r\n", ""),
        ("NATS/1.0 404 Not Here\r\nWhy: gone\r\n\r\n", "said"),
        // A header of that name is no status line.
        ("NATS/1.0\r\nStatus: 200\r\nDescription: fine\r\n\r\n", "ok"),
    ] {
        publisher.publish_with_header("h", header, payload);
        let got = subscriber.message();
        assert_eq!((got.header.as_str(), got.text()), (header, payload));
        let got = plain.message();
        assert_eq!((got.header.as_str(), got.text()), ("", payload));
    }
}

#[test]
fn one_mebibyte_crosses_servers_and_limits_count_what_was_delivered() {
    let (_redis, one, other) = two();
    let payload: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    // Without echo a message carries one header more on its way.
    let mut publisher = Raw::connect_with(one.url(), r#"{"verbose":false,"echo":false,"headers":true}"#);
    let mut subscriber = Raw::connect(other.url());
    subscriber.subscribe("large", "1");
    publisher.publish("large", None, &payload);
    let got = subscriber.message();
    assert_eq!((got.header.as_str(), got.payload == payload), ("", true));

    // One was delivered, so that two more make three.
    subscriber.send("UNSUB 1 3\r\n");
    subscriber.flush();
    for n in 2..7 {
        publisher.publish("large", None, n.to_string().as_bytes());
    }
    publisher.flush();
    assert_eq!([subscriber.message(), subscriber.message()].map(|got| got.text().to_owned()), ["2", "3"]);
    // Its name is free again, and what was published meanwhile is nobody's.
    subscriber.subscribe("large", "1");
    publisher.publish("large", None, b"again");
    assert_eq!(subscriber.message().text(), "again");
}

#[test]
fn own_messages_come_back_only_to_who_wants_them() {
    let (_redis, one, other) = two();
    let mut silent = Raw::connect_with(one.url(), r#"{"verbose":false,"echo":false,"headers":true}"#);
    let mut echoing = Raw::connect(one.url());
    let mut far = Raw::connect(other.url());
    for client in [&mut silent, &mut echoing, &mut far] {
        client.subscribe("echo", "1");
    }
    silent.publish("echo", None, b"silent");
    silent.flush();
    echoing.publish("echo", None, b"echoing");
    let header_and_text = |got: Msg| (got.header.clone(), got.text().to_owned());
    let from = |name: &str| (String::new(), name.to_owned());
    assert_eq!(header_and_text(silent.message()), from("echoing"));
    for client in [&mut echoing, &mut far] {
        assert_eq!(header_and_text(client.message()), from("silent"));
        assert_eq!(header_and_text(client.message()), from("echoing"));
    }
}

#[test]
fn unsubscribing_gives_out_what_was_published_before_and_nothing_after() {
    const COUNT: usize = 3000;
    let (_redis, one, other) = two();
    let (mut publisher, mut subscriber) = (Raw::connect(one.url()), Raw::connect(other.url()));
    subscriber.subscribe("work", "1");
    for n in 0..COUNT {
        publisher.publish("work", None, n.to_string().as_bytes());
    }
    publisher.flush();
    subscriber.send("UNSUB 1\r\nPING\r\n");
    let got = subscriber.messages_before_pong();
    let expected: Vec<String> = (0..COUNT).map(|n| n.to_string()).collect();
    assert_eq!(got.iter().map(Msg::text).collect::<Vec<_>>(), expected);
    subscriber.subscribe("end", "2");
    publisher.publish("work", None, b"late");
    publisher.publish("end", None, b"");
    assert_eq!(subscriber.message().subject, "end");
}

#[test]
fn a_subscription_gets_what_its_own_connection_publishes_behind_it() {
    let (_redis, one, _other) = two();
    let mut client = Raw::connect(one.url());
    // All in one piece: the message leaves only once the subscription stands, and the second subscription sees neither.
    client.send("PUB self 1\r\n1\r\nSUB self 1\r\nPUB self 1\r\n2\r\nSUB self 2\r\nUNSUB 2\r\n");
    let got = client.flush_among(1);
    assert_eq!(got.iter().map(|got| (got.sid.as_str(), got.text())).collect::<Vec<_>>(), [("1", "2")]);
}

#[test]
fn a_verbose_client_is_told_once_what_became_of_each_operation() {
    let (_redis, one, _other) = two();
    let mut client = Raw::connect_with(one.url(), r#"{"verbose":true,"pedantic":false,"headers":true}"#);
    client.send(
        "SUB a 1\r\nPUB nachos.dead.s.c 1\r\nx\r\nPUB b..c 1\r\nx\r\nPUB b 1\r\nx\r\nUNSUB 1\r\nPING\r\n",
    );
    let told = [(); 7].map(|()| client.line_past_info());
    let refused = |subject: &str| format!("-ERR 'Permissions Violation for Publish to \"{subject}\"'");
    let expected = ["+OK", "+OK", &refused("nachos.dead.s.c"), &refused("b..c"), "+OK", "+OK", "PONG"];
    assert_eq!(told, expected);
}

#[test]
fn servers_with_different_prefixes_see_nothing_of_each_other() {
    let redis = RedisServer::start_volatile();
    let (one, other) = (Bridge::start(&redis), Bridge::with(&redis, "stream_prefix: elsewhere"));
    let (mut here, mut there) = (Raw::connect(one.url()), Raw::connect(other.url()));
    there.subscribe("apart", "1");
    here.subscribe("_INBOX.apart.*", "1");
    here.publish("apart", Some("_INBOX.apart.1"), b"?");
    assert_eq!(here.message().header, NOBODY, "a responder with another prefix counts");
    there.publish("apart", None, b"own");
    assert_eq!(there.message().text(), "own");
}
