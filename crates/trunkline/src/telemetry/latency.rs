//! How long things take, as histograms: two atomic additions for each observation, and nothing that waits.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use trunkline_core::Message;

use crate::envelope::Envelope;

/// Upper bounds of the buckets in microseconds, from 100 µs to 60 s; beyond is one more.
const BOUNDS_MICROS: [u64; 18] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];
/// Most consumers, and most queues of responders, that have histograms of their own; what comes after shares one.
const NAMES_MAX: usize = 100;
/// The name of those.
const OTHER: &str = "other";

/// A histogram of durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_MICROS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| bound * 1000 < nanos);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        let bounds = BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(self.buckets.iter().map(|count| count.load(Ordering::Relaxed))).collect();
        // Not counted apart, so that the count is always that of the buckets.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// What is measured of the handlers of one consumer, or of one queue of responders.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    handler: Histogram,
    end_to_end: Histogram,
    /// Of the bus.
    skewed: Counter,
}

impl Meters {
    /// A message is about to be handled that was made, or stored, at `sent`; `None` where nobody knows, or where it is not the
    /// first try.
    pub(crate) fn arrived(&self, sent: Option<SystemTime>) {
        if let Some(sent) = sent {
            let took = SystemTime::now().duration_since(sent).unwrap_or_else(|_| {
                // The clocks of two machines differ; less than no time is none.
                self.skewed.inc();
                Duration::ZERO
            });
            self.end_to_end.observe(took);
        }
    }

    /// As [`Meters::arrived`]; and its handler starts. What is returned measures until it is dropped, also for a handler that
    /// is cancelled.
    pub(crate) fn begin(&self, sent: Option<SystemTime>) -> Handling<'_> {
        self.arrived(sent);
        Handling { meters: self, started: Instant::now() }
    }
}

/// A handler at work.
#[derive(Debug)]
pub(crate) struct Handling<'a> {
    meters: &'a Meters,
    started: Instant,
}

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        self.meters.handler.observe(self.started.elapsed());
    }
}

/// Shortest time between two messages of a subscription that are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Larger bodies are not looked at: to pass over them would cost more than it tells.
const LOOK_BYTES_MAX: usize = 64 * 1024;

/// The age of messages that a live subscription takes from its backend. Bodies are nobody's business but the reader's, so of each
/// batch one message is looked at, the one that has waited longest, and none for a while after that: few messages are
/// measured all of them, and a flood costs nothing.
#[derive(Debug)]
pub(crate) struct Ages {
    latencies: Arc<Latencies>,
    next: Instant,
}

impl Ages {
    pub(crate) fn new(latencies: &Arc<Latencies>) -> Self {
        Self { latencies: latencies.clone(), next: Instant::now() }
    }

    /// These are given out now, or a first one of them.
    pub(crate) fn look(&mut self, oldest: &Message) {
        let now = Instant::now();
        if now < self.next || oldest.payload.len() > LOOK_BYTES_MAX {
            return;
        }
        self.next = now + LOOK_EVERY;
        self.latencies.subscriptions.arrived(made(Envelope::made_at(&oldest.payload)));
    }
}

/// When a message was made, as its envelope says: to the millisecond, and never later than it was.
pub(crate) fn made(timestamp: Option<Timestamp>) -> Option<SystemTime> {
    timestamp.map(SystemTime::from)
}

/// Stream and consumer.
type Named = (String, String);

/// The histograms of a bus, by names that are in its code or configuration.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// Asked for when a consumer or responder starts, never by the message. Held for one map operation.
    consumers: Mutex<BTreeMap<Named, Arc<Meters>>>,
    /// By the name of the queue; without one the name is empty. As above.
    responders: Mutex<BTreeMap<String, Arc<Meters>>>,
    pub(crate) requests: Histogram,
    /// Of all subscriptions together: their patterns may have ids in them.
    subscriptions: Meters,
    pub(super) skewed: Counter,
}

impl Default for Latencies {
    fn default() -> Self {
        let skewed = Counter::default();
        Self {
            consumers: Mutex::default(),
            responders: Mutex::default(),
            requests: Histogram::default(),
            subscriptions: Meters { skewed: skewed.clone(), ..Meters::default() },
            skewed,
        }
    }
}

impl Latencies {
    pub(crate) fn consumer(&self, stream: &str, consumer: &str) -> Arc<Meters> {
        let mut consumers = self.consumers.lock();
        let name = (stream.to_owned(), consumer.to_owned());
        let name = match consumers.contains_key(&name) || consumers.len() < NAMES_MAX {
            true => name,
            false => (OTHER.to_owned(), OTHER.to_owned()),
        };
        consumers.entry(name).or_insert_with(|| self.meters()).clone()
    }

    pub(crate) fn responder(&self, queue: Option<&str>) -> Arc<Meters> {
        let mut responders = self.responders.lock();
        let queue = queue.unwrap_or_default();
        let queue = match responders.contains_key(queue) || responders.len() < NAMES_MAX {
            true => queue,
            false => OTHER,
        };
        responders.entry(queue.to_owned()).or_insert_with(|| self.meters()).clone()
    }

    fn meters(&self) -> Arc<Meters> {
        Arc::new(Meters { skewed: self.skewed.clone(), ..Meters::default() })
    }
}

/// What a registry is given.
#[derive(Debug)]
pub(super) struct Shown(pub(super) Arc<Latencies>);

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let consumers: Vec<_> = self.0.consumers.lock().clone().into_iter().collect();
        let labels =
            |(stream, consumer): &Named| [("stream", stream.clone()), ("consumer", consumer.clone())];
        let consumers: Vec<_> = consumers.iter().map(|(name, meters)| (labels(name), &**meters)).collect();
        let responders: Vec<_> = self.0.responders.lock().clone().into_iter().collect();
        let responders: Vec<_> =
            responders.iter().map(|(queue, meters)| ([("queue", queue.clone())], &**meters)).collect();
        family(
            &mut encoder,
            ("trunkline_consumer_handler_seconds", "Time that handlers of a consumer took"),
            &consumers,
            |meters| &meters.handler,
        )?;
        family(
            &mut encoder,
            (
                "trunkline_consumer_end_to_end_seconds",
                "From the making of a message, or its storing, to the start of its first handler",
            ),
            &consumers,
            |meters| &meters.end_to_end,
        )?;
        family(
            &mut encoder,
            ("trunkline_responder_handler_seconds", "Time that handlers of requests took"),
            &responders,
            |meters| &meters.handler,
        )?;
        family(
            &mut encoder,
            (
                "trunkline_responder_end_to_end_seconds",
                "From the making of a request to the start of its handler",
            ),
            &responders,
            |meters| &meters.end_to_end,
        )?;
        let help = "From the making of a message to its arrival at a live subscription here, of a sample";
        self.0.subscriptions.end_to_end.encode(encoder.encode_descriptor(
            "trunkline_subscription_end_to_end_seconds",
            help,
            None,
            MetricType::Histogram,
        )?)?;
        let help = "From a request to its one reply";
        self.0.requests.encode(encoder.encode_descriptor(
            "trunkline_request_seconds",
            help,
            None,
            MetricType::Histogram,
        )?)
    }
}

/// Nothing at all where there is nothing to show: a family without series is not valid.
fn family<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    rows: &[(L, &Meters)],
    of: fn(&Meters) -> &Histogram,
) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    rows.iter().try_for_each(|(labels, meters)| of(meters).encode(metric.encode_family(labels)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(latencies: &Arc<Latencies>) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(Shown(latencies.clone())));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn durations_fall_into_the_bucket_whose_bound_they_do_not_pass() {
        let latencies = Arc::new(Latencies::default());
        for micros in [0, 100, 101, 60_000_000, 60_000_001] {
            latencies.requests.observe(Duration::from_micros(micros));
        }
        let text = text(&latencies);
        for line in [
            "trunkline_request_seconds_bucket{le=\"0.0001\"} 2",
            "trunkline_request_seconds_bucket{le=\"0.00025\"} 3",
            "trunkline_request_seconds_bucket{le=\"60.0\"} 4",
            "trunkline_request_seconds_bucket{le=\"+Inf\"} 5",
            "trunkline_request_seconds_count 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        assert!(!text.contains("consumer_"), "a family without series: {text}");
    }

    #[test]
    fn a_message_from_the_future_took_no_time_and_is_counted() {
        let latencies = Arc::new(Latencies::default());
        let meters = latencies.consumer("audit", "siem");
        let now = SystemTime::now();
        drop(meters.begin(Some(now + Duration::from_secs(3600))));
        drop(meters.begin(Some(now - Duration::from_secs(7))));
        drop(meters.begin(None));
        let text = text(&latencies);
        let labels = "stream=\"audit\",consumer=\"siem\"";
        for line in [
            format!("trunkline_consumer_end_to_end_seconds_bucket{{le=\"0.0001\",{labels}}} 1"),
            format!("trunkline_consumer_end_to_end_seconds_bucket{{le=\"5.0\",{labels}}} 1"),
            format!("trunkline_consumer_end_to_end_seconds_bucket{{le=\"10.0\",{labels}}} 2"),
            format!("trunkline_consumer_handler_seconds_count{{{labels}}} 3"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        assert_eq!(latencies.skewed.get(), 1);
    }

    #[test]
    fn of_many_messages_few_are_looked_at_and_large_ones_never() {
        let latencies = Arc::new(Latencies::default());
        let made = Timestamp::now() - Duration::from_secs(7);
        let message = |payload: String| Message::new("a.b".parse().unwrap(), payload);
        let dated = message(format!(r#"{{"payload":[1,{{"timestamp":3}}],"timestamp":"{made}"}}"#));
        let mut ages = Ages::new(&latencies);
        let large = " ".repeat(LOOK_BYTES_MAX);
        ages.look(&message(format!(r#"{{"timestamp":"{made}"{large}}}"#)));
        for _ in 0..1000 {
            ages.look(&dated);
        }
        let looked = text(&latencies);
        let count = |text: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with("trunkline_subscription_end_to_end_seconds_count "));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).unwrap()
        };
        assert!((1..100).contains(&count(&looked)), "{looked}");
        let early = "trunkline_subscription_end_to_end_seconds_bucket{le=\"5.0\"} 0";
        assert!(looked.lines().any(|line| line == early), "{looked}");
        let before = count(&looked);
        ages.next = Instant::now();
        ages.look(&message("no envelope".to_owned()));
        ages.next = Instant::now();
        ages.look(&dated);
        assert_eq!(count(&text(&latencies)), before + 1);
    }

    #[test]
    fn names_are_bounded_and_the_rest_shares_one() {
        let latencies = Arc::new(Latencies::default());
        for n in 0..NAMES_MAX + 10 {
            drop(latencies.consumer("s", &format!("c{n}")).begin(None));
            drop(latencies.responder(Some(&format!("q{n}"))).begin(None));
        }
        let text = text(&latencies);
        let series = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(series("trunkline_consumer_handler_seconds_count"), NAMES_MAX + 1);
        assert_eq!(series("trunkline_responder_handler_seconds_count"), NAMES_MAX + 1);
        assert!(text.contains("trunkline_responder_handler_seconds_count{queue=\"other\"} 10"), "{text}");
        // A consumer that starts again finds its own.
        assert!(Arc::ptr_eq(&latencies.consumer("s", "c3"), &latencies.consumer("s", "c3")));
    }
}
