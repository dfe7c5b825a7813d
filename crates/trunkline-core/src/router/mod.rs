//! The routing table: which targets a literal subject reaches.
//!
//! Subscriptions live in a trie of tokens. A publisher asks through a [`MatchCache`] of its own, whose entries
//! are stamped with the generation of the part of the table they came from: a hit costs one hash and one
//! comparison, and a change of one first token leaves the answers for all others valid. Behind the private
//! caches stands one shared, bounded cache, so that many publishers of one subject share one answer.

mod cache;
mod trie;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytestring::ByteString;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};

pub use cache::MatchCache;
use cache::{Key, Shared, Stamped};
use trie::{Ending, Entry, Trie};

use crate::subject::Pattern;

/// Parts of the table that are stamped apart, chosen by the first token.
const GENERATIONS: usize = 256;
/// Shards of the shared cache, so that publishers on several threads rarely meet.
const SHARDS: usize = 16;

/// Names a subscription in a router; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(u64);

/// What a target is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Gets every matching message.
    Subscriber,
    /// Shares matching messages with the other members of the queue group: one of them gets each.
    QueueMember(ByteString),
    /// Stores every matching message; does not count as somebody listening.
    Store,
    /// Looks on; does not count as somebody listening, so that it never changes what a client sees.
    Tap,
}

impl Role {
    /// Whether it counts as somebody listening.
    fn listens(&self) -> bool {
        matches!(self, Self::Subscriber | Self::QueueMember(_))
    }
}

/// The targets one subject reaches.
#[derive(Debug)]
pub struct MatchSet<T> {
    /// Each gets the message.
    pub subscribers: Vec<T>,
    /// Of each group one member gets the message.
    pub queues: Vec<QueueMatch<T>>,
    /// Each stores the message.
    pub stores: Vec<T>,
    /// Each sees the message.
    pub taps: Vec<T>,
}

/// The members of one queue group whose patterns match; never empty.
#[derive(Debug)]
pub struct QueueMatch<T> {
    /// Name of the group.
    pub group: ByteString,
    /// Its members.
    pub members: Vec<T>,
}

impl<T> Default for MatchSet<T> {
    fn default() -> Self {
        Self { subscribers: Vec::new(), queues: Vec::new(), stores: Vec::new(), taps: Vec::new() }
    }
}

impl<T> MatchSet<T> {
    /// Whether nobody listens: no subscriber and no queue group. Stores and taps do not listen.
    pub fn nobody_listens(&self) -> bool {
        self.subscribers.is_empty() && self.queues.is_empty()
    }

    /// How many targets there are: what it costs to keep it, and to deliver to it.
    pub fn targets(&self) -> usize {
        let members: usize = self.queues.iter().map(|queue| queue.members.len()).sum();
        self.subscribers.len() + members + self.stores.len() + self.taps.len()
    }

    /// Whether nothing at all happens with a message.
    pub fn is_empty(&self) -> bool {
        self.nobody_listens() && self.stores.is_empty() && self.taps.is_empty()
    }
}

/// Up to so many queue groups of one subject are searched one by one.
const SEARCHED_GROUPS: usize = 16;

/// A match set in the making.
struct Collector<T> {
    set: MatchSet<T>,
    /// Where each group is in `set.queues`, once there are many.
    groups: HashMap<ByteString, usize, foldhash::fast::RandomState>,
}

impl<T: Clone> Collector<T> {
    fn new() -> Self {
        Self { set: MatchSet::default(), groups: HashMap::default() }
    }

    fn add(&mut self, entry: &Entry<T>) {
        let target = entry.target.clone();
        match &entry.role {
            Role::Subscriber => self.set.subscribers.push(target),
            Role::Store => self.set.stores.push(target),
            Role::Tap => self.set.taps.push(target),
            Role::QueueMember(group) => match self.place_of(group) {
                Some(at) => self.set.queues[at].members.push(target),
                None => self.add_group(group.clone(), target),
            },
        }
    }

    fn place_of(&self, group: &ByteString) -> Option<usize> {
        match self.set.queues.len() > SEARCHED_GROUPS {
            true => self.groups.get(group).copied(),
            false => self.set.queues.iter().position(|queue| queue.group == *group),
        }
    }

    fn add_group(&mut self, group: ByteString, target: T) {
        let queues = &mut self.set.queues;
        queues.push(QueueMatch { group: group.clone(), members: vec![target] });
        let at = queues.len() - 1;
        if at == SEARCHED_GROUPS {
            self.groups.extend(queues.iter().enumerate().map(|(at, queue)| (queue.group.clone(), at)));
        } else if at > SEARCHED_GROUPS {
            self.groups.insert(group, at);
        }
    }
}

/// Counters of a router, as `/subsz` shows them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouterStats {
    /// Subscriptions in the table now: who listens, so neither stores nor taps.
    pub subscriptions: u64,
    /// Answers in the shared cache now.
    pub cached: u64,
    /// Entries added since the start, stores and taps included.
    pub inserts: u64,
    /// Entries removed since the start, stores and taps included.
    pub removes: u64,
    /// Lookups that the private caches could not answer.
    pub matches: u64,
    /// Of those, answered by the shared cache.
    pub shared_hits: u64,
    /// Most listeners that an answer in the shared cache leads to.
    pub fanout_max: u64,
    /// Listeners that all answers in the shared cache lead to, together.
    pub fanout_total: u64,
    /// Targets of every kind that all answers in the shared cache lead to, together; bounded.
    pub cached_targets: u64,
}

/// The routing table, shared by all publishers and subscribers of a process.
///
/// Locks: `table` before a shard of `shared`; never the other way round, and neither is held while a target is used.
pub struct Router<T> {
    /// Guards the trie. Held for the walk only.
    table: RwLock<Trie<T>>,
    /// Bumped inside the write lock after a change under that first token.
    generations: Box<[AtomicU64]>,
    /// Bumped when a pattern that starts with a wildcard changes: it concerns every subject.
    wildcard_generation: AtomicU64,
    /// Answers shared by all publishers; each shard's lock guards one small map.
    shared: Box<[Mutex<Shared<T>>]>,
    next_id: AtomicU64,
    /// As the trie has it; written inside the write lock, so that reading it takes none.
    held_bytes: AtomicUsize,
    removes: AtomicU64,
    matches: AtomicU64,
    shared_hits: AtomicU64,
}

impl<T: Clone> Default for Router<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone> Router<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self {
            table: RwLock::new(Trie::new()),
            generations: (0..GENERATIONS).map(|_| AtomicU64::new(0)).collect(),
            wildcard_generation: AtomicU64::new(0),
            shared: (0..SHARDS).map(|_| Mutex::new(Shared::new())).collect(),
            next_id: AtomicU64::new(1),
            held_bytes: AtomicUsize::new(0),
            removes: AtomicU64::new(0),
            matches: AtomicU64::new(0),
            shared_hits: AtomicU64::new(0),
        }
    }

    /// Adds a target. Every lookup that starts after this returns sees it.
    pub fn insert(&self, pattern: &Pattern, role: Role, target: T) -> SubscriptionId {
        let id = SubscriptionId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let mut table = self.table.write();
        table.insert(pattern, Entry { id, role, target });
        self.held_bytes.store(table.held_bytes(), Ordering::Relaxed);
        self.bump(pattern);
        id
    }

    /// Removes a target; `false` when it is not there (any more). Every lookup that starts after this returns
    /// does without it; one under way may still use it.
    pub fn remove(&self, pattern: &Pattern, id: SubscriptionId) -> bool {
        let removed = {
            let mut table = self.table.write();
            let removed = table.remove(pattern, id);
            self.held_bytes.store(table.held_bytes(), Ordering::Relaxed);
            if removed.is_some() {
                self.bump(pattern);
            }
            removed
        };
        // The target is dropped outside the lock: its destructor may be anything.
        if removed.is_some() {
            self.removes.fetch_add(1, Ordering::Relaxed);
        }
        removed.is_some()
    }

    /// The targets of `subject`, through the publisher's own cache.
    #[inline]
    pub fn lookup<'c>(&self, cache: &'c mut MatchCache<T>, subject: &[u8]) -> &'c Arc<MatchSet<T>> {
        cache.get_or_insert(subject, self)
    }

    /// As [`Router::lookup`], with the publisher's own verdict on the subject. `judge` is asked for it once, as long as
    /// the cache keeps the subject; [`MatchCache::clear`] forgets verdicts with everything else.
    #[inline]
    pub fn lookup_judged<'c>(
        &self,
        cache: &'c mut MatchCache<T>,
        subject: &[u8],
        judge: impl FnOnce() -> bool,
    ) -> (&'c Arc<MatchSet<T>>, bool) {
        cache.get_or_judge(subject, self, judge)
    }

    /// The targets of `subject`, through the shared cache.
    pub fn matches(&self, subject: &[u8]) -> Arc<MatchSet<T>> {
        self.shared_lookup(subject).0.set
    }

    /// About how many bytes of memory the table takes, without its targets. Takes no lock.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Counters for monitoring.
    pub fn stats(&self) -> RouterStats {
        let removes = self.removes.load(Ordering::Relaxed);
        let (mut cached, mut cached_targets, mut fanout_max, mut fanout_total) = (0, 0, 0, 0);
        for shard in &self.shared {
            let shard = shard.lock();
            cached += shard.len() as u64;
            cached_targets += shard.targets() as u64;
            for listeners in shard.listeners() {
                fanout_max = fanout_max.max(listeners);
                fanout_total += listeners;
            }
        }
        RouterStats {
            subscriptions: self.table.read().listeners() as u64,
            cached,
            fanout_max,
            fanout_total,
            cached_targets,
            inserts: self.next_id.load(Ordering::Relaxed) - 1,
            removes,
            matches: self.matches.load(Ordering::Relaxed),
            shared_hits: self.shared_hits.load(Ordering::Relaxed),
        }
    }

    /// The number that tells whether an answer for this part of the table is still good. Both counters only
    /// grow, so their sum is unchanged only if both are.
    #[inline]
    fn stamp(&self, part: u8) -> u64 {
        self.generations[part as usize].load(Ordering::Acquire)
            + self.wildcard_generation.load(Ordering::Acquire)
    }

    fn bump(&self, pattern: &Pattern) {
        let first = pattern.tokens().next().unwrap_or_default();
        match first {
            "*" | ">" => self.wildcard_generation.fetch_add(1, Ordering::Release),
            token => self.generations[part_of(token.as_bytes()) as usize].fetch_add(1, Ordering::Release),
        };
    }

    /// The answer, and whether every other subject that differs in the last token alone has the same.
    fn shared_lookup(&self, subject: &[u8]) -> (Stamped<T>, Ending) {
        self.matches.fetch_add(1, Ordering::Relaxed);
        let part = part_of(first_token(subject));
        // Read before the table: a change in between leaves an old stamp on a new answer, which is merely looked up again.
        let stamp = self.stamp(part);
        let exact = Key::exact(subject);
        let alike = Key::alike(subject);
        for key in [Some(&exact), alike.as_ref()].into_iter().flatten() {
            if let Some(found) = self.shard(key).lock().get(key, stamp) {
                self.shared_hits.fetch_add(1, Ordering::Relaxed);
                return (found, key.ending);
            }
        }
        let mut found = Collector::new();
        let ending = self.table.read().collect(subject, &mut |entry| found.add(entry));
        let answer = Stamped { stamp, part, set: Arc::new(found.set) };
        let key = alike.filter(|_| ending == Ending::Any).unwrap_or(exact);
        self.shard(&key).lock().insert(&key, answer.clone());
        (answer, key.ending)
    }

    fn shard(&self, key: &Key<'_>) -> &Mutex<Shared<T>> {
        // The high bits choose the shard: the map inside uses the low ones.
        &self.shared[(key.hash >> 60) as usize % SHARDS]
    }
}

impl<T> std::fmt::Debug for Router<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("subscriptions", &self.table.read().len()).finish_non_exhaustive()
    }
}

#[inline]
fn hash_of(bytes: &[u8]) -> u64 {
    FixedState::with_seed(0).hash_one(bytes)
}

fn first_token(subject: &[u8]) -> &[u8] {
    &subject[..memchr::memchr(b'.', subject).unwrap_or(subject.len())]
}

fn part_of(first_token: &[u8]) -> u8 {
    (hash_of(first_token) >> 32) as u8
}

#[cfg(test)]
mod tests;
