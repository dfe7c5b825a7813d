//! Metrics, alerts, the dashboard of Grafana and health, as Prometheus and operators meet them.

mod exposition;
mod health;
mod moved;
mod prometheus;
mod scene;
mod scraped;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;
use trunkline_testkit::environment;

use crate::command::{Ended, PATIENCE, Running, command, start, text};

/// Where alerts and dashboard lie.
fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/observability")
}

/// Runs promtool there, with something on its stdin.
fn promtool(arguments: &[&str], input: &str) -> Ended {
    let mut promtool = Command::new(environment::prometheus().join("promtool"));
    promtool.args(arguments).current_dir(files());
    start(promtool, input.as_bytes()).end()
}

/// A `trunkline up` with a configuration, on free ports. Killed when it is dropped, with its components.
struct Up {
    _running: Running,
    http: String,
    _directory: TempDir,
}

impl Up {
    fn start(configuration: &str) -> Self {
        let directory = tempfile::tempdir().expect("the system's temporary directory takes another");
        let (config, ports) = (directory.path().join("config.yaml"), directory.path().join("ports.json"));
        std::fs::write(&config, configuration).expect("a temporary directory takes a file");
        let addresses = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let files = ["up", "--config", text(&config), "--ports-file", text(&ports)];
        let running = start(command(&[&files[..], &addresses].concat()), b"");
        let http = eventually("a bus", || {
            // It appears whole.
            let ports = std::fs::read(&ports).map_err(|error| error.to_string())?;
            let ports: Value = serde_json::from_slice(&ports).expect("JSON");
            Ok(ports["http"].as_str().expect("a URL").to_owned())
        });
        Self { _running: running, http, _directory: directory }
    }
}

/// Status and body of an answer over HTTP.
pub(super) fn get(address: &str, path: &str) -> (u16, String) {
    let address = address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("the timeout is not zero");
    // Of version 1.0, so that nothing comes in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers in text");
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (status.expect("a status"), body.to_owned())
}

/// Waits until something is there that no event tells about, since another process has it.
#[track_caller]
pub(super) fn eventually<T>(what: &str, mut there: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match there() {
            Ok(found) => return found,
            Err(missing) => assert!(started.elapsed() < PATIENCE, "{what} never came about: {missing}"),
        }
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}

#[test]
fn alerts_are_valid_and_fire_when_they_should() {
    for arguments in [
        ["check", "rules", "trunkline.rules.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "trunkline.rules.test.yml"],
    ] {
        let ended = promtool(&arguments, "");
        assert!(ended.status.success(), "{arguments:?}: {ended:?}");
    }
    // None goes without a try.
    let read = |name| std::fs::read_to_string(files().join(name)).expect("it is there");
    let (rules, tests) = (read("trunkline.rules.yml"), read("trunkline.rules.test.yml"));
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let fires = tests.contains(&format!("alertname: {alert}\n        exp_alerts:"));
        assert!(fires, "no test has {alert} fire");
    }
}
