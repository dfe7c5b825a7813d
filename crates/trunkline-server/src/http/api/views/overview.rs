//! The bus at a glance.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;

use super::Views;
use super::census::Census;
use crate::admin::{BackendJson, ClientsJson, MessagesJson, OverviewJson, ProcessJson};
use crate::closed::Closed;
use crate::health::timestamp;
use crate::http::api::answer::ok;
use crate::http::aside::FACTS;
use crate::process::Usage;
use crate::shared::Shared;

pub(super) async fn overview(State(views): State<Arc<Views>>) -> Response {
    FACTS.make(move || ok(&take(&views))).await
}

fn take(views: &Views) -> OverviewJson {
    let status = views.status.borrow().clone();
    let backend = BackendJson {
        name: status.backend.to_string(),
        state: status.state.as_str().to_owned(),
        reason: status.state.reason().map(str::to_owned),
        server: status.server,
        since: timestamp(status.since).to_string(),
    };
    OverviewJson {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run: views.run.clone(),
        uptime_seconds: views.started.elapsed().as_secs(),
        subject_root: views.bus.options().subject_root.to_string(),
        backend,
        messages: messages(views),
        clients: views.server.as_deref().map(clients),
        latency: views.seen(Census::latency).flatten(),
        process: process(views),
    }
}

/// What this process sees of messages: with a hub all of them; on a bridge and beside NATS servers those of the record, and
/// where there is none those of its clients and of its own bus.
fn messages(views: &Views) -> MessagesJson {
    let bus = views.telemetry.as_ref().map(|telemetry| telemetry.counters()).unwrap_or_default();
    let mut messages = MessagesJson {
        dead_letters: bus.dead_letters,
        redelivered: bus.redelivered,
        ..MessagesJson::default()
    };
    let Some(server) = &views.server else {
        messages.published = views.recorded().unwrap_or(bus.published);
        messages.delivered = bus.received;
        messages.dropped = bus.missed;
        return messages;
    };
    let totals = server.totals();
    match &server.bridge {
        None => {
            let hub = server.hub.stats();
            messages.published = totals.received.messages + hub.published;
            messages.delivered = totals.sent.messages + hub.delivered;
            messages.dropped = hub.dropped;
            messages.no_responders = hub.no_responders + server.no_responders();
        }
        Some(bridge) => {
            let own = totals.received.messages + bus.published;
            messages.published = views.recorded().unwrap_or(own);
            messages.delivered = totals.sent.messages + bus.received;
            messages.dropped = bridge.missed() + bus.missed;
            messages.no_responders = server.no_responders();
        }
    }
    messages
}

fn clients(server: &Shared) -> ClientsJson {
    let all = server.clients();
    let mut trips: Vec<Duration> = all.iter().filter_map(|client| client.rtt()).collect();
    trips.sort_unstable();
    let micros = |trip: &Duration| u64::try_from(trip.as_micros()).unwrap_or(u64::MAX);
    ClientsJson {
        connections: all.len(),
        subscriptions: all.iter().map(|client| client.subscriptions.load(Ordering::Relaxed)).sum(),
        denied_messages: server.denied(),
        denied_subscriptions: server.denied_subscriptions(),
        auth_failures: server.auth_failures(),
        refused_connections: server.refused(),
        slow_consumers: server.closed(Closed::SlowConsumer),
        rtt_max_micros: trips.last().map(micros),
        rtt_median_micros: trips.get(trips.len() / 2).map(micros),
    }
}

fn process(views: &Views) -> ProcessJson {
    let usage = Usage::now();
    let memory =
        views.server.as_ref().map(|server| server.memory.clone()).or_else(|| views.bus.backend().memory());
    ProcessJson {
        cpu_percent: views.cpu.percent(usage.cpu),
        resident_bytes: usage.resident_bytes,
        buffer_bytes: memory.as_ref().map(|memory| memory.used() as u64),
        buffer_bytes_max: memory.and_then(|memory| memory.limit()).map(|limit| limit as u64),
    }
}
