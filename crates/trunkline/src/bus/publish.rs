//! Publishing: typed payloads in an envelope, or messages as they are.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use trunkline_core::{Message, Subject};

use super::Bus;
use super::context::Context;
use super::draft::{Draft, draft_setters};
use crate::backend::{Fut, PublishError, PublishOptions, Publishing, Receipt};
use crate::envelope::Envelope;
use crate::topics::Topic;

/// Publishes of one `publish_many` that may be under way at once.
const UNDER_WAY_MAX: usize = 1024;
/// How much longer a blocking publish waits with an outbox, which learns the outcome first and then keeps the message.
const OUTBOX_GRACE: Duration = Duration::from_secs(1);

impl Bus {
    /// Publishes a payload in an envelope. Await the builder to send it.
    ///
    /// Within a handler it inherits correlation and trace of the message being handled.
    ///
    /// # Errors
    /// When awaited: see [`PublishError`].
    ///
    /// # Cancel safety
    /// Once the future has been polled, dropping it leaves the outcome unknown. With the outbox on, too: what could not be
    /// published, or not surely, is kept by the future when it learns of that, so a message whose future was dropped
    /// before is not kept, and lost if the server has not taken it. A publish that is to outlive whoever began it, such as
    /// one inside a timeout or a select, goes into a task of its own; one that was answered [`Receipt::Queued`] is kept.
    pub fn publish<P: Serialize, R>(&self, topic: Topic<P, R>, payload: &P) -> PublishBuilder {
        let (subject, kind, _) = topic.into_parts();
        PublishBuilder { bus: self.clone(), subject, draft: Draft::json(kind, payload) }
    }

    /// Publishes bytes in an envelope, as `payloadBase64`. Await the builder to send it.
    ///
    /// # Errors
    /// When awaited: see [`PublishError`].
    pub fn publish_binary<R>(&self, topic: Topic<Bytes, R>, payload: impl Into<Bytes>) -> PublishBuilder {
        let (subject, kind, _) = topic.into_parts();
        PublishBuilder { bus: self.clone(), subject, draft: Draft::bytes(kind, payload.into()) }
    }

    /// Publishes an envelope as it stands: nothing is inherited.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish_envelope(
        &self,
        subject: Subject,
        envelope: &Envelope,
    ) -> Result<Receipt, PublishError> {
        self.publish_bytes(subject, envelope.to_bytes()).await
    }

    /// Publishes bytes as they are: no envelope, and nothing is inherited.
    ///
    /// # Errors
    /// See [`PublishError`].
    ///
    /// # Cancel safety
    /// As [`Bus::publish`].
    pub async fn publish_bytes(
        &self,
        subject: Subject,
        payload: impl Into<Bytes>,
    ) -> Result<Receipt, PublishError> {
        self.publish_message(Message::new(subject, payload)).await
    }

    /// Publishes a message as it is: no envelope, and nothing is inherited.
    ///
    /// # Errors
    /// See [`PublishError`].
    ///
    /// # Cancel safety
    /// As [`Bus::publish`].
    pub async fn publish_message(&self, message: Message) -> Result<Receipt, PublishError> {
        self.publish_with(message, PublishOptions::default()).await
    }

    /// Publishes a message as it is, with options such as a deduplication id.
    ///
    /// # Errors
    /// See [`PublishError`].
    ///
    /// # Cancel safety
    /// As [`Bus::publish`].
    pub async fn publish_with(
        &self,
        message: Message,
        options: PublishOptions,
    ) -> Result<Receipt, PublishError> {
        match self.inner().publish(message, options) {
            Publishing::Ready(result) => result,
            Publishing::Pending(future) => future.await,
        }
    }

    /// Publishes messages as they are, in order, without waiting for each outcome before the next; the outcomes come
    /// in the same order. At most 1024 are under way at once.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome of those under way unknown; later ones are not published.
    pub async fn publish_many(
        &self,
        messages: impl IntoIterator<Item = Message>,
    ) -> Vec<Result<Receipt, PublishError>> {
        let mut outcomes = Vec::new();
        let mut under_way = FuturesUnordered::new();
        for message in messages {
            let at = outcomes.len();
            match self.inner().publish(message, PublishOptions::default()) {
                Publishing::Ready(outcome) => outcomes.push(outcome),
                Publishing::Pending(future) => {
                    // Replaced before anyone sees it: the loops below wait for every future.
                    outcomes.push(Err(PublishError::Closed));
                    under_way.push(async move { (at, future.await) });
                    if under_way.len() >= UNDER_WAY_MAX
                        && let Some((at, outcome)) = under_way.next().await
                    {
                        outcomes[at] = outcome;
                    }
                }
            }
        }
        while let Some((at, outcome)) = under_way.next().await {
            outcomes[at] = outcome;
        }
        outcomes
    }

    /// Publishes a message as it is and blocks this thread until the outcome is known, at most `publish_timeout`.
    /// Safe anywhere, also inside a handler on a current-thread runtime.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::OutcomeUnknown`] when the wait was too long.
    pub fn publish_blocking(&self, message: Message) -> Result<Receipt, PublishError> {
        self.wait_blocking(self.inner().publish(message, PublishOptions::default()))
    }

    fn wait_blocking(&self, publishing: Publishing) -> Result<Receipt, PublishError> {
        match publishing {
            Publishing::Ready(result) => result,
            Publishing::Pending(future) => {
                let inner = self.inner();
                let mut wait = inner.options.publish_timeout;
                if inner.options.outbox.is_some() {
                    wait += OUTBOX_GRACE;
                }
                inner.blocking().wait(future, wait, || inner.server())
            }
        }
    }
}

/// A typed publish in the making. Await it to send it.
#[derive(Debug)]
#[must_use = "nothing is published until it is awaited"]
pub struct PublishBuilder {
    bus: Bus,
    subject: Subject,
    draft: Draft,
}

impl PublishBuilder {
    draft_setters!();

    /// Suppresses a second message with this id within `messaging.dedupe_window`, where the subject is stored.
    pub fn dedupe(mut self, id: impl Into<String>) -> Self {
        self.draft.dedupe_id = Some(id.into());
        self
    }

    /// The message that would be sent, for [`Bus::publish_many`] and the like. A deduplication id is not part of it.
    ///
    /// # Errors
    /// A payload or header that cannot be written.
    pub fn into_message(self) -> Result<Message, PublishError> {
        self.finish().map(|(_, message, _)| message)
    }

    /// Sends it and blocks this thread until the outcome is known, as [`Bus::publish_blocking`].
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn blocking(self) -> Result<Receipt, PublishError> {
        let (bus, message, options) = self.finish()?;
        bus.wait_blocking(bus.inner().publish(message, options))
    }

    fn finish(mut self) -> Result<(Bus, Message, PublishOptions), PublishError> {
        let options = PublishOptions { dedupe_id: self.draft.dedupe_id.take(), ..PublishOptions::default() };
        let context = Context::current();
        let source = &self.bus.inner().options.source;
        let (headers, payload) = self.draft.finish(&self.subject, source, context.as_ref())?;
        Ok((self.bus, Message { subject: self.subject, reply: None, headers, payload }, options))
    }
}

impl IntoFuture for PublishBuilder {
    type Output = Result<Receipt, PublishError>;
    type IntoFuture = Fut<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        // The envelope is made here, so that it inherits from the task that wrote `.await`.
        let finished = self.finish();
        Box::pin(async move {
            let (bus, message, options) = finished?;
            bus.publish_with(message, options).await
        })
    }
}
