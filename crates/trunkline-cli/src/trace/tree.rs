//! The tree: who caused whom, with answers under their requests, and what went wrong at its message.

use anstyle::{AnsiColor, Style};

use super::line::{Line, clip, clip_middle, width, wrap};
use super::rows::Row;
use super::story::{Cause, Entry, Kind, Story, ended, is_trouble, micros};
use super::words;

const SUBJECT: Style = AnsiColor::Cyan.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const ODD: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

/// Columns on the right: when it was published, and how long until the last thing that came of it.
const AT: usize = 11;
const TOOK: usize = 10;
/// Columns that the names of sender and receivers have at least.
const FLOW_MIN: usize = 16;
/// Lines of one payload.
const BODY_LINES_MAX: usize = 8;

/// Draws these rows.
pub(super) fn draw(story: &Story<'_>, rows: &[Row], columns: usize, payloads: bool) -> Vec<Line> {
    let mut head = Line::default().with(DIM, "who caused whom");
    head.push_right(DIM, "at", columns - TOOK);
    head.push_right(DIM, "took", columns);
    let mut lines = vec![head];
    for row in rows {
        lines.push(first_line(story, row, columns));
        for index in &row.entries {
            lines.extend(further_lines(story, row, &story.entries[*index], columns, payloads));
        }
    }
    lines
}

fn first_line(story: &Story<'_>, row: &Row, columns: usize) -> Line {
    let entry = &story.entries[row.entries[0]];
    let room = columns.saturating_sub(AT + TOOK + 1);
    let mut line = Line::default().with(DIM, &row.branch());
    let style = match entry.kind {
        Kind::Message if entry.is_error() => BAD,
        Kind::Message => SUBJECT,
        Kind::Unseen => DIM,
        Kind::Gap => ODD,
    };
    if matches!(entry.cause, Cause::Answer(_)) {
        line.push(DIM, "↩ ");
    }
    let many = match row.entries.len() {
        1 => String::new(),
        count => format!(" ×{count}"),
    };
    let flow = words::flow(entry);
    let for_title = room.saturating_sub(line.width() + width(&many));
    let for_title = match flow.is_empty() {
        true => for_title,
        // The names move out of the way only so far.
        false => for_title.saturating_sub(width(&flow).min(FLOW_MIN) + 2).max(for_title / 2),
    };
    line.push(style, &clip_middle(&words::title(entry), for_title));
    line.push(Style::new(), &many);
    let left = room.saturating_sub(line.width() + 2);
    if !flow.is_empty() && left > 4 {
        line.push(Style::new(), "  ");
        line.push(Style::new(), &clip(&flow, left));
    }
    if entry.kind != Kind::Unseen {
        let at = micros(story.start, entry.at);
        line.push_right(Style::new(), &format!("+{}", words::micros(at)), columns - TOOK);
        if let Some(took) = took(story, row) {
            line.push_right(DIM, &words::micros(took), columns);
        }
    }
    line
}

/// Microseconds from the row's beginning to the last thing that came of it, where something did.
fn took(story: &Story<'_>, row: &Row) -> Option<u64> {
    let (first, last) = (row.entries.first()?, row.entries.last()?);
    let end = story.end_of(*last);
    (end > story.entries[*first].at).then(|| micros(story.entries[*first].at, end))
}

fn further_lines(
    story: &Story<'_>,
    row: &Row,
    entry: &Entry<'_>,
    columns: usize,
    payloads: bool,
) -> Vec<Line> {
    let mut lines = Vec::new();
    let margin = row.margin();
    let room = columns.saturating_sub(width(&margin));
    let mut say = |style: Style, text: &str, lines_max: usize| {
        let (parts, left) = wrap(text, room.max(8), lines_max);
        for part in parts {
            lines.push(Line::default().with(DIM, &margin).with(style, &part));
        }
        if left > 0 {
            let text = format!("… {} more (--json has all of it)", words::bytes(left as u64));
            lines.push(Line::default().with(DIM, &margin).with(DIM, &text));
        }
    };
    if let Some(text) = entry.published.or(entry.seen()).filter(|_| payloads).and_then(words::body) {
        say(DIM, &text, BODY_LINES_MAX);
    }
    if entry.kind != Kind::Message {
        return lines;
    }
    if let Some(reason) = entry.published.filter(|_| entry.is_error()).and_then(|seen| seen.reason.as_ref()) {
        say(BAD, &format!("✗ {reason}"), 3);
    }
    if entry.published.is_none() {
        say(DIM, "its publication is not recorded", 1);
    }
    // Where one attempt went wrong, those that went well tell how it ended.
    if entry.events.iter().any(|seen| is_trouble(seen)) {
        for seen in &entry.events {
            let (mark, style) = match words::is_bad(seen) {
                true => ("✗", BAD),
                false => ("·", Style::new()),
            };
            let at = words::micros(micros(story.start, ended(seen)));
            say(style, &format!("{mark} {} (+{at})", words::event(seen)), 3);
        }
    }
    if story.lacks_answer(entry) {
        say(ODD, "no answer was seen", 1);
    }
    lines
}
