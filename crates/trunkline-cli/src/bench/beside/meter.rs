//! What a run costs: its time, and the CPU time of this process and of the server.

use std::time::{Duration, Instant};

use super::super::error::BenchError;
use super::super::measure::{Flow, Usage};
use super::super::process;

/// A server whose costs can be read, as far as they are known.
pub(in crate::bench) trait Metered {
    /// CPU time that it has spent since it started; `None` when nobody can tell.
    fn cpu(&self) -> impl Future<Output = Result<Option<Duration>, BenchError>> + Send;
}

/// The readings before a run, to be compared with those after it.
pub(in crate::bench) struct Meter {
    started: Instant,
    own: Duration,
    server: Option<Duration>,
}

impl Meter {
    /// # Errors
    /// A reading that cannot be had.
    pub(in crate::bench) async fn start(server: &impl Metered) -> Result<Self, BenchError> {
        let server = server.cpu().await?;
        Ok(Self { own: process::own_cpu()?, started: Instant::now(), server })
    }

    /// # Errors
    /// A reading that cannot be had.
    pub(in crate::bench) async fn stop(
        self,
        server: &impl Metered,
        messages: u64,
    ) -> Result<Flow, BenchError> {
        let elapsed = self.started.elapsed();
        let load_cpu = process::own_cpu()?.saturating_sub(self.own);
        let spent = server.cpu().await?.zip(self.server).map(|(now, before)| now.saturating_sub(before));
        let server = spent.map(|cpu| Usage { cpu, rss_bytes: 0 });
        Ok(Flow { published: messages, messages, elapsed, load_cpu, server, latency: None })
    }
}
