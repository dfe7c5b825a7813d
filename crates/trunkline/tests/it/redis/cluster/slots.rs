//! Slots that move from one node to another while they are used.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use trunkline::backend::{
    Backend, ConsumerConfig, LiveSource, PublishOptions, Receipt, Settle, Start, StreamConfig,
    SubscribeOptions,
};
use trunkline::{Message, StreamOffset};
use trunkline_testkit::{RedisCluster, RedisVersion};

use super::super::{
    PATIENCE, ensure, next, on_oldest_and_newest, publish, shown, soon, streams, subject, subscribe,
};
use super::connect;

on_oldest_and_newest! {
    moving_slot_costs_no_message_and_no_order;
}

/// A slot is moved back and forth, key by key, while messages flow: nothing is lost, nothing comes twice, the order of
/// the stream is the order of its publisher, and a consumer goes on.
async fn moving_slot_costs_no_message_and_no_order(version: RedisVersion) {
    const MESSAGES: u64 = 1000;
    let (given, taken) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
    let cluster = RedisCluster::start_version(version);
    let (writer, reader) = (Arc::new(connect(&cluster).await), connect(&cluster).await);
    ensure(&writer, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let mut plain = subscribe(&reader, "work.*", SubscribeOptions::default()).await;
    let config = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("c") };
    let member = soon(streams(&reader).join("work", config)).await.unwrap();

    // Two members of a queue group, in two processes.
    let queue = || SubscribeOptions { queue: Some("q".parse().unwrap()), ..SubscribeOptions::default() };
    let mut shares = Vec::new();
    for backend in [&*writer, &reader] {
        let mut share = subscribe(backend, "work.*", queue()).await;
        let (given, taken) = (given.clone(), taken.clone());
        shares.push(tokio::spawn(async move {
            loop {
                let message = next_event(&mut *share).await;
                given.lock().unwrap().push(message);
                taken.notify_one();
            }
        }));
    }

    let (stored, mut progress) = watch::channel(0);
    let publishing = tokio::spawn({
        let writer = writer.clone();
        async move {
            let mut last = StreamOffset::Entry(0, 0);
            for n in (0..MESSAGES).step_by(10) {
                // Ten at a time, in order, as they leave; each must be stored, and once.
                let batch: Vec<_> = (n..n + 10)
                    .map(|n| {
                        let message = Message::new(subject("work.x"), n.to_string());
                        writer.publish(message, PublishOptions::default())
                    })
                    .collect();
                for publishing in batch {
                    let Receipt::Stored { offset, .. } = publishing.outcome().await.expect("it is stored")
                    else {
                        panic!("work is a stream");
                    };
                    assert!(offset > last, "{offset} after {last}");
                    last = offset;
                }
                stored.send_replace(n + 10);
            }
        }
    });
    let consuming = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        while seen.len() < usize::try_from(MESSAGES).expect("it fits") {
            let Ok(fetched) = member.fetch(100, Duration::from_secs(1)).await else { continue };
            for delivery in fetched.deliveries {
                seen.insert(String::from_utf8_lossy(&delivery.message.payload).into_owned());
                let _ = member.settle(vec![(delivery.token, Settle::Ack)]).await;
            }
        }
    });
    let mut moves = 0;
    while moves < 4 || !publishing.is_finished() {
        // The next move begins when something was stored since the last one began: on a busy machine moves without end
        // would leave no time for anything else. When there is nothing more to store nobody is waited for.
        let _ = soon(progress.changed()).await;
        assert!(cluster.move_slot("atlas_bus:{work}") > 0, "there was nothing to move");
        moves += 1;
    }
    tokio::time::timeout(PATIENCE, publishing).await.expect("in time").expect("everything is stored");
    for n in 0..MESSAGES {
        assert_eq!(next(&mut *plain).await, n.to_string());
    }
    tokio::time::timeout(PATIENCE, consuming).await.expect("in time").expect("everything is consumed");
    soon(async {
        while given.lock().unwrap().len() < usize::try_from(MESSAGES).expect("it fits") {
            taken.notified().await;
        }
    })
    .await;
    let mut given: Vec<u64> =
        given.lock().unwrap().iter().map(|n| n.parse().expect("a number, no gap")).collect();
    given.sort_unstable();
    assert!(given.iter().copied().eq(0..MESSAGES), "each to one member: {given:?}");
    shares.iter().for_each(tokio::task::JoinHandle::abort);
}

/// The next event, however long it takes.
async fn next_event(source: &mut dyn LiveSource) -> String {
    let mut events = Vec::new();
    std::future::poll_fn(|cx| source.poll_batch(cx, 1, &mut events)).await;
    shown(events.pop())
}

/// A slot half moved stays that way for a while: a reader goes on with what is at the new node, and what cannot be done
/// now waits instead of failing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_on_its_way_is_read_and_written() {
    let cluster = RedisCluster::start();
    let backend = Arc::new(connect(&cluster).await);
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let mut plain = subscribe(&backend, "work.*", SubscribeOptions::default()).await;
    publish(&backend, "work.x", 1).await.unwrap();
    assert_eq!(next(&mut *plain).await, "1");
    let half = cluster.half_move("atlas_bus:{work}");
    // All keys of the stream are there already, so this is stored at the new node before the slot is its own.
    publish(&backend, "work.x", 2).await.unwrap();
    assert_eq!(next(&mut *plain).await, "2");
    // This needs a key that does not exist yet, which no node may decide about before the move is over.
    let waiting = tokio::spawn({
        let backend = backend.clone();
        async move {
            let options = PublishOptions { dedupe_id: Some("once".to_owned()), ..PublishOptions::default() };
            backend.publish(Message::new(subject("work.x"), "3"), options).outcome().await
        }
    });
    cluster.end_move(half);
    assert!(matches!(soon(waiting).await.unwrap(), Ok(Receipt::Stored { .. })));
    assert_eq!(next(&mut *plain).await, "3");
}
