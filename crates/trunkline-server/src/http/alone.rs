//! `/routez`, `/gatewayz` and `/leafz`: a server that is alone has none of them, and says so to tools that ask for all.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use serde_json::json;

use super::Monitor;

/// `/routez`.
pub(super) async fn routez(State(monitor): State<Arc<Monitor>>) -> Response {
    let (id, name) = (&monitor.shared.id, &monitor.shared.name);
    super::json(&json!({
        "server_id": id, "server_name": name, "now": Timestamp::now(), "num_routes": 0, "routes": [],
    }))
}

/// `/gatewayz`.
pub(super) async fn gatewayz(State(monitor): State<Arc<Monitor>>) -> Response {
    super::json(&json!({
        "server_id": monitor.shared.id, "now": Timestamp::now(),
        "outbound_gateways": {}, "inbound_gateways": {},
    }))
}

/// `/leafz`.
pub(super) async fn leafz(State(monitor): State<Arc<Monitor>>) -> Response {
    super::json(&json!({
        "server_id": monitor.shared.id, "now": Timestamp::now(), "leafnodes": 0, "leafs": [],
    }))
}
