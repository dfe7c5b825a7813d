//! Memory that is the process's no longer than it is used: pages that belong to one buffer alone.
//!
//! An allocator keeps what it is given back, and returns it late and in pieces: a hundred clients that begin large operations
//! would have the process grow past its bound, and others wait while one thread returns thousands of pieces at once. Pages
//! of their own are gone when nobody wants them any more, which is found out beside those who serve clients; until then the
//! next large buffer gets them, as new ones cost more than to copy what they take.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use memmap2::{MmapMut, MmapOptions};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use trunkline::memory::{Charge, Holding, MemoryBudget};

/// Address space is taken in multiples of this.
const MAP_BYTES: usize = 64 << 10;
/// Most that is spare.
const SPARE_BYTES: usize = 64 << 20;
/// What was not wanted for so long is given back.
const PERIOD: Duration = Duration::from_millis(200);

/// Address space for one buffer. Only what was written to takes memory.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Until it is dropped.
    map: Option<MmapMut>,
    touched: usize,
    spares: Arc<Spares>,
}

impl Pages {
    /// For so many bytes at least.
    ///
    /// # Errors
    /// The system has no address space.
    pub(crate) fn new(bytes: usize, spares: &Arc<Spares>) -> io::Result<Self> {
        let (map, touched) = match spares.take(bytes) {
            Some(spare) => (spare.map, spare.touched),
            None => (MmapOptions::new().len(bytes.next_multiple_of(MAP_BYTES)).map_anon()?, 0),
        };
        Ok(Self { map: Some(map), touched, spares: spares.clone() })
    }

    /// All of it; whoever writes to it says so with [`Pages::touch`].
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// As [`Pages::bytes`].
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().unwrap_or_default()
    }

    /// Up to here it was written to.
    pub(crate) fn touch(&mut self, until: usize) {
        self.touched = self.touched.max(until);
    }

    /// How much of it takes memory.
    pub(crate) fn touched(&self) -> usize {
        self.touched
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Some(map) = self.map.take() {
            self.spares.give(Spare { map, touched: self.touched });
        }
    }
}

#[derive(Debug)]
struct Spare {
    map: MmapMut,
    touched: usize,
}

/// Pages that nobody has and somebody may want.
#[derive(Debug)]
pub(crate) struct Spares {
    kept: Mutex<Kept>,
    most: usize,
    /// There are some.
    some: Notify,
}

#[derive(Debug)]
struct Kept {
    /// The one that was given last is taken first.
    spares: Vec<Spare>,
    bytes: usize,
    /// The fewest bytes that there were since it was looked at: nobody wanted these.
    fewest: usize,
    charge: Charge,
}

impl Spares {
    pub(crate) fn new(memory: &Arc<MemoryBudget>) -> Self {
        let part =
            memory.configured().map_or(usize::MAX, |bytes| usize::try_from(bytes / 16).unwrap_or(usize::MAX));
        let charge = Charge::new(memory, Holding::Input);
        let kept = Mutex::new(Kept { spares: Vec::new(), bytes: 0, fewest: 0, charge });
        Self { kept, most: part.min(SPARE_BYTES), some: Notify::new() }
    }

    fn take(&self, bytes: usize) -> Option<Spare> {
        let mut kept = self.kept.lock();
        let at = kept.spares.iter().rposition(|spare| spare.map.len() >= bytes)?;
        let spare = kept.spares.remove(at);
        kept.remove(spare.touched);
        Some(spare)
    }

    fn give(&self, spare: Spare) {
        let mut kept = self.kept.lock();
        if kept.bytes + spare.touched > self.most || kept.charge.budget().is_exceeded() {
            // With nobody waiting for it.
            drop(kept);
            return;
        }
        if kept.spares.is_empty() {
            self.some.notify_one();
        }
        let bytes = kept.bytes + spare.touched;
        kept.set(bytes);
        kept.spares.push(spare);
    }

    /// Gives all of them back.
    pub(crate) fn clear(&self) {
        let mut kept = self.kept.lock();
        kept.set(0);
        kept.fewest = 0;
        let spares = std::mem::take(&mut kept.spares);
        drop(kept);
        drop(spares);
    }

    /// Gives those back that nobody has wanted since it was called last. Says whether there are others.
    fn trim(&self) -> bool {
        let mut kept = self.kept.lock();
        let (mut unwanted, mut bytes) = (0, 0);
        for spare in &kept.spares {
            if bytes + spare.touched > kept.fewest {
                break;
            }
            bytes += spare.touched;
            unwanted += 1;
        }
        let gone: Vec<_> = kept.spares.drain(..unwanted).collect();
        let left = kept.bytes - bytes;
        kept.set(left);
        kept.fewest = left;
        let some = !kept.spares.is_empty();
        drop(kept);
        drop(gone);
        some
    }

    /// Gives back what nobody wants, for as long as the server runs. Ends by `stop`.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let keep = async {
            loop {
                self.some.notified().await;
                loop {
                    tokio::time::sleep(PERIOD).await;
                    if !self.trim() {
                        break;
                    }
                }
            }
        };
        let _: Option<()> = stop.run_until_cancelled(keep).await;
        self.clear();
    }
}

impl Kept {
    fn remove(&mut self, bytes: usize) {
        self.set(self.bytes - bytes);
        self.fewest = self.fewest.min(self.bytes);
    }

    fn set(&mut self, bytes: usize) {
        self.bytes = bytes;
        self.charge.set(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(spares: &Arc<Spares>, bytes: usize) -> Pages {
        let mut pages = Pages::new(bytes, spares).unwrap();
        pages.bytes_mut()[..bytes].fill(7);
        pages.touch(bytes);
        pages
    }

    #[test]
    fn pages_are_used_again_and_charged_meanwhile() {
        let memory = Arc::new(MemoryBudget::new(64 << 20));
        let spares = Arc::new(Spares::new(&memory));
        drop((some(&spares, 1 << 20), some(&spares, 100_000)));
        assert!(memory.used() > 1 << 20, "{}", memory.used());
        // One that is large enough, with all that was written to it.
        let again = Pages::new(200_000, &spares).unwrap();
        assert_eq!((again.touched(), again.bytes()[0]), (1 << 20, 7));
        assert!(memory.used() < 200_000, "{}", memory.used());
        let new = Pages::new(200_000, &spares).unwrap();
        assert_eq!((new.touched(), new.bytes()[0]), (0, 0));
    }

    #[test]
    fn what_nobody_wants_is_given_back_and_the_rest_kept() {
        let memory = Arc::<MemoryBudget>::default();
        let spares = Arc::new(Spares::new(&memory));
        drop((0..4).map(|_| some(&spares, 1 << 20)).collect::<Vec<_>>());
        assert!(spares.trim(), "they may be wanted yet");
        drop((some(&spares, 1000), some(&spares, 1000)));
        assert_eq!(spares.kept.lock().bytes, 4 << 20);
        assert!(spares.trim());
        assert_eq!(spares.kept.lock().bytes, 2 << 20, "two of them were wanted at a time");
        assert!(!spares.trim());
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let memory = Arc::new(MemoryBudget::from_setting(Some(32 << 20)));
        let spares = Arc::new(Spares::new(&memory));
        drop((0..4).map(|_| some(&spares, 1 << 20)).collect::<Vec<_>>());
        assert_eq!(spares.kept.lock().bytes, 2 << 20);
        spares.clear();
        assert_eq!(memory.used(), 0);
    }
}
