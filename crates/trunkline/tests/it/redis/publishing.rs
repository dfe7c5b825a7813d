//! Publishers that write to one stream at once, each by whichever way its batches go.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use trunkline::backend::redis::RedisBackend;
use trunkline::backend::{Backend, PublishError, PublishOptions, ReadRequest, Receipt, Start, StreamConfig};
use trunkline::{Message, StreamOffset};
use trunkline_testkit::{RedisCluster, RedisServer, RedisVersion};

use super::{connect, ensure, options, publish, raw, run, soon, streams, subject};

/// Publishes `NAME-N` for each number, so many at a time; every `deduped`-th has a deduplication id.
async fn publish_numbers(backend: &RedisBackend, name: &str, count: usize, at_once: usize, deduped: usize) {
    for from in (0..count).step_by(at_once) {
        let publishing = (from..(from + at_once).min(count)).map(|n| {
            let dedupe_id = (n % deduped == deduped - 1).then(|| format!("{name}-{n}"));
            let message = Message::new(subject("work.x"), format!("{name}-{n}"));
            backend.publish(message, PublishOptions { dedupe_id, ..PublishOptions::default() }).outcome()
        });
        for receipt in soon(join_all(publishing)).await {
            assert!(matches!(receipt, Ok(Receipt::Stored { duplicate: false, .. })), "{receipt:?}");
        }
    }
}

/// All there is: numbers of the offsets, and payloads.
pub(super) async fn read_all(backend: &RedisBackend) -> Vec<(u64, String)> {
    let (mut all, mut from) = (Vec::new(), Start::Beginning);
    loop {
        let page = soon(streams(backend).read("work", ReadRequest { from, filter: None, max: 1000 }));
        let page = page.await.unwrap();
        all.extend(page.messages.iter().map(|stored| {
            let StreamOffset::Entry(_, number) = stored.offset else { panic!("{:?}", stored.offset) };
            (number, String::from_utf8_lossy(&stored.message.payload).into_owned())
        }));
        if page.end {
            return all;
        }
        from = page.next;
    }
}

/// Nothing is lost or doubled, each publisher's messages stay in order, and their numbers have no holes: also where
/// publishers get in each other's way, and where some messages need more than to be appended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_that_outrun_each_other_keep_order_and_numbers() {
    const COUNT: usize = 3000;
    let server = RedisServer::start_volatile();
    let (one, two, three) = (connect(&server).await, connect(&server).await, connect(&server).await);
    ensure(&one, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    tokio::join!(
        publish_numbers(&one, "one", COUNT, 300, usize::MAX),
        publish_numbers(&two, "two", COUNT, 250, usize::MAX),
        publish_numbers(&three, "three", COUNT, 40, 100),
    );
    // Alone, so that nobody is in the way of long batches.
    publish_numbers(&one, "last", COUNT, 500, usize::MAX).await;
    let all = read_all(&one).await;
    let numbers: Vec<u64> = all.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=4 * COUNT as u64).collect::<Vec<_>>());
    for name in ["one", "two", "three", "last"] {
        let found: Vec<&String> =
            all.iter().map(|(_, text)| text).filter(|text| text.starts_with(&format!("{name}-"))).collect();
        let expected: Vec<String> = (0..COUNT).map(|n| format!("{name}-{n}")).collect();
        assert_eq!(found, expected.iter().collect::<Vec<_>>());
    }
    // The way without a script was taken, and refused where somebody else had written.
    let calls: String = run(&mut raw(&server).await, "INFO commandstats").await;
    assert!(calls.contains("cmdstat_exec:") && calls.contains("cmdstat_evalsha:"), "{calls}");
}

/// Somebody else's entries, with ids ahead of ours, stop nobody and cost no message its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_entries_with_later_ids_stop_no_publisher() {
    let server = RedisServer::start_volatile();
    let backend = connect(&server).await;
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    publish_numbers(&backend, "before", 200, 100, usize::MAX).await;
    let _: String = run(&mut raw(&server).await, "XADD atlas_bus:{work} 99999999999999-7 a b").await;
    publish_numbers(&backend, "after", 500, 100, usize::MAX).await;
    let all = read_all(&backend).await;
    let numbers: Vec<u64> = all.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=700).collect::<Vec<_>>());
    assert_eq!((all[199].1.as_str(), all[200].1.as_str()), ("before-199", "after-0"));
}

/// What fewer replicas have than were asked for is stored and said to be no safer than that; with them it is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publish_waits_for_replicas() {
    let server = RedisServer::start_volatile();
    let mut options = options(server.url());
    options.wait_replicas = 1;
    // Half of it is the replicas' time, also on a busy machine.
    options.publish_timeout = Duration::from_secs(3);
    let backend = RedisBackend::connect(options).await.expect("the server is up");
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let error = publish(&backend, "work.x", "alone").await.unwrap_err();
    let expected = matches!(&error, PublishError::NotReplicated { replicas: 0, wanted: 1, .. });
    assert!(expected && error.is_retryable(), "{error:?}");

    let port = server.port().to_string();
    let mut replica = RedisServer::start_with(["--appendonly", "no", "--replicaof", "127.0.0.1", &port]);
    let replicated = async {
        while publish(&backend, "work.x", "soon").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon(replicated).await;
    // A long batch, too, and what was told is there.
    publish_numbers(&backend, "many", 500, 250, usize::MAX).await;
    let copied: u64 = run(&mut raw(&replica).await, "XLEN atlas_bus:{work}").await;
    let stored: u64 = run(&mut raw(&server).await, "XLEN atlas_bus:{work}").await;
    assert_eq!(copied, stored);

    replica.kill();
    let error = publish(&backend, "work.x", "alone again").await.unwrap_err();
    assert!(matches!(error, PublishError::NotReplicated { .. }), "{error:?}");
}

/// What waits for replicas goes to a slot that is on its way to another node, too, and is told as honestly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publish_that_waits_for_replicas_follows_a_slot_on_its_way() {
    let cluster = tokio::task::spawn_blocking(RedisCluster::start).await;
    let cluster = Arc::new(cluster.expect("the nodes start"));
    let mut options = options(&cluster.url());
    options.wait_replicas = 1;
    options.publish_timeout = Duration::from_secs(2);
    let backend = RedisBackend::connect(options).await.expect("the cluster is up");
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let alone = async |n: u32| {
        // No node has a replica.
        let error = publish(&backend, "work.x", n).await.unwrap_err();
        assert!(
            matches!(&error, PublishError::NotReplicated { replicas: 0, wanted: 1, .. }),
            "{n}: {error:?}"
        );
    };
    alone(0).await;
    let moving = cluster.clone();
    let moving = tokio::task::spawn_blocking(move || moving.half_move("atlas_bus:{work}"));
    let half = moving.await.expect("the slot is on its way");
    for n in 1..3 {
        alone(n).await;
    }
    let moving = cluster.clone();
    let moving = tokio::task::spawn_blocking(move || moving.end_move(half));
    moving.await.expect("the slot is there");
    let stored = read_all(&backend).await;
    assert_eq!(stored.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), ["0", "1", "2"]);
}

/// A message that needs a script which the server does not know yet is not overtaken by those behind it, whose script it
/// knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_whose_script_is_not_known_yet_is_not_overtaken() {
    const COUNT: usize = 1000;
    for _ in 0..5 {
        let server = RedisServer::start_volatile();
        let backend = connect(&server).await;
        ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
        // Now the server knows the script that appends, and not the one for deduplication.
        publish(&backend, "work.x", "first").await.unwrap();
        let publishing = (0..COUNT).map(|n| {
            let dedupe_id = (n == 0).then(|| "once".to_owned());
            let message = Message::new(subject("work.x"), n.to_string());
            backend.publish(message, PublishOptions { dedupe_id, ..PublishOptions::default() }).outcome()
        });
        for receipt in soon(join_all(publishing)).await {
            assert!(matches!(receipt, Ok(Receipt::Stored { duplicate: false, .. })), "{receipt:?}");
        }
        let found: Vec<String> = read_all(&backend).await.into_iter().skip(1).map(|(_, text)| text).collect();
        assert_eq!(found, (0..COUNT).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

/// A duplicate is only called stored once as many replicas have what it doubles: also on a new connection, which has
/// written nothing that it could wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicate_waits_for_replicas_of_what_it_doubles() {
    for version in [RedisVersion::System, RedisVersion::Redis8, RedisVersion::Valkey] {
        let server = RedisServer::start_durable(version);
        let port = server.port().to_string();
        let replica =
            RedisServer::start_version(version, ["--appendonly", "no", "--replicaof", "127.0.0.1", &port]);
        let once = async |backend: &RedisBackend| {
            let options = PublishOptions { dedupe_id: Some("once".to_owned()), ..PublishOptions::default() };
            backend.publish(Message::new(subject("work.x"), "x"), options).outcome().await
        };
        let connect = async || {
            let mut options = options(server.url());
            options.wait_replicas = 1;
            options.publish_timeout = Duration::from_millis(600);
            RedisBackend::connect(options).await.expect("the server is up")
        };
        let backend = connect().await;
        let replicated = async {
            while publish(&backend, "work.x", "soon").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        soon(replicated).await;
        replica.pause();
        let first = once(&backend).await;
        assert!(matches!(first, Err(PublishError::NotReplicated { .. })), "{version:?}: {first:?}");
        let again = once(&connect().await).await;
        assert!(matches!(again, Err(PublishError::NotReplicated { .. })), "{version:?}: {again:?}");
        replica.resume();
    }
}
