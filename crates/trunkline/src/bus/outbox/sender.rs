//! The task that sends what waits in an outbox.
//!
//! It sends many messages without waiting for each outcome, in their order. When one is not published it sends no more,
//! waits for those under way, and begins again with the first one that is left; those that were published meanwhile are
//! recognised by their ids.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::time::Instant;

use super::queue::{Entry, Next, Place};
use super::{Outbox, Refused, is_connected};
use crate::backend::{Fut, PublishError, PublishOptions, Publishing, Receipt};
use crate::bus::count_publish_error;

/// Most messages under way at once.
const UNDER_WAY_MAX: usize = 256;
/// Delay before what failed on a connection that calls itself well is tried again; it doubles up to the second one.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How a round of sending ended.
enum Round {
    /// Nothing is left.
    Emptied,
    /// The server could not be reached; whether something was sent before.
    Failed { some_sent: bool },
}

/// What an outcome means for those behind it.
#[derive(PartialEq, Eq)]
enum GoOn {
    Yes,
    No,
    /// This message is to be sent again first.
    Again,
}

type UnderWay = FuturesOrdered<Fut<'static, (Place, Result<Receipt, PublishError>)>>;

/// Sends what waits, until the outbox is closed.
pub(super) async fn run(outbox: &Outbox) {
    tokio::select! {
        () = outbox.closed.cancelled() => {}
        () = keep_sending(outbox) => {}
    }
}

async fn keep_sending(outbox: &Outbox) {
    let mut status = outbox.status.clone();
    let mut delay = RETRY_MIN;
    loop {
        if outbox.queue.lock().messages() == 0 {
            outbox.work.notified().await;
            continue;
        }
        if !is_connected(&status.borrow_and_update().state) {
            tell_queued(outbox);
            // A backend that has ended has no next state.
            if status.changed().await.is_err() {
                return;
            }
            continue;
        }
        match send_all(outbox).await {
            Round::Emptied => delay = RETRY_MIN,
            Round::Failed { some_sent } => {
                tell_queued(outbox);
                if some_sent {
                    delay = RETRY_MIN;
                }
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Publishers that wait for an outcome learn that their messages are kept.
fn tell_queued(outbox: &Outbox) {
    let tellers = {
        let mut queue = outbox.queue.lock();
        queue.failing = true;
        queue.tellers()
    };
    for teller in tellers {
        // Who waits no longer does not mind.
        let _ = teller.send(Ok(Receipt::Queued));
    }
}

async fn send_all(outbox: &Outbox) -> Round {
    let mut under_way = UnderWay::new();
    // Nothing is under way: what is sent from here on stays in order as long as the backend gives nothing back.
    let mut unbroken_since = outbox.backend.breaks();
    let (mut sent_up_to, mut failed, mut some_sent) = (None, false, false);
    loop {
        let mut wait = None;
        // What is over at once takes no room; so that it does not take the thread either, it is bounded as well.
        for _ in 0..UNDER_WAY_MAX {
            if failed || under_way.len() >= UNDER_WAY_MAX {
                break;
            }
            match send_next(outbox, sent_up_to, unbroken_since) {
                Sent::Under(place, future) => {
                    sent_up_to = Some(place);
                    under_way.push_back(Box::pin(async move { (place, future.await) }));
                }
                Sent::Over(place, go_on) => {
                    sent_up_to = Some(place);
                    failed = !go_on;
                    some_sent |= go_on;
                }
                Sent::Wait(until) => {
                    wait = Some(until);
                    break;
                }
                Sent::Nothing => break,
            }
        }
        if let Some((place, result)) = under_way.next().await {
            match outbox.outcome(place, result) {
                GoOn::Yes => some_sent = true,
                GoOn::No => failed = true,
                GoOn::Again => {
                    if let Some(publishing) = outbox.send_again(place, unbroken_since) {
                        under_way.push_back(Box::pin(async move { (place, publishing.outcome().await) }));
                    }
                }
            }
            continue;
        }
        // Nothing is under way: what is left from here on was sent by no one, also what took its place late.
        (sent_up_to, unbroken_since) = (None, outbox.backend.breaks());
        if failed {
            return Round::Failed { some_sent };
        }
        if outbox.queue.lock().messages() == 0 {
            return Round::Emptied;
        }
        match wait {
            Some(until) => tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = outbox.work.notified() => {}
            },
            None => tokio::task::yield_now().await,
        }
    }
}

/// What became of the next message.
enum Sent {
    Under(Place, Fut<'static, Result<Receipt, PublishError>>),
    /// It is over, and whether the next one may be sent.
    Over(Place, bool),
    Wait(Instant),
    Nothing,
}

fn send_next(outbox: &Outbox, after: Option<Place>, unbroken_since: Option<u64>) -> Sent {
    let (place, message, options) = match outbox.queue.lock().next_after(after, Instant::now()) {
        Next::Entry(place, entry) => {
            let options = PublishOptions { unbroken_since, ..entry.options.clone() };
            (place, entry.message.clone(), options)
        }
        Next::After(until) => return Sent::Wait(until),
        Next::Nothing => return Sent::Nothing,
    };
    let mut publishing = outbox.backend.publish(message, options);
    loop {
        let result = match publishing {
            Publishing::Pending(future) => return Sent::Under(place, future),
            Publishing::Ready(result) => result,
        };
        match outbox.outcome(place, result) {
            GoOn::Yes => return Sent::Over(place, true),
            GoOn::No => return Sent::Over(place, false),
            GoOn::Again => match outbox.send_again(place, unbroken_since) {
                Some(again) => publishing = again,
                None => return Sent::Over(place, true),
            },
        }
    }
}

impl Outbox {
    fn send_again(&self, place: Place, unbroken_since: Option<u64>) -> Option<Publishing> {
        let (message, options) = {
            let mut queue = self.queue.lock();
            let entry = queue.get_mut(place)?;
            (entry.message.clone(), PublishOptions { unbroken_since, ..entry.options.clone() })
        };
        Some(self.backend.publish(message, options))
    }

    /// Takes out what needs no more sending, and tells its publisher.
    fn outcome(&self, place: Place, result: Result<Receipt, PublishError>) -> GoOn {
        let mut queue = self.queue.lock();
        // A close in between has given it up.
        let Some(entry) = queue.get_mut(place) else { return GoOn::No };
        if entry.lose_own_id(&result) {
            return GoOn::Again;
        }
        let keep = match &result {
            Err(PublishError::NotConnected { .. } | PublishError::Closed) => true,
            Err(PublishError::OutcomeUnknown { .. } | PublishError::NotReplicated { .. }) => {
                entry.is_repeatable()
            }
            _ => false,
        };
        if keep {
            return GoOn::No;
        }
        let Some(Entry { message, teller, .. }) = queue.remove(place) else { return GoOn::No };
        self.measure(&queue);
        match &result {
            Ok(_) => {
                queue.failing = false;
                self.telemetry.outbox_sent.inc();
                self.telemetry.published.inc();
            }
            Err(error) => {
                count_publish_error(&self.telemetry, error);
                if matches!(error, PublishError::OutcomeUnknown { .. }) {
                    self.telemetry.outbox_unknown.inc();
                    tracing::warn!(
                        subject = %message.subject,
                        %error,
                        "a queued message may be lost: the backend does not deduplicate, so it is not sent again"
                    );
                } else {
                    self.telemetry.outbox_refused.inc();
                    tracing::warn!(subject = %message.subject, %error, "a queued message can never be published");
                    let error = error.clone();
                    queue.last_refused = Some(Refused { subject: message.subject.clone(), error });
                }
            }
        }
        let go_on = match &result {
            Err(PublishError::OutcomeUnknown { .. }) => GoOn::No,
            _ => GoOn::Yes,
        };
        let untold = match teller {
            Some(teller) => teller.send(result).err(),
            None => Some(result),
        };
        if let Some(Err(error)) = untold {
            queue.failure.get_or_insert(error);
        }
        drop(queue);
        self.moved.notify_waiters();
        go_on
    }
}
