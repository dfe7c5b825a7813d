//! `/metrics`: valid OpenMetrics text, and numbers that are true.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use trunkline::Message;
use trunkline::backend::memory::MemoryBackend;
use trunkline::backend::{Backend, ConsumerConfig, PublishOptions, Start, StreamConfig, Streams};

use super::client::{Raw, get, http};
use super::fixture::Fixture;

/// Series by name and labels.
type Series = BTreeMap<String, f64>;

/// Reads an exposition and checks it against the rules of
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>: families in one piece with their type first, names that fit
/// the type, no series twice, labels quoted, values that are numbers, and the end marked.
fn parse(text: &str) -> Series {
    let body = text.strip_suffix("# EOF\n").expect("the end is marked");
    let (mut series, mut finished) = (Series::new(), HashSet::new());
    let mut family: Option<(String, String)> = None;
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (keyword, name, value) = (
                words.next().unwrap_or_default(),
                words.next().unwrap_or_default(),
                words.next().unwrap_or_default(),
            );
            match keyword {
                "HELP" => assert!(!value.is_empty(), "{line}"),
                "TYPE" => {
                    if let Some((last, _)) = family.replace((name.to_owned(), value.to_owned())) {
                        finished.insert(last);
                    }
                    assert!(!finished.contains(name), "{name} is not in one piece");
                    assert!(["counter", "gauge", "histogram", "info"].contains(&value), "{line}");
                }
                other => panic!("{other} in {line}"),
            }
            continue;
        }
        let (family, kind) = family.as_ref().expect("a type comes before its series");
        let (key, value) = line.rsplit_once(' ').expect("a name and a value");
        let (name, labels) = key.split_once('{').map_or((key, None), |(name, rest)| (name, Some(rest)));
        let suffixes: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "info" => &["_info"],
            "histogram" => &["_sum", "_count", "_bucket"],
            _ => &[""],
        };
        assert!(suffixes.iter().any(|suffix| name == format!("{family}{suffix}")), "{line}");
        assert!(name.starts_with("trunkline_"), "{line}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
        for pair in labels.iter().flat_map(|labels| labels.strip_suffix('}').expect("labels end").split(','))
        {
            let (label, value) = pair.split_once('=').expect("a label and a value");
            assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            assert!(value.starts_with('"') && value.ends_with('"') && value.len() >= 2, "{line}");
        }
        let number: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(number.is_finite() && number >= 0.0, "{line}");
        assert!(series.insert(key.to_owned(), number).is_none(), "{key} comes twice");
    }
    series
}

async fn scrape(fixture: &Fixture) -> Series {
    let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text\r\nConnection: close\r\n\r\n";
    let answer = http(fixture.http(), ask).await;
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type");
    assert_eq!(kind, Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    parse(&answer.body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_do_is_counted() {
    let mut fixture = Fixture::with(|options| options.limits.max_connections = 3).await;
    fixture.without_bystander();
    fixture.varz_becomes("connections", 0).await;
    let mut raw = Raw::ready(fixture.nats(), "\"headers\":true,\"no_responders\":true").await;
    raw.send("SUB a 1\r\nSUB a 2\r\nSUB inbox 3\r\nPUB a 5\r\nhello\r\nPUB nobody inbox 1\r\nx\r\n").await;
    raw.send("PUB nachos.dead.a.b 1\r\nx\r\n").await;
    raw.flush().await;
    // What a batch sent is counted before the next one is read.
    raw.flush().await;
    let (_second, _third) = (fixture.client().await, fixture.client().await);
    Raw::without_info(fixture.nats()).await.until_closed().await;
    let found = scrape(&fixture).await;
    for (name, expected) in [
        ("trunkline_connections", 3.0),
        ("trunkline_subscriptions", 3.0),
        ("trunkline_connections_refused_total", 1.0),
        ("trunkline_server_received_messages_total", 3.0),
        ("trunkline_server_received_bytes_total", 7.0),
        ("trunkline_server_denied_messages_total", 1.0),
        ("trunkline_server_no_responders_requests_total", 1.0),
        ("trunkline_slow_consumers_total", 0.0),
        ("trunkline_series_omitted", 0.0),
        ("trunkline_backend_degraded", 0.0),
        ("trunkline_backend_state{backend=\"in_memory\",state=\"ok\"}", 1.0),
        ("trunkline_backend_state{backend=\"in_memory\",state=\"degraded\"}", 0.0),
        ("trunkline_connections_closed_total{reason=\"slow_consumer\"}", 0.0),
    ] {
        assert_eq!(found.get(name), Some(&expected), "{name}");
    }
    let closed = "trunkline_connections_closed_total{reason=\"client\"}";
    assert_eq!(found["trunkline_connections_accepted_total"], 3.0 + found[closed]);
    assert!(found["trunkline_server_sent_messages_total"] >= 2.0);
    assert!(found["trunkline_process_resident_memory_bytes"] > 100_000.0);
    assert!(found.contains_key("trunkline_process_cpu_seconds_total"));
    assert!(found.contains_key("trunkline_uptime_seconds"));
    let build = format!("trunkline_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(found.get(&build), Some(&1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_consumers_have_series_of_their_own() {
    let mut fixture = Fixture::start().await;
    let backend = MemoryBackend::connect_to(&fixture.hub);
    let config = StreamConfig::new("audit", vec!["audit.>".parse().expect("a pattern")]);
    fixture.hub.ensure(config).await.expect("a new stream");
    let consumer = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("siem") };
    let member = fixture.hub.join("audit", consumer).await.expect("a new consumer");
    for _ in 0..3 {
        let message = Message::new("audit.log".parse().expect("a subject"), "0123456789");
        backend.publish(message, PublishOptions::default()).outcome().await.expect("published");
    }
    let fetched = member.fetch(2, Duration::from_secs(5)).await.expect("there are three");
    assert_eq!(fetched.deliveries.len(), 2);
    let found = scrape(&fixture).await;
    let labels = "{stream=\"audit\",consumer=\"siem\"}";
    let oldest = found[&format!("trunkline_consumer_oldest_pending_seconds{labels}")];
    assert!(oldest > 0.0 && oldest < 60.0, "{oldest}");
    for (name, expected) in [
        ("trunkline_stream_messages{stream=\"audit\"}".to_owned(), 3.0),
        (format!("trunkline_consumer_pending_messages{labels}"), 2.0),
        (format!("trunkline_consumer_lag_messages{labels}"), 1.0),
        (format!("trunkline_consumer_members{labels}"), 1.0),
        (format!("trunkline_consumer_redelivered_messages_total{labels}"), 0.0),
        (format!("trunkline_consumer_missed_messages_total{labels}"), 0.0),
    ] {
        assert_eq!(found.get(&name), Some(&expected), "{name}");
    }
    assert!(found["trunkline_stream_bytes{stream=\"audit\"}"] >= 30.0);
    assert!(found["trunkline_hub_published_messages_total"] >= 3.0);
    fixture.bystander_is_fine().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_in_this_process_is_shown_beside_the_server() {
    let telemetry = trunkline::Telemetry::default();
    let mut fixture = Fixture::with(|options| options.telemetry = Some(telemetry)).await;
    fixture.bystander_is_fine().await;
    let found = scrape(&fixture).await;
    assert_eq!(found.get("trunkline_published_messages_total"), Some(&0.0));
    assert!(found.contains_key("trunkline_received_messages_total"), "the bus's");
    assert!(found["trunkline_server_received_messages_total"] > 0.0, "the bystander's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_ask_for_open_metrics_gets_the_classic_format() {
    let fixture = Fixture::start().await;
    let answer = get(fixture.http(), "/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(answer.body.contains("# TYPE trunkline_connections_accepted_total counter\n"), "{}", answer.body);
    assert!(answer.body.contains("# TYPE trunkline_build_info gauge\n"), "{}", answer.body);
    assert!(!answer.body.contains("# EOF"), "{}", answer.body);
}

/// Subjects, names and patterns that a hostile crowd makes up.
const MADE_UP: usize = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_clients_make_up_there_are_no_more_series() {
    let mut fixture =
        Fixture::with(|options| options.telemetry = Some(trunkline::Telemetry::default())).await;
    fixture.bystander_is_fine().await;
    let before: Vec<String> = scrape(&fixture).await.into_keys().collect();
    let mut raw = Raw::ready(fixture.nats(), "\"name\":\"evil\\\"} 1\",\"headers\":true").await;
    for chunk in 0..MADE_UP / 1000 {
        let lines: String = (0..1000)
            .map(|n| {
                let n = chunk * 1000 + n;
                format!("SUB made.up.{n} g{n} {n}\r\nPUB made.up.{n} 1\r\nx\r\nUNSUB {n}\r\nPUB nachos.tool.t{n}.call made.up.{n} 0\r\n\r\n")
            })
            .collect();
        raw.send(&lines).await;
        raw.flush().await;
    }
    for n in 0..50 {
        let mut named =
            Raw::ready(fixture.nats(), &format!("\"name\":\"n{n}\",\"user\":\"u{n}\",\"lang\":\"l{n}\""))
                .await;
        named.flush().await;
    }
    let found = scrape(&fixture).await;
    assert!(found["trunkline_server_received_messages_total"] >= 2.0 * MADE_UP as f64);
    assert!(found["trunkline_connections_accepted_total"] >= 50.0);
    let after: Vec<String> = found.into_keys().collect();
    assert_eq!(after, before);
}
