//! The section `observe`: what is recorded of messages.

use super::declare::settings;
use super::settings::Format;

settings! {
    /// What is recorded of messages, for `trace`, `tail` and the dashboard.
    pub struct Observe in "observe." {
        /// Whether anything is recorded. Unless set, `up` does, and other processes report nothing to it.
        pub enabled: Option<bool>;
        /// Fields of payloads, at any depth, whose values are replaced by `***` before anything is recorded.
        pub redact: Vec<String>;
        /// Bound of the record, a part of `runtime.resources.memory`; past it the conversation seen longest ago goes.
        pub memory: u64 => default("32MB"), format(Format::Bytes), range("1MB", "16GiB");
        /// Largest body that is recorded; of larger ones the size alone is.
        pub payload_max: u64 => default("64KB"), format(Format::Bytes), range("0", "64MiB");
        /// Messages a second that are recorded; the rest is delivered as ever, and counted.
        pub rate_max: u32 => default("5000"), range("1", "1000000");
    }
}
