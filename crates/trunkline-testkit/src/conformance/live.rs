//! Live subscriptions: fan-out, order, gaps.

use std::collections::HashSet;

use futures_util::FutureExt;
use trunkline::backend::{Gap, LiveEvent, SubscribeOptions};

use super::Harness;
use super::probe::{Listener, flush, number, numbered, publish, publish_numbers};

/// No message is lost between the return of `subscribe` on one connection and a publish on another.
pub async fn everything_published_after_subscribe_returned_arrives(harness: &Harness) {
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    for n in 0..100 {
        let subject = harness.subject(&format!("after.{n}"));
        let mut listener = Listener::plain(&*receiver, &subject).await;
        publish(&*sender, numbered(&subject, n)).await;
        assert_eq!(listener.numbers(1).await, [n]);
    }
}

/// Every subscription gets every message, on one connection and on several, with equal and overlapping patterns.
pub async fn subscribers_do_not_steal_from_each_other(harness: &Harness) {
    let (one, two) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("fan.out");
    let mut listeners = Vec::new();
    for backend in [&one, &two] {
        for pattern in ["fan.out", "fan.out", "fan.*", ">"] {
            listeners.push(Listener::plain(&**backend, harness.pattern(pattern)).await);
        }
    }
    publish_numbers(&*one, &subject, 0..200).await;
    for listener in &mut listeners {
        assert_eq!(listener.numbers(200).await, (0..200).collect::<Vec<_>>());
    }
    // A marker comes next everywhere: nobody got a message twice.
    publish(&*one, numbered(&subject, 999)).await;
    for listener in &mut listeners {
        assert_eq!(listener.numbers(1).await, [999]);
    }
}

/// `*` is one token, `>` one or more; a subscription gets what matches and nothing else.
pub async fn patterns_match_whole_tokens(harness: &Harness) {
    let backend = harness.backend().await;
    let subjects = ["a", "a.b", "a.b.c", "ab", "b", "a.c", "A.b"].map(|tail| harness.subject(tail));
    for (pattern, matching) in [
        ("a", &[0][..]),
        ("a.*", &[1, 5]),
        ("*", &[0, 3, 4]),
        (">", &[0, 1, 2, 3, 4, 5, 6]),
        ("a.>", &[1, 2, 5]),
        ("*.b", &[1, 6]),
        ("*.*.c", &[2]),
        ("a.b", &[1]),
    ] {
        let mut listener = Listener::plain(&*backend, harness.pattern(pattern)).await;
        for (n, subject) in (0..).zip(&subjects) {
            publish(&*backend, numbered(subject, n)).await;
        }
        let got = listener.numbers(matching.len()).await;
        assert_eq!(got, matching, "{pattern}");
        flush(&*backend).await;
        assert!(listener.stop().await.is_empty(), "{pattern} got what it does not match");
    }
}

/// What one publisher sends to one subject arrives in that order, whatever others do meanwhile.
pub async fn order_is_kept_per_publisher_and_subject(harness: &Harness) {
    const EACH: u64 = 300;
    let receiver = harness.backend().await;
    let mut listener = Listener::plain(&*receiver, harness.pattern("order.*")).await;
    let mut publishers = Vec::new();
    for publisher in 0..3u64 {
        let sender = harness.backend().await;
        let subjects = ["order.x", "order.y"].map(|tail| harness.subject(tail));
        publishers.push(async move {
            for n in 0..EACH {
                for subject in &subjects {
                    publish(&*sender, numbered(subject, publisher * EACH + n)).await;
                }
            }
            flush(&*sender).await;
        });
    }
    let publishing = futures_util::future::join_all(publishers);
    let receiving = async {
        let mut next = std::collections::HashMap::new();
        for _ in 0..3 * 2 * EACH {
            let message = listener.message().await;
            let (publisher, n) = (number(&message) / EACH, number(&message) % EACH);
            let expected = next.entry((publisher, message.subject.clone())).or_insert(0);
            assert_eq!(n, *expected, "publisher {publisher} on {}", message.subject);
            *expected += 1;
        }
    };
    tokio::join!(publishing, receiving);
}

/// A subscription that is not read keeps a bounded number of messages. What it could not be given shows as a gap
/// just where it is missing, with the number where that is known: messages and gaps add up to what was published.
pub async fn what_a_slow_subscriber_misses_is_a_counted_gap(harness: &Harness) {
    const SENT: u64 = 5_000;
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("slow");
    let options = SubscribeOptions { max_pending: Some(32), ..SubscribeOptions::default() };
    let mut slow = Listener::start(&*receiver, &subject, options).await;
    let mut witness = Listener::plain(&*receiver, &subject).await;
    publish_numbers(&*sender, &subject, 0..SENT).await;
    // The witness is on the same connection: once it has everything, everything has come in for the other too.
    assert_eq!(witness.numbers(SENT as usize).await, (0..SENT).collect::<Vec<_>>());

    let (mut expected, mut gaps) = (0, 0);
    while expected < SENT {
        match slow.event().await {
            LiveEvent::Message { message, .. } => {
                assert_eq!(number(&message), expected, "messages are missing, and no gap says so");
                expected += 1;
            }
            LiveEvent::Gap(Gap { missed: Some(missed) }) => {
                assert!(missed > 0, "a gap of nothing");
                gaps += 1;
                expected += missed;
            }
            // A gap of unknown size: nothing can be added up behind it, so it is the last thing asked.
            LiveEvent::Gap(Gap { missed: None }) => {
                gaps += 1;
                break;
            }
        }
    }
    assert!(expected <= SENT, "gaps count {expected} of {SENT} messages");
    assert!(gaps > 0, "{SENT} messages waited for a reader that is allowed 32");
}

/// The others get everything, without a gap, while one subscription on the same connection is not read at all.
pub async fn slow_subscriber_does_not_hold_up_the_others(harness: &Harness) {
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("held");
    let options = SubscribeOptions { max_pending: Some(8), ..SubscribeOptions::default() };
    let _stuck = Listener::start(&*receiver, &subject, options).await;
    let mut neighbour = Listener::plain(&*receiver, &subject).await;
    let mut other = Listener::plain(&*sender, &subject).await;
    for round in 0..10 {
        let sent: Vec<u64> = (round * 200..round * 200 + 200).collect();
        publish_numbers(&*sender, &subject, sent.iter().copied()).await;
        assert_eq!(neighbour.numbers(200).await, sent);
        assert_eq!(other.numbers(200).await, sent);
    }
}

/// After `stop` comes what had arrived by then, then the end; what is published later does not come.
pub async fn stopped_subscription_gives_what_arrived_then_ends(harness: &Harness) {
    let backend = harness.backend().await;
    let subject = harness.subject("stopped");
    let listener = Listener::plain(&*backend, &subject).await;
    let mut witness = Listener::plain(&*backend, &subject).await;
    publish_numbers(&*backend, &subject, 0..50).await;
    let rest = listener.stop().await;
    assert_eq!(rest.iter().map(|m| number(m)).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());

    let listener = Listener::plain(&*backend, &subject).await;
    let rest = listener.stop().await;
    assert!(rest.is_empty(), "{rest:?} was published before this subscription");
    publish(&*backend, numbered(&subject, 50)).await;
    assert_eq!(witness.numbers(51).await.len(), 51, "the subscription beside it goes on");
}

/// A receive that is dropped before it is ready takes no message with it.
pub async fn cancelled_receive_loses_nothing(harness: &Harness) {
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("cancelled");
    let mut listener = Listener::plain(&*receiver, &subject).await;
    for n in 0..200 {
        // Polled once, then dropped: it may be ready with the message before, or leave nothing behind.
        assert!(listener.recv().now_or_never().is_none(), "nothing was published yet");
        publish(&*sender, numbered(&subject, n)).await;
        assert_eq!(listener.numbers(1).await, [n]);
    }
}

/// Many subscriptions on one connection do not mix up.
pub async fn thousand_subscriptions_each_get_their_own(harness: &Harness) {
    const COUNT: u64 = 1_000;
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    let subjects: Vec<_> = (0..COUNT).map(|n| harness.subject(&format!("many.{n}"))).collect();
    let subscribing = subjects.iter().map(|subject| Listener::plain(&*receiver, subject));
    let mut listeners = futures_util::future::join_all(subscribing).await;
    for (n, subject) in (0..).zip(&subjects) {
        publish(&*sender, numbered(subject, n)).await;
    }
    let mut seen = HashSet::new();
    for (n, listener) in (0..).zip(&mut listeners) {
        assert_eq!(listener.numbers(1).await, [n]);
        seen.insert(n);
    }
    assert_eq!(seen.len() as u64, COUNT);
}
