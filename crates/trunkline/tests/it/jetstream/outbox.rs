//! The outbox over JetStream, with a server that goes away in the middle of everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use trunkline::backend::nats::NatsBackend;
use trunkline::backend::{PublishError, Receipt, Start};
use trunkline::bus::outbox::OutboxOptions;
use trunkline::status::BackendState;
use trunkline::{Bus, BusOptions, Message};

use super::{connect, ensure, payload, read, server, soon, wait_for, wait_for_disconnected};

fn bus(backend: NatsBackend, outbox: OutboxOptions) -> (Bus, Arc<NatsBackend>) {
    let backend = Arc::new(backend);
    let options =
        BusOptions { outbox: Some(outbox), publish_timeout: Duration::from_secs(3), ..BusOptions::default() };
    (Bus::with_backend(backend.clone(), options), backend)
}

fn message(publisher: u32, n: u32) -> Message {
    super::message(&format!("work.p{publisher}"), n)
}

/// All that is stored, by subject and in order.
async fn stored(backend: &NatsBackend) -> BTreeMap<String, Vec<u32>> {
    let mut by_subject: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for found in read(backend, "work", Start::Beginning).await {
        let n = payload(&found.message).parse().unwrap();
        by_subject.entry(found.message.subject.to_string()).or_default().push(n);
    }
    by_subject
}

/// Every message that was answered `Stored` or `Queued` is there once, and in the order of its publisher, whenever the
/// server was killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    const PUBLISHERS: u32 = 3;
    let mut server = server();
    let (bus, backend) = bus(connect(&server).await, OutboxOptions::default());
    ensure(&backend, "work", "work.>").await;
    let stop = Arc::new(AtomicBool::new(false));
    let publishing: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let (bus, stop) = (bus.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut n, mut queued) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
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
    for _ in 0..3 {
        let before = bus.status().counters.published;
        let moved = async {
            while bus.status().counters.published < before + 300 {
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
    stop.store(true, Ordering::Relaxed);
    let mut expected = BTreeMap::new();
    for (publisher, task) in publishing.into_iter().enumerate() {
        let (published, queued) = soon(task).await.unwrap();
        assert!(published > 0 && queued > 0, "{published} published, {queued} queued");
        expected.insert(format!("work.p{publisher}"), (0..published).collect::<Vec<_>>());
    }
    let emptied = async {
        // JetStream may take longer to come up than one flush waits.
        while bus.flush().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon(emptied).await;
    assert_eq!(bus.status().outbox.unwrap().messages, 0);
    assert!(stored(&backend).await == expected, "lost, doubled or out of order");
    soon(bus.drain(Duration::from_secs(10))).await.unwrap();
}

/// A server that does not answer: what may have arrived there is sent again, and recognised by its id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_gets_nothing_twice() {
    let server = server();
    let (bus, backend) = bus(connect(&server).await, OutboxOptions::default());
    ensure(&backend, "work", "work.>").await;
    soon(bus.publish_message(message(0, 0))).await.unwrap();
    server.pause();
    // These lie in the socket of the server: it will carry them out when it goes on.
    let outcomes = soon(bus.publish_many((1..100).map(|n| message(0, n)))).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Receipt::Queued)), "{outcomes:?}");
    server.resume();
    let emptied = async {
        while bus.flush().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon(emptied).await;
    let expected = BTreeMap::from([("work.p0".to_owned(), (0..100).collect::<Vec<_>>())]);
    assert_eq!(stored(&backend).await, expected);
}

/// While the server is away the outbox takes what fits, and says which setting bounds it; all that it took is stored in
/// its order by a server that has been restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fits_is_kept_through_a_restart_and_the_rest_is_refused() {
    let mut server = server();
    let limits = OutboxOptions { messages_max: 10, ..OutboxOptions::default() };
    let (bus, backend) = bus(connect(&server).await, limits);
    ensure(&backend, "work", "work.>").await;
    server.kill();
    wait_for_disconnected(&backend).await;
    for n in 0..10 {
        assert_eq!(soon(bus.publish_message(message(0, n))).await, Ok(Receipt::Queued));
    }
    match soon(bus.publish_message(message(0, 10))).await {
        Err(PublishError::OutboxFull { waiting: 10, limit: 10, setting, .. }) => {
            assert!(setting.starts_with("messaging.outbox"), "{setting}");
        }
        other => panic!("{other:?}"),
    }
    server.restart();
    wait_for(&backend, BackendState::is_ready).await;
    let emptied = async {
        while bus.flush().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon(emptied).await;
    assert_eq!(stored(&backend).await, BTreeMap::from([("work.p0".to_owned(), (0..10).collect::<Vec<_>>())]));
}
