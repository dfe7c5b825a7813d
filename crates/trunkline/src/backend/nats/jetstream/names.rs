//! Names: of the bus, and of JetStream.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use trunkline_core::{Pattern, StreamOffset};

use crate::backend::{Start, StreamError};

/// Longest name of a stream or consumer, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Longest prefix: with the longest name it must stay a name that file systems take.
const PREFIX_BYTES_MAX: usize = 128;

/// How streams of the bus are called on the server, and which patterns no stream may have.
#[derive(Debug)]
pub(super) struct Names {
    prefix: String,
    /// Patterns that no stream may overlap, and why.
    forbidden: Vec<(Pattern, &'static str)>,
}

impl Names {
    /// Names for a prefix that [`check_prefix`] takes.
    pub(super) fn new(prefix: &str, root: &str, inbox_prefix: &str) -> Self {
        let requests = "requests are sent there, and JetStream would answer them with its own confirmation";
        let replies = "replies are sent there, and JetStream would store them and confirm them to nobody";
        let own = "it is NATS's own";
        let patterns = [
            (format!("{root}.gateway.request"), requests),
            (format!("{root}.tool.*.call"), requests),
            (format!("{root}.llm.request"), requests),
            (format!("{inbox_prefix}.>"), replies),
            ("_INBOX.>".to_owned(), replies),
            ("$JS.>".to_owned(), own),
            ("$SYS.>".to_owned(), own),
            ("$KV.>".to_owned(), own),
        ];
        let forbidden =
            patterns.into_iter().filter_map(|(text, why)| Some((Pattern::new(text).ok()?, why))).collect();
        Self { prefix: prefix.to_owned(), forbidden }
    }

    /// The stream's name on the server.
    pub(super) fn of_stream(&self, name: &str) -> String {
        format!("{}_{name}", self.prefix)
    }

    /// The name of a stream of this prefix, from that on the server.
    pub(super) fn own<'a>(&self, on_server: &'a str) -> Option<&'a str> {
        let name = on_server.strip_prefix(self.prefix.as_str())?.strip_prefix('_')?;
        check_name(name).is_ok().then_some(name)
    }

    /// The name to show: short for those of this prefix, whole for others of the account.
    pub(super) fn shown<'a>(&self, on_server: &'a str) -> &'a str {
        self.own(on_server).unwrap_or(on_server)
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Refuses patterns that would take messages which are not to be stored.
    pub(super) fn check_patterns(&self, stream: &str, patterns: &[Pattern]) -> Result<(), StreamError> {
        for pattern in patterns {
            if let Some((taken, why)) = self.forbidden.iter().find(|(taken, _)| taken.overlaps(pattern)) {
                return Err(StreamError::Refused {
                    stream: stream.to_owned(),
                    reason: format!("pattern {pattern} takes messages of {taken}: {why}"),
                });
            }
        }
        Ok(())
    }
}

/// What is wrong with a prefix, if anything: JetStream takes no white space, no `. * > / \` and no control characters,
/// and other characters than these are not the same on every file system.
pub(super) fn check_prefix(prefix: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b':');
    match prefix.bytes().find(|b| !good(*b)) {
        _ if prefix.is_empty() => Err("it is empty".to_owned()),
        _ if prefix.len() > PREFIX_BYTES_MAX => {
            Err(format!("it has {} bytes, at most {PREFIX_BYTES_MAX} are allowed", prefix.len()))
        }
        Some(_) => Err("letters, digits, '_', '-' and ':' are allowed in names of JetStream".to_owned()),
        None => Ok(()),
    }
}

pub(super) fn check_name(name: &str) -> Result<(), StreamError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    match !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(good) {
        true => Ok(()),
        false => Err(StreamError::BadName(name.to_owned())),
    }
}

/// The patterns without those that others of them cover: JetStream takes no overlap within a stream.
pub(super) fn minimal(subjects: &[Pattern]) -> Vec<Pattern> {
    let mut minimal: Vec<Pattern> = Vec::new();
    for pattern in subjects {
        if !minimal.iter().any(|known| known.covers(pattern)) {
            minimal.retain(|known| !pattern.covers(known));
            minimal.push(pattern.clone());
        }
    }
    minimal
}

/// Where a reader starts, in JetStream's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartAt {
    New,
    Sequence(u64),
    Time(SystemTime),
}

/// Resolves a start on a stream whose newest message is `last`.
pub(super) fn start_at(stream: &str, start: Start, last: u64) -> Result<StartAt, StreamError> {
    match start {
        Start::New => Ok(StartAt::New),
        Start::Beginning => Ok(StartAt::Sequence(1)),
        Start::At(time) => Ok(StartAt::Time(time)),
        Start::After(StreamOffset::Sequence(n)) if n > last => Err(StreamError::OffsetAhead {
            stream: stream.to_owned(),
            offset: StreamOffset::Sequence(n),
            last: StreamOffset::Sequence(last),
        }),
        Start::After(StreamOffset::Sequence(n)) => Ok(StartAt::Sequence(n + 1)),
        Start::After(foreign) => Err(StreamError::ForeignOffset(foreign)),
    }
}

/// A duration as JetStream counts it.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(i64::MAX as u64).min(i64::MAX as u64)
}

/// A time as JetStream writes it.
pub(super) fn print_time(time: SystemTime) -> String {
    // The server counts nanoseconds since 1970 in 64 bits, and takes a time past them, in 2262, for one long ago.
    let past = SystemTime::UNIX_EPOCH + Duration::from_nanos(i64::MAX as u64);
    let time = time.clamp(SystemTime::UNIX_EPOCH, past);
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// A time as JetStream wrote it.
pub(super) fn parse_time(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_streams_of_the_prefix_have_short_names() {
        let names = Names::new("atlas_bus", "nachos", "_INBOX");
        assert_eq!(names.of_stream("audit"), "atlas_bus_audit");
        for (on_server, own) in [
            ("atlas_bus_audit", Some("audit")),
            ("atlas_busaudit", None),
            ("atlas_bus_", None),
            ("KV_atlas_bus_leases", None),
            ("atlas_bus_a:b", None),
        ] {
            assert_eq!(names.own(on_server), own, "{on_server}");
        }
        assert_eq!(names.shown("ORDERS"), "ORDERS");
    }

    #[test]
    fn patterns_of_requests_and_replies_are_refused_with_the_reason() {
        let names = Names::new("p", "nachos", "_MINE");
        for (pattern, why) in [
            (">", "requests"),
            ("nachos.>", "requests"),
            ("nachos.tool.*.call", "requests"),
            ("nachos.tool.search.*", "requests"),
            ("*.llm.request", "requests"),
            ("_MINE.x", "replies"),
            ("_INBOX.*", "replies"),
            ("$KV.b.k", "own"),
        ] {
            match names.check_patterns("s", &[pattern.parse().unwrap()]) {
                Err(StreamError::Refused { stream, reason }) => {
                    assert!(stream == "s" && reason.contains(why) && reason.contains(pattern), "{reason}");
                }
                other => panic!("{pattern}: {other:?}"),
            }
        }
        for pattern in ["nachos.tool.*.task", "nachos.channel.>", "nachos.dead.>", "work.tool.*.call"] {
            assert_eq!(names.check_patterns("s", &[pattern.parse().unwrap()]), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn prefixes_that_jetstream_does_not_take_are_refused() {
        for good in ["atlas_bus", "a:b-c"] {
            assert_eq!(check_prefix(good), Ok(()), "{good}");
        }
        for bad in ["", "a.b", "a b", "a/b", "a*", "ä", &"x".repeat(200)] {
            assert!(check_prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn starts_resolve_to_sequences() {
        let after = |n| Start::After(StreamOffset::Sequence(n));
        assert_eq!(start_at("s", Start::Beginning, 9), Ok(StartAt::Sequence(1)));
        assert_eq!(start_at("s", after(9), 9), Ok(StartAt::Sequence(10)));
        assert!(matches!(start_at("s", after(10), 9), Err(StreamError::OffsetAhead { .. })));
        let foreign = StreamOffset::Entry(1, 0);
        assert_eq!(start_at("s", Start::After(foreign), 9), Err(StreamError::ForeignOffset(foreign)));
    }

    #[test]
    fn times_go_there_and_back() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_795_344_761_830_089_140);
        assert_eq!(print_time(time), "2026-11-22T10:52:41.83008914Z");
        assert_eq!(parse_time(&print_time(time)), Some(time));
        let never = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert!(print_time(never).starts_with("2262-"), "{}", print_time(never));
        assert_eq!(print_time(SystemTime::UNIX_EPOCH - Duration::from_secs(9)), "1970-01-01T00:00:00Z");
    }
}
