//! The bus's counters, as metrics and as numbers for `status()`.
//!
//! Counting is one atomic addition, and a duration two. No metric has a subject, a message id or a person's id as a label.

mod latency;

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::backend::{Settle, Settled};
pub(crate) use latency::{Ages, Latencies, Meters, made};

macro_rules! telemetry {
    (counters { $($counter:ident: $counter_name:literal, $counter_help:literal;)* }
     gauges { $($gauge:ident: $gauge_name:literal, $gauge_help:literal;)* }) => {
        /// The metrics of one bus. Clones share them.
        #[derive(Debug, Clone, Default)]
        pub struct Telemetry {
            $(pub(crate) $counter: Counter,)*
            $(pub(crate) $gauge: Gauge,)*
            pub(crate) latencies: Arc<Latencies>,
            /// What belongs to the process and not to the bus. Held to add one, and to copy the list.
            others: Arc<Mutex<Vec<Arc<dyn Collector>>>>,
        }

        /// What a bus has counted since it was made.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $(#[doc = $counter_help] pub $counter: u64,)*
            $(#[doc = $gauge_help] pub $gauge: u64,)*
        }

        impl Telemetry {
            /// Adds the metrics to a registry, under the names of the documentation.
            pub fn register(&self, registry: &mut Registry) {
                // The library adds `_total` to counters and a full stop to help texts.
                $(registry.register($counter_name, $counter_help.trim_end_matches('.'), self.$counter.clone());)*
                $(registry.register($gauge_name, $gauge_help.trim_end_matches('.'), self.$gauge.clone());)*
                let help = "Messages that seem to have been handled before they were made, for the clocks of two machines differ";
                registry.register("trunkline_clock_skewed_messages", help, self.latencies.skewed.clone());
                registry.register_collector(Box::new(latency::Shown(self.latencies.clone())));
                for other in self.others.lock().iter() {
                    registry.register_collector(Box::new(Shared(other.clone())));
                }
            }

            /// Shows these metrics, too, wherever those of the bus are shown: of what else in the process belongs to it, such as
            /// the export of its spans.
            pub fn also(&self, collector: impl Collector) {
                self.others.lock().push(Arc::new(collector));
            }

            /// The numbers now.
            pub fn counters(&self) -> Counters {
                Counters {
                    $($counter: self.$counter.get(),)*
                    $($gauge: u64::try_from(self.$gauge.get()).unwrap_or(0),)*
                }
            }
        }
    };
}

telemetry! {
    counters {
        published: "trunkline_published_messages", "Messages published.";
        publish_errors: "trunkline_publish_errors", "Publishes that failed or whose outcome is unknown.";
        denied: "trunkline_denied_publishes", "Of those that failed, the ones that the server's permissions refused.";
        received: "trunkline_received_messages", "Messages given to subscriptions, replies included.";
        gaps: "trunkline_gaps", "Gaps reported to subscriptions.";
        missed: "trunkline_missed_messages", "Messages that subscriptions or consumers are known to have missed.";
        requests: "trunkline_requests", "Requests sent.";
        request_errors: "trunkline_request_errors", "Requests without a usable reply.";
        late_replies: "trunkline_late_replies", "Replies that nobody waited for any more.";
        answered: "trunkline_answered_requests", "Requests that a responder here answered.";
        answer_errors: "trunkline_answered_errors", "Requests that a responder here answered with an error.";
        delivered: "trunkline_deliveries", "Deliveries of stored messages that consumers here were given.";
        acked: "trunkline_acked_deliveries", "Deliveries that were acked, and the backend took it.";
        nacked: "trunkline_nacked_deliveries", "Deliveries that were given back to come again, and the backend took it.";
        terminated: "trunkline_terminated_deliveries", "Deliveries that were ended for good, mostly behind a dead letter, and the backend took it.";
        handled: "trunkline_handled_deliveries", "Deliveries whose handler succeeded.";
        failed: "trunkline_failed_deliveries", "Deliveries whose handler failed, panicked or was cancelled.";
        redelivered: "trunkline_redelivered_deliveries", "Deliveries that were not the first of their message.";
        dead_letters: "trunkline_dead_letters", "Dead letters written.";
        dead_letter_errors: "trunkline_dead_letter_errors", "Dead letters that could not be written and will be tried again.";
        leases_lost: "trunkline_lost_leases", "Deliveries whose lease was lost before they were settled.";
        outbox_queued: "trunkline_outbox_queued_messages", "Messages kept in the outbox because the server was away or others waited.";
        outbox_sent: "trunkline_outbox_sent_messages", "Messages published from the outbox.";
        outbox_refused: "trunkline_outbox_refused_messages", "Queued messages that can never be published.";
        outbox_unknown: "trunkline_outbox_unknown_messages", "Queued messages that may or may not have been published.";
        outbox_full: "trunkline_outbox_full", "Publishes refused because the outbox was full.";
        consume_errors: "trunkline_consume_errors", "Failed fetches, settlements and leases, each tried again.";
    }
    gauges {
        requests_in_flight: "trunkline_requests_in_flight", "Requests that wait for a reply now.";
        outbox_messages: "trunkline_outbox_messages", "Messages that wait in the outbox now.";
        outbox_bytes: "trunkline_outbox_bytes", "Bytes that wait in the outbox now.";
        handlers_running: "trunkline_handlers_running", "Handlers at work now.";
    }
}

/// A registry wants collectors of its own.
#[derive(Debug)]
struct Shared(Arc<dyn Collector>);

impl Collector for Shared {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

impl Telemetry {
    /// What became of a settlement. One that came too late is counted as a lost lease, by who sees to that.
    pub(crate) fn settled(&self, settle: Settle, outcome: Settled) {
        match (settle, outcome) {
            (_, Settled::LeaseLost) | (Settle::Progress, _) => return,
            (Settle::Ack, Settled::Done) => &self.acked,
            (Settle::Nak(_), Settled::Done) => &self.nacked,
            (Settle::Term, Settled::Done) => &self.terminated,
        }
        .inc();
    }
}

/// Counts one in a gauge for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn one(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_documented_names() {
        let telemetry = Telemetry::default();
        telemetry.published.inc_by(3);
        let running = Counted::one(&telemetry.handlers_running);
        let mut registry = Registry::default();
        telemetry.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("\ntrunkline_published_messages_total 3\n"), "{text}");
        assert!(text.contains("\ntrunkline_handlers_running 1\n"), "{text}");
        assert!(text.contains("# HELP trunkline_gaps Gaps reported to subscriptions.\n"), "{text}");
        drop(running);
        let counters = telemetry.counters();
        assert_eq!((counters.published, counters.handlers_running), (3, 0));
    }
}
