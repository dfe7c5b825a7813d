//! The routing table with what comes, goes and is looked up, against a list that is searched from its start.

use std::collections::BTreeMap;

use trunkline_core::{MatchCache, MatchSet, Pattern, Role, Router, Subject, SubscriptionId};

/// Longest input that is looked at: each lookup searches the list.
const BYTES_MAX: usize = 1024;
const TOKENS: [&str; 6] = ["a", "b", "c", "*", "*", ">"];

/// What is in the table.
struct Entry {
    pattern: Pattern,
    id: SubscriptionId,
    role: Role,
    target: u32,
}

/// Tokens of a pattern or subject, from two bytes.
fn text(first: u8, second: u8, literal: bool) -> String {
    let (mut bits, mut tokens) = (usize::from(first) << 8 | usize::from(second), Vec::new());
    let count = 1 + bits % 4;
    bits /= 4;
    for _ in 0..count {
        tokens.push(TOKENS[bits % if literal { 3 } else { 6 }]);
        bits /= 6;
    }
    tokens.join(".")
}

fn role(byte: u8) -> Role {
    match byte % 8 {
        0..3 => Role::Subscriber,
        3..6 => Role::QueueMember(format!("q{}", byte % 3).into()),
        6 => Role::Store,
        _ => Role::Tap,
    }
}

/// Everything about a match set that means something: in no particular order.
type Shown = (Vec<u32>, BTreeMap<String, Vec<u32>>, Vec<u32>, Vec<u32>);

fn sorted(targets: &[u32]) -> Vec<u32> {
    let mut targets = targets.to_vec();
    targets.sort_unstable();
    targets
}

fn shown(set: &MatchSet<u32>) -> Shown {
    let queues = set.queues.iter().map(|queue| (queue.group.to_string(), sorted(&queue.members)));
    let groups: BTreeMap<_, _> = queues.collect();
    assert_eq!(groups.len(), set.queues.len(), "a queue group is there twice");
    (sorted(&set.subscribers), groups, sorted(&set.stores), sorted(&set.taps))
}

fn expected(entries: &[Entry], subject: &Subject) -> Shown {
    let mut shown = Shown::default();
    for entry in entries.iter().filter(|entry| entry.pattern.matches(subject)) {
        match &entry.role {
            Role::Subscriber => shown.0.push(entry.target),
            Role::QueueMember(group) => shown.1.entry(group.to_string()).or_default().push(entry.target),
            Role::Store => shown.2.push(entry.target),
            Role::Tap => shown.3.push(entry.target),
        }
    }
    (
        sorted(&shown.0),
        shown.1.into_iter().map(|(group, all)| (group, sorted(&all))).collect(),
        sorted(&shown.2),
        sorted(&shown.3),
    )
}

/// Four bytes are one operation.
pub(crate) fn router(data: &[u8]) {
    let (router, mut caches) = (Router::new(), [MatchCache::default(), MatchCache::default()]);
    let mut entries: Vec<Entry> = Vec::new();
    for (n, operation) in data[..data.len().min(BYTES_MAX)].as_chunks::<4>().0.iter().enumerate() {
        let [kind, first, second, third] = *operation;
        match kind % 4 {
            0 => {
                let Ok(pattern) = Pattern::new(text(first, second, false)) else { continue };
                let (role, target) = (role(third), n as u32);
                let id = router.insert(&pattern, role.clone(), target);
                entries.push(Entry { pattern, id, role, target });
            }
            1 if !entries.is_empty() => {
                let entry = entries.swap_remove(usize::from(first) % entries.len());
                assert!(router.remove(&entry.pattern, entry.id), "it was there");
                assert!(!router.remove(&entry.pattern, entry.id), "it is gone");
            }
            _ => {
                let subject = Subject::new(text(first, second, true)).expect("a subject");
                let cache = &mut caches[usize::from(third % 2)];
                let expected = expected(&entries, &subject);
                assert_eq!(
                    shown(router.lookup(cache, subject.as_bytes())),
                    expected,
                    "{subject}, by a cache"
                );
                assert_eq!(shown(&router.matches(subject.as_bytes())), expected, "{subject}");
            }
        }
        let listeners = entries.iter().filter(|entry| !matches!(entry.role, Role::Store | Role::Tap));
        assert_eq!(router.stats().subscriptions, listeners.count() as u64);
    }
    for entry in entries {
        assert!(router.remove(&entry.pattern, entry.id));
    }
    assert_eq!(router.stats().subscriptions, 0);
    for subject in ["a", "a.b", "a.b.c", "a.b.c.a"] {
        assert!(router.lookup(&mut caches[0], subject.as_bytes()).is_empty(), "{subject}");
    }
}
