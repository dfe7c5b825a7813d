//! Programs that run beside the bus, and what the process may use.

use serde::{Deserialize, Serialize};

/// What runs beside the bus.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentsJson {
    /// What the process of the bus may use.
    pub resources: ResourcesJson,
    /// Every configured component, by name.
    pub components: Vec<ComponentJson>,
}

/// What the process of the bus may use; keys `runtime.resources.*`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesJson {
    /// Threads that do the work: `cpus` rounded up, all processors unless it is set.
    pub worker_threads: usize,
    /// Processors, as configured.
    pub cpus: Option<f64>,
    /// Bound of all buffers together in bytes, as configured.
    pub memory: Option<u64>,
}

/// A component as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentJson {
    /// Its name in the configuration.
    pub name: String,
    /// How it is.
    pub state: ComponentState,
    /// Those it waits for, while it waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Since when it is in this state, RFC 3339.
    pub since: String,
    /// When it is started again, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_at: Option<String>,
    /// Why it is in this state, where there is more to say: how it ended, what it failed at.
    pub reason: Option<String>,
}

/// How a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ComponentState {
    /// Those it depends on are not ready.
    Waiting,
    /// It runs and is not ready.
    Starting,
    /// It runs and is ready.
    Ready,
    /// It ended and will be started again.
    Restarting,
    /// It was asked to end.
    Stopping,
    /// It ended by itself with success and is not to be started again.
    Done,
    /// It will not be started again, and that is a failure.
    Failed,
    /// It was stopped.
    Stopped,
}

impl ComponentState {
    /// The state in one word, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }

    /// Whether what it was started for holds: it is ready, or it has done its work.
    pub fn is_well(self) -> bool {
        matches!(self, Self::Ready | Self::Done)
    }
}
