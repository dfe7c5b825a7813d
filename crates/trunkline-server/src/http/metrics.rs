//! `/metrics`: counters, gauges and histograms, read when somebody scrapes.
//!
//! Names are `trunkline_<noun>_<unit>[_total]`; where a bus in this process counts the same thing, the server's name
//! begins with `trunkline_server_`. Labels are names from the configuration, never subjects or ids.

mod format;
mod page;
mod process;
mod streams;

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use trunkline::backend::memory::HubStats;
use trunkline::{Bus, Telemetry};

use self::page::Page;
pub(super) use self::process::Process;
use self::streams::StreamsSnapshot;
use super::aside::FACTS;
use super::{Monitor, internal};
use crate::auth::Failure;
use crate::closed::Closed;
use crate::health::Speaker as _;
use crate::outbox::SlowBy;
use crate::refusals::HttpRefusal;
use crate::shared::Shared;
use crate::tally::Totals;

pub(super) async fn metrics(State(monitor): State<Arc<Monitor>>, headers: HeaderMap) -> Response {
    let streams = match &monitor.shared.bridge {
        None => StreamsSnapshot::take(&*monitor.shared.hub).await,
        Some(bridge) => StreamsSnapshot::of_backend(&*bridge.backend).await,
    };
    FACTS
        .make(move || {
            let snapshot = Snapshot::take(&monitor, streams);
            answer(Box::new(snapshot), monitor.telemetry.as_ref(), &headers)
        })
        .await
}

/// As [`metrics`], where no server is in this process: of the bus alone.
pub(super) async fn of_bus(bus: &Bus, process: Process, headers: HeaderMap) -> Response {
    let streams = StreamsSnapshot::of_backend(&**bus.backend()).await;
    let telemetry = bus.telemetry().clone();
    FACTS.make(move || answer(Box::new(OfBus { process, streams }), Some(&telemetry), &headers)).await
}

fn answer(collector: Box<dyn Collector>, telemetry: Option<&Telemetry>, headers: &HeaderMap) -> Response {
    let mut registry = Registry::default();
    registry.register_collector(collector);
    if let Some(telemetry) = telemetry {
        telemetry.register(&mut registry);
    }
    let mut body = String::new();
    match text::encode(&mut body, &registry) {
        Ok(()) => format::negotiate(headers, body),
        Err(error) => internal(&error),
    }
}

/// Everything that is shown where no server is.
#[derive(Debug)]
struct OfBus {
    process: Process,
    streams: StreamsSnapshot,
}

impl Collector for OfBus {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut page = Page(encoder);
        self.process.encode(&mut page)?;
        self.streams.encode(&mut page)
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
    process: Process,
}

impl Snapshot {
    fn take(monitor: &Monitor, streams: StreamsSnapshot) -> Self {
        let shared = monitor.shared.clone();
        Self {
            totals: shared.totals(),
            hub: shared.hub.stats(),
            subscriptions: shared.subscriptions(),
            streams,
            process: Process {
                uptime: shared.uptime(),
                memory: Some(shared.memory.clone()),
                backend: monitor.health.backend(),
                health: monitor.health.document(),
                components: monitor.health.components(),
            },
            shared,
        }
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut page = Page(encoder);
        self.process.encode(&mut page)?;
        page.counter(
            "trunkline_stream_discarded_messages",
            "Messages that streams gave up for want of memory, before their own limits would have removed them",
            self.hub.discarded,
        )?;
        self.encode_connections(&mut page)?;
        self.encode_messages(&mut page)?;
        self.streams.encode(&mut page)
    }
}

impl Snapshot {
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
        page.family(
            "trunkline_http_refused_requests",
            "Requests over HTTP that were refused before anybody looked at what they ask for, by reason",
            MetricType::Counter,
            HttpRefusal::ALL.map(|why| ([("reason", why.as_str())], shared.refusals.http(why))),
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
}
