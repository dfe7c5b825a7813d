//! What a client has sent that was not acted on yet: the start of an operation, mostly.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::pages::{Pages, Spares};

/// Up to so much is kept in memory of the allocator, and carried from batch to batch.
pub(super) const CARRIED_BYTES: usize = 32 << 10;
/// A page of memory; where pages are larger, more is counted than is charged.
const PAGE_BYTES: usize = 4 << 10;

/// Bytes that wait to be acted on. Few are in memory of the allocator, many in pages of their own.
#[derive(Debug, Default)]
pub(super) struct Input {
    few: Vec<u8>,
    many: Option<Box<Many>>,
}

#[derive(Debug)]
struct Many {
    pages: Pages,
    /// What waits.
    waiting: Range<usize>,
}

impl Input {
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.many {
            Some(many) => many.bytes(),
            None => &self.few,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.many.as_ref().map_or(self.few.len(), |many| many.waiting.len())
    }

    /// What it takes of memory.
    pub(super) fn held_bytes(&self) -> usize {
        let touched = self.many.as_ref().map_or(0, |many| many.pages.touched());
        let pages = touched.next_multiple_of(PAGE_BYTES);
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
    pub(super) fn replace(&mut self, bytes: &[u8], total: usize, spares: &Arc<Spares>) -> io::Result<()> {
        self.few.clear();
        if bytes.len() <= CARRIED_BYTES {
            self.many = None;
            self.few.extend_from_slice(bytes);
            return Ok(());
        }
        self.few = Vec::new();
        let mut many = Many::new(bytes.len().max(total), spares)?;
        many.extend(bytes);
        self.many = Some(Box::new(many));
        Ok(())
    }

    /// Makes room for `total` bytes together with what waits. They take memory when they come.
    ///
    /// # Errors
    /// The system has no address space.
    pub(super) fn reserve(&mut self, total: usize, spares: &Arc<Spares>) -> io::Result<()> {
        match &mut self.many {
            Some(many) if many.waiting.start + total <= many.room() => return Ok(()),
            Some(many) if total <= many.room() => {
                many.move_to_start();
                return Ok(());
            }
            _ => {}
        }
        let mut many = Many::new(total.max(self.len()), spares)?;
        many.extend(self.bytes());
        *self = Self { few: Vec::new(), many: Some(Box::new(many)) };
        Ok(())
    }

    /// Where up to `most` further bytes go, of the room that was reserved. [`Input::fill`] says how many came.
    pub(super) fn room(&mut self, most: usize) -> &mut [u8] {
        let Some(many) = &mut self.many else { return &mut [] };
        let from = many.waiting.end;
        let until = many.room().min(from + most);
        &mut many.pages.bytes_mut()[from..until]
    }

    /// So many bytes came into what [`Input::room`] gave.
    pub(super) fn fill(&mut self, bytes: usize) {
        if let Some(many) = &mut self.many {
            many.came(bytes);
        }
    }

    /// The first so many bytes were acted on. What is left of many is not moved, and is in memory of the allocator again when
    /// it is little.
    pub(super) fn consume(&mut self, bytes: usize) {
        let Some(many) = &mut self.many else {
            self.few.drain(..bytes);
            return;
        };
        many.waiting.start += bytes;
        if many.waiting.len() <= CARRIED_BYTES {
            self.few = many.bytes().to_vec();
            self.many = None;
        }
    }
}

impl Many {
    fn new(bytes: usize, spares: &Arc<Spares>) -> io::Result<Self> {
        Ok(Self { pages: Pages::new(bytes, spares)?, waiting: 0..0 })
    }

    fn bytes(&self) -> &[u8] {
        &self.pages.bytes()[self.waiting.clone()]
    }

    fn room(&self) -> usize {
        self.pages.bytes().len()
    }

    fn extend(&mut self, bytes: &[u8]) {
        let end = self.waiting.end + bytes.len();
        self.pages.bytes_mut()[self.waiting.end..end].copy_from_slice(bytes);
        self.came(bytes.len());
    }

    fn came(&mut self, bytes: usize) {
        self.waiting.end += bytes;
        self.pages.touch(self.waiting.end);
    }

    fn move_to_start(&mut self) {
        self.pages.bytes_mut().copy_within(self.waiting.clone(), 0);
        self.waiting = 0..self.waiting.len();
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

    fn spares() -> Arc<Spares> {
        Arc::new(Spares::new(&Default::default()))
    }

    /// Bytes that differ from those at other places.
    fn some(bytes: usize, seed: usize) -> Vec<u8> {
        (0..bytes).map(|n| ((n * 31 + seed) % 251) as u8).collect()
    }

    proptest! {
        #[test]
        fn what_waits_is_what_came_and_was_not_acted_on(steps in prop::collection::vec(step(), 1..20)) {
            let (mut input, mut model, spares) = (Input::default(), Vec::new(), spares());
            for (seed, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Replace(bytes) => {
                        model = some(bytes, seed);
                        input.replace(&model, 0, &spares).unwrap();
                    }
                    Step::Reserve(more) => {
                        input.reserve(model.len() + more, &spares).unwrap();
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
        input.replace(b"PUB a 50000000\r\n", 50_000_000, &spares()).unwrap();
        input.reserve(50_000_000, &spares()).unwrap();
        assert_eq!(input.held_bytes(), PAGE_BYTES);
        assert_eq!(input.room(1 << 20).len(), 1 << 20);
    }

    #[test]
    fn a_little_that_is_left_of_much_does_not_hold_it() {
        let mut input = Input::default();
        input.replace(&some(200_000, 0), 0, &spares()).unwrap();
        assert!(input.is_large() && input.held_bytes() >= 200_000);
        input.consume(199_990);
        assert!(!input.is_large() && input.held_bytes() < PAGE_BYTES);
        assert_eq!(input.bytes(), &some(200_000, 0)[199_990..]);
    }
}
