//! The task of one member of a consumer: fetches what may be worked on, starts the work, keeps leases alive, settles.
//!
//! One task decides everything, so that there is nothing to lock. It never waits for one thing alone: fetch, settlement,
//! lease of the key order, handlers and the clock are awaited together, each in its own way.

mod fetch;
mod leases;

use std::future::{Future, pending};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::Service;
use trunkline_core::StreamOffset;

use self::leases::lose;
use super::Key;
use super::backoff::Backoff;
use super::delivered::Delivered;
use super::keyed::Keyed;
use super::lease::{KeyLease, LeaseEvent};
use super::settle::{Settlements, Settling};
use super::work::Rules;
use crate::backend::{AckToken, ConsumeError, Delivery, Fetched, Member, Settle, Settled};
use crate::bus::handler::{BoxError, HandlerError, panic_text};
use crate::bus::received::Received;
use crate::bus::spans::{Hop, Operation};
use crate::telemetry::Telemetry;

/// Longest wait for the last settlements and for leaving, when the consumer was told to stop.
const FAREWELL: Duration = Duration::from_secs(2);

/// Bounds of one member.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    pub(super) concurrency: usize,
    pub(super) max_parked: usize,
    pub(super) ack_wait: Duration,
}

/// A delivery that waits until its key is free.
struct Parked {
    delivery: Delivery,
    received: Received,
    renewed: Instant,
    /// Its lease is lost. It keeps its place until it comes again, so that nothing of its key overtakes it.
    lost: bool,
}

/// A delivery at work.
struct Running {
    token: AckToken,
    key: Option<String>,
    cancel: AbortHandle,
    renewed: Instant,
    /// Its lease is lost: it was cancelled, and must not be settled.
    lost: bool,
    /// Its span, where spans are made.
    hop: Option<Hop>,
}

/// A fetch under way: when it began, how much it asked for, and what it brings.
type Fetching = Pin<Box<dyn Future<Output = (Instant, usize, Result<Fetched, ConsumeError>)> + Send>>;

pub(super) struct Engine<S> {
    rules: Arc<Rules>,
    service: S,
    member: Arc<dyn Member>,
    bounds: Bounds,
    key: Option<Key>,
    lease: Option<KeyLease>,
    keyed: Keyed<StreamOffset, Parked, Instant>,
    /// The handlers. They end by themselves or are aborted, and are joined before the engine ends.
    handlers: JoinSet<Settle>,
    running: HashMap<Id, Running, foldhash::fast::RandomState>,
    settlements: Settlements,
    fetching: Option<Fetching>,
    /// The latest fetch brought as much as it asked for.
    backlog: bool,
    /// Until when a fetch waits for more room.
    gathers_until: Option<Instant>,
    /// After a failed fetch.
    fetch_backoff: Backoff,
    /// Until when nothing is fetched past the bound on parked deliveries, because what came was not what is waited for.
    crowded_until: Option<Instant>,
    /// Nothing new is started any more.
    stopping: bool,
    telemetry: Telemetry,
}

impl<S> Engine<S>
where
    S: Service<Delivered, Response = ()> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    pub(super) fn new(
        rules: Arc<Rules>,
        service: S,
        member: Arc<dyn Member>,
        bounds: Bounds,
        key: Option<Key>,
    ) -> Self {
        let telemetry = rules.bus.telemetry().clone();
        Self {
            lease: key.is_some().then(|| KeyLease::new(member.clone(), bounds.ack_wait)),
            keyed: Keyed::new(bounds.concurrency),
            handlers: JoinSet::new(),
            running: HashMap::default(),
            settlements: Settlements::new(member.clone()),
            fetching: None,
            backlog: false,
            gathers_until: None,
            fetch_backoff: Backoff::default(),
            crowded_until: None,
            stopping: false,
            rules,
            service,
            member,
            bounds,
            key,
            telemetry,
        }
    }

    /// Works until `stop` (which lets handlers finish), `kill` (which cancels them), or until the consumer is gone.
    pub(super) async fn run(
        mut self,
        stop: CancellationToken,
        kill: CancellationToken,
    ) -> Result<(), ConsumeError> {
        let draining = self.rules.bus.inner().draining.clone();
        let mut tick = interval((self.bounds.ack_wait / 6).max(Duration::from_millis(2)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            self.start_parked();
            self.start_fetch();
            self.settlements.start();
            if self.stopping && self.handlers.is_empty() && self.settlements.is_empty() {
                break Ok(());
            }
            let fetch_paused = self.fetch_backoff.until();
            let settle_paused = self.settlements.paused_until();
            let redelivery_due = self.redelivery_due();
            let gathers_until = self.gathers_until;
            // Biased, so that leases are renewed under whatever load. Nothing below can starve what follows it: a fetch
            // needs free handlers, a settlement ended ones.
            tokio::select! {
                biased;
                () = kill.cancelled() => break Ok(()),
                () = stop.cancelled(), if !self.stopping => self.stop(),
                () = draining.cancelled(), if !self.stopping => self.stop(),
                event = lease_event(&mut self.lease) => match event {
                    LeaseEvent::Held { new } => {
                        // Everything unsettled comes again at once, in order: nothing is waited for from an earlier time.
                        // Otherwise it comes when it is due, and its keys have waited for it all the while.
                        if new {
                            self.keyed.clear();
                            self.fetch_backoff.reset();
                        }
                    }
                    LeaseEvent::Lost => self.lose_everything(),
                    LeaseEvent::Failed(error) => {
                        if let Err(error) = self.retryable(error) {
                            break Err(error);
                        }
                    }
                },
                _ = tick.tick() => self.tick(),
                (batch, result) = self.settlements.next() => {
                    if let Err(error) = self.settled(batch, result) {
                        break Err(error);
                    }
                }
                (began, asked, fetched) = under_way(&mut self.fetching) => {
                    self.fetching = None;
                    if let Err(error) = self.fetched(began, asked, fetched) {
                        break Err(error);
                    }
                }
                Some(ended) = self.handlers.join_next_with_id(), if !self.handlers.is_empty() => {
                    self.ended(ended);
                    // Whatever else has ended by now, or ends at once when it has its turn, is settled in the same batch,
                    // and makes room for a larger fetch.
                    yield_now().await;
                    while let Some(ended) = self.handlers.try_join_next_with_id() {
                        self.ended(ended);
                    }
                }
                () = sleep_until_some(fetch_paused), if fetch_paused.is_some() => self.fetch_backoff.resume(),
                () = sleep_until_some(settle_paused), if settle_paused.is_some() => self.settlements.resume(),
                // The fetch is started above.
                () = sleep_until_some(redelivery_due), if redelivery_due.is_some() => {}
                () = sleep_until_some(gathers_until), if gathers_until.is_some() => {}
            }
        };
        self.farewell().await;
        result
    }

    /// Starts nothing more. What is parked goes back to the others when the member leaves.
    fn stop(&mut self) {
        self.stopping = true;
        self.fetching = None;
        self.gathers_until = None;
        self.keyed.clear();
    }

    /// Cancels what is left, settles what is done, and leaves.
    async fn farewell(&mut self) {
        self.fetching = None;
        self.handlers.abort_all();
        while let Some(ended) = self.handlers.join_next_with_id().await {
            self.ended(ended);
        }
        let goodbye = async {
            // One try: what is not settled now comes again, to whoever has the consumer then.
            self.settlements.resume();
            while self.settlements.start() {
                let (_, result) = self.settlements.next().await;
                if let Err(error) = result {
                    tracing::debug!(%error, "last settlements not made");
                    break;
                }
            }
            self.member.leave().await
        };
        match tokio::time::timeout(FAREWELL, goodbye).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "member did not leave in good order"),
            Err(_) => tracing::debug!("member did not leave in time"),
        }
    }

    /// Starts a delivery that has just come, or parks it until its key is free.
    fn take(&mut self, delivery: Delivery, now: Instant) {
        let received = Received::new(delivery.message.clone(), Some(delivery.offset));
        let offset = delivery.offset;
        if delivery.attempt > 1 {
            // It was given out again, so the lease of the one at work, if there is one, is lost.
            for running in self.running.values_mut().filter(|running| running.token.offset == offset) {
                lose(running, &self.telemetry);
            }
        }
        // The function is the application's; what it panics on must not take the whole consumer down.
        let key = self.key.as_ref().map(|key| catch_unwind(AssertUnwindSafe(|| key.of(&received))));
        match key {
            None | Some(Ok(None)) => self.start(delivery, received, None, now),
            Some(Ok(Some(key))) => {
                let parked = Parked { delivery, received, renewed: now, lost: false };
                self.keyed.park(&key, offset, parked);
            }
            Some(Err(panic)) => {
                let error = HandlerError::new(format!("key function panicked: {}", panic_text(&*panic)));
                let token = delivery.token.clone();
                let work = self.rules.clone().give_up(delivery, received, error);
                self.spawn(work, token, None, now, None);
            }
        }
    }

    fn start_parked(&mut self) {
        if self.stopping || self.lease.as_ref().is_some_and(|lease| !lease.is_held()) {
            return;
        }
        while let Some((key, offset, parked)) = self.keyed.start_next() {
            if parked.lost || parked.renewed.elapsed() >= self.bounds.ack_wait {
                self.keyed.ended();
                self.wait_for(Some(key), offset, Duration::ZERO);
            } else {
                self.start(parked.delivery, parked.received, Some(key), parked.renewed);
            }
        }
    }

    /// Starts the handler of a delivery whose lease was last renewed at `renewed`.
    fn start(&mut self, delivery: Delivery, received: Received, key: Option<String>, renewed: Instant) {
        let token = delivery.token.clone();
        let received = self.rules.begin(Operation::Process, &delivery, received);
        let hop = received.hop().cloned();
        let work = self.rules.clone().work(delivery, received, self.service.clone());
        self.spawn(work, token, key, renewed, hop);
    }

    fn spawn(
        &mut self,
        work: impl Future<Output = Settle> + Send + 'static,
        token: AckToken,
        key: Option<String>,
        renewed: Instant,
        hop: Option<Hop>,
    ) {
        let cancel = self.handlers.spawn(work);
        self.running.insert(cancel.id(), Running { token, key, cancel, renewed, lost: false, hop });
    }

    /// Settles what a handler's end calls for.
    fn ended(&mut self, ended: Result<(Id, Settle), JoinError>) {
        let (id, settle) = match ended {
            Ok((id, settle)) => (id, Some(settle)),
            Err(error) => {
                if !error.is_cancelled() {
                    tracing::error!(%error, "work on a delivery broke off");
                }
                (error.id(), None)
            }
        };
        let Some(running) = self.running.remove(&id) else { return };
        if running.key.is_some() {
            self.keyed.ended();
        }
        match settle {
            Some(settle) if !running.lost => {
                let span = running.hop.and_then(|hop| hop.settle(settle));
                self.settlements.push(Settling { token: running.token, settle, key: running.key, span });
            }
            // It comes again: to whoever holds its lease now, or after it, or when this member has left.
            _ => self.wait_for(running.key, running.token.offset, Duration::ZERO),
        }
    }

    fn settled(
        &mut self,
        batch: Vec<Settling>,
        result: Result<Vec<Settled>, ConsumeError>,
    ) -> Result<(), ConsumeError> {
        let outcomes = match result {
            Ok(outcomes) => outcomes,
            Err(error) => {
                self.settlements.put_back(batch);
                return self.retryable(error);
            }
        };
        // An answer that is missing counts as lost: the message comes again.
        let outcomes = outcomes.into_iter().chain(std::iter::repeat(Settled::LeaseLost));
        for (Settling { token, settle, key, span }, outcome) in batch.into_iter().zip(outcomes) {
            self.telemetry.settled(settle, outcome);
            if let Some(span) = span {
                span.settled(outcome);
            }
            match (settle, outcome) {
                (Settle::Progress, outcome) => self.renewed(&token, key.as_deref(), outcome),
                (Settle::Ack | Settle::Term, Settled::Done) => {
                    if let Some(key) = key {
                        self.keyed.settled(&key, token.offset);
                    }
                }
                (Settle::Nak(delay), Settled::Done) => self.wait_for(key, token.offset, delay),
                (_, Settled::LeaseLost) => {
                    self.telemetry.leases_lost.inc();
                    self.wait_for(key, token.offset, Duration::ZERO);
                }
            }
        }
        Ok(())
    }

    /// Keeps a key blocked until its message has come again.
    fn wait_for(&mut self, key: Option<String>, offset: StreamOffset, delay: Duration) {
        if let Some(key) = key {
            self.keyed.wait_for(&key, offset, Instant::now() + delay + self.bounds.ack_wait);
        }
    }

    fn retryable(&self, error: ConsumeError) -> Result<(), ConsumeError> {
        self.telemetry.consume_errors.inc();
        if !error.is_retryable() {
            return Err(error);
        }
        tracing::warn!(stream = self.rules.stream, consumer = self.rules.consumer, %error, "trying again");
        Ok(())
    }
}

async fn under_way<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn lease_event(lease: &mut Option<KeyLease>) -> LeaseEvent {
    match lease {
        Some(lease) => lease.next().await,
        None => pending().await,
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
