//! Fetching and settling by hand.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use tokio::time::Instant;
use trunkline_core::StreamOffset;
use trunkline_core::redelivery::DeadReason;

use super::work::{Rules, sent};
use crate::backend::{ConsumeError, Delivery, Member, Settle, Settled};
use crate::bus::context::Context;
use crate::bus::received::Received;
use crate::bus::spans::Operation;
use crate::envelope::DecodeError;

/// A member of a consumer that is told what to do. Dropping it without [`Puller::leave`] leaves its deliveries to their
/// leases.
#[derive(Clone)]
pub struct Puller {
    rules: Arc<Rules>,
    member: Arc<dyn Member>,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Puller {
    pub(super) fn new(rules: Arc<Rules>, member: Arc<dyn Member>) -> Self {
        Self { rules, member }
    }

    /// Waits up to `wait` for between 1 and `max` deliveries; none after `wait` is normal. What was delivered too often,
    /// or too late, becomes a dead letter and is not among them.
    ///
    /// # Errors
    /// No connection, or the consumer is gone.
    ///
    /// # Cancel safety
    /// A delivery that was under way when the future was dropped comes again after `ack_wait`.
    pub async fn fetch(&self, max: usize, wait: Duration) -> Result<Vec<Pulled>, ConsumeError> {
        let by = Instant::now() + wait;
        loop {
            let left = by.saturating_duration_since(Instant::now());
            let fetched = self.member.fetch(max.max(1), left).await?;
            let telemetry = self.rules.bus.telemetry();
            telemetry.missed.inc_by(fetched.missed);
            telemetry.delivered.inc_by(fetched.deliveries.len() as u64);
            let mut pulled = Vec::with_capacity(fetched.deliveries.len());
            for delivery in fetched.deliveries {
                let received = Received::new(delivery.message.clone(), Some(delivery.offset));
                let received = self.rules.begin(Operation::Receive, &delivery, received);
                match self.rules.admit(&delivery, &received).await {
                    None => {
                        self.rules.meters.arrived(sent(&delivery, &received));
                        pulled.push(Pulled { puller: self.clone(), delivery, received });
                    }
                    Some(settle) => drop(self.settle(&delivery, &received, settle).await?),
                }
            }
            if !pulled.is_empty() || Instant::now() >= by {
                return Ok(pulled);
            }
        }
    }

    /// Leaves the consumer: what is unsettled goes to the other members at once.
    ///
    /// # Errors
    /// No connection: the deliveries come again after `ack_wait`.
    pub async fn leave(self) -> Result<(), ConsumeError> {
        self.member.leave().await
    }

    async fn settle(
        &self,
        delivery: &Delivery,
        received: &Received,
        settle: Settle,
    ) -> Result<Settled, ConsumeError> {
        let span = received.hop().and_then(|hop| hop.settle(settle));
        let outcomes = self.member.settle(vec![(delivery.token.clone(), settle)]).await?;
        let outcome = outcomes.first().copied().unwrap_or(Settled::LeaseLost);
        self.rules.bus.telemetry().settled(settle, outcome);
        if let Some(span) = span {
            span.settled(outcome);
        }
        if outcome == Settled::LeaseLost {
            self.rules.bus.telemetry().leases_lost.inc();
        }
        Ok(outcome)
    }
}

/// A delivery fetched by hand. It must be settled, or it comes again after `ack_wait`.
#[derive(Debug)]
#[must_use = "what is not settled comes again"]
pub struct Pulled {
    puller: Puller,
    delivery: Delivery,
    received: Received,
}

impl Pulled {
    /// The message.
    pub fn received(&self) -> &Received {
        &self.received
    }

    /// The payload as `T`.
    ///
    /// # Errors
    /// A payload of another shape.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        self.received.decode()
    }

    /// Where it stands in the stream.
    pub fn offset(&self) -> StreamOffset {
        self.delivery.offset
    }

    /// When it was stored.
    pub fn time(&self) -> SystemTime {
        self.delivery.time
    }

    /// Which delivery of the message this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.delivery.attempt
    }

    /// What the messages that it causes should inherit; run their publishing in its [`Context::scope`].
    pub fn context(&self) -> Context {
        self.received.context()
    }

    /// Acknowledges it: done.
    ///
    /// # Errors
    /// No connection: the outcome is unknown.
    pub async fn ack(self) -> Result<Settled, ConsumeError> {
        self.puller.settle(&self.delivery, &self.received, Settle::Ack).await
    }

    /// Has it delivered again, after `delay`, or after the consumer's backoff.
    ///
    /// # Errors
    /// No connection: the outcome is unknown.
    pub async fn nak(self, delay: Option<Duration>) -> Result<Settled, ConsumeError> {
        let delay = delay.unwrap_or_else(|| self.puller.rules.retry.delay_after(self.delivery.attempt));
        self.puller.settle(&self.delivery, &self.received, Settle::Nak(delay)).await
    }

    /// Drops it: it is not delivered again, and leaves no dead letter.
    ///
    /// # Errors
    /// No connection: the outcome is unknown.
    pub async fn term(self) -> Result<Settled, ConsumeError> {
        self.puller.settle(&self.delivery, &self.received, Settle::Term).await
    }

    /// Makes it a dead letter: it will never succeed.
    ///
    /// # Errors
    /// No connection: the outcome is unknown.
    pub async fn reject(self) -> Result<Settled, ConsumeError> {
        let settle = self.puller.rules.bury(&self.delivery, DeadReason::Rejected).await;
        self.puller.settle(&self.delivery, &self.received, settle).await
    }

    /// Asks for another `ack_wait` of time.
    ///
    /// # Errors
    /// No connection: the outcome is unknown.
    pub async fn progress(&self) -> Result<Settled, ConsumeError> {
        self.puller.settle(&self.delivery, &self.received, Settle::Progress).await
    }
}
