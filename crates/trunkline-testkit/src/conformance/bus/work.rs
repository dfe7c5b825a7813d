//! Consumers of the bus: retries, dead letters, leases. Order by key is in `ordered`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use trunkline::redelivery::RetryPolicy;
use trunkline::{Bus, BusOptions, Delivered, HandlerError, Message};

use super::jobs::{Job, Run, dead_letters, dead_stream, die_with, info, settled, start, work};
use super::{bus_over, options};
use crate::conformance::Harness;
use crate::conformance::probe::{ACK_WAIT, PATIENCE, number, numbered, publish, publish_numbers, soon};
use crate::faulty::{FaultRates, FaultyBackend};

/// A consumer that tries three times with short delays.
fn three_tries(harness: &Harness) -> BusOptions {
    let backoff = [50, 100].map(Duration::from_millis).to_vec();
    BusOptions { retry: RetryPolicy { max_deliver: 3, backoff }, ..options(harness) }
}

/// A bus with other settings.
async fn bus_with(harness: &Harness, options: BusOptions) -> Bus {
    Bus::with_backend(harness.backend().await, options)
}

/// Every message is handled once, acknowledged after its handler has succeeded, and not before.
pub async fn handled_message_is_acknowledged_after_its_handler(harness: &Harness) {
    let (stream, bus) = (work(harness).await, bus_with(harness, three_tries(harness)).await);
    let backend = harness.backend().await;
    let gate = Arc::new(Semaphore::new(0));
    let mut job = {
        let gate = gate.clone();
        start(&bus, Job::new(&stream).concurrency(5), move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await?.forget();
                Ok(())
            }
        })
        .await
    };
    publish_numbers(&*backend, &harness.subject("work.x"), 0..50).await;
    for _ in 0..5 {
        job.run().await;
    }
    let busy = info(&*backend, &stream).await;
    assert_eq!(busy.ack_floor, None, "nothing has been handled");
    assert!(busy.pending <= 5, "{} deliveries were fetched for 5 handlers", busy.pending);
    gate.add_permits(50);
    for _ in 5..50 {
        assert_eq!(job.run().await.attempt, 1);
    }
    settled(&*backend, &stream).await;
    assert!(job.no_more_runs(), "each message is handled once");
    assert!(dead_letters(harness).await.is_empty());
}

/// A message that always fails is tried as often as the policy says, with its delays between, and then is a dead
/// letter with the original and its story.
pub async fn failing_message_is_retried_by_the_policy_then_a_dead_letter(harness: &Harness) {
    let (stream, bus) = (work(harness).await, bus_with(harness, three_tries(harness)).await);
    let backend = harness.backend().await;
    let mut job = start(&bus, Job::new(&stream), async |_| Err(HandlerError::new("never"))).await;
    let mut original = numbered(&harness.subject("work.x"), 7);
    original.headers.append("X-Tenant", "t").expect("a valid header");
    publish(&*backend, original.clone()).await;
    let mut last: Option<Run> = None;
    for attempt in 1..=3u32 {
        let run = job.run().await;
        assert_eq!((run.number, run.attempt), (7, attempt));
        if let Some(last) = last {
            let delay = Duration::from_millis(if attempt == 2 { 50 } else { 100 });
            let waited = run.at - last.at;
            assert!(waited + Duration::from_millis(2) >= delay, "attempt {attempt} came after {waited:?}");
        }
        last = Some(run);
    }
    settled(&*backend, &stream).await;
    let dead = dead_letters(harness).await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].subject.as_str(), format!("{}.dead.{stream}.c", harness.root()));
    assert_eq!(dead[0].payload, original.payload);
    for (name, value) in [
        ("X-Tenant", "t"),
        ("Trunkline-Dead-Reason", "max_deliver"),
        ("Trunkline-Dead-Attempts", "3"),
        ("Trunkline-Dead-Stream", &stream),
        ("Trunkline-Dead-Consumer", "c"),
        ("Trunkline-Dead-Subject", original.subject.as_str()),
    ] {
        assert_eq!(dead[0].headers.get(name), Some(value), "{name}");
    }
    assert!(dead[0].headers.get("Trunkline-Dead-Offset").is_some());
    assert_eq!(dead[0].headers.get("Nats-Msg-Id"), None, "a redrive must not be swallowed");
    assert!(job.no_more_runs());
}

/// A handler that rejects a message makes it a dead letter at once; one that names a delay gets that delay.
pub async fn handler_decides_over_retry(harness: &Harness) {
    let (stream, bus) = (work(harness).await, bus_with(harness, three_tries(harness)).await);
    let backend = harness.backend().await;
    let delay = Duration::from_millis(300);
    let mut job = start(&bus, Job::new(&stream), move |delivered: Delivered| async move {
        match (number(delivered.received().message()), delivered.attempt()) {
            (0, _) => Err(HandlerError::reject("not mine")),
            (1, 1) => Err(HandlerError::retry_after(delay, "later")),
            _ => Ok(()),
        }
    })
    .await;
    publish_numbers(&*backend, &harness.subject("work.x"), 0..2).await;
    let runs = [job.run().await, job.run().await, job.run().await];
    let first = runs.iter().find(|run| run.number == 1).expect("it ran");
    assert_eq!((runs[2].number, runs[2].attempt), (1, 2));
    let waited = runs[2].at - first.at;
    assert!(waited + Duration::from_millis(2) >= delay, "it came after {waited:?}");
    settled(&*backend, &stream).await;
    let dead = dead_letters(harness).await;
    assert_eq!(dead.iter().map(|letter| number(letter)).collect::<Vec<_>>(), [0]);
    assert_eq!(dead[0].headers.get("Trunkline-Dead-Reason"), Some("rejected"));
    assert_eq!(dead[0].headers.get("Trunkline-Dead-Attempts"), Some("1"));
    assert!(job.no_more_runs());
}

/// A message whose deadline has passed is a dead letter without its handler.
pub async fn expired_message_is_a_dead_letter_without_its_handler(harness: &Harness) {
    let (stream, bus) = (work(harness).await, bus_with(harness, three_tries(harness)).await);
    let backend = harness.backend().await;
    let mut job = start(&bus, Job::new(&stream), async |_| Ok(())).await;
    let expired = r#"{"id":"a","type":"t","payload":1,"deadline":"2001-01-01T00:00:00Z"}"#;
    publish(&*backend, Message::new(harness.subject("work.x"), expired)).await;
    publish_numbers(&*backend, &harness.subject("work.x"), 1..2).await;
    assert_eq!(job.run().await.number, 1);
    settled(&*backend, &stream).await;
    let dead = dead_letters(harness).await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(&dead[0].payload[..], expired.as_bytes());
    assert_eq!(dead[0].headers.get("Trunkline-Dead-Reason"), Some("expired"));
    assert!(job.no_more_runs());
}

/// Messages that fail, panic or never end hold up no other.
pub async fn failing_and_stuck_messages_hold_up_no_other(harness: &Harness) {
    let retry = RetryPolicy { max_deliver: 5, backoff: vec![Duration::from_secs(600)] };
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let bus = bus_with(harness, BusOptions { retry, ..options(harness) }).await;
    let mut job = start(&bus, Job::new(&stream).concurrency(2), async |delivered: Delivered| {
        match number(delivered.received().message()) {
            0 => Err(HandlerError::new("fails")),
            1 => panic!("a handler of the suite panics on purpose"),
            2 => std::future::pending().await,
            _ => Ok(()),
        }
    })
    .await;
    publish_numbers(&*backend, &harness.subject("work.x"), 0..60).await;
    let mut numbers = Vec::new();
    for _ in 0..60 {
        let run = job.run().await;
        assert_eq!(run.attempt, 1);
        numbers.push(run.number);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..60).collect::<Vec<_>>());
    assert!(dead_letters(harness).await.is_empty());
}

/// A handler that takes several times `ack_wait` keeps its lease by itself: nobody else gets the message.
pub async fn long_handler_keeps_its_lease(harness: &Harness) {
    let ack_wait = harness.lease(ACK_WAIT);
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let slow = BusOptions { ack_wait, ..options(harness) };
    let (one, two) = (bus_with(harness, slow.clone()).await, bus_with(harness, slow).await);
    let long = move |_: Delivered| async move {
        // The handler's work, in which the test takes no part.
        tokio::time::sleep(4 * ack_wait + ack_wait / 2).await;
        Ok(())
    };
    let mut jobs = [start(&one, Job::new(&stream), long).await, start(&two, Job::new(&stream), long).await];
    publish_numbers(&*backend, &harness.subject("work.x"), 7..8).await;
    settled(&*backend, &stream).await;
    let runs: Vec<Run> = jobs.iter_mut().flat_map(|job| job.runs_so_far()).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert_eq!(info(&*backend, &stream).await.redelivered, 0);
}

/// A consumer that is stopped in the middle of a handler does not acknowledge for it: another one does the work.
pub async fn cancelled_handler_is_not_acknowledged(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let (one, two) = (super::bus(harness).await, super::bus(harness).await);
    let mut cancelled = start(&one, Job::new(&stream).concurrency(3), |_| std::future::pending()).await;
    publish_numbers(&*backend, &harness.subject("work.x"), 0..3).await;
    for _ in 0..3 {
        cancelled.run().await;
    }
    cancelled.stop().await;
    let mut heir = start(&two, Job::new(&stream), async |_| Ok(())).await;
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let run = heir.run().await;
        assert_eq!(run.attempt, 2);
        numbers.push(run.number);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
    settled(&*backend, &stream).await;
}

/// A message whose handlers never come to an end, because their processes do, is a dead letter before it runs once more
/// than it may.
pub async fn message_that_outlives_its_handlers_is_a_dead_letter_in_the_end(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 7..8).await;
    for attempt in 1..=3 {
        let bus = bus_with(harness, three_tries(harness)).await;
        let mut doomed = start(&bus, Job::new(&stream), |_| std::future::pending()).await;
        assert_eq!(doomed.run().await.attempt, attempt);
        doomed.stop().await;
    }
    assert!(dead_letters(harness).await.is_empty(), "it was delivered as often as it may be, and not more");
    let bus = bus_with(harness, three_tries(harness)).await;
    let mut last = start(&bus, Job::new(&stream), async |_| Ok(())).await;
    settled(&*backend, &stream).await;
    assert!(last.no_more_runs(), "a fourth handler saw it");
    let dead = dead_letters(harness).await;
    assert_eq!(dead.iter().map(|letter| number(letter)).collect::<Vec<_>>(), [7]);
    assert_eq!(dead[0].headers.get("Trunkline-Dead-Reason"), Some("max_deliver"));
}

/// When the connection keeps the bus from renewing a lease, the handler is cancelled, its end is not acknowledged,
/// and the message is handled again.
pub async fn lost_lease_cancels_the_handler(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let rates = FaultRates { settle: 1.0, fetch: 1.0, ..FaultRates::default() };
    let faulty = Arc::new(FaultyBackend::new(harness.backend().await, rates, 1));
    let options = BusOptions { ack_wait: harness.lease(ACK_WAIT), ..options(harness) };
    // Joined and fetched while all is well; then nothing goes through any more.
    faulty.calm();
    let one = Bus::with_backend(faulty.clone(), options.clone());
    let ended = Arc::new(Semaphore::new(0));
    struct Ended(Arc<Semaphore>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.add_permits(1);
        }
    }
    let mut losing = {
        let ended = ended.clone();
        start(&one, Job::new(&stream), move |_| {
            let guard = Ended(ended.clone());
            async move {
                std::future::pending::<()>().await;
                drop(guard);
                Ok(())
            }
        })
        .await
    };
    publish_numbers(&*backend, &harness.subject("work.x"), 7..8).await;
    assert_eq!(losing.run().await.attempt, 1);
    faulty.rage();
    soon("the handler is cancelled", ended.acquire()).await.expect("the semaphore lives").forget();
    // Its failing fetches would go on swallowing deliveries until none is left for the heir.
    losing.stop().await;
    let two = bus_with(harness, options).await;
    let mut heir = start(&two, Job::new(&stream), async |_| Ok(())).await;
    let run = heir.run().await;
    assert_eq!(run.number, 7);
    assert!(run.attempt >= 2, "{run:?}");
    settled(&*backend, &stream).await;
}

/// What a bus that died held is handled by the others.
pub async fn dead_bus_leaves_its_work_to_the_others(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let options = BusOptions { ack_wait: harness.lease(ACK_WAIT), ..options(harness) };
    let two = bus_with(harness, options.clone()).await;
    let (connection, job) = (harness.backend().await, Job::new(&stream).concurrency(4));
    let mut dying = die_with(async move {
        let one = Bus::with_backend(connection, options);
        (start(&one, job, |_| std::future::pending()).await, one)
    })
    .await;
    publish_numbers(&*backend, &harness.subject("work.x"), 0..20).await;
    for _ in 0..4 {
        dying.made.0.run().await;
    }
    dying.die().await;
    let mut heir = start(&two, Job::new(&stream), async |_| Ok(())).await;
    let mut numbers = Vec::new();
    for _ in 0..20 {
        numbers.push(heir.run().await.number);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    settled(&*backend, &stream).await;
}

/// A dead letter that cannot be written leaves the message with its consumer; when it can be, there is exactly one.
pub async fn message_stays_until_its_dead_letter_is_written(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let rates = FaultRates { publish_refused: 1.0, ..FaultRates::default() };
    let faulty = Arc::new(FaultyBackend::new(harness.backend().await, rates, 1));
    let bus = bus_over(harness, faulty.clone());
    let mut job = start(&bus, Job::new(&stream), async |_| Err(HandlerError::reject("never"))).await;
    publish_numbers(&*backend, &harness.subject("work.x"), 7..8).await;
    job.run().await;
    let refused = async {
        while bus.status().counters.dead_letter_errors == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("the dead letter is refused", refused).await;
    assert!(dead_letters(harness).await.is_empty());
    let kept = info(&*backend, &stream).await;
    assert_eq!((kept.pending, kept.ack_floor), (1, None), "the message is still the consumer's");
    faulty.calm();
    settled(&*backend, &stream).await;
    assert_eq!(dead_letters(harness).await.len(), 1);
}

/// A consumer of the dead letters that fails makes no dead letters of dead letters.
pub async fn dead_letter_never_dead_letters_again(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let bus = bus_with(harness, three_tries(harness)).await;
    let mut job = start(&bus, Job::new(&stream), async |_| Err(HandlerError::reject("never"))).await;
    publish_numbers(&*backend, &harness.subject("work.x"), 0..3).await;
    for _ in 0..3 {
        job.run().await;
    }
    settled(&*backend, &stream).await;
    let mut undertaker =
        start(&bus, Job::new(&dead_stream(harness)), async |_| Err(HandlerError::reject("never"))).await;
    for _ in 0..3 {
        undertaker.run().await;
    }
    settled(&*backend, &dead_stream(harness)).await;
    assert_eq!(dead_letters(harness).await.len(), 3);
    assert!(undertaker.no_more_runs());
}

/// A drain lets the handlers of a consumer finish and acknowledges for them; the rest is left to others.
pub async fn drain_lets_consumers_finish(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let bus = super::bus(harness).await;
    let gate = Arc::new(Semaphore::new(0));
    let mut job = {
        let gate = gate.clone();
        start(&bus, Job::new(&stream).concurrency(3), move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await?.forget();
                Ok(())
            }
        })
        .await
    };
    publish_numbers(&*backend, &harness.subject("work.x"), 0..10).await;
    for _ in 0..3 {
        job.run().await;
    }
    let (drained, ()) = tokio::join!(soon("drain", bus.drain(PATIENCE)), async { gate.add_permits(3) });
    drained.expect("the handlers finish in time");
    let left = info(&*backend, &stream).await;
    assert_eq!((left.pending + left.lag, left.redelivered), (7, 0), "three were handled and acknowledged");
    assert!(job.no_more_runs());
}
