//! What a worker thread of the server has seen in one read batch: raw bytes, which are read elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use trunkline_core::StreamOffset;

use super::observer::Observer;

/// Most receivers of a message that are named.
const NAMED_MAX: usize = 64;
/// Buffers that grew beyond this are given back.
const KEPT_BYTES: usize = 1 << 20;

/// Who was given a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receiver {
    /// A client of the server, by its number.
    Client(u64),
    /// A component of this process, by its name.
    Named(Arc<str>),
}

/// A message on its way through the server, as slices of what was read.
#[derive(Debug, Clone, Copy)]
pub struct RawMessage<'a> {
    /// Its subject.
    pub subject: &'a [u8],
    /// Where its answer is expected.
    pub reply: Option<&'a [u8]>,
    /// Its header block.
    pub header: Option<&'a [u8]>,
    /// Its body.
    pub payload: &'a [u8],
    /// The number of the client that publishes it.
    pub from: u64,
}

/// One message of a batch; its bytes lie one behind the other in [`Raw::bytes`].
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) time: Timestamp,
    pub(super) from: u64,
    pub(super) subject: usize,
    pub(super) reply: Option<usize>,
    pub(super) header: Option<usize>,
    pub(super) payload: usize,
    pub(super) to: usize,
    /// Of those in `to`, so many were not given it for want of room; they stand last.
    pub(super) missed: usize,
    pub(super) stored: Option<Box<(String, StreamOffset)>>,
    pub(super) nobody: bool,
}

/// Messages with their bytes and receivers.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) entries: Vec<Entry>,
    pub(super) bytes: Vec<u8>,
    pub(super) to: Vec<Receiver>,
}

impl Raw {
    fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
        self.to.clear();
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
    }

    /// Moves everything of another behind what is here.
    pub(super) fn append(&mut self, other: &mut Raw) {
        self.entries.append(&mut other.entries);
        self.bytes.extend_from_slice(&other.bytes);
        self.to.append(&mut other.to);
        other.clear();
    }
}

/// What one thread has seen since it last handed over. Empty between two read batches.
///
/// A message is begun, its receivers are named, and it is ended; then the next one.
#[derive(Debug, Default)]
pub struct Batch {
    observer: Option<Arc<Observer>>,
    raw: Raw,
    /// Receivers that had no room for the message at hand.
    missed: Vec<Receiver>,
    not_recorded: u64,
}

impl Batch {
    /// Begins a message that is to be recorded; `false` where there are too many.
    pub fn begin(&mut self, observer: &Arc<Observer>, message: &RawMessage<'_>) -> bool {
        self.note(observer);
        let header = message.header.unwrap_or_default();
        let reply = message.reply.unwrap_or_default();
        let size = message.subject.len() + reply.len() + header.len() + message.payload.len();
        if !observer.is_report(message.subject) && !observer.may_record(size) {
            self.not_recorded += 1;
            return false;
        }
        if let Some(reply) = message.reply {
            observer.expect_reply(reply);
        }
        for part in [message.subject, reply, header, message.payload] {
            self.raw.bytes.extend_from_slice(part);
        }
        self.raw.entries.push(Entry {
            time: Timestamp::now(),
            from: message.from,
            subject: message.subject.len(),
            reply: message.reply.map(<[u8]>::len),
            header: message.header.map(<[u8]>::len),
            payload: message.payload.len(),
            to: 0,
            missed: 0,
            stored: None,
            nobody: false,
        });
        true
    }

    #[inline]
    fn note(&mut self, observer: &Arc<Observer>) {
        if self.observer.is_none() {
            self.observer = Some(observer.clone());
        }
    }

    /// So many messages were not recorded, as the observer lets them pass ([`Observer::is_passing`]).
    pub fn passed(&mut self, observer: &Arc<Observer>, messages: usize) {
        self.note(observer);
        self.not_recorded += messages as u64;
    }

    /// Somebody was given the message at hand.
    #[inline]
    pub fn given(&mut self, to: Receiver) {
        if let Some(entry) = self.raw.entries.last_mut()
            && entry.to < NAMED_MAX
        {
            entry.to += 1;
            self.raw.to.push(to);
        }
    }

    /// Somebody who listens had no room for the message at hand.
    pub fn missed(&mut self, to: Receiver) {
        if self.missed.len() < NAMED_MAX {
            self.missed.push(to);
        }
    }

    /// A stream has stored the message at hand.
    pub fn stored(&mut self, stream: &str, offset: StreamOffset) {
        if let Some(entry) = self.raw.entries.last_mut() {
            entry.stored = Some(Box::new((stream.to_owned(), offset)));
        }
    }

    /// Ends the message at hand; `nobody` when it was a request that nobody was there for.
    pub fn end(&mut self, nobody: bool) {
        if let Some(entry) = self.raw.entries.last_mut() {
            entry.nobody = nobody;
            entry.to += self.missed.len();
            entry.missed = self.missed.len();
            self.raw.to.append(&mut self.missed);
        }
    }

    /// Hands over what was seen; to be called at the end of every read batch.
    #[inline]
    pub fn hand_over(&mut self) {
        if self.observer.is_some() {
            self.hand_over_some();
        }
    }

    fn hand_over_some(&mut self) {
        let Some(observer) = self.observer.take() else { return };
        if self.not_recorded > 0 {
            observer.not_recorded.fetch_add(self.not_recorded, Ordering::Relaxed);
            self.not_recorded = 0;
        }
        if !self.raw.entries.is_empty() {
            observer.take_raw(&mut self.raw);
        }
    }
}
