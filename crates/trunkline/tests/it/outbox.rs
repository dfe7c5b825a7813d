//! The outbox over a backend that fails by dice: nothing is lost, doubled or put out of order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use trunkline::backend::memory::{Hub, HubOptions, MemoryBackend};
use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::{
    Backend, Capabilities, DrainError, Fut, LiveSource, PublishError, PublishOptions, Publishing,
    ReadRequest, Receipt, Start, StreamConfig, Streams, SubscribeError, SubscribeOptions, Unsupported,
};
use trunkline::bus::outbox::OutboxOptions;
use trunkline::status::{BackendState, BackendStatus};
use trunkline::{Bus, BusOptions, Event, Message, Pattern, RequestError, Subject};
use trunkline_testkit::NatsServer;
use trunkline_testkit::faulty::{FaultRates, FaultyBackend};

/// Longer than anything here may take; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A bus with an outbox on a backend that fails as `rates` say, on a hub with a stream of `kept.>`.
struct Fixture {
    bus: Bus,
    backend: Arc<FaultyBackend>,
    hub: Arc<Hub>,
}

impl Fixture {
    async fn new(rates: FaultRates, seed: u64, limits: OutboxOptions) -> Self {
        let hub = Arc::new(Hub::new(HubOptions { max_payload: 1000, ..HubOptions::default() }));
        hub.ensure(StreamConfig::new("kept", vec!["kept.>".parse().unwrap()])).await.unwrap();
        let backend = Arc::new(FaultyBackend::new(Arc::new(MemoryBackend::connect_to(&hub)), rates, seed));
        let options = BusOptions {
            outbox: Some(limits),
            publish_timeout: Duration::from_secs(2),
            ..BusOptions::default()
        };
        Self { bus: Bus::with_backend(backend.clone(), options), backend, hub }
    }

    /// A bus whose server is away until the backend calms down.
    async fn away(limits: OutboxOptions) -> Self {
        Self::new(FaultRates { publish_refused: 1.0, ..FaultRates::default() }, 1, limits).await
    }

    async fn publish(&self, subject: &str, payload: impl ToString) -> Result<Receipt, PublishError> {
        soon(self.bus.publish_message(message(subject, payload))).await
    }

    /// Payloads of all that is stored, in order.
    async fn stored(&self) -> Vec<String> {
        let request = ReadRequest { from: Start::Beginning, filter: None, max: 100_000 };
        let page = self.hub.read("kept", request).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        page.messages.iter().map(|stored| text(&stored.message.payload)).collect()
    }

    fn waiting(&self) -> u64 {
        self.bus.status().outbox.unwrap().messages
    }
}

fn message(subject: &str, payload: impl ToString) -> Message {
    Message::new(subject.parse().unwrap(), payload.to_string())
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

fn numbers(of: std::ops::Range<u32>) -> Vec<String> {
    of.map(|n| n.to_string()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever fails and however often: what was answered `Stored` or `Queued` is stored once, in the order of its
    /// publisher; what was answered with an error is stored at most once.
    #[test]
    fn what_was_queued_is_stored_once_and_in_order(
        seed: u64,
        refused in 0.0..0.3,
        unknown in 0.0..0.3,
        delay in 0.0..0.3,
        publishers in 1..4_u32,
        each in 1..30_u32,
    ) {
        let rates = FaultRates { publish_refused: refused, publish_unknown: unknown, delay, ..FaultRates::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = Fixture::new(rates, seed, OutboxOptions::default()).await;
            let tasks: Vec<_> = (0..publishers).map(|publisher| {
                let bus = fixture.bus.clone();
                tokio::spawn(async move {
                    for n in 0..each {
                        let message = message(&format!("kept.p{publisher}"), format!("{publisher} {n}"));
                        let receipt = soon(bus.publish_message(message)).await.expect("it is stored or queued");
                        assert!(matches!(receipt, Receipt::Stored { .. } | Receipt::Queued), "{receipt:?}");
                    }
                })
            }).collect();
            for task in tasks {
                task.await.unwrap();
            }
            // With so many failures nothing may move for longer than one flush waits.
            soon(async { while fixture.bus.flush().await.is_err() {} }).await;
            assert_eq!(fixture.waiting(), 0);
            let mut by_publisher: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for payload in fixture.stored().await {
                let (publisher, n) = payload.split_once(' ').unwrap();
                by_publisher.entry(publisher.to_owned()).or_default().push(n.to_owned());
            }
            for publisher in 0..publishers {
                assert_eq!(by_publisher.remove(&publisher.to_string()), Some(numbers(0..each)), "{publisher}");
            }
            soon(fixture.bus.drain(PATIENCE)).await.unwrap();
        });
    }
}

#[tokio::test]
async fn what_is_published_while_the_server_is_away_is_sent_in_order_when_it_is_back() {
    let fixture = Fixture::away(OutboxOptions::default()).await;
    for n in 0..1000 {
        assert_eq!(fixture.publish("kept.a", n).await, Ok(Receipt::Queued));
    }
    let status = fixture.bus.status();
    let outbox = status.outbox.unwrap();
    assert_eq!((outbox.messages, status.counters.outbox_messages), (1000, 1000));
    assert!(outbox.bytes > 1000 && status.counters.outbox_bytes == outbox.bytes, "{outbox:?}");
    fixture.backend.calm();
    soon(fixture.bus.flush()).await.unwrap();
    assert_eq!(fixture.stored().await, numbers(0..1000));
    let counters = fixture.bus.status().counters;
    assert_eq!((counters.outbox_queued, counters.outbox_sent, counters.published), (1000, 1000, 1000));
    assert_eq!(counters.outbox_bytes, 0);
    // And then everything goes straight again.
    assert!(matches!(fixture.publish("kept.a", "x").await, Ok(Receipt::Stored { duplicate: false, .. })));
}

#[tokio::test]
async fn many_at_once_are_kept_in_their_order() {
    let fixture = Fixture::away(OutboxOptions::default()).await;
    let messages = (0..500).map(|n| message("kept.a", n));
    let outcomes = soon(fixture.bus.publish_many(messages)).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Receipt::Queued)), "{outcomes:?}");
    fixture.backend.calm();
    soon(fixture.bus.flush()).await.unwrap();
    assert_eq!(fixture.stored().await, numbers(0..500));
}

#[tokio::test]
async fn a_full_outbox_refuses_and_names_the_setting() {
    let fixture = Fixture::away(OutboxOptions { messages_max: 3, ..OutboxOptions::default() }).await;
    for n in 0..3 {
        assert_eq!(fixture.publish("kept.a", n).await, Ok(Receipt::Queued));
    }
    let full = fixture.publish("kept.a", 3).await.unwrap_err();
    assert!(matches!(full, PublishError::OutboxFull { waiting: 3, limit: 3, .. }), "{full:?}");
    assert!(full.to_string().contains("messaging.outbox_max_messages") && full.is_retryable());
    assert_eq!(fixture.bus.status().counters.outbox_full, 1);
    let fixture = Fixture::away(OutboxOptions { bytes_max: 100, ..OutboxOptions::default() }).await;
    assert_eq!(fixture.publish("kept.a", 0).await, Ok(Receipt::Queued));
    let full = fixture.publish("kept.a", "x".repeat(100)).await.unwrap_err();
    assert!(full.to_string().contains("messaging.outbox_max_bytes"), "{full}");
    fixture.backend.calm();
    soon(fixture.bus.flush()).await.unwrap();
    assert_eq!(fixture.stored().await, ["0"], "what was refused does not come later");
}

#[tokio::test]
async fn a_message_that_is_always_refused_holds_up_no_other_and_is_told() {
    let fixture = Fixture::away(OutboxOptions::default()).await;
    assert_eq!(fixture.publish("kept.a", 0).await, Ok(Receipt::Queued));
    assert_eq!(fixture.publish("kept.large", "x".repeat(2000)).await, Ok(Receipt::Queued));
    assert_eq!(fixture.publish("kept.a", 1).await, Ok(Receipt::Queued));
    fixture.backend.calm();
    let error = soon(fixture.bus.flush()).await.unwrap_err();
    assert!(
        matches!(error, PublishError::TooLarge { .. }),
        "its publisher was told that it is queued: {error:?}"
    );
    assert_eq!(fixture.stored().await, ["0", "1"]);
    let outbox = fixture.bus.status().outbox.unwrap();
    let refused = outbox.last_refused.unwrap();
    assert_eq!((outbox.messages, outbox.refused, refused.subject.as_str()), (0, 1, "kept.large"));
    assert!(matches!(refused.error, PublishError::TooLarge { .. }), "{refused:?}");
    soon(fixture.bus.flush()).await.unwrap();
}

#[tokio::test]
async fn an_unknown_outcome_is_sent_again_only_where_that_does_no_harm() {
    let rates = FaultRates { publish_unknown: 1.0, ..FaultRates::default() };
    let fixture = Fixture::new(rates, 7, OutboxOptions::default()).await;
    // Half of these were published, and nobody knows which.
    for n in 0..20 {
        assert_eq!(fixture.publish("kept.a", n).await, Ok(Receipt::Queued));
    }
    fixture.backend.calm();
    soon(fixture.bus.flush()).await.unwrap();
    assert_eq!(fixture.stored().await, numbers(0..20));
    // Nothing recognises these a second time.
    let backend = Arc::new(WithoutIds(fixture.backend.clone()));
    let outbox = Some(OutboxOptions::default());
    let bus = Bus::with_backend(backend, BusOptions { outbox, ..BusOptions::default() });
    fixture.backend.rage();
    let unknown = soon(bus.publish_message(message("kept.a", 20))).await;
    assert!(matches!(unknown, Err(PublishError::OutcomeUnknown { .. })), "{unknown:?}");
    assert_eq!(bus.status().outbox.unwrap().messages, 0);
}

/// What was queued on a backend that knows no ids, and then has no certain outcome, is counted and told.
#[tokio::test]
async fn a_queued_message_of_unknown_outcome_is_told_where_nothing_recognises_it() {
    let away = FaultRates { publish_refused: 1.0, ..FaultRates::default() };
    let fixture = Fixture::new(away, 7, OutboxOptions::default()).await;
    let unknown = FaultRates { publish_unknown: 1.0, ..FaultRates::default() };
    let inner = Arc::new(FaultyBackend::new(fixture.backend.clone(), unknown, 7));
    inner.calm();
    let outbox = Some(OutboxOptions::default());
    let bus = Bus::with_backend(
        Arc::new(WithoutIds(inner.clone())),
        BusOptions { outbox, ..BusOptions::default() },
    );
    assert_eq!(soon(bus.publish_message(message("kept.a", 0))).await, Ok(Receipt::Queued));
    inner.rage();
    fixture.backend.calm();
    let told = soon(bus.flush()).await;
    assert!(matches!(told, Err(PublishError::OutcomeUnknown { .. })), "{told:?}");
    let outbox = bus.status().outbox.unwrap();
    assert_eq!((outbox.messages, outbox.unknown, outbox.refused), (0, 1, 0));
    assert!(fixture.stored().await.len() <= 1);
}

/// A backend that does not deduplicate, as NATS without streams.
struct WithoutIds(Arc<FaultyBackend>);

impl Backend for WithoutIds {
    fn capabilities(&self) -> Capabilities {
        Capabilities { dedupe: false, ..self.0.capabilities() }
    }

    fn status(&self) -> tokio::sync::watch::Receiver<BackendStatus> {
        self.0.status()
    }

    fn new_inbox(&self) -> Subject {
        self.0.new_inbox()
    }

    fn publish(&self, m: Message, o: PublishOptions) -> Publishing {
        assert_eq!(o.dedupe_id, None, "it would be refused");
        self.0.publish(m, o)
    }

    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        self.0.flush()
    }

    fn subscribe(
        &self,
        p: Pattern,
        o: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        self.0.subscribe(p, o)
    }

    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        self.0.streams()
    }

    fn drain(&self, by: std::time::Instant) -> Fut<'_, Result<(), DrainError>> {
        self.0.drain(by)
    }
}

#[tokio::test]
async fn what_nothing_stores_is_sent_without_an_id() {
    let fixture = Fixture::away(OutboxOptions::default()).await;
    let mut heard = fixture.bus.subscribe("live.>".parse().unwrap()).await.unwrap();
    for n in 0..100 {
        let to = if n % 2 == 0 { "live.a" } else { "kept.a" };
        assert_eq!(fixture.publish(to, n).await, Ok(Receipt::Queued));
    }
    fixture.backend.calm();
    soon(fixture.bus.flush()).await.unwrap();
    for n in (0..100).step_by(2) {
        let Some(Event::Message(received)) = soon(heard.next()).await else { panic!("no message {n}") };
        assert_eq!(received.message().payload, n.to_string());
    }
    assert_eq!(fixture.stored().await.len(), 50);
}

#[tokio::test]
async fn an_id_of_the_publisher_is_kept() {
    let fixture = Fixture::away(OutboxOptions::default()).await;
    for _ in 0..2 {
        let options = PublishOptions { dedupe_id: Some("mine".to_owned()), ..PublishOptions::default() };
        let receipt = soon(fixture.bus.publish_with(message("kept.a", "once"), options)).await;
        assert_eq!(receipt, Ok(Receipt::Queued));
    }
    fixture.backend.calm();
    soon(fixture.bus.flush()).await.unwrap();
    assert_eq!(fixture.stored().await, ["once"]);
}

#[tokio::test]
async fn a_request_is_never_queued() {
    let fixture = Fixture::away(OutboxOptions::default()).await;
    let request = fixture.bus.request_message(message("kept.q", 1), Duration::from_secs(5));
    let refused = soon(request).await.unwrap_err();
    assert!(matches!(refused, RequestError::Publish(PublishError::NotConnected { .. })), "{refused:?}");
    let mut with_reply = message("kept.q", 1);
    with_reply.reply = Some("back".parse().unwrap());
    let refused = soon(fixture.bus.publish_message(with_reply)).await;
    assert!(matches!(refused, Err(PublishError::NotConnected { .. })), "{refused:?}");
    let reserved = fixture.publish("nachos.dead.s.c", 1).await;
    assert!(matches!(reserved, Err(PublishError::Reserved(_))), "{reserved:?}");
    assert_eq!(fixture.waiting(), 0);
}

#[tokio::test]
async fn a_drain_empties_the_outbox_or_tells_how_many_are_left() {
    let fixture = Fixture::away(OutboxOptions::default()).await;
    for n in 0..5 {
        assert_eq!(fixture.publish("kept.a", n).await, Ok(Receipt::Queued));
    }
    let left = soon(fixture.bus.drain(Duration::from_millis(200))).await;
    assert_eq!(left, Err(DrainError::OutboxLeft { left: 5 }));
    assert_eq!(fixture.publish("kept.a", 6).await, Err(PublishError::Closed));

    let fixture = Fixture::away(OutboxOptions::default()).await;
    for n in 0..5 {
        assert_eq!(fixture.publish("kept.a", n).await, Ok(Receipt::Queued));
    }
    let bus = fixture.bus.clone();
    let draining = tokio::spawn(async move { bus.drain(PATIENCE).await });
    fixture.backend.calm();
    soon(draining).await.unwrap().unwrap();
    assert_eq!(fixture.stored().await, numbers(0..5));
}

#[tokio::test]
async fn a_flush_that_cannot_be_true_is_an_error() {
    let fixture = Fixture::away(OutboxOptions::default()).await;
    assert_eq!(fixture.publish("kept.a", 0).await, Ok(Receipt::Queued));
    let error = soon(fixture.bus.flush()).await.unwrap_err();
    assert!(
        matches!(&error, PublishError::NotConnected { reason, .. } if reason.contains("1 messages")),
        "{error}"
    );
}

/// The outbox works where nothing may be awaited, and on a thread that no runtime ever saw.
#[test]
fn blocking_publishes_are_queued_and_sent() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fixture = runtime.block_on(Fixture::away(OutboxOptions::default()));
    for n in 0..5 {
        assert_eq!(fixture.bus.publish_blocking(message("kept.a", n)), Ok(Receipt::Queued));
    }
    runtime.block_on(async {
        // Inside of a handler, so to speak.
        assert_eq!(fixture.bus.publish_blocking(message("kept.a", 5)), Ok(Receipt::Queued));
        fixture.backend.calm();
        soon(fixture.bus.flush()).await.unwrap();
        assert_eq!(fixture.stored().await, numbers(0..6));
    });
}

/// NATS without streams knows no duplicates: what was surely not sent is kept and sent once the server is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_nats_core_what_had_not_left_is_sent_later() {
    let mut server = NatsServer::start::<&str>([]);
    let connect = async || {
        let backend = NatsBackend::connect(NatsOptions::new([server.url().to_owned()])).await.unwrap();
        let options = BusOptions { outbox: Some(OutboxOptions::default()), ..BusOptions::default() };
        Bus::with_backend(Arc::new(backend), options)
    };
    let (sender, reader) = (connect().await, connect().await);
    let mut heard = reader.subscribe("a".parse().unwrap()).await.unwrap();
    soon(sender.publish_message(message("a", "first"))).await.unwrap();
    soon(sender.flush()).await.unwrap();
    let Some(Event::Message(first)) = soon(heard.next()).await else { panic!("no message") };
    assert_eq!(first.message().payload, "first");
    server.kill();
    let mut status = sender.backend_status();
    soon(status.wait_for(|status| matches!(status.state, BackendState::Disconnected { .. }))).await.unwrap();
    for n in 0..200 {
        assert_eq!(soon(sender.publish_message(message("a", n))).await, Ok(Receipt::Queued));
    }
    server.restart();
    soon(sender.flush()).await.unwrap();
    let outbox = sender.status().outbox.unwrap();
    assert_eq!((outbox.messages, outbox.unknown), (0, 0));
    // The reader comes back by itself, maybe too late for some; what it hears is in order and comes once.
    soon(sender.publish_message(message("a", 200))).await.unwrap();
    let mut last = None;
    while last != Some(200) {
        match soon(heard.next()).await {
            Some(Event::Message(received)) => {
                let n: u32 = std::str::from_utf8(&received.message().payload).unwrap().parse().unwrap();
                assert!(last < Some(n), "{n} after {last:?}");
                last = Some(n);
            }
            Some(Event::Gap(_)) => {
                // The reader is back from here on.
                soon(sender.publish_message(message("a", 200))).await.unwrap();
            }
            None => panic!("the subscription ended"),
        }
    }
}
