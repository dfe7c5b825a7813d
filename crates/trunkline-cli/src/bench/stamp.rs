//! The eight bytes at the start of a payload by which a receiver knows who sent it and as which: the publisher in the
//! upper 16 bits, its sequence number in the lower 48, little endian. Shorter payloads carry no stamp.

/// Bytes of a stamp. Payloads shorter than this are counted but not ordered.
pub(super) const STAMP_BYTES: usize = 8;

/// Most publishers that stamps can tell apart.
pub(super) const PUBLISHERS_MAX: u64 = 1 << 16;

const SEQUENCE_BITS: u32 = 48;

/// The stamp of message number `sequence` of `publisher`.
pub(super) fn encode(publisher: usize, sequence: u64) -> [u8; STAMP_BYTES] {
    ((publisher as u64) << SEQUENCE_BITS | sequence).to_le_bytes()
}

/// Publisher and sequence number of the stamp at the start of `payload`, if it is long enough to have one.
pub(super) fn decode(payload: &[u8]) -> Option<(usize, u64)> {
    let stamp = u64::from_le_bytes(*payload.first_chunk::<STAMP_BYTES>()?);
    Some(((stamp >> SEQUENCE_BITS) as usize, stamp & ((1 << SEQUENCE_BITS) - 1)))
}

/// The sum of the sequence numbers `0..count`, wrapping as the receivers' own sums do.
pub(super) fn sum_of(count: u64) -> u64 {
    let (a, b) =
        if count.is_multiple_of(2) { (count / 2, count.wrapping_sub(1)) } else { (count, count / 2) };
    a.wrapping_mul(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_the_trip() {
        for (publisher, sequence) in [(0, 0), (1, 7), (65_535, (1 << 48) - 1)] {
            let mut payload = encode(publisher, sequence).to_vec();
            payload.extend_from_slice(b"rest");
            assert_eq!(decode(&payload), Some((publisher, sequence)));
        }
        assert_eq!(decode(b"1234567"), None);
    }

    #[test]
    fn sums_agree_with_adding_up() {
        for count in [0, 1, 2, 5, 1000, 1001] {
            assert_eq!(sum_of(count), (0..count).sum::<u64>(), "{count}");
        }
    }
}
