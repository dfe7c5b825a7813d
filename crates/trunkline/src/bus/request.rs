//! Requests with one reply.

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use trunkline_core::{Message, Subject};

use super::Bus;
use super::context::Context;
use super::draft::{Draft, draft_setters};
use super::frame;
use super::handler::service_error;
use super::inbox::{InboxError, Waiter};
use super::received::Received;
use super::spans;
use crate::backend::{Fut, PublishError, PublishOptions, SubscribeError};
use crate::envelope::{DecodeError, now};
use crate::topics::Topic;

/// Why a request has no usable reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nobody answers requests at this subject.
    #[error("nobody answers at {subject}")]
    NoResponders {
        /// Where the request went.
        subject: Subject,
    },
    /// No reply came in time; the request may have been handled.
    #[error("no reply from {subject} within {waited:?}")]
    Timeout {
        /// Where the request went.
        subject: Subject,
        /// How long was waited.
        waited: Duration,
    },
    /// The responder answered with an error.
    #[error("{subject} answered with error {code}: {message}")]
    Service {
        /// Where the request went.
        subject: Subject,
        /// The code, as HTTP uses them.
        code: u16,
        /// What it says.
        message: String,
    },
    /// The reply has another shape.
    #[error("reply from {subject} cannot be read")]
    Decode {
        /// Where the request went.
        subject: Subject,
        /// What did not fit.
        #[source]
        source: DecodeError,
    },
    /// The responder answers with a reply stream, which has been cancelled; use `request_stream`.
    #[error("{subject} answers with a reply stream, which a plain request cannot take")]
    ReplyStream {
        /// Where the request went.
        subject: Subject,
    },
    /// The request was not published, or not surely.
    #[error("request not sent")]
    Publish(#[from] PublishError),
    /// The subscription that replies come in by could not be made.
    #[error("no inbox for the reply")]
    Inbox(#[from] SubscribeError),
    /// Too many requests wait already.
    #[error("{limit} requests wait for a reply already (BusOptions::requests_max)")]
    TooMany {
        /// The limit in force.
        limit: usize,
    },
    /// The bus was closed before a reply came.
    #[error("the bus is closed")]
    Closed,
}

impl RequestError {
    /// One word for programs, JSON and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoResponders { .. } => "no_responders",
            Self::Timeout { .. } => "timeout",
            Self::Service { .. } => "service",
            Self::Decode { .. } => "decode",
            Self::ReplyStream { .. } => "reply_stream",
            Self::Publish(_) => "publish",
            Self::Inbox(_) => "inbox",
            Self::TooMany { .. } => "too_many",
            Self::Closed => "closed",
        }
    }

    /// Whether the same request may succeed later. `Timeout` is only where handling it twice does no harm.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoResponders { .. } | Self::Timeout { .. } | Self::TooMany { .. } => true,
            Self::Service { code, .. } => matches!(code, 408 | 429 | 500..),
            Self::Publish(error) => error.is_retryable(),
            Self::Inbox(error) => error.is_retryable(),
            Self::Decode { .. } | Self::ReplyStream { .. } | Self::Closed => false,
        }
    }
}

impl From<InboxError> for RequestError {
    fn from(error: InboxError) -> Self {
        match error {
            InboxError::Subscribe(SubscribeError::Closed) => Self::Closed,
            InboxError::Subscribe(error) => Self::Inbox(error),
            InboxError::Full(limit) => Self::TooMany { limit },
        }
    }
}

impl Bus {
    /// Sends a request in an envelope and waits for the one reply. Await the builder to send it.
    ///
    /// Within a handler it inherits correlation, trace and deadline of the message being handled. The responder learns
    /// until when the reply is wanted.
    ///
    /// # Errors
    /// When awaited: see [`RequestError`].
    ///
    /// # Cancel safety
    /// Dropping the future gives the reply up; the responder works on until the deadline.
    pub fn request<P: Serialize, R: DeserializeOwned>(
        &self,
        topic: Topic<P, R>,
        payload: &P,
    ) -> RequestBuilder<R> {
        let (subject, kind, _) = topic.into_parts();
        RequestBuilder {
            bus: self.clone(),
            subject,
            draft: Draft::json(kind, payload),
            timeout: self.options().request_timeout,
            reply: PhantomData,
        }
    }

    /// Sends a message as it is as a request and waits at most `timeout` for the one reply. Its `reply` is overwritten.
    ///
    /// # Errors
    /// See [`RequestError`]; a reply is not decoded.
    ///
    /// # Cancel safety
    /// Dropping the future gives the reply up.
    pub async fn request_message(
        &self,
        mut message: Message,
        timeout: Duration,
    ) -> Result<Received, RequestError> {
        let telemetry = &self.inner().telemetry;
        telemetry.requests.inc();
        let call = spans::request(self.inner(), &mut message);
        let result = self.exchange(message, timeout).await;
        match &result {
            Ok(_) => call.succeed(),
            Err(error) => {
                telemetry.request_errors.inc();
                call.fail(error.kind(), error);
            }
        }
        result
    }

    /// Sends a message as it is as a request and collects the replies of several responders: all that come until
    /// `max` have come or none came for `timeout`.
    ///
    /// # Errors
    /// See [`RequestError`]; [`RequestError::Timeout`] when not one came. Error replies are among the replies.
    pub async fn request_many(
        &self,
        mut message: Message,
        timeout: Duration,
        max: usize,
    ) -> Result<Vec<Received>, RequestError> {
        self.inner().telemetry.requests.inc();
        let call = spans::request(self.inner(), &mut message);
        let result = self.collect(message, timeout, max).await;
        match &result {
            Ok(_) => call.succeed(),
            Err(error) => call.fail(error.kind(), error),
        }
        result
    }

    async fn collect(
        &self,
        message: Message,
        timeout: Duration,
        max: usize,
    ) -> Result<Vec<Received>, RequestError> {
        let capacity = max.clamp(1, 1024);
        let (subject, mut waiter) = self.send_request(message, timeout, capacity).await?;
        let mut replies = Vec::new();
        while replies.len() < max {
            match timeout_at(Instant::now() + timeout, waiter.messages.recv()).await {
                Ok(Some(message)) if frame::is_no_responders(&message) => {
                    return Err(RequestError::NoResponders { subject });
                }
                Ok(Some(message)) => replies.push(Received::new(message, None)),
                Ok(None) => return Err(RequestError::Closed),
                Err(_) if replies.is_empty() => {
                    return Err(RequestError::Timeout { subject, waited: timeout });
                }
                Err(_) => break,
            }
        }
        Ok(replies)
    }

    async fn exchange(&self, message: Message, timeout: Duration) -> Result<Received, RequestError> {
        let by = Instant::now() + timeout;
        let subject = message.subject.clone();
        // The time counts for the inbox too, which is made with the first request and may have to wait for the server.
        let inner = self.inner();
        let sending = async {
            let waiter = inner.inbox.register_one(inner).await?;
            let subject = self.send_with_reply(message, &waiter.reply, timeout).await?;
            Ok::<_, RequestError>((subject, waiter))
        };
        let (subject, mut waiter) = match timeout_at(by, sending).await {
            Ok(sent) => sent?,
            Err(_) => return Err(RequestError::Timeout { subject, waited: timeout }),
        };
        let message = match timeout_at(by, &mut waiter.messages).await {
            Ok(Ok(message)) => message,
            Ok(Err(_)) => return Err(RequestError::Closed),
            Err(_) => return Err(RequestError::Timeout { subject, waited: timeout }),
        };
        if frame::is_no_responders(&message) {
            if let Some(witness) = &inner.witness {
                witness.found_nobody(&subject, &waiter.reply);
            }
            return Err(RequestError::NoResponders { subject });
        }
        if let Some((code, message)) = service_error(&message.headers) {
            return Err(RequestError::Service { subject, code, message });
        }
        if frame::is_frame(&message) {
            if let Some(control) = frame::control_of(&message) {
                self.inner().publish_aside(frame::cancel(control));
            }
            return Err(RequestError::ReplyStream { subject });
        }
        Ok(Received::new(message, None))
    }

    /// Registers for replies, then publishes, so that the fastest reply finds its waiter.
    pub(crate) async fn send_request(
        &self,
        message: Message,
        timeout: Duration,
        capacity: usize,
    ) -> Result<(Subject, Waiter), RequestError> {
        let inner = self.inner();
        let waiter = inner.inbox.register(inner, capacity).await?;
        let subject = self.send_with_reply(message, &waiter.reply, timeout).await?;
        Ok((subject, waiter))
    }

    /// Publishes a request; gives its subject back.
    async fn send_with_reply(
        &self,
        mut message: Message,
        reply: &Subject,
        timeout: Duration,
    ) -> Result<Subject, PublishError> {
        let inner = self.inner();
        let subject = message.subject.clone();
        message.reply = Some(reply.clone());
        let wait = timeout.min(inner.options.publish_timeout);
        let options = PublishOptions { timeout: Some(wait), ..PublishOptions::default() };
        inner.publish_unseen(message, options).outcome().await?;
        Ok(subject)
    }
}

/// A request in the making. Await it to send it and to get the reply.
#[must_use = "nothing is sent until it is awaited"]
pub struct RequestBuilder<R> {
    bus: Bus,
    subject: Subject,
    draft: Draft,
    timeout: Duration,
    reply: PhantomData<fn() -> R>,
}

impl<R> std::fmt::Debug for RequestBuilder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestBuilder").field("subject", &self.subject).finish_non_exhaustive()
    }
}

impl<R: DeserializeOwned> RequestBuilder<R> {
    draft_setters!();

    /// Sets the longest wait for the reply. The deadline that the responder sees is the earlier of its end and the
    /// one inherited.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends it and gives the reply as it came, not decoded.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn received(self) -> Fut<'static, Result<Received, RequestError>> {
        // The envelope is made here, so that it inherits from the task that wrote `.await`.
        let finished = self.finish(Context::current().as_ref());
        Box::pin(async move {
            let (bus, message, timeout) = finished?;
            bus.request_message(message, timeout).await
        })
    }

    fn finish(mut self, context: Option<&Context>) -> Result<(Bus, Message, Duration), PublishError> {
        let wait = limit_deadline(&mut self.draft, self.timeout, context);
        let source = &self.bus.inner().options.source;
        let (headers, payload) = self.draft.finish(&self.subject, source, context)?;
        Ok((self.bus, Message { subject: self.subject, reply: None, headers, payload }, wait))
    }
}

/// Sets the deadline of a request to the earliest of the end of its timeout, the one that was set and the one
/// inherited, and returns how long is left until then.
pub(crate) fn limit_deadline(draft: &mut Draft, timeout: Duration, context: Option<&Context>) -> Duration {
    let now = now();
    let own = now.checked_add(timeout).unwrap_or(jiff::Timestamp::MAX);
    let inherited = context.and_then(Context::deadline);
    let deadline = [draft.deadline, inherited].into_iter().flatten().fold(own, Ord::min);
    draft.deadline = Some(deadline);
    match deadline < own {
        true => Duration::try_from(now.duration_until(deadline)).unwrap_or(Duration::ZERO),
        false => timeout,
    }
}

impl<R: DeserializeOwned + Send + 'static> IntoFuture for RequestBuilder<R> {
    type Output = Result<R, RequestError>;
    type IntoFuture = Fut<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let subject = self.subject.clone();
        let received = self.received();
        Box::pin(async move {
            received.await?.decode().map_err(|source| RequestError::Decode { subject, source })
        })
    }
}
