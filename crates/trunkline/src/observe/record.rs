//! The record: what was seen lately, by number and by conversation, within a bound of bytes.
//!
//! When there is no more room the conversation that was seen longest ago goes as a whole, so that whoever opens one finds it
//! complete. Only one that alone takes half of the record loses its own beginning.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use jiff::Timestamp;

use super::conversation::{Aside, Conversation};
use super::filter::ConversationFilter;
use super::kept::Kept;
use super::{ConversationSummary, ObserveOptions};
use crate::memory::{Charge, Holding};

/// What belongs to no conversation may take this part of the record.
const LOOSE_PART: usize = 8;
/// One conversation may take this part of the record.
const CONVERSATION_PART: usize = 2;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Record {
    /// The number before the first observation.
    base: u64,
    /// The number of the next observation.
    next: u64,
    by_seq: BTreeMap<u64, Arc<Kept>>,
    conversations: HashMap<Arc<str>, Conversation, foldhash::fast::RandomState>,
    /// The conversations by the number of their last observation.
    by_last: BTreeMap<u64, Arc<str>>,
    /// What belongs to no conversation.
    loose: VecDeque<u64>,
    loose_bytes: usize,
    /// What all of it takes.
    bytes: usize,
    charge: Charge,
}

/// Conversations of a list, and how many there are in all.
pub(super) type Listed = (Vec<ConversationSummary>, u64);

impl Record {
    /// An empty one, whose first observation has the number after `base`.
    pub(super) fn new(options: &ObserveOptions, base: u64) -> Self {
        Self {
            base,
            next: base + 1,
            by_seq: BTreeMap::new(),
            conversations: HashMap::default(),
            by_last: BTreeMap::new(),
            loose: VecDeque::new(),
            loose_bytes: 0,
            bytes: 0,
            charge: Charge::new(&options.budget, Holding::Observations),
        }
    }

    /// The number of the latest observation; before the first the number before it.
    pub(super) fn last(&self) -> u64 {
        self.next - 1
    }

    /// Where to read on who was given `after` last: from the first on where that number is none of this record.
    pub(super) fn resume(&self, after: u64) -> u64 {
        if (self.base..=self.last()).contains(&after) { after } else { self.base }
    }

    /// What it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lets go of what is too much, because it may take less than before.
    pub(super) fn shrink(&mut self, bytes_max: usize) {
        self.make_room(bytes_max);
        self.charge.set(self.bytes);
    }

    /// Keeps an observation. `bytes_max` is what the record may take.
    pub(super) fn insert(&mut self, mut kept: Kept, aside: &Aside, bytes_max: usize) {
        let seq = self.next;
        self.next += 1;
        kept.seen.seq = seq;
        let size = kept.bytes();
        match &kept.conversation {
            None => {
                self.loose.push_back(seq);
                self.loose_bytes += size;
            }
            Some(id) => {
                if !self.conversations.contains_key(id) {
                    let new = Conversation::new(id, kept.seen.time);
                    self.bytes += new.bytes;
                    self.conversations.insert(id.clone(), new);
                }
                if let Some(conversation) = self.conversations.get_mut(id) {
                    if let Some(last) = conversation.seqs.back() {
                        self.by_last.remove(last);
                    }
                    self.by_last.insert(seq, id.clone());
                    let before = conversation.bytes;
                    conversation.note(&kept.seen, aside);
                    self.bytes = self.bytes + conversation.bytes - before;
                    conversation.seqs.push_back(seq);
                    conversation.bytes += size;
                }
            }
        }
        self.bytes += size;
        let grown = kept.conversation.clone();
        self.by_seq.insert(seq, Arc::new(kept));
        self.shorten(grown.as_deref(), bytes_max / CONVERSATION_PART);
        self.make_room(bytes_max);
        self.charge.set(self.bytes);
    }

    /// Takes the beginning off a conversation that is too large.
    fn shorten(&mut self, id: Option<&str>, bytes_max: usize) {
        let Some(conversation) = id.and_then(|id| self.conversations.get_mut(id)) else { return };
        while conversation.bytes > bytes_max && conversation.seqs.len() > 1 {
            let Some(seq) = conversation.seqs.pop_front() else { return };
            let size = self.by_seq.remove(&seq).map_or(0, |kept| kept.bytes());
            conversation.bytes = conversation.bytes.saturating_sub(size);
            self.bytes = self.bytes.saturating_sub(size);
            conversation.omit();
        }
    }

    /// Lets go of what was seen longest ago.
    fn make_room(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let conversation = match self.loose_bytes > bytes_max / LOOSE_PART || self.by_last.len() <= 1 {
                true => None,
                false => self.by_last.pop_first(),
            };
            match conversation {
                Some((_, id)) => self.forget(&id),
                None => {
                    let Some(seq) = self.loose.pop_front() else { return };
                    let size = self.by_seq.remove(&seq).map_or(0, |kept| kept.bytes());
                    self.loose_bytes = self.loose_bytes.saturating_sub(size);
                    self.bytes = self.bytes.saturating_sub(size);
                }
            }
        }
    }

    fn forget(&mut self, id: &str) {
        let Some(conversation) = self.conversations.remove(id) else { return };
        for seq in &conversation.seqs {
            self.by_seq.remove(seq);
        }
        self.bytes = self.bytes.saturating_sub(conversation.bytes);
    }

    /// What came after a number, `max` at most, and how many in between the record does not have any more.
    pub(super) fn after(&self, seq: u64, max: usize) -> (Vec<Arc<Kept>>, u64) {
        let found: Vec<_> = self.by_seq.range(seq.saturating_add(1)..).take(max).collect();
        let (end, count) = match found.last() {
            Some((last, _)) => (**last, found.len() as u64),
            None => (self.last(), 0),
        };
        let missed = end.saturating_sub(seq).saturating_sub(count);
        (found.into_iter().map(|(_, kept)| kept.clone()).collect(), missed)
    }

    /// What it has, the latest first.
    pub(super) fn backwards(&self) -> impl Iterator<Item = &Arc<Kept>> {
        self.by_seq.values().rev()
    }

    /// A page of the conversations that are wanted, the one seen last first.
    pub(super) fn list(&self, filter: &ConversationFilter, offset: usize, limit: usize) -> Listed {
        let now = Timestamp::now();
        let all = self.by_last.values().rev().filter_map(|id| self.conversations.get(id));
        let (mut page, mut total) = (Vec::new(), 0);
        for (at, conversation) in all.filter(|it| it.is_wanted(filter, now)).enumerate() {
            total += 1;
            if at >= offset && page.len() < limit {
                page.push(conversation.summary(now));
            }
        }
        (page, total)
    }

    /// The line of a conversation, and what the record has of it.
    pub(super) fn conversation(&self, id: &str) -> Option<(ConversationSummary, Vec<Arc<Kept>>)> {
        let conversation = self.conversations.get(id)?;
        let observations = conversation.seqs.iter().filter_map(|seq| self.by_seq.get(seq)).cloned().collect();
        Some((conversation.summary(Timestamp::now()), observations))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryBudget;
    use crate::observe::kept::KeptBody;
    use crate::observe::{ConversationState, Observation, Outcome, What};

    fn seen(what: What) -> Observation {
        Observation { what, ..Observation::new(What::Published, Timestamp::now(), "nachos.a") }
    }

    fn kept(conversation: Option<&str>, body: usize) -> Kept {
        Kept {
            conversation: conversation.map(Into::into),
            seen: seen(What::Published),
            body: KeptBody::Bytes(vec![b'x'; body].into()),
        }
    }

    fn record() -> (Record, Arc<MemoryBudget>) {
        let options = ObserveOptions::default();
        (Record::new(&options, 0), options.budget)
    }

    #[test]
    fn the_conversation_seen_longest_ago_goes_as_a_whole() {
        let (mut record, budget) = record();
        for id in ["a", "b", "c", "a"] {
            record.insert(kept(Some(id), 10_000), &Aside::default(), 60_000);
        }
        record.insert(kept(Some("d"), 30_000), &Aside::default(), 60_000);
        let (page, total) = record.list(&ConversationFilter::default(), 0, 10);
        let ids: Vec<_> = page.iter().map(|line| line.id.as_str()).collect();
        assert_eq!((ids, total), (vec!["d", "a"], 2), "b and c were seen before the second of a");
        let (line, observations) = record.conversation("a").unwrap();
        assert_eq!((line.messages, line.omitted, observations.len()), (2, 0, 2));
        assert_eq!(observations.iter().map(|kept| kept.seen.seq).collect::<Vec<_>>(), [1, 4]);
        let held = budget.held(Holding::Observations);
        assert!((50_000..=61_000).contains(&held) && held.abs_diff(record.bytes()) < 4096, "{held}");
        drop(record);
        assert_eq!(budget.held(Holding::Observations), 0);
    }

    #[test]
    fn a_flood_of_any_kind_stays_within_the_bound() {
        for conversation in [None, Some("one")] {
            let (mut record, _) = record();
            for n in 0..1000 {
                let many = conversation.map(|id| if n % 2 == 0 { id.to_owned() } else { format!("{id}{n}") });
                record.insert(kept(many.as_deref(), n), &Aside::default(), 100_000);
                assert!(record.bytes() <= 100_000, "{} after {n}", record.bytes());
            }
            let rest: usize = record.by_seq.values().map(|kept| kept.bytes()).sum();
            let lines: usize = record.conversations.values().map(|it| it.bytes).sum();
            let expected = if conversation.is_some() { lines + record.loose_bytes } else { rest };
            assert_eq!(record.bytes(), expected, "the account is that of what is there");
            assert!(record.by_seq.len() > 10);
            if let Some((line, observations)) = record.conversation("one") {
                assert_eq!(line.omitted + observations.len() as u64, line.messages);
                assert!(line.omitted > 0);
            }
        }
    }

    #[test]
    fn who_reads_on_is_told_what_is_gone() {
        let (mut record, _) = record();
        assert_eq!(record.after(0, 10).1, 0);
        for n in 0..20 {
            record.insert(kept(Some(&format!("c{n}")), 10_000), &Aside::default(), 60_000);
        }
        let (found, missed) = record.after(0, 3);
        assert_eq!(found.len(), 3);
        assert_eq!(missed + 3, found[2].seen.seq);
        let (rest, missed) = record.after(found[2].seen.seq, 100);
        assert_eq!((rest.last().unwrap().seen.seq, missed), (20, 0));
        assert_eq!((record.after(20, 10).0.len(), record.last()), (0, 20));
    }

    #[test]
    fn who_comes_from_another_record_reads_on_from_the_first() {
        let mut record = Record::new(&ObserveOptions::default(), 1000);
        assert_eq!((record.last(), record.resume(1000), record.resume(7)), (1000, 1000, 1000));
        for _ in 0..2 {
            record.insert(kept(None, 10), &Aside::default(), 60_000);
        }
        assert_eq!(
            [999, 1000, 1001, 1002, 1003].map(|after| record.resume(after)),
            [1000, 1000, 1001, 1002, 1000]
        );
        let (found, missed) = record.after(record.resume(7), 10);
        assert_eq!((found.len(), found[0].seen.seq, missed), (2, 1001, 0));
    }

    #[test]
    fn a_conversation_stands_as_its_last_observations_say() {
        let (mut record, _) = record();
        let mut state = |change: &dyn Fn(&mut Observation), ends_request: bool| {
            let mut kept = kept(Some("c"), 10);
            change(&mut kept.seen);
            record.insert(kept, &Aside { ends_request, deadline: None }, 1_000_000);
            record.conversation("c").unwrap().0
        };
        let reply = || Some("_INBOX.1".to_owned());
        assert_eq!(state(&|_| {}, false).state, ConversationState::Quiet);
        assert_eq!(state(&|seen| seen.reply = reply(), false).state, ConversationState::Open);
        assert_eq!(state(&|seen| seen.subject = "_INBOX.1".into(), true).state, ConversationState::Quiet);
        assert_eq!(state(&|seen| seen.reply = reply(), false).state, ConversationState::Open);
        let nobody = state(&|seen| (seen.what, seen.reply) = (What::NoResponders, reply()), false);
        assert_eq!((nobody.state, nobody.errors), (ConversationState::Failed, 1));
        let delivery = |seen: &mut Observation, what, attempt, outcome| {
            (seen.what, seen.attempt, seen.outcome) = (what, Some(attempt), outcome);
            (seen.stream, seen.consumer, seen.offset) =
                (Some("s".to_owned()), Some("w".to_owned()), Some("7".to_owned()));
        };
        assert_eq!(state(&|_| {}, false).state, ConversationState::Quiet, "something came after");
        let nacked = state(&|seen| delivery(seen, What::Handled, 1, Some(Outcome::Nacked)), false);
        assert_eq!((nacked.state, nacked.retries), (ConversationState::Open, 0));
        let acked = state(&|seen| delivery(seen, What::Handled, 2, Some(Outcome::Acked)), false);
        assert_eq!((acked.state, acked.retries), (ConversationState::Quiet, 1));
        state(&|seen| delivery(seen, What::Handled, 1, Some(Outcome::Nacked)), false);
        let dead = state(&|seen| delivery(seen, What::DeadLettered, 2, None), false);
        assert_eq!((dead.state, dead.dead_letters), (ConversationState::Failed, 1));
        let redriven = state(&|seen| seen.what = What::Redriven, false);
        assert_eq!((redriven.state, redriven.messages), (ConversationState::Quiet, 6));
    }
}
