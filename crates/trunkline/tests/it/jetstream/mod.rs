//! The `nats` backend with JetStream against a real nats-server that stores on disk.

mod conflicts;
mod members;
mod outbox;
mod permissions;
mod starts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use trunkline::backend::nats::{NatsBackend, NatsConnectError, NatsOptions};
use trunkline::backend::{
    Backend, ConsumerConfig, Delivery, Lease, LiveEvent, LiveSource, Member, PublishError, PublishOptions,
    ReadRequest, Receipt, Settle, Settled, Start, StoredMessage, StreamConfig, StreamError, Streams,
    SubscribeOptions,
};
use trunkline::status::BackendState;
use trunkline::{Bus, BusOptions, Message, StreamOffset, Subject};
use trunkline_testkit::{NatsServer, TcpProxy};

/// Longer than anything here may take; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(30);

fn server() -> NatsServer {
    NatsServer::start(["-js"])
}

fn options(server: &NatsServer) -> NatsOptions {
    NatsOptions::new([server.url()])
}

async fn connect(server: &NatsServer) -> NatsBackend {
    NatsBackend::connect(options(server)).await.expect("the server is up")
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn streams(backend: &NatsBackend) -> &dyn Streams {
    backend.streams().expect("JetStream is on")
}

async fn ensure(backend: &NatsBackend, name: &str, pattern: &str) {
    let config = StreamConfig::new(name, vec![pattern.parse().expect("a pattern")]);
    soon(streams(backend).ensure(config)).await.expect("a stream");
}

fn message(subject: &str, payload: impl ToString) -> Message {
    Message::new(subject.parse::<Subject>().expect("a subject"), payload.to_string())
}

async fn publish(backend: &NatsBackend, message: Message) -> Result<Receipt, PublishError> {
    soon(backend.publish(message, PublishOptions::default()).outcome()).await
}

async fn read(backend: &NatsBackend, stream: &str, from: Start) -> Vec<StoredMessage> {
    let (mut from, mut all) = (from, Vec::new());
    loop {
        let request = ReadRequest { from, filter: None, max: 1000 };
        let page = soon(streams(backend).read(stream, request)).await.expect("a page");
        all.extend(page.messages);
        if page.end {
            return all;
        }
        from = page.next;
    }
}

fn payload(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).expect("text")
}

async fn next(source: &mut dyn LiveSource) -> LiveEvent {
    let mut events = Vec::new();
    soon(std::future::poll_fn(|cx| source.poll_batch(cx, 1, &mut events))).await;
    events.pop().expect("the subscription goes on")
}

async fn next_message(source: &mut dyn LiveSource) -> Arc<Message> {
    match next(source).await {
        LiveEvent::Message { message, .. } => message,
        LiveEvent::Gap(gap) => panic!("nothing is missing, yet there is {gap:?}"),
    }
}

async fn wait_for(backend: &NatsBackend, what: impl Fn(&BackendState) -> bool) {
    let mut status = backend.status();
    soon(status.wait_for(|status| what(&status.state))).await.expect("a backend");
}

async fn wait_for_disconnected(backend: &NatsBackend) {
    wait_for(backend, |state| matches!(state, BackendState::Disconnected { .. })).await;
}

async fn join(backend: &NatsBackend, stream: &str, ack_wait: Duration, keyed: bool) -> Arc<dyn Member> {
    let config = ConsumerConfig { start: Start::Beginning, ack_wait, keyed, ..ConsumerConfig::new("c") };
    soon(streams(backend).join(stream, config)).await.expect("a member")
}

async fn fetch_one(member: &dyn Member) -> Delivery {
    loop {
        let mut fetched = soon(member.fetch(1, PATIENCE)).await.expect("a fetch");
        if let Some(delivery) = fetched.deliveries.pop() {
            return delivery;
        }
    }
}

/// Messages are under way all the time while the server is killed again and again: what was reported as stored is there,
/// once, at the offset of its receipt, and nothing that was reported as not published is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_reported_as_stored_survives_killed_servers_once() {
    let mut server = server();
    let backend = connect(&server).await;
    ensure(&backend, "work", "work.>").await;
    let (mut stored, mut refused) = (BTreeMap::new(), BTreeSet::new());
    let mut under_way = FuturesUnordered::new();
    let mut n = 0_u32;
    for round in 0..3 {
        let until = stored.len() + 500;
        let mut killed = false;
        while stored.len() < until || !killed {
            while under_way.len() < 64 {
                let publishing = backend.publish(message("work.x", n), PublishOptions::default());
                let number = n;
                under_way.push(async move { (number, publishing.outcome().await) });
                n += 1;
            }
            if stored.len() >= until && !killed {
                server.kill();
                killed = true;
            }
            match soon(under_way.next()).await.expect("there are some") {
                (number, Ok(Receipt::Stored { stream, offset, duplicate: false })) => {
                    assert_eq!(stream, "work");
                    stored.insert(number, offset);
                }
                (number, Err(PublishError::NotConnected { .. })) => {
                    refused.insert(number);
                }
                (_, Err(PublishError::OutcomeUnknown { .. })) => {}
                (_, other) => panic!("round {round}: {other:?}"),
            }
        }
        wait_for_disconnected(&backend).await;
        server.restart();
        wait_for(&backend, BackendState::is_ready).await;
    }
    while let Some((number, outcome)) = soon(under_way.next()).await {
        if let Ok(Receipt::Stored { offset, .. }) = outcome {
            stored.insert(number, offset);
        }
    }
    let mut kept: BTreeMap<u32, Vec<StreamOffset>> = BTreeMap::new();
    for found in read(&backend, "work", Start::Beginning).await {
        kept.entry(payload(&found.message).parse().expect("a number")).or_default().push(found.offset);
    }
    for (number, offset) in &stored {
        assert_eq!(kept.get(number), Some(&vec![*offset]), "message {number} was stored");
    }
    for number in &refused {
        assert_eq!(kept.get(number), None, "message {number} was refused");
    }
}

/// A live subscription with a start goes on after the server was killed, without loss, repeat or gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscription_with_a_start_resumes_after_a_restart() {
    let mut server = server();
    let (reader, writer) = (connect(&server).await, connect(&server).await);
    ensure(&reader, "past", "past.>").await;
    let options = || SubscribeOptions { start: Some(Start::Beginning), ..SubscribeOptions::default() };
    let mut source = soon(reader.subscribe("past.>".parse().unwrap(), options())).await.unwrap();
    for round in 0..3 {
        for n in 0..10 {
            publish(&writer, message("past.x", format!("{round}-{n}"))).await.unwrap();
        }
        // Half of it is read before the server dies.
        for n in 0..5 {
            assert_eq!(payload(&*next_message(&mut *source).await), format!("{round}-{n}"));
        }
        server.kill();
        wait_for_disconnected(&reader).await;
        wait_for_disconnected(&writer).await;
        server.restart();
        wait_for(&writer, BackendState::is_ready).await;
        for n in 5..10 {
            assert_eq!(payload(&*next_message(&mut *source).await), format!("{round}-{n}"));
        }
    }
}

/// A slow reader of a stream loses only what limits remove, and is told how much that was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_limits_remove_before_a_slow_reader_is_a_counted_gap() {
    let server = server();
    let backend = connect(&server).await;
    let mut config = StreamConfig::new("short", vec!["short".parse().unwrap()]);
    config.max_messages = Some(100);
    soon(streams(&backend).ensure(config)).await.unwrap();
    let options = SubscribeOptions {
        start: Some(Start::Beginning),
        max_pending: Some(10),
        ..SubscribeOptions::default()
    };
    let mut source = soon(backend.subscribe("short".parse().unwrap(), options)).await.unwrap();
    for n in 0..1000 {
        publish(&backend, message("short", n)).await.unwrap();
    }
    let (mut seen, mut missed) = (0, 0);
    loop {
        match next(&mut *source).await {
            LiveEvent::Message { message, .. } => {
                assert_eq!(payload(&message), (seen + missed).to_string(), "{seen} seen, {missed} missed");
                seen += 1;
                if payload(&message) == "999" {
                    break;
                }
            }
            LiveEvent::Gap(gap) => missed += gap.missed.expect("the number is known"),
        }
    }
    assert!(seen + missed == 1000 && missed > 0, "{seen} seen, {missed} missed");
}

/// A member whose connection breaks with messages at work goes on; what it had not settled comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumer_goes_on_after_a_killed_server() {
    let mut server = server();
    let backend = connect(&server).await;
    ensure(&backend, "work", "work.>").await;
    for n in 0..20 {
        publish(&backend, message("work.x", n)).await.unwrap();
    }
    let member = join(&backend, "work", Duration::from_secs(1), false).await;
    let first = fetch_one(&*member).await;
    let done = soon(member.settle(vec![(first.token.clone(), Settle::Ack)])).await;
    assert_eq!(done, Ok(vec![Settled::Done]));
    let lost = fetch_one(&*member).await;
    server.kill();
    wait_for_disconnected(&backend).await;
    assert!(
        soon(member.settle(vec![(lost.token, Settle::Ack)])).await.is_err_and(|error| error.is_retryable())
    );
    server.restart();
    wait_for(&backend, BackendState::is_ready).await;
    let mut left: BTreeSet<u64> = (2..=20).collect();
    let give_up = Instant::now() + PATIENCE;
    while !left.is_empty() {
        assert!(Instant::now() < give_up, "{left:?} did not come");
        let Ok(fetched) = soon(member.fetch(5, Duration::from_secs(2))).await else { continue };
        for delivery in fetched.deliveries {
            let number = delivery.offset.sequence().unwrap();
            // The server writes down what was settled a moment later: what it confirmed right before it was killed may
            // come again.
            assert!(left.contains(&number) || number == 1, "{number} was settled");
            if soon(member.settle(vec![(delivery.token, Settle::Ack)])).await == Ok(vec![Settled::Done]) {
                left.remove(&number);
            }
        }
    }
}

/// What a member was given and another one has taken over since is not handed back when the first one leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_member_leaves_alone_what_others_have() {
    let server = server();
    let (one, two) = (connect(&server).await, connect(&server).await);
    ensure(&one, "work", "work.>").await;
    publish(&one, message("work.x", 1)).await.unwrap();
    let ack_wait = Duration::from_secs(2);
    let (early, late) =
        (join(&one, "work", ack_wait, false).await, join(&two, "work", ack_wait, false).await);
    assert_eq!(fetch_one(&*early).await.attempt, 1);
    let second = fetch_one(&*late).await;
    assert_eq!(second.attempt, 2);
    assert_eq!(soon(early.leave()).await, Ok(()));
    let third = soon(late.fetch(1, ack_wait / 4)).await.unwrap();
    assert!(third.deliveries.is_empty(), "{third:?}");
    assert_eq!(soon(late.settle(vec![(second.token, Settle::Ack)])).await, Ok(vec![Settled::Done]));
}

/// A keyed consumer hands out nothing past a delivery that a broken connection has swallowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyed_order_holds_through_broken_connections() {
    let server = server();
    let address = server.url().trim_start_matches("nats://").parse().unwrap();
    let proxy = TcpProxy::start(address).await.unwrap();
    let url = format!("nats://{}", proxy.address());
    let (writer, worker) =
        (connect(&server).await, NatsBackend::connect(NatsOptions::new([url])).await.unwrap());
    ensure(&writer, "work", "work.>").await;
    const ROUNDS: u64 = 4;
    for n in 1..=6 * ROUNDS {
        publish(&writer, message("work.x", n)).await.unwrap();
    }
    let ack_wait = Duration::from_secs(20);
    let member = join(&worker, "work", ack_wait, true).await;
    let lease = async || {
        let give_up = Instant::now() + PATIENCE;
        while !matches!(soon(member.lease(ack_wait)).await, Ok(Lease::Held { .. })) {
            assert!(Instant::now() < give_up, "the lease does not come back");
            wait_for(&worker, BackendState::is_ready).await;
        }
    };
    let pending = async || {
        let info = soon(streams(&writer).consumer_info("work", "c")).await.unwrap().unwrap();
        info.pending
    };
    for round in 0..ROUNDS {
        lease().await;
        // The server hands out three messages, and the connection breaks with them on their way.
        proxy.delay(Duration::from_millis(500));
        let breaking = async {
            while pending().await < 3 {
                tokio::task::yield_now().await;
            }
            proxy.cut_once();
        };
        let (fetched, ()) = tokio::join!(soon(member.fetch(3, PATIENCE)), soon(breaking));
        assert!(!fetched.is_ok_and(|fetched| !fetched.deliveries.is_empty()), "they were lost");
        proxy.heal();
        wait_for(&worker, BackendState::is_ready).await;
        for half in 0..2 {
            lease().await;
            let fetched = soon(member.fetch(3, PATIENCE)).await.unwrap();
            let numbers: Vec<_> = fetched.deliveries.iter().map(|d| d.offset.sequence().unwrap()).collect();
            let first = 6 * round + 3 * half + 1;
            assert_eq!(numbers, [first, first + 1, first + 2], "in order, the lost ones first");
            let batch =
                fetched.deliveries.into_iter().map(|delivery| (delivery.token, Settle::Ack)).collect();
            assert_eq!(soon(member.settle(batch)).await, Ok(vec![Settled::Done; 3]));
        }
    }
}

/// A publish of this process that comes after a stream was made elsewhere is stored: at once for a new subject, within a
/// second for one that it has used before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_other_processes_are_noticed() {
    let server = server();
    let (one, two) = (connect(&server).await, connect(&server).await);
    assert_eq!(publish(&two, message("known", 0)).await, Ok(Receipt::Accepted));
    ensure(&one, "known", "known").await;
    ensure(&one, "fresh", "fresh").await;
    let made = Instant::now();
    assert!(matches!(publish(&two, message("fresh", 0)).await, Ok(Receipt::Stored { .. })));
    while publish(&two, message("known", 1)).await == Ok(Receipt::Accepted) {
        assert!(made.elapsed() < Duration::from_secs(3), "the stream is not noticed");
    }
    // And that it is gone: also where somebody listens, so that no 503 says so.
    let mut listener =
        soon(one.subscribe("known".parse().unwrap(), SubscribeOptions::default())).await.unwrap();
    assert_eq!(soon(streams(&one).remove("known")).await, Ok(true));
    let removed = Instant::now();
    let quick = || PublishOptions { timeout: Some(Duration::from_millis(300)), ..PublishOptions::default() };
    loop {
        match soon(two.publish(message("known", 2), quick()).outcome()).await {
            Ok(Receipt::Accepted) => break,
            Err(PublishError::OutcomeUnknown { .. }) => {
                assert!(
                    removed.elapsed() < Duration::from_secs(3),
                    "it is not noticed that the stream is gone"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(payload(&*next_message(&mut *listener).await), "2");
}

/// Far more messages than confirmations may be outstanding, in one go: all are stored, in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_publishes_pipeline_in_order() {
    const COUNT: usize = 10_000;
    let server = server();
    let backend = connect(&server).await;
    ensure(&backend, "work", "work").await;
    // None of the futures is polled before all are there.
    let publishing: Vec<_> =
        (0..COUNT).map(|n| backend.publish(message("work", n), PublishOptions::default())).collect();
    for (n, publishing) in publishing.into_iter().enumerate() {
        match soon(publishing.outcome()).await {
            Ok(Receipt::Stored { offset, .. }) => assert_eq!(offset, StreamOffset::Sequence(n as u64 + 1)),
            other => panic!("message {n}: {other:?}"),
        }
    }
    let numbers = read(&backend, "work", Start::Beginning).await;
    assert!(numbers.iter().enumerate().all(|(n, found)| payload(&found.message) == n.to_string()));
}

/// The confirmation comes although the only thread of the caller's runtime waits for it.
#[tokio::test]
async fn publish_blocking_is_confirmed_on_a_single_threaded_runtime() {
    let server = server();
    let backend = connect(&server).await;
    ensure(&backend, "work", "work").await;
    let options = BusOptions { publish_timeout: PATIENCE, ..BusOptions::default() };
    let bus = Bus::with_backend(Arc::new(backend), options);
    let started = Instant::now();
    for n in 1..=2 {
        let receipt = bus.publish_blocking(message("work", n));
        assert!(
            matches!(receipt, Ok(Receipt::Stored { offset: StreamOffset::Sequence(at), .. }) if at == n),
            "{receipt:?}"
        );
    }
    assert!(started.elapsed() < PATIENCE / 2, "it took {:?}", started.elapsed());
}

/// A request to a subject that is stored keeps its reply subject, live and stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_messages_keep_their_reply_subject() {
    let server = server();
    let (one, two) = (connect(&server).await, connect(&server).await);
    ensure(&one, "asked", "asked").await;
    let inbox = one.new_inbox();
    let mut replies = soon(one.subscribe((&inbox).into(), SubscribeOptions::default())).await.unwrap();
    let mut live = soon(two.subscribe("asked".parse().unwrap(), SubscribeOptions::default())).await.unwrap();
    let mut request = message("asked", "?");
    request.reply = Some(inbox.clone());
    assert!(matches!(publish(&one, request).await, Ok(Receipt::Stored { .. })));
    let heard = next_message(&mut *live).await;
    assert_eq!(heard.reply, Some(inbox.clone()), "not that of the confirmation");
    let mut answer = message("x", "!");
    answer.subject = heard.reply.clone().unwrap();
    assert_eq!(publish(&two, answer).await, Ok(Receipt::Accepted));
    assert_eq!(payload(&*next_message(&mut *replies).await), "!");
    assert_eq!(read(&one, "asked", Start::Beginning).await[0].message.reply, Some(inbox.clone()));
    let member = join(&two, "asked", PATIENCE, false).await;
    assert_eq!(fetch_one(&*member).await.message.reply, Some(inbox), "not that of the acknowledgement");
    // A message without one has none.
    publish(&one, message("asked", "plain")).await.unwrap();
    assert_eq!(next_message(&mut *live).await.reply, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_would_do_harm_are_refused_with_the_reason() {
    let server = server();
    let backend = connect(&server).await;
    for (pattern, why) in
        [("nachos.tool.*.call", "requests"), (">", "requests"), ("_INBOX.>", "replies"), ("$JS.a", "NATS")]
    {
        let config = StreamConfig::new("bad", vec![pattern.parse().unwrap()]);
        match soon(streams(&backend).ensure(config)).await {
            Err(StreamError::Refused { stream, reason }) => {
                assert!(stream == "bad" && reason.contains(why), "{pattern}: {reason}");
            }
            other => panic!("{pattern}: {other:?}"),
        }
    }
    assert!(soon(streams(&backend).list()).await.unwrap().is_empty());
    // What the server itself refuses is told in its words.
    let mut copies = StreamConfig::new("copies", vec!["copies".parse().unwrap()]);
    copies.replicas = 3;
    match soon(streams(&backend).ensure(copies)).await {
        Err(StreamError::Refused { reason, .. }) => assert!(reason.contains("replicas"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let prefix = NatsOptions { stream_prefix: "a.b".to_owned(), ..options(&server) };
    let refused = NatsBackend::connect(prefix).await.err();
    assert!(matches!(refused, Some(NatsConnectError::BadStreamPrefix { .. })), "{refused:?}");
}

/// Streams of other prefixes and other users of the account stay what they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_streams_are_neither_listed_nor_taken_over() {
    let server = server();
    let (mine, raw) = (connect(&server).await, async_nats::connect(server.url()).await.unwrap());
    let other =
        NatsBackend::connect(NatsOptions { stream_prefix: "atlas_bus_two".to_owned(), ..options(&server) });
    let other = other.await.unwrap();
    ensure(&mine, "work", "work.>").await;
    ensure(&other, "work", "two.>").await;
    let create = |name: &str, body: &str| {
        let subject = format!("$JS.API.STREAM.CREATE.{name}");
        let (raw, body) = (raw.clone(), body.to_owned());
        async move { raw.request(subject, body.into()).await.unwrap() }
    };
    create("ORDERS", r#"{"name":"ORDERS","subjects":["orders.>"]}"#).await;
    let memory = r#"{"name":"atlas_bus_fast","subjects":["fast"],"storage":"memory"}"#;
    create("atlas_bus_fast", memory).await;
    let names = async |backend: &NatsBackend| -> Vec<String> {
        let all = soon(streams(backend).list()).await.unwrap();
        all.into_iter().map(|info| info.config.name).collect()
    };
    assert_eq!(names(&mine).await, ["fast", "work"], "two_work is the other prefix's");
    assert_eq!(names(&other).await, ["work"]);
    // A publish to a stream of somebody else is stored all the same, and says where.
    match publish(&mine, message("orders.eu", 1)).await {
        Ok(Receipt::Stored { stream, .. }) => assert_eq!(stream, "ORDERS"),
        other => panic!("{other:?}"),
    }
    let overlap = StreamConfig::new("mine", vec!["orders.eu".parse().unwrap()]);
    match soon(streams(&mine).ensure(overlap)).await {
        Err(StreamError::Overlap { other, .. }) => assert_eq!(other, "ORDERS"),
        other => panic!("{other:?}"),
    }
    let taken = StreamConfig::new("fast", vec!["fast".parse().unwrap()]);
    match soon(streams(&mine).ensure(taken)).await {
        Err(StreamError::Conflict { found, wanted, .. }) => {
            assert!(found.contains("memory storage") && wanted.contains("file storage"), "{found}: {wanted}");
        }
        other => panic!("{other:?}"),
    }
}

/// A server has JetStream, and the user's account has not: core works, streams are a typed refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn account_without_jetstream_is_core_nats() {
    let server = NatsServer::start_with_config(
        "jetstream: enabled\n\
         accounts { JS { jetstream: enabled, users: [{user: js, password: pw}] }\n\
         CORE { users: [{user: core, password: pw}] }\n\
         FEW { jetstream: enabled, users: [{user: few, password: pw, permissions: {publish: [\"a\", \"_INBOX.>\"]}}] } }\n",
    );
    let url = |user: &str| server.url().replace("nats://", &format!("nats://{user}:pw@"));
    for (user, has_streams) in [("js", true), ("core", false), ("few", false)] {
        let backend = soon(NatsBackend::connect(NatsOptions::new([url(user)]))).await.unwrap();
        let capabilities = backend.capabilities();
        assert_eq!((capabilities.streams, capabilities.dedupe), (has_streams, has_streams), "{user}");
        assert_eq!(backend.streams().is_ok(), has_streams, "{user}");
        assert_eq!(publish(&backend, message("a", 1)).await, Ok(Receipt::Accepted), "{user}");
        assert_eq!(soon(backend.flush()).await, Ok(()), "{user}");
    }
}
