//! Publishing, and what a connection says about itself.

use std::time::{Duration, Instant};

use bytes::Bytes;
use trunkline::backend::{PublishError, Receipt, SubscribeError, SubscribeOptions};
use trunkline::status::BackendState;
use trunkline::{Headers, Message};

use super::Harness;
use super::probe::{Listener, flush, numbered, publish, soon, try_publish};

/// A backend says exactly what its column of the table says.
pub async fn capabilities_are_those_of_the_table(harness: &Harness) {
    let backend = harness.backend().await;
    let promised = harness.column().capabilities();
    assert_eq!(backend.capabilities(), promised);
    assert_eq!(backend.streams().is_ok(), promised.streams);
}

/// Once connected, the status is `Connected`, names the backend and shows no credentials.
pub async fn status_is_connected_and_names_the_backend(harness: &Harness) {
    let backend = harness.backend().await;
    let status = backend.status().borrow().clone();
    assert_eq!(status.state, BackendState::Connected);
    assert_eq!(status.backend, harness.column().capabilities().kind);
    assert!(!status.server.is_empty() && !status.server.contains('@'), "{:?}", status.server);
}

/// Subject, reply, headers with repeats and every byte of the payload arrive as they were published.
pub async fn message_arrives_whole(harness: &Harness) {
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("whole.Ünïcode");
    let mut listener = Listener::plain(&*receiver, &subject).await;
    let mut headers = Headers::new();
    for (name, value) in [("X-Many", "1"), ("x-Other", "a: b, ü"), ("X-Many", "2"), ("X-Empty", "")] {
        headers.append(name, value).expect("valid headers");
    }
    let all_bytes: Vec<u8> = (0..=255u8).cycle().take(70_000).collect();
    for payload in [Bytes::new(), Bytes::from_static(b"\r\n\0"), Bytes::from(all_bytes)] {
        for (reply, headers) in [(None, Headers::new()), (Some(sender.new_inbox()), headers.clone())] {
            let message = Message { subject: subject.clone(), reply, headers, payload: payload.clone() };
            publish(&*sender, message.clone()).await;
            let arrived = listener.message().await;
            assert_eq!(arrived.subject, message.subject);
            assert_eq!(arrived.reply, message.reply);
            assert_eq!(arrived.payload, message.payload);
            for name in ["X-Many", "x-Other", "X-Empty", "X-None"] {
                let values = |m: &Message| m.headers.get_all(name).map(str::to_owned).collect::<Vec<_>>();
                assert_eq!(values(&arrived), values(&message), "values of {name}, in order");
            }
            assert_eq!(arrived.headers.len(), message.headers.len(), "nothing is added to the headers");
        }
    }
}

/// Where no stream matches, the receipt promises no more than acceptance. (Redis keeps what no configured stream
/// matches in a stream of its family.)
pub async fn publish_without_a_stream_is_accepted(harness: &Harness) {
    let backend = harness.backend().await;
    let receipt = publish(&*backend, numbered(&harness.subject("plain"), 1)).await;
    match harness.column() {
        super::Column::Redis => assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}"),
        _ => assert_eq!(receipt, Receipt::Accepted),
    }
}

/// A message over the limit is refused with the size and the limit, nothing of it is published, and the
/// connection stays good; without a limit it arrives whole. It is never accepted and dropped.
pub async fn oversized_publish_is_refused_or_arrives_whole(harness: &Harness) {
    let backend = harness.backend().await;
    let subject = harness.subject("large");
    let mut listener = Listener::plain(&*backend, &subject).await;
    let payload = Bytes::from(vec![b'x'; 9 << 20]);
    match try_publish(&*backend, Message::new(subject.clone(), payload.clone())).await {
        Err(PublishError::TooLarge { size, limit }) => {
            assert!(size >= payload.len() && limit < size, "{size} bytes against {limit}");
        }
        Ok(_) => assert_eq!(listener.message().await.payload, payload),
        Err(other) => panic!("a message that is too large is TooLarge, not {other:?}"),
    }
    publish(&*backend, numbered(&subject, 7)).await;
    assert_eq!(listener.numbers(1).await, [7], "the connection is as good as before");
}

/// What was published before a flush is there for a reader on another connection, even when the publisher is
/// dropped right after.
pub async fn flush_proves_receipt(harness: &Harness) {
    let receiver = harness.backend().await;
    let subject = harness.subject("flushed");
    let mut listener = Listener::plain(&*receiver, &subject).await;
    for round in 0..10 {
        let sender = harness.backend().await;
        for n in 0..20 {
            publish(&*sender, numbered(&subject, round * 20 + n)).await;
        }
        flush(&*sender).await;
        drop(sender);
        assert_eq!(listener.numbers(20).await, (round * 20..round * 20 + 20).collect::<Vec<_>>());
    }
}

/// A drain lets what was published go out, then refuses new work by type and says `Closed`.
pub async fn drain_delivers_what_was_published_then_closes(harness: &Harness) {
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("drained");
    let mut listener = Listener::plain(&*receiver, &subject).await;
    for n in 0..100 {
        publish(&*sender, numbered(&subject, n)).await;
    }
    soon("drain", sender.drain(Instant::now() + Duration::from_secs(5)))
        .await
        .expect("nothing hinders the drain");
    assert_eq!(listener.numbers(100).await, (0..100).collect::<Vec<_>>());

    assert_eq!(sender.status().borrow().state, BackendState::Closed);
    assert_eq!(try_publish(&*sender, numbered(&subject, 100)).await, Err(PublishError::Closed));
    let late = soon("subscribe", sender.subscribe((&subject).into(), SubscribeOptions::default())).await;
    assert_eq!(late.err(), Some(SubscribeError::Closed));
    // The other connection is its own: it goes on.
    publish(&*receiver, numbered(&subject, 101)).await;
    assert_eq!(listener.numbers(1).await, [101]);
}
