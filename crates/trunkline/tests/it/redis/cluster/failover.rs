//! A master that is killed, and its replica that takes its place.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use trunkline::Message;
use trunkline::backend::redis::RedisBackend;
use trunkline::backend::{
    Backend, ConsumerConfig, LiveSource, Member, PublishError, PublishOptions, Receipt, Settle, Start,
    StreamConfig, SubscribeOptions,
};
use trunkline::status::BackendState;
use trunkline_testkit::{RedisCluster, RedisVersion};

use super::super::publishing::read_all;
use super::super::queues::queue;
use super::super::{
    PATIENCE, ensure, next, on_oldest_and_newest, options, publish, publish_surely, shown, soon, streams,
    subject, subscribe, wait_for, wait_for_outage,
};
use super::connect;

on_oldest_and_newest! {
    what_replicas_have_is_not_lost_with_their_master;
}

/// The payloads that somebody has seen, or was told something about.
type Seen = watch::Sender<BTreeSet<String>>;

/// Waits until so many were seen.
async fn has_many(seen: &Seen, count: usize) {
    soon(seen.subscribe().wait_for(|seen| seen.len() >= count)).await.expect("it goes on");
}

/// Waits until all of `wanted` were seen.
async fn has_seen(seen: &Seen, wanted: &BTreeSet<String>, who: &str) {
    let mut watching = seen.subscribe();
    let all = watching.wait_for(|seen| wanted.is_subset(seen));
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        let missing: Vec<_> = wanted.difference(&seen.borrow()).cloned().collect();
        panic!("{who} has not seen {missing:?}");
    }
}

/// Takes what a subscription gives, for ever.
async fn watch_source(mut source: Box<dyn LiveSource>, seen: Arc<Seen>) {
    loop {
        let mut events = Vec::new();
        std::future::poll_fn(|cx| source.poll_batch(cx, 64, &mut events)).await;
        seen.send_modify(|seen| seen.extend(events.drain(..).map(|event| shown(Some(event)))));
    }
}

/// Handles what a consumer is given, for ever.
async fn consume(member: Arc<dyn Member>, seen: Arc<Seen>) {
    loop {
        let fetched = match member.fetch(64, Duration::from_secs(1)).await {
            Ok(fetched) => fetched,
            Err(error) => {
                assert!(error.is_retryable(), "{error:?}");
                // Nothing tells a member when its server is back.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        for delivery in fetched.deliveries {
            let payload = String::from_utf8_lossy(&delivery.message.payload).into_owned();
            seen.send_modify(|seen| {
                seen.insert(payload);
            });
            // What cannot be settled now comes again.
            let _ = member.settle(vec![(delivery.token, Settle::Ack)]).await;
        }
    }
}

/// Has the replica of a master get nothing more: it stands still, and the connection over which it would have had the rest
/// is cut.
fn cut_off(cluster: &RedisCluster, master: usize) {
    let (master, replica) = (&cluster.nodes()[master], &cluster.nodes()[cluster.replica_of(master)]);
    replica.pause();
    assert_eq!(master.ask("CLIENT KILL TYPE replica"), redis::Value::Int(1));
}

/// With `wait_replicas: 1` everything that was stored before, while and after a master was replaced is in the stream once,
/// and subscriptions, queue groups and consumers get it; what the replica could not get was not called stored.
async fn what_replicas_have_is_not_lost_with_their_master(version: RedisVersion) {
    const EACH: usize = 200;
    let mut cluster = RedisCluster::start_replicated(version);
    let mut waiting = options(&cluster.url());
    waiting.wait_replicas = 1;
    // Half of it is the replicas' time.
    waiting.publish_timeout = Duration::from_secs(2);
    let writer = Arc::new(RedisBackend::connect(waiting).await.expect("the cluster is up"));
    let (reader, other) = (connect(&cluster).await, connect(&cluster).await);
    ensure(&writer, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let config = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("c") };
    let member = soon(streams(&reader).join("work", config)).await.unwrap();
    let (plain, shared, consumed) =
        (Arc::new(Seen::default()), Arc::new(Seen::default()), Arc::new(Seen::default()));
    let mut tasks = tokio::task::JoinSet::new();
    let source = subscribe(&reader, "work.*", SubscribeOptions::default()).await;
    tasks.spawn(watch_source(source, plain.clone()));
    for backend in [&reader, &other] {
        let source = subscribe(backend, "work.*", queue("q")).await;
        tasks.spawn(watch_source(source, shared.clone()));
    }
    tasks.spawn(consume(member, consumed.clone()));

    let told = Arc::new(Told::default());
    let enough = Arc::new(Notify::new());
    let publishing = tokio::spawn(publish_numbers(writer.clone(), told.clone(), enough.clone()));
    has_many(&told.stored, EACH).await;
    let slot = cluster.slot_of("atlas_bus:{work}");
    let gone = cluster.owner(slot);
    cut_off(&cluster, gone);
    // What left before the connection was cut has come as far as the replica's system. The next ten have not.
    has_many(&told.not_replicated, 11).await;
    cluster.nodes_mut()[gone].kill();
    cluster.nodes()[cluster.replica_of(gone)].resume();
    cluster.promote_replica_of(gone);
    // It is alone: so that a replica has what it takes from now on, the old master has to come back as that.
    cluster.nodes_mut()[gone].restart();
    cluster.wait_until_ready();
    let before = told.stored.borrow().len();
    has_many(&told.stored, before + EACH).await;
    enough.notify_one();
    soon(publishing).await.expect("nothing unexpected was told");

    let (stored, not_replicated) = (told.stored.borrow().clone(), told.not_replicated.borrow().clone());
    let (found, count) = {
        let all = read_all(&reader).await;
        let count = all.len();
        (all.into_iter().map(|(_, payload)| payload).collect::<BTreeSet<_>>(), count)
    };
    assert_eq!(found.len(), count, "something is there twice");
    let lost: Vec<_> = stored.difference(&found).collect();
    assert!(lost.is_empty(), "stored, and lost: {lost:?}");
    let invented: Vec<_> = told.refused.borrow().intersection(&found).cloned().collect();
    assert!(invented.is_empty(), "not connected, and stored: {invented:?}");
    assert!(
        !not_replicated.is_subset(&found),
        "the replica was cut off, and yet nothing was lost with its master"
    );
    has_seen(&plain, &stored, "the subscription").await;
    has_seen(&shared, &stored, "the queue group").await;
    has_seen(&consumed, &stored, "the consumer").await;
}

/// What a publisher was told about each payload, other than that its outcome is unknown.
#[derive(Default)]
struct Told {
    stored: Seen,
    not_replicated: Seen,
    refused: Seen,
}

/// Publishes one number after the other, ten at a time, until it is enough.
async fn publish_numbers(backend: Arc<RedisBackend>, told: Arc<Told>, enough: Arc<Notify>) {
    let ended = enough.notified();
    tokio::pin!(ended);
    for first in (0_u64..).step_by(10) {
        let batch: Vec<_> = (first..first + 10)
            .map(|n| {
                let message = Message::new(subject("work.x"), n.to_string());
                (n.to_string(), backend.publish(message, PublishOptions::default()))
            })
            .collect();
        for (payload, publishing) in batch {
            let told = match publishing.outcome().await {
                Ok(Receipt::Stored { .. }) => &told.stored,
                Err(PublishError::NotReplicated { .. }) => &told.not_replicated,
                Err(PublishError::NotConnected { .. }) => &told.refused,
                Err(PublishError::OutcomeUnknown { .. }) => continue,
                other => panic!("nobody provoked {other:?}"),
            };
            told.send_modify(|told| {
                told.insert(payload);
            });
        }
        // Whoever is refused waits for the server, as anybody would.
        let mut status = backend.status();
        tokio::select! {
            () = &mut ended => break,
            ready = status.wait_for(|status| status.state.is_ready()) => {
                ready.expect("the backend lives");
            }
        }
    }
}

/// Without `wait_replicas` that is lost which the replica had not got, and no more; everybody goes on with what comes
/// then, and so do they when the old master is back as a replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_promoted_replica_had_not_got_is_all_that_is_lost() {
    let mut cluster = RedisCluster::start_replicated(RedisVersion::System);
    let backend = connect(&cluster).await;
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let config = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("c") };
    let member = soon(streams(&backend).join("work", config)).await.unwrap();
    let mut plain = subscribe(&backend, "work.*", SubscribeOptions::default()).await;
    let mut group = subscribe(&backend, "work.*", queue("q")).await;
    for n in 0..20 {
        publish(&backend, "work.x", n).await.unwrap();
        assert_eq!((next(&mut *plain).await, next(&mut *group).await), (n.to_string(), n.to_string()));
    }
    assert_eq!(fetch(&*member, 20).await.len(), 20);

    let slot = cluster.slot_of("atlas_bus:{work}");
    let gone = cluster.owner(slot);
    let replica = cluster.replica_of(gone);
    cluster.nodes()[gone].wait_until_on(&cluster.nodes()[replica]);
    cut_off(&cluster, gone);
    for n in 20..40 {
        publish(&backend, "work.x", n).await.unwrap();
        assert_eq!((next(&mut *plain).await, next(&mut *group).await), (n.to_string(), n.to_string()));
    }
    cluster.nodes_mut()[gone].kill();
    cluster.nodes()[replica].resume();
    wait_for_outage(&backend).await;
    cluster.promote_replica_of(gone);
    wait_for(&backend, BackendState::is_ready).await;

    let mut expected: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    for round in [40..60, 60..80] {
        let last = (round.end - 1).to_string();
        for n in round {
            publish_surely(&backend, "work.x", n).await;
            expected.push(n.to_string());
        }
        for source in [&mut plain, &mut group] {
            let mut seen = vec![next(&mut **source).await];
            while seen.last() != Some(&last) {
                seen.push(next(&mut **source).await);
            }
            seen.retain(|event| !event.starts_with("gap"));
            assert!(expected.ends_with(&seen) && seen.len() >= 20, "{seen:?}");
        }
        let fetched = fetch(&*member, 20).await;
        assert!(expected.ends_with(&fetched), "{fetched:?}");
        if last == "59" {
            cluster.nodes_mut()[gone].restart();
            cluster.wait_until_ready();
        }
    }
    let found: Vec<String> = read_all(&backend).await.into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(found, expected);
}

/// Fetches so many messages and acknowledges them.
async fn fetch(member: &dyn Member, count: usize) -> Vec<String> {
    let mut fetched = Vec::new();
    while fetched.len() < count {
        let deliveries = soon(member.fetch(count - fetched.len(), PATIENCE)).await.unwrap().deliveries;
        for delivery in deliveries {
            fetched.push(String::from_utf8_lossy(&delivery.message.payload).into_owned());
            soon(member.settle(vec![(delivery.token, Settle::Ack)])).await.unwrap();
        }
    }
    fetched
}
