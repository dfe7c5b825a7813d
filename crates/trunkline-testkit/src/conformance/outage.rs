//! The server goes away, falls silent, comes back. The bus never lies about it and never gives up.

use std::time::{Duration, Instant};

use trunkline::backend::{Backend, LiveEvent, PublishError, PublishOptions, Receipt};
use trunkline::status::{BackendState, BackendStatus};

use super::Harness;
use super::probe::{Listener, PATIENCE, flush, number, numbered, publish, soon, try_publish};

/// Longest time a publish may wait for its outcome here.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(400);

/// Waits until the status is as wanted.
async fn status_becomes(
    backend: &dyn Backend,
    what: &str,
    wanted: impl Fn(&BackendState) -> bool,
) -> BackendStatus {
    let mut status = backend.status();
    let changed = soon(what, status.wait_for(|status| wanted(&status.state))).await;
    changed.expect("a backend reports its status as long as it lives").clone()
}

/// Waits until the status says that the server is gone.
pub(super) async fn is_disconnected(backend: &dyn Backend) -> BackendStatus {
    status_becomes(backend, "the status tells of the outage", |state| {
        matches!(state, BackendState::Disconnected { .. })
    })
    .await
}

/// Waits until all is well again.
pub(super) async fn is_connected(backend: &dyn Backend) {
    status_becomes(backend, "the connection is made again", BackendState::is_ready).await;
}

/// Publishes with a short timeout, then flushes: what the publisher can know. `Ok` is a promise.
async fn publish_for_sure(
    backend: &dyn Backend,
    message: trunkline::Message,
) -> Result<Receipt, PublishError> {
    let options = PublishOptions { timeout: Some(PUBLISH_TIMEOUT), ..PublishOptions::default() };
    let started = Instant::now();
    let receipt = soon("publish", backend.publish(message, options).outcome()).await;
    assert!(started.elapsed() < PUBLISH_TIMEOUT + Duration::from_secs(1), "it took {:?}", started.elapsed());
    let receipt = receipt?;
    if receipt == Receipt::Accepted {
        soon("flush", backend.flush()).await?;
    }
    Ok(receipt)
}

/// While the server is gone every publish is refused as not connected, and says which server.
pub async fn publish_while_the_server_is_away_is_never_a_success(harness: &Harness) {
    let backend = harness.backend().await;
    let subject = harness.subject("away");
    harness.faults().kill().await;
    // Until the connection notices, the outcome may be unknown, but it is never a success.
    let mut outcomes = Vec::new();
    for n in 0..5 {
        outcomes.push(publish_for_sure(&*backend, numbered(&subject, n)).await);
    }
    is_disconnected(&*backend).await;
    // Of a cluster the loss of one node is known a moment before that of the others.
    let known = Instant::now();
    loop {
        let outcome = publish_for_sure(&*backend, numbered(&subject, 5)).await;
        let is_told = matches!(outcome, Err(PublishError::NotConnected { .. }));
        outcomes.push(outcome);
        if is_told || known.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    for outcome in &outcomes {
        assert!(outcome.as_ref().is_err_and(PublishError::is_retryable), "published to nobody: {outcome:?}");
    }
    match outcomes.last() {
        Some(Err(PublishError::NotConnected { server, reason })) => {
            assert!(!server.is_empty() && !reason.is_empty());
        }
        other => panic!("the connection is known to be gone, yet the outcome is {other:?}"),
    }
    // What was refused as not connected does not come later either.
    harness.faults().restart().await;
    let receiver = harness.backend().await;
    let mut listener = Listener::plain(&*receiver, &subject).await;
    is_connected(&*backend).await;
    publish(&*backend, numbered(&subject, 9)).await;
    flush(&*backend).await;
    let arrived = listener.numbers(1).await[0];
    assert_ne!(arrived, 5, "it was refused as not published, and yet it came");
}

/// A server that accepts bytes and answers nothing gives no success, within the time that was allowed.
pub async fn publish_to_a_silent_server_is_not_confirmed(harness: &Harness) {
    let backend = harness.backend().await;
    harness.faults().pause().await;
    for n in 0..3 {
        let outcome = publish_for_sure(&*backend, numbered(&harness.subject("silent"), n)).await;
        assert!(outcome.as_ref().is_err_and(PublishError::is_retryable), "nobody confirmed: {outcome:?}");
    }
    harness.faults().resume().await;
    is_connected(&*backend).await;
    publish_until_it_works(harness, &*backend).await;
}

/// The status says `Disconnected` with a reason while the server is gone, and `Connected` when it is back.
pub async fn status_tells_the_truth_through_an_outage(harness: &Harness) {
    let backend = harness.backend().await;
    assert!(backend.status().borrow().state.is_ready());
    harness.faults().kill().await;
    let status = is_disconnected(&*backend).await;
    assert!(status.state.reason().is_some_and(|reason| !reason.is_empty()), "{status:?} says why");
    harness.faults().restart().await;
    is_connected(&*backend).await;
    publish_until_it_works(harness, &*backend).await;
}

/// A server that is there and does not answer is not healthy, and the status says so within seconds.
pub async fn silent_server_is_noticed(harness: &Harness) {
    let backend = harness.backend().await;
    harness.faults().pause().await;
    let since = Instant::now();
    is_disconnected(&*backend).await;
    assert!(since.elapsed() < Duration::from_secs(6), "it took {:?} to notice", since.elapsed());
    harness.faults().resume().await;
    is_connected(&*backend).await;
}

/// A subscription made before a restart gets what is published after it. Where the backend cannot resume, a gap
/// stands between, since nobody knows what was missed.
pub async fn subscription_outlives_a_restart_and_says_what_it_missed(harness: &Harness) {
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("outlives");
    let mut listener = Listener::plain(&*receiver, &subject).await;
    publish(&*sender, numbered(&subject, 1)).await;
    flush(&*sender).await;
    assert_eq!(listener.numbers(1).await, [1]);
    harness.faults().kill().await;
    is_disconnected(&*receiver).await;
    harness.faults().restart().await;
    is_connected(&*receiver).await;
    is_connected(&*sender).await;
    flush(&*receiver).await;
    publish_again(&*sender, numbered(&subject, 2)).await;
    if !harness.column().capabilities().resumes_after_reconnect {
        let (before, gap) = listener.until_gap().await;
        assert_eq!((before, gap.missed), (Vec::new(), None));
    }
    assert_eq!(listener.numbers(1).await, [2]);
}

/// Restart after restart, every connection comes back by itself and everything works again.
pub async fn every_restart_is_survived(harness: &Harness) {
    let (sender, receiver) = (harness.backend().await, harness.backend().await);
    let subject = harness.subject("again");
    let mut listener = Listener::plain(&*receiver, &subject).await;
    for round in 0..3 {
        harness.faults().kill().await;
        is_disconnected(&*receiver).await;
        is_disconnected(&*sender).await;
        harness.faults().restart().await;
        is_connected(&*receiver).await;
        is_connected(&*sender).await;
        flush(&*receiver).await;
        publish_again(&*sender, numbered(&subject, round)).await;
        loop {
            match listener.event().await {
                LiveEvent::Gap(_) => {}
                LiveEvent::Message { message, .. } => {
                    assert_eq!(number(&message), round);
                    break;
                }
            }
        }
    }
}

/// Publishes a message until it is accepted.
async fn publish_again(backend: &dyn Backend, message: trunkline::Message) {
    let give_up = Instant::now() + PATIENCE;
    while let Err(error) = try_publish(backend, message.clone()).await {
        assert!(error.is_retryable() && Instant::now() < give_up, "publishing does not recover: {error:?}");
        is_connected(backend).await;
    }
}

/// Waits until a publish goes through and proves itself by arriving.
async fn publish_until_it_works(harness: &Harness, backend: &dyn Backend) {
    let subject = harness.subject("recovered");
    let witness = harness.backend().await;
    let mut listener = Listener::plain(&*witness, &subject).await;
    publish_again(backend, numbered(&subject, 1)).await;
    assert_eq!(listener.numbers(1).await, [1]);
}
