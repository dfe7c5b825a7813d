//! Monitoring against nats-server itself: what it has and is known here, has the same name and the same kind of value.

use std::net::SocketAddr;

use serde_json::Value;
use trunkline_testkit::NatsServer;

use super::client::{Raw, json};
use super::fixture::Fixture;

/// Fields of nats-server for which there is nothing here: how it was built, its system account, and JetStream's disk.
const NOT_HERE: [&str; 8] = [
    "/varz/git_commit",
    "/varz/go",
    "/varz/config_digest",
    "/varz/feature_flags",
    "/varz/system_account",
    "/varz/disk_io_wait_stats",
    "/varz/http_req_stats//varz",
    "/accountz/system_account",
];

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Every field of `theirs` is in `ours` with the same kind of value; in lists, in some entry.
fn check(path: &str, theirs: &Value, ours: &Value, missing: &mut Vec<String>) {
    if NOT_HERE.contains(&path) {
        return;
    }
    if kind(theirs) != kind(ours) {
        return missing.push(format!("{path}: {} there, {} here", kind(theirs), kind(ours)));
    }
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (name, value) in theirs {
                let path = format!("{path}/{name}");
                match ours.get(name) {
                    Some(own) => check(&path, value, own, missing),
                    None if NOT_HERE.contains(&path.as_str()) => {}
                    None => missing.push(format!("{path} is not here")),
                }
            }
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            if let (Some(entry), Some(own)) = (united(theirs), united(ours)) {
                check(path, &entry, &own, missing);
            } else if !theirs.is_empty() {
                missing.push(format!("{path} is empty here"));
            }
        }
        _ => {}
    }
}

/// One entry with the fields of all: entries leave out what they do not have. `None` for a list of nothing.
fn united(entries: &[Value]) -> Option<Value> {
    let fields = |entry: &Value| entry.as_object().cloned().unwrap_or_default();
    match entries.first()? {
        Value::Object(_) => Some(Value::Object(entries.iter().flat_map(fields).collect())),
        other => Some(other.clone()),
    }
}

/// A conversation after which there is something to show: a named client with subscriptions, and one that left.
async fn make_history(address: SocketAddr) -> Raw {
    let hello = "\"name\":\"n\",\"lang\":\"rust\",\"version\":\"1.2.3\",\"headers\":true";
    let mut raw = Raw::ready(address, hello).await;
    raw.send("SUB foo q 1\r\nSUB bar.* 2\r\nUNSUB 2 7\r\nPUB foo 2\r\nhi\r\n").await;
    assert_eq!(raw.flush().await, "MSG foo 1 2\r\nhi\r\n");
    // What a batch sent is counted before the next one is read.
    assert_eq!(raw.flush().await, "");
    let mut short = Raw::ready(address, hello).await;
    short.send("NONSENSE\r\n").await;
    short.until_closed().await;
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn monitoring_has_the_fields_of_nats_server() {
    let theirs = NatsServer::start(Vec::<String>::new());
    let their_nats: SocketAddr = theirs.url().trim_start_matches("nats://").parse().expect("an address");
    let their_http: SocketAddr = theirs.http().trim_start_matches("http://").parse().expect("an address");
    let mut ours = Fixture::start().await;
    ours.without_bystander();
    ours.varz_becomes("connections", 0).await;
    let _clients = (make_history(their_nats).await, make_history(ours.nats()).await);
    let mut missing = Vec::new();
    for path in [
        "/varz",
        "/connz",
        "/connz?subs=1",
        "/connz?subs=detail",
        "/connz?state=closed",
        "/connz?auth=1",
        "/subsz",
        "/subsz?subs=1",
        "/subsz?subs=1&test=foo",
        "/accountz",
        "/routez",
        "/gatewayz",
        "/leafz",
        "/healthz",
    ] {
        let (there, here) = (json(their_http, path).await, json(ours.http(), path).await);
        let root = path.split('?').next().expect("a path");
        check(root, &there, &here, &mut missing);
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_conversation_is_counted_as_nats_server_counts_it() {
    let theirs = NatsServer::start(Vec::<String>::new());
    let their_nats: SocketAddr = theirs.url().trim_start_matches("nats://").parse().expect("an address");
    let their_http: SocketAddr = theirs.http().trim_start_matches("http://").parse().expect("an address");
    let mut ours = Fixture::start().await;
    ours.without_bystander();
    ours.varz_becomes("connections", 0).await;
    let _clients = (make_history(their_nats).await, make_history(ours.nats()).await);
    let fields =
        ["in_msgs", "in_bytes", "out_msgs", "out_bytes", "subscriptions", "pending_bytes", "name", "lang"];
    let rows = |page: Value| page["connections"][0].clone();
    let (there, here) = (rows(json(their_http, "/connz").await), rows(json(ours.http(), "/connz").await));
    for field in fields {
        assert_eq!(here[field], there[field], "{field}");
    }
    let detail = "/connz?subs=detail";
    let (there, here) = (rows(json(their_http, detail).await), rows(json(ours.http(), detail).await));
    let mut pairs = Vec::new();
    for row in [there, here] {
        let mut list = row["subscriptions_list_detail"].as_array().expect("a list").clone();
        list.sort_by_key(|entry| entry["sid"].to_string());
        for entry in &mut list {
            entry.as_object_mut().expect("an object").remove("cid");
        }
        pairs.push(list);
    }
    assert_eq!(pairs[0], pairs[1]);
}
