//! Streams, consumers, dead letters and replay: one set of scenarios, the same on every backend that stores. In memory
//! the commands speak to the admin API of `trunkline up`; with Redis and NATS, to the server itself.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline_testkit::RedisServer;
use trunkline_testkit::servers::{NatsServer, TrunklineServer};

use crate::command::{Ended, Running, command, start, text};

/// Makes a test of each scenario for each backend.
macro_rules! on_every_backend {
    ($($scenario:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $scenario() { super::$scenario(&super::Fixture::in_memory()) })*
        }
        mod redis {
            $(#[test] fn $scenario() { super::$scenario(&super::Fixture::redis()) })*
        }
        mod nats {
            $(#[test] fn $scenario() { super::$scenario(&super::Fixture::nats()) })*
        }
    };
}

on_every_backend!(
    streams_are_listed_shown_and_removed,
    a_worker_retries_what_fails_and_acknowledges_what_succeeds,
    without_a_command_messages_are_printed_and_acknowledged_once,
    a_message_that_never_succeeds_is_shown_redriven_and_purged_as_a_dead_letter,
    dead_letters_are_purged_one_by_one_or_all,
    a_worker_that_is_killed_leaves_its_message_to_another,
    replay_starts_anywhere_and_goes_to_stdout_or_a_subject,
    what_is_not_there_is_an_error_that_says_so,
);

/// What keeps the messages.
enum Server {
    InMemory(TrunklineServer),
    Redis(#[expect(dead_code, reason = "it lives as long as the test")] RedisServer),
    Nats(#[expect(dead_code, reason = "it lives as long as the test")] NatsServer),
}

/// A bus with two streams, and a directory for the test.
struct Fixture {
    server: Server,
    directory: TempDir,
}

fn configuration(backend: &str) -> String {
    format!(
        "messaging:
  {backend}
  streams:
    - {{name: tasks, subjects: ['tasks.>']}}
    - {{name: audit, subjects: ['audit.>'], max_messages: 100}}
  consumer: {{ack_wait: 1s, max_deliver: 3, backoff: [10ms]}}
"
    )
}

fn directory_with(backend: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.yaml"), configuration(backend)).unwrap();
    directory
}

impl Fixture {
    fn in_memory() -> Self {
        let directory = directory_with("backend: in_memory");
        let config = directory.path().join("config.yaml");
        let binary = Path::new(env!("CARGO_BIN_EXE_trunkline"));
        let server = TrunklineServer::start(binary, ["--config", text(&config)]);
        Self { server: Server::InMemory(server), directory }
    }

    fn redis() -> Self {
        let server = RedisServer::start();
        let directory = directory_with(&format!("backend: redis\n  redis_url: {}", server.url()));
        Self { server: Server::Redis(server), directory }.with_streams()
    }

    fn nats() -> Self {
        let server = NatsServer::start(["-js"]);
        let directory = directory_with(&format!("backend: nats\n  nats_url: {}", server.url()));
        Self { server: Server::Nats(server), directory }.with_streams()
    }

    /// As `trunkline up` makes them.
    fn with_streams(self) -> Self {
        let mut up = self.begin(&["up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        up.until_it_says("Ctrl-C stops it");
        up.signal(Signal::SIGTERM);
        up.end().ok();
        self
    }

    fn file(&self, name: &str) -> String {
        text(&self.directory.path().join(name)).to_owned()
    }

    fn begin(&self, arguments: &[&str]) -> Running {
        let config = self.file("config.yaml");
        let to = match (&self.server, arguments[0]) {
            (Server::InMemory(server), "pub") => ["--url", server.url()],
            (Server::InMemory(server), _) => ["--http", server.http()],
            _ => ["--config", &config],
        };
        start(command(&[arguments, &to].concat()), b"")
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.begin(arguments).end()
    }

    fn one(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.run(arguments).ok()).unwrap()
    }

    fn publish(&self, subject: &str, payloads: &[&str]) {
        for payload in payloads {
            self.run(&["pub", subject, payload]).ok();
        }
    }

    /// A worker, once it is a member of its consumer.
    fn worker(&self, arguments: &[&str]) -> Running {
        let mut worker = self.begin(arguments);
        worker.until_it_says("consuming ");
        worker
    }

    /// Offsets of all that a stream keeps, as people see them.
    fn offsets(&self, stream: &str) -> Vec<String> {
        let lines = self.run(&["replay", stream, "--json"]).json();
        lines.iter().map(|line| shown(&line["offset"])).collect()
    }

    fn dead(&self) -> Vec<Value> {
        self.run(&["dlq", "ls", "--json"]).json()
    }
}

fn shown(offset: &Value) -> String {
    offset.as_str().expect("offsets are texts").to_owned()
}

fn streams_are_listed_shown_and_removed(fixture: &Fixture) {
    fixture.publish("audit.log", &["one", "two"]);
    let streams = fixture.run(&["stream", "ls", "--json"]).json();
    let audit = streams.iter().find(|stream| stream["name"] == "audit").expect("it is there");
    assert!(streams.iter().any(|stream| stream["name"] == "tasks"), "{streams:?}");
    assert_eq!((&audit["messages"], &audit["maxMessages"]), (&json!(2), &json!(100)));
    let offsets = fixture.offsets("audit");
    let info = fixture.one(&["stream", "info", "audit", "--json"]);
    assert_eq!(
        (&info["first"], &info["last"], &info["subjects"]),
        (&json!(offsets[0]), &json!(offsets[1]), &json!(["audit.>"]))
    );
    let table = fixture.run(&["stream", "ls"]).lines().join("\n");
    assert!(table.contains("audit.>") && table.contains("STREAM"), "{table}");

    let unsure = fixture.run(&["stream", "rm", "audit"]);
    assert!(unsure.code() == 2 && unsure.stderr.contains("--yes"), "{unsure:?}");
    fixture.run(&["stream", "rm", "audit", "--yes"]).ok();
    if matches!(fixture.server, Server::Redis(_)) {
        // Whoever is on Redis with a configuration makes the streams that it names.
        assert_eq!(fixture.one(&["stream", "info", "audit", "--json"])["messages"], 0);
        return;
    }
    let gone = fixture.run(&["stream", "info", "audit"]);
    assert!(gone.code() == 1 && gone.stderr.contains("no stream named \"audit\""), "{gone:?}");
    assert_eq!(fixture.run(&["stream", "rm", "audit", "--yes"]).code(), 1);
}

fn a_worker_retries_what_fails_and_acknowledges_what_succeeds(fixture: &Fixture) {
    fixture.publish("tasks.a", &["hello"]);
    let line =
        "sh -c 'read line; [ $MESSAGE_ATTEMPT = 2 ] || exit 1; echo $MESSAGE_SUBJECT $MESSAGE_OFFSET $line'";
    let worker = ["consume", "tasks", "workers", "--start", "all", "--exec", line, "--count", "1", "--json"];
    let records = fixture.run(&worker).json();
    let outcomes: Vec<_> = records.iter().map(|r| (r["attempt"].clone(), r["outcome"].clone())).collect();
    assert_eq!(outcomes, [(json!(1), json!("failed")), (json!(2), json!("acked"))]);
    let offset = &fixture.offsets("tasks")[0];
    assert_eq!(records[1]["output"], format!("tasks.a {offset} hello\n"));
    assert_eq!(records[1]["message"]["payload"], "hello");

    let consumers = fixture.run(&["consumer", "ls", "tasks", "--json"]).json();
    assert_eq!((&consumers[0]["name"], &consumers[0]["ackFloor"]), (&json!("workers"), &json!(offset)));
    assert_eq!((&consumers[0]["pending"], &consumers[0]["members"]), (&json!(0), &json!(0)));
    let info = fixture.one(&["consumer", "info", "tasks", "workers", "--json"]);
    assert_eq!((&info["stream"], &info["lag"], &info["missed"]), (&json!("tasks"), &json!(0), &json!(0)));
    // JetStream tells of what is pending now, the others of all that ever was.
    let redelivered = if matches!(fixture.server, Server::Nats(_)) { 0 } else { 1 };
    assert_eq!(info["redelivered"], redelivered);
    fixture.run(&["consumer", "rm", "tasks", "workers", "--yes"]).ok();
    let gone = fixture.run(&["consumer", "info", "tasks", "workers"]);
    assert!(gone.code() == 1 && gone.stderr.contains("no consumer named"), "{gone:?}");
    assert!(fixture.run(&["consumer", "ls", "tasks", "--json"]).json().is_empty());
}

fn without_a_command_messages_are_printed_and_acknowledged_once(fixture: &Fixture) {
    fixture.publish("audit.log", &["one", "two"]);
    let printed = |count: &str| {
        let reader = ["consume", "audit", "reader", "--start", "all", "--concurrency", "1", "--count", count];
        fixture.run(&reader).lines()
    };
    let first = printed("2");
    fixture.publish("audit.log", &["three"]);
    let second = printed("1");
    let offsets = fixture.offsets("audit");
    let expected: Vec<String> = ["one", "two", "three"]
        .iter()
        .zip(&offsets)
        .map(|(payload, offset)| format!("{offset}  audit.log  {payload}"))
        .collect();
    assert_eq!([first, second].concat(), expected);
}

fn a_message_that_never_succeeds_is_shown_redriven_and_purged_as_a_dead_letter(fixture: &Fixture) {
    assert!(fixture.dead().is_empty(), "before the first consumer there are none");
    let body = ["tasks.a", r#"{"q":1}"#, "--type", "task", "--correlation", "k-1", "--conversation", "c-1"];
    fixture.run(&[&["pub"], &body[..]].concat()).ok();
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
    let letter = shown(&dead[0]["offset"]);
    let text = fixture.run(&["dlq", "show", &letter]).lines().join("\n");
    assert!(text.contains("max_deliver") && text.contains("k-1"), "{text}");
    assert!(
        fixture.run(&["stream", "ls", "--json"]).json().iter().any(|stream| stream["name"] == "dead-nachos")
    );

    let elsewhere = fixture.run(&["dlq", "redrive", &letter, "--to", "other.a"]);
    assert!(
        elsewhere.code() == 1 && elsewhere.stderr.contains("not stored by stream \"tasks\""),
        "{elsewhere:?}"
    );
    let redriven = fixture.run(&["dlq", "redrive", &letter, "--json"]).json();
    let offset = &fixture.offsets("tasks")[1];
    assert_eq!(
        redriven[0],
        json!({"deadLetter": letter, "stream": "tasks", "subject": "tasks.a", "offset": offset})
    );
    assert!(fixture.dead().is_empty(), "it is no dead letter any more");
    let again =
        fixture.run(&["consume", "tasks", "workers", "--exec", "cat", "--count", "1", "--json"]).json();
    let message = &again[0]["message"];
    assert_eq!((&again[0]["offset"], &again[0]["attempt"]), (&json!(offset), &json!(1)));
    assert_eq!(message["payload"]["correlationId"], "k-1");
    assert_eq!(message["payload"]["trace"]["conversationId"], "c-1");
    assert_eq!(message["headers"], json!({}), "nothing of the dead letter is left");
}

fn dead_letters_are_purged_one_by_one_or_all(fixture: &Fixture) {
    fixture.publish("tasks.a", &["one", "two", "three"]);
    // One at a time, so that they die in their order.
    let line = "sh -c 'exit 65'";
    let mut worker = fixture.worker(&[
        "consume",
        "tasks",
        "workers",
        "--start",
        "all",
        "--concurrency",
        "1",
        "--exec",
        line,
    ]);
    for _ in 0..3 {
        worker.until_it_says("rejected, attempt 1");
    }
    worker.signal(Signal::SIGTERM);
    worker.end().ok();

    let payloads = || -> Vec<Value> {
        fixture.dead().iter().map(|letter| letter["message"]["payload"].clone()).collect()
    };
    assert_eq!(payloads(), ["one", "two", "three"]);
    let offsets: Vec<String> = fixture.dead().iter().map(|letter| shown(&letter["offset"])).collect();
    let unsure = fixture.run(&["dlq", "purge", &offsets[1]]);
    assert!(unsure.code() == 2 && unsure.stderr.contains("--yes"), "{unsure:?}");
    assert_eq!(fixture.run(&["dlq", "purge", "--yes"]).code(), 2, "which ones must be said");
    fixture.run(&["dlq", "purge", &offsets[1], "--yes"]).ok();
    assert_eq!(payloads(), ["one", "three"]);
    let gone = fixture.run(&["dlq", "show", &offsets[1]]);
    assert!(gone.code() == 1 && gone.stderr.contains("no dead letter"), "{gone:?}");
    assert_eq!(fixture.run(&["dlq", "show", &offsets[2], "--raw"]).ok(), b"three");
    let purged = fixture.run(&["dlq", "purge", "--consumer", "workers", "--yes"]);
    assert!(purged.stderr.contains("purged 2"), "{purged:?}");
    assert!(payloads().is_empty());
}

fn a_worker_that_is_killed_leaves_its_message_to_another(fixture: &Fixture) {
    let fifo = fixture.file("taken");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    fixture.publish("tasks.a", &["work"]);
    // The command says that it has the message, then never ends by itself.
    let line = format!("sh -c 'echo $$ >{fifo}; exec sleep 1000'");
    let worker = fixture.worker(&["consume", "tasks", "workers", "--start", "all", "--exec", &line]);
    let sleeper: i32 = std::fs::read_to_string(&fifo).unwrap().trim().parse().unwrap();
    worker.signal(Signal::SIGKILL);
    drop(worker);
    // What a killed worker had started lives on, in a group of its own.
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
    let records =
        fixture.run(&["consume", "tasks", "workers", "--exec", "cat", "--count", "1", "--json"]).json();
    assert_eq!((&records[0]["attempt"], &records[0]["output"]), (&json!(2), &json!("work")));
}

fn replay_starts_anywhere_and_goes_to_stdout_or_a_subject(fixture: &Fixture) {
    fixture.publish("audit.a", &["one"]);
    fixture.publish("audit.b", &["two"]);
    fixture.publish("audit.a", &["three"]);
    let lines = fixture.run(&["replay", "audit", "--json"]).json();
    let third = lines[2]["time"].as_str().unwrap();
    let offsets = fixture.offsets("audit");
    let replayed = |arguments: &[&str]| -> Vec<String> {
        let lines = fixture.run(&[&["replay", "audit", "--json"], arguments].concat()).json();
        lines.iter().map(|line| line["payload"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(replayed(&["--all"]), ["one", "two", "three"]);
    assert_eq!(replayed(&["--after", &offsets[0]]), ["two", "three"]);
    assert_eq!(replayed(&["--filter", "audit.a"]), ["one", "three"]);
    assert_eq!(replayed(&["--count", "1"]), ["one"]);
    assert_eq!(replayed(&["--since", "1h"]).len(), 3);
    assert!(replayed(&["--since", "2999-01-01T00:00:00Z"]).is_empty());
    let since = replayed(&["--since", third]);
    assert_eq!(since.last().map(String::as_str), Some("three"), "{since:?}");
    let last = fixture.run(&["replay", "audit", "--json", "--after", &offsets[1]]).json();
    assert_eq!((&last[0]["offset"], &last[0]["subject"]), (&json!(offsets[2]), &json!("audit.a")));
    assert_eq!(fixture.run(&["replay", "audit", "--raw"]).ok(), b"onetwothree");

    let itself = fixture.run(&["replay", "audit", "--to", "audit.copy"]);
    assert!(itself.code() == 2 && itself.stderr.contains("feed itself"), "{itself:?}");
    fixture.run(&["replay", "audit", "--to", "tasks.copy", "--after", &offsets[0]]).ok();
    let copies = fixture.run(&["replay", "tasks", "--json"]).json();
    let copies: Vec<_> = copies.iter().map(|c| (c["subject"].clone(), c["payload"].clone())).collect();
    assert_eq!(copies, [(json!("tasks.copy"), json!("two")), (json!("tasks.copy"), json!("three"))]);
}

fn what_is_not_there_is_an_error_that_says_so(fixture: &Fixture) {
    fixture.publish("audit.a", &["one"]);
    for arguments in [
        &["stream", "info", "nowhere"][..],
        &["stream", "rm", "nowhere", "--yes"],
        &["consumer", "ls", "nowhere"],
        &["consumer", "info", "nowhere", "c"],
        &["consume", "nowhere", "c"],
        &["replay", "nowhere"],
    ] {
        let failed = fixture.run(arguments);
        assert!(failed.code() == 1 && failed.stderr.contains("no stream named \"nowhere\""), "{failed:?}");
        assert!(failed.stderr.contains("\nhint: "), "{failed:?}");
    }
    assert_eq!(fixture.run(&["stream", "info", "no.name"]).code(), 2);
    let nobody = fixture.run(&["consumer", "info", "audit", "nobody"]);
    assert!(nobody.code() == 1 && nobody.stderr.contains("no consumer named"), "{nobody:?}");
    let (ahead, foreign) = match &fixture.server {
        Server::Redis(_) => ("99999999999999-0", "7"),
        Server::InMemory(_) | Server::Nats(_) => ("99", "99999999999999-0"),
    };
    let failed = fixture.run(&["replay", "audit", "--after", ahead]);
    assert!(failed.code() == 1 && failed.stderr.contains("past the end"), "{failed:?}");
    let failed = fixture.run(&["replay", "audit", "--after", foreign]);
    assert!(failed.code() == 1 && failed.stderr.contains("not one of this backend"), "{failed:?}");
    let failed = fixture.run(&["replay", "audit", "--after", "soon"]);
    assert_eq!(failed.code(), 2, "{failed:?}");
}
