//! Numbered payloads with a time.

use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};

/// Makes payloads that carry their number and the time they were made, so that the receiver can check the one and measure
/// by the other.
pub(in crate::bench) struct Stamp(Instant);

impl Stamp {
    /// Of the shortest payload.
    pub(in crate::bench) const BYTES: usize = 16;

    /// Times count from now.
    pub(in crate::bench) fn new() -> Self {
        Self(Instant::now())
    }

    pub(in crate::bench) fn payload(&self, number: u64, bytes: usize) -> Bytes {
        let mut payload = BytesMut::zeroed(bytes.max(Self::BYTES));
        let nanos = u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX);
        (&mut payload[..]).put_u64(number);
        (&mut payload[8..]).put_u64(nanos);
        payload.freeze()
    }

    /// The number of a payload, and how long ago it was made.
    pub(in crate::bench) fn read(&self, payload: &[u8]) -> Option<(u64, Duration)> {
        let number = u64::from_be_bytes(payload.get(..8)?.try_into().ok()?);
        let nanos = u64::from_be_bytes(payload.get(8..16)?.try_into().ok()?);
        Some((number, self.0.elapsed().saturating_sub(Duration::from_nanos(nanos))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_its_payload() {
        let stamp = Stamp::new();
        let payload = stamp.payload(7, 256);
        let (number, age) = stamp.read(&payload).expect("a stamp");
        assert_eq!((number, payload.len()), (7, 256));
        assert!(age < Duration::from_secs(60));
        assert!(stamp.read(b"short").is_none());
    }
}
