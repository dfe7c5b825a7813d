//! Limits that remove messages before they were read, or while they are handled: counted, and never delivered for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use trunkline::backend::{Settle, Start};
use trunkline::{Bus, BusOptions, Delivered};
use trunkline_testkit::{RedisServer, RedisVersion};

use super::{
    STREAM, commands_per_second, connect, ensure, fetch, join, next, on_every_version, payloads, publish,
    raw, soon, streams, subscribe,
};

on_every_version! {
    trimmed_while_pending_and_unread_is_counted_once;
}

/// Three are kept of what one member holds and has not read: the rest is counted, the held ones do not come again.
async fn trimmed_while_pending_and_unread_is_counted_once(version: RedisVersion) {
    let server = RedisServer::start_durable(version);
    let backend = connect(&server).await;
    ensure(&backend, Some(3)).await;
    let member = join(&backend, Duration::from_millis(200)).await;
    let mut source = subscribe(&backend, None).await;
    for n in 0..3 {
        publish(&backend, n).await.expect("stored");
        assert_eq!(next(&mut *source).await, n.to_string());
    }
    let held = fetch(&*member, 3).await;
    assert_eq!(payloads(&held), ["0", "1", "2"]);
    for n in 3..10 {
        publish(&backend, n).await.expect("stored");
    }
    // 0 to 2 are held and removed, 3 to 6 were removed unread, 7 to 9 are there.
    let late = held.iter().map(|delivery| (delivery.token.clone(), Settle::Ack)).take(1).collect();
    soon(member.settle(late)).await.expect("settling on a live connection");
    let mut seen = Vec::new();
    let mut missed = 0;
    let give_up = std::time::Instant::now() + super::PATIENCE;
    loop {
        let fetched = soon(member.fetch(10, Duration::from_millis(50))).await.expect("a fetch");
        missed += fetched.missed;
        seen.extend(payloads(&fetched.deliveries));
        let batch = fetched.deliveries.iter().map(|d| (d.token.clone(), Settle::Ack)).collect();
        soon(member.settle(batch)).await.expect("settling on a live connection");
        let info = soon(streams(&backend).consumer_info(STREAM, "c")).await.expect("a stream").expect("one");
        if info.pending == 0 && info.lag == 0 {
            assert_eq!(info.missed, 6, "two that were held and four unread: {info:?}");
            break;
        }
        assert!(std::time::Instant::now() < give_up, "{info:?}");
    }
    assert_eq!((seen, missed), (vec!["7".to_owned(), "8".to_owned(), "9".to_owned()], 6));
}

/// A handler that always fails on messages that are trimmed under it: the engine does not spin, and ends quiet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_handler_of_trimmed_messages_does_not_spin() {
    let server = RedisServer::start();
    let backend = Arc::new(connect(&server).await);
    ensure(&backend, Some(2)).await;
    let bus = Bus::with_backend(backend.clone(), BusOptions::default());
    let runs = Arc::new(AtomicU64::new(0));
    let consumer =
        bus.stream(STREAM).expect("streams").consumer("c").expect("a name").start(Start::Beginning);
    let counted = runs.clone();
    let consumer = consumer
        .ack_wait(Duration::from_millis(300))
        .backoff([Duration::from_millis(50)])
        .max_deliver(1000)
        .spawn(move |_: Delivered| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Err(trunkline::HandlerError::new("never")) }
        });
    let consumer = soon(consumer).await.expect("a consumer");
    for n in 0..20 {
        publish(&backend, n).await.expect("stored");
    }
    let mut raw = raw(&server).await;
    let rate = commands_per_second(&mut raw).await;
    // Two messages fail every 50 ms; each costs a delivery and a nak of a dozen commands.
    assert!(rate < 4000, "{rate} commands a second for two messages that fail");
    let info =
        soon(streams(&backend).consumer_info(STREAM, "c")).await.expect("a stream").expect("a consumer");
    assert!(info.pending <= 2 && info.lag == 0, "only what is kept is tried again: {info:?}");
    let before = runs.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let per_second = (runs.load(Ordering::Relaxed) - before) * 2;
    assert!(per_second <= 2 * 20 + 4, "{per_second} runs a second");
    soon(consumer.stop()).await.expect("it ran");
}
