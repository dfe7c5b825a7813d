//! Requests that are answered by a reply stream: the requester's end.

use std::future::{Future as _, IntoFuture, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, Sleep};
use trunkline_core::{Message, Subject};

use super::Bus;
use super::context::Context;
use super::draft::{Draft, draft_setters};
use super::frame::{self, FrameKind};
use super::handler::service_error;
use super::inbox::Waiter;
use super::received::Received;
use super::request::RequestError;
use super::spans::{self, Call};
use crate::backend::{Fut, PublishError};
use crate::envelope::DecodeError;
use crate::topics::Topic;

/// Longest window: it bounds the memory that one reply stream may hold.
const WINDOW_MAX: u32 = 4096;

/// What goes wrong in a reply stream. After [`StreamReplyError::Missing`] and [`StreamReplyError::Decode`] it goes on;
/// after the others it has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamReplyError {
    /// Nobody answers requests at this subject.
    #[error("nobody answers at {subject}")]
    NoResponders {
        /// Where the request went.
        subject: Subject,
    },
    /// Nothing came for too long: the responder may have died.
    #[error("reply stream from {subject} was silent for {waited:?}")]
    Timeout {
        /// Where the request went.
        subject: Subject,
        /// How long was waited.
        waited: Duration,
    },
    /// Chunks were lost on the way; what follows is whole.
    #[error("chunks {from} to {to} of the reply stream are missing")]
    Missing {
        /// Number of the first one missing, from 0.
        from: u64,
        /// Number of the last one missing.
        to: u64,
    },
    /// The responder broke off with an error.
    #[error("{subject} broke off with error {code}: {message}")]
    Service {
        /// Where the request went.
        subject: Subject,
        /// The code, as HTTP uses them.
        code: u16,
        /// What it says.
        message: String,
    },
    /// A chunk has another shape; later ones may be readable.
    #[error("chunk {seq} cannot be read")]
    Decode {
        /// Its number.
        seq: u64,
        /// What did not fit.
        #[source]
        source: DecodeError,
    },
    /// The bus was closed before the end.
    #[error("the bus is closed")]
    Closed,
}

impl StreamReplyError {
    /// One word for programs, JSON and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoResponders { .. } => "no_responders",
            Self::Timeout { .. } => "timeout",
            Self::Missing { .. } => "missing",
            Self::Service { .. } => "service",
            Self::Decode { .. } => "decode",
            Self::Closed => "closed",
        }
    }

    /// Whether the stream has ended with it.
    pub fn is_terminal(&self) -> bool {
        !matches!(self, Self::Missing { .. } | Self::Decode { .. })
    }
}

impl Bus {
    /// Sends a request in an envelope that is answered chunk by chunk. Await the builder to send it; the
    /// [`ReplyStream`] then gives the chunks.
    ///
    /// A responder that answers with one plain reply gives a stream of one chunk. Within a handler it inherits
    /// correlation, trace and deadline of the message being handled.
    ///
    /// # Errors
    /// When awaited: the request was not sent, see [`RequestError`].
    pub fn request_stream<P: Serialize, R: DeserializeOwned>(
        &self,
        topic: Topic<P, R>,
        payload: &P,
    ) -> RequestStreamBuilder<R> {
        let (subject, kind, _) = topic.into_parts();
        RequestStreamBuilder {
            bus: self.clone(),
            subject,
            draft: Draft::json(kind, payload),
            idle_timeout: self.options().stream_idle_timeout,
            window: self.options().stream_window,
            chunk: PhantomData,
        }
    }

    /// Sends a message as it is as a request that is answered chunk by chunk.
    ///
    /// # Errors
    /// The request was not sent, see [`RequestError`].
    pub async fn request_stream_message(
        &self,
        mut message: Message,
        idle_timeout: Duration,
    ) -> Result<RawReplyStream, RequestError> {
        let window = self.options().stream_window.clamp(1, WINDOW_MAX);
        frame::set_window(&mut message.headers, window);
        RawReplyStream::open(self.clone(), message, window, idle_timeout).await
    }
}

/// A streaming request in the making. Await it to send it.
#[must_use = "nothing is sent until it is awaited"]
pub struct RequestStreamBuilder<R> {
    bus: Bus,
    subject: Subject,
    draft: Draft,
    idle_timeout: Duration,
    window: u32,
    chunk: PhantomData<fn() -> R>,
}

impl<R> std::fmt::Debug for RequestStreamBuilder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestStreamBuilder").field("subject", &self.subject).finish_non_exhaustive()
    }
}

impl<R> RequestStreamBuilder<R> {
    draft_setters!();

    /// Sets the longest silence that is not taken for the responder's death.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Sets how many chunks may be under way before they are read, 1 to 4096.
    pub fn window(mut self, chunks: u32) -> Self {
        self.window = chunks;
        self
    }

    fn finish(mut self, context: Option<&Context>) -> Result<(Bus, Message, u32, Duration), PublishError> {
        let inherited = context.and_then(Context::deadline);
        self.draft.deadline = [self.draft.deadline, inherited].into_iter().flatten().min();
        let window = self.window.clamp(1, WINDOW_MAX);
        let source = &self.bus.inner().options.source;
        let (mut headers, payload) = self.draft.finish(&self.subject, source, context)?;
        frame::set_window(&mut headers, window);
        let message = Message { subject: self.subject, reply: None, headers, payload };
        Ok((self.bus, message, window, self.idle_timeout))
    }
}

impl<R: DeserializeOwned> IntoFuture for RequestStreamBuilder<R> {
    type Output = Result<ReplyStream<R>, RequestError>;
    type IntoFuture = Fut<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        // The envelope is made here, so that it inherits from the task that wrote `.await`.
        let finished = self.finish(Context::current().as_ref());
        Box::pin(async move {
            let (bus, message, window, idle_timeout) = finished?;
            let raw = RawReplyStream::open(bus, message, window, idle_timeout).await?;
            Ok(ReplyStream { raw, chunk: PhantomData })
        })
    }
}

/// A reply stream: a [`Stream`] of chunks. It ends after the responder's explicit end, or with a terminal error.
/// Dropping it before that cancels the responder's handler.
pub struct ReplyStream<R> {
    raw: RawReplyStream,
    chunk: PhantomData<fn() -> R>,
}

impl<R> std::fmt::Debug for ReplyStream<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyStream").field("raw", &self.raw).finish()
    }
}

impl<R: DeserializeOwned> ReplyStream<R> {
    /// The next chunk; `None` after the end.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<R, StreamReplyError>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl<R: DeserializeOwned> Stream for ReplyStream<R> {
    type Item = Result<R, StreamReplyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let chunk = ready!(self.raw.poll_chunk(cx));
        // The number of the chunk just given out is one behind the number expected.
        let seq = self.raw.expected.saturating_sub(1);
        Poll::Ready(
            chunk.map(|chunk| chunk?.decode().map_err(|source| StreamReplyError::Decode { seq, source })),
        )
    }
}

/// A reply stream whose chunks are not decoded.
pub struct RawReplyStream {
    bus: Bus,
    subject: Subject,
    waiter: Waiter,
    /// Number of the next frame.
    expected: u64,
    /// A frame that came after missing ones, which are reported first.
    held: Option<Arc<Message>>,
    /// Where to send credit and cancellation, once the first frame has told.
    control: Option<Subject>,
    window: u32,
    /// Chunks consumed since the last credit was sent.
    consumed: u32,
    idle_timeout: Duration,
    idle: Pin<Box<Sleep>>,
    /// The idle timer runs only while somebody waits.
    idle_runs: bool,
    ended: bool,
    /// The span, until the stream has ended.
    call: Call,
}

impl std::fmt::Debug for RawReplyStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawReplyStream")
            .field("subject", &self.subject)
            .field("expected", &self.expected)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl RawReplyStream {
    async fn open(
        bus: Bus,
        mut message: Message,
        window: u32,
        idle_timeout: Duration,
    ) -> Result<Self, RequestError> {
        bus.inner().telemetry.requests.inc();
        let call = spans::request(bus.inner(), &mut message);
        // Room for a whole window, and the end or error after it.
        let sent = bus.send_request(message, idle_timeout, window as usize + 2).await;
        let (subject, waiter) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                bus.inner().telemetry.request_errors.inc();
                call.fail(error.kind(), &error);
                return Err(error);
            }
        };
        Ok(Self {
            bus,
            subject,
            waiter,
            expected: 0,
            held: None,
            control: None,
            window,
            consumed: 0,
            idle_timeout,
            idle: Box::pin(tokio::time::sleep(idle_timeout)),
            idle_runs: false,
            ended: false,
            call,
        })
    }

    /// The next chunk as it came; `None` after the end.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Received, StreamReplyError>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Received, StreamReplyError>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let message = match self.held.take() {
                Some(held) => held,
                None => match self.waiter.messages.poll_recv(cx) {
                    Poll::Ready(Some(message)) => message,
                    Poll::Ready(None) => return Poll::Ready(Some(Err(self.fail(StreamReplyError::Closed)))),
                    Poll::Pending => {
                        ready!(self.poll_idle(cx));
                        self.cancel();
                        let error = StreamReplyError::Timeout {
                            subject: self.subject.clone(),
                            waited: self.idle_timeout,
                        };
                        return Poll::Ready(Some(Err(self.fail(error))));
                    }
                },
            };
            self.idle_runs = false;
            if let Some(item) = self.take(message) {
                return Poll::Ready(Some(item));
            }
        }
    }

    fn poll_idle(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        if !self.idle_runs {
            self.idle_runs = true;
            let until = Instant::now() + self.idle_timeout;
            self.idle.as_mut().reset(until);
        }
        self.idle.as_mut().poll(cx)
    }

    /// What a message means for the reader; nothing for an end or a repeat.
    fn take(&mut self, message: Arc<Message>) -> Option<Result<Received, StreamReplyError>> {
        if self.control.is_none() {
            self.control = frame::control_of(&message);
        }
        if frame::is_no_responders(&message) {
            let subject = self.subject.clone();
            return Some(Err(self.fail(StreamReplyError::NoResponders { subject })));
        }
        let frame = frame::parse(&message);
        if let Some((_, Some(seq))) = frame {
            if seq < self.expected {
                return None;
            }
            if seq > self.expected {
                let (from, to) = (self.expected, seq - 1);
                self.expected = seq;
                self.held = Some(message);
                // What was lost took room of the window, too.
                self.consume(u32::try_from(to - from + 1).unwrap_or(self.window).min(self.window));
                return Some(Err(StreamReplyError::Missing { from, to }));
            }
        }
        if let Some((code, message)) = service_error(&message.headers) {
            let subject = self.subject.clone();
            return Some(Err(self.fail(StreamReplyError::Service { subject, code, message })));
        }
        match frame {
            Some((FrameKind::Chunk, _)) => {
                self.expected += 1;
                self.consume(1);
                Some(Ok(Received::new(message, None)))
            }
            Some((FrameKind::End, _)) => {
                self.finish();
                None
            }
            Some((FrameKind::Error, _)) => {
                let (subject, message) = (self.subject.clone(), "unknown error".to_owned());
                Some(Err(self.fail(StreamReplyError::Service { subject, code: 500, message })))
            }
            // A plain reply is all there is.
            None => {
                self.expected += 1;
                self.finish();
                Some(Ok(Received::new(message, None)))
            }
        }
    }

    fn finish(&mut self) {
        self.ended = true;
        std::mem::take(&mut self.call).succeed();
    }

    fn fail(&mut self, error: StreamReplyError) -> StreamReplyError {
        self.ended = true;
        std::mem::take(&mut self.call).fail(error.kind(), &error);
        self.bus.inner().telemetry.request_errors.inc();
        error
    }

    /// Counts chunks read, and lets the responder send as many more by half windows.
    fn consume(&mut self, chunks: u32) {
        self.consumed += chunks;
        if self.consumed >= self.window.div_ceil(2)
            && let Some(control) = &self.control
        {
            self.bus.inner().publish_aside(frame::credit(control.clone(), self.consumed));
            self.consumed = 0;
        }
    }

    /// Tells the responder that nobody reads any more.
    fn cancel(&mut self) {
        match &self.control {
            Some(control) => self.bus.inner().publish_aside(frame::cancel(control.clone())),
            None => self.waiter.close(),
        }
    }
}

impl Drop for RawReplyStream {
    fn drop(&mut self) {
        if !self.ended {
            self.cancel();
        }
    }
}

#[cfg(test)]
mod tests;
