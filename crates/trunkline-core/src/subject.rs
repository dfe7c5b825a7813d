//! Subjects, patterns and tokens: parsed once, never checked again.
//!
//! The syntax is that of NATS: tokens separated by dots, `*` for one token, `>` for one or more at the end.
//! See <https://docs.nats.io/nats-concepts/subjects>.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use bytestring::ByteString;

/// Longest subject or pattern, in bytes. It leaves room for a reply subject and the rest of a protocol
/// line within the default `server.limits.max_control_line` of 4096.
pub const SUBJECT_BYTES_MAX: usize = 1024;

/// Why a text is not a subject, a pattern or a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// There is no text.
    #[error("subject is empty")]
    Empty,
    /// Two dots follow each other, or a dot starts or ends the text.
    #[error("subject {0:?} has an empty token")]
    EmptyToken(String),
    /// White space or a control character, which would break the protocol line.
    #[error("subject {subject:?} contains {found:?}, which no subject may contain")]
    Character {
        /// The text that was refused.
        subject: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// A wildcard where only a literal subject may stand.
    #[error("subject {0:?} has a wildcard, a literal subject is needed here")]
    Wildcard(String),
    /// `>` anywhere but as the last token.
    #[error("pattern {0:?} has '>' before its last token")]
    TailNotLast(String),
    /// A dot in what has to be a single token.
    #[error("{0:?} is not a single token: '.' separates tokens")]
    Dot(String),
    /// The text is too long.
    #[error("subject is {length} bytes, limit is {SUBJECT_BYTES_MAX}")]
    TooLong {
        /// Length of the refused text in bytes.
        length: usize,
    },
    /// The bytes are not UTF-8.
    #[error("subject is not valid UTF-8")]
    NotUtf8,
}

/// Whether these are a literal subject of printable ASCII without any `*` and `>`: one cheap pass that clears almost every
/// subject there is. What it does not clear may be one all the same.
fn is_plain(bytes: &[u8]) -> bool {
    let mut before = b'.';
    for &byte in bytes {
        if !matches!(byte, b'!'..=b'~') || matches!(byte, b'*' | b'>') || (byte == b'.' && before == b'.') {
            return false;
        }
        before = byte;
    }
    before != b'.'
}

/// Checks the characters and tokens of `text`; wildcards as whole tokens are allowed when `pattern` is set.
fn check(text: &str, pattern: bool) -> Result<(), SubjectError> {
    if text.is_empty() {
        return Err(SubjectError::Empty);
    }
    if text.len() > SUBJECT_BYTES_MAX {
        return Err(SubjectError::TooLong { length: text.len() });
    }
    if is_plain(text.as_bytes()) {
        return Ok(());
    }
    if let Some(found) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(SubjectError::Character { subject: text.to_owned(), found });
    }
    let mut tokens = text.split('.').peekable();
    while let Some(token) = tokens.next() {
        match token {
            "" => return Err(SubjectError::EmptyToken(text.to_owned())),
            "*" | ">" if !pattern => return Err(SubjectError::Wildcard(text.to_owned())),
            ">" if tokens.peek().is_some() => return Err(SubjectError::TailNotLast(text.to_owned())),
            _ => {}
        }
    }
    Ok(())
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The text as bytes.
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }

            /// The text as bytes, without a copy.
            pub fn into_bytes(self) -> Bytes {
                self.0.into_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }

        impl FromStr for $name {
            type Err = SubjectError;

            fn from_str(text: &str) -> Result<Self, SubjectError> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = SubjectError;

            fn try_from(text: &str) -> Result<Self, SubjectError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = SubjectError;

            fn try_from(text: String) -> Result<Self, SubjectError> {
                Self::new(text)
            }
        }
    };
}

/// A literal subject: one or more tokens separated by dots, at most [`SUBJECT_BYTES_MAX`] bytes of UTF-8
/// without white space, control characters or wildcard tokens. Cheap to clone.
///
/// ```
/// use trunkline_core::Subject;
/// let subject: Subject = "nachos.tool.search.call".parse()?;
/// assert_eq!(subject.tokens().count(), 4);
/// assert!("nachos.tool.*.call".parse::<Subject>().is_err());
/// # Ok::<(), trunkline_core::SubjectError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(ByteString);
text_type!(Subject);

impl Subject {
    /// Parses a literal subject.
    ///
    /// # Errors
    /// Anything that is not a literal subject, see [`SubjectError`].
    pub fn new(text: impl Into<ByteString>) -> Result<Self, SubjectError> {
        let text = text.into();
        check(&text, false)?;
        Ok(Self(text))
    }

    /// Parses a literal subject from bytes of the wire, copying them.
    ///
    /// # Errors
    /// As [`Subject::new`], and [`SubjectError::NotUtf8`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SubjectError> {
        let text = std::str::from_utf8(bytes).map_err(|_| SubjectError::NotUtf8)?;
        Self::new(text)
    }

    /// The tokens in order; at least one.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// This subject followed by one more token.
    ///
    /// # Errors
    /// [`SubjectError::TooLong`] when the result would be over the limit.
    pub fn child(&self, token: &Token) -> Result<Self, SubjectError> {
        Self::new(format!("{self}.{token}"))
    }
}

/// A subject with wildcards allowed: `*` matches exactly one token, `>` as the last token matches one or more.
///
/// ```
/// use trunkline_core::{Pattern, Subject};
/// let pattern: Pattern = "nachos.channel.*.inbound".parse()?;
/// assert!(pattern.matches(&"nachos.channel.web.inbound".parse::<Subject>()?));
/// assert!(!pattern.matches(&"nachos.channel.inbound".parse::<Subject>()?));
/// # Ok::<(), trunkline_core::SubjectError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(ByteString);
text_type!(Pattern);

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// Anything that is not a pattern, see [`SubjectError`].
    pub fn new(text: impl Into<ByteString>) -> Result<Self, SubjectError> {
        let text = text.into();
        check(&text, true)?;
        Ok(Self(text))
    }

    /// Parses a pattern from bytes of the wire, copying them.
    ///
    /// # Errors
    /// As [`Pattern::new`], and [`SubjectError::NotUtf8`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SubjectError> {
        let text = std::str::from_utf8(bytes).map_err(|_| SubjectError::NotUtf8)?;
        Self::new(text)
    }

    /// The tokens in order; at least one.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether any token is a wildcard.
    pub fn has_wildcard(&self) -> bool {
        self.tokens().any(|token| token == "*" || token == ">")
    }

    /// The literal subject this pattern is, when it has no wildcard.
    pub fn as_subject(&self) -> Option<Subject> {
        (!self.has_wildcard()).then(|| Subject(self.0.clone()))
    }

    /// Whether `subject` matches.
    pub fn matches(&self, subject: &Subject) -> bool {
        self.matches_str(subject.as_str())
    }

    /// Whether the literal subject `text` matches; `text` is not checked to be a subject.
    pub fn matches_str(&self, text: &str) -> bool {
        let mut subject = text.split('.');
        for token in self.tokens() {
            match (token, subject.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (literal, Some(found)) if literal == found => {}
                _ => return false,
            }
        }
        subject.next().is_none()
    }

    /// Whether some subject matches both patterns.
    pub fn overlaps(&self, other: &Pattern) -> bool {
        let (mut mine, mut theirs) = (self.tokens(), other.tokens());
        loop {
            match (mine.next(), theirs.next()) {
                (None, None) => return true,
                (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(a), Some(b)) if a == "*" || b == "*" || a == b => {}
                _ => return false,
            }
        }
    }

    /// Whether every subject that matches `other` matches this pattern too.
    pub fn covers(&self, other: &Pattern) -> bool {
        let mut theirs = other.tokens();
        for token in self.tokens() {
            match (token, theirs.next()) {
                (">", Some(_)) => return true,
                ("*", Some(found)) if found != ">" => {}
                (literal, Some(found)) if literal == found => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }
}

impl From<Subject> for Pattern {
    fn from(subject: Subject) -> Self {
        Self(subject.0)
    }
}

impl From<&Subject> for Pattern {
    fn from(subject: &Subject) -> Self {
        Self(subject.0.clone())
    }
}

/// One token of a subject, such as the name of a channel, a tool or a queue group: not empty, without `.`,
/// `*`, `>`, white space or control characters. What does not fit is refused, never escaped.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(ByteString);
text_type!(Token);

impl Token {
    /// Parses a token.
    ///
    /// # Errors
    /// Anything that is not a single literal token, see [`SubjectError`].
    pub fn new(text: impl Into<ByteString>) -> Result<Self, SubjectError> {
        let text = text.into();
        if text.contains('.') {
            return Err(SubjectError::Dot(text.to_string()));
        }
        if text.contains(['*', '>']) {
            return Err(SubjectError::Wildcard(text.to_string()));
        }
        check(&text, false)?;
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_literal_tokens() {
        for good in ["a", "a.b", "nachos.tool.search.call", "_INBOX.x.1", "a*.b>c", "ä.ö"] {
            assert!(Subject::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a\tb", "a\r\n", "*", "a.*", "a.>", "a\u{0}"] {
            assert!(Subject::new(bad).is_err(), "{bad:?}");
        }
        assert!(Subject::new("x".repeat(SUBJECT_BYTES_MAX)).is_ok());
        assert_eq!(
            Subject::new("x".repeat(SUBJECT_BYTES_MAX + 1)),
            Err(SubjectError::TooLong { length: SUBJECT_BYTES_MAX + 1 })
        );
        assert_eq!(Subject::from_bytes(b"a\xff"), Err(SubjectError::NotUtf8));
    }

    #[test]
    fn patterns_allow_whole_token_wildcards() {
        for good in ["*", ">", "a.*", "a.>", "*.b.>", "a"] {
            assert!(Pattern::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a.>.b", ">.a", "a..>", "a. >"] {
            assert!(Pattern::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tokens_are_refused_not_escaped() {
        for bad in ["", "a.b", "*", "x>", "a b", "\n"] {
            assert!(Token::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Token::new("web-1").unwrap().as_str(), "web-1");
    }

    #[test]
    fn matching() {
        let cases = [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            (">", "a", true),
            (">", "a.b.c", true),
            ("a.>", "a", false),
            ("a.>", "a.b.c", true),
            ("*.*.>", "a.b", false),
        ];
        for (pattern, subject, expected) in cases {
            let (p, s) = (Pattern::new(pattern).unwrap(), Subject::new(subject).unwrap());
            assert_eq!(p.matches(&s), expected, "{pattern} on {subject}");
        }
    }

    #[test]
    fn overlap_is_symmetric_and_covers_is_not() {
        let cases = [
            ("a.b", "a.b", true),
            ("a.*", "*.b", true),
            ("a.>", "a", false),
            ("a.>", "a.b.c", true),
            ("a.*.c", "a.b.d", false),
            (">", "a.b", true),
            ("a.*", "a.b.>", false),
            ("a.*.>", "a.>", true),
        ];
        for (a, b, expected) in cases {
            let (pa, pb) = (Pattern::new(a).unwrap(), Pattern::new(b).unwrap());
            assert_eq!(pa.overlaps(&pb), expected, "{a} / {b}");
            assert_eq!(pb.overlaps(&pa), expected, "{b} / {a}");
        }
        let covers = |a: &str, b: &str| Pattern::new(a).unwrap().covers(&Pattern::new(b).unwrap());
        assert!(covers("a.>", "a.*") && covers("a.*", "a.b") && covers(">", ">") && covers("a.>", "a.b.>"));
        assert!(!covers("a.*", "a.>") && !covers("a.b", "a.*") && !covers("*", "a.b"));
    }
}
