//! Who is connected, and who was.

use std::cmp::Reverse;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::Views;
use crate::admin::{ConnectionJson, ConnectionsJson, LIST_MAX};
use crate::client::{Client, Kind};
use crate::health::timestamp;
use crate::http::api::answer::{ApiError, ok};
use crate::http::aside::LISTS;
use crate::http::params::Params;
use crate::view::ClientView;

/// Most connections that have ended in one answer.
const CLOSED_MAX: usize = 100;

pub(super) async fn connections(
    State(views): State<Arc<Views>>,
    params: Params,
) -> Result<Response, ApiError> {
    let page = params.page()?;
    let order = params.read("sort", || Order::NAMES.to_owned(), Order::parse)?;
    let find = params.get("find").map(str::to_lowercase);
    Ok(LISTS
        .make(move || {
            let Some(server) = &views.server else { return ok(&ConnectionsJson::default()) };
            let mut clients = server.clients();
            clients.sort_unstable_by_key(|client| client.id);
            let (limit, offset) = (page.limit.min(LIST_MAX), page.offset);
            let view = |client: &Arc<Client>| json(server.view(client));
            // Who neither sorts nor searches pays for the page that is shown, and not for all connections.
            let (connections, total) = if order.is_none() && find.is_none() {
                (clients.iter().skip(offset).take(limit).map(view).collect(), clients.len())
            } else {
                let found =
                    clients.iter().map(view).filter(|json| find.as_ref().is_none_or(|text| has(json, text)));
                let mut found: Vec<_> = found.collect();
                if let Some(order) = order {
                    // Stable: among equals the oldest comes first.
                    found.sort_by_key(|json| Reverse(order.of(json)));
                }
                let total = found.len();
                (found.into_iter().skip(offset).take(limit).collect(), total)
            };
            let closed = server.departed().into_iter().rev().take(CLOSED_MAX).map(|gone| ConnectionJson {
                ended: Some(timestamp(gone.stopped).to_string()),
                reason: Some(gone.why.as_str().to_owned()),
                ..json(gone.view)
            });
            ok(&ConnectionsJson { known: true, connections, total, closed: closed.collect() })
        })
        .await)
}

/// What connections can be sorted by, most first.
#[derive(Debug, Clone, Copy)]
enum Order {
    Pending,
    Denied,
    Received,
    Sent,
    Subscriptions,
}

impl Order {
    const NAMES: &str = "pending, denied, received, sent, subscriptions";

    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pending" => Self::Pending,
            "denied" => Self::Denied,
            "received" => Self::Received,
            "sent" => Self::Sent,
            "subscriptions" => Self::Subscriptions,
            _ => return None,
        })
    }

    fn of(self, connection: &ConnectionJson) -> u64 {
        match self {
            Self::Pending => u64::try_from(connection.pending_bytes).unwrap_or(u64::MAX),
            Self::Denied => connection.denied,
            Self::Received => connection.received_messages,
            Self::Sent => connection.sent_messages,
            Self::Subscriptions => connection.subscriptions,
        }
    }
}

/// Whether somebody who looks for this, in small letters, means this connection.
fn has(connection: &ConnectionJson, text: &str) -> bool {
    let names = [&connection.name, &connection.user].into_iter().flatten();
    names.chain([&connection.address]).any(|name| name.to_lowercase().contains(text))
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
