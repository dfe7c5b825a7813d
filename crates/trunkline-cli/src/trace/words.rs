//! The words and numbers of a drawing: what happened to a message, who had to do with it, how long and how much.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use trunkline::observe::{Body, Observation, Outcome, What};

use super::story::{Cause, Entry, Kind};
use crate::duration;

/// Receivers that are named; more are counted.
const NAMES_MAX: usize = 3;

/// What came of a message, in a few words.
pub(super) fn event(seen: &Observation) -> String {
    let because = seen.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    match seen.what {
        What::Handled => {
            let attempt = seen.attempt.unwrap_or(1);
            let by = seen.to.first().or(seen.consumer.as_ref());
            let by = by.map(|name| format!(" by {name}")).unwrap_or_default();
            let took = seen.took_us.map(|us| format!(" after {}", micros(us))).unwrap_or_default();
            let outcome = seen.outcome.map_or("ended", outcome);
            format!("attempt {attempt}{by} {outcome}{took}{because}")
        }
        What::DeadLettered => {
            let attempts =
                seen.attempt.map(|attempt| format!(" after attempt {attempt}")).unwrap_or_default();
            format!("dead letter{attempts}{because}")
        }
        What::Redriven => format!("redriven: the dead letter was published again{because}"),
        What::NoResponders => format!("nobody answers there{because}"),
        What::Gap => gap(seen),
        What::Published => "published again".to_owned(),
        _ => format!("something that this version has no word for{because}"),
    }
}

/// What a gap left out.
pub(super) fn gap(seen: &Observation) -> String {
    let missed = match seen.missed {
        Some(1) => "1 message".to_owned(),
        Some(missed) => format!("{missed} messages"),
        None => "an unknown number of messages".to_owned(),
    };
    let who = match seen.to.is_empty() {
        true => String::new(),
        false => format!(" by {}", seen.to.join(", ")),
    };
    let because = seen.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("gap: {missed} missed{who}{because}")
}

/// How handling ended.
pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Acked => "succeeded",
        Outcome::Nacked => "failed and comes again",
        Outcome::Terminated => "failed for good",
        Outcome::Cancelled => "was cancelled",
        Outcome::Answered => "answered",
        Outcome::AnsweredError => "answered with an error",
        _ => "ended",
    }
}

/// Whether it went wrong.
pub(super) fn is_bad(seen: &Observation) -> bool {
    match seen.what {
        What::Handled => !matches!(seen.outcome, None | Some(Outcome::Acked | Outcome::Answered)),
        What::Published | What::Redriven => false,
        _ => true,
    }
}

/// What an entry is called.
pub(super) fn title(entry: &Entry<'_>) -> String {
    match (entry.kind, entry.cause) {
        (Kind::Unseen, _) => format!("message {} (not recorded)", entry.id.unwrap_or_default()),
        (Kind::Gap, _) => {
            let what = entry.events.first().map(|seen| gap(seen)).unwrap_or_default();
            format!("{what} (on {})", entry.subject)
        }
        // Nobody reads the names of inboxes.
        (_, Cause::Answer(_)) => {
            let what = if entry.is_error() { "error" } else { "answer" };
            match entry.seen().and_then(|seen| seen.kind.as_deref()) {
                Some(kind) => format!("{what} ({kind})"),
                None => what.to_owned(),
            }
        }
        _ => entry.subject.to_owned(),
    }
}

/// From whom to whom.
pub(super) fn flow(entry: &Entry<'_>) -> String {
    if entry.kind != Kind::Message {
        return String::new();
    }
    let names = entry.receivers();
    let stream = entry.published.and_then(|seen| seen.stream.as_deref());
    let to = match (names.as_slice(), stream) {
        ([], Some(stream)) => format!("stream {stream}"),
        ([], None) => "(nobody seen)".to_owned(),
        (names, _) if names.len() > NAMES_MAX => {
            format!("{} and {} more", names[..NAMES_MAX].join(", "), names.len() - NAMES_MAX)
        }
        (names, _) => names.join(", "),
    };
    format!("{} → {to}", entry.sender().unwrap_or("?"))
}

/// What a message carried, in one line.
pub(super) fn body(seen: &Observation) -> Option<String> {
    Some(match seen.body.as_ref()? {
        Body::Json(value) => value.to_string(),
        Body::Text(text) => text.clone(),
        Body::Base64(text) => format!("base64 {text}"),
        Body::Omitted(size) => format!("({} not kept)", bytes(*size)),
    })
}

/// A number of microseconds, readable: `850 µs`, `12.4 ms`, `3.1 s`, `4m 10s`, `3h 20m`.
pub(super) fn micros(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    match seconds {
        0..120 => duration::show(Duration::from_micros(micros)),
        120..7200 => format!("{}m {}s", seconds / 60, seconds % 60),
        7200..172_800 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A number of bytes, readable.
pub(super) fn bytes(bytes: u64) -> String {
    const KIB: f64 = 1024.0;
    match bytes {
        0..1024 => format!("{bytes} B"),
        // Rounding is what is wanted here.
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / KIB),
        _ => format!("{:.1} MiB", bytes as f64 / KIB / KIB),
    }
}

/// So many of something.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Date and time in the zone of who reads it.
pub(super) fn date(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// The time alone.
pub(super) fn clock(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%H:%M:%S%.3f").to_string()
}
