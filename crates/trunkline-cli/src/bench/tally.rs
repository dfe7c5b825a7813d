//! Counting and checking of deliveries. All messages of a run look alike, so the frame that must come next is known but
//! for its payload: one comparison of the header line and one of the stamp check a message, and only what differs is parsed.

use super::body::Body;
use super::error::BenchError;
use super::frames::{self, Frame};

/// What a subscriber may expect of the order of stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// Every message of every publisher, in the order of each publisher.
    Every,
    /// A share of the messages of every publisher, in the order of each publisher.
    Share,
}

/// A frame that is not a message and that the connection must act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Ping,
    Pong,
    /// INFO or +OK: nothing to do.
    Note,
}

/// What one subscriber has received in one phase of a run.
pub(super) struct Tally {
    role: String,
    subject: Box<[u8]>,
    header: Box<[u8]>,
    body: Body,
    payload_bytes: usize,
    expect: Expect,
    /// Per publisher the lowest sequence number that may come next.
    next: Box<[u64]>,
    received: u64,
    sequence_sum: u64,
}

impl Tally {
    /// A tally for messages on `subject` to subscription `1` from so many publishers.
    pub(super) fn new(
        role: String,
        subject: &str,
        (body, payload_bytes): (Body, usize),
        publishers: usize,
        expect: Expect,
    ) -> Self {
        let header = format!("MSG {subject} 1 {payload_bytes}\r\n").into_bytes().into();
        let next = vec![0; publishers].into();
        let subject = subject.as_bytes().into();
        Self { role, subject, header, body, payload_bytes, expect, next, received: 0, sequence_sum: 0 }
    }

    /// Messages so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The wrapping sum of their sequence numbers; zero for payloads without stamps.
    pub(super) fn sequence_sum(&self) -> u64 {
        self.sequence_sum
    }

    /// Whose tally it is, for errors.
    pub(super) fn role(&self) -> &str {
        &self.role
    }

    /// Consumes messages up to the first control frame, which is consumed too, or up to the first partial frame.
    ///
    /// # Errors
    /// A frame that this run cannot have caused, a wrong order, or what the server says with `-ERR`.
    pub(super) fn scan(&mut self, buf: &[u8]) -> Result<(usize, Option<Control>), BenchError> {
        let mut consumed = 0;
        loop {
            consumed += self.scan_expected(&buf[consumed..])?;
            let rest = &buf[consumed..];
            let Some((frame, length)) = frames::next(rest)? else {
                return Ok((consumed, None));
            };
            consumed += length;
            let control = match frame {
                Frame::Message(message) => {
                    let ours = message.sid == b"1"
                        && message.headers.is_empty()
                        && message.payload.len() == self.payload_bytes
                        && *message.subject == *self.subject;
                    if !ours {
                        let line = frames::shown(&rest[..rest.len().min(80)]);
                        return Err(BenchError::Foreign { role: self.role.clone(), line });
                    }
                    self.note(message.payload)?;
                    continue;
                }
                Frame::Ping => Control::Ping,
                Frame::Pong => Control::Pong,
                Frame::Info(_) | Frame::Ok => Control::Note,
                Frame::Error(text) => {
                    return Err(BenchError::Refused { text: frames::shown(text) });
                }
            };
            return Ok((consumed, Some(control)));
        }
    }

    /// The fast path: frames that are what they should be, byte for byte but for the payload.
    fn scan_expected(&mut self, buf: &[u8]) -> Result<usize, BenchError> {
        let header_bytes = self.header.len();
        let frame_bytes = header_bytes + self.payload_bytes + 2;
        let mut consumed = 0;
        for frame in buf.chunks_exact(frame_bytes) {
            if frame[..header_bytes] != *self.header || frame[frame_bytes - 2..] != *b"\r\n" {
                break;
            }
            self.note(&frame[header_bytes..frame_bytes - 2])?;
            consumed += frame_bytes;
        }
        Ok(consumed)
    }

    #[inline]
    fn note(&mut self, payload: &[u8]) -> Result<(), BenchError> {
        self.received += 1;
        let Some((publisher, sequence)) = self.body.read(payload) else {
            return Ok(());
        };
        let in_order = match self.next.get_mut(publisher) {
            Some(next) => {
                let in_order = sequence == *next || (self.expect == Expect::Share && sequence > *next);
                *next = if in_order { sequence + 1 } else { *next };
                in_order
            }
            None => false,
        };
        if !in_order {
            return Err(self.disorder(publisher, sequence));
        }
        self.sequence_sum = self.sequence_sum.wrapping_add(sequence);
        Ok(())
    }

    #[cold]
    fn disorder(&self, publisher: usize, received: u64) -> BenchError {
        let role = self.role.clone();
        match self.next.get(publisher) {
            Some(&expected) => BenchError::Order { role, publisher, expected, received },
            None => BenchError::Foreign { role, line: format!("a stamp of publisher {publisher}") },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stamp;
    use super::*;

    fn tally(payload_bytes: usize, expect: Expect) -> Tally {
        Tally::new("subscriber 0".to_owned(), "a.b", (Body::Raw, payload_bytes), 2, expect)
    }

    fn message(publisher: usize, sequence: u64) -> Vec<u8> {
        [b"MSG a.b 1 8\r\n", &stamp::encode(publisher, sequence)[..], b"\r\n"].concat()
    }

    #[test]
    fn counts_whole_messages_and_leaves_the_partial_one() {
        let mut bytes = [message(0, 0), message(1, 0), message(0, 1)].concat();
        let whole = bytes.len();
        bytes.extend_from_slice(&message(1, 1)[..15]);
        let mut tally = tally(8, Expect::Every);
        assert_eq!(tally.scan(&bytes).expect("in order"), (whole, None));
        assert_eq!(tally.received(), 3);
        assert_eq!(tally.sequence_sum(), 1);
    }

    #[test]
    fn control_frames_between_messages_are_handed_out() {
        let bytes = [&message(0, 0)[..], b"PING\r\n", &message(0, 1)].concat();
        let mut tally = tally(8, Expect::Every);
        let (consumed, control) = tally.scan(&bytes).expect("in order");
        assert_eq!(control, Some(Control::Ping));
        assert_eq!(tally.received(), 1);
        assert_eq!(tally.scan(&bytes[consumed..]).expect("in order"), (bytes.len() - consumed, None));
        assert_eq!(tally.received(), 2);
    }

    #[test]
    fn a_header_written_otherwise_is_still_the_same_message() {
        let bytes = [b"MSG  a.b 1  8\r\n", &stamp::encode(0, 0)[..], b"\r\n"].concat();
        let mut tally = tally(8, Expect::Every);
        assert_eq!(tally.scan(&bytes).expect("valid"), (bytes.len(), None));
        assert_eq!(tally.received(), 1);
    }

    #[test]
    fn a_gap_is_an_error_for_who_gets_every_message() {
        let bytes = [message(0, 0), message(0, 2)].concat();
        let error = tally(8, Expect::Every).scan(&bytes).expect_err("1 is missing");
        assert!(matches!(error, BenchError::Order { publisher: 0, expected: 1, received: 2, .. }), "{error}");
        assert!(tally(8, Expect::Share).scan(&bytes).is_ok());
    }

    #[test]
    fn a_message_twice_is_an_error_for_everybody() {
        let bytes = [message(0, 0), message(0, 0)].concat();
        for expect in [Expect::Every, Expect::Share] {
            assert!(matches!(tally(8, expect).scan(&bytes), Err(BenchError::Order { .. })));
        }
    }

    #[test]
    fn foreign_messages_are_told_from_ours() {
        for bytes in [
            &b"MSG a.c 1 8\r\n01234567\r\n"[..],
            b"MSG a 1 8\r\n01234567\r\n",
            b"MSG a.b 2 8\r\n01234567\r\n",
            b"MSG a.b 1 7\r\n0123456\r\n",
            b"MSG a.b 1 8\r\n\0\0\0\0\0\0\x02\0\r\n",
        ] {
            let outcome = tally(8, Expect::Every).scan(bytes);
            assert!(matches!(outcome, Err(BenchError::Foreign { .. })), "{}", frames::shown(bytes));
        }
    }

    #[test]
    fn an_error_of_the_server_ends_the_count() {
        let outcome = tally(8, Expect::Every).scan(b"-ERR 'Slow Consumer'\r\n");
        assert!(matches!(outcome, Err(BenchError::Refused { text }) if text == "'Slow Consumer'"));
    }

    #[test]
    fn short_payloads_are_counted_without_order() {
        let mut tally = tally(2, Expect::Every);
        assert_eq!(tally.scan(b"MSG a.b 1 2\r\nxx\r\nMSG a.b 1 2\r\nxx\r\n").expect("valid"), (34, None));
        assert_eq!(tally.received(), 2);
    }
}
