//! A cluster: what lies on which node, nodes that go away and come back, slots that move, masters that are replaced.
//!
//! What a test does to a cluster blocks, and blocks nobody else: the future of the test has its thread for itself.

mod failover;
mod on_its_way;
mod slots;

use std::collections::BTreeSet;
use std::time::Duration;

use trunkline::Message;
use trunkline::backend::redis::{ACL_RULES, RedisBackend, RedisConnectError};
use trunkline::backend::{
    Backend, ConsumerConfig, PublishError, PublishOptions, Receipt, Settle, Start, StreamConfig,
    SubscribeOptions,
};
use trunkline::status::BackendState;
use trunkline_testkit::{RedisCluster, RedisServer};

use super::{
    PATIENCE, ensure, next, options, publish, soon, streams, subject, subscribe, wait_for, wait_for_outage,
};

async fn connect(cluster: &RedisCluster) -> RedisBackend {
    RedisBackend::connect(options(&cluster.url())).await.expect("the cluster is up")
}

/// Subjects of all families and streams, on all nodes, by one connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subjects_on_all_nodes_are_published_and_read() {
    let cluster = RedisCluster::start();
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

/// A node that dies takes its streams along, no others; the status says so within two seconds, and all is well again
/// when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_node_is_told_and_comes_back() {
    let mut cluster = RedisCluster::start();
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
    wait_for_outage(&backend).await;
    let error = publish(&backend, "nachos.tool.x", "away").await.unwrap_err();
    assert!(matches!(error, PublishError::NotConnected { .. }), "{error:?}");
    cluster.nodes_mut()[owner].resume();
    cluster.wait_until_ready();
    wait_for(&backend, BackendState::is_ready).await;

    cluster.nodes_mut()[owner].kill();
    wait_for_outage(&backend).await;
    cluster.nodes_mut()[owner].restart();
    cluster.wait_until_ready();
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
    let cluster = RedisCluster::start();
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
    let cluster = RedisCluster::start();
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
    let cluster = RedisCluster::start();
    for node in cluster.nodes() {
        node.ask(&format!("ACL SETUSER bus on >pw ~atlas_bus:* resetchannels -@all {ACL_RULES}"));
    }
    let url = cluster.url().replace("://", "://bus:pw@");
    let backend = RedisBackend::connect(options(&url)).await.unwrap();
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let mut plain = subscribe(&backend, "work.*", SubscribeOptions::default()).await;
    publish(&backend, "work.x", 1).await.unwrap();
    assert_eq!(next(&mut *plain).await, "1");
    let half = cluster.half_move("atlas_bus:{work}");
    publish(&backend, "work.x", 2).await.unwrap();
    assert_eq!(next(&mut *plain).await, "2");
    cluster.end_move(half);
    publish(&backend, "work.x", 3).await.unwrap();
    assert_eq!(next(&mut *plain).await, "3");
    for node in cluster.nodes() {
        assert_eq!(node.ask("ACL LOG"), redis::Value::Array(Vec::new()));
    }
}

/// One server that is given as a cluster, and a node of a cluster that is given as one server, are told for what they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_of_another_kind_is_told() {
    let (server, cluster) = (RedisServer::start_volatile(), RedisCluster::start());
    let bus = cluster.owner(cluster.slot_of("atlas_bus:{bus}:routes"));
    let node = &cluster.nodes()[(bus + 1) % 3];
    for (scheme, port) in [("redis-cluster", server.port()), ("redis", node.port())] {
        let error =
            RedisBackend::connect(options(&format!("{scheme}://127.0.0.1:{port}"))).await.unwrap_err();
        assert!(matches!(error, RedisConnectError::BadServer { .. }), "{error:?}");
        assert!(error.hint().contains("redis-cluster"), "{error:?}");
    }
}
