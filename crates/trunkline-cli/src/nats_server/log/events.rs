//! What the server tells, on its way to the log: its events as lines, in nats-server's words where that has the same to say.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::Log;

/// What the server calls a client that has come with a token.
const TOKEN: &str = "[REDACTED]";
/// Characters of an nkey.
const NKEY_LENGTH: usize = 56;

/// Whoever asks for the server's events.
pub(super) struct Events(pub(super) Arc<Log>);

impl<S: Subscriber> Layer<S> for Events {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        // Decided once and asked again only when the levels change: a publisher must not pay for what is not written.
        match self.0.wants(metadata) {
            true => tracing::subscriber::Interest::always(),
            false => tracing::subscriber::Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.0.wants(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => "ERR",
            Level::WARN => "WRN",
            Level::INFO => "INF",
            Level::DEBUG => "DBG",
            Level::TRACE => "TRC",
        };
        if let Some(payload) = &text.payload {
            let max = self.0.traced_bytes_max.load(Ordering::Relaxed);
            let headers_alone = self.0.trace_headers.load(Ordering::Relaxed);
            if let Some(shown) = shown_payload(payload, text.header_bytes, headers_alone, max) {
                self.0.line(level, &text.about_client(&format!("{}: [{shown}]", text.message)));
            }
            return;
        }
        match text.of_nats_server(level) {
            Some((level, words)) => {
                words.iter().for_each(|words| self.0.line(level, &text.about_client(words)));
            }
            None => self.0.line(level, &text.finish()),
        }
    }
}

/// What a trace shows of a message, in quotes; `None` is nothing.
fn shown_payload(payload: &[u8], header_bytes: usize, headers_alone: bool, max: usize) -> Option<String> {
    let shown = match headers_alone {
        true => {
            let headers = payload.get(..header_bytes).filter(|headers| !headers.is_empty())?;
            headers.strip_suffix(b"\r\n\r\n").unwrap_or(headers)
        }
        false => payload,
    };
    if shown.is_empty() {
        return None;
    }
    Some(match max {
        1.. if shown.len() > max => format!("\"{}...\"", escaped(&shown[..max])),
        _ => format!("\"{}\"", escaped(shown)),
    })
}

/// Bytes as text on one line, as Go quotes them: what is text stays, what is none is shown by its numbers.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' | '\\' => text.extend(['\\', character]),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                // Of ASCII, and what `char` shows by its number: controls, and what has no width.
                '\0'..='\u{1f}' | '\u{7f}' => drop(write!(text, "\\x{:02x}", u32::from(character))),
                _ if is_shown(character) => text.push(character),
                _ => drop(write!(text, "\\u{:04x}", u32::from(character))),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Whether a character shows itself; combining ones do.
fn is_shown(character: char) -> bool {
    !character.is_control() && character.escape_debug().len() == 1
}

/// The fields of an event.
#[derive(Default)]
struct Text {
    client: Option<u64>,
    address: Option<String>,
    via: Option<String>,
    /// What the client says that it is.
    name: Option<String>,
    /// Its account, and who it is in it.
    login: Option<String>,
    message: String,
    /// Of a message that is shown, its headers in front.
    payload: Option<Vec<u8>>,
    header_bytes: usize,
    others: Vec<(&'static str, String)>,
}

impl Text {
    fn finish(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.others {
            let _ = write!(text, ", {name} {value}");
        }
        self.about_client(&text)
    }

    /// With the client before it that it is about, where it is about one.
    fn about_client(&self, text: &str) -> String {
        let mut line = String::new();
        if let Some(address) = &self.address {
            let _ = write!(line, "{address} - ");
        }
        if let Some(client) = self.client {
            let kind = if self.via.as_deref() == Some("websocket") { "wid" } else { "cid" };
            let _ = write!(line, "{kind}:{client} - ");
        }
        for said in [&self.name, &self.login].into_iter().flatten() {
            let _ = write!(line, "{said:?} - ");
        }
        line.push_str(text);
        line
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.others.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The same in the words of nats-server, which those who watch its log look for, and at its level; `None` where it has
    /// none. What clients do wrong are errors to it.
    fn of_nats_server(&self, level: &'static str) -> Option<(&'static str, Vec<String>)> {
        let error_level = if level == "WRN" { "ERR" } else { level };
        let of = |name: &str| self.field(name).unwrap_or_default();
        let (level, words) = match self.message.as_str() {
            "connection created" => (level, "Client connection created".to_owned()),
            "connection closed" => (level, format!("Client connection closed: {}", of("reason"))),
            "stale connection" => (level, "Stale Client Connection - Closing".to_owned()),
            "slow consumer: cut off" => ("INF", self.slow_consumer()),
            "not authorized" => (error_level, self.not_authorized()),
            "not permitted" => (error_level, self.not_permitted()?),
            "broken protocol" => (error_level, self.broken_protocol()),
            "CONNECT is not understood" => (error_level, of("error").to_owned()),
            "client reports an error" => (error_level, format!("Client Error {}", of("text"))),
            "a subscription is refused" => (error_level, "maximum subscriptions exceeded".to_owned()),
            "a connection is refused: there are as many as there may be" => {
                (error_level, "maximum connections exceeded".to_owned())
            }
            "no session" => {
                let what = if self.via.is_some() { "websocket" } else { "TLS" };
                let error = of("error");
                let error = error.strip_prefix("the handshake failed: ").unwrap_or(error);
                (error_level, format!("{what} handshake error: {error}"))
            }
            "a subscription is not permitted any more" => {
                let user = self.field("user").map_or_else(String::new, |user| format!(" for User {user:?}"));
                let (subject, sid) = (of("subject"), of("sid"));
                (level, format!("Removed sub {subject:?} (sid {sid:?}){user} - not authorized"))
            }
            "TLS handshake begins" => (level, "Starting TLS client connection handshake".to_owned()),
            "TLS handshake is over" => {
                let which = format!("TLS version {}, cipher suite {}", of("version"), of("cipher"));
                return Some((level, vec!["TLS handshake complete".to_owned(), which]));
            }
            "refused: more handshakes begin within a second than may" => {
                (level, format!("Rejected {} connections due to TLS rate limiting", of("connections")))
            }
            "clients are closed one by one" => (level, "Closing existing clients".to_owned()),
            text if text.starts_with("passwords are configured in plain text") => {
                (level, "Plaintext passwords detected, use nkeys or bcrypt".to_owned())
            }
            _ => return None,
        };
        Some((level, vec![words]))
    }

    fn slow_consumer(&self) -> String {
        let of = |name: &str| self.field(name).unwrap_or_default();
        let (bound, pending) = (of("bound"), of("pending_bytes"));
        match of("limit") {
            "max_pending" => format!("Slow Consumer Detected: MaxPending of {bound} Exceeded"),
            "write_deadline" => {
                format!(
                    "Slow Consumer Detected: WriteDeadline of {bound} exceeded with {pending} total bytes."
                )
            }
            limit => format!("Slow Consumer Detected: {limit} exceeded with {pending} total bytes."),
        }
    }

    fn not_authorized(&self) -> String {
        const ERROR: &str = "authentication error";
        let is_nkey = |name: &str| {
            let mut bytes = name.bytes();
            name.len() == NKEY_LENGTH
                && bytes.next() == Some(b'U')
                && bytes.all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
        };
        match (self.field("reason"), self.field("user")) {
            (Some("timeout"), _) => "Authentication Timeout".to_owned(),
            (_, None) => ERROR.to_owned(),
            (_, Some(TOKEN)) => format!("{ERROR} - Token {TOKEN:?}"),
            (_, Some(name)) if is_nkey(name) => format!("{ERROR} - Nkey {name:?}"),
            (_, Some(name)) => format!("{ERROR} - User {name:?}"),
        }
    }

    fn not_permitted(&self) -> Option<String> {
        let subject = self.field("subject")?;
        Some(match self.field("what")? {
            "publish" => format!("Publish Violation - Subject {subject}"),
            "reply" => format!("Publish Violation - Reply {subject}"),
            "tokens" => {
                let sid = self.field("sid").unwrap_or_default();
                format!("Subscription Violation Too Many Tokens - Subject {subject}, SID {sid}")
            }
            _ => {
                let queue =
                    self.field("queue").map_or_else(String::new, |queue| format!(", Queue: {queue:?}"));
                let sid = self.field("sid").unwrap_or_default();
                format!("Subscription Violation - Subject {subject}{queue}, SID {sid}")
            }
        })
    }

    fn broken_protocol(&self) -> String {
        let error = self.field("error").unwrap_or_default();
        match (self.field("reason"), self.field("size"), self.field("limit")) {
            (_, Some(size), Some(limit)) => format!("maximum payload exceeded: {size} vs {limit}"),
            (Some(reason @ "maximum control line exceeded"), ..) => reason.to_owned(),
            _ => format!("Client parser ERROR: {error}"),
        }
    }
}

impl Visit for Text {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "client" => self.client = Some(value),
            "header_bytes" => self.header_bytes = usize::try_from(value).unwrap_or_default(),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_bytes(&mut self, field: &Field, value: &[u8]) {
        match field.name() {
            "payload" => self.payload = Some(value.to_vec()),
            name => self.others.push((name, escaped(value))),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message = value,
            "address" => self.address = Some(value),
            "via" => self.via = Some(value),
            "name" => self.name = Some(value),
            "login" => self.login = Some(value),
            name => self.others.push((name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &str, fields: &[(&'static str, &str)], expected: Option<(&str, &str)>) {
        let others = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let address = Some("127.0.0.1:5".to_owned());
        let text = Text { client: Some(7), address, message: message.to_owned(), others, ..Text::default() };
        let told = text.of_nats_server("WRN").map(|(level, words)| (level, text.about_client(&words[0])));
        let told = told.as_ref().map(|(level, words)| {
            let words = words.strip_prefix("127.0.0.1:5 - cid:7 - ").expect("it is about a client");
            (*level, words)
        });
        assert_eq!(told, expected, "{message} {fields:?}");
    }

    #[test]
    fn what_clients_do_wrong_is_told_in_the_words_of_nats_server() {
        let (ann, secret) = (("user", "ann"), ("subject", "\"secret.>\""));
        let nkey = "UCNGL4W5QX66CFX6A6DCBVDH5VOHMI7B2UZZU7TXAUQQSI2JPHULCKBR";
        let by_nkey = format!("authentication error - Nkey {nkey:?}");
        let refused = |fields: &[_], words| check("not authorized", fields, Some(("ERR", words)));
        refused(&[ann, ("reason", "credentials")], "authentication error - User \"ann\"");
        refused(&[("reason", "credentials")], "authentication error");
        refused(&[("user", TOKEN), ("reason", "credentials")], "authentication error - Token \"[REDACTED]\"");
        refused(&[("user", nkey)], &by_nkey);
        refused(&[("reason", "timeout")], "Authentication Timeout");
        let denied = |fields: &[_], words| check("not permitted", fields, Some(("ERR", words)));
        denied(&[ann, secret, ("what", "publish")], "Publish Violation - Subject \"secret.>\"");
        denied(&[ann, secret, ("what", "reply")], "Publish Violation - Reply \"secret.>\"");
        let what = ("what", "subscribe");
        denied(&[secret, ("sid", "3"), what], "Subscription Violation - Subject \"secret.>\", SID 3");
        denied(
            &[secret, ("queue", "q"), ("sid", "3"), what],
            "Subscription Violation - Subject \"secret.>\", Queue: \"q\", SID 3",
        );
        denied(
            &[secret, ("sid", "3"), ("what", "tokens")],
            "Subscription Violation Too Many Tokens - Subject \"secret.>\", SID 3",
        );
        let broken = |fields: &[_], words| check("broken protocol", fields, Some(("ERR", words)));
        broken(&[("size", "9"), ("limit", "4")], "maximum payload exceeded: 9 vs 4");
        broken(&[("reason", "maximum control line exceeded")], "maximum control line exceeded");
        check(
            "slow consumer: cut off",
            &[("limit", "max_pending"), ("bound", "100")],
            Some(("INF", "Slow Consumer Detected: MaxPending of 100 Exceeded")),
        );
        check("something else", &[("error", "x")], None);
    }

    #[test]
    fn lines_say_whom_they_are_about() {
        let address = Some("127.0.0.1:5".to_owned());
        let some = |text: &str| Some(text.to_owned());
        let mut text = Text { client: Some(7), address, ..Text::default() };
        (text.name, text.login) = (some("v1.0:py:a\"b"), some("$G/user:ann"));
        assert_eq!(text.about_client("x"), r#"127.0.0.1:5 - cid:7 - "v1.0:py:a\"b" - "$G/user:ann" - x"#);
        (text.via, text.name) = (some("websocket"), None);
        assert_eq!(text.about_client("x"), "127.0.0.1:5 - wid:7 - \"$G/user:ann\" - x");
    }

    #[test]
    fn messages_are_shown_as_nats_server_shows_them() {
        let check = |payload: &[u8], header_bytes, headers_alone, max, expected: Option<&str>| {
            let shown = shown_payload(payload, header_bytes, headers_alone, max);
            assert_eq!(shown.as_deref(), expected, "{payload:?}");
        };
        check(b"hello", 0, false, 0, Some(r#""hello""#));
        check(b"", 0, false, 0, None);
        check(b"\x00\xff\x7f\x1b[2J", 0, false, 0, Some(r#""\x00\xff\x7f\x1b[2J""#));
        check("ü\"\\\r\n\t\u{200b}".as_bytes(), 0, false, 0, Some(r#""ü\"\\\r\n\t\u200b""#));
        check(b"hello world", 0, false, 5, Some(r#""hello...""#));
        check(b"hello", 0, false, 5, Some(r#""hello""#));
        let message = b"NATS/1.0\r\na: b\r\n\r\nsecret";
        check(message, 18, true, 0, Some(r#""NATS/1.0\r\na: b""#));
        check(message, 18, true, 5, Some(r#""NATS/...""#));
        check(b"secret", 0, true, 0, None);
    }
}
