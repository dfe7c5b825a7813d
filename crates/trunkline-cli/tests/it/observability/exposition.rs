//! `/metrics`, as promtool reads it.

use trunkline_testkit::{NatsServer, RedisServer};

use super::{Up, get, promtool};

/// promtool finds nothing to say about the metrics of this bus; returns them.
#[track_caller]
fn valid_metrics(up: &Up) -> String {
    let (status, text) = get(&up.http, "/metrics");
    assert_eq!(status, 200);
    let ended = promtool(&["check", "metrics"], &text);
    assert!(ended.status.success() && ended.stderr.trim().is_empty(), "{ended:?}\n{text}");
    text
}

#[test]
fn metrics_of_every_backend_are_valid_in_the_eyes_of_promtool() {
    let streams = "streams: [{name: audit, subjects: [audit.>]}]";
    let component = "components:\n  idle: {command: [sleep, '600']}\n";
    let redis = RedisServer::start_volatile();
    let nats = NatsServer::start(["-js"]);
    for (backend, name) in [
        ("backend: in_memory".to_owned(), "in_memory"),
        (format!("backend: redis, redis_url: '{}'", redis.url()), "redis"),
        (format!("backend: nats, nats_url: '{}'", nats.url()), "nats"),
    ] {
        let up = Up::start(&format!(
            "messaging: {{{backend}, fallback: fail, {streams}}}\nruntime: {{resources: {{memory: 256MB}}}}\n{component}"
        ));
        let text = valid_metrics(&up);
        for line in [
            format!("trunkline_backend_state{{backend=\"{name}\",state=\"ok\"}} 1"),
            "trunkline_health_state{state=\"ok\"} 1".to_owned(),
            "trunkline_stream_messages{stream=\"audit\"} 0".to_owned(),
            "trunkline_outbox_messages 0".to_owned(),
            "trunkline_request_seconds_count 0".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{name}: {line} is not in {text}");
        }
        assert!(text.contains("\ntrunkline_memory_limit_bytes "), "{name}: {text}");
        assert!(text.contains("trunkline_component_restarts_total{component=\"idle\"} 0"), "{name}: {text}");
    }
}
