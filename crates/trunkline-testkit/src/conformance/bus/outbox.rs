//! The outbox over a server that goes away.

use trunkline::backend::{PublishError, Receipt};
use trunkline::bus::outbox::OutboxOptions;
use trunkline::{Bus, BusOptions, RequestError};

use super::super::Harness;
use super::super::outage::{is_connected, is_disconnected};
use super::super::probe::{Listener, number, numbered, soon};
use super::options;

/// What is published while the server is away is queued, never a request, and arrives once and in order.
pub async fn what_is_queued_in_an_outage_arrives_once_and_in_order(harness: &Harness) {
    let (backend, reader) = (harness.backend().await, harness.backend().await);
    let outbox = Some(OutboxOptions::default());
    let bus = Bus::with_backend(backend.clone(), BusOptions { outbox, ..options(harness) });
    let subject = harness.subject("queued");
    let mut listener = Listener::plain(&*reader, &subject).await;
    soon("publish", bus.publish_message(numbered(&subject, 0))).await.expect("the server is there");
    soon("flush", bus.flush()).await.expect("the server is there");
    assert_eq!(listener.numbers(1).await, [0]);
    harness.faults().kill().await;
    is_disconnected(&*backend).await;
    for n in 1..=100 {
        let receipt = soon("publish", bus.publish_message(numbered(&subject, n))).await;
        assert_eq!(receipt, Ok(Receipt::Queued));
    }
    let timeout = std::time::Duration::from_secs(5);
    let request = soon("request", bus.request_message(numbered(&subject, 1000), timeout)).await;
    assert!(
        matches!(
            request,
            Err(RequestError::Publish(PublishError::NotConnected { .. }) | RequestError::Inbox(_))
        ),
        "a request has a deadline: {request:?}"
    );
    assert_eq!(bus.status().outbox.expect("it is on").messages, 100);
    harness.faults().restart().await;
    is_connected(&*backend).await;
    soon("flush", bus.flush()).await.expect("the server is back");
    let status = bus.status().outbox.expect("it is on");
    assert_eq!((status.messages, status.refused, status.unknown), (0, 0, 0));
    if harness.column().capabilities().resumes_after_reconnect {
        assert_eq!(listener.numbers(100).await, (1..=100).collect::<Vec<_>>());
        return;
    }
    // The reader may have come back after some of them: what it was given is in order and came once.
    let (mut before, _) = listener.until_gap().await;
    is_connected(&*reader).await;
    soon("flush", reader.flush()).await.expect("the server is back");
    soon("publish", bus.publish_message(numbered(&subject, 101))).await.expect("the server is back");
    loop {
        let n = number(&*listener.message().await);
        before.push(n);
        if n == 101 {
            break;
        }
    }
    assert!(before.is_sorted_by(|a, b| a < b), "{before:?}");
}
