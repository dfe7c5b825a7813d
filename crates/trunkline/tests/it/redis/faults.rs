//! Servers, connections and data that go away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline::backend::{
    Backend, ConsumerConfig, LiveEvent, Member, PublishError, PublishOptions, Receipt, Settle, Settled,
    Start, StreamConfig, SubscribeOptions,
};
use trunkline::status::BackendState;
use trunkline::{Message, StreamOffset, Subject};
use trunkline_testkit::RedisServer;

use super::{
    PATIENCE, connect, connect_through, ensure, next, proxy, publish, publish_surely, raw, run, soon,
    streams, subject, subscribe, wait_for, wait_for_disconnected,
};

fn queue(name: &str) -> SubscribeOptions {
    SubscribeOptions { queue: Some(name.parse().expect("a token")), ..SubscribeOptions::default() }
}

async fn join(backend: &impl Backend, stream: &str, ack_wait: Duration) -> Arc<dyn Member> {
    let config = ConsumerConfig { start: Start::Beginning, ack_wait, ..ConsumerConfig::new("c") };
    soon(backend.streams().expect("streams").join(stream, config)).await.expect("a member")
}

/// Connections that the server closes, one after another: nothing that was stored is missed or comes twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_connections_cost_no_message() {
    let server = RedisServer::start();
    let (reader, writer) = (connect(&server).await, connect(&server).await);
    let mut source = subscribe(&reader, "nachos.tool.x", SubscribeOptions::default()).await;
    let mut killer = raw(&server).await;
    for n in 0..200 {
        if n % 20 == 0 {
            let _: i64 = run(&mut killer, "CLIENT KILL TYPE normal SKIPME yes").await;
        }
        publish_surely(&writer, "nachos.tool.x", n).await;
    }
    for n in 0..200 {
        assert_eq!(next(&mut *source).await, n.to_string());
    }
}

/// A reader that was cut off gets everything that was stored meanwhile, from where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscription_resumes_where_it_was_cut_off() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (reader, writer) = (connect_through(&proxy).await, connect(&server).await);
    let mut source = subscribe(&reader, "nachos.>", SubscribeOptions::default()).await;
    for (round, fault) in [(0, "cut"), (1, "half open")] {
        publish(&writer, "nachos.tool.x", format!("{round}-before")).await.unwrap();
        assert_eq!(next(&mut *source).await, format!("{round}-before"));
        if fault == "cut" {
            proxy.cut()
        } else {
            proxy.half_open()
        }
        wait_for_disconnected(&reader).await;
        for n in 0..300 {
            publish(&writer, "nachos.tool.x", format!("{round}-{n}")).await.unwrap();
        }
        proxy.heal();
        for n in 0..300 {
            assert_eq!(next(&mut *source).await, format!("{round}-{n}"), "{fault}");
        }
    }
}

/// What limits removed while the reader was away is a gap with its number, in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_before_it_was_read_is_a_counted_gap() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (reader, writer) = (connect_through(&proxy).await, connect(&server).await);
    let mut config = StreamConfig::new("short", vec!["short.*".parse().unwrap()]);
    config.max_messages = Some(10);
    ensure(&writer, config).await;
    let mut all = subscribe(&reader, "short.>", SubscribeOptions::default()).await;
    let mut some = subscribe(&reader, "short.x", SubscribeOptions::default()).await;
    publish(&writer, "short.x", "before").await.unwrap();
    assert_eq!((next(&mut *all).await, next(&mut *some).await), ("before".to_owned(), "before".to_owned()));
    proxy.cut();
    wait_for_disconnected(&reader).await;
    for n in 0..100 {
        publish(&writer, "short.x", n).await.unwrap();
    }
    proxy.heal();
    assert_eq!(next(&mut *all).await, "gap 90");
    // Of a part of the subjects nobody knows how many.
    assert_eq!(next(&mut *some).await, "gap ?");
    for n in 90..100 {
        assert_eq!((next(&mut *all).await, next(&mut *some).await), (n.to_string(), n.to_string()));
    }
}

/// A server that loses its data while everybody stays connected: streams, consumers and groups are made again, and all
/// goes on with what comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_server_is_furnished_again() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let member = join(&backend, "work", Duration::from_secs(600)).await;
    let mut plain = subscribe(&backend, "work.*", SubscribeOptions::default()).await;
    let mut group = subscribe(&backend, "work.*", queue("q")).await;
    publish(&backend, "work.x", "before").await.unwrap();
    assert_eq!(next(&mut *plain).await, "before");
    assert_eq!(next(&mut *group).await, "before");

    let _: () = run(&mut raw(&server).await, "FLUSHALL").await;
    let receipt = publish(&backend, "work.x", "after").await.unwrap();
    assert!(matches!(&receipt, Receipt::Stored { stream, .. } if stream == "work"), "{receipt:?}");
    assert_eq!(next(&mut *plain).await, "after");
    let fetched = soon(member.fetch(10, PATIENCE)).await.unwrap();
    assert_eq!(&*fetched.deliveries[0].message.payload, b"after");
    let token = fetched.deliveries[0].token.clone();
    soon(member.settle(vec![(token, Settle::Ack)])).await.unwrap();
    // The group says that something may be missing, and goes on.
    let mut seen = next(&mut *group).await;
    let mut n = 0;
    while !seen.starts_with("late") {
        assert!(matches!(seen.as_str(), "gap ?" | "after"), "{seen}");
        publish(&backend, "work.x", format!("late {n}")).await.unwrap();
        n += 1;
        seen = next(&mut *group).await;
    }
}

/// A server without a log comes back empty: the same, through a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_comes_back_empty_is_furnished_again() {
    let mut server = RedisServer::start_volatile();
    let backend = connect(&server).await;
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let member = join(&backend, "work", Duration::from_secs(600)).await;
    let mut plain = subscribe(&backend, "work.*", SubscribeOptions::default()).await;
    publish(&backend, "work.x", "before").await.unwrap();
    assert_eq!(next(&mut *plain).await, "before");
    server.kill();
    wait_for_disconnected(&backend).await;
    let error = publish(&backend, "work.x", "meanwhile").await.unwrap_err();
    assert!(matches!(error, PublishError::NotConnected { .. }), "{error:?}");
    assert!(soon(member.fetch(1, PATIENCE)).await.is_err_and(|error| error.is_retryable()));
    server.restart();
    wait_for(&backend, BackendState::is_ready).await;
    publish_surely(&backend, "work.x", 1).await;
    assert_eq!(next(&mut *plain).await, "1");
    let fetched = soon(member.fetch(10, PATIENCE)).await.unwrap();
    assert_eq!(&*fetched.deliveries[0].message.payload, b"1");
}

/// Messages trimmed while they were pending are counted, not delivered for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trimmed_pending_messages_are_counted_and_do_not_come_again() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    let mut config = StreamConfig::new("short", vec!["short".parse().unwrap()]);
    config.max_messages = Some(3);
    ensure(&backend, config).await;
    let member = join(&backend, "short", Duration::from_millis(100)).await;
    for n in 0..3 {
        publish(&backend, "short", n).await.unwrap();
    }
    assert_eq!(soon(member.fetch(3, PATIENCE)).await.unwrap().deliveries.len(), 3);
    for n in 3..6 {
        publish(&backend, "short", n).await.unwrap();
    }
    let (mut missed, mut seen) = (0, Vec::new());
    while missed < 3 || seen.len() < 3 {
        let fetched = soon(member.fetch(10, PATIENCE)).await.unwrap();
        missed += fetched.missed;
        for delivery in fetched.deliveries {
            soon(member.settle(vec![(delivery.token.clone(), Settle::Ack)])).await.unwrap();
            seen.push(String::from_utf8_lossy(&delivery.message.payload).into_owned());
        }
    }
    assert_eq!((missed, seen), (3, vec!["3".to_owned(), "4".to_owned(), "5".to_owned()]));
    let info = soon(streams(&backend).consumer_info("short", "c")).await.unwrap().unwrap();
    assert_eq!((info.missed, info.pending, info.lag), (3, 0, 0));
}

/// What no member can read ends, counted, and holds nothing up: at once what somebody else wrote, after some deliveries
/// what another version of the bus may have written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_cannot_be_read_are_given_up_and_counted() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    ensure(&backend, StreamConfig::new("work", vec!["work".parse().unwrap()])).await;
    let member = join(&backend, "work", Duration::from_millis(100)).await;
    let receipt = publish(&backend, "work", "before").await.unwrap();
    let Receipt::Stored { offset: StreamOffset::Entry(ms, 1), .. } = receipt else { panic!("{receipt:?}") };
    let mut raw = raw(&server).await;
    // With the number that it would have.
    let _: i64 = run(&mut raw, "INCRBY atlas_bus:{work}:added 1").await;
    let _: String = run(&mut raw, &format!("XADD atlas_bus:{{work}} {ms}-2 m nonsense")).await;
    let _: String = run(&mut raw, "XADD atlas_bus:{work} * foreign entry").await;
    let (mut missed, mut seen) = (0, Vec::new());
    publish(&backend, "work", "after").await.unwrap();
    while missed < 2 || seen.len() < 2 {
        let fetched = soon(member.fetch(10, PATIENCE)).await.unwrap();
        missed += fetched.missed;
        for delivery in fetched.deliveries {
            soon(member.settle(vec![(delivery.token.clone(), Settle::Ack)])).await.unwrap();
            seen.push(String::from_utf8_lossy(&delivery.message.payload).into_owned());
        }
    }
    assert_eq!((missed, seen), (2, vec!["before".to_owned(), "after".to_owned()]));
    // The acknowledgement goes with the next look.
    let nothing = soon(member.fetch(1, Duration::ZERO)).await.unwrap();
    assert!(nothing.deliveries.is_empty() && nothing.missed == 0, "{nothing:?}");
    let info = soon(streams(&backend).consumer_info("work", "c")).await.unwrap().unwrap();
    assert_eq!((info.missed, info.pending), (2, 0));
}

/// Something else in the place of a stream: the status says so, nobody asks for it in a hot loop, and all goes on when it
/// is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_stream_is_told_and_not_asked_for_again_and_again() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (reader, writer) = (connect_through(&proxy).await, connect(&server).await);
    let mut source = subscribe(&reader, "nachos.tool.x", SubscribeOptions::default()).await;
    publish(&writer, "nachos.tool.x", "before").await.unwrap();
    assert_eq!(next(&mut *source).await, "before");
    let mut raw = raw(&server).await;
    let _: String = run(&mut raw, "SET atlas_bus:{family.tool} nonsense").await;
    // A read that blocks may not see it.
    proxy.cut_once();
    wait_for(
        &reader,
        |state| matches!(state, BackendState::Degraded { reason } if reason.contains("WRONGTYPE")),
    )
    .await;
    // Each try is a connection. The other connections of the bus, which were cut, too, may be among those counted here:
    // five tries are left, between which the delay doubles from 50 ms on.
    let (before, since) = (proxy.connections_accepted(), Instant::now());
    soon(proxy.wait_for_accepted(before + 8)).await;
    let took = since.elapsed();
    assert!(took > Duration::from_millis(50 + 100 + 200 + 400), "eight tries in {took:?}");
    let _: i64 = run(&mut raw, "DEL atlas_bus:{family.tool}").await;
    wait_for(&reader, BackendState::is_ready).await;
    publish(&writer, "nachos.tool.x", "after").await.unwrap();
    assert_eq!(next(&mut *source).await, "after");
}

/// A replay that ends says nothing of the subscriptions that share a reader: as long as those are refused, the status
/// tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_that_ends_does_not_call_well_what_others_are_refused() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (reader, writer) = (connect_through(&proxy).await, connect(&server).await);
    let mut shared = subscribe(&reader, "nachos.tool.x", SubscribeOptions::default()).await;
    publish(&writer, "nachos.tool.x", "before").await.unwrap();
    assert_eq!(next(&mut *shared).await, "before");
    let mut replays = Vec::new();
    for _ in 0..2 {
        let past = SubscribeOptions { start: Some(Start::Beginning), ..SubscribeOptions::default() };
        let mut replay = subscribe(&reader, "nachos.tool.x", past).await;
        assert_eq!(next(&mut *replay).await, "before");
        replays.push(replay);
    }
    let _: String = run(&mut raw(&server).await, "SET atlas_bus:{family.tool} nonsense").await;
    proxy.cut_once();
    let refused = |state: &BackendState| matches!(state, BackendState::Degraded { .. });
    wait_for(&reader, refused).await;
    // All of them are refused, and try again at the same moments, with ever longer pauses: what one of them says wrongly
    // in a pause is not put right at once.
    let mut readers = replays.len() + 1;
    let mut seen = proxy.connections_accepted() + 5 * readers;
    soon(proxy.wait_for_accepted(seen)).await;
    let mut status = reader.status();
    let watching = tokio::spawn(async move {
        // What is refused is tried again: a wrong word would stand for a moment only.
        status.wait_for(|status| !matches!(status.state, BackendState::Degraded { .. })).await.map(|_| ())
    });
    for replay in replays {
        // In the pause after the next tries, when their answers have come.
        seen = proxy.connections_accepted() + readers;
        soon(proxy.wait_for_accepted(seen)).await;
        for _ in 0..50 {
            publish(&writer, "nachos.skill.x", "meanwhile").await.unwrap();
        }
        drop(replay);
        readers -= 1;
    }
    soon(proxy.wait_for_accepted(proxy.connections_accepted() + readers)).await;
    assert!(!watching.is_finished(), "it was called well, with the subscription still refused");
    let _: i64 = run(&mut raw(&server).await, "DEL atlas_bus:{family.tool}").await;
    soon(watching).await.unwrap().expect("it is well at last");
    publish(&writer, "nachos.tool.x", "after").await.unwrap();
    assert_eq!(next(&mut *shared).await, "after");
}

/// What was pending and delayed before a crash of the server is so after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumer_goes_on_after_a_crash_of_the_server() {
    let mut server = RedisServer::start();
    let backend = connect(&server).await;
    ensure(&backend, StreamConfig::new("work", vec!["work".parse().unwrap()])).await;
    let member = join(&backend, "work", Duration::from_secs(600)).await;
    for n in 0..3 {
        publish(&backend, "work", n).await.unwrap();
    }
    let got = soon(member.fetch(3, PATIENCE)).await.unwrap().deliveries;
    let settles = vec![
        (got[0].token.clone(), Settle::Ack),
        (got[1].token.clone(), Settle::Nak(Duration::from_millis(50))),
    ];
    soon(member.settle(settles)).await.unwrap();
    server.kill();
    wait_for_disconnected(&backend).await;
    server.restart();
    wait_for(&backend, BackendState::is_ready).await;
    let again = soon(member.fetch(3, PATIENCE)).await.unwrap().deliveries;
    assert_eq!((again.len(), &*again[0].message.payload, again[0].attempt), (1, &b"1"[..], 2));
    let late = vec![(got[2].token.clone(), Settle::Ack), (again[0].token.clone(), Settle::Ack)];
    soon(member.settle(late)).await.unwrap();
    let info = soon(streams(&backend).consumer_info("work", "c")).await.unwrap().unwrap();
    assert_eq!((info.pending, info.lag), (0, 0));
}

/// A responder that died counts for six seconds at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_responder_is_forgotten() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (answering, asking) = (connect_through(&proxy).await, connect(&server).await);
    let responder = SubscribeOptions { responder: true, ..SubscribeOptions::default() };
    let _calls = subscribe(&answering, "nachos.tool.*.call", responder).await;
    proxy.half_open();
    let died = Instant::now();
    let inbox: Subject = asking.new_inbox();
    let mut replies = subscribe(&asking, inbox.as_str(), SubscribeOptions::default()).await;
    loop {
        let call = Message { reply: Some(inbox.clone()), ..Message::new(subject("nachos.tool.x.call"), "") };
        soon(asking.publish(call, PublishOptions::default()).outcome()).await.unwrap();
        let answered = tokio::time::timeout(Duration::from_millis(100), next(&mut *replies)).await;
        if answered.is_ok() {
            break;
        }
        assert!(died.elapsed() < Duration::from_secs(9), "it still counts");
    }
    assert!(died.elapsed() > Duration::from_secs(3), "it was listed until its entry ended");
}

/// A subscription on which nothing happens outlives every timeout there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_subscription_stays() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    let mut plain = subscribe(&backend, "nachos.tool.x", SubscribeOptions::default()).await;
    let mut group = subscribe(&backend, "nachos.tool.x", queue("q")).await;
    // Longer than a read blocks and more.
    let quiet = tokio::time::timeout(Duration::from_secs(8), next(&mut *plain)).await;
    assert!(quiet.is_err(), "nothing was published, yet there is {quiet:?}");
    publish(&backend, "nachos.tool.x", 1).await.unwrap();
    assert_eq!((next(&mut *plain).await, next(&mut *group).await), ("1".to_owned(), "1".to_owned()));
    assert!(backend.status().borrow().state.is_ready());
}

/// A server that is made a replica answers and takes nothing: the status says so until it is a master again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_is_no_server_to_publish_to() {
    let server = RedisServer::start_volatile();
    let backend = connect(&server).await;
    publish(&backend, "a", 1).await.unwrap();
    server.ask("REPLICAOF 127.0.0.1 1");
    let error = publish(&backend, "a", 2).await.unwrap_err();
    assert!(matches!(error, PublishError::NotConnected { .. }), "{error:?}");
    wait_for(&backend, |state| state.reason().is_some_and(|reason| reason.contains("replica"))).await;
    server.ask("REPLICAOF NO ONE");
    wait_for(&backend, BackendState::is_ready).await;
    publish(&backend, "a", 3).await.unwrap();
}

/// Routes that the server has lost, while the streams still know them, are made anew and newer: by who made the streams,
/// and for who connects later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_routes_are_made_anew() {
    let server = RedisServer::start();
    let one = connect(&server).await;
    ensure(&one, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    for subject in ["work.x", "other"] {
        publish(&one, subject, 1).await.unwrap();
    }
    server.ask("DEL atlas_bus:{bus}:routes");
    // This one knows nothing of the stream, and still is not kept from publishing.
    let two = connect(&server).await;
    publish(&two, "other", 2).await.unwrap();
    // The first finds out by what the second left, and has its stream back before it publishes.
    publish(&one, "other", 3).await.unwrap();
    for backend in [&one, &two] {
        let receipt = publish(backend, "work.x", 4).await.unwrap();
        assert!(matches!(&receipt, Receipt::Stored { stream, .. } if stream == "work"), "{receipt:?}");
    }
}

/// A stream that knows newer routes than there are, because the last change was lost in a failover, does not refuse what
/// is published for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_from_the_future_is_overtaken() {
    let server = RedisServer::start();
    let (one, two) = (connect(&server).await, connect(&server).await);
    publish(&one, "nachos.tool.x", 1).await.unwrap();
    server.ask("SET atlas_bus:{family.tool}:version 4000000000000");
    for backend in [&one, &two, &one] {
        publish(backend, "nachos.tool.x", 2).await.unwrap();
    }
    ensure(&one, StreamConfig::new("work", vec!["nachos.tool.work.*".parse().unwrap()])).await;
    for backend in [&one, &two] {
        let receipt = publish(backend, "nachos.tool.work.x", 3).await.unwrap();
        assert!(matches!(&receipt, Receipt::Stored { stream, .. } if stream == "work"), "{receipt:?}");
    }
}

/// A change that was entered by somebody who died before telling the streams takes effect all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_of_somebody_who_died_half_way_takes_effect() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    publish(&backend, "nachos.tool.x", 1).await.unwrap();
    ensure(&backend, StreamConfig::new("seen", vec!["seen".parse().unwrap()])).await;
    // What the second step of a change does, and no more.
    server.ask("HSET atlas_bus:{bus}:routes s:late {\"subjects\":[\"nachos.tool.>\"]}");
    server.ask("HSET atlas_bus:{bus}:routes version 4000000000000");
    let later = connect(&server).await;
    let receipt = publish(&later, "nachos.tool.x", 2).await.unwrap();
    assert!(matches!(&receipt, Receipt::Stored { stream, .. } if stream == "late"), "{receipt:?}");
    // The same stream, wanted again, completes the change.
    ensure(
        &later,
        StreamConfig { replicas: 0, ..StreamConfig::new("late", vec!["nachos.tool.>".parse().unwrap()]) },
    )
    .await;
    let receipt = publish(&backend, "nachos.tool.x", 3).await.unwrap();
    assert!(matches!(&receipt, Receipt::Stored { stream, .. } if stream == "late"), "{receipt:?}");
}

/// A server that loses its data loses who answers, too: until they are listed again nobody is told that there is no one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responders_of_an_emptied_server_are_not_denied() {
    let server = RedisServer::start_volatile();
    let (answering, asking) = (connect(&server).await, connect(&server).await);
    let responder = SubscribeOptions { responder: true, ..SubscribeOptions::default() };
    let mut calls = subscribe(&answering, "nachos.tool.x.call", responder).await;
    let inbox = asking.new_inbox();
    let mut replies = subscribe(&asking, inbox.as_str(), SubscribeOptions::default()).await;
    let _: () = run(&mut raw(&server).await, "FLUSHALL").await;
    let request =
        Message { reply: Some(inbox.clone()), ..Message::new(subject("nachos.tool.x.call"), "ask") };
    asking.publish(request, PublishOptions::default()).outcome().await.unwrap();
    assert_eq!(next(&mut *calls).await, "ask");
    publish(&answering, inbox.as_str(), "answer").await.unwrap();
    assert_eq!(next(&mut *replies).await, "answer");
}

/// A process that connects right after the data was lost knows nothing of that, and denies nobody either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responders_of_an_emptied_server_are_not_denied_by_who_comes_then() {
    let server = RedisServer::start_volatile();
    let answering = connect(&server).await;
    let responder = SubscribeOptions { responder: true, ..SubscribeOptions::default() };
    let mut calls = subscribe(&answering, "nachos.tool.x.call", responder).await;
    for round in 0..5 {
        let _: () = run(&mut raw(&server).await, "FLUSHALL").await;
        let asking = connect(&server).await;
        let inbox = asking.new_inbox();
        let mut replies = subscribe(&asking, inbox.as_str(), SubscribeOptions::default()).await;
        let request = Message {
            reply: Some(inbox.clone()),
            ..Message::new(subject("nachos.tool.x.call"), round.to_string())
        };
        asking.publish(request, PublishOptions::default()).outcome().await.unwrap();
        assert_eq!(next(&mut *calls).await, round.to_string());
        publish(&answering, inbox.as_str(), "answer").await.unwrap();
        assert_eq!(next(&mut *replies).await, "answer", "and nothing that says that nobody does");
    }
}

/// Who asks after an outage, and nobody answers, is told so as soon as that is sure, and does not wait for its own time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_nobody_after_an_outage_is_told() {
    let mut server = RedisServer::start();
    let backend = connect(&server).await;
    let inbox = backend.new_inbox();
    let mut replies = subscribe(&backend, inbox.as_str(), SubscribeOptions::default()).await;
    server.kill();
    wait_for_disconnected(&backend).await;
    server.restart();
    wait_for(&backend, BackendState::is_ready).await;
    let request =
        Message { reply: Some(inbox.clone()), ..Message::new(subject("nachos.tool.x.call"), "ask") };
    let options = PublishOptions { timeout: Some(PATIENCE), ..PublishOptions::default() };
    let asked = Instant::now();
    soon(backend.publish(request, options).outcome()).await.unwrap();
    let mut events = Vec::new();
    soon(std::future::poll_fn(|cx| replies.poll_batch(cx, 1, &mut events))).await;
    let Some(LiveEvent::Message { message, .. }) = events.pop() else { panic!("no answer: {events:?}") };
    assert_eq!(message.headers.get("Status"), Some("503"));
    assert!(asked.elapsed() < Duration::from_secs(8), "after {:?}", asked.elapsed());
}

/// Whoever holds deliveries of a group that was lost has lost them, and cannot take them from who was given them since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_of_a_lost_group_are_settled_by_their_new_owner_alone() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let (old, new) = (
        join(&backend, "work", Duration::from_secs(600)).await,
        join(&backend, "work", Duration::from_secs(600)).await,
    );
    publish(&backend, "work.x", "job").await.unwrap();
    let token = async |member: &Arc<dyn Member>| {
        let fetched = soon(member.fetch(1, PATIENCE)).await.unwrap();
        fetched.deliveries[0].token.clone()
    };
    let before = token(&old).await;
    let identity: String = run(&mut raw(&server).await, "HGET atlas_bus:{work}:consumer:c identity").await;
    let _: i64 =
        run(&mut raw(&server).await, &format!("XGROUP DESTROY atlas_bus:{{work}} c:c:{identity}")).await;
    let after = token(&new).await;
    assert_eq!(before.offset, after.offset);
    assert_eq!(soon(old.settle(vec![(before, Settle::Ack)])).await.unwrap(), [Settled::LeaseLost]);
    assert_eq!(soon(new.settle(vec![(after, Settle::Ack)])).await.unwrap(), [Settled::Done]);
}

/// A message that was deleted while it was handled is lost to its member, and only that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_delivery_does_not_spoil_those_settled_with_it() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let member = join(&backend, "work", Duration::from_secs(600)).await;
    for n in 0..2 {
        publish(&backend, "work.x", n).await.unwrap();
    }
    let fetched = soon(member.fetch(2, PATIENCE)).await.unwrap();
    let tokens: Vec<_> = fetched.deliveries.iter().map(|delivery| delivery.token.clone()).collect();
    assert_eq!(soon(streams(&backend).delete("work", vec![tokens[0].offset])).await.unwrap(), 1);
    let settled = soon(member.settle(tokens.into_iter().map(|token| (token, Settle::Ack)).collect())).await;
    assert_eq!(settled.unwrap(), [Settled::LeaseLost, Settled::Done]);
}
