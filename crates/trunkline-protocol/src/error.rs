//! What is wrong with bytes that a peer sent, as text for the wire and for people.

use std::fmt;

/// Why bytes are not the protocol.
///
/// [`wire`](Self::wire) is what the peer is told; `Display` is for logs, and names the limit and
/// its setting.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The line does not begin with an operation that a peer of this kind may send.
    #[error("unknown operation {seen}")]
    UnknownOperation {
        /// The beginning of the line.
        seen: Snippet,
    },
    /// The operation is known, its arguments are not understood.
    #[error("{verb}: {problem}")]
    Parser {
        /// The operation, in capitals.
        verb: &'static str,
        /// What is wrong with the arguments.
        problem: Problem,
    },
    /// A payload (header block included) is bigger than allowed; known before the payload has
    /// arrived.
    #[error("payload is {size} bytes, limit is {limit} (server.limits.max_payload)")]
    MaxPayload {
        /// Size in bytes that the control line announced.
        size: u64,
        /// Bytes allowed.
        limit: usize,
    },
    /// The arguments of a control line are longer than allowed; known before the line has ended.
    #[error("control line is longer than {limit} bytes (server.limits.max_control_line)")]
    ControlLine {
        /// Bytes allowed.
        limit: usize,
    },
    /// The payload is not followed by CRLF, so the announced size was wrong.
    #[error("payload of {size} bytes is not followed by CRLF")]
    PayloadEnd {
        /// Size in bytes that the control line announced.
        size: usize,
    },
}

impl ProtocolError {
    /// The text between the quotes of `-ERR '…'`, as nats-server words it and clients match on it.
    pub fn wire(&self) -> &'static str {
        match self {
            Self::UnknownOperation { .. } | Self::PayloadEnd { .. } => "Unknown Protocol Operation",
            Self::Parser { .. } => "Parser Error",
            Self::MaxPayload { .. } => "Maximum Payload Violation",
            Self::ControlLine { .. } => "maximum control line exceeded",
        }
    }

    /// Whether the connection must be closed after the error was sent.
    ///
    /// Always so: after each of them the place where the next operation begins is unknown.
    pub fn closes(&self) -> bool {
        true
    }

    /// Appends the whole `-ERR '…'` line.
    pub fn write(&self, out: &mut Vec<u8>) {
        for part in ["-ERR '", self.wire(), "'\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// What is wrong with the arguments of a known operation.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Too few or too many arguments.
    #[error("wrong number of arguments, expected {expected}")]
    ArgumentCount {
        /// The arguments as the protocol page writes them.
        expected: &'static str,
    },
    /// A size or a count is not a decimal number of at most 19 digits.
    #[error("{seen} is not a number of at most 19 digits")]
    Number {
        /// The argument.
        seen: Snippet,
    },
    /// The header block is announced as longer than the message that contains it.
    #[error("header of {header} bytes in a message of {total}")]
    HeaderSize {
        /// Bytes of the header block.
        header: u64,
        /// Bytes of header block and payload.
        total: u64,
    },
    /// A carriage return stands inside the line; passed on, it would break the lines of whoever
    /// receives it.
    #[error("carriage return inside the line")]
    CarriageReturn,
}

/// The first bytes of something unexpected, at most 24 of them, kept without allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Snippet {
    bytes: [u8; Self::MAX],
    len: u8,
    cut: bool,
}

impl Snippet {
    const MAX: usize = 24;

    /// Keeps the beginning of the first line of `text`.
    pub(crate) fn new(text: &[u8]) -> Self {
        let line = &text[..memchr::memchr2(b'\r', b'\n', text).unwrap_or(text.len())];
        let kept = line.len().min(Self::MAX);
        let mut bytes = [0; Self::MAX];
        bytes[..kept].copy_from_slice(&line[..kept]);
        Self { bytes, len: kept as u8, cut: kept < line.len() }
    }

    /// The bytes that were kept.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Display for Snippet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}{}\"", self.as_bytes().escape_ascii(), if self.cut { "…" } else { "" })
    }
}

impl fmt::Debug for Snippet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_says_what_was_seen_the_limit_and_the_setting() {
        fn check(error: ProtocolError, display: &str, wire: &str) {
            assert_eq!(error.to_string(), display);
            assert_eq!(error.wire(), wire);
            assert!(error.closes());
            let mut out = Vec::new();
            error.write(&mut out);
            assert_eq!(out, format!("-ERR '{wire}'\r\n").into_bytes());
        }
        check(
            ProtocolError::MaxPayload { size: 2_097_152, limit: 1_048_576 },
            "payload is 2097152 bytes, limit is 1048576 (server.limits.max_payload)",
            "Maximum Payload Violation",
        );
        check(
            ProtocolError::ControlLine { limit: 4096 },
            "control line is longer than 4096 bytes (server.limits.max_control_line)",
            "maximum control line exceeded",
        );
        check(
            ProtocolError::UnknownOperation { seen: Snippet::new(b"GET / HTTP/1.1\r\nHost: x\r\n") },
            "unknown operation \"GET / HTTP/1.1\"",
            "Unknown Protocol Operation",
        );
        check(
            ProtocolError::UnknownOperation { seen: Snippet::new(&[0xff; 30]) },
            &format!("unknown operation \"{}…\"", "\\xff".repeat(24)),
            "Unknown Protocol Operation",
        );
        check(
            ProtocolError::PayloadEnd { size: 5 },
            "payload of 5 bytes is not followed by CRLF",
            "Unknown Protocol Operation",
        );
        check(
            ProtocolError::Parser { verb: "PUB", problem: Problem::Number { seen: Snippet::new(b"-1") } },
            "PUB: \"-1\" is not a number of at most 19 digits",
            "Parser Error",
        );
        check(
            ProtocolError::Parser { verb: "HPUB", problem: Problem::HeaderSize { header: 9, total: 8 } },
            "HPUB: header of 9 bytes in a message of 8",
            "Parser Error",
        );
    }
}
