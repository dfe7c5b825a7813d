//! The HTTP side: what it answers, whom it refuses, and how little a bad client can take from it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use trunkline::MemoryBudget;
use trunkline::backend::BackendKind;
use trunkline::memory::{Charge, Holding};
use trunkline::status::{BackendState, BackendStatus};
use trunkline::topics::payload::SystemHealth;
use trunkline_server::admin::{ComponentJson, ComponentState, ComponentsJson};

use super::client::{Raw, get, http, json, within};
use super::fixture::Fixture;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_answer_in_the_shapes_that_tools_expect() {
    let mut fixture = Fixture::start().await;
    let alive = get(fixture.http(), "/healthz").await;
    assert_eq!(alive.status, 200);
    let ready = json(fixture.http(), "/readyz").await;
    for (document, check) in [(alive.json(), "process"), (ready.clone(), "backend")] {
        assert_eq!(document["status"], "ok");
        assert_eq!(document["component"], "trunkline-server");
        assert_eq!(document["version"], env!("CARGO_PKG_VERSION"));
        assert!(document["uptime"].is_u64());
        assert_eq!(document["checks"][check]["status"], "ok");
    }
    assert_eq!(ready["checks"]["backend"]["backend"], "in_memory");
    assert_eq!(ready["checks"]["backend"]["state"], "ok");
    let index = get(fixture.http(), "/").await;
    assert!(index.status == 200 && index.body.contains("/varz"), "{index:?}");
    let lost = get(fixture.http(), "/nonesuch").await;
    assert!(lost.status == 404 && lost.body.contains("/nonesuch") && lost.body.contains("/varz"), "{lost:?}");
    fixture.bystander_is_fine().await;
}

/// Errors repeat what was asked for, and pages show what strangers have said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_taken_for_another_kind_or_embedded_by_other_origins() {
    let fixture = Fixture::start().await;
    for (path, status) in [
        ("/", 200),
        ("/healthz", 200),
        ("/metrics", 200),
        ("/varz", 200),
        ("/connz?sort=%3Cscript%3E", 400),
        ("/accountz?acc=%3Cscript%3E", 400),
        ("/nonesuch", 404),
        ("/dashboard", 200),
        ("/dashboard/app.js", 200),
        ("/api/v1/overview", 401),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = http(fixture.http(), &request).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        for (name, value) in
            [("x-content-type-options", "nosniff"), ("cross-origin-resource-policy", "same-origin")]
        {
            assert_eq!(answer.header(name), Some(value), "{path}: {answer:?}");
        }
    }
    let foreign = "GET /varz HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    let answer = http(fixture.http(), foreign).await;
    assert_eq!((answer.status, answer.header("x-content-type-options")), (421, Some("nosniff")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_metrics_are_served_apart_and_nothing_else_is() {
    let anywhere = "0.0.0.0:0".parse().unwrap();
    let fixture = Fixture::with(|options| (options.metrics, options.http) = (Some(anywhere), None)).await;
    let url = fixture.server.metrics_url().expect("served");
    let port = url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let apart = ([127, 0, 0, 1], port).into();
    assert_eq!(fixture.server.http_addr(), None);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(apart, path).await.status, 200, "{path}");
    }
    for path in ["/", "/varz", "/connz", "/dashboard", "/api/v1/overview", "/api/v1/streams"] {
        assert_eq!(get(apart, path).await.status, 404, "{path}");
    }
    // Where both are, both count what was asked for.
    let local = "127.0.0.1:0".parse().unwrap();
    let fixture = Fixture::with(|options| options.metrics = Some(local)).await;
    let url = fixture.server.metrics_url().expect("served");
    let apart = url.trim_start_matches("http://").parse().expect("an address");
    assert_eq!(get(apart, "/metrics").await.status, 200);
    assert_eq!(get(fixture.http(), "/metrics").await.status, 200);
    assert_eq!(fixture.varz().await["http_req_stats"]["/metrics"], 2);
}

fn status(state: BackendState) -> BackendStatus {
    BackendStatus::new(BackendKind::Redis, "localhost:6379", state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_the_backend_while_liveness_does_not() {
    let (sender, receiver) = watch::channel(status(BackendState::Connected));
    let fixture = Fixture::with(|options| options.backend_status = Some(receiver)).await;
    let lost = || "connection refused".to_owned();
    for (state, code, overall, word) in [
        (BackendState::Connected, 200, "ok", "ok"),
        (BackendState::Degraded { reason: lost() }, 503, "degraded", "degraded"),
        (BackendState::Disconnected { reason: lost() }, 503, "down", "disconnected"),
        (BackendState::Connecting, 503, "down", "connecting"),
        (BackendState::Closed, 503, "down", "closed"),
    ] {
        sender.send_replace(status(state.clone()));
        let answer = get(fixture.http(), "/readyz").await;
        let document = answer.json();
        assert_eq!((answer.status, &document["status"]), (code, &Value::from(overall)));
        let check = &document["checks"]["backend"];
        assert_eq!((&check["state"], &check["backend"]), (&Value::from(word), &Value::from("redis")));
        assert_eq!(check["reason"].as_str(), state.reason(), "{document}");
        assert_eq!(document["reason"].as_str(), state.reason(), "{document}");
        assert_eq!(get(fixture.http(), "/healthz").await.status, 200);
        let metrics = get(fixture.http(), "/metrics").await.body;
        let line = format!("trunkline_backend_state{{backend=\"redis\",state=\"{word}\"}} 1\n");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_broadcast_regularly_and_on_every_change() {
    let (sender, receiver) = watch::channel(status(BackendState::Connected));
    let fixture = Fixture::with(|options| {
        options.backend_status = Some(receiver);
        options.subject_root = "acme".to_owned();
        options.health_interval = Duration::from_millis(50);
    })
    .await;
    let mut raw = fixture.client().await;
    raw.send("SUB acme.system.health 1\r\nPING\r\n").await;
    raw.expect("PONG\r\n").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let envelope = broadcast(&mut raw).await;
        assert_eq!(envelope["type"], "system.health");
        assert_eq!(envelope["source"], "trunkline-server");
        assert_eq!(envelope["payload"]["status"], "ok");
        let typed: SystemHealth =
            serde_json::from_value(envelope["payload"].clone()).expect("the topic's payload");
        assert_eq!((typed.component.as_str(), typed.status.as_str()), ("trunkline-server", "ok"));
        assert!(envelope["correlationId"].is_string());
        let time = envelope["timestamp"].as_str().expect("a time");
        assert!(time.ends_with('Z') && time.len() <= "2026-11-22T10:15:30.123Z".len(), "{time}");
        ids.push(envelope["id"].as_str().expect("an id").to_owned());
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "each has an id of its own");
    sender.send_replace(status(BackendState::Degraded { reason: "gone".to_owned() }));
    let changed = async { while broadcast(&mut raw).await["payload"]["status"] != "degraded" {} };
    within("a broadcast of the change", changed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_health_does_not_wait_for_the_interval() {
    let (sender, receiver) = watch::channel(status(BackendState::Connected));
    let fixture = Fixture::with(|options| {
        options.backend_status = Some(receiver);
        options.health_interval = Duration::from_secs(3600);
    })
    .await;
    let mut raw = fixture.client().await;
    raw.send("SUB nachos.system.health 1\r\nPING\r\n").await;
    while raw.line().await != "PONG" {}
    sender.send_replace(status(BackendState::Disconnected { reason: "gone".to_owned() }));
    // The first one, of the start, may come after the subscription.
    let changed =
        async { while broadcast(&mut raw).await["payload"]["checks"]["backend"]["reason"] != "gone" {} };
    within("a broadcast of the change", changed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_server_has_a_probe_of_its_own_shape() {
    let fixture = Fixture::with(|options| options.nats_probes = true).await;
    assert_eq!(get(fixture.http(), "/healthz").await.body, r#"{"status":"ok"}"#);
}

fn component(state: ComponentState) -> ComponentsJson {
    let component = ComponentJson {
        name: "search".to_owned(),
        state,
        waiting_for: Vec::new(),
        pid: None,
        restarts: 0,
        since: "2026-11-22T10:15:30Z".to_owned(),
        restart_at: None,
        reason: (state == ComponentState::Failed).then(|| "exit code 3".to_owned()),
    };
    ComponentsJson { components: vec![component], ..ComponentsJson::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_fails_is_told_with_its_reason_everywhere_at_once() {
    let (sender, receiver) = watch::channel(component(ComponentState::Ready));
    let fixture = Fixture::with(|options| {
        options.components = Some(receiver);
        options.health_interval = Duration::from_secs(3600);
    })
    .await;
    let mut raw = fixture.client().await;
    raw.send("SUB nachos.system.health 1\r\nPING\r\n").await;
    while raw.line().await != "PONG" {}
    let metrics = get(fixture.http(), "/metrics").await.body;
    assert!(metrics.contains("trunkline_component_ready{component=\"search\"} 1\n"), "{metrics}");
    sender.send_replace(component(ComponentState::Failed));
    let reason = "component.search: failed (exit code 3)";
    let told = async { while broadcast(&mut raw).await["payload"]["reason"] != reason {} };
    within("a broadcast of the change", told).await;
    let answer = get(fixture.http(), "/readyz").await;
    assert_eq!((answer.status, &answer.json()["status"]), (503, &Value::from("degraded")));
    let metrics = get(fixture.http(), "/metrics").await.body;
    for line in [
        "trunkline_component_ready{component=\"search\"} 0",
        "trunkline_health_check_ok{check=\"component.search\"} 0",
        "trunkline_health_state{state=\"degraded\"} 1",
        "trunkline_health_state{state=\"ok\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
    sender.send_replace(component(ComponentState::Ready));
    let told = async { while broadcast(&mut raw).await["payload"]["status"] != "ok" {} };
    within("a broadcast of the end of it", told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_near_its_limit_is_told_and_keeps_the_server_ready() {
    let memory = Arc::new(MemoryBudget::new(64 << 20));
    let budget = memory.clone();
    let fixture = Fixture::with(|options| options.memory = Some(budget)).await;
    assert_eq!(json(fixture.http(), "/readyz").await["checks"]["memory"]["status"], "ok");
    // The server sets the limit by what the process leaves; most of whatever it is now.
    let bytes = memory.limit().expect("there is one") / 100 * 94;
    let charge = Charge::of(&memory, Holding::Streams, bytes);
    let near = async {
        loop {
            let answer = get(fixture.http(), "/readyz").await;
            let document = answer.json();
            if document["status"] == "degraded" {
                assert_eq!(answer.status, 200, "{document}");
                break document;
            }
        }
    };
    let document = within("health that tells of memory", near).await;
    let reason = document["reason"].as_str().expect("a reason");
    assert!(
        reason.starts_with("memory: buffers take ") && reason.contains("runtime.resources.memory"),
        "{reason}"
    );
    drop(charge);
    let well = async { while json(fixture.http(), "/readyz").await["status"] != "ok" {} };
    within("room again", well).await;
}

async fn broadcast(raw: &mut Raw) -> Value {
    let head = raw.line().await;
    assert!(head.starts_with("MSG ") && head.contains(".system.health 1 "), "{head}");
    serde_json::from_str(&raw.line().await).expect("an envelope in JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_names_of_this_machine_are_answered() {
    let fixture = Fixture::start().await;
    let port = fixture.http().port();
    let ask = |host: String| {
        let request = format!("GET /varz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let address = fixture.http();
        async move { http(address, &request).await }
    };
    for host in ["localhost".to_owned(), format!("127.0.0.1:{port}"), "[::1]:80".to_owned()] {
        assert_eq!(ask(host.clone()).await.status, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:8222", "10.0.0.1"] {
        let answer = ask(host.to_owned()).await;
        assert!(answer.status == 421 && answer.body.contains(host), "{answer:?}");
        assert!(!answer.body.contains("server_id"));
    }
    let answer = http(fixture.http(), "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer.status, 400);
    assert_eq!(http(fixture.http(), "GET /healthz HTTP/1.0\r\n\r\n").await.status, 200);
    let target = "GET http://evil.example/varz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(http(fixture.http(), target).await.status, 421);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_parameter_is_told_with_what_is_allowed() {
    let fixture = Fixture::start().await;
    for (path, named) in [
        ("/connz?sort=bad", ["\"bad\"", "msgs_to"]),
        ("/connz?sort=stop", ["\"stop\"", "uptime"]),
        ("/connz?limit=x", ["limit", "\"x\""]),
        ("/connz?offset=1.5", ["offset", "\"1.5\""]),
        ("/connz?state=zz", ["\"zz\"", "closed"]),
        ("/connz?subs=zz", ["\"zz\"", "detail"]),
        ("/connz?cid=-1", ["cid", "\"-1\""]),
        ("/connz?auth=zz", ["auth", "true"]),
        ("/accstatz?unused=zz", ["unused", "\"zz\""]),
        ("/jsz?streams=zz", ["streams", "\"zz\""]),
        ("/leafz?subs=zz", ["subs", "\"zz\""]),
        ("/subsz?test=a.*", ["\"a.*\"", "without wildcards"]),
        ("/subsz?subs=zz", ["\"zz\"", "true"]),
        ("/subsz?limit=x", ["limit", "\"x\""]),
    ] {
        let answer = get(fixture.http(), path).await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(named.iter().all(|part| answer.body.contains(part)), "{path}: {}", answer.body);
    }
    for path in
        ["/varz?x=1", "/connz?auth=1", "/connz?limit=-1&offset=-1", "/subsz?test=", "/connz?subs=DETAIL"]
    {
        assert_eq!(get(fixture.http(), path).await.status, 200, "{path}");
    }
}

fn cids(page: &Value) -> Vec<u64> {
    let rows = page["connections"].as_array().expect("a list");
    rows.iter().map(|row| row["cid"].as_u64().expect("a number")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_sorted_paged_and_found() {
    let mut fixture = Fixture::start().await;
    fixture.without_bystander();
    fixture.varz_becomes("connections", 0).await;
    let address = fixture.http();
    let (mut a, mut b, mut c) = (fixture.client().await, fixture.client().await, fixture.client().await);
    a.send("SUB x 1\r\nSUB y q 2\r\nSUB z 3\r\nUNSUB 3 9\r\nPING\r\n").await;
    a.expect("PONG\r\n").await;
    b.send("SUB never 1\r\nPUB x 5\r\nhello\r\nPUB y 5\r\nhello\r\n").await;
    b.flush().await;
    c.send("PUB x 100\r\n").await;
    c.send("c".repeat(100)).await;
    c.send("\r\n").await;
    c.flush().await;
    a.flush().await;
    let all = cids(&json(address, "/connz").await);
    let [ca, cb, cc] = all[..] else { panic!("{all:?}") };
    for (sort, expected) in [
        ("cid", [ca, cb, cc]),
        ("start", [ca, cb, cc]),
        ("subs", [ca, cb, cc]),
        ("msgs_to", [ca, cb, cc]),
        ("bytes_to", [ca, cb, cc]),
        ("msgs_from", [cb, cc, ca]),
        ("bytes_from", [cc, cb, ca]),
        ("uptime", [cc, cb, ca]),
    ] {
        assert_eq!(cids(&json(address, &format!("/connz?sort={sort}")).await), expected, "{sort}");
    }
    for sort in ["pending", "last", "idle", "rtt"] {
        assert_eq!(cids(&json(address, &format!("/connz?sort={sort}")).await).len(), 3, "{sort}");
    }
    let page = json(address, "/connz?offset=1&limit=1").await;
    assert_eq!((cids(&page), &page["total"], &page["num_connections"]), (vec![cb], &3.into(), &1.into()));
    let one = json(address, &format!("/connz?cid={cb}&subs=1")).await;
    assert_eq!((cids(&one), &one["total"], &one["limit"]), (vec![cb], &3.into(), &1.into()));
    assert_eq!(one["connections"][0]["subscriptions_list"], serde_json::json!(["never"]));
    assert!(cids(&json(address, "/connz?cid=999").await).is_empty());
    let detail = json(address, &format!("/connz?cid={ca}&subs=detail")).await;
    let expected = serde_json::json!([
        {"subject": "x", "sid": "1", "msgs": 2, "cid": ca},
        {"subject": "y", "qgroup": "q", "sid": "2", "msgs": 1, "cid": ca},
        {"subject": "z", "sid": "3", "msgs": 0, "max": 9, "cid": ca},
    ]);
    assert_eq!(detail["connections"][0]["subscriptions_list_detail"], expected);
    let listed = json(address, "/subsz?subs=1&offset=2&limit=2").await;
    let subjects: Vec<_> = (0..2).map(|n| listed["subscriptions_list"][n]["subject"].clone()).collect();
    assert_eq!((subjects, &listed["total"]), (vec!["z".into(), "never".into()], &4.into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_ended_are_shown_with_the_reason() {
    let mut fixture = Fixture::start().await;
    drop(Raw::ready(fixture.nats(), "\"name\":\"short-lived\"").await);
    let mut wrong = Raw::connect(fixture.nats()).await;
    wrong.send("NONSENSE\r\n").await;
    // It is gone as soon as it was told, and not when it has left.
    wrong.expect("-ERR 'Unknown Protocol Operation'\r\n").await;
    fixture.varz_becomes("connections", 1).await;
    wrong.until_closed().await;
    let page = json(fixture.http(), "/connz?state=closed").await;
    let reasons: Vec<_> = (0..2).map(|n| page["connections"][n]["reason"].clone()).collect();
    assert_eq!(reasons, ["Client Closed", "Protocol Violation"]);
    assert_eq!(page["connections"][0]["name"], "short-lived");
    assert!(page["connections"][0]["stop"].is_string());
    assert_eq!(json(fixture.http(), "/connz?state=any").await["total"], 3);
    assert_eq!(cids(&json(fixture.http(), "/connz?state=closed&sort=stop").await).len(), 2);
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_count_as_activity() {
    let mut fixture = Fixture::with(|options| {
        // Deliveries are noticed as often as clients are looked after.
        options.limits.write_deadline = Duration::from_millis(400);
    })
    .await;
    let mut listener = fixture.client().await;
    listener.send("SUB a 1\r\nPING\r\n").await;
    listener.expect("PONG\r\n").await;
    let last = |page: Value| -> jiff::Timestamp {
        let rows = page["connections"].as_array().expect("a list").clone();
        let row = rows.into_iter().find(|row| row["subscriptions_list"][0] == "a").expect("the listener");
        row["last_activity"].as_str().expect("a time").parse().expect("RFC 3339")
    };
    let before = last(json(fixture.http(), "/connz?subs=1").await);
    let mut publisher = fixture.client().await;
    publisher.send("PUB a 1\r\nx\r\n").await;
    publisher.flush().await;
    listener.expect("MSG a 1 1\r\nx\r\n").await;
    let after = last(json(fixture.http(), "/connz?subs=1").await);
    assert!(after > before, "{after} is not after {before}");
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_methods_and_oversized_heads_are_refused() {
    let fixture = Fixture::start().await;
    let ask = |request: String| http(fixture.http(), Box::leak(request.into_boxed_str()));
    let post =
        "POST /varz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(post.to_owned()).await.status, 405);
    let head = "HEAD /varz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = ask(head.to_owned()).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    let long = format!("GET /varz HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let mut raw = Raw::without_info(fixture.http()).await;
    let _ = raw.try_send(long.as_bytes()).await;
    let text = raw.until_closed().await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_http_client_holds_nothing_for_long() {
    let mut fixture = Fixture::with(|options| {
        options.limits.http_connections = 4;
        options.limits.http_timeout = Duration::from_millis(300);
    })
    .await;
    // Half a head, nothing at all, and an idle connection: as many as there may be.
    let mut slow = Vec::new();
    for part in
        ["GET /varz HTTP/1.1\r\nHost: loc", "", "", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    {
        let mut raw = Raw::without_info(fixture.http()).await;
        raw.send(part).await;
        slow.push(raw);
    }
    let answer = get(fixture.http(), "/healthz").await;
    assert_eq!(answer.status, 200, "their places are free again after a while");
    for mut raw in slow {
        raw.until_closed().await;
    }
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_client_that_does_not_read_its_answer_is_cut_off() {
    let mut fixture = Fixture::with(|options| {
        options.limits.http_connections = 1;
        options.limits.http_timeout = Duration::from_millis(300);
    })
    .await;
    let mut owner = fixture.client().await;
    let lines: String = (0..100_000).map(|n| format!("SUB a.long.name.of.a.subject.{n} {n}\r\n")).collect();
    owner.send(lines).await;
    owner.flush().await;
    // Some ten megabytes an answer: more than sockets hold.
    let request = "GET /subsz?subs=1&limit=100000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut deaf = Raw::without_info(fixture.http()).await;
    deaf.send(request.repeat(4)).await;
    let answer = get(fixture.http(), "/healthz").await;
    assert_eq!(answer.status, 200, "the only place is free again");
    deaf.until_closed().await;
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_http_connection_does_not_hold_up_a_shutdown() {
    let mut fixture = Fixture::start().await;
    fixture.without_bystander();
    let mut idle = Raw::without_info(fixture.http()).await;
    idle.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    idle.expect("HTTP/1.1 200 OK\r\n").await;
    let mut half = Raw::without_info(fixture.http()).await;
    half.send("GET /healthz HTTP/1.1\r\n").await;
    assert_eq!(within("shutdown", fixture.server.shutdown(Duration::from_secs(5))).await, 0);
    within("the end of the connections", async {
        idle.until_closed().await;
        half.until_closed().await;
    })
    .await;
}
