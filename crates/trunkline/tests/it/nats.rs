//! The `nats` backend against a real nats-server.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use trunkline::backend::nats::{NatsAuth, NatsBackend, NatsConnectError, NatsOptions};
use trunkline::backend::{
    Backend, DrainError, Gap, LiveEvent, LiveSource, PublishError, PublishOptions, Publishing, Receipt,
    Start, SubscribeError, SubscribeOptions,
};
use trunkline::status::BackendState;
use trunkline::{Message, Subject};
use trunkline_testkit::{NatsServer, TcpProxy};

/// Longer than anything here may take; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(20);

fn server() -> NatsServer {
    NatsServer::start(Vec::<String>::new())
}

async fn connect(server: &NatsServer) -> NatsBackend {
    NatsBackend::connect(NatsOptions::new([server.url()])).await.expect("the server is up")
}

fn subject(text: &str) -> Subject {
    text.parse().expect("a subject")
}

fn message(text: &str, payload: impl Into<Vec<u8>>) -> Message {
    Message::new(subject(text), payload.into())
}

async fn publish(backend: &NatsBackend, message: Message) -> Result<Receipt, PublishError> {
    backend.publish(message, PublishOptions::default()).outcome().await
}

async fn subscribe(backend: &NatsBackend, pattern: &str, options: SubscribeOptions) -> Box<dyn LiveSource> {
    backend.subscribe(pattern.parse().expect("a pattern"), options).await.expect("a subscription")
}

fn queue(name: &str) -> SubscribeOptions {
    SubscribeOptions { queue: Some(name.parse().expect("a token")), ..SubscribeOptions::default() }
}

/// At most `max` events, or none at the end.
async fn batch(source: &mut dyn LiveSource, max: usize) -> Vec<LiveEvent> {
    let mut events = Vec::new();
    let taken = std::future::poll_fn(|cx| source.poll_batch(cx, max, &mut events));
    tokio::time::timeout(PATIENCE, taken).await.expect("an event in time");
    events
}

async fn next(source: &mut dyn LiveSource) -> Option<LiveEvent> {
    batch(source, 1).await.pop()
}

async fn next_message(source: &mut dyn LiveSource) -> Arc<Message> {
    match next(source).await {
        Some(LiveEvent::Message { message, offset: None }) => message,
        other => panic!("expected a message, got {other:?}"),
    }
}

/// What a source gives, as text: payloads, `gap N`, `gap ?`.
fn text(event: &LiveEvent) -> String {
    match event {
        LiveEvent::Message { message, .. } => String::from_utf8_lossy(&message.payload).into_owned(),
        LiveEvent::Gap(Gap { missed: Some(missed) }) => format!("gap {missed}"),
        LiveEvent::Gap(Gap { missed: None }) => "gap ?".to_owned(),
    }
}

async fn wait_for(backend: &NatsBackend, what: impl Fn(&BackendState) -> bool) {
    let mut status = backend.status();
    let reached = status.wait_for(|status| what(&status.state));
    tokio::time::timeout(PATIENCE, reached).await.expect("the state in time").expect("a backend");
}

async fn wait_for_ready(backend: &NatsBackend) {
    wait_for(backend, BackendState::is_ready).await;
}

async fn wait_for_disconnected(backend: &NatsBackend) {
    wait_for(backend, |state| matches!(state, BackendState::Disconnected { .. })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_and_reply_pass_to_and_from_other_clients() {
    let server = server();
    let (backend, other) = (connect(&server).await, async_nats::connect(server.url()).await.unwrap());

    let mut source = subscribe(&backend, "a.*", SubscribeOptions::default()).await;
    let mut headers = async_nats::HeaderMap::new();
    headers.append("X-Key", "1");
    headers.append("X-Key", "2");
    headers.append("lower", "3");
    other.publish_with_reply_and_headers("a.b", "re.ply", headers, "body".into()).await.unwrap();
    let got = next_message(&mut *source).await;
    assert_eq!((&*got.payload, got.subject.as_str()), (&b"body"[..], "a.b"));
    assert_eq!(got.reply, Some(subject("re.ply")));
    assert_eq!(got.headers.iter().collect::<Vec<_>>(), [("X-Key", "1"), ("X-Key", "2"), ("lower", "3")]);

    let mut theirs = other.subscribe("c").await.unwrap();
    other.publish("ready", "".into()).await.unwrap();
    let mut ready = subscribe(&backend, "ready.again", SubscribeOptions::default()).await;
    other.publish("ready.again", "".into()).await.unwrap();
    // Their SUB went ahead of this on the same connection.
    next_message(&mut *ready).await;
    let mut sent = (*got).clone();
    sent.subject = subject("c");
    assert_eq!(publish(&backend, sent).await, Ok(Receipt::Accepted));
    let got = tokio::time::timeout(PATIENCE, theirs.next()).await.unwrap().unwrap();
    assert_eq!(got.reply.unwrap().as_str(), "re.ply");
    let values: Vec<_> = got.headers.as_ref().unwrap().get_all("X-Key").map(|value| value.as_str()).collect();
    assert_eq!(values, ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_after_subscribe_returned_is_received() {
    let server = server();
    let (reader, writer) = (connect(&server).await, connect(&server).await);
    for n in 0..200 {
        let subject = format!("race.{n}");
        let mut source = subscribe(&reader, &subject, SubscribeOptions::default()).await;
        publish(&writer, message(&subject, "x")).await.unwrap();
        assert_eq!(next_message(&mut *source).await.subject, subject.as_str());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_of_a_queue_group_gets_each_message() {
    let server = server();
    let (first, second, writer) = (connect(&server).await, connect(&server).await, connect(&server).await);
    let mut members =
        [subscribe(&first, "work", queue("w")).await, subscribe(&second, "work", queue("w")).await];
    for n in 0..500_u32 {
        publish(&writer, message("work", n.to_string())).await.unwrap();
    }
    writer.flush().await.unwrap();
    // Everything is with the server; stopping brings in what was on its way to the members.
    let mut seen = BTreeSet::new();
    for member in &mut members {
        // An echo of the member's own connection comes behind its share.
        member.stop().await.unwrap();
        let (before, mut departed) = (seen.len(), false);
        loop {
            let events = batch(&mut **member, 64).await;
            if events.is_empty() {
                break;
            }
            for event in &events {
                assert!(!departed, "{event:?} comes behind the gap that ends a member");
                departed = matches!(event, LiveEvent::Gap(Gap { missed: None }));
                assert!(departed || seen.insert(text(event)), "{event:?} came twice");
            }
        }
        assert!(departed, "a member that leaves says that it may have missed messages");
        assert!(seen.len() > before, "a member got nothing");
    }
    assert_eq!(seen.len(), 500);
}

#[tokio::test]
async fn a_request_to_nobody_is_answered_at_once_with_status_503() {
    let server = server();
    let backend = connect(&server).await;
    let inbox = backend.new_inbox();
    assert_ne!(inbox, backend.new_inbox());
    let mut source = subscribe(&backend, inbox.as_str(), SubscribeOptions::default()).await;
    let mut request = message("nobody", "?");
    request.reply = Some(inbox.clone());
    publish(&backend, request).await.unwrap();
    let answer = next_message(&mut *source).await;
    assert_eq!((&answer.subject, answer.headers.get("Status")), (&inbox, Some("503")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_is_told_as_status_and_gap_and_all_works_again() {
    let mut server = server();
    let backend = connect(&server).await;
    let mut source = subscribe(&backend, "a", SubscribeOptions::default()).await;
    publish(&backend, message("a", "before")).await.unwrap();
    backend.flush().await.unwrap();

    server.kill();
    wait_for_disconnected(&backend).await;
    let shown = backend.status().borrow().server.clone();
    assert_eq!(shown, server.url());
    let refused = publish(&backend, message("a", "while down")).await;
    assert!(
        matches!(&refused, Err(PublishError::NotConnected { server, .. }) if *server == shown),
        "{refused:?}"
    );
    assert!(matches!(backend.flush().await, Err(PublishError::NotConnected { .. })));
    let refused = backend.subscribe("b".parse().unwrap(), SubscribeOptions::default()).await.err();
    assert!(matches!(refused, Some(SubscribeError::NotConnected { .. })), "{refused:?}");

    server.restart();
    wait_for_ready(&backend).await;
    publish(&backend, message("a", "after")).await.unwrap();
    backend.flush().await.unwrap();
    let mut events = Vec::new();
    while events.len() < 3 {
        events.extend(batch(&mut *source, 10).await.iter().map(text));
    }
    assert_eq!(events, ["before", "gap ?", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_is_noticed_and_what_was_under_way_is_unknown() {
    let server = server();
    let backend = connect(&server).await;
    publish(&backend, message("a", "1")).await.unwrap();
    backend.flush().await.unwrap();
    let paused = Instant::now();
    server.pause();
    // Into the connection that nobody reads any more.
    assert_eq!(publish(&backend, message("a", "2")).await, Ok(Receipt::Accepted));
    let flushed = backend.flush().await;
    assert!(matches!(flushed, Err(PublishError::OutcomeUnknown { .. })), "{flushed:?}");
    wait_for_disconnected(&backend).await;
    assert!(paused.elapsed() < Duration::from_millis(3000), "noticed after {:?}", paused.elapsed());
    server.resume();
    wait_for_ready(&backend).await;
    // The loss was told once.
    assert_eq!(backend.flush().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_after_a_reconnect_tells_of_messages_handed_to_the_old_connection() {
    let server = server();
    let target: SocketAddr = SocketAddr::from(([127, 0, 0, 1], server.port()));
    let proxy = TcpProxy::start(target).await.unwrap();
    let backend = NatsBackend::connect(NatsOptions::new([proxy.address().to_string()])).await.unwrap();
    let mut announced = backend.status();
    publish(&backend, message("a", "proven")).await.unwrap();
    backend.flush().await.unwrap();

    proxy.half_open();
    publish(&backend, message("a", "into the void")).await.unwrap();
    announced.mark_unchanged();
    proxy.cut_once();
    proxy.heal();
    wait_for_disconnected_then_ready(&mut announced).await;
    let flushed = backend.flush().await;
    assert!(matches!(flushed, Err(PublishError::OutcomeUnknown { .. })), "{flushed:?}");
    publish(&backend, message("a", "next")).await.unwrap();
    assert_eq!(backend.flush().await, Ok(()));

    announced.mark_unchanged();
    proxy.cut_once();
    wait_for_disconnected_then_ready(&mut announced).await;
    // Nothing was under way this time.
    assert_eq!(backend.flush().await, Ok(()));
}

async fn wait_for_disconnected_then_ready(
    status: &mut tokio::sync::watch::Receiver<trunkline::status::BackendStatus>,
) {
    let passed = async {
        status.changed().await.unwrap();
        status.wait_for(|status| status.state.is_ready()).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, passed).await.expect("a reconnect in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_is_told_exactly_how_many_it_missed() {
    let server = server();
    let (backend, writer) = (connect(&server).await, connect(&server).await);
    let options = SubscribeOptions { max_pending: Some(100), ..SubscribeOptions::default() };
    let mut slow = subscribe(&backend, "fast", options).await;
    let mut keeping_up = subscribe(&backend, "fast", SubscribeOptions::default()).await;
    for n in 0..30_000_u32 {
        publish(&writer, message("fast", n.to_string())).await.unwrap();
    }
    writer.flush().await.unwrap();
    let mut seen = 0;
    while seen < 30_000 {
        seen += batch(&mut *keeping_up, 1000).await.len();
    }
    // What the slow one has missed stands exactly where it is missing.
    let (mut expected, mut missed) = (0, 0);
    while expected < 30_000 {
        for event in batch(&mut *slow, 1000).await {
            match event {
                LiveEvent::Gap(Gap { missed: count }) => {
                    let count = count.expect("an exact number");
                    expected += count;
                    missed += count;
                }
                LiveEvent::Message { .. } => {
                    assert_eq!(text(&event), expected.to_string());
                    expected += 1;
                }
            }
        }
        assert!(expected >= 100, "the first hundred had room");
    }
    assert!(missed > 0, "it was slow");
    assert_eq!((expected, backend.dropped_messages()), (30_000, missed));
}

#[tokio::test]
async fn what_the_server_would_refuse_as_too_large_is_refused_before() {
    let server = NatsServer::start_with_config("max_payload: 1024");
    let backend = connect(&server).await;
    let mut large = message("a", vec![b'x'; 1024]);
    assert_eq!(publish(&backend, large.clone()).await, Ok(Receipt::Accepted));
    backend.flush().await.unwrap();
    // "NATS/1.0\r\nk: v\r\n\r\n" is 18 bytes.
    large.headers.append("k", "v").unwrap();
    assert_eq!(
        publish(&backend, large.clone()).await,
        Err(PublishError::TooLarge { size: 1042, limit: 1024 })
    );
    large.payload.truncate(1006);
    assert_eq!(publish(&backend, large).await, Ok(Receipt::Accepted));
    assert_eq!(backend.flush().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_connection_fails_the_message_that_found_no_room_and_never_sends_it() {
    let server = server();
    let mut options = NatsOptions::new([server.url()]);
    // Neither gives the server up while it stands still, however long it takes to fill the connection.
    options.ping_interval = Duration::from_secs(60);
    let backend = NatsBackend::connect(options.clone()).await.unwrap();
    let reader = NatsBackend::connect(options).await.unwrap();
    let mut source = subscribe(&reader, "big", SubscribeOptions::default()).await;
    server.pause();
    let short = PublishOptions { timeout: Some(Duration::from_millis(50)), ..PublishOptions::default() };
    let mut accepted: u32 = 0;
    let refused = loop {
        let mut payload = accepted.to_string().into_bytes();
        payload.resize(64 * 1024, b' ');
        match backend.publish(message("big", payload), short.clone()) {
            Publishing::Ready(result) => assert_eq!(result, Ok(Receipt::Accepted)),
            pending @ Publishing::Pending(_) => match pending.outcome().await {
                Ok(receipt) => assert_eq!(receipt, Receipt::Accepted),
                Err(error) => break error,
            },
        }
        accepted += 1;
    };
    assert!(matches!(refused, PublishError::NotConnected { .. }), "{refused:?}");
    server.resume();
    backend.flush().await.unwrap();
    publish(&backend, message("big", "end")).await.unwrap();
    let mut received = 0;
    while &*next_message(&mut *source).await.payload != b"end" {
        received += 1;
    }
    assert_eq!(received, accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_sends_what_was_accepted_gives_out_what_arrived_and_refuses_the_rest() {
    let server = server();
    let (backend, other) = (connect(&server).await, connect(&server).await);
    let mut mine = subscribe(&backend, "mine", SubscribeOptions::default()).await;
    let mut theirs = subscribe(&other, "theirs", SubscribeOptions::default()).await;
    publish(&backend, message("mine", "arrived")).await.unwrap();
    for n in 0..1000_u32 {
        publish(&backend, message("theirs", n.to_string())).await.unwrap();
    }
    assert_eq!(backend.drain(Instant::now() + PATIENCE).await, Ok(()));
    assert_eq!(backend.status().borrow().state, BackendState::Closed);
    assert_eq!(publish(&backend, message("a", "")).await, Err(PublishError::Closed));
    assert_eq!(backend.flush().await, Err(PublishError::Closed));
    let refused = backend.subscribe("a".parse().unwrap(), SubscribeOptions::default()).await.err();
    assert_eq!(refused, Some(SubscribeError::Closed));
    assert_eq!(backend.drain(Instant::now()).await, Ok(()));

    assert_eq!(&*next_message(&mut *mine).await.payload, b"arrived");
    assert!(next(&mut *mine).await.is_none(), "the subscription ends");
    for n in 0..1000_u32 {
        assert_eq!(*next_message(&mut *theirs).await.payload, *n.to_string().as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_tells_what_it_could_not_finish() {
    let server = server();
    let backend = connect(&server).await;
    server.pause();
    publish(&backend, message("a", "1")).await.unwrap();
    publish(&backend, message("a", "2")).await.unwrap();
    let drained = backend.drain(Instant::now() + Duration::from_millis(100)).await;
    assert_eq!(drained, Err(DrainError::Deadline { left: 2 }));
    server.resume();
}

#[tokio::test]
async fn what_core_nats_cannot_do_is_unsupported() {
    let server = server();
    let backend = connect(&server).await;
    assert!(backend.streams().is_err());
    let options = SubscribeOptions { start: Some(Start::Beginning), ..SubscribeOptions::default() };
    let refused = backend.subscribe("a".parse().unwrap(), options).await.err();
    assert!(matches!(refused, Some(SubscribeError::Unsupported(_))), "{refused:?}");
    let options = PublishOptions { dedupe_id: Some("1".to_owned()), ..PublishOptions::default() };
    let refused = backend.publish(message("a", ""), options).outcome().await;
    assert!(matches!(refused, Err(PublishError::Unsupported(_))), "{refused:?}");
}

const PERMISSIONS: &str = r#"
    authorization { users: [
        { user: "all", password: "p@ss" }
        { user: "some", password: "pw", permissions: {
            publish: { deny: ["secret.>"] }, subscribe: { deny: ["secret.>", "shared.> q"] } } }
        { user: "mute", password: "pw", permissions: { publish: ["only.this"], subscribe: ["_INBOX.>"] } }
        { user: "deaf", password: "pw", permissions: { subscribe: ["only.this"] } }
    ] }"#;

fn with_user(server: &NatsServer, user: &str) -> NatsOptions {
    NatsOptions::new([server.url().replace("nats://", &format!("nats://{user}@"))])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_the_server_reach_the_caller() {
    let server = NatsServer::start_with_config(PERMISSIONS);
    let some = NatsBackend::connect(with_user(&server, "some:pw")).await.unwrap();
    for _ in 0..50 {
        let refused = some.subscribe("secret.a".parse().unwrap(), SubscribeOptions::default()).await.err();
        assert!(matches!(&refused, Some(SubscribeError::Denied { .. })), "{refused:?}");
        publish(&some, message("secret.b", "")).await.unwrap();
        let flushed = some.flush().await;
        assert!(
            matches!(&flushed, Err(PublishError::Denied { subject, .. }) if *subject == "secret.b"),
            "{flushed:?}"
        );
        assert_eq!(some.flush().await, Ok(()));
    }
    let refused = some.subscribe("shared.a".parse().unwrap(), queue("q")).await.err();
    assert!(matches!(&refused, Some(SubscribeError::Denied { .. })), "{refused:?}");
    subscribe(&some, "shared.a", queue("other")).await;

    // A user that may not publish to its own inbox gets its proof from the refusal.
    let mute = NatsBackend::connect(with_user(&server, "mute:pw")).await.unwrap();
    publish(&mute, message("only.this", "")).await.unwrap();
    assert_eq!(mute.flush().await, Ok(()));

    let deaf = NatsBackend::connect(with_user(&server, "deaf:pw")).await.err();
    assert!(matches!(&deaf, Some(NatsConnectError::InboxDenied { .. })), "{deaf:?}");
}

#[tokio::test]
async fn credentials_come_from_the_address_or_the_options_and_never_show() {
    let server = NatsServer::start_with_config(PERMISSIONS);
    let backend = NatsBackend::connect(with_user(&server, "all:p%40ss")).await.unwrap();
    assert_eq!(backend.status().borrow().server, server.url());

    let mut options = NatsOptions::new([server.url()]);
    options.auth = NatsAuth::UserPassword { user: "all".to_owned(), password: "p@ss".to_owned() };
    NatsBackend::connect(options).await.unwrap();

    let refused = NatsBackend::connect(with_user(&server, "all:wrong")).await.unwrap_err();
    assert!(matches!(&refused, NatsConnectError::Unauthorized { .. }), "{refused:?}");
    assert!(!format!("{refused:?} {refused}").contains("wrong"));
}

#[tokio::test]
async fn a_server_that_is_not_there_fails_within_connect_timeout() {
    let mut server = server();
    server.kill();
    let mut options = NatsOptions::new([server.url()]);
    options.connect_timeout = Duration::from_millis(300);
    let started = Instant::now();
    let refused = NatsBackend::connect(options).await.unwrap_err();
    assert!(matches!(&refused, NatsConnectError::Unreachable { .. }), "{refused:?}");
    assert!(refused.is_retryable() && started.elapsed() < Duration::from_secs(2));
}

/// Waits until no task lives but this one: all that can end a task has happened before.
async fn wait_for_no_tasks(what: &str) {
    let metrics = tokio::runtime::Handle::current().metrics();
    let none_left = async {
        while metrics.num_alive_tasks() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, none_left).await.unwrap_or_else(|_| panic!("tasks outlive {what}"));
}

#[tokio::test]
async fn dropping_the_backend_ends_its_tasks_and_subscriptions() {
    let mut server = server();
    let backend = connect(&server).await;
    let mut source = subscribe(&backend, "a", SubscribeOptions::default()).await;
    drop(backend);
    assert!(next(&mut *source).await.is_none());
    wait_for_no_tasks("a backend").await;
    drop(source);

    let backend = connect(&server).await;
    let source = subscribe(&backend, "a", SubscribeOptions::default()).await;
    server.kill();
    wait_for_disconnected(&backend).await;
    drop((backend, source));
    wait_for_no_tasks("a backend whose server is away").await;
}

#[tokio::test]
async fn the_number_of_a_subscription_stands_in_its_debug_text() {
    let server = server();
    let client = async_nats::connect(server.url()).await.unwrap();
    for number in 1..3 {
        let subscriber = client.subscribe("a").await.unwrap();
        assert!(format!("{subscriber:?}").contains(&format!("sid: {number},")), "{subscriber:?}");
    }
}
