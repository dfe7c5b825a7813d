//! What was handed over and waits to be read. Whoever publishes does this much of the work, and goes on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use jiff::Timestamp;
use trunkline_core::{Message, StreamOffset};

use super::Observer;
use crate::observe::Observation;
use crate::observe::batch::{Entry, Raw, Receiver};
use crate::observe::cut_off::CutOff;

/// Most bytes that wait to be read; past it nothing is recorded.
pub(super) const WAITING_BYTES_MAX: usize = 16 << 20;
/// What an observation that waits takes beside its texts.
const WAITING_BYTES: usize = 1024;

/// What waits to be read.
#[derive(Debug)]
pub(super) enum Waiting {
    /// A message that was published in this process.
    Message(Box<Published>),
    /// An observation that is one already.
    Observation(Box<Observation>),
    /// The payload of a report.
    Report(Bytes),
    /// A request that is being handled.
    Asked(Box<Observation>),
    /// A client was cut off.
    CutOff(Box<CutOff>),
}

/// A message that was published in this process.
#[derive(Debug)]
pub struct Published {
    /// The message.
    pub message: Arc<Message>,
    /// When.
    pub time: Timestamp,
    /// By whom, where its envelope does not say it.
    pub from: Option<Arc<str>>,
    /// Who was given it.
    pub to: Vec<Receiver>,
    /// Who listens and had no room for it.
    pub missed: Vec<Receiver>,
    /// The stream that has stored it, and its place there.
    pub stored: Option<(String, StreamOffset)>,
    /// It was a request that nobody was there for.
    pub nobody: bool,
    /// It is a dead letter that is sent back to work.
    pub redriven: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) raw: Raw,
    pub(super) others: Vec<Waiting>,
    pub(super) others_bytes: usize,
    /// The task waits to be woken.
    pub(super) asleep: bool,
}

impl Observer {
    pub(in crate::observe) fn take_raw(&self, raw: &mut Raw) {
        let mut queue = self.queue.lock();
        if queue.bytes() + raw.bytes.len() > WAITING_BYTES_MAX {
            self.not_recorded.fetch_add(raw.entries.len() as u64, Ordering::Relaxed);
            *raw = Raw::default();
            return;
        }
        queue.raw.append(raw);
        self.wake(queue);
    }

    /// Begins to take note of a message that a component of this process publishes: `false` where it is none that is
    /// recorded, or there are too many. What becomes of it is told by [`Observer::published`].
    pub fn begins(&self, is_tapped: bool, message: &Message) -> bool {
        let subject = message.subject.as_bytes();
        if !is_tapped && !self.expects(subject) {
            return false;
        }
        // Reports do not count: they are few, and tell of messages that were counted.
        if subject != self.trace_subject.as_bytes() && !self.may_record(message.size_bytes()) {
            self.not_recorded.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if let Some(reply) = &message.reply {
            self.expect_reply(reply.as_bytes());
        }
        true
    }

    /// Takes note of a message that was published in this process.
    pub fn published(&self, published: Published) {
        let bytes = published.message.size_bytes() + WAITING_BYTES;
        match published.message.subject.as_str() == &*self.trace_subject {
            true => self.report(published.message.payload.clone()),
            false => self.push(Waiting::Message(Box::new(published)), bytes),
        }
    }

    /// Takes note of an observation that somebody has made.
    pub fn observed(&self, seen: Observation) {
        self.push(Waiting::Observation(Box::new(seen)), WAITING_BYTES);
    }

    /// A request is being handled, which may have been published where nobody saw it.
    pub(in crate::observe) fn asked(&self, seen: Observation) {
        self.push(Waiting::Asked(Box::new(seen)), WAITING_BYTES);
    }

    /// A client was cut off because it did not read.
    pub fn cut_off(&self, client: CutOff) {
        let bytes = client.bytes() + WAITING_BYTES;
        self.push(Waiting::CutOff(Box::new(client)), bytes);
    }

    /// So much could not be reported.
    pub(in crate::observe) fn not_reported(&self, observations: u64) {
        self.not_reported.fetch_add(observations, Ordering::Relaxed);
    }

    /// Reads what waits now.
    pub(in crate::observe) fn read_now(&self) {
        self.read(false);
    }

    /// Takes the payload of a message on `{root}.system.trace`.
    pub fn report(&self, payload: Bytes) {
        let bytes = payload.len() + WAITING_BYTES;
        self.push(Waiting::Report(payload), bytes);
    }

    fn push(&self, waiting: Waiting, bytes: usize) {
        let mut queue = self.queue.lock();
        if queue.bytes() + bytes > WAITING_BYTES_MAX {
            self.not_recorded.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.others.push(waiting);
        queue.others_bytes += bytes;
        self.wake(queue);
    }

    /// Only from sleep: while it is at work it looks by itself, so that nobody who publishes pays for waking it.
    fn wake(&self, mut queue: parking_lot::MutexGuard<'_, Queue>) {
        if std::mem::take(&mut queue.asleep) {
            drop(queue);
            self.woken.notify_one();
        }
    }
}

impl Queue {
    fn bytes(&self) -> usize {
        self.raw.bytes.len() + self.raw.entries.len() * size_of::<Entry>() + self.others_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.raw.entries.is_empty() && self.others.is_empty()
    }
}
