//! The suite finds what it is there to find: each sabotaged backend fails the property that names its fault.

use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use trunkline::backend::memory::{Hub, HubOptions, MemoryBackend};
use trunkline::backend::{
    AckToken, Backend, Capabilities, ConsumeError, ConsumerConfig, ConsumerInfo, DrainError, Fetched, Fut,
    Lease, LiveEvent, LiveSource, Member, PublishError, PublishOptions, Publishing, ReadPage, ReadRequest,
    Receipt, Settle, Settled, StreamConfig, StreamError, StreamInfo, Streams, SubscribeError,
    SubscribeOptions, Unsupported,
};
use trunkline::status::BackendStatus;
use trunkline::{Message, Pattern, Subject};
use trunkline_testkit::conformance::{Column, Harness, check};

/// What is wrong with a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    /// Reports success for messages that it drops.
    DropsMessages,
    /// Delivers some messages twice.
    RepeatsMessages,
    /// Gives every subscription to one queue group.
    StealsMessages,
    /// Does not say where messages are missing.
    HidesGaps,
    /// Takes a start in the past for the present.
    IgnoresStart,
    /// Ignores deduplication ids.
    IgnoresDedupe,
    /// Loses headers.
    LosesHeaders,
    /// Promises durability.
    Boasts,
    /// Answers `Done` to settlements, and forgets acks.
    ForgetsAcks,
    /// Answers `Done` whatever the lease.
    AcceptsLateAcks,
    /// Redelivers at once, whatever the delay of a nak.
    IgnoresDelays,
    /// Does not renew leases.
    IgnoresProgress,
    /// Takes a nak for a term.
    TerminatesNaks,
    /// Keeps what a leaving member had until its leases end.
    LeavesSlowly,
    /// Gives the lease to whoever asks.
    SharesTheLease,
    /// Goes on after a drain.
    NeverCloses,
    /// Drops every tenth delivery on its way and settles it for good.
    LosesDeliveries,
}

/// `check` of the property must panic on the sabotaged backend.
#[track_caller]
fn is_found(sabotage: Sabotage, properties: &[&str]) {
    for property in properties {
        let outcome = catch_unwind(|| check(property, || async { harness(sabotage) }));
        assert!(outcome.is_err(), "{property} does not notice that the backend {sabotage:?}");
    }
}

fn harness(sabotage: Sabotage) -> Harness {
    let hub = Arc::new(Hub::new(HubOptions::default()));
    Harness::new(Column::InMemory, move || {
        let inner = MemoryBackend::connect_to(&hub);
        let backend: Arc<dyn Backend> = Arc::new(Sabotaged { inner, sabotage, count: Arc::default() });
        std::future::ready(backend)
    })
}

macro_rules! found {
    ($($test:ident: $sabotage:ident by $($property:ident)*;)*) => {
        $(#[test]
        fn $test() {
            is_found(Sabotage::$sabotage, &[$(stringify!($property)),*]);
        })*
    };
}

found! {
    dropped_messages_are_found: DropsMessages by random_fan_out_keeps_every_rule;
    repeated_messages_are_found: RepeatsMessages by
        subscribers_do_not_steal_from_each_other random_fan_out_keeps_every_rule;
    stolen_messages_are_found: StealsMessages by random_fan_out_keeps_every_rule;
    hidden_gaps_are_found: HidesGaps by what_a_slow_subscriber_misses_is_a_counted_gap;
    ignored_start_is_found: IgnoresStart by
        subscription_replays_the_past_then_follows start_in_the_past_of_nothing_stored_is_refused;
    ignored_dedupe_is_found: IgnoresDedupe by duplicate_by_id_is_stored_once;
    lost_headers_are_found: LosesHeaders by message_arrives_whole stream_reads_back_whole_and_in_order;
    boasting_is_found: Boasts by capabilities_are_those_of_the_table;
    forgotten_acks_are_found: ForgetsAcks by
        acked_message_never_comes_again random_consumer_work_keeps_every_rule;
    late_acks_are_found: AcceptsLateAcks by
        late_ack_of_a_lost_lease_is_refused settled_delivery_cannot_be_settled_again;
    ignored_delays_are_found: IgnoresDelays by
        nak_redelivers_after_its_delay random_consumer_work_keeps_every_rule;
    ignored_progress_is_found: IgnoresProgress by progress_keeps_the_lease;
    terminated_naks_are_found: TerminatesNaks by random_consumer_work_keeps_every_rule;
    slow_leaving_is_found: LeavesSlowly by lease_passes_on_at_once_when_its_holder_leaves;
    shared_lease_is_found: SharesTheLease by keyed_consumer_gives_only_to_the_lease_holder;
    unclosed_backend_is_found: NeverCloses by drain_delivers_what_was_published_then_closes;
    lost_deliveries_are_found: LosesDeliveries by random_consumer_work_keeps_every_rule;
}

/// The `in_memory` backend with one thing wrong.
struct Sabotaged {
    inner: MemoryBackend,
    sabotage: Sabotage,
    count: Arc<AtomicU64>,
}

impl Sabotaged {
    fn streams_within(&self) -> &dyn Streams {
        self.inner.streams().expect("in_memory has streams")
    }
}

/// Every tenth call.
fn tenth(count: &AtomicU64) -> bool {
    count.fetch_add(1, Ordering::Relaxed) % 10 == 9
}

impl Backend for Sabotaged {
    fn capabilities(&self) -> Capabilities {
        let durable = self.sabotage == Sabotage::Boasts;
        Capabilities { durable, ..self.inner.capabilities() }
    }

    fn status(&self) -> watch::Receiver<BackendStatus> {
        self.inner.status()
    }

    fn new_inbox(&self) -> Subject {
        self.inner.new_inbox()
    }

    fn publish(&self, mut m: Message, mut o: PublishOptions) -> Publishing {
        match self.sabotage {
            Sabotage::DropsMessages if tenth(&self.count) => {
                return Publishing::Ready(Ok(Receipt::Accepted));
            }
            Sabotage::RepeatsMessages if tenth(&self.count) => {
                drop(self.inner.publish(m.clone(), o.clone()));
            }
            Sabotage::LosesHeaders => m.headers = trunkline::Headers::new(),
            Sabotage::IgnoresDedupe => o.dedupe_id = None,
            _ => {}
        }
        self.inner.publish(m, o)
    }

    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        self.inner.flush()
    }

    fn subscribe(
        &self,
        p: Pattern,
        mut o: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        match self.sabotage {
            Sabotage::StealsMessages => o.queue = Some("all".parse().expect("a token")),
            Sabotage::IgnoresStart => o.start = None,
            _ => {}
        }
        Box::pin(async move {
            let source = self.inner.subscribe(p, o).await?;
            let hides_gaps = self.sabotage == Sabotage::HidesGaps;
            Ok(if hides_gaps { Box::new(NoGaps(source)) } else { source })
        })
    }

    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        Ok(self)
    }

    fn drain(&self, by: Instant) -> Fut<'_, Result<(), DrainError>> {
        match self.sabotage {
            Sabotage::NeverCloses => Box::pin(std::future::ready(Ok(()))),
            _ => self.inner.drain(by),
        }
    }
}

/// A subscription that never tells of a gap.
struct NoGaps(Box<dyn LiveSource>);

impl LiveSource for NoGaps {
    fn poll_batch(&mut self, cx: &mut Context<'_>, max: usize, out: &mut Vec<LiveEvent>) -> Poll<usize> {
        loop {
            let before = out.len();
            match self.0.poll_batch(cx, max, out) {
                Poll::Ready(0) => return Poll::Ready(0),
                Poll::Ready(_) => out.retain(|event| matches!(event, LiveEvent::Message { .. })),
                Poll::Pending => return Poll::Pending,
            }
            if out.len() > before {
                return Poll::Ready(out.len() - before);
            }
        }
    }

    fn stop(&mut self) -> Fut<'_, Result<(), SubscribeError>> {
        self.0.stop()
    }
}

impl Streams for Sabotaged {
    fn ensure(&self, config: StreamConfig) -> Fut<'_, Result<StreamInfo, StreamError>> {
        self.streams_within().ensure(config)
    }

    fn list(&self) -> Fut<'_, Result<Vec<StreamInfo>, StreamError>> {
        self.streams_within().list()
    }

    fn remove(&self, stream: &str) -> Fut<'_, Result<bool, StreamError>> {
        self.streams_within().remove(stream)
    }

    fn read(&self, stream: &str, request: ReadRequest) -> Fut<'_, Result<ReadPage, StreamError>> {
        self.streams_within().read(stream, request)
    }

    fn join(&self, stream: &str, config: ConsumerConfig) -> Fut<'_, Result<Arc<dyn Member>, StreamError>> {
        let joining = self.streams_within().join(stream, config);
        Box::pin(async move {
            let (sabotage, count) = (self.sabotage, self.count.clone());
            let member: Arc<dyn Member> =
                Arc::new(SabotagedMember { inner: joining.await?, sabotage, count });
            Ok(member)
        })
    }

    fn consumer_info(
        &self,
        stream: &str,
        consumer: &str,
    ) -> Fut<'_, Result<Option<ConsumerInfo>, StreamError>> {
        self.streams_within().consumer_info(stream, consumer)
    }

    fn remove_consumer(&self, stream: &str, consumer: &str) -> Fut<'_, Result<bool, StreamError>> {
        self.streams_within().remove_consumer(stream, consumer)
    }
}

struct SabotagedMember {
    inner: Arc<dyn Member>,
    sabotage: Sabotage,
    count: Arc<AtomicU64>,
}

impl Member for SabotagedMember {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn fetch(&self, max: usize, wait: Duration) -> Fut<'_, Result<Fetched, ConsumeError>> {
        Box::pin(async move {
            let mut fetched = self.inner.fetch(max, wait).await?;
            if self.sabotage == Sabotage::LosesDeliveries
                && !fetched.deliveries.is_empty()
                && tenth(&self.count)
            {
                let lost = fetched.deliveries.remove(0);
                self.inner.settle(vec![(lost.token, Settle::Ack)]).await?;
            }
            Ok(fetched)
        })
    }

    fn settle(&self, batch: Vec<(AckToken, Settle)>) -> Fut<'_, Result<Vec<Settled>, ConsumeError>> {
        Box::pin(async move {
            let count = batch.len();
            let batch = batch.into_iter().filter_map(|(token, how)| match (self.sabotage, how) {
                (Sabotage::ForgetsAcks, Settle::Ack)
                    if tenth(&self.count) || count == 1 && token.attempt == 1 =>
                {
                    None
                }
                (Sabotage::IgnoresDelays, Settle::Nak(_)) => Some((token, Settle::Nak(Duration::ZERO))),
                (Sabotage::IgnoresProgress, Settle::Progress) => None,
                (Sabotage::TerminatesNaks, Settle::Nak(_)) => Some((token, Settle::Term)),
                (_, how) => Some((token, how)),
            });
            let answers = self.inner.settle(batch.collect()).await?;
            let done = matches!(
                self.sabotage,
                Sabotage::ForgetsAcks | Sabotage::AcceptsLateAcks | Sabotage::IgnoresProgress
            );
            Ok(if done { vec![Settled::Done; count] } else { answers })
        })
    }

    fn lease(&self, ttl: Duration) -> Fut<'_, Result<Lease, ConsumeError>> {
        Box::pin(async move {
            let lease = self.inner.lease(ttl).await?;
            Ok(if self.sabotage == Sabotage::SharesTheLease { Lease::Held { new: true } } else { lease })
        })
    }

    fn leave(&self) -> Fut<'_, Result<(), ConsumeError>> {
        match self.sabotage {
            Sabotage::LeavesSlowly => Box::pin(std::future::ready(Ok(()))),
            _ => self.inner.leave(),
        }
    }
}
