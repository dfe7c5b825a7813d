//! `trunkline up`, from start to stop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use trunkline_testkit::servers::NatsServer;

use crate::command::{PATIENCE, Running, command, run, start, text};
use crate::fallback::get;

const FREE: [&str; 4] = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];

/// A bus on free ports; its URLs for clients and for HTTP.
fn up(arguments: &[&str]) -> (Running, String, String) {
    up_with(arguments, &[])
}

fn up_with(arguments: &[&str], variables: &[(&str, &str)]) -> (Running, String, String) {
    let mut up = command(&[&["up"], &FREE[..], arguments].concat());
    up.envs(variables.iter().copied());
    let mut running = start(up, b"");
    let address = |line: String| line.split_whitespace().nth(1).expect("a label and a URL").to_owned();
    let nats = address(running.until_it_says("clients "));
    let http = address(running.until_it_says("http "));
    running.until_it_says("Ctrl-C stops it");
    (running, nats, http)
}

#[test]
fn banner_tells_both_urls_the_backend_and_what_to_try() {
    let (running, nats, http) = up(&[]);
    assert!(nats.starts_with("nats://127.0.0.1:") && http.starts_with("http://127.0.0.1:"), "{nats} {http}");
    run(&["pub", "--url", &nats, "a", "x"]).ok();
    running.signal(Signal::SIGINT);
    let ended = running.end();
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.is_empty(), "the banner is no data: {ended:?}");
    assert!(ended.stderr.contains("in_memory (this process)"), "{}", ended.stderr);
    assert!(ended.stderr.contains("trunkline sub 'nachos.>' --url"), "{}", ended.stderr);
}

#[test]
fn demo_that_the_banner_proposes_runs_beside_the_bus_and_on_it() {
    let mut up = start(command(&[&["up"], &FREE[..]].concat()), b"");
    let url = up.until_it_says("clients ").split_whitespace().nth(1).expect("a label and a URL").to_owned();
    let proposed = up.until_it_says("up --demo").trim().to_owned();
    let mut words = proposed.split_whitespace();
    let (variable, joined) = words.next().and_then(|word| word.split_once('=')).expect("a variable");
    assert_eq!((variable, joined, words.next()), ("TRUNKLINE_URL", &*url, Some("trunkline")));
    let mut heard = start(command(&["sub", "--url", &url, "nachos.>", "--count", "1"]), b"");
    heard.until_it_says("listening on");
    let mut demo = command(&words.chain(["--demo-conversations", "1"]).collect::<Vec<_>>());
    demo.env(variable, joined);
    assert!(String::from_utf8_lossy(&start(demo, b"").end().ok()).contains("answered in"));
    assert_eq!(heard.end().lines().len(), 1, "on the same bus");
}

#[test]
fn ports_file_appears_whole_when_ready_and_goes_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ports.json");
    let (running, nats, http) = up(&["--ports-file", text(&file)]);
    let ports: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((ports["nats"].as_str(), ports["http"].as_str()), (Some(&*nats), Some(&*http)));
    running.signal(Signal::SIGTERM);
    running.end().ok();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn probes_and_metrics_are_served_apart_with_and_without_a_server_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let (config, file) = (directory.path().join("config.yaml"), directory.path().join("ports.json"));
    std::fs::write(&config, "server: {http: 'off', metrics_listen: '127.0.0.1:0'}\n").unwrap();
    let there = NatsServer::start::<&str>([]);
    for backend in ["in_memory", "nats"] {
        let arguments = ["--config", text(&config), "up", "--backend", backend, "--listen", "127.0.0.1:0"];
        let mut up = command(&[&arguments[..], &["--ports-file", text(&file)]].concat());
        up.env("NATS_URL", there.url());
        let mut running = start(up, b"");
        let line = running.until_it_says("metrics ");
        running.until_it_says("Ctrl-C stops it");
        let ports: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let metrics = ports["metrics"].as_str().unwrap_or_default();
        assert!(metrics.starts_with("http://127.0.0.1:") && line.contains(metrics), "{line} {ports}");
        assert!(ports["http"].is_null() && ports["admin_token"].is_null(), "{ports}");
        for (path, says) in [
            ("/metrics", "trunkline_"),
            ("/readyz", "\"ok\""),
            ("/healthz", "\"ok\""),
            ("/api/v1/components", " 404 "),
        ] {
            let answer = get(metrics, path);
            assert!(answer.contains(says), "{backend} {path}: {answer}");
        }
        running.signal(Signal::SIGTERM);
        running.end().ok();
    }
}

#[test]
fn sigterm_stops_in_time_with_clients_connected() {
    let (running, nats, _) = up(&[]);
    let mut subscriber = start(command(&["sub", "--url", &nats, ">"]), b"");
    subscriber.until_it_says("listening on");
    // A client that never reads what it is sent must not hold up the stop either.
    let address = nats.trim_start_matches("nats://").to_owned();
    let mut idle = TcpStream::connect(&address).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut first = [0; 4];
    idle.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"INFO");
    let asked = Instant::now();
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    assert!(ended.status.success(), "{ended:?}");
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    assert!(TcpStream::connect(&address).is_err(), "nobody listens any more");
}

#[test]
fn a_second_signal_ends_it_at_once_and_still_removes_the_ports_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ports.json");
    let (mut running, nats, _) = up(&["--ports-file", text(&file)]);
    // What waits for a client that reads nothing keeps the clean stop busy until its bound.
    let address = nats.trim_start_matches("nats://").to_owned();
    let mut stuck = TcpStream::connect(&address).unwrap();
    stuck.write_all(b"CONNECT {\"verbose\":false}\r\nSUB flood 1\r\nPING\r\n").unwrap();
    let mut lines = BufReader::new(stuck.try_clone().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "PONG"), "the subscription is there");
    let payload = directory.path().join("payload");
    std::fs::write(&payload, vec![b'x'; 1 << 19]).unwrap();
    run(&["pub", "--url", &nats, "flood", "--file", text(&payload), "--count", "40"]).ok();
    let asked = Instant::now();
    running.signal(Signal::SIGTERM);
    running.until_it_says("stopping");
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}: {ended:?}", asked.elapsed());
    assert!(ended.stderr.contains("second signal"), "{ended:?}");
    assert!(!file.exists());
}

#[test]
fn what_was_published_before_the_stop_reaches_its_subscriber() {
    let (running, nats, _) = up(&[]);
    let mut subscriber = start(command(&["sub", "--url", &nats, "a", "--count", "1000", "--json"]), b"");
    subscriber.until_it_says("listening on");
    run(&["pub", "--url", &nats, "a", "x", "--count", "1000"]).ok();
    running.signal(Signal::SIGTERM);
    running.end().ok();
    assert_eq!(subscriber.end().json().len(), 1000);
}

#[test]
fn a_port_that_is_taken_is_named_with_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, other, setting) in
        [("--listen", "--http", "server.listen"), ("--http", "--listen", "server.http")]
    {
        let ended = run(&["up", flag, &address, other, "127.0.0.1:0"]);
        assert_eq!(ended.code(), 1, "{ended:?}");
        for text in [&*address, setting, flag, "hint: "] {
            assert!(ended.stderr.contains(text), "{text} is missing: {}", ended.stderr);
        }
    }
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    let ended = run(&["up", "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0"]);
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stderr.contains("server.listen") && ended.stderr.contains("hint: "), "{}", ended.stderr);
}

#[test]
fn settings_that_this_build_cannot_honour_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    for (content, setting) in [
        ("server: {tls: {cert_file: c.pem, key_file: k.pem}}", "c.pem (server.tls.cert_file)"),
        ("server: {websocket: {same_origin: false}}", "server.websocket"),
        ("server: {auth: {token: $2b$secret-token}}", "server.auth"),
    ] {
        std::fs::write(&file, content).unwrap();
        let ended = run(&[&["--config", text(&file), "up"], &FREE[..]].concat());
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains(setting), "{}", ended.stderr);
        assert!(!ended.stderr.contains("secret-token"), "{}", ended.stderr);
    }
}

#[test]
fn an_unavailable_backend_falls_back_loudly_or_fails() {
    let (running, _, http) = up_with(&["--backend", "redis"], &[("REDIS_URL", "redis://127.0.0.1:1")]);
    let status = run(&["status", "--http", &http, "--json"]);
    let report: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status.code(), 1, "a degraded bus is not ready: {report}");
    assert_eq!(report["status"], "degraded", "{report}");
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    for text in ["WARN", "FALLBACK", "redis", "lost", "degraded"] {
        assert!(ended.stderr.contains(text), "{text} is missing: {}", ended.stderr);
    }

    let mut failing = command(&["up", "--backend", "redis"]);
    failing.env("TRUNKLINE_FALLBACK", "fail").env("REDIS_URL", "redis://127.0.0.1:1");
    let ended = start(failing, b"").end();
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stderr.contains("redis") && ended.stderr.contains("hint: "), "{}", ended.stderr);
}

#[test]
fn with_backend_nats_the_servers_themselves_are_the_bus() {
    let nats = NatsServer::start::<&str>([]);
    let mut joining = command(&["up", "--demo", "--demo-conversations", "1"]);
    joining.env("TRUNKLINE_URL", nats.url());
    let ended = start(joining, b"").end();
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stderr.contains(nats.url()), "{}", ended.stderr);
    assert!(String::from_utf8_lossy(&ended.stdout).contains("answered in"), "{ended:?}");

    let mut unreachable = command(&["up", "--backend", "nats"]);
    unreachable.env("NATS_URL", "nats://127.0.0.1:1").env("TRUNKLINE_CONNECT_TIMEOUT", "300ms");
    let ended = start(unreachable, b"").end();
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stderr.contains("127.0.0.1:1") && ended.stderr.contains("hint: "), "{}", ended.stderr);
}

/// Logs of every level, of clients on TCP and on WebSocket.
#[test]
fn logs_have_no_payloads_and_no_secrets_at_any_level() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    let content =
        "server: {websocket: {listen: '127.0.0.1:0'}, users: [{user: ann, password: s3cretword}]}\n";
    std::fs::write(&config, content).unwrap();
    let mut up = command(&[&["--log-level", "trace", "--config", text(&config), "up"], &FREE[..]].concat());
    let ports = directory.path().join("ports.json");
    up.args(["--ports-file", text(&ports)]);
    let mut running = start(up, b"");
    running.until_it_says("Ctrl-C stops it");
    let ports: Value = serde_json::from_str(&std::fs::read_to_string(&ports).unwrap()).unwrap();
    let script = "import socket, sys\n\
                  def until(s, end):\n\
                  \x20   got = b''\n\
                  \x20   while end not in got:\n\
                  \x20       part = s.recv(4096)\n\
                  \x20       assert part, got\n\
                  \x20       got += part\n\
                  hello = b'CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"s3cretword\",\"headers\":true,'\n\
                  hello += b'\"auth_token\":\"s3crettoken\",\"jwt\":\"s3cretjwt\",\"sig\":\"s3cretsig\"}\\r\\n'\n\
                  hello += b'SUB seen.> 1\\r\\nPUB seen.a 11\\r\\ns3cretbytes\\r\\n'\n\
                  hello += b'HPUB seen.b 27 38\\r\\nNATS/1.0\\r\\nX: s3crethead\\r\\n\\r\\ns3cretbytes\\r\\nPING\\r\\n'\n\
                  def port(n): return int(sys.argv[n].rsplit(':', 1)[1])\n\
                  s = socket.create_connection(('127.0.0.1', port(1)), timeout=20)\n\
                  s.sendall(hello)\n\
                  until(s, b'PONG')\n\
                  w = socket.create_connection(('127.0.0.1', port(2)), timeout=20)\n\
                  w.sendall(b'GET / HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n'\n\
                  b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n')\n\
                  w.sendall(bytes([0x82, 0xfe]) + len(hello).to_bytes(2, 'big') + bytes(4) + hello)\n\
                  until(w, b'PONG')\n\
                  b = socket.create_connection(('127.0.0.1', port(1)), timeout=20)\n\
                  b.sendall(b'CONNECT {\"user\":\"ann\",\"pass\":\"s3cretwrong\"}\\r\\n')\n\
                  until(b, b'Violation')\n\
                  b = socket.create_connection(('127.0.0.1', port(1)), timeout=20)\n\
                  b.sendall(b'CONNECT {\"verbose\":1,\"password\":\"s3cretwrong\"}\\r\\n')\n\
                  until(b, b'ERR')\n";
    let mut client = std::process::Command::new(trunkline_testkit::environment::python());
    let urls = ["nats", "websocket"].map(|list| ports[list].as_str().expect("a URL").to_owned());
    client.args(["-c", script]).args(urls);
    let ended = start(client, b"").end();
    assert_eq!(ended.code(), 0, "{ended:?}");
    running.signal(Signal::SIGTERM);
    let log = running.end().stderr;
    for operation in ["[SUB seen.> 1]", "[PUB seen.a 11]", "[HPUB seen.b 27 38]", "\"pass\":\"[REDACTED]\""] {
        assert!(log.matches(operation).count() >= 2, "{operation} is not traced: {log}");
    }
    let leaks: Vec<_> = log.lines().filter(|line| line.contains("s3cret")).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
}

#[test]
fn status_tells_over_http_and_over_nats_how_the_bus_is() {
    let (_running, nats, http) = up(&[]);
    for arguments in [["--http", &*http], ["--url", &*nats]] {
        let answer = run(&[&["status", "--json"], &arguments[..]].concat()).ok();
        let report: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(
            (&report["ready"], report["status"].as_str()),
            (&Value::Bool(true), Some("ok")),
            "{report}"
        );
        assert!(report["server"]["server_id"].is_string(), "{report}");
    }
    let lines = run(&["status", "--http", &http]).lines();
    assert!(lines.iter().any(|line| line.contains("status") && line.contains("ok")), "{lines:?}");
}
