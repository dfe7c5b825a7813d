//! What the bus makes of a backend: requests, reply streams, contexts, consumers with retries and dead letters.
//!
//! Two buses on two connections stand for two processes.

pub mod calls;
pub mod contexts;
pub mod jobs;
pub mod ordered;
pub mod outbox;
pub mod replies;
pub mod survival;
pub mod traces;
pub mod work;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use trunkline::backend::Backend;
use trunkline::{Bus, BusOptions, Event, Received, Subscription, Topic};

use super::Harness;
use super::probe::{soon, token};

/// A bus on a connection of its own. All buses of a harness have the same subjects.
pub async fn bus(harness: &Harness) -> Bus {
    bus_over(harness, harness.backend().await)
}

/// A bus over a given backend.
pub fn bus_over(harness: &Harness, backend: Arc<dyn Backend>) -> Bus {
    Bus::with_backend(backend, options(harness))
}

/// Settings with the root of the harness.
pub fn options(harness: &Harness) -> BusOptions {
    BusOptions {
        subject_root: token(harness.root()),
        source: "suite".to_owned(),
        publish_timeout: Duration::from_secs(2),
        ..BusOptions::default()
    }
}

/// A topic of JSON values.
pub fn topic(harness: &Harness, tail: &str) -> Topic<Value, Value> {
    Topic::new(harness.subject(tail))
}

/// The next message of a subscription; a gap is a failure.
pub async fn next(subscription: &mut Subscription) -> Received {
    match soon("the next event of a subscription", subscription.next()).await {
        Some(Event::Message(received)) => received,
        other => panic!("expected a message, got {other:?}"),
    }
}
