//! Health that tells the truth: soon, everywhere, in one shape, and again when all is well.

use std::time::{Duration, Instant};

use serde_json::Value;
use trunkline::health::SystemHealth;
use trunkline_testkit::{NatsServer, RedisServer};

use super::{Up, eventually, get};
use crate::command::run;

/// Two seconds, and a little for a busy machine.
const SOON: Duration = Duration::from_millis(2500);

fn on_nats(nats: &NatsServer, components: &str) -> Up {
    Up::start(&format!(
        "messaging: {{backend: nats, nats_url: '{}'}}\ncomponents:\n  idle: {{command: [sleep, '600']}}\n{components}",
        nats.url()
    ))
}

fn ready(up: &Up) -> (u16, SystemHealth) {
    let (status, body) = get(&up.http, "/readyz");
    (status, serde_json::from_str(&body).expect("the one shape of health"))
}

fn until_ready(up: &Up) {
    eventually("a bus that is ready", || match ready(up) {
        (200, health) if health.status == "ok" => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// `trunkline status --json`.
fn status(up: &Up) -> Value {
    serde_json::from_slice(&run(&["status", "--http", &up.http, "--json"]).stdout).expect("JSON")
}

#[test]
fn nats_that_stands_still_or_is_gone_shows_within_two_seconds_everywhere() {
    let mut nats = NatsServer::start::<&str>([]);
    let up = on_nats(&nats, "");
    until_ready(&up);
    type Hurt = fn(&mut NatsServer);
    let ways: [(&str, Hurt, Hurt); 2] = [
        // Frozen, so that no broken connection tells.
        ("stands still", |nats| nats.pause(), |nats| nats.resume()),
        ("is killed", |nats| nats.kill(), |nats| nats.restart()),
    ];
    for (how, hurt, mend) in ways {
        hurt(&mut nats);
        let since = Instant::now();
        let health = eventually("a bus that is not ready", || match ready(&up) {
            (503, health) => Ok(health),
            other => Err(format!("{other:?}")),
        });
        let took = since.elapsed();
        assert!(took < SOON, "NATS {how}: it took {took:?}");
        assert_eq!((health.status.as_str(), health.component.as_str()), ("down", "trunkline"), "{health:?}");
        assert_eq!(health.checks["backend"].details["backend"], "nats", "{health:?}");
        assert!(
            health.reason.is_some() && health.uptime.is_some() && !health.version.is_empty(),
            "{health:?}"
        );
        assert_eq!(get(&up.http, "/healthz").0, 200);
        let report = status(&up);
        assert_eq!((&report["status"], &report["ready"]), (&"down".into(), &false.into()), "{report}");
        assert_eq!(report["checks"]["backend"]["state"], "disconnected", "{report}");
        let metrics = get(&up.http, "/metrics").1;
        let state = "trunkline_backend_state{backend=\"nats\",state=\"disconnected\"} 1";
        assert!(metrics.contains(state), "NATS {how}: {metrics}");
        mend(&mut nats);
        until_ready(&up);
    }
}

#[test]
fn a_component_that_has_failed_is_a_check_that_says_why() {
    let nats = NatsServer::start::<&str>([]);
    let up = on_nats(&nats, "  broken: {command: [sh, -c, 'exit 3'], restart: 'no'}\n");
    let (code, health) = eventually("a bus that tells of it", || match ready(&up) {
        (_, health) if health.status == "ok" => Err(format!("{health:?}")),
        told => Ok(told),
    });
    assert_eq!((code, health.status.as_str()), (503, "degraded"), "{health:?}");
    let check = &health.checks["component.broken"];
    assert!(check.reason.as_ref().is_some_and(|reason| reason.starts_with("failed (")), "{health:?}");
    assert_eq!(health.checks["component.idle"].status, "ok", "{health:?}");
    let report = status(&up);
    assert_eq!(
        (&report["status"], &report["component"]),
        (&"degraded".into(), &"trunkline".into()),
        "{report}"
    );
    assert_eq!(report["checks"]["component.broken"]["status"], "degraded", "{report}");
    assert_eq!(report["ready"], false, "{report}");
}

#[test]
fn status_has_the_one_shape_over_http_and_over_nats() {
    let nats = NatsServer::start::<&str>([]);
    let up = on_nats(&nats, "");
    until_ready(&up);
    let over_nats = run(&["status", "--url", nats.url(), "--json"]);
    let over_nats: Value = serde_json::from_slice(&over_nats.stdout).expect("JSON");
    for (report, component) in [(status(&up), "trunkline"), (over_nats, "nats-server")] {
        assert_eq!((&report["status"], &report["component"]), (&"ok".into(), &component.into()), "{report}");
        assert!(report["version"].as_str().is_some_and(|version| !version.is_empty()), "{report}");
        assert!(report.get("uptime").is_some(), "{report}");
        assert_eq!(report["checks"]["backend"]["status"], "ok", "{report}");
    }
}

#[test]
fn a_bus_whose_stream_was_removed_is_not_ready_and_says_which() {
    let redis = RedisServer::start_volatile();
    let nats = NatsServer::start(["-js"]);
    for backend in [
        "backend: in_memory".to_owned(),
        format!("backend: redis, redis_url: '{}'", redis.url()),
        format!("backend: nats, nats_url: '{}'", nats.url()),
    ] {
        let up = Up::start(&format!(
            "messaging: {{{backend}, fallback: fail, streams: [{{name: audit, subjects: [audit.>]}}]}}\n"
        ));
        until_ready(&up);
        assert_eq!(ready(&up).1.checks["streams"].status, "ok", "{backend}");
        match backend.contains("nats") {
            false => run(&["stream", "rm", "audit", "--yes", "--http", &up.http]).ok(),
            // Behind the back of the bus, as another program would.
            true => remove_on_jetstream(&nats),
        };
        let health = eventually("a bus that is not ready", || match ready(&up) {
            (503, health) => Ok(health),
            other => Err(format!("{other:?}")),
        });
        assert_eq!(health.status, "degraded", "{backend}: {health:?}");
        let reason = health.reason.as_deref().unwrap_or_default();
        assert!(reason.starts_with("streams: audit of messaging.streams"), "{backend}: {health:?}");
    }
}

/// Asks JetStream itself to delete the stream that the bus has made there.
fn remove_on_jetstream(nats: &NatsServer) -> Vec<u8> {
    let url = nats.url();
    run(&["request", "--url", url, "$JS.API.STREAM.DELETE.atlas_bus_audit", "", "--raw"]).ok()
}
