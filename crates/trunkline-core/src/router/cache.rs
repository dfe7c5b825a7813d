//! Answers kept: one private cache a publisher, one shared cache a router.
//!
//! An answer that does not depend on the last token of its subject is kept once for all subjects that differ in it alone:
//! what is published to a client's inbox has another subject each time, and is looked up once all the same.

use std::sync::Arc;

use hashbrown::HashTable;

use super::trie::Ending;
use super::{MatchSet, Router, hash_of};

/// Most answers a publisher keeps. Past it the cache starts over: subjects that matter are back after one message.
const PRIVATE_ENTRIES_MAX: usize = 1024;
/// Most targets that the answers a publisher keeps lead to, together: thousands of subjects that thousands listen to
/// would otherwise be kept as millions of places, by everybody who ever published there. A single answer that leads to
/// more is taken from the shared cache each time, which is nothing beside delivering to so many.
const PRIVATE_TARGETS_MAX: usize = 16 << 10;
/// Most bytes of the subjects that a publisher keeps answers for: 1024 of ordinary ones. Subjects of thousands of bytes,
/// on each of many connections, would otherwise take megabytes apiece.
const PRIVATE_SUBJECTS_BYTES_MAX: usize = 64 << 10;
/// The same for a shard of the shared cache.
const SHARED_SUBJECTS_BYTES_MAX: usize = 256 << 10;
/// What an answer takes beside its subject and its targets: its place in the table, the set, which may be shared, and what
/// was decided.
const ANSWER_BYTES: usize = 256;
/// What was decided about a subject whose last token is longer than this is decided again each time.
const VERDICT_TOKEN_BYTES_MAX: usize = 64;
/// What a target takes in an answer.
const TARGET_BYTES: usize = 24;
/// Most answers a shard of the shared cache keeps.
const SHARED_ENTRIES_MAX: usize = 1024;
/// Most targets that the answers of a shard lead to, together; one answer with more is kept alone.
const SHARED_TARGETS_MAX: usize = 64 << 10;

pub(super) struct Stamped<T> {
    pub(super) stamp: u64,
    pub(super) part: u8,
    pub(super) set: Arc<MatchSet<T>>,
}

impl<T> Clone for Stamped<T> {
    fn clone(&self) -> Self {
        Self { stamp: self.stamp, part: self.part, set: self.set.clone() }
    }
}

/// What an answer is kept under.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key<'a> {
    pub(super) hash: u64,
    /// A subject, or the start of subjects, with its last dot.
    text: &'a [u8],
    pub(super) ending: Ending,
}

impl<'a> Key<'a> {
    #[inline]
    pub(super) fn exact(subject: &'a [u8]) -> Self {
        Self { hash: hash_of(subject), text: subject, ending: Ending::This }
    }

    /// For all subjects that differ from this one in the last token alone; `None` for one that has a single token, or that
    /// may not be a subject at all.
    #[inline]
    pub(super) fn alike(subject: &'a [u8]) -> Option<Self> {
        let dot = memchr::memrchr(b'.', subject)?;
        let (text, last) = subject.split_at(dot + 1);
        is_token(last).then(|| Self { hash: hash_of(text), text, ending: Ending::Any })
    }
}

/// Whether the bytes can be the last token of any subject. Those that are not ASCII would have to be looked at more closely.
#[inline]
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.is_ascii() && memchr::memchr(b'.', bytes).is_none()
}

struct Slot<T> {
    hash: u64,
    /// See [`Key`].
    text: Box<[u8]>,
    ending: Ending,
    answer: Stamped<T>,
    /// What the publisher has decided about a subject. It has nothing to do with the table, so it stays when the answer is
    /// looked up again.
    verdict: Option<Verdict>,
}

/// What was decided about one subject.
struct Verdict {
    /// The last token of the subject, where the slot is for all of them.
    last: Vec<u8>,
    allowed: bool,
}

impl<T> Slot<T> {
    fn new(key: &Key<'_>, answer: Stamped<T>) -> Self {
        Self { hash: key.hash, text: key.text.into(), ending: key.ending, answer, verdict: None }
    }

    fn is_for(&self, key: &Key<'_>) -> bool {
        self.ending == key.ending && *self.text == *key.text
    }

    /// Whether it has the answer for `subject`.
    #[inline]
    fn answers(&self, subject: &[u8]) -> bool {
        match self.ending {
            Ending::This => *self.text == *subject,
            Ending::Any => subject.strip_prefix(&*self.text).is_some_and(is_token),
        }
    }

    /// What was decided about `subject`, which it has the answer for.
    #[inline]
    fn judge(&mut self, subject: &[u8], judge: impl FnOnce() -> bool) -> bool {
        let last = match self.ending {
            Ending::This => &[],
            Ending::Any => &subject[self.text.len()..],
        };
        match &mut self.verdict {
            _ if last.len() > VERDICT_TOKEN_BYTES_MAX => judge(),
            Some(known) if known.last == last => known.allowed,
            Some(other) => {
                other.last.clear();
                other.last.extend_from_slice(last);
                other.allowed = judge();
                other.allowed
            }
            None => {
                let allowed = judge();
                self.verdict = Some(Verdict { last: last.to_vec(), allowed });
                allowed
            }
        }
    }
}

/// Answers of one publisher; not shared between threads at a time, so it takes no lock on a hit.
/// An empty one allocates nothing. It keeps at most 1024 subjects.
pub struct MatchCache<T> {
    slots: HashTable<Slot<T>>,
    /// Where the subject that was looked up last is: mostly it is asked for again.
    last: usize,
    /// How many targets all answers lead to, together.
    targets: usize,
    /// Bytes of all subjects together.
    subjects_bytes: usize,
    /// Lookups answered here since the start; the owner adds them to its statistics.
    pub hits: u64,
}

impl<T> Default for MatchCache<T> {
    fn default() -> Self {
        Self { slots: HashTable::new(), last: 0, targets: 0, subjects_bytes: 0, hits: 0 }
    }
}

impl<T> std::fmt::Debug for MatchCache<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MatchCache").field("subjects", &self.slots.len()).finish_non_exhaustive()
    }
}

impl<T: Clone> MatchCache<T> {
    #[inline]
    pub(super) fn get_or_insert(&mut self, subject: &[u8], router: &Router<T>) -> &Arc<MatchSet<T>> {
        &self.slot(subject, router).answer.set
    }

    #[inline]
    pub(super) fn get_or_judge(
        &mut self,
        subject: &[u8],
        router: &Router<T>,
        judge: impl FnOnce() -> bool,
    ) -> (&Arc<MatchSet<T>>, bool) {
        let slot = self.slot(subject, router);
        let verdict = slot.judge(subject, judge);
        (&slot.answer.set, verdict)
    }

    #[inline]
    fn slot(&mut self, subject: &[u8], router: &Router<T>) -> &mut Slot<T> {
        let is_fresh =
            |slot: &Slot<T>| slot.answers(subject) && slot.answer.stamp == router.stamp(slot.answer.part);
        if !self.slots.get_bucket(self.last).is_some_and(is_fresh) {
            self.last = self.find_slot(subject, router);
        } else {
            self.hits += 1;
        }
        self.slots.get_bucket_mut(self.last).expect("a slot that was just found")
    }

    /// Where the slot for the subject is, with an answer that is up to date.
    fn find_slot(&mut self, subject: &[u8], router: &Router<T>) -> usize {
        let exact = Key::exact(subject);
        let find = |key: &Key<'_>| self.slots.find_bucket_index(key.hash, |slot| slot.is_for(key));
        let mut alike = None;
        let known = find(&exact).or_else(|| {
            alike = Key::alike(subject);
            find(alike.as_ref()?)
        });
        if let Some(at) = known
            && let Some(slot) = self.slots.get_bucket_mut(at)
        {
            if slot.answer.stamp == router.stamp(slot.answer.part) {
                self.hits += 1;
                return at;
            }
            let (answer, ending) = router.shared_lookup(subject);
            // An answer for one subject must not stand where those for all others are; the other way round it may.
            if slot.ending == Ending::This || ending == Ending::Any {
                self.targets -= slot.answer.set.targets();
                self.targets += answer.set.targets();
                slot.answer = answer;
                return at;
            }
            self.remove(at);
            return self.insert(&exact, answer);
        }
        let full = self.slots.len() >= PRIVATE_ENTRIES_MAX
            || self.targets > PRIVATE_TARGETS_MAX
            || self.subjects_bytes > PRIVATE_SUBJECTS_BYTES_MAX;
        if full {
            self.slots.clear();
            (self.targets, self.subjects_bytes) = (0, 0);
        }
        let (answer, ending) = router.shared_lookup(subject);
        let key = alike.filter(|_| ending == Ending::Any).unwrap_or(exact);
        self.insert(&key, answer)
    }

    fn insert(&mut self, key: &Key<'_>, answer: Stamped<T>) -> usize {
        self.targets += answer.set.targets();
        self.subjects_bytes += key.text.len();
        self.slots.insert_unique(key.hash, Slot::new(key, answer), |slot| slot.hash).bucket_index()
    }

    fn remove(&mut self, at: usize) {
        if let Ok(found) = self.slots.get_bucket_entry(at) {
            let (slot, _) = found.remove();
            self.targets -= slot.answer.set.targets();
            self.subjects_bytes -= slot.text.len();
        }
    }

    /// Forgets every answer, and with them the targets they hold.
    pub fn clear(&mut self) {
        self.slots = HashTable::new();
        (self.targets, self.subjects_bytes) = (0, 0);
    }

    /// About how many bytes of memory it takes.
    #[inline]
    pub fn held_bytes(&self) -> usize {
        self.slots.capacity() * ANSWER_BYTES + self.subjects_bytes + self.targets * TARGET_BYTES
    }

    /// Forgets every answer if they lead to more targets than are worth keeping. To be called before a pause: between
    /// two lookups an answer of any size is kept.
    #[inline]
    pub fn trim(&mut self) {
        if self.targets > PRIVATE_TARGETS_MAX {
            self.clear();
        }
    }

    /// How many targets all answers lead to, together.
    pub fn targets(&self) -> usize {
        self.targets
    }
}

pub(super) struct Shared<T> {
    slots: HashTable<Slot<T>>,
    /// How many targets all answers lead to, together.
    targets: usize,
    /// Bytes of all subjects together.
    subjects_bytes: usize,
}

impl<T> Shared<T> {
    pub(super) fn new() -> Self {
        Self { slots: HashTable::new(), targets: 0, subjects_bytes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many listen to each subject that has an answer here.
    pub(super) fn listeners(&self) -> impl Iterator<Item = u64> {
        self.slots.iter().map(|slot| {
            let set = &slot.answer.set;
            (set.subscribers.len() + set.queues.len()) as u64
        })
    }

    pub(super) fn get(&self, key: &Key<'_>, stamp: u64) -> Option<Stamped<T>> {
        let slot = self.slots.find(key.hash, |slot| slot.is_for(key))?;
        (slot.answer.stamp == stamp).then(|| slot.answer.clone())
    }

    pub(super) fn targets(&self) -> usize {
        self.targets
    }

    pub(super) fn insert(&mut self, key: &Key<'_>, answer: Stamped<T>) {
        let targets = answer.set.targets();
        if let Ok(old) = self.slots.find_entry(key.hash, |slot| slot.is_for(key)) {
            self.targets -= old.remove().0.answer.set.targets();
            self.subjects_bytes -= key.text.len();
        }
        if self.slots.len() >= SHARED_ENTRIES_MAX
            || self.targets + targets > SHARED_TARGETS_MAX
            || self.subjects_bytes > SHARED_SUBJECTS_BYTES_MAX
        {
            self.slots.clear();
            (self.targets, self.subjects_bytes) = (0, 0);
        }
        self.targets += targets;
        self.subjects_bytes += key.text.len();
        self.slots.insert_unique(key.hash, Slot::new(key, answer), |slot| slot.hash);
    }
}
