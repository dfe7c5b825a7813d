//! The responder's end of a reply stream.

use std::borrow::Cow;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tower::Service;
use trunkline_core::{Message, Subject};

use super::{Reply, Request, decode};
use crate::backend::{Fut, PublishError, PublishOptions};
use crate::bus::frame::{self, Control, FrameKind};
use crate::bus::handler::{Failure, HandlerError};
use crate::bus::inbox::InboxError;
use crate::bus::spans;

/// Control messages that may wait beside the credits of one window.
const CONTROL_SLACK: usize = 64;

/// Why a chunk was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The requester took none of the chunks under way for the idle timeout of streams.
    #[error("requester acknowledged no chunk within {waited:?} (BusOptions::stream_idle_timeout)")]
    Stalled {
        /// How long was waited.
        waited: Duration,
    },
    /// The chunk could not be written as JSON.
    #[error("chunk cannot be written: {0}")]
    Encode(HandlerError),
    /// The chunk was not published, or not surely.
    #[error("chunk not sent")]
    Publish(#[from] PublishError),
}

/// Where a handler sends the chunks of a reply stream. No more than the requester's window are under way.
#[derive(Debug)]
pub struct ReplySink<R> {
    shared: Arc<SinkShared>,
    types: PhantomData<fn(R)>,
}

#[derive(Debug)]
struct SinkShared {
    request: Request,
    to: Option<Subject>,
    kind: Cow<'static, str>,
    control: Subject,
    /// Chunks that may be sent before the next credit; `None` when the requester wants no flow control.
    credit: Option<Semaphore>,
    frames: Arc<AtomicU64>,
}

impl<R: Serialize> ReplySink<R> {
    /// Sends a chunk, once the requester has room for it.
    ///
    /// # Errors
    /// See [`SinkError`].
    ///
    /// # Cancel safety
    /// Dropping the future while it waits for room sends nothing; later, the chunk may have been sent.
    pub async fn send(&mut self, chunk: &R) -> Result<(), SinkError> {
        let shared = &self.shared;
        let reply = shared
            .request
            .write(shared.kind.clone(), chunk)
            .map_err(|failure| SinkError::Encode(failure.0))?;
        if let Some(credit) = &shared.credit {
            let waited = shared.request.bus().options().stream_idle_timeout;
            match timeout(waited, credit.acquire()).await {
                Ok(Ok(permit)) => permit.forget(),
                // The semaphore is never closed.
                Ok(Err(_)) | Err(_) => return Err(SinkError::Stalled { waited }),
            }
        }
        Ok(shared.send(FrameKind::Chunk, reply).await?)
    }
}

impl SinkShared {
    async fn send(&self, kind: FrameKind, reply: Reply) -> Result<(), PublishError> {
        let Some(to) = self.to.clone() else { return Ok(()) };
        let seq = self.frames.fetch_add(1, Ordering::AcqRel);
        let mut headers = reply.headers;
        spans::carry(self.request.context(), &mut headers);
        frame::mark(&mut headers, kind, seq, (seq == 0).then_some(&self.control));
        let payload = reply.payload.unwrap_or_default();
        let message = Message { subject: to, reply: None, headers, payload };
        let inner = self.request.bus().inner();
        inner.publish_past_outbox(message, PublishOptions::default()).outcome().await.map(drop)
    }

    /// Listens to the requester until it cancels.
    async fn obey(&self, messages: &mut mpsc::Receiver<Arc<Message>>, window: u32) {
        while let Some(message) = messages.recv().await {
            match (frame::parse_control(&message.payload), &self.credit) {
                (Some(Control::Cancel), _) => return,
                (Some(Control::Credit(chunks)), Some(credit)) => {
                    // Nobody gets more room than the window it asked for.
                    let room = (window as usize).saturating_sub(credit.available_permits());
                    credit.add_permits(room.min(chunks as usize));
                }
                (Some(Control::Credit(_)), None) | (None, _) => {}
            }
        }
        // The inbox has ended: no credit and no cancellation comes any more, so the stream lives on without.
        std::future::pending().await
    }
}

/// A handler of reply streams as a tower service.
pub struct StreamService<F, P, R> {
    handler: Arc<F>,
    kind: Cow<'static, str>,
    types: PhantomData<fn(P) -> R>,
}

impl<F, P, R> StreamService<F, P, R> {
    pub(super) fn new(handler: F, kind: Cow<'static, str>) -> Self {
        Self { handler: Arc::new(handler), kind, types: PhantomData }
    }
}

impl<F, P, R> Clone for StreamService<F, P, R> {
    fn clone(&self) -> Self {
        Self { handler: self.handler.clone(), kind: self.kind.clone(), types: PhantomData }
    }
}

impl<F, P, R> std::fmt::Debug for StreamService<F, P, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamService").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl<F, P, R, Handling> Service<Request> for StreamService<F, P, R>
where
    P: DeserializeOwned + 'static,
    R: Serialize + 'static,
    F: Fn(Request, P, ReplySink<R>) -> Handling + Send + Sync + 'static,
    Handling: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    type Response = Reply;
    type Error = Failure;
    type Future = Fut<'static, Result<Reply, Failure>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { service.stream(request).await.map_err(Failure) })
    }
}

impl<F, P, R, Handling> StreamService<F, P, R>
where
    P: DeserializeOwned,
    R: Serialize,
    F: Fn(Request, P, ReplySink<R>) -> Handling + Send + Sync + 'static,
    Handling: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    async fn stream(self, request: Request) -> Result<Reply, HandlerError> {
        let inner = request.bus().inner().clone();
        let window = frame::window_of(request.received().headers());
        let capacity = window.unwrap_or(0) as usize + CONTROL_SLACK;
        let mut waiter =
            inner.inbox.register(&inner, capacity.min(4096)).await.map_err(|error| match error {
                InboxError::Subscribe(error) => HandlerError::from(error).code(503),
                InboxError::Full(limit) => {
                    HandlerError::new(format!("{limit} requests and reply streams are open already"))
                        .code(503)
                }
            })?;
        let shared = Arc::new(SinkShared {
            to: request.received().reply().cloned(),
            kind: self.kind,
            control: waiter.reply.clone(),
            credit: window.map(|window| Semaphore::new(window as usize)),
            frames: request.frames.clone().unwrap_or_default(),
            request: request.clone(),
        });
        let handling = {
            let payload = decode(&request).map_err(|failure| failure.0)?;
            let sink = ReplySink { shared: shared.clone(), types: PhantomData };
            (self.handler)(request.clone(), payload, sink)
        };
        tokio::select! {
            biased;
            () = shared.obey(&mut waiter.messages, window.unwrap_or(0)) => {
                // Nobody reads the answer any more. Dropping the handler cancels it; so do tasks tied to the token.
                request.cancellation().cancel();
                Ok(Reply::none())
            }
            result = handling => {
                result?;
                shared.send(FrameKind::End, Reply::default()).await?;
                Ok(Reply::none())
            }
        }
    }
}
