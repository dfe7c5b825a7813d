//! `trunkline trace` and `trunkline tail` against a running bus: what they tell is what happened.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;
use trunkline_testkit::environment;
use trunkline_testkit::servers::{NatsServer, TrunklineServer};
use trunkline_testkit::{RedisServer, TcpProxy};

use crate::command::{Ended, PATIENCE, Running, command, run, start, text};
use crate::server;

/// Runs a command that asks this server.
fn ask(server: &TrunklineServer, arguments: &[&str]) -> Ended {
    run(&[arguments, &["--http", server.http()]].concat())
}

#[track_caller]
fn said(ended: Ended) -> String {
    String::from_utf8(ended.ok()).expect("the output is text")
}

/// A follower that follows already.
fn tail(server: &TrunklineServer, arguments: &[&str]) -> Running {
    let mut tail = start(command(&[&["tail", "--http", server.http()], arguments].concat()), b"");
    tail.until_it_says("following");
    tail
}

fn publish(server: &TrunklineServer, arguments: &[&str]) {
    run(&[&["pub", "--url", server.url()], arguments].concat()).ok();
}

/// Has Mermaid's own parser read diagrams.
#[track_caller]
fn parse_mermaid(diagrams: &[String]) {
    let directory = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trunkline-testkit/clients/mermaid/parse.mjs");
    let mut node = Command::new("node");
    node.arg(script).arg(environment::mermaid());
    for (number, diagram) in diagrams.iter().enumerate() {
        let file = directory.path().join(format!("{number}.mmd"));
        std::fs::write(&file, diagram).unwrap();
        node.arg(file);
    }
    let output = node.output().expect("node is there");
    let (read, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        read.lines().filter(|line| *line == "sequence").count(),
        diagrams.len(),
        "{complaint}\n{diagrams:?}"
    );
}

#[track_caller]
fn has_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

/// The first conversation of the list that these flags ask for, as soon as there is one.
#[track_caller]
fn conversation(http: &str, flags: &[&str]) -> Value {
    let started = Instant::now();
    loop {
        let list = run(&[&["trace", "--list", "--json", "--http", http], flags].concat());
        let list: Value = serde_json::from_slice(&list.ok()).unwrap();
        if let Some(first) = list["conversations"].get(0) {
            return first.clone();
        }
        assert!(started.elapsed() < PATIENCE, "no conversation: {list}");
    }
}

#[test]
fn a_conversation_of_the_demo_is_drawn_whole_in_memory() {
    check_demo("messaging: {backend: in_memory}");
}

#[test]
fn a_conversation_of_the_demo_is_drawn_whole_on_redis() {
    let redis = RedisServer::start();
    check_demo(&format!("messaging: {{backend: redis, redis_url: '{}'}}", redis.url()));
}

#[test]
fn a_conversation_of_the_demo_is_drawn_whole_on_nats() {
    let nats = NatsServer::start(["-js"]);
    check_demo(&format!("messaging: {{backend: nats, nats_url: '{}'}}", nats.url()));
}

/// Runs the demo on a bus, and looks at a conversation that went to a tool and back.
fn check_demo(configuration: &str) {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    std::fs::write(&config, configuration).unwrap();
    let up = ["up", "--demo", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--config", text(&config)];
    let mut demo = start(command(&up), b"");
    let http = demo.until_it_says("http ").split_whitespace().nth(1).unwrap().to_owned();
    demo.until_it_says("Ctrl-C stops it");
    // What a person asked of a tool, and was answered.
    let tools = ["--tool", "calculator", "--type", "channel.outbound"];
    let id = conversation(&http, &tools)["id"].as_str().unwrap().to_owned();
    let trace = |flags: &[&str]| run(&[&["trace", &id, "--http", &http], flags].concat());
    let page = said(trace(&["--width", "80"]));
    has_all(
        &page,
        &[
            &id,
            "who caused whom",
            "nachos.channel.",
            ".inbound",
            "nachos.llm.request",
            "nachos.tool.calculator.call",
            "↩ answer",
            "├─ ",
            "└─ ",
            "time line: ",
            ".outbound",
            "gateway → ",
        ],
    );
    assert!(!page.contains('\u{1b}'), "colours without a terminal: {page}");
    for line in page.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let record: Value = serde_json::from_slice(&trace(&["--json"]).ok()).unwrap();
    assert_eq!(record["summary"]["id"], *id);
    let subjects: Vec<&str> = record["observations"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|seen| seen["subject"].as_str())
        .collect();
    assert!(subjects.contains(&"nachos.tool.calculator.call"), "{subjects:?}");
    has_all(&said(trace(&["--payloads"])), &["expression"]);
    let diagrams = [said(trace(&["--mermaid"])), said(trace(&["--mermaid", "--payloads"]))];
    has_all(&diagrams[0], &["sequenceDiagram", "participant p0 as", "nachos.tool.calculator.call"]);
    parse_mermaid(&diagrams);
    let last = said(run(&["trace", "--last", "--http", &http]));
    has_all(&last, &["who caused whom"]);
    let list = said(run(&["trace", "--list", "--tool", "calculator", "--http", &http]));
    has_all(&list, &["CONVERSATION", "gateway"]);
    assert!(list.contains(&id[..id.len().min(8)]), "{list}");
    demo.signal(Signal::SIGTERM);
    demo.end().ok();
}

#[test]
fn stock_clients_are_seen_as_themselves() {
    let server = server();
    let mut python = Command::new(environment::python());
    python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/python/weather.py"));
    let mut tool = python.env("NATS_URL", server.url()).spawn().expect("python is there");
    let call = r#"{"arguments":{"city":"Oslo"}}"#;
    let asking =
        ["request", "--url", server.url(), "nachos.tool.weather.call", call, "--conversation", "c-42"];
    let started = Instant::now();
    // Until the tool is there; before that nobody answers, which belongs to the conversation, too.
    while !run(&asking).status.success() {
        assert!(started.elapsed() < PATIENCE, "the tool does not answer");
    }
    let page = said(ask(&server, &["trace", "c-42", "--payloads"]));
    tool.kill().unwrap();
    tool.wait().unwrap();
    has_all(&page, &["nachos.tool.weather.call", "cli → ", "↩ answer", "sunny in Oslo", "Oslo"]);
    parse_mermaid(&[said(ask(&server, &["trace", "c-42", "--mermaid"]))]);
}

#[test]
fn names_and_payloads_of_others_neither_steer_the_terminal_nor_break_a_diagram() {
    let server = server();
    let evil = "\u{1b}[2J\u{9b}31m\u{202e}; end # %% x:->>y \"<br/>";
    let id = format!("a/b c?d#é;%2f{evil}");
    for _ in 0..2 {
        publish(
            &server,
            &["nachos.any.where", evil, "--source", evil, "--type", evil, "--conversation", &id],
        );
    }
    let flags: [&[&str]; 5] =
        [&[], &["--payloads"], &["--mermaid"], &["--mermaid", "--payloads"], &["--json"]];
    let outputs = flags.map(|flags| said(ask(&server, &[&["trace", &id], flags].concat())));
    for output in outputs.iter().chain([&said(ask(&server, &["trace", "--list"]))]) {
        assert!(!output.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{output:?}");
    }
    parse_mermaid(&outputs[2..4]);
    let record: Value = serde_json::from_str(&outputs[4]).unwrap();
    assert_eq!(record["observations"][0]["from"], evil);
}

#[test]
fn tail_follows_what_the_filters_let_through() {
    let server = server();
    let all = tail(&server, &["nachos.*.*", "--type", "message", "--count", "2", "--for", "30s"]);
    let tools =
        tail(&server, &["nachos.any.*", "--tool", "search", "--json", "--count", "1", "--for", "30s"]);
    let one = tail(&server, &["--conversation", "c-2", "--payloads", "--count", "1", "--for", "30s"]);
    publish(&server, &["nachos.any.first", "1", "--conversation", "c-1", "--tool", "other"]);
    publish(&server, &["nachos.other.second", "2", "--conversation", "c-2", "--tool", "search"]);
    publish(
        &server,
        &[
            "nachos.any.third",
            "{\"q\":3}",
            "--conversation",
            "c-2",
            "--tool",
            "search",
            "--type",
            "tool.call",
        ],
    );
    let lines = all.end().lines();
    for (line, part) in lines.iter().zip(["nachos.any.first  cli → ", "nachos.other.second"]) {
        assert!(line.contains(part), "{lines:#?}");
    }
    let seen = &tools.end().json()[0];
    assert_eq!(
        (&seen["subject"], &seen["what"]),
        (&"nachos.any.third".into(), &"published".into()),
        "{seen}"
    );
    assert_eq!((&seen["toolId"], &seen["body"]["json"]["q"]), (&"search".into(), &3.into()), "{seen}");
    let lines = one.end().lines();
    assert!(
        lines[0].contains("c-2") && lines[0].contains("nachos.other.second") && lines[1].trim() == "2",
        "{lines:#?}"
    );
}

#[test]
fn tail_ends_at_its_time_and_when_it_is_interrupted() {
    let server = server();
    ask(&server, &["tail", "--for", "100ms"]).ok();
    let too_few = ask(&server, &["tail", "--for", "100ms", "--count", "1"]);
    assert_eq!(too_few.code(), 1);
    assert!(too_few.stderr.contains("saw 0 of 1 (--count) in the time given (--for)"), "{too_few:?}");
    let endless = tail(&server, &[]);
    endless.signal(Signal::SIGINT);
    endless.end().ok();
}

#[test]
fn tail_finds_a_server_again_that_was_restarted() {
    let mut server = server();
    let mut following = tail(&server, &["nachos.a.*", "--json", "--count", "3", "--for", "60s"]);
    publish(&server, &["nachos.a.before", "x", "--envelope"]);
    publish(&server, &["nachos.a.before", "x", "--envelope"]);
    following.until_it_has_printed(2);
    server.restart();
    following.until_it_says("lost the server, looking for it again");
    publish(&server, &["nachos.a.after", "x", "--envelope"]);
    following.until_it_says("following again at");
    let seen = following.end().json();
    let subjects: Vec<&str> = seen.iter().filter_map(|seen| seen["subject"].as_str()).collect();
    assert_eq!(subjects, ["nachos.a.before", "nachos.a.before", "nachos.a.after"]);
}

#[test]
fn tail_that_had_seen_nothing_goes_on_from_where_it_began() {
    let server = server();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let target = server.http().trim_start_matches("http://").parse().unwrap();
    let proxy = runtime.block_on(TcpProxy::start(target)).unwrap();
    publish(&server, &["nachos.a.before", "x", "--envelope"]);
    let http = format!("http://{}", proxy.address());
    let ports = std::fs::read(server.directory().join("trunkline.ports")).unwrap();
    let ports: Value = serde_json::from_slice(&ports).unwrap();
    let token = ports["admin_token"].as_str().unwrap();
    for filter in ["nachos.a.*", "nachos.b.*"] {
        let tail =
            ["tail", filter, "--http", &http, "--token", token, "--json", "--count", "1", "--for", "60s"];
        let mut following = start(command(&tail), b"");
        following.until_it_says("following");
        proxy.cut();
        following.until_it_says("lost the server, looking for it again");
        publish(&server, &["nachos.a.while", "x", "--envelope"]);
        publish(&server, &["nachos.b.while", "x", "--envelope"]);
        proxy.heal();
        following.until_it_says("following again at");
        let ended = following.end();
        assert!(ended.stderr.contains("saw 1 observations"), "{ended:?}");
        let seen = ended.json();
        assert_eq!(seen[0]["subject"], filter.replace('*', "while"), "{seen:?}");
    }
}

#[test]
fn tail_gives_a_server_up_that_does_not_come_back() {
    let mut server = server();
    let mut following = tail(&server, &["--reconnect", "500ms"]);
    server.stop();
    following.until_it_says("lost the server");
    let ended = following.end();
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stderr.contains("not found again within 500ms (--reconnect)"), "{ended:?}");
    assert!(ended.stderr.contains("hint: start a bus with `trunkline up`"), "{ended:?}");
}

#[test]
fn what_cannot_be_shown_is_an_error_that_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    std::fs::write(&config, "observe: {enabled: false}\n").unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_trunkline"));
    let blind = TrunklineServer::start(binary, ["--config", text(&config)]);
    let server = server();
    publish(&server, &["nachos.a.b", "x", "--conversation", "c-1"]);
    publish(&server, &["nachos.a.b", "x", "--conversation", "c-11"]);
    let nobody = "http://127.0.0.1:9";
    let cases: [(Ended, i32, &[&str]); 9] = [
        (
            ask(&blind, &["trace", "--last"]),
            1,
            &["observe.enabled is false", "TRUNKLINE_OBSERVE_ENABLED=true"],
        ),
        (ask(&blind, &["tail", "--for", "5s"]), 1, &["observe.enabled is false"]),
        (ask(&server, &["trace", "nobody"]), 1, &["no conversation \"nobody\"", "trunkline trace --list"]),
        (
            ask(&server, &["trace", "--last", "--tool", "none"]),
            1,
            &["no such conversation", "trunkline tail"],
        ),
        (ask(&server, &["trace", "c"]), 1, &["2 conversations begin with \"c\"", "more of the id"]),
        (ask(&server, &["trace"]), 2, &["--last", "hint: "]),
        (ask(&server, &["trace", "c-1", "--last"]), 2, &["cannot be used with", "hint: "]),
        (run(&["trace", "--last", "--http", nobody, "--token", "x"]), 1, &["cannot reach", "`trunkline up`"]),
        (run(&["tail", "--http", server.http(), "--token", "wrong"]), 1, &["401", "hint: "]),
    ];
    for (ended, code, parts) in cases {
        assert_eq!(ended.code(), code, "{ended:?}");
        has_all(&ended.stderr, parts);
    }
    // The beginning of an id is enough where it is clear.
    has_all(&said(ask(&server, &["trace", "c-11"])), &["c-11", "nachos.a.b"]);
}

#[test]
fn accounts_are_traced_and_followed_apart() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    let users = "server:
  users: [{user: boss, password: b}]
  accounts: {east: {users: [{user: ann, password: a}]}}
";
    std::fs::write(&config, users).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_trunkline"));
    let server = TrunklineServer::start(binary, ["--config", text(&config)]);
    let publish = |user: &str, conversation: &str| {
        let url = server.url().replacen("://", &format!("://{user}@"), 1);
        run(&["pub", "nachos.a.b", "x", "--conversation", conversation, "--url", &url]).ok();
    };
    let following = tail(&server, &["--account", "east", "--json", "--count", "1", "--for", "30s"]);
    publish("boss:b", "c-boss");
    publish("ann:a", "c-ann");
    let seen = following.end().json();
    assert_eq!(seen[0]["conversationId"], "c-ann", "{seen:?}");
    let list = |flags: &[&str]| said(ask(&server, &[&["trace", "--list"], flags].concat()));
    let (own, east) = (list(&[]), list(&["--account", "east"]));
    assert!(own.contains("c-boss") && !own.contains("c-ann"), "{own}");
    assert!(east.contains("c-ann") && !east.contains("c-boss"), "{east}");
    has_all(&said(ask(&server, &["trace", "c-ann", "--account", "east"])), &["c-ann", "nachos.a.b"]);
    for (arguments, says) in [
        (&["trace", "c-ann"][..], "no conversation \"c-ann\""),
        (&["trace", "--last", "--account", "west"], "there is no account \"west\"; there are $G, east"),
        (&["tail", "--account", "west"], "there is no account \"west\""),
    ] {
        let ended = ask(&server, arguments);
        assert!(ended.code() == 1 && ended.stderr.contains(says), "{ended:?}");
    }
}

#[test]
fn retries_and_dead_letters_are_drawn_at_their_message() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    let streams = "messaging:
  streams: [{name: tasks, subjects: ['nachos.tool.*.task']}]
  consumer: {ack_wait: 1s, max_deliver: 2, backoff: [10ms]}
";
    std::fs::write(&config, streams).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_trunkline"));
    let server = TrunklineServer::start(binary, ["--config", text(&config)]);
    publish(&server, &["nachos.tool.mail.task", "hello", "--conversation", "c-7"]);
    let following =
        tail(&server, &["nachos.tool.>", "--conversation", "c-7", "--for", "30s", "--count", "1"]);
    let worker = [
        "consume",
        "tasks",
        "mailers",
        "--start",
        "all",
        "--exec",
        "false",
        "--http",
        server.http(),
        "--count",
        "1",
    ];
    let mut worker = start(command(&worker), b"");
    worker.until_it_says("consuming ");
    following.end().ok();
    let failed = conversation(server.http(), &["--state", "failed"]);
    assert_eq!((&failed["id"], &failed["deadLetters"]), (&"c-7".into(), &1.into()), "{failed}");
    let page = said(ask(&server, &["trace", "c-7"]));
    has_all(&page, &["nachos.tool.mail.task", "dead letter after attempt 2", "trouble", "1 dead letter"]);
    parse_mermaid(&[said(ask(&server, &["trace", "c-7", "--mermaid"]))]);
    worker.signal(Signal::SIGTERM);
    worker.end();
}
