//! The log of a stream: messages in one order, numbered from 1, the oldest removed by limits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use trunkline_core::{Message, Pattern, StreamOffset};

use crate::backend::{ReadPage, ReadRequest, Start, StoredMessage, StreamConfig, StreamError};

/// Most deduplication ids remembered at a time, however long the window, and most of their bytes: clients make them up.
const DEDUPE_IDS_MAX: usize = 100_000;
const DEDUPE_BYTES_MAX: usize = 8 << 20;
/// What a deduplication id takes beside its bytes, which are there twice.
const DEDUPE_ID_BYTES: usize = 96;
/// What a message takes beside the bytes that it is counted with.
const MESSAGE_BYTES: usize = 224;

/// Messages of one stream. A value without clock or lock: who holds it says what time it is.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) config: StreamConfig,
    entries: VecDeque<Stored>,
    /// Sequence of `entries[0]`, or of the next message when there are none.
    first: u64,
    /// Entries that hold a message; the others were deleted. The first entry always holds one.
    messages: u64,
    bytes: u64,
    /// Never goes back, so that a start by time can search.
    newest_time: SystemTime,
    dedupe: HashMap<String, u64>,
    dedupe_age: VecDeque<(Instant, String)>,
    /// Of the ids in `dedupe`.
    dedupe_bytes: usize,
}

#[derive(Debug)]
struct Stored {
    time: SystemTime,
    /// `None` once it was deleted.
    message: Option<Arc<Message>>,
}

/// What was removed, oldest first.
pub(super) type Removed = Vec<(u64, Arc<Message>)>;

impl Log {
    pub(super) fn new(config: StreamConfig) -> Self {
        Self {
            config,
            entries: VecDeque::new(),
            first: 1,
            messages: 0,
            bytes: 0,
            newest_time: SystemTime::UNIX_EPOCH,
            dedupe: HashMap::new(),
            dedupe_age: VecDeque::new(),
            dedupe_bytes: 0,
        }
    }

    /// Sequence of the oldest message kept, or of the next one.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Sequence of the newest message ever stored; 0 before the first.
    pub(super) fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    /// Messages kept at or after `from`.
    pub(super) fn messages_from(&self, from: u64) -> u64 {
        let skipped = from.saturating_sub(self.first);
        if self.messages == self.entries.len() as u64 {
            return self.messages.saturating_sub(skipped);
        }
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        self.entries.iter().skip(skipped).filter(|stored| stored.message.is_some()).count() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// About how many bytes of memory it takes.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes as usize + self.entries.len() * MESSAGE_BYTES + self.held_by_ids()
    }

    fn held_by_ids(&self) -> usize {
        2 * self.dedupe_bytes + self.dedupe.len() * DEDUPE_ID_BYTES
    }

    /// Removes the oldest messages until so many bytes of memory are free, or none is left. Deduplication ids go first, where
    /// they take more than a quarter: messages are not to go for the sake of names that clients make as long as they like.
    pub(super) fn free(&mut self, bytes: usize) -> Removed {
        let wanted = self.held_bytes().saturating_sub(bytes);
        while self.held_bytes() > wanted && self.held_by_ids() > wanted / 4 {
            if !self.forget_oldest_id() {
                break;
            }
        }
        let mut removed = Vec::new();
        while self.messages > 0 && self.held_bytes() > wanted {
            removed.extend(self.take(self.first));
            self.trim();
        }
        removed
    }

    pub(super) fn get(&self, sequence: u64) -> Option<StoredMessage> {
        let stored = self.entries.get(sequence.checked_sub(self.first)? as usize)?;
        Some(StoredMessage {
            offset: StreamOffset::Sequence(sequence),
            time: stored.time,
            message: stored.message.clone()?,
        })
    }

    /// The earlier sequence of a deduplication id, if it was seen within the window.
    pub(super) fn seen(&mut self, id: &str, window: Duration, now: Instant) -> Option<u64> {
        while let Some((at, _)) = self.dedupe_age.front() {
            let fits =
                self.dedupe_age.len() < DEDUPE_IDS_MAX && self.dedupe_bytes + id.len() <= DEDUPE_BYTES_MAX;
            if now.duration_since(*at) < window && fits {
                break;
            }
            self.forget_oldest_id();
        }
        self.dedupe.get(id).copied()
    }

    fn forget_oldest_id(&mut self) -> bool {
        let Some((_, old)) = self.dedupe_age.pop_front() else { return false };
        self.dedupe_bytes -= old.len();
        self.dedupe.remove(&old);
        true
    }

    /// Stores a message and applies the limits.
    pub(super) fn append(
        &mut self,
        message: &Arc<Message>,
        dedupe_id: Option<&str>,
        wall: SystemTime,
        now: Instant,
    ) -> (u64, Removed) {
        self.newest_time = self.newest_time.max(wall);
        self.bytes += message.size_bytes() as u64;
        self.entries.push_back(Stored { time: self.newest_time, message: Some(message.clone()) });
        self.messages += 1;
        let sequence = self.last();
        if let Some(id) = dedupe_id {
            self.dedupe_bytes += id.len();
            self.dedupe.insert(id.to_owned(), sequence);
            self.dedupe_age.push_back((now, id.to_owned()));
        }
        (sequence, self.apply_limits(wall))
    }

    /// Removes what limits say, from the old end.
    pub(super) fn apply_limits(&mut self, wall: SystemTime) -> Removed {
        let mut removed = Vec::new();
        while let Some(oldest) = self.entries.front() {
            let config = &self.config;
            let too_old = config
                .max_age
                .is_some_and(|age| wall.duration_since(oldest.time).is_ok_and(|old_by| old_by > age));
            let too_many = config.max_messages.is_some_and(|max| self.messages > max);
            let too_big = config.max_bytes.is_some_and(|max| self.bytes > max);
            if !(too_old || too_many || too_big) {
                break;
            }
            removed.extend(self.take(self.first));
            self.trim();
        }
        removed
    }

    /// Removes single messages; sequences that hold none are passed over.
    pub(super) fn delete(&mut self, sequences: impl IntoIterator<Item = u64>) -> Removed {
        let mut removed: Removed = sequences.into_iter().filter_map(|sequence| self.take(sequence)).collect();
        self.trim();
        removed.sort_unstable_by_key(|(sequence, _)| *sequence);
        removed
    }

    /// Empties an entry and leaves it in its place; [`Log::trim`] must follow.
    fn take(&mut self, sequence: u64) -> Option<(u64, Arc<Message>)> {
        let at = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        let message = self.entries.get_mut(at)?.message.take()?;
        self.messages -= 1;
        self.bytes -= message.size_bytes() as u64;
        Some((sequence, message))
    }

    /// Drops empty entries from the old end.
    fn trim(&mut self) {
        while self.entries.front().is_some_and(|stored| stored.message.is_none()) {
            self.entries.pop_front();
            self.first += 1;
        }
    }

    /// Sequence of the first message at or after `start`, which may lie before the oldest one kept.
    pub(super) fn resolve(&self, start: Start) -> Result<u64, StreamError> {
        match start {
            Start::New => Ok(self.last() + 1),
            Start::Beginning => Ok(self.first),
            Start::At(time) => {
                Ok(self.first + self.entries.partition_point(|stored| stored.time < time) as u64)
            }
            Start::After(offset) => {
                let sequence = offset.sequence().ok_or(StreamError::ForeignOffset(offset))?;
                if sequence > self.last() {
                    let last = StreamOffset::Sequence(self.last());
                    return Err(StreamError::OffsetAhead { stream: self.config.name.clone(), offset, last });
                }
                Ok(sequence + 1)
            }
        }
    }

    /// The first message at or after `from` that matches, with its sequence.
    pub(super) fn next_match(&self, from: u64, filter: Option<&Pattern>) -> Option<(u64, StoredMessage)> {
        (from.max(self.first)..=self.last()).find_map(|sequence| {
            let stored = self.get(sequence)?;
            filter.is_none_or(|filter| filter.matches(&stored.message.subject)).then_some((sequence, stored))
        })
    }

    pub(super) fn page(&self, request: &ReadRequest) -> Result<ReadPage, StreamError> {
        let start = self.resolve(request.from)?;
        let missed = self.first.saturating_sub(start);
        let mut messages = Vec::new();
        let mut next = start.max(self.first);
        while messages.len() < request.max.max(1) {
            let Some((sequence, stored)) = self.next_match(next, request.filter.as_ref()) else {
                next = self.last() + 1;
                break;
            };
            messages.push(stored);
            next = sequence + 1;
        }
        let end = next > self.last();
        Ok(ReadPage { messages, next: Start::After(StreamOffset::Sequence(next - 1)), end, missed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_core::Subject;

    const SEC: fn(u64) -> Duration = Duration::from_secs;

    fn log(limits: impl FnOnce(&mut StreamConfig)) -> Log {
        let mut config = StreamConfig::new("s", vec!["a.>".parse().unwrap()]);
        limits(&mut config);
        Log::new(config)
    }

    fn put(log: &mut Log, subject: &str, at: u64) -> (u64, usize) {
        let message = Arc::new(Message::new(Subject::new(subject).unwrap(), "0123456789"));
        let wall = SystemTime::UNIX_EPOCH + SEC(at);
        let (sequence, removed) = log.append(&message, None, wall, Instant::now());
        (sequence, removed.len())
    }

    #[test]
    fn limits_remove_the_oldest() {
        let mut by_count = log(|c| c.max_messages = Some(2));
        assert_eq!([put(&mut by_count, "a.b", 1), put(&mut by_count, "a.b", 1)], [(1, 0), (2, 0)]);
        assert_eq!(put(&mut by_count, "a.b", 1), (3, 1));
        assert_eq!((by_count.first(), by_count.last(), by_count.messages()), (2, 3, 2));

        let mut by_age = log(|c| c.max_age = Some(SEC(10)));
        put(&mut by_age, "a.b", 1);
        assert_eq!(put(&mut by_age, "a.b", 11), (2, 0));
        assert_eq!(put(&mut by_age, "a.b", 12), (3, 1));

        let mut by_bytes = log(|c| c.max_bytes = Some(26));
        put(&mut by_bytes, "a.b", 1);
        assert_eq!(put(&mut by_bytes, "a.b", 1), (2, 0));
        assert_eq!(put(&mut by_bytes, "a.b", 1), (3, 1));
        assert_eq!(by_bytes.bytes(), 26);
    }

    #[test]
    fn starts_resolve_to_sequences() {
        let mut log = log(|c| c.max_messages = Some(3));
        for at in 1..=5 {
            put(&mut log, "a.b", at);
        }
        let at = |secs| Start::At(SystemTime::UNIX_EPOCH + SEC(secs));
        let after = |n| Start::After(StreamOffset::Sequence(n));
        for (start, expected) in [
            (Start::New, 6),
            (Start::Beginning, 3),
            (after(4), 5),
            (after(5), 6),
            (after(0), 1),
            (at(4), 4),
            (at(0), 3),
            (at(9), 6),
        ] {
            assert_eq!(log.resolve(start), Ok(expected), "{start:?}");
        }
        assert!(matches!(log.resolve(after(6)), Err(StreamError::OffsetAhead { .. })));
        let foreign = Start::After(StreamOffset::Entry(1, 0));
        assert!(matches!(log.resolve(foreign), Err(StreamError::ForeignOffset(_))));
    }

    #[test]
    fn pages_filter_and_count_what_is_missing() {
        let mut log = log(|c| c.max_messages = Some(4));
        for (n, subject) in ["a.x", "a.y", "a.x", "a.y", "a.x"].into_iter().enumerate() {
            put(&mut log, subject, n as u64);
        }
        let filter = Some("a.x".parse().unwrap());
        let from = Start::After(StreamOffset::Sequence(0));
        let page = log.page(&ReadRequest { from, filter: filter.clone(), max: 1 }).unwrap();
        assert_eq!((page.missed, page.end, page.messages[0].offset), (1, false, StreamOffset::Sequence(3)));
        let page = log.page(&ReadRequest { from: page.next, filter, max: 10 }).unwrap();
        assert_eq!((page.messages.len(), page.end, page.missed), (1, true, 0));
    }

    #[test]
    fn deleted_messages_leave_the_offsets_of_the_others_alone() {
        let mut log = log(|c| c.max_messages = Some(3));
        for at in 1..=4 {
            put(&mut log, "a.b", at);
        }
        let numbers = |removed: Removed| removed.into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(numbers(log.delete([3, 1, 3, 9])), [3]);
        assert_eq!((log.first(), log.last(), log.messages(), log.bytes()), (2, 4, 2, 26));
        assert_eq!((log.messages_from(3), log.messages_from(0), log.messages_from(9)), (1, 2, 0));
        assert!(log.get(3).is_none() && log.next_match(3, None).is_some_and(|(n, _)| n == 4));
        // A hole does not count against the limit, and goes with what stands before it.
        assert_eq!(put(&mut log, "a.b", 5), (5, 0));
        assert_eq!(put(&mut log, "a.b", 6), (6, 1));
        assert_eq!(log.first(), 4);
        assert_eq!(numbers(log.delete([4, 5, 6])), [4, 5, 6]);
        assert_eq!((log.first(), log.last(), log.messages(), log.bytes()), (7, 6, 0, 0));
        assert_eq!(put(&mut log, "a.b", 7), (7, 0));
    }

    #[test]
    fn memory_is_freed_from_the_oldest_messages_and_from_long_ids_before_them() {
        let mut log = log(|_| {});
        for at in 1..=100 {
            put(&mut log, "a.b", at);
        }
        let held = log.held_bytes();
        assert_eq!(log.free(held / 10).len(), 10);
        assert!(log.held_bytes() <= held - held / 10 && log.first() == 11);
        let message = Arc::new(Message::new(Subject::new("a.b").unwrap(), ""));
        for n in 0..10 {
            let id = format!("{n}{}", "x".repeat(10_000));
            log.append(&message, Some(&id), SystemTime::UNIX_EPOCH, Instant::now());
        }
        assert_eq!(log.free(150_000).len(), 0, "the ids were more than that");
        assert!(log.seen(&format!("9{}", "x".repeat(10_000)), SEC(10), Instant::now()).is_some());
        assert_eq!(log.free(usize::MAX).len(), 100, "and everything goes if it has to");
    }

    #[test]
    fn deduplication_ids_are_forgotten_after_the_window() {
        let mut log = log(|_| {});
        let start = Instant::now();
        let message = Arc::new(Message::new(Subject::new("a.b").unwrap(), ""));
        log.append(&message, Some("id"), SystemTime::UNIX_EPOCH, start);
        assert_eq!(log.seen("id", SEC(10), start + SEC(9)), Some(1));
        assert_eq!(log.seen("id", SEC(10), start + SEC(10)), None);
    }
}
