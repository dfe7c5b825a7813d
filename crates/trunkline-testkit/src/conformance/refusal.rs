//! What a backend answers where the table says that it cannot: a typed `Unsupported` at the call.

use std::time::Duration;

use trunkline::backend::{
    BackendKind, ConsumerConfig, PublishError, PublishOptions, Start, StreamError, SubscribeError,
    SubscribeOptions, Unsupported,
};

use super::probe::{Listener, flush, numbered, soon};
use super::{Harness, Need};

/// Asserts that what `need` names is refused, and that the refusal broke nothing.
///
/// # Panics
/// When it is not refused, or not in the typed form.
pub async fn assert_refused(need: Need, harness: &Harness) {
    let backend = harness.backend().await;
    let subject = harness.subject("refused");
    match need {
        Need::Nothing => unreachable!("every backend has nothing"),
        Need::OrderByKey if harness.column().capabilities().streams => {
            let stream = harness.stream("refused");
            super::probe::ensure(&*backend, &stream, harness.pattern("refused.*")).await;
            let config = ConsumerConfig { keyed: true, ..ConsumerConfig::new("keyed") };
            let streams = backend.streams().expect("the column has streams");
            match soon("join", streams.join(&stream, config)).await {
                Err(StreamError::Unsupported(refused)) => assert_names(refused, harness),
                Err(other) => panic!("order by key is Unsupported, not {other:?}"),
                Ok(_) => panic!("order by key was promised, and cannot be kept"),
            }
        }
        Need::Streams | Need::OrderByKey => {
            let refused = backend.streams().err().expect("a backend without streams refuses them");
            assert_names(refused, harness);
            // The bus passes the refusal on, at the first call that needs a stream.
            match super::bus::bus(harness).await.stream("any") {
                Err(StreamError::Unsupported(refused)) => assert_names(refused, harness),
                other => panic!("a stream is Unsupported, not {other:?}"),
            }
        }
        Need::StoredStart => {
            for start in [Start::Beginning, Start::At(std::time::SystemTime::UNIX_EPOCH)] {
                let options = SubscribeOptions { start: Some(start), ..SubscribeOptions::default() };
                match soon("subscribe", backend.subscribe((&subject).into(), options)).await {
                    Err(SubscribeError::Unsupported(refused)) => assert_names(refused, harness),
                    Err(other) => panic!("a start in the past is Unsupported, not {other:?}"),
                    Ok(_) => panic!("a start in the past was silently ignored"),
                }
            }
        }
        Need::Dedupe => {
            let mut listener = Listener::plain(&*backend, &subject).await;
            let options = PublishOptions { dedupe_id: Some("one".to_owned()), ..PublishOptions::default() };
            match soon("publish", backend.publish(numbered(&subject, 1), options).outcome()).await {
                Err(PublishError::Unsupported(refused)) => assert_names(refused, harness),
                other => panic!("deduplication is Unsupported, not {other:?}"),
            }
            // What was refused was not published either.
            super::probe::publish(&*backend, numbered(&subject, 2)).await;
            assert_eq!(listener.numbers(1).await, [2]);
        }
        Need::Server => {
            // Without a server nothing can go away, so only the backend in this process may say so.
            assert_eq!(harness.column().capabilities().kind, BackendKind::InMemory);
            assert!(backend.status().borrow().state.is_ready());
            flush(&*backend).await;
        }
        Need::Durable => {
            assert!(!backend.capabilities().durable, "what does not survive must not be promised");
        }
    }
    // A refusal is an answer, not a failure: the connection is as good as before.
    let mut listener = Listener::plain(&*backend, &subject).await;
    super::probe::publish(&*backend, numbered(&subject, 3)).await;
    assert_eq!(listener.numbers(1).await, [3]);
    assert!(backend.drain(std::time::Instant::now() + Duration::from_secs(5)).await.is_ok());
}

/// Asserts that a refusal names the backend and what was asked for, and tells the operator what to do.
fn assert_names(refused: Unsupported, harness: &Harness) {
    assert_eq!(refused.backend, harness.column().capabilities().kind);
    assert!(!refused.operation.is_empty(), "{refused:?} says what was asked for");
    assert!(!refused.hint().is_empty(), "{refused:?} says what to do about it");
}
