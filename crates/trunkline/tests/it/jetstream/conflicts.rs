//! Streams and consumers that are there already, in another way than was asked for: errors show both sides.

use std::time::Duration;

use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::{ConsumerConfig, Start, StreamConfig, StreamError};

use super::{connect, ensure, message, options, publish, server, soon, streams};

async fn refused(backend: &NatsBackend, config: StreamConfig) -> String {
    soon(streams(backend).ensure(config)).await.expect_err("it is refused").to_string()
}

fn stream(name: &str, patterns: &[&str]) -> StreamConfig {
    StreamConfig::new(name, patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_show_what_is_there_and_what_was_wanted() {
    let server = server();
    let (backend, raw) = (connect(&server).await, async_nats::connect(server.url()).await.unwrap());
    let create = async |name: &str, body: &str| {
        let subject = format!("$JS.API.STREAM.CREATE.{name}");
        let answer = soon(raw.request(subject, body.to_owned().into())).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer.payload).contains("error"), "{answer:?}");
    };
    // A stream of the same name that keeps messages in another way.
    create("atlas_bus_queue", r#"{"name":"atlas_bus_queue","subjects":["queue.>"],"retention":"workqueue"}"#)
        .await;
    let conflict = refused(&backend, stream("queue", &["queue.>"])).await;
    for part in [
        r#"stream "queue" exists with file storage, workqueue retention"#,
        r#"file storage, limits retention, subjects ["queue.>"]"#,
        "not a stream of the bus",
    ] {
        assert!(conflict.contains(part), "{part}: {conflict}");
    }
    // The server's own reason, where it is the server that cannot change it.
    ensure(&backend, "copies", "copies.>").await;
    let mut copies = stream("copies", &["copies.>"]);
    copies.replicas = 3;
    let conflict = refused(&backend, copies).await;
    assert!(conflict.contains("1 replicas") && conflict.contains("3 replicas: "), "{conflict}");
    // Patterns of two streams, of this prefix and of strangers.
    create("ORDERS", r#"{"name":"ORDERS","subjects":["orders.*"]}"#).await;
    for (mine, other, theirs) in [("copies.eu", "copies", "copies.>"), ("orders.>", "ORDERS", "orders.*")] {
        let overlap = refused(&backend, stream("mine", &["free", mine])).await;
        let expected = format!("pattern {mine} of stream \"mine\" overlaps {theirs} of stream {other:?}");
        assert_eq!(overlap, expected);
    }
    // The subjects of requests follow the configured root, the server's own do not.
    let rooted = NatsOptions { subject_root: "acme".to_owned(), ..options(&server) };
    let rooted = NatsBackend::connect(rooted).await.unwrap();
    for (pattern, taken) in [
        ("acme.>", "acme.gateway.request"),
        ("acme.tool.search.*", "acme.tool.*.call"),
        ("*.llm.*", "acme.llm.request"),
        ("_INBOX.a", "_INBOX.>"),
        ("$KV.a", "$KV.>"),
    ] {
        let refused = refused(&rooted, stream("bad", &[pattern])).await;
        assert!(refused.contains(&format!("pattern {pattern} takes messages of {taken}: ")), "{refused}");
    }
    ensure(&rooted, "other", "nachos.tool.*.call").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_that_work_in_another_way_are_not_joined() {
    let server = server();
    let (backend, raw) = (connect(&server).await, async_nats::connect(server.url()).await.unwrap());
    ensure(&backend, "work", "work.>").await;
    publish(&backend, message("work.x", 1)).await.unwrap();
    let join = async |config: ConsumerConfig| {
        soon(streams(&backend).join("work", config)).await.map(|_| ()).map_err(|error| error.to_string())
    };
    let filtered = ConsumerConfig { filter: Some("work.a".parse().unwrap()), ..ConsumerConfig::new("c") };
    assert_eq!(join(filtered.clone()).await, Ok(()));
    assert_eq!(
        join(ConsumerConfig { keyed: true, ..filtered }).await.unwrap_err(),
        "consumer \"c\" exists with filter work.a, keyed false, and cannot be changed to filter work.a, keyed true"
    );
    for (name, body, why) in [
        ("pushing", r#""ack_policy":"explicit","deliver_subject":"here""#, "it pushes"),
        ("careless", r#""ack_policy":"none""#, "its acks are not explicit"),
        ("tired", r#""ack_policy":"explicit","max_deliver":3"#, "it sets max_deliver"),
    ] {
        let request = format!(
            r#"{{"stream_name":"atlas_bus_work","config":{{"name":"{name}","durable_name":"{name}",{body}}}}}"#
        );
        let subject = format!("$JS.API.CONSUMER.CREATE.atlas_bus_work.{name}");
        let answer = soon(raw.request(subject, request.into())).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer.payload).contains("error"), "{answer:?}");
        let conflict = join(ConsumerConfig::new(name)).await.unwrap_err();
        assert!(conflict.contains(why) && conflict.contains("no filter, keyed false"), "{conflict}");
    }
    let ahead = ConsumerConfig {
        start: Start::After(trunkline::StreamOffset::Sequence(9)),
        ack_wait: Duration::from_secs(1),
        ..ConsumerConfig::new("ahead")
    };
    let refused = soon(streams(&backend).join("work", ahead)).await.map(|_| ()).unwrap_err();
    assert!(matches!(refused, StreamError::OffsetAhead { .. }), "{refused:?}");
}
