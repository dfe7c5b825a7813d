//! Answers kept: one private cache a publisher, one shared cache a router.

use std::sync::Arc;

use hashbrown::HashTable;

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
/// What an answer takes beside its subject and its targets: its place in the table and the set, which may be shared.
const ANSWER_BYTES: usize = 192;
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

struct Slot<T> {
    hash: u64,
    subject: Box<[u8]>,
    answer: Stamped<T>,
    /// What the publisher has decided about the subject. It has nothing to do with the table, so it stays when the answer
    /// is looked up again.
    verdict: Option<bool>,
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
        let verdict = *slot.verdict.get_or_insert_with(judge);
        (&slot.answer.set, verdict)
    }

    #[inline]
    fn slot(&mut self, subject: &[u8], router: &Router<T>) -> &mut Slot<T> {
        let is_fresh =
            |slot: &Slot<T>| *slot.subject == *subject && slot.answer.stamp == router.stamp(slot.answer.part);
        if !self.slots.get_bucket(self.last).is_some_and(is_fresh) {
            self.last = self.find_slot(subject, router);
        } else {
            self.hits += 1;
        }
        self.slots.get_bucket_mut(self.last).expect("a slot that was just found")
    }

    /// Where the subject's slot is, with an answer that is up to date.
    fn find_slot(&mut self, subject: &[u8], router: &Router<T>) -> usize {
        let hash = hash_of(subject);
        let slots = &mut self.slots;
        let full = slots.len() >= PRIVATE_ENTRIES_MAX
            || self.targets > PRIVATE_TARGETS_MAX
            || self.subjects_bytes > PRIVATE_SUBJECTS_BYTES_MAX;
        if full && slots.find(hash, |slot| *slot.subject == *subject).is_none() {
            slots.clear();
            (self.targets, self.subjects_bytes) = (0, 0);
        }
        match slots.entry(hash, |slot| *slot.subject == *subject, |slot| slot.hash) {
            hashbrown::hash_table::Entry::Occupied(mut found) => {
                let slot = found.get_mut();
                if slot.answer.stamp == router.stamp(slot.answer.part) {
                    self.hits += 1;
                } else {
                    self.targets -= slot.answer.set.targets();
                    slot.answer = router.shared_lookup(subject);
                    self.targets += slot.answer.set.targets();
                }
                found.bucket_index()
            }
            hashbrown::hash_table::Entry::Vacant(vacant) => {
                let answer = router.shared_lookup(subject);
                self.targets += answer.set.targets();
                self.subjects_bytes += subject.len();
                vacant.insert(Slot { hash, subject: subject.into(), answer, verdict: None }).bucket_index()
            }
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

    pub(super) fn get(&self, hash: u64, subject: &[u8], stamp: u64) -> Option<Stamped<T>> {
        let slot = self.slots.find(hash, |slot| *slot.subject == *subject)?;
        (slot.answer.stamp == stamp).then(|| slot.answer.clone())
    }

    pub(super) fn targets(&self) -> usize {
        self.targets
    }

    pub(super) fn insert(&mut self, hash: u64, subject: &[u8], answer: Stamped<T>) {
        let targets = answer.set.targets();
        if let Ok(old) = self.slots.find_entry(hash, |slot| *slot.subject == *subject) {
            self.targets -= old.remove().0.answer.set.targets();
            self.subjects_bytes -= subject.len();
        }
        if self.slots.len() >= SHARED_ENTRIES_MAX
            || self.targets + targets > SHARED_TARGETS_MAX
            || self.subjects_bytes > SHARED_SUBJECTS_BYTES_MAX
        {
            self.slots.clear();
            (self.targets, self.subjects_bytes) = (0, 0);
        }
        self.targets += targets;
        self.subjects_bytes += subject.len();
        let slot = Slot { hash, subject: subject.into(), answer, verdict: None };
        self.slots.insert_unique(hash, slot, |slot| slot.hash);
    }
}
