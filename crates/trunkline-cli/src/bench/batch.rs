//! Many `PUB` frames encoded once and sent again and again; only the stamps in the payloads change between two sends.

use super::body::Body;

/// Bytes a batch aims at: large enough that the system call costs nothing per message, small enough to stay in the cache.
const BATCH_BYTES: usize = 128 * 1024;

/// A buffer of equal frames for one subject.
pub(super) struct Batch {
    bytes: Vec<u8>,
    frame_bytes: usize,
    /// Where in a frame its stamp stands; `None` when the payload is too short for one.
    stamp_at: Option<usize>,
    body: Body,
    publisher: usize,
}

impl Batch {
    /// Encodes as many frames as fit into the aim, at least one and at most `messages_max`.
    pub(super) fn new(
        subject: &str,
        (body, payload_bytes): (Body, usize),
        publisher: usize,
        messages_max: usize,
    ) -> Self {
        let mut frame = format!("PUB {subject} {payload_bytes}\r\n").into_bytes();
        let stamp_at = body.append(payload_bytes, &mut frame);
        frame.extend_from_slice(b"\r\n");
        let messages = (BATCH_BYTES / frame.len()).min(messages_max).max(1);
        Self { bytes: frame.repeat(messages), frame_bytes: frame.len(), stamp_at, body, publisher }
    }

    /// Messages in a full batch.
    pub(super) fn messages(&self) -> u64 {
        (self.bytes.len() / self.frame_bytes) as u64
    }

    /// The bytes of the next `count` messages, the first of which gets the sequence number `first`.
    pub(super) fn stamped(&mut self, first: u64, count: u64) -> &[u8] {
        let count = count.min(self.messages());
        let length = count as usize * self.frame_bytes;
        if let Some(at) = self.stamp_at {
            let frames = self.bytes[..length].chunks_exact_mut(self.frame_bytes);
            for (sequence, frame) in (first..).zip(frames) {
                self.body.stamp(frame, at, self.publisher, sequence);
            }
        }
        &self.bytes[..length]
    }
}

#[cfg(test)]
mod tests {
    use super::super::stamp;
    use super::*;

    #[test]
    fn frames_carry_consecutive_stamps() {
        let mut batch = Batch::new("a", (Body::Raw, 8), 3, 2);
        assert_eq!(batch.messages(), 2);
        let mut expected = Vec::new();
        for sequence in [10, 11] {
            expected.extend_from_slice(b"PUB a 8\r\n");
            expected.extend_from_slice(&stamp::encode(3, sequence));
            expected.extend_from_slice(b"\r\n");
        }
        assert_eq!(batch.stamped(10, 2), expected);
        assert_eq!(batch.stamped(10, 1), &expected[..expected.len() / 2]);
    }

    #[test]
    fn a_payload_without_room_for_a_stamp_is_sent_as_it_is() {
        assert_eq!(Batch::new("a", (Body::Raw, 2), 0, 1).stamped(5, 1), b"PUB a 2\r\nxx\r\n");
        assert_eq!(Batch::new("a", (Body::Raw, 0), 0, 1).stamped(5, 1), b"PUB a 0\r\n\r\n");
    }

    #[test]
    fn a_message_larger_than_the_aim_is_a_batch_of_one() {
        assert_eq!(Batch::new("a", (Body::Raw, BATCH_BYTES * 2), 0, 1000).messages(), 1);
    }
}
