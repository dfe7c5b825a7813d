//! Who is at which subject, and how long requests take, read off the record of what was seen.
//!
//! It reads on in the record when somebody asks, and only then: where nobody looks it costs nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use trunkline::observe::{Observation, Outcome, What};

use crate::admin::{LIST_MAX, LatencyJson, SubjectJson};

/// Seconds over which rates and latencies are taken.
const WINDOW: usize = 10;
/// Most names of one kind at a subject.
const NAMES_MAX: usize = 16;
/// Most requests whose answers are awaited; the oldest are forgotten.
const REQUESTS_MAX: usize = 4096;
/// Most latencies that are kept of the window.
const LATENCIES_MAX: usize = 4096;

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Census {
    subjects: BTreeMap<String, Place>,
    /// Messages of all of them, and of those without a place.
    published: u64,
    /// Subjects that found no room, and how often.
    left_out: BTreeSet<String>,
    /// When requests were published, by where their answers go.
    requests: HashMap<String, Timestamp>,
    /// Those in their order, some of which have been answered.
    order: VecDeque<String>,
    /// When answers came, and after how long.
    latencies: VecDeque<(Timestamp, Duration)>,
}

/// A subject.
#[derive(Debug)]
struct Place {
    publishers: BTreeSet<String>,
    responders: BTreeSet<String>,
    listeners: BTreeSet<String>,
    messages: u64,
    last: Timestamp,
    /// Messages by second, of the last [`WINDOW`].
    seconds: [(i64, u32); WINDOW],
}

impl Place {
    fn new(time: Timestamp) -> Self {
        Self {
            publishers: BTreeSet::new(),
            responders: BTreeSet::new(),
            listeners: BTreeSet::new(),
            messages: 0,
            last: time,
            seconds: [(0, 0); WINDOW],
        }
    }

    fn count(&mut self, time: Timestamp) {
        self.messages += 1;
        self.last = self.last.max(time);
        let second = time.as_second();
        let slot = &mut self.seconds[second.rem_euclid(WINDOW as i64) as usize];
        if slot.0 != second {
            *slot = (second, 0);
        }
        slot.1 += 1;
    }

    /// Messages a second over the whole seconds before this one.
    fn rate(&self, now: i64) -> f64 {
        let window = now - (WINDOW as i64 - 1)..now;
        let counted = self.seconds.iter().filter(|(second, _)| window.contains(second));
        counted.map(|(_, count)| f64::from(*count)).sum::<f64>() / (WINDOW - 1) as f64
    }
}

fn add(names: &mut BTreeSet<String>, name: &str) {
    if names.len() < NAMES_MAX && !names.contains(name) {
        names.insert(name.to_owned());
    }
}

impl Census {
    /// Takes note of something that was seen.
    pub(super) fn note(&mut self, seen: &Observation) {
        match seen.what {
            What::Published => self.published(seen),
            What::Handled => self.handled(seen),
            _ => {}
        }
    }

    fn published(&mut self, seen: &Observation) {
        self.published += 1;
        if let Some(asked) = self.requests.remove(&seen.subject) {
            let took = seen.time.duration_since(asked).unsigned_abs();
            self.latencies.push_back((seen.time, took));
            if self.latencies.len() > LATENCIES_MAX {
                self.latencies.pop_front();
            }
        }
        if let Some(reply) = &seen.reply {
            self.requests.insert(reply.clone(), seen.time);
            self.order.push_back(reply.clone());
            if self.order.len() > REQUESTS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.requests.remove(&oldest);
            }
        }
        let Some(place) = self.place(&shown(seen), seen.time) else { return };
        place.count(seen.time);
        if let Some(from) = &seen.from {
            add(&mut place.publishers, from);
        }
        seen.to.iter().for_each(|to| add(&mut place.listeners, to));
    }

    fn handled(&mut self, seen: &Observation) {
        let answers = matches!(seen.outcome, Some(Outcome::Answered | Outcome::AnsweredError));
        let Some(place) = self.place(&shown(seen), seen.time) else { return };
        let names = if answers { &mut place.responders } else { &mut place.listeners };
        seen.to.iter().for_each(|to| add(names, to));
    }

    /// The subject's place, if there is room for it.
    fn place(&mut self, name: &str, time: Timestamp) -> Option<&mut Place> {
        if !self.subjects.contains_key(name) {
            if self.subjects.len() >= LIST_MAX {
                if self.left_out.len() < LIST_MAX {
                    self.left_out.insert(name.to_owned());
                }
                return None;
            }
            self.subjects.insert(name.to_owned(), Place::new(time));
        }
        self.subjects.get_mut(name)
    }

    /// Messages that were seen.
    pub(super) fn messages(&self, _: Timestamp) -> u64 {
        self.published
    }

    /// The subjects, the busiest first, and how many were left out.
    pub(super) fn subjects(&self, now: Timestamp) -> (Vec<SubjectJson>, usize) {
        let names = |names: &BTreeSet<String>| names.iter().cloned().collect();
        let mut all: Vec<SubjectJson> = self
            .subjects
            .iter()
            .map(|(subject, place)| SubjectJson {
                subject: subject.clone(),
                publishers: names(&place.publishers),
                responders: names(&place.responders),
                listeners: names(&place.listeners),
                messages: place.messages,
                rate: place.rate(now.as_second()),
                last: place.last.to_string(),
            })
            .collect();
        // Those alike stay in the order of their names, so that a page of them does not flicker.
        all.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(b.messages.cmp(&a.messages)));
        (all, self.left_out.len())
    }

    /// How long the requests took that were answered lately; `None` where there were none.
    pub(super) fn latency(&self, now: Timestamp) -> Option<LatencyJson> {
        let window = Duration::from_secs(WINDOW as u64);
        let lately = |time: &Timestamp| now.duration_since(*time).unsigned_abs() <= window;
        let mut found: Vec<Duration> =
            self.latencies.iter().filter(|(time, _)| lately(time)).map(|(_, took)| *took).collect();
        found.sort_unstable();
        let micros = |took: &Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Some(LatencyJson {
            requests: found.len(),
            median_micros: micros(found.get(found.len() / 2)?),
            max_micros: micros(found.last()?),
        })
    }
}

/// A subject as it is listed, without what would make a line for each request and for each conversation: every inbox is the
/// one of its kind, and the id of a conversation is `*`.
fn shown(seen: &Observation) -> Cow<'_, str> {
    let subject = seen.subject.as_str();
    if subject.starts_with("_INBOX.") {
        return "_INBOX.>".into();
    }
    let conversation = seen.conversation_id.as_deref().filter(|id| !id.is_empty());
    match conversation.filter(|id| subject.split('.').any(|token| token == *id)) {
        Some(id) => {
            let tokens = subject.split('.').map(|token| if token == id { "*" } else { token });
            tokens.collect::<Vec<_>>().join(".").into()
        }
        None => subject.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + millis).expect("it is in this century")
    }

    fn published(millis: i64, subject: &str, reply: Option<&str>) -> Observation {
        let reply = reply.map(str::to_owned);
        let (from, to) = (Some("gateway".to_owned()), vec!["search".to_owned()]);
        Observation { reply, from, to, ..Observation::new(What::Published, at(millis), subject) }
    }

    #[test]
    fn a_subject_knows_who_is_at_it_and_how_busy_it_is() {
        let mut census = Census::default();
        for n in 0..90 {
            census.note(&published(n * 100, "nachos.tool.search.call", None));
        }
        let mut answered = published(9000, "nachos.tool.search.call", None);
        (answered.what, answered.outcome, answered.from) = (What::Handled, Some(Outcome::Answered), None);
        census.note(&answered);
        let (subjects, omitted) = census.subjects(at(9500));
        assert_eq!((subjects.len(), omitted), (1, 0));
        let found = &subjects[0];
        assert_eq!(
            (found.publishers.as_slice(), found.responders.as_slice()),
            (&["gateway".to_owned()][..], &["search".to_owned()][..])
        );
        assert_eq!((found.messages, found.rate), (90, 10.0));
        let (later, _) = census.subjects(at(60_000));
        assert_eq!(later[0].rate, 0.0, "nothing came lately");
    }

    #[test]
    fn requests_are_timed_until_their_first_answer_and_inboxes_are_one_subject() {
        let mut census = Census::default();
        assert_eq!(census.latency(at(0)), None);
        for (n, took) in [3, 5, 400].into_iter().enumerate() {
            let inbox = format!("_INBOX.{n}");
            census.note(&published(0, "nachos.llm.request", Some(&inbox)));
            census.note(&published(took, &inbox, None));
            census.note(&published(took + 9000, &inbox, None));
        }
        let latency = census.latency(at(1000)).expect("there were three");
        assert_eq!((latency.requests, latency.median_micros, latency.max_micros), (3, 5000, 400_000));
        assert_eq!(census.latency(at(60_000)), None);
        let names: Vec<_> = census.subjects(at(0)).0.into_iter().map(|subject| subject.subject).collect();
        assert_eq!(names, ["_INBOX.>", "nachos.llm.request"]);
    }

    #[test]
    fn conversations_do_not_make_a_subject_each() {
        let mut census = Census::default();
        for id in ["c-1", "c-2", "llm"] {
            let conversation_id = Some(id.to_owned());
            let subject = format!("nachos.llm.stream.{id}");
            census.note(&Observation { conversation_id, ..published(0, &subject, None) });
        }
        let names: Vec<_> = census.subjects(at(0)).0.into_iter().map(|subject| subject.subject).collect();
        assert_eq!(names, ["nachos.llm.stream.*", "nachos.*.stream.*"]);
    }

    #[test]
    fn a_flood_of_subjects_and_requests_stays_within_bounds() {
        let mut census = Census::default();
        for n in 0..3 * REQUESTS_MAX as i64 {
            census.note(&published(n, &format!("nachos.{n}"), Some(&format!("_INBOX.{n}"))));
        }
        assert_eq!((census.subjects.len(), census.left_out.len()), (LIST_MAX, LIST_MAX));
        assert_eq!(census.messages(at(0)), 3 * REQUESTS_MAX as u64);
        assert!(census.requests.len() <= REQUESTS_MAX && census.order.len() <= REQUESTS_MAX);
    }
}
