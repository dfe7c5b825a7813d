//! `/routez`, `/gatewayz`, `/leafz` and `/jsz`: what a server without others and without JetStream has none of, and says so to
//! tools that ask for all.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde_json::json;

use super::Monitor;
use super::params::Params;

/// `/routez`.
pub(super) async fn routez(State(monitor): State<Arc<Monitor>>, params: Params) -> Response {
    if let Err(error) = params.list("subs") {
        return error.into_response();
    }
    let (id, name) = (&monitor.shared.id, &monitor.shared.name);
    super::json(&json!({
        "server_id": id, "server_name": name, "now": Timestamp::now(), "num_routes": 0, "routes": [],
    }))
}

/// `/gatewayz`.
pub(super) async fn gatewayz(State(monitor): State<Arc<Monitor>>, params: Params) -> Response {
    if let Err(error) = params.flag("accs") {
        return error.into_response();
    }
    super::json(&json!({
        "server_id": monitor.shared.id, "now": Timestamp::now(),
        "outbound_gateways": {}, "inbound_gateways": {},
    }))
}

/// `/leafz`.
pub(super) async fn leafz(State(monitor): State<Arc<Monitor>>, params: Params) -> Response {
    if let Err(error) = params.flag("subs") {
        return error.into_response();
    }
    super::json(&json!({
        "server_id": monitor.shared.id, "now": Timestamp::now(), "leafnodes": 0, "leafs": [],
    }))
}

/// `/jsz`: as of a nats-server that runs without JetStream.
pub(super) async fn jsz(State(monitor): State<Arc<Monitor>>, params: Params) -> Response {
    for flag in ["accounts", "streams", "consumers", "config", "raft", "leader-only", "stream-leader-only"] {
        if let Err(error) = params.flag(flag) {
            return error.into_response();
        }
    }
    super::json(&json!({
        "memory": 0, "storage": 0, "reserved_memory": 0, "reserved_storage": 0, "accounts": 0, "ha_assets": 0,
        "api": {"level": 0, "total": 0, "errors": 0},
        "server_id": monitor.shared.id, "now": Timestamp::now(), "disabled": true,
        "config": {"max_memory": 0, "max_storage": 0},
        "streams": 0, "consumers": 0, "messages": 0, "bytes": 0, "total": 0,
    }))
}
