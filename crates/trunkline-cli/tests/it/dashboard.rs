//! The dashboard: how it is found, and what a real browser makes of it. What is clicked and typed there stands in
//! `clients/dashboard/dashboard.mjs` of the testkit.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use trunkline_testkit::environment;
use trunkline_testkit::servers::{NatsServer, TrunklineServer};

use crate::command::{PATIENCE, command, run, start, text};

const TOKEN: &str = "a token of the test";

/// Longest run of the browser. It takes about twenty seconds on an idle machine.
const BROWSING: Duration = Duration::from_secs(300);

fn up(config: &str, arguments: &[&str]) -> (TrunklineServer, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, config).expect("a new directory takes a file");
    let arguments = [&["--config", text(&file)], arguments].concat();
    (TrunklineServer::start(Path::new(env!("CARGO_BIN_EXE_trunkline")), arguments), directory)
}

fn ports(server: &TrunklineServer) -> Value {
    let file = server.directory().join("trunkline.ports");
    serde_json::from_slice(&std::fs::read(file).expect("it is written")).expect("it is JSON")
}

/// Asks the admin API; the status, and what is answered.
fn ask(http: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(http.trim_start_matches("http://")).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("the timeout is not zero");
    let length = body.len();
    let head = format!("{method} /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    let rest = format!("Authorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all((head + &rest).as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}")))
}

/// Three messages that no worker could handle.
fn bury(server: &TrunklineServer) {
    for payload in [EVIL, "second", "third"] {
        run(&["pub", "--url", server.url(), "nachos.tool.search.task", payload]).ok();
    }
    let admin = ["--http", server.http(), "--token", TOKEN];
    let worker = ["consume", "tasks", "workers", "--start", "all", "--exec", "false", "--max-deliver", "1"];
    let _worker = start(command(&[&worker, &admin[..]].concat()), b"");
    let deadline = Instant::now() + PATIENCE;
    let list = [&["dlq", "ls", "--json"], &admin[..]].concat();
    while run(&list).json().len() < 3 {
        assert!(Instant::now() < deadline, "the messages did not become dead letters");
    }
}

const EVIL: &str = r#"<img src="x" onerror="window.hacked = true"><script>window.hacked = true</script>"#;

#[test]
fn a_browser_sees_everything_and_is_shown_nothing_that_is_not_its_own() {
    let config = format!(
        "server: {{auth: {{admin_token: '{TOKEN}'}}}}\n\
         messaging:\n  streams: [{{name: tasks, subjects: ['nachos.tool.*.task']}}]\n"
    );
    let (mut server, _directory) = up(&config, &["--demo"]);
    bury(&server);
    let mut browsing = Command::new("node");
    let mut browsing = browsing
        .arg(environment::clients().join("dashboard/dashboard.mjs"))
        .env("NODE_PATH", environment::node_path().join("node_modules"))
        .env("DASHBOARD", format!("{}/dashboard", server.http()))
        .env("TOKEN", TOKEN)
        .env("NATS", server.url())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("node runs; `cargo xtask setup` says what is missing");
    let stdout = browsing.stdout.take().expect("it is a pipe");
    let mut stderr = browsing.stderr.take().expect("it is a pipe");
    let (lines, said) = mpsc::channel();
    // Both threads end with the pipes of the script, which ends or is killed below.
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let complaints = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let deadline = Instant::now() + BROWSING;
    let mut last = String::new();
    while let Ok(line) = said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        if line == "restart" {
            server.restart();
        }
        last = line;
    }
    // Without effect where the script has ended.
    let _ = browsing.kill();
    let status = browsing.wait().expect("it is our child");
    reader.join().expect("it does not panic");
    let complaints = complaints.join().expect("it does not panic");
    assert_eq!(last, "done", "{status}\n{complaints}\nthe server:\n{}", server.log());
    eprintln!("{complaints}");
}

#[test]
fn a_redrive_sends_back_what_was_named_and_nothing_else() {
    let config = format!(
        "server: {{auth: {{admin_token: '{TOKEN}'}}}}\n\
         messaging:\n  streams: [{{name: tasks, subjects: ['nachos.tool.*.task']}}]\n"
    );
    let (server, _directory) = up(&config, &[]);
    bury(&server);
    let letters = || ask(server.http(), "GET", "dead-letters", "").1;
    let offset = |n: usize| letters()["letters"][n]["offset"].as_str().expect("an offset").to_owned();
    let redrive = |body: Value| ask(server.http(), "POST", "dead-letters/redrive", &body.to_string());
    let (first, second) = (offset(0), offset(1));
    for nothing in [
        json!({}),
        json!({"offsets": ["x"]}),
        json!({"streams": "tasks"}),
        json!({"all": true, "until": "x"}),
    ] {
        assert_eq!(redrive(nothing.clone()).0, 400, "{nothing}");
    }
    let (_, none) = redrive(json!({"stream": "tasks", "consumer": "others"}));
    assert_eq!(none, json!({"redriven": [], "failed": [], "more": false}));
    let (status, one) = redrive(json!({"offsets": [first, "999"]}));
    assert_eq!((status, &one["redriven"][0]["deadLetter"]), (200, &json!(first)), "{one}");
    assert_eq!(one["failed"], json!([{"deadLetter": "999", "error": "it is not there any more"}]));
    let (_, until) = redrive(json!({"all": true, "until": second}));
    assert_eq!(until["redriven"].as_array().map(Vec::len), Some(1), "{until}");
    let left = letters();
    assert_eq!(left["letters"].as_array().map(Vec::len), Some(1), "the last one was not seen: {left}");
    let (_, whole) = ask(server.http(), "GET", &format!("dead-letters/{}", offset(0)), "");
    assert_eq!(whole["message"]["payloadBase64"], json!("dGhpcmQ="), "{whole}");
    assert_eq!(ask(server.http(), "GET", "dead-letters/999", "").0, 404);
    let (_, consumers) = ask(server.http(), "GET", "consumers", "");
    assert_eq!((&consumers["consumers"][0]["name"], &consumers["total"]), (&json!("workers"), &json!(1)));
}

#[test]
fn the_address_of_the_dashboard_is_printed_written_and_found() {
    let (server, _directory) = up("", &[]);
    let ports = ports(&server);
    let url = ports["dashboard"].as_str().expect("it is written").to_owned();
    let token = ports["admin_token"].as_str().expect("it is written");
    assert_eq!(url, format!("{}/dashboard#token={token}", server.http()));
    let given = run(&["dashboard", "--http", server.http(), "--token", token]);
    assert_eq!(given.lines(), [url.as_str()]);
    let by_clients = run(&["dashboard", "--url", server.url()]);
    assert_eq!(by_clients.lines(), [url.as_str()]);
    let wrong = run(&["dashboard", "--http", server.http(), "--token", "wrong"]);
    assert_eq!(wrong.code(), 1, "{wrong:?}");
    assert!(wrong.stderr.contains("401") && wrong.stderr.contains("\nhint: "), "{wrong:?}");
    let nobody = run(&["dashboard", "--url", "nats://127.0.0.1:9"]);
    assert!(nobody.code() == 1 && nobody.stderr.contains("\nhint: "), "{nobody:?}");
}

#[test]
fn the_banner_has_the_address_and_a_configured_token_is_not_in_it() {
    let free = ["up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let mut running = start(command(&free), b"");
    let line = running.until_it_says("dashboard ");
    assert!(line.contains("/dashboard#token=") && line.contains("http://127.0.0.1:"), "{line}");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, format!("server: {{auth: {{admin_token: '{TOKEN}'}}}}\n"))
        .expect("it takes a file");
    let mut running = start(command(&[&free[..], &["--config", text(&file)]].concat()), b"");
    let line = running.until_it_says("dashboard ");
    assert!(line.ends_with("/dashboard"), "{line}");
}

#[test]
fn a_browser_is_opened_without_the_token_on_a_command_line() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    let script = format!(
        "#!/bin/sh\nstat -c %a \"$1\" > {0}\necho \"$@\" >> {0}\ncat \"$1\" >> {0}\n",
        text(&path("opened"))
    );
    std::fs::write(path("xdg-open"), script).expect("a new directory takes a file");
    std::fs::set_permissions(path("xdg-open"), Permissions::from_mode(0o700)).expect("it is ours");
    let mut up = command(&["up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let mut up = start(
        {
            up.env("XDG_RUNTIME_DIR", directory.path());
            up
        },
        b"",
    );
    let http = up.until_it_says("http ").split_whitespace().nth(1).expect("a label and a URL").to_owned();
    up.until_it_says("Ctrl-C stops it");
    let mut opening = command(&["dashboard", "--open", "--http", &http]);
    let programs = format!("{}:{}", text(directory.path()), std::env::var("PATH").expect("there is one"));
    let opening = opening.env("XDG_RUNTIME_DIR", directory.path()).env("PATH", programs).output();
    let opening = opening.expect("it runs");
    assert!(opening.status.success(), "{opening:?}");
    let url = String::from_utf8(opening.stdout).expect("it is text");
    let token = url.trim().split_once("#token=").expect("it has the token").1.to_owned();
    let opened = std::fs::read_to_string(path("opened")).expect("the browser was opened");
    let mut lines = opened.lines();
    assert_eq!(lines.next(), Some("600"));
    let file = lines.next().expect("what it was called with").to_owned();
    assert!(!file.contains(&token) && Path::new(&file).exists(), "{opened}");
    assert!(lines.any(|line| line.contains(&format!("content=\"0;url={}\"", url.trim()))), "{opened}");
    up.signal(Signal::SIGTERM);
    up.end().ok();
    assert!(!Path::new(&file).exists(), "it goes with the token that it has");
}

#[test]
fn beside_nats_servers_the_dashboard_says_what_is_known_and_what_is_not() {
    let nats = NatsServer::start(["-js"]);
    let address = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let http = format!("http://{}", address.local_addr().expect("it is bound"));
    drop(address);
    let config = format!(
        "server: {{http: '{}', auth: {{admin_token: '{TOKEN}'}}}}\n\
         messaging:\n  backend: nats\n  nats_url: '{}'\n  streams: [{{name: tasks, subjects: ['nachos.tool.*.task']}}]\n",
        http.trim_start_matches("http://"),
        nats.url()
    );
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, config).expect("a new directory takes a file");
    let mut up = start(command(&["up", "--config", text(&file)]), b"");
    up.until_it_says("is ready");
    let get = |path: &str| ask(&http, "GET", path, "").1;
    let overview = get("overview");
    assert_eq!(overview["backend"]["name"], json!("nats"), "{overview}");
    assert_eq!(overview["clients"], Value::Null, "{overview}");
    assert_eq!(get("connections")["known"], json!(false));
    assert_eq!(get("consumers")["total"], json!(0));
    assert_eq!(get("dead-letters")["letters"], json!([]));
    assert_eq!(get("components")["components"], json!([]));
    let found = run(&["dashboard", "--config", text(&file)]);
    assert_eq!(found.lines(), [format!("{http}/dashboard#token={}", TOKEN.replace(' ', "%20"))]);
}
