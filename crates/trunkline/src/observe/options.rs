//! What is recorded, and how much of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use trunkline_core::Token;

use crate::config::Config;
use crate::memory::{Holding, MemoryBudget};

/// What was seen and is not reported yet takes no more than this.
const REPORTED_BYTES_MAX: usize = 4 << 20;

/// Settings of an [`Observer`](super::Observer); keys `observe.*`.
#[derive(Debug, Clone)]
pub struct ObserveOptions {
    /// First token of the subjects that are recorded. Default `nachos`, key `messaging.subject_root`.
    pub root: Token,
    /// Fields of payloads, at any depth and in any case, whose values are replaced by `"***"` before anything is kept.
    /// Default none, key `observe.redact`.
    pub redact: Vec<String>,
    /// Most bytes that the record takes. Default 32 MB, key `observe.memory`.
    pub memory: usize,
    /// Largest body that is kept, in bytes; of larger ones the size alone is. Default 64 KB, key `observe.payload_max`.
    pub payload_max: usize,
    /// Most messages a second that are recorded; the rest is counted. Default 5000, key `observe.rate_max`.
    pub rate_max: u32,
    /// What the record is charged to.
    pub budget: Arc<MemoryBudget>,
    /// Records that have equal parts of `memory`: one for each account. Default 1.
    pub records: Arc<AtomicUsize>,
}

impl Default for ObserveOptions {
    fn default() -> Self {
        Self {
            root: Token::new("nachos").expect("a literal token"),
            redact: Vec::new(),
            memory: 32_000_000,
            payload_max: 64_000,
            rate_max: 5_000,
            budget: Arc::default(),
            records: Arc::new(AtomicUsize::new(1)),
        }
    }
}

impl ObserveOptions {
    /// What the configuration says, below this root and within this memory.
    pub fn from_config(config: &Config, root: Token, budget: Arc<MemoryBudget>) -> Self {
        let observe = &config.observe;
        let count = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            root,
            redact: observe.redact.clone(),
            memory: count(observe.memory),
            payload_max: count(observe.payload_max),
            rate_max: observe.rate_max,
            budget,
            records: Arc::new(AtomicUsize::new(1)),
        }
    }

    /// The same for a process that keeps no record and only reports: what it sees is kept until it was told.
    #[must_use]
    pub fn to_report(mut self) -> Self {
        self.memory = self.memory.min(REPORTED_BYTES_MAX);
        self
    }

    /// What the record may take now: its part of as much as is configured, and never more than of the share of the memory
    /// of the process.
    pub(super) fn bytes_max(&self) -> usize {
        let records = self.records.load(Ordering::Relaxed).max(1);
        self.memory.min(self.budget.share(Holding::Observations)) / records
    }
}
