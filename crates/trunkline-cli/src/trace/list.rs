//! The list of conversations.

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;
use trunkline::observe::{ConversationList, ConversationState, ConversationSummary};

use super::line::{Line, clip, width};
use super::page::trouble;
use super::story::micros;
use super::words;

const HEAD: Style = Style::new().dimmed();
const ID: Style = AnsiColor::Cyan.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const ODD: Style = AnsiColor::Yellow.on_default();

/// Most columns of an id; the rest of a longer one is in `--json`.
const ID_MAX: usize = 40;
/// Columns of all that stands behind the id and has a fixed place.
const COLUMNS_REST: usize = 47;
const COLUMNS_MIN: usize = 60;

/// The list as a table, and what it leaves out.
pub(crate) fn list(list: &ConversationList, columns: usize, zone: &TimeZone) -> String {
    let shown = &list.conversations;
    let longest = shown.iter().map(|summary| width(&summary.id)).max().unwrap_or(0);
    // Beside it there is room for everything that has a number of columns.
    let id = longest.clamp("CONVERSATION".len(), ID_MAX.min(columns.max(COLUMNS_MIN) - COLUMNS_REST));
    let mut head = Line::default();
    head.push(HEAD, "CONVERSATION");
    head.pad(id + 2);
    head.push(HEAD, "LAST SEEN");
    head.pad(id + 16);
    head.push(HEAD, "STATE");
    head.push_right(HEAD, "MESSAGES", id + 32);
    head.push_right(HEAD, "TOOK", id + 42);
    head.push(HEAD, "  WHO");
    let mut lines = vec![head];
    lines.extend(shown.iter().map(|summary| row(summary, id, columns, zone)));
    let mut text: Vec<String> = lines.iter().map(Line::to_string).collect();
    let more = list.total.saturating_sub(shown.len() as u64);
    if more > 0 {
        text.push(format!("{shown} of {total} (--limit, --offset)", shown = shown.len(), total = list.total));
    }
    if list.not_recorded > 0 {
        let number = words::count(list.not_recorded, "message", "messages");
        text.push(format!("{number} went by unrecorded since the start (observe.rate_max)"));
    }
    text.join("\n")
}

fn row(summary: &ConversationSummary, id: usize, columns: usize, zone: &TimeZone) -> Line {
    let mut line = Line::default().with(ID, &clip(&summary.id, id));
    line.pad(id + 2);
    line.push(Style::new(), &words::clock(summary.last, zone));
    line.pad(id + 16);
    let (style, state) = match summary.state {
        ConversationState::Open => (ODD, "open"),
        ConversationState::Failed => (BAD, "failed"),
        ConversationState::Quiet => (Style::new(), "quiet"),
        _ => (Style::new(), "?"),
    };
    line.push(style, state);
    line.push_right(Style::new(), &summary.messages.to_string(), id + 32);
    line.push_right(Style::new(), &words::micros(micros(summary.first, summary.last)), id + 42);
    let mut left = columns.saturating_sub(line.width() + 2);
    if let Some(trouble) = trouble(summary) {
        let trouble = clip(&trouble, left);
        line.push(Style::new(), "  ");
        line.push(BAD, &trouble);
        left = left.saturating_sub(width(&trouble) + 2);
    }
    if left > 4 {
        line.push(Style::new(), "  ");
        line.push(Style::new(), &clip(&summary.participants.join(", "), left));
    }
    line
}
