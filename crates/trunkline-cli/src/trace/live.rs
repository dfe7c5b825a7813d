//! One observation as one line, for those who follow live.

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;
use trunkline::observe::{Observation, What};

use super::line::{Line, clean};
use super::story::ended;
use super::words;

const SUBJECT: Style = AnsiColor::Cyan.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const ODD: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

/// Columns of a conversation's id: as many as a UUID's beginning needs to be told from another's.
const CONVERSATION: usize = 13;

/// How inboxes begin. Nobody reads the rest of their names.
const INBOX: &str = "_INBOX.";

/// The line: when, of which conversation, who to whom, and what happened. With `payloads` what it carried comes below.
pub(crate) fn live(seen: &Observation, zone: &TimeZone, payloads: bool) -> String {
    // Of a handler it is told when it has ended.
    let mut line = Line::default().with(DIM, &words::clock(ended(seen), zone));
    line.push(Style::new(), "  ");
    let conversation = seen.conversation_id.as_deref().or(seen.correlation_id.as_deref()).unwrap_or("-");
    line.push(DIM, &super::line::clip(conversation, CONVERSATION));
    line.pad(14 + CONVERSATION);
    line.push(Style::new(), "  ");
    let from = seen.from.as_deref().unwrap_or("?");
    match seen.what {
        What::Published => {
            match seen.subject.starts_with(INBOX) {
                true => line.push(DIM, "↩ answer"),
                false => line.push(SUBJECT, &seen.subject),
            }
            line.push(Style::new(), &format!("  {from} → {}", receivers(seen)));
            line.push(DIM, &format!("  {}", words::bytes(seen.size)));
            if let Some(kind) = &seen.kind {
                line.push(DIM, &format!("  {kind}"));
            }
        }
        _ => {
            let style = match (words::is_bad(seen), seen.what) {
                (_, What::Gap) => ODD,
                (true, _) => BAD,
                (false, _) => Style::new(),
            };
            line.push(SUBJECT, &seen.subject);
            line.push(style, &format!("  {}", words::event(seen)));
        }
    }
    let mut text = line.to_string();
    if let Some(body) = words::body(seen).filter(|_| payloads) {
        text.push_str(&format!("\n{:14}{DIM}{}{DIM:#}", "", clean(&body)));
    }
    text
}

fn receivers(seen: &Observation) -> String {
    match (seen.to.is_empty(), &seen.stream) {
        (true, Some(stream)) => format!("stream {stream}"),
        (true, None) => "(nobody seen)".to_owned(),
        (false, _) => seen.to.join(", "),
    }
}
