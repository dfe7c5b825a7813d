//! A scanner of what a NATS server sends, for the slow path: handshakes, replies and whatever the fast check of
//! `tally` does not recognise. It borrows from the buffer and allocates nothing. What a frame means is decided elsewhere.

use thiserror::Error;

/// Longest line accepted from a server. INFO of a large cluster is a few KiB.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024;

/// Bytes from the server that are no frame.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum FrameError {
    #[error("a line is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    #[error("unknown operation in line `{line}`")]
    UnknownOperation { line: String },
    #[error("malformed message line `{line}`")]
    MalformedMessage { line: String },
    #[error("a message does not end with CR LF where its line `{line}` says")]
    MissingEnd { line: String },
}

/// One operation of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    Message(Message<'a>),
    Ping,
    Pong,
    Ok,
    Info(&'a [u8]),
    Error(&'a [u8]),
}

/// A `MSG` or `HMSG` frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) subject: &'a [u8],
    pub(super) sid: &'a [u8],
    pub(super) reply: Option<&'a [u8]>,
    pub(super) headers: &'a [u8],
    pub(super) payload: &'a [u8],
}

/// The first frame of `buf` and its length, or `None` when more bytes are needed.
///
/// # Errors
/// [`FrameError`] when no continuation of `buf` would be a frame.
pub(super) fn next(buf: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let searched = &buf[..buf.len().min(LINE_BYTES_MAX)];
    let Some(end) = searched.iter().position(|&byte| byte == b'\n') else {
        return if searched.len() == LINE_BYTES_MAX { Err(FrameError::LineTooLong) } else { Ok(None) };
    };
    let line = buf[..end].strip_suffix(b"\r").unwrap_or(&buf[..end]);
    let after = end + 1;
    if let Some(rest) = line.strip_prefix(b"MSG ") {
        return message(line, rest, false, &buf[after..], after);
    }
    if let Some(rest) = line.strip_prefix(b"HMSG ") {
        return message(line, rest, true, &buf[after..], after);
    }
    let frame = match line {
        b"PING" => Frame::Ping,
        b"PONG" => Frame::Pong,
        b"+OK" => Frame::Ok,
        _ if line.starts_with(b"INFO ") => Frame::Info(&line[5..]),
        _ if line.starts_with(b"-ERR") => Frame::Error(line[4..].trim_ascii()),
        _ => return Err(FrameError::UnknownOperation { line: shown(line) }),
    };
    Ok(Some((frame, after)))
}

fn message<'a>(
    line: &[u8],
    rest: &'a [u8],
    with_headers: bool,
    body: &'a [u8],
    line_bytes: usize,
) -> Result<Option<(Frame<'a>, usize)>, FrameError> {
    let malformed = || FrameError::MalformedMessage { line: shown(line) };
    let mut fields: [&[u8]; 5] = [&[]; 5];
    let mut count = 0;
    for field in rest.split(|&byte| byte == b' ').filter(|field| !field.is_empty()) {
        *fields.get_mut(count).ok_or_else(malformed)? = field;
        count += 1;
    }
    let sizes = if with_headers { 2 } else { 1 };
    let reply = match count.checked_sub(sizes) {
        Some(2) => None,
        Some(3) => Some(fields[2]),
        _ => return Err(malformed()),
    };
    let total = number(fields[count - 1]).ok_or_else(malformed)?;
    let header_bytes = if with_headers { number(fields[count - 2]).ok_or_else(malformed)? } else { 0 };
    if header_bytes > total {
        return Err(malformed());
    }
    let Some(end) = body.get(total..total + 2) else {
        return Ok(None);
    };
    if end != b"\r\n" {
        return Err(FrameError::MissingEnd { line: shown(line) });
    }
    let (headers, payload) = body[..total].split_at(header_bytes);
    let message = Message { subject: fields[0], sid: fields[1], reply, headers, payload };
    Ok(Some((Frame::Message(message), line_bytes + total + 2)))
}

/// A decimal number of at most nine digits: larger payloads do not exist, and it cannot overflow.
fn number(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value * 10 + usize::from(digit - b'0')))
}

/// Enough of a line for an error message.
pub(super) fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], frame: Frame<'_>) {
        assert_eq!(next(bytes), Ok(Some((frame, bytes.len()))));
        for cut in 0..bytes.len() {
            assert_eq!(next(&bytes[..cut]), Ok(None), "{cut} bytes are no frame yet");
        }
    }

    #[test]
    fn every_frame_is_recognised_and_none_too_early() {
        check(b"PING\r\n", Frame::Ping);
        check(b"PONG\r\n", Frame::Pong);
        check(b"+OK\r\n", Frame::Ok);
        check(b"INFO {\"a\":1} \r\n", Frame::Info(b"{\"a\":1} "));
        check(b"-ERR 'Slow Consumer'\r\n", Frame::Error(b"'Slow Consumer'"));
        let plain = Message { subject: b"a.b", sid: b"7", reply: None, headers: b"", payload: b"x\r\ny" };
        check(b"MSG a.b 7 4\r\nx\r\ny\r\n", Frame::Message(plain));
        let reply = Message { subject: b"a", sid: b"1", reply: Some(b"r.1"), headers: b"", payload: b"" };
        check(b"MSG a 1 r.1 0\r\n\r\n", Frame::Message(reply));
        let headers = Message { subject: b"a", sid: b"1", reply: None, headers: b"H\r\n", payload: b"hi" };
        check(b"HMSG a 1 3 5\r\nH\r\nhi\r\n", Frame::Message(headers));
    }

    #[test]
    fn bytes_behind_a_frame_belong_to_the_next() {
        assert_eq!(next(b"PING\r\nPONG\r\n"), Ok(Some((Frame::Ping, 6))));
    }

    #[test]
    fn what_can_become_no_frame_is_an_error() {
        assert!(matches!(next(b"HELLO\r\n"), Err(FrameError::UnknownOperation { .. })));
        for line in [
            &b"MSG a 1\r\n"[..],
            b"MSG a 1 x\r\n",
            b"MSG a 1 r 2 3 4\r\n",
            b"MSG a 1 1234567890\r\n",
            b"HMSG a 1 5\r\n",
            b"HMSG a 1 6 5\r\n",
        ] {
            assert!(matches!(next(line), Err(FrameError::MalformedMessage { .. })), "{}", shown(line));
        }
        assert!(matches!(next(b"MSG a 1 2\r\nabcd"), Err(FrameError::MissingEnd { .. })));
        assert_eq!(next(&vec![b'x'; LINE_BYTES_MAX]), Err(FrameError::LineTooLong));
    }
}
