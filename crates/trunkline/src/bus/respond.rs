//! Responders: who answers requests.

mod serve;
mod sink;

use std::borrow::Cow;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};
use trunkline_core::{Headers, Pattern, Subject, SubjectError, Token};

use super::Bus;
use super::context::Context;
use super::draft::Draft;
use super::handler::{BoxError, Failure, HandlerError};
use super::received::Received;
use crate::backend::{Fut, SubscribeError};
use crate::topics::Topic;

pub use sink::{ReplySink, SinkError, StreamService};

/// Header of a message that asks whether somebody answers on its subject, and nothing else. Its value is `ready` and its
/// payload is empty. A [`Responder`] replies to it with an empty message by itself; other subscribers see it as it is.
pub const PROBE_HEADER: &str = "Trunkline-Probe";

/// Requests that one responder handles at once, where it sets no other bound.
const CONCURRENCY: usize = 32;

/// Why a responder did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RespondError {
    /// The subscription that requests come in by could not be made.
    #[error("responder not subscribed")]
    Subscribe(#[from] SubscribeError),
    /// The queue group is not one token.
    #[error("queue group cannot be used")]
    Queue(#[from] SubjectError),
}

/// A request as its handler sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Request {
    bus: Bus,
    received: Received,
    context: Context,
    cancel: CancellationToken,
    /// Number of the next frame, where it is answered by a reply stream.
    frames: Option<Arc<AtomicU64>>,
}

impl Request {
    /// The bus it came by.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The message.
    pub fn received(&self) -> &Received {
        &self.received
    }

    /// Where it was sent.
    pub fn subject(&self) -> &Subject {
        self.received.subject()
    }

    /// What the messages that it causes inherit. Within the handler's own task that happens by itself.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Cancelled when the answer is not wanted any more: the deadline passed, the requester cancelled its reply
    /// stream, or the responder was stopped. The handler itself is dropped then; this is for tasks it spawned.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Writes a reply as the requester writes: in an envelope when the request came in one, else as plain JSON.
    fn write(&self, kind: Cow<'static, str>, value: &impl Serialize) -> Result<Reply, Failure> {
        let failed = |error: String| Failure(HandlerError::new(format!("reply cannot be written: {error}")));
        if self.received.envelope().is_none() {
            let payload = serde_json::to_vec(value).map_err(|error| failed(error.to_string()))?;
            return Ok(Reply::bytes(payload));
        }
        let draft = Draft::json(kind, value);
        let (headers, payload) = draft
            .finish(self.subject(), &self.bus.options().source, Some(&self.context))
            .map_err(|error| failed(error.to_string()))?;
        Ok(Reply { headers, payload: Some(payload) })
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    headers: Headers,
    /// `None` when everything has been sent.
    payload: Option<Bytes>,
}

impl Reply {
    /// These bytes, as they are.
    pub fn bytes(payload: impl Into<Bytes>) -> Self {
        Self { headers: Headers::new(), payload: Some(payload.into()) }
    }

    /// Sets the headers.
    #[must_use]
    pub fn headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// No answer at all: the requester runs into its timeout, unless somebody else answers.
    pub fn none() -> Self {
        Self::default()
    }
}

impl Bus {
    /// Answers requests at a topic with an async function. The reply is written as the request was: in an envelope that
    /// inherits correlation and trace, or as plain JSON. A handler that fails or panics sends an error reply; a payload
    /// that cannot be read is answered with error 400 without the handler; one whose deadline passes, with 408.
    ///
    /// ```
    /// # async fn example(bus: trunkline::Bus) -> Result<(), Box<dyn std::error::Error>> {
    /// use trunkline::topics::payload::{ToolCall, ToolResult};
    /// let call = bus.topics().tool("echo")?.call();
    /// let responder = bus
    ///     .respond(call, async |_request, call: ToolCall| {
    ///         Ok(ToolResult { output: call.arguments, ..Default::default() })
    ///     })
    ///     .queue("echo")
    ///     .start()
    ///     .await?;
    /// # responder.stop().await; Ok(()) }
    /// ```
    pub fn respond<P, R, F, Fut>(
        &self,
        topic: Topic<P, R>,
        handler: F,
    ) -> RespondBuilder<HandlerService<F, P, R>>
    where
        P: DeserializeOwned,
        R: Serialize,
        F: Fn(Request, P) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        let pattern = topic.pattern();
        let (_, _, kind) = topic.into_parts();
        let service = HandlerService { handler: Arc::new(handler), kind, types: PhantomData };
        self.respond_service(pattern, service)
    }

    /// Answers requests at a topic with reply streams: the handler sends chunks into the sink; when it returns, the
    /// stream ends, or breaks off with its error. A requester that drops its stream cancels the handler.
    pub fn respond_stream<P, R, F, Fut>(
        &self,
        topic: Topic<P, R>,
        handler: F,
    ) -> RespondBuilder<StreamService<F, P, R>>
    where
        P: DeserializeOwned,
        R: Serialize,
        F: Fn(Request, P, ReplySink<R>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let pattern = topic.pattern();
        let (_, _, kind) = topic.into_parts();
        let mut builder = self.respond_service(pattern, StreamService::new(handler, kind));
        builder.streaming = true;
        builder
    }

    /// Answers requests that match a pattern with bytes.
    pub fn respond_raw<F, Fut>(
        &self,
        pattern: Pattern,
        handler: F,
    ) -> RespondBuilder<
        impl Service<Request, Response = Reply, Error = Failure, Future: Send> + Clone + Send + 'static,
    >
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, HandlerError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.respond_service(
            pattern,
            tower::service_fn(move |request| {
                let handler = handler.clone();
                async move { handler(request).await.map_err(Failure) }
            }),
        )
    }

    /// Answers requests that match a pattern with a tower service.
    pub fn respond_service<S>(&self, pattern: Pattern, service: S) -> RespondBuilder<S> {
        RespondBuilder {
            bus: self.clone(),
            pattern,
            service,
            queue: None,
            concurrency: CONCURRENCY,
            streaming: false,
        }
    }
}

/// A responder in the making; [`RespondBuilder::start`] starts it.
#[derive(Debug)]
#[must_use = "nothing is answered until it is started"]
pub struct RespondBuilder<S> {
    bus: Bus,
    pattern: Pattern,
    service: S,
    queue: Option<String>,
    concurrency: usize,
    streaming: bool,
}

impl<S> RespondBuilder<S> {
    /// Shares the requests with the other responders of this queue group. Without one, every responder answers every
    /// request, and the requester takes the first answer.
    pub fn queue(mut self, group: impl Into<String>) -> Self {
        self.queue = Some(group.into());
        self
    }

    /// Sets how many requests are handled at once, at least 1. Default 32.
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = requests.max(1);
        self
    }

    /// Puts a tower layer around the handler; the last one added sees a request first.
    pub fn layer<L: Layer<S>>(self, layer: L) -> RespondBuilder<L::Service> {
        RespondBuilder {
            bus: self.bus,
            pattern: self.pattern,
            service: layer.layer(self.service),
            queue: self.queue,
            concurrency: self.concurrency,
            streaming: self.streaming,
        }
    }

    /// Starts it: every request sent after this returned reaches it.
    ///
    /// # Errors
    /// See [`RespondError`].
    pub async fn start(self) -> Result<Responder, RespondError>
    where
        S: Service<Request, Response = Reply> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
    {
        let meters = self.bus.inner().telemetry.latencies.responder(self.queue.as_deref());
        let mut builder = self.bus.subscribe(self.pattern).responder();
        if let Some(queue) = self.queue {
            builder = builder.queue(Token::new(queue)?);
        }
        let subscription = builder.await?.untraced();
        let inner = self.bus.inner().clone();
        let (stop, kill) = (CancellationToken::new(), inner.killed.child_token());
        let server = serve::Server {
            bus: self.bus,
            service: self.service,
            concurrency: self.concurrency,
            streaming: self.streaming,
            kill: kill.clone(),
            meters,
        };
        let task = inner.tasks.spawn(server.run(subscription, stop.clone()));
        Ok(Responder { stop, kill, task: Some(task) })
    }
}

/// A running responder. Dropping it stops it without waiting.
#[derive(Debug)]
#[must_use = "dropping a responder stops it"]
pub struct Responder {
    /// Set to take no more requests.
    stop: CancellationToken,
    /// Set to cancel handlers too.
    kill: CancellationToken,
    /// The task that takes requests and owns the handlers; it ends by either token, or when the bus drains.
    task: Option<JoinHandle<()>>,
}

impl Responder {
    /// Takes no more requests and waits until those that had arrived are answered, at most `within`; then cancels the
    /// rest, whose requesters get error 503. `false` when some were cancelled.
    pub async fn drain(mut self, within: Duration) -> bool {
        self.stop.cancel();
        let Some(task) = self.task.as_mut() else { return true };
        let finished = tokio::time::timeout(within, task).await.is_ok();
        if finished {
            self.task = None;
        } else {
            self.stop_now().await;
        }
        finished
    }

    /// Takes no more requests and cancels the handlers; requesters get error 503.
    pub async fn stop(mut self) {
        self.stop_now().await;
    }

    /// Waits until it has ended, which is when the bus drains.
    pub async fn wait(mut self) {
        self.join().await;
    }

    async fn stop_now(&mut self) {
        self.kill.cancel();
        self.join().await;
    }

    async fn join(&mut self) {
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "responder broke off");
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

/// A handler function as a tower service.
pub struct HandlerService<F, P, R> {
    handler: Arc<F>,
    kind: Cow<'static, str>,
    types: PhantomData<fn(P) -> R>,
}

impl<F, P, R> Clone for HandlerService<F, P, R> {
    fn clone(&self) -> Self {
        Self { handler: self.handler.clone(), kind: self.kind.clone(), types: PhantomData }
    }
}

impl<F, P, R> std::fmt::Debug for HandlerService<F, P, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandlerService").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl<F, P, R, Handling> Service<Request> for HandlerService<F, P, R>
where
    P: DeserializeOwned + 'static,
    R: Serialize + 'static,
    F: Fn(Request, P) -> Handling + Send + Sync + 'static,
    Handling: Future<Output = Result<R, HandlerError>> + Send + 'static,
{
    type Response = Reply;
    type Error = Failure;
    type Future = Fut<'static, Result<Reply, Failure>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let handling = {
                let payload = decode(&request)?;
                (service.handler)(request.clone(), payload)
            };
            let value = handling.await.map_err(Failure)?;
            request.write(service.kind, &value)
        })
    }
}

fn decode<P: DeserializeOwned>(request: &Request) -> Result<P, Failure> {
    request.received.decode().map_err(|error| Failure(HandlerError::from(error).code(400)))
}
