//! Consumers: leases, acks, redelivery. One member at a time; several are in `membership`.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use trunkline::backend::{Delivery, Settle, Settled, Start, StreamConfig};

use super::Harness;
use super::probe::{
    ACK_WAIT, LONG_ACK_WAIT, PATIENCE, ack, consumer, delivered_numbers, ensure, ensure_config, fetch,
    fetch_all, fetch_nothing, fetch_one, join, number, publish_numbers, settle, soon, stored_at, streams,
    tells,
};

/// Makes the stream `work` over `work.*`, and gives its name.
async fn work(harness: &Harness) -> String {
    let name = harness.stream("work");
    ensure(&*harness.backend().await, &name, harness.pattern("work.*")).await;
    name
}

/// A new consumer starts at the beginning, at the end or behind an offset; one that exists goes on where it was.
pub async fn consumer_starts_where_it_was_told(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let subject = harness.subject("work.x");
    let receipts = publish_numbers(&*backend, &subject, 0..10).await;
    let mut members = Vec::new();
    for (name, start, first) in [
        ("all", Start::Beginning, 0),
        ("after", Start::After(stored_at(&receipts[6])), 7),
        ("new", Start::New, 10),
    ] {
        let mut config = consumer(name, LONG_ACK_WAIT);
        config.start = start;
        members.push((join(&*backend, &stream, config).await, first));
    }
    publish_numbers(&*backend, &subject, 10..12).await;
    for (member, first) in &members {
        let deliveries = fetch_all(&**member, 12 - *first as usize).await;
        assert_eq!(delivered_numbers(&deliveries), (*first..12).collect::<Vec<_>>());
        for delivery in &deliveries {
            let n = number(&delivery.message);
            assert_eq!((delivery.attempt, delivery.token.attempt), (1, 1));
            assert_eq!(delivery.token.offset, delivery.offset);
            if let Some(receipt) = receipts.get(n as usize) {
                assert_eq!(delivery.offset, stored_at(receipt));
            }
            ack(&**member, delivery).await;
        }
    }
    // A start is only for a consumer that is new.
    let again = join(&*backend, &stream, consumer("new", LONG_ACK_WAIT)).await;
    publish_numbers(&*backend, &subject, 12..13).await;
    assert_eq!(delivered_numbers(&fetch_all(&*again, 1).await), [12]);
}

/// What was acknowledged never comes again, however long one waits.
pub async fn acked_message_never_comes_again(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 0..5).await;
    let member = join(&*backend, &stream, consumer("c", harness.lease(ACK_WAIT))).await;
    for delivery in fetch_all(&*member, 5).await {
        ack(&*member, &delivery).await;
    }
    fetch_nothing(&*member, 2 * harness.lease(ACK_WAIT), "acknowledged").await;
}

/// An unsettled delivery comes again once its lease is over, not before, with the next attempt.
pub async fn unsettled_message_comes_again_after_ack_wait(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 7..8).await;
    let member = join(&*backend, &stream, consumer("c", harness.lease(ACK_WAIT))).await;
    for attempt in 1..=4 {
        let asked = Instant::now();
        let delivery = fetch_one(&*member).await;
        assert_eq!((number(&delivery.message), delivery.attempt), (7, attempt));
        if attempt > 1 {
            // The lease began at some moment of the fetch before, which had to wait for the one before that.
            assert!(
                asked.elapsed() >= harness.lease(ACK_WAIT) / 2,
                "redelivered after {:?}",
                asked.elapsed()
            );
            assert!(asked.elapsed() < PATIENCE / 2, "redelivered after {:?}", asked.elapsed());
        }
    }
}

/// A nak with a delay brings the message back after the delay, not before.
pub async fn nak_redelivers_after_its_delay(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 7..8).await;
    let member = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let mut delivery = fetch_one(&*member).await;
    for attempt in 2..=3 {
        let delay = Duration::from_millis(250);
        let naked = Instant::now();
        assert_eq!(settle(&*member, &delivery, Settle::Nak(delay)).await, Settled::Done);
        delivery = fetch_one(&*member).await;
        assert_eq!((number(&delivery.message), delivery.attempt), (7, attempt));
        // Redis counts in milliseconds.
        assert!(naked.elapsed() + Duration::from_millis(2) >= delay, "came after {:?}", naked.elapsed());
    }
    ack(&*member, &delivery).await;
}

/// A nak without delay brings the message back at once, before messages that nobody has seen.
pub async fn nak_without_delay_redelivers_at_once(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 0..10).await;
    let member = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
    for attempt in 1..=20 {
        let delivery = fetch_one(&*member).await;
        assert_eq!((number(&delivery.message), delivery.attempt), (0, attempt), "redeliveries come first");
        assert_eq!(settle(&*member, &delivery, Settle::Nak(Duration::ZERO)).await, Settled::Done);
    }
}

/// A message that waits for its redelivery holds up no other.
pub async fn failing_message_blocks_no_other(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 0..50).await;
    let member = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let failing = fetch_one(&*member).await;
    assert_eq!(settle(&*member, &failing, Settle::Nak(LONG_ACK_WAIT)).await, Settled::Done);
    let stuck = fetch_one(&*member).await;
    // One waits for a delay, one is at work and unsettled: the rest flows.
    for n in 2..50 {
        let delivery = fetch_one(&*member).await;
        assert_eq!(number(&delivery.message), n);
        ack(&*member, &delivery).await;
    }
    ack(&*member, &stuck).await;
}

/// What was terminated never comes again.
pub async fn terminated_message_never_comes_again(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 0..2).await;
    let member = join(&*backend, &stream, consumer("c", harness.lease(ACK_WAIT))).await;
    let deliveries = fetch_all(&*member, 2).await;
    assert_eq!(settle(&*member, &deliveries[0], Settle::Term).await, Settled::Done);
    assert_eq!(settle(&*member, &deliveries[1], Settle::Nak(Duration::ZERO)).await, Settled::Done);
    let again = fetch_one(&*member).await;
    assert_eq!(number(&again.message), 1);
    assert_eq!(settle(&*member, &again, Settle::Term).await, Settled::Done);
    fetch_nothing(&*member, 2 * harness.lease(ACK_WAIT), "terminated").await;
}

/// As long as the handler says that it is at work, nobody else gets the message.
pub async fn progress_keeps_the_lease(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let ack_wait = 2 * harness.lease(ACK_WAIT);
    publish_numbers(&*backend, &harness.subject("work.x"), 7..8).await;
    let member = join(&*backend, &stream, consumer("c", ack_wait)).await;
    let delivery = fetch_one(&*member).await;
    let started = Instant::now();
    while started.elapsed() < 2 * ack_wait {
        fetch_nothing(&*member, ack_wait / 4, "its handler is at work").await;
        assert_eq!(settle(&*member, &delivery, Settle::Progress).await, Settled::Done);
    }
    ack(&*member, &delivery).await;
    fetch_nothing(&*member, 2 * ack_wait, "acknowledged").await;
}

/// Once the message belongs to another delivery, nothing that the earlier one says counts.
pub async fn late_ack_of_a_lost_lease_is_refused(harness: &Harness) {
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    publish_numbers(&*one, &harness.subject("work.x"), 7..8).await;
    let early = join(&*one, &stream, consumer("c", harness.lease(ACK_WAIT))).await;
    let late = join(&*two, &stream, consumer("c", harness.lease(ACK_WAIT))).await;
    let first = fetch_one(&*early).await;
    let second = fetch_one(&*late).await;
    assert_eq!((first.attempt, second.attempt), (1, 2));
    for how in [Settle::Ack, Settle::Progress, Settle::Nak(Duration::ZERO), Settle::Term, Settle::Ack] {
        assert_eq!(settle(&*early, &first, how).await, Settled::LeaseLost, "{how:?} of a lost lease");
    }
    // The refused ones changed nothing: the message is still the second member's, or comes a third time.
    match settle(&*late, &second, Settle::Ack).await {
        Settled::Done => {}
        Settled::LeaseLost => ack(&*late, &fetch_one(&*late).await).await,
    }
    fetch_nothing(&*early, 2 * harness.lease(ACK_WAIT), "acknowledged").await;
}

/// The same for many in one batch: none of them counts, and the messages stay with whoever has them now.
pub async fn late_acks_of_many_lost_leases_are_refused(harness: &Harness) {
    const MANY: usize = 40;
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    publish_numbers(&*one, &harness.subject("work.x"), 0..MANY as u64).await;
    let early = join(&*one, &stream, consumer("c", harness.lease(ACK_WAIT))).await;
    let late = join(&*two, &stream, consumer("c", harness.lease(ACK_WAIT))).await;
    let acks = |deliveries: Vec<Delivery>| {
        deliveries.into_iter().map(|delivery| (delivery.token, Settle::Ack)).collect::<Vec<_>>()
    };
    let lost = acks(fetch_all(&*early, MANY).await);
    let mut left = acks(fetch_all(&*late, MANY).await);
    let settled = early.settle(lost).await.expect("settled");
    assert_eq!(settled, vec![Settled::LeaseLost; MANY], "another has them");
    while !left.is_empty() {
        let settled = late.settle(left).await.expect("settled");
        // On a slow machine its leases are lost in turn, and the messages come again.
        let again = settled.iter().filter(|settled| **settled == Settled::LeaseLost).count();
        left = acks(fetch_all(&*late, again).await);
    }
    fetch_nothing(&*early, 2 * harness.lease(ACK_WAIT), "acknowledged").await;
    publish_numbers(&*one, &harness.subject("work.x"), 100..101).await;
    assert_eq!(number(&fetch_one(&*early).await.message), 100, "the stream goes on");
}

/// A settled delivery is over: a second settlement is answered `LeaseLost`.
pub async fn settled_delivery_cannot_be_settled_again(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 0..3).await;
    let member = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let deliveries = fetch_all(&*member, 3).await;
    for (delivery, how) in
        deliveries.iter().zip([Settle::Ack, Settle::Term, Settle::Nak(Duration::from_secs(300))])
    {
        assert_eq!(settle(&*member, delivery, how).await, Settled::Done);
        for again in [Settle::Ack, Settle::Term, Settle::Progress, Settle::Nak(Duration::ZERO)] {
            assert_eq!(
                settle(&*member, delivery, again).await,
                Settled::LeaseLost,
                "{again:?} after {how:?}"
            );
        }
    }
}

/// A batch has one answer for each settlement, in order, good and bad mixed.
pub async fn batch_is_answered_one_by_one_in_order(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 0..6).await;
    let member = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let d = fetch_all(&*member, 6).await;
    ack(&*member, &d[1]).await;
    let ways = [
        (&d[0], Settle::Ack, Settled::Done),
        (&d[1], Settle::Ack, Settled::LeaseLost),
        (&d[2], Settle::Nak(Duration::ZERO), Settled::Done),
        (&d[3], Settle::Term, Settled::Done),
        (&d[0], Settle::Ack, Settled::LeaseLost),
        (&d[4], Settle::Progress, Settled::Done),
        (&d[5], Settle::Ack, Settled::Done),
    ];
    let batch = ways.iter().map(|(delivery, how, _)| (delivery.token.clone(), *how)).collect();
    let answers = soon("settle", member.settle(batch)).await.expect("settling on a live connection");
    assert_eq!(answers, ways.map(|(_, _, answer)| answer));
    assert_eq!(soon("settle", member.settle(Vec::new())).await, Ok(Vec::new()));
    let again = fetch_one(&*member).await;
    assert_eq!((number(&again.message), again.attempt), (2, 2));
}

/// A fetch that waits is woken by a publish, and comes back empty when nothing is published.
pub async fn fetch_waits_for_a_message(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let member = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let subject = harness.subject("work.x");
    let asked = Instant::now();
    fetch_nothing(&*member, Duration::from_millis(100), "nothing is published").await;
    assert!(asked.elapsed() >= Duration::from_millis(90), "it came back after {:?}", asked.elapsed());
    for n in 0..10 {
        let asked = Instant::now();
        let wait = PATIENCE / 2;
        let publishing = publish_numbers(&*backend, &subject, n..n + 1);
        let (deliveries, _) = tokio::join!(fetch(&*member, 10, wait), publishing);
        assert_eq!(delivered_numbers(&deliveries), [n]);
        assert!(asked.elapsed() < wait, "the publish did not wake the fetch");
        ack(&*member, &deliveries[0]).await;
    }
}

/// A fetch that is dropped takes no message with it for longer than a lease.
pub async fn cancelled_fetch_loses_nothing(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let member = join(&*backend, &stream, consumer("c", harness.lease(ACK_WAIT))).await;
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..20 {
        {
            let mut waiting = member.fetch(10, PATIENCE);
            assert!((&mut waiting).now_or_never().is_none() || n > 0, "nothing is published yet");
            publish_numbers(&*backend, &harness.subject("work.x"), n..n + 1).await;
        }
        for delivery in fetch(&*member, 10, Duration::from_millis(1)).await {
            seen.insert(number(&delivery.message));
            ack(&*member, &delivery).await;
        }
    }
    while seen.len() < 20 {
        let delivery = fetch_one(&*member).await;
        assert!(seen.insert(number(&delivery.message)), "{delivery:?} was acknowledged");
        ack(&*member, &delivery).await;
    }
}

/// A consumer with a filter gets what matches, and counts nothing else.
pub async fn consumer_takes_only_what_its_filter_matches(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 0..5).await;
    publish_numbers(&*backend, &harness.subject("work.y"), 5..10).await;
    publish_numbers(&*backend, &harness.subject("work.x"), 10..12).await;
    let mut config = consumer("c", LONG_ACK_WAIT);
    config.filter = Some(harness.pattern("work.y"));
    let member = join(&*backend, &stream, config).await;
    let deliveries = fetch_all(&*member, 5).await;
    assert_eq!(delivered_numbers(&deliveries), (5..10).collect::<Vec<_>>());
    fetch_nothing(&*member, Duration::from_millis(50), "the rest does not match").await;
    let stand = || {
        let info = streams(&*backend).consumer_info(&stream, "c");
        async move {
            let info = soon("info", info).await.expect("the stream is there").expect("the consumer is there");
            (info.lag, info.pending)
        }
    };
    tells(harness, (0, 5), stand).await;
}

/// Limits win over unread messages, and the consumer is told how many it will never see.
pub async fn consumer_counts_what_limits_took_from_it(harness: &Harness) {
    let backend = harness.backend().await;
    let (stream, subject) = (harness.stream("short"), harness.subject("short"));
    let mut config = StreamConfig::new(&stream, vec![harness.pattern("short")]);
    config.max_messages = Some(10);
    ensure_config(&*backend, config).await;
    let member = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
    publish_numbers(&*backend, &subject, 0..100).await;
    let (mut missed, mut numbers) = (0, Vec::new());
    while numbers.last() != Some(&99) {
        let fetched = soon("fetch", member.fetch(10, PATIENCE)).await.expect("fetching on a live connection");
        missed += fetched.missed;
        numbers.extend(delivered_numbers(&fetched.deliveries));
    }
    // A server that has not heard of the last messages yet has not removed what they take the place of.
    let first = numbers[0];
    assert!(first == 90 || harness.has_copies() && first < 90, "{numbers:?}");
    assert_eq!(numbers, (first..100).collect::<Vec<_>>());
    let info =
        soon("info", streams(&*backend).consumer_info(&stream, "c")).await.expect("the stream is there");
    let counted = info.expect("the consumer is there").missed;
    match harness.column() {
        // Redis numbers by time: that something is missing is known, not how much.
        super::Column::Redis => assert!(missed > 0 && counted > 0, "nothing says that messages are missing"),
        _ => assert_eq!((missed, counted), (first, first)),
    }
}

/// What one consumer does with a message is nothing to another.
pub async fn consumers_of_a_stream_are_independent(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 0..10).await;
    let one = join(&*backend, &stream, consumer("one", LONG_ACK_WAIT)).await;
    let two = join(&*backend, &stream, consumer("two", LONG_ACK_WAIT)).await;
    for delivery in fetch_all(&*one, 10).await {
        assert_eq!(settle(&*one, &delivery, Settle::Term).await, Settled::Done);
    }
    let deliveries = fetch_all(&*two, 10).await;
    assert_eq!(delivered_numbers(&deliveries), (0..10).collect::<Vec<_>>());
    for delivery in &deliveries {
        assert_eq!(delivery.attempt, 1);
        ack(&*two, delivery).await;
    }
}
