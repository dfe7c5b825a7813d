//! Header blocks: `NATS/1.0`, an optional status on the same line, `Name: value` lines, an empty
//! line.
//!
//! A block is read in place and written straight into a buffer; there is no collection of headers
//! here. Rules: ADR-4 of <https://github.com/nats-io/nats-architecture-and-design>. Reading is
//! lenient where peers differ (any name that a colon ends, any bytes as value), writing is strict.

use memchr::{memchr, memmem};

const VERSION: &[u8] = b"NATS/1.0";
const END: &[u8] = b"\r\n\r\n";

/// Why bytes are not a header block, or cannot become part of one.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The block does not begin with `NATS/1.0`.
    #[error("header block does not begin with NATS/1.0")]
    Version,
    /// Something other than a status of three digits and its description follows the version.
    #[error("header status is not a number of three digits")]
    Status,
    /// The block does not end with an empty line, or has bytes behind it.
    #[error("header block does not end with its first empty line")]
    End,
    /// A line is not `Name: value`, or its name is empty or begins with a space.
    #[error("header line {line} is not \"Name: value\"")]
    Line {
        /// Number of the line, the first behind the version line being 1.
        line: usize,
    },
    /// A name to write is empty, or has other than printable ASCII, or a space or a colon in it.
    #[error("header name is not printable ASCII without space and colon")]
    Name,
    /// A value or description to write has a line end in it.
    #[error("header value contains a line end")]
    Value,
}

/// Checks a whole block and gives its lines.
///
/// # Errors
///
/// [`HeaderError`] when any part of the block is malformed; the lines then found can be relied on.
///
/// # Examples
///
/// ```
/// use trunkline_protocol::header_lines;
///
/// let lines = header_lines(b"NATS/1.0 503 No Responders\r\nTraceparent: 00-ab\r\n\r\n")?;
/// assert_eq!(lines.status(), Some(503));
/// assert_eq!(lines.description(), Some(&b"No Responders"[..]));
/// assert_eq!(lines.collect::<Vec<_>>(), [(&b"Traceparent"[..], &b"00-ab"[..])]);
/// # Ok::<(), trunkline_protocol::HeaderError>(())
/// ```
pub fn header_lines(block: &[u8]) -> Result<HeaderLines<'_>, HeaderError> {
    let rest = block.strip_prefix(VERSION).ok_or(HeaderError::Version)?;
    if memmem::find(block, END).map(|at| at + END.len()) != Some(block.len()) {
        return Err(HeaderError::End);
    }
    // The block ends in two line ends, so the first line and all others have one.
    let (first, rest) = take_line(rest).ok_or(HeaderError::End)?;
    let (status, description) = status(first)?;
    let lines = HeaderLines { status, description, rest: rest.strip_suffix(b"\r\n").unwrap_or(rest) };
    let mut unchecked = lines.rest;
    let mut line = 1;
    while !unchecked.is_empty() {
        unchecked = take_header(unchecked).ok_or(HeaderError::Line { line })?.1;
        line += 1;
    }
    Ok(lines)
}

/// What is left of a message, sent as header block and payload in one piece, without its header
/// block.
///
/// This is what a receiver gets that does not understand headers.
///
/// # Errors
///
/// [`HeaderError::Version`] or [`HeaderError::End`] when the message does not begin with a whole
/// header block.
pub fn strip_headers(message: &[u8]) -> Result<&[u8], HeaderError> {
    if !message.starts_with(VERSION) {
        return Err(HeaderError::Version);
    }
    let at = memmem::find(message, END).ok_or(HeaderError::End)?;
    Ok(&message[at + END.len()..])
}

/// The lines of a checked header block, as `(name, value)` without the white space around values.
///
/// Names keep the case in which they were sent; the same name may come more than once.
#[derive(Debug, Clone)]
pub struct HeaderLines<'a> {
    status: Option<u16>,
    description: Option<&'a [u8]>,
    rest: &'a [u8],
}

impl<'a> HeaderLines<'a> {
    /// The status on the version line, such as 503 for a request that nobody receives.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// The text behind the status.
    pub fn description(&self) -> Option<&'a [u8]> {
        self.description
    }
}

impl<'a> Iterator for HeaderLines<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // All lines were checked, so `None` is the end and nothing else.
        let (header, rest) = take_header(self.rest)?;
        self.rest = rest;
        Some(header)
    }
}

type Header<'a> = (&'a [u8], &'a [u8]);

fn take_header(block: &[u8]) -> Option<(Header<'_>, &[u8])> {
    let (line, rest) = take_line(block)?;
    let (name, value) = line.split_at(memchr(b':', line)?);
    // A line that begins with white space would continue the one before it, a form that no client
    // writes.
    match name.first() {
        None | Some(b' ' | b'\t') => None,
        Some(_) => Some(((name, value[1..].trim_ascii()), rest)),
    }
}

/// Splits at the first CRLF; `None` when there is none, or a bare LF or CR comes first.
fn take_line(block: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr(b'\n', block)?;
    let line = block[..end].strip_suffix(b"\r")?;
    if memchr(b'\r', line).is_some() {
        return None;
    }
    Some((line, &block[end + 1..]))
}

/// Reads what follows the version: nothing, or ` 503`, or ` 503 No Responders`. Some clients write
/// no space.
fn status(text: &[u8]) -> Result<(Option<u16>, Option<&[u8]>), HeaderError> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Ok((None, None));
    }
    let (code, description) = text.split_at_checked(3).ok_or(HeaderError::Status)?;
    if !code.iter().all(u8::is_ascii_digit) || description.first().is_some_and(|&byte| byte != b' ') {
        return Err(HeaderError::Status);
    }
    let code = code.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    let description = description.trim_ascii();
    Ok((Some(code), if description.is_empty() { None } else { Some(description) }))
}

/// Writes one header block at the end of a buffer.
///
/// # Examples
///
/// ```
/// use trunkline_protocol::HeaderBlock;
///
/// let mut out = Vec::new();
/// let mut block = HeaderBlock::new(&mut out);
/// block.append(b"Nats-Msg-Id", b"42")?;
/// assert_eq!(block.finish(), 29);
/// assert_eq!(out, b"NATS/1.0\r\nNats-Msg-Id: 42\r\n\r\n");
/// # Ok::<(), trunkline_protocol::HeaderError>(())
/// ```
#[derive(Debug)]
#[must_use = "a block is whole only after `finish`"]
pub struct HeaderBlock<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> HeaderBlock<'a> {
    /// Begins a block without status.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(b"NATS/1.0\r\n");
        Self { out, start }
    }

    /// Begins a block with a status of three digits and, unless empty, its description.
    ///
    /// # Errors
    ///
    /// [`HeaderError::Status`] when `status` has not three digits, [`HeaderError::Value`] when
    /// `description` has a line end in it; nothing was written then.
    pub fn with_status(out: &'a mut Vec<u8>, status: u16, description: &[u8]) -> Result<Self, HeaderError> {
        if !(100..=999).contains(&status) {
            return Err(HeaderError::Status);
        }
        check_value(description)?;
        let start = out.len();
        out.extend_from_slice(b"NATS/1.0 ");
        out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
        if !description.is_empty() {
            out.push(b' ');
            out.extend_from_slice(description);
        }
        out.extend_from_slice(b"\r\n");
        Ok(Self { out, start })
    }

    /// Adds a header.
    ///
    /// # Errors
    ///
    /// [`HeaderError::Name`] or [`HeaderError::Value`] when it cannot be written as one line;
    /// nothing was added then, and the block can go on.
    pub fn append(&mut self, name: &[u8], value: &[u8]) -> Result<&mut Self, HeaderError> {
        if name.is_empty() || !name.iter().all(|&byte| byte.is_ascii_graphic() && byte != b':') {
            return Err(HeaderError::Name);
        }
        check_value(value)?;
        self.out.reserve(name.len() + value.len() + 4);
        self.out.extend_from_slice(name);
        self.out.extend_from_slice(b": ");
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
        Ok(self)
    }

    /// Ends the block and gives its length in bytes.
    pub fn finish(self) -> usize {
        self.out.extend_from_slice(b"\r\n");
        self.out.len() - self.start
    }
}

fn check_value(value: &[u8]) -> Result<(), HeaderError> {
    if memchr::memchr2(b'\r', b'\n', value).is_some() { Err(HeaderError::Value) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_give_status_and_lines() {
        fn check(block: &str, status: Option<u16>, description: Option<&str>, expected: &[(&str, &str)]) {
            let lines = header_lines(block.as_bytes()).expect(block);
            assert_eq!(lines.status(), status, "{block:?}");
            assert_eq!(lines.description(), description.map(str::as_bytes), "{block:?}");
            let expected: Vec<_> =
                expected.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            assert_eq!(lines.collect::<Vec<_>>(), expected, "{block:?}");
        }
        check("NATS/1.0\r\n\r\n", None, None, &[]);
        check("NATS/1.0  \r\n\r\n", None, None, &[]);
        check("NATS/1.0 503\r\n\r\n", Some(503), None, &[]);
        check("NATS/1.0503\r\n\r\n", Some(503), None, &[]);
        check("NATS/1.0 404 No Messages\r\n\r\n", Some(404), Some("No Messages"), &[]);
        check(
            "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n",
            Some(100),
            Some("Idle Heartbeat"),
            &[("Nats-Last-Consumer", "7")],
        );
        check(
            "NATS/1.0\r\na:1\r\nA: 2\r\na:\t 3 \r\nempty:\r\nurl: http://x:80\r\nMy Key: blå\r\n\r\n",
            None,
            None,
            &[("a", "1"), ("A", "2"), ("a", "3"), ("empty", ""), ("url", "http://x:80"), ("My Key", "blå")],
        );
    }

    #[test]
    fn malformed_blocks_are_refused() {
        fn check(block: &str, expected: HeaderError) {
            assert_eq!(header_lines(block.as_bytes()).expect_err(block), expected, "{block:?}");
        }
        check("", HeaderError::Version);
        check("NATS/1.", HeaderError::Version);
        check("nats/1.0\r\n\r\n", HeaderError::Version);
        check("NATS/2.0\r\n\r\n", HeaderError::Version);
        check("NATS/1.0", HeaderError::End);
        check("NATS/1.0\r\n", HeaderError::End);
        check("NATS/1.0\r\na: 1\r\n", HeaderError::End);
        check("NATS/1.0\r\na: 1\r\n\r\nbehind", HeaderError::End);
        check("NATS/1.0\r\n\r\na: 1\r\n\r\n", HeaderError::End);
        check("NATS/1.0\n\r\n\r\n", HeaderError::End);
        check("NATS/1.0 5\r\n\r\n", HeaderError::Status);
        check("NATS/1.0 50x\r\n\r\n", HeaderError::Status);
        check("NATS/1.0 5033\r\n\r\n", HeaderError::Status);
        check("NATS/1.0\r\nno colon\r\n\r\n", HeaderError::Line { line: 1 });
        check("NATS/1.0\r\na: 1\r\n: 2\r\n\r\n", HeaderError::Line { line: 2 });
        check("NATS/1.0\r\na: 1\r\n folded: 2\r\n\r\n", HeaderError::Line { line: 2 });
        check("NATS/1.0\r\na: 1\nb: 2\r\n\r\n", HeaderError::Line { line: 1 });
        check("NATS/1.0\r\na: 1\rb: 2\r\n\r\n", HeaderError::Line { line: 1 });
    }

    #[test]
    fn strip_headers_leaves_the_payload() {
        fn check(message: &[u8], expected: Result<&[u8], HeaderError>) {
            assert_eq!(strip_headers(message), expected);
        }
        check(b"NATS/1.0\r\na: 1\r\n\r\npay\r\n\r\nload", Ok(b"pay\r\n\r\nload"));
        check(b"NATS/1.0 503\r\n\r\n", Ok(b""));
        check(b"NATS/1.0\r\na: 1\r\n", Err(HeaderError::End));
        check(b"payload\r\n\r\n", Err(HeaderError::Version));
    }

    #[test]
    fn what_would_break_a_block_is_not_written() {
        fn check(name: &[u8], value: &[u8], expected: HeaderError) {
            let mut out = Vec::new();
            let mut block = HeaderBlock::new(&mut out);
            assert_eq!(block.append(name, value).expect_err("refused"), expected);
            block
                .append(b"ok", b"yes")
                .expect("a good header may follow")
                .append(b"b", b"")
                .expect("so may another");
            assert_eq!(block.finish(), out.len());
            assert_eq!(out, b"NATS/1.0\r\nok: yes\r\nb: \r\n\r\n");
        }
        check(b"", b"v", HeaderError::Name);
        check(b"a:b", b"v", HeaderError::Name);
        check(b"a b", b"v", HeaderError::Name);
        check("blå".as_bytes(), b"v", HeaderError::Name);
        check(b"a\r\nb", b"v", HeaderError::Name);
        check(b"a", b"v\r\nx: y", HeaderError::Value);
        check(b"a", b"v\n", HeaderError::Value);
    }

    #[test]
    fn status_blocks_are_written_and_checked() {
        fn check(status: u16, description: &[u8], expected: Result<&[u8], HeaderError>) {
            let mut out = b"x".to_vec();
            match HeaderBlock::with_status(&mut out, status, description) {
                Ok(block) => {
                    let len = block.finish();
                    assert_eq!(Ok(&out[1..]), expected);
                    assert_eq!(len, out.len() - 1);
                }
                Err(error) => {
                    assert_eq!(Err(error), expected);
                    assert_eq!(out, b"x");
                }
            }
        }
        check(503, b"", Ok(b"NATS/1.0 503\r\n\r\n"));
        check(408, b"Request Timeout", Ok(b"NATS/1.0 408 Request Timeout\r\n\r\n"));
        check(99, b"", Err(HeaderError::Status));
        check(1000, b"", Err(HeaderError::Status));
        check(503, b"a\r\nb", Err(HeaderError::Value));
    }
}
