//! The scanning that both directions of the protocol share: lines, arguments, numbers, payloads.
//!
//! Everything here runs once or more per message, so it borrows, does not allocate, and keeps what
//! builds an error out of line.

use memchr::{memchr, memchr3};

use crate::error::{Problem, ProtocolError, Snippet};
use crate::parse::Limits;

/// The rest of a control line behind its verb.
pub(crate) struct Line<'a> {
    /// From the byte behind the verb up to the line end, which is not included.
    pub(crate) text: &'a [u8],
    /// Where the byte behind the line end is, counted from the start of the buffer.
    pub(crate) next: usize,
}

/// Finds the end of the control line whose verb ends at `from`; `None` when it has not arrived.
///
/// `from` is at most `buf.len()`. nats-server measures the arguments alone, without verb, separator
/// and line end; the same lines must pass here.
#[inline(always)]
pub(crate) fn line<'a>(
    buf: &'a [u8],
    from: usize,
    limits: &Limits,
) -> Result<Option<Line<'a>>, ProtocolError> {
    let longest = limits.max_control_line.saturating_add(1);
    let window_max = longest.saturating_add(2);
    let rest = &buf[from..];
    let window = &rest[..rest.len().min(window_max)];
    let Some(end) = memchr(b'\n', window) else {
        return if window.len() == window_max { Err(too_long(limits)) } else { Ok(None) };
    };
    let text = &window[..end];
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.len() > longest {
        return Err(too_long(limits));
    }
    Ok(Some(Line { text, next: from + end + 1 }))
}

#[cold]
fn too_long(limits: &Limits) -> ProtocolError {
    ProtocolError::ControlLine { limit: limits.max_control_line }
}

/// Whether `byte` separates arguments.
#[inline(always)]
pub(crate) fn is_separator(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// `text` without the separators at its start.
#[inline(always)]
pub(crate) fn trim_start(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    text
}

/// The arguments of one operation: at most `N`, none of them empty.
pub(crate) struct Arguments<'a, const N: usize> {
    args: [&'a [u8]; N],
    len: usize,
    verb: &'static str,
    expected: &'static str,
}

impl<'a, const N: usize> Arguments<'a, N> {
    /// Reads the control line whose verb ends at `from`, and says where the byte behind it is;
    /// `None` when its end has not arrived. The byte at `from` is there and is a separator.
    #[inline(always)]
    pub(crate) fn read(
        buf: &'a [u8],
        from: usize,
        limits: &Limits,
        verb: &'static str,
        expected: &'static str,
    ) -> Result<Option<(Self, usize)>, ProtocolError> {
        let mut found = Self { args: [&[]; N], len: 0, verb, expected };
        if let Some(next) = found.quick(buf, from, limits) {
            return Ok(Some((found, next)));
        }
        found.len = 0;
        found.thorough(buf, from, limits)
    }

    /// Does what [`thorough`](Self::thorough) does for the lines that are nearly all there are:
    /// correct, and not at the very end of the buffer. Of others it says nothing.
    #[inline(always)]
    fn quick(&mut self, buf: &'a [u8], from: usize, limits: &Limits) -> Option<usize> {
        let rest = &buf[from..];
        let (mut start, mut base) = (0, 0);
        while base <= limits.max_control_line {
            let block = rest.get(base..)?.first_chunk::<{ Marks::BYTES }>()?;
            for mark in Marks::new(block) {
                let at = base + mark;
                if at > start {
                    *self.args.get_mut(self.len)? = &rest[start..at];
                    self.len += 1;
                }
                start = at + 1;
                let end = match rest[at] {
                    b' ' | b'\t' => continue,
                    b'\n' => start,
                    b'\r' if rest.get(start) == Some(&b'\n') => start + 1,
                    _ => return None,
                };
                // The separator at the start is not counted.
                return (at <= limits.max_control_line.saturating_add(1)).then_some(from + end);
            }
            base += Marks::BYTES;
        }
        None
    }

    #[inline(never)]
    fn thorough(
        mut self,
        buf: &'a [u8],
        from: usize,
        limits: &Limits,
    ) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some(line) = line(buf, from, limits)? else {
            return Ok(None);
        };
        let mut rest = trim_start(line.text);
        while !rest.is_empty() {
            if self.len == N {
                return Err(self.count_error());
            }
            let end = memchr3(b' ', b'\t', b'\r', rest).unwrap_or(rest.len());
            if rest.get(end) == Some(&b'\r') {
                return Err(carriage_return(self.verb));
            }
            self.args[self.len] = &rest[..end];
            self.len += 1;
            rest = trim_start(&rest[end..]);
        }
        Ok(Some((self, line.next)))
    }

    /// The arguments found.
    #[inline(always)]
    pub(crate) fn as_slice(&self) -> &[&'a [u8]] {
        &self.args[..self.len]
    }

    /// The error to give when [`as_slice`](Self::as_slice) has not the right length.
    #[cold]
    pub(crate) fn count_error(&self) -> ProtocolError {
        let problem = Problem::ArgumentCount { expected: self.expected };
        ProtocolError::Parser { verb: self.verb, problem }
    }
}

/// Where the spaces and control characters among the first bytes of a text are, in order.
struct Marks(u32);

impl Marks {
    /// How many bytes are looked at: one for each bit.
    const BYTES: usize = 32;

    /// Compares eight bytes at a time in a register; control lines are so short that this beats
    /// both a loop over their bytes and a call to memchr for each argument.
    #[inline(always)]
    fn new(text: &[u8; Self::BYTES]) -> Self {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGH: u64 = 0x80 * ONES;
        /// Moves the high bit of byte n to bit 56 + n.
        const GATHER: u64 = 0x0002_0408_1020_4081;
        let mut marks = 0_u64;
        for (n, word) in text.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            // Adding to the low seven bits reaches the high bit for every byte from `!` on, and
            // carries nowhere.
            let above = ((word & !HIGH) + u64::from(0x80 - b'!') * ONES) | word;
            marks |= ((!above & HIGH).wrapping_mul(GATHER) >> 56) << (8 * n);
        }
        Self(marks as u32)
    }
}

impl Iterator for Marks {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let at = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(at)
    }
}

#[cold]
fn carriage_return(verb: &'static str) -> ProtocolError {
    ProtocolError::Parser { verb, problem: Problem::CarriageReturn }
}

/// Reads a decimal number of 1 to 19 digits, so that it always fits.
#[inline(always)]
pub(crate) fn number(digits: &[u8], verb: &'static str) -> Result<u64, ProtocolError> {
    if digits.is_empty() || digits.len() > 19 {
        return Err(not_a_number(digits, verb));
    }
    let mut value = 0_u64;
    for &digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return Err(not_a_number(digits, verb));
        }
        value = value * 10 + u64::from(digit);
    }
    Ok(value)
}

#[cold]
fn not_a_number(seen: &[u8], verb: &'static str) -> ProtocolError {
    ProtocolError::Parser { verb, problem: Problem::Number { seen: Snippet::new(seen) } }
}

/// A message behind its control line: header block, payload, and where the next operation begins.
pub(crate) struct Body<'a> {
    pub(crate) header: Option<&'a [u8]>,
    pub(crate) payload: &'a [u8],
    pub(crate) next: usize,
}

/// The sizes that a control line announces.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    /// Bytes of the header block; 0 without one.
    pub(crate) header: usize,
    /// Bytes of header block and payload.
    pub(crate) total: usize,
}

impl Sizes {
    /// Checks what was announced against `limits` before any of it has to be there.
    #[inline(always)]
    pub(crate) fn new(
        header: u64,
        total: u64,
        limits: &Limits,
        verb: &'static str,
    ) -> Result<Self, ProtocolError> {
        if header > total {
            return Err(header_size(header, total, verb));
        }
        match usize::try_from(total) {
            // The header is not larger, so it fits as well.
            Ok(bytes) if bytes <= limits.max_payload => Ok(Self { header: header as usize, total: bytes }),
            _ => Err(max_payload(total, limits)),
        }
    }
}

#[cold]
fn header_size(header: u64, total: u64, verb: &'static str) -> ProtocolError {
    ProtocolError::Parser { verb, problem: Problem::HeaderSize { header, total } }
}

#[cold]
fn max_payload(size: u64, limits: &Limits) -> ProtocolError {
    ProtocolError::MaxPayload { size, limit: limits.max_payload }
}

/// Takes the message that starts at `start`. The inner error is the number of bytes that `buf` must
/// hold first.
#[inline(always)]
pub(crate) fn body(buf: &[u8], start: usize, sizes: Sizes) -> Result<Result<Body<'_>, usize>, ProtocolError> {
    let rest = &buf[start..];
    // The comparison in this form cannot overflow, whatever limit was configured.
    if rest.len() < 2 || rest.len() - 2 < sizes.total {
        return body_missing(buf, start, sizes);
    }
    let (message, behind) = rest.split_at(sizes.total);
    if behind[..2] != *b"\r\n" {
        return Err(payload_end(sizes));
    }
    let (header, payload) = message.split_at(sizes.header);
    let header = if sizes.header == 0 { None } else { Some(header) };
    Ok(Ok(Body { header, payload, next: start + sizes.total + 2 }))
}

#[cold]
fn body_missing(buf: &[u8], start: usize, sizes: Sizes) -> Result<Result<Body<'_>, usize>, ProtocolError> {
    // Enough may be there to see that the size was wrong; a peer that then waits for an answer gets
    // one.
    match buf[start..].get(sizes.total) {
        Some(b'\r') | None => Ok(Err(start.saturating_add(sizes.total).saturating_add(2))),
        Some(_) => Err(payload_end(sizes)),
    }
}

#[cold]
fn payload_end(sizes: Sizes) -> ProtocolError {
    ProtocolError::PayloadEnd { size: sizes.total }
}

/// Three or four bytes as a number, letters in capitals, to compare a verb at once.
///
/// Clearing bit 5 maps only `x` and `X` to `X`, so nothing but letters compares equal to a letter.
pub(crate) const fn verb4(text: [u8; 4]) -> u32 {
    u32::from_le_bytes(text) & CAPITALS4
}

/// See [`verb4`].
pub(crate) const fn verb3(text: [u8; 4]) -> u32 {
    u32::from_le_bytes(text) & CAPITALS3
}

const CAPITALS4: u32 = 0xdfdf_dfdf;
const CAPITALS3: u32 = 0x00df_dfdf;

/// How the start of a buffer compares with a verb.
#[derive(PartialEq, Eq)]
pub(crate) enum Start {
    /// It begins with the verb.
    Whole,
    /// It is shorter than the verb and agrees so far.
    Part,
    /// It is something else.
    Other,
}

/// Compares the start of `buf` with `verb`, in any case.
pub(crate) fn starts(buf: &[u8], verb: &[u8]) -> Start {
    let shared = buf.len().min(verb.len());
    if !buf[..shared].eq_ignore_ascii_case(&verb[..shared]) {
        Start::Other
    } else if shared == verb.len() {
        Start::Whole
    } else {
        Start::Part
    }
}

/// The error for a line that begins with no known verb.
#[cold]
pub(crate) fn unknown(buf: &[u8]) -> ProtocolError {
    ProtocolError::UnknownOperation { seen: Snippet::new(buf) }
}
