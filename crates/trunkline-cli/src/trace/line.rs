//! Lines of text with styles, measured in columns of a terminal.
//!
//! Whatever becomes part of a line is cleaned first: names and payloads are somebody else's, and must not steer a terminal.

use std::fmt;

use anstyle::Style;
use unicode_width::UnicodeWidthChar;

/// Text that is shown in the place of what would steer the terminal.
const REPLACEMENT: char = '\u{fffd}';

/// One line, without its end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line {
    spans: Vec<(Style, String)>,
    width: usize,
}

impl Line {
    /// A line of plain text.
    pub(crate) fn plain(text: &str) -> Self {
        Self::default().with(Style::new(), text)
    }

    /// The line and this text behind it.
    pub(crate) fn with(mut self, style: Style, text: &str) -> Self {
        self.push(style, text);
        self
    }

    /// Adds text.
    pub(crate) fn push(&mut self, style: Style, text: &str) {
        let text = clean(text);
        self.width += width(&text);
        self.spans.push((style, text));
    }

    /// Adds spaces up to this column.
    pub(crate) fn pad(&mut self, column: usize) {
        let missing = column.saturating_sub(self.width);
        self.push(Style::new(), &" ".repeat(missing));
    }

    /// Adds text that ends at this column.
    pub(crate) fn push_right(&mut self, style: Style, text: &str, column: usize) {
        self.pad(column.saturating_sub(width(&clean(text))));
        self.push(style, text);
    }

    /// Columns that it takes.
    pub(crate) fn width(&self) -> usize {
        self.width
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (style, text)) in self.spans.iter().enumerate() {
            // Spaces that only align what follows are left out where nothing does.
            let is_last = self.spans[index + 1..].iter().all(|(_, text)| text.trim().is_empty());
            let text = if is_last { text.trim_end() } else { text };
            match (text.is_empty(), style.is_plain()) {
                (true, _) => {}
                (_, true) => f.write_str(text)?,
                _ => write!(f, "{style}{text}{style:#}")?,
            }
        }
        Ok(())
    }
}

/// The text in one line, without what would move the cursor, change the terminal, or turn the order of characters round.
pub(crate) fn clean(text: &str) -> String {
    let shown = |character: char| match character {
        '\n' | '\r' | '\t' => ' ',
        _ if is_steering(character) => REPLACEMENT,
        _ => character,
    };
    text.chars().map(shown).collect()
}

/// Control characters, line separators, and the marks and overrides of writing direction.
pub(crate) fn is_steering(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Columns that the text takes.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(character: char) -> usize {
    character.width().unwrap_or(0)
}

/// The beginning of the text, cleaned, in at most so many columns, with a mark where something is left out.
pub(crate) fn clip(text: &str, limit: usize) -> String {
    let text = clean(text);
    if width(&text) <= limit {
        return text;
    }
    let mut clipped = head(&text, limit.saturating_sub(1)).to_owned();
    clipped.extend((limit > 0).then_some('…'));
    clipped
}

/// Both ends of the text, cleaned, in at most so many columns: what tells subjects apart is often at their end.
pub(crate) fn clip_middle(text: &str, limit: usize) -> String {
    let text = clean(text);
    if width(&text) <= limit || limit < 8 {
        return clip(&text, limit);
    }
    let kept = limit - 1;
    let tail: String = {
        let reversed: String = text.chars().rev().collect();
        head(&reversed, kept / 2).chars().rev().collect()
    };
    format!("{}…{tail}", head(&text, kept - width(&tail)))
}

/// As much of the text as fits.
fn head(text: &str, limit: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, character)| {
        used += columns(*character);
        used > limit
    });
    end.map_or(text, |(index, _)| &text[..index])
}

/// The text, cleaned, in lines of at most so many columns; and how many bytes of it did not find a place.
pub(crate) fn wrap(text: &str, limit: usize, lines_max: usize) -> (Vec<String>, usize) {
    let text = clean(text);
    let (mut rest, mut lines) = (text.as_str(), Vec::new());
    while !rest.is_empty() && lines.len() < lines_max {
        // A character that is wider than a line takes one nevertheless, or there would be no end.
        let first = rest.chars().next().map_or(0, char::len_utf8);
        let mut part = head(rest, limit).len().max(first);
        // Between words, unless a word alone is most of the line.
        if part < rest.len()
            && let Some(space) = rest[..part].rfind(' ').filter(|space| *space >= part / 2)
        {
            part = space + 1;
        }
        lines.push(rest[..part].trim_end().to_owned());
        rest = &rest[part..];
    }
    (lines, rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_left() {
        let line = Line::plain("a\x1b[2Jb\u{9b}c\u{202e}d\ne\u{2066}f\x07").to_string();
        assert_eq!(line, "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d e\u{fffd}f\u{fffd}");
        assert_eq!(clip("\x1b\x1b\x1b", 2), "\u{fffd}…");
    }

    #[test]
    fn texts_are_cut_by_columns_and_not_within_a_character() {
        for (text, limit, end, middle) in [
            ("short", 10, "short", "short"),
            ("nachos.tool.x.call", 10, "nachos.to…", "nacho…call"),
            ("天気予報の道具です", 8, "天気予…", "天気…す"),
            ("天気", 0, "", ""),
            ("é́é́é́é́é́é́é́é́é́", 9, "é́é́é́é́é́é́é́é́é́", "é́é́é́é́é́é́é́é́é́"),
        ] {
            assert_eq!(clip(text, limit), end, "{text}");
            assert_eq!(clip_middle(text, limit), middle, "{text}");
            assert!(width(&clip(text, limit)) <= limit && width(&clip_middle(text, limit)) <= limit);
        }
    }

    #[test]
    fn text_is_wrapped_and_what_is_left_is_told() {
        assert_eq!(wrap("abcdefg", 3, 9), (vec!["abc".into(), "def".into(), "g".into()], 0));
        assert_eq!(wrap("abcdefg", 3, 2), (vec!["abc".into(), "def".into()], 1));
        assert_eq!(wrap("one two three", 9, 9), (vec!["one two".into(), "three".into()], 0));
        assert_eq!(wrap("天気", 1, 9), (vec!["天".into(), "気".into()], 0));
        assert_eq!(wrap("", 3, 9), (vec![], 0));
    }

    #[test]
    fn columns_align_also_behind_wide_characters() {
        for text in ["abcd", "天気"] {
            let mut line = Line::plain(text);
            line.push_right(Style::new(), "9 ms", 12);
            assert_eq!(line.width(), 12);
            assert_eq!(line.to_string(), format!("{text}    9 ms"));
        }
    }
}
