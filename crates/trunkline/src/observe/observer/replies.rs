//! Answers that are expected: on which subjects they come, as hashes in a table of fixed size.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Observer;

/// Where answers go that are expected, by their hash: so many rows, each of which remembers its latest eight. Fewer places
/// for each would lose some of a few hundred requests that wait at once, by chance.
pub(super) const REPLY_ROWS: usize = 2 << 10;
pub(super) const REPLY_ROW: usize = 8;

impl Observer {
    fn place_of_reply(&self, subject: &[u8]) -> (&[AtomicU64; REPLY_ROW], u64) {
        let hash = self.random.hash_one(subject) | 1;
        (&self.replies[(hash >> 40) as usize % REPLY_ROWS], hash)
    }

    /// An answer to something that is recorded will come on this subject.
    pub fn expect_reply(&self, subject: &[u8]) {
        let start = start_of(subject);
        if self.reply_starts.load(Ordering::Relaxed) & start == 0 {
            self.reply_starts.fetch_or(start, Ordering::Relaxed);
        }
        let (row, mut hash) = self.place_of_reply(subject);
        if row.iter().any(|place| place.load(Ordering::Relaxed) == hash) {
            return;
        }
        // The oldest leaves at the end. Two threads that meet here may lose one between them, which is then not recorded.
        for place in row {
            hash = place.swap(hash, Ordering::Relaxed);
        }
    }

    /// Whether an answer to something that was recorded comes on this subject.
    #[inline]
    pub fn expects(&self, subject: &[u8]) -> bool {
        if self.reply_starts.load(Ordering::Relaxed) & start_of(subject) == 0 {
            return false;
        }
        let (row, hash) = self.place_of_reply(subject);
        row.iter().any(|place| place.load(Ordering::Relaxed) == hash)
    }
}

/// The bit of a subject's first byte.
#[inline]
fn start_of(subject: &[u8]) -> u64 {
    1 << (subject.first().copied().unwrap_or(0) & 63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::ObserveOptions;

    #[test]
    fn hundreds_of_requests_wait_at_once_and_none_is_forgotten() {
        let observer = Observer::new(ObserveOptions::default());
        assert!(!observer.expects(b"_INBOX.a.0"));
        let inbox = |n: u32| format!("_INBOX.a.{n}");
        for n in 0..100_000_u32 {
            observer.expect_reply(inbox(n).as_bytes());
            if n % 10_000 == 9_999 {
                assert!((n - 1000..=n).all(|n| observer.expects(inbox(n).as_bytes())), "{n}");
            }
        }
        assert!(!observer.expects(b"_INBOX.b.1") && !observer.expects(b"other"));
    }
}
