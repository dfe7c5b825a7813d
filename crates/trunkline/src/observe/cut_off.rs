//! Whose messages a client did not get that was cut off because it did not read.
//!
//! What waited for it is known in bytes alone. The record knows what it had been given last: as much of that as makes up those
//! bytes was on its way to it, and nobody can tell of which it has got a part after all.

use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashMap;
use jiff::Timestamp;

use super::conversation::Aside;
use super::kept::{Kept, KeptBody};
use super::record::Record;
use super::{Observation, What};

/// Subscriptions that are told of one by one.
const PATTERNS_MAX: usize = 16;
/// Observations that are looked through.
const SEARCHED_MAX: usize = 16_384;
/// Conversations that are told of.
const CONVERSATIONS_MAX: usize = 64;
/// What a message takes on its way beside its subject, headers and body, about.
const LINE_BYTES: u64 = 24;

/// A client of the server was cut off because it did not read.
#[derive(Debug)]
pub struct CutOff {
    /// The name that it goes by.
    pub name: String,
    /// Which bound it had reached.
    pub limit: &'static str,
    /// Bytes that waited for it.
    pub pending_bytes: u64,
    /// What it had subscribed to.
    pub patterns: Vec<String>,
    /// When.
    pub time: Timestamp,
    /// The same, to wait until everything before it was read.
    pub since: Instant,
}

impl CutOff {
    /// Of a client, at this moment. Of many patterns the first ones are kept.
    pub fn now(
        name: String,
        limit: &'static str,
        pending_bytes: usize,
        patterns: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            name,
            limit,
            pending_bytes: pending_bytes as u64,
            patterns: patterns.into_iter().take(PATTERNS_MAX + 1).collect(),
            time: Timestamp::now(),
            since: Instant::now(),
        }
    }

    /// What it weighs while it waits.
    pub(super) fn bytes(&self) -> usize {
        self.name.len() + self.patterns.iter().map(|pattern| pattern.len() + 32).sum::<usize>()
    }

    /// A gap for each conversation of which something was on its way to it, and one for each of its subscriptions, which is
    /// in no conversation.
    pub(super) fn tell(&self, record: &Record, out: &mut Vec<(Kept, Aside)>) {
        for lost in lost(record, &self.name, self.pending_bytes) {
            let messages = match lost.messages {
                1 => "1 message of this conversation was".to_owned(),
                many => format!("{many} messages of this conversation were"),
            };
            let reason = format!("slow consumer: cut off ({}) when {messages} on the way to it", self.limit);
            let seen = Observation {
                conversation_id: lost.first.seen.conversation_id.clone(),
                correlation_id: lost.first.seen.correlation_id.clone(),
                id: lost.first.seen.id.clone(),
                ..self.gap(&lost.first.seen.subject, reason)
            };
            out.push(kept(Some(lost.conversation), seen));
        }
        let reason = format!("slow consumer: cut off ({})", self.limit);
        if self.patterns.is_empty() {
            out.push(kept(None, self.gap(">", reason.clone())));
        }
        let more = if self.patterns.len() > PATTERNS_MAX { "; it had more subscriptions" } else { "" };
        for pattern in self.patterns.iter().take(PATTERNS_MAX) {
            out.push(kept(None, self.gap(pattern, format!("{reason}{more}"))));
        }
    }

    fn gap(&self, subject: &str, reason: String) -> Observation {
        let mut seen = Observation::new(What::Gap, self.time, subject);
        seen.to = vec![self.name.clone()];
        seen.reason = Some(reason);
        seen
    }
}

fn kept(conversation: Option<Arc<str>>, seen: Observation) -> (Kept, Aside) {
    (Kept { conversation, seen, body: KeptBody::Nothing }, Aside::default())
}

/// What was on its way to somebody of one conversation.
struct Lost {
    conversation: Arc<str>,
    /// The first of these messages.
    first: Arc<Kept>,
    messages: u64,
}

/// What was given to somebody last, up to so many bytes.
fn lost(record: &Record, name: &str, bytes: u64) -> Vec<Lost> {
    let mut found: HashMap<Arc<str>, Lost, foldhash::fast::RandomState> = HashMap::default();
    let mut left = bytes;
    for kept in record.backwards().take(SEARCHED_MAX) {
        let seen = &kept.seen;
        let is_given = matches!(seen.what, What::Published | What::Redriven | What::DeadLettered)
            && seen.to.iter().any(|to| to == name);
        if !is_given {
            continue;
        }
        if let Some(conversation) = &kept.conversation {
            let is_full = found.len() >= CONVERSATIONS_MAX;
            match found.get_mut(conversation) {
                Some(lost) => {
                    lost.first = kept.clone();
                    lost.messages += 1;
                }
                None if !is_full => {
                    let lost = Lost { conversation: conversation.clone(), first: kept.clone(), messages: 1 };
                    found.insert(conversation.clone(), lost);
                }
                None => {}
            }
        }
        let size = seen.size.saturating_add(seen.subject.len() as u64).saturating_add(LINE_BYTES);
        left = left.saturating_sub(size);
        if left == 0 {
            break;
        }
    }
    let mut all: Vec<Lost> = found.into_values().collect();
    all.sort_by_key(|lost| lost.first.seen.seq);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::ObserveOptions;

    fn given(record: &mut Record, conversation: &str, to: &str, size: u64) {
        let mut seen = Observation::new(What::Published, Timestamp::now(), "nachos.a");
        (seen.size, seen.to) = (size, vec![to.to_owned()]);
        seen.conversation_id = Some(conversation.to_owned());
        let (kept, aside) = kept(Some(conversation.into()), seen);
        record.insert(kept, &aside, 1_000_000);
    }

    #[test]
    fn what_was_given_last_is_what_did_not_arrive() {
        let mut record = Record::new(&ObserveOptions::default(), 0);
        for (conversation, to) in
            [("old", "slow"), ("a", "slow"), ("b", "other"), ("c", "slow"), ("a", "slow"), ("c", "slow")]
        {
            given(&mut record, conversation, to, 1000);
        }
        let cut = CutOff::now("slow".to_owned(), "max_pending", 3500, ["nachos.>".to_owned()]);
        let mut out = Vec::new();
        cut.tell(&record, &mut out);
        let told: Vec<(Option<&str>, &str)> =
            out.iter().map(|(kept, _)| (kept.conversation.as_deref(), kept.seen.subject.as_str())).collect();
        assert_eq!(told, [(Some("a"), "nachos.a"), (Some("c"), "nachos.a"), (None, "nachos.>")]);
        let reason = out[1].0.seen.reason.as_deref().unwrap();
        assert_eq!(
            reason,
            "slow consumer: cut off (max_pending) when 2 messages of this conversation were on the way to it"
        );
        assert!(out.iter().all(|(kept, _)| kept.seen.to == ["slow"] && kept.seen.missed.is_none()));
    }

    #[test]
    fn of_many_subscriptions_some_are_told_of_and_that_there_are_more() {
        let record = Record::new(&ObserveOptions::default(), 0);
        let patterns = (0..100_000).map(|n| format!("nachos.{n}"));
        let mut out = Vec::new();
        CutOff::now("slow".to_owned(), "max_pending", 1, patterns).tell(&record, &mut out);
        assert_eq!(out.len(), PATTERNS_MAX);
        assert!(out[0].0.seen.reason.as_ref().unwrap().ends_with("it had more subscriptions"));
        out.clear();
        CutOff::now("slow".to_owned(), "max_pending", 1, []).tell(&record, &mut out);
        assert_eq!((out.len(), out[0].0.seen.subject.as_str()), (1, ">"));
    }
}
