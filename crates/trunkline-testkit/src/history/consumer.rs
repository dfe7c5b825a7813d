//! The rules of a consumer and its members.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use trunkline::StreamOffset;
use trunkline::backend::{Settle, Settled};

use super::check::{Publications, Violation};
use super::{Answer, Entry, Event, MessageId, Told};

/// How much earlier than calculated something may happen: Redis keeps time in milliseconds.
const TOLERANCE: Duration = Duration::from_millis(3);

/// One delivery: given out, and what its member said about it.
#[derive(Debug)]
struct Lease {
    id: MessageId,
    member: u32,
    given: usize,
    given_at: Duration,
    /// The earliest moment at which the lease may have begun.
    begun_at: Duration,
    settlements: Vec<Settlement>,
}

/// One settlement: from the call to its answer.
#[derive(Debug)]
struct Settlement {
    how: Settle,
    from: usize,
    from_at: Duration,
    to: usize,
    answer: Answer,
}

impl Settlement {
    fn counted(&self) -> bool {
        self.answer == Answer::Known(Settled::Done)
    }

    fn may_have_counted(&self) -> bool {
        self.answer != Answer::Known(Settled::LeaseLost)
    }

    fn is_final(&self) -> bool {
        matches!(self.how, Settle::Ack | Settle::Term)
    }
}

/// Every delivery of every message, by offset and attempt.
#[derive(Debug, Default)]
struct Leases {
    by_offset: BTreeMap<StreamOffset, BTreeMap<u32, Lease>>,
    departures: HashMap<u32, usize>,
    abandoned: usize,
    /// Where a delivery was given out twice.
    repeated: BTreeSet<StreamOffset>,
}

/// Checks what all members of the consumer saw.
pub(super) fn check(
    entries: &[Entry],
    published: &Publications,
    ack_wait: Duration,
    repeats_deliveries: bool,
    violations: &mut Vec<Violation>,
) {
    let mut found = Vec::new();
    let leases = collect(entries, &mut found);
    let forgiven = match repeats_deliveries {
        true => leases.repeated.clone(),
        false => {
            violations.append(&mut found);
            BTreeSet::new()
        }
    };
    check_offsets(&leases, published, violations);
    check_first_deliveries(entries, &forgiven, violations);
    check_attempts(&leases, violations);
    for (offset, attempts) in leases.by_offset.iter().filter(|(offset, _)| !forgiven.contains(offset)) {
        check_settlements(*offset, attempts, violations);
        check_exclusive(*offset, attempts, &leases.departures, ack_wait, violations);
    }
    check_finished(&leases, published, violations);
}

fn collect(entries: &[Entry], violations: &mut Vec<Violation>) -> Leases {
    let mut leases = Leases::default();
    let mut fetching: HashMap<u32, Duration> = HashMap::new();
    let mut settling: HashMap<(u32, StreamOffset, u32), (usize, Duration)> = HashMap::new();
    for (tick, entry) in entries.iter().enumerate() {
        match &entry.event {
            Event::Fetching { member } => {
                fetching.insert(*member, entry.at);
            }
            Event::FetchAbandoned { .. } => leases.abandoned += 1,
            Event::Departing { member } => {
                leases.departures.insert(*member, tick);
            }
            Event::Delivered { member, id, offset, attempt } => {
                let mut lease = Lease {
                    id: *id,
                    member: *member,
                    given: tick,
                    given_at: entry.at,
                    begun_at: fetching.get(member).copied().unwrap_or(entry.at),
                    settlements: Vec::new(),
                };
                let attempts = leases.by_offset.entry(*offset).or_default();
                if let Some(former) = attempts.remove(attempt) {
                    // What was said of the first one counts for the message all the same.
                    lease.settlements = former.settlements;
                    leases.repeated.insert(*offset);
                    violations.push(Violation::AttemptRepeated { offset: *offset, attempt: *attempt });
                }
                attempts.insert(*attempt, lease);
            }
            Event::Settling { member, offset, attempt, .. } => {
                settling.insert((*member, *offset, *attempt), (tick, entry.at));
            }
            Event::Settled { member, offset, attempt, how, answer } => {
                let (from, from_at) =
                    settling.remove(&(*member, *offset, *attempt)).unwrap_or((tick, entry.at));
                let lease = leases.by_offset.get_mut(offset).and_then(|all| all.get_mut(attempt));
                if let Some(lease) = lease {
                    let settlement = Settlement { how: *how, from, from_at, to: tick, answer: *answer };
                    lease.settlements.push(settlement);
                }
            }
            _ => {}
        }
    }
    leases
}

/// A delivery stands at the offset of its receipt.
fn check_offsets(leases: &Leases, published: &Publications, violations: &mut Vec<Violation>) {
    for (delivered, attempts) in &leases.by_offset {
        for lease in attempts.values() {
            let told = published.get(lease.id).and_then(|message| message.told);
            if let Some((_, Told::Stored(receipt))) = told
                && receipt != *delivered
            {
                violations.push(Violation::AnotherOffset { id: lease.id, receipt, delivered: *delivered });
            }
        }
    }
}

/// Each member gets first deliveries in the order of the stream.
fn check_first_deliveries(
    entries: &[Entry],
    forgiven: &BTreeSet<StreamOffset>,
    violations: &mut Vec<Violation>,
) {
    let mut newest: HashMap<u32, (StreamOffset, MessageId)> = HashMap::new();
    for entry in entries {
        let Event::Delivered { member, id, offset, attempt: 1 } = &entry.event else { continue };
        if forgiven.contains(offset) {
            continue;
        }
        match newest.get(member) {
            Some((before, after)) if before > offset => violations.push(Violation::OutOfOrder {
                reader: format!("member {member}"),
                id: *id,
                after: after.number,
            }),
            _ => {
                newest.insert(*member, (*offset, *id));
            }
        }
    }
}

/// Attempts count from 1 by one; only an abandoned fetch may have swallowed one.
fn check_attempts(leases: &Leases, violations: &mut Vec<Violation>) {
    let mut skipped = Vec::new();
    for (offset, attempts) in &leases.by_offset {
        let last = attempts.keys().next_back().copied().unwrap_or(0);
        skipped.extend((1..last).filter(|attempt| !attempts.contains_key(attempt)).map(|a| (*offset, a)));
    }
    // One abandoned fetch can swallow several deliveries, but each message at most once.
    let mut per_offset: BTreeMap<StreamOffset, usize> = BTreeMap::new();
    for (offset, _) in &skipped {
        *per_offset.entry(*offset).or_default() += 1;
    }
    if let Some((offset, count)) = per_offset.iter().max_by_key(|(_, count)| **count)
        && *count > leases.abandoned
    {
        let attempt = skipped.iter().find(|(at, _)| at == offset).map_or(0, |(_, attempt)| *attempt);
        violations.push(Violation::AttemptSkipped {
            offset: *offset,
            attempt,
            skipped: skipped.len(),
            abandoned: leases.abandoned,
        });
    }
}

/// A message is settled for good once, by the delivery that owns it, and then it is over.
fn check_settlements(offset: StreamOffset, attempts: &BTreeMap<u32, Lease>, violations: &mut Vec<Violation>) {
    let mut final_attempt = None;
    for (&attempt, lease) in attempts {
        let mut over: Option<usize> = None;
        for settlement in lease.settlements.iter().filter(|settlement| settlement.counted()) {
            // A settlement that began after another one of the same delivery had counted for good.
            if over.is_some_and(|over| settlement.from > over) {
                violations.push(Violation::SettledTwice { offset, attempt });
            }
            if settlement.how != Settle::Progress {
                over = over.or(Some(settlement.to));
            }
            let owner = attempts.range(attempt + 1..).find(|(_, later)| later.given < settlement.from);
            if let Some((&later, _)) = owner {
                violations.push(Violation::LateSettlement { offset, attempt, later });
            }
            if settlement.is_final() {
                if final_attempt.is_some_and(|earlier| earlier != attempt) {
                    violations.push(Violation::SettledTwice { offset, attempt });
                }
                final_attempt = final_attempt.or(Some(attempt));
            }
        }
    }
    if let Some(settled) = final_attempt
        && let Some((&attempt, _)) = attempts.range(settled + 1..).next()
    {
        violations.push(Violation::SettledYetDelivered { offset, attempt, settled });
    }
}

/// A delivery comes only when the lease of the one before is over, and its nak's delay too.
fn check_exclusive(
    offset: StreamOffset,
    attempts: &BTreeMap<u32, Lease>,
    departures: &HashMap<u32, usize>,
    ack_wait: Duration,
    violations: &mut Vec<Violation>,
) {
    for ((&former, before), (&attempt, after)) in attempts.iter().zip(attempts.iter().skip(1)) {
        let departed = departures.get(&before.member).is_some_and(|&tick| tick < after.given);
        if departed {
            continue;
        }
        let released = before.settlements.iter().find(|settlement| {
            settlement.how != Settle::Progress
                && settlement.may_have_counted()
                && settlement.from < after.given
        });
        let renewed = before.settlements.iter().filter(|settlement| {
            settlement.how == Settle::Progress && settlement.counted() && settlement.from < after.given
        });
        let begun_at = renewed.map(|settlement| settlement.from_at).max().unwrap_or(before.begun_at);
        match released {
            None if after.given_at + TOLERANCE < begun_at + ack_wait => {
                violations.push(Violation::TwoLeases { offset, attempt, former });
            }
            Some(Settlement { how: Settle::Nak(delay), from_at, answer: Answer::Known(_), .. })
                if after.given_at + TOLERANCE < *from_at + *delay =>
            {
                let early = (*from_at + *delay).saturating_sub(after.given_at);
                violations.push(Violation::NakTooEarly { offset, attempt, early });
            }
            _ => {}
        }
    }
}

/// Everything that was stored is settled for good.
fn check_finished(leases: &Leases, published: &Publications, violations: &mut Vec<Violation>) {
    let mut deliveries: HashMap<MessageId, usize> = HashMap::new();
    let mut finished: HashMap<MessageId, bool> = HashMap::new();
    for lease in leases.by_offset.values().flat_map(BTreeMap::values) {
        *deliveries.entry(lease.id).or_default() += 1;
        *finished.entry(lease.id).or_default() |=
            lease.settlements.iter().any(|settlement| settlement.is_final() && settlement.may_have_counted());
    }
    for message in &published.all {
        let stored = matches!(message.told, Some((_, Told::Stored(_))));
        if stored && !finished.get(&message.id).copied().unwrap_or(false) {
            let deliveries = deliveries.get(&message.id).copied().unwrap_or(0);
            violations.push(Violation::Unfinished { id: message.id, deliveries });
        }
    }
}
