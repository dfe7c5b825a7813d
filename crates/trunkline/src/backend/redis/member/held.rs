//! Which deliveries are surely still this member's.
//!
//! The server counts for each consumer how often a member lost a delivery: its fence. As long as that count is the one
//! from before a delivery was handed out, nobody has taken the delivery away, and a batch of such deliveries is settled
//! without a look at each of them. What is not known here is looked at on the server.

use hashbrown::HashMap;
use trunkline_core::StreamOffset;

use super::super::entry::EntryId;
use crate::backend::AckToken;

/// Deliveries remembered; a member that holds more settles the rest the long way.
const HELD_MAX: usize = 1 << 16;

/// See the module's text.
#[derive(Default)]
pub(super) struct Held {
    fence: u64,
    /// Attempt by id.
    deliveries: HashMap<EntryId, u32, foldhash::fast::RandomState>,
}

impl Held {
    /// How often deliveries were lost as far as is known; to be asked before a fetch is sent.
    pub(super) fn fence(&self) -> u64 {
        self.fence
    }

    /// Takes note of how often deliveries were lost by now: one more, and any of ours may be among them.
    pub(super) fn see_fence(&mut self, fence: u64) {
        if self.fence != fence {
            self.fence = fence;
            self.deliveries.clear();
        }
    }

    /// Takes note of deliveries by a fetch that was sent when the fence stood at `fence`.
    pub(super) fn add(&mut self, fence: u64, deliveries: impl Iterator<Item = (EntryId, u32)>) {
        if self.fence != fence {
            return;
        }
        if self.deliveries.len() >= HELD_MAX {
            self.deliveries.clear();
        }
        self.deliveries.extend(deliveries);
    }

    /// Takes out deliveries that are about to be settled. `None` when one of them is not known, or not in this attempt;
    /// they are all forgotten then, too.
    pub(super) fn take<'a>(&mut self, tokens: impl Iterator<Item = &'a AckToken>) -> Option<Vec<EntryId>> {
        let (mut ids, mut all) = (Vec::with_capacity(tokens.size_hint().0), true);
        for token in tokens {
            let StreamOffset::Entry(ms, seq) = token.offset else { return None };
            all &= self.deliveries.remove(&(ms, seq)) == Some(token.attempt);
            ids.push((ms, seq));
        }
        all.then_some(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(seq: u64, attempt: u32) -> AckToken {
        AckToken { offset: StreamOffset::Entry(1, seq), attempt, ack_subject: None }
    }

    #[test]
    fn a_delivery_is_settled_the_short_way_once_and_in_its_attempt() {
        let mut held = Held::default();
        held.add(0, [((1, 1), 1), ((1, 2), 1), ((1, 3), 2)].into_iter());
        assert_eq!(held.take([token(1, 1)].iter()), Some(vec![(1, 1)]));
        assert_eq!(held.take([token(1, 1)].iter()), None, "settled");
        assert_eq!(held.take([token(2, 2)].iter()), None, "another attempt");
        assert_eq!(held.take([token(3, 2), token(4, 1)].iter()), None, "one is not known");
        assert_eq!(held.take([token(3, 2)].iter()), None, "it may be settled already");
    }

    #[test]
    fn what_was_fetched_before_a_loss_is_not_known_after_it() {
        let mut held = Held::default();
        held.add(0, [((1, 1), 1)].into_iter());
        let before = held.fence();
        held.see_fence(1);
        assert_eq!(held.take([token(1, 1)].iter()), None);
        held.add(before, [((1, 2), 1)].into_iter());
        assert_eq!(held.take([token(2, 1)].iter()), None, "the fetch was sent before");
        held.add(held.fence(), [((1, 3), 1)].into_iter());
        assert!(held.take([token(3, 1)].iter()).is_some());
    }
}
