//! The plain types that keys have, and how people write them: durations, sizes, numbers, switches, addresses, paths.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;

use super::settings::{Fault, Format, Leaf, Rule};

/// Longest name of a stream, user, component or prefix, in characters.
const NAME_CHARS_MAX: usize = 64;

const DURATION_UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("d", 86_400 * 1_000_000_000),
];

const SIZE_UNITS: [(&str, u64); 13] = [
    ("b", 1),
    ("k", 1_000),
    ("kb", 1_000),
    ("kib", 1 << 10),
    ("m", 1_000_000),
    ("mb", 1_000_000),
    ("mib", 1 << 20),
    ("g", 1_000_000_000),
    ("gb", 1_000_000_000),
    ("gib", 1 << 30),
    ("t", 1_000_000_000_000),
    ("tb", 1_000_000_000_000),
    ("tib", 1 << 40),
];

/// A text that must not be seen: a password or a token. It prints as `***`, also in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret out of its text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for whoever has to compare or send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Leaf for Secret {
    const SECRET: bool = true;

    fn expected(_: &Rule) -> Cow<'static, str> {
        "text that is not empty".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        match text {
            "" => Err(Fault::Type),
            _ => Ok(Secret::new(text)),
        }
    }

    fn render(&self, _: &Rule) -> Json {
        "***".into()
    }
}

impl Leaf for String {
    fn expected(rule: &Rule) -> Cow<'static, str> {
        match rule.format {
            Format::Any | Format::Bytes => "text".into(),
            Format::Name => format!("letters, digits, _ or - and at most {NAME_CHARS_MAX} of them").into(),
            Format::Prefix => {
                format!("letters, digits, _, - or : and at most {NAME_CHARS_MAX} of them").into()
            }
            Format::Token => "one token of a subject, without . * > or white space".into(),
            Format::Nkey => {
                "a public user nkey: U and 55 more of A-Z and 2-7; S begins a seed, which its owner keeps"
                    .into()
            }
        }
    }

    fn parse(text: &str, rule: &Rule) -> Result<Self, Fault> {
        let allowed = match rule.format {
            Format::Any | Format::Bytes => true,
            Format::Name => is_name(text, "_-"),
            Format::Prefix => is_name(text, "_-:"),
            Format::Token => trunkline_core::Token::new(text).is_ok(),
            Format::Nkey => {
                let base32 = |c: u8| c.is_ascii_uppercase() || (b'2'..=b'7').contains(&c);
                text.len() == 56 && text.starts_with('U') && text.bytes().all(base32)
            }
        };
        match allowed {
            true => Ok(text.to_owned()),
            false => Err(Fault::Type),
        }
    }

    fn render(&self, _: &Rule) -> Json {
        self.as_str().into()
    }
}

pub(crate) fn is_name(text: &str, punctuation: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || punctuation.contains(c))
}

impl Leaf for bool {
    fn expected(_: &Rule) -> Cow<'static, str> {
        "true or false".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" => Ok(true),
            "false" | "off" | "no" => Ok(false),
            _ => Err(Fault::Type),
        }
    }

    fn render(&self, _: &Rule) -> Json {
        (*self).into()
    }
}

impl Leaf for PathBuf {
    fn expected(_: &Rule) -> Cow<'static, str> {
        "a path".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        match text {
            "" => Err(Fault::Type),
            _ => Ok(PathBuf::from(text)),
        }
    }

    fn render(&self, _: &Rule) -> Json {
        self.to_string_lossy().into()
    }
}

impl Leaf for Duration {
    const CAN_BE_OFF: bool = true;

    fn expected(_: &Rule) -> Cow<'static, str> {
        "a duration such as 5s".into()
    }

    fn parse(text: &str, rule: &Rule) -> Result<Self, Fault> {
        within(parse_duration(text), rule, parse_duration)
    }

    fn render(&self, _: &Rule) -> Json {
        render_duration(*self).into()
    }
}

/// `30s`, `100ms`, `1h30m`, `1.5s`; a number alone is seconds.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_nanos = match unit {
            // A number without a unit stands alone: `1h30` would be ambiguous.
            "" if rest.len() == text.trim().len() => 1_000_000_000,
            unit => DURATION_UNITS.iter().find(|(name, _)| *name == unit)?.1,
        };
        total = total.checked_add(scaled(number, unit_nanos)?)?;
        rest = tail;
    }
    Some(Duration::new(
        u64::try_from(total / 1_000_000_000).ok()?,
        u32::try_from(total % 1_000_000_000).ok()?,
    ))
}

/// The largest units that say it exactly: `1h30m`, `100ms`, `30s`.
pub(crate) fn render_duration(duration: Duration) -> String {
    let mut nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, unit_nanos) in DURATION_UNITS.iter().rev().filter(|(unit, _)| *unit != "µs") {
        let count = nanos / unit_nanos;
        if count > 0 {
            text += &format!("{count}{unit}");
            nanos %= unit_nanos;
        }
    }
    text
}

/// `512MB`, `64MiB`, `1GB`, `1.5GB`; a number alone is bytes.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.trim_start().to_ascii_lowercase();
    let unit_bytes = match unit.as_str() {
        "" => 1,
        unit => SIZE_UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    scaled(number, u128::from(unit_bytes))?.try_into().ok()
}

/// The shortest unit form that says it exactly, binary or decimal; else the plain number.
pub(crate) fn render_bytes(bytes: u64) -> String {
    [
        ("TiB", 1 << 40),
        ("TB", 1_000_000_000_000),
        ("GiB", 1 << 30),
        ("GB", 1_000_000_000),
        ("MiB", 1 << 20),
        ("MB", 1_000_000),
        ("KiB", 1 << 10),
        ("KB", 1_000),
    ]
    .into_iter()
    .find(|(_, unit_bytes)| bytes > 0 && bytes.is_multiple_of(*unit_bytes))
    .map_or_else(
        || bytes.to_string(),
        |(unit, unit_bytes): (&str, u64)| format!("{}{unit}", bytes / unit_bytes),
    )
}

/// A decimal number times a unit, in integers: a fraction that the unit cannot hold exactly is cut off.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 9 {
        return None;
    }
    if !digits(whole) || !digits(fraction) || (fraction.is_empty() && number.contains('.')) {
        return None;
    }
    let whole = whole.parse::<u128>().ok()?.checked_mul(unit)?;
    let fraction = match fraction {
        "" => 0,
        text => text.parse::<u128>().ok()? * unit / 10_u128.pow(text.len() as u32),
    };
    whole.checked_add(fraction)
}

impl Leaf for u64 {
    const CAN_BE_OFF: bool = true;

    fn expected(rule: &Rule) -> Cow<'static, str> {
        match rule.format {
            Format::Bytes => "a size such as 512MB or 64MiB".into(),
            _ => "a whole number".into(),
        }
    }

    fn parse(text: &str, rule: &Rule) -> Result<Self, Fault> {
        match rule.format {
            Format::Bytes => within(parse_bytes(text), rule, parse_bytes),
            _ => within(parse_count(text), rule, parse_count),
        }
    }

    fn render(&self, rule: &Rule) -> Json {
        match rule.format {
            Format::Bytes => render_bytes(*self).into(),
            _ => (*self).into(),
        }
    }
}

impl Leaf for u32 {
    const CAN_BE_OFF: bool = true;

    fn expected(_: &Rule) -> Cow<'static, str> {
        "a whole number".into()
    }

    fn parse(text: &str, rule: &Rule) -> Result<Self, Fault> {
        let number = within(parse_count(text), rule, parse_count)?;
        u32::try_from(number).map_err(|_| Fault::Range)
    }

    fn render(&self, _: &Rule) -> Json {
        (*self).into()
    }
}

impl Leaf for f64 {
    const CAN_BE_OFF: bool = true;

    fn expected(_: &Rule) -> Cow<'static, str> {
        "a number such as 0.5".into()
    }

    fn parse(text: &str, rule: &Rule) -> Result<Self, Fault> {
        let parse = |text: &str| text.trim().parse::<f64>().ok().filter(|x| x.is_finite());
        within(parse(text), rule, parse)
    }

    fn render(&self, _: &Rule) -> Json {
        (*self).into()
    }
}

/// Digits only: a sign or a fraction is a mistake and not a number to round.
fn parse_count(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.bytes().all(|c| c.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    }
}

fn within<T: PartialOrd>(
    value: Option<T>,
    rule: &Rule,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, Fault> {
    let value = value.ok_or(Fault::Type)?;
    let outside = rule.range.is_some_and(|(min, max)| {
        parse(min).is_some_and(|min| value < min) || parse(max).is_some_and(|max| value > max)
    });
    match outside {
        true => Err(Fault::Range),
        false => Ok(value),
    }
}

impl Leaf for SocketAddr {
    const CAN_BE_OFF: bool = true;

    fn expected(_: &Rule) -> Cow<'static, str> {
        "an address such as 127.0.0.1:4222, localhost:4222 or :4222".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        // Names are not looked up: where a server listens must not depend on what a resolver says at that moment.
        let (host, port) = text.rsplit_once(':').ok_or(Fault::Type)?;
        let ip = match host {
            "" | "*" => Ipv4Addr::UNSPECIFIED,
            "localhost" => Ipv4Addr::LOCALHOST,
            _ => return Err(Fault::Type),
        };
        let port = parse_count(port).and_then(|port| u16::try_from(port).ok()).ok_or(Fault::Type)?;
        Ok(SocketAddr::from((ip, port)))
    }

    fn render(&self, _: &Rule) -> Json {
        self.to_string().into()
    }
}
