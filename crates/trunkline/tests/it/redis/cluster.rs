//! A cluster whose slots move and whose nodes go away.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use trunkline::backend::redis::{ACL_RULES, RedisBackend, RedisConnectError};
use trunkline::backend::{
    Backend, ConsumerConfig, LiveSource, PublishError, PublishOptions, Receipt, Settle, Start, StreamConfig,
    SubscribeOptions,
};
use trunkline::status::BackendState;
use trunkline::{Message, StreamOffset};
use trunkline_testkit::{RedisCluster, RedisServer};

use super::{
    PATIENCE, ensure, next, options, publish, shown, soon, streams, subject, subscribe, wait_for,
    wait_for_disconnected,
};

async fn start() -> RedisCluster {
    tokio::task::spawn_blocking(RedisCluster::start).await.expect("the nodes start")
}

/// Runs what blocks elsewhere.
async fn on<T: Send + 'static>(
    cluster: &Arc<RedisCluster>,
    deed: impl FnOnce(&RedisCluster) -> T + Send + 'static,
) -> T {
    let cluster = cluster.clone();
    tokio::task::spawn_blocking(move || deed(&cluster)).await.expect("the deed is done")
}

async fn connect(cluster: &RedisCluster) -> RedisBackend {
    RedisBackend::connect(options(&cluster.url())).await.expect("the cluster is up")
}

/// Subjects of all families and streams, on all nodes, by one connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subjects_on_all_nodes_are_published_and_read() {
    let cluster = start().await;
    // One address is enough to find the others.
    let url = format!("redis-cluster://127.0.0.1:{}", cluster.nodes()[0].port());
    let backend = RedisBackend::connect(options(&url)).await.unwrap();
    for n in 0..8 {
        ensure(&backend, StreamConfig::new(format!("s{n}"), vec![format!("s{n}.>").parse().unwrap()])).await;
    }
    let mut all = subscribe(&backend, ">", SubscribeOptions::default()).await;
    let mut expected = BTreeSet::new();
    for n in 0..8 {
        for subject in
            [format!("s{n}.x"), format!("nachos.tool.{n}"), format!("nachos.llm.{n}"), format!("x{n}")]
        {
            publish(&backend, &subject, &subject).await.unwrap();
            expected.insert(subject);
        }
    }
    let mut got = BTreeSet::new();
    while got.len() < expected.len() {
        got.insert(next(&mut *all).await);
    }
    assert_eq!(got, expected);
    let used = cluster.nodes().iter().filter(|node| node.ask("DBSIZE") != redis::Value::Int(0)).count();
    assert_eq!(used, 3);
    assert_eq!(soon(streams(&backend).list()).await.unwrap().len(), 8);
}

/// A slot is moved back and forth, key by key, while messages flow: nothing is lost, nothing comes twice, the order of
/// the stream is the order of its publisher, and a consumer goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moving_slot_costs_no_message_and_no_order() {
    const MESSAGES: u64 = 1000;
    let (given, taken) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
    let cluster = Arc::new(start().await);
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
        let moved = on(&cluster, |cluster| {
            let slot = cluster.slot_of("atlas_bus:{work}");
            let to = (cluster.owner(slot) + 1) % 3;
            cluster.begin_move(slot, to);
            let moved = cluster.move_keys(slot, to);
            cluster.end_move(slot, to);
            moved
        });
        assert!(moved.await > 0, "there was nothing to move");
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
    let cluster = Arc::new(start().await);
    let backend = Arc::new(connect(&cluster).await);
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let mut plain = subscribe(&backend, "work.*", SubscribeOptions::default()).await;
    publish(&backend, "work.x", 1).await.unwrap();
    assert_eq!(next(&mut *plain).await, "1");
    let (slot, to) = on(&cluster, |cluster| {
        let slot = cluster.slot_of("atlas_bus:{work}");
        let to = (cluster.owner(slot) + 1) % 3;
        cluster.begin_move(slot, to);
        cluster.move_keys(slot, to);
        (slot, to)
    })
    .await;
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
    on(&cluster, move |cluster| cluster.end_move(slot, to)).await;
    assert!(matches!(soon(waiting).await.unwrap(), Ok(Receipt::Stored { .. })));
    assert_eq!(next(&mut *plain).await, "3");
}

/// A node that dies takes its streams along, no others; the status says so within two seconds, and all is well again
/// when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_node_is_told_and_comes_back() {
    let mut cluster = start().await;
    let backend = connect(&cluster).await;
    let mut all = subscribe(&backend, ">", SubscribeOptions::default()).await;
    let owner = cluster.owner(cluster.slot_of("atlas_bus:{family.tool}"));
    let other = ["nachos.llm.x", "nachos.audit.x", "nachos.system.x", "nachos.channel.x", "nachos.skill.x"]
        .into_iter()
        .find(|subject| {
            let family = subject.split('.').nth(1).expect("three tokens");
            cluster.owner(cluster.slot_of(&format!("atlas_bus:{{family.{family}}}"))) != owner
        })
        .expect("not all families are on one node");
    for subject in ["nachos.tool.x", other] {
        publish(&backend, subject, "before").await.unwrap();
        assert_eq!(next(&mut *all).await, "before");
    }
    cluster.nodes_mut()[owner].pause();
    let silent = Instant::now();
    wait_for_disconnected(&backend).await;
    assert!(silent.elapsed() < Duration::from_millis(2500), "{:?}", silent.elapsed());
    let error = publish(&backend, "nachos.tool.x", "away").await.unwrap_err();
    assert!(matches!(error, PublishError::NotConnected { .. }), "{error:?}");
    cluster.nodes_mut()[owner].resume();
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.wait_until_ready();
        cluster
    });
    let mut cluster = cluster.await.expect("the cluster comes back");
    wait_for(&backend, BackendState::is_ready).await;

    cluster.nodes_mut()[owner].kill();
    wait_for_disconnected(&backend).await;
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.nodes_mut()[owner].restart();
        cluster.wait_until_ready();
        cluster
    });
    let _cluster = cluster.await.expect("the cluster comes back");
    wait_for(&backend, BackendState::is_ready).await;
    for subject in ["nachos.tool.x", other] {
        publish(&backend, subject, "after").await.unwrap();
        assert_eq!(next(&mut *all).await, "after");
    }
}

/// A change of the streams takes effect on all nodes before it returns, for processes that have not heard of it, too;
/// and who answers requests is known at the new stream at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_routes_hold_for_everybody_at_once() {
    let cluster = start().await;
    let (one, two) = (connect(&cluster).await, connect(&cluster).await);
    let inbox = two.new_inbox();
    let mut replies = subscribe(&two, inbox.as_str(), SubscribeOptions::default()).await;
    let responder = || SubscribeOptions { responder: true, ..SubscribeOptions::default() };
    let mut literal = subscribe(&one, "nachos.tool.x.call", responder()).await;
    let mut wild = subscribe(&one, "nachos.*.y.call", responder()).await;
    for round in 0..10 {
        for (what, home) in [("made", "late"), ("removed", "family.tool")] {
            match what {
                "made" => {
                    ensure(&one, StreamConfig::new("late", vec!["nachos.tool.>".parse().unwrap()])).await;
                }
                _ => assert!(soon(streams(&one).remove("late")).await.unwrap()),
            }
            for (to, source) in [("nachos.tool.x.call", &mut literal), ("nachos.tool.y.call", &mut wild)] {
                let text = format!("{to} {round} {what}");
                let call = Message { reply: Some(inbox.clone()), ..Message::new(subject(to), text.clone()) };
                let receipt = soon(two.publish(call, PublishOptions::default()).outcome()).await.unwrap();
                assert!(matches!(&receipt, Receipt::Stored { stream, .. } if stream == home), "{receipt:?}");
                assert_eq!(next(&mut **source).await, text);
            }
        }
    }
    let refused = tokio::time::timeout(Duration::from_millis(300), next(&mut *replies)).await;
    assert!(refused.is_err(), "somebody answers, yet {refused:?}");
    // And nobody is nobody.
    let call = Message { reply: Some(inbox.clone()), ..Message::new(subject("nachos.tool.z.call"), "") };
    soon(two.publish(call, PublishOptions::default()).outcome()).await.unwrap();
    assert_eq!(next(&mut *replies).await, "");
}

/// A node that comes back without its data has lost the messages, and nothing else: streams, consumers, subscriptions
/// and requests go on, whichever node it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_node_is_furnished_again() {
    let cluster = start().await;
    let backend = connect(&cluster).await;
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let config = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("c") };
    let member = soon(streams(&backend).join("work", config)).await.unwrap();
    let mut plain = subscribe(&backend, "work.*", SubscribeOptions::default()).await;
    let (work, bus) = ("atlas_bus:{work}", "atlas_bus:{bus}:routes");
    for (n, key) in [(1, work), (2, bus), (3, work)] {
        cluster.nodes()[cluster.owner(cluster.slot_of(key))].ask("FLUSHALL");
        // What is lost with the routes is noticed when somebody looks at them.
        assert_eq!(soon(streams(&backend).list()).await.unwrap().len(), 1);
        let receipt = publish(&backend, "work.x", n).await.unwrap();
        assert!(matches!(&receipt, Receipt::Stored { stream, .. } if stream == "work"), "{receipt:?}");
        assert_eq!(next(&mut *plain).await, n.to_string());
        let fetched = soon(member.fetch(1, PATIENCE)).await.unwrap();
        assert_eq!(&*fetched.deliveries[0].message.payload, n.to_string().as_bytes());
        soon(member.settle(vec![(fetched.deliveries[0].token.clone(), Settle::Ack)])).await.unwrap();
    }
}

/// A user with the rules that the bus needs, and no others, can do on a cluster what the bus does there: also follow a
/// slot to another node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_a_user_are_enough_for_a_cluster() {
    let cluster = Arc::new(start().await);
    for node in cluster.nodes() {
        node.ask(&format!("ACL SETUSER bus on >pw ~atlas_bus:* resetchannels -@all {ACL_RULES}"));
    }
    let url = cluster.url().replace("://", "://bus:pw@");
    let backend = RedisBackend::connect(options(&url)).await.unwrap();
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let mut plain = subscribe(&backend, "work.*", SubscribeOptions::default()).await;
    publish(&backend, "work.x", 1).await.unwrap();
    assert_eq!(next(&mut *plain).await, "1");
    let (slot, to) = on(&cluster, |cluster| {
        let slot = cluster.slot_of("atlas_bus:{work}");
        let to = (cluster.owner(slot) + 1) % 3;
        cluster.begin_move(slot, to);
        cluster.move_keys(slot, to);
        (slot, to)
    })
    .await;
    publish(&backend, "work.x", 2).await.unwrap();
    assert_eq!(next(&mut *plain).await, "2");
    on(&cluster, move |cluster| cluster.end_move(slot, to)).await;
    publish(&backend, "work.x", 3).await.unwrap();
    assert_eq!(next(&mut *plain).await, "3");
    for node in cluster.nodes() {
        assert_eq!(node.ask("ACL LOG"), redis::Value::Array(Vec::new()));
    }
}

/// One server that is given as a cluster, and a node of a cluster that is given as one server, are told for what they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_of_another_kind_is_told() {
    let (server, cluster) = (RedisServer::start_volatile(), start().await);
    let bus = cluster.owner(cluster.slot_of("atlas_bus:{bus}:routes"));
    let node = &cluster.nodes()[(bus + 1) % 3];
    for (scheme, port) in [("redis-cluster", server.port()), ("redis", node.port())] {
        let error =
            RedisBackend::connect(options(&format!("{scheme}://127.0.0.1:{port}"))).await.unwrap_err();
        assert!(matches!(error, RedisConnectError::BadServer { .. }), "{error:?}");
        assert!(error.hint().contains("redis-cluster"), "{error:?}");
    }
}
