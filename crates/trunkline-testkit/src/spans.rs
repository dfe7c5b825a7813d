//! Spans that a bus makes, for tests to look at.

use std::collections::BTreeSet;
use std::time::Duration;

use opentelemetry::trace::{SpanId, TracerProvider as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use tokio::sync::watch;
use trunkline::Tracer;

/// Longest wait for spans that are expected.
const PATIENCE: Duration = Duration::from_secs(30);

/// A collector of spans within the process of the test. Each span is there as soon as it has ended.
#[derive(Debug)]
pub struct Spans {
    provider: SdkTracerProvider,
    ended: watch::Receiver<Vec<SpanData>>,
}

#[derive(Debug)]
struct Exporter(watch::Sender<Vec<SpanData>>);

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.send_modify(|ended| ended.extend(batch));
        Ok(())
    }
}

impl Default for Spans {
    fn default() -> Self {
        Self::with(Sampler::AlwaysOn)
    }
}

impl Spans {
    /// Collects what this sampler lets through.
    pub fn with(sampler: Sampler) -> Self {
        let (sender, ended) = watch::channel(Vec::new());
        let provider =
            SdkTracerProvider::builder().with_sampler(sampler).with_simple_exporter(Exporter(sender)).build();
        Self { provider, ended }
    }

    /// What the options of a bus are given.
    pub fn tracer(&self) -> Tracer {
        Tracer::new(self.raw())
    }

    /// A tracer as an application has one for spans of its own.
    pub fn raw(&self) -> opentelemetry_sdk::trace::SdkTracer {
        self.provider.tracer("test")
    }

    /// The spans that have ended by now, in the order of their ends.
    pub fn ended(&self) -> Vec<SpanData> {
        self.ended.borrow().clone()
    }

    /// Waits until as many spans of each operation have ended as are wanted, and gives all spans that have ended by then.
    ///
    /// # Panics
    /// When they do not come.
    pub async fn wait_for(&self, wanted: &[(&str, usize)]) -> Vec<SpanData> {
        let mut ended = self.ended.clone();
        let here = |ended: &Vec<SpanData>| {
            wanted
                .iter()
                .all(|(name, count)| ended.iter().filter(|span| operation(span) == *name).count() >= *count)
        };
        match tokio::time::timeout(PATIENCE, ended.wait_for(here)).await {
            Ok(Ok(ended)) => ended.clone(),
            _ => panic!("wanted {wanted:?}, got {:#?}", operations(&self.ended())),
        }
    }
}

/// What was done, as the first words of the spans' names, each behind those of its ancestors as far as they are among these
/// (`request > respond`), sorted.
pub fn operations(spans: &[SpanData]) -> Vec<String> {
    let mut all: Vec<_> = spans.iter().map(|span| path(spans, span)).collect();
    all.sort();
    all
}

fn path(spans: &[SpanData], span: &SpanData) -> String {
    let operation = operation(span);
    match spans.iter().find(|other| other.span_context.span_id() == span.parent_span_id) {
        Some(parent) => format!("{} > {operation}", path(spans, parent)),
        None => operation.to_owned(),
    }
}

fn operation(span: &SpanData) -> &str {
    span.name.split(' ').next().unwrap_or_default()
}

/// An attribute as text.
pub fn attribute(span: &SpanData, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
    found.map(|attribute| attribute.value.as_str().into_owned())
}

/// Asserts that spans are one trace with one root, and none of them has a parent that is not among them.
///
/// # Panics
/// When they are not.
pub fn assert_one_trace(spans: &[SpanData]) {
    let traces: BTreeSet<_> = spans.iter().map(|span| span.span_context.trace_id().to_string()).collect();
    assert_eq!(traces.len(), 1, "several traces: {:#?}", operations(spans));
    let roots: Vec<_> = spans.iter().filter(|span| span.parent_span_id == SpanId::INVALID).collect();
    assert_eq!(roots.len(), 1, "one root: {:#?}", operations(spans));
    for span in spans.iter().filter(|span| span.parent_span_id != SpanId::INVALID) {
        let parent = spans.iter().any(|other| other.span_context.span_id() == span.parent_span_id);
        assert!(parent, "the parent of {:?} is missing: {:#?}", span.name, operations(spans));
    }
}
