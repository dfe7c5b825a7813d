//! Spans of this command, sent to an OpenTelemetry collector where the environment says so.
//!
//! The variables are those of the OpenTelemetry specification. Without an endpoint in them nothing of this is started. The
//! SDK batches spans in a queue of its own thread, which sends them; a full queue drops, and nobody who handles messages ever
//! waits. A collector that is away is one warning.

mod collector;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};
use prometheus_client::collector::Collector as Collect;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use trunkline::{Telemetry, Tracer};

use crate::args::Command;
use collector::Trouble;

/// Longest wait at the end for spans that are not sent yet.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// Spans that may wait, where `OTEL_BSP_MAX_QUEUE_SIZE` says nothing: the specification's number.
const QUEUE_MAX: u64 = 2048;
/// The only protocol that is spoken.
const PROTOCOL: &str = "http/protobuf";

/// What the environment asks for that cannot be done. Messages flow all the same.
#[derive(Debug, thiserror::Error)]
enum TraceError {
    #[error(
        "{variable} is {given:?}; spans can be sent by {PROTOCOL} only, which collectors take on port 4318"
    )]
    Protocol { variable: &'static str, given: String },
    #[error("OTEL_TRACES_EXPORTER is {given:?}; spans can be sent by otlp, or not at all by none")]
    Exporter { given: String },
    #[error("spans cannot be sent")]
    Build(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("spans cannot be sent")]
    Collector(#[from] collector::CollectorError),
}

/// What became of spans.
#[derive(Debug, Default)]
struct Tally {
    /// Given to the queue.
    queued: AtomicU64,
    /// Taken from the queue, to be sent.
    taken: AtomicU64,
    sent: AtomicU64,
    /// Given up, because the collector did not take them.
    refused: AtomicU64,
    /// Not queued, because the queue was full.
    dropped: AtomicU64,
    /// The collector is away, and that was said.
    away: AtomicBool,
}

/// A tally as metrics.
#[derive(Debug)]
struct Shown(Arc<Tally>);

impl Collect for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let help = "Spans that the collector took";
        let mut sent = encoder.encode_descriptor("trunkline_spans_sent", help, None, MetricType::Counter)?;
        sent.encode_counter::<NoLabelSet, _, u64>(&load(&self.0.sent), None)?;
        let help = "Spans that are lost: too many waited, or the collector did not take them";
        let mut dropped =
            encoder.encode_descriptor("trunkline_spans_dropped", help, None, MetricType::Counter)?;
        for (reason, count) in [("queue_full", &self.0.dropped), ("not_sent", &self.0.refused)] {
            let labels = [("reason", reason)];
            let mut series = dropped.encode_family(&labels)?;
            series.encode_counter::<NoLabelSet, _, u64>(&load(count), None)?;
        }
        let waiting = load(&self.0.queued).saturating_sub(load(&self.0.taken));
        let help = "Spans that wait to be sent";
        let mut gauge =
            encoder.encode_descriptor("trunkline_spans_waiting", help, None, MetricType::Gauge)?;
        gauge.encode_gauge(&i64::try_from(waiting).unwrap_or(i64::MAX))
    }
}

/// What becomes of the spans of this process, once it makes any.
static TALLY: OnceLock<Arc<Tally>> = OnceLock::new();

/// Shows what becomes of spans beside the metrics of a bus, where spans are made.
pub(crate) fn show(telemetry: &Telemetry) {
    if let Some(tally) = TALLY.get() {
        telemetry.also(Shown(tally.clone()));
    }
}

/// Spans being made and sent, until [`Traces::finish`].
#[derive(Debug)]
pub(crate) struct Traces(Option<(SdkTracerProvider, Arc<Tally>)>);

/// Starts to send spans, if the command is one that handles messages and the environment names a collector.
pub(crate) fn start(command: &Command) -> Traces {
    let handles_messages = matches!(
        command,
        Command::Up(_)
            | Command::Pub(_)
            | Command::Sub(_)
            | Command::Request(_)
            | Command::Reply(_)
            | Command::Consume(_)
            | Command::Dlq(_)
            | Command::Replay(_)
    );
    let wanted = match handles_messages {
        true => is_wanted(&variable),
        false => Ok(false),
    };
    let started = wanted.and_then(|wanted| if wanted { provider().map(Some) } else { Ok(None) });
    match started {
        Ok(None) => Traces(None),
        Ok(Some((provider, tally))) => {
            opentelemetry::global::set_tracer_provider(provider.clone());
            Tracer::global().make_default();
            // A process starts this once.
            let _ = TALLY.set(tally.clone());
            Traces(Some((provider, tally)))
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "no spans are made");
            Traces(None)
        }
    }
}

impl Traces {
    /// Sends what waits, for a bounded time, and tells what was lost.
    pub(crate) fn finish(self) {
        let Some((provider, tally)) = self.0 else { return };
        // What it could not send is counted below.
        let _ = provider.shutdown_with_timeout(FLUSH_WITHIN);
        let (sent, dropped) = (tally.sent.load(Ordering::Relaxed), tally.dropped.load(Ordering::Relaxed));
        let unsent = tally.queued.load(Ordering::Relaxed).saturating_sub(sent);
        if dropped + unsent > 0 {
            // Why was said when it happened.
            tracing::info!(sent, unsent, dropped, "spans were lost");
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Whether the environment asks for spans.
fn is_wanted(variable: &impl Fn(&str) -> Option<String>) -> Result<bool, TraceError> {
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(false);
    }
    let endpoints = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    match variable("OTEL_TRACES_EXPORTER").as_deref().map(str::trim) {
        None if endpoints.iter().all(|name| variable(name).is_none()) => return Ok(false),
        Some("none") => return Ok(false),
        None | Some("otlp") => {}
        Some(given) => return Err(TraceError::Exporter { given: given.to_owned() }),
    }
    for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
        match variable(name) {
            None => {}
            Some(given) if given.trim() == PROTOCOL => break,
            Some(given) => return Err(TraceError::Protocol { variable: name, given }),
        }
    }
    Ok(true)
}

fn provider() -> Result<(SdkTracerProvider, Arc<Tally>), TraceError> {
    let collector = collector::Collector::from_environment(&variable)?;
    let trouble = collector.trouble();
    let exporter = OtlpExporter::builder().with_http().with_http_client(collector).build()?;
    let tally = Arc::new(Tally::default());
    let batches = BatchSpanProcessor::builder(Exporter { exporter, trouble, tally: tally.clone() }).build();
    let queue_max = variable("OTEL_BSP_MAX_QUEUE_SIZE").and_then(|value| value.parse().ok());
    let processor = Processor { batches, tally: tally.clone(), queue_max: queue_max.unwrap_or(QUEUE_MAX) };
    // The sampler comes from OTEL_TRACES_SAMPLER, the rest of the resource from its own variables.
    let provider = SdkTracerProvider::builder().with_resource(resource()).with_span_processor(processor);
    Ok((provider.build(), tally))
}

/// What the spans come from: what the variables say, and the name of this command where they say none.
fn resource() -> Resource {
    let named = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let names = |wanted: &str| named.split(',').any(|pair| pair.trim().starts_with(&format!("{wanted}=")));
    let mut builder = Resource::builder();
    if variable("OTEL_SERVICE_NAME").is_none() && !names("service.name") {
        builder = builder.with_service_name("trunkline");
    }
    if !names("service.version") {
        builder = builder.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    }
    builder.build()
}

/// Keeps the queue of the SDK within its bound, so that what is dropped is counted.
#[derive(Debug)]
struct Processor {
    batches: BatchSpanProcessor,
    tally: Arc<Tally>,
    queue_max: u64,
}

impl SpanProcessor for Processor {
    fn on_start(&self, span: &mut Span, context: &opentelemetry::Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let tally = &self.tally;
        let taken = tally.taken.load(Ordering::Relaxed);
        // Several threads at once may exceed the bound by one each; the SDK's own queue bounds it then.
        if tally.queued.load(Ordering::Relaxed).saturating_sub(taken) >= self.queue_max {
            if tally.dropped.fetch_add(1, Ordering::Relaxed) == 0 && !tally.away.load(Ordering::Relaxed) {
                let limit = self.queue_max;
                tracing::warn!(limit, "spans are dropped: more wait than may (OTEL_BSP_MAX_QUEUE_SIZE)");
            }
            return;
        }
        tally.queued.fetch_add(1, Ordering::Relaxed);
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Sends batches, and says once when that fails, and once when it works again.
#[derive(Debug)]
struct Exporter {
    exporter: OtlpExporter,
    trouble: Trouble,
    tally: Arc<Tally>,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        self.tally.taken.fetch_add(spans, Ordering::Relaxed);
        let outcome = self.exporter.export(batch).await;
        if outcome.is_err() {
            self.tally.refused.fetch_add(spans, Ordering::Relaxed);
        }
        match &outcome {
            Ok(()) => {
                self.tally.sent.fetch_add(spans, Ordering::Relaxed);
                if self.tally.away.swap(false, Ordering::Relaxed) {
                    tracing::info!("the collector takes spans again");
                }
            }
            Err(error) if !self.tally.away.swap(true, Ordering::Relaxed) => {
                let cause = self.trouble.take();
                tracing::warn!(%error, cause, "the collector takes no spans; they are dropped until it does");
            }
            Err(_) => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pairs: &[(&str, &str)]) -> Result<bool, String> {
        let find =
            |name: &str| pairs.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned());
        is_wanted(&find).map_err(|error| error.to_string())
    }

    #[test]
    fn spans_are_off_unless_an_endpoint_or_the_exporter_is_named() {
        const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
        for (pairs, expected) in [
            (&[][..], false),
            (&[("OTEL_SERVICE_NAME", "x")], false),
            (&[ENDPOINT], true),
            (&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/v1/traces")], true),
            (&[("OTEL_TRACES_EXPORTER", "otlp")], true),
            (&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")], false),
            (&[ENDPOINT, ("OTEL_SDK_DISABLED", "True")], false),
            (&[ENDPOINT, ("OTEL_SDK_DISABLED", "no")], true),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], true),
            (
                &[
                    ENDPOINT,
                    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
                    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ],
                true,
            ),
        ] {
            assert_eq!(wanted(pairs), Ok(expected), "{pairs:?}");
        }
        let error = wanted(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap_err();
        assert_eq!(
            error,
            "OTEL_EXPORTER_OTLP_PROTOCOL is \"grpc\"; spans can be sent by http/protobuf only, which collectors take on \
             port 4318"
        );
        assert!(wanted(&[("OTEL_TRACES_EXPORTER", "console")]).is_err());
    }
}
