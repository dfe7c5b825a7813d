//! The time line: a row for each message, with a bar from its publication to the last thing that came of it.
//!
//! Long times in which nothing went on are cut out of the scale and said instead; else a person who thinks for ten
//! minutes makes everything else invisible.

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;
use trunkline::observe::What;

use super::line::{Line, clip, clip_middle, width};
use super::rows::Row;
use super::span::{Doing, Mark, Spans};
use super::story::{Cause, Entry, Kind, Story, micros};
use super::words;

const BAD: Style = AnsiColor::Red.on_default();
const ODD: Style = AnsiColor::Yellow.on_default();
const GOOD: Style = AnsiColor::Green.on_default();
const DIM: Style = Style::new().dimmed();

/// Columns of the offset from the start.
const OFFSET: usize = 10;
/// Least and most columns of what a row is called.
const LABEL_MIN: usize = 24;
const LABEL_MAX: usize = 44;
/// A time without anything is cut out when it is at least so long and a good part of the rest.
const QUIET_MIN_US: u64 = 500_000;
const QUIET_PART: u64 = 4;
/// Most times that are cut out, the longest first.
const QUIET_MAX: usize = 64;

/// Draws these rows, in the order of time.
pub(super) fn draw(story: &Story<'_>, rows: &[Row], columns: usize) -> Vec<Line> {
    let mut rows: Vec<&Row> =
        rows.iter().filter(|row| story.entries[row.entries[0]].kind != Kind::Unseen).collect();
    rows.sort_by_key(|row| story.entries[row.entries[0]].at);
    let drawn: Vec<Spans> = rows.iter().map(|row| spans(story, row)).collect();
    let scale = Scale::of(story, &drawn);
    let label = (columns / 3).clamp(LABEL_MIN, LABEL_MAX);
    let cells = columns.saturating_sub(OFFSET + label + 4).max(8);
    let mut lines = vec![legend(columns)];
    let root = root(story, &rows);
    let mut quiet = scale.quiet.iter().peekable();
    for (row, spans) in rows.iter().zip(&drawn) {
        let entry = &story.entries[row.entries[0]];
        while let Some(quiet) = quiet.next_if(|(_, to)| *to <= entry.at) {
            lines.push(cut(*quiet));
        }
        let offset = format!("+{}", words::micros(micros(story.start, entry.at)));
        let mut line = Line::default();
        line.push_right(Style::new(), &offset, OFFSET);
        line.push(DIM, " ▏");
        bar(&mut line, spans, &scale, cells);
        line.push(DIM, "▏");
        push_label(&mut line, story, row, (root, label));
        lines.push(line);
    }
    lines.extend(quiet.copied().map(cut));
    lines
}

/// The row that stands for a time that is not drawn.
fn cut((from, to): (Timestamp, Timestamp)) -> Line {
    let mut line = Line::default();
    line.pad(OFFSET + 2);
    line.push(DIM, &format!("⋮ {} without anything", words::micros(micros(from, to))));
    line
}

/// The first token of all subjects, with its dot, where they have the same: the tree has said it, and here room is short.
fn root<'a>(story: &Story<'a>, rows: &[&Row]) -> &'a str {
    let entries = rows.iter().map(|row| &story.entries[row.entries[0]]);
    let mut subjects = entries.filter(|entry| is_named_by_its_subject(entry)).map(|entry| entry.subject);
    let root = subjects.next().and_then(|first| Some(&first[..=first.find('.')?])).unwrap_or_default();
    if subjects.all(|subject| subject.starts_with(root)) { root } else { "" }
}

fn is_named_by_its_subject(entry: &Entry<'_>) -> bool {
    entry.kind == Kind::Message && !matches!(entry.cause, Cause::Answer(_))
}

fn legend(columns: usize) -> Line {
    let mut line = Line::default().with(DIM, "time line: ");
    let parts = [
        (GOOD, "█", " handled  "),
        (DIM, "░", " waits  "),
        (DIM, "─", " until answered  "),
        (ODD, "╌", " until tried again  "),
        (BAD, "✗", " failed"),
    ];
    for (style, sign, word) in parts {
        if line.width() + 1 + width(word.trim_end()) > columns {
            break;
        }
        line.push(style, sign);
        line.push(DIM, word);
    }
    line
}

/// What went on with all messages of a row.
fn spans(story: &Story<'_>, row: &Row) -> Spans {
    let mut all = Spans::default();
    for index in &row.entries {
        let spans = story.spans(*index);
        all.doing.extend(spans.doing);
        all.marks.extend(spans.marks);
    }
    // A wait never hides the work of another attempt.
    all.doing.sort_by_key(|(_, _, doing)| *doing as u8);
    all.marks.sort_by_key(|(_, mark)| *mark as u8);
    all
}

fn bar(line: &mut Line, spans: &Spans, scale: &Scale, cells: usize) {
    let mut drawn = vec![(Style::new(), ' '); cells];
    for (from, to, doing) in &spans.doing {
        let sign = match doing {
            Doing::Awaited => (DIM, '─'),
            Doing::Waiting => (DIM, '░'),
            Doing::Pausing => (ODD, '╌'),
            Doing::Handled => (GOOD, '█'),
        };
        drawn[scale.cell(*from, cells)..=scale.cell(*to, cells)].fill(sign);
    }
    for (time, mark) in &spans.marks {
        let cell = &mut drawn[scale.cell(*time, cells)];
        match mark {
            // The end of a bar says it already, except where there is none.
            Mark::Published | Mark::Done if cell.1 != ' ' => {}
            Mark::Published => *cell = (Style::new(), '•'),
            Mark::Done => *cell = (GOOD, '█'),
            Mark::Again => *cell = (ODD, '↻'),
            Mark::Missed => *cell = (ODD, '▲'),
            Mark::Failed => *cell = (BAD, '✗'),
        }
    }
    // One span for each run of a style, or colours would be most of the output.
    for run in drawn.chunk_by(|a, b| a.0 == b.0) {
        let text: String = run.iter().map(|(_, sign)| *sign).collect();
        line.push(run[0].0, &text);
    }
}

fn push_label(line: &mut Line, story: &Story<'_>, row: &Row, (root, columns): (&str, usize)) {
    let entry = &story.entries[row.entries[0]];
    let attempts = entry.events.iter().filter_map(|seen| seen.attempt).max().unwrap_or(0);
    let failed = entry.events.iter().any(|seen| matches!(seen.what, What::DeadLettered | What::NoResponders));
    let mut note = String::new();
    if row.entries.len() > 1 {
        note.push_str(&format!(" ×{}", row.entries.len()));
    }
    if attempts > 1 {
        note.push_str(&format!(" {attempts} attempts"));
    }
    let dead = if failed { " ✗" } else { "" };
    if story.lacks_answer(entry) {
        note.push_str(" no answer");
    }
    let note = clip(&note, columns.saturating_sub(8 + width(dead)));
    let room = columns.saturating_sub(width(&note) + width(dead) + 1);
    let style = if entry.kind == Kind::Gap { ODD } else { Style::new() };
    line.push(style, " ");
    let title = words::title(entry);
    let title = match is_named_by_its_subject(entry) {
        true => title.strip_prefix(root).unwrap_or(&title),
        false => &title,
    };
    line.push(style, &clip_middle(title, room));
    line.push(ODD, &note);
    line.push(BAD, dead);
}

/// From times to cells, with what is cut out.
struct Scale {
    start: Timestamp,
    /// In order, and apart from each other.
    quiet: Vec<(Timestamp, Timestamp)>,
    /// Microseconds that are left.
    length: u64,
}

impl Scale {
    fn of(story: &Story<'_>, drawn: &[Spans]) -> Self {
        let doing = drawn.iter().flat_map(|spans| spans.doing.iter().map(|(from, to, _)| (*from, *to)));
        let marks = drawn.iter().flat_map(|spans| spans.marks.iter().map(|(time, _)| (*time, *time)));
        let mut busy: Vec<(Timestamp, Timestamp)> = doing.chain(marks).collect();
        busy.sort_unstable();
        let mut gaps = Vec::new();
        let mut until = busy.first().map_or(story.start, |(from, _)| *from);
        for (from, to) in busy {
            if micros(until, from) >= QUIET_MIN_US {
                gaps.push((until, from));
            }
            until = until.max(to);
        }
        let whole = micros(story.start, story.end);
        let in_gaps: u64 = gaps.iter().map(|(from, to)| micros(*from, *to)).sum();
        // Compared with what goes on, not with the other gaps: two long ones would keep each other.
        let least = whole.saturating_sub(in_gaps) / QUIET_PART;
        gaps.retain(|(from, to)| micros(*from, *to) > least);
        gaps.sort_by_key(|(from, to)| std::cmp::Reverse(micros(*from, *to)));
        gaps.truncate(QUIET_MAX);
        gaps.sort_unstable();
        let cut: u64 = gaps.iter().map(|(from, to)| micros(*from, *to)).sum();
        Self { start: story.start, quiet: gaps, length: whole.saturating_sub(cut) }
    }

    /// The cell of a time.
    fn cell(&self, time: Timestamp, cells: usize) -> usize {
        let cut = |(from, to): &(Timestamp, Timestamp)| micros(*from, time.clamp(*from, *to));
        let passed = micros(self.start, time).saturating_sub(self.quiet.iter().map(cut).sum());
        let cell = u128::from(passed) * (cells as u128) / u128::from(self.length.max(1));
        usize::try_from(cell).unwrap_or(usize::MAX).min(cells - 1)
    }
}
