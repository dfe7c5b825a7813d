//! A conversation as a Mermaid sequence diagram, for documents and tickets.
//!
//! Names and subjects are somebody else's text in a language with keywords, comments and directives: whatever is not a
//! letter, a digit or one of a few harmless signs is written as the number of its character.

use std::fmt::Write as _;

use trunkline::observe::{ConversationRecord, What};

use super::line::{clip, is_steering};
use super::rows::{Row, rows};
use super::story::{Cause, Entry, Kind, Story, is_trouble, micros};
use super::words;

/// Mermaid draws no more than 50 000 characters unless it is told to; what would go beyond is counted instead.
const CHARS_MAX: usize = 45_000;
/// Most participants with a line of their own.
const PARTICIPANTS_MAX: usize = 40;
/// Most characters of a name, and of a text.
const NAME_MAX: usize = 48;
const TEXT_MAX: usize = 160;
/// Arrows of one message that went to several.
const ARROWS_MAX: usize = 6;

/// Who stands for those that have no name, who are too many, or whom nobody saw.
const UNKNOWN: &str = "?";
const OTHERS: &str = "others";
const NOBODY: &str = "nobody seen";

/// Draws the diagram.
pub(crate) fn mermaid(record: &ConversationRecord, payloads: bool) -> String {
    let story = Story::read(record);
    let mut rows = rows(&story, payloads);
    rows.retain(|row| story.entries[row.entries[0]].kind != Kind::Unseen);
    rows.sort_by_key(|row| story.entries[row.entries[0]].at);
    let mut people = People::default();
    let mut body = String::new();
    let mut left = rows.len();
    for row in &rows {
        let mut part = String::new();
        draw(&mut part, &mut people, &story, row, payloads);
        if body.chars().count() + part.chars().count() > CHARS_MAX {
            break;
        }
        body.push_str(&part);
        left -= 1;
    }
    let mut notes = Vec::new();
    if left > 0 {
        notes.push(format!("{} not drawn", words::count(left as u64, "message is", "messages are")));
    }
    if record.summary.omitted > 0 {
        let omitted = words::count(record.summary.omitted, "observation is", "observations are");
        notes.push(format!("{omitted} not in the record"));
    }
    if people.names.is_empty() {
        people.id(UNKNOWN);
        notes.push("no message is in the record".to_owned());
    }
    let mut text = String::from("sequenceDiagram\n");
    for (number, name) in people.names.iter().enumerate() {
        push(&mut text, format_args!("participant p{number} as {}", escape(name, NAME_MAX)));
    }
    text.push_str(&body);
    for note in notes {
        push(&mut text, format_args!("Note over p0: {}", escape(&note, TEXT_MAX)));
    }
    text
}

/// Those who take part, in the order in which they appear.
#[derive(Default)]
struct People {
    names: Vec<String>,
}

impl People {
    /// The number of a participant.
    fn id(&mut self, name: &str) -> usize {
        if let Some(number) = self.names.iter().position(|known| known == name) {
            return number;
        }
        match self.names.len() {
            PARTICIPANTS_MAX.. => self.names.len() - 1,
            last => {
                // The last place is for all who find none.
                self.names.push(if last + 1 == PARTICIPANTS_MAX { OTHERS } else { name }.to_owned());
                last
            }
        }
    }
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "    {line}");
}

/// The arrows and notes of a row.
fn draw(text: &mut String, people: &mut People, story: &Story<'_>, row: &Row, payloads: bool) {
    let entry = &story.entries[row.entries[0]];
    if entry.kind == Kind::Gap {
        for seen in &entry.events {
            let who = people.id(seen.to.first().map_or(UNKNOWN, String::as_str));
            push(text, format_args!("Note over p{who}: {}", escape(&words::gap(seen), TEXT_MAX)));
        }
        return;
    }
    let from = people.id(entry.sender().unwrap_or(UNKNOWN));
    let many = if row.entries.len() > 1 { format!(" ×{}", row.entries.len()) } else { String::new() };
    let at = words::micros(micros(story.start, entry.at));
    let title = escape(&format!("{}{many} (+{at})", words::title(entry)), TEXT_MAX);
    let receivers = receivers(entry);
    let to = receivers.first().map_or(from, |name| people.id(name));
    if entry.published.is_some() {
        for name in receivers.iter().take(ARROWS_MAX) {
            push(text, format_args!("p{from}{}p{}: {title}", arrow(entry, name), people.id(name)));
        }
        if receivers.len() > ARROWS_MAX {
            push(text, format_args!("Note over p{from}: and to {} more", receivers.len() - ARROWS_MAX));
        }
    } else {
        push(text, format_args!("Note over p{to}: {title} - its publication is not recorded"));
    }
    if let Some(carried) = entry.seen().filter(|_| payloads).and_then(words::body) {
        push(text, format_args!("Note over p{from}: {}", escape(&carried, TEXT_MAX)));
    }
    if entry.events.iter().any(|seen| is_trouble(seen)) {
        for seen in &entry.events {
            let who = seen.to.first().map_or(to, |name| people.id(name));
            push(text, format_args!("Note over p{who}: {}", escape(&words::event(seen), TEXT_MAX)));
        }
    }
    if story.lacks_answer(entry) {
        push(text, format_args!("Note over p{from}: no answer was seen"));
    }
}

/// To whom arrows go: at least one, which may be a stream.
fn receivers(entry: &Entry<'_>) -> Vec<String> {
    let names: Vec<String> = entry.receivers().into_iter().map(str::to_owned).collect();
    if !names.is_empty() {
        return names;
    }
    let stream = entry.published.and_then(|seen| seen.stream.as_deref());
    vec![stream.map_or_else(|| NOBODY.to_owned(), |stream| format!("stream {stream}"))]
}

fn arrow(entry: &Entry<'_>, receiver: &str) -> &'static str {
    let found_nobody = entry.events.iter().any(|seen| seen.what == What::NoResponders);
    let asks = entry.published.is_some_and(|seen| seen.reply.is_some());
    match entry.cause {
        _ if found_nobody || receiver == NOBODY => "-x",
        Cause::Answer(_) if entry.is_error() => "--x",
        Cause::Answer(_) => "-->>",
        _ if asks => "->>",
        _ => "-)",
    }
}

/// The text so that nothing in it means anything to Mermaid.
fn escape(text: &str, limit: usize) -> String {
    let mut escaped = String::new();
    for character in clip(text, limit).chars() {
        match character {
            // Unpaired marks and the like are replaced by now; this is for what `clip` has put in.
            _ if is_steering(character) => escaped.push(' '),
            _ if character.is_alphanumeric() || " ._/()+-→×…✗·".contains(character) => {
                escaped.push(character)
            }
            _ => {
                let _ = write!(escaped, "#{};", u32::from(character));
            }
        }
    }
    // A participant without a name is none to Mermaid.
    if escaped.trim().is_empty() { "(no name)".to_owned() } else { escaped }
}
