//! Streams, consumers, dead letters and replay, against a running bus.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline_testkit::servers::{NatsServer, TrunklineServer};

use crate::command::{Ended, PATIENCE, Running, command, run, start, text};

const CONFIG: &str = "
messaging:
  streams:
    - {name: tasks, subjects: ['tasks.>']}
    - {name: audit, subjects: ['audit.>'], max_messages: 100}
  consumer: {ack_wait: 1s, max_deliver: 3, backoff: [10ms]}
";

/// A bus with two streams, and a directory for the test.
struct Fixture {
    server: TrunklineServer,
    directory: TempDir,
}

impl Fixture {
    fn start() -> Self {
        Self::with(CONFIG)
    }

    fn with(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        std::fs::write(&file, config).unwrap();
        let server =
            TrunklineServer::start(Path::new(env!("CARGO_BIN_EXE_trunkline")), ["--config", text(&file)]);
        Self { server, directory }
    }

    /// The token, as scripts find it.
    fn token(&self) -> String {
        let ports = std::fs::read_to_string(self.server.directory().join("trunkline.ports")).unwrap();
        let ports: Value = serde_json::from_str(&ports).unwrap();
        ports["admin_token"].as_str().unwrap().to_owned()
    }

    fn publish(&self, subject: &str, payloads: &[&str]) {
        for payload in payloads {
            run(&["pub", "--url", self.server.url(), subject, payload]).ok();
        }
    }

    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--http", self.server.http()]].concat()
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        run(&self.arguments(arguments))
    }

    /// A worker, once it is a member of its consumer.
    fn worker(&self, arguments: &[&str]) -> Running {
        let mut worker = start(command(&self.arguments(arguments)), b"");
        worker.until_it_says("consuming ");
        worker
    }

    fn file(&self, name: &str) -> String {
        text(&self.directory.path().join(name)).to_owned()
    }

    /// Makes dead letters of these payloads, in their order.
    fn dead_letters(&self, payloads: &[&str]) {
        self.publish("tasks.a", payloads);
        let mut worker =
            self.worker(&["consume", "tasks", "workers", "--start", "all", "--exec", "sh -c 'exit 65'"]);
        for _ in payloads {
            worker.until_it_says("rejected, attempt 1");
        }
        worker.signal(Signal::SIGTERM);
        worker.end().ok();
    }

    fn dead(&self) -> Vec<Value> {
        self.run(&["dlq", "ls", "--json"]).json()
    }

    /// Sends a request head as it is and returns the status and the body.
    fn raw(&self, head: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.server.http().trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(head.replace('\n', "\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

#[test]
fn streams_are_listed_shown_and_removed() {
    let fixture = Fixture::start();
    fixture.publish("audit.log", &["one", "two"]);
    let streams = fixture.run(&["stream", "ls", "--json"]).json();
    let names: Vec<_> = streams.iter().map(|stream| stream["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["audit", "tasks"]);
    assert_eq!((&streams[0]["messages"], &streams[0]["maxMessages"]), (&json!(2), &json!(100)));
    let info: Value =
        serde_json::from_slice(&fixture.run(&["stream", "info", "audit", "--json"]).ok()).unwrap();
    assert_eq!(
        (&info["first"], &info["last"], &info["subjects"]),
        (&json!("1"), &json!("2"), &json!(["audit.>"]))
    );
    let table = fixture.run(&["stream", "ls"]).lines().join("\n");
    assert!(table.contains("audit.>") && table.contains("STREAM"), "{table}");

    let unsure = fixture.run(&["stream", "rm", "audit"]);
    assert!(unsure.code() == 2 && unsure.stderr.contains("--yes"), "{unsure:?}");
    fixture.run(&["stream", "rm", "audit", "--yes"]).ok();
    let gone = fixture.run(&["stream", "info", "audit"]);
    assert!(gone.code() == 1 && gone.stderr.contains("no stream named \"audit\""), "{gone:?}");
    assert!(gone.stderr.contains("\nhint: "), "{gone:?}");
    assert_eq!(fixture.run(&["stream", "rm", "audit", "--yes"]).code(), 1);
    assert_eq!(fixture.run(&["stream", "info", "no.name"]).code(), 2);
}

#[test]
fn a_worker_retries_what_fails_and_acknowledges_what_succeeds() {
    let fixture = Fixture::start();
    fixture.publish("tasks.a", &["hello"]);
    let line =
        "sh -c 'read line; [ $MESSAGE_ATTEMPT = 2 ] || exit 1; echo $MESSAGE_SUBJECT $MESSAGE_OFFSET $line'";
    let worker = ["consume", "tasks", "workers", "--start", "all", "--exec", line, "--count", "1", "--json"];
    let records = fixture.run(&worker).json();
    let outcomes: Vec<_> = records.iter().map(|r| (r["attempt"].clone(), r["outcome"].clone())).collect();
    assert_eq!(outcomes, [(json!(1), json!("failed")), (json!(2), json!("acked"))]);
    assert_eq!(records[1]["output"], "tasks.a 1 hello\n");
    assert_eq!(records[1]["message"]["payload"], "hello");

    let consumers = fixture.run(&["consumer", "ls", "tasks", "--json"]).json();
    assert_eq!((&consumers[0]["name"], &consumers[0]["ackFloor"]), (&json!("workers"), &json!("1")));
    assert_eq!((&consumers[0]["pending"], &consumers[0]["members"]), (&json!(0), &json!(0)));
    let info: Value =
        serde_json::from_slice(&fixture.run(&["consumer", "info", "tasks", "workers", "--json"]).ok())
            .unwrap();
    assert_eq!(
        (&info["stream"], &info["redelivered"], &info["lag"]),
        (&json!("tasks"), &json!(1), &json!(0))
    );
    fixture.run(&["consumer", "rm", "tasks", "workers", "--yes"]).ok();
    let gone = fixture.run(&["consumer", "info", "tasks", "workers"]);
    assert!(gone.code() == 1 && gone.stderr.contains("no consumer named"), "{gone:?}");
}

#[test]
fn without_a_command_messages_are_printed_and_acknowledged_once() {
    let fixture = Fixture::start();
    fixture.publish("audit.log", &["one", "two"]);
    let reader = ["consume", "audit", "reader", "--start", "all", "--count", "2"];
    assert_eq!(fixture.run(&reader).lines(), ["1  audit.log  one", "2  audit.log  two"]);
    fixture.publish("audit.log", &["three"]);
    let reader = ["consume", "audit", "reader", "--start", "all", "--count", "1"];
    assert_eq!(fixture.run(&reader).lines(), ["3  audit.log  three"]);
}

#[test]
fn a_message_that_never_succeeds_is_shown_redriven_and_purged_as_a_dead_letter() {
    let fixture = Fixture::start();
    assert!(fixture.dead().is_empty(), "before the first consumer there are none");
    let body = ["tasks.a", r#"{"q":1}"#, "--type", "task", "--correlation", "k-1", "--conversation", "c-1"];
    run(&[&["pub", "--url", fixture.server.url()], &body[..]].concat()).ok();
    let mut worker = fixture.worker(&["consume", "tasks", "workers", "--start", "all", "--exec", "false"]);
    // The third is the last delivery that the configuration of the bus allows.
    for attempt in 1..=3 {
        worker.until_it_says(&format!("failed, attempt {attempt}"));
    }
    worker.signal(Signal::SIGTERM);
    worker.end().ok();

    let dead = fixture.dead();
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!((&dead[0]["reason"], &dead[0]["attempts"]), (&json!("max_deliver"), &json!(3)));
    assert_eq!((&dead[0]["stream"], &dead[0]["originalSubject"]), (&json!("tasks"), &json!("tasks.a")));
    assert!(fixture.run(&["dlq", "ls", "--stream", "audit", "--json"]).json().is_empty());
    let shown = fixture.run(&["dlq", "show", "1"]).lines().join("\n");
    assert!(shown.contains("max_deliver") && shown.contains("k-1"), "{shown}");
    assert!(
        fixture.run(&["stream", "ls", "--json"]).json().iter().any(|stream| stream["name"] == "dead-nachos")
    );

    let elsewhere = fixture.run(&["dlq", "redrive", "1", "--to", "other.a"]);
    assert!(
        elsewhere.code() == 1 && elsewhere.stderr.contains("not stored by stream \"tasks\""),
        "{elsewhere:?}"
    );
    let redriven = fixture.run(&["dlq", "redrive", "1", "--json"]).json();
    assert_eq!(
        redriven[0],
        json!({"deadLetter": "1", "stream": "tasks", "subject": "tasks.a", "offset": "2"})
    );
    assert!(fixture.dead().is_empty(), "it is no dead letter any more");
    let again =
        fixture.run(&["consume", "tasks", "workers", "--exec", "cat", "--count", "1", "--json"]).json();
    let message = &again[0]["message"];
    assert_eq!((&again[0]["offset"], &again[0]["attempt"]), (&json!("2"), &json!(1)));
    assert_eq!(message["payload"]["correlationId"], "k-1");
    assert_eq!(message["payload"]["trace"]["conversationId"], "c-1");
    assert_eq!(message["headers"], json!({}), "nothing of the dead letter is left");
}

#[test]
fn dead_letters_are_purged_one_by_one_or_all() {
    let fixture = Fixture::start();
    fixture.dead_letters(&["one", "two", "three"]);
    let payloads = || -> Vec<Value> {
        fixture.dead().iter().map(|letter| letter["message"]["payload"].clone()).collect()
    };
    assert_eq!(payloads(), ["one", "two", "three"]);
    let unsure = fixture.run(&["dlq", "purge", "2"]);
    assert!(unsure.code() == 2 && unsure.stderr.contains("--yes"), "{unsure:?}");
    assert_eq!(fixture.run(&["dlq", "purge", "--yes"]).code(), 2, "which ones must be said");
    fixture.run(&["dlq", "purge", "2", "--yes"]).ok();
    assert_eq!(payloads(), ["one", "three"]);
    let gone = fixture.run(&["dlq", "show", "2"]);
    assert!(gone.code() == 1 && gone.stderr.contains("no dead letter 2"), "{gone:?}");
    assert_eq!(fixture.run(&["dlq", "show", "3", "--raw"]).ok(), b"three");
    let purged = fixture.run(&["dlq", "purge", "--consumer", "workers", "--yes"]);
    assert!(purged.stderr.contains("purged 2"), "{purged:?}");
    assert!(payloads().is_empty());
}

#[test]
fn a_worker_that_is_killed_leaves_its_message_to_another() {
    let fixture = Fixture::start();
    let fifo = fixture.file("taken");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    fixture.publish("tasks.a", &["work"]);
    // The command says that it has the message, then never ends by itself.
    let line = format!("sh -c 'echo $PPID $$ >{fifo}; exec sleep 1000'");
    let worker = fixture.worker(&["consume", "tasks", "workers", "--start", "all", "--exec", &line]);
    let said = std::fs::read_to_string(&fifo).unwrap();
    let sleeper: i32 = said.split_whitespace().nth(1).unwrap().parse().unwrap();
    worker.signal(Signal::SIGKILL);
    drop(worker);
    // What a killed worker had started lives on, in a group of its own.
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
    let records =
        fixture.run(&["consume", "tasks", "workers", "--exec", "cat", "--count", "1", "--json"]).json();
    assert_eq!((&records[0]["attempt"], &records[0]["output"]), (&json!(2), &json!("work")));
}

#[test]
fn replay_starts_anywhere_and_goes_to_stdout_or_a_subject() {
    let fixture = Fixture::start();
    fixture.publish("audit.a", &["one"]);
    fixture.publish("audit.b", &["two"]);
    let before_three =
        fixture.run(&["replay", "audit", "--json"]).json()[1]["time"].as_str().unwrap().to_owned();
    fixture.publish("audit.a", &["three"]);
    let replayed = |arguments: &[&str]| -> Vec<String> {
        let lines = fixture.run(&[&["replay", "audit", "--json"], arguments].concat()).json();
        lines.iter().map(|line| line["payload"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(replayed(&["--all"]), ["one", "two", "three"]);
    assert_eq!(replayed(&["--after", "1"]), ["two", "three"]);
    assert_eq!(replayed(&["--filter", "audit.a"]), ["one", "three"]);
    assert_eq!(replayed(&["--count", "1"]), ["one"]);
    assert_eq!(replayed(&["--since", "1h"]).len(), 3);
    assert!(replayed(&["--since", "2999-01-01T00:00:00Z"]).is_empty());
    let since = replayed(&["--since", &before_three]);
    assert_eq!(since.last().map(String::as_str), Some("three"), "{since:?}");
    let lines = fixture.run(&["replay", "audit", "--json", "--after", "2"]).json();
    assert_eq!((&lines[0]["offset"], &lines[0]["subject"]), (&json!("3"), &json!("audit.a")));
    let raw = fixture.run(&["replay", "audit", "--raw"]).ok();
    assert_eq!(raw, b"onetwothree");
    let ahead = fixture.run(&["replay", "audit", "--after", "99"]);
    assert!(ahead.code() == 1 && ahead.stderr.contains("past the end"), "{ahead:?}");

    let itself = fixture.run(&["replay", "audit", "--to", "audit.copy"]);
    assert!(itself.code() == 2 && itself.stderr.contains("feed itself"), "{itself:?}");
    fixture.run(&["replay", "audit", "--to", "tasks.copy", "--after", "1"]).ok();
    let copies = fixture.run(&["replay", "tasks", "--json"]).json();
    let copies: Vec<_> = copies.iter().map(|c| (c["subject"].clone(), c["payload"].clone())).collect();
    assert_eq!(copies, [(json!("tasks.copy"), json!("two")), (json!("tasks.copy"), json!("three"))]);
}

#[test]
fn the_admin_api_is_closed_to_whoever_has_no_token() {
    let fixture = Fixture::start();
    let wrong = fixture.run(&["stream", "ls", "--token", "wrong"]);
    assert_eq!(wrong.code(), 1, "{wrong:?}");
    assert!(wrong.stderr.contains("401") && wrong.stderr.contains("\nhint: "), "{wrong:?}");
    let get =
        |extra: &str| fixture.raw(&format!("GET /api/v1/streams HTTP/1.1\nConnection: close\n{extra}\n"));
    let bearer = format!("Authorization: Bearer {}\n", fixture.token());
    let host = "Host: localhost\n";
    let (status, body) = get(host);
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &error["code"]), (401, &json!("unauthorized")));
    assert!(error["hint"].is_string() && error["error"].is_string(), "{error}");
    assert_eq!(get(&format!("{host}{bearer}")).0, 200);
    assert_eq!(get(&format!("Host: evil.example\n{bearer}")).0, 421);
    assert_eq!(get(&format!("{host}{bearer}Origin: http://evil.example\n")).0, 403);
    assert_eq!(get(&format!("{host}{bearer}Origin: http://localhost\n")).0, 200);
    // Probes and metrics stay open.
    assert_eq!(fixture.raw("GET /readyz HTTP/1.1\nHost: localhost\nConnection: close\n\n").0, 200);
    let delete =
        format!("GET /api/v1/streams/audit/messages/delete HTTP/1.1\nConnection: close\n{host}{bearer}\n");
    assert_eq!(fixture.raw(&delete).0, 405, "what changes something is never a GET");
}

#[test]
fn a_configured_token_is_used_and_not_printed() {
    let config = format!("{CONFIG}server: {{auth: {{admin_token: hunter2-hunter2}}}}\n");
    let fixture = Fixture::with(&config);
    assert!(!fixture.server.log().contains("hunter2"), "{}", fixture.server.log());
    fixture.run(&["stream", "ls", "--token", "hunter2-hunter2"]).ok();
    let mut by_variable = command(&fixture.arguments(&["stream", "ls"]));
    by_variable.env("TRUNKLINE_ADMIN_TOKEN", "wrong");
    assert_eq!(start(by_variable, b"").end().code(), 1);
}

#[test]
fn the_address_of_clients_finds_the_admin_api_too() {
    let fixture = Fixture::start();
    let names: Vec<_> = run(&["stream", "ls", "--url", fixture.server.url(), "--json"]).json();
    assert_eq!(names.len(), 2);
}

#[test]
fn a_nats_server_without_streams_is_told_apart() {
    let server = NatsServer::start::<&str>([]);
    for arguments in [
        &["stream", "ls"][..],
        &["consumer", "ls", "x"],
        &["consume", "x", "y"],
        &["dlq", "ls"],
        &["replay", "x"],
    ] {
        let ended = run(&[arguments, &["--url", server.url()]].concat());
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains("not supported by backend nats"), "{ended:?}");
        assert!(ended.stderr.contains("\nhint: ") && ended.stderr.contains("JetStream"), "{ended:?}");
    }
}

#[test]
fn a_worker_survives_a_restart_of_its_bus() {
    let mut fixture = Fixture::start();
    let mut worker = fixture.worker(&["consume", "tasks", "workers", "--start", "all", "--count", "2"]);
    fixture.publish("tasks.a", &["before"]);
    fixture.server.restart();
    worker.until_it_says("trying again");
    let deadline = Instant::now() + PATIENCE;
    // What the first life stored is gone with it; the consumer is made anew in the second.
    while fixture.run(&["consumer", "ls", "tasks", "--json"]).json().is_empty() {
        assert!(Instant::now() < deadline, "the worker did not come back");
        std::thread::yield_now();
    }
    fixture.publish("tasks.a", &["after", "later"]);
    let lines = worker.end().lines();
    assert!(lines.iter().any(|line| line.ends_with("after")), "{lines:?}");
}
