//! What a conversation's observations tell: which messages there were, who caused whom, and what came of each.
//!
//! Observations come in the order in which they were seen, which is not always that in which they happened: libraries
//! report in batches, and each by its own clock. Nothing here relies on a cause standing before what it caused.

use std::collections::HashMap;
use std::iter;

use jiff::Timestamp;
use trunkline::observe::{ConversationRecord, Observation, Outcome, What};

/// A conversation as it is drawn.
#[derive(Debug)]
pub(crate) struct Story<'a> {
    /// In the order of time; behind them what is only known by name.
    pub(crate) entries: Vec<Entry<'a>>,
    /// Entries without a cause, in the order of time.
    pub(crate) roots: Vec<usize>,
    /// When it began.
    pub(crate) start: Timestamp,
    /// When the last thing was seen.
    pub(crate) end: Timestamp,
}

/// A message, or what stands in its place.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// What it is.
    pub(crate) kind: Kind,
    /// Its subject; empty of what is only known by name.
    pub(crate) subject: &'a str,
    /// Its id, where it has one.
    pub(crate) id: Option<&'a str>,
    /// When it was first seen.
    pub(crate) at: Timestamp,
    /// Its publication, where that was seen.
    pub(crate) published: Option<&'a Observation>,
    /// What came of it, in the order of time.
    pub(crate) events: Vec<&'a Observation>,
    /// Who must have published it, where it does not say so itself: an answer comes from who handled the request.
    answerer: Option<&'a str>,
    /// Where it comes from.
    pub(crate) cause: Cause,
    /// What it caused, in the order of time.
    pub(crate) children: Vec<usize>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message.
    Message,
    /// A message that others name as their cause, and that was not seen.
    Unseen,
    /// Messages that somebody was not given.
    Gap,
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// From outside: it names no cause, or only one in a circle.
    Nothing,
    /// From this one.
    Of(usize),
    /// It answers this one.
    Answer(usize),
}

impl Cause {
    /// The entry that it comes from.
    pub(crate) fn entry(self) -> Option<usize> {
        match self {
            Self::Nothing => None,
            Self::Of(entry) | Self::Answer(entry) => Some(entry),
        }
    }
}

impl<'a> Story<'a> {
    /// Reads a record.
    pub(crate) fn read(record: &'a ConversationRecord) -> Self {
        let mut observations: Vec<&Observation> = record.observations.iter().collect();
        observations.sort_by_key(|seen| (seen.time, seen.seq));
        let mut reader = Reader::default();
        observations.iter().for_each(|seen| reader.see(seen));
        reader.find_causes();
        let mut entries = reader.entries;
        break_circles(&mut entries);
        let roots = order(&mut entries);
        let start = observations.first().map_or(record.summary.first, |seen| seen.time);
        let end = observations.iter().map(|seen| ended(seen)).max().unwrap_or(record.summary.last);
        Self { entries, roots, start, end: end.max(start) }
    }
}

/// When what was observed was over: of a handler its beginning is told, and how long it ran.
pub(crate) fn ended(seen: &Observation) -> Timestamp {
    let took = i64::try_from(seen.took_us.unwrap_or_default()).unwrap_or(i64::MAX);
    shifted(seen.time, took)
}

/// The time so many microseconds later, or earlier; or the time itself where there is no such one.
pub(crate) fn shifted(time: Timestamp, micros: i64) -> Timestamp {
    let micros = time.as_microsecond().checked_add(micros);
    micros.and_then(|micros| Timestamp::from_microsecond(micros).ok()).unwrap_or(time)
}

/// Microseconds from one time to a later one.
pub(crate) fn micros(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_microsecond().saturating_sub(from.as_microsecond())).unwrap_or_default()
}

impl<'a> Entry<'a> {
    /// Everybody who was given it or handled it, each once.
    pub(crate) fn receivers(&self) -> Vec<&'a str> {
        let mut names = Vec::new();
        for name in self.published.into_iter().chain(self.events.iter().copied()).flat_map(|seen| &seen.to) {
            if !names.contains(&name.as_str()) {
                names.push(name.as_str());
            }
        }
        names
    }

    /// Who published it.
    pub(crate) fn sender(&self) -> Option<&'a str> {
        // Who handled it may still know who had published it.
        let seen = self.published.or_else(|| self.events.first().copied());
        seen.and_then(|seen| seen.from.as_deref()).or(self.answerer)
    }

    /// Who handled it, where that is one alone.
    fn only_handler(&self) -> Option<&'a str> {
        let handled = self.events.iter().copied().filter(|seen| seen.what == What::Handled);
        let mut names = handled.flat_map(|seen| &seen.to);
        let first = names.next()?;
        names.all(|name| name == first).then_some(first.as_str())
    }

    /// Whether anything of it is worth a line of its own.
    pub(crate) fn has_trouble(&self) -> bool {
        let has_events = self.events.iter().any(|seen| is_trouble(seen));
        self.kind != Kind::Message || self.published.is_none() || self.is_error() || has_events
    }

    /// Whether it is an error as an answer.
    pub(crate) fn is_error(&self) -> bool {
        self.published.is_some_and(|seen| seen.outcome == Some(Outcome::AnsweredError))
    }
}

/// Whether something went otherwise than at the first attempt and well.
pub(crate) fn is_trouble(seen: &Observation) -> bool {
    match seen.what {
        What::Handled => {
            seen.attempt.is_some_and(|attempt| attempt > 1)
                || !matches!(seen.outcome, None | Some(Outcome::Acked | Outcome::Answered))
        }
        _ => true,
    }
}

/// Reads observations one after the other.
#[derive(Default)]
struct Reader<'a> {
    entries: Vec<Entry<'a>>,
    by_id: HashMap<&'a str, Vec<usize>>,
    by_offset: HashMap<(&'a str, &'a str), usize>,
    /// The last one that asks for answers there.
    by_reply: HashMap<&'a str, usize>,
    /// The last one of a subject that has no id.
    nameless: HashMap<&'a str, usize>,
}

impl<'a> Reader<'a> {
    fn see(&mut self, seen: &'a Observation) {
        let known = self.find(seen);
        match (seen.what, known) {
            (What::Published, Some(index)) if self.entries[index].published.is_none() => {
                self.entries[index].published = Some(seen);
            }
            (What::Published, None) => self.add(Kind::Message, seen),
            (What::Gap, None) => self.add(Kind::Gap, seen),
            (_, Some(index)) => self.entries[index].events.push(seen),
            (_, None) => self.add(Kind::Message, seen),
        }
        let Some(index) = self.find(seen) else { return };
        if let (Some(stream), Some(offset)) = (&seen.stream, &seen.offset) {
            self.by_offset.insert((stream, offset), index);
        }
        if let Some(reply) = &seen.reply {
            self.by_reply.insert(reply, index);
        }
    }

    /// The entry of the message that the observation is of.
    fn find(&self, seen: &'a Observation) -> Option<usize> {
        if let Some(id) = seen.id.as_deref() {
            let same_id = self.by_id.get(id)?;
            let same_subject = same_id.iter().find(|index| self.entries[**index].subject == seen.subject);
            // The same message on another subject is another step of its way, when it was published there.
            return same_subject.or(same_id.first().filter(|_| seen.what != What::Published)).copied();
        }
        let stored = seen.stream.as_deref().zip(seen.offset.as_deref());
        let by_offset = || stored.and_then(|stored| self.by_offset.get(&stored));
        let by_reply = || seen.reply.as_deref().and_then(|reply| self.by_reply.get(reply));
        let found = match seen.what {
            What::Published => None,
            What::Gap => by_offset(),
            _ => by_offset().or_else(by_reply).or_else(|| self.nameless.get(seen.subject.as_str())),
        };
        found.copied()
    }

    fn add(&mut self, kind: Kind, seen: &'a Observation) {
        let index = self.entries.len();
        let is_published = seen.what == What::Published;
        match seen.id.as_deref() {
            Some(id) => self.by_id.entry(id).or_default().push(index),
            None if kind == Kind::Message => {
                self.nameless.insert(&seen.subject, index);
            }
            None => {}
        }
        if let Some(reply) = seen.reply.as_deref().filter(|_| kind == Kind::Message) {
            self.by_reply.insert(reply, index);
        }
        if let (Some(stream), Some(offset)) = (&seen.stream, &seen.offset) {
            self.by_offset.insert((stream, offset), index);
        }
        self.entries.push(Entry {
            kind,
            subject: &seen.subject,
            id: seen.id.as_deref(),
            at: seen.time,
            published: is_published.then_some(seen),
            events: if is_published { Vec::new() } else { vec![seen] },
            answerer: None,
            cause: Cause::Nothing,
            children: Vec::new(),
        });
    }

    /// Finds of each message where it comes from, and adds those that are only named.
    fn find_causes(&mut self) {
        let mut awaited: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            // Asked again, it waits at another place each time.
            for seen in entry.published.into_iter().chain(entry.events.iter().copied()) {
                let Some(reply) = seen.reply.as_deref() else { continue };
                let requests = awaited.entry(reply).or_default();
                if requests.last() != Some(&index) {
                    requests.push(index);
                }
            }
        }
        for index in 0..self.entries.len() {
            if self.entries[index].kind == Kind::Message {
                self.entries[index].cause = self.cause_of(index, &awaited);
            }
            if let Cause::Answer(request) = self.entries[index].cause {
                self.entries[index].answerer = self.entries[request].only_handler();
            }
        }
    }

    fn cause_of(&mut self, index: usize, awaited: &HashMap<&str, Vec<usize>>) -> Cause {
        let entry = &self.entries[index];
        let (id, at) = (entry.id, entry.at);
        let Some(seen) = entry.seen() else { return Cause::Nothing };
        let is_other = |other: &&usize| **other != index;
        if let Some(requests) = awaited.get(entry.subject) {
            // One inbox may serve many requests; the last one before the answer is the nearest guess.
            let earlier = requests.iter().filter(is_other).rfind(|request| self.entries[**request].at <= at);
            if let Some(request) = earlier.or_else(|| requests.iter().find(is_other)) {
                return Cause::Answer(*request);
            }
        }
        let named = seen.causation_id.as_deref().filter(|cause| Some(*cause) != id);
        if let Some(cause) = named {
            return Cause::Of(match self.by_id.get(cause).and_then(|known| known.first()) {
                Some(known) => *known,
                None => self.add_unseen(cause, at),
            });
        }
        // A copy of an earlier message, or one that only says where its chain began.
        let earlier = |id: &str| self.by_id.get(id)?.iter().find(is_other).copied();
        let copied = id.and_then(earlier).filter(|other| *other < index);
        let chain = || seen.correlation_id.as_deref().filter(|chain| Some(*chain) != id).and_then(earlier);
        copied.or_else(chain).map_or(Cause::Nothing, Cause::Of)
    }

    fn add_unseen(&mut self, id: &'a str, at: Timestamp) -> usize {
        let index = self.entries.len();
        self.by_id.entry(id).or_default().push(index);
        self.entries.push(Entry {
            kind: Kind::Unseen,
            subject: "",
            id: Some(id),
            at,
            published: None,
            events: Vec::new(),
            answerer: None,
            cause: Cause::Nothing,
            children: Vec::new(),
        });
        index
    }
}

impl<'a> Entry<'a> {
    /// The observation that says most about the message itself.
    pub(crate) fn seen(&self) -> Option<&'a Observation> {
        self.published.or_else(|| self.events.first().copied())
    }
}

/// Cuts every circle of causes at the entry that was seen first, so that following causes always ends.
fn break_circles(entries: &mut [Entry<'_>]) {
    // Number of the walk in which an entry was first met; 0 for none yet.
    let mut met = vec![0_usize; entries.len()];
    for first in 0..entries.len() {
        let mut next = Some(first);
        while let Some(index) = next.filter(|index| met[*index] == 0) {
            met[index] = first + 1;
            next = entries[index].cause.entry();
        }
        // Met in this very walk: from here it leads back to here.
        let Some(meeting) = next.filter(|index| met[*index] == first + 1) else { continue };
        let circle = iter::successors(Some(meeting), |index| {
            entries[*index].cause.entry().filter(|next| *next != meeting)
        });
        if let Some(earliest) = circle.min_by_key(|index| (entries[*index].at, *index)) {
            entries[earliest].cause = Cause::Nothing;
        }
    }
}

/// Hangs every entry below its cause, and returns those that have none.
fn order(entries: &mut [Entry<'_>]) -> Vec<usize> {
    let mut by_time: Vec<usize> = (0..entries.len()).collect();
    by_time.sort_by_key(|index| entries[*index].at);
    let mut roots = Vec::new();
    for index in by_time {
        match entries[index].cause.entry() {
            Some(cause) => entries[cause].children.push(index),
            None => roots.push(index),
        }
    }
    roots
}
