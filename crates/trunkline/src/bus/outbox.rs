//! The outbox: what is published while the server is away is kept here and sent, in order, when it is back.
//!
//! It stands in the bus, above whatever backend there is (`messaging.outbox`). With it on, a publish that the backend
//! could not send, one whose outcome is unknown, and one that is stored and not safe yet (`messaging.wait_replicas`), is
//! kept and answered [`Receipt::Queued`]; so is everything published
//! while something waits, because order counts. While the connection works, a publish behind others waits for its own
//! outcome instead, so that a fast publisher is slowed down rather than told that the outbox is full.
//!
//! Every publish carries a deduplication id from its first attempt on, the publisher's or one made here, so that sending
//! again what may have been published does no harm within `messaging.dedupe_window`. A backend that does not deduplicate
//! gets each message once: there an unknown outcome stays the error that it is, and what is lost that way after it had
//! been queued is counted, logged and told by the next flush.
//!
//! The order is that of the calls also where a connection breaks and comes back between two of them: the backend sends
//! nothing that was handed to it together with a message that it had to give back ([`Backend::breaks`]).
//!
//! Never kept are requests and whatever else wants a reply, replies, frames of reply streams, dead letters and redrives:
//! they have a deadline, or somebody who tries again.
//!
//! | part | what it does |
//! |---|---|
//! | `queue` | what waits, and in which order |
//! | `sender` | the task that sends it |

mod queue;
mod sender;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trunkline_core::{Message, Subject};

use crate::backend::{Backend, Fut, PublishError, PublishOptions, Publishing, Receipt};
use crate::status::{BackendState, BackendStatus};
use crate::telemetry::Telemetry;
use queue::{Entry, Place, Queue};

/// How much longer than its own timeout a publish that was tried at once is waited for before others go ahead of it.
const TRY_GRACE: Duration = Duration::from_secs(1);

/// How much an outbox keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxOptions {
    /// Most messages that wait. Default 10 000, key `messaging.outbox_max_messages`.
    pub messages_max: usize,
    /// Most bytes of subjects, headers and payloads that wait. Default 64 MB, key `messaging.outbox_max_bytes`.
    pub bytes_max: usize,
}

impl Default for OutboxOptions {
    fn default() -> Self {
        Self { messages_max: 10_000, bytes_max: 64_000_000 }
    }
}

/// How an outbox stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxStatus {
    /// Messages that wait.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Its bounds.
    pub limits: OutboxOptions,
    /// Messages that were queued and could never be published: not allowed, or too large for the server.
    pub refused: u64,
    /// The last of these.
    pub last_refused: Option<Refused>,
    /// Messages that were queued and may or may not have been published, where the backend does not deduplicate.
    pub unknown: u64,
}

/// A message that was queued and could never be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Where it was to go.
    pub subject: Subject,
    /// Why not.
    pub error: PublishError,
}

/// See the module's text.
pub(crate) struct Outbox {
    backend: Arc<dyn Backend>,
    /// Whether sending again what may have been published does no harm.
    dedupes: bool,
    /// Start of the ids made here; no other outbox has it.
    id_prefix: String,
    limits: OutboxOptions,
    publish_timeout: Duration,
    status: watch::Receiver<BackendStatus>,
    telemetry: Telemetry,
    /// Guards what waits; held for a few map operations, never while the backend is called.
    queue: Mutex<Queue>,
    /// Something waits, or an earlier publish is over: for the sender.
    work: Notify,
    /// Something is over: for flushes and drains.
    moved: Notify,
    /// The sender was started.
    started: AtomicBool,
    /// Ends the sender.
    closed: CancellationToken,
}

impl Outbox {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        limits: OutboxOptions,
        publish_timeout: Duration,
        telemetry: Telemetry,
    ) -> Arc<Self> {
        Arc::new(Self {
            dedupes: backend.capabilities().dedupe,
            id_prefix: format!("ob:{:016x}{:016x}:", fastrand::u64(..), fastrand::u64(..)),
            limits,
            publish_timeout,
            status: backend.status(),
            telemetry,
            backend,
            queue: Mutex::new(Queue::new(limits)),
            work: Notify::new(),
            moved: Notify::new(),
            started: AtomicBool::new(false),
            closed: CancellationToken::new(),
        })
    }

    /// The task that sends what waits, to be run by the first caller. It ends when the outbox is closed.
    pub(crate) fn sender(self: &Arc<Self>) -> Option<Fut<'static, ()>> {
        (!self.started.swap(true, Ordering::AcqRel)).then(|| {
            let outbox = self.clone();
            let task: Fut<'static, ()> = Box::pin(async move { sender::run(&outbox).await });
            task
        })
    }

    /// How it stands.
    pub(crate) fn status(&self) -> OutboxStatus {
        let queue = self.queue.lock();
        OutboxStatus {
            messages: queue.messages() as u64,
            bytes: queue.bytes() as u64,
            limits: self.limits,
            refused: self.telemetry.outbox_refused.get(),
            last_refused: queue.last_refused.clone(),
            unknown: self.telemetry.outbox_unknown.get(),
        }
    }

    /// Publishes a message at once where nothing waits, else behind what does.
    pub(crate) fn publish(self: &Arc<Self>, message: Message, mut options: PublishOptions) -> Publishing {
        let timeout = *options.timeout.get_or_insert(self.publish_timeout);
        let mut entry = Entry { message, options, own_id: false, teller: None };
        // Asked before the lock is taken: an older number only keeps a message that could have been tried.
        let breaks = self.backend.breaks();
        let place = {
            let mut queue = self.queue.lock();
            let (now, until) = (Instant::now(), timeout + TRY_GRACE);
            let now = queue.try_now(now, now + until, breaks);
            let place = now.unwrap_or_else(|| queue.take_place());
            entry.options.unbroken_since = queue.unbroken_since;
            if self.dedupes && entry.options.dedupe_id.is_none() {
                entry.options.dedupe_id = Some(format!("{}{place}", self.id_prefix));
                entry.own_id = true;
            }
            if now.is_none() {
                return self.keep_behind(&mut queue, place, entry);
            }
            place
        };
        let attempt = Attempt { outbox: self.clone(), place };
        match attempt.outbox.send(&mut entry) {
            Publishing::Ready(result) => Publishing::Ready(attempt.finish(entry, result)),
            Publishing::Pending(under_way) => Publishing::Pending(Box::pin(async move {
                let mut result = under_way.await;
                if entry.lose_own_id(&result) {
                    result = attempt.outbox.send(&mut entry).outcome().await;
                }
                attempt.finish(entry, result)
            })),
        }
    }

    /// Hands a message to the backend.
    fn send(&self, entry: &mut Entry) -> Publishing {
        let publishing = self.backend.publish(entry.message.clone(), entry.options.clone());
        match publishing {
            Publishing::Ready(result) if entry.lose_own_id(&result) => {
                self.backend.publish(entry.message.clone(), entry.options.clone())
            }
            publishing => publishing,
        }
    }

    fn keep_behind(&self, queue: &mut Queue, place: Place, mut entry: Entry) -> Publishing {
        // Without a connection that works there is no outcome to wait for.
        let told = (self.is_connected() && !queue.failing).then(|| {
            let (teller, told) = oneshot::channel();
            entry.teller = Some(teller);
            told
        });
        if let Err(error) = queue.keep(place, entry) {
            self.count_full(&error);
            return Publishing::Ready(Err(error));
        }
        self.kept(queue);
        match told {
            None => Publishing::Ready(Ok(Receipt::Queued)),
            // The teller goes without a word only when the bus is closed.
            Some(told) => {
                Publishing::Pending(Box::pin(async move { told.await.unwrap_or(Err(PublishError::Closed)) }))
            }
        }
    }

    fn is_connected(&self) -> bool {
        is_connected(&self.status.borrow().state)
    }

    fn kept(&self, queue: &Queue) {
        self.telemetry.outbox_queued.inc();
        self.measure(queue);
        self.work.notify_one();
    }

    fn count_full(&self, error: &PublishError) {
        if matches!(error, PublishError::OutboxFull { .. }) {
            self.telemetry.outbox_full.inc();
        }
        self.telemetry.publish_errors.inc();
    }

    fn measure(&self, queue: &Queue) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.telemetry.outbox_messages.set(gauge(queue.messages()));
        self.telemetry.outbox_bytes.set(gauge(queue.bytes()));
    }

    /// Waits until everything published before is over.
    ///
    /// # Errors
    /// Nothing moved for as long as a publish may take, or a message that had been queued could not be published.
    pub(crate) async fn flush(&self) -> Result<(), PublishError> {
        let end = self.queue.lock().end();
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let waiting = {
                let mut queue = self.queue.lock();
                if queue.is_over_before(end, Instant::now()) {
                    return queue.failure.take().map_or(Ok(()), Err);
                }
                queue.messages()
            };
            if tokio::time::timeout(self.publish_timeout, moved).await.is_err() {
                let status = self.status.borrow();
                let reason = match status.state.reason() {
                    Some(reason) => format!("{waiting} messages wait in the outbox: {reason}"),
                    None => format!("{waiting} messages wait in the outbox"),
                };
                return Err(PublishError::NotConnected { server: status.server.clone(), reason });
            }
        }
    }

    /// Waits until nothing waits any more.
    pub(crate) async fn emptied(&self) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let queue = self.queue.lock();
                if queue.is_over_before(queue.end(), Instant::now()) {
                    return;
                }
            }
            // What was tried at once and is polled by nobody is over by its time alone.
            let _ = tokio::time::timeout(TRY_GRACE, moved).await;
        }
    }

    /// Keeps nothing from now on. Says how many messages are lost by that, and logs it.
    pub(crate) fn close(&self) -> u64 {
        let lost = {
            let mut queue = self.queue.lock();
            let lost = queue.close();
            self.measure(&queue);
            lost
        };
        self.closed.cancel();
        self.moved.notify_waiters();
        if let (Some(first), Some(last)) = (lost.first(), lost.last()) {
            tracing::error!(
                messages = lost.len(),
                bytes = lost.iter().map(Entry::size_bytes).sum::<usize>(),
                first = %first.message.subject,
                last = %last.message.subject,
                "the bus ended with messages in its outbox: they were not published, and are lost"
            );
        }
        lost.len() as u64
    }
}

impl Entry {
    /// Takes off an id made here when the backend cannot deduplicate on this subject, where no stream stores it. Says
    /// whether it is to be sent again: it has not been published.
    fn lose_own_id(&mut self, result: &Result<Receipt, PublishError>) -> bool {
        let refused = self.own_id && matches!(result, Err(PublishError::Unsupported(_)));
        if refused {
            self.own_id = false;
            self.options.dedupe_id = None;
        }
        refused
    }
}

/// A publish that is tried at once. Dropping it makes way for those behind it; its message is not kept then.
struct Attempt {
    outbox: Arc<Outbox>,
    place: Place,
}

impl Attempt {
    /// Keeps what was not published, or not surely.
    fn finish(self, entry: Entry, result: Result<Receipt, PublishError>) -> Result<Receipt, PublishError> {
        let telemetry = &self.outbox.telemetry;
        let error = match result {
            Ok(receipt) => {
                telemetry.published.inc();
                return Ok(receipt);
            }
            Err(error) => error,
        };
        let unknown =
            matches!(error, PublishError::OutcomeUnknown { .. } | PublishError::NotReplicated { .. });
        let keep = matches!(error, PublishError::NotConnected { .. }) || (unknown && entry.is_repeatable());
        if !keep {
            super::count_publish_error(telemetry, &error);
            return Err(error);
        }
        let mut queue = self.outbox.queue.lock();
        queue.tried(self.place);
        match queue.keep(self.place, entry) {
            Ok(()) => {
                self.outbox.kept(&queue);
                Ok(Receipt::Queued)
            }
            Err(full) => {
                self.outbox.count_full(&full);
                // That it may have been published is more than that there was no room for it.
                Err(if unknown { error } else { full })
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.outbox.queue.lock().tried(self.place);
        self.outbox.work.notify_one();
        self.outbox.moved.notify_waiters();
    }
}

fn is_connected(state: &BackendState) -> bool {
    matches!(state, BackendState::Connected | BackendState::Degraded { .. })
}
