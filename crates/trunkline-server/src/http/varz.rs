//! `/varz`: the server as a whole, in nats-server's shape. See
//! <https://docs.nats.io/running-a-nats-service/nats_admin/monitoring#general-information-varz>.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use serde::Serialize;

use super::aside::FACTS;
use super::{Monitor, durations, json};
use crate::closed::Closed;
use crate::health::timestamp;
use crate::process::Usage;
use crate::websocket::WebListener;

/// The protocol number of INFO.
const PROTOCOL: u64 = 1;
/// What stands for the longest handshake where there is none.
const TLS_TIMEOUT_SECONDS: f64 = 2.0;

#[derive(Serialize)]
struct Varz<'a> {
    server_id: &'a str,
    server_name: &'a str,
    version: &'a str,
    proto: u64,
    host: String,
    port: u16,
    auth_required: bool,
    /// Seconds.
    auth_timeout: f64,
    tls_required: bool,
    tls_verify: bool,
    /// Seconds.
    tls_timeout: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert_not_after: Option<Timestamp>,
    allow_non_tls: bool,
    max_connections: i64,
    max_subscriptions: i64,
    /// Nanoseconds, as every duration of a setting here.
    ping_interval: u64,
    ping_max: u32,
    http_host: String,
    http_port: u16,
    http_base_path: &'static str,
    https_port: u16,
    max_control_line: usize,
    max_payload: usize,
    max_pending: usize,
    // Parts of nats-server that are not here; tools look into the objects.
    cluster: Absent,
    gateway: Absent,
    leaf: Absent,
    mqtt: Absent,
    websocket: WebSocket<'a>,
    jetstream: Absent,
    write_deadline: u64,
    start: Timestamp,
    now: Timestamp,
    uptime: String,
    mem: u64,
    cores: usize,
    gomaxprocs: usize,
    cpu: f64,
    connections: usize,
    total_connections: u64,
    routes: u64,
    remotes: u64,
    leafnodes: u64,
    in_msgs: u64,
    in_bytes: u64,
    in_client_msgs: u64,
    in_client_bytes: u64,
    out_msgs: u64,
    out_bytes: u64,
    out_client_msgs: u64,
    out_client_bytes: u64,
    slow_consumers: u64,
    stale_connections: u64,
    stalled_clients: u64,
    /// What a bridge could not give to clients: messages where the number is known, and gaps of any size.
    missed_msgs: u64,
    missed_gaps: u64,
    /// What clients were refused for want of permission, and attempts to authenticate that failed.
    denied_msgs: u64,
    denied_subscriptions: u64,
    auth_failures: u64,
    /// Requests over HTTP that were refused before anybody looked at what they ask for.
    refused_requests: u64,
    /// Subscriptions beyond a limit, connections beyond one, and how often memory was short.
    refused_subscriptions: u64,
    refused_connections: u64,
    /// Of those, beyond what one address may open within a second.
    refused_by_rate: u64,
    memory_exceeded: u64,
    /// Memory of all buffers together, and the most of it; 0 is no limit.
    memory_used: usize,
    memory_limit: usize,
    users: usize,
    subscriptions: u64,
    http_req_stats: BTreeMap<&'static str, u64>,
    config_load_time: Timestamp,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    slow_consumer_stats: ByKind,
    stale_connection_stats: ByKind,
}

/// `None` for no limit.
fn number(limit: usize) -> Option<i64> {
    i64::try_from(limit).ok()
}

#[derive(Serialize)]
struct Absent {}

/// Empty where there is no listener, as on nats-server.
#[derive(Serialize, Default)]
struct WebSocket<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    handshake_timeout: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_tls: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    same_origin: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    allowed_origins: &'a [String],
}

impl<'a> WebSocket<'a> {
    fn of(listener: &'a WebListener) -> Self {
        let options = &listener.options;
        Self {
            host: Some(listener.address.ip().to_string()),
            port: Some(listener.address.port()),
            handshake_timeout: Some(options.handshake_timeout.as_nanos() as u64),
            no_tls: !listener.secure,
            same_origin: options.same_origin,
            allowed_origins: &options.allowed_origins,
        }
    }
}

/// A count by kind of connection; there are only clients.
#[derive(Serialize)]
struct ByKind {
    clients: u64,
    routes: u64,
    gateways: u64,
    leafs: u64,
}

impl ByKind {
    fn clients(clients: u64) -> Self {
        Self { clients, routes: 0, gateways: 0, leafs: 0 }
    }
}

pub(super) async fn varz(State(monitor): State<Arc<Monitor>>) -> Response {
    let workers = tokio::runtime::Handle::current().metrics().num_workers();
    FACTS.make(move || answer(&monitor, workers)).await
}

fn answer(monitor: &Monitor, workers: usize) -> Response {
    let shared = &monitor.shared;
    let (limits, tls) = (shared.limits(), shared.tls.clients.get());
    let options = tls.as_ref().map(|tls| &tls.options);
    let is_secure = shared.tls.http.get().is_some();
    let http_port = monitor.address.map_or(0, |address| address.port());
    let (totals, usage) = (shared.totals(), Usage::now());
    let (slow, stale) = (shared.closed(Closed::SlowConsumer), shared.closed(Closed::Stale));
    json(&Varz {
        server_id: &shared.id,
        server_name: &shared.name,
        version: &shared.version,
        proto: PROTOCOL,
        host: shared.address.ip().to_string(),
        port: shared.address.port(),
        auth_required: shared.auth.is_configured(),
        auth_timeout: shared.auth.configured_timeout().as_secs_f64(),
        tls_required: options.is_some_and(|tls| !tls.allow_non_tls),
        tls_verify: options.is_some_and(|tls| tls.verifies()),
        tls_timeout: options.map_or(TLS_TIMEOUT_SECONDS, |tls| tls.timeout.as_secs_f64()),
        tls_cert_not_after: tls.as_ref().and_then(|tls| tls.not_after),
        allow_non_tls: options.is_some_and(|tls| tls.allow_non_tls),
        // No limit is what nats-server's is then.
        max_connections: number(limits.max_connections).unwrap_or(-1),
        max_subscriptions: number(limits.max_subscriptions).unwrap_or(0),
        ping_interval: limits.ping_interval.as_nanos() as u64,
        ping_max: limits.ping_max,
        http_host: monitor.address.map(|address| address.ip().to_string()).unwrap_or_default(),
        http_port: if is_secure { 0 } else { http_port },
        http_base_path: "",
        https_port: if is_secure { http_port } else { 0 },
        max_control_line: limits.max_control_line,
        max_payload: limits.max_payload,
        max_pending: limits.max_pending,
        cluster: Absent {},
        gateway: Absent {},
        leaf: Absent {},
        mqtt: Absent {},
        websocket: shared.web.as_ref().map(WebSocket::of).unwrap_or_default(),
        jetstream: Absent {},
        write_deadline: limits.write_deadline.as_nanos() as u64,
        start: timestamp(shared.started),
        now: Timestamp::now(),
        uptime: durations::uptime(shared.uptime()),
        mem: usage.resident_bytes,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        gomaxprocs: workers,
        cpu: monitor.cpu.percent(usage.cpu),
        connections: shared.connections(),
        total_connections: shared.accepted(),
        routes: 0,
        remotes: 0,
        leafnodes: 0,
        in_msgs: totals.received.messages,
        in_bytes: totals.received.bytes,
        in_client_msgs: totals.received.messages,
        in_client_bytes: totals.received.bytes,
        out_msgs: totals.sent.messages,
        out_bytes: totals.sent.bytes,
        out_client_msgs: totals.sent.messages,
        out_client_bytes: totals.sent.bytes,
        slow_consumers: slow,
        stale_connections: stale,
        stalled_clients: shared.stalled(),
        missed_msgs: shared.bridge.as_ref().map_or(0, |bridge| bridge.missed()),
        missed_gaps: shared.bridge.as_ref().map_or(0, |bridge| bridge.gaps()),
        denied_msgs: shared.denied(),
        denied_subscriptions: shared.denied_subscriptions(),
        auth_failures: shared.auth_failures(),
        refused_requests: shared.refusals.http_total(),
        refused_subscriptions: shared.refused_subscriptions(),
        refused_connections: shared.refused(),
        refused_by_rate: shared.refused_by_rate(),
        memory_exceeded: shared.memory.exceeded(),
        memory_used: shared.memory.used(),
        memory_limit: shared.memory.limit().unwrap_or_default(),
        users: shared.auth.users(),
        subscriptions: shared.subscriptions(),
        http_req_stats: monitor.requests().collect(),
        config_load_time: timestamp(shared.auth.loaded()),
        tags: shared.tags.read().clone(),
        metadata: shared.metadata.read().clone(),
        slow_consumer_stats: ByKind::clients(slow),
        stale_connection_stats: ByKind::clients(stale),
    })
}
