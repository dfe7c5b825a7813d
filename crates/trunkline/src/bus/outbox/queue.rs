//! What waits, in which order, and how much of it: no clock, no task, no backend.
//!
//! Every publish has a place, given out in the order of the calls. One that was tried at once and failed takes its own
//! place among those that wait, before everything that was published after it.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tokio::time::Instant;
use trunkline_core::Message;

use super::{OutboxOptions, Refused};
use crate::backend::{PublishError, PublishOptions, Receipt};

/// Place of a publish among all that this bus was given.
pub(super) type Place = u64;

/// Tells the publisher of a message what came of it.
pub(super) type Teller = oneshot::Sender<Result<Receipt, PublishError>>;

/// A message, and how it is to be published.
pub(super) struct Entry {
    pub(super) message: Message,
    pub(super) options: PublishOptions,
    /// The deduplication id was made by the outbox, not by the publisher.
    pub(super) own_id: bool,
    /// Its publisher, where it still waits for the outcome.
    pub(super) teller: Option<Teller>,
}

impl Entry {
    /// What it counts against the bound of bytes.
    pub(super) fn size_bytes(&self) -> usize {
        self.message.size_bytes()
    }

    /// Whether it can be sent again when nobody knows whether it was published.
    pub(super) fn is_repeatable(&self) -> bool {
        self.options.dedupe_id.is_some()
    }
}

/// What is to be sent next.
pub(super) enum Next<'a> {
    /// This message.
    Entry(Place, &'a mut Entry),
    /// Nothing before an earlier publish, tried at once, is over; it is not waited for past this moment.
    After(Instant),
    /// Nothing waits.
    Nothing,
}

/// What waits.
pub(super) struct Queue {
    limits: OutboxOptions,
    waiting: BTreeMap<Place, Entry>,
    bytes: usize,
    /// Publishes that were tried at once, until when each of them is waited for: one that nobody polls has no end.
    trying: BTreeMap<Place, Instant>,
    next: Place,
    /// How often the backend had given messages back when the first of those that are tried was handed to it: once it is
    /// more often, none of them may be sent.
    pub(super) unbroken_since: Option<u64>,
    /// The last one that was taken out because it can never be published.
    pub(super) last_refused: Option<Refused>,
    /// A message that was told to be queued and was lost for a reason that its publisher does not know: for a flush.
    pub(super) failure: Option<PublishError>,
    /// The last round of sending failed, and nothing was published since: there is no outcome to wait for.
    pub(super) failing: bool,
    /// Nothing is kept any more.
    pub(super) closed: bool,
}

impl Queue {
    pub(super) fn new(limits: OutboxOptions) -> Self {
        Self {
            limits,
            waiting: BTreeMap::new(),
            bytes: 0,
            trying: BTreeMap::new(),
            next: 0,
            unbroken_since: None,
            last_refused: None,
            failure: None,
            failing: false,
            closed: false,
        }
    }

    pub(super) fn messages(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The place of a publish that is made now.
    pub(super) fn take_place(&mut self) -> Place {
        self.next += 1;
        self.next
    }

    /// The place of a publish that may be tried at once; `None` while others wait, which come first, and while one that is
    /// tried may have failed without having said so here: the backend tells by `breaks`, see [`Backend::breaks`].
    ///
    /// [`Backend::breaks`]: crate::backend::Backend::breaks
    pub(super) fn try_now(&mut self, now: Instant, until: Instant, breaks: Option<u64>) -> Option<Place> {
        if !self.waiting.is_empty() {
            return None;
        }
        if self.unbroken_since != breaks {
            self.trying.retain(|_, until| *until > now);
            if !self.trying.is_empty() {
                return None;
            }
            self.unbroken_since = breaks;
        }
        let place = self.take_place();
        self.trying.insert(place, until);
        Some(place)
    }

    /// A publish that was tried at once is over.
    pub(super) fn tried(&mut self, place: Place) {
        self.trying.remove(&place);
    }

    /// Keeps a message in its place.
    ///
    /// # Errors
    /// The bound that is reached, or the queue is closed.
    pub(super) fn keep(&mut self, place: Place, entry: Entry) -> Result<(), PublishError> {
        if self.closed {
            return Err(PublishError::Closed);
        }
        let full = |what, waiting: usize, limit: usize, setting| {
            let (waiting, limit) = (waiting as u64, limit as u64);
            PublishError::OutboxFull { what, waiting, limit, setting }
        };
        if self.waiting.len() >= self.limits.messages_max {
            let (waiting, limit) = (self.waiting.len(), self.limits.messages_max);
            return Err(full("messages", waiting, limit, "messaging.outbox_max_messages"));
        }
        let bytes = self.bytes.saturating_add(entry.size_bytes());
        if bytes > self.limits.bytes_max {
            return Err(full("bytes", bytes, self.limits.bytes_max, "messaging.outbox_max_bytes"));
        }
        self.bytes = bytes;
        self.waiting.insert(place, entry);
        Ok(())
    }

    /// The first message after `place`, unless an earlier publish is still being tried.
    pub(super) fn next_after(&mut self, place: Option<Place>, now: Instant) -> Next<'_> {
        let from = place.map_or(0, |place| place + 1);
        let Some((&first, _)) = self.waiting.range(from..).next() else { return Next::Nothing };
        self.trying.retain(|_, until| *until > now);
        if let Some((&trying, until)) = self.trying.first_key_value()
            && trying < first
        {
            return Next::After(*until);
        }
        match self.waiting.get_mut(&first) {
            Some(entry) => Next::Entry(first, entry),
            None => Next::Nothing,
        }
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.waiting.get_mut(&place)
    }

    /// Takes a message out: it needs no more sending.
    pub(super) fn remove(&mut self, place: Place) -> Option<Entry> {
        let entry = self.waiting.remove(&place)?;
        self.bytes -= entry.size_bytes();
        Some(entry)
    }

    /// Publishers that wait for an outcome.
    pub(super) fn tellers(&mut self) -> Vec<Teller> {
        self.waiting.values_mut().filter_map(|entry| entry.teller.take()).collect()
    }

    /// The place that the next publish gets.
    pub(super) fn end(&self) -> Place {
        self.next + 1
    }

    /// Whether everything before `end` is over.
    pub(super) fn is_over_before(&self, end: Place, now: Instant) -> bool {
        let trying = self.trying.range(..end).any(|(_, until)| *until > now);
        !trying && self.waiting.keys().next().is_none_or(|place| *place >= end)
    }

    /// Keeps nothing from now on, and gives up what waits.
    pub(super) fn close(&mut self) -> Vec<Entry> {
        self.closed = true;
        self.bytes = 0;
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(payload: &str) -> Entry {
        Entry {
            message: Message::new("a".parse().unwrap(), payload.to_owned()),
            options: PublishOptions::default(),
            own_id: false,
            teller: None,
        }
    }

    fn payload(next: Next<'_>) -> Option<String> {
        match next {
            Next::Entry(_, entry) => Some(String::from_utf8_lossy(&entry.message.payload).into_owned()),
            Next::After(_) | Next::Nothing => None,
        }
    }

    #[test]
    fn a_failed_try_comes_before_what_was_published_after_it() {
        let (mut queue, now) = (Queue::new(OutboxOptions::default()), Instant::now());
        let until = now + Duration::from_secs(1);
        let (first, second) =
            (queue.try_now(now, until, None).unwrap(), queue.try_now(now, until, None).unwrap());
        queue.tried(second);
        queue.keep(second, entry("second")).unwrap();
        assert!(queue.try_now(now, until, None).is_none(), "others wait");
        let third = queue.take_place();
        queue.keep(third, entry("third")).unwrap();
        assert!(
            matches!(queue.next_after(None, now), Next::After(at) if at == until),
            "the first is under way"
        );
        queue.tried(first);
        queue.keep(first, entry("first")).unwrap();
        assert_eq!(payload(queue.next_after(None, now)).as_deref(), Some("first"));
        assert_eq!(payload(queue.next_after(Some(first), now)).as_deref(), Some("second"));
        assert_eq!(payload(queue.next_after(Some(third), now)), None);
        for place in [first, second, third] {
            assert!(!queue.is_over_before(queue.end(), now));
            queue.remove(place).unwrap();
        }
        assert!(queue.is_over_before(queue.end(), now));
        assert_eq!((queue.messages(), queue.bytes()), (0, 0));
    }

    #[test]
    fn a_try_that_nobody_ends_holds_up_the_others_for_its_time_alone() {
        let (mut queue, now) = (Queue::new(OutboxOptions::default()), Instant::now());
        let until = now + Duration::from_secs(1);
        queue.try_now(now, until, None).unwrap();
        let place = queue.take_place();
        queue.keep(place, entry("x")).unwrap();
        assert!(payload(queue.next_after(None, now)).is_none());
        assert_eq!(payload(queue.next_after(None, until)).as_deref(), Some("x"));
    }

    #[test]
    fn a_full_queue_names_the_limit_and_the_setting() {
        let size = entry("12345").size_bytes();
        let mut queue = Queue::new(OutboxOptions { messages_max: 2, bytes_max: size * 2 });
        for n in 1..=2 {
            queue.keep(n, entry("12345")).unwrap();
        }
        let error = queue.keep(3, entry("")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the outbox is full: 2 messages of at most 2 (messaging.outbox_max_messages)"
        );
        queue.remove(1).unwrap();
        let error = queue.keep(3, entry("123456")).unwrap_err();
        assert!(
            error.to_string().ends_with("(messaging.outbox_max_bytes)") && error.is_retryable(),
            "{error}"
        );
        queue.keep(3, entry("12345")).unwrap();
        assert_eq!(queue.close().len(), 2);
        assert_eq!(queue.keep(4, entry("")), Err(PublishError::Closed));
    }
}
