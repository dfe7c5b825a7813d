//! The lane of one connection: carries its orders out, one behind the other.
//!
//! Messages are under way side by side, and subscriptions start and end side by side; what has to wait for what is
//! decided in [`Lane::begin`]. The lane is one task, spawned and awaited by the connection's.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::Instant;
use trunkline::Pattern;
use trunkline::backend::{Fut, PublishError, PublishOptions, Publishing, Receipt, SubscribeError};
use trunkline::status::{BackendState, BackendStatus};
use trunkline_protocol::ServerError;

use super::Bridge;
use super::feeds::Feeds;
use super::orders::{End, Order, Orders, Outbound};
use crate::client::Client;
use crate::closed::Closed;
use crate::outbox::Ending;
use crate::shared::Shared;
use crate::subscription::Subscription;

/// Pause before messages that found no connection are tried again: the backend may not have noticed yet.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

const CUT_OFF: &str = "a client is cut off, so that it takes nothing for done that may not be";

/// What verbose clients are told of each operation.
const OK: &[u8] = b"+OK\r\n";

/// See the module's text.
pub(crate) struct Lane {
    server: Arc<Shared>,
    bridge: Arc<Bridge>,
    client: Arc<Client>,
    orders: Arc<Orders>,
    /// Taken and not begun.
    waiting: VecDeque<Order>,
    /// Begun and not over, in order.
    under_way: VecDeque<Step>,
    feeds: Feeds,
    status: watch::Receiver<BackendStatus>,
    /// Since when messages find no connection; nothing was published since.
    away_since: Option<Instant>,
    /// Messages found no connection: until then none is sent.
    resume_at: Option<Instant>,
    end: End,
}

/// What is begun.
enum Step {
    Publish(Outbound, Fut<'static, Result<Receipt, PublishError>>),
    Say(Vec<u8>),
}

/// Why a client cannot be served any further.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("a message was not published, or not surely")]
    Publish(#[from] PublishError),
    #[error("a message was not published, and one behind it was")]
    Order,
    #[error("a subscription did not start")]
    Subscribe(#[from] SubscribeError),
}

impl Lost {
    fn is_outage(&self) -> bool {
        match self {
            Self::Publish(error) => matches!(error, PublishError::NotConnected { .. }),
            Self::Subscribe(error) => error.is_retryable(),
            Self::Order => false,
        }
    }
}

impl Lane {
    pub(crate) fn new(
        server: Arc<Shared>,
        bridge: Arc<Bridge>,
        client: Arc<Client>,
        orders: Arc<Orders>,
    ) -> Self {
        Self {
            status: bridge.backend.status(),
            feeds: Feeds::new(bridge.clone(), client.clone()),
            server,
            bridge,
            client,
            orders,
            waiting: VecDeque::new(),
            under_way: VecDeque::new(),
            away_since: None,
            resume_at: None,
            end: End::No,
        }
    }

    /// Carries out orders until it is told to end, or one fails: then the connection ends, too.
    pub(crate) async fn run(mut self) {
        let orders = self.orders.clone();
        let outcome = tokio::select! {
            biased;
            () = orders.aborted() => Ok(()),
            outcome = self.serve() => outcome,
        };
        if let Err(lost) = outcome {
            self.bridge.count_unconfirmed();
            let (client, address, error) = (self.client.id, self.client.address, with_cause(&lost));
            match lost.is_outage() {
                // That the backend is away has been said, and every client would say it again.
                true => tracing::debug!(client, %address, error, "{CUT_OFF}"),
                false => tracing::warn!(client, %address, error, "{CUT_OFF}"),
            }
            self.client.set_ending_reason(Closed::Backend);
            // On this error stock clients connect again, and tell that they had to.
            self.client.end_with(|out| ServerError::StaleConnection.write(out));
        } else if self.end == End::Drain {
            self.client.outbox.end(Ending::WhenFlushed);
        }
        self.feeds.shut_down().await;
    }

    async fn serve(&mut self) -> Result<(), Lost> {
        loop {
            self.heed_end();
            if self.end == End::Abort {
                return Ok(());
            }
            self.begin();
            self.say();
            let idle = self.waiting.is_empty() && self.under_way.is_empty();
            if idle && (self.end == End::Close || self.end == End::Drain && self.feeds.are_over()) {
                return Ok(());
            }
            let stalled = self.stalled_until()?;
            let publishing = !self.under_way.is_empty();
            tokio::select! {
                biased;
                () = self.orders.changed() => {}
                outcome = head(&mut self.under_way), if publishing => self.settle_ready(outcome).await?,
                failed = self.feeds.changed() => {
                    if let Some((subscription, error)) = failed {
                        self.refuse_subscription(&subscription, error)?;
                    }
                }
                _ = self.status.changed(), if stalled.is_some() => {}
                () = tokio::time::sleep_until(stalled.unwrap_or_else(Instant::now)), if stalled.is_some() => {}
            }
        }
    }

    /// Takes what was ordered, and acts on an end that was.
    fn heed_end(&mut self) {
        let end = self.orders.take(&mut self.waiting);
        if end == self.end || end == End::Abort {
            self.end = end;
            return;
        }
        self.end = end;
        match end {
            End::Drain => self.feeds.stop_all(),
            End::Close => self.feeds.abandon(),
            End::No | End::Abort => {}
        }
    }

    /// Begins what may begin. A message waits for the subscriptions before it to stand or to be over, so does what is
    /// said; a subscription that changes waits for the messages before it that it would get.
    fn begin(&mut self) {
        while let Some(order) = self.waiting.pop_front() {
            let refused = match order {
                Order::Publish(outbound) if self.feeds.are_settled() && self.can_send() => {
                    self.publish(outbound);
                    None
                }
                Order::Say(bytes) if self.feeds.are_settled() => {
                    self.under_way.push_back(Step::Say(bytes));
                    None
                }
                Order::Subscribe(subscription) if self.may_change(&subscription.pattern) => {
                    self.orders.finished(1, 0);
                    if self.end == End::No {
                        self.feeds.start(subscription);
                    }
                    None
                }
                Order::Unsubscribe(subscription) if self.may_change(&subscription.pattern) => {
                    self.orders.finished(1, 0);
                    self.feeds.stop(&subscription);
                    None
                }
                order => Some(order),
            };
            if let Some(order) = refused {
                self.waiting.push_front(order);
                return;
            }
        }
    }

    fn may_change(&self, pattern: &Pattern) -> bool {
        let published = |step: &Step| match step {
            Step::Publish(outbound, _) => pattern.matches(&outbound.message.subject),
            Step::Say(_) => false,
        };
        self.feeds.may_change() && !self.under_way.iter().any(published)
    }

    fn can_send(&mut self) -> bool {
        self.resume_at = self.resume_at.filter(|at| *at > Instant::now());
        let connected =
            matches!(self.status.borrow().state, BackendState::Connected | BackendState::Degraded { .. });
        connected && self.resume_at.is_none()
    }

    /// When to look again at a message that waits for a connection.
    fn stalled_until(&mut self) -> Result<Option<Instant>, Lost> {
        if !matches!(self.waiting.front(), Some(Order::Publish(_))) || !self.feeds.are_settled() {
            return Ok(None);
        }
        let now = Instant::now();
        let deadline = *self.away_since.get_or_insert(now) + self.bridge.publish_timeout;
        let status = self.status.borrow();
        if status.state == BackendState::Closed {
            return Err(PublishError::Closed.into());
        }
        if deadline <= now {
            let reason = status.state.reason().unwrap_or("it takes no messages").to_owned();
            return Err(PublishError::NotConnected { server: status.server.clone(), reason }.into());
        }
        Ok(Some(self.resume_at.unwrap_or(deadline).min(deadline)))
    }

    fn publish(&mut self, outbound: Outbound) {
        let timeout = self.bridge.publish_timeout;
        let left = self.away_since.map_or(timeout, |since| timeout.saturating_sub(since.elapsed()));
        let options = PublishOptions {
            dedupe_id: outbound.message.headers.get("Nats-Msg-Id").map(str::to_owned),
            timeout: Some(left),
            ..PublishOptions::default()
        };
        let outcome = match self.bridge.backend.publish(outbound.message.clone(), options) {
            Publishing::Ready(result) => Box::pin(std::future::ready(result)),
            Publishing::Pending(outcome) => outcome,
        };
        self.under_way.push_back(Step::Publish(outbound, outcome));
    }

    /// Says what stands in front: everything before it is over.
    fn say(&mut self) {
        let mut said = Vec::new();
        while let Some(Step::Say(_)) = self.under_way.front() {
            if let Some(Step::Say(bytes)) = self.under_way.pop_front() {
                self.orders.finished(1, bytes.len());
                match said.is_empty() {
                    true => said = bytes,
                    false => said.extend_from_slice(&bytes),
                }
            }
        }
        if !said.is_empty() {
            self.client.write(&[IoSlice::new(&said)], said.len());
        }
    }

    /// Acts on the outcome of the message in front, and of those behind it that are over as well.
    async fn settle_ready(&mut self, first: Result<Receipt, PublishError>) -> Result<(), Lost> {
        let mut outcome = first;
        loop {
            if let Some(Step::Publish(outbound, _)) = self.under_way.pop_front() {
                self.settle(outbound, outcome).await?;
            }
            self.say();
            match head(&mut self.under_way).now_or_never() {
                Some(next) => outcome = next,
                None => return Ok(()),
            }
        }
    }

    async fn settle(
        &mut self,
        outbound: Outbound,
        outcome: Result<Receipt, PublishError>,
    ) -> Result<(), Lost> {
        match outcome {
            Ok(_) => {
                self.away_since = None;
                self.orders.finished(1, outbound.size_bytes);
            }
            Err(PublishError::NotConnected { .. }) => self.step_back(outbound).await?,
            Err(
                error @ (PublishError::OutcomeUnknown { .. }
                | PublishError::NotReplicated { .. }
                | PublishError::Closed),
            ) => return Err(error.into()),
            Err(error) => {
                self.orders.finished(1, outbound.size_bytes);
                self.refuse(&outbound, &error);
            }
        }
        Ok(())
    }

    /// The message surely was not published: it is tried again, with all behind it, in their order.
    async fn step_back(&mut self, first: Outbound) -> Result<(), Lost> {
        let mut again = VecDeque::from([Order::Publish(first)]);
        while let Some(step) = self.under_way.pop_front() {
            match step {
                Step::Say(bytes) => again.push_back(Order::Say(bytes)),
                Step::Publish(outbound, outcome) => match outcome.await {
                    Err(PublishError::NotConnected { .. }) => again.push_back(Order::Publish(outbound)),
                    Ok(_) => return Err(Lost::Order),
                    Err(error) => return Err(error.into()),
                },
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
        let now = Instant::now();
        self.away_since.get_or_insert(now);
        self.resume_at = Some(now + RETRY_PAUSE);
        Ok(())
    }

    /// Tells the client that one message was refused.
    fn refuse(&mut self, outbound: &Outbound, error: &PublishError) {
        let subject = &outbound.message.subject;
        tracing::debug!(client = self.client.id, %subject, %error, "the backend refused a message");
        self.server.count_denied(&self.client);
        let said_next = match self.under_way.front_mut() {
            Some(Step::Say(bytes)) => Some(bytes),
            _ => None,
        };
        let error = ServerError::PublishPermission { subject: subject.as_bytes() };
        say_error(&self.client, &self.orders, said_next, error);
    }

    /// Tells the client that a subscription was refused. One that failed otherwise cannot be passed over.
    fn refuse_subscription(
        &mut self,
        subscription: &Subscription,
        error: SubscribeError,
    ) -> Result<(), Lost> {
        if error.is_retryable() || matches!(error, SubscribeError::Closed) {
            return Err(error.into());
        }
        let Subscription { pattern, queue, .. } = subscription;
        tracing::debug!(client = self.client.id, %pattern, %error, "the backend refused a subscription");
        let said_next = match self.waiting.front_mut() {
            Some(Order::Say(bytes)) => Some(bytes),
            _ => None,
        };
        let queue = queue.as_ref().map(|queue| <str>::as_bytes(queue));
        let error = ServerError::SubscribePermission { subject: pattern.as_bytes(), queue };
        say_error(&self.client, &self.orders, said_next, error);
        subscription.end();
        self.client.forget_ended(subscription);
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The connection must not go on to read for a lane that is no more.
        self.orders.end(End::Abort);
        if std::thread::panicking() {
            self.client.outbox.end(Ending::Now);
        }
    }
}

/// The outcome of the message in front.
async fn head(under_way: &mut VecDeque<Step>) -> Result<Receipt, PublishError> {
    match under_way.front_mut() {
        Some(Step::Publish(_, outcome)) => outcome.await,
        // Said before anybody waits; without a message there is nothing to wait for.
        Some(Step::Say(_)) | None => std::future::pending().await,
    }
}

/// Says an error: to a verbose client in place of the `+OK` that is to be said next, to others now.
fn say_error(client: &Client, orders: &Orders, next: Option<&mut Vec<u8>>, error: ServerError<'_>) {
    let mut line = Vec::new();
    error.write(&mut line);
    let verbose = client.connect().is_some_and(|options| options.verbose);
    match next.filter(|next| verbose && next.starts_with(OK)) {
        Some(next) => {
            orders.grown(line.len() - OK.len());
            next.splice(..OK.len(), line);
        }
        None => {
            client.write(&[IoSlice::new(&line)], line.len());
        }
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
