//! The process, its backend, its health and what runs beside the bus.

use std::fmt::Error;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::MetricType;
use trunkline::MemoryBudget;
use trunkline::health::{HealthStatus, SystemHealth};
use trunkline::memory::Holding;
use trunkline::status::{BackendState, BackendStatus};

use super::page::Page;
use crate::admin::ComponentJson;
use crate::process::Usage;

/// Every word that [`BackendState::as_str`] has.
const BACKEND_STATES: [&str; 5] = ["connecting", "ok", "degraded", "disconnected", "closed"];
/// Every word that [`HealthStatus::as_str`] has.
const HEALTH_STATES: [HealthStatus; 3] = [HealthStatus::Ok, HealthStatus::Degraded, HealthStatus::Down];

/// What is shown of every process with a bus in it.
#[derive(Debug)]
pub(in crate::http) struct Process {
    pub(in crate::http) uptime: Duration,
    /// `None` where nobody keeps an account.
    pub(in crate::http) memory: Option<Arc<MemoryBudget>>,
    pub(in crate::http) backend: BackendStatus,
    pub(in crate::http) health: SystemHealth,
    pub(in crate::http) components: Vec<ComponentJson>,
}

impl Process {
    pub(super) fn encode(&self, page: &mut Page<'_>) -> Result<(), Error> {
        page.info("trunkline_build", "What is running", &[("version", env!("CARGO_PKG_VERSION"))])?;
        page.gauge("trunkline_uptime_seconds", "Since the server started", self.uptime.as_secs_f64())?;
        let usage = Usage::now();
        let resident = usage.resident_bytes as f64;
        page.gauge("trunkline_process_resident_memory_bytes", "Memory of the process", resident)?;
        page.counter_seconds(
            "trunkline_process_cpu_seconds",
            "CPU time of the process",
            usage.cpu.as_secs_f64(),
        )?;
        let backend = self.backend.backend.as_str();
        let state = self.backend.state.as_str();
        page.family(
            "trunkline_backend_state",
            "1 for the state that the backend in use is in",
            MetricType::Gauge,
            BACKEND_STATES.map(|known| ([("backend", backend), ("state", known)], u64::from(known == state))),
        )?;
        let degraded = matches!(self.backend.state, BackendState::Degraded { .. });
        page.gauge(
            "trunkline_backend_degraded",
            "1 while the server runs on the fallback",
            f64::from(u8::from(degraded)),
        )?;
        self.encode_health(page)?;
        self.encode_memory(page)
    }

    /// As `/readyz` has it.
    fn encode_health(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let status = self.health.status();
        page.family(
            "trunkline_health_state",
            "1 for the state that everything together is in",
            MetricType::Gauge,
            HEALTH_STATES.map(|known| ([("state", known.as_str())], u64::from(known == status))),
        )?;
        page.family(
            "trunkline_health_check_ok",
            "1 while a check of /readyz is well",
            MetricType::Gauge,
            self.health.checks.iter().map(|(name, check)| {
                ([("check", name.as_str())], u64::from(check.status() == HealthStatus::Ok))
            }),
        )?;
        let mut family = |name, help, kind, of: fn(&ComponentJson) -> u64| {
            let rows = self.components.iter().map(|it| ([("component", it.name.as_str())], of(it)));
            page.family(name, help, kind, rows)
        };
        let help = "1 while a component is ready, or has done its work";
        family("trunkline_component_ready", help, MetricType::Gauge, |it| u64::from(it.state.is_well()))?;
        let help = "How often a component was started again";
        family("trunkline_component_restarts", help, MetricType::Counter, |it| it.restarts.into())
    }

    /// What buffers hold, and what they may.
    fn encode_memory(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let Some(memory) = &self.memory else { return Ok(()) };
        page.gauge("trunkline_memory_used_bytes", "Memory of all buffers together", memory.used() as f64)?;
        page.family(
            "trunkline_memory_held_bytes",
            "Memory of buffers, by what it is held for",
            MetricType::Gauge,
            Holding::ALL.map(|what| ([("holding", what.as_str())], memory.held(what) as u64)),
        )?;
        if let (Some(configured), Some(limit)) = (memory.configured(), memory.limit()) {
            let help = "Most memory of the process (runtime.resources.memory)";
            page.gauge("trunkline_memory_configured_bytes", help, configured as f64)?;
            let help = "Most memory of all buffers together: what the process leaves for them";
            page.gauge("trunkline_memory_limit_bytes", help, limit as f64)?;
        }
        page.counter(
            "trunkline_memory_exceeded",
            "How often somebody had to give way, or was refused, for want of memory",
            memory.exceeded(),
        )
    }
}
