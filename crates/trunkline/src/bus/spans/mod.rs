//! Spans: what becomes of a message, as OpenTelemetry sees it, so that one conversation is one trace.
//!
//! The library speaks the OpenTelemetry API alone; the application brings the SDK and gives its tracer to the bus
//! ([`Tracer`]). A bus without one makes no spans: what came in `traceparent` and `tracestate` passes on as it came, and a
//! publish costs one look at an `Option` of its own options more. That is why spans are made here, with the API, and not
//! as spans of `tracing`: those ask every subscriber of the process for each message, and cannot be the parent that the
//! message's header names before a subscriber has made ids for them.
//!
//! With a tracer every hop is a span, and the header of what it sends names it as the parent: `publish` for what is
//! published, `request` from the request to its answer, `respond` and `process` for handlers, `receive` for what a
//! subscription or a puller gives out, `ack`, `nak` and `term` for settlements, `dead_letter` and `redrive`. A redelivery is
//! another `process` below the same `publish`.

mod describe;
mod traceparent;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::{Arc, OnceLock};

use futures_util::future::Either;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::{
    FutureExt as _, Link, SpanBuilder, SpanContext, Status, TraceContextExt as _, Tracer as OtelTracer,
};
use opentelemetry::{Context as OtelContext, KeyValue};
use tracing::Instrument as _;
use trunkline_core::{Headers, Message};

use super::Inner;
use super::context::Context;
use super::received::Received;
use crate::backend::{Delivery, PublishError, Publishing, Receipt, Settle, Settled};
use crate::envelope::Envelope;

pub(super) use describe::Operation;
pub(super) use traceparent::{TRACEPARENT, TRACESTATE, span_id, trace_id};

/// The name under which tracers know this library.
const SCOPE: &str = "trunkline";
/// Subjects below the root whose messages are reports about others, and are not reported on.
const REPORTS: [&str; 2] = [".system.trace", ".system.health"];

/// The tracer of buses that are given none.
static DEFAULT: OnceLock<Tracer> = OnceLock::new();

/// Where a bus puts its spans: a tracer of the application's own OpenTelemetry SDK. Cheap to clone.
///
/// ```
/// use opentelemetry_sdk::trace::SdkTracerProvider;
/// use trunkline::{Bus, Tracer, opentelemetry};
///
/// // With the exporter of your choice.
/// let provider = SdkTracerProvider::builder().build();
/// opentelemetry::global::set_tracer_provider(provider.clone());
/// // From here on every bus that is made reports to it.
/// Tracer::global().make_default();
/// let bus = Bus::in_memory();
/// assert!(bus.options().tracer.is_some());
/// # provider.shutdown().unwrap();
/// ```
#[derive(Clone)]
pub struct Tracer(Arc<BoxedTracer>);

impl Tracer {
    /// The tracer of the provider that was set with `opentelemetry::global::set_tracer_provider` before.
    pub fn global() -> Self {
        Self(Arc::new(opentelemetry::global::tracer(SCOPE)))
    }

    /// A tracer of any provider.
    pub fn new<T>(tracer: T) -> Self
    where
        T: OtelTracer + Send + Sync + 'static,
        T::Span: Send + Sync + 'static,
    {
        Self(Arc::new(BoxedTracer::new(Box::new(tracer))))
    }

    /// Has all buses that are made from now on use it, unless their options name another or none. Only the first call
    /// counts; `false` when there was one before.
    pub fn make_default(self) -> bool {
        DEFAULT.set(self).is_ok()
    }

    pub(super) fn default_one() -> Option<Self> {
        DEFAULT.get().cloned()
    }
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tracer")
    }
}

/// One hop of a message as a span. All clones are the same span.
#[derive(Clone)]
pub(crate) struct Hop(Arc<HopInner>);

struct HopInner {
    tracer: Tracer,
    subject: trunkline_core::Subject,
    template: String,
    /// Holds the span.
    otel: OtelContext,
}

impl std::fmt::Debug for Hop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hop").field(&self.span()).finish()
    }
}

impl Hop {
    fn start(
        inner: &Inner,
        tracer: &Tracer,
        operation: Operation,
        message: &Message,
        envelope: Option<&Envelope>,
        parent: Option<SpanContext>,
    ) -> Self {
        let template = describe::template(message.subject.as_str());
        let creation = if operation.takes() { parent.clone() } else { None };
        let otel = begin(tracer, operation, &template, parent, creation);
        if otel.span().is_recording() {
            otel.span().set_attributes(describe::of_message(inner, operation, &template, message, envelope));
        }
        Self(Arc::new(HopInner { tracer: tracer.clone(), subject: message.subject.clone(), template, otel }))
    }

    fn span(&self) -> SpanContext {
        self.0.otel.span().span_context().clone()
    }

    /// The headers that name it as the parent of what is sent.
    pub(super) fn headers(&self) -> Vec<(&'static str, String)> {
        let (parent, state) = traceparent::written(self.0.otel.span().span_context());
        std::iter::once((TRACEPARENT, parent)).chain(state.map(|state| (TRACESTATE, state))).collect()
    }

    fn set(&self, attribute: KeyValue) {
        self.0.otel.span().set_attribute(attribute);
    }

    /// Says that it failed: in a word for programs, and in words for people.
    pub(super) fn fail(&self, kind: &'static str, text: String) {
        self.set(KeyValue::new("error.type", kind));
        self.0.otel.span().set_status(Status::error(text));
    }

    /// Ends it; later ends count for nothing.
    pub(super) fn end(&self) {
        self.0.otel.span().end();
    }

    /// The settlement of the delivery that this hop handled, as a span of its own.
    pub(super) fn settle(&self, settle: Settle) -> Option<Self> {
        let operation = match settle {
            Settle::Ack => Operation::Ack,
            Settle::Nak(_) => Operation::Nak,
            Settle::Term => Operation::Term,
            Settle::Progress => return None,
        };
        let HopInner { tracer, subject, template, .. } = &*self.0;
        let otel = begin(tracer, operation, template, Some(self.span()), None);
        if otel.span().is_recording() {
            otel.span().set_attributes(describe::of_destination(operation, template, subject.as_str()));
            if let Settle::Nak(delay) = settle {
                let millis = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
                otel.span().set_attribute(KeyValue::new("trunkline.delivery.delay_ms", millis));
            }
        }
        let (tracer, subject, template) = (tracer.clone(), subject.clone(), template.clone());
        Some(Self(Arc::new(HopInner { tracer, subject, template, otel })))
    }

    /// The end of a settlement.
    pub(super) fn settled(&self, outcome: Settled) {
        if outcome == Settled::LeaseLost {
            self.fail("lease_lost", "the lease was lost before the settlement".to_owned());
        }
        self.end();
    }
}

/// The tracer of a bus. `cargo xtask spans` builds the library without spans, to measure what they cost where they are off.
fn tracer(inner: &Inner) -> Option<&Tracer> {
    if cfg!(trunkline_without_spans) { None } else { inner.options.tracer.as_ref() }
}

/// Whether this bus makes spans.
pub(super) fn are_made(inner: &Inner) -> bool {
    tracer(inner).is_some()
}

/// `creation` is the span in which the message was made, to which whoever takes it links: the conventions ask for it beside
/// the parent, which need not be the same.
fn begin(
    tracer: &Tracer,
    operation: Operation,
    template: &str,
    parent: Option<SpanContext>,
    creation: Option<SpanContext>,
) -> OtelContext {
    let mut builder =
        SpanBuilder::from_name(format!("{} {template}", operation.name())).with_kind(operation.span_kind());
    if let Some(creation) = creation {
        builder = builder.with_links(vec![Link::with_context(creation)]);
    }
    let around = match parent {
        Some(parent) => OtelContext::new().with_remote_span_context(parent),
        None => OtelContext::new(),
    };
    around.with_span(tracer.0.build_with_context(builder, &around))
}

/// The parent of what is sent now: the application's own span where it belongs to the trace that the message names, or the
/// message names none; else what the message names; else what the message being handled here passes on.
fn parent_of_sent(headers: &Headers) -> Option<SpanContext> {
    let named = traceparent::read(headers);
    let around = OtelContext::map_current(|current| current.span().span_context().clone());
    let around = Some(around).filter(SpanContext::is_valid);
    match (named, around) {
        (Some(named), Some(around)) if named.trace_id() == around.trace_id() => Some(around),
        (Some(named), _) => Some(named),
        (None, Some(around)) => Some(around),
        (None, None) => {
            let mut inherited = Headers::new();
            for (name, value) in Context::current()?.trace_headers() {
                inherited.append(*name, value.as_str()).ok()?;
            }
            traceparent::read(&inherited)
        }
    }
}

/// Begins the span of something that is sent, and names it in the message's headers.
fn begin_sending(inner: &Inner, operation: Operation, message: &mut Message) -> Option<Hop> {
    let tracer = tracer(inner)?;
    let below_root = message.subject.as_str().strip_prefix(inner.options.subject_root.as_str());
    if below_root.is_some_and(|rest| REPORTS.contains(&rest)) {
        return None;
    }
    let parent = parent_of_sent(&message.headers);
    let envelope = Envelope::from_bytes(&message.payload);
    let hop = Hop::start(inner, tracer, operation, message, envelope.as_ref(), parent);
    traceparent::write(&hop.span(), &mut message.headers);
    Some(hop)
}

/// Publishes through `send`, with a span from here to the outcome where spans are made.
pub(super) fn publishing(
    inner: &Inner,
    operation: Operation,
    mut message: Message,
    send: impl FnOnce(Message) -> Publishing,
) -> Publishing {
    if tracer(inner).is_none() {
        return send(message);
    }
    let Some(hop) = begin_sending(inner, operation, &mut message) else { return send(message) };
    let call = Call(Some(hop));
    match send(message) {
        Publishing::Ready(outcome) => {
            call.published(&outcome);
            Publishing::Ready(outcome)
        }
        Publishing::Pending(future) => Publishing::Pending(Box::pin(async move {
            let outcome = future.await;
            call.published(&outcome);
            outcome
        })),
    }
}

/// Begins a request; its span ends with what becomes of the [`Call`].
pub(super) fn request(inner: &Inner, message: &mut Message) -> Call {
    Call(begin_sending(inner, Operation::Request, message))
}

/// Something with an end that somebody waits for. Dropped before, it was cancelled.
#[derive(Debug, Default)]
pub(super) struct Call(Option<Hop>);

impl Call {
    pub(super) fn of(hop: Option<Hop>) -> Self {
        Self(hop)
    }

    /// It succeeded.
    pub(super) fn succeed(mut self) {
        self.finish(Ok(()));
    }

    /// It failed: in a word for programs, and in words for people.
    pub(super) fn fail(mut self, kind: &'static str, text: &dyn std::fmt::Display) {
        self.finish(Err((kind, text)));
    }

    fn published(mut self, outcome: &Result<Receipt, PublishError>) {
        match outcome {
            Ok(receipt) => {
                if let (Receipt::Stored { stream, offset, .. }, Some(hop)) = (receipt, &self.0) {
                    hop.set(KeyValue::new("trunkline.stream", stream.clone()));
                    hop.set(KeyValue::new("trunkline.offset", offset.to_string()));
                }
                self.finish(Ok(()));
            }
            Err(error) => self.finish(Err((error.kind(), error))),
        }
    }

    fn finish(&mut self, outcome: Result<(), (&'static str, &dyn std::fmt::Display)>) {
        let Some(hop) = self.0.take() else { return };
        if let Err((kind, text)) = outcome {
            hop.fail(kind, text.to_string());
        }
        hop.end();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.finish(Err(("cancelled", &"dropped before its end")));
    }
}

/// The span of what is given out by a subscription or a puller, over at once: what the application makes of it lies below.
pub(super) fn receive(inner: &Inner, received: Received) -> Received {
    match begin_receiving(inner, Operation::Receive, &received) {
        Some(hop) => {
            hop.end();
            received.on(hop)
        }
        None => received,
    }
}

/// Begins the span of a responder's handler.
pub(super) fn respond(inner: &Inner, received: Received) -> Received {
    match begin_receiving(inner, Operation::Respond, &received) {
        Some(hop) => received.on(hop),
        None => received,
    }
}

/// Begins the span of a consumer's handler, or marks a delivery that was fetched by hand as received.
pub(super) fn deliver(
    inner: &Inner,
    operation: Operation,
    stream: &str,
    consumer: &str,
    delivery: &Delivery,
    received: Received,
) -> Received {
    let Some(hop) = begin_receiving(inner, operation, &received) else { return received };
    hop.set(KeyValue::new("messaging.consumer.group.name", consumer.to_owned()));
    hop.set(KeyValue::new("trunkline.stream", stream.to_owned()));
    hop.set(KeyValue::new("trunkline.offset", delivery.offset.to_string()));
    hop.set(KeyValue::new("trunkline.delivery.attempt", i64::from(delivery.attempt)));
    if operation == Operation::Receive {
        hop.end();
    }
    received.on(hop)
}

fn begin_receiving(inner: &Inner, operation: Operation, received: &Received) -> Option<Hop> {
    let tracer = tracer(inner)?;
    let message = received.message();
    let parent = traceparent::read(&message.headers);
    Some(Hop::start(inner, tracer, operation, message, received.envelope(), parent))
}

/// The handling of a message that an application received, as a span below the one in which it came.
pub(super) fn process(received: &Received) -> Option<Hop> {
    let came = received.hop()?;
    let HopInner { tracer, subject, template, .. } = &*came.0;
    let creation = traceparent::read(received.headers());
    let otel = begin(tracer, Operation::Process, template, Some(came.span()), creation);
    if otel.span().is_recording() {
        otel.span().set_attributes(describe::of_destination(Operation::Process, template, subject.as_str()));
        if let Some(envelope) = received.envelope() {
            otel.span().set_attributes(describe::of_envelope(envelope));
        }
    }
    let (tracer, subject, template) = (tracer.clone(), subject.clone(), template.clone());
    Some(Hop(Arc::new(HopInner { tracer, subject, template, otel })))
}

/// Adds what a context passes on to headers that name no trace.
pub(super) fn carry(context: &Context, headers: &mut Headers) {
    if headers.get(TRACEPARENT).is_some() {
        return;
    }
    for (name, value) in context.trace_headers() {
        // They came as headers, or were made as ones.
        let _ = headers.append(*name, value.as_str());
    }
}

/// Runs a handler: in its message's context, with its span as the current one of OpenTelemetry, and within a span of
/// `tracing` that tells whose messages its log lines are about.
pub(super) fn within<F: Future>(
    received: &Received,
    context: &Context,
    attempt: Option<u32>,
    handling: F,
) -> impl Future<Output = F::Output> + use<F> {
    let handling = match received.hop() {
        Some(hop) => Either::Left(handling.with_context(hop.0.otel.clone())),
        None => Either::Right(handling),
    };
    let lines = tracing::info_span!(
        target: "trunkline::handler",
        "handle",
        subject = %received.subject(),
        conversation_id = context.trace().conversation_id.as_deref(),
        trace_id = context.trace_id(),
        span_id = context.span_id(),
        attempt,
    );
    context.clone().scope(handling.instrument(lines))
}
