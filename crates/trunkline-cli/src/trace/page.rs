//! The page of one conversation: what it is, the tree, the time line, and what is not known of it.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;
use trunkline::observe::{ConversationRecord, ConversationState, ConversationSummary};

use super::line::{Line, clip, wrap};
use super::rows::{Row, rows};
use super::story::{Kind, Story, micros};
use super::{timeline, tree, words};

const ID: Style = AnsiColor::Cyan.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default();
const ODD: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

/// Rows that are drawn unless all are asked for.
const ROWS_MAX: usize = 200;
/// Narrowest and widest page.
const COLUMNS_MIN: usize = 60;
const COLUMNS_MAX: usize = 200;
/// Columns of the names in the head.
const NAMES: usize = 10;

/// How to draw a page.
#[derive(Debug, Clone)]
pub(crate) struct PageOptions {
    /// Columns of the terminal.
    pub(crate) columns: usize,
    /// Each message on a row of its own, however many there are.
    pub(crate) all: bool,
    /// With what they carried.
    pub(crate) payloads: bool,
    /// In which times are shown.
    pub(crate) zone: TimeZone,
    /// Messages of any conversation that went by unrecorded.
    pub(crate) not_recorded: u64,
}

/// Draws the page.
pub(crate) fn page(record: &ConversationRecord, options: &PageOptions) -> String {
    let columns = options.columns.clamp(COLUMNS_MIN, COLUMNS_MAX);
    let story = Story::read(record);
    // Beside a payload of its own each message needs a row of its own.
    let rows = rows(&story, options.all || options.payloads);
    let shown = if options.all { &rows[..] } else { &rows[..rows.len().min(ROWS_MAX)] };
    let mut lines = head(&record.summary, columns, &options.zone);
    if shown.is_empty() {
        lines.push(Line::default());
        lines.push(Line::plain("No message of it is in the record any more."));
    } else {
        lines.push(Line::default());
        lines.extend(tree::draw(&story, shown, columns, options.payloads));
        lines.extend(left_out(rows.len() - shown.len()));
        lines.push(Line::default());
        lines.extend(timeline::draw(&story, shown, columns));
        lines.extend(left_out(rows.len() - shown.len()));
    }
    let unknown = unknown(record, &story, &rows, options);
    if !unknown.is_empty() {
        lines.push(Line::default());
        lines.push(Line::default().with(ODD, "not recorded"));
        for text in unknown {
            let (parts, _) = wrap(&text, columns - 2, 4);
            lines.extend(parts.iter().map(|part| Line::plain(&format!("  {part}"))));
        }
    }
    let mut text = String::new();
    for line in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    }
    text.truncate(text.trim_end().len());
    text
}

fn left_out(rows: usize) -> Option<Line> {
    let text = format!(
        "… {} not drawn (--all draws them)",
        words::count(rows as u64, "more row is", "more rows are")
    );
    (rows > 0).then(|| Line::default().with(DIM, &text))
}

fn head(summary: &ConversationSummary, columns: usize, zone: &TimeZone) -> Vec<Line> {
    let state = match summary.state {
        ConversationState::Open => (ODD, "open: something is still expected"),
        ConversationState::Failed => (BAD, "failed"),
        ConversationState::Quiet => (Style::new(), "quiet"),
        _ => (Style::new(), "in a state that this version does not know"),
    };
    let mut first = Line::default().with(ID, &clip(&summary.id, columns.saturating_sub(40).max(20)));
    first.push(Style::new(), "  ");
    first.push(state.0, state.1);
    let mut lines = vec![first];
    let mut say = |name: &str, style: Style, text: &str| {
        let mut line = Line::default().with(DIM, name);
        line.pad(NAMES);
        line.push(style, &clip(text, columns - NAMES));
        lines.push(line);
    };
    let took = words::micros(micros(summary.first, summary.last));
    let size = words::bytes(summary.bytes);
    let messages = words::count(summary.messages, "message", "messages");
    say("messages", Style::new(), &format!("{messages}, {size}, in {took}"));
    say("began", Style::new(), &words::date(summary.first, zone));
    let names = [
        ("who", &summary.participants),
        ("personas", &summary.personas),
        ("tools", &summary.tools),
        ("skills", &summary.skills),
    ];
    for (name, values) in names {
        if !values.is_empty() {
            say(name, Style::new(), &values.join(", "));
        }
    }
    if let Some(trouble) = trouble(summary) {
        say("trouble", BAD, &trouble);
    }
    lines
}

/// What went otherwise than planned, where something did.
pub(super) fn trouble(summary: &ConversationSummary) -> Option<String> {
    let counts = [
        (summary.retries, "retry", "retries"),
        (summary.dead_letters, "dead letter", "dead letters"),
        (summary.gaps, "gap", "gaps"),
        (summary.errors, "error", "errors"),
    ];
    let counts = counts.into_iter().filter(|(number, ..)| *number > 0);
    let texts: Vec<String> = counts.map(|(number, one, many)| words::count(number, one, many)).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

/// What the record does not know, in sentences.
fn unknown(
    record: &ConversationRecord,
    story: &Story<'_>,
    rows: &[Row],
    options: &PageOptions,
) -> Vec<String> {
    let mut texts = Vec::new();
    let omitted = record.summary.omitted;
    if omitted > 0 {
        let number = words::count(omitted, "observation", "observations");
        texts.push(format!(
            "{number} of this conversation are not in the record, or no longer (observe.memory)"
        ));
    }
    if options.not_recorded > 0 {
        let number = words::count(options.not_recorded, "message", "messages");
        texts.push(format!(
            "{number} of any conversation went by unrecorded since the start (observe.rate_max)"
        ));
    }
    let entries = || rows.iter().flat_map(|row| &row.entries).map(|index| &story.entries[*index]);
    let unseen = entries().filter(|entry| entry.kind == Kind::Unseen).count();
    if unseen > 0 {
        let number = words::count(unseen as u64, "cause is", "causes are");
        texts.push(format!("{number} named that nobody saw: from before the record, or from another bus"));
    }
    let unpublished =
        entries().filter(|entry| entry.kind == Kind::Message && entry.published.is_none()).count();
    if unpublished > 0 {
        let number = words::count(unpublished as u64, "message was", "messages were");
        texts.push(format!("{number} seen at work, but not when published"));
    }
    texts
}
