//! What the client library reports beside messages: lost connections, slow consumers, refusals of the server.
//!
//! The library drops events that nobody took in time, so everything here is a hint that wakes somebody, except
//! for texts of the server, which come no other way. The truth about the connection is read in `link`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::{Event, ServerError};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use trunkline_core::{Pattern, Subject};

use crate::backend::inbox::Inbox;

/// First delay before a lost connection is made again. It also gives the tasks of subscriptions the time to take
/// what the old connection had brought, so that a gap stands behind it.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(20);
/// Longest delay between two attempts.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(2);
/// Refusals of confirmations that wait for the link's task; more than ever are under way at once.
const REFUSED_ECHOES_MAX: usize = 1024;

/// One live subscription, as the tasks that serve it share it.
pub(super) struct Subscription {
    pub(super) pattern: Pattern,
    pub(super) queue: Option<String>,
    /// The client library's number for it, by which it reports what it dropped.
    pub(super) sid: OnceLock<u64>,
    pub(super) inbox: Inbox,
    /// What the server said when it refused the subscription.
    pub(super) denied: OnceLock<String>,
    /// Asks the receiving task to unsubscribe, and to end once everything has arrived.
    pub(super) ending: CancellationToken,
    /// Cancelled by the receiving task when it ends.
    pub(super) ended: CancellationToken,
}

impl Subscription {
    pub(super) fn new(pattern: Pattern, queue: Option<String>, inbox: Inbox) -> Self {
        Self {
            pattern,
            queue,
            sid: OnceLock::new(),
            inbox,
            denied: OnceLock::new(),
            ending: CancellationToken::new(),
            ended: CancellationToken::new(),
        }
    }
}

/// Shared by the client library's callbacks, the link and the subscriptions. Holds no client, so that the
/// callbacks do not keep the connection alive.
pub(super) struct Events {
    /// Wakes the link's task.
    pub(super) wake: Notify,
    /// Nobody will use the connection again: the library must not go on making it.
    pub(super) closed: AtomicBool,
    /// Messages that subscriptions were not given, ever.
    pub(super) dropped: AtomicU64,
    connected_once: AtomicBool,
    echo_prefix: OnceLock<String>,
    /// Fences whose refusal has passed through here, see [`Events::fences_passed`].
    fences: watch::Sender<u64>,
    next_id: AtomicU64,
    /// All locks here are held for a few instructions, never across an await and never two at once, except that
    /// `subscriptions` is held while an inbox's lock is taken.
    subscriptions: Mutex<HashMap<u64, Arc<Subscription>>>,
    reason: Mutex<String>,
    refused_publish: Mutex<Option<(Subject, String)>>,
    refused_echoes: Mutex<Vec<String>>,
    echo_denied: OnceLock<String>,
    /// Where the bus reports what it sees, and what the server said when it last refused such a report.
    reports: OnceLock<String>,
    refused_report: Mutex<Option<String>>,
    /// Told of each message that the server refused, and says whether somebody waited for its outcome.
    refusals: OnceLock<Box<TellRefusal>>,
}

/// Takes the subject and what the server said.
type TellRefusal = dyn Fn(&str, &str) -> bool + Send + Sync;

impl Events {
    pub(super) fn new() -> Self {
        Self {
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            connected_once: AtomicBool::new(false),
            echo_prefix: OnceLock::new(),
            fences: watch::Sender::new(0),
            next_id: AtomicU64::new(0),
            subscriptions: Mutex::default(),
            reason: Mutex::new("connection lost".to_owned()),
            refused_publish: Mutex::default(),
            refused_echoes: Mutex::default(),
            echo_denied: OnceLock::new(),
            reports: OnceLock::new(),
            refused_report: Mutex::default(),
            refusals: OnceLock::new(),
        }
    }

    /// Tells apart refusals of our own confirmations from those of the user's messages.
    pub(super) fn set_echo_prefix(&self, prefix: &str) {
        // Set once, before anything is published.
        let _ = self.echo_prefix.set(prefix.to_owned());
    }

    /// Tells apart refusals of what the bus reports of itself: nobody waits for those, and no flush is to fail of them.
    pub(super) fn set_reports(&self, subject: String) {
        // Set once, before anything is published.
        let _ = self.reports.set(subject);
    }

    pub(super) fn take_refused_report(&self) -> Option<String> {
        self.refused_report.lock().take()
    }

    /// The pattern under which all echoes come back.
    pub(super) fn echo_pattern(&self) -> Option<String> {
        self.echo_prefix.get().map(|prefix| format!("{prefix}.*"))
    }

    /// How many fences have passed. A fence is a subscription that every server refuses: the library reports
    /// refusals in the order of the server, but in a task of its own, so only when that of the fence has
    /// come by have all before it.
    pub(super) fn fences_passed(&self) -> &watch::Sender<u64> {
        &self.fences
    }

    /// Lists a subscription, and returns the number to remove it by.
    pub(super) fn add(&self, subscription: Arc<Subscription>) -> u64 {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.subscriptions.lock().insert(id, subscription);
        id
    }

    pub(super) fn remove(&self, id: u64) {
        self.subscriptions.lock().remove(&id);
    }

    pub(super) fn live(&self) -> Vec<Arc<Subscription>> {
        self.subscriptions.lock().values().cloned().collect()
    }

    /// Why there is no connection, as far as is known.
    pub(super) fn reason(&self) -> String {
        self.reason.lock().clone()
    }

    /// What the server said when it refused our own inbox.
    pub(super) fn echo_denied(&self) -> Option<&str> {
        self.echo_denied.get().map(String::as_str)
    }

    /// Confirmations that the server refused: a refusal, too, proves that it received what came before.
    pub(super) fn take_refused_echoes(&self) -> Vec<String> {
        std::mem::take(&mut *self.refused_echoes.lock())
    }

    /// Whoever waits for outcomes hears of refusals by this from now on.
    pub(super) fn tell_refusals(&self, tell: impl Fn(&str, &str) -> bool + Send + Sync + 'static) {
        // Set once, before anything waits.
        let _ = self.refusals.set(Box::new(tell));
    }

    /// The first message since the last call that the server refused, of those whose outcome nobody waited for.
    pub(super) fn take_refused_publish(&self) -> Option<(Subject, String)> {
        self.refused_publish.lock().take()
    }

    /// The client library's event callback.
    pub(super) fn on_event(&self, event: Event) {
        match event {
            Event::Connected => {
                self.connected_once.store(true, Ordering::Relaxed);
                *self.reason.lock() = "connection lost".to_owned();
            }
            Event::ClientError(error) => *self.reason.lock() = format!("cannot connect: {error}"),
            // One event a dropped message: there is nothing in it for the link's task.
            Event::SlowConsumer(sid) => return self.on_slow_consumer(sid),
            Event::ServerError(ServerError::Other(text)) => self.on_server_error(&text),
            Event::ServerError(error) => *self.reason.lock() = error.to_string(),
            Event::Disconnected | Event::LameDuckMode | Event::Draining | Event::Closed => {}
        }
        self.wake.notify_one();
    }

    /// The library had no room for a message and dropped it; events themselves are dropped too, so the number
    /// is not known. Where the subscription is not known either, all are told.
    fn on_slow_consumer(&self, sid: u64) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        for subscription in self.subscriptions.lock().values() {
            if subscription.sid.get().is_none_or(|known| *known == sid) {
                subscription.inbox.push_unknown_gap();
            }
        }
    }

    fn on_server_error(&self, text: &str) {
        match Violation::parse(text) {
            None if text == "Invalid Subject" => self.fences.send_modify(|passed| *passed += 1),
            Some(Violation::Publish(subject)) => self.on_refused_publish(subject, text),
            Some(Violation::Subscription { pattern, queue }) => {
                self.on_refused_subscription(pattern, queue, text)
            }
            None => {
                tracing::warn!(error = text, "the server reported an error");
                *self.reason.lock() = text.to_owned();
            }
        }
    }

    fn on_refused_publish(&self, subject: &str, text: &str) {
        if self.is_echo(subject) {
            let mut echoes = self.refused_echoes.lock();
            if echoes.len() < REFUSED_ECHOES_MAX {
                echoes.push(subject.to_owned());
            }
            return;
        }
        if self.reports.get().is_some_and(|reports| reports == subject) {
            *self.refused_report.lock() = Some(text.to_owned());
            return;
        }
        if self.refusals.get().is_some_and(|tell| tell(subject, text)) {
            tracing::debug!(subject, error = text, "the server refused a message, who sent it is told");
            return;
        }
        tracing::warn!(subject, error = text, "the server refused a message");
        if let Ok(subject) = Subject::new(subject) {
            self.refused_publish.lock().get_or_insert_with(|| (subject, text.to_owned()));
        }
    }

    fn on_refused_subscription(&self, pattern: &str, queue: Option<&str>, text: &str) {
        if self.echo_pattern().is_some_and(|own| own == pattern) {
            // Said once; later refusals say the same.
            let _ = self.echo_denied.set(text.to_owned());
            return;
        }
        if self.is_echo(pattern) {
            // A user with few permissions: the fence was refused even before it was looked at.
            self.fences.send_modify(|passed| *passed += 1);
            return;
        }
        tracing::warn!(pattern, error = text, "the server refused a subscription");
        for subscription in self.subscriptions.lock().values() {
            let same_queue = queue.is_none() || queue == subscription.queue.as_deref();
            if subscription.pattern == pattern && same_queue {
                let _ = subscription.denied.set(text.to_owned());
                subscription.inbox.close();
            }
        }
    }

    fn is_echo(&self, subject: &str) -> bool {
        self.echo_prefix.get().is_some_and(|prefix| subject.starts_with(prefix.as_str()))
    }

    /// The client library's callback for the delay before an attempt, the first connection's included.
    pub(super) fn reconnect_delay(&self, attempt: usize) -> Duration {
        if self.closed.load(Ordering::Relaxed) {
            return stop_reconnecting();
        }
        if !self.connected_once.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
        let delay = RECONNECT_DELAY_MIN.saturating_mul(1 << doublings).min(RECONNECT_DELAY_MAX);
        // Jitter, so that all clients of a restarted server do not come back in the same moment.
        delay.mul_f64(fastrand::f64().mul_add(0.5, 1.0))
    }
}

/// Ends the client library's connection task, which retries for ever and has no other way out: unwinding
/// without the panic hook ends a task silently. Where panics abort, the task sleeps instead.
fn stop_reconnecting() -> Duration {
    if cfg!(panic = "unwind") {
        std::panic::resume_unwind(Box::new("the NATS connection is no longer used"));
    }
    Duration::from_secs(u64::from(u32::MAX))
}

/// A permission that was missing, read off the server's text:
/// <https://docs.nats.io/reference/reference-protocols/nats-protocol#ok-err>.
#[derive(Debug, PartialEq, Eq)]
enum Violation<'a> {
    Publish(&'a str),
    Subscription { pattern: &'a str, queue: Option<&'a str> },
}

impl<'a> Violation<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix("Permissions Violation for ")?;
        if let Some(subject) = rest.strip_prefix("Publish to \"") {
            return Some(Self::Publish(subject.split_once('"')?.0));
        }
        let (pattern, rest) = rest.strip_prefix("Subscription to \"")?.split_once('"')?;
        let queue = rest.strip_prefix(" using queue \"").and_then(|queue| queue.strip_suffix('"'));
        Some(Self::Subscription { pattern, queue })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_violations_are_read_off_the_text() {
        let cases = [
            (r#"Permissions Violation for Publish to "a.b""#, Some(Violation::Publish("a.b"))),
            (
                r#"Permissions Violation for Subscription to "a.>""#,
                Some(Violation::Subscription { pattern: "a.>", queue: None }),
            ),
            (
                r#"Permissions Violation for Subscription to "a" using queue "q""#,
                Some(Violation::Subscription { pattern: "a", queue: Some("q") }),
            ),
            ("Permissions Violation for Publish to \"a", None),
            ("Stale Connection", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Violation::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn delays_grow_to_their_bound_and_never_end() {
        let events = Events::new();
        assert_eq!(events.reconnect_delay(1), Duration::ZERO);
        events.on_event(Event::Connected);
        for attempt in [1, 2, 8, 50, usize::MAX] {
            let delay = events.reconnect_delay(attempt);
            assert!(
                delay >= RECONNECT_DELAY_MIN && delay <= RECONNECT_DELAY_MAX.mul_f64(1.5),
                "{attempt}: {delay:?}"
            );
        }
        assert!(events.reconnect_delay(50) >= RECONNECT_DELAY_MAX);
    }
}
