//! Publishing where JetStream is: each message goes out as stored or as not stored, and its outcome says which.
//!
//! Most messages are sent by their caller at once. One that must wait — because nobody knows yet whether its subject is
//! stored, because too many confirmations are outstanding, or because the connection takes no more for the moment —
//! goes into a queue that one task empties in order; whatever is published to the same subject goes behind it. Messages
//! to inboxes are never stored and never wait for others.

mod learn;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{PublishErrorKind, StatusCode};
use hashbrown::HashMap;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use trunkline_core::{Message, StreamOffset, Subject};

use super::api::{Api, Refusal};
use super::names::Names;
use super::replies::{Awaited, NoReply};
use super::routes::Route;
use crate::backend::nats::link::Link;
use crate::backend::nats::options::NatsOptions;
use crate::backend::nats::{message, publish, unsupported};
use crate::backend::{PublishError, Publishing, Receipt};
use crate::memory::{Holding, QueueBytes};
use learn::Known;

/// Most stored messages whose confirmation is outstanding. JetStream itself refuses messages past 10000 that it has not
/// got to yet, and counts those of all clients.
const UNDER_WAY_MAX: usize = 4096;
/// Delay between two attempts, and how often what is overdue is looked for.
const RETRY_DELAY: Duration = Duration::from_millis(50);
const DEDUPE: &str = "deduplication of a subject that no stream stores";

/// See the module's text.
pub(super) struct Outgoing {
    api: Arc<Api>,
    names: Arc<Names>,
    runtime: Handle,
    inbox_prefix: String,
    queue_max: usize,
    /// Held for deciding and queueing, never across an await; no other lock is taken inside.
    state: Mutex<State>,
    places: Arc<Semaphore>,
    /// How many messages were sent to streams.
    sent: AtomicU64,
    /// Something was queued.
    wake: Notify,
    /// The routes are stale.
    stale: Notify,
    queued: watch::Sender<usize>,
    me: Weak<Self>,
}

struct State {
    known: Known,
    queue: VecDeque<Queued>,
    /// Of the messages in `queue`, and of those that the task is sending.
    bytes: QueueBytes,
    /// How many messages of each subject wait or are being sent by the task.
    busy: HashMap<Subject, usize, foldhash::fast::RandomState>,
}

/// One publish.
#[derive(Clone)]
struct Job {
    message: Message,
    dedupe_id: Option<String>,
    since: Instant,
    deadline: Instant,
    /// The number under which it was sent to a stream, where nobody was there.
    refused: Option<u64>,
}

struct Queued {
    job: Job,
    step: oneshot::Sender<Step>,
}

/// What became of a queued message.
enum Step {
    Over(Result<Receipt, PublishError>),
    Sent(Sent),
}

/// A message on its way to a stream.
struct Sent {
    awaited: Awaited,
    /// The how-manyth of all that were sent to streams.
    number: u64,
}

/// The confirmation of a stored message, or why there is none.
#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    #[serde(default)]
    error: Option<Refusal>,
}

impl Outgoing {
    pub(super) fn new(api: &Arc<Api>, names: &Arc<Names>, options: &NatsOptions) -> Arc<Self> {
        let state = State {
            known: Known::default(),
            queue: VecDeque::new(),
            bytes: QueueBytes::new(&options.memory, Holding::Bridge),
            busy: HashMap::default(),
        };
        Arc::new_cyclic(|me| Self {
            api: api.clone(),
            names: names.clone(),
            runtime: Handle::current(),
            inbox_prefix: format!("{}.", options.inbox_prefix),
            queue_max: options.max_pending,
            state: Mutex::new(state),
            places: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
            sent: AtomicU64::new(0),
            wake: Notify::new(),
            stale: Notify::new(),
            queued: watch::Sender::new(0),
            me: me.clone(),
        })
    }

    fn link(&self) -> &Arc<Link> {
        &self.api.link
    }

    /// Waits until nothing is queued any more.
    pub(super) async fn emptied(&self) {
        let mut queued = self.queued.subscribe();
        // Fails only when this is gone, and then nothing is queued.
        let _ = queued.wait_for(|queued| *queued == 0).await;
    }

    /// Waits until everything has an outcome.
    pub(super) async fn confirmed_all(&self) {
        self.emptied().await;
        // All places are free when no confirmation is outstanding.
        let _ = self.places.acquire_many(UNDER_WAY_MAX as u32).await;
    }

    /// Messages that have no outcome yet.
    pub(super) fn unfinished(&self) -> usize {
        *self.queued.borrow() + UNDER_WAY_MAX.saturating_sub(self.places.available_permits())
    }

    /// Publishes one message.
    pub(super) fn publish(
        &self,
        message: Message,
        dedupe_id: Option<String>,
        timeout: Duration,
    ) -> Publishing {
        let link = self.link();
        let (size, limit) = (message::payload_bytes(&message), link.client.max_payload());
        if size > limit {
            return Publishing::Ready(Err(PublishError::TooLarge { size, limit }));
        }
        let Some(connection) = link.connection() else {
            return Publishing::Ready(Err(link.not_connected()));
        };
        if message.subject.as_str().starts_with(&self.inbox_prefix) {
            return self.publish_live(connection, message, dedupe_id, timeout);
        }
        let route = {
            let (state, now) = (self.state.lock(), self.api.replies.recently());
            match state.busy.contains_key(&message.subject) {
                true => Route::Unknown,
                false => {
                    if state.known.routes.is_stale(now) {
                        self.stale.notify_one();
                    }
                    state.known.route(&message.subject, now)
                }
            }
        };
        if route == (Route::Known { stored: false }) {
            return self.publish_live(connection, message, dedupe_id, timeout);
        }
        let now = Instant::now();
        let Some(me) = self.me.upgrade() else { return Publishing::Ready(Err(PublishError::Closed)) };
        let job = Job { message, dedupe_id, since: now, deadline: now + timeout, refused: None };
        if route == (Route::Known { stored: true }) {
            match self.send_at_once(connection, &job) {
                Ok(Some(sent)) => return Publishing::Pending(Box::pin(me.confirmed(job, sent))),
                Ok(None) => {}
                Err(error) => return Publishing::Ready(Err(error)),
            }
        }
        match self.enqueue(job.clone(), now) {
            Ok(step) => Publishing::Pending(Box::pin(me.follow(job, step))),
            Err(error) => Publishing::Ready(Err(error)),
        }
    }

    /// On core NATS: nobody stores it.
    fn publish_live(
        &self,
        connection: u64,
        message: Message,
        dedupe_id: Option<String>,
        timeout: Duration,
    ) -> Publishing {
        match dedupe_id {
            Some(_) => Publishing::Ready(Err(unsupported(DEDUPE).into())),
            None => publish::publish_on(self.link(), &self.runtime, connection, message, timeout),
        }
    }

    /// Hands a message that is stored to the library, where there is room for it at once.
    fn send_at_once(&self, connection: u64, job: &Job) -> Result<Option<Sent>, PublishError> {
        let Ok(place) = self.places.clone().try_acquire_owned() else { return Ok(None) };
        let (outbound, sent) = self.prepare(connection, job, place)?;
        let sending = tokio::task::unconstrained(self.link().client.publish_message(outbound));
        match pin!(sending).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Ok(Some(sent)),
            Poll::Ready(Err(error)) => Err(self.refused_here(job, &error)),
            // Nothing has left: it takes its place in the queue instead.
            Poll::Pending => Ok(None),
        }
    }

    fn prepare(
        &self,
        connection: u64,
        job: &Job,
        place: OwnedSemaphorePermit,
    ) -> Result<(OutboundMessage, Sent), PublishError> {
        let encoded = message::encode_stored(&job.message, job.dedupe_id.as_deref());
        let mut outbound =
            encoded.map_err(|header| publish::not_ascii(job.message.subject.clone(), &header))?;
        let asked = outbound.subject.clone();
        let awaited = self.api.replies.expect(asked, connection, job.deadline, Some(place));
        outbound.reply = Some(awaited.reply());
        let number = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
        Ok((outbound, Sent { awaited, number }))
    }

    fn enqueue(&self, job: Job, since: Instant) -> Result<oneshot::Receiver<Step>, PublishError> {
        let (step, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        if state.queue.len() >= self.queue_max {
            return Err(self.not_sent(format!("{} wait already (messaging.max_pending)", self.queue_max)));
        }
        if !state.bytes.take(job.message.size_bytes()) {
            let reason = "there is no memory for what waits (runtime.resources.memory)";
            return Err(self.not_sent(reason.to_owned()));
        }
        *state.busy.entry(job.message.subject.clone()).or_default() += 1;
        state.queue.push_back(Queued { job: Job { since, ..job }, step });
        drop(state);
        self.queued.send_modify(|queued| *queued += 1);
        self.wake.notify_one();
        Ok(receiver)
    }

    /// A message that has certainly not left.
    fn not_sent(&self, reason: String) -> PublishError {
        PublishError::NotConnected { server: self.link().server.clone(), reason }
    }

    /// Follows a queued message to its outcome.
    async fn follow(
        self: Arc<Self>,
        job: Job,
        step: oneshot::Receiver<Step>,
    ) -> Result<Receipt, PublishError> {
        match step.await {
            Ok(Step::Over(outcome)) => outcome,
            Ok(Step::Sent(sent)) => self.confirmed(job, sent).await,
            Err(_) => Err(PublishError::Closed),
        }
    }

    /// Waits for the confirmation. Needs no timer, so that it may be awaited anywhere.
    async fn confirmed(self: Arc<Self>, job: Job, sent: Sent) -> Result<Receipt, PublishError> {
        let Sent { awaited, number } = sent;
        let answer = awaited.answer().await;
        let unknown = || self.link().outcome_unknown(job.since.elapsed());
        let answer = match answer {
            Ok(answer) => answer,
            Err(NoReply::Denied(reason)) => {
                return Err(PublishError::Denied { subject: job.message.subject, reason });
            }
            Err(why) => {
                if why == NoReply::Silent {
                    // The stream may be gone, and others listen: then nobody ever confirms.
                    self.state.lock().known.routes.forget_one(&job.message.subject);
                }
                return Err(unknown());
            }
        };
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            // The stream is gone, or nobody leads it, and nobody else has got the message.
            self.state.lock().known.routes.forget_one(&job.message.subject);
            let job = Job { refused: Some(number), ..job };
            let step = self.enqueue(job.clone(), Instant::now())?;
            return Box::pin(self.follow(job, step)).await;
        }
        // Where it is no confirmation, somebody else answers there: the message may be stored or not.
        let ack: PubAck = serde_json::from_slice(&answer.payload).map_err(|_| unknown())?;
        match ack.error {
            None => Ok(Receipt::Stored {
                stream: self.names.shown(&ack.stream).to_owned(),
                offset: StreamOffset::Sequence(ack.seq),
                duplicate: ack.duplicate,
            }),
            // Too much to do, no leader at the moment, or what else servers fail at: it may be stored after all.
            Some(refusal) if refusal.is_passing() || refusal.code >= 500 => Err(unknown()),
            Some(refusal) => {
                let reason = format!("JetStream did not store it: {}", refusal.description);
                Err(PublishError::Denied { subject: job.message.subject, reason })
            }
        }
    }

    /// The task that empties the queue and keeps the routes fresh. Ends with `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let work = async {
            loop {
                self.wake.notified().await;
                while let Some(queued) = self.next_queued() {
                    self.send(queued).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
            () = self.keep_routes_fresh() => {}
            () = self.give_up_overdue() => {}
        }
        let left: Vec<Queued> = self.state.lock().queue.drain(..).collect();
        for queued in left {
            self.over(queued, Err(PublishError::Closed));
        }
    }

    /// Gives up what has waited in the queue for too long, behind others that wait.
    async fn give_up_overdue(&self) {
        let mut sweep = tokio::time::interval(RETRY_DELAY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = sweep.tick().await;
            let overdue: VecDeque<Queued> = {
                let mut state = self.state.lock();
                if !state.queue.iter().any(|queued| queued.job.deadline <= now) {
                    continue;
                }
                let all = std::mem::take(&mut state.queue);
                let (overdue, rest) = all.into_iter().partition(|queued| queued.job.deadline <= now);
                state.queue = rest;
                overdue
            };
            for queued in overdue {
                self.over(queued, Err(self.not_sent("it waited in vain behind other messages".to_owned())));
            }
        }
    }

    fn next_queued(&self) -> Option<Queued> {
        self.state.lock().queue.pop_front()
    }

    /// The task is done with a message.
    fn over(&self, queued: Queued, step: Result<Step, PublishError>) {
        // Who published it may not wait any more.
        let _ = queued.step.send(step.unwrap_or_else(|error| Step::Over(Err(error))));
        let mut state = self.state.lock();
        state.bytes.give_back(queued.job.message.size_bytes());
        if let Some(count) = state.busy.get_mut(&queued.job.message.subject) {
            *count -= 1;
            if *count == 0 {
                state.busy.remove(&queued.job.message.subject);
            }
        }
        drop(state);
        self.queued.send_modify(|queued| *queued = queued.saturating_sub(1));
    }

    async fn send(&self, queued: Queued) {
        let job = &queued.job;
        let sent = tokio::select! {
            biased;
            sent = tokio::time::timeout_at(job.deadline, self.try_send(job)) => sent.unwrap_or_else(|_| {
                Err(self.not_sent("JetStream did not take it in time".to_owned()))
            }),
            () = self.link().disconnected() => Err(self.link().not_connected()),
        };
        self.over(queued, sent);
    }

    async fn try_send(&self, job: &Job) -> Result<Step, PublishError> {
        let stored = self.learn(job).await?;
        let link = self.link();
        if let Some(number) = job.refused.filter(|_| stored) {
            // Its stream has no leader, or this server has not heard of the leader yet. What was sent after it may be
            // stored meanwhile, and must not stand before it; where nothing was, it is tried again.
            tokio::time::sleep(RETRY_DELAY).await;
            if self.sent.load(Ordering::SeqCst) != number {
                return Err(self.not_sent("no server leads the stream that stores it".to_owned()));
            }
        }
        if !stored {
            let left = job.deadline.saturating_duration_since(Instant::now());
            let connection = link.connection().ok_or_else(|| link.not_connected())?;
            let publishing = self.publish_live(connection, job.message.clone(), job.dedupe_id.clone(), left);
            return Ok(Step::Over(publishing.outcome().await));
        }
        // Never closed: the semaphore lives as long as this.
        let place = self.places.clone().acquire_owned().await.map_err(|_| PublishError::Closed)?;
        let connection = link.connection().ok_or_else(|| link.not_connected())?;
        let (outbound, sent) = self.prepare(connection, job, place)?;
        match link.client.publish_message(outbound).await {
            Ok(()) => Ok(Step::Sent(sent)),
            Err(error) => Err(self.refused_here(job, &error)),
        }
    }

    /// The library does not take a message: what is set on it may make it too large.
    fn refused_here(&self, job: &Job, error: &async_nats::PublishError) -> PublishError {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => PublishError::TooLarge {
                size: message::stored_bytes(&job.message, job.dedupe_id.as_deref()),
                limit: self.link().client.max_payload(),
            },
            PublishErrorKind::InvalidSubject => {
                PublishError::Denied { subject: job.message.subject.clone(), reason: error.to_string() }
            }
            PublishErrorKind::Send => PublishError::Closed,
        }
    }
}
