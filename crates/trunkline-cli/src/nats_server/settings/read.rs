//! From a value of a file to a value of a type; what does not fit is noted as a mistake, and reading goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use trunkline_server::Advertised;

use super::super::conf::{Entry, Map, Node, Place, Value};
use super::{Listen, Mistake};

/// Mistakes that are told at a time.
const MISTAKES_MAX: usize = 64;

/// What is wrong so far.
#[derive(Debug, Default)]
pub(super) struct Mistakes {
    noted: Vec<Mistake>,
    /// What is taken all the same.
    doubts: Vec<Mistake>,
}

impl Mistakes {
    pub(super) fn note(&mut self, place: &Place, text: impl Into<String>) {
        if self.noted.len() < MISTAKES_MAX {
            self.noted.push(Mistake { place: place.clone(), text: text.into() });
        }
    }

    /// What is taken and may not be what is meant.
    pub(super) fn doubt(&mut self, place: &Place, text: impl Into<String>) {
        if self.doubts.len() < MISTAKES_MAX {
            self.doubts.push(Mistake { place: place.clone(), text: text.into() });
        }
    }

    /// What is wrong, and what is doubtful.
    pub(super) fn finish(self) -> (Vec<Mistake>, Vec<Mistake>) {
        (self.noted, self.doubts)
    }

    /// A key that nobody knows; one that a variable refers to may have any name.
    pub(super) fn unknown(&mut self, entry: &Entry) {
        if entry.is_variable {
            return;
        }
        self.note(&entry.place, format!("unknown field {:?}", entry.key));
    }

    fn wrong_type(&mut self, entry: &Entry, wanted: &str) {
        let kind = match entry.node.value.kind() {
            "integer" => "an integer".to_owned(),
            kind => format!("a {kind}"),
        };
        self.note(&entry.place, format!("{} is {kind}, and must be {wanted}", entry.key));
    }

    pub(super) fn text(&mut self, entry: &Entry) -> Option<String> {
        match &entry.node.value {
            Value::Text(text) => Some(text.clone()),
            // `007` as a password would be `7`, and `10k` ten thousand.
            Value::Integer(_) | Value::Float(_) => {
                self.wrong_type(entry, "a string: put it in quotes");
                None
            }
            _ => {
                self.wrong_type(entry, "a string");
                None
            }
        }
    }

    /// As `text`; an empty one is what is not set.
    pub(super) fn word(&mut self, entry: &Entry) -> Option<String> {
        self.text(entry).filter(|text| !text.is_empty())
    }

    /// Texts by names.
    pub(super) fn words(&mut self, entry: &Entry) -> Option<BTreeMap<String, String>> {
        let map = self.map(entry)?;
        Some(map.entries.iter().filter_map(|inner| Some((inner.key.clone(), self.text(inner)?))).collect())
    }

    pub(super) fn bool(&mut self, entry: &Entry) -> Option<bool> {
        match entry.node.value {
            Value::Bool(value) => Some(value),
            _ => {
                self.wrong_type(entry, "true or false");
                None
            }
        }
    }

    pub(super) fn integer(&mut self, entry: &Entry) -> Option<i64> {
        match entry.node.value {
            Value::Integer(number) => Some(number),
            _ => {
                self.wrong_type(entry, "an integer");
                None
            }
        }
    }

    /// A number from `least` to `most`.
    pub(super) fn within(&mut self, entry: &Entry, least: i64, most: i64) -> Option<usize> {
        let number = self.integer(entry)?;
        if !(least..=most).contains(&number) {
            self.note(&entry.place, format!("{} is {number}, and must be from {least} to {most}", entry.key));
            return None;
        }
        usize::try_from(number).ok()
    }

    pub(super) fn map<'a>(&mut self, entry: &'a Entry) -> Option<&'a Map> {
        match &entry.node.value {
            Value::Map(map) => Some(map),
            _ => {
                self.wrong_type(entry, "a map");
                None
            }
        }
    }

    pub(super) fn list<'a>(&mut self, entry: &'a Entry) -> Option<&'a [Node]> {
        match &entry.node.value {
            Value::List(list) => Some(list),
            _ => {
                self.wrong_type(entry, "a list");
                None
            }
        }
    }

    /// A list of texts, or one.
    pub(super) fn texts(&mut self, entry: &Entry) -> Option<Vec<String>> {
        let nodes = match &entry.node.value {
            Value::Text(text) => return Some(vec![text.clone()]),
            Value::List(nodes) => nodes,
            _ => {
                self.wrong_type(entry, "a list of strings");
                return None;
            }
        };
        let text = |node: &Node| match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        let texts: Option<Vec<String>> = nodes.iter().map(text).collect();
        if texts.is_none() {
            self.note(&entry.place, format!("{} has something in it that is no string", entry.key));
        }
        texts
    }

    /// As `duration`; a number without a unit may have been meant otherwise.
    pub(super) fn duration_with_unit(&mut self, entry: &Entry) -> Option<Duration> {
        if matches!(entry.node.value, Value::Integer(_) | Value::Float(_)) {
            let key = &entry.key;
            let text = format!("invalid use of field {key:?}: {key} should be converted to a duration");
            self.doubt(&entry.place, text);
        }
        self.duration(entry)
    }

    /// Text such as `2m` or `100ms`, or seconds as a number.
    pub(super) fn duration(&mut self, entry: &Entry) -> Option<Duration> {
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
        let duration = match &entry.node.value {
            Value::Text(text) => duration(text),
            Value::Integer(number) => u64::try_from(*number).ok().map(Duration::from_secs),
            Value::Float(number) => seconds(*number),
            _ => {
                self.wrong_type(entry, "a duration");
                return None;
            }
        };
        if duration.is_none() {
            let given = match &entry.node.value {
                Value::Text(text) => format!("{text:?}"),
                Value::Integer(number) => number.to_string(),
                other => other.kind().to_owned(),
            };
            self.note(&entry.place, format!("error parsing {}: time: invalid duration {given}", entry.key));
        }
        duration
    }

    /// `HOST:PORT`, `PORT`, or a host alone where a port has been given otherwise; -1 is any free port.
    pub(super) fn listen(&mut self, entry: &Entry) -> Option<Listen> {
        let text = match &entry.node.value {
            Value::Integer(number) => return Some(Listen { host: None, port: self.port(entry, *number)? }),
            Value::Text(text) => text,
            _ => {
                self.wrong_type(entry, "a port, or HOST:PORT");
                return None;
            }
        };
        let Some((host, port)) = text.rsplit_once(':') else {
            self.note(&entry.place, format!("could not parse address string {text:?}"));
            return None;
        };
        let Ok(number) = port.parse() else {
            self.note(&entry.place, format!("could not parse port {port:?}"));
            return None;
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = (!host.is_empty()).then(|| host.to_owned());
        Some(Listen { host, port: self.port(entry, number)? })
    }

    /// Where clients are told that the server is.
    pub(super) fn advertised(&mut self, entry: &Entry) -> Option<Advertised> {
        let text = self.text(entry).filter(|text| !text.is_empty())?;
        let advertised = advertised(&text);
        if let Err(problem) = &advertised {
            self.note(&entry.place, problem.as_str());
        }
        advertised.ok()
    }

    /// A port; -1 becomes 0, which is any free one.
    pub(super) fn port(&mut self, entry: &Entry, number: i64) -> Option<u16> {
        if number == -1 {
            return Some(0);
        }
        let port = u16::try_from(number).ok();
        if port.is_none() {
            self.note(&entry.place, format!("{number} is not a port"));
        }
        port
    }
}

/// `HOST` or `HOST:PORT`; -1 and 0 are the port that the server listens on.
///
/// # Errors
/// What is wrong with it, in nats-server's words.
pub(super) fn advertised(text: &str) -> Result<Advertised, String> {
    let wrong =
        |cause: &str| format!("Error setting server INFO with ClientAdvertise value of {text}, err={cause}");
    let (host, port) = match text.rsplit_once(':') {
        // More than one colon without brackets is an address of IPv6.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
        _ => (text, "0"),
    };
    let number: i64 =
        port.parse().map_err(|_| wrong(&format!("strconv.Atoi: parsing {port:?}: invalid syntax")))?;
    let port = match number {
        -1 | 0 => None,
        _ => Some(u16::try_from(number).map_err(|_| wrong(&format!("{number} is not a port")))?),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.is_empty() {
        true => Err(wrong("it has no host")),
        false => Ok(Advertised { host: host.to_owned(), port }),
    }
}

/// A sequence of decimal numbers with units, in the manner of Go: `1h30m`, `1.5s`, `100ms`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, behind) = rest.split_at(rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?);
        let end = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * factor;
        rest = behind;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// A duration in the manner of Go: `1h0m0s`, `2m0s`, `1.5s`, `100ms`.
pub(crate) fn shown(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    // Whole and fraction of a number in units of `unit` nanoseconds, without zeros at its end.
    let decimal = |whole: u64, rest: u64, digits: usize| match rest {
        0 => whole.to_string(),
        _ => format!("{whole}.{rest:0digits$}").trim_end_matches('0').to_owned(),
    };
    if seconds == 0 {
        let nanos = u64::from(nanos);
        return match nanos {
            0 => "0s".to_owned(),
            1..1_000 => format!("{nanos}ns"),
            1_000..1_000_000 => format!("{}µs", decimal(nanos / 1_000, nanos % 1_000, 3)),
            _ => format!("{}ms", decimal(nanos / 1_000_000, nanos % 1_000_000, 6)),
        };
    }
    let rest = format!("{}s", decimal(seconds % 60, u64::from(nanos), 9));
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => rest,
        (0, minutes) => format!("{minutes}m{rest}"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (millis, text) in [
            (0, "0s"),
            (100, "100ms"),
            (1_500, "1.5s"),
            (5_000, "5s"),
            (120_000, "2m0s"),
            (3_600_000, "1h0m0s"),
            (90_250, "1m30.25s"),
        ] {
            assert_eq!(shown(Duration::from_millis(millis)), text);
        }
        assert_eq!(shown(Duration::from_nanos(1_500)), "1.5µs");
        assert_eq!(shown(Duration::from_nanos(2_000_100)), "2.0001ms");
    }

    #[test]
    fn durations_are_those_of_go() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        for text in ["", "abc", "5", "5x", "-1s", "1.2.3s", "1e300h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
