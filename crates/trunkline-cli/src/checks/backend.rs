//! The backend of a configuration: whether it is there, and set up as the bus needs it.

use std::time::Duration;

use trunkline::config::{Backend, Config};

use super::{Finding, Findings, nats, redis};
use crate::output::OutputError;

/// Looks at the backend, no wait being longer than `limit`. Tells whether it can be used at all.
///
/// # Errors
/// stdout is closed or full.
pub(crate) async fn check(
    config: &Config,
    limit: Duration,
    findings: &mut Findings,
) -> Result<bool, OutputError> {
    findings.looking_at("the backend");
    match config.messaging.backend {
        Backend::InMemory => {
            let text = "in_memory needs no server; what is stored lives as long as `trunkline up`";
            findings.add([Finding::ok("backend", text)])?;
            Ok(true)
        }
        Backend::Redis => redis::check(config, limit, findings).await,
        Backend::Nats => nats::check(config, limit, findings).await,
    }
}
