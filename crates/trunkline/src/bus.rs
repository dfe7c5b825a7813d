//! The bus: what applications hold. Request, reply streams, retry, dead letters, keys and deadlines live here, once,
//! above whatever backend there is; nothing below this module knows of envelopes.

pub(crate) mod blocking;
pub mod connect;
pub mod consume;
pub mod context;
pub mod dead_letters;
pub(crate) mod draft;
pub(crate) mod frame;
pub mod handler;
pub(crate) mod inbox;
pub mod outbox;
pub mod publish;
pub mod received;
pub mod request;
pub mod request_stream;
pub mod respond;
pub mod spans;
pub mod stream;
pub mod subscribe;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline_core::redelivery::RetryPolicy;
use trunkline_core::{Message, Subject, Token};

use crate::backend::{
    Backend, DrainError, Fut, PublishError, PublishOptions, Publishing, Receipt, Start, SubscribeError,
};
use crate::health::{self, HealthCheck, HealthStatus, MemoryWatch, SystemHealth};
use crate::observe::{Observer, Published, Reports, Witness};
use crate::status::BackendStatus;
use crate::telemetry::{Counters, Telemetry};
use crate::topics::Topics;
use blocking::BlockingPublisher;
use inbox::InboxSlot;
use outbox::{Outbox, OutboxOptions, OutboxStatus};
use spans::{Operation, Tracer};

/// Longest wait for cancelled handlers at the end of a drain, the farewell of consumers included.
const CANCELLED_WAIT: Duration = Duration::from_secs(3);

/// Settings of a bus. Every one has a default.
#[derive(Debug, Clone)]
pub struct BusOptions {
    /// First token of the platform's subjects. Default `nachos`, key `messaging.subject_root`.
    pub subject_root: Token,
    /// The component that publishes, as envelopes name it. Default: the name of the running executable.
    pub source: String,
    /// Longest wait for the outcome of a publish. Default 5 s, key `messaging.publish_timeout`.
    pub publish_timeout: Duration,
    /// Longest wait for a reply, where the request sets none. Default 5 s.
    pub request_timeout: Duration,
    /// Longest silence within a reply stream, where the request sets none. Default 60 s.
    pub stream_idle_timeout: Duration,
    /// Chunks of a reply stream that may be under way unacknowledged. Default 64.
    pub stream_window: u32,
    /// Most requests and reply streams that wait at once. Default 65536.
    pub requests_max: usize,
    /// Most messages that wait for one subscription. `None`, the default, leaves it to the backend
    /// (`messaging.max_pending`).
    pub max_pending: Option<usize>,
    /// How often a consumer's message is delivered, and after which delays. Default 5 times; 1 s, 5 s, then 30 s. Keys
    /// `messaging.consumer.max_deliver` and `.backoff`.
    pub retry: RetryPolicy,
    /// Longest time a delivery may stay unsettled before it is redelivered; handlers that take longer are covered,
    /// because leases renew themselves. Default 30 s, key `messaging.consumer.ack_wait`.
    pub ack_wait: Duration,
    /// Where a new reader starts: a consumer when it is created, a subscription on stored subjects. Default
    /// [`Start::New`], key `messaging.initial_stream_id`.
    pub initial_start: Start,
    /// How long dead letters are kept. Default 30 days.
    pub dead_letter_age: Duration,
    /// How many dead letters are kept. Default 1 000 000.
    pub dead_letters_max: u64,
    /// How much is kept of what is published while the server is away. `None`, the default, keeps nothing: such a publish
    /// is an error. Key `messaging.outbox`.
    pub outbox: Option<OutboxOptions>,
    /// Where the bus shows what it publishes and how its handlers fare. `None`, the default, shows it to nobody. Key
    /// `observe.enabled`.
    pub observer: Option<Arc<Observer>>,
    /// Where spans go. Default: what [`Tracer::make_default`] was called on, else nowhere.
    pub tracer: Option<Tracer>,
    /// What counts: the counters of another bus for several parts of one process that are shown as one. Default: of its own.
    pub telemetry: Option<Telemetry>,
}

impl Default for BusOptions {
    fn default() -> Self {
        let executable = std::env::args_os().next().map(std::path::PathBuf::from);
        let source = executable.as_deref().and_then(|path| path.file_stem()).and_then(|stem| stem.to_str());
        Self {
            subject_root: Token::new("nachos").expect("a literal token"),
            source: source.unwrap_or("trunkline").to_owned(),
            publish_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            stream_idle_timeout: Duration::from_secs(60),
            stream_window: 64,
            requests_max: 65_536,
            max_pending: None,
            retry: RetryPolicy::default(),
            ack_wait: Duration::from_secs(30),
            initial_start: Start::New,
            dead_letter_age: Duration::from_secs(30 * 24 * 3600),
            dead_letters_max: 1_000_000,
            outbox: None,
            observer: None,
            tracer: Tracer::default_one(),
            telemetry: None,
        }
    }
}

/// How the bus is.
#[derive(Debug, Clone)]
pub struct BusStatus {
    /// The state of its backend.
    pub backend: BackendStatus,
    /// Whether [`Bus::drain`] has begun.
    pub draining: bool,
    /// What it has counted.
    pub counters: Counters,
    /// What waits for the server, where there is an outbox.
    pub outbox: Option<OutboxStatus>,
}

/// A message bus over one backend. Cheap to clone; all clones are the same bus.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

/// What all clones of a bus share.
pub(crate) struct Inner {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) options: BusOptions,
    pub(crate) topics: Topics,
    /// `options.source`, for who looks on.
    pub(crate) name: Arc<str>,
    /// Who looks on, if anybody does.
    pub(crate) witness: Option<Witness>,
    /// What is reported to another process, where that is wanted.
    reports: OnceLock<Arc<Reports>>,
    /// `{root}.dead.`: where only the bus publishes.
    dead_prefix: Box<str>,
    pub(crate) telemetry: Telemetry,
    /// Set when the drain begins: nothing new starts, subscriptions stop, handlers finish.
    pub(crate) draining: CancellationToken,
    /// Set when the drain's deadline has passed, or the last clone is gone: handlers are cancelled.
    pub(crate) killed: CancellationToken,
    /// Set at the end of the drain: nothing is published any more.
    closed: AtomicBool,
    /// The tasks of responders and consumers. They end by `draining` or `killed`, and the drain waits for them.
    pub(crate) tasks: TaskTracker,
    /// Tasks that handlers still need while the bus drains: the reader of replies. They end by `killed`.
    pub(crate) services: TaskTracker,
    pub(crate) inbox: InboxSlot,
    blocking: OnceLock<BlockingPublisher>,
    outbox: Option<Arc<Outbox>>,
    started: Instant,
    memory: MemoryWatch,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.inner.backend.status().borrow().clone();
        f.debug_struct("Bus").field("backend", &status).finish_non_exhaustive()
    }
}

impl Bus {
    /// A bus over `backend`.
    ///
    /// # Panics
    /// When `options.subject_root` is over [`SUBJECT_ROOT_BYTES_MAX`](crate::topics::SUBJECT_ROOT_BYTES_MAX) bytes.
    pub fn with_backend(backend: Arc<dyn Backend>, options: BusOptions) -> Self {
        let topics = Topics::new(options.subject_root.clone()).expect("subject_root is at most 256 bytes");
        let telemetry = options.telemetry.clone().unwrap_or_default();
        let outbox = options
            .outbox
            .map(|limits| Outbox::new(backend.clone(), limits, options.publish_timeout, telemetry.clone()));
        let name: Arc<str> = options.source.as_str().into();
        let kind = backend.capabilities().kind;
        let witness =
            options.observer.as_ref().map(|observer| Witness::new(observer.clone(), kind, name.clone()));
        let inner = Inner {
            backend,
            dead_prefix: format!("{}.dead.", options.subject_root).into(),
            topics,
            name,
            witness,
            reports: OnceLock::new(),
            options,
            telemetry,
            draining: CancellationToken::new(),
            killed: CancellationToken::new(),
            closed: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            services: TaskTracker::new(),
            inbox: InboxSlot::default(),
            blocking: OnceLock::new(),
            outbox,
            started: Instant::now(),
            memory: MemoryWatch::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The subjects of the platform, below this bus's root.
    pub fn topics(&self) -> Topics {
        self.inner.topics.clone()
    }

    /// The settings it runs with.
    pub fn options(&self) -> &BusOptions {
        &self.inner.options
    }

    /// The backend it runs on.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.inner.backend
    }

    /// How the bus is now.
    pub fn status(&self) -> BusStatus {
        // Copied first: while it is looked at it is locked, and who holds the lock of the outbox may wait for that.
        let backend = self.inner.backend.status().borrow().clone();
        BusStatus {
            backend,
            draining: self.inner.draining.is_cancelled(),
            counters: self.inner.telemetry.counters(),
            outbox: self.inner.outbox.as_ref().map(|outbox| outbox.status()),
        }
    }

    /// How the component is that has this bus, as far as the bus knows: its backend, what waits in its outbox, and the memory
    /// of its buffers. Named as [`BusOptions::source`] says, and ready to be published on
    /// [`Topics::system`](crate::Topics::system)'s health, with checks of the component's own where it has some.
    pub fn health(&self) -> SystemHealth {
        let version = env!("CARGO_PKG_VERSION");
        SystemHealth::new(&*self.inner.options.source, version, self.inner.started.elapsed(), self.checks())
    }

    /// The checks of [`Bus::health`] alone.
    pub fn checks(&self) -> BTreeMap<String, HealthCheck> {
        let status = self.status();
        let mut checks = BTreeMap::new();
        let mut enter = |name: &str, check| checks.insert(name.to_owned(), check);
        enter(health::BACKEND, HealthCheck::of_backend(&status.backend));
        if let Some(outbox) = &status.outbox {
            enter(health::OUTBOX, HealthCheck::of_outbox(outbox));
        }
        if let Some(memory) = self.inner.backend.memory() {
            enter(health::MEMORY, self.inner.memory.check(&memory));
        }
        if status.draining {
            enter("drain", HealthCheck::new(HealthStatus::Down, Some("the bus drains".to_owned())));
        }
        checks
    }

    /// Its metrics.
    pub fn telemetry(&self) -> &Telemetry {
        &self.inner.telemetry
    }

    /// The state of the backend, and every change of it.
    pub fn backend_status(&self) -> tokio::sync::watch::Receiver<BackendStatus> {
        self.inner.backend.status()
    }

    /// Waits until everything published before has been received by the server, what is queued in the outbox included.
    ///
    /// # Errors
    /// No connection, or an unknown outcome when it broke; with an outbox, also what became of a message that was queued
    /// before and could not be published.
    pub async fn flush(&self) -> Result<(), PublishError> {
        if let Some(outbox) = &self.inner.outbox {
            outbox.flush().await?;
        }
        self.inner.backend.flush().await
    }

    /// Ends the bus in good order, within `within`: nothing new starts; subscriptions stop, and their readers get what
    /// has arrived; responders and consumers let their handlers finish; what was published is flushed, and the outbox
    /// emptied as far as the server allows; the backend disconnects. Handlers may publish until they end. At the deadline handlers are cancelled; what they had not
    /// acknowledged is redelivered to others. One that blocks its thread cannot be cancelled and is left behind after
    /// three more seconds. A second call waits for the same end.
    ///
    /// # Errors
    /// [`DrainError::Deadline`] tells how much was left unfinished, [`DrainError::OutboxLeft`] how many messages the server
    /// never got; the bus is closed all the same.
    pub async fn drain(&self, within: Duration) -> Result<(), DrainError> {
        let inner = &self.inner;
        let by = Instant::now() + within;
        inner.draining.cancel();
        inner.tasks.close();
        let finished = tokio::time::timeout_at(by, inner.tasks.wait()).await.is_ok();
        let left = inner.telemetry.counters().handlers_running;
        if let Some(reports) = inner.reports.get() {
            // How the last handlers fared; who does not hear of it by then counts it as missed.
            let _ = tokio::time::timeout_at(by, reports.send(inner)).await;
        }
        inner.killed.cancel();
        if let Some(outbox) = &inner.outbox {
            // What is left at the deadline is counted below.
            let _ = tokio::time::timeout_at(by, outbox.emptied()).await;
        }
        let flushed = tokio::time::timeout_at(by, inner.backend.flush()).await;
        inner.closed.store(true, Ordering::Release);
        let queued = inner.outbox.as_ref().map_or(0, |outbox| outbox.close());
        let drained = inner.backend.drain(by.into_std()).await;
        // Cancelled tasks end at their next await; they are not left running behind the caller's back, unless a handler
        // blocks its thread and never comes to one.
        inner.services.close();
        let ended = async {
            inner.tasks.wait().await;
            inner.services.wait().await;
        };
        if tokio::time::timeout(CANCELLED_WAIT, ended).await.is_err() {
            tracing::error!("handlers block their threads and could not be cancelled");
        }
        match flushed {
            _ if !finished => Err(DrainError::Deadline { left: left.max(1) }),
            _ if queued > 0 => Err(DrainError::OutboxLeft { left: queued }),
            Ok(Err(PublishError::NotConnected { server, reason })) => {
                Err(DrainError::NotConnected { server, reason })
            }
            Ok(Err(PublishError::OutcomeUnknown { server, .. })) => {
                Err(DrainError::NotConnected { server, reason: "the connection broke while flushing".into() })
            }
            Err(_) => Err(DrainError::Deadline { left: 1 }),
            Ok(_) => drained,
        }
    }

    /// Runs [`BusOptions::observer`], which has to be `observer`, and reports what it sees on `{root}.system.trace`, until the
    /// bus ends; [`Bus::connect`] does so where `observe.enabled` is true. To be called once, on a runtime.
    pub fn report(&self, observer: &Arc<Observer>) {
        let (inner, reports) = (&self.inner, Arc::new(Reports::new(observer)));
        if inner.reports.set(reports.clone()).is_ok() {
            // Both end by `killed`; the drain joins them.
            inner.services.spawn(observer.clone().run(inner.killed.clone()));
            let (killed, bus) = (inner.killed.clone(), Arc::downgrade(inner));
            inner.services.spawn(async move {
                killed.run_until_cancelled(reports.run(bus)).await;
            });
        }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Inner {
    /// Publishes what an application gave.
    pub(crate) fn publish(self: &Arc<Self>, message: Message, options: PublishOptions) -> Publishing {
        spans::publishing(self, Operation::Publish, message, |message| self.publish_unseen(message, options))
    }

    /// Publishes what an application gave, without a span of its own.
    pub(crate) fn publish_unseen(self: &Arc<Self>, message: Message, options: PublishOptions) -> Publishing {
        match &self.outbox {
            // Whatever wants a reply has somebody who waits for it, and for no longer than that.
            Some(outbox)
                if message.reply.is_none()
                    && !self.is_dead_letter(&message.subject)
                    && !self.closed.load(Ordering::Acquire) =>
            {
                if let Some(sender) = outbox.sender() {
                    self.blocking().run(sender);
                }
                outbox.publish(message, options)
            }
            _ => self.publish_past_outbox(message, options),
        }
    }

    /// Publishes what an application gave and is of use now or never, or is tried again by somebody else.
    pub(crate) fn publish_past_outbox(
        self: &Arc<Self>,
        message: Message,
        options: PublishOptions,
    ) -> Publishing {
        if self.is_dead_letter(&message.subject) {
            self.telemetry.publish_errors.inc();
            return Publishing::Ready(Err(PublishError::Reserved(message.subject)));
        }
        self.publish_now(message, options)
    }

    /// Publishes what the bus itself made, dead letters included.
    pub(crate) fn publish_now(self: &Arc<Self>, message: Message, mut options: PublishOptions) -> Publishing {
        if self.closed.load(Ordering::Acquire) {
            return Publishing::Ready(Err(PublishError::Closed));
        }
        options.timeout.get_or_insert(self.options.publish_timeout);
        let seen = self.witness.as_ref().and_then(|witness| witness.publishes(&message, &options));
        match self.backend.publish(message, options) {
            Publishing::Ready(result) => {
                count_publish(&self.telemetry, &result);
                self.show(seen, &result);
                Publishing::Ready(result)
            }
            Publishing::Pending(future) => {
                // One count of references, where the telemetry has one for each of its counters.
                let inner = self.clone();
                Publishing::Pending(Box::pin(async move {
                    let result = future.await;
                    count_publish(&inner.telemetry, &result);
                    inner.show(seen, &result);
                    result
                }))
            }
        }
    }

    fn show(&self, seen: Option<Box<Published>>, result: &Result<Receipt, PublishError>) {
        if let (Some(witness), Some(seen), Ok(receipt)) = (&self.witness, seen, result) {
            witness.published(*seen, receipt);
        }
    }

    /// Publishes without anyone waiting for the outcome: frames of flow control, which a lost connection makes moot.
    pub(crate) fn publish_aside(self: &Arc<Self>, message: Message) {
        // Its subject comes from the other side, which must not have the bus write dead letters for it.
        if let Publishing::Pending(future) = self.publish_past_outbox(message, PublishOptions::default()) {
            self.run_aside(Box::pin(async move {
                if let Err(error) = future.await {
                    tracing::debug!(%error, "control message not published");
                }
            }));
        }
    }

    fn run_aside(&self, future: Fut<'static, ()>) {
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(self.tasks.spawn_on(future, &runtime)),
            Err(_) => self.blocking().run(future),
        }
    }

    pub(crate) fn blocking(&self) -> &BlockingPublisher {
        self.blocking.get_or_init(BlockingPublisher::default)
    }

    /// Refuses new work once the drain has begun.
    pub(crate) fn accepts_work(&self) -> Result<(), SubscribeError> {
        match self.draining.is_cancelled() {
            true => Err(SubscribeError::Closed),
            false => Ok(()),
        }
    }

    /// The server, for errors.
    pub(crate) fn server(&self) -> String {
        self.backend.status().borrow().server.clone()
    }

    pub(crate) fn is_dead_letter(&self, subject: &Subject) -> bool {
        subject.as_str().starts_with(&*self.dead_prefix)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(outbox) = &self.outbox {
            outbox.close();
        }
        // Tasks that hold no clone of the bus, such as the reader of replies, end with it.
        self.draining.cancel();
        self.killed.cancel();
    }
}

fn count_publish(telemetry: &Telemetry, result: &Result<Receipt, PublishError>) {
    match result {
        Ok(_) => {
            telemetry.published.inc();
        }
        Err(error) => count_publish_error(telemetry, error),
    }
}

pub(crate) fn count_publish_error(telemetry: &Telemetry, error: &PublishError) {
    telemetry.publish_errors.inc();
    if matches!(error, PublishError::Denied { .. }) {
        telemetry.denied.inc();
    }
}
