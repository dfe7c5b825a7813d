//! How a component is, in one shape everywhere: what `/readyz` answers, what is published on `{root}.system.health`, what
//! [`Bus::health`](crate::Bus::health) returns and what `trunkline status --json` prints.
//!
//! What is judged here is judged from values alone; whoever has them asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bus::outbox::OutboxStatus;
use crate::memory::MemoryBudget;
use crate::status::{BackendState, BackendStatus};

/// From here on memory is near its limit, in parts of a hundred. Until less than [`MEMORY_WELL`] is used again it stays so:
/// those who are cut off at the limit free an eighth, and health must not change each time.
const MEMORY_NEAR: usize = 90;
const MEMORY_WELL: usize = 80;
/// From here on the outbox is nearly full, in parts of a hundred.
const OUTBOX_NEAR: u64 = 90;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// It does all that the configuration promises.
    Ok,
    /// It works, and something that was promised does not hold, or soon will not.
    Degraded,
    /// It does not work.
    Down,
}

impl HealthStatus {
    /// As in JSON: `ok`, `degraded`, `down`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }

    /// What a component said. Words of other makers that are neither `ok` nor `degraded` are not good news.
    pub fn of(word: &str) -> Self {
        match word {
            "ok" => Self::Ok,
            "degraded" => Self::Degraded,
            _ => Self::Down,
        }
    }
}

impl From<&BackendState> for HealthStatus {
    fn from(state: &BackendState) -> Self {
        match state {
            BackendState::Connected => Self::Ok,
            BackendState::Degraded { .. } => Self::Degraded,
            _ => Self::Down,
        }
    }
}

/// How a component is: `{root}.system.health`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SystemHealth {
    /// `ok`, `degraded` or `down`: the worst of the checks.
    pub status: String,
    /// Which component.
    pub component: String,
    /// Why, when it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Seconds since its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime: Option<u64>,
    /// What was looked at, and how each is.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, HealthCheck>,
    /// The particulars.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub details: Value,
}

impl SystemHealth {
    /// As well as the worst of the checks, with its reason.
    pub fn new(
        component: impl Into<String>,
        version: impl Into<String>,
        uptime: Duration,
        checks: BTreeMap<String, HealthCheck>,
    ) -> Self {
        let worst = checks.iter().max_by_key(|(name, check)| {
            // Of several that are as bad, the backend tells more than what follows from it.
            (HealthStatus::of(&check.status), *name == BACKEND)
        });
        let status = worst.map_or(HealthStatus::Ok, |(_, check)| HealthStatus::of(&check.status));
        let reason = worst.filter(|_| status != HealthStatus::Ok).and_then(|(name, check)| {
            let reason = check.reason.as_deref()?;
            Some(if name == BACKEND { reason.to_owned() } else { format!("{name}: {reason}") })
        });
        Self {
            status: status.as_str().to_owned(),
            component: component.into(),
            reason,
            version: version.into(),
            uptime: Some(uptime.as_secs()),
            checks,
            details: Value::Null,
        }
    }

    /// As it says of itself.
    pub fn status(&self) -> HealthStatus {
        HealthStatus::of(&self.status)
    }

    /// Whether the two differ in more than what changes all the time: in how something is, or in which things there are. The
    /// reason counts where it tells something else and not only another number.
    pub fn differs_from(&self, other: &Self) -> bool {
        let essence = |health: &Self| {
            let checks = health.checks.iter();
            let checks: Vec<_> = checks
                .map(|(name, check)| (name.clone(), check.status.clone(), without_numbers(&check.reason)))
                .collect();
            (health.status.clone(), without_numbers(&health.reason), checks)
        };
        essence(self) != essence(other)
    }
}

fn without_numbers(reason: &Option<String>) -> Option<String> {
    reason.as_ref().map(|reason| reason.chars().filter(|c| !c.is_ascii_digit()).collect())
}

/// The name of the check of the backend.
pub const BACKEND: &str = "backend";
/// The name of the check of the memory of all buffers.
pub const MEMORY: &str = "memory";
/// The name of the check of the outbox.
pub const OUTBOX: &str = "outbox";

/// One thing that was looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthCheck {
    /// `ok`, `degraded` or `down`.
    pub status: String,
    /// Why, when it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The particulars, beside the other fields.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

impl HealthCheck {
    /// Something that is so, and why where it is not well.
    pub fn new(status: HealthStatus, reason: Option<String>) -> Self {
        Self { status: status.as_str().to_owned(), reason, details: Map::new() }
    }

    /// Something that is well.
    pub fn ok() -> Self {
        Self::new(HealthStatus::Ok, None)
    }

    /// Adds a particular.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// As it says.
    pub fn status(&self) -> HealthStatus {
        HealthStatus::of(&self.status)
    }

    /// The connection of a backend.
    pub fn of_backend(backend: &BackendStatus) -> Self {
        let reason = backend.state.reason().map(str::to_owned);
        let since = Timestamp::try_from(backend.since).unwrap_or_default();
        Self::new((&backend.state).into(), reason)
            .with("backend", backend.backend.as_str())
            .with("server", backend.server.as_str())
            .with("state", backend.state.as_str())
            .with("since", since.to_string())
    }

    /// What waits in an outbox: not well when there is hardly room for more.
    pub fn of_outbox(outbox: &OutboxStatus) -> Self {
        let part = |waits: u64, limit: usize| waits.saturating_mul(100) / (limit as u64).max(1);
        let full = part(outbox.messages, outbox.limits.messages_max)
            .max(part(outbox.bytes, outbox.limits.bytes_max));
        let check = match full >= OUTBOX_NEAR {
            false => Self::ok(),
            true => Self::new(
                HealthStatus::Degraded,
                Some(format!(
                    "{} messages wait for the server, and the outbox is {full} % full",
                    outbox.messages
                )),
            ),
        };
        check.with("messages", outbox.messages).with("bytes", outbox.bytes)
    }
}

/// Looks at the memory of all buffers: not well from nine tenths of what they may take on, until it is less than eight.
#[derive(Debug, Default)]
pub struct MemoryWatch {
    near: AtomicBool,
}

impl MemoryWatch {
    /// How it is now.
    pub fn check(&self, memory: &MemoryBudget) -> HealthCheck {
        let used = memory.used();
        let Some(limit) = memory.limit() else { return HealthCheck::ok().with("used", used) };
        let part = used.saturating_mul(100) / limit.max(1);
        let threshold = if self.near.load(Ordering::Relaxed) { MEMORY_WELL } else { MEMORY_NEAR };
        let near = part >= threshold;
        self.near.store(near, Ordering::Relaxed);
        let check = match near {
            false => HealthCheck::ok(),
            true => HealthCheck::new(
                HealthStatus::Degraded,
                Some(format!("buffers take {part} % of what they may (runtime.resources.memory)")),
            ),
        };
        check.with("used", used).with("limit", limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::outbox::OutboxOptions;
    use crate::config::Backend as BackendKind;
    use crate::memory::Holding;

    fn health(checks: impl IntoIterator<Item = (&'static str, HealthCheck)>) -> SystemHealth {
        let checks = checks.into_iter().map(|(name, check)| (name.to_owned(), check)).collect();
        SystemHealth::new("web", "1.2.3", Duration::from_millis(2900), checks)
    }

    #[test]
    fn a_component_is_as_well_as_the_worst_of_its_checks_and_says_why() {
        let lost =
            |state| HealthCheck::of_backend(&BackendStatus::new(BackendKind::Redis, "there:6379", state));
        let failed = || HealthCheck::new(HealthStatus::Degraded, Some("exit code 3".to_owned()));
        let disconnected = || BackendState::Disconnected { reason: "refused".to_owned() };
        let fallback = || BackendState::Degraded { reason: "runs on memory".to_owned() };
        for (checks, status, reason) in [
            (vec![], "ok", None),
            (vec![("backend", lost(BackendState::Connected)), ("memory", HealthCheck::ok())], "ok", None),
            (
                vec![("backend", lost(BackendState::Connected)), ("x", failed())],
                "degraded",
                Some("x: exit code 3"),
            ),
            (vec![("backend", lost(disconnected())), ("x", failed())], "down", Some("refused")),
            (vec![("backend", lost(fallback())), ("x", failed())], "degraded", Some("runs on memory")),
            (vec![("backend", lost(BackendState::Connecting))], "down", None),
        ] {
            let health = health(checks);
            assert_eq!((health.status.as_str(), health.reason.as_deref()), (status, reason));
        }
    }

    #[test]
    fn the_shape_is_the_documented_one_and_is_read_again() {
        let connected = BackendStatus::new(BackendKind::Redis, "there:6379", BackendState::Connected);
        let written = health([("backend", HealthCheck::of_backend(&connected))]);
        let json = serde_json::to_value(&written).unwrap();
        for (pointer, value) in [
            ("/status", Value::from("ok")),
            ("/component", "web".into()),
            ("/version", "1.2.3".into()),
            ("/uptime", 2.into()),
            ("/checks/backend/status", "ok".into()),
            ("/checks/backend/backend", "redis".into()),
            ("/checks/backend/server", "there:6379".into()),
        ] {
            assert_eq!(json.pointer(pointer), Some(&value), "{pointer}");
        }
        assert_eq!(serde_json::from_value::<SystemHealth>(json).unwrap(), written);
    }

    #[test]
    fn only_what_tells_something_new_is_a_difference() {
        let full = |part| HealthCheck::new(HealthStatus::Degraded, Some(format!("{part} % full")));
        let before = health([("memory", full(91))]);
        assert!(!before.differs_from(&health([("memory", full(95).with("used", 7))])));
        assert!(before.differs_from(&health([("memory", HealthCheck::ok())])));
        assert!(before.differs_from(&health([("memory", full(91)), ("x", HealthCheck::ok())])));
    }

    #[test]
    fn memory_near_its_limit_stays_so_until_there_is_room_again() {
        let budget = MemoryBudget::new(200 << 20);
        budget.set_limit(100 << 20);
        let watch = MemoryWatch::default();
        let mut held = 0;
        for (now, expected) in [(89, "ok"), (90, "degraded"), (81, "degraded"), (79, "ok"), (85, "ok")] {
            let bytes = now << 20;
            budget.enter(Holding::ALL[0], held, bytes);
            held = bytes;
            assert_eq!(watch.check(&budget).status, expected, "{now} %");
        }
        assert_eq!(MemoryWatch::default().check(&MemoryBudget::unlimited()).status, "ok");
    }

    #[test]
    fn an_outbox_that_is_nearly_full_by_number_or_by_bytes_is_not_well() {
        let limits = OutboxOptions { messages_max: 10, bytes_max: 1000 };
        for (messages, bytes, expected) in
            [(8, 10, "ok"), (9, 10, "degraded"), (1, 899, "ok"), (1, 900, "degraded")]
        {
            let status = OutboxStatus { messages, bytes, limits, refused: 0, last_refused: None, unknown: 0 };
            assert_eq!(
                HealthCheck::of_outbox(&status).status,
                expected,
                "{messages} messages, {bytes} bytes"
            );
        }
    }
}
