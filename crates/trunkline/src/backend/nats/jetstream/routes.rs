//! Which subjects are stored.
//!
//! A copy of the account's streams with their patterns, and the time it was asked for. It decides for a subject when it
//! is at most [`AGE_MAX`] old, and for a subject that this process publishes to for the first time only when it was
//! asked for after that publish had begun. A change made by this process is known at once.
//!
//! In a cluster there is no such copy as long as any stream has no leader. Then each subject is asked for by itself.

use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;
use trunkline_core::{Pattern, Subject};

/// Longest time until a stream that another process has made or removed is noticed.
pub(super) const AGE_MAX: Duration = Duration::from_secs(1);
/// From this age on a copy that is in use is fetched anew, so that it never gets too old under a steady load.
const AGE_STALE: Duration = Duration::from_millis(500);
/// Most subjects whose answer is remembered; past it all are forgotten and asked for again.
const SUBJECTS_MAX: usize = 65_536;

/// What is known about a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Some stream stores it, or none, as of a copy that counts.
    Known { stored: bool },
    /// The same, as of a copy that is too old to be relied upon.
    Old { stored: bool },
    /// This process has not asked for it yet.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Routes {
    patterns: Vec<Pattern>,
    /// When the copy was asked for; `None` before the first, and after a change of our own.
    asked: Option<Instant>,
    /// Answers of this copy, and of who was asked for one subject alone.
    answers: HashMap<Subject, Answer, foldhash::fast::RandomState>,
    /// Some answer may not be what the copy says.
    asked_apart: bool,
}

/// Whether a subject is stored.
#[derive(Debug, Clone, Copy)]
struct Answer {
    stored: bool,
    /// When that was asked for; the copy may be newer.
    asked: Instant,
}

impl Routes {
    /// Takes a copy that was asked for at this time.
    pub(super) fn replace(&mut self, patterns: Vec<Pattern>, asked: Instant) {
        // Answers need not come in the order of their questions.
        if self.asked.is_some_and(|newer| newer > asked) {
            return;
        }
        self.asked = Some(asked);
        if self.patterns == patterns && !self.asked_apart {
            return;
        }
        self.patterns = patterns;
        self.asked_apart = false;
        for (subject, answer) in &mut self.answers {
            match answer.asked <= asked {
                true => answer.stored = self.patterns.iter().any(|pattern| pattern.matches(subject)),
                // What was asked for later, and alone, knows better.
                false => self.asked_apart = true,
            }
        }
    }

    /// Forgets everything: a stream has changed.
    pub(super) fn forget(&mut self) {
        self.asked = None;
        self.answers.clear();
    }

    /// Forgets what is known of one subject.
    pub(super) fn forget_one(&mut self, subject: &Subject) {
        self.answers.remove(subject);
    }

    /// Whether the subject is stored, for a publish that begins now.
    pub(super) fn route(&self, subject: &Subject, now: Instant) -> Route {
        let Some(&Answer { stored, asked }) = self.answers.get(subject) else { return Route::Unknown };
        let asked = self.asked.map_or(asked, |copied| copied.max(asked));
        match now.saturating_duration_since(asked) <= AGE_MAX {
            true => Route::Known { stored },
            false => Route::Old { stored },
        }
    }

    /// Whether the subject is stored, for a publish that began at `since`; remembers the answer. `None` when the copy
    /// cannot tell.
    pub(super) fn learn(&mut self, subject: &Subject, since: Instant, now: Instant) -> Option<bool> {
        match self.route(subject, now) {
            Route::Known { stored } => Some(stored),
            Route::Old { .. } | Route::Unknown => {
                let asked = self.asked.filter(|asked| *asked >= since)?;
                let stored = self.patterns.iter().any(|pattern| pattern.matches(subject));
                self.remember(subject, stored, asked);
                Some(stored)
            }
        }
    }

    /// Remembers what was asked for one subject alone at this time.
    pub(super) fn note(&mut self, subject: &Subject, stored: bool, asked: Instant) {
        self.asked_apart = true;
        self.remember(subject, stored, asked);
    }

    fn remember(&mut self, subject: &Subject, stored: bool, asked: Instant) {
        if self.answers.len() >= SUBJECTS_MAX {
            self.answers.clear();
        }
        self.answers.insert(subject.clone(), Answer { stored, asked });
    }

    /// Whether it is time to fetch a new copy.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.asked.is_none_or(|asked| now - asked > AGE_STALE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_first_publish_is_decided_by_a_copy_that_was_asked_for_after_it_began() {
        let (subject, start) = ("a.b".parse().unwrap(), Instant::now());
        let mut routes = Routes::default();
        assert_eq!(routes.route(&subject, start), Route::Unknown);
        routes.replace(vec![], start);
        assert_eq!(routes.learn(&subject, start + MS(1), start + MS(2)), None, "asked too early");
        routes.replace(vec!["a.*".parse().unwrap()], start + MS(3));
        assert_eq!(routes.learn(&subject, start + MS(1), start + MS(4)), Some(true));
        assert_eq!(routes.route(&subject, start + MS(5)), Route::Known { stored: true });
    }

    #[test]
    fn an_answer_for_one_subject_is_as_good_as_a_copy() {
        let (subject, start) = ("a.b".parse().unwrap(), Instant::now());
        let mut routes = Routes::default();
        routes.note(&subject, true, start);
        assert_eq!(routes.route(&subject, start + MS(1000)), Route::Known { stored: true });
        assert_eq!(routes.route(&subject, start + MS(1001)), Route::Old { stored: true });
        assert!(routes.is_stale(start), "there is no copy");
        routes.replace(vec![], start + MS(1001));
        assert_eq!(routes.route(&subject, start + MS(1002)), Route::Known { stored: false });
    }

    #[test]
    fn answers_that_overtake_each_other_leave_the_newest() {
        let (subject, start) = ("a.b".parse().unwrap(), Instant::now());
        let mut routes = Routes::default();
        routes.note(&subject, true, start + MS(5));
        routes.replace(vec![], start + MS(4));
        assert_eq!(routes.route(&subject, start + MS(6)), Route::Known { stored: true }, "asked for before");
        routes.replace(vec![], start + MS(7));
        assert_eq!(routes.route(&subject, start + MS(8)), Route::Known { stored: false });
        routes.replace(vec!["a.*".parse().unwrap()], start + MS(6));
        assert_eq!(routes.route(&subject, start + MS(8)), Route::Known { stored: false }, "asked for before");
    }

    #[test]
    fn an_old_copy_is_said_to_be_old_and_a_new_one_decides_anew() {
        let (subject, start) = ("a.b".parse().unwrap(), Instant::now());
        let mut routes = Routes::default();
        routes.replace(vec!["a.*".parse().unwrap()], start);
        assert_eq!(routes.learn(&subject, start, start), Some(true));
        assert!(!routes.is_stale(start + MS(500)) && routes.is_stale(start + MS(501)));
        assert_eq!(routes.route(&subject, start + MS(1001)), Route::Old { stored: true });
        routes.replace(vec![], start + MS(1001));
        assert_eq!(routes.route(&subject, start + MS(1002)), Route::Known { stored: false });
        routes.forget();
        assert_eq!(routes.route(&subject, start + MS(1003)), Route::Unknown);
    }
}
