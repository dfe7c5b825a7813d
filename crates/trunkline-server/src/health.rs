//! The server's own health: the document that `/readyz` answers, and its broadcast on `{root}.system.health`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use trunkline::backend::{Backend, BackendKind, PublishError, PublishOptions};
use trunkline::status::{BackendState, BackendStatus};
use trunkline::{Envelope, Message, Subject};

use crate::shared::Shared;

/// Who speaks: `component` of the document and `source` of its envelope.
const COMPONENT: &str = "trunkline-server";
/// The envelope's type, and what the subject has behind its root.
pub(crate) const HEALTH_TYPE: &str = "system.health";
/// Shortest time between two broadcasts that no change asked for.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Whether the server can do what the configuration promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Readiness {
    /// It can.
    Ok,
    /// Messages flow, but not with the guarantees of the backend that was configured.
    Degraded,
    /// The backend is not there, or the server is about to leave.
    Down,
}

impl Readiness {
    pub(crate) fn of(state: &BackendState) -> Self {
        match state {
            BackendState::Connected => Self::Ok,
            BackendState::Degraded { .. } => Self::Degraded,
            _ => Self::Down,
        }
    }
}

/// What `/readyz` answers; a [`SystemHealth`](trunkline::topics::payload::SystemHealth) with more to it.
#[derive(Debug, Serialize)]
pub(crate) struct Document {
    pub(crate) status: Readiness,
    component: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
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
pub(crate) struct Health {
    shared: Arc<Shared>,
    /// Where it is published.
    bus: Arc<dyn Backend>,
    /// Its last value stays readable when the sender is gone.
    status: watch::Receiver<BackendStatus>,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Health {
    /// `status` is `None` for an `in_memory` backend, which works as long as the process does.
    pub(crate) fn new(
        shared: Arc<Shared>,
        bus: Arc<dyn Backend>,
        status: Option<watch::Receiver<BackendStatus>>,
    ) -> Self {
        let in_memory = || {
            let status = BackendStatus::new(BackendKind::InMemory, "this process", BackendState::Connected);
            watch::Sender::new(status).subscribe()
        };
        Self { shared, bus, status: status.unwrap_or_else(in_memory) }
    }

    /// The backend's status, to follow.
    pub(crate) fn status(&self) -> watch::Receiver<BackendStatus> {
        self.status.clone()
    }

    pub(crate) fn backend(&self) -> BackendStatus {
        self.status.borrow().clone()
    }

    pub(crate) fn document(&self) -> Document {
        let backend = self.backend();
        let works = Readiness::of(&backend.state);
        // Whoever sends clients here should send them elsewhere.
        let leaves = self.shared.is_lame_duck();
        let reason = leaves.then_some("lame duck mode").or(backend.state.reason());
        Document {
            status: if leaves { Readiness::Down } else { works },
            component: COMPONENT,
            reason: reason.map(str::to_owned),
            version: env!("CARGO_PKG_VERSION"),
            uptime: self.shared.uptime().as_secs(),
            checks: Checks {
                backend: BackendCheck {
                    status: works,
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
        let mut status = self.status.clone();
        let mut tick = tokio::time::interval(interval.max(INTERVAL_MIN));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watched = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                // Without a sender the state cannot change any more.
                changed = status.changed(), if watched => {
                    watched = changed.is_ok();
                    if !watched {
                        continue;
                    }
                }
            }
            self.publish(subject.clone()).await;
        }
    }

    async fn publish(&self, subject: Subject) {
        let payload = match serde_json::to_value(self.document()) {
            Ok(payload) => payload,
            Err(error) => return tracing::warn!(%error, "the server's health cannot be written as JSON"),
        };
        let envelope = Envelope { source: Some(COMPONENT.to_owned()), ..Envelope::new(HEALTH_TYPE, payload) };
        let message = Message::new(subject, envelope.to_bytes());
        match self.bus.publish(message.clone(), PublishOptions::default()).outcome().await {
            Ok(_) => {}
            // The state has been logged; this server's own clients are told all the same.
            Err(PublishError::NotConnected { .. }) => self.shared.deliver_here(&Arc::new(message)),
            Err(error) => tracing::warn!(%error, "the server's health was not published"),
        }
    }
}

/// The time as people and programs read it: RFC 3339 in UTC.
pub(crate) fn timestamp(time: std::time::SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or_default()
}
