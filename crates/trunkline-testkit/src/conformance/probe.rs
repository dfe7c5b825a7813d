//! How properties look at a backend: awaited events with a limit, never a sleep.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use trunkline::backend::{
    Backend, BackendKind, ConsumerConfig, Delivery, Gap, LiveEvent, LiveSource, Member, PublishError,
    PublishOptions, Receipt, Settle, Settled, Start, StreamConfig, Streams, SubscribeOptions,
};
use trunkline::{Message, Pattern, StreamOffset, Subject, Token};

use super::Harness;

/// Longest time anything that must happen may take. Generous: it only ends a test that has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The lease of consumers under test: long against scheduling noise, short against the patience of people.
pub const ACK_WAIT: Duration = Duration::from_millis(200);

/// A lease that never ends within a test, where a redelivery would be a mistake.
pub const LONG_ACK_WAIT: Duration = Duration::from_secs(600);

/// Waits for what must happen.
///
/// # Panics
/// When it did not within [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: did not happen within {PATIENCE:?}"),
    }
}

/// Asserts what a server tells of itself: at once, and soon where several have copies and the one that is asked may hear a
/// moment later of what was confirmed.
pub async fn tells<T, F>(harness: &Harness, expected: T, look: impl Fn() -> F)
where
    T: PartialEq + std::fmt::Debug,
    F: Future<Output = T>,
{
    let give_up = tokio::time::Instant::now() + PATIENCE;
    loop {
        let told = look().await;
        if told == expected || !harness.has_copies() || tokio::time::Instant::now() >= give_up {
            return assert_eq!(told, expected);
        }
        tokio::task::yield_now().await;
    }
}

/// A message whose payload is a number.
pub fn numbered(subject: &Subject, n: u64) -> Message {
    Message::new(subject.clone(), n.to_string())
}

/// The number in a payload.
///
/// # Panics
/// When the payload is none: the message is not one that the suite published.
pub fn number(message: &Message) -> u64 {
    std::str::from_utf8(&message.payload)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("nobody published {message:?}"))
}

/// Publishes and tells the outcome.
pub async fn try_publish(backend: &dyn Backend, message: Message) -> Result<Receipt, PublishError> {
    soon("publish", backend.publish(message, PublishOptions::default()).outcome()).await
}

/// Publishes what must go through.
pub async fn publish(backend: &dyn Backend, message: Message) -> Receipt {
    try_publish(backend, message).await.expect("publishing on a live connection")
}

/// Publishes numbers to a subject, then flushes.
pub async fn publish_numbers(
    backend: &dyn Backend,
    subject: &Subject,
    numbers: impl IntoIterator<Item = u64>,
) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    for n in numbers {
        receipts.push(publish(backend, numbered(subject, n)).await);
    }
    flush(backend).await;
    receipts
}

/// Flushes a live connection.
pub async fn flush(backend: &dyn Backend) {
    soon("flush", backend.flush()).await.expect("flushing a live connection");
}

/// The offset in a receipt of a stored message.
pub fn stored_at(receipt: &Receipt) -> StreamOffset {
    match receipt {
        Receipt::Stored { offset, .. } => *offset,
        other => panic!("a stream matches, so the receipt should be Stored, not {other:?}"),
    }
}

/// A token of the suite's own.
pub fn token(text: &str) -> Token {
    Token::new(text).expect("the suite writes valid tokens")
}

/// The reading end of a subscription.
pub struct Listener {
    source: Box<dyn LiveSource>,
    batch: VecDeque<LiveEvent>,
    /// It leaves a queue group on NATS, where nobody can count what it was given while it left.
    departs_with_gap: bool,
}

impl Listener {
    /// Subscribes.
    pub async fn start(
        backend: &dyn Backend,
        pattern: impl Into<Pattern>,
        options: SubscribeOptions,
    ) -> Self {
        let departs_with_gap = options.queue.is_some() && backend.capabilities().kind == BackendKind::Nats;
        let source = soon("subscribe", backend.subscribe(pattern.into(), options)).await;
        let source = source.expect("subscribing on a live connection");
        Self { source, batch: VecDeque::new(), departs_with_gap }
    }

    /// Subscribes without options.
    pub async fn plain(backend: &dyn Backend, pattern: impl Into<Pattern>) -> Self {
        Self::start(backend, pattern, SubscribeOptions::default()).await
    }

    /// Subscribes as a member of a queue group.
    pub async fn queue(backend: &dyn Backend, pattern: impl Into<Pattern>, queue: &str) -> Self {
        let options = SubscribeOptions { queue: Some(token(queue)), ..SubscribeOptions::default() };
        Self::start(backend, pattern, options).await
    }

    /// Subscribes from a place in the stored past.
    pub async fn from(backend: &dyn Backend, pattern: impl Into<Pattern>, start: Start) -> Self {
        let options = SubscribeOptions { start: Some(start), ..SubscribeOptions::default() };
        Self::start(backend, pattern, options).await
    }

    /// The next event, or `None` at the end; waits as long as it takes. Cancel safe.
    pub async fn recv(&mut self) -> Option<LiveEvent> {
        if self.batch.is_empty() {
            let mut out = Vec::new();
            let source = &mut self.source;
            let count = std::future::poll_fn(|cx| source.poll_batch(cx, 64, &mut out)).await;
            assert_eq!(count, out.len(), "poll_batch says how many events it appended");
            assert!(count <= 64, "poll_batch gives at most what was asked for");
            self.batch.extend(out);
        }
        self.batch.pop_front()
    }

    /// The next event, which must come.
    pub async fn event(&mut self) -> LiveEvent {
        soon("the next event of a subscription", self.recv()).await.expect("the subscription goes on")
    }

    /// The next message and its offset; a gap here is a failure.
    pub async fn stored(&mut self) -> (Arc<Message>, Option<StreamOffset>) {
        match self.event().await {
            LiveEvent::Message { message, offset } => (message, offset),
            LiveEvent::Gap(gap) => panic!("nothing was too slow here, yet there is {gap:?}"),
        }
    }

    /// The next message; a gap here is a failure.
    pub async fn message(&mut self) -> Arc<Message> {
        self.stored().await.0
    }

    /// The next `count` numbers; a gap here is a failure.
    pub async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::with_capacity(count);
        for _ in 0..count {
            numbers.push(number(&*self.message().await));
        }
        numbers
    }

    /// Ends the subscription and gives what had arrived; a gap here is a failure, but for the one of a member that
    /// leaves a queue group on NATS.
    pub async fn stop(self) -> Vec<Arc<Message>> {
        let departs = self.departs_with_gap;
        let (rest, gaps) = self.stop_with_gaps().await;
        let allowed = if departs { vec![Gap { missed: None }] } else { Vec::new() };
        assert!(gaps.is_empty() || gaps == allowed, "nothing was too slow here, yet there is {gaps:?}");
        rest
    }

    /// Ends the subscription and gives what had arrived, and what is missing.
    pub async fn stop_with_gaps(mut self) -> (Vec<Arc<Message>>, Vec<Gap>) {
        soon("stop", self.source.stop()).await.expect("stopping on a live connection");
        let (mut rest, mut gaps) = (Vec::new(), Vec::new());
        while let Some(event) = soon("the end of a stopped subscription", self.recv()).await {
            match event {
                LiveEvent::Message { message, .. } => rest.push(message),
                LiveEvent::Gap(gap) => gaps.push(gap),
            }
        }
        (rest, gaps)
    }

    /// The next gap, passing over messages, of which the numbers are given too.
    pub async fn until_gap(&mut self) -> (Vec<u64>, Gap) {
        let mut before = Vec::new();
        loop {
            match self.event().await {
                LiveEvent::Message { message, .. } => before.push(number(&message)),
                LiveEvent::Gap(gap) => return (before, gap),
            }
        }
    }
}

/// The streams of a backend that has them.
pub fn streams(backend: &dyn Backend) -> &dyn Streams {
    backend.streams().expect("the table says that this backend has streams")
}

/// Creates a stream over `pattern`.
pub async fn ensure(backend: &dyn Backend, name: &str, pattern: Pattern) {
    ensure_config(backend, StreamConfig::new(name, vec![pattern])).await;
}

/// Creates a stream as configured.
pub async fn ensure_config(backend: &dyn Backend, config: StreamConfig) {
    let mut config = config;
    config.replicas = config.replicas.max(1);
    let mut wanted = config.clone();
    let info =
        soon("ensure", streams(backend).ensure(config)).await.expect("a stream that overlaps no other");
    // A backend may bound the bytes of a stream that sets no bound: memory is finite.
    wanted.max_bytes = wanted.max_bytes.or(info.config.max_bytes);
    assert_eq!(info.config, wanted, "ensure answers with the stream as it is now");
}

/// A consumer from the beginning.
pub fn consumer(name: &str, ack_wait: Duration) -> ConsumerConfig {
    let mut config = ConsumerConfig::new(name);
    config.start = Start::Beginning;
    config.ack_wait = ack_wait;
    config
}

/// Joins a consumer.
pub async fn join(backend: &dyn Backend, stream: &str, config: ConsumerConfig) -> Arc<dyn Member> {
    soon("join", streams(backend).join(stream, config))
        .await
        .expect("joining a consumer of a stream that is there")
}

/// Fetches once: between none and `max`.
pub async fn fetch(member: &dyn Member, max: usize, wait: Duration) -> Vec<Delivery> {
    let fetched = soon("fetch", member.fetch(max, wait)).await.expect("fetching on a live connection");
    assert!(fetched.deliveries.len() <= max, "fetch gives at most what was asked for");
    assert_eq!(fetched.missed, 0, "no limit removed anything here");
    fetched.deliveries
}

/// Fetches until `count` deliveries have come.
pub async fn fetch_all(member: &dyn Member, count: usize) -> Vec<Delivery> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut all = Vec::new();
    while all.len() < count {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        assert!(!left.is_zero(), "only {} of {count} deliveries came within {PATIENCE:?}", all.len());
        all.extend(fetch(member, count - all.len(), left.min(Duration::from_secs(1))).await);
    }
    all
}

/// Fetches exactly one delivery.
pub async fn fetch_one(member: &dyn Member) -> Delivery {
    fetch_all(member, 1).await.remove(0)
}

/// Asserts that nothing is handed out while a fetch waits for `wait`.
pub async fn fetch_nothing(member: &dyn Member, wait: Duration, why: &str) {
    let deliveries = fetch(member, 16, wait).await;
    assert!(deliveries.is_empty(), "{why}: {deliveries:?}");
}

/// Settles one delivery.
pub async fn settle(member: &dyn Member, delivery: &Delivery, how: Settle) -> Settled {
    let batch = vec![(delivery.token.clone(), how)];
    let answers = soon("settle", member.settle(batch)).await.expect("settling on a live connection");
    assert_eq!(answers.len(), 1, "settle gives one answer for each");
    answers[0]
}

/// Acknowledges one delivery whose lease is held.
pub async fn ack(member: &dyn Member, delivery: &Delivery) {
    assert_eq!(
        settle(member, delivery, Settle::Ack).await,
        Settled::Done,
        "the lease of {delivery:?} is held"
    );
}

/// The numbers in deliveries.
pub fn delivered_numbers(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(|delivery| number(&delivery.message)).collect()
}
