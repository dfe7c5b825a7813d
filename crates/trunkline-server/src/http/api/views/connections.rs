//! Who is connected, and who was.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::Views;
use crate::admin::{ConnectionJson, ConnectionsJson, LIST_MAX};
use crate::client::Kind;
use crate::health::timestamp;
use crate::http::api::answer::{ApiError, ok};
use crate::http::params::Params;
use crate::view::ClientView;

/// Most connections that have ended in one answer.
const CLOSED_MAX: usize = 100;

pub(super) async fn connections(
    State(views): State<Arc<Views>>,
    params: Params,
) -> Result<Response, ApiError> {
    let page = params.page()?;
    Ok(crate::http::aside(move || {
        let Some(server) = &views.server else { return ok(&ConnectionsJson::default()) };
        let mut clients = server.clients();
        clients.sort_unstable_by_key(|client| client.id);
        let shown = clients.iter().skip(page.offset).take(page.limit.min(LIST_MAX));
        let closed = server.departed().into_iter().rev().take(CLOSED_MAX).map(|gone| ConnectionJson {
            ended: Some(timestamp(gone.stopped).to_string()),
            reason: Some(gone.why.as_str().to_owned()),
            ..json(gone.view)
        });
        ok(&ConnectionsJson {
            known: true,
            connections: shown.map(|client| json(server.view(client))).collect(),
            total: clients.len(),
            closed: closed.collect(),
        })
    })
    .await)
}

fn json(view: ClientView) -> ConnectionJson {
    let library = view.lang.map(|lang| match view.version {
        Some(version) => format!("{lang} {version}"),
        None => lang,
    });
    ConnectionJson {
        id: view.id,
        name: view.name,
        user: view.user,
        address: view.address.to_string(),
        kind: match view.kind {
            Kind::Nats => "nats",
            Kind::WebSocket => "websocket",
        }
        .to_owned(),
        library,
        since: timestamp(view.started).to_string(),
        idle_ms: u64::try_from(view.idle.as_millis()).unwrap_or(u64::MAX),
        rtt_micros: view.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        pending_bytes: view.pending_bytes,
        received_messages: view.received.messages,
        received_bytes: view.received.bytes,
        sent_messages: view.sent.messages,
        sent_bytes: view.sent.bytes,
        subscriptions: view.subscriptions,
        denied: view.denied,
        gaps: view.gaps,
        ended: None,
        reason: None,
    }
}
