//! What a requester knows without its socket: the requests in flight, how the next one is written, and which one a
//! reply answers. No I/O and no clock.

use std::time::Instant;

use super::error::BenchError;
use super::frames::{self, Message};
use super::plan::Workload;
use super::stamp::{self, STAMP_BYTES};

/// Hex digits of a reply token: four of the slot, eight of the sequence number.
const TOKEN_BYTES: usize = 12;

/// One request in flight.
#[derive(Clone, Copy)]
struct Slot {
    sequence: u32,
    sent: Instant,
    free: bool,
}

/// The requests of one requester.
pub(super) struct Desk {
    index: usize,
    /// Start of all reply subjects, up to and with the last dot.
    inbox: Box<[u8]>,
    subject: String,
    payload_bytes: usize,
    template: Vec<u8>,
    token_at: usize,
    payload_at: usize,
    slots: Vec<Slot>,
    sequence: u32,
}

impl Desk {
    /// A desk with all slots free.
    pub(super) fn new(index: usize, inbox: &str, workload: &Workload) -> Self {
        let Workload { subject, payload_bytes, in_flight, .. } = workload;
        let mut template = format!("PUB {subject} {inbox}").into_bytes();
        let token_at = template.len();
        template.extend_from_slice(&[b'0'; TOKEN_BYTES]);
        template.extend_from_slice(format!(" {payload_bytes}\r\n").as_bytes());
        let payload_at = template.len();
        template.resize(payload_at + payload_bytes, b'x');
        template.extend_from_slice(b"\r\n");
        let slot = Slot { sequence: 0, sent: Instant::now(), free: true };
        Self {
            index,
            inbox: inbox.as_bytes().into(),
            subject: subject.clone(),
            payload_bytes: *payload_bytes,
            template,
            token_at,
            payload_at,
            slots: vec![slot; *in_flight],
            sequence: 0,
        }
    }

    /// Writes the next request, which occupies `slot`, to `out`.
    pub(super) fn request(&mut self, slot: usize, now: Instant, out: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        self.slots[slot] = Slot { sequence: self.sequence, sent: now, free: false };
        write_hex(slot as u64, &mut self.template[self.token_at..self.token_at + 4]);
        write_hex(
            u64::from(self.sequence),
            &mut self.template[self.token_at + 4..self.token_at + TOKEN_BYTES],
        );
        if self.payload_bytes >= STAMP_BYTES {
            let stamp = stamp::encode(self.index, u64::from(self.sequence));
            self.template[self.payload_at..self.payload_at + STAMP_BYTES].copy_from_slice(&stamp);
        }
        out.extend_from_slice(&self.template);
    }

    /// How many requests can be in flight.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Finds the request that `message` answers, checks that it is the first answer and the right one, and returns
    /// its slot and when it was sent.
    ///
    /// # Errors
    /// Nobody answers requests, or this answers none.
    pub(super) fn settle(&mut self, message: &Message<'_>) -> Result<(usize, Instant), BenchError> {
        if message.headers.starts_with(b"NATS/1.0 503") {
            return Err(BenchError::NoResponders { subject: self.subject.clone() });
        }
        let slot = self.slot_of(message.subject).filter(|&(slot, sequence)| {
            let occupied = self.slots.get(slot).is_some_and(|slot| !slot.free && slot.sequence == sequence);
            let stamp = stamp::decode(message.payload);
            let stamped = stamp.is_none_or(|stamp| stamp == (self.index, u64::from(sequence)));
            occupied && stamped && message.payload.len() == self.payload_bytes
        });
        let Some((slot, _)) = slot else {
            let (role, line) = (format!("requester {}", self.index), frames::shown(message.subject));
            return Err(BenchError::Foreign { role, line });
        };
        self.slots[slot].free = true;
        Ok((slot, self.slots[slot].sent))
    }

    fn slot_of(&self, subject: &[u8]) -> Option<(usize, u32)> {
        let token = subject.strip_prefix(&*self.inbox)?;
        let token = token.first_chunk::<TOKEN_BYTES>().filter(|_| token.len() == TOKEN_BYTES)?;
        Some((read_hex(&token[..4])? as usize, read_hex(&token[4..])? as u32))
    }
}

fn write_hex(value: u64, digits: &mut [u8]) {
    let mut rest = value;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, &digit| Some(value << 4 | u64::from(char::from(digit).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::super::frames::Frame;
    use super::*;
    use crate::bench::plan::Scenario;

    fn desk(payload_bytes: usize) -> Desk {
        let workload = Workload { payload_bytes, in_flight: 2, ..Workload::example(Scenario::Request) };
        Desk::new(3, "_INBOX.abc.", &workload)
    }

    fn reply(token: &str, sequence: u64) -> Vec<u8> {
        let stamp = stamp::encode(3, sequence);
        [format!("MSG _INBOX.abc.{token} 1 8\r\n").as_bytes(), &stamp, b"\r\n"].concat()
    }

    fn settle(desk: &mut Desk, bytes: &[u8]) -> Result<usize, BenchError> {
        match frames::next(bytes)? {
            Some((Frame::Message(message), _)) => desk.settle(&message).map(|(slot, _)| slot),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_written_with_its_own_reply_subject_and_settled_once() {
        let mut desk = desk(8);
        let mut out = Vec::new();
        desk.request(1, Instant::now(), &mut out);
        let head = b"PUB bench.example _INBOX.abc.000100000001 8\r\n";
        assert_eq!(out, [&head[..], &stamp::encode(3, 1), b"\r\n"].concat());
        let answer = reply("000100000001", 1);
        assert_eq!(settle(&mut desk, &answer).expect("the answer"), 1);
        assert!(matches!(settle(&mut desk, &answer), Err(BenchError::Foreign { .. })), "a second answer");
    }

    #[test]
    fn answers_to_something_else_are_refused() {
        let mut desk = desk(8);
        desk.request(0, Instant::now(), &mut Vec::new());
        for (token, sequence) in [
            ("000000000002", 2),
            ("000000000001", 7),
            ("000100000001", 1),
            ("ffff00000001", 1),
            ("00000000000g", 1),
            ("0000000000010", 1),
        ] {
            let outcome = settle(&mut desk, &reply(token, sequence));
            assert!(matches!(outcome, Err(BenchError::Foreign { .. })), "{token}");
        }
    }

    #[test]
    fn the_answer_of_the_server_for_nobody_is_its_own_error() {
        let mut desk = desk(8);
        desk.request(0, Instant::now(), &mut Vec::new());
        let answer = b"HMSG _INBOX.abc.000000000001 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";
        assert!(matches!(settle(&mut desk, answer), Err(BenchError::NoResponders { .. })));
    }
}
