//! Subjects and patterns as a configuration needs them: whether a text is one, and whether two patterns overlap.

use std::borrow::Cow;
use std::fmt;

use serde_json::Value as Json;

use super::settings::{Fault, Leaf, Rule};

/// Longest subject or pattern, in bytes.
const SUBJECT_BYTES_MAX: usize = 1024;

/// A pattern, for `subscribe` optionally with the queue groups it is restricted to: `orders.> workers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectRule {
    /// The subjects meant.
    pub pattern: Pattern,
    /// A pattern of queue group names; `None` means with or without a queue group.
    pub queue: Option<Pattern>,
}

/// A subject with wildcards: `*` matches exactly one token, `>` as the last token one or more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(String);

impl Pattern {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether some subject matches both patterns.
    pub fn overlaps(&self, other: &Pattern) -> bool {
        let (mut ours, mut theirs) = (self.0.split('.'), other.0.split('.'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (None, Some(_)) | (Some(_), None) => return false,
                // `>` takes one token or more, and the other side has at least this one.
                (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    fn parse(text: &str) -> Result<Pattern, Fault> {
        check(text, true).map_err(|reason| Fault::Subject(reason.to_owned()))?;
        Ok(Pattern(text.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text can be one token of a subject.
pub(crate) fn is_token(text: &str) -> bool {
    !text.contains(['.', '*', '>']) && check(text, false).is_ok()
}

/// Says what keeps a text from being a subject, or a pattern where wildcards are allowed.
pub(crate) fn check(text: &str, wildcards: bool) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("a subject cannot be empty");
    }
    if text.len() > SUBJECT_BYTES_MAX {
        return Err("a subject has at most 1024 bytes");
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("a subject has no white space and no control characters");
    }
    let mut tokens = text.split('.').peekable();
    while let Some(token) = tokens.next() {
        match token {
            "" => return Err("a token between two dots cannot be empty"),
            "*" | ">" if !wildcards => return Err("no wildcards are allowed here"),
            ">" if tokens.peek().is_some() => return Err("> stands only at the end"),
            "*" | ">" => {}
            _ => {}
        }
    }
    Ok(())
}

impl Leaf for Pattern {
    fn expected(_: &Rule) -> Cow<'static, str> {
        "a pattern such as orders.>".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        Pattern::parse(text)
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
        let (pattern, queue) = match text.split_once(' ') {
            Some((pattern, queue)) => (pattern, Some(Pattern::parse(queue.trim())?)),
            None => (text, None),
        };
        Ok(SubjectRule { pattern: Pattern::parse(pattern)?, queue })
    }

    fn render(&self, _: &Rule) -> Json {
        match &self.queue {
            Some(queue) => format!("{} {queue}", self.pattern).into(),
            None => self.pattern.as_str().into(),
        }
    }
}
