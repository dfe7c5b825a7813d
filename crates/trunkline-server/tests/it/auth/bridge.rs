//! Permissions on a bridge are those in front of memory.

use std::sync::Arc;

use trunkline::Front;
use trunkline::backend::memory::{Hub, MemoryBackend};
use trunkline_server::{ReloadError, Server, ServerOptions};

use super::super::client::Raw;
use super::super::fixture::options;
use super::reload::Source;
use super::{VIOLATION, answer, auth, client, user};

const USERS: &str = "{users: [{user: full, password: f}, \
    {user: ann, password: a, permissions: {publish: [x], subscribe: {allow: ['foo.>', end], deny: [foo.no]}}}, \
    {user: svc, password: s, permissions: {subscribe: [svc], allow_responses: true}}]}";

async fn bridge() -> Server {
    bridge_with(|_| {}).await
}

async fn bridge_with(change: impl FnOnce(&mut ServerOptions)) -> Server {
    let hub = Arc::new(Hub::default());
    let mut options = options(hub.clone(), |options| {
        options.auth = auth(USERS);
        change(options);
    });
    options.front = Front::Bridge(Arc::new(MemoryBackend::connect_to(&hub)));
    Server::start(options).await.expect("free ports")
}

/// Everything up to this line.
async fn until(raw: &mut Raw, last: &str) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let line = raw.line().await;
        if line == last {
            return lines;
        }
        lines.push(line);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_hold_on_a_bridge() {
    let server = bridge().await;
    let address = server.nats_addr();
    assert_eq!(answer(address, &user("ann", "wrong")).await, VIOLATION);
    let (mut full, mut ann, mut svc) = (
        client(address, "full", "f").await,
        client(address, "ann", "a").await,
        client(address, "svc", "s").await,
    );
    ann.send("PUB x 0\r\n\r\nPUB y 0\r\n\r\nSUB bar 1\r\nSUB foo.> 2\r\nSUB end 3\r\n").await;
    assert_eq!(
        ann.flush().await,
        "-ERR 'Permissions Violation for Publish to \"y\"'\r\n\
         -ERR 'Permissions Violation for Subscription to \"bar\"'\r\n"
    );
    full.send("PUB foo.no 1\r\n1\r\nPUB foo.yes 1\r\n2\r\n").await;
    assert_eq!(full.flush().await, "");
    assert_eq!(until(&mut ann, "2").await, ["MSG foo.yes 2 1"]);
    svc.send("SUB svc 1\r\nPUB _INBOX.f 0\r\n\r\n").await;
    let refused = "-ERR 'Permissions Violation for Publish to \"_INBOX.f\"'\r\n";
    assert_eq!(svc.flush().await, refused);
    full.send("SUB _INBOX.f 1\r\nPUB svc _INBOX.f 1\r\n?\r\n").await;
    assert_eq!(full.flush().await, "");
    svc.expect("MSG svc 1 _INBOX.f 1\r\n?\r\n").await;
    svc.send("PUB _INBOX.f 1\r\n!\r\nPUB _INBOX.f 1\r\n!\r\n").await;
    assert_eq!(svc.flush().await, refused, "one answer is allowed, a second is not");
    full.expect("MSG _INBOX.f 1 1\r\n!\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_ends_subscriptions_of_a_bridge() {
    let server = bridge().await;
    let (mut full, mut ann) =
        (client(server.nats_addr(), "full", "f").await, client(server.nats_addr(), "ann", "a").await);
    ann.send("SUB foo.> 1\r\nSUB end 2\r\n").await;
    assert_eq!(ann.flush().await, "");
    server.reload(&auth(&USERS.replace("'foo.>', end", "end"))).expect("valid");
    let told = "-ERR 'Permissions Violation for Subscription to \"foo.>\" (sid \"1\")'";
    assert_eq!(until(&mut ann, told).await, [""; 0]);
    full.send("PUB foo.a 1\r\n1\r\nPUB end 1\r\n2\r\n").await;
    assert_eq!(full.flush().await, "");
    assert_eq!(until(&mut ann, "2").await, ["MSG end 2 1"]);
    ann.send("SUB foo.> 3\r\n").await;
    assert_eq!(ann.flush().await, "-ERR 'Permissions Violation for Subscription to \"foo.>\"'\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_has_the_policy_of_a_bridge_read_again() {
    let source = Source::new(&USERS.replace("user: ann", "user: amy"));
    let server = bridge_with(|options| options.auth_source = Some(source.as_source())).await;
    let mut ann = client(server.nats_addr(), "ann", "a").await;
    let mut full = client(server.nats_addr(), "full", "f").await;
    // The server's own subscription on the backend stands some time after the start, so it is asked until it hears.
    let asking = async {
        loop {
            full.send("PUB nachos.system.policy.reload 0\r\n\r\n").await;
            assert_eq!(full.flush().await, "");
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = asking => unreachable!("it asks without end"),
        said = ann.until_closed() => assert_eq!(said, VIOLATION),
    }
    assert_eq!(answer(server.nats_addr(), &user("amy", "a")).await, "PONG\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_bus_publishes_dead_letters_on_a_bridge() {
    let server = bridge_with(|options| options.auth = auth("{users: [{user: bob, password: b}]}")).await;
    let mut bob = client(server.nats_addr(), "bob", "b").await;
    bob.send("SUB nachos.dead.> 1\r\n").await;
    assert_eq!(bob.flush().await, "");
    bob.send("PUB nachos.dead.a.b 1\r\nx\r\n").await;
    let refused = "-ERR 'Permissions Violation for Publish to \"nachos.dead.a.b\"'\r\n";
    assert_eq!(bob.flush().await, refused);
    assert_eq!(bob.flush().await, "", "nobody has got it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_makes_no_accounts_on_a_bridge() {
    let server = bridge().await;
    let accounts = auth("{accounts: {east: {users: [{user: eve, password: e}]}}}");
    let error = server.reload(&accounts).expect_err("its backend is one space of subjects");
    assert!(matches!(error, ReloadError::Accounts { .. }), "{error:?}");
    client(server.nats_addr(), "ann", "a").await;
}
