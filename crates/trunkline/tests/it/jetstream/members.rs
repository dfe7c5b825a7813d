//! Members that leave, drain or take over, and what consumers tell of themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::{
    Backend as _, ConsumerConfig, ConsumerInfo, Lease, Settle, Settled, Start, StreamConfig,
};
use trunkline::{Bus, BusOptions};
use trunkline_testkit::TcpProxy;

use super::{PATIENCE, connect, ensure, fetch_one, join, message, publish, server, soon, streams};

/// Longer than any test: nothing comes again by itself.
const LONG: Duration = Duration::from_secs(600);

async fn info(backend: &NatsBackend, consumer: &str) -> ConsumerInfo {
    soon(streams(backend).consumer_info("work", consumer)).await.unwrap().expect("the consumer is there")
}

async fn publish_many(backend: &NatsBackend, count: u64) {
    let publishing: Vec<_> =
        (1..=count).map(|n| backend.publish(message("work.x", n), Default::default())).collect();
    for publishing in publishing {
        soon(publishing.outcome()).await.unwrap();
    }
}

/// What the server had sent to a fetch that was given up goes to another member when the first one leaves, and not after
/// `ack_wait`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_hands_back_what_was_on_its_way() {
    let server = server();
    let address = server.url().trim_start_matches("nats://").parse().unwrap();
    let proxy = TcpProxy::start(address).await.unwrap();
    let far = NatsBackend::connect(NatsOptions::new([format!("nats://{}", proxy.address())])).await.unwrap();
    let near = connect(&server).await;
    ensure(&near, "work", "work.>").await;
    let leaving = join(&far, "work", LONG, false).await;
    publish_many(&near, 4).await;
    let kept = fetch_one(&*leaving).await;
    proxy.delay(Duration::from_millis(300));
    {
        let fetching = leaving.fetch(3, PATIENCE);
        let handed_out = async {
            while info(&near, "c").await.pending < 4 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            fetched = fetching => panic!("they are on their way: {fetched:?}"),
            () = soon(handed_out) => {}
        }
    }
    assert_eq!(soon(leaving.leave()).await, Ok(()));
    let staying = join(&near, "work", LONG, false).await;
    let mut numbers = Vec::new();
    while numbers.len() < 4 {
        let delivery = fetch_one(&*staying).await;
        assert_eq!(delivery.attempt, 2);
        numbers.push(delivery.offset.sequence().unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4]);
    assert_eq!(soon(leaving.settle(vec![(kept.token, Settle::Ack)])).await.ok(), None, "it has left");
}

/// A bus that drains lets its handlers finish, and another one gets the rest at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_runs_and_gives_back_the_rest() {
    let server = server();
    let (one, two) = (Arc::new(connect(&server).await), Arc::new(connect(&server).await));
    ensure(&one, "work", "work.>").await;
    let buses = [&one, &two].map(|backend| Bus::with_backend(backend.clone(), BusOptions::default()));
    publish_many(&one, 8).await;
    let (started, mut running) = tokio::sync::mpsc::unbounded_channel();
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = release.clone();
    let builder = buses[0].stream("work").unwrap().consumer("workers").unwrap();
    // One key for all: the first is at work, the others are parked behind it.
    let key = trunkline::bus::consume::Key::with(|_| Some("one".to_owned()));
    let consumer = builder.start(Start::Beginning).ack_wait(LONG).ordered_by(key.clone()).concurrency(4);
    let consumer = consumer
        .spawn(move |delivered| {
            let (started, gate) = (started.clone(), gate.clone());
            async move {
                started.send(delivered.offset()).expect("the test goes on");
                gate.acquire().await.expect("it stays open").forget();
                Ok(())
            }
        })
        .await
        .unwrap();
    let first = soon(running.recv()).await.flatten().unwrap();
    assert_eq!(first.sequence(), Some(1));
    let parked = async {
        while info(&two, "workers").await.pending < 8 {
            tokio::task::yield_now().await;
        }
    };
    soon(parked).await;
    let draining = tokio::spawn({
        let bus = buses[0].clone();
        async move { bus.drain(PATIENCE).await }
    });
    // It waits for the handler, which then succeeds.
    release.add_permits(1);
    assert_eq!(soon(draining).await.unwrap(), Ok(()));
    drop(consumer);
    assert_eq!(info(&two, "workers").await.ack_floor.and_then(|floor| floor.sequence()), Some(1));
    let (started, mut running) = tokio::sync::mpsc::unbounded_channel();
    let builder = buses[1].stream("work").unwrap().consumer("workers").unwrap();
    let other = builder
        .start(Start::Beginning)
        .ack_wait(LONG)
        .ordered_by(key)
        .spawn(move |delivered| {
            started.send(delivered.offset()).expect("the test goes on");
            async { Ok(()) }
        })
        .await
        .unwrap();
    for n in 2..=8 {
        let offset = soon(running.recv()).await.flatten().unwrap();
        assert_eq!(offset.sequence(), Some(n), "in their order");
    }
    soon(other.stop()).await.unwrap();
}

/// Whoever takes over a keyed consumer calls back a backlog for longer than a lease lasts, and stays the active one:
/// another member that stands by does not begin anew. Everything comes in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taking_over_a_long_backlog_keeps_the_lease_and_the_order() {
    const COUNT: u64 = 12_000;
    let server = server();
    let address = server.url().trim_start_matches("nats://").parse().unwrap();
    let proxy = TcpProxy::start(address).await.unwrap();
    let far = NatsBackend::connect(NatsOptions::new([format!("nats://{}", proxy.address())])).await.unwrap();
    let (near, standing_by) = (connect(&server).await, connect(&server).await);
    ensure(&near, "work", "work.>").await;
    publish_many(&near, COUNT).await;
    let dead = join(&near, "work", LONG, true).await;
    assert_eq!(soon(dead.lease(Duration::from_secs(2))).await, Ok(Lease::Held { new: true }));
    let mut handed_out = 0;
    while handed_out < COUNT {
        // Renewed, or a slow machine makes it run out.
        soon(dead.lease(Duration::from_secs(2))).await.unwrap();
        handed_out += soon(dead.fetch(1000, PATIENCE)).await.unwrap().deliveries.len() as u64;
    }
    drop(dead);
    let (next, other) = (join(&far, "work", LONG, true).await, join(&standing_by, "work", LONG, true).await);
    let ttl = Duration::from_secs(1);
    proxy.delay(Duration::from_millis(60));
    let began = Instant::now();
    let taken = AtomicBool::new(false);
    let taking_over = async {
        while soon(next.lease(ttl)).await == Ok(Lease::Standby) {}
        taken.store(true, Ordering::SeqCst);
    };
    // It looks only after the first one has written the lease: asking when it is free would take it.
    let looking = async {
        let revision = async || {
            let raw = async_nats::connect(server.url()).await.unwrap();
            let subject = "$JS.API.STREAM.MSG.GET.KV_atlas_bus_leases";
            let body = r#"{"last_by_subj":"$KV.atlas_bus_leases.lease.work.c"}"#;
            let answer = raw.request(subject, body.into()).await.unwrap();
            serde_json::from_slice::<serde_json::Value>(&answer.payload).unwrap()["message"]["seq"].as_u64()
        };
        let before = revision().await;
        while revision().await == before {
            tokio::task::yield_now().await;
        }
        while !taken.load(Ordering::SeqCst) {
            assert_eq!(soon(other.lease(ttl)).await, Ok(Lease::Standby), "after {:?}", began.elapsed());
        }
    };
    tokio::join!(soon(taking_over), soon(looking));
    assert!(began.elapsed() > ttl, "it was no long backlog: {:?}", began.elapsed());
    proxy.delay(Duration::ZERO);
    let mut expected = 1;
    while expected <= COUNT {
        soon(next.lease(PATIENCE)).await.unwrap();
        for delivery in soon(next.fetch(1000, PATIENCE)).await.unwrap().deliveries {
            assert_eq!((delivery.offset.sequence(), delivery.attempt), (Some(expected), 2));
            expected += 1;
        }
    }
}

/// What a consumer tells is exact where the server can tell, and what its documentation says elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_tell_how_they_stand() {
    let server = server();
    let backend = connect(&server).await;
    ensure(&backend, "work", "work.>").await;
    publish_many(&backend, 3).await;
    let member = join(&backend, "work", LONG, false).await;
    let filtered = ConsumerConfig {
        start: Start::Beginning,
        filter: Some("work.other".parse().unwrap()),
        ..ConsumerConfig::new("filtered")
    };
    let _filtered = soon(streams(&backend).join("work", filtered)).await.unwrap();
    let start = info(&backend, "c").await;
    assert_eq!((start.delivered, start.ack_floor, start.lag, start.pending), (None, None, 3, 0));
    assert_eq!((start.members, start.missed, start.oldest_pending), (1, 0, None));
    let first = fetch_one(&*member).await;
    let _second = fetch_one(&*member).await;
    let done = soon(member.settle(vec![(first.token, Settle::Nak(Duration::ZERO))])).await;
    assert_eq!(done, Ok(vec![Settled::Done]));
    let again = fetch_one(&*member).await;
    let busy = info(&backend, "c").await;
    assert_eq!((busy.pending, busy.redelivered, busy.lag), (2, 1, 1));
    assert!(busy.oldest_pending.is_some_and(|age| age < PATIENCE), "{busy:?}");
    soon(member.settle(vec![(again.token, Settle::Ack)])).await.unwrap();
    let settled = info(&backend, "c").await;
    assert_eq!((settled.pending, settled.redelivered), (1, 0), "of what is pending now");
    assert_eq!(settled.ack_floor.and_then(|floor| floor.sequence()), Some(1));

    // Limits remove messages that nobody has read: at once it is known, and counted once.
    let mut config = StreamConfig::new("work", vec!["work.>".parse().unwrap()]);
    config.max_messages = Some(2);
    soon(streams(&backend).ensure(config)).await.unwrap();
    publish_many(&backend, 4).await;
    assert_eq!(info(&backend, "c").await.missed, 3, "of seven messages 3, 4 and 5 were not handed out");
    let fetched = soon(member.fetch(10, PATIENCE)).await.unwrap();
    assert_eq!((fetched.missed, fetched.deliveries.len()), (3, 2));
    assert_eq!(info(&backend, "c").await.missed, 3);
    assert_eq!(info(&backend, "filtered").await.missed, 0, "it would not have been given them");
    publish(&backend, message("work.x", "last")).await.unwrap();
}

/// What a fetch had already taken in when it was given up goes to another member at once, and not after `ack_wait`, although
/// the first one stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_fetch_gives_back_what_it_had_taken() {
    let server = server();
    let address = server.url().trim_start_matches("nats://").parse().unwrap();
    let proxy = TcpProxy::start(address).await.unwrap();
    let far = NatsBackend::connect(NatsOptions::new([format!("nats://{}", proxy.address())])).await.unwrap();
    let near = connect(&server).await;
    ensure(&near, "work", "work.>").await;
    publish_many(&near, 1).await;
    let (giving_up, other) = (join(&far, "work", LONG, false).await, join(&near, "work", LONG, false).await);
    let kept = fetch_one(&*giving_up).await;
    // Limits remove what nobody has read: a fetch that has taken what is behind asks how much that was.
    let mut config = StreamConfig::new("work", vec!["work.>".parse().unwrap()]);
    config.max_messages = Some(3);
    soon(streams(&near).ensure(config)).await.unwrap();
    publish_many(&near, 5).await;
    let raw = async_nats::connect(server.url()).await.unwrap();
    let mut asked = raw.subscribe("$JS.API.STREAM.INFO.atlas_bus_work").await.unwrap();
    raw.flush().await.unwrap();
    proxy.delay(Duration::from_millis(300));
    tokio::select! {
        biased;
        asked = soon(asked.next()) => assert!(asked.is_some()),
        fetched = giving_up.fetch(10, PATIENCE) => panic!("it has no answer yet: {fetched:?}"),
    }
    let mut numbers = Vec::new();
    while numbers.len() < 3 {
        let delivery = fetch_one(&*other).await;
        numbers.push((delivery.offset.sequence().unwrap(), delivery.attempt));
    }
    assert_eq!(numbers, [(4, 2), (5, 2), (6, 2)]);
    let done = soon(giving_up.settle(vec![(kept.token, Settle::Ack)])).await;
    assert_eq!(done, Ok(vec![Settled::Done]), "what was returned before stays its own");
    assert_eq!(info(&near, "c").await.pending, 3);
}

/// A member that had lost track of its deliveries when another one took over calls everything back once when it is the
/// active one again, and not with the next renewal, too: by then handlers are at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_that_lost_track_before_it_takes_over_calls_back_once() {
    let server = server();
    let backend = connect(&server).await;
    ensure(&backend, "work", "work.>").await;
    publish_many(&backend, 1).await;
    let (one, other) = (join(&backend, "work", LONG, true).await, join(&backend, "work", LONG, true).await);
    let ttl = Duration::from_secs(2);
    assert_eq!(soon(one.lease(ttl)).await, Ok(Lease::Held { new: true }));
    let first = fetch_one(&*one).await;
    // A request that is given up may have had deliveries on their way: with the next fetch the member has lost track, and
    // may not settle any more.
    loop {
        assert_eq!(soon(one.lease(ttl)).await, Ok(Lease::Held { new: false }));
        let given_up = tokio::time::timeout(Duration::from_millis(50), one.fetch(1, PATIENCE)).await;
        assert!(given_up.is_err(), "there is nothing more: {given_up:?}");
        assert!(soon(one.fetch(1, Duration::ZERO)).await.unwrap().deliveries.is_empty());
        let progress = soon(one.settle(vec![(first.token.clone(), Settle::Progress)])).await;
        if progress == Ok(vec![Settled::LeaseLost]) {
            break;
        }
        assert_eq!(progress, Ok(vec![Settled::Done]));
    }
    let taking_over = async { while other.lease(ttl).await != Ok(Lease::Held { new: true }) {} };
    soon(taking_over).await;
    soon(other.leave()).await.unwrap();
    assert_eq!(soon(one.lease(PATIENCE)).await, Ok(Lease::Held { new: true }));
    let again = fetch_one(&*one).await;
    assert_eq!(soon(one.lease(PATIENCE)).await, Ok(Lease::Held { new: false }), "nothing was lost since");
    assert_eq!(soon(one.settle(vec![(again.token, Settle::Ack)])).await, Ok(vec![Settled::Done]));
}
