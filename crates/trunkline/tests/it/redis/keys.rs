//! What lies on the server, and who may see it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use trunkline::backend::redis::{RedisBackend, RedisConnectError};
use trunkline::backend::{Backend, PublishError, Receipt, Start, StreamConfig, SubscribeOptions};
use trunkline::{Bus, BusOptions, DeadLetterFilter, Delivered, Event, HandlerError};
use trunkline_testkit::RedisServer;

use super::{connect, ensure, next, options, publish, raw, run, soon, streams, subject, subscribe};

/// Thousands of subjects are few keys, and every key starts with the prefix.
#[tokio::test]
async fn many_subjects_are_few_keys_and_all_under_the_prefix() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    let mut all = subscribe(&backend, "nachos.>", SubscribeOptions::default()).await;
    for n in 0..1000 {
        publish(&backend, &format!("nachos.tool.t{n}.call"), n).await.unwrap();
    }
    for n in 0..1000 {
        assert_eq!(next(&mut *all).await, n.to_string());
    }
    let keys: BTreeSet<String> = run(&mut raw(&server).await, "KEYS *").await;
    assert!(keys.len() < 20, "{keys:?}");
    assert!(keys.iter().all(|key| key.starts_with("atlas_bus:")), "{keys:?}");
    assert!(keys.contains("atlas_bus:{family.tool}"), "{keys:?}");
    let clients: String = run(&mut raw(&server).await, "CLIENT LIST").await;
    assert!(clients.lines().count() < 20, "{clients}");
}

/// Subjects go to the stream of their family, unless a configured stream takes them; dead letters do not age.
#[tokio::test]
async fn subjects_go_to_their_family_or_their_stream() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    ensure(&backend, StreamConfig::new("hot", vec!["nachos.tool.hot.>".parse().unwrap()])).await;
    for (subject, stream) in [
        ("nachos.tool.hot.call", "hot"),
        ("nachos.tool.cold.call", "family.tool"),
        ("nachos.llm.request", "family.llm"),
        ("nachos.dead.s.c", "family.dead"),
        ("nachos.unheard.of", "family.other"),
        ("elsewhere", "family.other"),
        ("another-root.tool.x.call", "family.tool"),
    ] {
        let receipt = publish(&backend, subject, "x").await.unwrap();
        assert!(matches!(&receipt, Receipt::Stored { stream: found, .. } if found == stream), "{receipt:?}");
    }
}

/// Buses with different roots under one prefix keep their dead letters apart, and understand each other's subjects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_under_one_prefix_share_subjects_and_keep_their_dead_letters_apart() {
    let server = RedisServer::start();
    let mut buses = Vec::new();
    for root in ["one", "two"] {
        let options = BusOptions { subject_root: root.parse().unwrap(), ..BusOptions::default() };
        buses.push(Bus::with_backend(Arc::new(connect(&server).await), options));
    }
    let [one, two] = &buses[..] else { unreachable!() };
    let mut heard = two.subscribe("one.tool.>".parse().unwrap()).await.unwrap();
    one.publish_bytes(subject("one.tool.x.call"), "hello").await.unwrap();
    let Some(Event::Message(hello)) = soon(heard.next()).await else { panic!("no message") };
    assert_eq!(hello.message().payload, "hello");

    for (bus, root) in buses.iter().zip(["one", "two"]) {
        let stream = bus.stream(root).unwrap();
        stream.ensure(vec![format!("{root}.work").parse().unwrap()]).await.unwrap();
        let mut dead = bus.subscribe(bus.topics().dead_letters()).await.unwrap();
        let reject = async |_: Delivered| Err(HandlerError::reject("never"));
        let job = stream.consumer("c").unwrap().start(Start::Beginning).spawn(reject).await.unwrap();
        bus.publish_bytes(subject(&format!("{root}.work")), "x").await.unwrap();
        soon(dead.next()).await.expect("a dead letter");
        job.drain(Duration::from_secs(5)).await.unwrap();
    }
    for (bus, root) in buses.iter().zip(["one", "two"]) {
        let dead = bus.dead_letters().unwrap();
        assert_eq!(dead.stream().await.unwrap().unwrap().config.name, format!("dead-{root}"));
        let letters = dead.page(&DeadLetterFilter::default(), Start::Beginning, 10).await.unwrap().letters;
        assert_eq!((letters.len(), letters[0].stream.as_str()), (1, root));
        dead.redrive(&letters[0], None).await.unwrap();
        assert!(dead.get(letters[0].offset).await.unwrap().is_none());
    }
}

/// Built-in streams are nobody's to remove, and what is not there is not removed.
#[tokio::test]
async fn built_in_streams_are_not_removed() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    publish(&backend, "nachos.tool.x", 1).await.unwrap();
    for name in ["family.tool", "family.other", "bus", "none", "a b"] {
        assert!(!soon(streams(&backend).remove(name)).await.unwrap(), "{name}");
    }
    assert_eq!(server.ask("XLEN atlas_bus:{family.tool}"), redis::Value::Int(1));
    ensure(&backend, StreamConfig::new("bus", vec!["by.bus".parse().unwrap()])).await;
    assert!(soon(streams(&backend).remove("bus")).await.unwrap());
    ensure(&backend, StreamConfig::new("again", vec!["again".parse().unwrap()])).await;
    assert_eq!(soon(streams(&backend).list()).await.unwrap().len(), 1);
}

/// Two prefixes on one server never see each other.
#[tokio::test]
async fn prefixes_do_not_see_each_other() {
    let server = RedisServer::start();
    let one = connect(&server).await;
    let mut elsewhere = options(server.url());
    elsewhere.prefix = "elsewhere".to_owned();
    let two = RedisBackend::connect(elsewhere).await.unwrap();
    let (mut ones, mut twos) = (
        subscribe(&one, ">", SubscribeOptions::default()).await,
        subscribe(&two, ">", SubscribeOptions::default()).await,
    );
    ensure(&one, StreamConfig::new("s", vec!["a.>".parse().unwrap()])).await;
    ensure(&two, StreamConfig::new("s", vec!["a.b".parse().unwrap()])).await;
    publish(&one, "a.b", "one").await.unwrap();
    publish(&two, "a.b", "two").await.unwrap();
    assert_eq!((next(&mut *ones).await, next(&mut *twos).await), ("one".to_owned(), "two".to_owned()));
    assert!(soon(streams(&one).remove("s")).await.unwrap());
    assert_eq!(soon(streams(&two).list()).await.unwrap().len(), 1);
}

/// A stream that another process makes later is drawn from by subscriptions that were there before, and what comes
/// after it was removed reaches them, too.
#[tokio::test]
async fn streams_that_come_and_go_do_not_disturb_a_subscription() {
    let server = RedisServer::start();
    let (reader, writer) = (connect(&server).await, connect(&server).await);
    let mut all = subscribe(&reader, "nachos.>", SubscribeOptions::default()).await;
    let queue = SubscribeOptions { queue: Some("q".parse().unwrap()), ..SubscribeOptions::default() };
    let mut shared = subscribe(&reader, "nachos.tool.>", queue).await;
    let mut n = 0;
    for round in 0..3 {
        publish(&writer, "nachos.tool.x", n).await.unwrap();
        ensure(&writer, StreamConfig::new("late", vec!["nachos.tool.*".parse().unwrap()])).await;
        let receipt = publish(&writer, "nachos.tool.x", n + 1).await.unwrap();
        assert!(matches!(&receipt, Receipt::Stored { stream, .. } if stream == "late"), "{receipt:?}");
        // Two streams have no order between them.
        let got = BTreeSet::from([next(&mut *all).await, next(&mut *all).await]);
        assert_eq!(got, BTreeSet::from([n.to_string(), (n + 1).to_string()]), "round {round}");
        assert!(soon(streams(&writer).remove("late")).await.unwrap());
        n += 2;
    }
    // The group reads the family from when it was joined; the stream from when it heard of it.
    assert_eq!(next(&mut *shared).await, "0");
}

/// Messages older than the limit are gone for readers although nobody publishes.
#[tokio::test]
async fn age_removes_messages_also_when_nobody_publishes() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    let mut config = StreamConfig::new("brief", vec!["brief".parse().unwrap()]);
    config.max_age = Some(Duration::from_millis(300));
    ensure(&backend, config).await;
    publish(&backend, "brief", 1).await.unwrap();
    let read = async || {
        let request = trunkline::backend::ReadRequest { from: Start::Beginning, filter: None, max: 10 };
        soon(streams(&backend).read("brief", request)).await.unwrap().messages.len()
    };
    assert_eq!(read().await, 1);
    let aged = async {
        while read().await > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(aged).await;
}

/// A password that is wrong fails at once and shows nowhere; the right one works, as does an ACL user.
#[tokio::test]
async fn credentials_are_used_and_not_shown() {
    let arguments = "--requirepass s3cret --user bus on >pw ~* &* +@all";
    let server = RedisServer::start_with(arguments.split(' '));
    let at = format!("127.0.0.1:{}", server.port());
    for wrong in [String::new(), ":wr0ng@".to_owned(), "bus:wr0ng@".to_owned()] {
        let error = RedisBackend::connect(options(&format!("redis://{wrong}{at}"))).await.unwrap_err();
        assert!(matches!(error, RedisConnectError::Unauthorized { .. }), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("wr0ng"), "{error:?}");
    }
    for right in [":s3cret@", "bus:pw@"] {
        let backend = RedisBackend::connect(options(&format!("redis://{right}{at}/3"))).await.unwrap();
        publish(&backend, "a", 1).await.unwrap();
        let shown = backend.status().borrow().server.clone();
        assert_eq!(shown, format!("redis://{at}/3"));
    }
}

/// What a user may not do is told for what it is: at the start where nothing would work, else for the message.
#[tokio::test]
async fn denied_is_told_for_what_it_is() {
    let arguments = "--user none on >pw ~* &* +@all -evalsha \
                     --user tool on >pw ~atlas_bus:{bus}:* ~atlas_bus:{family.tool}* &* +@all";
    let server = RedisServer::start_with(arguments.split_whitespace());
    let url = |user: &str| format!("redis://{user}:pw@127.0.0.1:{}", server.port());
    // Scripts are what the bus lives by: without them there is no connection.
    let error = RedisBackend::connect(options(&url("none"))).await.unwrap_err();
    assert!(matches!(error, RedisConnectError::Unauthorized { .. }), "{error:?}");
    let backend = RedisBackend::connect(options(&url("tool"))).await.unwrap();
    publish(&backend, "nachos.tool.x", 1).await.unwrap();
    let error = publish(&backend, "nachos.llm.x", 1).await.unwrap_err();
    assert!(matches!(error, PublishError::Denied { .. }), "{error:?}");
    publish(&backend, "nachos.tool.x", 2).await.unwrap();
}
