//! Order by key: one at a time within a key, also through redelivery; everything else side by side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Barrier, Semaphore};
use trunkline::backend::Start;
use trunkline::redelivery::RetryPolicy;
use trunkline::{Bus, BusOptions, Delivered, HandlerError, Key as OrderKey};

use super::jobs::{Job, die_with, settled, start, work};
use super::options;
use crate::conformance::Harness;
use crate::conformance::probe::{number, numbered, publish, publish_numbers, soon};
use crate::faulty::{FaultRates, FaultyBackend};

/// The lease of ordered consumers under test: short, because a successor waits for its end.
const ACK_WAIT: Duration = Duration::from_millis(300);

fn ordered(harness: &Harness) -> BusOptions {
    let retry = RetryPolicy { max_deliver: 20, backoff: vec![Duration::from_millis(40)] };
    BusOptions { retry, ack_wait: harness.lease(ACK_WAIT), ..options(harness) }
}

/// Watches the handlers of one consumer: which message of a key runs, and in which order they began.
#[derive(Clone, Default)]
struct Keys(Arc<Mutex<HashMap<String, Key>>>);

#[derive(Default)]
struct Key {
    running: usize,
    begun: Vec<u64>,
}

/// A handler at work on a key; dropped with it.
struct AtWork {
    keys: Keys,
    key: String,
}

impl Keys {
    fn with<T>(&self, key: &str, look: impl FnOnce(&mut Key) -> T) -> T {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(keys.entry(key.to_owned()).or_default())
    }

    /// A handler begins; `Err` when another of its key runs.
    fn begin(&self, delivered: &Delivered) -> AtWork {
        let key = delivered.subject().tokens().last().unwrap_or_default().to_owned();
        self.with(&key, |state| {
            state.running += 1;
            state.begun.push(number(delivered.received().message()));
            // The handlers of a test must not panic by an assertion: that would be one more failing message.
            if state.running > 1 {
                state.begun.push(u64::MAX);
            }
        });
        AtWork { keys: self.clone(), key }
    }

    /// The messages of a key in the order in which their handlers began.
    #[track_caller]
    fn begun(&self, key: &str) -> Vec<u64> {
        let begun = self.with(key, |state| state.begun.clone());
        assert!(!begun.contains(&u64::MAX), "two handlers of key {key} ran at once: {begun:?}");
        begun
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.keys.with(&self.key, |state| state.running -= 1);
    }
}

/// While a message fails again and again, the later ones of its key wait, and other keys go on.
pub async fn key_waits_for_its_failed_message_and_others_go_on(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let bus = Bus::with_backend(harness.backend().await, ordered(harness));
    let (keys, gate) = (Keys::default(), Arc::new(Semaphore::new(0)));
    let mut job = {
        let (keys, gate) = (keys.clone(), gate.clone());
        start(&bus, Job::new(&stream).by_subject().concurrency(8), move |delivered: Delivered| {
            let (keys, gate) = (keys.clone(), gate.clone());
            async move {
                let _at_work = keys.begin(&delivered);
                match (number(delivered.received().message()), delivered.attempt()) {
                    (0, _) if gate.available_permits() == 0 => Err(HandlerError::new("not yet")),
                    (3, 1) => panic!("a handler of the suite panics on purpose"),
                    _ => Ok(()),
                }
            }
        })
        .await
    };
    for (subject, numbers) in [("work.a", 0..5), ("work.b", 10..30), ("work.c", 40..60)] {
        publish_numbers(&*backend, &harness.subject(subject), numbers).await;
    }
    // All of the others, and three tries of the first, in whatever order.
    let (mut others, mut tries) = (0, 0);
    while others < 40 || tries < 3 {
        match job.run().await.number {
            0 => tries += 1,
            10.. => others += 1,
            early => panic!("message {early} overtook the first of its key"),
        }
    }
    gate.add_permits(1);
    settled(&*backend, &stream).await;
    let mut begun = keys.begun("a");
    begun.dedup();
    assert_eq!(begun, [0, 1, 2, 3, 4]);
    assert_eq!(keys.begun("b"), (10..30).collect::<Vec<_>>());
    assert_eq!(keys.begun("c"), (40..60).collect::<Vec<_>>());
}

/// Different keys are worked on at the same time.
pub async fn keys_run_side_by_side(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let bus = Bus::with_backend(harness.backend().await, ordered(harness));
    // Each handler waits for three others: one at a time they would wait for ever.
    let barrier = Arc::new(Barrier::new(4));
    let _job = start(&bus, Job::new(&stream).by_subject().concurrency(4), move |_| {
        let barrier = barrier.clone();
        async move {
            barrier.wait().await;
            Ok(())
        }
    })
    .await;
    for n in 0..20 {
        for key in ["a", "b", "c", "d"] {
            publish(&*backend, numbered(&harness.subject(&format!("work.{key}")), n)).await;
        }
    }
    settled(&*backend, &stream).await;
}

/// What has no key, such as an approval or a cancellation, is queued behind nothing: not behind stuck messages,
/// failed ones, or many that are parked.
pub async fn message_without_a_key_is_queued_behind_nothing(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let bus = Bus::with_backend(harness.backend().await, ordered(harness));
    let mut job = start(&bus, Job::new(&stream).by_subject().concurrency(3), async |delivered: Delivered| {
        match delivered.subject().tokens().last() {
            Some("approval") => Ok(()),
            Some("failing") => Err(HandlerError::retry_after(Duration::from_secs(600), "later")),
            _ => std::future::pending().await,
        }
    })
    .await;
    publish_numbers(&*backend, &harness.subject("work.stuck"), 0..50).await;
    publish_numbers(&*backend, &harness.subject("work.failing"), 100..150).await;
    let first = [job.run().await.number, job.run().await.number];
    assert!(first.contains(&0) && first.contains(&100), "one of each key runs: {first:?}");
    publish_numbers(&*backend, &harness.subject("work.approval"), 200..220).await;
    let mut approved = Vec::new();
    for _ in 200..220 {
        approved.push(job.run().await.number);
    }
    // Side by side, so in no order.
    approved.sort_unstable();
    assert_eq!(approved, (200..220).collect::<Vec<_>>(), "only approvals can run");
}

/// When the active member dies, another takes over where it was, and no key runs out of order.
pub async fn order_holds_when_the_active_member_dies(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    for key in ["a", "b"] {
        publish_numbers(&*backend, &harness.subject(&format!("work.{key}")), 0..10).await;
    }
    let keys = Keys::default();
    let connection = harness.backend().await;
    let (dying_keys, dying_options, dying_stream) = (keys.clone(), ordered(harness), stream.clone());
    // The first member handles three messages of each key and dies in the fourth.
    let stuck = Arc::new(Semaphore::new(0));
    let is_stuck = stuck.clone();
    let dying = die_with(async move {
        let bus = Bus::with_backend(connection, dying_options);
        let job =
            start(&bus, Job::new(&dying_stream).by_subject().concurrency(4), move |delivered: Delivered| {
                let (keys, stuck) = (dying_keys.clone(), is_stuck.clone());
                async move {
                    let _at_work = keys.begin(&delivered);
                    if number(delivered.received().message()) == 3 {
                        stuck.add_permits(1);
                        std::future::pending::<()>().await;
                    }
                    Ok(())
                }
            });
        (job.await, bus)
    })
    .await;
    soon("both keys are stuck", stuck.acquire_many(2)).await.expect("the semaphore lives").forget();
    let bus = Bus::with_backend(harness.backend().await, ordered(harness));
    let _heir = {
        let keys = keys.clone();
        start(&bus, Job::new(&stream).by_subject().concurrency(4), move |delivered: Delivered| {
            let at_work = keys.begin(&delivered);
            async move {
                tokio::task::yield_now().await;
                drop(at_work);
                Ok(())
            }
        })
        .await
    };
    dying.die().await;
    settled(&*backend, &stream).await;
    for key in ["a", "b"] {
        let begun = keys.begun(key);
        assert!(begun.is_sorted(), "key {key} ran out of order: {begun:?}");
        let mut each = begun;
        each.dedup();
        assert_eq!(each, (0..10).collect::<Vec<_>>());
    }
}

/// A backlog on one key that fills all room for waiting messages does not shut out the failed one that they wait for.
pub async fn failed_message_comes_again_past_a_backlog_of_its_key(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let bus = Bus::with_backend(harness.backend().await, ordered(harness));
    publish_numbers(&*backend, &harness.subject("work.a"), 0..30).await;
    let handled = Arc::new(Mutex::new(Vec::new()));
    let _consumer = {
        let handled = handled.clone();
        let consumer =
            bus.stream(&stream).expect("a backend with streams").consumer("c").expect("a valid name");
        let consumer = consumer.start(Start::Beginning).ordered_by(OrderKey::Subject);
        let spawned = consumer.concurrency(2).max_parked(4).spawn(move |delivered: Delivered| {
            let n = number(delivered.received().message());
            let fails = n.is_multiple_of(10) && delivered.attempt() < 3;
            if !fails {
                handled.lock().unwrap_or_else(PoisonError::into_inner).push(n);
            }
            async move { if fails { Err(HandlerError::new("bad luck")) } else { Ok(()) } }
        });
        soon("spawn", spawned).await.expect("joining a consumer of a stream that is there")
    };
    settled(&*backend, &stream).await;
    let handled = handled.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(*handled, (0..30).collect::<Vec<_>>());
}

/// A member that could not renew its lease for a while, and has it again, does not let later messages of a key overtake
/// those that it had to give up.
pub async fn order_holds_when_the_lease_lapses_and_comes_back(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.b"), 0..2).await;
    publish_numbers(&*backend, &harness.subject("work.a"), 0..20).await;
    publish_numbers(&*backend, &harness.subject("work.b"), 2..20).await;
    let rates = FaultRates { lease: 1.0, ..FaultRates::default() };
    let faulty = Arc::new(FaultyBackend::new(harness.backend().await, rates, 1));
    faulty.calm();
    let bus = Bus::with_backend(faulty.clone(), ordered(harness));
    let (keys, started, gate) = (Keys::default(), Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let later = 4 * harness.lease(ACK_WAIT);
    let _consumer = {
        let (keys, started, gate) = (keys.clone(), started.clone(), gate.clone());
        let consumer =
            bus.stream(&stream).expect("a backend with streams").consumer("c").expect("a valid name");
        let consumer = consumer.start(Start::Beginning).ordered_by(OrderKey::Subject);
        // With all room taken no fetch is under way when the lease is lost.
        let spawned = consumer.concurrency(1).max_parked(3).spawn(move |delivered: Delivered| {
            let (keys, started, gate) = (keys.clone(), started.clone(), gate.clone());
            async move {
                let _at_work = keys.begin(&delivered);
                if delivered.subject().tokens().last() == Some("b") {
                    return match (number(delivered.received().message()), delivered.attempt()) {
                        // Out for longer than the lease of any delivery.
                        (0, 1) => Err(HandlerError::retry_after(later, "later")),
                        _ => Ok(()),
                    };
                }
                started.add_permits(1);
                drop(gate.acquire().await?);
                Ok(())
            }
        });
        soon("spawn", spawned).await.expect("joining a consumer of a stream that is there")
    };
    soon("the first handler", started.acquire()).await.expect("the semaphore lives").forget();
    faulty.rage();
    let lost = async {
        while bus.status().counters.leases_lost == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("the handler is cancelled", lost).await;
    gate.add_permits(1);
    faulty.calm();
    settled(&*backend, &stream).await;
    for key in ["a", "b"] {
        let mut begun = keys.begun(key);
        assert!(begun.is_sorted(), "key {key} ran out of order: {begun:?}");
        begun.dedup();
        assert_eq!(begun, (0..20).collect::<Vec<_>>());
    }
}
