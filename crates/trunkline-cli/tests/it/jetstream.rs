//! Commands with backend nats, which speak to the NATS server itself: its address, its prefix, its restart. What is the
//! same on every backend is in `stored`.

use std::time::Instant;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use trunkline_testkit::servers::NatsServer;

use crate::command::{Ended, PATIENCE, Running, command, run, start, text};

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

    fn begin(&self, arguments: &[&str]) -> Running {
        let config = text(&self.directory.path().join("config.yaml")).to_owned();
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
fn streams_are_made_by_up_and_found_by_the_prefix() {
    let fixture = Fixture::start();
    fixture.publish("audit.log", &["one", "two"]);
    assert_eq!(fixture.run(&["stream", "ls", "--json"]).json().len(), 2);
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
fn a_worker_goes_on_after_a_restart_of_the_server() {
    let mut fixture = Fixture::start();
    fixture.publish("tasks.a", &["before"]);
    let mut worker = fixture.worker(&["consume", "tasks", "workers", "--start", "all", "--count", "2"]);
    let deadline = Instant::now() + PATIENCE;
    while fixture.run(&["consumer", "ls", "tasks", "--json"]).json()[0]["ackFloor"] != "1" {
        assert!(Instant::now() < deadline, "it is not acknowledged");
    }
    // A server that is killed instead may have forgotten the last acknowledgement.
    fixture.server.stop();
    worker.until_it_says("disconnected from NATS");
    fixture.server.restart();
    fixture.publish("tasks.a", &["after"]);
    assert_eq!(worker.end().lines(), ["1  tasks.a  before", "2  tasks.a  after"]);
}
