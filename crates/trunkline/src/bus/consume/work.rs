//! The work on one delivery: admission, the handler, and the dead letter where it comes to that. The result is what to
//! settle; the engine settles it.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt as _, poll};
use tower::{Service, ServiceExt as _};
use trunkline_core::redelivery::{self, Admission, DeadReason, Ending, RetryPolicy, Settlement};

use super::dead_letter;
use super::delivered::Delivered;
use crate::backend::{Delivery, Settle};
use crate::bus::Bus;
use crate::bus::handler::{BoxError, HandlerError, Retry, panic_text};
use crate::bus::received::Received;
use crate::bus::spans::{self, Call, Operation};
use crate::observe::Handling;
use crate::telemetry::{Counted, Meters, Telemetry, made};

/// Shortest delay before a dead letter that could not be written is tried again.
const DEAD_LETTER_DELAY_MIN: Duration = Duration::from_secs(1);

/// Counts work that was dropped before its end as failed; forgotten when it has come to its end.
struct Unfinished<'a>(&'a Telemetry);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.failed.inc();
    }
}

/// When the message was made, or stored where it does not say. Only of a first delivery: later ones tell of the backoff.
pub(super) fn sent(delivery: &Delivery, received: &Received) -> Option<SystemTime> {
    let envelope = received.envelope();
    let made = || made(envelope.and_then(|envelope| envelope.timestamp)).unwrap_or(delivery.time);
    (delivery.attempt == 1).then(made)
}

/// What all deliveries of a consumer have in common.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) bus: Bus,
    pub(super) stream: String,
    pub(super) consumer: String,
    pub(super) retry: RetryPolicy,
    /// Longest time a handler may take; then it has failed.
    pub(super) max_handling: Duration,
    pub(super) meters: Arc<Meters>,
}

impl Rules {
    /// Works on a delivery, and says what to settle. Dropped when the work is not wanted any more.
    pub(super) async fn work<S>(self: Arc<Self>, delivery: Delivery, received: Received, service: S) -> Settle
    where
        S: Service<Delivered, Response = ()> + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
    {
        let telemetry = &self.bus.inner().telemetry;
        let _running = Counted::one(&telemetry.handlers_running);
        let unfinished = Unfinished(telemetry);
        let call = Call::of(received.hop().cloned());
        let context = received.context();
        // Its log lines, and the dead letter, belong to the message as what the handler does.
        let work = spans::within(&received.clone(), &context, Some(delivery.attempt), async {
            match self.admit(&delivery, &received).await {
                Some(settle) => (settle, Err("delivered too often or too late".to_owned())),
                None => {
                    let handling = self.show(&delivery, &received);
                    let delivered = Delivered::new(self.bus.clone(), &delivery, received, context.clone());
                    let running = self.meters.begin(sent(&delivery, delivered.received()));
                    let result = self.handle(delivered, service).await;
                    drop(running);
                    let settle = self.conclude(&delivery, self.ending(&delivery, &result)).await;
                    let result = result.map_err(|error| error.to_string());
                    if let Some(handling) = handling {
                        handling.settled(&settle, result.clone().err());
                    }
                    (settle, result)
                }
            }
        });
        let (settle, outcome) = work.await;
        match outcome {
            Ok(()) => call.succeed(),
            Err(text) => call.fail("handler", &text),
        }
        std::mem::forget(unfinished);
        settle
    }

    /// The same message, with the span of this delivery where spans are made.
    pub(super) fn begin(&self, operation: Operation, delivery: &Delivery, received: Received) -> Received {
        spans::deliver(self.bus.inner(), operation, &self.stream, &self.consumer, delivery, received)
    }

    /// Shows to who looks on that the handler begins.
    fn show(&self, delivery: &Delivery, received: &Received) -> Option<Handling> {
        let witness = self.bus.inner().witness.as_ref()?;
        witness.delivery((&self.stream, &self.consumer), delivery, received)
    }

    /// Shows to who looks on what limits have removed.
    pub(super) fn show_removed(&self, missed: u64) {
        if let Some(witness) = &self.bus.inner().witness {
            witness.removed(&self.stream, &self.consumer, missed);
        }
    }

    fn ending(&self, delivery: &Delivery, result: &Result<(), HandlerError>) -> Ending {
        match result {
            Ok(()) => Ending::Succeeded,
            Err(error) => self.failed(delivery, error),
        }
    }

    /// Concludes a delivery that failed before it reached its handler.
    pub(super) async fn give_up(
        self: Arc<Self>,
        delivery: Delivery,
        received: Received,
        error: HandlerError,
    ) -> Settle {
        match self.admit(&delivery, &received).await {
            Some(settle) => settle,
            None => {
                let handling = self.show(&delivery, &received);
                let settle = self.conclude(&delivery, self.failed(&delivery, &error)).await;
                if let Some(handling) = handling {
                    handling.settled(&settle, Some(error.to_string()));
                }
                settle
            }
        }
    }

    /// What to settle when the handler must not run.
    pub(super) async fn admit(&self, delivery: &Delivery, received: &Received) -> Option<Settle> {
        if delivery.attempt > 1 {
            self.bus.inner().telemetry.redelivered.inc();
        }
        match redelivery::admit(&self.retry, delivery.attempt, received.is_expired()) {
            Admission::Handle => None,
            Admission::DeadLetter(reason) => Some(self.bury(delivery, reason).await),
        }
    }

    /// Runs the handler to its end, or to the end of its time.
    async fn handle<S>(&self, delivered: Delivered, service: S) -> Result<(), HandlerError>
    where
        S: Service<Delivered, Response = ()>,
        S::Error: Into<BoxError>,
    {
        // Whatever the handler spawned and tied to this delivery ends with it.
        let spawned = delivered.end_of_work();
        let handling = AssertUnwindSafe(service.oneshot(delivered)).catch_unwind();
        let mut handling = pin!(handling.map(|result| match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(HandlerError::from_service(error.into())),
            Err(panic) => Err(HandlerError::new(format!("handler panicked: {}", panic_text(&*panic)))),
        }));
        // The clock is looked at only for a handler that waits for something.
        let result = match poll!(&mut handling) {
            Poll::Ready(result) => Ok(result),
            Poll::Pending => tokio::time::timeout(self.max_handling, handling).await,
        };
        drop(spawned);
        match result {
            Ok(Ok(())) => {
                self.bus.inner().telemetry.handled.inc();
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(HandlerError::new(format!("handler took longer than {:?}", self.max_handling))),
        }
    }

    /// Takes note of a failure, and of what it calls for.
    fn failed(&self, delivery: &Delivery, error: &HandlerError) -> Ending {
        self.bus.inner().telemetry.failed.inc();
        tracing::warn!(
            stream = self.stream, consumer = self.consumer, subject = %delivery.message.subject,
            offset = %delivery.offset, attempt = delivery.attempt, %error, "delivery failed"
        );
        match error.retry() {
            Retry::Backoff => Ending::Failed { retry_after: None },
            Retry::After(delay) => Ending::Failed { retry_after: Some(delay) },
            Retry::Never => Ending::Rejected,
        }
    }

    async fn conclude(&self, delivery: &Delivery, ending: Ending) -> Settle {
        match redelivery::settle(&self.retry, delivery.attempt, ending) {
            Settlement::Ack => Settle::Ack,
            Settlement::Retry(delay) => Settle::Nak(delay),
            Settlement::DeadLetter(reason) => self.bury(delivery, reason).await,
        }
    }

    /// Writes the dead letter, and only then has the delivery terminated. One that cannot be written leaves the message
    /// with its consumer, which tries again.
    pub(super) async fn bury(&self, delivery: &Delivery, reason: DeadReason) -> Settle {
        let inner = self.bus.inner();
        if inner.is_dead_letter(&delivery.message.subject) {
            // It is stored where it is, and stays there: a dead letter never becomes another one.
            tracing::error!(
                consumer = self.consumer, offset = %delivery.offset, %reason, "dead letter given up on, it stays stored"
            );
            return Settle::Term;
        }
        match dead_letter::write(inner, &self.stream, &self.consumer, delivery, reason).await {
            Ok(()) => {
                inner.telemetry.dead_letters.inc();
                tracing::warn!(
                    stream = self.stream, consumer = self.consumer, subject = %delivery.message.subject,
                    offset = %delivery.offset, attempts = delivery.attempt, %reason, "dead letter"
                );
                Settle::Term
            }
            Err(error) => {
                inner.telemetry.dead_letter_errors.inc();
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(
                    stream = self.stream, consumer = self.consumer, offset = %delivery.offset, %error, cause,
                    "dead letter not written, the message stays and is tried again"
                );
                Settle::Nak(self.retry.delay_after(delivery.attempt).max(DEAD_LETTER_DELAY_MIN))
            }
        }
    }
}
