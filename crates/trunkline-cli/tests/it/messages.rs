//! `pub`, `sub`, `request` and `reply` against a running bus.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use trunkline_testkit::servers::TrunklineServer;

use crate::command::{Running, all_bytes, command, run, run_with_input, start, text};
use crate::server;

/// A subscriber that listens already.
fn subscriber(server: &TrunklineServer, arguments: &[&str]) -> Running {
    let mut running = start(command(&[&["sub", "--url", server.url()], arguments].concat()), b"");
    running.until_it_says("listening on");
    running
}

/// A responder that answers already.
fn responder(server: &TrunklineServer, arguments: &[&str]) -> Running {
    let mut running = start(command(&[&["reply", "--url", server.url()], arguments].concat()), b"");
    running.until_it_says("answering on");
    running
}

fn publish(server: &TrunklineServer, arguments: &[&str]) {
    run(&[&["pub", "--url", server.url()], arguments].concat()).ok();
}

#[test]
fn every_byte_survives_from_pub_to_sub() {
    let server = server();
    let subscriber = subscriber(&server, &["bytes", "--raw", "--count", "2"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("payload");
    std::fs::write(&file, all_bytes()).unwrap();
    publish(&server, &["bytes", "--file", text(&file)]);
    run_with_input(&["pub", "--url", server.url(), "bytes", "-"], &all_bytes()).ok();
    assert_eq!(subscriber.end().ok(), [all_bytes(), all_bytes()].concat());
}

#[test]
fn every_byte_survives_a_request_to_a_command_and_back() {
    let server = server();
    let responder = responder(&server, &["bytes", "--exec", "cat", "--count", "1"]);
    let reply = run_with_input(&["request", "--url", server.url(), "bytes", "--raw"], &all_bytes());
    assert_eq!(reply.ok(), all_bytes());
    responder.end().ok();
}

#[test]
fn sub_shows_messages_as_json_with_headers_reply_and_envelope() {
    let server = server();
    let subscriber = subscriber(&server, &["a.*", "b.>", "--json", "--count", "4"]);
    publish(&server, &["a.1", "plain text", "-H", "X-One: 1", "--header", "X-One:2", "--reply", "r.s"]);
    publish(
        &server,
        &["b.2.3", r#"{"q":1}"#, "--type", "tool.call", "--conversation", "c-1", "--tool", "search"],
    );
    publish(&server, &["a.3", r#"{"q":1}"#]);
    run_with_input(&["pub", "--url", server.url(), "a.4"], b"\xff\x00").ok();
    let seen = subscriber.end().json();
    assert_eq!(
        seen[0],
        json!({"subject": "a.1", "reply": "r.s", "headers": {"X-One": ["1", "2"]}, "payload": "plain text"})
    );
    let envelope = &seen[1]["payload"];
    assert_eq!(envelope["type"], "tool.call");
    assert_eq!(envelope["source"], "cli");
    assert_eq!(envelope["payload"], json!({"q": 1}));
    assert_eq!(envelope["trace"], json!({"conversationId": "c-1", "toolId": "search"}));
    assert_eq!(envelope["correlationId"], envelope["id"]);
    assert_eq!(seen[2]["payload"], r#"{"q":1}"#, "text that is no envelope is not touched");
    assert_eq!(seen[3]["payloadBase64"], "/wA=");
}

#[test]
fn pub_prints_a_receipt_for_each_message() {
    let server = server();
    let receipts = run(&["pub", "--url", server.url(), "a", "x", "--count", "3", "--json"]).json();
    assert_eq!(receipts.len(), 3);
    assert!(receipts.iter().all(|receipt| receipt["receipt"] == "accepted"), "{receipts:?}");
    let receipt = &run(&["pub", "--url", server.url(), "a", "x", "--envelope", "--json"]).json()[0];
    assert!(receipt["id"].is_string(), "{receipt}");
}

#[test]
fn members_of_a_queue_group_share_the_messages() {
    let server = server();
    let arguments = ["work", "--queue", "w", "--json", "--timeout", "2s"];
    let members = [(); 2].map(|()| subscriber(&server, &arguments));
    let (all, some) = (subscriber(&server, &["work", "--count", "200"]), ["work", "x", "--count", "200"]);
    publish(&server, &some);
    assert_eq!(all.end().lines().len(), 200, "whoever is in no group gets everything");
    let counts = members.map(|member| member.end().lines().len());
    assert_eq!(counts.iter().sum::<usize>(), 200, "every message goes to one member: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "the group shares them: {counts:?}");
}

#[test]
fn sub_fails_when_the_count_is_not_reached_in_time() {
    let server = server();
    let subscriber = subscriber(&server, &["a", "--count", "2", "--timeout", "500ms"]);
    publish(&server, &["a", "only one"]);
    let ended = subscriber.end();
    assert_eq!(ended.code(), 1);
    assert!(ended.stderr.contains("received 1 of 2 messages (--count)"), "{}", ended.stderr);
    assert!(ended.stderr.contains("\nhint: "), "{}", ended.stderr);
    // Without a count, the end of the time is an end like any other.
    assert_eq!(run(&["sub", "--url", server.url(), "a", "--timeout", "100ms"]).code(), 0);
}

#[test]
fn reply_echoes_answers_with_a_fixed_payload_and_runs_commands() {
    let server = server();
    let _echo = responder(&server, &["echo", "--echo", "-H", "X-Who: me"]);
    let _fixed = responder(&server, &["fixed", "pong"]);
    let _command = responder(&server, &["shout", "--exec", "tr a-z A-Z"]);
    let _subject = responder(&server, &["which.*", "--exec", "sh -c 'printf %s \"$MESSAGE_SUBJECT\"'"]);
    let ask = |subject: &str| run(&["request", "--url", server.url(), subject, "hello", "--raw"]).ok();
    assert_eq!(ask("echo"), b"hello");
    assert_eq!(ask("fixed"), b"pong");
    assert_eq!(ask("shout"), b"HELLO");
    assert_eq!(ask("which.one"), b"which.one");
    let reply = &run(&["request", "--url", server.url(), "echo", "x", "--json"]).json()[0];
    assert_eq!(reply["headers"], json!({"X-Who": ["me"]}));
}

#[test]
fn a_command_that_fails_becomes_an_error_reply() {
    let server = server();
    let responder = responder(
        &server,
        &["f", "--exec", "sh -c 'echo no such city >&2; exit 3'", "--json", "--count", "1"],
    );
    let ended = run(&["request", "--url", server.url(), "f", "x"]);
    assert_eq!(ended.code(), 1);
    assert!(ended.stdout.is_empty());
    assert!(ended.stderr.contains("error 500") && ended.stderr.contains("no such city"), "{}", ended.stderr);
    let record = &responder.end().json()[0];
    assert_eq!((&record["subject"], &record["outcome"]), (&json!("f"), &json!("error")));
}

#[test]
fn a_command_that_takes_too_long_is_killed_and_others_are_answered_meanwhile() {
    let server = server();
    let line = "sh -c 'read -r line; if [ \"$line\" = slow ]; then exec sleep 1000; fi; echo fast'";
    let responder = responder(&server, &["mixed", "--exec", line, "--timeout", "3s", "--count", "2"]);
    let slow =
        start(command(&["request", "--url", server.url(), "mixed", "slow\n", "--timeout", "20s"]), b"");
    let fast = run(&["request", "--url", server.url(), "mixed", "quick\n", "--timeout", "20s"]);
    assert!(fast.took < Duration::from_secs(3), "it waited behind the slow one: {:?}", fast.took);
    assert_eq!(fast.ok(), b"fast\n\n");
    let slow = slow.end();
    assert_eq!(slow.code(), 1);
    assert!(slow.stderr.contains("was killed"), "{}", slow.stderr);
    responder.end().ok();
}

#[test]
fn request_collects_several_replies() {
    let server = server();
    let _responders = ["one", "two", "three"].map(|name| responder(&server, &["who", name]));
    let mut replies = run(&["request", "--url", server.url(), "who", "", "--count", "3"]).lines();
    replies.sort();
    assert_eq!(replies, ["one", "three", "two"]);
    let ended = run(&["request", "--url", server.url(), "who", "", "--count", "4", "--timeout", "300ms"]);
    assert_eq!(ended.code(), 1);
    assert!(ended.stderr.contains("3 of 4 replies"), "{}", ended.stderr);
}

#[test]
fn reply_answers_what_it_has_taken_before_it_stops() {
    let server = server();
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("go");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let line = format!("sh -c 'echo taken >&2; cat {}'", text(&fifo));
    let mut responder = responder(&server, &["slow", "--exec", &line, "--log-level", "info"]);
    let subscriber = subscriber(&server, &["started", "--count", "1"]);
    let requester = start(command(&["request", "--url", server.url(), "slow", "x", "--timeout", "20s"]), b"");
    // Opening the pipe to write succeeds when the command reads it: the request is being answered.
    let mut go = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    responder.signal(Signal::SIGTERM);
    std::io::Write::write_all(&mut go, b"late answer").unwrap();
    drop(go);
    assert_eq!(requester.end().ok(), b"late answer\n");
    responder.until_it_says("slow  ok after");
    responder.end().ok();
    publish(&server, &["started", "x"]);
    subscriber.end().ok();
}
