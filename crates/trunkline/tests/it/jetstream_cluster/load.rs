//! What keeps the cluster busy: publishers that write down what they were told, and readers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use trunkline::backend::nats::NatsBackend;
use trunkline::backend::{
    Backend, LiveEvent, PublishError, PublishOptions, Receipt, Start, SubscribeOptions,
};
use trunkline::redelivery::RetryPolicy;
use trunkline::{Bus, BusOptions, Consumer, Delivered, HandlerError, Key, Message, StreamOffset, Subject};
use trunkline_testkit::NatsCluster;
use trunkline_testkit::history::{Event, History, MessageId, Told};

use super::{PATIENCE, PUBLISH_TIMEOUT, STREAM, again, soon};

/// How much longer than its timeout a publish may take on a busy machine.
const GRACE: Duration = Duration::from_secs(3);
/// The lease of the keyed consumer. A lease passes on when it is over, so this is how long a member may be missed.
const KEYED_ACK_WAIT: Duration = Duration::from_secs(6);
/// Handlers of the keyed consumer that fail, in a hundred.
const FAILING: u8 = 3;

/// Who publishes without the bus, and how long it waits to be told.
const WITNESS: u32 = 1000;
const WITNESS_WAIT: Duration = Duration::from_secs(10);

/// Stand in the history where a fault begins, and where all servers agree again.
pub(super) const FAULT_BEGINS: u32 = u32::MAX;
pub(super) const FAULT_ENDS: u32 = u32::MAX - 1;

/// What all who take part share.
#[derive(Default)]
pub(super) struct Load {
    pub(super) history: History,
    /// Publishers go on until this is set.
    pub(super) over: AtomicBool,
    /// Members go on until this is set.
    pub(super) settled: AtomicBool,
    /// What publishers were told, by kind.
    pub(super) stored: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) refused: AtomicU64,
    /// Messages that were published without the bus.
    witnessed: AtomicU32,
    /// The last outcome of each publisher that was no success, for who has to find out why.
    pub(super) last_failure: Mutex<HashMap<u32, String>>,
    /// What handlers of the keyed consumer began, by key.
    pub(super) begun: Mutex<HashMap<String, Vec<Begun>>>,
    /// What the follower was given, in order.
    pub(super) followed: Mutex<Vec<(StreamOffset, MessageId)>>,
}

/// A delivery that a handler of the keyed consumer was given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    pub(super) offset: StreamOffset,
    pub(super) attempt: u32,
    /// Which of the two buses it is on.
    pub(super) bus: usize,
    /// When, since the load began.
    pub(super) at: Duration,
}

impl std::fmt::Display for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} attempt {} on bus {} at {:?}", self.offset, self.attempt, self.bus, self.at)
    }
}

impl Load {
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// A fault may swallow deliveries that were on their way, which no fetch tells of.
    pub(super) fn note_fault(&self) {
        self.history.record(Event::FetchAbandoned { member: FAULT_BEGINS });
    }

    /// Everything was mended.
    pub(super) fn note_mended(&self) {
        self.history.record(Event::FetchAbandoned { member: FAULT_ENDS });
    }

    fn told(&self, outcome: &Result<Receipt, PublishError>) -> Told {
        let (told, counter) = match outcome {
            Ok(Receipt::Stored { offset, stream, duplicate: false }) if stream == STREAM => {
                (Told::Stored(*offset), &self.stored)
            }
            Err(PublishError::OutcomeUnknown { .. }) => (Told::Unknown, &self.unknown),
            Err(PublishError::NotConnected { .. }) => (Told::Refused, &self.refused),
            other => panic!("a stream keeps it, and nobody provoked {other:?}"),
        };
        counter.fetch_add(1, Ordering::AcqRel);
        told
    }
}

/// Publishes until the load is over, `window` messages at a time, and records what it is told.
pub(super) async fn publish(load: &Load, backend: &NatsBackend, publisher: u32, window: usize, mut rng: Rng) {
    let mut under_way = FuturesUnordered::new();
    let mut number = 0;
    while !load.is_over() || !under_way.is_empty() {
        if !load.is_over() && under_way.len() < window {
            let id = MessageId { publisher, number };
            number += 1;
            let subject: Subject = format!("work.{}", rng.u8(0..4)).parse().expect("a subject");
            load.history.record(Event::Publishing { id, subject: subject.clone() });
            let started = Instant::now();
            let options = PublishOptions { timeout: Some(PUBLISH_TIMEOUT), ..PublishOptions::default() };
            let publishing = backend.publish(Message::new(subject, id.to_payload()), options);
            under_way.push(async move { (id, started, publishing.outcome().await) });
            tokio::time::sleep(Duration::from_millis(rng.u64(5..30))).await;
            if under_way.len() < window && window > 1 {
                continue;
            }
        }
        let Some((id, started, outcome)) = soon("the outcome of a publish", under_way.next()).await else {
            continue;
        };
        let took = started.elapsed();
        assert!(took < PUBLISH_TIMEOUT + GRACE, "{id:?} had no outcome for {took:?}: {outcome:?}");
        let told = load.told(&outcome);
        if let Err(error) = &outcome {
            let mut last = load.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
            last.insert(publisher, format!("number {}: {error:?}", id.number));
        }
        load.history.record(Event::Published { id, told });
    }
}

/// Publishes a message on each server without the bus, and tells whether one of them was stored.
pub(super) async fn publish_elsewise(cluster: &NatsCluster, load: &Load) -> bool {
    let mut stored = false;
    for url in cluster.urls() {
        let options = async_nats::ConnectOptions::new().request_timeout(Some(WITNESS_WAIT));
        // One that was killed takes no connection.
        let Ok(client) = options.connect(url).await else { continue };
        let number = load.witnessed.fetch_add(1, Ordering::AcqRel);
        let id = MessageId { publisher: WITNESS, number };
        let subject: Subject = "work.0".parse().expect("a subject");
        load.history.record(Event::Publishing { id, subject: subject.clone() });
        let answer = client.request(subject.to_string(), id.to_payload().into()).await.ok();
        let ack = answer.and_then(|answer| serde_json::from_slice::<serde_json::Value>(&answer.payload).ok());
        let told = match ack.and_then(|ack| ack["seq"].as_u64()) {
            Some(sequence) => Told::Stored(StreamOffset::Sequence(sequence)),
            None => Told::Unknown,
        };
        load.history.record(Event::Published { id, told });
        stored |= told != Told::Unknown;
    }
    stored
}

/// Two buses that share a consumer ordered by subject, whose handlers fail now and then.
pub(super) async fn handle_by_key(
    load: &Arc<Load>,
    number: usize,
    backend: NatsBackend,
    rng: &mut Rng,
) -> (Bus, Consumer) {
    // So many tries that bad luck alone kills no message.
    let retry = RetryPolicy { max_deliver: 1000, backoff: vec![Duration::from_millis(20)] };
    let options = BusOptions { retry, ack_wait: KEYED_ACK_WAIT, ..BusOptions::default() };
    let bus = Bus::with_backend(Arc::new(backend), options);
    let stream = bus.stream(STREAM).expect("a backend with streams");
    let builder = stream.consumer("keyed").expect("a valid name").start(Start::Beginning).concurrency(8);
    let builder = builder.ordered_by(Key::with(|received| Some(received.subject().to_string())));
    let (load, rng) = (load.clone(), Arc::new(Mutex::new(rng.fork())));
    let spawned = builder.spawn(move |delivered: Delivered| {
        let (load, dice) = (load.clone(), rng.lock().unwrap_or_else(PoisonError::into_inner).u8(0..100));
        let id = id_of(delivered.received().message());
        let offset = delivered.offset().expect("it is stored");
        let mut begun = load.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Begun { offset, attempt: delivered.attempt(), bus: number, at: load.history.elapsed() };
        begun.entry(delivered.subject().to_string()).or_default().push(now);
        drop(begun);
        async move {
            if dice < FAILING {
                return Err(HandlerError::new("bad luck"));
            }
            load.history.record(Event::Succeeded { id });
            Ok(())
        }
    });
    let consumer = soon("a keyed consumer", spawned).await.expect("joining on a live connection");
    (bus, consumer)
}

/// Follows the stream from its beginning until the load is over and this offset was reached. Nothing may be missing.
pub(super) async fn follow(load: &Load, backend: &NatsBackend, last: impl Fn() -> Option<StreamOffset>) {
    let pattern: trunkline::Pattern = "work.>".parse().expect("a pattern");
    let options = SubscribeOptions { start: Some(Start::Beginning), ..SubscribeOptions::default() };
    let mut source =
        soon("a subscription", backend.subscribe(pattern.clone(), options)).await.expect("a stream");
    load.history.record(Event::Subscribed { reader: 0, pattern, group: None });
    let mut events = Vec::new();
    loop {
        let polling = std::future::poll_fn(|cx| source.poll_batch(cx, 64, &mut events));
        // Looks now and then whether anything is left to come.
        let _ = tokio::time::timeout(Duration::from_millis(100), polling).await;
        for event in events.drain(..) {
            match event {
                LiveEvent::Message { message, offset } => {
                    let (id, offset) = (id_of(&message), offset.expect("it is stored"));
                    load.history.record(Event::Received { reader: 0, id });
                    let mut followed = load.followed.lock().unwrap_or_else(PoisonError::into_inner);
                    followed.push((offset, id));
                }
                LiveEvent::Gap(gap) => panic!("the stream keeps everything, yet there is {gap:?}"),
            }
        }
        let newest = load.followed.lock().unwrap_or_else(PoisonError::into_inner).last().map(|last| last.0);
        if last().is_some_and(|last| newest >= Some(last)) {
            return;
        }
    }
}

pub(super) fn id_of(message: &Message) -> MessageId {
    MessageId::from_payload(&message.payload).unwrap_or_else(|| panic!("nobody published {message:?}"))
}

/// The offset of the last message of the stream.
pub(super) async fn last_offset(backend: &NatsBackend) -> StreamOffset {
    let all = again("the list of streams", async || super::streams(backend).list().await).await;
    let info = all.into_iter().find(|info| info.config.name == STREAM).expect("it is there");
    info.last.expect("something was stored")
}

/// Waits until this many more messages have been stored.
pub(super) async fn wait_for_stored(load: &Load, more: u64) {
    let wanted = load.stored.load(Ordering::Acquire) + more;
    let since = Instant::now();
    while load.stored.load(Ordering::Acquire) < wanted {
        assert!(since.elapsed() < PATIENCE, "nothing is stored any more: {:#?}", load.last_failure);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until publishers were told so often that it was not stored, or that nobody knows.
pub(super) async fn wait_for_failed(load: &Load, more: u64) {
    let failed = || load.unknown.load(Ordering::Acquire) + load.refused.load(Ordering::Acquire);
    let wanted = failed() + more;
    let since = Instant::now();
    while failed() < wanted {
        assert!(since.elapsed() < PATIENCE, "publishers wait for their outcomes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
