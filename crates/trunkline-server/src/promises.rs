//! What the configuration promises that can stop being so while everything runs: that its streams are there.
//!
//! A stream that somebody has removed loses whatever is published to it from then on, and no connection breaks. So it is
//! looked for, now and then, and missing ones are a check of `/readyz`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use trunkline::backend::Backend;
use trunkline::config::Messaging;
use trunkline::health::{HealthCheck, HealthStatus};

/// The name of the check.
pub(crate) const STREAMS: &str = "streams";
/// How often streams are looked for, and the longest wait for an answer.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The streams of the configuration.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    streams: Vec<String>,
    /// Those that were not there at the last look. Held to copy or to replace it.
    missing: Mutex<Vec<String>>,
}

impl Promises {
    pub(crate) fn new(streams: Vec<String>) -> Self {
        Self { streams, missing: Mutex::default() }
    }

    /// What `messaging.streams` names.
    pub(crate) fn of(messaging: &Messaging) -> Vec<String> {
        messaging.streams.iter().map(|stream| stream.name.clone()).collect()
    }

    /// How it was at the last look; `None` where nothing was promised.
    pub(crate) fn check(&self) -> Option<HealthCheck> {
        if self.streams.is_empty() {
            return None;
        }
        let missing = self.missing.lock();
        let check = match missing.as_slice() {
            [] => HealthCheck::ok(),
            missing => {
                let reason = format!(
                    "{} of messaging.streams is not there any more, and nothing is stored for it; the next start makes it",
                    missing.join(", ")
                );
                HealthCheck::new(HealthStatus::Degraded, Some(reason))
            }
        };
        Some(check.with("promised", self.streams.len()).with("missing", missing.len()))
    }

    /// Looks for them until `stop`. To be spawned on a tracker.
    pub(crate) async fn watch(self: Arc<Self>, backend: Arc<dyn Backend>, stop: CancellationToken) {
        if self.streams.is_empty() {
            return;
        }
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.look(&*backend) => {}
            }
        }
    }

    async fn look(&self, backend: &dyn Backend) {
        let Ok(streams) = backend.streams() else { return };
        // A backend that does not answer is a check of its own; what was known stays.
        let Ok(Ok(found)) = tokio::time::timeout(LOOK_EVERY, streams.list()).await else { return };
        let is_there = |name: &String| found.iter().any(|stream| stream.config.name == *name);
        let missing: Vec<_> = self.streams.iter().filter(|name| !is_there(name)).cloned().collect();
        *self.missing.lock() = missing;
    }
}

#[cfg(test)]
mod tests {
    use trunkline::backend::memory::{Hub, MemoryBackend};
    use trunkline::backend::{StreamConfig, Streams as _};

    use super::*;

    #[tokio::test]
    async fn a_stream_that_somebody_removed_is_missing_until_it_is_there_again() {
        let hub = Arc::<Hub>::default();
        let backend = MemoryBackend::connect_to(&hub);
        let promises = Promises::new(vec!["audit".to_owned(), "tasks".to_owned()]);
        let make = async |name: &str| {
            let pattern = format!("{name}.>").parse().expect("a pattern");
            hub.ensure(StreamConfig::new(name, vec![pattern])).await.expect("a new stream");
        };
        make("audit").await;
        make("tasks").await;
        let look = async || {
            promises.look(&backend).await;
            promises.check().expect("something was promised")
        };
        assert_eq!(look().await.status(), HealthStatus::Ok);
        hub.remove("tasks").await.expect("removed");
        let check = look().await;
        assert_eq!(check.status(), HealthStatus::Degraded);
        assert!(check.reason.is_some_and(|reason| reason.starts_with("tasks of ")), "it is named");
        make("tasks").await;
        assert_eq!(look().await.status(), HealthStatus::Ok);
        assert_eq!(Promises::default().check(), None);
    }
}
