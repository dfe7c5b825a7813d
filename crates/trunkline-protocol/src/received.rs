//! The JSON object of `CONNECT`, read as nats-server reads it, whose reader is Go's `encoding/json`.
//!
//! - A field may be written in letters of any case; of one that is there more than once, the last counts.
//! - `null` says nothing, in place of a value and in place of the whole object: some client libraries write it for what they
//!   do not set.
//! - What is not UTF-8, and half of a surrogate pair, is read as U+FFFD.
//! - Fields that nobody knows are skipped, however deep they are nested.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

/// What a client said. `None` is what it did not say.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) verbose: Option<bool>,
    pub(crate) pedantic: Option<bool>,
    pub(crate) echo: Option<bool>,
    pub(crate) headers: Option<bool>,
    pub(crate) no_responders: Option<bool>,
    pub(crate) tls_required: Option<bool>,
    pub(crate) protocol: Option<i64>,
    pub(crate) name: Option<String>,
    pub(crate) lang: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) pass: Option<String>,
    pub(crate) auth_token: Option<String>,
    pub(crate) jwt: Option<String>,
    pub(crate) nkey: Option<String>,
    pub(crate) sig: Option<String>,
    pub(crate) account: Option<String>,
}

impl Received {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_str(&readable(json))
    }
}

impl<'de> Deserialize<'de> for Received {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Received;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Received, E> {
        Ok(Received::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Received, A::Error> {
        let mut received = Received::default();
        while let Some(name) = map.next_key::<String>()? {
            match &folded(&name)[..] {
                "verbose" => read(&mut map, &mut received.verbose)?,
                "pedantic" => read(&mut map, &mut received.pedantic)?,
                "echo" => read(&mut map, &mut received.echo)?,
                "headers" => read(&mut map, &mut received.headers)?,
                "no_responders" => read(&mut map, &mut received.no_responders)?,
                "tls_required" => read(&mut map, &mut received.tls_required)?,
                "protocol" => read(&mut map, &mut received.protocol)?,
                "name" => read(&mut map, &mut received.name)?,
                "lang" => read(&mut map, &mut received.lang)?,
                "version" => read(&mut map, &mut received.version)?,
                "user" => read(&mut map, &mut received.user)?,
                "pass" => read(&mut map, &mut received.pass)?,
                "auth_token" => read(&mut map, &mut received.auth_token)?,
                "jwt" => read(&mut map, &mut received.jwt)?,
                "nkey" => read(&mut map, &mut received.nkey)?,
                "sig" => read(&mut map, &mut received.sig)?,
                "account" => read(&mut map, &mut received.account)?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(received)
    }
}

fn read<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    map: &mut A,
    field: &mut Option<T>,
) -> Result<(), A::Error> {
    let said: Option<T> = map.next_value()?;
    *field = said.or(field.take());
    Ok(())
}

/// A name in small letters, those two letters among them that Unicode takes for an `s` and a `k` of another case.
fn folded(name: &str) -> String {
    let small = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(small).collect()
}

/// The text with U+FFFD in the place of each byte, and of each escaped half of a surrogate pair, that no text can have.
fn readable(json: &[u8]) -> Cow<'_, str> {
    let text = match std::str::from_utf8(json) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(json.utf8_chunks().flat_map(shown).collect()),
    };
    match text.contains("\\u") {
        true => Cow::Owned(without_halves(&text)),
        false => text,
    }
}

fn shown(chunk: std::str::Utf8Chunk<'_>) -> impl Iterator<Item = char> {
    chunk.valid().chars().chain(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER))
}

fn without_halves(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escaped) = rest.split_at(at);
        out.push_str(before);
        let length = match (unit(escaped), escaped.get(6..).and_then(unit)) {
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => 12,
            (Some(0xd800..0xe000), _) => {
                out.push(char::REPLACEMENT_CHARACTER);
                rest = &escaped[6..];
                continue;
            }
            // With what is escaped, which may be a backslash.
            _ => 1 + escaped[1..].chars().next().map_or(0, char::len_utf8),
        };
        let (kept, behind) = escaped.split_at(length);
        out.push_str(kept);
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// The number of `\uXXXX` at the start of a text. One that begins with a sign, which is none to JSON, is smaller than any half.
fn unit(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}
