//! The outbox on a server that is there and refuses, for a moment, again and again: what one moment refuses and the next
//! would take stays in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use trunkline::backend::{Receipt, StreamConfig};
use trunkline::status::BackendState;
use trunkline::{Bus, Message};
use trunkline_testkit::{RedisServer, RedisVersion};

use super::outbox::bus;
use super::publishing::read_all;
use super::{PATIENCE, connect, ensure, on_oldest_and_newest, soon, subject, wait_for};

on_oldest_and_newest! {
    full_memory_breaks_no_order;
    busy_scripts_break_no_order;
    demotions_break_no_order;
    loading_breaks_no_order;
}

/// So long that a batch comes to the server in several parts, between which others are served.
const PADDING: usize = 1500;

/// Memory is full, and is not.
async fn full_memory_breaks_no_order(version: RedisVersion) {
    let server = RedisServer::start_version(version, ["--appendonly", "no"]);
    let commands = ["CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"];
    // Without a pause, so that what is under way meets both.
    refused_again_and_again(&server, &commands, Pace { each: 0, enough: 6000 }).await;
}

/// A script of somebody else runs for too long, and ends.
async fn busy_scripts_break_no_order(version: RedisVersion) {
    let server = RedisServer::start_version(version, ["--appendonly", "no", "--lua-time-limit", "1"]);
    refused_again_and_again(&server, &["EVAL for|i=1,500000|do|end 0"], Pace { each: 50, enough: 2000 })
        .await;
}

/// The server is made a replica of nobody, and a primary again.
async fn demotions_break_no_order(version: RedisVersion) {
    let server = RedisServer::start_version(version, ["--appendonly", "no"]);
    refused_again_and_again(
        &server,
        &["REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"],
        Pace { each: 100, enough: 400 },
    )
    .await;
}

/// The server loads its data anew, with its connections open.
async fn loading_breaks_no_order(version: RedisVersion) {
    let server = match version {
        RedisVersion::Redis60 | RedisVersion::Redis62 => {
            RedisServer::start_version(version, ["--appendonly", "no"])
        }
        RedisVersion::System | RedisVersion::Redis8 | RedisVersion::Valkey => RedisServer::start_version(
            version,
            // Newer ones have to be told that they may be, and can be told to answer more often meanwhile.
            "--appendonly no --enable-debug-command yes --loading-process-events-interval-bytes 65536"
                .split(' '),
        ),
    };
    refused_again_and_again(&server, &["DEBUG RELOAD"], Pace { each: 100, enough: 1000 }).await;
}

/// How many messages are published before the commands go round once more, and how many until all of it ends.
struct Pace {
    each: u64,
    enough: u64,
}

/// Publishes on and on while these commands go round. Everything is stored once, in the order of the calls.
async fn refused_again_and_again(server: &RedisServer, commands: &[&str], pace: Pace) {
    let (bus, backend) = bus(connect(server).await);
    ensure(&backend, StreamConfig::new("work", vec!["work.>".parse().unwrap()])).await;
    let (ended, queued) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let publishing = tokio::spawn(publish_all(bus.clone(), ended.clone(), queued.clone()));
    let client = redis::Client::open(server.url()).expect("a URL");
    // What is to take long may.
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let connecting = client.get_multiplexed_async_connection_with_config(&patient);
    let mut raw = connecting.await.expect("the server is up");
    let going_round = async {
        // Whether something comes while it is refused is not for the test to say.
        let published = || bus.status().counters.published;
        while published() < pace.enough || queued.load(Ordering::SeqCst) == 0 {
            let before = published();
            for command in commands {
                let mut words = command.split(' ').map(|word| word.replace('|', " "));
                let mut sent = redis::cmd(&words.next().expect("a command"));
                sent.arg(words.collect::<Vec<_>>());
                let _: redis::Value = sent.query_async(&mut raw).await.expect("the server answers");
            }
            while published() < before + pace.each {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(2 * PATIENCE, going_round).await.expect("some come through");
    ended.store(true, Ordering::SeqCst);
    let published = soon(publishing).await.expect("all outcomes are expected ones");
    wait_for(&backend, BackendState::is_ready).await;
    // One flush waits for no longer than a publish.
    let flushed = async {
        while bus.flush().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon(flushed).await;
    assert_eq!(bus.status().outbox.expect("it is on").messages, 0);
    let stored = read_all(&backend).await;
    let there: Vec<usize> = stored
        .iter()
        .map(|(_, payload)| payload.split(' ').next().expect("a word").parse().expect("a number"))
        .collect();
    let first_wrong = there.iter().zip(0..).find(|(there, n)| *there != n);
    assert_eq!(first_wrong, None, "lost, doubled or out of order; {} are there", there.len());
    assert_eq!(there.len(), published);
    soon(bus.drain(Duration::from_secs(10))).await.expect("nothing is left");
}

/// Nobody waits for an outcome before the next is published, but for as much as the outbox may keep. Says how many were
/// published; `queued` is how many of them were kept at first.
async fn publish_all(bus: Bus, ended: Arc<AtomicBool>, queued: Arc<AtomicUsize>) -> usize {
    const PAGE: usize = 500;
    let mut published = 0;
    while !ended.load(Ordering::SeqCst) {
        let messages = (published..published + PAGE).map(|n| {
            let padding: String = std::iter::repeat_with(fastrand::alphanumeric).take(PADDING).collect();
            Message::new(subject("work.x"), format!("{n} {padding}"))
        });
        for outcome in soon(bus.publish_many(messages)).await {
            let kept = outcome.expect("it is stored or kept") == Receipt::Queued;
            queued.fetch_add(usize::from(kept), Ordering::SeqCst);
        }
        published += PAGE;
        // What was kept is published, or some of it: the next page finds room.
        let _ = bus.flush().await;
    }
    published
}
