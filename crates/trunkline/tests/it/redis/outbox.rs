//! The outbox on a real server that goes away in the middle of everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use trunkline::backend::{PublishOptions, ReadRequest, Receipt, Start, StreamConfig, Streams};
use trunkline::bus::outbox::OutboxOptions;
use trunkline::{Bus, BusOptions, Message};
use trunkline_testkit::tcp_proxy::Lost;
use trunkline_testkit::{RedisServer, RedisVersion, redis_log};

use super::{
    connect, connect_through, ensure, on_oldest_and_newest, proxy, soon, streams, wait_for,
    wait_for_disconnected,
};
use trunkline::backend::redis::RedisBackend;
use trunkline::status::BackendState;

pub(super) fn bus(backend: RedisBackend) -> (Bus, Arc<RedisBackend>) {
    let backend = Arc::new(backend);
    let options = BusOptions {
        outbox: Some(OutboxOptions::default()),
        publish_timeout: Duration::from_secs(3),
        ..BusOptions::default()
    };
    (Bus::with_backend(backend.clone(), options), backend)
}

fn message(publisher: u32, n: u32) -> Message {
    Message::new(format!("work.p{publisher}").parse().unwrap(), n.to_string())
}

/// All that is stored, by subject and in order.
async fn stored(streams: &dyn Streams) -> BTreeMap<String, Vec<u32>> {
    let request = ReadRequest { from: Start::Beginning, filter: None, max: 1_000_000 };
    let page = soon(streams.read("work", request)).await.unwrap();
    let mut by_subject: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for stored in page.messages {
        let n = std::str::from_utf8(&stored.message.payload).unwrap().parse().unwrap();
        by_subject.entry(stored.message.subject.to_string()).or_default().push(n);
    }
    by_subject
}

/// Every message that was answered `Stored` or `Queued` is there once, and in the order of its publisher, whenever the
/// server was killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    const PUBLISHERS: u32 = 4;
    let mut server = RedisServer::start();
    let (bus, backend) = bus(connect(&server).await);
    ensure(&backend, StreamConfig::new("work", vec!["work.>".parse().unwrap()])).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let publishing: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let (bus, stop) = (bus.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut n, mut queued) = (0, 0);
                // Bounded by the outbox: while the server is away nothing slows a publisher down.
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    match soon(bus.publish_message(message(publisher, n))).await {
                        Ok(Receipt::Stored { .. }) => {}
                        Ok(Receipt::Queued) => queued += 1,
                        other => panic!("{n} of {publisher}: {other:?}"),
                    }
                    n += 1;
                    if queued % 100 == 99 {
                        // Enough for this outage: the rest is published when the server is back.
                        let _ = bus.flush().await;
                        queued += 1;
                    }
                }
                (n, queued)
            })
        })
        .collect();
    for _ in 0..4 {
        let before = bus.status().counters.published;
        let moved = async {
            while bus.status().counters.published < before + 500 {
                tokio::task::yield_now().await;
            }
        };
        soon(moved).await;
        server.kill();
        wait_for_disconnected(&backend).await;
        let queued = bus.status().counters.outbox_queued;
        let kept = async {
            while bus.status().counters.outbox_queued < queued + 20
                && bus.status().outbox.unwrap().messages < 100
            {
                tokio::task::yield_now().await;
            }
        };
        soon(kept).await;
        server.restart();
        wait_for(&backend, BackendState::is_ready).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut expected = BTreeMap::new();
    for (publisher, task) in publishing.into_iter().enumerate() {
        let (published, queued) = soon(task).await.unwrap();
        assert!(published > 0 && queued > 0, "{published} published, {queued} queued");
        expected.insert(format!("work.p{publisher}"), (0..published).collect::<Vec<_>>());
    }
    soon(bus.flush()).await.unwrap();
    assert_eq!(bus.status().outbox.unwrap().messages, 0);
    let stored = stored(streams(&backend)).await;
    for (publisher, expected) in &expected {
        let seen = stored.get(publisher).map_or(&[][..], Vec::as_slice);
        let at = seen.iter().zip(expected).take_while(|(seen, expected)| seen == expected).count();
        let around = &seen[at.saturating_sub(5)..seen.len().min(at + 20)];
        assert!(seen == expected, "{publisher}: lost, doubled or out of order at {at}: {around:?}");
    }
    soon(bus.drain(Duration::from_secs(10))).await.unwrap();
}

/// A server that is killed within a write of its log, and killed once more later. What was cut off is sent again. Where the
/// log is not mended before the next start, Redis keeps the beginning of what was cut and carries it out at the start
/// after that, too: that is what the operator's page warns of, and which servers do so.
async fn a_server_that_is_killed_within_a_write_doubles_nothing_once_its_log_is_mended(
    version: RedisVersion,
) {
    for mended in [true, false] {
        let mut server = RedisServer::start_durable(version);
        let proxy = proxy(&server).await;
        let (bus, backend) = bus(connect_through(&proxy).await);
        ensure(&backend, StreamConfig::new("work", vec!["work.>".parse().unwrap()])).await;
        soon(bus.publish_message(message(0, 0))).await.unwrap();
        proxy.lose_next("work.p0", Lost::Answer);
        let publishing = tokio::spawn({
            let bus = bus.clone();
            async move { bus.publish_message(message(0, 1)).await }
        });
        soon(proxy.wait_for_lost(1)).await;
        server.kill_within_write("work.p0");
        assert_eq!(
            soon(publishing).await.unwrap().unwrap(),
            Receipt::Queued,
            "nobody knows what became of it"
        );
        let restart = |server: &mut RedisServer| match mended {
            true => server.restart(),
            false => server.restart_unmended(),
        };
        restart(&mut server);
        soon(bus.flush()).await.unwrap();
        assert_eq!(stored(streams(&backend)).await["work.p0"], [0, 1], "it was sent again");
        server.kill();
        wait_for_disconnected(&backend).await;
        restart(&mut server);
        wait_for(&backend, BackendState::is_ready).await;
        soon(bus.publish_message(message(0, 2))).await.unwrap();
        soon(bus.flush()).await.unwrap();
        let doubled = !mended && redis_log::keeps_cut_transactions(version);
        let expected: &[u32] = if doubled { &[0, 1, 1, 2] } else { &[0, 1, 2] };
        assert_eq!(stored(streams(&backend)).await["work.p0"], expected, "{version:?}, mended: {mended}");
        soon(bus.drain(Duration::from_secs(10))).await.unwrap();
    }
}

on_oldest_and_newest! {
    a_server_that_is_killed_within_a_write_doubles_nothing_once_its_log_is_mended;
}

/// Connections that break under a pipeline of publishes: each message once, in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_over_connections_that_break_keeps_its_order() {
    const MESSAGES: u32 = 9000;
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (bus, backend) = bus(connect_through(&proxy).await);
    ensure(&backend, StreamConfig::new("work", vec!["work.>".parse().unwrap()])).await;
    let publisher = bus.clone();
    let publishing = tokio::spawn(async move {
        let mut outcomes = Vec::new();
        for page in 0..MESSAGES / 1000 {
            let messages = (page * 1000..(page + 1) * 1000).map(|n| message(0, n));
            outcomes.extend(publisher.publish_many(messages).await);
        }
        outcomes
    });
    for round in 1..=4 {
        let moved = async {
            while bus.status().counters.published < round * 1500 {
                tokio::task::yield_now().await;
            }
        };
        soon(moved).await;
        proxy.cut();
        wait_for_disconnected(&backend).await;
        proxy.heal();
        wait_for(&backend, BackendState::is_ready).await;
    }
    for outcome in soon(publishing).await.unwrap() {
        assert!(matches!(outcome, Ok(Receipt::Stored { .. } | Receipt::Queued)), "{outcome:?}");
    }
    soon(bus.flush()).await.unwrap();
    let expected = BTreeMap::from([("work.p0".to_owned(), (0..MESSAGES).collect::<Vec<_>>())]);
    assert!(stored(streams(&backend)).await == expected, "lost, doubled or out of order");
}

/// A message that was lost with its connection, whose publisher has not looked yet, is not overtaken by one that is
/// published on the next connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_on_the_next_connection_does_not_overtake_what_the_last_one_lost() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (bus, backend) = bus(connect_through(&proxy).await);
    ensure(&backend, StreamConfig::new("work", vec!["work.>".parse().unwrap()])).await;
    for round in 0..5 {
        proxy.lose_next("work.p0", Lost::Request);
        let mut first = Box::pin(bus.publish_message(message(0, 2 * round)));
        assert!((&mut first).now_or_never().is_none(), "it is under way");
        soon(proxy.wait_for_lost(usize::try_from(round).unwrap() + 1)).await;
        proxy.cut();
        wait_for_disconnected(&backend).await;
        proxy.heal();
        wait_for(&backend, BackendState::is_ready).await;
        let mut second = Box::pin(bus.publish_message(message(0, 2 * round + 1)));
        assert!((&mut second).now_or_never().is_none(), "it is not known yet what became of the first");
        // The connection works again, so both may learn that they are stored.
        let (second, first) = soon(async { tokio::join!(second, first) }).await;
        for outcome in [first, second] {
            assert!(matches!(outcome, Ok(Receipt::Stored { .. } | Receipt::Queued)), "{outcome:?}");
        }
        soon(bus.flush()).await.unwrap();
        let expected = (0..2 * round + 2).collect::<Vec<_>>();
        assert_eq!(stored(streams(&backend)).await["work.p0"], expected);
    }
}

/// A message whose time was over before it could be sent is not overtaken by one that waits behind it for longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_sent_in_time_is_not_overtaken() {
    let server = RedisServer::start();
    let (bus, backend) = bus(connect(&server).await);
    ensure(&backend, StreamConfig::new("work", vec!["work.>".parse().unwrap()])).await;
    soon(bus.publish_message(message(0, 0))).await.unwrap();
    server.pause();
    let publish = |n, ms| {
        let options =
            PublishOptions { timeout: Some(Duration::from_millis(ms)), ..PublishOptions::default() };
        let bus = bus.clone();
        let mut publishing = Box::pin(async move { bus.publish_with(message(0, n), options).await });
        assert!((&mut publishing).now_or_never().is_none(), "the server does not answer");
        publishing
    };
    // More than may be under way at once: what comes after them waits for an answer.
    const AWAY: u32 = 1100;
    let away: Vec<_> = (1..=AWAY).map(|n| publish(n, 20_000)).collect();
    let (late, patient) = (publish(AWAY + 1, 100), publish(AWAY + 2, 20_000));
    assert_eq!(soon(late).await.unwrap(), Receipt::Queued);
    server.resume();
    for outcome in soon(futures_util::future::join_all(away.into_iter().chain([patient]))).await {
        assert!(matches!(outcome, Ok(Receipt::Stored { .. } | Receipt::Queued)), "{outcome:?}");
    }
    soon(bus.flush()).await.unwrap();
    let there = stored(streams(&backend)).await;
    assert!(there["work.p0"].iter().copied().eq(0..=AWAY + 2), "{:?}", &there["work.p0"][1..]);
}

/// A server that does not answer: what may have arrived there is sent again and recognised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_gets_nothing_twice() {
    let server = RedisServer::start();
    let (bus, backend) = bus(connect(&server).await);
    ensure(&backend, StreamConfig::new("work", vec!["work.>".parse().unwrap()])).await;
    soon(bus.publish_message(message(0, 0))).await.unwrap();
    server.pause();
    // These lie in the socket of the server: it will carry them out when it goes on.
    let outcomes = soon(bus.publish_many((1..100).map(|n| message(0, n)))).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Receipt::Queued)), "{outcomes:?}");
    server.resume();
    soon(bus.flush()).await.unwrap();
    let expected = BTreeMap::from([("work.p0".to_owned(), (0..100).collect::<Vec<_>>())]);
    assert_eq!(stored(streams(&backend)).await, expected);
}

/// What too few replicas have is kept until enough have it, and stored once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_replicated_yet_stays_in_the_outbox() {
    let server = RedisServer::start();
    let mut options = super::options(server.url());
    options.wait_replicas = 1;
    options.publish_timeout = Duration::from_millis(400);
    let (bus, backend) = bus(RedisBackend::connect(options).await.expect("the server is up"));
    ensure(&backend, StreamConfig::new("work", vec!["work.>".parse().unwrap()])).await;
    for n in 0..3 {
        assert_eq!(soon(bus.publish_message(message(1, n))).await.unwrap(), Receipt::Queued);
    }
    let port = server.port().to_string();
    let _replica = RedisServer::start_with(["--appendonly", "no", "--replicaof", "127.0.0.1", &port]);
    // The replica may take longer than one flush waits.
    let flushed = async {
        while bus.flush().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon(flushed).await;
    let outbox = bus.status().outbox.expect("it is on");
    assert_eq!((outbox.messages, outbox.refused), (0, 0));
    assert_eq!(stored(streams(&backend)).await["work.p1"], [0, 1, 2]);
}
