//! Telling another process what was seen in this one: batches on `{root}.system.trace`, off everybody's hot path.
//!
//! A report is worth less than any message: nobody waits for it, it is not kept for later, and what cannot be reported is
//! counted and told with the next one.

use std::sync::{Arc, Weak};
use std::time::Duration;

use trunkline_core::{Message, Subject};

use super::{Body, Followed, Follower, Observation, Observer, Report};
use crate::backend::PublishOptions;
use crate::bus::Inner;
use crate::envelope::Envelope;

/// How often what was seen is reported.
const PERIOD: Duration = Duration::from_millis(100);
/// Most observations of a report.
const OBSERVATIONS_MAX: usize = 256;
/// Bytes of bodies after which a report is full.
const BODIES_MAX: usize = 256 << 10;
/// Longest wait for a report to be published.
const PUBLISH_WITHIN: Duration = Duration::from_secs(1);
/// The type of the envelope.
const KIND: &str = "system.trace";

/// What a bus reports. Only one task at a time sends, and the drain.
#[derive(Debug)]
pub(crate) struct Reports {
    observer: Arc<Observer>,
    subject: Subject,
    /// Where the next report begins. Held across the publishing of one: the drain waits for it.
    follower: tokio::sync::Mutex<Follower>,
}

impl Reports {
    pub(crate) fn new(observer: &Arc<Observer>) -> Self {
        let subject = Subject::new(observer.trace_subject()).expect("a token and two literals");
        let follower = tokio::sync::Mutex::new(observer.follow(None));
        Self { observer: observer.clone(), subject, follower }
    }

    /// Reports until the bus is gone or killed.
    pub(crate) async fn run(self: Arc<Self>, bus: Weak<Inner>) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(inner) = bus.upgrade() else { return };
            self.send(&inner).await;
        }
    }

    /// Reports what was seen by now.
    pub(crate) async fn send(&self, inner: &Inner) {
        let mut follower = self.follower.lock().await;
        self.observer.read_now();
        loop {
            let report = take(&mut follower).await;
            if report.observations.is_empty() && report.missed == 0 {
                return;
            }
            let Ok(payload) = serde_json::to_value(&report) else { return };
            let mut envelope = Envelope::new(KIND, payload);
            envelope.source = Some(inner.options.source.clone());
            let message = Message::new(self.subject.clone(), envelope.to_bytes());
            // Past the outbox and the counters: it is none of the application's messages.
            let options = PublishOptions { timeout: Some(PUBLISH_WITHIN), ..PublishOptions::default() };
            let published = inner.backend.publish(message, options).outcome();
            let outcome = tokio::time::timeout(PUBLISH_WITHIN, published).await;
            if !matches!(outcome, Ok(Ok(_))) {
                tracing::debug!(?outcome, "a report of what was seen is lost");
                self.observer.not_reported(report.observations.len() as u64 + report.missed);
                return;
            }
        }
    }
}

/// As much as there is now, and fits.
async fn take(follower: &mut Follower) -> Report {
    let mut report = Report { observations: Vec::new(), missed: follower.take_not_reported() };
    let mut bytes = 0;
    while report.observations.len() < OBSERVATIONS_MAX && bytes < BODIES_MAX {
        match follower.next_now() {
            Some(Followed::Observation(mut seen)) => {
                bytes += shorten(&mut seen, BODIES_MAX - bytes);
                report.observations.push(*seen);
            }
            Some(Followed::Missed(missed)) => report.missed += missed,
            None => break,
        }
    }
    report
}

/// Leaves out a body for which there is no room; returns how many bytes it takes.
fn shorten(seen: &mut Observation, room: usize) -> usize {
    let bytes = match &seen.body {
        None | Some(Body::Omitted(_)) => return 64,
        Some(Body::Text(text) | Body::Base64(text)) => text.len(),
        // Its size as a message is near enough.
        Some(Body::Json(_)) => usize::try_from(seen.size).unwrap_or(usize::MAX),
    };
    if bytes > room {
        seen.body = Some(Body::Omitted(seen.size));
        return 64;
    }
    bytes + 64
}
