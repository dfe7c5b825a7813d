//! Consumers: durable named readers of a stream whose members share the work.
//!
//! Retry, backoff, dead letters and order by key are decided here, by one engine, the same on every backend: a handler
//! that succeeds acknowledges; one that fails, panics or is cancelled has its message delivered again after a backoff, up to
//! `max_deliver` times; then a dead letter is written, and only then is the message terminated. Deliveries whose handlers
//! take long keep their leases; one that loses its lease is cancelled and settles nothing.

mod backoff;
pub(super) mod dead_letter;
mod delivered;
mod engine;
mod keyed;
mod lease;
mod pull;
mod settle;
mod work;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};
use trunkline_core::Pattern;
use trunkline_core::redelivery::RetryPolicy;

use super::Bus;
use super::handler::{BoxError, HandlerError};
use super::received::Received;
use crate::backend::{ConsumeError, ConsumerConfig, Member, Start, StreamError};
use engine::{Bounds, Engine};
use work::Rules;

pub use delivered::{Delivered, DeliveryService};
pub use pull::{Pulled, Puller};

/// Deliveries that one member handles at once, where it sets no other bound.
const CONCURRENCY: usize = 16;
/// Deliveries that may wait for their keys, where the consumer sets no other bound.
const PARKED_MAX: usize = 1024;
/// Longest time that a handler may take, where the consumer sets no other bound.
const HANDLING_MAX: Duration = Duration::from_secs(3600);

/// Why a consumer ended, or did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// It could not be joined.
    #[error("consumer not joined")]
    Join(#[from] StreamError),
    /// It cannot go on: the stream or the consumer was removed, or the backend closed.
    #[error("consumer ended")]
    Ended(#[from] ConsumeError),
    /// A bug ended its task.
    #[error("task of the consumer broke off")]
    Broken(#[from] tokio::task::JoinError),
}

impl ConsumerError {
    /// Whether starting it again may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Join(error) => error.is_retryable(),
            Self::Ended(error) => error.is_retryable(),
            Self::Broken(_) => false,
        }
    }
}

/// A function from a message to the key it is ordered by.
pub type KeyFn = Arc<dyn Fn(&Received) -> Option<String> + Send + Sync>;

/// What orders the deliveries of a consumer: those of one key are handled one after the other, through redelivery too.
/// Messages without a key are never queued behind anything: that is for approvals and cancellations, which must not wait
/// for the work they concern.
#[derive(Clone)]
#[non_exhaustive]
pub enum Key {
    /// The envelope's `trace.conversationId`.
    Conversation,
    /// The envelope's `correlationId`.
    Correlation,
    /// The subject.
    Subject,
    /// What a function says; see [`Key::with`].
    With(KeyFn),
}

impl Key {
    /// The key that `key` gives; `None` is a message without one.
    pub fn with(key: impl Fn(&Received) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::With(Arc::new(key))
    }

    fn of(&self, received: &Received) -> Option<String> {
        match self {
            Self::Conversation => received.envelope()?.trace.conversation_id.clone(),
            Self::Correlation => received.envelope()?.correlation_id.clone(),
            Self::Subject => Some(received.subject().to_string()),
            Self::With(key) => key(received),
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Conversation => "Conversation",
            Self::Correlation => "Correlation",
            Self::Subject => "Subject",
            Self::With(_) => "With",
        })
    }
}

/// A consumer in the making; [`ConsumerBuilder::run`] or [`ConsumerBuilder::spawn`] joins it as a new member.
#[derive(Debug, Clone)]
#[must_use = "nothing is consumed until it runs"]
pub struct ConsumerBuilder {
    bus: Bus,
    stream: String,
    config: ConsumerConfig,
    retry: RetryPolicy,
    key: Option<Key>,
    concurrency: usize,
    max_parked: usize,
    max_handling: Duration,
}

impl ConsumerBuilder {
    pub(super) fn new(bus: Bus, stream: String, consumer: String) -> Self {
        let options = bus.options();
        let config = ConsumerConfig {
            start: options.initial_start,
            ack_wait: options.ack_wait,
            ..ConsumerConfig::new(consumer)
        };
        Self {
            stream,
            config,
            retry: options.retry.clone(),
            key: None,
            concurrency: CONCURRENCY,
            max_parked: PARKED_MAX,
            max_handling: HANDLING_MAX,
            bus,
        }
    }

    /// Sets where it starts when it is created; one that exists goes on where it stands.
    pub fn start(mut self, start: Start) -> Self {
        self.config.start = start;
        self
    }

    /// Takes only messages whose subject matches.
    pub fn filter(mut self, pattern: Pattern) -> Self {
        self.config.filter = Some(pattern);
        self
    }

    /// Orders the deliveries by key. Of all members only one is active then; the others stand by.
    pub fn ordered_by(mut self, key: Key) -> Self {
        self.config.keyed = true;
        self.key = Some(key);
        self
    }

    /// Sets how many deliveries this member handles at once, at least 1. Default 16. Of a consumer with keys, messages
    /// without a key come on top.
    pub fn concurrency(mut self, deliveries: usize) -> Self {
        self.concurrency = deliveries.max(1);
        self
    }

    /// Sets how many deliveries may wait for their keys, at least 1. Default 1024. While so many wait, nothing more is
    /// fetched, whatever its key.
    pub fn max_parked(mut self, deliveries: usize) -> Self {
        self.max_parked = deliveries.max(1);
        self
    }

    /// Sets how often a message is delivered before it becomes a dead letter, at least 1. Default 5, key
    /// `messaging.consumer.max_deliver`.
    pub fn max_deliver(mut self, deliveries: u32) -> Self {
        self.retry.max_deliver = deliveries.max(1);
        self
    }

    /// Sets the delays before redeliveries; the last one repeats. Default 1 s, 5 s, then 30 s, key
    /// `messaging.consumer.backoff`.
    pub fn backoff(mut self, delays: impl Into<Vec<Duration>>) -> Self {
        self.retry.backoff = delays.into();
        self
    }

    /// Sets the longest time a delivery may stay unsettled before it is given to a member again; it renews itself while
    /// its handler runs. Default 30 s, key `messaging.consumer.ack_wait`.
    pub fn ack_wait(mut self, wait: Duration) -> Self {
        self.config.ack_wait = wait;
        self
    }

    /// Sets the longest time a handler may take; after it, it is cancelled and has failed. Default 1 h.
    pub fn max_handling(mut self, time: Duration) -> Self {
        self.max_handling = time;
        self
    }

    /// Joins the consumer and handles its deliveries until it ends, which is when the bus drains. Dropping the future
    /// stops it as dropping a [`Consumer`] does.
    ///
    /// # Errors
    /// See [`ConsumerError`]. A backend that is away is waited for, never an error once the consumer has joined.
    pub async fn run<F, Fut>(self, handler: F) -> Result<(), ConsumerError>
    where
        F: Fn(Delivered) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.spawn(handler).await?.wait().await
    }

    /// Joins the consumer and handles its deliveries in a task of its own.
    ///
    /// # Errors
    /// It could not be joined.
    pub async fn spawn<F, Fut>(self, handler: F) -> Result<Consumer, ConsumerError>
    where
        F: Fn(Delivered) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.spawn_service(DeliveryService::new(handler)).await
    }

    /// As [`ConsumerBuilder::spawn`], with a tower layer around the handler.
    ///
    /// # Errors
    /// It could not be joined.
    pub async fn spawn_layered<L, F, Fut>(self, layer: L, handler: F) -> Result<Consumer, ConsumerError>
    where
        L: Layer<DeliveryService<F>>,
        L::Service: Service<Delivered, Response = ()> + Clone + Send + 'static,
        <L::Service as Service<Delivered>>::Error: Into<BoxError>,
        <L::Service as Service<Delivered>>::Future: Send,
        F: Fn(Delivered) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.spawn_service(layer.layer(DeliveryService::new(handler))).await
    }

    /// Joins the consumer and has a tower service handle its deliveries.
    ///
    /// # Errors
    /// It could not be joined.
    pub async fn spawn_service<S>(self, service: S) -> Result<Consumer, ConsumerError>
    where
        S: Service<Delivered, Response = ()> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
    {
        let inner = self.bus.inner().clone();
        let member = self.join().await?;
        let bounds = Bounds {
            concurrency: self.concurrency,
            max_parked: self.max_parked,
            ack_wait: self.config.ack_wait,
        };
        let key = self.key.clone();
        let engine = Engine::new(Arc::new(self.rules()), service, member, bounds, key);
        let (stop, kill) = (CancellationToken::new(), inner.killed.child_token());
        let task = inner.tasks.spawn(engine.run(stop.clone(), kill.clone()));
        Ok(Consumer { stop, kill, task: Some(task) })
    }

    /// Joins the consumer for fetching and settling by hand. Retry limits and dead letters hold as for handlers; leases
    /// are the caller's affair.
    ///
    /// # Errors
    /// It could not be joined. Order by key is the engine's: a keyed consumer cannot be pulled from.
    pub async fn pull(self) -> Result<Puller, ConsumerError> {
        if self.config.keyed {
            return Err(ConsumerError::Join(StreamError::Conflict {
                what: format!("consumer {:?}", self.config.name),
                found: "order by key".into(),
                wanted: "fetching by hand".into(),
            }));
        }
        let member = self.join().await?;
        Ok(Puller::new(Arc::new(self.rules()), member))
    }

    async fn join(&self) -> Result<Arc<dyn Member>, ConsumerError> {
        let inner = self.bus.inner();
        if inner.draining.is_cancelled() {
            return Err(ConsumerError::Join(StreamError::Closed));
        }
        let streams = inner.backend.streams().map_err(StreamError::from)?;
        match dead_letter::ensure_stream(inner, streams).await {
            Ok(()) => {}
            // The operator's own stream covers some dead letters and not others; those that are not stored are errors
            // when they are written, and their messages stay.
            Err(error @ StreamError::Overlap { .. }) => {
                tracing::warn!(%error, "not all dead letters have a stream");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(streams.join(&self.stream, self.config.clone()).await?)
    }

    fn rules(self) -> Rules {
        let latencies = &self.bus.inner().telemetry.latencies;
        Rules {
            meters: latencies.consumer(&self.stream, &self.config.name),
            bus: self.bus,
            stream: self.stream,
            consumer: self.config.name,
            retry: self.retry,
            max_handling: self.max_handling,
        }
    }
}

/// A running member of a consumer. Dropping it stops it without waiting: handlers are cancelled, and what they had not
/// finished goes to the other members.
#[derive(Debug)]
#[must_use = "dropping a consumer stops it"]
pub struct Consumer {
    /// Set to fetch nothing more.
    stop: CancellationToken,
    /// Set to cancel handlers too.
    kill: CancellationToken,
    /// The engine, which owns the handlers; it ends by either token, when the bus drains, or when the consumer is gone.
    task: Option<JoinHandle<Result<(), ConsumeError>>>,
}

impl Consumer {
    /// Fetches nothing more and lets handlers finish, at most `within`; then cancels the rest. `false` when some were
    /// cancelled. What was not acknowledged goes to the other members.
    ///
    /// # Errors
    /// Why it had ended before.
    pub async fn drain(mut self, within: Duration) -> Result<bool, ConsumerError> {
        self.stop.cancel();
        let Some(task) = self.task.as_mut() else { return Ok(true) };
        match tokio::time::timeout(within, task).await {
            Ok(ended) => {
                self.task = None;
                ended??;
                Ok(true)
            }
            Err(_) => self.stop().await.map(|()| false),
        }
    }

    /// Fetches nothing more and cancels the handlers. What was not acknowledged goes to the other members.
    ///
    /// # Errors
    /// Why it had ended before.
    pub async fn stop(self) -> Result<(), ConsumerError> {
        self.kill.cancel();
        self.wait().await
    }

    /// Waits until it has ended, which is when the bus drains, or with an error.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn wait(mut self) -> Result<(), ConsumerError> {
        if let Some(task) = self.task.as_mut() {
            task.await??;
        }
        Ok(())
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.task.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}
