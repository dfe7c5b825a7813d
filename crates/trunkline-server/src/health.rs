//! The server's own health: the document that `/readyz` answers, and its broadcast on `{root}.system.health`.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use trunkline::backend::{Backend, BackendKind, PublishError, PublishOptions};
use trunkline::health::{BACKEND, HealthCheck, HealthStatus, MEMORY, MemoryWatch, OUTBOX, SystemHealth};
use trunkline::status::{BackendState, BackendStatus};
use trunkline::{Bus, Envelope, Message, Subject};

use crate::admin::{ComponentJson, ComponentState, ComponentsJson};
use crate::promises::{Promises, STREAMS};
use crate::shared::Shared;

/// Who speaks: `component` of the document and `source` of its envelope.
const COMPONENT: &str = "trunkline-server";
/// The envelope's type, and what the subject has behind its root.
pub(crate) const HEALTH_TYPE: &str = "system.health";
/// Shortest time between two broadcasts that no change asked for.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// How often changes are looked for that nobody tells of, and so the shortest time between two broadcasts of such.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// What the name of a component's check begins with.
const COMPONENT_CHECK: &str = "component.";
/// The name of the check of the server itself.
const SERVER: &str = "server";

/// What runs beside the bus, where something does.
pub(crate) type Components = Option<watch::Receiver<ComponentsJson>>;

/// What is known of the server's health.
pub(crate) struct Health {
    shared: Arc<Shared>,
    /// Where it is published.
    backend: Arc<dyn Backend>,
    /// Its last value stays readable when the sender is gone.
    status: watch::Receiver<BackendStatus>,
    components: Components,
    /// The bus of this process, for what waits in its outbox.
    bus: Option<Bus>,
    promises: Arc<Promises>,
    memory: MemoryWatch,
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
        backend: Arc<dyn Backend>,
        status: Option<watch::Receiver<BackendStatus>>,
        (components, bus, promises): (Components, Option<Bus>, Arc<Promises>),
    ) -> Self {
        let in_memory = || {
            let status = BackendStatus::new(BackendKind::InMemory, "this process", BackendState::Connected);
            watch::Sender::new(status).subscribe()
        };
        let status = status.unwrap_or_else(in_memory);
        Self { shared, backend, status, components, bus, promises, memory: MemoryWatch::default() }
    }

    /// The backend's status, to follow.
    pub(crate) fn status(&self) -> watch::Receiver<BackendStatus> {
        self.status.clone()
    }

    pub(crate) fn backend(&self) -> BackendStatus {
        self.status.borrow().clone()
    }

    pub(crate) fn components(&self) -> Vec<ComponentJson> {
        self.components.as_ref().map(|components| components.borrow().components.clone()).unwrap_or_default()
    }

    /// What `/healthz` answers: it is alive, or it could not. How the backend is stands beside that where it is not well.
    pub(crate) fn alive(&self) -> SystemHealth {
        let checks = BTreeMap::from([("process".to_owned(), HealthCheck::ok())]);
        SystemHealth::new(COMPONENT, env!("CARGO_PKG_VERSION"), self.shared.uptime(), checks)
    }
}

impl Speaker for Health {
    fn document(&self) -> SystemHealth {
        let mut checks = component_checks(&self.components());
        checks.insert(BACKEND.to_owned(), HealthCheck::of_backend(&self.backend()));
        checks.insert(MEMORY.to_owned(), self.memory.check(&self.shared.memory));
        if let Some(outbox) = self.bus.as_ref().and_then(|bus| bus.status().outbox) {
            checks.insert(OUTBOX.to_owned(), HealthCheck::of_outbox(&outbox));
        }
        checks.extend(self.promises.check().map(|check| (STREAMS.to_owned(), check)));
        // Whoever sends clients here should send them elsewhere.
        let leaves = self.shared.is_lame_duck().then(|| "lame duck mode".to_owned());
        if leaves.is_some() {
            checks.insert(SERVER.to_owned(), HealthCheck::new(HealthStatus::Down, leaves.clone()));
        }
        let health = SystemHealth::new(COMPONENT, env!("CARGO_PKG_VERSION"), self.shared.uptime(), checks);
        SystemHealth { reason: leaves.or(health.reason), ..health }
    }

    async fn send(&self, message: Message) {
        match self.backend.publish(message.clone(), PublishOptions::default()).outcome().await {
            Ok(_) => {}
            // The state has been logged; this server's own clients are told all the same.
            Err(PublishError::NotConnected { .. } | PublishError::OutcomeUnknown { .. }) => {
                self.shared.deliver_here(&Arc::new(message));
            }
            Err(error) => tracing::warn!(%error, "the server's health was not published"),
        }
    }
}

/// A check for each component, named after it. One that has ended and is not to be, or that was started again and is not
/// ready yet, is not well; one that is just being started is.
pub(crate) fn component_checks(components: &[ComponentJson]) -> BTreeMap<String, HealthCheck> {
    let check = |component: &ComponentJson| {
        let state = component.state;
        let again = component.restarts > 0 && !state.is_well();
        let status = match again || matches!(state, ComponentState::Failed | ComponentState::Restarting) {
            true => HealthStatus::Degraded,
            false => HealthStatus::Ok,
        };
        let why = component.reason.as_deref().map_or(String::new(), |reason| format!(" ({reason})"));
        let reason = (status != HealthStatus::Ok).then(|| format!("{}{why}", state.as_str()));
        HealthCheck::new(status, reason).with("state", state.as_str()).with("restarts", component.restarts)
    };
    components
        .iter()
        .map(|component| (format!("{COMPONENT_CHECK}{}", component.name), check(component)))
        .collect()
}

/// Whether what the configuration promises holds. Memory near its limit still keeps every promise; and a component that is
/// being started again must not find a bus that calls itself not ready because of it.
pub(crate) fn is_ready(health: &SystemHealth) -> bool {
    health.checks.iter().all(|(name, check)| {
        let failed =
            || check.details.get("state").is_some_and(|state| state == ComponentState::Failed.as_str());
        check.status() == HealthStatus::Ok
            || name == MEMORY
            || (name.starts_with(COMPONENT_CHECK) && !failed())
    })
}

/// Who tells of its health.
pub(crate) trait Speaker: Send + Sync + 'static {
    /// How it is now.
    fn document(&self) -> SystemHealth;

    /// Publishes what tells of it; failures are its own affair.
    fn send(&self, message: Message) -> impl Future<Output = ()> + Send;
}

/// Publishes the document on `subject` at once, every `interval`, and when it changes: at once for the state of the backend,
/// within [`LOOK_INTERVAL`] for the rest. To be spawned on a tracker; ends by `stop`.
pub(crate) async fn broadcast(
    speaker: Arc<impl Speaker>,
    mut status: watch::Receiver<BackendStatus>,
    (subject, interval): (Subject, Duration),
    stop: CancellationToken,
) {
    let ticks = |period: Duration| {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let (mut tick, mut look) = (ticks(interval.max(INTERVAL_MIN)), ticks(LOOK_INTERVAL));
    let (mut watched, mut last) = (true, None::<SystemHealth>);
    // The state has changed while the last document was being sent.
    let mut overtaken = false;
    loop {
        let changes_only = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = std::future::ready(()), if overtaken => false,
            _ = tick.tick() => false,
            _ = look.tick() => true,
            // Without a sender the state cannot change any more.
            changed = status.changed(), if watched => {
                watched = changed.is_ok();
                !watched
            }
        };
        let document = speaker.document();
        if changes_only && last.as_ref().is_some_and(|last| !document.differs_from(last)) {
            continue;
        }
        overtaken = false;
        match serde_json::to_value(&document) {
            Ok(payload) => {
                let source = Some(document.component.clone());
                let envelope = Envelope { source, ..Envelope::new(HEALTH_TYPE, payload) };
                // A server that stands still keeps a message for as long as publishing may take, and the news of that must
                // not wait behind it.
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = speaker.send(Message::new(subject.clone(), envelope.to_bytes())) => {}
                    changed = status.changed(), if watched => {
                        watched = changed.is_ok();
                        overtaken = watched;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the health of the bus cannot be written as JSON"),
        }
        last = Some(document);
    }
}

impl Health {
    /// See [`broadcast`].
    pub(crate) async fn tell(self: Arc<Self>, told: (Subject, Duration), stop: CancellationToken) {
        let status = self.status.clone();
        broadcast(self, status, told, stop).await;
    }
}

/// The time as people and programs read it: RFC 3339 in UTC.
pub(crate) fn timestamp(time: std::time::SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(state: ComponentState, restarts: u32) -> ComponentJson {
        ComponentJson {
            name: "search".to_owned(),
            state,
            waiting_for: Vec::new(),
            pid: None,
            restarts,
            since: String::new(),
            restart_at: None,
            reason: Some("exit code 3".to_owned()),
        }
    }

    #[test]
    fn components_that_do_not_work_degrade_the_bus_and_only_a_failed_one_makes_it_not_ready() {
        for (state, restarts, status, ready) in [
            (ComponentState::Waiting, 0, "ok", true),
            (ComponentState::Starting, 0, "ok", true),
            (ComponentState::Ready, 3, "ok", true),
            (ComponentState::Done, 0, "ok", true),
            (ComponentState::Starting, 1, "degraded", true),
            (ComponentState::Restarting, 1, "degraded", true),
            (ComponentState::Failed, 1, "degraded", false),
        ] {
            let checks = component_checks(&[component(state, restarts)]);
            let health = SystemHealth::new("x", "1", Duration::ZERO, checks);
            assert_eq!((health.status.as_str(), is_ready(&health)), (status, ready), "{state:?}");
            let reason =
                (status != "ok").then(|| format!("component.search: {} (exit code 3)", state.as_str()));
            assert_eq!(health.reason, reason);
        }
    }
}
