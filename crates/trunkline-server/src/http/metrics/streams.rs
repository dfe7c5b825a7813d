//! What streams and consumers hold, as the backend says.

use std::fmt::Error;
use std::time::Duration;

use prometheus_client::metrics::MetricType;
use trunkline::backend::{Backend, ConsumerInfo, StreamInfo, Streams};

use super::page::Page;

/// Most streams, and most consumers, that have series of their own; how many are left out is a metric itself.
const SERIES_MAX: usize = 1000;
/// Longest wait for what a backend elsewhere says of its streams.
const ASKING_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct StreamsSnapshot {
    streams: Vec<StreamInfo>,
    /// With the name of the stream.
    consumers: Vec<(String, ConsumerInfo)>,
    omitted: usize,
}

impl StreamsSnapshot {
    /// Nothing while the backend is away: whoever scrapes must not wait for it.
    pub(super) async fn of_backend(backend: &dyn Backend) -> Self {
        match backend.streams() {
            Ok(streams) => tokio::time::timeout(ASKING_MAX, Self::take(streams)).await.unwrap_or_default(),
            Err(_) => Self::default(),
        }
    }

    pub(super) async fn take(all: &dyn Streams) -> Self {
        let mut snapshot = Self { streams: all.list().await.unwrap_or_default(), ..Self::default() };
        for stream in &snapshot.streams {
            for consumer in &stream.consumers {
                if snapshot.consumers.len() == SERIES_MAX {
                    snapshot.omitted += 1;
                } else if let Ok(Some(info)) = all.consumer_info(&stream.config.name, consumer).await {
                    snapshot.consumers.push((stream.config.name.clone(), info));
                }
            }
        }
        snapshot.omitted += snapshot.streams.len().saturating_sub(SERIES_MAX);
        snapshot.streams.truncate(SERIES_MAX);
        snapshot
    }

    pub(super) fn encode(&self, page: &mut Page<'_>) -> Result<(), Error> {
        self.encode_streams(page)?;
        self.encode_consumers(page)
    }

    fn encode_streams(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let streams = &self.streams;
        let mut family = |name, help, of: fn(&StreamInfo) -> u64| {
            let rows = streams.iter().map(|stream| ([("stream", stream.config.name.as_str())], of(stream)));
            page.family(name, help, MetricType::Gauge, rows)
        };
        family("trunkline_stream_messages", "Messages kept", |stream| stream.messages)?;
        family("trunkline_stream_bytes", "Bytes kept", |stream| stream.bytes)?;
        let help = "Streams and consumers without series of their own, because there are too many";
        page.gauge("trunkline_series_omitted", help, self.omitted as f64)
    }

    fn encode_consumers(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let consumers = &self.consumers;
        let mut family = |name, help, kind, of: fn(&ConsumerInfo) -> u64| {
            let rows = consumers.iter().map(|(stream, info)| {
                ([("stream", stream.as_str()), ("consumer", info.config.name.as_str())], of(info))
            });
            page.family(name, help, kind, rows)
        };
        use MetricType::{Counter, Gauge};
        family("trunkline_consumer_members", "Members now", Gauge, |info| info.members)?;
        family("trunkline_consumer_pending_messages", "Handed out and not settled", Gauge, |info| {
            info.pending
        })?;
        family("trunkline_consumer_lag_messages", "Never handed out yet", Gauge, |info| info.lag)?;
        family("trunkline_consumer_redelivered_messages", "Repeated deliveries", Counter, |info| {
            info.redelivered
        })?;
        family(
            "trunkline_consumer_missed_messages",
            "Removed by limits before they were settled",
            Counter,
            |info| info.missed,
        )?;
        let oldest = consumers.iter().map(|(stream, info)| {
            let labels = [("stream", stream.as_str()), ("consumer", info.config.name.as_str())];
            (labels, info.oldest_pending.unwrap_or_default().as_secs_f64())
        });
        page.seconds(
            "trunkline_consumer_oldest_pending_seconds",
            "For how long the oldest message has been handed out and not settled, 0 for none",
            oldest,
        )
    }
}
