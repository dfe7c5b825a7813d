//! The `-ERR` lines that a session sends for reasons other than broken protocol.

use std::fmt;
use std::io::Write as _;

/// An error of a session, as clients are told it. `Display` is the exact text between the quotes of
/// `-ERR '…'`, on which clients match.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServerError<'a> {
    /// Wrong credentials, or an operation before credentials were given.
    #[error("Authorization Violation")]
    AuthorizationViolation,
    /// No `CONNECT` with credentials in time.
    #[error("Authentication Timeout")]
    AuthenticationTimeout,
    /// The credentials have ended while the connection lived.
    #[error("User Authentication Expired")]
    AuthenticationExpired,
    /// The user may not publish to the subject.
    #[error("Permissions Violation for Publish to {}", Quoted(subject))]
    PublishPermission {
        /// The subject.
        subject: &'a [u8],
    },
    /// The user may not name this reply subject.
    #[error("Permissions Violation for Publish with Reply of {}", Quoted(reply))]
    ReplyPermission {
        /// The reply subject.
        reply: &'a [u8],
    },
    /// The user may not subscribe to the pattern, or not with this queue group.
    #[error("Permissions Violation for Subscription to {}{}", Quoted(subject), UsingQueue(*queue))]
    SubscribePermission {
        /// The pattern.
        subject: &'a [u8],
        /// The queue group, when one was given.
        queue: Option<&'a [u8]>,
    },
    /// The user may not have a subscription any more that it has made; it is over.
    #[error(
        "Permissions Violation for Subscription to {}{} (sid {})",
        Quoted(subject),
        UsingQueue(*queue),
        Quoted(sid)
    )]
    SubscriptionRevoked {
        /// The pattern.
        subject: &'a [u8],
        /// The queue group, when there was one.
        queue: Option<&'a [u8]>,
        /// The client's name for the subscription.
        sid: &'a [u8],
    },
    /// A subscription to something that is no pattern.
    #[error("Invalid Subject")]
    InvalidSubject,
    /// A publish to something that is no subject.
    #[error("Invalid Publish Subject")]
    InvalidPublishSubject,
    /// The server has as many connections as it may.
    #[error("maximum connections exceeded")]
    MaxConnections,
    /// The subject of a subscription has more tokens than one may have.
    #[error("Permissions Violation for Subscription to {}, too many tokens", Quoted(subject))]
    TooManyTokens {
        /// The subject as the client wrote it.
        subject: &'a [u8],
    },
    /// The connection has as many subscriptions as it may.
    #[error("maximum subscriptions exceeded")]
    MaxSubscriptions,
    /// Too many PINGs went unanswered.
    #[error("Stale Connection")]
    StaleConnection,
    /// The client reads more slowly than messages for it arrive, and the bound on what is kept for
    /// it was reached.
    #[error("Slow Consumer")]
    SlowConsumer,
    /// The server has no memory for the rest of what the client is sending.
    #[error("Insufficient Memory")]
    InsufficientMemory,
    /// More clients have begun with TLS of late than may.
    #[error("Connection throttling is active. Please try again later.")]
    Throttled,
    /// The server wants TLS and the client did not start it.
    #[error("Secure Connection - TLS Required")]
    TlsRequired,
    /// `CONNECT` asks for no-responders answers without supporting the headers they are made of.
    #[error("no responders requires headers support")]
    NoRespondersRequiresHeaders,
    /// `HPUB` from a client whose `CONNECT` did not ask for headers.
    #[error("message headers not supported")]
    HeadersNotSupported,
    /// `CONNECT` names a protocol number that does not exist.
    #[error("invalid client protocol")]
    InvalidClientProtocol,
}

impl ServerError<'_> {
    /// Whether the server closes the connection after the error was sent.
    pub fn closes(&self) -> bool {
        match self {
            Self::PublishPermission { .. }
            | Self::ReplyPermission { .. }
            | Self::SubscribePermission { .. }
            | Self::SubscriptionRevoked { .. }
            | Self::InvalidSubject
            | Self::InvalidPublishSubject
            | Self::TooManyTokens { .. }
            | Self::MaxSubscriptions => false,
            Self::AuthorizationViolation
            | Self::AuthenticationTimeout
            | Self::AuthenticationExpired
            | Self::MaxConnections
            | Self::StaleConnection
            | Self::SlowConsumer
            | Self::InsufficientMemory
            | Self::Throttled
            | Self::TlsRequired
            | Self::NoRespondersRequiresHeaders
            | Self::HeadersNotSupported
            | Self::InvalidClientProtocol => true,
        }
    }

    /// Appends the whole `-ERR '…'` line.
    pub fn write(&self, out: &mut Vec<u8>) {
        write!(out, "-ERR '{self}'\r\n").expect("writing to a Vec does not fail");
    }
}

/// A subject in double quotes, escaped so that the line stays one line, and in the way of nats-server.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '"' | '\\' => write!(f, "\\{c}")?,
                    '\u{7}' => f.write_str("\\a")?,
                    '\u{8}' => f.write_str("\\b")?,
                    '\t' => f.write_str("\\t")?,
                    '\n' => f.write_str("\\n")?,
                    '\u{b}' => f.write_str("\\v")?,
                    '\u{c}' => f.write_str("\\f")?,
                    '\r' => f.write_str("\\r")?,
                    c if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c))?,
                    c if is_shown(c) => fmt::Write::write_char(f, c)?,
                    c if c <= '\u{ffff}' => write!(f, "\\u{:04x}", u32::from(c))?,
                    c => write!(f, "\\U{:08x}", u32::from(c))?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        f.write_str("\"")
    }
}

/// Whether a character leaves a mark, behind others.
fn is_shown(c: char) -> bool {
    c.is_ascii() || !format!("a{c}").escape_debug().any(|shown| shown == '\\')
}

/// The end of the text when a queue group was given.
struct UsingQueue<'a>(Option<&'a [u8]>);

impl fmt::Display for UsingQueue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(queue) => write!(f, " using queue {}", Quoted(queue)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ServerError::{self, *};

    #[test]
    fn texts_are_those_that_clients_match_on() {
        fn check(error: ServerError<'_>, text: &str, closes: bool) {
            let mut out = b"before".to_vec();
            error.write(&mut out);
            assert_eq!(String::from_utf8_lossy(&out), format!("before-ERR '{text}'\r\n"));
            assert_eq!(error.closes(), closes, "{text}");
        }
        check(AuthorizationViolation, "Authorization Violation", true);
        check(AuthenticationTimeout, "Authentication Timeout", true);
        check(AuthenticationExpired, "User Authentication Expired", true);
        check(PublishPermission { subject: b"a.b" }, r#"Permissions Violation for Publish to "a.b""#, false);
        check(
            ReplyPermission { reply: b"_R_.x" },
            r#"Permissions Violation for Publish with Reply of "_R_.x""#,
            false,
        );
        check(
            SubscribePermission { subject: b"a.>", queue: None },
            r#"Permissions Violation for Subscription to "a.>""#,
            false,
        );
        check(
            SubscribePermission { subject: b"a.*", queue: Some(b"q") },
            r#"Permissions Violation for Subscription to "a.*" using queue "q""#,
            false,
        );
        check(
            SubscriptionRevoked { subject: b"a.b", queue: None, sid: b"7" },
            r#"Permissions Violation for Subscription to "a.b" (sid "7")"#,
            false,
        );
        check(
            SubscriptionRevoked { subject: b"a.b", queue: Some(b"q"), sid: b"7" },
            r#"Permissions Violation for Subscription to "a.b" using queue "q" (sid "7")"#,
            false,
        );
        check(InvalidSubject, "Invalid Subject", false);
        check(InvalidPublishSubject, "Invalid Publish Subject", false);
        check(MaxConnections, "maximum connections exceeded", true);
        check(
            TooManyTokens { subject: b"a.b.c" },
            r#"Permissions Violation for Subscription to "a.b.c", too many tokens"#,
            false,
        );
        check(Throttled, "Connection throttling is active. Please try again later.", true);
        check(MaxSubscriptions, "maximum subscriptions exceeded", false);
        check(StaleConnection, "Stale Connection", true);
        check(SlowConsumer, "Slow Consumer", true);
        check(InsufficientMemory, "Insufficient Memory", true);
        check(TlsRequired, "Secure Connection - TLS Required", true);
        check(NoRespondersRequiresHeaders, "no responders requires headers support", true);
        check(HeadersNotSupported, "message headers not supported", true);
        check(InvalidClientProtocol, "invalid client protocol", true);
    }

    #[test]
    fn a_subject_cannot_break_the_line_it_is_quoted_in() {
        fn check(subject: &[u8], quoted: &str) {
            let text = PublishPermission { subject }.to_string();
            assert_eq!(text.strip_prefix("Permissions Violation for Publish to "), Some(quoted));
        }
        check(b"a\r\nPING\r\n", r#""a\r\nPING\r\n""#);
        check(b"\0\x07\x08\t\x0b\x0c\x1b\x7f", r#""\x00\a\b\t\v\f\x1b\x7f""#);
        check("\u{85}\u{a0}\u{2028}\u{200b}\u{e0001}".as_bytes(), r#""\u0085\u00a0\u2028\u200b\U000e0001""#);
        check("e\u{301}\u{fffd}\u{1f600}".as_bytes(), "\"e\u{301}\u{fffd}\u{1f600}\"");
        check(b"a\"b\\c", r#""a\"b\\c""#);
        check("blå.bær".as_bytes(), "\"blå.bær\"");
        check(b"a\xff\xfeb", r#""a\xff\xfeb""#);
    }
}
