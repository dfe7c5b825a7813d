//! What a client has sent that was not acted on yet: the start of an operation, mostly.

use std::cell::Cell;
use std::io;
use std::ops::Range;

use memmap2::{MmapMut, MmapOptions};

/// Up to so much is kept in memory of the allocator, and carried from batch to batch.
pub(super) const CARRIED_BYTES: usize = 32 << 10;
/// A page of memory; where pages are larger, more is counted than is charged.
const PAGE_BYTES: usize = 4 << 10;
/// Address space is taken in multiples of this.
const MAP_BYTES: usize = 64 << 10;
/// Most that a thread keeps for the next large operation.
const SPARE_BYTES: usize = 2 << 20;

thread_local! {
    static SPARE: Cell<Option<MmapMut>> = const { Cell::new(None) };
}

/// Bytes that wait to be acted on. Few are in memory of the allocator. Many are in pages that belong to them alone, of which
/// there are as many as were filled, and which the process does not have any more once they are dropped: an allocator keeps
/// what it is given back, and a hundred clients that begin large operations would have the process grow past its bound, and
/// others wait while it returns thousands of pieces at once.
#[derive(Debug, Default)]
pub(super) struct Input {
    few: Vec<u8>,
    many: Option<Box<Pages>>,
}

#[derive(Debug)]
struct Pages {
    /// Until it is dropped.
    map: Option<MmapMut>,
    /// What waits.
    waiting: Range<usize>,
    /// Bytes that were ever written to, and take memory.
    touched: usize,
}

impl Input {
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.many {
            Some(pages) => pages.bytes(),
            None => &self.few,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.many.as_ref().map_or(self.few.len(), |pages| pages.waiting.len())
    }

    /// What it takes of memory.
    pub(super) fn held_bytes(&self) -> usize {
        let pages = self.many.as_ref().map_or(0, |pages| pages.touched.next_multiple_of(PAGE_BYTES));
        self.few.capacity() + pages
    }

    /// More than is carried from batch to batch.
    pub(super) fn is_large(&self) -> bool {
        self.many.is_some()
    }

    /// Has these bytes wait instead of what waited, with room for `total` together with them where they are many.
    ///
    /// # Errors
    /// The system has no address space.
    pub(super) fn replace(&mut self, bytes: &[u8], total: usize) -> io::Result<()> {
        self.few.clear();
        if bytes.len() <= CARRIED_BYTES {
            self.many = None;
            self.few.extend_from_slice(bytes);
            return Ok(());
        }
        self.few = Vec::new();
        let mut pages = Pages::new(bytes.len().max(total))?;
        pages.extend(bytes);
        self.many = Some(Box::new(pages));
        Ok(())
    }

    /// Makes room for `total` bytes together with what waits. They take memory when they come.
    ///
    /// # Errors
    /// The system has no address space.
    pub(super) fn reserve(&mut self, total: usize) -> io::Result<()> {
        match &mut self.many {
            Some(pages) if pages.waiting.start + total <= pages.room() => return Ok(()),
            Some(pages) if total <= pages.room() => {
                pages.move_to_start();
                return Ok(());
            }
            _ => {}
        }
        let mut pages = Pages::new(total.max(self.len()))?;
        pages.extend(self.bytes());
        *self = Self { few: Vec::new(), many: Some(Box::new(pages)) };
        Ok(())
    }

    /// Where up to `most` further bytes go, of the room that was reserved. [`Input::fill`] says how many came.
    pub(super) fn room(&mut self, most: usize) -> &mut [u8] {
        let Some(pages) = &mut self.many else { return &mut [] };
        let from = pages.waiting.end;
        let until = pages.room().min(from + most);
        pages.map.as_mut().map_or(&mut [], |map| &mut map[from..until])
    }

    /// So many bytes came into what [`Input::room`] gave.
    pub(super) fn fill(&mut self, bytes: usize) {
        if let Some(pages) = &mut self.many {
            pages.waiting.end += bytes;
            pages.touched = pages.touched.max(pages.waiting.end);
        }
    }

    /// The first so many bytes were acted on. What is left of many is not moved, and is in memory of the allocator again when
    /// it is little.
    pub(super) fn consume(&mut self, bytes: usize) {
        let Some(pages) = &mut self.many else {
            self.few.drain(..bytes);
            return;
        };
        pages.waiting.start += bytes;
        if pages.waiting.len() <= CARRIED_BYTES {
            self.few = pages.bytes().to_vec();
            self.many = None;
        }
    }
}

impl Pages {
    fn new(bytes: usize) -> io::Result<Self> {
        let spare = SPARE.take().filter(|map| map.len() >= bytes);
        let map = match spare {
            Some(map) => map,
            None => MmapOptions::new().len(bytes.next_multiple_of(MAP_BYTES)).map_anon()?,
        };
        Ok(Self { map: Some(map), waiting: 0..0, touched: 0 })
    }

    fn bytes(&self) -> &[u8] {
        self.map.as_ref().map_or(&[], |map| &map[self.waiting.clone()])
    }

    fn room(&self) -> usize {
        self.map.as_ref().map_or(0, |map| map.len())
    }

    fn extend(&mut self, bytes: &[u8]) {
        let end = self.waiting.end + bytes.len();
        if let Some(map) = &mut self.map {
            map[self.waiting.end..end].copy_from_slice(bytes);
        }
        self.waiting.end = end;
        self.touched = self.touched.max(end);
    }

    fn move_to_start(&mut self) {
        if let Some(map) = &mut self.map {
            map.copy_within(self.waiting.clone(), 0);
        }
        self.waiting = 0..self.waiting.len();
    }
}

impl Drop for Pages {
    /// The thread's next large operation finds pages that are there already.
    fn drop(&mut self) {
        if let Some(map) = self.map.take().filter(|map| map.len() <= SPARE_BYTES) {
            let _ = SPARE.try_with(|spare| spare.set(Some(map)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Replace(usize),
        Reserve(usize),
        Receive(usize),
        Consume(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        let size = prop_oneof![0..100_usize, 30_000..70_000_usize, 0..300_000_usize];
        prop_oneof![
            size.clone().prop_map(Step::Replace),
            size.clone().prop_map(Step::Reserve),
            size.prop_map(Step::Receive),
            any::<prop::sample::Index>().prop_map(Step::Consume),
        ]
    }

    /// Bytes that differ from those at other places.
    fn some(bytes: usize, seed: usize) -> Vec<u8> {
        (0..bytes).map(|n| ((n * 31 + seed) % 251) as u8).collect()
    }

    proptest! {
        #[test]
        fn what_waits_is_what_came_and_was_not_acted_on(steps in prop::collection::vec(step(), 1..20)) {
            let (mut input, mut model) = (Input::default(), Vec::new());
            for (seed, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Replace(bytes) => {
                        model = some(bytes, seed);
                        input.replace(&model, 0).unwrap();
                    }
                    Step::Reserve(more) => {
                        input.reserve(model.len() + more).unwrap();
                        prop_assert!(input.room(more).len() == more);
                    }
                    Step::Receive(bytes) => {
                        let room = input.room(bytes);
                        let came = some(room.len(), seed);
                        room.copy_from_slice(&came);
                        input.fill(came.len());
                        model.extend(came);
                    }
                    Step::Consume(part) => {
                        let bytes = part.index(model.len() + 1);
                        model.drain(..bytes);
                        input.consume(bytes);
                    }
                }
                prop_assert_eq!(input.bytes(), &model[..]);
                prop_assert_eq!(input.len(), model.len());
                prop_assert!(input.held_bytes() >= model.len());
            }
        }
    }

    #[test]
    fn what_was_only_announced_takes_no_memory() {
        let mut input = Input::default();
        input.replace(b"PUB a 50000000\r\n", 50_000_000).unwrap();
        input.reserve(50_000_000).unwrap();
        assert_eq!(input.held_bytes(), PAGE_BYTES);
        assert_eq!(input.room(1 << 20).len(), 1 << 20);
    }

    #[test]
    fn a_little_that_is_left_of_much_does_not_hold_it() {
        let mut input = Input::default();
        input.replace(&some(200_000, 0), 0).unwrap();
        assert!(input.is_large() && input.held_bytes() >= 200_000);
        input.consume(199_990);
        assert!(!input.is_large() && input.held_bytes() < PAGE_BYTES);
        assert_eq!(input.bytes(), &some(200_000, 0)[199_990..]);
    }
}
