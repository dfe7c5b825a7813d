//! What the server records of conversations, from outside: complete, bounded, hidden where it is to be, and never felt by
//! clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use trunkline::backend::memory::Hub;
use trunkline::memory::Holding;
use trunkline::observe::{ObserveOptions, Observer};
use trunkline::{Bus, BusOptions, Delivered, HandlerError, Start, redelivery::RetryPolicy};
use trunkline_server::{Server, ServerOptions};

use super::client::{Answer, Raw, http, within};

/// A server with or without an observer.
struct Site {
    server: Server,
    hub: Arc<Hub>,
}

impl Site {
    async fn observed(change: impl FnOnce(&mut ObserveOptions)) -> Self {
        let hub = Arc::new(Hub::default());
        let mut options = ObserveOptions { budget: hub.memory().clone(), ..ObserveOptions::default() };
        change(&mut options);
        hub.observe(&Observer::new(options));
        Self::start(hub).await
    }

    async fn start(hub: Arc<Hub>) -> Self {
        let mut options = ServerOptions::new(hub.clone());
        options.listen.set_port(0);
        options.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        Self { server: Server::start(options).await.expect("free ports"), hub }
    }

    async fn client(&self, name: &str) -> Raw {
        let fields = format!(r#""name":"{name}","headers":true,"no_responders":true"#);
        Raw::ready(self.server.nats_addr(), &fields).await
    }

    fn request(&self, path: &str) -> String {
        let token = self.server.admin_token();
        format!("GET /api/v1{path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n")
    }

    async fn get(&self, path: &str) -> Answer {
        http(self.server.http_addr().expect("it is served"), &self.request(path)).await
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }
}

fn publish(subject: &str, reply: &str, body: &str) -> String {
    format!("PUB {subject} {reply} {}\r\n{body}\r\n", body.len())
}

fn envelope(id: &str, payload: &Value) -> String {
    json!({
        "id": id, "type": "tool.call", "source": "gateway", "correlationId": "k-1", "payload": payload,
        "trace": {"conversationId": "c 1/x", "toolId": "search", "personaId": "analyst"},
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_is_recorded_with_who_was_given_what_and_with_answers_that_name_none() {
    let site = Site::observed(|options| options.redact = vec!["pin".to_owned()]).await;
    let (mut tool, mut asker) = (site.client("tool").await, site.client("asker").await);
    tool.send("SUB nachos.tool.search.call q 1\r\nPING\r\n").await;
    tool.expect("PONG\r\n").await;
    asker.send("SUB _INBOX.a.* 1\r\n").await;
    let call = envelope("m-1", &json!({"query": "weather", "pin": 1234}));
    asker.send(publish("nachos.tool.search.call", "_INBOX.a.7", &call)).await;
    assert_eq!(tool.line().await, format!("MSG nachos.tool.search.call 1 _INBOX.a.7 {}", call.len()));
    assert_eq!(tool.line().await, call);
    assert_eq!(site.json("/conversations").await["conversations"][0]["state"], "open");
    tool.send(publish("_INBOX.a.7", "", r#"{"output":"rain","pin":5}"#)).await;
    assert_eq!(asker.line().await, "MSG _INBOX.a.7 1 25");

    // The id is percent-encoded in the path.
    let record = site.json("/conversations/c%201%2Fx").await;
    let summary = &record["summary"];
    for (field, expected) in [
        ("id", json!("c 1/x")),
        ("messages", json!(2)),
        ("state", json!("quiet")),
        ("participants", json!(["gateway", "tool", "asker"])),
        ("tools", json!(["search"])),
        ("personas", json!(["analyst"])),
        ("omitted", json!(0)),
    ] {
        assert_eq!(summary[field], expected, "{field} of {summary}");
    }
    let [asked, answered] = record["observations"].as_array().unwrap().as_slice() else { panic!("{record}") };
    for (seen, field, expected) in [
        (asked, "what", json!("published")),
        (asked, "from", json!("gateway")),
        (asked, "to", json!(["tool"])),
        (asked, "id", json!("m-1")),
        (asked, "reply", json!("_INBOX.a.7")),
        (asked, "size", json!(call.len())),
        (asked, "body", json!({"json": {"query": "weather", "pin": "***"}})),
        (answered, "subject", json!("_INBOX.a.7")),
        (answered, "from", json!("tool")),
        (answered, "to", json!(["asker"])),
        (answered, "conversationId", json!("c 1/x")),
        (answered, "correlationId", json!("k-1")),
        (answered, "causationId", json!("m-1")),
        (answered, "outcome", json!("answered")),
        (answered, "body", json!({"json": {"output": "rain", "pin": "***"}})),
    ] {
        assert_eq!(seen[field], expected, "{field} of {seen}");
    }
    assert!(asked["seq"].as_u64() < answered["seq"].as_u64());
    assert!(!record.to_string().contains("1234"));

    for (query, found) in [
        ("tool=search", 1),
        ("tool=other", 0),
        ("type=tool.call", 1),
        ("state=quiet", 1),
        ("state=failed", 0),
    ] {
        assert_eq!(site.json(&format!("/conversations?{query}")).await["total"], found, "{query}");
    }
    assert_eq!(site.get("/conversations/nonesuch").await.status, 404);
    assert_eq!(site.get("/conversations?limit=x").await.status, 400);
    assert_eq!(site.get("/conversations?state=odd").await.status, 400);
    // What belongs to nobody's conversation, or is not of the platform, is in no list.
    asker.send(publish("elsewhere.a", "", "{}")).await;
    asker.flush().await;
    assert_eq!(site.json("/conversations").await["total"], 1);
    assert!(site.json("/server").await.is_object());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_finds_nobody_fails_its_conversation() {
    let site = Site::observed(|_| {}).await;
    let mut asker = site.client("asker").await;
    asker.send("SUB _INBOX.a.* 1\r\n").await;
    asker.send(publish("nachos.tool.gone.call", "_INBOX.a.1", &envelope("m", &json!(1)))).await;
    let told = asker.line().await;
    assert!(told.starts_with("HMSG _INBOX.a.1 1 "), "{told}");
    let record = site.json("/conversations/c%201%2Fx").await;
    assert_eq!(record["summary"]["state"], "failed", "{record}");
    assert_eq!(record["summary"]["errors"], 1, "{record}");
    assert_eq!(record["observations"][1]["what"], "noResponders", "{record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_and_dead_letters_of_consumers_are_in_the_record() {
    let site = Site::observed(|_| {}).await;
    let options = BusOptions {
        observer: site.hub.observer().cloned(),
        source: "worker".to_owned(),
        retry: RetryPolicy { max_deliver: 2, backoff: vec![Duration::from_millis(1)] },
        ..BusOptions::default()
    };
    let bus = Bus::on_hub(&site.hub, options);
    let stream = bus.stream("tasks").unwrap();
    stream.ensure(vec!["nachos.tool.*.task".parse().unwrap()]).await.unwrap();
    let mut dead = bus.subscribe(bus.topics().dead_letters()).await.unwrap();
    let fail = async |_: Delivered| Err(HandlerError::new("the weather is out"));
    let consumer = stream.consumer("w").unwrap().start(Start::Beginning).spawn(fail).await.unwrap();
    let mut client = site.client("asker").await;
    client.send(publish("nachos.tool.search.task", "", &envelope("m", &json!(1)))).await;
    dead.next().await.unwrap();
    consumer.drain(Duration::from_secs(10)).await.unwrap();

    let record = site.json("/conversations/c%201%2Fx").await;
    let summary = &record["summary"];
    assert_eq!((&summary["retries"], &summary["deadLetters"]), (&json!(1), &json!(1)), "{record}");
    assert_eq!(summary["state"], "failed", "{record}");
    let seen = record["observations"].as_array().unwrap();
    let handled: Vec<_> = seen.iter().filter(|seen| seen["what"] == "handled").collect();
    let fields = |field: &str| handled.iter().map(|seen| seen[field].clone()).collect::<Value>();
    assert_eq!(fields("attempt"), json!([1, 2]), "{record}");
    assert_eq!(fields("outcome"), json!(["nacked", "terminated"]), "{record}");
    assert_eq!(fields("to"), json!([["worker"], ["worker"]]), "{record}");
    assert!(handled.iter().all(|seen| seen["reason"] == "the weather is out"), "{record}");
    assert!(handled.iter().all(|seen| seen["waitedUs"].is_u64() && seen["tookUs"].is_u64()), "{record}");
    let published = seen.iter().find(|seen| seen["what"] == "published").unwrap();
    assert_eq!((&published["stream"], &published["offset"]), (&json!("tasks"), &json!("1")), "{record}");
    let dead = seen.iter().find(|seen| seen["what"] == "deadLettered").unwrap();
    assert_eq!(dead["subject"], "nachos.tool.search.task", "{record}");
    assert_eq!((&dead["reason"], &dead["attempt"]), (&json!("max_deliver"), &json!(2)), "{record}");
    bus.drain(Duration::from_secs(10)).await.unwrap();
}

/// What both clients of a conversation are told, every byte of it.
async fn play(site: &Site) -> [String; 2] {
    let (mut tool, mut asker) = (site.client("tool").await, site.client("asker").await);
    tool.send("SUB nachos.tool.search.call q 1\r\nSUB nachos.> 2\r\nUNSUB 2 3\r\nPING\r\n").await;
    tool.expect("PONG\r\n").await;
    asker.send("SUB _INBOX.a.* 1\r\nSUB nachos.tool.*.result 2\r\n").await;
    for n in 0..3 {
        let call = envelope(&format!("m-{n}"), &json!({"n": n}));
        asker.send(publish("nachos.tool.search.call", &format!("_INBOX.a.{n}"), &call)).await;
        asker.send(publish("nachos.tool.none.call", &format!("_INBOX.a.9{n}"), "plain")).await;
    }
    asker.send(publish("nachos.system.trace", "", r#"{"id":"x","type":"system.trace","payload":1}"#)).await;
    asker.send(publish("nachos.dead.a.b", "", "forbidden")).await;
    let told = asker.flush().await;
    let mut calls = tool.flush().await;
    for n in 0..3 {
        tool.send(format!("HPUB _INBOX.a.{n} 22 24\r\nNATS/1.0\r\nA: Bcdef\r\n\r\nok\r\n")).await;
        tool.send(publish("nachos.tool.search.result", "", "done")).await;
    }
    calls.push_str(&tool.flush().await);
    [told + &asker.flush().await, calls]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_the_same_with_and_without_somebody_looking_on() {
    let (observed, alone) = (Site::observed(|_| {}).await, Site::start(Arc::default()).await);
    assert_eq!(play(&observed).await, play(&alone).await);
    let subscriptions = async |site: &Site| {
        let answer =
            http(site.server.http_addr().unwrap(), "GET /subsz HTTP/1.0\r\nHost: localhost\r\n\r\n").await;
        answer.json()["num_subscriptions"].clone()
    };
    // Once the clients of both have left.
    let alike = async { while subscriptions(&observed).await != subscriptions(&alone).await {} };
    within("as many subscriptions", alike).await;
    // Where nothing is recorded the API says so.
    let list = alone.json("/conversations").await;
    assert_eq!(list, json!({"enabled": false, "conversations": [], "total": 0, "notRecorded": 0}));
    assert_eq!(alone.get("/observations").await.status, 404);
    assert_eq!(alone.get("/conversations/c").await.status, 404);
    let record = observed.json("/conversations/c%201%2Fx").await;
    assert_eq!(record["summary"]["messages"], 6, "{record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_get_what_is_seen_live_and_what_the_record_still_has() {
    let site = Site::observed(|_| {}).await;
    let mut client = site.client("asker").await;
    client.send(publish("nachos.audit.log", "", "first")).await;
    client.flush().await;
    let follow = async |query: &str| {
        let mut follower = Raw::without_info(site.server.http_addr().unwrap()).await;
        follower.send(site.request(&format!("/observations?{query}"))).await;
        let mut head = follower.line().await;
        assert!(head.ends_with("200 OK"), "{head}");
        while !head.is_empty() {
            head = follower.line().await;
        }
        follower
    };
    // An event's lines end without a carriage return.
    let text = async |follower: &mut Raw, until: &str| {
        let mut text = String::new();
        while !text.contains(until) {
            text.push_str(&String::from_utf8(follower.take(1).await).unwrap());
        }
        text
    };
    let mut all = follow("after=0&pattern=nachos.audit.*").await;
    let mut live = follow("pattern=nachos.audit.*").await;
    let mut other = follow("tool=search").await;
    assert!(text(&mut live, "\n\n").await.starts_with(':'), "a comment comes at once");
    client.send(publish("nachos.audit.log", "", "second")).await;
    client.send(publish("nachos.tool.search.call", "", &envelope("m", &json!(1)))).await;
    let seen = text(&mut all, "second").await;
    assert!(seen.contains("first") && seen.contains("\"from\":\"asker\"") && seen.contains("id: "), "{seen}");
    let seen = text(&mut live, "second").await;
    assert!(!seen.contains("first"), "{seen}");
    let seen = text(&mut other, "\"m\"").await;
    assert!(!seen.contains("audit"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_bounded_in_memory_and_in_rate_and_reaches_its_readers_whole() {
    const COUNT: usize = 20_000;
    let site = Site::observed(|options| (options.memory, options.rate_max) = (1_000_000, 2000)).await;
    let (mut reader, mut writer) = (site.client("reader").await, site.client("writer").await);
    reader.send("SUB nachos.> 1\r\nPING\r\n").await;
    reader.expect("PONG\r\n").await;
    let body = "x".repeat(1000);
    let line = publish("nachos.channel.web.inbound", "", &body);
    let writing = tokio::spawn(async move {
        for _ in 0..COUNT / 100 {
            writer.send(line.repeat(100)).await;
        }
        writer.flush().await;
    });
    let told = "MSG nachos.channel.web.inbound 1 1000\r\n".len() + 1002;
    for _ in 0..COUNT {
        reader.take(told).await;
    }
    writing.await.unwrap();
    let list = site.json("/conversations").await;
    let observer = site.hub.observer().unwrap();
    assert!(observer.held_bytes() <= 1_000_000, "{}", observer.held_bytes());
    assert!(observer.held_bytes() > 10_000, "something is recorded");
    assert!(site.hub.memory().held(Holding::Observations) <= 1_004_096);
    let not_recorded = list["notRecorded"].as_u64().unwrap();
    assert!(not_recorded > 0 && not_recorded < COUNT as u64, "{list}");
}
