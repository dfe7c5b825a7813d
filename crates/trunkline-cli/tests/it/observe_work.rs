//! What becomes of stored work is in the record on every backend: attempts, failures, dead letters, and that they were sent
//! back, by a command or from the dashboard; and what stock clients in JavaScript do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use trunkline_testkit::environment;
use trunkline_testkit::{NatsServer, RedisServer};

use crate::command::{PATIENCE, Running, command, start, text};

/// A bus that records, and a directory with its configuration.
struct Bus {
    up: Running,
    http: String,
    clients: String,
    directory: TempDir,
    in_memory: bool,
}

impl Bus {
    fn start(backend: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let configuration = format!(
            "messaging:
  {backend}
  streams: [{{name: tasks, subjects: ['nachos.tool.*.task']}}]
  consumer: {{ack_wait: 2m, max_deliver: 2, backoff: [10ms]}}
observe: {{enabled: true}}
server: {{listen: '127.0.0.1:0', http: '127.0.0.1:0', auth: {{admin_token: t0ken}}}}
"
        );
        std::fs::write(directory.path().join("config.yaml"), configuration).unwrap();
        let config = directory.path().join("config.yaml");
        let mut up = start(command(&["up", "--config", text(&config)]), b"");
        let clients = up.until_it_says("clients ").split_whitespace().nth(1).unwrap().to_owned();
        let line = up.until_it_says("http  ");
        let http = line.split_once("http://").unwrap().1.split_whitespace().next().unwrap().to_owned();
        up.until_it_says("Ctrl-C stops it");
        let in_memory = backend.contains("in_memory");
        Self { up, http: format!("http://{http}"), clients, directory, in_memory }
    }

    /// A command on this bus: past the server where there is one behind it.
    fn begin(&self, arguments: &[&str]) -> Running {
        let config = self.directory.path().join("config.yaml");
        let to = match (self.in_memory, arguments[0]) {
            (true, "pub" | "request") => vec!["--url", &self.clients],
            (true, _) => vec!["--http", &self.http, "--token", "t0ken"],
            (false, _) => vec!["--config", text(&config)],
        };
        start(command(&[arguments, &to].concat()), b"")
    }

    fn trace(&self, arguments: &[&str]) -> String {
        let ask = ["trace", "--http", &self.http, "--token", "t0ken"];
        String::from_utf8(start(command(&[&ask, arguments].concat()), b"").end().ok()).unwrap()
    }

    /// Sends all dead letters back as the dashboard does.
    fn redrive_all(&self) -> Value {
        let address = self.http.trim_start_matches("http://");
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = r#"{"all":true}"#;
        write!(
            socket,
            "POST /api/v1/dead-letters/redrive HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer t0ken\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap_or_else(|_| panic!("{answer}"))
    }

    /// The record of a conversation, as soon as it is as wanted.
    #[track_caller]
    fn record(&self, id: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let ask = ["trace", id, "--json", "--http", &self.http, "--token", "t0ken"];
            let asked = start(command(&ask), b"").end();
            if asked.status.success() {
                let record: Value = serde_json::from_slice(&asked.stdout).unwrap();
                if is_wanted(&record) {
                    return record;
                }
                assert!(started.elapsed() < PATIENCE, "{record:#}");
            }
            assert!(started.elapsed() < PATIENCE, "{asked:?}");
        }
    }

    fn end(self) {
        self.up.signal(Signal::SIGTERM);
        self.up.end().ok();
    }
}

/// What happened, with the attempt and the outcome where there are any.
fn steps(record: &Value) -> Vec<String> {
    let mut seen: Vec<&Value> = record["observations"].as_array().unwrap().iter().collect();
    // Reports come in batches, and each in its own time.
    seen.sort_by_key(|seen| seen["time"].as_str().unwrap().to_owned());
    let step = |seen: &&Value| {
        let parts = [&seen["what"], &seen["attempt"], &seen["outcome"]];
        let parts = parts.into_iter().filter(|part| !part.is_null());
        let step = parts.map(|part| part.to_string().replace('"', "")).collect::<Vec<_>>().join(" ");
        // A worker that the machine has held up for long loses its delivery: that is an attempt, too.
        step.replace("cancelled", "nacked")
    };
    seen.iter().map(step).collect()
}

/// A task fails until it is a dead letter, comes back twice, and succeeds in the end.
fn check_work(bus: Bus) {
    let publish = ["pub", "nachos.tool.mail.task", "hello", "--conversation", "c-7"];
    bus.begin(&publish).end().ok();
    let fail = ["consume", "tasks", "mailers", "--start", "all", "--exec", "false"];
    let succeed = ["consume", "tasks", "mailers", "--start", "all", "--exec", "true", "--count", "1"];
    let dead_letters = |record: &Value| record["summary"]["deadLetters"].as_u64().unwrap();
    let fails = |times: u64| {
        let mut worker = bus.begin(&fail);
        worker.until_it_says("failed, attempt 2");
        let record = bus.record("c-7", |record| dead_letters(record) == times);
        worker.signal(Signal::SIGTERM);
        worker.end().ok();
        record
    };
    let record = fails(1);
    assert_eq!(record["summary"]["state"], "failed", "{record:#}");
    bus.begin(&["dlq", "redrive", "--all"]).end().ok();
    fails(2);
    let redriven = bus.redrive_all();
    assert_eq!(redriven["redriven"].as_array().map(Vec::len), Some(1), "{redriven}");
    bus.begin(&succeed).end().ok();
    let is_over = |record: &Value| steps(record).contains(&"handled 1 acked".to_owned());
    let record = bus.record("c-7", is_over);
    let round = ["handled 1 nacked", "handled 2 terminated", "deadLettered 2", "redriven"];
    let steps = steps(&record);
    let mut sorted = steps.clone();
    sorted.sort();
    let mut expected = [&["published", "handled 1 acked"], &round[..], &round[..]].concat();
    expected.sort_unstable();
    assert_eq!(sorted, expected, "{record:#}");
    assert_eq!(
        (steps[0].as_str(), steps.last().unwrap().as_str()),
        ("published", "handled 1 acked"),
        "{steps:?}"
    );
    assert_eq!(record["summary"]["state"], "quiet", "{record:#}");
    assert_eq!(record["summary"]["retries"], 2, "{record:#}");
    let page = bus.trace(&["c-7", "--width", "80"]);
    for part in [
        "redriven: the dead letter was published again",
        "dead letter after attempt 2",
        "attempt 1 by ",
        "succeeded",
        "↻",
    ] {
        assert!(page.contains(part), "{part:?} is not in\n{page}");
    }
    // Every step hangs at its message.
    assert_eq!(page.matches("nachos.tool.mail.task").count(), 1, "{page}");
    bus.end();
}

#[test]
fn work_that_fails_and_comes_back_is_in_the_record_in_memory() {
    check_work(Bus::start("backend: in_memory"));
}

#[test]
fn work_that_fails_and_comes_back_is_in_the_record_on_redis() {
    let redis = RedisServer::start();
    check_work(Bus::start(&format!("backend: redis\n  redis_url: {}", redis.url())));
}

#[test]
fn work_that_fails_and_comes_back_is_in_the_record_on_nats() {
    let nats = NatsServer::start(["-js"]);
    check_work(Bus::start(&format!("backend: nats\n  nats_url: {}", nats.url())));
}

/// The weather tool of the examples in Node is asked by a stock client of the other library for Node.
#[test]
fn stock_clients_for_node_are_drawn_as_themselves() {
    let bus = Bus::start("backend: in_memory");
    let directory = tempfile::tempdir().unwrap();
    // Modules are looked for beside the script.
    std::os::unix::fs::symlink(
        environment::node_path().join("node_modules"),
        directory.path().join("node_modules"),
    )
    .unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/node");
    std::fs::copy(examples.join("weather.mjs"), directory.path().join("weather.mjs")).unwrap();
    let asker = r#"
import { connect, headers } from "nats";
const bus = await connect({ servers: process.env.NATS_URL, name: "asker in node" });
const envelope = (id, type, payload, causationId) => JSON.stringify({
  id, type, payload, source: "gateway", correlationId: "k-1", trace: { conversationId: "c-node", causationId } });
bus.publish("nachos.channel.web.inbound", envelope("m-1", "channel.inbound", { text: "and in Oslo?" }));
const ask = async (id, city) => {
  for (;;) {
    try {
      return (await bus.request("nachos.tool.weather.call", envelope(id, "tool.call", { arguments: { city } }, "m-1"), { timeout: 5000 })).json();
    } catch (error) {
      if (error.code !== "503") throw error;
      await bus.flush();
    }
  }
};
const answers = await Promise.all([ask("m-2", "Oslo"), ask("m-3", "Rome")]);
bus.publish("nachos.channel.web.outbound", envelope("m-4", "channel.outbound", { text: answers.map((a) => a.output).join() }, "m-1"));
await bus.drain();
"#;
    std::fs::write(directory.path().join("asker.mjs"), asker).unwrap();
    let node = |script: &str| {
        let mut node = Command::new("node");
        node.arg(directory.path().join(script)).env("NATS_URL", &bus.clients);
        node
    };
    let mut tool = node("weather.mjs").spawn().expect("node is there");
    let asked = node("asker.mjs").output().expect("node is there");
    tool.kill().unwrap();
    tool.wait().unwrap();
    assert!(asked.status.success(), "{asked:?}");
    let record = bus.record("c-node", |record| record["summary"]["state"] == "quiet");
    let answers =
        record["observations"].as_array().unwrap().iter().filter(|seen| seen["outcome"] == "answered");
    assert_eq!(answers.count(), 2, "{record:#}");
    let page = bus.trace(&["c-node", "--payloads"]);
    for part in ["nachos.channel.web.inbound", "↩ answer", "sunny in Oslo", "sunny in Rome", "gateway → "]
    {
        assert!(page.contains(part), "{part:?} is not in\n{page}");
    }
    // Both calls hang below what caused them, and so does what was said in the end.
    let hanging = page.lines().filter(|line| line.starts_with("├─ ") || line.starts_with("└─ ")).count();
    assert_eq!(hanging, 3, "{page}");
    bus.end();
}

/// A user that may not report is told so once, and nothing else is different for it.
#[test]
fn a_component_that_may_not_report_is_told_once_and_serves_as_ever() {
    let nats = NatsServer::start_with_config(
        "authorization { users: [
  { user: all, password: s }
  { user: tool, password: s, permissions: {
      publish: [\"_INBOX.>\", \"nachos.tool.result\"], subscribe: [\"nachos.tool.echo.call\", \"_INBOX.>\"] } }
] }\n",
    );
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    let url = |user: &str| format!("nats://{user}:s@127.0.0.1:{}", nats.port());
    let configuration =
        format!("messaging: {{backend: nats, nats_url: '{}'}}\nobserve: {{enabled: true}}\n", url("tool"));
    std::fs::write(&config, configuration).unwrap();
    let tool = |arguments: &[&str]| start(command(&[arguments, &["--config", text(&config)]].concat()), b"");
    let mut responder = tool(&["reply", "nachos.tool.echo.call", "--echo", "--count", "6"]);
    responder.until_it_says("answering");
    let ask = |n: u32| {
        let ask = ["request", "nachos.tool.echo.call", &n.to_string(), "--raw", "--url", &url("all")];
        assert_eq!(start(command(&ask), b"").end().ok(), n.to_string().into_bytes());
    };
    ask(0);
    responder.until_it_says("this process may not report what it sees");
    // Each in a report of its own, if there were more.
    (1..6).for_each(ask);
    let ended = responder.end();
    assert!(ended.status.success(), "{ended:?}");
    let told: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("nachos.system.trace")).collect();
    assert_eq!(told.len(), 1, "{ended:?}");
    assert!(told[0].contains("Permissions Violation") && told[0].contains("observe.enabled"), "{told:?}");
    assert!(!ended.stderr.contains("the server refused a message"), "{ended:?}");
    let log = nats.log();
    let refused =
        log.lines().filter(|line| line.contains("Violation") && line.contains("nachos.system.trace"));
    assert_eq!(refused.count(), 1, "{log}");
    // What it is told of its own messages is as ever.
    let denied = tool(&["pub", "nachos.other", "x"]).end();
    assert!(denied.code() == 1 && denied.stderr.contains("nachos.other"), "{denied:?}");
    tool(&["pub", "nachos.tool.result", "x"]).end().ok();
}
