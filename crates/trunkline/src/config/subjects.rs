//! Patterns as values of keys.

use std::borrow::Cow;

use serde_json::Value as Json;
use trunkline_core::{Pattern, SubjectError};

use super::settings::{Fault, Leaf, Rule};

/// A pattern, for `subscribe` optionally with the queue groups it is restricted to: `orders.> workers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectRule {
    /// The subjects meant.
    pub pattern: Pattern,
    /// A pattern of queue group names; `None` means with or without a queue group.
    pub queue: Option<Pattern>,
}

/// Parses a pattern, with the reason where it is none.
fn pattern(text: &str) -> Result<Pattern, Fault> {
    text.parse().map_err(|error: SubjectError| Fault::Subject(error.to_string()))
}

impl Leaf for Pattern {
    fn expected(_: &Rule) -> Cow<'static, str> {
        "a pattern such as orders.>".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        pattern(text)
    }

    fn render(&self, _: &Rule) -> Json {
        self.as_str().into()
    }
}

impl Leaf for SubjectRule {
    fn expected(_: &Rule) -> Cow<'static, str> {
        "a pattern such as orders.>".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        let (subjects, queue) = match text.split_once(' ') {
            Some((subjects, queue)) => (subjects, Some(pattern(queue.trim())?)),
            None => (text, None),
        };
        Ok(SubjectRule { pattern: pattern(subjects)?, queue })
    }

    fn render(&self, _: &Rule) -> Json {
        match &self.queue {
            Some(queue) => format!("{} {queue}", self.pattern).into(),
            None => self.pattern.as_str().into(),
        }
    }
}
