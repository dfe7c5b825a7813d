//! A hash table that grows and shrinks a little at a time.
//!
//! An ordinary table that is full moves everything it has into one twice as large: with a million entries under a lock, that
//! is a tenth of a second in which nobody else gets anything. This one is a tree of small tables, divided by bits of the
//! hash, so that no call ever moves more than 512 entries, however many there are.

use hashbrown::HashTable;

/// A table that has so many entries is divided before it takes another.
const UNDIVIDED_MAX: usize = 512;
/// One that was divided and has so few is made one again; far below, so that it does not go to and fro.
const UNITED_MAX: usize = UNDIVIDED_MAX / 8;
/// A table is divided into so many, by as many bits of the hash as that takes.
const PARTS: usize = 1 << PART_BITS;
const PART_BITS: u32 = 6;
/// The bits of the hash that divide begin here: the small tables use those below and the highest seven.
const FIRST_BIT: u32 = 16;
/// Divided no deeper than there are bits; by then there are more entries than any memory holds, or their hashes are equal.
const DEPTH_MAX: u32 = 6;
/// An undivided table of fewer slots is not worth making smaller.
const SHRUNK_SLOTS_MIN: usize = 64;

/// A hash table whose slowest call takes some ten microseconds, whatever is in it.
///
/// As with [`hashbrown::HashTable`], callers bring the hash, and say what is equal. Every entry is kept with its hash, so
/// that moving it looks at nothing else. An empty one allocates nothing.
#[derive(Debug)]
pub struct GradualTable<T> {
    root: Part<T>,
    len: usize,
}

#[derive(Debug)]
enum Part<T> {
    Whole(HashTable<(u64, T)>),
    Divided(Box<Divided<T>>),
}

#[derive(Debug)]
struct Divided<T> {
    len: usize,
    parts: [Part<T>; PARTS],
}

impl<T> Default for GradualTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> GradualTable<T> {
    /// An empty table.
    pub const fn new() -> Self {
        Self { root: Part::Whole(HashTable::new()), len: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// An entry with this hash that is the one looked for.
    #[inline]
    pub fn find(&self, hash: u64, eq: impl Fn(&T) -> bool) -> Option<&T> {
        let mut part = &self.root;
        let mut depth = 0;
        loop {
            match part {
                Part::Whole(table) => {
                    return table.find(hash, |(_, entry)| eq(entry)).map(|(_, entry)| entry);
                }
                Part::Divided(divided) => part = &divided.parts[place(hash, depth)],
            }
            depth += 1;
        }
    }

    /// As [`GradualTable::find`], to be changed; it must stay equal to what it was.
    #[inline]
    pub fn find_mut(&mut self, hash: u64, eq: impl Fn(&T) -> bool) -> Option<&mut T> {
        let mut part = &mut self.root;
        let mut depth = 0;
        loop {
            match part {
                Part::Whole(table) => {
                    return table.find_mut(hash, |(_, entry)| eq(entry)).map(|(_, entry)| entry);
                }
                Part::Divided(divided) => part = &mut divided.parts[place(hash, depth)],
            }
            depth += 1;
        }
    }

    /// Adds an entry, beside any that are equal, and returns where it is.
    pub fn insert(&mut self, hash: u64, entry: T) -> &mut T {
        self.len += 1;
        let mut part = &mut self.root;
        let mut depth = 0;
        loop {
            part.divide_if_full(depth);
            match part {
                Part::Whole(table) => {
                    let added = table.insert_unique(hash, (hash, entry), |(hash, _)| *hash);
                    return &mut added.into_mut().1;
                }
                Part::Divided(divided) => {
                    divided.len += 1;
                    part = &mut divided.parts[place(hash, depth)];
                }
            }
            depth += 1;
        }
    }

    /// Takes out an entry with this hash that is the one looked for.
    pub fn remove(&mut self, hash: u64, eq: impl Fn(&T) -> bool) -> Option<T> {
        let removed = self.root.remove(hash, 0, &eq)?;
        self.len -= 1;
        Some(removed)
    }

    /// All entries, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let mut waiting = vec![&self.root];
        let mut current: Option<hashbrown::hash_table::Iter<'_, (u64, T)>> = None;
        std::iter::from_fn(move || {
            loop {
                if let Some((_, entry)) = current.as_mut().and_then(Iterator::next) {
                    return Some(entry);
                }
                match waiting.pop()? {
                    Part::Whole(table) => current = Some(table.iter()),
                    Part::Divided(divided) => waiting.extend(&divided.parts),
                }
            }
        })
    }

    /// Calls `look` with all entries, in no particular order. Allocates nothing.
    #[inline]
    pub fn for_each<'t>(&'t self, look: &mut impl FnMut(&'t T)) {
        self.root.for_each(look);
    }
}

impl<T> IntoIterator for GradualTable<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter { waiting: vec![self.root], current: HashTable::new().into_iter() }
    }
}

/// The entries of a table that is no more, in no particular order. What was passed is given back step by step.
#[derive(Debug)]
pub struct IntoIter<T> {
    waiting: Vec<Part<T>>,
    current: hashbrown::hash_table::IntoIter<(u64, T)>,
}

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        loop {
            if let Some((_, entry)) = self.current.next() {
                return Some(entry);
            }
            match self.waiting.pop()? {
                Part::Whole(table) => self.current = table.into_iter(),
                Part::Divided(divided) => self.waiting.extend(divided.parts),
            }
        }
    }
}

impl<T> Part<T> {
    const fn new() -> Self {
        Self::Whole(HashTable::new())
    }

    fn divide_if_full(&mut self, depth: u32) {
        let Self::Whole(table) = self else { return };
        if table.len() < UNDIVIDED_MAX || depth >= DEPTH_MAX {
            return;
        }
        let mut divided = Box::new(Divided { len: table.len(), parts: [const { Part::new() }; PARTS] });
        for (hash, entry) in std::mem::take(table) {
            if let Part::Whole(table) = &mut divided.parts[place(hash, depth)] {
                table.insert_unique(hash, (hash, entry), |(hash, _)| *hash);
            }
        }
        *self = Self::Divided(divided);
    }

    fn remove(&mut self, hash: u64, depth: u32, eq: &impl Fn(&T) -> bool) -> Option<T> {
        let (removed, left) = match self {
            Self::Whole(table) => {
                let ((_, removed), _) = table.find_entry(hash, |(_, entry)| eq(entry)).ok()?.remove();
                if table.capacity() > SHRUNK_SLOTS_MIN && table.len() < table.capacity() / 4 {
                    let len = table.len();
                    table.shrink_to(len * 2, |(hash, _)| *hash);
                } else if table.is_empty() {
                    *table = HashTable::new();
                }
                return Some(removed);
            }
            Self::Divided(divided) => {
                let removed = divided.parts[place(hash, depth)].remove(hash, depth + 1, eq)?;
                divided.len -= 1;
                (removed, divided.len)
            }
        };
        if left <= UNITED_MAX {
            self.unite(left);
        }
        Some(removed)
    }

    fn unite(&mut self, len: usize) {
        let mut table = HashTable::with_capacity(len);
        let mut waiting = vec![std::mem::replace(self, Self::new())];
        while let Some(part) = waiting.pop() {
            match part {
                Self::Whole(part) => part.into_iter().for_each(|(hash, entry)| {
                    table.insert_unique(hash, (hash, entry), |(hash, _)| *hash);
                }),
                Self::Divided(divided) => waiting.extend(divided.parts),
            }
        }
        *self = Self::Whole(table);
    }

    /// Recursion is [`DEPTH_MAX`] deep at most.
    fn for_each<'t>(&'t self, look: &mut impl FnMut(&'t T)) {
        match self {
            Self::Whole(table) => table.iter().for_each(|(_, entry)| look(entry)),
            Self::Divided(divided) => divided.parts.iter().for_each(|part| part.for_each(look)),
        }
    }
}

#[inline]
fn place(hash: u64, depth: u32) -> usize {
    (hash >> (FIRST_BIT + depth * PART_BITS)) as usize % PARTS
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn hash_of(key: u64) -> u64 {
        key.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    }

    /// As many at depth as a table may have.
    fn check<T>(part: &Part<T>, depth: u32) -> usize {
        match part {
            Part::Whole(table) => {
                assert!(
                    table.len() <= UNDIVIDED_MAX || depth == DEPTH_MAX,
                    "{} at depth {depth}",
                    table.len()
                );
                table.len()
            }
            Part::Divided(divided) => {
                let below: usize = divided.parts.iter().map(|part| check(part, depth + 1)).sum();
                assert_eq!(below, divided.len);
                assert!(below > UNITED_MAX);
                below
            }
        }
    }

    #[test]
    fn it_has_what_an_ordinary_map_has() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut table, mut map) = (GradualTable::new(), HashMap::new());
        for phase in 0..6 {
            // It grows to some ten thousands and shrinks again, each three times.
            let (inserts, range) = if phase % 2 == 0 { (9, 40_000) } else { (1, 40_000) };
            for _ in 0..60_000 {
                let key = random.u64(..range);
                if random.u64(..10) < inserts {
                    let value = random.u32(..);
                    match table.find_mut(hash_of(key), |(known, _)| *known == key) {
                        Some(entry) => entry.1 = value,
                        None => assert_eq!(table.insert(hash_of(key), (key, value)).0, key),
                    }
                    map.insert(key, value);
                } else {
                    let removed = table.remove(hash_of(key), |(known, _)| *known == key);
                    assert_eq!(removed.map(|(_, value)| value), map.remove(&key));
                }
            }
            assert_eq!(check(&table.root, 0), table.len());
            assert_eq!(table.len(), map.len());
            for key in 0..range {
                let found = table.find(hash_of(key), |(known, _)| *known == key);
                assert_eq!(found.map(|(_, value)| value), map.get(&key));
            }
            let mut seen = 0;
            table.for_each(&mut |(key, value)| {
                seen += 1;
                assert_eq!(map.get(key), Some(value));
            });
            assert_eq!((seen, table.iter().count()), (map.len(), map.len()));
        }
        let rest: HashMap<_, _> = table.into_iter().collect();
        assert_eq!(rest, map);
    }

    #[test]
    fn thousands_of_equal_hashes_are_kept_all_the_same() {
        let mut table = GradualTable::new();
        (0..2000_u32).for_each(|n| {
            table.insert(7, n);
        });
        assert_eq!(table.find(7, |n| *n == 1999), Some(&1999));
        (0..2000_u32).for_each(|n| assert_eq!(table.remove(7, |entry| *entry == n), Some(n)));
        assert!(table.is_empty() && table.iter().next().is_none());
    }
}
