//! What is asked for while a slot is between two nodes: publishes that wait for replicas and have a deduplication id,
//! and long batches of acknowledgements.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use trunkline::backend::redis::RedisBackend;
use trunkline::backend::{
    AckToken, Backend, ConsumerConfig, Delivery, Member, PublishError, PublishOptions, Receipt, Settle,
    Settled, Start, StreamConfig,
};
use trunkline::{Message, StreamOffset};
use trunkline_testkit::{RedisCluster, RedisVersion};

use super::super::publishing::read_all;
use super::super::{PATIENCE, ensure, on_oldest_and_newest, options, publish, soon, streams, subject};
use super::connect;

on_oldest_and_newest! {
    replicated_publishes_with_an_id_follow_their_slot;
    long_batches_of_acks_count_once_while_their_slot_moves;
}

const KEY: &str = "atlas_bus:{work}";

async fn publish_once(backend: &RedisBackend, id: &str) -> Result<Receipt, PublishError> {
    let options = PublishOptions { dedupe_id: Some(id.to_owned()), ..PublishOptions::default() };
    soon(backend.publish(Message::new(subject("work.x"), id.to_owned()), options).outcome()).await
}

/// The number of a message that was stored, and whether it was a duplicate.
#[track_caller]
fn stored(outcome: Result<Receipt, PublishError>) -> (u64, bool) {
    match outcome {
        Ok(Receipt::Stored { offset: StreamOffset::Entry(_, number), duplicate, .. }) => (number, duplicate),
        other => panic!("{other:?}"),
    }
}

/// What must be stored, again after each failure that may pass.
async fn publish_until_stored(backend: &RedisBackend, id: &str) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match publish_once(backend, id).await {
            Err(error) => {
                assert!(error.is_retryable(), "{id}: {error:?}");
                assert!(Instant::now() < deadline, "{id}: {error:?}");
            }
            outcome => return stored(outcome).0,
        }
    }
}

/// With `wait_replicas` and a deduplication id together: what a slot on its way cannot take is put off and not forbidden,
/// nothing is called stored that no replica of the new node has, and nothing is lost or doubled however often the slot
/// moves.
async fn replicated_publishes_with_an_id_follow_their_slot(version: RedisVersion) {
    const PUBLISHERS: u64 = 4;
    const EACH: u64 = 60;
    let cluster = RedisCluster::start_replicated(version);
    let mut waiting = options(&cluster.url());
    waiting.wait_replicas = 1;
    // Half of it is the replicas' time.
    waiting.publish_timeout = Duration::from_secs(2);
    let backend = Arc::new(RedisBackend::connect(waiting).await.expect("the cluster is up"));
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let known = stored(publish_once(&backend, "known").await);
    assert!(!known.1);

    let half = cluster.half_move(KEY);
    let to = (cluster.owner(cluster.slot_of(KEY)) + 1) % 3;
    // All keys that this needs are at the new node. There it is known, and there replicas are waited for.
    assert_eq!(stored(publish_once(&backend, "known").await), (known.0, true));
    let replica = &cluster.nodes()[cluster.replica_of(to)];
    replica.pause();
    for _ in 0..2 {
        let error = publish_once(&backend, "known").await.expect_err("no replica can have it");
        assert!(matches!(error, PublishError::NotReplicated { replicas: 0, .. }), "{error:?}");
    }
    replica.resume();
    cluster.wait_until_ready();
    // The key of a new id is nowhere, and no node may decide about it: it is asked for again, and then given back.
    let since = Instant::now();
    let error = publish_once(&backend, "new").await.expect_err("the slot is on its way");
    assert!(matches!(error, PublishError::NotConnected { .. }), "{error:?}");
    assert!(since.elapsed() > Duration::from_millis(300), "given up after {:?}", since.elapsed());
    let behind = tokio::spawn({
        let backend = backend.clone();
        async move { publish_until_stored(&backend, "behind").await }
    });
    cluster.end_move(half);
    let behind = soon(behind).await.unwrap();
    let (new, duplicate) = stored(publish_once(&backend, "new").await);
    assert!(!duplicate, "it was given back, so it was not stored");
    assert_eq!(BTreeSet::from([known.0, behind, new]).len(), 3);

    let (progress, mut moved) = watch::channel(0);
    let progress = Arc::new(progress);
    let mut publishing = tokio::task::JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let (backend, progress) = (backend.clone(), progress.clone());
        publishing.spawn(async move {
            let mut told = Vec::new();
            for n in 0..EACH {
                let id = format!("{publisher}-{n}");
                let number = publish_until_stored(&backend, &id).await;
                told.push((id, number));
                progress.send_modify(|stored| *stored += 1);
            }
            told
        });
    }
    // The next move begins when something was stored since the last one began.
    for _ in 0..5 {
        soon(moved.changed()).await.unwrap();
        assert!(cluster.move_slot(KEY) > 0, "there was nothing to move");
    }
    let mut told = BTreeMap::from([("known", known.0), ("behind", behind), ("new", new)].map(own));
    while let Some(done) = soon(publishing.join_next()).await {
        told.extend(done.unwrap());
    }
    let all = read_all(&backend).await;
    let there: BTreeMap<String, u64> =
        all.iter().map(|(number, payload)| (payload.clone(), *number)).collect();
    assert_eq!(there.len(), all.len(), "something is there twice");
    assert_eq!(there, told, "each where its publisher was told that it is");
}

fn own((id, number): (&str, u64)) -> (String, u64) {
    (id.to_owned(), number)
}

/// A long batch that is acknowledged between two nodes is acknowledged at once, and once; what another member has by now
/// is refused there as anywhere. And while the slot moves on and on, each message is delivered once and settled once.
async fn long_batches_of_acks_count_once_while_their_slot_moves(version: RedisVersion) {
    const BATCH: usize = 32;
    const MESSAGES: usize = 640;
    let cluster = RedisCluster::start_version(version);
    let (one, other) = (connect(&cluster).await, Arc::new(connect(&cluster).await));
    ensure(&one, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    for n in 0..BATCH {
        publish(&one, "work.x", n).await.unwrap();
    }
    let early = join(&one, "short", Duration::from_millis(300)).await;
    let late = join(&other, "short", Duration::from_millis(300)).await;
    let first = join(&other, "first", Duration::from_secs(600)).await;
    let lost = tokens(&fetch(&*early, BATCH).await);
    let taken = tokens(&fetch(&*late, BATCH).await);
    assert_eq!((lost.len(), taken.len(), taken[0].attempt), (BATCH, BATCH, 2));
    let held = tokens(&fetch(&*first, BATCH).await);
    assert_eq!((held.len(), held[0].attempt), (BATCH, 1));

    let half = cluster.half_move(KEY);
    let acked = tokio::time::timeout(Duration::from_secs(3), first.settle(acks(&held)));
    let acked = acked.await.expect("at once, although the slot is on its way").unwrap();
    assert_eq!(acked, vec![Settled::Done; BATCH]);
    // Of these the server has to look at each, with keys that no node may decide about before the move is over.
    let settling = [(early, lost), (late, taken.clone())]
        .map(|(member, tokens)| tokio::spawn(async move { (member.settle(acks(&tokens)).await, member) }));
    cluster.end_move(half);
    let [refused, accepted] = settling;
    let (refused, _early) = soon(refused).await.unwrap();
    assert_eq!(refused.unwrap(), vec![Settled::LeaseLost; BATCH], "another has them");
    let (accepted, late) = soon(accepted).await.unwrap();
    assert_eq!(accepted.unwrap(), vec![Settled::Done; BATCH]);
    for (member, tokens) in [(&late, &taken), (&first, &held)] {
        let again = soon(member.settle(acks(tokens))).await.unwrap();
        assert_eq!(again, vec![Settled::LeaseLost; BATCH], "once");
    }
    for consumer in ["short", "first"] {
        let info = soon(streams(&other).consumer_info("work", consumer)).await.unwrap().unwrap();
        assert_eq!((info.pending, info.lag), (0, 0), "{consumer}: {info:?}");
    }

    let member = join(&other, "long", Duration::from_secs(600)).await;
    let publishing = tokio::spawn({
        let other = other.clone();
        async move {
            for n in BATCH..MESSAGES {
                publish(&other, "work.x", n).await.expect("a slot that moves costs no message");
            }
        }
    });
    let (progress, mut moved) = watch::channel(0);
    let handling = tokio::spawn(async move {
        let (mut delivered, mut batches) = (BTreeMap::<String, u32>::new(), 0);
        let mut held: Vec<Delivery> = Vec::new();
        while delivered.len() < MESSAGES {
            held.extend(fetch(&*member, BATCH).await);
            let last = held.len() + delivered.len() >= MESSAGES;
            if held.len() < 16 && !last {
                continue;
            }
            for delivery in &held {
                assert_eq!(delivery.attempt, 1, "its lease was never lost");
                let payload = String::from_utf8_lossy(&delivery.message.payload).into_owned();
                *delivered.entry(payload).or_default() += 1;
            }
            let settled = member.settle(acks(&tokens(&held))).await.expect("a slot that moves is waited for");
            assert_eq!(settled, vec![Settled::Done; held.len()]);
            held.clear();
            batches += 1;
            progress.send_replace(batches);
        }
        delivered
    });
    let mut moves = 0;
    while moves < 4 || !handling.is_finished() {
        // As many as there are batches: on a busy machine moves without end would leave no time for anything else.
        let _ = soon(moved.changed()).await;
        cluster.move_slot(KEY);
        moves += 1;
    }
    soon(publishing).await.unwrap();
    let delivered = soon(handling).await.unwrap();
    assert!(delivered.values().all(|times| *times == 1), "{delivered:?}");
    let info = soon(streams(&other).consumer_info("work", "long")).await.unwrap().unwrap();
    assert_eq!((info.pending, info.lag, info.missed), (0, 0, 0), "{info:?}");
}

async fn join(backend: &RedisBackend, name: &str, ack_wait: Duration) -> Arc<dyn Member> {
    let config = ConsumerConfig { start: Start::Beginning, ack_wait, ..ConsumerConfig::new(name) };
    soon(streams(backend).join("work", config)).await.expect("a member")
}

/// What is there to fetch, at least one, whatever becomes of the slot meanwhile.
async fn fetch(member: &dyn Member, max: usize) -> Vec<Delivery> {
    let fetching = async {
        loop {
            match member.fetch(max, Duration::from_secs(1)).await {
                Ok(fetched) if fetched.deliveries.is_empty() => {}
                Ok(fetched) => return fetched.deliveries,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        }
    };
    soon(fetching).await
}

fn tokens(deliveries: &[Delivery]) -> Vec<AckToken> {
    deliveries.iter().map(|delivery| delivery.token.clone()).collect()
}

fn acks(tokens: &[AckToken]) -> Vec<(AckToken, Settle)> {
    tokens.iter().map(|token| (token.clone(), Settle::Ack)).collect()
}
