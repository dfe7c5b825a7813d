//! Random work by many hands, by seed; the history of it has to keep every rule.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use trunkline::backend::{Backend, Delivery, LiveEvent, Member, PublishError, Receipt, Settle};
use trunkline::{Message, Pattern, Subject};

use super::Harness;
use super::probe::{Listener, PATIENCE, consumer, ensure, flush, join, publish, soon, streams, try_publish};
use crate::faulty::{FaultRates, FaultyBackend};
use crate::history::{Answer, Event, Expectations, History, MessageId, Told, Violation, check};
use crate::seeds::seeds;

/// Seeds tried when nobody says how many.
const SEEDS: u64 = 3;
/// The lease of the random consumer: short, so that many are lost.
const ACK_WAIT: Duration = Duration::from_millis(100);

/// Fails with every violation, what happened to the messages that are concerned, and the seed to replay it.
pub(super) fn assert_kept(history: &History, expected: &Expectations, seed: u64) {
    let entries = history.entries();
    let violations = check(&entries, expected);
    if !violations.is_empty() {
        let mut list: Vec<String> = violations.iter().take(20).map(ToString::to_string).collect();
        let concerned: BTreeSet<_> = violations.iter().take(20).filter_map(Violation::offset).collect();
        for offset in concerned {
            list.push(format!("at {offset}:"));
            let about = entries.iter().filter(|entry| entry.event.offset() == Some(offset));
            list.extend(about.map(|entry| format!("  {:?} {:?}", entry.at, entry.event)));
        }
        panic!(
            "seed {seed}: {} of {} events broken rules:\n{}",
            violations.len(),
            entries.len(),
            list.join("\n")
        );
    }
}

/// Runs tasks side by side on the threads of the runtime, and passes on the panic of one that fails.
async fn all(tasks: JoinSet<()>) {
    soon("the end of all work", tasks.join_all()).await;
}

/// The id in a message.
pub(super) fn id_of(message: &Message) -> MessageId {
    MessageId::from_payload(&message.payload).unwrap_or_else(|| panic!("nobody published {message:?}"))
}

/// What a publisher may say after this outcome.
fn told(outcome: &Result<Receipt, PublishError>) -> Told {
    match outcome {
        Ok(Receipt::Stored { offset, .. }) => Told::Stored(*offset),
        Ok(_) => Told::Unknown,
        Err(PublishError::OutcomeUnknown { .. }) => Told::Unknown,
        Err(PublishError::NotConnected { .. }) => Told::Refused,
        Err(other) => panic!("publishing failed in a way nobody provoked: {other:?}"),
    }
}

/// Subscriptions and queue groups that come and go while several publish: nobody misses what was published while
/// it was there, nobody gets anything twice or out of order, groups share.
pub async fn random_fan_out_keeps_every_rule(harness: &Harness) {
    for seed in seeds(SEEDS) {
        let mut rng = Rng::with_seed(seed);
        let fan_out = Arc::new(FanOut {
            // Each seed has subjects of its own: what is still under way of the one before is not mixed in.
            root: format!("{}.fan{seed:x}", harness.root()),
            history: History::new(),
            readers: AtomicU32::new(0),
            publishers: AtomicU32::new(3),
            // On a server a dropped member of a queue group goes on swallowing messages until the server hears of it.
            members_die: !harness.column().has_server(),
            started: Barrier::new(6 + 3),
        });
        let mut tasks = JoinSet::new();
        for _ in 0..6 {
            let (fan_out, backend, rng) = (fan_out.clone(), harness.backend().await, rng.fork());
            tasks.spawn(async move { fan_out.read(backend, rng).await });
        }
        for publisher in 0..3 {
            let (fan_out, backend, rng) = (fan_out.clone(), harness.backend().await, rng.fork());
            tasks.spawn(async move { fan_out.publish(backend, publisher, rng).await });
        }
        all(tasks).await;
        assert_kept(&fan_out.history, &Expectations::default(), seed);
    }
}

/// What those who take part in a random fan-out share.
struct FanOut {
    root: String,
    history: History,
    readers: AtomicU32,
    /// How many still publish.
    publishers: AtomicU32,
    /// Members of queue groups may be dropped without a stop.
    members_die: bool,
    /// Nobody publishes before everybody has subscribed once.
    started: Barrier,
}

impl FanOut {
    /// Publishes to random subjects, flushing now and then: only a flush proves receipt.
    async fn publish(&self, backend: Arc<dyn Backend>, publisher: u32, mut rng: Rng) {
        self.started.wait().await;
        let mut unproven = Vec::new();
        for number in 0..150 {
            let id = MessageId { publisher, number };
            let subject = Subject::new(format!("{}.{}", self.root, rng.u8(0..3))).expect("a valid subject");
            self.history.record(Event::Publishing { id, subject: subject.clone() });
            publish(&*backend, Message::new(subject, id.to_payload())).await;
            unproven.push(id);
            if rng.u8(0..10) == 0 || number == 149 {
                flush(&*backend).await;
                for id in unproven.drain(..) {
                    self.history.record(Event::Published { id, told: Told::Received });
                }
                tokio::task::yield_now().await;
            }
        }
        self.publishers.fetch_sub(1, Ordering::Release);
    }

    /// Subscribes, reads for a while, stops or just drops the subscription, and starts over, until nobody publishes.
    async fn read(&self, backend: Arc<dyn Backend>, mut rng: Rng) {
        let mut first = true;
        while self.publishers.load(Ordering::Acquire) > 0 {
            let reader = self.readers.fetch_add(1, Ordering::Relaxed);
            // One name on overlapping patterns is one group to nats-server and two to others: no name is shared here.
            let (tail, name) = [("*", "star"), (">", "rest"), ("0", "zero"), ("1", "one")][rng.usize(0..4)];
            let pattern = Pattern::new(format!("{}.{tail}", self.root)).expect("a valid pattern");
            let group = rng.bool().then(|| rng.u32(0..2));
            let mut listener = match group {
                Some(group) => Listener::queue(&*backend, pattern.clone(), &format!("{name}{group}")).await,
                None => Listener::plain(&*backend, pattern.clone()).await,
            };
            self.history.record(Event::Subscribed { reader, pattern, group });
            if std::mem::take(&mut first) {
                self.started.wait().await;
            }
            let mut left = rng.u32(1..150);
            while left > 0 && self.publishers.load(Ordering::Acquire) > 0 {
                // Wakes up now and then to see whether anybody still publishes.
                let event = tokio::time::timeout(Duration::from_millis(5), listener.recv()).await;
                let Ok(event) = event else { continue };
                match event.expect("a subscription goes on until it is stopped") {
                    LiveEvent::Message { message, .. } => {
                        self.history.record(Event::Received { reader, id: id_of(&message) });
                    }
                    LiveEvent::Gap(gap) => self.history.record(Event::Missed { reader, count: gap.missed }),
                }
                left -= 1;
            }
            self.history.record(Event::Stopping { reader });
            if rng.u8(0..3) > 0 || group.is_some() && !self.members_die {
                let (rest, gaps) = listener.stop_with_gaps().await;
                for message in rest {
                    self.history.record(Event::Received { reader, id: id_of(&message) });
                }
                for gap in gaps {
                    self.history.record(Event::Missed { reader, count: gap.missed });
                }
                self.history.record(Event::Ended { reader });
            } else {
                // Until it is gone it may be given messages, which are gone with it.
                drop(listener);
                self.history.record(Event::Dropped { reader });
            }
        }
    }
}

/// Members that ack, nak, terminate, dawdle, lose leases, drop fetches, leave and die: nothing is lost, no lease is
/// held twice, nothing comes back that was settled, and everything ends.
pub async fn random_consumer_work_keeps_every_rule(harness: &Harness) {
    for seed in seeds(SEEDS) {
        consume_at_random(harness, seed, FaultRates::default()).await;
    }
}

/// The same while the connection refuses publishes, leaves outcomes unknown, and loses fetches and settlements on
/// either way: what the publisher and the members are told stays true.
pub async fn random_consumer_work_on_a_failing_connection_keeps_every_rule(harness: &Harness) {
    let rates = FaultRates {
        publish_refused: 0.1,
        publish_unknown: 0.1,
        fetch: 0.05,
        settle: 0.1,
        delay: 0.1,
        ..FaultRates::default()
    };
    for seed in seeds(SEEDS) {
        consume_at_random(harness, seed, rates).await;
    }
}

async fn consume_at_random(harness: &Harness, seed: u64, rates: FaultRates) {
    let mut rng = Rng::with_seed(seed);
    let root = format!("work{seed:x}");
    let first = harness.backend().await;
    let chaos = Arc::new(Chaos {
        stream: harness.stream(&root),
        root: format!("{}.{root}", harness.root()),
        history: History::new(),
        members: AtomicU32::new(0),
        publishers: AtomicU32::new(2),
        ack_wait: harness.lease(ACK_WAIT),
    });
    ensure(&*first, &chaos.stream, harness.pattern(&format!("{root}.*"))).await;
    // The consumer is there before anything is published, so that it has to get all of it.
    soon("leave", join(&*first, &chaos.stream, consumer("c", chaos.ack_wait)).await.leave())
        .await
        .expect("a live member");
    let mut tasks = JoinSet::new();
    for hand in 0..6 {
        let backend = FaultyBackend::new(harness.backend().await, rates, rng.u64(..));
        let (chaos, rng) = (chaos.clone(), rng.fork());
        tasks.spawn(async move {
            match hand {
                0 | 1 => chaos.publish(&backend, hand, rng).await,
                _ => chaos.consume(&backend, rng).await,
            }
        });
    }
    all(tasks).await;
    let expected = Expectations {
        ack_wait: Some(chaos.ack_wait),
        repeats_deliveries: harness.repeats_deliveries(),
        ..Expectations::default()
    };
    assert_kept(&chaos.history, &expected, seed);
}

/// What the members of a random consumer share.
struct Chaos {
    stream: String,
    root: String,
    history: History,
    members: AtomicU32,
    /// How many still publish.
    publishers: AtomicU32,
    ack_wait: Duration,
}

impl Chaos {
    /// Publishes to random subjects, and records what it was told.
    async fn publish(&self, backend: &dyn Backend, publisher: u32, mut rng: Rng) {
        for number in 0..60 {
            let id = MessageId { publisher, number };
            let subject = Subject::new(format!("{}.{}", self.root, rng.u8(0..3))).expect("a valid subject");
            self.history.record(Event::Publishing { id, subject: subject.clone() });
            let outcome = try_publish(backend, Message::new(subject, id.to_payload())).await;
            self.history.record(Event::Published { id, told: told(&outcome) });
            if rng.u8(0..8) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        self.publishers.fetch_sub(1, Ordering::Release);
    }

    /// Joins, works for a while, leaves or dies, and starts over, until nothing is left.
    async fn consume(&self, backend: &dyn Backend, mut rng: Rng) {
        while !self.is_done(backend).await {
            let member = self.members.fetch_add(1, Ordering::Relaxed);
            let joined = join(backend, &self.stream, consumer("c", self.ack_wait)).await;
            for _ in 0..rng.u32(1..20) {
                let deliveries = self.fetch(&*joined, member, &mut rng).await;
                for delivery in &deliveries {
                    self.handle(&*joined, member, delivery, &mut rng).await;
                }
                if deliveries.is_empty() && self.is_done(backend).await {
                    break;
                }
            }
            self.history.record(Event::Departing { member });
            if rng.bool() {
                soon("leave", joined.leave()).await.expect("leaving on a live connection");
            }
        }
    }

    /// Whether everything was published, and the backend says that everything is settled; the history tells later
    /// whether it spoke the truth.
    async fn is_done(&self, backend: &dyn Backend) -> bool {
        if self.publishers.load(Ordering::Acquire) > 0 {
            return false;
        }
        let info = soon("info", streams(backend).consumer_info(&self.stream, "c")).await;
        let info = info.expect("the stream is there").expect("the consumer is there");
        info.lag == 0 && info.pending == 0
    }

    async fn fetch(&self, joined: &dyn Member, member: u32, rng: &mut Rng) -> Vec<Delivery> {
        let (max, wait) = (rng.usize(1..8), Duration::from_millis(rng.u64(0..30)));
        // Some fetches are dropped half way.
        let limit = if rng.u8(0..6) == 0 { Duration::from_millis(rng.u64(0..10)) } else { PATIENCE };
        self.history.record(Event::Fetching { member });
        match tokio::time::timeout(limit, joined.fetch(max, wait)).await {
            Ok(Ok(fetched)) => {
                for delivery in &fetched.deliveries {
                    self.history.record(Event::Delivered {
                        member,
                        id: id_of(&delivery.message),
                        offset: delivery.offset,
                        attempt: delivery.attempt,
                    });
                }
                fetched.deliveries
            }
            Ok(Err(error)) => {
                assert!(error.is_retryable(), "fetching failed in a way nobody provoked: {error:?}");
                self.history.record(Event::FetchAbandoned { member });
                Vec::new()
            }
            Err(_) => {
                self.history.record(Event::FetchAbandoned { member });
                Vec::new()
            }
        }
    }

    async fn handle(&self, joined: &dyn Member, member: u32, delivery: &Delivery, rng: &mut Rng) {
        match rng.u8(0..20) {
            0..12 => self.settle(joined, member, delivery, Settle::Ack).await,
            12..15 => {
                let delay = Duration::from_millis(rng.u64(0..30));
                self.settle(joined, member, delivery, Settle::Nak(delay)).await;
            }
            15 => self.settle(joined, member, delivery, Settle::Term).await,
            16 | 17 => {
                self.settle(joined, member, delivery, Settle::Progress).await;
                tokio::task::yield_now().await;
                self.settle(joined, member, delivery, Settle::Ack).await;
            }
            // A slow handler, around the length of its lease, that acknowledges when it is done.
            18 => {
                tokio::time::sleep(self.ack_wait * rng.u32(5..15) / 10).await;
                self.settle(joined, member, delivery, Settle::Ack).await;
            }
            // A handler that never ends.
            _ => {}
        }
    }

    async fn settle(&self, joined: &dyn Member, member: u32, delivery: &Delivery, how: Settle) {
        let (offset, attempt) = (delivery.offset, delivery.attempt);
        self.history.record(Event::Settling { member, offset, attempt, how });
        let answer = match soon("settle", joined.settle(vec![(delivery.token.clone(), how)])).await {
            Ok(answers) => Answer::Known(answers[0]),
            Err(error) => {
                assert!(error.is_retryable(), "settling failed in a way nobody provoked: {error:?}");
                Answer::Unknown
            }
        };
        self.history.record(Event::Settled { member, offset, attempt, how, answer });
    }
}
