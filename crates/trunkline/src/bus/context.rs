//! What a message passes on to the messages that it causes.

use std::future::Future;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use trunkline_core::Headers;

use super::spans::{self, Hop};
use crate::envelope::{Envelope, Trace};

/// The headers of W3C trace context. They pass on unchanged where this process makes no spans.
const TRACE_HEADERS: [&str; 2] = [spans::TRACEPARENT, spans::TRACESTATE];

tokio::task_local! {
    static CURRENT: Context;
}

/// What a message passes on: correlation, trace and deadline. Whatever a handler publishes inherits it by itself; a
/// task that a handler spawns inherits it with [`Context::scope`]. Cheap to clone.
///
/// ```
/// # async fn handler(bus: trunkline::Bus) -> Option<()> {
/// let context = trunkline::Context::current()?;
/// tokio::spawn(context.scope(async move {
///     // What is published here belongs to the same conversation.
/// }));
/// # Some(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Context(Arc<Inherited>);

#[derive(Debug, Default)]
struct Inherited {
    correlation_id: Option<String>,
    trace: Trace,
    trace_headers: Vec<(&'static str, String)>,
    deadline: Option<Timestamp>,
}

impl Context {
    /// The context of the handler that runs in this task, if one does.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Runs `future` within this context.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// What a message with this envelope and these headers passes on; the trace is that of `hop`, where the message has
    /// one here.
    pub(crate) fn of(envelope: Option<&Envelope>, headers: &Headers, hop: Option<&Hop>) -> Self {
        let trace_headers: Vec<_> = match hop {
            Some(hop) => hop.headers(),
            None => TRACE_HEADERS
                .into_iter()
                .filter_map(|name| Some((name, headers.get(name)?.to_owned())))
                .collect(),
        };
        if envelope.is_none() && trace_headers.is_empty() {
            static NOTHING: LazyLock<Context> = LazyLock::new(Context::default);
            return NOTHING.clone();
        }
        Self(Arc::new(match envelope {
            None => Inherited { trace_headers, ..Inherited::default() },
            Some(envelope) => Inherited {
                // Whoever sent no correlation started the chain with its id.
                correlation_id: Some(envelope.correlation_id.as_ref().unwrap_or(&envelope.id).clone()),
                trace: Trace { causation_id: Some(envelope.id.clone()), ..envelope.trace.clone() },
                trace_headers,
                deadline: envelope.deadline,
            },
        }))
    }

    /// The id that all messages of this chain share.
    pub fn correlation_id(&self) -> Option<&str> {
        self.0.correlation_id.as_deref()
    }

    /// Conversation, persona, tool and skill; `causation_id` is the id of the message being handled.
    pub fn trace(&self) -> &Trace {
        &self.0.trace
    }

    /// The W3C trace that it belongs to, 32 hexadecimal digits, if it belongs to one.
    pub fn trace_id(&self) -> Option<&str> {
        spans::trace_id(self.traceparent()?)
    }

    /// The span in which the message is handled, 16 hexadecimal digits; where no spans are made the one that sent it.
    pub fn span_id(&self) -> Option<&str> {
        spans::span_id(self.traceparent()?)
    }

    /// The header of W3C trace context that is passed on, to take along where this library does not go. Where no spans are
    /// made it is as it came, and may be anything.
    pub fn traceparent(&self) -> Option<&str> {
        let mut headers = self.0.trace_headers.iter();
        headers.find(|(name, _)| *name == spans::TRACEPARENT).map(|(_, value)| value.as_str())
    }

    /// When nobody will want the answer any more.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.0.deadline
    }

    pub(crate) fn trace_headers(&self) -> &[(&'static str, String)] {
        &self.0.trace_headers
    }
}
