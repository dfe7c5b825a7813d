//! A durable consumer as a state machine: cursor, pending deliveries, leases. No clock, no lock, no waiting.
//!
//! The terms are JetStream's. A message is, for a consumer, ahead of the cursor, pending (handed out, or waiting for
//! its redelivery), or settled.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use tokio::time::Instant;
use trunkline_core::{Message, StreamOffset};

use super::log::{Log, Removed};
use crate::backend::{
    AckToken, ConsumerConfig, ConsumerInfo, Delivery, Fetched, Lease, Settle, Settled, StoredMessage,
};

/// Names a member within its consumer.
pub(super) type MemberId = u64;

#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) config: ConsumerConfig,
    /// Sequence of the next message that was never handed out.
    cursor: u64,
    pending: BTreeMap<u64, Pending>,
    /// When each pending message may be handed out again; one entry for each.
    due: BTreeSet<(Instant, u64)>,
    members: HashSet<MemberId>,
    lease: Option<(MemberId, Instant)>,
    redelivered: u64,
    missed: u64,
    /// Of `missed`, not yet told to a member.
    missed_untold: u64,
    delivered: u64,
}

#[derive(Debug)]
struct Pending {
    attempt: u32,
    /// Who may settle it; `None` while it waits for redelivery.
    owner: Option<MemberId>,
    due: Instant,
    since: Instant,
}

impl Consumer {
    pub(super) fn new(config: ConsumerConfig, cursor: u64) -> Self {
        Self {
            config,
            cursor,
            pending: BTreeMap::new(),
            due: BTreeSet::new(),
            members: HashSet::new(),
            lease: None,
            redelivered: 0,
            missed: 0,
            missed_untold: 0,
            delivered: 0,
        }
    }

    pub(super) fn add_member(&mut self, member: MemberId) {
        self.members.insert(member);
    }

    /// Removes a member. Its deliveries come again at once if it hands them back, else when their leases end.
    pub(super) fn remove_member(&mut self, member: MemberId, hand_back: bool, now: Instant) {
        self.members.remove(&member);
        if !hand_back {
            return;
        }
        let owned: Vec<u64> = self.owned_by(member);
        for sequence in owned {
            self.reschedule(sequence, None, now);
        }
        if self.lease.is_some_and(|(holder, _)| holder == member) {
            self.lease = None;
        }
    }

    /// Takes or renews the lease. A new holder finds everything unsettled due at once, in order of the offsets.
    pub(super) fn lease(&mut self, member: MemberId, ttl: Duration, now: Instant) -> Lease {
        let new = match self.lease {
            Some((holder, _)) if holder == member => false,
            Some((_, until)) if until > now => return Lease::Standby,
            _ => true,
        };
        if new {
            let all: Vec<u64> = self.pending.keys().copied().collect();
            for sequence in all {
                self.reschedule(sequence, None, now);
            }
        }
        self.lease = Some((member, now + ttl));
        Lease::Held { new }
    }

    /// Whether this member may be given messages now.
    pub(super) fn may_fetch(&self, member: MemberId, now: Instant) -> bool {
        !self.config.keyed || self.lease.is_some_and(|(holder, until)| holder == member && until > now)
    }

    /// Hands out up to `max` messages: what is due again first, then new ones.
    pub(super) fn fetch(&mut self, log: &Log, member: MemberId, max: usize, now: Instant) -> Fetched {
        let mut fetched = Fetched::default();
        if !self.may_fetch(member, now) {
            return fetched;
        }
        fetched.missed = std::mem::take(&mut self.missed_untold);
        while fetched.deliveries.len() < max {
            let Some(&(at, sequence)) = self.due.first() else { break };
            if at > now {
                break;
            }
            let Some(stored) = log.get(sequence) else {
                self.settle_one(sequence);
                continue;
            };
            self.redelivered += 1;
            fetched.deliveries.push(self.hand_out(sequence, stored, member, now));
        }
        while fetched.deliveries.len() < max {
            let Some((sequence, stored)) = log.next_match(self.cursor, self.config.filter.as_ref()) else {
                self.cursor = log.last() + 1;
                break;
            };
            self.cursor = sequence + 1;
            self.delivered = sequence;
            fetched.deliveries.push(self.hand_out(sequence, stored, member, now));
        }
        fetched
    }

    /// When something becomes due without anybody doing anything; `None` when nothing is pending.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Settles one delivery, if `member` still owns it. Also says whether that made a message due at once.
    pub(super) fn settle(
        &mut self,
        member: MemberId,
        token: &AckToken,
        settle: Settle,
        now: Instant,
    ) -> Settled {
        let Some(sequence) = token.offset.sequence() else { return Settled::LeaseLost };
        match self.pending.get(&sequence) {
            Some(pending) if pending.owner == Some(member) && pending.attempt == token.attempt => {}
            _ => return Settled::LeaseLost,
        }
        match settle {
            Settle::Ack | Settle::Term => self.settle_one(sequence),
            Settle::Nak(delay) => self.reschedule(sequence, None, now + delay),
            Settle::Progress => self.reschedule(sequence, Some(member), now + self.config.ack_wait),
        }
        Settled::Done
    }

    /// Takes note of what was removed from the log: what was not settled by then is missed.
    pub(super) fn forget(&mut self, removed: &Removed) {
        for (sequence, message) in removed {
            let unread = *sequence >= self.cursor && self.wants(message);
            if unread || self.pending.contains_key(sequence) {
                self.missed += 1;
                self.missed_untold += 1;
                self.settle_one(*sequence);
            }
        }
    }

    /// Takes note of what was deleted from the log: it is not missed, and whoever works on it can settle it no more.
    pub(super) fn forget_deleted(&mut self, removed: &Removed) {
        for (sequence, _) in removed {
            self.settle_one(*sequence);
        }
    }

    pub(super) fn info(&self, log: &Log, now: Instant) -> ConsumerInfo {
        let floor = self.pending.keys().next().copied().unwrap_or(self.cursor).saturating_sub(1);
        let lag = match &self.config.filter {
            None => log.messages_from(self.cursor),
            Some(filter) => (self.cursor.max(log.first())..=log.last())
                .filter_map(|sequence| log.get(sequence))
                .filter(|stored| filter.matches(&stored.message.subject))
                .count() as u64,
        };
        ConsumerInfo {
            config: self.config.clone(),
            delivered: (self.delivered > 0).then_some(StreamOffset::Sequence(self.delivered)),
            ack_floor: (floor > 0).then_some(StreamOffset::Sequence(floor)),
            pending: self.pending.len() as u64,
            lag,
            redelivered: self.redelivered,
            missed: self.missed,
            members: self.members.len() as u64,
            oldest_pending: self.pending.values().map(|p| now.saturating_duration_since(p.since)).max(),
        }
    }

    fn wants(&self, message: &Message) -> bool {
        self.config.filter.as_ref().is_none_or(|filter| filter.matches(&message.subject))
    }

    fn owned_by(&self, member: MemberId) -> Vec<u64> {
        self.pending.iter().filter(|(_, p)| p.owner == Some(member)).map(|(sequence, _)| *sequence).collect()
    }

    fn hand_out(&mut self, sequence: u64, stored: StoredMessage, member: MemberId, now: Instant) -> Delivery {
        let pending =
            self.pending.entry(sequence).or_insert(Pending { attempt: 0, owner: None, due: now, since: now });
        pending.attempt += 1;
        let attempt = pending.attempt;
        self.reschedule(sequence, Some(member), now + self.config.ack_wait);
        let offset = stored.offset;
        Delivery {
            message: stored.message,
            offset,
            time: stored.time,
            attempt,
            token: AckToken { offset, attempt, ack_subject: None },
        }
    }

    fn reschedule(&mut self, sequence: u64, owner: Option<MemberId>, due: Instant) {
        if let Some(pending) = self.pending.get_mut(&sequence) {
            self.due.remove(&(pending.due, sequence));
            pending.owner = owner;
            pending.due = due;
            self.due.insert((due, sequence));
        }
    }

    fn settle_one(&mut self, sequence: u64) {
        if let Some(pending) = self.pending.remove(&sequence) {
            self.due.remove(&(pending.due, sequence));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::backend::StreamConfig;
    use trunkline_core::Subject;

    const SEC: fn(u64) -> Duration = Duration::from_secs;

    fn log(subjects: &[&str]) -> Log {
        let mut log = Log::new(StreamConfig::new("s", vec![">".parse().unwrap()]));
        for subject in subjects {
            put(&mut log, subject);
        }
        log
    }

    fn put(log: &mut Log, subject: &str) -> Removed {
        let message = Arc::new(Message::new(subject.parse::<Subject>().unwrap(), ""));
        log.append(&message, None, SystemTime::UNIX_EPOCH, Instant::now()).1
    }

    fn consumer(keyed: bool) -> Consumer {
        let config = ConsumerConfig { ack_wait: SEC(10), keyed, ..ConsumerConfig::new("c") };
        Consumer::new(config, 1)
    }

    fn numbers(fetched: &Fetched) -> Vec<(u64, u32)> {
        fetched.deliveries.iter().map(|d| (d.offset.sequence().unwrap(), d.attempt)).collect()
    }

    #[test]
    fn members_share_the_work_and_a_lapsed_lease_moves_it() {
        let (log, mut c, now) = (log(&["a", "b", "c"]), consumer(false), Instant::now());
        let first = c.fetch(&log, 1, 2, now);
        assert_eq!(numbers(&first), [(1, 1), (2, 1)]);
        assert_eq!(numbers(&c.fetch(&log, 2, 10, now)), [(3, 1)]);
        assert_eq!(c.settle(1, &first.deliveries[0].token, Settle::Ack, now), Settled::Done);
        let again = c.fetch(&log, 2, 10, now + SEC(10));
        assert_eq!(numbers(&again), [(2, 2), (3, 2)]);
        let late = &first.deliveries[1].token;
        assert_eq!(c.settle(1, late, Settle::Ack, now + SEC(11)), Settled::LeaseLost);
        assert_eq!(c.settle(2, &again.deliveries[0].token, Settle::Ack, now + SEC(11)), Settled::Done);
    }

    #[test]
    fn nak_waits_progress_renews_term_ends() {
        let (log, mut c, now) = (log(&["a", "b", "c"]), consumer(false), Instant::now());
        let got = c.fetch(&log, 1, 3, now).deliveries;
        assert_eq!(c.settle(1, &got[0].token, Settle::Nak(SEC(3)), now), Settled::Done);
        assert_eq!(c.settle(1, &got[0].token, Settle::Ack, now), Settled::LeaseLost);
        assert_eq!(c.settle(1, &got[1].token, Settle::Progress, now + SEC(5)), Settled::Done);
        assert_eq!(c.settle(1, &got[2].token, Settle::Term, now), Settled::Done);
        assert_eq!(numbers(&c.fetch(&log, 1, 9, now + SEC(2))), []);
        assert_eq!(numbers(&c.fetch(&log, 1, 9, now + SEC(3))), [(1, 2)]);
        assert_eq!(c.next_due(), Some(now + SEC(13)));
        assert_eq!(numbers(&c.fetch(&log, 2, 9, now + SEC(15))), [(1, 3), (2, 2)]);
        let info = c.info(&log, now + SEC(15));
        assert_eq!((info.pending, info.lag, info.redelivered), (2, 0, 3));
    }

    #[test]
    fn leaving_hands_back_at_once() {
        let (log, mut c, now) = (log(&["a", "b"]), consumer(false), Instant::now());
        c.fetch(&log, 1, 2, now);
        c.remove_member(1, true, now);
        assert_eq!(numbers(&c.fetch(&log, 2, 9, now)), [(1, 2), (2, 2)]);
    }

    #[test]
    fn only_the_lease_holder_of_a_keyed_consumer_is_given_messages() {
        let (log, mut c, now) = (log(&["a", "b", "c"]), consumer(true), Instant::now());
        assert_eq!(numbers(&c.fetch(&log, 1, 9, now)), []);
        assert_eq!(c.lease(1, SEC(5), now), Lease::Held { new: true });
        assert_eq!(c.lease(2, SEC(5), now + SEC(4)), Lease::Standby);
        let got = c.fetch(&log, 1, 9, now).deliveries;
        c.settle(1, &got[0].token, Settle::Nak(SEC(100)), now);
        assert_eq!(c.lease(1, SEC(5), now + SEC(4)), Lease::Held { new: false });
        assert_eq!(c.lease(2, SEC(5), now + SEC(9)), Lease::Held { new: true });
        assert_eq!(c.settle(1, &got[1].token, Settle::Ack, now + SEC(9)), Settled::LeaseLost);
        assert_eq!(numbers(&c.fetch(&log, 2, 9, now + SEC(9))), [(1, 2), (2, 2), (3, 2)]);
    }

    #[test]
    fn what_limits_remove_unsettled_is_counted_once() {
        let (mut log, mut c, now) = (log(&["a", "b", "c"]), consumer(false), Instant::now());
        let got = c.fetch(&log, 1, 2, now).deliveries;
        c.settle(1, &got[0].token, Settle::Ack, now);
        log.config.max_messages = Some(1);
        let removed = put(&mut log, "d");
        c.forget(&removed);
        let fetched = c.fetch(&log, 1, 9, now + SEC(20));
        assert_eq!((fetched.missed, numbers(&fetched)), (2, vec![(4, 1)]));
        assert_eq!(c.fetch(&log, 1, 9, now).missed, 0);
        assert_eq!(c.info(&log, now).missed, 2);
    }
}
