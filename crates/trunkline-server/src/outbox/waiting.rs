//! Bytes that wait for a socket: a queue of chunks, so that what was sent is free at once and what is added moves nothing.

use std::collections::VecDeque;
use std::io::IoSlice;

use smallvec::SmallVec;

/// A chunk that has so many bytes takes no more; a single message may make one longer.
const CHUNK_BYTES: usize = 64 << 10;
/// Where messages are appended one by one, a chunk that has so many takes no more: the next one might double what it takes.
const FULL_BYTES: usize = CHUNK_BYTES / 4 * 3;
/// Chunks offered to the socket at a time.
const OFFERED_CHUNKS: usize = 4;
/// A buffer of this size or less is kept when everything was sent.
const KEPT_BYTES: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Waiting {
    chunks: VecDeque<Vec<u8>>,
    /// How much of the first chunk was sent.
    head: usize,
    len: usize,
    /// What all chunks have allocated.
    allocated: usize,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory, whatever is in them.
    pub(super) fn allocated(&self) -> usize {
        self.allocated
    }

    /// Appends what `encode` appends to the buffer it is given.
    pub(super) fn put(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.chunks.back().is_none_or(|last| last.len() >= FULL_BYTES) {
            self.chunks.push_back(Vec::new());
        }
        self.put_last(encode);
    }

    fn put_last(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let Some(last) = self.chunks.back_mut() else { return };
        let (len, allocated) = (last.len(), last.capacity());
        encode(last);
        self.len += last.len() - len;
        self.allocated += last.capacity() - allocated;
    }

    /// Appends the slices but for their first `skip` bytes, `total` in all.
    pub(super) fn extend(&mut self, slices: &[IoSlice<'_>], mut skip: usize, total: usize) {
        let mut left = total;
        for slice in slices {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let mut bytes = &slice[skipped..];
            while !bytes.is_empty() {
                let (added, rest) = match self.room() {
                    0 => {
                        let chunk = Vec::with_capacity(left.min(CHUNK_BYTES));
                        self.allocated += chunk.capacity();
                        self.chunks.push_back(chunk);
                        continue;
                    }
                    room => bytes.split_at(room.min(bytes.len())),
                };
                self.put_last(|chunk| chunk.extend_from_slice(added));
                left -= added.len();
                bytes = rest;
            }
        }
    }

    /// What the last chunk may still take.
    fn room(&self) -> usize {
        self.chunks.back().map_or(0, |last| CHUNK_BYTES.saturating_sub(last.len()))
    }

    /// The first bytes, as far as they are offered at a time.
    pub(super) fn first(&self) -> SmallVec<[IoSlice<'_>; OFFERED_CHUNKS]> {
        let mut from = self.head;
        let offered = self.chunks.iter().take(OFFERED_CHUNKS);
        offered.map(|chunk| IoSlice::new(&chunk[std::mem::take(&mut from)..])).collect()
    }

    /// So many of the first bytes were sent.
    pub(super) fn sent(&mut self, n: usize) {
        self.len -= n;
        self.head += n;
        loop {
            let is_last = self.len == 0 && self.chunks.len() == 1;
            let Some(first) = self.chunks.front_mut() else { break };
            if self.head < first.len() {
                return;
            }
            self.head -= first.len();
            if is_last && first.capacity() <= KEPT_BYTES {
                first.clear();
                return;
            }
            self.allocated -= first.capacity();
            self.chunks.pop_front();
        }
        self.chunks = VecDeque::new();
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends it all in steps, as far as each is offered.
    fn drain(waiting: &mut Waiting, step: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while waiting.len() > 0 {
            let offered: Vec<u8> = waiting.first().iter().flat_map(|slice| slice.to_vec()).collect();
            let n = offered.len().min(step);
            sent.extend_from_slice(&offered[..n]);
            waiting.sent(n);
        }
        sent
    }

    #[test]
    fn bytes_come_out_as_they_went_in_whatever_the_sizes() {
        let bytes: Vec<u8> = (0..300_000_usize).map(|n| (n % 251) as u8).collect();
        for (step, skip) in [(1 << 10, 0), (CHUNK_BYTES, 5), (100_000, 70_000), (1 << 20, 299_999)] {
            let mut waiting = Waiting::default();
            waiting.put(|out| out.extend_from_slice(b"before"));
            let slices = [IoSlice::new(&bytes[..10]), IoSlice::new(&bytes[10..])];
            waiting.extend(&slices, skip, bytes.len() - skip);
            waiting.put(|out| out.extend_from_slice(b"after"));
            let expected = [b"before", &bytes[skip..], b"after"].concat();
            assert_eq!(waiting.len(), expected.len());
            assert!(waiting.allocated() >= expected.len(), "{} of {}", waiting.allocated(), expected.len());
            assert!(drain(&mut waiting, step) == expected, "step {step}, skip {skip}");
            assert!(waiting.allocated() <= KEPT_BYTES, "{}", waiting.allocated());
        }
    }

    #[test]
    fn memory_grows_with_what_waits_and_goes_with_what_is_sent() {
        let mut waiting = Waiting::default();
        let message = vec![7; 1000];
        for _ in 0..10_000 {
            waiting.put(|out| out.extend_from_slice(&message));
        }
        let allocated = waiting.allocated();
        assert!((10_000_000..14_000_000).contains(&allocated), "{allocated}");
        waiting.sent(9_000_000);
        assert!(waiting.allocated() < allocated / 5, "{}", waiting.allocated());
        waiting.clear();
        assert_eq!((waiting.len(), waiting.allocated()), (0, 0));
    }

    #[test]
    fn a_small_buffer_is_kept_for_what_comes_next() {
        let mut waiting = Waiting::default();
        waiting.put(|out| out.extend_from_slice(b"INFO {}\r\n"));
        waiting.sent(9);
        assert!(waiting.allocated() > 0 && waiting.len() == 0);
        waiting.put(|out| out.extend_from_slice(b"PING\r\n"));
        assert_eq!(&*waiting.first()[0], b"PING\r\n");
    }
}
