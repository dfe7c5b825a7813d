//! `trunkline up --demo`: the conversations a newcomer sees, and that anybody can join them.

use nix::sys::signal::Signal;
use serde_json::Value;
use trunkline_testkit::RedisServer;

use crate::command::{command, run, start};
use crate::observability::{eventually, get};

const DEMO: [&str; 6] = ["up", "--demo", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];

#[test]
fn conversations_flow_through_every_component_to_their_end() {
    let ended = run(&[&DEMO[..], &["--demo-conversations", "6"]].concat());
    let took = ended.took;
    let lines = ended.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("answered in")).count(), 6, "{lines:#?}");
    for subject in [
        "nachos.channel.web.inbound",
        "nachos.channel.slack.inbound",
        "nachos.llm.request",
        "nachos.llm.stream.c-",
        "nachos.tool.weather.call",
        "nachos.tool.weather.result",
        "nachos.tool.calculator.call",
        "nachos.channel.web.outbound",
        "nachos.channel.slack.outbound",
        "nachos.analytics.turn",
    ] {
        assert!(lines.iter().any(|line| line.contains(subject)), "{subject} is missing: {lines:#?}");
    }
    assert!(
        lines.iter().any(|line| line.contains("failed: the weather service")),
        "nothing failed: {lines:#?}"
    );
    assert!(lines.iter().any(|line| line.contains("1 retry")), "nothing was tried again: {lines:#?}");
    assert!(lines.iter().all(|line| !line.contains('\u{1b}')), "colours without a terminal: {lines:#?}");
    assert!(took.as_secs() < 20, "a newcomer waits too long: {took:?}");
}

#[test]
fn anybody_with_a_nats_client_can_talk_to_the_platform() {
    let mut demo = start(command(&DEMO), b"");
    let url = demo.until_it_says("clients ").split_whitespace().nth(1).unwrap().to_owned();
    demo.until_it_says("Ctrl-C stops it");
    let mut answers = start(
        command(&[
            "sub",
            "--url",
            &url,
            "nachos.channel.cli.outbound",
            "--count",
            "1",
            "--json",
            "--timeout",
            "20s",
        ]),
        b"",
    );
    answers.until_it_says("listening on");

    // A tool of the platform, asked by somebody who sends no envelope.
    let call = r#"{"arguments":{"expression":"6 * 7"}}"#;
    let reply = run(&["request", "--url", &url, "nachos.tool.calculator.call", call, "--raw"]).ok();
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply["output"], 42, "{reply}");

    // The model, as a reply stream.
    let prompt = r#"{"messages":[{"role":"user","content":"hello"}]}"#;
    let chunks = run(&["request", "--url", &url, "nachos.llm.request", prompt, "--stream"]).lines();
    let words = chunks.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text: String = words.map(|chunk| chunk["text"].as_str().unwrap_or_default().to_owned()).collect();
    assert!(text.starts_with("Hello!"), "{text}");
    let ended = run(&["request", "--url", &url, "nachos.llm.request", prompt]);
    assert_eq!(ended.code(), 2, "a stream is no single reply: {ended:?}");
    assert!(ended.stderr.contains("hint: add --stream"), "{}", ended.stderr);

    // A whole conversation on a channel of our own.
    let message = r#"{"sender":"me","text":"what is 6 * 7?"}"#;
    let inbound = "nachos.channel.cli.inbound";
    run(&["pub", "--url", &url, inbound, message, "--type", "channel.inbound", "--conversation", "c-cli"])
        .ok();
    let answer = &answers.end().json()[0]["payload"];
    assert_eq!(answer["payload"]["text"], "6 * 7 makes 42.", "{answer}");
    assert_eq!(answer["trace"]["conversationId"], "c-cli", "{answer}");
    assert_eq!(answer["source"], "gateway", "{answer}");

    demo.signal(Signal::SIGTERM);
    demo.end().ok();
}

#[test]
fn the_demo_outlives_a_redis_that_stands_still() {
    let redis = RedisServer::start_volatile();
    let mut demo = command(&[&DEMO[..], &["--backend", "redis"]].concat());
    demo.env("REDIS_URL", redis.url());
    let mut demo = start(demo, b"");
    let http = demo.until_it_says("http ").split_whitespace().nth(1).expect("a URL").to_owned();
    demo.until_it_says("Ctrl-C stops it");
    let published = || {
        let (_, metrics) = get(&http, "/metrics");
        let count = metrics.lines().find_map(|line| line.strip_prefix("trunkline_published_messages_total "));
        count.and_then(|count| count.parse::<f64>().ok()).expect("it is always there")
    };
    let more_than = |least: f64| match published() {
        count if count > least => Ok(()),
        count => Err(format!("{count} messages")),
    };
    // All components are at work by then.
    eventually("a first conversation", || more_than(30.0));
    redis.pause();
    demo.until_it_says("nobody hears what was said");
    redis.resume();
    let before = published();
    // A conversation has about thirty messages; it goes on from its beginning to its end.
    eventually("another conversation", || more_than(before + 60.0));
    demo.signal(Signal::SIGTERM);
    demo.end().ok();
}
