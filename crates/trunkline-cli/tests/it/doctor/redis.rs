//! Redis as it should be, and as it should not.

use std::time::Instant;

use trunkline::backend::redis::ACL_RULES;
use trunkline_testkit::{Authority, RedisCluster, RedisSentinels, RedisServer, RedisVersion};

use super::{Patient, ends_in};
use crate::command::PATIENCE;

/// A bus that wants nothing lost, at this address.
fn patient(url: &str) -> Patient {
    Patient::with_messaging(&format!("backend: redis\nredis_url: '{url}'\nfallback: fail"))
}

/// Makes the user `bus` with these rules, and gives the address under which it connects.
fn user(server: &RedisServer, keys: &str, rules: &str) -> String {
    server.ask(&format!("ACL SETUSER bus reset on >secret {keys} -@all {rules}"));
    server.url().replacen("://", "://bus:secret@", 1)
}

#[test]
fn a_server_in_good_order_is_well() {
    let server = RedisServer::start();
    let diagnosis = patient(server.url()).examine();
    diagnosis
        .is_well()
        .says("config", "ok", "backend redis")
        .says("backend", "ok", "Redis 7")
        .says("persistence", "ok", "appendonly yes, appendfsync always")
        .says("eviction", "ok", "noeviction")
        .says("clock", "ok", "agrees")
        .says("permissions", "ok", "may do what the bus needs")
        .says("consumers", "ok", "no consumers")
        .says("dead-letters", "ok", "no dead letters")
        .says("disk", "ok", "the data of Redis");
    for check in ["backend", "persistence", "eviction", "clock", "permissions", "disk"] {
        diagnosis.has_nothing_against(check);
    }
}

#[test]
fn without_a_log_and_with_eviction_nothing_is_safe() {
    let server = RedisServer::start_with(["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]);
    patient(server.url()).examine().is_ill().says("persistence", "fail", "appendonly no").says(
        "eviction",
        "fail",
        "allkeys-lru",
    );
    // Who can do without Redis is only warned of the first.
    server.ask("CONFIG SET maxmemory-policy noeviction");
    Patient::with_messaging(&format!("backend: redis\nredis_url: '{}'", server.url()))
        .examine()
        .is_well()
        .says("persistence", "warn", "CONFIG SET appendonly yes");
    server.ask("CONFIG SET appendonly yes");
    server.ask("CONFIG SET appendfsync no");
    patient(server.url()).examine().is_well().says("persistence", "warn", "appendfsync no");
}

#[test]
fn a_disk_that_refuses_writes_fails() {
    let server = RedisServer::start_on_small_disk(
        RedisVersion::System,
        ["--appendonly", "yes", "--appendfsync", "everysec"],
    );
    server.fill_disk(1);
    let deadline = Instant::now() + PATIENCE;
    // The write that fails is the one that the server notices it by.
    while !format!("{:?}", server.try_ask("INFO persistence")).contains("aof_last_write_status:err") {
        let _ = server.try_ask("SET key value");
        assert!(Instant::now() < deadline, "the server writes all the same: {}", server.log());
    }
    patient(server.url()).examine().is_ill().says("persistence", "fail", "make room");
    server.free_disk();
}

#[test]
fn a_user_is_held_against_the_rules_and_nothing_is_done_with_its_rights() {
    for version in [RedisVersion::System, RedisVersion::Redis60] {
        let server = RedisServer::start_durable(version);
        let url = user(&server, "~atlas_bus:*", ACL_RULES);
        patient(&url).examine().is_well().says("permissions", "ok", "user bus").says(
            "persistence",
            "warn",
            "+info",
        );
        assert_eq!(format!("{:?}", server.ask("DBSIZE")), "int(0)", "{version:?}: something was written");

        // Redis 6 takes no part of a command away, so the rules are given without.
        let missing = ["+xadd", "+zrange", "+client|reply"];
        let fewer: Vec<&str> = ACL_RULES.split_whitespace().filter(|rule| !missing.contains(rule)).collect();
        let url = user(&server, "~atlas_bus:*", &fewer.join(" "));
        patient(&url).examine().is_ill().says("permissions", "fail", "ACL SETUSER bus +zrange +xadd").says(
            "permissions",
            "warn",
            "+client|reply",
        );

        let url = user(&server, "~other:*", ACL_RULES);
        patient(&url).examine().is_ill().says("permissions", "fail", "'~atlas_bus:*'");
        // A wrong password.
        let url = url.replace("secret", "geheim-7");
        let diagnosis = patient(&url).examine();
        diagnosis.is_ill().says("backend", "fail", "refused the credentials");
    }
}

#[test]
fn a_server_that_is_away_or_a_replica_fails() {
    let mut server = RedisServer::start();
    server.ask("REPLICAOF 127.0.0.1 1");
    patient(server.url()).examine().is_ill().says("backend", "fail", "is a replica");
    server.kill();
    patient(server.url())
        .examine()
        .is_ill()
        .says("backend", "fail", "start the server, or correct messaging.redis_url")
        .says("consumers", "warn", "while the backend is away");
    Patient::with_messaging(&format!("backend: redis\nredis_url: '{}'", server.url()))
        .examine()
        .is_ill()
        .says("backend", "fail", "would run on the fallback");
}

#[test]
fn certificates_are_told_before_they_end_and_after() {
    let authority = Authority::make();
    let configured = |url: &str| {
        let ca = authority.ca_file();
        let lines = format!("backend: redis\nredis_url: '{url}'\nredis_tls: {{ca_file: '{}'}}", ca.display());
        Patient::with_messaging(&lines)
    };
    let at = |server: &RedisServer| format!("rediss://localhost:{}", server.port());
    for (days, verdict, said) in
        [(300, "ok", "is good until"), (10, "warn", "in 10 days"), (-3, "fail", "expired on")]
    {
        let certificate = authority.sign_with(&["localhost", "127.0.0.1"], |params| ends_in(params, days));
        let server = RedisServer::start_tls(&authority, &certificate, false);
        let diagnosis = configured(&at(&server)).examine();
        diagnosis.says("tls", verdict, said);
        match days > 0 {
            true => diagnosis.says("backend", "ok", "answers"),
            false => diagnosis.is_ill().says("backend", "fail", "messaging.redis_tls"),
        };
    }
}

#[test]
fn sentinels_and_clusters_are_looked_at_behind_their_urls() {
    let mut sentinels = RedisSentinels::start();
    patient(&sentinels.url())
        .examine()
        .is_well()
        .says("backend", "ok", "Redis ")
        .says("persistence", "ok", "appendonly yes")
        .says("eviction", "ok", "noeviction")
        .says("permissions", "ok", "may do what the bus needs");
    let url = sentinels.url();
    for sentinel in sentinels.sentinels() {
        sentinel.kill();
    }
    patient(&url).examine().is_ill().says("backend", "fail", "could not be reached");

    let cluster = RedisCluster::start();
    patient(&cluster.url())
        .examine()
        .is_well()
        .says("backend", "ok", "Redis ")
        .says("eviction", "ok", "noeviction")
        .says("permissions", "ok", "may do what the bus needs");
    // Streams lie on every node, so one that evicts is enough.
    cluster.nodes()[2].ask("CONFIG SET maxmemory-policy allkeys-lru");
    patient(&cluster.url()).examine().is_ill().says("eviction", "fail", "allkeys-lru");
}
