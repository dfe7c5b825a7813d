//! A delivery as its handler sees it, and a handler function as a tower service.

use std::future::Future;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Poll};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tower::Service;
use trunkline_core::{StreamOffset, Subject};

use crate::backend::{Delivery, Fut};
use crate::bus::Bus;
use crate::bus::context::Context;
use crate::bus::handler::{Failure, HandlerError};
use crate::bus::received::Received;

/// A delivery of a stored message, as the handler of a consumer sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Delivered {
    bus: Bus,
    received: Received,
    context: Context,
    time: SystemTime,
    attempt: u32,
    /// Made when it is asked for.
    cancel: Arc<OnceLock<CancellationToken>>,
}

/// The end of the work on a delivery: what its handler tied to it is cancelled when this is dropped.
pub(super) struct EndOfWork(Arc<OnceLock<CancellationToken>>);

impl Drop for EndOfWork {
    fn drop(&mut self) {
        // Nobody else has the delivery any more, and if somebody has its token, it is there.
        let shared = Arc::strong_count(&self.0) > 1;
        // Whoever gave its share back before has made the token before that.
        fence(Ordering::Acquire);
        if shared || self.0.get().is_some() {
            self.0.get_or_init(CancellationToken::new).cancel();
        }
    }
}

impl Delivered {
    pub(super) fn new(bus: Bus, delivery: &Delivery, received: Received, context: Context) -> Self {
        let cancel = Arc::default();
        Self { bus, received, context, time: delivery.time, attempt: delivery.attempt, cancel }
    }

    /// The bus it came by.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The message.
    pub fn received(&self) -> &Received {
        &self.received
    }

    /// Where it was published.
    pub fn subject(&self) -> &Subject {
        self.received.subject()
    }

    /// Where it stands in the stream.
    pub fn offset(&self) -> Option<StreamOffset> {
        self.received.offset()
    }

    /// When it was stored.
    pub fn time(&self) -> SystemTime {
        self.time
    }

    /// Which delivery of the message this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The payload as `T`. An error says that the message will never succeed, so that `?` makes it a dead letter at
    /// once; where that is not wanted, use [`Received::decode`].
    ///
    /// # Errors
    /// A payload of another shape.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        self.received.decode().map_err(|error| HandlerError::reject(HandlerError::from(error).to_string()))
    }

    /// What the messages that it causes inherit. Within the handler's own task that happens by itself.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Cancelled when the work is not wanted any more: the lease was lost, or the consumer was stopped. The handler
    /// itself is dropped then; this is for tasks it spawned.
    pub fn cancellation(&self) -> &CancellationToken {
        self.cancel.get_or_init(CancellationToken::new)
    }

    pub(super) fn end_of_work(&self) -> EndOfWork {
        EndOfWork(self.cancel.clone())
    }
}

/// A handler function as a tower service.
pub struct DeliveryService<F> {
    handler: Arc<F>,
}

impl<F> DeliveryService<F> {
    pub(super) fn new(handler: F) -> Self {
        Self { handler: Arc::new(handler) }
    }
}

impl<F> Clone for DeliveryService<F> {
    fn clone(&self) -> Self {
        Self { handler: self.handler.clone() }
    }
}

impl<F> std::fmt::Debug for DeliveryService<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeliveryService")
    }
}

impl<F, Handling> Service<Delivered> for DeliveryService<F>
where
    F: Fn(Delivered) -> Handling + Send + Sync + 'static,
    Handling: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    type Response = ();
    type Error = Failure;
    type Future = Fut<'static, Result<(), Failure>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivered: Delivered) -> Self::Future {
        let handler = self.handler.clone();
        Box::pin(async move { handler(delivered).await.map_err(Failure) })
    }
}
