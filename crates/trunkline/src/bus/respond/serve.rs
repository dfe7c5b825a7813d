//! The task of a responder: takes requests as fast as it may handle them, and sees to it that every one is answered.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};
use trunkline_core::{Headers, Message, Subject};

use super::{PROBE_HEADER, Reply, Request};
use crate::backend::PublishOptions;
use crate::bus::Bus;
use crate::bus::context::Context;
use crate::bus::frame::{self, FrameKind};
use crate::bus::handler::{BoxError, HandlerError, error_reply, panic_text};
use crate::bus::received::Received;
use crate::bus::spans::{self, Call};
use crate::bus::subscribe::{Event, Subscription};
use crate::observe::Outcome;
use crate::telemetry::{Counted, Meters, made};

/// Longest wait of a responder that was stopped for the server to hear of it.
const LEAVING: Duration = Duration::from_secs(2);

/// What the task works with.
#[derive(Clone)]
pub(super) struct Server<S> {
    pub(super) bus: Bus,
    pub(super) service: S,
    pub(super) concurrency: usize,
    pub(super) streaming: bool,
    /// Cancels the handlers.
    pub(super) kill: CancellationToken,
    pub(super) meters: Arc<Meters>,
}

impl<S> Server<S>
where
    S: Service<Request, Response = Reply> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    pub(super) async fn run(self, mut requests: Subscription, stop: CancellationToken) {
        // Handlers end by themselves, at their deadline, or by `kill`; they are joined below before this task ends.
        let mut handlers = JoinSet::new();
        let (mut stopping, mut killed, mut ended, kill) = (false, false, false, self.kill.clone());
        let mut leaving = std::pin::pin!(tokio::time::sleep(LEAVING));
        while !(ended && handlers.is_empty()) {
            tokio::select! {
                biased;
                () = kill.cancelled(), if !killed => {
                    // The server hears of it before this ends, and what it had sent by then is answered with 503: a
                    // request that nobody will ever answer must not look like one that takes long.
                    killed = true;
                    leaving.as_mut().reset(tokio::time::Instant::now() + LEAVING);
                    if !std::mem::replace(&mut stopping, true) {
                        requests.begin_stop();
                    }
                }
                () = &mut leaving, if killed && !ended => ended = true,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    requests.begin_stop();
                }
                Some(_) = handlers.join_next(), if !handlers.is_empty() => {}
                event = requests.next(), if !ended && handlers.len() < self.concurrency => match event {
                    Some(Event::Message(received)) => {
                        handlers.spawn(self.clone().answer(received));
                    }
                    // The subscription has counted it; whoever asked runs into a timeout.
                    Some(Event::Gap(gap)) => match gap.missed {
                        Some(missed) => tracing::warn!(missed, "requests were lost"),
                        None if stopping => tracing::debug!("requests may have been lost while leaving"),
                        None => tracing::warn!("requests may have been lost"),
                    },
                    None => ended = true,
                },
            }
        }
    }

    async fn answer(self, received: Received) {
        if is_probe(&received) {
            return answer_probe(&self.bus, &received).await;
        }
        let received = spans::respond(self.bus.inner(), received);
        let (call, context) = (Call::of(received.hop().cloned()), received.context());
        spans::within(&received.clone(), &context, None, self.answer_within(received, context.clone(), call))
            .await;
    }

    async fn answer_within(self, received: Received, context: Context, call: Call) {
        let telemetry = self.bus.inner().telemetry.clone();
        let _running = Counted::one(&telemetry.handlers_running);
        let request = Request {
            context,
            cancel: self.kill.child_token(),
            frames: self.streaming.then(Arc::default),
            bus: self.bus.clone(),
            received,
        };
        let handling = request.bus.inner().witness.as_ref().and_then(|it| it.request(&request.received));
        let meters = self.meters.clone();
        let running = meters.begin(made(request.received.envelope().and_then(|envelope| envelope.timestamp)));
        let result = self.handle(request.clone()).await;
        drop(running);
        if let Some(handling) = handling {
            // Before the reply goes out: whoever has it may look.
            match &result {
                Ok(_) => handling.ended(Outcome::Answered, None),
                Err(error) => handling.ended(Outcome::AnsweredError, Some(error.to_string())),
            }
        }
        // Whatever the handler spawned and tied to this request ends with it.
        request.cancel.cancel();
        match &result {
            Ok(_) => {
                telemetry.answered.inc();
                call.succeed();
            }
            Err(error) => {
                telemetry.answer_errors.inc();
                tracing::debug!(subject = %request.subject(), %error, "request answered with an error");
                call.fail("handler", error);
            }
        }
        let Some(to) = request.received.reply().cloned() else { return };
        let reply = match result {
            Ok(Reply { payload: None, .. }) => return,
            Ok(Reply { headers, payload: Some(payload) }) => {
                let mut reply = Message { subject: to, reply: None, headers, payload };
                spans::carry(&request.context, &mut reply.headers);
                reply
            }
            Err(error) => failed(&request, to, &error),
        };
        let to = reply.subject.clone();
        let inner = request.bus.inner();
        let Err(error) = inner.publish_past_outbox(reply, PublishOptions::default()).outcome().await else {
            return;
        };
        tracing::warn!(subject = %request.subject(), %error, "reply not sent");
        // A reply that can never be sent, being too large for one, must not leave its requester waiting.
        if !error.is_retryable() {
            let error = HandlerError::new(format!("reply cannot be sent: {error}"));
            let failed = failed(&request, to, &error);
            let sent = inner.publish_past_outbox(failed, PublishOptions::default()).outcome().await;
            if let Err(error) = sent {
                tracing::warn!(subject = %request.subject(), %error, "error reply not sent");
            }
        }
    }

    /// Runs the handler, unless it is too late, and for as long as it is not.
    async fn handle(self, request: Request) -> Result<Reply, HandlerError> {
        let late = || HandlerError::new("deadline passed").code(408);
        let left = match request.context.deadline() {
            None => Duration::MAX,
            Some(deadline) => {
                let left = jiff::Timestamp::now().duration_until(deadline);
                Duration::try_from(left).ok().filter(|left| !left.is_zero()).ok_or_else(late)?
            }
        };
        let cancel = request.cancel.clone();
        let handling = AssertUnwindSafe(self.service.oneshot(request)).catch_unwind();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(HandlerError::new("responder stopped").code(503)),
            result = tokio::time::timeout(left, handling) => match result {
                Err(_) => Err(late()),
                Ok(Err(panic)) => {
                    let text = panic_text(&*panic);
                    tracing::error!(panic = text, "handler panicked");
                    Err(HandlerError::new(format!("handler panicked: {text}")))
                }
                Ok(Ok(result)) => result.map_err(|error| HandlerError::from_service(error.into())),
            },
        }
    }
}

/// Tells whoever asks that somebody is here. No handler sees it, and no counter: nothing was asked of them.
async fn answer_probe(bus: &Bus, probe: &Received) {
    let Some(subject) = probe.reply().cloned() else { return };
    let reply = Message { subject, reply: None, headers: Headers::new(), payload: Bytes::new() };
    let sent = bus.inner().publish_past_outbox(reply, PublishOptions::default()).outcome().await;
    // Whoever asks does so again.
    if let Err(error) = sent {
        tracing::debug!(subject = %probe.subject(), %error, "probe not answered");
    }
}

fn is_probe(received: &Received) -> bool {
    received.payload().is_empty() && received.headers().get(PROBE_HEADER) == Some("ready")
}

fn failed(request: &Request, to: Subject, error: &HandlerError) -> Message {
    let (code, text) = error.as_reply();
    let mut reply = error_reply(to, code, text);
    spans::carry(&request.context, &mut reply.headers);
    if let Some(frames) = &request.frames {
        frame::mark(&mut reply.headers, FrameKind::Error, frames.load(Ordering::Acquire), None);
    }
    reply
}
