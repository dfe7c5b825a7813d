//! The server's own health: the document that `/readyz` answers, and its broadcast on `{root}.system.health`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{Timestamp, Unit};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use trunkline::backend::memory::MemoryBackend;
use trunkline::backend::{Backend, BackendKind, PublishOptions};
use trunkline::status::{BackendState, BackendStatus};
use trunkline::{Message, Subject};

use crate::shared::Shared;

/// Who speaks: `component` of the document and `source` of its envelope.
const COMPONENT: &str = "trunkline-server";

/// Whether the server can do what the configuration promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Readiness {
    /// It can.
    Ok,
    /// Messages flow, but not with the guarantees of the backend that was configured.
    Degraded,
    /// The backend is not there.
    Unavailable,
}

impl Readiness {
    fn of(state: &BackendState) -> Self {
        match state {
            BackendState::Connected => Self::Ok,
            BackendState::Degraded { .. } => Self::Degraded,
            _ => Self::Unavailable,
        }
    }
}

/// What `/readyz` answers.
#[derive(Debug, Serialize)]
pub(crate) struct Document {
    pub(crate) status: Readiness,
    component: &'static str,
    version: &'static str,
    /// Seconds since the start.
    uptime: u64,
    checks: Checks,
}

#[derive(Debug, Serialize)]
struct Checks {
    backend: BackendCheck,
}

#[derive(Debug, Serialize)]
struct BackendCheck {
    status: Readiness,
    backend: &'static str,
    server: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    since: Timestamp,
}

/// What is known of the server's health.
#[derive(Debug)]
pub(crate) struct Health {
    shared: Arc<Shared>,
    /// Its last value stays readable when the sender is gone.
    status: watch::Receiver<BackendStatus>,
}

impl Health {
    /// `status` is `None` for an `in_memory` backend, which works as long as the process does.
    pub(crate) fn new(shared: Arc<Shared>, status: Option<watch::Receiver<BackendStatus>>) -> Self {
        let in_memory = || {
            let status = BackendStatus::new(BackendKind::InMemory, "this process", BackendState::Connected);
            watch::Sender::new(status).subscribe()
        };
        Self { shared, status: status.unwrap_or_else(in_memory) }
    }

    pub(crate) fn backend(&self) -> BackendStatus {
        self.status.borrow().clone()
    }

    pub(crate) fn document(&self) -> Document {
        let backend = self.backend();
        let status = Readiness::of(&backend.state);
        Document {
            status,
            component: COMPONENT,
            version: env!("CARGO_PKG_VERSION"),
            uptime: self.shared.uptime().as_secs(),
            checks: Checks {
                backend: BackendCheck {
                    status,
                    backend: backend.backend.as_str(),
                    state: backend.state.as_str(),
                    reason: backend.state.reason().map(str::to_owned),
                    server: backend.server,
                    since: timestamp(backend.since),
                },
            },
        }
    }

    /// Publishes the document on `subject` at once, every `interval`, and when the backend's state changes. Owned by the
    /// server's tracker; ends by `stop`.
    pub(crate) async fn broadcast(
        self: Arc<Self>,
        subject: Subject,
        interval: Duration,
        stop: CancellationToken,
    ) {
        let backend = MemoryBackend::connect_to(&self.shared.hub);
        let mut status = self.status.clone();
        let mut tick = tokio::time::interval(interval.max(INTERVAL_MIN));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                // Without a sender the state cannot change any more.
                changed = status.changed(), if told => {
                    told = changed.is_ok();
                    if !told {
                        continue;
                    }
                }
            }
            self.publish(&backend, subject.clone()).await;
        }
    }

    async fn publish(&self, backend: &MemoryBackend, subject: Subject) {
        let body = match serde_json::to_vec(&Envelope::around(self.document())) {
            Ok(body) => body,
            Err(error) => return tracing::warn!(%error, "the server's health cannot be written as JSON"),
        };
        let message = Message::new(subject, Bytes::from(body));
        if let Err(error) = backend.publish(message, PublishOptions::default()).outcome().await {
            tracing::warn!(%error, "the server's health was not published");
        }
    }
}

/// Shortest time between two broadcasts that no change asked for.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// The envelope of a broadcast.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    id: String,
    timestamp: Timestamp,
    source: &'static str,
    r#type: &'static str,
    correlation_id: String,
    payload: Document,
}

impl Envelope {
    fn around(payload: Document) -> Self {
        let id = uuid::Uuid::now_v7().to_string();
        let timestamp = Timestamp::now();
        Self {
            correlation_id: id.clone(),
            id,
            timestamp: timestamp.round(Unit::Millisecond).unwrap_or(timestamp),
            source: COMPONENT,
            r#type: "system.health",
            payload,
        }
    }
}

/// The time as people and programs read it: RFC 3339 in UTC.
pub(crate) fn timestamp(time: std::time::SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or_default()
}
