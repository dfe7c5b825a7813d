//! What is in a message: bytes that mean nothing, or an envelope, as components of a platform send it. Either way a stamp tells
//! who sent it and as which.

use super::stamp::{self, STAMP_BYTES};

/// An envelope up to its stamp, from there to its payload, and its end.
const HEAD: &[u8] = br#"{"id":""#;
const MIDDLE: &[u8] = br#"","type":"bench.message","source":"bench","correlationId":"bench","payload":""#;
const TAIL: &[u8] = br#""}"#;
/// A stamp in hexadecimal digits.
const HEX_BYTES: usize = 2 * STAMP_BYTES;

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Raw,
    Envelope,
}

impl Body {
    /// The smallest envelope.
    pub(super) const ENVELOPE_BYTES_MIN: usize = HEAD.len() + HEX_BYTES + MIDDLE.len() + TAIL.len();

    /// Appends a body of so many bytes; returns where its stamp stands, if there is room for one.
    pub(super) fn append(self, payload_bytes: usize, frame: &mut Vec<u8>) -> Option<usize> {
        let end = frame.len() + payload_bytes;
        if self == Self::Raw {
            let at = (payload_bytes >= STAMP_BYTES).then_some(frame.len());
            frame.resize(end, b'x');
            return at;
        }
        frame.extend_from_slice(HEAD);
        let at = frame.len();
        frame.extend_from_slice(&[b'0'; HEX_BYTES]);
        frame.extend_from_slice(MIDDLE);
        frame.resize((end - TAIL.len()).max(frame.len()), b'x');
        frame.extend_from_slice(TAIL);
        Some(at)
    }

    /// Writes a stamp to where it belongs.
    #[inline]
    pub(super) fn stamp(self, frame: &mut [u8], at: usize, publisher: usize, sequence: u64) {
        let stamp = stamp::encode(publisher, sequence);
        match self {
            Self::Raw => frame[at..at + STAMP_BYTES].copy_from_slice(&stamp),
            Self::Envelope => {
                for (digits, byte) in frame[at..at + HEX_BYTES].chunks_exact_mut(2).zip(stamp) {
                    digits[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
                    digits[1] = b"0123456789abcdef"[usize::from(byte & 15)];
                }
            }
        }
    }

    /// Publisher and sequence number of a body.
    #[inline]
    pub(super) fn read(self, payload: &[u8]) -> Option<(usize, u64)> {
        if self == Self::Raw {
            return stamp::decode(payload);
        }
        let digits = payload.get(HEAD.len()..HEAD.len() + HEX_BYTES)?;
        let mut stamp = [0; STAMP_BYTES];
        let value = |digit: u8| (digit & 15) + 9 * (digit >> 6);
        for (byte, digits) in stamp.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(digits[0]) << 4 | value(digits[1]);
        }
        stamp::decode(&stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_the_trip_in_either_body() {
        for (body, bytes) in [(Body::Raw, 8), (Body::Raw, 100), (Body::Envelope, 128), (Body::Envelope, 1024)]
        {
            let mut frame = b"PUB a\r\n".to_vec();
            let at = body.append(bytes, &mut frame).expect("there is room");
            body.stamp(&mut frame, at, 65_535, 0x1234_5678_9abc);
            let payload = &frame[7..];
            assert_eq!((payload.len(), body.read(payload)), (bytes, Some((65_535, 0x1234_5678_9abc))));
        }
    }

    #[test]
    fn an_envelope_is_one_for_the_library_too() {
        let mut frame = Vec::new();
        Body::Envelope.append(Body::ENVELOPE_BYTES_MIN + 3, &mut frame);
        let envelope = trunkline::Envelope::from_bytes(&frame).expect("it is one");
        assert_eq!(envelope.payload, trunkline::Payload::Json("xxx".into()));
    }
}
