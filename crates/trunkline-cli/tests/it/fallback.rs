//! `trunkline up` with a Redis that cannot be used: it says so and runs on memory, not ready, or it does not start.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use trunkline_testkit::unusable_redis;

use crate::command::{PATIENCE, command, run, start};

/// How soon it has to be known, and what a busy machine adds to the start of a process.
const KNOWN: Duration = Duration::from_secs(5 + 3);

/// The whole answer of an HTTP request.
pub(crate) fn get(http: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(http.trim_start_matches("http://")).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("the timeout is not zero");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

#[test]
fn unusable_redis_is_replaced_by_memory_and_the_bus_is_not_ready() {
    for redis in unusable_redis() {
        let mut upping =
            command(&["up", "--backend", "redis", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        upping.env("REDIS_URL", &redis.url);
        let mut running = start(upping, b"");
        let line = running.until_it_says("http ");
        let http = line.split_whitespace().nth(1).expect("a label and a URL").to_owned();
        running.until_it_says("Ctrl-C stops it");
        let ready = run(&["status", "--http", &http, "--json"]);
        assert_eq!(ready.code(), 1, "{}: {ready:?}", redis.name);
        let report = String::from_utf8_lossy(&ready.stdout).into_owned();
        assert!(report.contains("degraded"), "{}: {report}", redis.name);
        let probe = get(&http, "/readyz");
        assert!(probe.starts_with("HTTP/1.1 503"), "{}: {probe}", redis.name);
        let metrics = get(&http, "/metrics");
        let degraded = |line: &str| {
            line.starts_with("trunkline_backend_state{") && line.contains("degraded") && line.ends_with(" 1")
        };
        assert!(metrics.lines().any(degraded), "{}: {metrics}", redis.name);
        running.signal(Signal::SIGTERM);
        let ended = running.end();
        let warnings = ended.stderr.lines().filter(|line| line.contains("FALLBACK")).count();
        assert_eq!(warnings, 1, "{}: {}", redis.name, ended.stderr);
        assert!(redis.secret.is_none_or(|secret| !ended.stderr.contains(secret)), "{}", ended.stderr);
    }
}

#[test]
fn unusable_redis_ends_the_command_where_nothing_may_replace_it() {
    for redis in unusable_redis() {
        let mut failing = command(&["up", "--backend", "redis"]);
        failing.env("REDIS_URL", &redis.url).env("TRUNKLINE_FALLBACK", "fail");
        let ended = start(failing, b"").end();
        assert_eq!(ended.code(), 1, "{}: {ended:?}", redis.name);
        assert!(ended.took < KNOWN, "{}: {ended:?}", redis.name);
        assert!(ended.stderr.contains("redis") && ended.stderr.contains("hint: "), "{}", ended.stderr);
        assert!(redis.secret.is_none_or(|secret| !ended.stderr.contains(secret)), "{}", ended.stderr);
    }
}
