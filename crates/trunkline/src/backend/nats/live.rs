//! Live subscriptions: one task each moves messages from the client library into a bounded inbox.
//!
//! The task never waits for the reader. Reading the library's channel directly would be one hop less, but its
//! capacity is one for all subscriptions, and what it drops it does not count: gaps would not be exact. With the
//! task, the channel overflows only when the runtime itself is starved. Decoding happens in the task, too, in
//! parallel with the library's own.

use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use async_nats::{Statistics, Subscriber};
use futures_util::Stream as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::events::{Events, Subscription};
use super::link::Link;
use super::message::Decoder;
use crate::backend::live::{Gap, LiveEvent, LiveSource};
use crate::backend::{Fut, SubscribeError};

/// Most messages moved into the inbox at once.
const BATCH_MESSAGES: usize = 256;

/// What moves messages from the client library into the inbox of one subscription.
struct Receiving {
    subscriber: Subscriber,
    subscription: Arc<Subscription>,
    events: Arc<Events>,
    statistics: Arc<Statistics>,
    /// The connection that the last message came on.
    connection: u64,
}

impl Receiving {
    /// Runs until the subscription has ended, or `stop`.
    ///
    /// `announced` changes when a connection is announced.
    async fn run(mut self, mut announced: watch::Receiver<u64>, stop: CancellationToken) {
        let _end = End(Arc::clone(&self.subscription));
        let mut decoder = Decoder::default();
        let mut batch = Vec::with_capacity(BATCH_MESSAGES);
        let subscription = Arc::clone(&self.subscription);
        let (mut stopped, mut ending) = (pin!(stop.cancelled()), pin!(subscription.ending.cancelled()));
        let mut unsubscribed = false;
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => return,
                more = std::future::poll_fn(|cx| self.poll_receive(cx, &mut decoder, &mut batch)) => {
                    if !more {
                        if unsubscribed && self.subscription.queue.is_some() {
                            self.note_departure(&mut batch);
                        }
                        return;
                    }
                }
                changed = announced.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.note_connection(&mut batch);
                    self.deliver(&mut batch);
                }
                () = &mut ending, if !unsubscribed => {
                    unsubscribed = true;
                    tokio::select! {
                        biased;
                        () = &mut stopped => return,
                        told = self.subscriber.drain() => if told.is_err() { return },
                    }
                }
            }
        }
    }

    /// Takes what is there; `false` at the end.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        decoder: &mut Decoder,
        batch: &mut Vec<LiveEvent>,
    ) -> Poll<bool> {
        let mut ended = false;
        while batch.len() < BATCH_MESSAGES {
            match Pin::new(&mut self.subscriber).poll_next(cx) {
                Poll::Ready(Some(received)) => {
                    self.note_connection(batch);
                    batch.push(self.decode(decoder, received));
                }
                Poll::Ready(None) => {
                    ended = true;
                    break;
                }
                Poll::Pending if batch.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        self.deliver(batch);
        Poll::Ready(!ended)
    }

    /// Messages that come after a reconnect follow a gap, and so does the news of it alone.
    fn note_connection(&mut self, batch: &mut Vec<LiveEvent>) {
        let connection = self.statistics.connects.load(Ordering::Relaxed);
        if connection != self.connection {
            self.connection = connection;
            batch.push(LiveEvent::Gap(Gap { missed: None }));
        }
    }

    /// The library forgets a subscription as soon as the UNSUB is written. What the server gave this member of a
    /// queue group between that and reading the UNSUB nobody else got, and nobody can count.
    fn note_departure(&self, batch: &mut Vec<LiveEvent>) {
        batch.push(LiveEvent::Gap(Gap { missed: None }));
        self.deliver(batch);
    }

    fn decode(&self, decoder: &mut Decoder, received: async_nats::Message) -> LiveEvent {
        match decoder.decode(received) {
            Ok(message) => LiveEvent::Message { message: Arc::new(message), offset: None },
            Err(error) => {
                tracing::warn!(pattern = %self.subscription.pattern, %error, "a message cannot be delivered");
                self.events.dropped.fetch_add(1, Ordering::Relaxed);
                LiveEvent::Gap(Gap { missed: Some(1) })
            }
        }
    }

    fn deliver(&self, batch: &mut Vec<LiveEvent>) {
        self.subscription.inbox.push(batch, &self.events.dropped);
    }
}

/// Tells reader and whoever waits for the end, however the task ends.
struct End(Arc<Subscription>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.inbox.close();
        self.0.ended.cancel();
    }
}

/// Keeps a subscription listed in `events`, from before the server hears of it until the reader drops it.
pub(super) struct Listed {
    pub(super) subscription: Arc<Subscription>,
    id: u64,
    events: Arc<Events>,
}

impl Listed {
    pub(super) fn new(subscription: Subscription, events: &Arc<Events>) -> Self {
        let subscription = Arc::new(subscription);
        let id = events.add(Arc::clone(&subscription));
        Self { subscription, id, events: Arc::clone(events) }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.events.remove(self.id);
    }
}

/// The reader's end.
pub(super) struct NatsSource {
    /// The receiving task; it ends when this is dropped, and unsubscribes.
    task: AbortOnDropHandle<()>,
    listed: Listed,
    /// Weak, so that a source alone does not keep the connection of a dropped backend alive.
    link: Weak<Link>,
}

impl NatsSource {
    /// Starts the receiving task.
    pub(super) fn start(
        listed: Listed,
        subscriber: Subscriber,
        connection: u64,
        link: &Arc<Link>,
        stop: CancellationToken,
    ) -> Self {
        let receiving = Receiving {
            subscriber,
            subscription: Arc::clone(&listed.subscription),
            events: Arc::clone(&link.events),
            statistics: link.statistics(),
            connection,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(receiving.run(link.announced(), stop)));
        Self { task, listed, link: Arc::downgrade(link) }
    }

    /// What the server said when it refused the subscription.
    pub(super) fn denied(&self) -> Option<&str> {
        self.listed.subscription.denied.get().map(String::as_str)
    }
}

impl LiveSource for NatsSource {
    fn poll_batch(&mut self, cx: &mut Context<'_>, max: usize, out: &mut Vec<LiveEvent>) -> Poll<usize> {
        self.listed.subscription.inbox.poll_take(cx, max, out)
    }

    fn stop(&mut self) -> Fut<'_, Result<(), SubscribeError>> {
        Box::pin(async move {
            let Some(link) = self.link.upgrade() else { return Ok(()) };
            if self.listed.subscription.ended.is_cancelled() {
                return Ok(());
            }
            let stopped = async {
                // Brings in what the server had sent before: the library forgets a subscription as soon as the
                // UNSUB is written, so that only what the server sends until it reads that can be lost.
                link.prove(link.publish_timeout).await.ok()?;
                self.listed.subscription.ending.cancel();
                self.listed.subscription.ended.cancelled().await;
                // UNSUB was handed over before the task ended: the proof covers it.
                link.prove(link.publish_timeout).await.ok()
            };
            if let Ok(Some(())) = tokio::time::timeout(link.publish_timeout, stopped).await {
                return Ok(());
            }
            self.task.abort();
            self.listed.subscription.inbox.close();
            Err(link.not_subscribed())
        })
    }
}

/// The library's number for a subscription. It reports by this number which subscription it dropped a message
/// of, but gives it out only in its debug text.
pub(super) fn subscription_number(subscriber: &Subscriber) -> Option<u64> {
    let text = format!("{subscriber:?}");
    let (_, rest) = text.split_once("sid: ")?;
    rest.split_once(',')?.0.parse().ok()
}
