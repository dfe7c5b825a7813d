//! Streams, consumers, dead letters and replay with backend nats: the commands speak to the NATS server itself.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline_testkit::servers::NatsServer;

use crate::command::{Ended, Running, command, run, start, text};

/// A NATS server with JetStream, and a configuration that names it.
struct Fixture {
    server: NatsServer,
    directory: TempDir,
}

impl Fixture {
    /// With the streams made, as `trunkline up` makes them.
    fn start() -> Self {
        let server = NatsServer::start(["-js"]);
        let directory = tempfile::tempdir().unwrap();
        let config = format!(
            "messaging:
  backend: nats
  nats_url: {}
  stream_prefix: mine
  streams:
    - {{name: tasks, subjects: ['tasks.>']}}
    - {{name: audit, subjects: ['audit.>'], max_messages: 100}}
  consumer: {{ack_wait: 1s, max_deliver: 3, backoff: [10ms]}}
",
            server.url()
        );
        std::fs::write(directory.path().join("config.yaml"), config).unwrap();
        let fixture = Self { server, directory };
        let mut up = fixture.begin(&["up"]);
        up.until_it_says("Ctrl-C stops it");
        up.signal(Signal::SIGTERM);
        up.end().ok();
        fixture
    }

    fn file(&self, name: &str) -> String {
        text(&self.directory.path().join(name)).to_owned()
    }

    fn begin(&self, arguments: &[&str]) -> Running {
        let config = self.file("config.yaml");
        start(command(&[arguments, &["--config", &config]].concat()), b"")
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.begin(arguments).end()
    }

    fn publish(&self, subject: &str, payloads: &[&str]) {
        for payload in payloads {
            self.run(&["pub", subject, payload]).ok();
        }
    }

    fn worker(&self, arguments: &[&str]) -> Running {
        let mut worker = self.begin(arguments);
        worker.until_it_says("consuming ");
        worker
    }
}

#[test]
fn streams_are_made_by_up_then_listed_shown_and_removed() {
    let fixture = Fixture::start();
    fixture.publish("audit.log", &["one", "two"]);
    let streams = fixture.run(&["stream", "ls", "--json"]).json();
    let names: Vec<_> = streams.iter().map(|stream| stream["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["audit", "tasks"]);
    assert_eq!((&streams[0]["messages"], &streams[0]["maxMessages"]), (&json!(2), &json!(100)));
    // With the address alone, the prefix must be said, too.
    let url = fixture.server.url();
    assert!(run(&["stream", "ls", "--json", "--url", url]).json().is_empty());
    let named = run(&["stream", "ls", "--json", "--url", url, "--stream-prefix", "mine"]).json();
    assert_eq!(named.len(), 2);
    fixture.run(&["stream", "rm", "audit", "--yes"]).ok();
    let gone = fixture.run(&["stream", "info", "audit"]);
    assert!(gone.code() == 1 && gone.stderr.contains("no stream named \"audit\""), "{gone:?}");
}

#[test]
fn a_worker_retries_by_the_configuration_and_dead_letters_are_redriven() {
    let fixture = Fixture::start();
    fixture.publish("tasks.a", &["work"]);
    let mut worker = fixture.worker(&["consume", "tasks", "workers", "--start", "all", "--exec", "false"]);
    for attempt in 1..=3 {
        worker.until_it_says(&format!("failed, attempt {attempt}"));
    }
    worker.signal(Signal::SIGTERM);
    worker.end().ok();
    let dead = fixture.run(&["dlq", "ls", "--json"]).json();
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!((&dead[0]["reason"], &dead[0]["attempts"]), (&json!("max_deliver"), &json!(3)));
    let redriven = fixture.run(&["dlq", "redrive", "1", "--json"]).json();
    assert_eq!(
        redriven[0],
        json!({"deadLetter": "1", "stream": "tasks", "subject": "tasks.a", "offset": "2"})
    );
    assert!(fixture.run(&["dlq", "ls", "--json"]).json().is_empty());
    let again =
        fixture.run(&["consume", "tasks", "workers", "--exec", "cat", "--count", "1", "--json"]).json();
    assert_eq!((&again[0]["offset"], &again[0]["attempt"]), (&json!("2"), &json!(1)));
    assert_eq!(again[0]["message"]["headers"], json!({}), "nothing of the dead letter is left");

    let info = fixture.run(&["consumer", "info", "tasks", "workers", "--json"]).ok();
    let info: Value = serde_json::from_slice(&info).unwrap();
    assert_eq!(
        (&info["ackFloor"], &info["pending"], &info["lag"], &info["members"]),
        (&json!("2"), &json!(0), &json!(0), &json!(0))
    );
    fixture.run(&["consumer", "rm", "tasks", "workers", "--yes"]).ok();
    assert!(fixture.run(&["consumer", "ls", "tasks", "--json"]).json().is_empty());
}

#[test]
fn a_worker_that_is_killed_leaves_its_message_to_another() {
    let fixture = Fixture::start();
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

#[test]
fn a_worker_goes_on_after_a_killed_server() {
    let mut fixture = Fixture::start();
    fixture.publish("tasks.a", &["before"]);
    let mut worker = fixture.worker(&["consume", "tasks", "workers", "--start", "all", "--count", "2"]);
    fixture.server.kill();
    worker.until_it_says("disconnected from NATS");
    fixture.server.restart();
    fixture.publish("tasks.a", &["after"]);
    assert_eq!(worker.end().lines(), ["1  tasks.a  before", "2  tasks.a  after"]);
}

#[test]
fn replay_starts_anywhere_and_goes_to_stdout_or_a_subject() {
    let fixture = Fixture::start();
    fixture.publish("audit.a", &["one"]);
    fixture.publish("audit.b", &["two"]);
    fixture.publish("audit.a", &["three"]);
    let lines = fixture.run(&["replay", "audit", "--json"]).json();
    let third = lines[2]["time"].as_str().unwrap().to_owned();
    let replayed = |arguments: &[&str]| -> Vec<String> {
        let lines = fixture.run(&[&["replay", "audit", "--json"], arguments].concat()).json();
        lines.iter().map(|line| line["payload"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(replayed(&["--all"]), ["one", "two", "three"]);
    assert_eq!(replayed(&["--after", "1"]), ["two", "three"]);
    assert_eq!(replayed(&["--filter", "audit.a"]), ["one", "three"]);
    let since = replayed(&["--since", &third]);
    assert_eq!(since.last().map(String::as_str), Some("three"), "{since:?}");
    assert!(replayed(&["--since", "2999-01-01T00:00:00Z"]).is_empty());
    let ahead = fixture.run(&["replay", "audit", "--after", "99"]);
    assert!(ahead.code() == 1 && ahead.stderr.contains("past the end"), "{ahead:?}");
    fixture.run(&["replay", "audit", "--to", "tasks.copy", "--after", "1"]).ok();
    let copies = fixture.run(&["replay", "tasks", "--json"]).json();
    let copies: Vec<_> = copies.iter().map(|c| (c["subject"].clone(), c["payload"].clone())).collect();
    assert_eq!(copies, [(json!("tasks.copy"), json!("two")), (json!("tasks.copy"), json!("three"))]);
}
