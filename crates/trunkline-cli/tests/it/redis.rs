//! Commands of several processes that share one configuration with backend redis, and nothing else.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;
use trunkline_testkit::RedisServer;

use crate::command::{Ended, Running, command, run, start, text};

/// A Redis server that keeps its data, and a configuration that names it.
struct Fixture {
    server: RedisServer,
    directory: TempDir,
    config: PathBuf,
}

impl Fixture {
    fn start() -> Self {
        let (server, directory) = (RedisServer::start(), tempfile::tempdir().unwrap());
        let config = directory.path().join("config.yaml");
        let written = format!(
            "
messaging:
  backend: redis
  redis_url: {}
  streams:
    - {{name: tasks, subjects: ['nachos.tool.*.task']}}
  consumer: {{ack_wait: 1s, max_deliver: 3, backoff: [10ms]}}
",
            server.url()
        );
        std::fs::write(&config, written).unwrap();
        Self { server, directory, config }
    }

    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["--config", text(&self.config)], arguments].concat()
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        run(&self.arguments(arguments))
    }

    /// A command in the background, once it has said that it is ready.
    fn background(&self, arguments: &[&str], ready: &str) -> Running {
        let mut running = start(command(&self.arguments(arguments)), b"");
        running.until_it_says(ready);
        running
    }
}

#[test]
fn processes_with_one_configuration_are_on_one_bus() {
    let fixture = Fixture::start();
    let all = fixture.background(&["sub", "nachos.>", "--json", "--count", "4"], "listening on");
    let other = fixture.background(&["sub", "elsewhere", "--count", "1"], "listening on");
    for n in ["1", "2", "3"] {
        fixture.run(&["pub", "nachos.channel.web.inbound", n]).ok();
    }
    fixture.run(&["pub", "elsewhere", "x"]).ok();
    let stored = fixture.run(&["pub", "nachos.tool.search.task", "work", "--json"]).json();
    assert_eq!((&stored[0]["receipt"], &stored[0]["stream"]), (&json!("stored"), &json!("tasks")));
    // Two streams have no order between them.
    let mut seen: Vec<_> =
        all.end().json().iter().map(|message| message["payload"].as_str().unwrap().to_owned()).collect();
    seen.sort();
    assert_eq!(seen, ["1", "2", "3", "work"]);
    assert_eq!(other.end().lines().len(), 1);

    let responder =
        fixture.background(&["reply", "nachos.tool.echo.call", "--echo", "--count", "1"], "answering on");
    assert_eq!(fixture.run(&["request", "nachos.tool.echo.call", "hello", "--raw"]).ok(), b"hello");
    responder.end().ok();
    let nobody = fixture.run(&["request", "nachos.tool.nobody.call", "hello"]);
    assert!(nobody.code() == 1 && nobody.stderr.contains("hint: "), "{nobody:?}");
}

#[test]
fn a_redis_that_is_away_is_an_error_and_not_a_bus_of_ones_own() {
    let mut fixture = Fixture::start();
    fixture.server.kill();
    for arguments in
        [&["pub", "a", "x", "--connect-timeout", "200ms"][..], &["stream", "ls", "--api-timeout", "200ms"]]
    {
        let failed = fixture.run(arguments);
        assert!(failed.code() == 1 && failed.stderr.contains("redis cannot be used"), "{failed:?}");
        assert!(failed.stderr.contains("\nhint: "), "{failed:?}");
    }
}

#[test]
fn a_queue_outlives_every_process_and_the_server() {
    let mut fixture = Fixture::start();
    for n in ["1", "2", "3", "4"] {
        fixture.run(&["pub", "nachos.tool.search.task", n]).ok();
    }
    let worker = ["consume", "tasks", "workers", "--start", "all", "--exec", "cat", "--json", "--count"];
    let first = fixture.run(&[&worker[..], &["1"]].concat()).json();
    assert_eq!((&first[0]["output"], &first[0]["attempt"]), (&json!("1"), &json!(1)));
    // One that has a message when it is killed, and then the server is killed, too.
    let fifo = fixture.directory.path().join("taken");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let line = format!("sh -c 'echo $$ >{}; exec sleep 1000'", text(&fifo));
    let killed = fixture
        .background(&["consume", "tasks", "workers", "--exec", &line, "--concurrency", "1"], "consuming ");
    let sleeper: i32 = std::fs::read_to_string(&fifo).unwrap().trim().parse().unwrap();
    killed.signal(Signal::SIGKILL);
    drop(killed);
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
    fixture.server.kill();
    fixture.server.restart();
    let rest = fixture.run(&[&worker[..], &["3"]].concat()).json();
    let mut outputs: Vec<_> = rest.iter().map(|r| (r["output"].as_str(), r["attempt"].as_u64())).collect();
    outputs.sort_unstable();
    assert_eq!(
        outputs.iter().map(|(output, _)| *output).collect::<Vec<_>>(),
        [Some("2"), Some("3"), Some("4")]
    );
    assert!(outputs[0].1 >= Some(2), "the killed one had it: {outputs:?}");
    let info = fixture.run(&["consumer", "ls", "tasks", "--json"]).json();
    assert_eq!((&info[0]["pending"], &info[0]["lag"], &info[0]["missed"]), (&json!(0), &json!(0), &json!(0)));
}
