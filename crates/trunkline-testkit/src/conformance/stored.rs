//! Live subscriptions that start in the stored past.

use trunkline::StreamOffset;
use trunkline::backend::{Start, SubscribeError, SubscribeOptions};

use super::Harness;
use super::probe::{Listener, ensure, flush, number, numbered, publish, publish_numbers, soon, stored_at};

/// From the beginning: everything kept, then everything new, each at the offset of its receipt.
pub async fn subscription_replays_the_past_then_follows(harness: &Harness) {
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("past.x");
    ensure(&*sender, &harness.stream("past"), harness.pattern("past.*")).await;
    let mut receipts = publish_numbers(&*sender, &subject, 0..20).await;
    let mut listener = Listener::from(&*receiver, &subject, Start::Beginning).await;
    let mut fresh = Listener::plain(&*receiver, &subject).await;
    receipts.extend(publish_numbers(&*sender, &subject, 20..40).await);
    let mut last: Option<StreamOffset> = None;
    for (n, receipt) in (0..).zip(&receipts) {
        let (message, offset) = listener.stored().await;
        assert_eq!((number(&message), offset), (n, Some(stored_at(receipt))));
        assert!(offset > last);
        last = offset;
    }
    assert_eq!(fresh.numbers(20).await, (20..40).collect::<Vec<_>>(), "without a start there is no past");
}

/// A saved offset continues behind the message it names.
pub async fn subscription_starts_after_an_offset(harness: &Harness) {
    let backend = harness.backend().await;
    let subject = harness.subject("past.x");
    ensure(&*backend, &harness.stream("past"), harness.pattern("past.*")).await;
    let receipts = publish_numbers(&*backend, &subject, 0..20).await;
    for from in [0, 9, 18, 19] {
        let start = Start::After(stored_at(&receipts[from]));
        let mut listener = Listener::from(&*backend, &subject, start).await;
        let left: Vec<u64> = (from as u64 + 1..20).collect();
        assert_eq!(listener.numbers(left.len()).await, left);
        publish(&*backend, numbered(&harness.subject("past.y"), 100)).await;
        flush(&*backend).await;
        assert!(listener.stop().await.is_empty(), "past.y does not match");
    }
}

/// While somebody publishes without pause, the step from replay to live loses nothing and repeats nothing.
pub async fn replay_hands_over_to_live_without_loss_or_repeat(harness: &Harness) {
    const SENT: u64 = 2_000;
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("past.x");
    ensure(&*sender, &harness.stream("past"), harness.pattern("past.*")).await;
    publish_numbers(&*sender, &subject, 0..500).await;
    let publishing = tokio::spawn(async move {
        for n in 500..SENT {
            publish(&*sender, numbered(&subject, n)).await;
        }
        flush(&*sender).await;
    });
    let mut listeners = Vec::new();
    for _ in 0..5 {
        listeners.push(Listener::from(&*receiver, harness.pattern("past.*"), Start::Beginning).await);
    }
    for listener in &mut listeners {
        assert_eq!(listener.numbers(SENT as usize).await, (0..SENT).collect::<Vec<_>>());
    }
    soon("the publisher", publishing).await.expect("the publisher ends well");
}

/// Where no stream covers the pattern, a start in the past is refused rather than turned into the present.
pub async fn start_in_the_past_of_nothing_stored_is_refused(harness: &Harness) {
    let backend = harness.backend().await;
    ensure(&*backend, &harness.stream("past"), harness.pattern("past.*")).await;
    for pattern in ["elsewhere", "past.x.y"] {
        let pattern = harness.pattern(pattern);
        let options = SubscribeOptions { start: Some(Start::Beginning), ..SubscribeOptions::default() };
        match soon("subscribe", backend.subscribe(pattern.clone(), options)).await {
            Err(error) => assert_eq!(error, SubscribeError::NotStored(pattern)),
            // On redis every subject belongs to some stream.
            Ok(_) => assert_eq!(harness.column(), super::Column::Redis),
        }
    }
}
