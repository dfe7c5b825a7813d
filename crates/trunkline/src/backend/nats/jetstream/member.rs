//! Members of durable consumers: what they hold, settling it, leaving.
//!
//! The server settles whatever is acknowledged, also by a member whose lease is over. So each member keeps what it was
//! given, and until when it may settle it, and refuses by itself what comes too late. A lease counts from when the
//! delivery was asked for, which was before the server made it, and ends a tenth of `ack_wait` early, which is for the
//! settlement to get there in time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::JetStream;
use super::api::{Failure, Sent};
use super::bucket::HEARTBEAT;
use super::consumers::State;
use super::lease::LeaseState;
use super::recall::Watch;
use crate::backend::{AckToken, ConsumeError, ConsumerConfig, Fetched, Fut, Lease, Member, Settle, Settled};

/// A member of a consumer on JetStream.
pub(super) struct NatsMember {
    pub(super) jetstream: Arc<JetStream>,
    pub(super) stream: String,
    /// The stream's name on the server.
    pub(super) on_server: String,
    pub(super) config: ConsumerConfig,
    name: String,
    /// What this member was given and has not settled. Held for map operations, never across an await; no other lock is
    /// taken inside.
    pub(super) held: Mutex<BTreeMap<u64, Held>>,
    /// How far this member has seen the consumer come. Held as `held` is.
    pub(super) progress: Mutex<Progress>,
    /// Whether what comes of a keyed consumer is in order. Held as `held` is.
    pub(super) watch: Mutex<Watch>,
    /// Taken for one change of the lease, across the requests it takes: changes do not overlap.
    pub(super) leasing: tokio::sync::Mutex<LeaseState>,
    /// Until when this member has the lease of the consumer, by its own clock.
    pub(super) leased: watch::Sender<Option<Instant>>,
    /// Deliveries of a keyed consumer may have been lost on their way to this member.
    pub(super) lost_track: AtomicBool,
    /// A fetch of a keyed consumer was dropped: the next one must lose track first.
    pub(super) dropped_fetch: AtomicBool,
    pub(super) left: CancellationToken,
    /// Tasks that hand back what fetches were given after they were dropped. Each ends by itself within a few
    /// `publish_timeout`s, leaving waits for them.
    pub(super) handing_back: TaskTracker,
    /// Keeps the member listed; ends when it is dropped or leaves.
    presence: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// A delivery that is not settled.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) attempt: u32,
    pub(super) until: Instant,
    /// Where to settle it.
    pub(super) ack: async_nats::Subject,
}

/// A settlement that is under way.
struct Settling {
    asked: Instant,
    taken: Held,
    /// Whether the server was told.
    told: Result<Sent, Failure>,
}

/// The newest delivery that this member knows of.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) consumer_seq: u64,
    /// The newest message that was ever handed out by then, if that is known.
    pub(super) frontier: Option<u64>,
    /// Messages found missing since they were counted last: the first of each row, and the one that follows it.
    pub(super) gaps: Vec<(u64, u64)>,
}

impl NatsMember {
    pub(super) async fn enter(
        jetstream: &Arc<JetStream>,
        stream: &str,
        on_server: String,
        config: ConsumerConfig,
        state: &State,
    ) -> Result<Self, Failure> {
        let name = format!("{}-{:016x}", std::process::id(), fastrand::u64(..));
        jetstream.bucket.enter(stream, &config.name, &name).await?;
        let presence = {
            let (jetstream, stream) = (jetstream.clone(), stream.to_owned());
            let (consumer, name) = (config.name.clone(), name.clone());
            AbortOnDropHandle::new(jetstream.runtime.clone().spawn(async move {
                let mut beat = tokio::time::interval(HEARTBEAT);
                beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
                // The first comes at once, and the member is listed already.
                beat.tick().await;
                while !jetstream.stop.is_cancelled() {
                    beat.tick().await;
                    jetstream.bucket.beat(&stream, &consumer, &name).await;
                }
            }))
        };
        Ok(Self {
            jetstream: jetstream.clone(),
            stream: stream.to_owned(),
            on_server,
            config,
            name,
            held: Mutex::default(),
            progress: Mutex::new(Progress {
                consumer_seq: state.delivered.consumer_seq,
                frontier: Some(state.delivered.stream_seq),
                gaps: Vec::new(),
            }),
            watch: Mutex::default(),
            leasing: tokio::sync::Mutex::default(),
            leased: watch::Sender::new(None),
            lost_track: AtomicBool::new(false),
            dropped_fetch: AtomicBool::new(false),
            left: CancellationToken::new(),
            handing_back: TaskTracker::new(),
            presence: Mutex::new(Some(presence)),
        })
    }

    pub(super) fn gone(&self) -> ConsumeError {
        ConsumeError::Gone { stream: self.stream.clone(), consumer: self.config.name.clone() }
    }

    pub(super) fn failed(&self, failure: Failure) -> ConsumeError {
        self.jetstream.api.consume_error(&self.stream, &self.config.name, failure)
    }

    pub(super) fn check_open(&self) -> Result<(), ConsumeError> {
        match self.left.is_cancelled() || self.jetstream.is_closed() {
            true => Err(ConsumeError::Closed),
            false => Ok(()),
        }
    }

    /// Until when this member may be given messages and settle them; `None` when another one may, or nobody.
    pub(super) fn leased_until(&self) -> Option<Instant> {
        self.leased.borrow().filter(|until| Instant::now() < *until)
    }

    /// Of a keyed consumer nothing may be handed out past a delivery that got lost on its way here. So this member is not
    /// the active one until it asks for the lease again, and then everything unsettled is called back.
    pub(super) fn lose_track(&self) {
        if self.config.keyed {
            self.lost_track.store(true, Ordering::SeqCst);
            self.leased.send_replace(None);
        }
    }

    /// How long a delivery may stay unsettled by this member's clock.
    pub(super) fn lease_time(&self) -> Duration {
        self.config.ack_wait - self.config.ack_wait / 10
    }

    /// Takes a delivery out of what is held, if it may still be settled.
    fn take(&self, token: &AckToken, settle: Settle, now: Instant) -> Option<Held> {
        let sequence = token.offset.sequence()?;
        if self.config.keyed && self.leased_until().is_none() {
            return None;
        }
        let mut held = self.held.lock();
        match held.get_mut(&sequence) {
            Some(found) if found.attempt == token.attempt && found.until > now => {
                if settle == Settle::Progress {
                    return Some(found.clone());
                }
            }
            _ => return None,
        }
        held.remove(&sequence)
    }

    /// Tells the server about one delivery, if it may still be settled.
    async fn begin_settling(&self, token: &AckToken, settle: Settle, by: Instant) -> Option<Settling> {
        let asked = Instant::now();
        let taken = self.take(token, settle, asked)?;
        let payload = match settle {
            Settle::Ack => Bytes::from_static(b"+ACK"),
            Settle::Term => Bytes::from_static(b"+TERM"),
            Settle::Progress => Bytes::from_static(b"+WPI"),
            Settle::Nak(Duration::ZERO) => Bytes::from_static(b"-NAK"),
            Settle::Nak(delay) => format!("-NAK {{\"delay\": {}}}", super::names::nanos(delay)).into(),
        };
        let told = self.jetstream.api.send(taken.ack.clone(), None, payload, by).await;
        Some(Settling { asked, taken, told })
    }

    /// The server has settled this delivery.
    fn on_settled(&self, token: &AckToken, settle: Settle, asked: Instant) {
        if settle == Settle::Progress
            && let Some(sequence) = token.offset.sequence()
            && let Some(held) = self.held.lock().get_mut(&sequence)
            && held.attempt == token.attempt
        {
            held.until = asked + self.lease_time();
        }
    }

    fn put_back(&self, taken: Vec<(u64, Held)>) {
        let mut held = self.held.lock();
        for (sequence, taken) in taken {
            held.entry(sequence).or_insert(taken);
        }
    }

    /// Settles deliveries, and waits for the server to say so of each. All are under way before the first answer is
    /// waited for; then they are awaited one after the other, which costs one wake-up for many answers.
    async fn settle_batch(&self, batch: Vec<(AckToken, Settle)>) -> Result<Vec<Settled>, ConsumeError> {
        self.check_open()?;
        let by = Instant::now() + self.jetstream.api.link.publish_timeout;
        let mut under_way = Vec::with_capacity(batch.len());
        for (token, settle) in &batch {
            under_way.push(self.begin_settling(token, *settle, by).await);
        }
        let mut settled = Vec::with_capacity(batch.len());
        let (mut finished, mut failed) = (Vec::new(), None);
        for ((token, settle), settling) in batch.iter().zip(under_way) {
            let Some(Settling { asked, taken, told }) = settling else {
                settled.push(Settled::LeaseLost);
                continue;
            };
            let answer = match told {
                Ok(sent) => self.jetstream.api.answer(sent).await,
                Err(failure) => Err(failure),
            };
            match answer {
                Ok(_) => self.on_settled(token, *settle, asked),
                Err(failure) => failed = failed.or(Some(failure)),
            }
            if let (Settle::Ack | Settle::Term, Some(sequence)) = (settle, token.offset.sequence()) {
                finished.push((sequence, taken));
            }
            settled.push(Settled::Done);
        }
        let Some(failure) = failed else { return Ok(settled) };
        let error = self.failed(failure);
        if matches!(error, ConsumeError::NotConnected { .. }) {
            // Nobody is told of those that went well, so they may be settled once more. That does no harm, but for
            // a nak: the message may be somebody else's by then.
            self.put_back(finished);
            // Nobody answers acknowledgements of a consumer that was removed.
            self.check_there().await?;
        }
        Err(error)
    }

    /// Asks whether the consumer is still there.
    pub(super) async fn check_there(&self) -> Result<State, ConsumeError> {
        let state = self.jetstream.consumer_state(&self.on_server, &self.config.name).await;
        state.map_err(|failure| self.failed(failure))?.ok_or_else(|| self.gone())
    }

    async fn leave_now(&self) -> Result<(), ConsumeError> {
        if self.left.is_cancelled() {
            return Ok(());
        }
        self.left.cancel();
        self.presence.lock().take();
        let held = std::mem::take(&mut *self.held.lock());
        let api = &self.jetstream.api;
        let wait = api.link.publish_timeout;
        // In order of their offsets, and each under way before the next: so they are delivered again.
        // Those whose lease is over may be others' by now.
        let now = Instant::now();
        let held = held.into_values().filter(|held| held.until > now);
        let naks = held.map(|held| api.ask(held.ack, None, Bytes::from_static(b"-NAK"), wait));
        self.handing_back.close();
        let (naked, ()) = tokio::join!(join_all(naks), self.handing_back.wait());
        let naked = naked.into_iter().collect::<Result<Vec<_>, _>>();
        let freed = self.free_lease().await;
        let struck = self.jetstream.bucket.strike(&self.stream, &self.config.name, &self.name).await;
        match naked.map(drop).and(freed).and(struck) {
            // A consumer that was removed has nothing to hand back.
            Err(failure) => match self.check_there().await {
                Err(ConsumeError::Gone { .. }) => Ok(()),
                _ => Err(self.failed(failure)),
            },
            Ok(()) => Ok(()),
        }
    }

    pub(super) fn identity(&self) -> &str {
        &self.name
    }
}

impl Member for NatsMember {
    fn name(&self) -> &str {
        &self.name
    }

    fn fetch(&self, max: usize, wait: Duration) -> Fut<'_, Result<Fetched, ConsumeError>> {
        Box::pin(self.fetch_within(max, wait))
    }

    fn settle(&self, batch: Vec<(AckToken, Settle)>) -> Fut<'_, Result<Vec<Settled>, ConsumeError>> {
        Box::pin(self.settle_batch(batch))
    }

    fn lease(&self, ttl: Duration) -> Fut<'_, Result<Lease, ConsumeError>> {
        Box::pin(self.take_lease(ttl))
    }

    fn leave(&self) -> Fut<'_, Result<(), ConsumeError>> {
        Box::pin(self.leave_now())
    }
}
