//! The rules of live subscriptions and queue groups.

use std::collections::{BTreeMap, HashMap, HashSet};

use trunkline::{Pattern, Subject};

use super::check::{Publications, Published, Violation};
use super::{Entry, Event, MessageId};

/// One subscription.
struct Reader {
    pattern: Pattern,
    group: Option<u32>,
    since: usize,
    stopping: Option<usize>,
    /// When it was surely gone, where it was dropped.
    dropped: Option<usize>,
    /// It was stopped and read to its end, so nothing is left in it.
    ended: bool,
    received: Vec<MessageId>,
    missed: u64,
    missed_unknown: bool,
}

impl Reader {
    /// Whether it was there from before the message was published until after its publisher heard of it.
    fn saw_all_of(&self, from: usize, to: usize) -> bool {
        self.since < from && self.stopping.is_none_or(|stopping| stopping > to)
    }

    /// Whether a message may have died with it: it was dropped, not stopped, and may have held the message.
    fn may_have_died_with(&self, from: usize, to: usize) -> bool {
        !self.ended && self.since < to && self.dropped.or(self.stopping).is_some_and(|gone| gone > from)
    }
}

fn readers(entries: &[Entry]) -> BTreeMap<u32, Reader> {
    let mut readers = BTreeMap::new();
    for (tick, entry) in entries.iter().enumerate() {
        if let Event::Subscribed { reader, pattern, group } = &entry.event {
            let new = Reader {
                pattern: pattern.clone(),
                group: *group,
                since: tick,
                stopping: None,
                dropped: None,
                ended: false,
                received: Vec::new(),
                missed: 0,
                missed_unknown: false,
            };
            readers.insert(*reader, new);
        }
    }
    for (tick, entry) in entries.iter().enumerate() {
        let (Event::Received { reader, .. }
        | Event::Missed { reader, .. }
        | Event::Stopping { reader }
        | Event::Dropped { reader }
        | Event::Ended { reader }) = &entry.event
        else {
            continue;
        };
        let Some(reader) = readers.get_mut(reader) else { continue };
        match &entry.event {
            Event::Received { id, .. } => reader.received.push(*id),
            Event::Missed { count: Some(count), .. } => reader.missed += count,
            Event::Missed { count: None, .. } => reader.missed_unknown = true,
            Event::Stopping { .. } => reader.stopping = Some(tick),
            Event::Dropped { .. } => reader.dropped = Some(tick),
            _ => reader.ended = true,
        }
    }
    readers
}

/// Checks every subscription, and every queue group as one.
pub(super) fn check(entries: &[Entry], published: &Publications, violations: &mut Vec<Violation>) {
    let readers = readers(entries);
    let mut groups: BTreeMap<(u32, &Pattern), Vec<&Reader>> = BTreeMap::new();
    for (name, reader) in &readers {
        let name = format!("subscription {name}");
        check_order(&name, reader, published, violations);
        match reader.group {
            Some(group) => groups.entry((group, &reader.pattern)).or_default().push(reader),
            None => {
                let last = newest(reader, published);
                // A dropped subscription may have had messages that nobody read; only holes before what it gave
                // out tell of a loss.
                let dropped = reader.stopping.is_some() && !reader.ended;
                let required = |message: &Published, to| {
                    let later = last.get(&(message.id.publisher, &message.subject));
                    reader.saw_all_of(message.from, to)
                        && (!dropped || later.is_some_and(|&later| later > message.id.number))
                };
                check_together(&name, &[reader], published, required, violations);
            }
        }
    }
    for ((group, pattern), members) in groups {
        let required = |message: &Published, to| {
            members.iter().any(|member| member.saw_all_of(message.from, to))
                && !members.iter().any(|member| member.may_have_died_with(message.from, to))
        };
        check_together(
            &format!("queue group {group} of {pattern}"),
            &members,
            published,
            required,
            violations,
        );
    }
}

/// Together the readers get each message once: never twice, and always where it is required.
fn check_together(
    name: &str,
    readers: &[&Reader],
    published: &Publications,
    required: impl Fn(&Published, usize) -> bool,
    violations: &mut Vec<Violation>,
) {
    let mut seen = HashSet::new();
    for id in readers.iter().flat_map(|reader| &reader.received) {
        if !seen.insert(*id) {
            violations.push(Violation::Repeated { reader: name.to_owned(), id: *id });
        }
    }
    let missing: Vec<MessageId> = published
        .all
        .iter()
        .filter(|message| readers[0].pattern.matches(&message.subject))
        .filter(|message| message.confirmed().is_some_and(|to| required(message, to)))
        .map(|message| message.id)
        .filter(|id| !seen.contains(id))
        .collect();
    let counted: u64 = readers.iter().map(|reader| reader.missed).sum();
    let excused = readers.iter().any(|reader| reader.missed_unknown);
    if let Some(first) = missing.first().filter(|_| !excused && missing.len() as u64 > counted) {
        violations.push(Violation::Lost {
            reader: name.to_owned(),
            missing: missing.len() as u64,
            counted,
            first: *first,
        });
    }
}

/// The highest number that a reader got of each publisher and subject.
fn newest<'a>(reader: &Reader, published: &'a Publications) -> HashMap<(u32, &'a Subject), u32> {
    let mut newest = HashMap::new();
    for id in &reader.received {
        if let Some(message) = published.get(*id) {
            let highest = newest.entry((id.publisher, &message.subject)).or_insert(id.number);
            *highest = id.number.max(*highest);
        }
    }
    newest
}

/// Each reader gets what one publisher sent to one subject in order.
fn check_order(name: &str, reader: &Reader, published: &Publications, violations: &mut Vec<Violation>) {
    let mut newest: HashMap<(u32, &Subject), u32> = HashMap::new();
    for id in &reader.received {
        let Some(message) = published.get(*id) else { continue };
        let after = newest.entry((id.publisher, &message.subject)).or_insert(id.number);
        if *after > id.number {
            violations.push(Violation::OutOfOrder { reader: name.to_owned(), id: *id, after: *after });
        } else {
            *after = id.number;
        }
    }
}
