//! Users and permissions that change while clients are connected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nix::sys::signal::Signal;
use parking_lot::Mutex;
use trunkline::backend::memory::Hub;
use trunkline_server::{AuthSource, ReloadError, Server};
use trunkline_testkit::NatsServer;

use super::super::client::{Raw, get};
use super::super::fixture::options;
use super::{VIOLATION, answer, auth, client, server, user};

const BEFORE: &str = "{users: [\
    {user: ann, password: a, permissions: {subscribe: ['foo.*', 'bar.>', tick]}}, \
    {user: bob, password: b}, {user: cyd, password: c}]}";

/// Waits for what the server says of itself: an error of permissions comes without having been asked for.
async fn told(raw: &mut Raw, lines: usize) -> Vec<String> {
    let mut told = Vec::new();
    while told.len() < lines {
        told.push(raw.line().await);
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_stay_stays_and_the_others_are_told() {
    let server = server(BEFORE).await;
    let address = server.nats_addr();
    let (mut ann, mut bob, mut cyd) = (
        client(address, "ann", "a").await,
        client(address, "bob", "b").await,
        client(address, "cyd", "c").await,
    );
    ann.send("SUB foo.a 1\r\nSUB bar.x 2\r\nSUB foo.* q 3\r\nSUB tick 4\r\n").await;
    assert_eq!(ann.flush().await, "");
    bob.send("SUB tick 1\r\n").await;
    assert_eq!(bob.flush().await, "");
    let after = "{users: [{user: ann, password: a, permissions: {publish: ['x'], subscribe: ['bar.>', tick]}}, \
        {user: bob, password: b}, {user: cyd, password: other}]}";
    let reloaded = server.reload(&auth(after)).expect("valid");
    assert_eq!((reloaded.users, reloaded.connections), (3, 3));
    assert_eq!(
        told(&mut ann, 2).await,
        [
            "-ERR 'Permissions Violation for Subscription to \"foo.a\" (sid \"1\")'",
            "-ERR 'Permissions Violation for Subscription to \"foo.*\" using queue \"q\" (sid \"3\")'",
        ]
    );
    assert_eq!(cyd.until_closed().await, VIOLATION, "its password has changed");
    ann.send("PUB y 0\r\n\r\nPUB x 0\r\n\r\n").await;
    assert_eq!(ann.flush().await, "-ERR 'Permissions Violation for Publish to \"y\"'\r\n");
    bob.send("PUB foo.a 0\r\n\r\nPUB bar.x 1\r\n!\r\nPUB tick 0\r\n\r\n").await;
    assert_eq!(bob.flush().await, "MSG tick 1 0\r\n\r\n");
    assert_eq!(ann.flush().await, "MSG bar.x 2 1\r\n!\r\nMSG tick 4 0\r\n\r\n");
    assert_eq!(answer(address, &user("cyd", "c")).await, VIOLATION);
    assert_eq!(answer(address, &user("cyd", "other")).await, "PONG\r\n");
    let metrics = get(server.http_addr().expect("served"), "/metrics").await.body;
    for line in [
        "trunkline_server_auth_failures_total{reason=\"revoked\"} 1",
        "trunkline_server_denied_subscriptions_total 2",
        "trunkline_server_denied_messages_total 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_denied_now_is_withheld_from_a_subscription_that_stays() {
    let users = |rules: &str| {
        format!(
            "{{users: [{{user: ann, password: a, permissions: {{subscribe: {rules}}}}}, {{user: bob, password: b}}]}}"
        )
    };
    let server = server(&users("{allow: ['foo.*'], deny: [foo.b]}")).await;
    let address = server.nats_addr();
    let (mut ann, mut bob) = (client(address, "ann", "a").await, client(address, "bob", "b").await);
    ann.send("SUB foo.* 1\r\n").await;
    assert_eq!(ann.flush().await, "");
    for (rules, seen) in [
        ("{allow: ['foo.*'], deny: [foo.a]}", "MSG foo.b 1 1\r\nx\r\n"),
        ("{allow: ['foo.*']}", "MSG foo.a 1 1\r\nx\r\nMSG foo.b 1 1\r\nx\r\n"),
        ("{allow: ['foo.*'], deny: ['foo.*']}", ""),
    ] {
        server.reload(&auth(&users(rules))).expect("valid");
        // A client is considered anew before anything else that it asks for.
        let told = ann.flush().await;
        assert_eq!(told.is_empty(), !seen.is_empty(), "{rules}: {told}");
        bob.send("PUB foo.a 1\r\nx\r\nPUB foo.b 1\r\nx\r\n").await;
        assert_eq!(bob.flush().await, "");
        assert_eq!(ann.flush().await, seen, "{rules}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_often_a_request_may_be_answered_changes_with_a_reload() {
    let users = |rule: &str| {
        format!(
            "{{users: [{{user: svc, password: s, permissions: {{publish: [x], subscribe: [ask]{rule}}}}}, \
             {{user: bob, password: b}}]}}"
        )
    };
    let often = |max: u32| users(&format!(", allow_responses: {{max: {max}, expires: 1h}}"));
    let server = server(&often(2)).await;
    let address = server.nats_addr();
    let (mut svc, mut bob) = (client(address, "svc", "s").await, client(address, "bob", "b").await);
    svc.send("SUB ask 1\r\n").await;
    assert_eq!(svc.flush().await, "");
    let refused = |reply: &str| format!("-ERR 'Permissions Violation for Publish to \"{reply}\"'\r\n");
    let answers = |reply: &str, n: usize| format!("PUB {reply} 0\r\n\r\n").repeat(n);
    let mut ask = async |svc: &mut Raw, reply: &str| {
        bob.send(format!("PUB ask {reply} 0\r\n\r\n")).await;
        assert_eq!(bob.flush().await, "");
        assert_eq!(svc.flush().await, format!("MSG ask 1 {reply} 0\r\n\r\n"));
    };
    ask(&mut svc, "r.1").await;
    // What it was asked stays its to answer where the rule stays, and other users are replaced.
    server
        .reload(&auth(&often(2).replace("password: b", "password: b, permissions: {publish: ['>']}")))
        .expect("valid");
    svc.send(answers("r.1", 3)).await;
    assert_eq!(svc.flush().await, refused("r.1"));
    for max in [1, 3] {
        server.reload(&auth(&often(max))).expect("valid");
        let reply = format!("s.{max}");
        assert_eq!(svc.flush().await, "");
        ask(&mut svc, &reply).await;
        svc.send(answers(&reply, max as usize + 1)).await;
        assert_eq!(svc.flush().await, refused(&reply), "{max}");
    }
    ask(&mut svc, "t").await;
    server.reload(&auth(&users(""))).expect("valid");
    svc.send(answers("t", 1)).await;
    assert_eq!(svc.flush().await, refused("t"), "it may not answer any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_errors_are_those_of_nats_server() {
    let config = |rules: &str, password: &str| {
        format!(
            "authorization {{users = [{{user: ann, password: {password}, permissions: {{subscribe: [{rules}]}}}}]}}"
        )
    };
    let yaml = |rules: &str, password: &str| {
        format!("{{users: [{{user: ann, password: {password}, permissions: {{subscribe: [{rules}]}}}}]}}")
    };
    let theirs = NatsServer::start_with_config(&config("'foo.*', bar", "a"));
    let ours = server(&yaml("'foo.*', bar", "a")).await;
    let address = theirs.url().trim_start_matches("nats://").parse().expect("an address");
    let (mut there, mut here) =
        (client(address, "ann", "a").await, client(ours.nats_addr(), "ann", "a").await);
    for raw in [&mut there, &mut here] {
        raw.send("SUB foo.* q 1\r\nSUB bar 2\r\n").await;
        assert_eq!(raw.flush().await, "");
    }
    let file = theirs.directory().join("nats-server.conf");
    let change = |rules: &str, password: &str| {
        std::fs::write(&file, config(rules, password)).expect("writable");
        theirs.signal(Signal::SIGHUP);
        ours.reload(&auth(&yaml(rules, password))).expect("valid");
    };
    change("bar", "a");
    assert_eq!(told(&mut here, 1).await, told(&mut there, 1).await);
    change("bar", "b");
    assert_eq!(here.until_closed().await, there.until_closed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_hash_of_the_same_password_leaves_its_user_connected() {
    let yaml = || {
        let hash = bcrypt::hash("a", 4).expect("short enough");
        format!("{{users: [{{user: ann, password: '{hash}'}}]}}")
    };
    let server = server(&yaml()).await;
    let mut ann = client(server.nats_addr(), "ann", "a").await;
    ann.send("SUB x 1\r\n").await;
    assert_eq!(ann.flush().await, "");
    server.reload(&auth(&yaml())).expect("valid");
    ann.send("PUB x 1\r\n!\r\n").await;
    assert_eq!(ann.flush().await, "MSG x 1 1\r\n!\r\n");
    let changed = bcrypt::hash("b", 4).expect("short enough");
    server.reload(&auth(&format!("{{users: [{{user: ann, password: '{changed}'}}]}}"))).expect("valid");
    assert_eq!(ann.until_closed().await, VIOLATION);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authentication_can_be_switched_on_and_off() {
    let server = server("{}").await;
    let mut before = Raw::ready(server.nats_addr(), "").await;
    let mut knows = client(server.nats_addr(), "ann", "a").await;
    server.reload(&auth("{users: [{user: ann, password: a}]}")).expect("valid");
    assert_eq!(before.until_closed().await, VIOLATION);
    assert_eq!(knows.flush().await, "", "who has given the right password without being asked may stay");
    assert_eq!(answer(server.nats_addr(), "").await, VIOLATION);
    server.reload(&auth("{}")).expect("valid");
    assert_eq!(answer(server.nats_addr(), "").await, "PONG\r\n");
    assert_eq!(knows.flush().await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_has_lost_its_users_does_not_let_everybody_in() {
    let source = Source::new(BEFORE);
    let server = super::server_with(|options| {
        options.auth = auth(BEFORE);
        options.auth_source = Some(source.as_source());
    })
    .await;
    let mut bob = client(server.nats_addr(), "bob", "b").await;
    // As the file is for a moment, where somebody writes it in its place.
    source.set("{}");
    let error = server.reload_from_source().await.expect_err("nobody would be asked any more");
    assert!(matches!(error, ReloadError::Open), "{error:?}");
    assert_eq!(answer(server.nats_addr(), "").await, VIOLATION);
    assert_eq!(bob.flush().await, "");
    source.set(BEFORE);
    server.reload_from_source().await.expect("users as before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_ask_for_a_reload_cannot_have_it_asked_for_by_an_answer() {
    let users = "{users: [{user: ann, password: a, permissions: {publish: {deny: [nachos.system.policy.reload]}}}, \
                 {user: bob, password: b}]}";
    let source = Source::new(users);
    let server = super::server_with(|options| {
        options.auth = auth(users);
        options.auth_source = Some(source.as_source());
    })
    .await;
    let address = server.nats_addr();
    let (mut ann, mut bob) = (client(address, "ann", "a").await, client(address, "bob", "b").await);
    bob.send("SUB call 1\r\n").await;
    assert_eq!(bob.flush().await, "");
    ann.send("PUB call nachos.system.policy.reload 0\r\n\r\nPUB call other 0\r\n\r\n").await;
    let refused =
        "-ERR 'Permissions Violation for Publish with Reply of \"nachos.system.policy.reload\"'\r\n";
    assert_eq!(ann.flush().await, refused);
    assert_eq!(bob.flush().await, "MSG call 1 other 0\r\n\r\n");
    // Whoever may ask may have it asked for.
    bob.send("PUB call nachos.system.policy.reload 0\r\n\r\n").await;
    assert_eq!(bob.flush().await, "MSG call 1 nachos.system.policy.reload 0\r\n\r\n");
    assert_eq!(source.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_that_cannot_be_put_in_force_change_nothing() {
    let server = server(BEFORE).await;
    let mut bob = client(server.nats_addr(), "bob", "b").await;
    let mut broken = auth(BEFORE);
    broken.users[0].password = Some(trunkline::config::Secret::new("$2b$nonsense"));
    let error = server.reload(&broken).expect_err("no hash");
    assert!(matches!(error, ReloadError::Auth(_)), "{error:?}");
    let error = server.reload_from_source().await.expect_err("there is none");
    assert!(matches!(error, ReloadError::NoSource), "{error:?}");
    assert_eq!(bob.flush().await, "");
    assert_eq!(answer(server.nats_addr(), &user("ann", "a")).await, "PONG\r\n");
}

/// A source that says what the test has put there, and counts how often it was asked.
#[derive(Clone)]
pub(super) struct Source {
    yaml: Arc<Mutex<String>>,
    asked: Arc<AtomicU64>,
}

impl Source {
    pub(super) fn new(yaml: &str) -> Self {
        Self { yaml: Arc::new(Mutex::new(yaml.to_owned())), asked: Arc::default() }
    }

    fn set(&self, yaml: &str) {
        *self.yaml.lock() = yaml.to_owned();
    }

    pub(super) fn as_source(&self) -> AuthSource {
        let source = self.clone();
        Arc::new(move || {
            source.asked.fetch_add(1, Ordering::Relaxed);
            let yaml = source.yaml.lock().clone();
            match yaml.is_empty() {
                true => Err("the file is gone".into()),
                false => Ok(auth(&yaml)),
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_may_publish_there_has_the_policy_read_again() {
    let users = |ann: &str| {
        format!(
            "{{users: [{{user: ann, password: a, permissions: {{publish: {ann}}}}}, {{user: bob, password: b}}, \
             {{user: owner, password: o, permissions: {{publish: [acme.system.policy.reload]}}}}]}}"
        )
    };
    let source = Source::new(&users("[x]"));
    let options = options(Arc::new(Hub::default()), |options| {
        options.auth = auth(&users("[x]"));
        options.auth_source = Some(source.as_source());
        options.subject_root = "acme".to_owned();
    });
    let server = Server::start(options).await.expect("free ports");
    let address = server.nats_addr();
    let (mut ann, mut bob) = (client(address, "ann", "a").await, client(address, "bob", "b").await);
    source.set(&users("[y]").replace("bob", "rob"));
    ann.send("PUB acme.system.policy.reload 0\r\n\r\n").await;
    let refused = "-ERR 'Permissions Violation for Publish to \"acme.system.policy.reload\"'\r\n";
    assert_eq!(ann.flush().await, refused);
    assert_eq!(bob.flush().await, "");
    assert_eq!(source.asked.load(Ordering::Relaxed), 0, "nobody has asked who may");
    let mut owner = client(address, "owner", "o").await;
    owner.send("PUB acme.system.policy.reload 0\r\n\r\n").await;
    assert_eq!(bob.until_closed().await, VIOLATION, "it is gone");
    ann.send("PUB x 0\r\n\r\nPUB y 0\r\n\r\n").await;
    assert_eq!(ann.flush().await, "-ERR 'Permissions Violation for Publish to \"x\"'\r\n");
    // A source that fails changes nothing, and the next one that works is taken.
    source.set("");
    let error = server.reload_from_source().await.expect_err("the file is gone");
    assert!(matches!(error, ReloadError::Source(_)), "{error:?}");
    ann.send("PUB y 0\r\n\r\n").await;
    assert_eq!(ann.flush().await, "");
    source.set(&users("[]"));
    server.reload_from_source().await.expect("valid");
    ann.send("PUB y 0\r\n\r\n").await;
    assert_eq!(ann.flush().await, "-ERR 'Permissions Violation for Publish to \"y\"'\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_of_a_user_whose_password_is_replaced_take_one_hash() {
    const CONNECTIONS: usize = 60;
    let yaml = |password: &str| {
        let hash = bcrypt::hash(password, 9).expect("short enough");
        (format!("{{users: [{{user: ann, password: '{hash}'}}]}}"), hash)
    };
    let server = server(&yaml("a").0).await;
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(client(server.nats_addr(), "ann", "a").await);
    }
    // A new hash of the same password first, then another password.
    for (password, stay) in [("a", true), ("b", false)] {
        let (after, hash) = yaml(password);
        let began = Instant::now();
        assert_eq!(bcrypt::verify("a", &hash).expect("a hash"), stay);
        let one = began.elapsed();
        let began = Instant::now();
        assert_eq!(server.reload(&auth(&after)).expect("valid").connections, CONNECTIONS);
        for raw in &mut all {
            match stay {
                true => assert_eq!(raw.flush().await, ""),
                false => assert_eq!(raw.until_closed().await, VIOLATION),
            }
        }
        let took = began.elapsed();
        assert!(took < one * CONNECTIONS as u32 / 3, "{took:?}, and one hash takes {one:?}");
    }
}
