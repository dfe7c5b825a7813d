//! `/metrics`: counters and gauges in OpenMetrics text, read when somebody scrapes.
//!
//! Names are `trunkline_<noun>_<unit>[_total]`; where a bus in this process counts the same thing, the server's name
//! begins with `trunkline_server_`. Labels are names from the configuration, never subjects or ids.

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use trunkline::backend::memory::HubStats;
use trunkline::backend::{ConsumerInfo, StreamInfo, Streams};
use trunkline::memory::Holding;
use trunkline::status::{BackendState, BackendStatus};

use super::{Monitor, aside, internal};
use crate::auth::Failure;
use crate::bridge::Bridge;
use crate::outbox::SlowBy;
use crate::process::Usage;
use crate::shared::{Closed, Shared, Totals};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Most streams, and most consumers, that have series of their own; how many are left out is a metric itself.
const SERIES_MAX: usize = 1000;
/// Longest wait for what the backend of a bridge says of its streams.
const ASKING_MAX: Duration = Duration::from_secs(1);
/// Every word that [`BackendState::as_str`] has.
const BACKEND_STATES: [&str; 5] = ["connecting", "ok", "degraded", "disconnected", "closed"];

pub(super) async fn metrics(State(monitor): State<Arc<Monitor>>) -> Response {
    let streams = match &monitor.shared.bridge {
        None => StreamsSnapshot::take(&*monitor.shared.hub).await,
        Some(bridge) => StreamsSnapshot::of_bridge(bridge).await,
    };
    aside(move || {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Snapshot::take(&monitor, streams)));
        if let Some(telemetry) = &monitor.telemetry {
            telemetry.register(&mut registry);
        }
        let mut body = String::new();
        match text::encode(&mut body, &registry) {
            Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response(),
            Err(error) => internal(&error),
        }
    })
    .await
}

#[derive(Debug, Default)]
struct StreamsSnapshot {
    streams: Vec<StreamInfo>,
    /// With the name of the stream.
    consumers: Vec<(String, ConsumerInfo)>,
    omitted: usize,
}

impl StreamsSnapshot {
    /// Nothing while the backend is away: whoever scrapes must not wait for it.
    async fn of_bridge(bridge: &Bridge) -> Self {
        match bridge.backend.streams() {
            Ok(streams) => tokio::time::timeout(ASKING_MAX, Self::take(streams)).await.unwrap_or_default(),
            Err(_) => Self::default(),
        }
    }

    async fn take(all: &dyn Streams) -> Self {
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
}

/// Everything that is shown, at one moment.
#[derive(Debug)]
struct Snapshot {
    shared: Arc<Shared>,
    totals: Totals,
    hub: HubStats,
    subscriptions: u64,
    streams: StreamsSnapshot,
    backend: BackendStatus,
    usage: Usage,
}

impl Snapshot {
    fn take(monitor: &Monitor, streams: StreamsSnapshot) -> Self {
        let shared = monitor.shared.clone();
        Self {
            totals: shared.totals(),
            hub: shared.hub.stats(),
            subscriptions: shared.subscriptions(),
            streams,
            backend: monitor.health.backend(),
            usage: Usage::now(),
            shared,
        }
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut page = Page(encoder);
        self.encode_process(&mut page)?;
        self.encode_connections(&mut page)?;
        self.encode_messages(&mut page)?;
        self.encode_streams(&mut page)?;
        self.encode_consumers(&mut page)
    }
}

impl Snapshot {
    fn encode_process(&self, page: &mut Page<'_>) -> Result<(), Error> {
        page.info("trunkline_build", "What is running", &[("version", env!("CARGO_PKG_VERSION"))])?;
        page.gauge(
            "trunkline_uptime_seconds",
            "Since the server started",
            self.shared.uptime().as_secs_f64(),
        )?;
        let memory = self.usage.resident_bytes as f64;
        page.gauge("trunkline_process_resident_memory_bytes", "Memory of the process", memory)?;
        page.counter_seconds(
            "trunkline_process_cpu_seconds",
            "CPU time of the process",
            self.usage.cpu.as_secs_f64(),
        )?;
        let backend = self.backend.backend.as_str();
        let state = self.backend.state.as_str();
        page.family(
            "trunkline_backend_state",
            "1 for the state that the backend in use is in",
            MetricType::Gauge,
            BACKEND_STATES.map(|known| ([("backend", backend), ("state", known)], u64::from(known == state))),
        )?;
        self.encode_memory(page)?;
        let degraded = matches!(self.backend.state, BackendState::Degraded { .. });
        page.gauge(
            "trunkline_backend_degraded",
            "1 while the server runs on the fallback",
            f64::from(u8::from(degraded)),
        )
    }

    /// What buffers hold, and what they may.
    fn encode_memory(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let memory = &self.shared.memory;
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
        )?;
        page.counter(
            "trunkline_stream_discarded_messages",
            "Messages that streams gave up for want of memory, before their own limits would have removed them",
            self.hub.discarded,
        )
    }

    fn encode_connections(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let shared = &self.shared;
        page.gauge("trunkline_connections", "Connections now", shared.connections() as f64)?;
        page.gauge("trunkline_subscriptions", "Subscriptions now", self.subscriptions as f64)?;
        page.counter("trunkline_connections_accepted", "Connections served", shared.accepted())?;
        page.counter(
            "trunkline_connections_refused",
            "Connections beyond the most there may be, or that one address may open within a second",
            shared.refused(),
        )?;
        page.counter(
            "trunkline_connections_refused_by_rate",
            "Of those, because their address had opened too many within a second",
            shared.refused_by_rate(),
        )?;
        page.family(
            "trunkline_connections_closed",
            "Connections that ended, by reason",
            MetricType::Counter,
            Closed::ALL.map(|why| ([("reason", why.as_str())], shared.closed(why))),
        )?;
        let slow = shared.closed(Closed::SlowConsumer);
        page.counter("trunkline_slow_consumers", "Clients cut off because they did not read", slow)?;
        page.family(
            "trunkline_slow_consumers_cut_off",
            "Clients cut off because they did not read, by the limit that they had reached",
            MetricType::Counter,
            SlowBy::ALL.map(|by| ([("limit", by.as_str())], shared.slow(by))),
        )?;
        page.counter(
            "trunkline_server_refused_subscriptions",
            "Subscriptions beyond the most that a client may have, or that there is memory for",
            shared.refused_subscriptions(),
        )?;
        page.counter(
            "trunkline_http_connections_evicted",
            "HTTP connections that waited longest and had to make room for others",
            shared.http_evicted.load(Ordering::Relaxed),
        )?;
        let stalled = shared.stalled();
        page.counter(
            "trunkline_publisher_pauses",
            "Pauses of publishers whose readers did not keep up",
            stalled,
        )
    }

    fn encode_messages(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let Totals { received, sent } = self.totals;
        page.counter("trunkline_server_received_messages", "Messages from clients", received.messages)?;
        page.counter("trunkline_server_received_bytes", "Headers and payloads from clients", received.bytes)?;
        page.counter("trunkline_server_sent_messages", "Messages to clients", sent.messages)?;
        page.counter("trunkline_server_sent_bytes", "Headers and payloads to clients", sent.bytes)?;
        page.counter(
            "trunkline_server_denied_messages",
            "Messages refused for want of permission",
            self.shared.denied(),
        )?;
        page.counter(
            "trunkline_server_denied_subscriptions",
            "Subscriptions refused or ended for want of permission",
            self.shared.denied_subscriptions(),
        )?;
        page.family(
            "trunkline_server_auth_failures",
            "Clients that were not let in or sent away, by reason",
            MetricType::Counter,
            Failure::ALL.map(|why| ([("reason", why.as_str())], self.shared.auth.failures(why))),
        )?;
        if let Some(bridge) = &self.shared.bridge {
            page.counter(
                "trunkline_bridge_missed_messages",
                "Messages that clients were not given, where their number is known",
                bridge.missed(),
            )?;
            page.counter(
                "trunkline_bridge_gaps",
                "Gaps in what clients were given, of known and of unknown size",
                bridge.gaps(),
            )?;
            page.counter(
                "trunkline_bridge_unconfirmed_operations",
                "Operations of clients that the backend did not confirm; each ended its connection",
                bridge.unconfirmed(),
            )?;
        }
        let nobody = self.shared.no_responders() + self.hub.no_responders;
        page.counter("trunkline_server_no_responders_requests", "Requests that nobody listened for", nobody)?;
        let hub = &self.hub;
        page.counter(
            "trunkline_hub_published_messages",
            "Messages published in this process",
            hub.published,
        )?;
        page.counter(
            "trunkline_hub_delivered_messages",
            "Deliveries of messages published in this process",
            hub.delivered,
        )?;
        page.counter("trunkline_hub_dropped_messages", "Deliveries dropped in this process", hub.dropped)
    }

    fn encode_streams(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let streams = &self.streams.streams;
        let mut family = |name, help, of: fn(&StreamInfo) -> u64| {
            let rows = streams.iter().map(|stream| ([("stream", stream.config.name.as_str())], of(stream)));
            page.family(name, help, MetricType::Gauge, rows)
        };
        family("trunkline_stream_messages", "Messages kept", |stream| stream.messages)?;
        family("trunkline_stream_bytes", "Bytes kept", |stream| stream.bytes)?;
        let help = "Streams and consumers without series of their own, because there are too many";
        page.gauge("trunkline_series_omitted", help, self.streams.omitted as f64)
    }

    fn encode_consumers(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let consumers = &self.streams.consumers;
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
        )
    }
}

/// The answer being written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> Result<(), Error> {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counter_seconds(&mut self, name: &str, help: &str, value: f64) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<(), Error> {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    /// One series for each set of labels; nothing at all for none, as a family without series is not valid.
    fn family<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            let mut series = metric.encode_family(&labels)?;
            match kind {
                MetricType::Counter => series.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                _ => series.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?,
            }
        }
        Ok(())
    }
}
