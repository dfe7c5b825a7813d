//! Spaces of subjects that are apart from each other, and addresses that may be served.

use std::net::SocketAddr;
use std::sync::Arc;

use trunkline::backend::memory::{Hub, MemoryBackend};
use trunkline::backend::{Backend as _, PublishOptions};
use trunkline::{Front, Message};
use trunkline_server::{Server, StartError};

use super::super::client::{PATIENCE, Raw, json};
use super::super::fixture::options;
use super::{VIOLATION, answer, auth, client, connect, server, user};

const USERS: &str = "{users: [{user: root, password: r}], accounts: {\
    east: {users: [{user: ann, password: a}, {user: amy, password: a}]}, \
    west: {users: [{user: bob, password: b, permissions: {publish: ['>']}}]}}}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_see_nothing_of_each_other() {
    let server = server(USERS).await;
    let address = server.nats_addr();
    let mut clients = Vec::new();
    for (name, password) in [("root", "r"), ("ann", "a"), ("amy", "a"), ("bob", "b")] {
        let fields = format!("{},\"headers\":true,\"no_responders\":true", user(name, password));
        let mut raw = Raw::ready(address, &fields).await;
        // The server's own health goes to everybody in the global account.
        let all = if name == "root" { "news" } else { ">" };
        raw.send(&format!("SUB {all} 1\r\nSUB work q 2\r\n")).await;
        assert_eq!(raw.flush().await, "");
        clients.push(raw);
    }
    clients[1].send("PUB news 1\r\n!\r\n").await;
    let message = "MSG news 1 1\r\n!\r\n";
    assert_eq!(clients[1].flush().await, message);
    for (at, expected) in [(0, ""), (2, message), (3, "")] {
        assert_eq!(clients[at].flush().await, expected, "{at}");
    }
    // Whoever listens in another account is nobody.
    clients[3].send("UNSUB 1\r\nUNSUB 2\r\nSUB _INBOX.b 3\r\nPUB work _INBOX.b 0\r\n\r\n").await;
    let nobody = "HMSG _INBOX.b 3 36 36\r\nNATS/1.0 503\r\nNats-Subject: work\r\n\r\n\r\n";
    assert_eq!(clients[3].flush().await, nobody);
    // Dead letters are the bus's alone in every account.
    clients[3].send("PUB nachos.dead.a.b 0\r\n\r\n").await;
    let refused = "-ERR 'Permissions Violation for Publish to \"nachos.dead.a.b\"'\r\n";
    assert_eq!(clients[3].flush().await, refused);
    let http = server.http_addr().expect("served");
    let accounts = json(http, "/accountz").await["accounts"].clone();
    assert_eq!(accounts, serde_json::json!(["$G", "east", "west"]));
    assert_eq!(json(http, "/varz").await["subscriptions"], 7);
    // A connection stays in the account that it first came to.
    clients[1].send(connect(&user("bob", "b"))).await;
    assert!(clients[1].until_closed().await.ends_with(VIOLATION));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_clients_of_each_account_have_done_is_told() {
    let server = server(USERS).await;
    let (address, http) = (server.nats_addr(), server.http_addr().expect("served"));
    let mut ann = Raw::ready(address, &user("ann", "a")).await;
    let mut amy = Raw::ready(address, &user("amy", "a")).await;
    let mut bob = Raw::ready(address, &user("bob", "b")).await;
    amy.send("SUB news 1\r\nSUB other 2\r\n").await;
    amy.flush().await;
    ann.send("PUB news 5\r\nhello\r\nPUB nobody 1\r\nx\r\n").await;
    ann.flush().await;
    bob.send("PUB news 2\r\nhi\r\n").await;
    bob.flush().await;
    let none = serde_json::json!({"msgs": 0, "bytes": 0});
    let expected = |name: &str, [clients, subscriptions]: [u64; 2], [sent, received]: [[u64; 2]; 2]| {
        let traffic = |[msgs, bytes]: [u64; 2]| serde_json::json!({"msgs": msgs, "bytes": bytes, "gateways": none, "routes": none, "leafs": none});
        serde_json::json!({
            "acc": name, "name": name, "conns": clients, "leafnodes": 0, "total_conns": clients,
            "num_subscriptions": subscriptions, "sent": traffic(sent), "received": traffic(received),
            "slow_consumers": 0,
        })
    };
    let (east, west) =
        (expected("east", [2, 2], [[1, 5], [2, 6]]), expected("west", [1, 0], [[0, 0], [1, 2]]));
    assert_eq!(json(http, "/accstatz").await["account_statz"], serde_json::json!([east, west]));
    // Of an account alone, and of none.
    let part = json(http, "/subsz?acc=east").await;
    assert_eq!((&part["num_subscriptions"], &part["num_removes"]), (&2.into(), &0.into()));
    assert_eq!(json(http, "/subsz?acc=west").await["num_subscriptions"], 0);
    assert_eq!(json(http, "/subsz?acc=nobody").await["num_inserts"], 0);
    // What those have done who are gone stays.
    drop((ann, amy, bob));
    let gone = serde_json::json!([
        expected("$G", [0, 0], [[0, 0], [0, 0]]),
        expected("east", [0, 0], [[1, 5], [2, 6]]),
        expected("west", [0, 0], [[0, 0], [1, 2]]),
    ]);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let all = json(http, "/accstatz?unused=1").await["account_statz"].clone();
        if all == gone {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{all} does not become {gone}");
    }
    assert_eq!(json(http, "/accstatz").await["account_statz"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn components_of_the_process_are_in_the_global_account() {
    let hub = Arc::new(Hub::default());
    let server =
        Server::start(options(hub.clone(), |options| options.auth = auth(USERS))).await.expect("valid");
    let bus = MemoryBackend::connect_to(&hub);
    let mut root = client(server.nats_addr(), "root", "r").await;
    let mut ann = client(server.nats_addr(), "ann", "a").await;
    for raw in [&mut root, &mut ann] {
        raw.send("SUB from.bus 1\r\n").await;
        assert_eq!(raw.flush().await, "");
    }
    let message = Message::new("from.bus".parse().expect("valid"), "!");
    bus.publish(message, PublishOptions::default()).outcome().await.expect("published");
    root.expect("MSG from.bus 1 1\r\n!\r\n").await;
    assert_eq!(ann.flush().await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_hold_for_what_components_of_the_process_publish() {
    let users = "{users: [{user: ann, password: a, permissions: {publish: [x], \
        subscribe: {allow: ['foo.>'], deny: [foo.no]}, allow_responses: true}}]}";
    let hub = Arc::new(Hub::default());
    let server =
        Server::start(options(hub.clone(), |options| options.auth = auth(users))).await.expect("valid");
    let bus = MemoryBackend::connect_to(&hub);
    let mut ann = client(server.nats_addr(), "ann", "a").await;
    ann.send("SUB foo.> 1\r\n").await;
    assert_eq!(ann.flush().await, "");
    for (subject, reply) in [("foo.no", None), ("foo.yes", Some("answer.here"))] {
        let reply = reply.map(|reply| reply.parse().expect("valid"));
        let message = Message { reply, ..Message::new(subject.parse().expect("valid"), "!") };
        bus.publish(message, PublishOptions::default()).outcome().await.expect("published");
    }
    ann.expect("MSG foo.yes 1 answer.here 1\r\n!\r\n").await;
    ann.send("PUB answer.here 0\r\n\r\nPUB answer.here 0\r\n\r\n").await;
    let refused = "-ERR 'Permissions Violation for Publish to \"answer.here\"'\r\n";
    assert_eq!(ann.flush().await, refused, "one answer is allowed, a second is not");
    // What was withheld was not sent.
    let varz = json(server.http_addr().expect("served"), "/varz").await;
    assert_eq!(varz["out_msgs"], 1, "{varz}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_moves_to_another_account_has_to_connect_again() {
    let server = server(USERS).await;
    let (mut ann, mut amy) =
        (client(server.nats_addr(), "ann", "a").await, client(server.nats_addr(), "amy", "a").await);
    let moved =
        USERS.replace("{user: root, password: r}", "{user: root, password: r}, {user: ann, password: a}");
    let moved = moved.replace("users: [{user: ann, password: a}, {user: amy", "users: [{user: amy");
    server.reload(&auth(&moved)).expect("valid");
    assert_eq!(ann.until_closed().await, VIOLATION);
    assert_eq!(amy.flush().await, "");
    assert_eq!(answer(server.nats_addr(), &user("ann", "a")).await, "PONG\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_has_one_account_and_says_so() {
    let hub = Arc::new(Hub::default());
    let mut options = options(hub.clone(), |options| options.auth = auth(USERS));
    options.front = Front::Bridge(Arc::new(MemoryBackend::connect_to(&hub)));
    let error = Server::start(options).await.expect_err("its backend is one space of subjects");
    assert!(matches!(error, StartError::Accounts { .. }), "{error:?}");
    assert!(error.to_string().starts_with("server.accounts is set"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_machines_are_served_with_authentication_and_a_trusted_network_only() {
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    for setting in ["server.listen", "server.http"] {
        for (users, plaintext) in [(false, false), (false, true), (true, false), (true, true)] {
            let options = options(Arc::new(Hub::default()), |options| {
                match setting {
                    "server.listen" => options.listen = everywhere,
                    _ => options.http = Some(everywhere),
                }
                options.plaintext = plaintext;
                if users {
                    options.auth = auth(USERS);
                }
            });
            let started = Server::start(options).await;
            let error = match (started, users && plaintext) {
                (Ok(server), true) => {
                    let error = server.reload(&auth("{}")).expect_err("anybody could come");
                    assert!(error.to_string().contains("0.0.0.0"), "{error}");
                    continue;
                }
                (started, _) => started.expect_err("anybody could come"),
            };
            assert!(
                error.to_string().contains(setting) && error.to_string().contains("0.0.0.0:0"),
                "{error}"
            );
            let missing = if users { "server.plaintext" } else { "server.users" };
            assert!(error.hint().contains(missing), "{}", error.hint());
        }
    }
}
