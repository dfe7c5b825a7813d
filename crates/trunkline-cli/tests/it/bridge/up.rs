//! `trunkline up` on Redis, from start to stop.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use trunkline_testkit::RedisServer;

use super::raw::Raw;
use super::redis::{Answer, OTHER, ask};
use super::{Bridge, configuration, http_get};
use crate::command::{command, run, start, text};

const FREE: [&str; 4] = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];

#[test]
fn the_demo_runs_on_redis() {
    let redis = RedisServer::start_volatile();
    let mut up =
        command(&[&["up", "--demo", "--demo-conversations", "3", "--backend", "redis"], &FREE[..]].concat());
    up.env("REDIS_URL", redis.url());
    let ended = start(up, b"").end();
    assert!(ended.stderr.contains("redis (redis://127.0.0.1:"), "{}", ended.stderr);
    let lines = ended.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("answered in")).count(), 3, "{lines:#?}");
}

#[test]
fn a_redis_that_cannot_be_used_is_told_loudly_or_ends_it_in_time() {
    let locked = RedisServer::start_with(["--requirepass", "right"]);
    let wrong = locked.url().replace("redis://", "redis://:wrong@");
    for (url, reason) in [("redis://127.0.0.1:1", "127.0.0.1:1"), (&wrong, "credentials")] {
        let mut failing = command(&[&["up", "--backend", "redis"], &FREE[..]].concat());
        failing.env("REDIS_URL", url).env("TRUNKLINE_FALLBACK", "fail");
        let ended = start(failing, b"").end();
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.took < Duration::from_secs(5), "it took {:?}", ended.took);
        assert!(ended.stderr.contains(reason) && ended.stderr.contains("hint: "), "{}", ended.stderr);

        let mut falling = command(&[&["up", "--backend", "redis"], &FREE[..]].concat());
        falling.env("REDIS_URL", url);
        let mut running = start(falling, b"");
        let second = |line: String| line.split_whitespace().nth(1).expect("a label and a URL").to_owned();
        let nats = second(running.until_it_says("clients "));
        let http = second(running.until_it_says("http "));
        // Clients are served all the same.
        let mut client = Raw::connect(&nats);
        client.subscribe("here", "1");
        client.publish("here", None, b"x");
        assert_eq!(client.message().text(), "x");
        let report = run(&["status", "--http", &http, "--json"]);
        assert_eq!(report.code(), 1, "{report:?}");
        let report: Value = serde_json::from_slice(&report.stdout).expect("a report in JSON");
        assert_eq!(report["status"], "degraded", "{report}");
        assert!(http_get(&http, "/metrics").contains("trunkline_backend_degraded 1"));
        running.signal(Signal::SIGTERM);
        let ended = running.end();
        let warnings = ended.stderr.lines().filter(|line| line.contains("FALLBACK")).count();
        assert_eq!(warnings, 1, "{}", ended.stderr);
        assert!(ended.stderr.contains(reason) && !ended.stderr.contains("wrong@"), "{}", ended.stderr);
    }
}

#[test]
fn a_stop_gives_out_what_was_published_and_leaves_nothing_in_redis() {
    const COUNT: usize = 3000;
    let redis = RedisServer::start_volatile();
    let mut server = Bridge::start(&redis);
    let (mut subscriber, mut publisher) = (Raw::connect(server.url()), Raw::connect(server.url()));
    subscriber.subscribe("work.plain", "1");
    subscriber.send("SUB work.shared team 2\r\nPING\r\n");
    assert_eq!(subscriber.line_past_info(), "PONG");
    for n in 0..COUNT {
        publisher.publish(["work.plain", "work.shared"][n % 2], None, n.to_string().as_bytes());
    }
    publisher.flush();
    server.signal(Signal::SIGTERM);
    let mut got: Vec<Vec<usize>> = vec![Vec::new(); 2];
    for _ in 0..COUNT {
        let message = subscriber.message();
        let number = message.text().parse().expect("a number");
        got[usize::from(message.sid == "2")].push(number);
    }
    assert_eq!(subscriber.line_past_info(), "", "the connection is to end");
    assert_eq!(got[0], (0..COUNT).step_by(2).collect::<Vec<_>>());
    assert_eq!(got[1], (1..COUNT).step_by(2).collect::<Vec<_>>());
    assert!(server.wait_for_exit().success(), "{}", server.log());
    assert_eq!(ask(&redis, "KEYS atlas_bus:responders*"), Answer::List(Vec::new()));
    assert_eq!(ask(&redis, "KEYS *:queue:*"), Answer::List(Vec::new()));
    assert_eq!(ask(&redis, &format!("XINFO GROUPS {OTHER}")), Answer::List(Vec::new()));
}

#[test]
fn the_admin_api_works_on_what_clients_publish() {
    let redis = RedisServer::start_volatile();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    let streams = "streams: [{name: audit, subjects: [\"audit.>\"]}]";
    std::fs::write(&file, configuration(redis.url(), streams)).unwrap();
    let ports = directory.path().join("ports.json");
    let up = [&["--config", text(&file), "up", "--ports-file", text(&ports)], &FREE[..]].concat();
    let mut running = start(command(&up), b"");
    running.until_it_says("Ctrl-C stops it");
    let ports: Value = serde_json::from_str(&std::fs::read_to_string(&ports).unwrap()).unwrap();
    let mut client = Raw::connect(ports["nats"].as_str().unwrap());
    for n in 0..3 {
        client.publish("audit.login", None, n.to_string().as_bytes());
    }
    client.flush();
    let streams = run(&[
        "stream",
        "ls",
        "--json",
        "--http",
        ports["http"].as_str().unwrap(),
        "--token",
        ports["admin_token"].as_str().unwrap(),
    ])
    .ok();
    let streams = String::from_utf8(streams).unwrap();
    assert!(streams.contains(r#""audit""#) && streams.contains(r#""messages":3"#), "{streams}");
    running.signal(Signal::SIGTERM);
    running.end().ok();
}

#[test]
fn monitoring_shows_what_clients_of_a_bridge_do() {
    let redis = RedisServer::start_volatile();
    let server = Bridge::start(&redis);
    let mut client = Raw::connect(server.url());
    client.send("SUB jobs.* team 1\r\nSUB news 2\r\n");
    client.publish("news", None, b"12345");
    client.flush_among(1);
    let get = |path: &str| -> Value { serde_json::from_str(&http_get(server.http(), path)).expect("JSON") };
    let varz = get("/varz");
    assert_eq!(
        (&varz["subscriptions"], &varz["in_msgs"], &varz["out_bytes"]),
        (&2.into(), &1.into(), &5.into())
    );
    let connection = get("/connz?subs=1")["connections"][0].clone();
    assert_eq!(
        (&connection["subscriptions"], &connection["out_msgs"]),
        (&2.into(), &1.into()),
        "{connection}"
    );
    let found = get("/subsz?subs=1&test=jobs.one");
    assert_eq!((&found["num_subscriptions"], &found["total"]), (&2.into(), &1.into()), "{found}");
    assert_eq!(found["subscriptions_list"][0]["qgroup"], "team", "{found}");
}
