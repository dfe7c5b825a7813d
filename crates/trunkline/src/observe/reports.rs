//! Telling another process what was seen in this one: batches on `{root}.system.trace`, off everybody's hot path.
//!
//! A report is worth less than any message: nobody waits for it, it is not kept for later, and what cannot be reported is
//! counted and told with the next one.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use trunkline_core::{Message, Subject};

use super::{Body, Followed, Follower, Observation, Observer, Report};
use crate::backend::{PublishError, PublishOptions};
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
/// How long nothing is sent after the server has refused a report.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// The type of the envelope.
const KIND: &str = "system.trace";

/// What a bus reports. Only one task at a time sends, and the drain.
#[derive(Debug)]
pub(crate) struct Reports {
    observer: Arc<Observer>,
    subject: Subject,
    /// Held across the publishing of a report: the drain waits for it.
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where the next report begins.
    follower: Follower,
    /// Observations that were sent when it was last sent something: they are lost when that is refused.
    unconfirmed: u64,
    /// The server refuses reports; until then none is sent.
    refused_until: Option<Instant>,
    /// That it does was said.
    is_told: bool,
}

impl Reports {
    pub(crate) fn new(observer: &Arc<Observer>) -> Self {
        let subject = Subject::new(observer.trace_subject()).expect("a token and two literals");
        let follower = observer.follow(None);
        let state = State { follower, unconfirmed: 0, refused_until: None, is_told: false };
        Self { observer: observer.clone(), subject, state: tokio::sync::Mutex::new(state) }
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
        let mut state = self.state.lock().await;
        self.observer.read_now();
        if let Some(reason) = inner.backend.take_refused_report() {
            self.refused(&mut state, &reason);
        }
        if state.refused_until.is_some_and(|until| Instant::now() < until) {
            // What was seen stays until it may be told, as far as there is room for it.
            return;
        }
        state.refused_until = None;
        let mut sent = 0;
        loop {
            let report = take(&mut state.follower).await;
            if report.observations.is_empty() && report.missed == 0 {
                if sent > 0 {
                    state.unconfirmed = sent;
                }
                return;
            }
            let Ok(payload) = serde_json::to_value(&report) else { return };
            let count = report.observations.len() as u64 + report.missed;
            let mut envelope = Envelope::new(KIND, payload);
            envelope.source = Some(inner.options.source.clone());
            let message = Message::new(self.subject.clone(), envelope.to_bytes());
            // Past the outbox and the counters: it is none of the application's messages.
            let options = PublishOptions { timeout: Some(PUBLISH_WITHIN), ..PublishOptions::default() };
            let published = inner.backend.publish(message, options).outcome();
            match tokio::time::timeout(PUBLISH_WITHIN, published).await {
                Ok(Ok(_)) => sent += count,
                Ok(Err(PublishError::Denied { reason, .. })) => {
                    state.unconfirmed = count;
                    self.refused(&mut state, &reason);
                    return;
                }
                outcome => {
                    tracing::debug!(?outcome, "a report of what was seen is lost");
                    self.observer.not_reported(count);
                    return;
                }
            }
        }
    }

    /// The server has refused what was sent last. It is asked again after a while: permissions may change.
    fn refused(&self, state: &mut State, reason: &str) {
        self.observer.not_reported(std::mem::take(&mut state.unconfirmed));
        state.refused_until = Some(Instant::now() + REFUSED_PAUSE);
        if std::mem::replace(&mut state.is_told, true) {
            tracing::debug!(subject = %self.subject, reason, "reports of what was seen are refused again");
            return;
        }
        tracing::warn!(
            subject = %self.subject,
            reason,
            "this process may not report what it sees, so it is missing in the record of conversations; messages are not \
             affected. Allow its user to publish there, or set observe.enabled to false for it; said once"
        );
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
