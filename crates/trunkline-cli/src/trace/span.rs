//! When something of a message was going on: its waits, its handlers, its retries.

use jiff::Timestamp;
use trunkline::observe::{Observation, What};

use super::story::{Cause, Entry, Kind, Story, ended, shifted};
use super::words;

/// What was going on from one time to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Somebody waited for the answer.
    Awaited,
    /// It waited for its handler.
    Waiting,
    /// It waited to be tried again.
    Pausing,
    /// Its handler ran.
    Handled,
}

/// What happened at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// It was published.
    Published,
    /// Its handler ended well, or it was answered.
    Done,
    /// It was published again.
    Again,
    /// Somebody was not given it.
    Missed,
    /// It failed, became a dead letter, or found nobody.
    Failed,
}

/// What went on with one message.
#[derive(Debug, Default)]
pub(super) struct Spans {
    /// What covers what, last on top.
    pub(super) doing: Vec<(Timestamp, Timestamp, Doing)>,
    /// On top of those.
    pub(super) marks: Vec<(Timestamp, Mark)>,
}

impl Story<'_> {
    /// The last thing that came of an entry: its answers, handlers, dead letters.
    pub(super) fn end_of(&self, index: usize) -> Timestamp {
        let entry = &self.entries[index];
        let events = entry.events.iter().map(|seen| ended(seen));
        let answers = self.answers(entry).map(|answer| answer.at);
        events.chain(answers).fold(entry.at, Timestamp::max)
    }

    /// A request, as far as can be told, that nothing came back for.
    pub(super) fn lacks_answer(&self, entry: &Entry<'_>) -> bool {
        // What is stored is answered by whoever works on it, in its own time.
        let asks = entry.published.is_some_and(|seen| seen.reply.is_some() && seen.stream.is_none());
        // That nobody was there, or that an answer was given, has been told then.
        let told = entry.events.iter().any(|seen| seen.what == What::NoResponders || seen.outcome.is_some());
        asks && !told && self.answers(entry).next().is_none()
    }

    fn answers<'s>(&'s self, entry: &'s Entry<'_>) -> impl Iterator<Item = &'s Entry<'s>> {
        let children = entry.children.iter().map(|child| &self.entries[*child]);
        children.filter(|child| matches!(child.cause, Cause::Answer(_)))
    }

    /// What went on with an entry.
    pub(super) fn spans(&self, index: usize) -> Spans {
        let entry = &self.entries[index];
        let mut spans = Spans::default();
        if entry.kind == Kind::Unseen {
            return spans;
        }
        if let Some(last) = self.answers(entry).map(|answer| answer.at).max() {
            spans.doing.push((entry.at, last, Doing::Awaited));
        }
        let from = entry.published.map(|seen| seen.time);
        let published = if entry.is_error() { Mark::Failed } else { Mark::Published };
        spans.marks.extend(from.map(|time| (time, published)));
        // Several consumers of one stream each have attempts of their own.
        let mut last_of: Vec<(Option<&str>, Timestamp)> = Vec::new();
        for seen in &entry.events {
            spans.marks.push((ended(seen), mark(seen)));
            if seen.what != What::Handled {
                continue;
            }
            let (start, end) = (seen.time, ended(seen));
            let who = seen.consumer.as_deref().or(seen.to.first().map(String::as_str));
            match last_of.iter_mut().find(|(known, _)| *known == who) {
                Some((_, last)) => {
                    spans.doing.push((*last, start, Doing::Pausing));
                    *last = end;
                }
                None => {
                    let waited = seen.waited_us.and_then(|waited| i64::try_from(waited).ok());
                    let waited = waited.map(|waited| shifted(start, -waited));
                    spans.doing.extend(from.or(waited).map(|from| (from, start, Doing::Waiting)));
                    last_of.push((who, end));
                }
            }
            spans.doing.push((start, end, Doing::Handled));
        }
        spans.doing.retain(|(from, to, _)| from < to);
        spans
    }
}

fn mark(seen: &Observation) -> Mark {
    match seen.what {
        What::Gap => Mark::Missed,
        _ if words::is_bad(seen) => Mark::Failed,
        What::Published | What::Redriven => Mark::Again,
        _ => Mark::Done,
    }
}
