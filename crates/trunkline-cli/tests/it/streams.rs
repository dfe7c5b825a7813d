//! The admin API of a running bus: who may use it, how it is found, and its restart. What the commands do with it is in
//! `stored`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

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

/// A bus with two streams.
struct Fixture {
    server: TrunklineServer,
    /// Has the configuration, which the server reads again when it restarts.
    _directory: TempDir,
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
        Self { server, _directory: directory }
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
