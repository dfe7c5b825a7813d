//! A bounded memory of what was lately: the newer half is whole, the older goes at once.

use std::borrow::Borrow;
use std::hash::Hash;

use hashbrown::HashMap;

/// Remembers between `half` and twice `half` entries.
#[derive(Debug)]
pub(super) struct Lately<K, V> {
    young: HashMap<K, V, foldhash::fast::RandomState>,
    old: HashMap<K, V, foldhash::fast::RandomState>,
    half: usize,
}

impl<K: Eq + Hash, V> Lately<K, V> {
    pub(super) fn new(half: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), half: half.max(1) }
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lately_is_remembered_and_no_more_than_twice_the_half() {
        let mut lately = Lately::new(100);
        for n in 0..1000_usize {
            lately.insert(n, n);
            assert!(lately.len() <= 200);
            for recent in n.saturating_sub(99)..=n {
                assert_eq!(lately.get(&recent), Some(&recent));
            }
        }
        assert_eq!(lately.get(&1), None);
    }
}
