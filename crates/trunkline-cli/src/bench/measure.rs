//! What one run found: a value per run, before any statistics.

use std::time::Duration;

use hdrhistogram::Histogram;

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// User and system time of all threads, also of those that have ended.
    pub(super) cpu: Duration,
    /// Resident memory.
    pub(super) rss_bytes: u64,
}

/// One run of one scenario on one server.
#[derive(Debug)]
pub(super) enum Sample {
    Flow(Flow),
    Idle(Idle),
}

/// A run in which messages flowed.
#[derive(Debug)]
pub(super) struct Flow {
    /// Messages that clients sent.
    pub(super) published: u64,
    /// What rates and costs are counted by: deliveries to all subscribers, for `pub` messages
    /// published, for `request` round trips.
    pub(super) messages: u64,
    /// From the first publish to the last receive.
    pub(super) elapsed: Duration,
    /// What this process spent on the load.
    pub(super) load_cpu: Duration,
    /// What the server spent, and its memory at the end; `None` when its process is not known.
    pub(super) server: Option<Usage>,
    /// Round-trip times in nanoseconds, of scenario `request`.
    pub(super) latency: Option<Histogram<u64>>,
}

/// A run in which connections were opened and did nothing.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) connections: u64,
    pub(super) rss_bytes_before: u64,
    pub(super) rss_bytes_after: u64,
}

impl Flow {
    /// Messages per second.
    pub(super) fn rate(&self) -> f64 {
        self.messages as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Microseconds of `cpu` per message.
    pub(super) fn per_message_us(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.messages.max(1) as f64
    }
}

impl Idle {
    /// Bytes of resident memory per connection.
    pub(super) fn bytes_per_connection(&self) -> f64 {
        let grown = self.rss_bytes_after as f64 - self.rss_bytes_before as f64;
        grown / self.connections.max(1) as f64
    }
}
