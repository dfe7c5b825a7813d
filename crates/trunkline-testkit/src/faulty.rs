//! A backend that fails at its boundary, by dice: what the bus above it must live with.
//!
//! It never fails in a way that a real connection could not: a refused publish was not published, an unknown
//! outcome may have been either, a settlement may be lost on its way there or on its way back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use trunkline::backend::{
    AckToken, Backend, Capabilities, ConsumeError, ConsumerConfig, ConsumerInfo, DrainError, Fetched, Fut,
    Lease, LiveSource, Member, PublishError, PublishOptions, Publishing, ReadPage, ReadRequest, Settle,
    Settled, StreamConfig, StreamError, StreamInfo, Streams, SubscribeError, SubscribeOptions, Unsupported,
};
use trunkline::status::BackendStatus;
use trunkline::{Message, Pattern, StreamOffset, Subject};

/// How often each fault happens, between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FaultRates {
    /// A publish answers `NotConnected` and is not published.
    pub publish_refused: f64,
    /// A publish answers `OutcomeUnknown`; half of these were published.
    pub publish_unknown: f64,
    /// A fetch answers `NotConnected`; half of these lose what they had been given.
    pub fetch: f64,
    /// A settlement answers `NotConnected`; half of these had counted.
    pub settle: f64,
    /// A renewal of a keyed consumer's lease answers `NotConnected`.
    pub lease: f64,
    /// A call takes some milliseconds longer.
    pub delay: f64,
}

/// Faults shared by everything made from one backend.
#[derive(Debug)]
struct Dice {
    rates: FaultRates,
    active: AtomicBool,
    injected: AtomicU64,
    /// Drawn from for one number at a time.
    rng: Mutex<fastrand::Rng>,
}

impl Dice {
    fn draw<T>(&self, with: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        with(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a fault of this rate happens now.
    fn strikes(&self, rate: f64) -> bool {
        let strikes = self.active.load(Ordering::Relaxed) && self.draw(|rng| rng.f64() < rate);
        if strikes {
            self.injected.fetch_add(1, Ordering::Relaxed);
        }
        strikes
    }

    fn coin(&self) -> bool {
        self.draw(fastrand::Rng::bool)
    }

    async fn delay(&self) {
        if self.strikes(self.rates.delay) {
            tokio::time::sleep(Duration::from_millis(self.draw(|rng| rng.u64(1..10)))).await;
        }
    }
}

const SERVER: &str = "a connection that fails by dice";
const REASON: &str = "injected fault";

fn publish_refused() -> PublishError {
    PublishError::NotConnected { server: SERVER.to_owned(), reason: REASON.to_owned() }
}

fn consume_refused() -> ConsumeError {
    ConsumeError::NotConnected { server: SERVER.to_owned(), reason: REASON.to_owned() }
}

/// Another backend, with faults.
pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    dice: Arc<Dice>,
}

impl FaultyBackend {
    /// Wraps a backend. The same seed draws the same numbers, in the order in which calls are made.
    pub fn new(inner: Arc<dyn Backend>, rates: FaultRates, seed: u64) -> Self {
        let rng = Mutex::new(fastrand::Rng::with_seed(seed));
        let dice = Dice { rates, active: AtomicBool::new(true), injected: AtomicU64::new(0), rng };
        Self { inner, dice: Arc::new(dice) }
    }

    /// From now on nothing fails any more.
    pub fn calm(&self) {
        self.dice.active.store(false, Ordering::Relaxed);
    }

    /// From now on everything fails as the rates say, after a calm.
    pub fn rage(&self) {
        self.dice.active.store(true, Ordering::Relaxed);
    }

    /// How many faults there were.
    pub fn injected(&self) -> u64 {
        self.dice.injected.load(Ordering::Relaxed)
    }

    fn inner_streams(&self) -> Result<&dyn Streams, StreamError> {
        self.inner.streams().map_err(StreamError::Unsupported)
    }
}

impl Backend for FaultyBackend {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn status(&self) -> watch::Receiver<BackendStatus> {
        self.inner.status()
    }

    fn new_inbox(&self) -> Subject {
        self.inner.new_inbox()
    }

    fn publish(&self, m: Message, o: PublishOptions) -> Publishing {
        if self.dice.strikes(self.dice.rates.publish_refused) {
            return Publishing::Ready(Err(publish_refused()));
        }
        let unknown = self.dice.strikes(self.dice.rates.publish_unknown);
        let lost = || PublishError::OutcomeUnknown { server: SERVER.to_owned(), waited: Duration::ZERO };
        if unknown && self.dice.coin() {
            return Publishing::Ready(Err(lost()));
        }
        let (outcome, dice) = (self.inner.publish(m, o), self.dice.clone());
        Publishing::Pending(Box::pin(async move {
            dice.delay().await;
            let outcome = outcome.outcome().await;
            if unknown { Err(lost()) } else { outcome }
        }))
    }

    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        self.inner.flush()
    }

    fn subscribe(
        &self,
        p: Pattern,
        o: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        Box::pin(async move {
            self.dice.delay().await;
            self.inner.subscribe(p, o).await
        })
    }

    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        self.inner.streams().map(|_| self as &dyn Streams)
    }

    fn drain(&self, by: Instant) -> Fut<'_, Result<(), DrainError>> {
        self.inner.drain(by)
    }
}

impl Streams for FaultyBackend {
    fn ensure(&self, config: StreamConfig) -> Fut<'_, Result<StreamInfo, StreamError>> {
        Box::pin(async move { self.inner_streams()?.ensure(config).await })
    }

    fn list(&self) -> Fut<'_, Result<Vec<StreamInfo>, StreamError>> {
        Box::pin(async move { self.inner_streams()?.list().await })
    }

    fn remove(&self, stream: &str) -> Fut<'_, Result<bool, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.inner_streams()?.remove(&stream).await })
    }

    fn read(&self, stream: &str, request: ReadRequest) -> Fut<'_, Result<ReadPage, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.inner_streams()?.read(&stream, request).await })
    }

    fn delete(&self, stream: &str, offsets: Vec<StreamOffset>) -> Fut<'_, Result<u64, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.inner_streams()?.delete(&stream, offsets).await })
    }

    fn join(&self, stream: &str, config: ConsumerConfig) -> Fut<'_, Result<Arc<dyn Member>, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move {
            let inner = self.inner_streams()?.join(&stream, config).await?;
            let member: Arc<dyn Member> = Arc::new(FaultyMember { inner, dice: self.dice.clone() });
            Ok(member)
        })
    }

    fn consumer_info(
        &self,
        stream: &str,
        consumer: &str,
    ) -> Fut<'_, Result<Option<ConsumerInfo>, StreamError>> {
        let (stream, consumer) = (stream.to_owned(), consumer.to_owned());
        Box::pin(async move { self.inner_streams()?.consumer_info(&stream, &consumer).await })
    }

    fn remove_consumer(&self, stream: &str, consumer: &str) -> Fut<'_, Result<bool, StreamError>> {
        let (stream, consumer) = (stream.to_owned(), consumer.to_owned());
        Box::pin(async move { self.inner_streams()?.remove_consumer(&stream, &consumer).await })
    }
}

/// A member whose calls fail by the same dice.
struct FaultyMember {
    inner: Arc<dyn Member>,
    dice: Arc<Dice>,
}

impl Member for FaultyMember {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn fetch(&self, max: usize, wait: Duration) -> Fut<'_, Result<Fetched, ConsumeError>> {
        Box::pin(async move {
            self.dice.delay().await;
            let fails = self.dice.strikes(self.dice.rates.fetch);
            if fails && self.dice.coin() {
                return Err(consume_refused());
            }
            // What was fetched on a connection that then breaks is out until its lease ends.
            let fetched = self.inner.fetch(max, wait).await;
            if fails { Err(consume_refused()) } else { fetched }
        })
    }

    fn settle(&self, batch: Vec<(AckToken, Settle)>) -> Fut<'_, Result<Vec<Settled>, ConsumeError>> {
        Box::pin(async move {
            self.dice.delay().await;
            let fails = self.dice.strikes(self.dice.rates.settle);
            if fails && self.dice.coin() {
                return Err(consume_refused());
            }
            let settled = self.inner.settle(batch).await;
            if fails { Err(consume_refused()) } else { settled }
        })
    }

    fn lease(&self, ttl: Duration) -> Fut<'_, Result<Lease, ConsumeError>> {
        Box::pin(async move {
            match self.dice.strikes(self.dice.rates.lease) {
                true => Err(consume_refused()),
                false => self.inner.lease(ttl).await,
            }
        })
    }

    fn leave(&self) -> Fut<'_, Result<(), ConsumeError>> {
        self.inner.leave()
    }
}
