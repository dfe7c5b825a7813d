//! A master that dies, and the sentinels that name another.
//!
//! What a test does to the servers blocks, and blocks nobody else: the future of the test has its thread for itself.

use std::time::Duration;

use trunkline::Message;
use trunkline::backend::redis::{ACL_RULES, RedisBackend, RedisConnectError, RedisOptions};
use trunkline::backend::{
    Backend, ConsumerConfig, PublishOptions, Settle, Start, StreamConfig, SubscribeOptions,
};
use trunkline::config::{RedisUrl, Secret};
use trunkline_testkit::{RedisSentinels, RedisVersion};

use super::queues::queue;
use super::{
    PATIENCE, ensure, next, on_oldest_and_newest, options, publish, publish_surely, soon, streams, subject,
    subscribe, wait_for_outage,
};

/// The tests of this file wait for elections that take seconds, more so on a busy machine.
const ELECTION: Duration = Duration::from_secs(40);

async fn connect(sentinels: &RedisSentinels) -> RedisBackend {
    RedisBackend::connect(options(&sentinels.url())).await.expect("the master is up")
}

on_oldest_and_newest! {
    everything_goes_on_after_a_failover;
}

async fn everything_goes_on_after_a_failover(version: RedisVersion) {
    let sentinels = RedisSentinels::start_version(version);
    let options = options(&sentinels.url());
    goes_on_after_a_failover(sentinels, options).await;
}

/// Everybody goes on with the new master: publishers, subscriptions with and without a queue, consumers, requests.
pub(super) async fn goes_on_after_a_failover(mut sentinels: RedisSentinels, options: RedisOptions) {
    let backend = RedisBackend::connect(options).await.expect("the master is up");
    assert!(backend.status().borrow().server.starts_with(&sentinels.url()));
    ensure(&backend, StreamConfig::new("work", vec!["work.*".parse().unwrap()])).await;
    let config = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("c") };
    let member = soon(streams(&backend).join("work", config)).await.unwrap();
    let mut plain = subscribe(&backend, "work.*", SubscribeOptions::default()).await;
    let mut group = subscribe(&backend, "nachos.tool.>", queue("q")).await;
    let responder = SubscribeOptions { responder: true, ..SubscribeOptions::default() };
    let mut calls = subscribe(&backend, "nachos.tool.x.call", responder).await;
    publish(&backend, "work.x", 0).await.unwrap();
    publish(&backend, "nachos.tool.y", 0).await.unwrap();
    assert_eq!((next(&mut *plain).await, next(&mut *group).await), ("0".to_owned(), "0".to_owned()));
    let first = soon(member.fetch(1, PATIENCE)).await.unwrap().deliveries.remove(0);
    // What the replica has not got when the master dies is lost. Here it has got everything.
    let [master, replica] = sentinels.servers();
    master.wait_until_on(replica);

    sentinels.servers()[0].kill();
    wait_for_outage(&backend).await;
    let mut status = backend.status();
    let again = status.wait_for(|status| status.state.is_ready());
    tokio::time::timeout(ELECTION, again).await.expect("another master").expect("the backend lives");

    for n in 1..50 {
        publish_surely(&backend, "work.x", n).await;
        assert_eq!(next(&mut *plain).await, n.to_string());
    }
    publish_surely(&backend, "nachos.tool.y", 1).await;
    let mut seen = next(&mut *group).await;
    if seen == "gap ?" {
        seen = next(&mut *group).await;
    }
    assert_eq!(seen, "1");
    // The delivery from before is still this member's, and what is new comes after it.
    let settled = soon(member.settle(vec![(first.token, Settle::Ack)])).await.unwrap();
    assert_eq!(settled, [trunkline::backend::Settled::Done]);
    let fetched = soon(member.fetch(10, PATIENCE)).await.unwrap();
    assert_eq!(&*fetched.deliveries[0].message.payload, b"1");
    // Who answers is still known.
    let inbox = backend.new_inbox();
    let mut replies = subscribe(&backend, inbox.as_str(), SubscribeOptions::default()).await;
    let call = Message { reply: Some(inbox), ..Message::new(subject("nachos.tool.x.call"), "call") };
    soon(backend.publish(call, PublishOptions::default()).outcome()).await.unwrap();
    assert_eq!(next(&mut *calls).await, "call");
    let refused = tokio::time::timeout(Duration::from_millis(300), next(&mut *replies)).await;
    assert!(refused.is_err(), "nobody was there to answer: {refused:?}");
}

/// A master that comes back is a replica now, and whoever connects finds the new one although the first sentinel that
/// is named is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_connects_finds_the_master_of_now() {
    let mut sentinels = RedisSentinels::start();
    sentinels.servers()[0].kill();
    sentinels.wait_for_failover();
    sentinels.servers()[0].restart();
    sentinels.sentinels()[0].kill();
    let backend = connect(&sentinels).await;
    publish(&backend, "nachos.tool.x", 1).await.unwrap();
    let written = sentinels.servers()[1].ask("EXISTS atlas_bus:{family.tool}");
    assert_eq!(written, redis::Value::Int(1));
}

/// A master that is told to be a replica, and stays alive, is given up at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_master_is_given_up() {
    let mut sentinels = RedisSentinels::start();
    let backend = connect(&sentinels).await;
    publish(&backend, "nachos.tool.x", 1).await.unwrap();
    let question = "SENTINEL FAILOVER main";
    sentinels.sentinels()[0].ask(question);
    sentinels.wait_for_failover();
    // Until it has heard of it, the old master takes messages that are lost; then it takes none.
    let mut stored = move || match sentinels.servers()[1].ask("XLEN atlas_bus:{family.tool}") {
        redis::Value::Int(stored) => stored,
        other => panic!("{other:?}"),
    };
    let mut n = 2;
    let mut before = stored();
    soon(async {
        while stored() == before {
            publish_surely(&backend, "nachos.tool.x", n).await;
            n += 1;
        }
    })
    .await;
    before = stored();
    for n in n..n + 20 {
        publish_surely(&backend, "nachos.tool.x", n).await;
    }
    assert_eq!(stored(), before + 20);
}

/// Sentinels have users of their own, who need next to nothing; the servers' users have the rules that the bus needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_servers_have_credentials_of_their_own() {
    let mut sentinels = RedisSentinels::start();
    for server in sentinels.servers() {
        server.ask(&format!("ACL SETUSER bus on >pw ~atlas_bus:* resetchannels -@all {ACL_RULES}"));
    }
    for sentinel in sentinels.sentinels() {
        sentinel.ask("ACL SETUSER watcher on >seen resetchannels -@all +ping +sentinel|master");
        // From here on nobody may ask without credentials. The sentinels talk to each other by other ways.
        sentinel.ask("ACL SETUSER default resetpass -@all +ping +publish +hello");
    }
    let url = sentinels.url().replace("://", "://bus:pw@");
    let error = RedisBackend::connect(options(&url)).await.unwrap_err();
    assert!(matches!(error, RedisConnectError::Unauthorized { .. }), "{error:?}");
    let mut right = options(&url);
    right.sentinel_username = Some("watcher".to_owned());
    right.sentinel_password = Some(Secret::new("seen"));
    let backend = RedisBackend::connect(right).await.unwrap();
    let mut source = subscribe(&backend, "nachos.>", SubscribeOptions::default()).await;
    publish(&backend, "nachos.tool.x", 1).await.unwrap();
    assert_eq!(next(&mut *source).await, "1");
    let shown = format!("{backend:?} {:?}", backend.status().borrow());
    assert!(!shown.contains("pw") && !shown.contains("seen"), "{shown}");
}

/// What cannot be right is told, not tried for ever: a name that no sentinel knows, an address that is no sentinel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_names_and_addresses_are_told() {
    let mut sentinels = RedisSentinels::start();
    let url = sentinels.url().replace("/main", "/other");
    let error = RedisBackend::connect(options(&url)).await.unwrap_err();
    assert!(matches!(error, RedisConnectError::BadServer { .. }), "{error:?}");
    assert!(error.to_string().contains("other"), "{error}");
    let port = sentinels.servers()[0].port();
    let url = format!("redis-sentinel://127.0.0.1:{port}/main");
    assert!(RedisUrl::parse(&url).is_ok());
    let error = RedisBackend::connect(options(&url)).await.unwrap_err();
    assert!(matches!(error, RedisConnectError::BadServer { .. }), "{error:?}");
}
