//! The rules that a user needs are enough, and none of them is too many.

use std::collections::BTreeSet;
use std::time::Duration;

use trunkline::backend::redis::{ACL_RULES, RedisBackend, RedisConnectError};
use trunkline::backend::{
    Backend, ConsumerConfig, Lease, PublishError, PublishOptions, ReadRequest, Receipt, Settle, Start,
    StreamConfig, SubscribeOptions,
};
use trunkline::{Message, Subject};
use trunkline_testkit::RedisServer;

use super::{PATIENCE, next, options, soon, streams, subject};

/// Rules for what only Sentinel and Cluster need.
const OF_TOPOLOGIES: [&str; 4] = ["+role", "+cluster|slots", "+cluster|info", "+asking"];

fn set_user(server: &RedisServer, user: &str, rules: &str) {
    server.ask(&format!("ACL SETUSER {user} reset on >pw ~atlas_bus:* resetchannels -@all {rules}"));
}

/// All that the bus does, each thing once. Errors of things that nobody waits for show only in the server's log.
async fn everything(server: &RedisServer, user: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut options = options(&format!("redis://{user}:pw@127.0.0.1:{}", server.port()));
    options.prefix = format!("atlas_bus:{user}");
    options.publish_timeout = Duration::from_secs(1);
    let backend = RedisBackend::connect(options).await?;
    let publish = async |to: &str, dedupe_id: Option<&str>, reply: Option<&Subject>| {
        let message = Message { reply: reply.cloned(), ..Message::new(subject(to), to.to_owned()) };
        let options =
            PublishOptions { dedupe_id: dedupe_id.map(ToOwned::to_owned), ..PublishOptions::default() };
        backend.publish(message, options).outcome().await
    };
    let mut config = StreamConfig::new("work", vec!["work.>".parse()?]);
    streams(&backend).ensure(config.clone()).await?;
    let queue = SubscribeOptions { queue: Some("q".parse()?), ..SubscribeOptions::default() };
    let responder = SubscribeOptions { responder: true, ..SubscribeOptions::default() };
    let mut plain = backend.subscribe("work.>".parse()?, SubscribeOptions::default()).await?;
    let mut group = backend.subscribe("work.>".parse()?, queue).await?;
    let mut wild = backend.subscribe("nachos.*.call".parse()?, responder).await?;
    let inbox = backend.new_inbox();
    let mut replies = backend.subscribe(inbox.as_str().parse()?, SubscribeOptions::default()).await?;
    publish("work.x", Some("once"), None).await?;
    let Receipt::Stored { duplicate, .. } = publish("work.x", Some("once"), None).await? else {
        return Err("it is not stored".into());
    };
    assert!(duplicate);
    assert_eq!(
        (next(&mut *plain).await, next(&mut *group).await),
        ("work.x".to_owned(), "work.x".to_owned())
    );
    let Receipt::Stored { offset, .. } = publish("work.x", None, None).await? else {
        return Err("it is not stored".into());
    };
    assert_eq!(streams(&backend).delete("work", vec![offset]).await?, 1);
    let mut waiting = self::options(&format!("redis://{user}:pw@127.0.0.1:{}", server.port()));
    (waiting.prefix, waiting.wait_replicas) = (format!("atlas_bus:{user}"), 1);
    waiting.publish_timeout = Duration::from_millis(400);
    let message = Message::new(subject("nachos.other"), "safe");
    let waiting = RedisBackend::connect(waiting).await?;
    let safe = waiting.publish(message, PublishOptions::default()).outcome().await;
    assert!(matches!(safe, Err(PublishError::NotReplicated { .. })), "{safe:?}");
    publish("nachos.tool.call", None, Some(&inbox)).await?;
    assert_eq!(next(&mut *wild).await, "nachos.tool.call");
    publish("nobody", None, Some(&inbox)).await?;
    assert_eq!(next(&mut *replies).await, "");
    let page = ReadRequest { from: Start::Beginning, filter: None, max: 10 };
    assert_eq!(streams(&backend).read("work", page).await?.messages.len(), 1);

    let member = streams(&backend).join("work", ConsumerConfig::new("plain")).await?;
    publish("work.z", None, None).await?;
    let fetched = member.fetch(1, PATIENCE).await?;
    member.settle(vec![(fetched.deliveries[0].token.clone(), Settle::Ack)]).await?;
    // So many at once are settled another way.
    for _ in 0..32 {
        publish("work.z", None, None).await?;
    }
    let mut many = Vec::new();
    while many.len() < 32 {
        let fetched = member.fetch(32, PATIENCE).await?;
        many.extend(fetched.deliveries.into_iter().map(|delivery| (delivery.token, Settle::Ack)));
    }
    member.settle(many).await?;
    member.leave().await?;
    assert!(streams(&backend).remove_consumer("work", "plain").await?);
    burst(&backend, "nachos.skill.burst.event", 200).await?;
    let consumer = ConsumerConfig { start: Start::Beginning, keyed: true, ..ConsumerConfig::new("c") };
    let member = streams(&backend).join("work", consumer).await?;
    assert_eq!(member.lease(Duration::from_secs(5)).await?, Lease::Held { new: true });
    let fetched = member.fetch(1, PATIENCE).await?;
    member.settle(vec![(fetched.deliveries[0].token.clone(), Settle::Nak(Duration::ZERO))]).await?;
    let fetched = member.fetch(1, PATIENCE).await?;
    member.settle(vec![(fetched.deliveries[0].token.clone(), Settle::Ack)]).await?;
    streams(&backend).consumer_info("work", "c").await?;
    member.leave().await?;
    let Receipt::Stored { offset, .. } = publish("work.y", None, None).await? else {
        return Err("it is not stored".into());
    };
    assert_eq!(streams(&backend).delete("work", vec![offset]).await?, 1);
    publish("work.y", None, None).await?;
    (config.max_messages, config.max_bytes) = (Some(1), Some(1));
    config.max_age = Some(Duration::from_millis(1));
    streams(&backend).ensure(config).await?;
    // Time passes until the rest is too old.
    while !streams(&backend)
        .read("work", ReadRequest { from: Start::Beginning, filter: None, max: 1 })
        .await?
        .messages
        .is_empty()
    {
        tokio::task::yield_now().await;
    }
    for source in [&mut plain, &mut group, &mut wild] {
        source.stop().await?;
    }
    assert!(streams(&backend).remove_consumer("work", "c").await?);
    assert!(streams(&backend).remove("work").await?);
    backend.drain(std::time::Instant::now() + Duration::from_secs(1)).await?;
    Ok(())
}

/// Publishes without awaiting; all are stored in order.
async fn burst(backend: &RedisBackend, to: &str, count: usize) -> Result<(), PublishError> {
    let publish =
        |_| backend.publish(Message::new(subject(to), "burst"), PublishOptions::default()).outcome();
    // From where the stream stands then, a long batch can go by itself.
    publish(0).await?;
    let receipts = futures_util::future::try_join_all((0..count).map(publish)).await?;
    let offsets = receipts.into_iter().map(|receipt| match receipt {
        Receipt::Stored { offset, .. } => offset,
        other => panic!("{other:?}"),
    });
    assert!(offsets.collect::<Vec<_>>().is_sorted_by(|earlier, later| earlier < later));
    Ok(())
}

/// Whether the server has denied something to the user. Each has a name that is part of no other's.
fn denied(server: &RedisServer, user: &str) -> bool {
    format!("{:?}", server.ask("ACL LOG 1000")).contains(user)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_with_the_rules_can_do_everything() {
    let server = RedisServer::start_volatile();
    set_user(&server, "component", ACL_RULES);
    soon(everything(&server, "component")).await.unwrap();
    assert!(!denied(&server, "component"));
}

/// A server may answer every single command: that costs time and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_who_cannot_silence_the_server_stores_bursts_all_the_same() {
    let server = RedisServer::start_volatile();
    set_user(&server, "loud", &ACL_RULES.replace("+client|reply ", ""));
    soon(everything(&server, "loud")).await.unwrap();
    assert!(denied(&server, "loud"), "bursts were not sent as transactions");
}

/// The rule may be taken away in use. What the server says then is read as answers to other commands: nobody is told of
/// an outcome that is not so, and the next batches are stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_who_may_not_silence_the_server_any_more_is_told_nothing_wrong() {
    let server = RedisServer::start_volatile();
    set_user(&server, "fading", ACL_RULES);
    let mut options = options(&format!("redis://fading:pw@127.0.0.1:{}", server.port()));
    options.prefix = "atlas_bus:fading".to_owned();
    let backend = RedisBackend::connect(options).await.unwrap();
    streams(&backend).ensure(StreamConfig::new("work", vec!["work.>".parse().unwrap()])).await.unwrap();
    soon(burst(&backend, "work.x", 200)).await.unwrap();
    server.ask("ACL SETUSER fading -client|reply");
    let (mut stored, mut unknown) = (BTreeSet::new(), 0);
    for round in 0..50 {
        let publish = |number: usize| {
            let message = Message::new(subject("work.x"), format!("{round}.{number}"));
            backend.publish(message, PublishOptions::default()).outcome()
        };
        let outcomes = soon(futures_util::future::join_all((0..200).map(publish))).await;
        let before = unknown;
        for (number, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(Receipt::Stored { offset, .. }) => {
                    assert!(stored.insert((offset, format!("{round}.{number}"))), "{offset} twice");
                }
                Err(PublishError::OutcomeUnknown { .. }) => unknown += 1,
                other => panic!("{other:?}"),
            }
        }
        if before > 0 && unknown == before {
            break;
        }
    }
    assert!(unknown > 0, "nothing was sent in silence");
    let page = ReadRequest { from: Start::Beginning, filter: None, max: 100_000 };
    let kept = soon(streams(&backend).read("work", page)).await.unwrap().messages;
    let kept: BTreeSet<_> = kept
        .into_iter()
        .map(|stored| (stored.offset, String::from_utf8_lossy(&stored.message.payload).into_owned()))
        .filter(|(_, payload)| payload != "burst")
        .collect();
    assert!(kept.is_superset(&stored), "told as stored, and is not");
    assert!(kept.len() <= stored.len() + unknown, "told as not stored, and is");
}

/// Without any one of the rules something is denied: at the start, or where it is needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_rule_is_too_many() {
    let server = RedisServer::start_volatile();
    let rules: Vec<&str> = ACL_RULES.split_whitespace().collect();
    let mut unneeded = Vec::new();
    for (round, left_out) in rules.iter().enumerate() {
        if OF_TOPOLOGIES.contains(left_out) {
            continue;
        }
        let rest: Vec<&str> = rules.iter().filter(|rule| *rule != left_out).copied().collect();
        let user = format!("user-{round}-");
        set_user(&server, &user, &rest.join(" "));
        // Once something is denied the rest need not come to an end.
        let until_denied = async {
            while !denied(&server, &user) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            done = soon(everything(&server, &user)) => {
                if !denied(&server, &user) {
                    unneeded.push(format!("{left_out}: {done:?}"));
                }
            }
            () = until_denied => {}
        }
    }
    assert!(unneeded.is_empty(), "{unneeded:#?}");
}

/// What is denied within a script is told as a denial, too, with where to look for what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denial_within_a_script_is_told() {
    let server = RedisServer::start_volatile();
    let url = format!("redis://bus:pw@127.0.0.1:{}", server.port());
    set_user(&server, "bus", &ACL_RULES.replace("+hgetall", ""));
    let error = RedisBackend::connect(options(&url)).await.unwrap_err();
    assert!(matches!(error, RedisConnectError::Unauthorized { .. }), "{error:?}");
    assert!(error.to_string().contains("ACL LOG"), "{error}");
    set_user(&server, "bus", &ACL_RULES.replace("+xadd", ""));
    let backend = RedisBackend::connect(options(&url)).await.unwrap();
    let publishing = backend.publish(Message::new(subject("a"), ""), PublishOptions::default());
    let error = soon(publishing.outcome()).await.unwrap_err();
    assert!(matches!(error, PublishError::Denied { .. }), "{error:?}");
    assert!(error.to_string().contains("ACL LOG"), "{error}");
}
