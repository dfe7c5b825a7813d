//! The rules of handlers and dead letters: every message ends one way, and the right one.

use std::collections::{BTreeMap, HashSet};

use trunkline::redelivery::DeadReason;

use super::check::{Publications, Violation};
use super::{Entry, Event, MessageId};

/// Checks that every confirmed message succeeded, or is a dead letter where it is doomed.
pub(super) fn check(
    entries: &[Entry],
    published: &Publications,
    doomed: &BTreeMap<MessageId, DeadReason>,
    violations: &mut Vec<Violation>,
) {
    let mut ended = HashSet::new();
    for entry in entries {
        match &entry.event {
            Event::Succeeded { id } => {
                ended.insert(*id);
                if doomed.contains_key(id) {
                    violations.push(Violation::SucceededYetDoomed(*id));
                }
            }
            Event::DeadLettered { id, reason } => {
                ended.insert(*id);
                let expected = doomed.get(id).copied();
                if expected != Some(*reason) {
                    violations.push(Violation::WrongDeadLetter { id: *id, found: *reason, expected });
                }
            }
            _ => {}
        }
    }
    for message in &published.all {
        if message.confirmed().is_some() && !ended.contains(&message.id) {
            violations.push(Violation::Dropped(message.id));
        }
    }
}
