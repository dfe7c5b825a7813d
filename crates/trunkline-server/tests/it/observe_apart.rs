//! Records that are kept apart, and that nobody can make larger or read more of than they should: accounts, clients that were
//! cut off, texts of any size.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use trunkline::backend::memory::Hub;
use trunkline::memory::Holding;
use trunkline::observe::{ObserveOptions, Observer};
use trunkline::redelivery::RetryPolicy;
use trunkline::{Bus, BusOptions, Delivered, HandlerError, Start};
use trunkline_server::{Server, ServerOptions};

use super::auth::auth;
use super::client::{Answer, PATIENCE, Raw, http, within};
use super::fixture::options;

/// A server that records what its clients do.
struct Site {
    server: Server,
    hub: Arc<Hub>,
}

impl Site {
    async fn start(
        change: impl FnOnce(&mut ObserveOptions),
        server: impl FnOnce(&mut ServerOptions),
    ) -> Self {
        let hub = Arc::new(Hub::default());
        let mut wanted = ObserveOptions { budget: hub.memory().clone(), ..ObserveOptions::default() };
        change(&mut wanted);
        hub.observe(&Observer::new(wanted));
        let server = Server::start(options(hub.clone(), server)).await.expect("free ports");
        Self { server, hub }
    }

    async fn client(&self, fields: &str) -> Raw {
        Raw::ready(self.server.nats_addr(), fields).await
    }

    async fn get_as(&self, authorization: &str, path: &str) -> Answer {
        let request = format!(
            "GET /api/v1{path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: {authorization}\r\n\r\n"
        );
        http(self.server.http_addr().expect("it is served"), &request).await
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.get_as(&format!("Bearer {}", self.server.admin_token()), path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// The ids of the conversations of an account.
    async fn ids(&self, query: &str) -> Vec<String> {
        let list = self.json(&format!("/conversations?limit=1000&{query}")).await;
        let listed = list["conversations"].as_array().unwrap();
        listed.iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn publish(subject: &str, body: &str) -> String {
    format!("PUB {subject} {}\r\n{body}\r\n", body.len())
}

fn envelope(conversation: &str, payload: &Value) -> String {
    json!({
        "id": "m-1", "type": "t", "source": "who", "payload": payload, "trace": {"conversationId": conversation},
    })
    .to_string()
}

const ACCOUNTS: &str = "users: [{user: boss, password: b, admin: true}]
accounts:
  east: {users: [{user: ann, password: a}]}
  west: {users: [{user: bob, password: b}]}
";

fn user(name: &str, password: &str) -> String {
    format!(r#""user":"{name}","pass":"{password}","name":"client-of-{name}","headers":true"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_have_records_of_their_own_and_users_see_no_other() {
    let site = Site::start(
        |options| (options.memory, options.rate_max) = (6_000_000, 1_000_000),
        |options| {
            options.auth = auth(ACCOUNTS);
            options.limits.max_pending = 1 << 20;
        },
    )
    .await;
    let mut boss = site.client(&user("boss", "b")).await;
    let (mut ann, mut bob) = (site.client(&user("ann", "a")).await, site.client(&user("bob", "b")).await);
    for (client, conversation) in [(&mut boss, "c-boss"), (&mut ann, "c-ann"), (&mut bob, "c-bob")] {
        client
            .send(publish("nachos.tool.x.call", &envelope(conversation, &json!({"secret of": conversation}))))
            .await;
        // A library of the account reports, too.
        let seen = json!([{
            "what": "handled", "time": "2026-01-01T00:00:00Z", "subject": "nachos.tool.x.call", "id": "m-1",
            "conversationId": conversation, "to": [format!("worker-{conversation}")], "outcome": "acked",
        }]);
        let report = json!({"id": "r", "type": "system.trace", "payload": {"observations": seen}});
        client.send(publish("nachos.system.trace", &report.to_string())).await;
        client.flush().await;
    }
    for (query, own) in
        [("", "c-boss"), ("account=$G", "c-boss"), ("account=east", "c-ann"), ("account=west", "c-bob")]
    {
        assert_eq!(site.ids(query).await, [own], "{query}");
        let record = site.json(&format!("/conversations/{own}?{query}")).await;
        let told = record.to_string();
        assert_eq!(record["observations"].as_array().unwrap().len(), 2, "{told}");
        for other in ["c-boss", "c-ann", "c-bob"].iter().filter(|other| **other != own) {
            assert!(!told.contains(other), "{other} is in {told}");
            let token = format!("Bearer {}", site.server.admin_token());
            let hidden = site.get_as(&token, &format!("/conversations/{other}?{query}")).await;
            assert_eq!(hidden.status, 404);
        }
    }
    // Whoever comes with the name of a user is held to the account that it is in.
    let boss_says = format!("Basic {}", STANDARD.encode("boss:b"));
    let own = site.get_as(&boss_says, "/conversations").await;
    assert_eq!((own.status, own.json()["total"].clone()), (200, json!(1)));
    for path in
        ["/conversations?account=east", "/conversations/c-ann?account=east", "/observations?account=east"]
    {
        assert_eq!(site.get_as(&boss_says, path).await.status, 403, "{path}");
    }
    let token = format!("Bearer {}", site.server.admin_token());
    let unknown = site.get_as(&token, "/conversations?account=south").await;
    assert!(unknown.status == 400 && unknown.body.contains("there are $G, east, west"), "{unknown:?}");

    // What follows live is of the account, too.
    let mut follower = Raw::without_info(site.server.http_addr().unwrap()).await;
    let request = format!(
        "GET /api/v1/observations?account=east&after=0 HTTP/1.0\r\nHost: localhost\r\nAuthorization: {token}\r\n\r\n"
    );
    follower.send(request).await;
    let mut told = String::new();
    boss.send(publish("nachos.tool.x.call", &envelope("c-boss", &json!(1)))).await;
    boss.flush().await;
    ann.send(publish("nachos.tool.x.call", &envelope("c-ann-2", &json!(1)))).await;
    while !told.contains("c-ann-2") {
        told.push_str(&String::from_utf8_lossy(&follower.take(1).await));
    }
    assert!(told.contains("c-ann\"") && !told.contains("c-boss") && !told.contains("c-bob"), "{told}");

    // A client that is cut off is told of where it was, and the three together have no more room than one.
    let mut deaf = deaf(&site, &user("ann", "a"), "nachos.flood").await;
    let body = envelope("c-flood", &json!("x".repeat(20_000)));
    let gap = async |query: &str| {
        site.json(&format!("/conversations/c-flood?{query}")).await["summary"]["gaps"].clone()
    };
    let flood = publish("nachos.flood", &body).repeat(20);
    let started = std::time::Instant::now();
    while gap_is_none(&site, "c-flood", "account=east").await {
        assert!(
            started.elapsed() < PATIENCE,
            "{}",
            site.json("/conversations/c-flood?account=east").await["summary"]
        );
        ann.send(&flood).await;
        ann.flush().await;
    }
    assert_eq!(gap("account=east").await, 1);
    drop(deaf.try_send(b"PING\r\n").await);
    assert_eq!(site.ids("").await, ["c-boss"]);
    for client in [&mut boss, &mut bob] {
        client.send(publish("nachos.flood", &body).repeat(200)).await;
        client.flush().await;
    }
    site.json("/conversations?account=west").await;
    site.json("/conversations").await;
    let held = site.hub.memory().held(Holding::Observations);
    // Each has one large conversation, which may take half of its part.
    assert!(held > 2_000_000 && held <= 6_012_288, "{held}");
}

async fn gap_is_none(site: &Site, conversation: &str, query: &str) -> bool {
    let ids = site.ids(query).await;
    if !ids.iter().any(|id| id == conversation) {
        return true;
    }
    site.json(&format!("/conversations/{conversation}?{query}")).await["summary"]["gaps"] == 0
}

/// A client that listens there and does not read.
async fn deaf(site: &Site, fields: &str, pattern: &str) -> Raw {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a size that is possible");
    let stream =
        within("connect", socket.connect(site.server.nats_addr())).await.expect("the server listens");
    let mut raw = Raw::over(stream);
    raw.send(format!(
        "CONNECT {{\"verbose\":false,{fields}}}\r\nSUB {pattern} 1\r\nSUB nachos.other.* 2\r\nPING\r\n"
    ))
    .await;
    while raw.line().await != "PONG" {}
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_cut_off_is_a_gap_of_the_conversations_it_missed_and_of_its_subscriptions() {
    let site = Site::start(|_| {}, |options| options.limits.max_pending = 1 << 20).await;
    let mut publisher = site.client(r#""name":"publisher""#).await;
    let _deaf = deaf(&site, r#""name":"deaf""#, "nachos.>").await;
    publisher.send(publish("nachos.a", &envelope("c-long-ago", &json!(1)))).await;
    publisher.flush().await;
    // A conversation that only others listen to is not concerned.
    publisher.send(publish("elsewhere.a", &envelope("c-elsewhere", &json!(1)))).await;
    let line = publish("nachos.b", &envelope("c-now", &json!("x".repeat(20_000)))).repeat(20);
    let started = std::time::Instant::now();
    while gap_is_none(&site, "c-now", "").await {
        assert!(started.elapsed() < PATIENCE, "it is not told that the client was cut off");
        publisher.send(&line).await;
        publisher.flush().await;
    }
    let record = site.json("/conversations/c-now").await;
    let gap = record["observations"].as_array().unwrap().iter().find(|seen| seen["what"] == "gap").unwrap();
    assert_eq!((&gap["subject"], &gap["to"]), (&json!("nachos.b"), &json!(["deaf"])), "{gap}");
    assert_eq!((&gap["conversationId"], &gap["missed"]), (&json!("c-now"), &Value::Null), "{gap}");
    let reason = gap["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("slow consumer: cut off (max_pending") && reason.ends_with("on the way to it"),
        "{reason}"
    );
    assert_eq!(site.json("/conversations/c-long-ago").await["summary"]["gaps"], 0);
    // Who follows a subject that its subscriptions cover hears of it.
    let mut follower = Raw::without_info(site.server.http_addr().unwrap()).await;
    let token = site.server.admin_token();
    let request = format!(
        "GET /api/v1/observations?pattern=nachos.other.x&after=0 HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    follower.send(request).await;
    let mut told = String::new();
    while !(told.contains("\"nachos.>\"") && told.contains("\"nachos.other.*\"")) {
        told.push_str(&String::from_utf8_lossy(&follower.take(1).await));
    }
    assert!(!told.contains("nachos.b"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_text_and_no_number_of_conversations_takes_more_than_the_record_may() {
    const MEMORY: usize = 2_000_000;
    let site = Site::start(|options| (options.memory, options.rate_max) = (MEMORY, 10_000_000), |_| {}).await;
    let mut client = site.client(r#""name":"hostile""#).await;
    let giant = "x".repeat(100_000);
    // Every text of an envelope may be as large as a message, and as many are different.
    for n in 0..40 {
        let text = format!("{n}{giant}");
        let body = json!({
            "id": text, "type": text, "source": text, "correlationId": text, "payload": 1,
            "trace": {"conversationId": if n % 2 == 0 { "c-giant" } else { &text }, "toolId": text, "personaId": text},
        });
        client.send(publish("nachos.tool.x.call", &body.to_string())).await;
        client.flush().await;
        // Read at once, so that it need not wait for room.
        site.ids("").await;
    }
    let record = site.json("/conversations/c-giant").await;
    assert_eq!(record["summary"]["messages"], 20, "nothing of it had to go");
    let id = record["observations"][0]["id"].as_str().unwrap();
    assert!(id.len() <= 256 && id.ends_with('…'), "{id}");
    let check = async |what: &str| {
        let list = site.json("/conversations?limit=1000").await;
        let observer = site.hub.observer().unwrap();
        assert!(observer.held_bytes() <= MEMORY, "{what}: {}", observer.held_bytes());
        let held = site.hub.memory().held(Holding::Observations);
        assert!(held <= MEMORY + 4096, "{what}: {held}");
        list
    };
    check("giant texts").await;
    // Conversations without number, each with an answer expected at a place of its own.
    for batch in 0..50 {
        let mut lines = String::new();
        for n in 0..1000 {
            let body = envelope(&format!("c-{batch}-{n}"), &json!(n));
            lines.push_str(&format!("PUB nachos.t _INBOX.{batch}.{n} {}\r\n{body}\r\n", body.len()));
        }
        client.send(lines).await;
        client.flush().await;
    }
    let list = check("many conversations").await;
    assert!(list["total"].as_u64().unwrap() > 100, "{}", list["total"]);
    // One conversation that asks and asks, so that its beginning has to go.
    for batch in 0..20 {
        let mut lines = String::new();
        for n in 0..200 {
            let body = envelope("c-asks", &json!(n));
            let inbox = format!("_INBOX.{}.{batch}.{n}", "y".repeat(2000));
            lines.push_str(&format!("PUB nachos.t {inbox} {}\r\n{body}\r\n", body.len()));
        }
        client.send(lines).await;
        client.flush().await;
    }
    check("many requests").await;
    // Reports of which each tells of thousands.
    let seen = json!({"what": "handled", "time": "2026-01-01T00:00:00Z", "subject": "nachos.a", "size": u64::MAX, "tookUs": u64::MAX});
    let report = json!({"id": "r", "type": "t", "payload": {"observations": vec![seen; 5000], "missed": 0}});
    client.send(publish("nachos.system.trace", &report.to_string())).await;
    client.flush().await;
    check("large reports").await;
    client.send(publish("nachos.t", &envelope("c-after", &json!(1)))).await;
    client.flush().await;
    assert_eq!(site.json("/conversations/c-after").await["summary"]["messages"], 1, "it still records");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_count_as_what_is_recorded_here() {
    let site = Site::start(|options| options.rate_max = 100, |_| {}).await;
    let mut client = site.client(r#""name":"hostile""#).await;
    let seen = json!({"what": "handled", "time": "2026-01-01T00:00:00Z", "subject": "nachos.a", "correlationId": "c"});
    let report = json!({"id": "r", "type": "t", "payload": {"observations": vec![seen; 5000]}});
    client.send(publish("nachos.system.trace", &report.to_string())).await;
    client.flush().await;
    let list = site.json("/conversations").await;
    let kept = site.json("/conversations/c").await["observations"].as_array().unwrap().len() as u64;
    assert!((1..1000).contains(&kept), "{kept}");
    assert_eq!(list["notRecorded"].as_u64().unwrap() + kept, 5000);
}

/// Three clients that do what a seed says, one step after the other; all that each of them is told.
async fn play(site: &Server, seed: u64) -> [String; 3] {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut clients = Vec::new();
    for name in ["a", "b", "c"] {
        let fields = format!(r#""name":"{name}","headers":true,"no_responders":true"#);
        clients.push(Raw::ready(site.nats_addr(), &fields).await);
    }
    let mut told = [const { String::new() }; 3];
    let subjects = [
        "nachos.a.b",
        "nachos.a.c",
        "nachos.system.trace",
        "nachos.dead.x.y",
        "other.a",
        "_INBOX.x.1",
        "_INBOX.x.2",
    ];
    let patterns = ["nachos.>", "nachos.*.b", "nachos.a.c", "_INBOX.x.*", "other.>", ">", "nachos.system.*"];
    for step in 0..250 {
        let who = random.usize(..3);
        let line = match random.u8(..10) {
            0 | 1 => format!("SUB {} {}\r\n", patterns[random.usize(..patterns.len())], random.u8(..12)),
            2 => format!("UNSUB {}\r\n", random.u8(..12)),
            3 => format!("UNSUB {} {}\r\n", random.u8(..12), random.u8(1..5)),
            // Alone in its group: who of several gets a message is left to chance.
            4 => {
                let sid = random.u8(..12);
                format!("SUB nachos.a.b q-{who}-{sid} {sid}\r\n")
            }
            _ => {
                let subject = subjects[random.usize(..subjects.len())];
                let reply = ["", "_INBOX.x.1 ", "_INBOX.x.2 "][random.usize(..3)];
                let body = match random.u8(..4) {
                    0 => envelope(&format!("c-{}", random.u8(..3)), &json!({"n": step})),
                    1 => r#"{"id":"r","type":"system.trace","payload":{"observations":[{"what":"gap"}]}}"#
                        .to_owned(),
                    2 => "x".repeat(random.usize(..3000)),
                    _ => format!("plain {step}"),
                };
                match random.bool() {
                    true => format!("PUB {subject} {reply}{}\r\n{body}\r\n", body.len()),
                    false => format!(
                        "HPUB {subject} {reply}22 {}\r\nNATS/1.0\r\nA: Bcdef\r\n\r\n{body}\r\n",
                        22 + body.len()
                    ),
                }
            }
        };
        clients[who].send(line).await;
        // What came of it is written when the second PING of who has sent it is read.
        told[who].push_str(&clients[who].flush().await);
        for at in [who, (who + 1) % 3, (who + 2) % 3] {
            told[at].push_str(&clients[at].flush().await);
        }
    }
    drop(clients);
    // Who is still there listens, and what the next ones are told depends on who listens. Every look is a round trip.
    let http = site.http_addr().expect("served by default");
    let gone = async { while super::client::json(http, "/varz").await["connections"] != 0 {} };
    within("all clients have left", gone).await;
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_record_is_busy_with_everybody_is_told_the_same() {
    let alone = Server::start(options(Arc::default(), |_| {})).await.expect("free ports");
    let observed = Site::start(|_| {}, |_| {}).await;
    // One that has no room and no time for anything, with a follower that does not read.
    let strained = Site::start(
        |options| (options.memory, options.rate_max, options.payload_max) = (2000, 1, 10),
        |_| {},
    )
    .await;
    let stalled = Site::start(|options| options.redact = vec!["n".to_owned()], |_| {}).await;
    let mut followers = Vec::new();
    for site in [&strained, &stalled] {
        let mut follower = Raw::without_info(site.server.http_addr().unwrap()).await;
        let token = site.server.admin_token();
        let request = format!(
            "GET /api/v1/observations?after=0 HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        follower.send(request).await;
        followers.push(follower);
    }
    for seed in [7, 4711, fastrand::u64(..)] {
        let expected = play(&alone, seed).await;
        assert!(expected.iter().all(|told| told.contains("MSG ")), "seed {seed}");
        for (what, site) in [("observed", &observed), ("strained", &strained), ("stalled", &stalled)] {
            let told = play(&site.server, seed).await;
            for (client, (told, expected)) in told.iter().zip(&expected).enumerate() {
                let differing = told.lines().zip(expected.lines()).find(|(told, expected)| told != expected);
                assert!(told == expected, "{what}, seed {seed}, client {client}: {differing:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_are_looked_at_show_nothing_that_the_record_hides_and_go_back_whole() {
    let site = Site::start(|options| options.redact = vec!["pin".to_owned()], |_| {}).await;
    let bus_options = BusOptions {
        observer: site.hub.observer().cloned(),
        retry: RetryPolicy { max_deliver: 1, backoff: Vec::new() },
        ..BusOptions::default()
    };
    let bus = Bus::on_hub(&site.hub, bus_options);
    let stream = bus.stream("tasks").unwrap();
    stream.ensure(vec!["nachos.tool.*.task".parse().unwrap()]).await.unwrap();
    let mut dead = bus.subscribe(bus.topics().dead_letters()).await.unwrap();
    let fail = async |_: Delivered| Err(HandlerError::new(r#"refused: {"pin": 1234}"#));
    let consumer = stream.consumer("w").unwrap().start(Start::Beginning).spawn(fail).await.unwrap();
    let mut client = site.client("").await;
    client.send(publish("nachos.tool.x.task", &envelope("c", &json!({"pin": 1234, "rest": 5})))).await;
    within("a dead letter", dead.next()).await.unwrap();
    consumer.drain(PATIENCE).await.unwrap();
    let list = site.json("/dead-letters").await;
    let offset = list["letters"][0]["offset"].as_str().unwrap();
    let token = format!("Bearer {}", site.server.admin_token());
    let shown = site.get_as(&token, &format!("/dead-letters/{offset}")).await;
    assert_eq!(shown.status, 200);
    let body = shown.json()["message"]["payloadBase64"].as_str().unwrap().to_owned();
    let body = String::from_utf8(STANDARD.decode(body).unwrap()).unwrap();
    let record = site.json("/conversations/c").await.to_string();
    for told in [&shown.body, &body, &record] {
        assert!(!told.contains("1234"), "{told}");
    }
    assert!(body.contains("rest") && record.contains("rest"), "{body}");
    let mut watcher = site.client("").await;
    watcher.send("SUB nachos.tool.x.task 1\r\nPING\r\n").await;
    watcher.expect("PONG\r\n").await;
    let letters = bus.dead_letters().unwrap();
    let letter = letters.get(offset.parse().unwrap()).await.unwrap().unwrap();
    letters.redrive(&letter, None).await.unwrap();
    watcher.line().await;
    assert!(watcher.line().await.contains("1234"), "it goes back as it was");
    bus.drain(PATIENCE).await.unwrap();
}
