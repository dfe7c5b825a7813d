//! Publishes that follow one another on one subject, as the bytes that they came in.
//!
//! What a server sends of a publish without reply and header is what it got but for the start of the line: the size, the
//! line end, the payload and its line end stand there already. And the next publish on the same subject begins with the
//! same bytes, so that nothing of its line but the size has to be read.

use crate::parse::Limits;

/// Most digits of a size that is read here.
const DIGITS_MAX: usize = 9;
/// `PUB`, whose separator is counted with the arguments.
const VERB_BYTES: usize = 3;

/// A `PUB` without a reply, whose line ends in CRLF and whose size is written as servers write it.
///
/// # Examples
///
/// ```
/// use trunkline_protocol::{Limits, PlainPub};
///
/// let buf = b"PUB news 2\r\nhi\r\nPUB news 5\r\nthere\r\nPING\r\n";
/// let first = PlainPub::new(&buf[..16], 2).unwrap();
/// assert_eq!(first.tail, b"2\r\nhi\r\n");
/// let second = first.next(&buf[16..], &Limits::default()).unwrap();
/// assert_eq!((second.tail, second.payload_len, second.len()), (&b"5\r\nthere\r\n"[..], 5, 19));
/// assert!(second.next(&buf[35..], &Limits::default()).is_none());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainPub<'a> {
    /// The line up to the size.
    prefix: &'a [u8],
    /// The size, its line end, the payload and its line end.
    pub tail: &'a [u8],
    /// Bytes of the payload.
    pub payload_len: usize,
}

impl<'a> PlainPub<'a> {
    /// The publish that [`parse`](crate::parse) has found to be all of `op`, without reply and header; `None` where it is
    /// written in another way.
    #[inline]
    pub fn new(op: &'a [u8], payload_len: usize) -> Option<Self> {
        let line = op.get(..op.len().checked_sub(payload_len + 2)?)?.strip_suffix(b"\r\n")?;
        let digits = line.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let (prefix, size) = line.split_at(line.len() - digits);
        let is_plain =
            is_canonical(size) && matches!(prefix, [b'P' | b'p', _, _, b' ' | b'\t', .., b' ' | b'\t']);
        is_plain.then(|| Self { prefix, tail: &op[prefix.len()..], payload_len })
    }

    /// The publish at the start of `buf`, if it is all there and is one on the same subject that is written alike. Of
    /// anything else it says nothing.
    #[inline]
    pub fn next(&self, buf: &'a [u8], limits: &Limits) -> Option<Self> {
        let rest = buf.strip_prefix(self.prefix)?;
        let mut payload_len = 0;
        let mut digits = 0;
        while let Some(digit @ b'0'..=b'9') = rest.get(digits)
            && digits < DIGITS_MAX
        {
            payload_len = payload_len * 10 + usize::from(digit - b'0');
            digits += 1;
        }
        // The separator behind the verb is not counted.
        let is_short = self.prefix.len() + digits <= limits.max_control_line.saturating_add(VERB_BYTES + 1);
        if !is_short || payload_len > limits.max_payload || !is_canonical(&rest[..digits]) {
            return None;
        }
        let payload = rest[digits..].strip_prefix(b"\r\n")?;
        let behind = payload.get(payload_len..)?;
        behind.starts_with(b"\r\n").then(|| Self {
            prefix: self.prefix,
            tail: &rest[..digits + payload_len + 4],
            payload_len,
        })
    }

    /// The payload.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.tail[self.tail.len() - 2 - self.payload_len..self.tail.len() - 2]
    }

    /// Bytes of the whole operation.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "an operation is never empty")]
    pub fn len(&self) -> usize {
        self.prefix.len() + self.tail.len()
    }
}

/// Whether a size has no needless zero, and is there.
#[inline]
fn is_canonical(digits: &[u8]) -> bool {
    !digits.is_empty() && (digits[0] != b'0' || digits.len() == 1)
}
