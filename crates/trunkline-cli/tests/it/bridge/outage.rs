//! What becomes of clients when Redis, or their server, is away.

use std::time::{Duration, Instant};

use serde_json::Value;
use trunkline_testkit::clients::{ClientLibrary, ScenarioRun};
use trunkline_testkit::{RedisCluster, RedisSentinels, RedisServer};

use super::raw::Raw;
use super::redis::{Answer, OTHER, ask};
use super::{Bridge, http_get};
use crate::command::{PATIENCE, run};

/// The status of `/readyz`, as `trunkline status` shows it.
fn status(server: &Bridge) -> String {
    let report = run(&["status", "--http", server.http(), "--json"]).stdout;
    let report: Value = serde_json::from_slice(&report).expect("a report in JSON");
    report["status"].as_str().unwrap_or_default().to_owned()
}

/// Waits until the server's status is this.
fn until_status(server: &Bridge, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    while status(server) != wanted {
        assert!(Instant::now() < deadline, "the status never became {wanted}:\n{}", server.log());
    }
}

#[test]
fn what_was_flushed_is_in_redis_when_the_server_is_killed() {
    const COUNT: i64 = 2000;
    let redis = RedisServer::start();
    let mut server = Bridge::start(&redis);
    let mut client = Raw::connect(server.url());
    for n in 0..COUNT {
        client.publish("kept", None, n.to_string().as_bytes());
    }
    client.flush();
    server.kill();
    assert_eq!(ask(&redis, &format!("XLEN {OTHER}")), Answer::Number(COUNT));
}

#[test]
fn what_a_client_published_before_it_left_is_published() {
    const COUNT: i64 = 500;
    let redis = RedisServer::start_volatile();
    let server = Bridge::start(&redis);
    let mut witness = Raw::connect(server.url());
    witness.subscribe("left", "1");
    let mut client = Raw::connect(server.url());
    for n in 0..COUNT {
        client.publish("left", None, n.to_string().as_bytes());
    }
    drop(client);
    for n in 0..COUNT {
        assert_eq!(witness.message().text(), n.to_string());
    }
}

#[test]
fn a_restart_of_redis_is_survived_by_clients_that_stay_connected() {
    let mut redis = RedisServer::start();
    let (one, other) = (Bridge::with(&redis, "publish_timeout: 30s"), Bridge::start(&redis));
    let (mut publisher, mut subscriber) = (Raw::connect(one.url()), Raw::connect(other.url()));
    subscriber.subscribe("through", "1");
    publisher.publish("through", None, b"before");
    publisher.flush();
    // Takes the INFO that follows the first answer.
    publisher.flush();
    assert_eq!(subscriber.message().text(), "before");

    redis.kill();
    until_status(&one, "down");
    // What is published now waits, and is confirmed to nobody.
    publisher.publish("through", None, b"meanwhile");
    publisher.send("PING\r\n");
    assert!(publisher.is_silent_for(Duration::from_millis(300)), "a flush succeeds while Redis is away");
    redis.restart();
    assert_eq!(publisher.line_past_info(), "PONG");
    publisher.publish("through", None, b"after");
    publisher.flush();
    assert_eq!(
        [subscriber.message(), subscriber.message()].map(|got| got.text().to_owned()),
        ["meanwhile", "after"]
    );
}

#[test]
fn a_message_that_waits_too_long_ends_its_connection_and_no_flush_succeeds() {
    let mut redis = RedisServer::start_volatile();
    let server = Bridge::with(&redis, "publish_timeout: 500ms");
    let mut idle = Raw::connect(server.url());
    idle.subscribe("idle", "1");
    let mut client = Raw::connect(server.url());
    client.flush();
    redis.kill();
    until_status(&server, "down");
    client.publish("lost", None, b"x");
    client.send("PING\r\n");
    assert_eq!(client.line_past_info(), "-ERR 'Stale Connection'");
    assert_eq!(client.line_past_info(), "", "the connection is to end, and no PONG comes first");
    let mut late = Raw::connect(server.url());
    late.send("SUB late 1\r\nPING\r\n");
    assert_eq!(late.line_past_info(), "-ERR 'Stale Connection'");
    // Who asks for nothing has nothing to lose.
    idle.flush();
}

#[test]
fn stock_clients_come_back_by_themselves_after_an_outage() {
    for library in ClientLibrary::ALL {
        let mut redis = RedisServer::start_volatile();
        let server = Bridge::with(&redis, "publish_timeout: 500ms");
        let mut run = ScenarioRun::start_on_bridge(library, "outage_of_the_backend", server.url());
        run.wait_for_line("ready-for-outage");
        redis.kill();
        run.wait_for_line("flush-failed");
        redis.restart();
        run.finish();
    }
}

/// What the server says of itself after `hurt`: within two seconds, and a little for a busy machine, that Redis is away, in
/// every place where it says how it is.
fn tells_everywhere_of(server: &Bridge, hurt: impl FnOnce()) {
    let mut client = Raw::connect(server.url());
    client.send("SUB nachos.system.health 1\r\n");
    client.flush_among(0);
    hurt();
    let started = Instant::now();
    let document = loop {
        let envelope: Value = serde_json::from_str(client.message().text()).expect("an envelope");
        if envelope["payload"]["status"] != "ok" {
            break envelope["payload"].clone();
        }
    };
    let took = started.elapsed();
    assert_eq!(document["status"], "down", "{document}");
    assert_eq!(document["checks"]["backend"]["backend"], "redis", "{document}");
    assert!(took < Duration::from_millis(2500), "it took {took:?}");
    assert_eq!(status(server), "down");
    let metrics = http_get(server.http(), "/metrics");
    let state = r#"trunkline_backend_state{backend="redis",state="disconnected"} 1"#;
    assert!(metrics.contains(state), "{metrics}");
    assert!(http_get(server.http(), "/healthz").contains(r#""backend":"disconnected""#));
}

#[test]
fn an_outage_shows_within_two_seconds_everywhere() {
    let mut redis = RedisServer::start_volatile();
    let server = Bridge::start(&redis);
    // Frozen, so that no broken connection tells.
    tells_everywhere_of(&server, || redis.pause());
    redis.resume();
    until_status(&server, "ok");
    tells_everywhere_of(&server, || redis.kill());
    redis.restart();
    until_status(&server, "ok");
}

#[test]
fn a_master_that_is_gone_shows_within_two_seconds_everywhere() {
    let mut sentinels = RedisSentinels::start();
    // Nobody is named in its place before the test has seen enough.
    sentinels.wait_before_failover(60_000);
    let server = Bridge::at(&sentinels.url(), "");
    tells_everywhere_of(&server, || sentinels.servers()[0].pause());
    sentinels.servers()[0].resume();
    until_status(&server, "ok");
    tells_everywhere_of(&server, || sentinels.servers()[0].kill());
    sentinels.wait_before_failover(500);
    until_status(&server, "ok");
}

#[test]
fn a_node_that_is_gone_shows_within_two_seconds_everywhere() {
    let mut cluster = RedisCluster::start();
    let server = Bridge::at(&cluster.url(), "");
    // The node with the health of components itself, and one without.
    let near = cluster.owner(cluster.slot_of("atlas_bus:{family.system}"));
    let families = ["tool", "llm", "audit", "channel", "skill", "gateway"];
    let owners =
        families.map(|family| cluster.owner(cluster.slot_of(&format!("atlas_bus:{{family.{family}}}"))));
    let far = *owners.iter().find(|owner| **owner != near).expect("not all families are on one node");
    tells_everywhere_of(&server, || cluster.nodes()[near].pause());
    cluster.nodes()[near].resume();
    cluster.wait_until_ready();
    until_status(&server, "ok");
    tells_everywhere_of(&server, || cluster.nodes_mut()[far].kill());
    cluster.nodes_mut()[far].restart();
    cluster.wait_until_ready();
    until_status(&server, "ok");
}
