//! The lease of a keyed consumer, which makes one member the active one.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::backoff::Backoff;
use crate::backend::{ConsumeError, Lease, Member};

/// Longest lease: it bounds how long a dead member keeps the others waiting.
const TTL_MAX: Duration = Duration::from_secs(10);

/// What became of the lease.
#[derive(Debug)]
pub(super) enum LeaseEvent {
    /// This member is the active one.
    Held {
        /// It was not before, so everything unsettled comes to it at once.
        new: bool,
    },
    /// It was the active one, and is not any more, or was not for a while: nothing it holds is its own.
    Lost,
    /// The backend could not be asked; it is asked again.
    Failed(ConsumeError),
}

type Asking = Pin<Box<dyn Future<Output = (Instant, Result<Lease, ConsumeError>)> + Send>>;

/// Takes the lease and renews it by thirds.
pub(super) struct KeyLease {
    member: Arc<dyn Member>,
    ttl: Duration,
    /// By this member's own clock, counted from before it asked: never later than the backend's.
    held_until: Option<Instant>,
    ask_at: Instant,
    asking: Option<Asking>,
    backoff: Backoff,
}

impl KeyLease {
    pub(super) fn new(member: Arc<dyn Member>, ack_wait: Duration) -> Self {
        Self {
            member,
            ttl: ack_wait.min(TTL_MAX),
            held_until: None,
            ask_at: Instant::now(),
            asking: None,
            backoff: Backoff::default(),
        }
    }

    /// Whether this member is the active one now.
    pub(super) fn is_held(&self) -> bool {
        self.held_until.is_some_and(|until| Instant::now() < until)
    }

    /// Waits for the next event.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> LeaseEvent {
        loop {
            let held_until = self.held_until;
            let expired = async {
                match held_until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            match &mut self.asking {
                Some(asking) => tokio::select! {
                    biased;
                    (asked, answer) = asking => {
                        self.asking = None;
                        if let Some(event) = self.answered(asked, answer) {
                            return event;
                        }
                    }
                    () = expired => {
                        self.held_until = None;
                        return LeaseEvent::Lost;
                    }
                },
                None => tokio::select! {
                    biased;
                    () = sleep_until(self.ask_at) => {
                        let (member, ttl, asked) = (self.member.clone(), self.ttl, Instant::now());
                        self.asking = Some(Box::pin(async move { (asked, member.lease(ttl).await) }));
                    }
                    () = expired => {
                        self.held_until = None;
                        return LeaseEvent::Lost;
                    }
                },
            }
        }
    }

    fn answered(&mut self, asked: Instant, answer: Result<Lease, ConsumeError>) -> Option<LeaseEvent> {
        let had = self.held_until.is_some();
        self.ask_at = asked + self.ttl / 3;
        match answer {
            Ok(Lease::Held { new }) => {
                self.backoff.reset();
                self.held_until = Some(asked + self.ttl);
                match (had, new) {
                    (false, new) => Some(LeaseEvent::Held { new }),
                    (true, false) => None,
                    // Somebody may have been active in between.
                    (true, true) => Some(LeaseEvent::Lost),
                }
            }
            Ok(Lease::Standby) => {
                self.backoff.reset();
                self.held_until = None;
                had.then_some(LeaseEvent::Lost)
            }
            Err(error) => {
                // What is held stays held until it expires.
                self.backoff.pause();
                self.ask_at = self.backoff.until().unwrap_or(self.ask_at);
                self.backoff.resume();
                Some(LeaseEvent::Failed(error))
            }
        }
    }
}
