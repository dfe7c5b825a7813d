//! The engine of consumers on connections that fail by dice: nothing is lost, nothing is settled by a lie.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use trunkline::backend::{Backend, PublishError, Receipt};
use trunkline::redelivery::{DeadReason, RetryPolicy};
use trunkline::{Bus, BusOptions, Delivered, HandlerError, Message};

use super::jobs::{Job, dead_letters, dead_stream, settled, start, work};
use super::options;
use crate::conformance::Harness;
use crate::conformance::chaos::{assert_kept, id_of};
use crate::conformance::probe::try_publish;
use crate::faulty::{FaultRates, FaultyBackend};
use crate::history::{Event, Expectations, History, MessageId, Told};
use crate::seeds::seeds;

/// Seeds tried when nobody says how many: each takes about a second.
const SEEDS: u64 = 2;

const RATES: FaultRates = FaultRates {
    publish_refused: 0.05,
    publish_unknown: 0.05,
    fetch: 0.05,
    settle: 0.1,
    lease: 0.05,
    delay: 0.1,
};

fn patient(harness: &Harness) -> BusOptions {
    // So many tries that bad luck alone kills no message.
    let retry = RetryPolicy { max_deliver: 100, backoff: vec![Duration::from_millis(5)] };
    BusOptions { retry, ack_wait: harness.lease(Duration::from_millis(300)), ..options(harness) }
}

/// Two buses that share a consumer, on failing connections.
async fn failing_buses(harness: &Harness, rng: &mut Rng) -> [Bus; 2] {
    let mut bus = async || {
        let backend: Arc<dyn Backend> =
            Arc::new(FaultyBackend::new(harness.backend().await, RATES, rng.u64(..)));
        Bus::with_backend(backend, patient(harness))
    };
    [bus().await, bus().await]
}

/// Publishes to one of three subjects and records what it was told.
async fn publish_recorded(harness: &Harness, backend: &dyn Backend, history: &History, count: u32) {
    for number in 0..count {
        let id = MessageId { publisher: 0, number };
        let subject = harness.subject(["work.a", "work.b", "work.c"][number as usize % 3]);
        history.record(Event::Publishing { id, subject: subject.clone() });
        let told = match try_publish(backend, Message::new(subject, id.to_payload())).await {
            Ok(Receipt::Stored { offset, .. }) => Told::Stored(offset),
            Err(PublishError::NotConnected { .. }) => Told::Refused,
            Err(PublishError::OutcomeUnknown { .. }) => Told::Unknown,
            other => panic!("nobody provoked {other:?}"),
        };
        history.record(Event::Published { id, told });
    }
}

/// Handlers that fail, panic and reject at random, members on failing connections: every message that was stored
/// succeeds or is a dead letter, and exactly those are dead letters that were rejected.
pub async fn every_message_ends_well_or_as_a_dead_letter_on_failing_connections(harness: &Harness) {
    for seed in seeds(SEEDS) {
        let mut rng = Rng::with_seed(seed);
        let (stream, backend) = (work(harness).await, harness.backend().await);
        let history = Arc::new(History::new());
        let mut jobs = Vec::new();
        for bus in failing_buses(harness, &mut rng).await {
            let (history, rng) = (history.clone(), Arc::new(Mutex::new(rng.fork())));
            let job = start(&bus, Job::new(&stream).concurrency(6), move |delivered: Delivered| {
                let (history, dice) =
                    (history.clone(), rng.lock().unwrap_or_else(PoisonError::into_inner).u8(..));
                async move {
                    let id = id_of(delivered.received().message());
                    match dice {
                        _ if is_doomed(id) => return Err(HandlerError::reject("never")),
                        0..40 => return Err(HandlerError::new("bad luck")),
                        40..45 => panic!("a handler of the suite panics on purpose"),
                        45..60 => tokio::task::yield_now().await,
                        _ => {}
                    }
                    history.record(Event::Succeeded { id });
                    Ok(())
                }
            });
            jobs.push((job.await, bus));
        }
        let publisher = FaultyBackend::new(harness.backend().await, RATES, rng.u64(..));
        publish_recorded(harness, &publisher, &history, 100).await;
        settled(&*backend, &stream).await;
        for (job, _bus) in jobs {
            job.stop().await;
        }
        for letter in dead_letters(harness).await {
            let reason = match letter.headers.get("Trunkline-Dead-Reason") {
                Some("rejected") => DeadReason::Rejected,
                Some("expired") => DeadReason::Expired,
                _ => DeadReason::MaxDeliver,
            };
            history.record(Event::DeadLettered { id: id_of(&letter), reason });
        }
        let all = (0..100).map(|number| MessageId { publisher: 0, number });
        let doomed = all.filter(|id| is_doomed(*id)).map(|id| (id, DeadReason::Rejected));
        let expected = Expectations { doomed: Some(BTreeMap::from_iter(doomed)), ..Expectations::default() };
        assert_kept(&history, &expected, seed);
        clean(&*backend, &stream, &dead_stream(harness)).await;
    }
}

fn is_doomed(id: MessageId) -> bool {
    id.number % 20 == 7
}

/// Removes what the next seed would trip over.
async fn clean(backend: &dyn Backend, stream: &str, dead: &str) {
    for name in [stream, dead] {
        let removed = crate::conformance::probe::streams(backend).remove(name).await;
        removed.expect("removing a stream on a live connection");
    }
}

/// Order by key holds on failing connections: no message of a key begins before the one ahead of it is settled.
pub async fn order_by_key_holds_on_failing_connections(harness: &Harness) {
    for seed in seeds(SEEDS) {
        let mut rng = Rng::with_seed(seed);
        let (stream, backend) = (work(harness).await, harness.backend().await);
        let history = Arc::new(History::new());
        let begun: Arc<Mutex<HashMap<String, Vec<u32>>>> = Arc::default();
        let mut jobs = Vec::new();
        for bus in failing_buses(harness, &mut rng).await {
            let (history, begun) = (history.clone(), begun.clone());
            let rng = Arc::new(Mutex::new(rng.fork()));
            let job =
                start(&bus, Job::new(&stream).by_subject().concurrency(6), move |delivered: Delivered| {
                    let (history, dice) =
                        (history.clone(), rng.lock().unwrap_or_else(PoisonError::into_inner).u8(..));
                    let id = id_of(delivered.received().message());
                    let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
                    begun.entry(delivered.subject().to_string()).or_default().push(id.number);
                    async move {
                        if dice < 50 {
                            return Err(HandlerError::new("bad luck"));
                        }
                        history.record(Event::Succeeded { id });
                        Ok(())
                    }
                });
            jobs.push((job.await, bus));
        }
        let publisher = FaultyBackend::new(harness.backend().await, RATES, rng.u64(..));
        publish_recorded(harness, &publisher, &history, 60).await;
        settled(&*backend, &stream).await;
        for (job, _bus) in jobs {
            job.stop().await;
        }
        for (key, begun) in begun.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            assert!(begun.is_sorted(), "seed {seed}: key {key} ran out of order: {begun:?}");
        }
        let expected = Expectations { doomed: Some(BTreeMap::new()), ..Expectations::default() };
        assert_kept(&history, &expected, seed);
        clean(&*backend, &stream, &dead_stream(harness)).await;
    }
}
