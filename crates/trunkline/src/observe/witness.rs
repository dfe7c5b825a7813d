//! What a bus shows of itself: what it publishes, where no tap sees that, and how its handlers fare.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use trunkline_core::{Message, Pattern, Subject};

use super::{Observation, Observer, Outcome, Published, What};
use crate::backend::{BackendKind, Delivery, Gap, PublishOptions, Receipt, Settle};
use crate::bus::received::Received;

/// Which messages a bus shows; the others are seen by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// None: the hub has a tap.
    None,
    /// Those outside of the root: the others are read from the streams.
    Answers,
    /// All.
    All,
}

/// See the module's text.
#[derive(Debug, Clone)]
pub(crate) struct Witness {
    observer: Arc<Observer>,
    shown: Shown,
    /// The component, as its envelopes name it.
    name: Arc<str>,
}

impl Witness {
    pub(crate) fn new(observer: Arc<Observer>, backend: BackendKind, name: Arc<str>) -> Self {
        let shown = match backend {
            BackendKind::InMemory => Shown::None,
            BackendKind::Redis => Shown::Answers,
            BackendKind::Nats => Shown::All,
        };
        Self { observer, shown, name }
    }

    /// A message is about to be published. What it returns is told once that has succeeded.
    pub(crate) fn publishes(&self, message: &Message, options: &PublishOptions) -> Option<Box<Published>> {
        if self.shown == Shown::None || self.observer.is_of_the_system(&message.subject) {
            return None;
        }
        let is_ours = self.observer.is_under_root(&message.subject);
        if is_ours && self.shown == Shown::Answers {
            if let Some(reply) = &message.reply {
                self.observer.expect_reply(reply.as_bytes());
            }
            return None;
        }
        self.observer.begins(is_ours, message).then(|| {
            Box::new(Published {
                message: Arc::new(message.clone()),
                time: Timestamp::now(),
                from: Some(self.name.clone()),
                to: Vec::new(),
                missed: Vec::new(),
                stored: None,
                nobody: false,
                redriven: options.dedupe_id.as_ref().is_some_and(|id| id.starts_with("rd:")),
            })
        })
    }

    /// A message was published.
    pub(crate) fn published(&self, mut published: Published, receipt: &Receipt) {
        match receipt {
            // The server had it before, and so had whoever looks on.
            Receipt::Stored { duplicate: true, .. } => return,
            Receipt::Stored { stream, offset, .. } => published.stored = Some((stream.clone(), *offset)),
            _ => {}
        }
        self.observer.published(published);
    }

    /// A request found nobody.
    pub(crate) fn found_nobody(&self, subject: &Subject, reply: &Subject) {
        if self.shown != Shown::None && self.observer.is_shown(subject) {
            let mut seen = Observation::new(What::NoResponders, Timestamp::now(), subject.as_str());
            seen.reply = Some(reply.to_string());
            seen.from = Some(self.name.to_string());
            self.observer.observed(seen);
        }
    }

    /// A subscription was not given what it asked for.
    pub(crate) fn gap(&self, pattern: &Pattern, gap: Gap) {
        let mut seen = Observation::new(What::Gap, Timestamp::now(), pattern.as_str());
        seen.to = vec![self.name.to_string()];
        seen.missed = gap.missed;
        seen.reason = Some("the subscription was not given what it asked for".to_owned());
        self.observer.observed(seen);
    }

    /// A consumer was not given what limits of its stream removed.
    pub(crate) fn removed(&self, stream: &str, consumer: &str, missed: u64) {
        let mut seen = Observation::new(What::Gap, Timestamp::now(), ">");
        seen.to = vec![self.name.to_string()];
        (seen.stream, seen.consumer) = (Some(stream.to_owned()), Some(consumer.to_owned()));
        seen.missed = Some(missed);
        seen.reason = Some("limits of the stream removed messages before they were handled".to_owned());
        self.observer.observed(seen);
    }

    /// The handler of a request begins.
    pub(crate) fn request(&self, received: &Received) -> Option<Handling> {
        let published = received.envelope().and_then(|envelope| envelope.timestamp);
        let handling = self.handling(received, published)?;
        if self.shown != Shown::None
            && let (Some(reply), Some(seen)) = (received.reply(), &handling.seen)
        {
            self.observer.expect_reply(reply.as_bytes());
            self.observer.asked(Observation::clone(seen));
        }
        Some(handling)
    }

    /// The handler of a delivery begins.
    pub(crate) fn delivery(
        &self,
        (stream, consumer): (&str, &str),
        delivery: &Delivery,
        received: &Received,
    ) -> Option<Handling> {
        let mut handling = self.handling(received, time_of(delivery.time))?;
        if let Some(seen) = &mut handling.seen {
            // Nobody answers what was stored.
            seen.reply = None;
            delivered(seen, (stream, consumer), delivery);
        }
        Some(handling)
    }

    fn handling(&self, received: &Received, published: Option<Timestamp>) -> Option<Handling> {
        if !self.observer.is_shown(received.subject()) || !self.observer.may_record(0) {
            return None;
        }
        let mut seen = self.observer.observation_of(received.message(), self.shown == Shown::All);
        let waited = published.map(|published| seen.time.as_microsecond() - published.as_microsecond());
        // Clocks of two machines may differ.
        seen.waited_us = waited.and_then(|waited| u64::try_from(waited).ok());
        seen.to = vec![self.name.to_string()];
        Some(Handling {
            observer: self.observer.clone(),
            seen: Some(Box::new(seen)),
            started: Instant::now(),
        })
    }
}

fn time_of(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}

fn delivered(seen: &mut Observation, (stream, consumer): (&str, &str), delivery: &Delivery) {
    (seen.stream, seen.consumer) = (Some(stream.to_owned()), Some(consumer.to_owned()));
    (seen.offset, seen.attempt) = (Some(delivery.offset.to_string()), Some(delivery.attempt));
}

/// A handler at work. Dropped before its end, it was cancelled.
#[derive(Debug)]
pub struct Handling {
    observer: Arc<Observer>,
    /// Taken when it is told.
    seen: Option<Box<Observation>>,
    started: Instant,
}

impl Handling {
    /// Somebody outside this process is given a delivery, and works on it under the name of `by`; `None` where it is not
    /// recorded.
    pub fn outside(
        observer: &Arc<Observer>,
        consumer: (&str, &str),
        delivery: &Delivery,
        by: &str,
    ) -> Option<Self> {
        if !observer.is_shown(&delivery.message.subject) || !observer.may_record(0) {
            return None;
        }
        let mut seen = observer.observation_of(&delivery.message, false);
        let waited =
            time_of(delivery.time).map(|stored| seen.time.as_microsecond() - stored.as_microsecond());
        seen.waited_us = waited.and_then(|waited| u64::try_from(waited).ok());
        (seen.to, seen.reply) = (vec![by.to_owned()], None);
        delivered(&mut seen, consumer, delivery);
        Some(Self { observer: observer.clone(), seen: Some(Box::new(seen)), started: Instant::now() })
    }

    /// It ended with a settlement.
    pub fn settled(self, settle: &Settle, reason: Option<String>) {
        let outcome = match settle {
            Settle::Ack => Outcome::Acked,
            Settle::Nak(_) => Outcome::Nacked,
            Settle::Term => Outcome::Terminated,
            Settle::Progress => return self.forget(),
        };
        self.ended(outcome, reason);
    }

    /// It ended.
    pub fn ended(mut self, outcome: Outcome, reason: Option<String>) {
        self.tell(outcome, reason);
    }

    /// What became of it is not known here.
    pub fn forget(mut self) {
        self.seen = None;
    }

    fn tell(&mut self, outcome: Outcome, reason: Option<String>) {
        if let Some(mut seen) = self.seen.take() {
            seen.outcome = Some(outcome);
            seen.reason = reason;
            seen.took_us = u64::try_from(self.started.elapsed().as_micros()).ok();
            self.observer.observed(*seen);
        }
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        self.tell(Outcome::Cancelled, None);
    }
}
