//! Subjects and patterns, against what the words say, written down as simply as can be.

use trunkline_core::{Pattern, Subject};

/// Most lines that are looked at: every pattern is compared with every other one.
const LINES_MAX: usize = 24;
/// Longest subject there is.
const SUBJECT_BYTES_MAX: usize = 1024;
/// A token that no input has, as it has a character in it that no subject may have.
const FRESH: &str = "\u{7f}";

fn is_valid(text: &str, wildcards: bool) -> bool {
    let tokens: Vec<&str> = text.split('.').collect();
    let is_token = |at: usize| match tokens[at] {
        "" => false,
        "*" => wildcards,
        ">" => wildcards && at + 1 == tokens.len(),
        token => !token.chars().any(|c| c.is_whitespace() || c.is_control()),
    };
    text.len() <= SUBJECT_BYTES_MAX && (0..tokens.len()).all(is_token)
}

fn matches(pattern: &[&str], subject: &[&str]) -> bool {
    match (pattern, subject) {
        ([">"], [_, ..]) => true,
        ([first, pattern @ ..], [token, subject @ ..]) => {
            (*first == "*" || first == token) && matches(pattern, subject)
        }
        (rest, left) => rest.is_empty() && left.is_empty(),
    }
}

fn overlaps(one: &[&str], other: &[&str]) -> bool {
    match (one, other) {
        ([">"], [_, ..]) | ([_, ..], [">"]) => true,
        ([a, one @ ..], [b, other @ ..]) => (*a == "*" || *b == "*" || a == b) && overlaps(one, other),
        (rest, left) => rest.is_empty() && left.is_empty(),
    }
}

/// Subjects that match `pattern`, such that what matches them all matches whatever it does: wildcards become a token that
/// no other pattern has, and `>` any number of them up to one more than `tokens`.
fn witnesses(pattern: &str, tokens: usize) -> Vec<String> {
    let literal = |token: &str| if token == "*" { FRESH.to_owned() } else { token.to_owned() };
    match pattern.strip_suffix('>') {
        Some(head) if head.is_empty() || head.ends_with('.') => {
            let head: Vec<String> = head.split_terminator('.').map(literal).collect();
            let tail = |more: usize| [head.clone(), vec![FRESH.to_owned(); more]].concat().join(".");
            (1..=tokens + 1).map(tail).collect()
        }
        _ => vec![pattern.split('.').map(literal).collect::<Vec<_>>().join(".")],
    }
}

/// Each line is a subject, a pattern, or neither.
pub(crate) fn subjects(data: &[u8]) {
    let (mut subjects, mut patterns) = (Vec::new(), Vec::new());
    for line in data.split(|byte| *byte == b'\n').take(LINES_MAX) {
        let text = std::str::from_utf8(line);
        let (subject, pattern) = (Subject::from_bytes(line), Pattern::from_bytes(line));
        assert_eq!(subject.is_ok(), text.is_ok_and(|text| is_valid(text, false)), "{line:?}");
        assert_eq!(pattern.is_ok(), text.is_ok_and(|text| is_valid(text, true)), "{line:?}");
        subjects.extend(subject);
        patterns.extend(pattern);
    }
    for pattern in &patterns {
        let tokens: Vec<&str> = pattern.as_str().split('.').collect();
        assert_eq!(pattern.tokens().collect::<Vec<_>>(), tokens);
        assert_eq!(pattern.as_subject().is_some(), !pattern.has_wildcard());
        for subject in &subjects {
            let expected = matches(&tokens, &subject.as_str().split('.').collect::<Vec<_>>());
            assert_eq!(pattern.matches(subject), expected, "{pattern} and {subject}");
        }
        for other in &patterns {
            let theirs: Vec<&str> = other.as_str().split('.').collect();
            assert_eq!(pattern.overlaps(other), overlaps(&tokens, &theirs), "{pattern} and {other}");
            let covered = witnesses(other.as_str(), tokens.len());
            let covered =
                covered.iter().all(|subject| matches(&tokens, &subject.split('.').collect::<Vec<_>>()));
            assert_eq!(pattern.covers(other), covered, "{pattern} and {other}");
        }
    }
}
