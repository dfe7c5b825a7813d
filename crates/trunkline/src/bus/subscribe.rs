//! Live subscriptions.

use std::future::{Future as _, IntoFuture, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use trunkline_core::{Pattern, Token};

use super::received::Received;
use super::{Bus, Inner, spans};
use crate::backend::{Fut, Gap, LiveEvent, LiveSource, Start, SubscribeError, SubscribeOptions};
use crate::observe::Witness;
use crate::telemetry::{Ages, Telemetry};

/// Most messages taken from the backend at a time.
const BATCH: usize = 256;

/// What a subscription yields, in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// A message.
    Message(Received),
    /// Here messages are missing.
    Gap(Gap),
}

impl Event {
    /// The message, when it is one.
    pub fn into_message(self) -> Option<Received> {
        match self {
            Self::Message(received) => Some(received),
            Self::Gap(_) => None,
        }
    }
}

impl Bus {
    /// Subscribes to a pattern. Await the builder to start: every message published after that reaches the
    /// subscription, or is reported as a gap.
    ///
    /// # Errors
    /// When awaited: see [`SubscribeError`].
    pub fn subscribe(&self, pattern: Pattern) -> SubscribeBuilder {
        let options = SubscribeOptions {
            max_pending: self.options().max_pending,
            name: Some(self.inner().name.clone()),
            ..Default::default()
        };
        SubscribeBuilder { bus: self.clone(), pattern, options }
    }
}

/// A subscription in the making. Await it to start it.
#[derive(Debug)]
#[must_use = "nothing is subscribed until it is awaited"]
pub struct SubscribeBuilder {
    bus: Bus,
    pattern: Pattern,
    options: SubscribeOptions,
}

impl SubscribeBuilder {
    /// Shares the messages with the other members of this queue group: one member gets each.
    pub fn queue(mut self, group: Token) -> Self {
        self.options.queue = Some(group);
        self
    }

    /// Starts in the past of stored subjects. Without it, a subscription starts where `messaging.initial_stream_id` says
    /// when one stream stores all that it matches, else with what is published from now on.
    pub fn start(mut self, start: Start) -> Self {
        self.options.start = Some(start);
        self
    }

    /// Sets how many messages may wait for the reader; past it they are dropped, counted and reported as a gap.
    pub fn max_pending(mut self, messages: usize) -> Self {
        self.options.max_pending = Some(messages);
        self
    }

    /// Marks it as one that answers requests by hand, so that requesters learn that somebody is there: backend redis
    /// keeps a registry of responders. [`Bus::respond`] does this by itself.
    pub fn responder(mut self) -> Self {
        self.options.responder = true;
        self
    }
}

impl IntoFuture for SubscribeBuilder {
    type Output = Result<Subscription, SubscribeError>;
    type IntoFuture = Fut<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let inner = self.bus.inner();
            inner.accepts_work()?;
            // The age of what lies in the past on purpose tells nothing.
            let new = self.options.start.unwrap_or(inner.options.initial_start) == Start::New;
            let source = open(inner, &self.pattern, self.options).await?;
            Ok(Subscription {
                pattern: self.pattern,
                source: Source::Live(source),
                batch: Vec::new(),
                telemetry: inner.telemetry.clone(),
                ages: new.then(|| Ages::new(&inner.telemetry.latencies)),
                witness: inner.witness.clone(),
                traced: spans::are_made(inner).then(|| inner.clone()),
                draining: Box::pin(inner.draining.clone().cancelled_owned()),
            })
        })
    }
}

async fn open(
    inner: &Inner,
    pattern: &Pattern,
    options: SubscribeOptions,
) -> Result<Box<dyn LiveSource>, SubscribeError> {
    let initial = inner.options.initial_start;
    // Groups and responders share what is new; the past is for those who read alone, and for consumers.
    if initial != Start::New && options.start.is_none() && options.queue.is_none() && !options.responder {
        let stored = SubscribeOptions { start: Some(initial), ..options.clone() };
        match inner.backend.subscribe(pattern.clone(), stored).await {
            // The setting concerns stored subjects, and this is none.
            Err(SubscribeError::NotStored(_) | SubscribeError::Unsupported(_)) => {}
            outcome => return outcome,
        }
    }
    inner.backend.subscribe(pattern.clone(), options).await
}

/// A live subscription: a [`Stream`] of [`Event`]s. It ends when it was unsubscribed or the bus drains, after what had
/// arrived by then. Dropping it ends it at once.
pub struct Subscription {
    pattern: Pattern,
    source: Source,
    /// What has been taken from the source and not given out, last first.
    batch: Vec<LiveEvent>,
    telemetry: Telemetry,
    /// `None` where somebody else measures, or where the past is read.
    ages: Option<Ages>,
    witness: Option<Witness>,
    /// The bus, where it makes spans of what is given out.
    traced: Option<Arc<Inner>>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// A source and, while it is being stopped, the future that does it.
enum Source {
    Live(Box<dyn LiveSource>),
    Stopping(Fut<'static, (Box<dyn LiveSource>, Result<(), SubscribeError>)>),
    /// Stopped on the server; it still holds what has arrived.
    Stopped(Box<dyn LiveSource>),
    Ended,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("pattern", &self.pattern).finish_non_exhaustive()
    }
}

impl Subscription {
    /// What it is subscribed to.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// The next event; `None` when the subscription has ended.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Waits for at least one event and appends up to `max` (at least 1) to `out`; returns how many, 0 at the end.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn recv_many(&mut self, out: &mut Vec<Event>, max: usize) -> usize {
        let max = max.max(1);
        poll_fn(|cx| {
            ready!(self.poll_fill(cx));
            let taken = self.batch.len().min(max);
            out.reserve(taken);
            for _ in 0..taken {
                out.extend(self.pop());
            }
            Poll::Ready(taken)
        })
        .await
    }

    /// Stops it on the server and gives out what had arrived by then.
    ///
    /// # Errors
    /// The server could not be told; the subscription is over all the same.
    pub async fn unsubscribe(mut self) -> Result<Vec<Event>, SubscribeError> {
        self.begin_stop();
        let told = match std::mem::replace(&mut self.source, Source::Ended) {
            Source::Stopping(stopping) => {
                let (source, told) = stopping.await;
                self.source = Source::Stopped(source);
                told
            }
            other => {
                self.source = other;
                Ok(())
            }
        };
        let mut rest = Vec::new();
        while self.recv_many(&mut rest, BATCH).await > 0 {}
        told.map(|()| rest)
    }

    /// Asks the source to stop; what has arrived still comes, then the end.
    pub(crate) fn begin_stop(&mut self) {
        self.source = match std::mem::replace(&mut self.source, Source::Ended) {
            Source::Live(mut source) => Source::Stopping(Box::pin(async move {
                let told = source.stop().await;
                (source, told)
            })),
            other => other,
        };
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some(next) = self.pop() {
            return Poll::Ready(Some(next));
        }
        ready!(self.poll_fill(cx));
        Poll::Ready(self.pop())
    }

    fn pop(&mut self) -> Option<Event> {
        let event = event(self.batch.pop()?);
        Some(match (&self.traced, event) {
            (Some(inner), Event::Message(received)) => Event::Message(spans::receive(inner, received)),
            (_, event) => event,
        })
    }

    /// Makes no spans of what it gives out, and does not measure it: whoever reads it does.
    pub(super) fn untraced(mut self) -> Self {
        self.traced = None;
        self.ages = None;
        self
    }

    /// Ready with a batch that is empty only at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.batch.is_empty() {
            return Poll::Ready(());
        }
        loop {
            match &mut self.source {
                Source::Live(source) => {
                    if let Poll::Ready(taken) = source.poll_batch(cx, BATCH, &mut self.batch) {
                        return self.filled(taken);
                    }
                    ready!(self.draining.as_mut().poll(cx));
                    self.begin_stop();
                }
                Source::Stopping(stopping) => {
                    let (source, told) = ready!(stopping.as_mut().poll(cx));
                    if let Err(error) = told {
                        tracing::debug!(pattern = %self.pattern, %error, "server not told of the end of a subscription");
                    }
                    self.source = Source::Stopped(source);
                }
                Source::Stopped(source) => {
                    let taken = ready!(source.poll_batch(cx, BATCH, &mut self.batch));
                    return self.filled(taken);
                }
                Source::Ended => return Poll::Ready(()),
            }
        }
    }

    fn filled(&mut self, taken: usize) -> Poll<()> {
        if taken == 0 {
            self.source = Source::Ended;
        }
        if let Some(ages) = &mut self.ages
            && let Some(LiveEvent::Message { message, .. }) = self.batch.first()
        {
            ages.look(message);
        }
        self.batch.reverse();
        let mut messages = 0;
        for event in &self.batch {
            match event {
                LiveEvent::Message { .. } => messages += 1,
                LiveEvent::Gap(gap) => {
                    self.telemetry.gaps.inc();
                    self.telemetry.missed.inc_by(gap.missed.unwrap_or(0));
                    if let Some(witness) = &self.witness {
                        witness.gap(&self.pattern, *gap);
                    }
                }
            }
        }
        self.telemetry.received.inc_by(messages);
        Poll::Ready(())
    }
}

fn event(event: LiveEvent) -> Event {
    match event {
        LiveEvent::Message { message, offset } => Event::Message(Received::new(message, offset)),
        LiveEvent::Gap(gap) => Event::Gap(gap),
    }
}

impl Stream for Subscription {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_event(cx)
    }
}
