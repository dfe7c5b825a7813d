//! One conversation of the record: its line, and what is expected of it.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use jiff::{SignedDuration, Timestamp};

use super::filter::ConversationFilter;
use super::{ConversationState, ConversationSummary, Observation, Outcome, What};

/// Most names of one kind in a line.
const NAMES_MAX: usize = 64;
/// Most requests, and most deliveries, whose end is waited for.
const EXPECTED_MAX: usize = 256;
/// A request without deadline is expected to be answered for so long.
const ANSWER_WITHIN: SignedDuration = SignedDuration::from_secs(60);
/// What a conversation takes beside its observations and its names.
const OVERHEAD_BYTES: usize = 512;

/// What is known beside the observation itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Aside {
    /// When nobody will want the answer any more.
    pub(super) deadline: Option<Timestamp>,
    /// It is an answer, and the last one of its request.
    pub(super) ends_request: bool,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Conversation {
    summary: ConversationSummary,
    kinds: Vec<String>,
    /// Its observations that the record has, by number.
    pub(super) seqs: VecDeque<u64>,
    /// What these take.
    pub(super) bytes: usize,
    /// Requests by where their answers go, and until when these are expected.
    requests: HashMap<String, Timestamp, foldhash::fast::RandomState>,
    /// Deliveries that come again: stream, consumer and offset.
    again: HashSet<(String, String, String), foldhash::fast::RandomState>,
    failed: bool,
}

impl Conversation {
    pub(super) fn new(id: &Arc<str>, first: Timestamp) -> Self {
        let summary = ConversationSummary {
            id: id.to_string(),
            first,
            last: first,
            messages: 0,
            bytes: 0,
            state: ConversationState::Quiet,
            participants: Vec::new(),
            personas: Vec::new(),
            tools: Vec::new(),
            skills: Vec::new(),
            retries: 0,
            dead_letters: 0,
            gaps: 0,
            errors: 0,
            omitted: 0,
        };
        Self {
            summary,
            kinds: Vec::new(),
            seqs: VecDeque::new(),
            bytes: OVERHEAD_BYTES,
            requests: HashMap::default(),
            again: HashSet::default(),
            failed: false,
        }
    }

    /// Takes note of an observation that the record keeps.
    pub(super) fn note(&mut self, seen: &Observation, aside: &Aside) {
        let line = &mut self.summary;
        line.first = line.first.min(seen.time);
        line.last = line.last.max(seen.time);
        let mut grown = 0;
        for name in seen.from.iter().chain(&seen.to) {
            grown += add(&mut line.participants, name);
        }
        let named = [
            (&mut line.personas, &seen.persona_id),
            (&mut line.tools, &seen.tool_id),
            (&mut line.skills, &seen.skill_id),
            (&mut self.kinds, &seen.kind),
        ];
        for (names, name) in named {
            grown += name.as_ref().map_or(0, |name| add(names, name));
        }
        self.bytes += grown;
        match seen.what {
            What::Published | What::Redriven => {
                line.messages += 1;
                line.bytes += seen.size;
                line.errors += u64::from(seen.outcome == Some(Outcome::AnsweredError));
                self.failed = false;
                if aside.ends_request {
                    self.answered(&seen.subject);
                }
                if let Some(reply) = &seen.reply {
                    let until = aside
                        .deadline
                        .unwrap_or(seen.time.saturating_add(ANSWER_WITHIN).unwrap_or(seen.time));
                    self.await_answer(reply, until, seen.time);
                }
            }
            What::NoResponders => {
                line.errors += 1;
                self.failed = true;
                if let Some(reply) = &seen.reply {
                    self.answered(reply);
                }
            }
            What::Handled => {
                line.retries += u64::from(seen.attempt.is_some_and(|attempt| attempt > 1));
                self.expect(seen);
            }
            What::DeadLettered => {
                line.dead_letters += 1;
                self.failed = true;
                self.expect(seen);
            }
            What::Gap => line.gaps += 1,
        }
    }

    /// An answer is expected there.
    fn await_answer(&mut self, reply: &str, until: Timestamp, now: Timestamp) {
        if self.requests.len() >= EXPECTED_MAX {
            // Those that nobody waits for any more make room.
            let bytes = &mut self.bytes;
            self.requests.retain(|reply, until| {
                let is_awaited = *until > now;
                *bytes -= if is_awaited { 0 } else { expected_bytes([reply]) };
                is_awaited
            });
        }
        if self.requests.len() < EXPECTED_MAX && self.requests.insert(reply.to_owned(), until).is_none() {
            self.bytes += expected_bytes([reply]);
        }
    }

    /// None is expected there any more.
    fn answered(&mut self, reply: &str) {
        if self.requests.remove(reply).is_some() {
            self.bytes -= expected_bytes([reply]);
        }
    }

    /// Whether the delivery comes again.
    fn expect(&mut self, seen: &Observation) {
        let (Some(stream), Some(consumer), Some(offset)) = (&seen.stream, &seen.consumer, &seen.offset)
        else {
            return;
        };
        let delivery = (stream.clone(), consumer.clone(), offset.clone());
        match seen.outcome {
            Some(Outcome::Nacked | Outcome::Cancelled) => {
                let bytes = expected_bytes([&delivery.0, &delivery.1, &delivery.2]);
                if self.again.len() < EXPECTED_MAX && self.again.insert(delivery) {
                    self.bytes += bytes;
                }
            }
            _ => {
                if self.again.remove(&delivery) {
                    self.bytes -= expected_bytes([&delivery.0, &delivery.1, &delivery.2]);
                }
            }
        }
    }

    /// An observation of it has left the record, or never came into it.
    pub(super) fn omit(&mut self) {
        self.summary.omitted += 1;
    }

    fn state(&self, now: Timestamp) -> ConversationState {
        if self.failed {
            return ConversationState::Failed;
        }
        match !self.again.is_empty() || self.requests.values().any(|until| *until > now) {
            true => ConversationState::Open,
            false => ConversationState::Quiet,
        }
    }

    pub(super) fn summary(&self, now: Timestamp) -> ConversationSummary {
        ConversationSummary { state: self.state(now), ..self.summary.clone() }
    }

    pub(super) fn is_wanted(&self, filter: &ConversationFilter, now: Timestamp) -> bool {
        let has = |names: &[String], wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| names.contains(wanted))
        };
        has(&self.summary.personas, &filter.persona)
            && has(&self.summary.tools, &filter.tool)
            && has(&self.summary.skills, &filter.skill)
            && has(&self.kinds, &filter.kind)
            && filter.state.is_none_or(|state| state == self.state(now))
    }
}

/// What something takes that is expected, by these texts.
fn expected_bytes<const N: usize>(texts: [&str; N]) -> usize {
    texts.into_iter().map(|text| text.len() + 32).sum()
}

/// Adds a name that is not there yet; returns what it takes.
fn add(names: &mut Vec<String>, name: &str) -> usize {
    if names.len() >= NAMES_MAX || names.iter().any(|known| known == name) {
        return 0;
    }
    names.push(name.to_owned());
    name.len() + 32
}
