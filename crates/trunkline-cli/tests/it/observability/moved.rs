//! Every number of a bus moves when what it counts happens, and by as much, on every backend.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use trunkline::backend::Backend;
use trunkline::backend::memory::MemoryBackend;
use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::redis::{RedisBackend, RedisOptions};
use trunkline::config::RedisUrl;
use trunkline::topics::payload::{ToolCall, ToolResult};
use trunkline::{Bus, BusOptions, Event, HandlerError};
use trunkline_testkit::{NatsServer, RedisServer};

use super::scene::work;
use crate::command::PATIENCE;

/// Messages of a burst that a subscription with room for two is not given whole.
const BURST: u64 = 500;

/// The numbers behind the series of a bus.
fn numbers(bus: &Bus) -> BTreeMap<String, f64> {
    let mut registry = Registry::default();
    bus.telemetry().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes all");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            (series.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_on_a_bus_is_in_its_metrics_on_every_backend() {
    let redis = RedisServer::start_volatile();
    let nats = NatsServer::start(["-js"]);
    let url = RedisUrl::parse(redis.url()).expect("a URL");
    let backends: [(&str, Arc<dyn Backend>); 3] = [
        ("in_memory", Arc::new(MemoryBackend::connect_to(&Default::default()))),
        ("redis", Arc::new(RedisBackend::connect(RedisOptions::new(url)).await.expect("Redis is there"))),
        ("nats", Arc::new(NatsBackend::connect(NatsOptions::new([nats.url()])).await.expect("it is there"))),
    ];
    for (name, backend) in backends {
        check(name, Bus::with_backend(backend, BusOptions::default())).await;
    }
}

async fn check(name: &str, bus: Bus) {
    let before = numbers(&bus);
    let moved = before.iter().find(|(_, value)| **value != 0.0);
    assert_eq!(moved, None, "{name}: nothing has happened yet");
    // A publish, a delivery, an ack, a nak, a redelivery, a dead letter; a request and its answer.
    work(&bus).await;

    let gone = bus.request(bus.topics().tool("gone").expect("a token").call(), &ToolCall::default()).await;
    gone.expect_err("nobody answers");
    let call = bus.topics().tool("broken").expect("a token").call();
    let broken = async |_request, _call: ToolCall| Err::<ToolResult, _>(HandlerError::new("out of order"));
    let responder = bus.respond(call.clone(), broken).start().await.expect("started");
    bus.request(call, &ToolCall::default()).await.expect_err("the answer is an error");
    responder.stop().await;

    let topic = trunkline::Topic::<String, ()>::new("seen.much".parse().expect("a subject"));
    let mut slow =
        bus.subscribe("seen.>".parse().expect("a pattern")).max_pending(2).await.expect("subscribed");
    for n in 0..BURST {
        bus.publish(topic.clone(), &n.to_string()).await.expect("published");
    }
    bus.flush().await.expect("flushed");
    let (mut given, mut missed) = (0, 0);
    while given + missed < BURST {
        let event = tokio::time::timeout(PATIENCE, slow.next()).await;
        match event.unwrap_or_else(|_| panic!("{name}: {given} given and {missed} missed of {BURST}")) {
            Some(Event::Message(_)) => given += 1,
            Some(Event::Gap(gap)) => missed += gap.missed.expect("it is known how many"),
            None => panic!("{name}: the subscription ended"),
        }
    }

    let after = numbers(&bus);
    let labels = "{stream=\"work\",consumer=\"worker\"}";
    for (series, expected) in [
        ("trunkline_requests_total".to_owned(), 3.0),
        ("trunkline_request_errors_total".to_owned(), 2.0),
        ("trunkline_answered_requests_total".to_owned(), 1.0),
        ("trunkline_answered_errors_total".to_owned(), 1.0),
        ("trunkline_requests_in_flight".to_owned(), 0.0),
        ("trunkline_request_seconds_count".to_owned(), 1.0),
        ("trunkline_deliveries_total".to_owned(), 4.0),
        ("trunkline_acked_deliveries_total".to_owned(), 2.0),
        ("trunkline_nacked_deliveries_total".to_owned(), 1.0),
        ("trunkline_terminated_deliveries_total".to_owned(), 1.0),
        ("trunkline_redelivered_deliveries_total".to_owned(), 1.0),
        ("trunkline_handled_deliveries_total".to_owned(), 2.0),
        ("trunkline_failed_deliveries_total".to_owned(), 2.0),
        ("trunkline_dead_letters_total".to_owned(), 1.0),
        ("trunkline_missed_messages_total".to_owned(), missed as f64),
        (format!("trunkline_consumer_handler_seconds_count{labels}"), 4.0),
        (format!("trunkline_consumer_end_to_end_seconds_count{labels}"), 3.0),
        ("trunkline_responder_handler_seconds_count{queue=\"echo\"}".to_owned(), 1.0),
        ("trunkline_responder_end_to_end_seconds_count{queue=\"echo\"}".to_owned(), 1.0),
        ("trunkline_handlers_running".to_owned(), 0.0),
    ] {
        assert_eq!(after.get(&series), Some(&expected), "{name}: {series} in {after:#?}");
    }
    // Requests, replies and dead letters are published as well; not where a backend knows before that nobody answers.
    let published = after["trunkline_published_messages_total"] - BURST as f64 - 3.0;
    assert!((5.0..=6.0).contains(&published), "{name}: {published} beside the messages of this test");
    let at_least = |series: &str, least: f64| {
        assert!(after[series] >= least, "{name}: {series} is {}", after[series]);
    };
    at_least("trunkline_gaps_total", if missed > 0 { 1.0 } else { 0.0 });
    at_least("trunkline_received_messages_total", given as f64);
    // Of a burst few are looked at; one at least.
    at_least("trunkline_subscription_end_to_end_seconds_count", 1.0);
    assert!(missed > 0, "{name}: a subscription with room for two was given all of {BURST}");
    bus.drain(Duration::from_secs(10)).await.expect("drained");
}
