//! Counts that are forgotten: each one a window after it began, and those that matter least where there are too many.
//!
//! Nothing here depends on how many there are by more than its logarithm: whoever comes by ever new names may make others
//! wait for a look, and for nothing longer.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

/// How often something was seen of each key within a window of time.
#[derive(Debug)]
pub(super) struct Counts<K> {
    window: Duration,
    /// Most keys. Past it one goes whose window is over; where there is none, the one that was seen least, the oldest of them.
    max: usize,
    table: HashMap<K, Count, foldhash::quality::RandomState>,
    /// The keys of the table by when their windows began.
    by_age: BTreeSet<(Instant, K)>,
    /// The same, in the order in which they would go.
    by_count: BTreeSet<(u32, Instant, K)>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    seen: u32,
    since: Instant,
}

impl<K: Copy + Ord + Hash> Counts<K> {
    pub(super) fn new(window: Duration, max: usize) -> Self {
        let (by_age, by_count) = (BTreeSet::new(), BTreeSet::new());
        Self { window, max, table: HashMap::default(), by_age, by_count }
    }

    pub(super) fn of(&self, key: &K, now: Instant) -> u32 {
        let count = self.table.get(key).filter(|count| self.is_fresh(count.since, now));
        count.map_or(0, |count| count.seen)
    }

    /// Counts one, and returns how many there are by now.
    pub(super) fn add(&mut self, key: K, now: Instant) -> u32 {
        let before = self.remove(&key).filter(|count| self.is_fresh(count.since, now));
        let Count { seen, since } = before.unwrap_or(Count { seen: 0, since: now });
        if self.table.len() >= self.max {
            self.make_room(now);
        }
        let seen = seen.saturating_add(1);
        self.table.insert(key, Count { seen, since });
        self.by_age.insert((since, key));
        self.by_count.insert((seen, since, key));
        seen
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    fn make_room(&mut self, now: Instant) {
        let oldest =
            self.by_age.first().filter(|(since, _)| !self.is_fresh(*since, now)).map(|(_, key)| *key);
        if let Some(key) = oldest.or_else(|| self.by_count.first().map(|(_, _, key)| *key)) {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &K) -> Option<Count> {
        let count = self.table.remove(key)?;
        self.by_age.remove(&(count.since, *key));
        self.by_count.remove(&(count.seen, count.since, *key));
        Some(count)
    }

    fn is_fresh(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) < self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    /// What is kept, by looking at all of it.
    #[derive(Default)]
    struct Plain(Vec<(u32, Count)>);

    impl Plain {
        fn add(&mut self, key: u32, now: Instant, max: usize) -> u32 {
            let is_over = |count: &Count| now.saturating_duration_since(count.since) >= WINDOW;
            self.0.retain(|(other, count)| *other != key || !is_over(count));
            let place = self.0.iter().position(|(other, _)| *other == key).unwrap_or_else(|| {
                if self.0.len() >= max {
                    // Times differ here, so that there is one answer.
                    let order = |(_, count): &&(u32, Count)| match is_over(count) {
                        true => (0, count.since),
                        false => (count.seen, count.since),
                    };
                    let goes = self.0.iter().min_by_key(order).expect("it is full").0;
                    self.0.retain(|(other, _)| *other != goes);
                }
                self.0.push((key, Count { seen: 0, since: now }));
                self.0.len() - 1
            });
            self.0[place].1.seen += 1;
            self.0[place].1.seen
        }
    }

    #[test]
    fn who_is_forgotten_is_who_a_look_at_all_of_them_would_choose() {
        const MAX: usize = 12;
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut counts, mut plain) = (Counts::new(WINDOW, MAX), Plain::default());
            let mut now = Instant::now();
            for step in 0..2000 {
                let pause = if random.u8(..50) == 0 { random.u64(1..70_000) } else { random.u64(1..1500) };
                now += Duration::from_millis(pause);
                // Some come often, most of them once.
                let key = if random.bool() { random.u32(..6) } else { random.u32(..1000) };
                let seen = counts.add(key, now);
                assert_eq!(seen, plain.add(key, now, MAX), "seed {seed}, step {step}");
                assert_eq!(counts.of(&key, now), seen);
                let (mut kept, mut expected): (Vec<u32>, Vec<u32>) =
                    (counts.table.keys().copied().collect(), plain.0.iter().map(|(key, _)| *key).collect());
                kept.sort_unstable();
                expected.sort_unstable();
                assert_eq!(kept, expected, "seed {seed}, step {step}");
                let indexed = (counts.by_age.len(), counts.by_count.len());
                assert_eq!(indexed, (kept.len(), kept.len()), "seed {seed}, step {step}");
            }
        }
    }

    #[test]
    fn a_key_counts_for_a_window_from_its_first_time() {
        let (mut counts, start) = (Counts::new(WINDOW, 2), Instant::now());
        assert_eq!((counts.add(1, start), counts.add(1, start + WINDOW / 2)), (1, 2));
        assert_eq!(counts.of(&1, start + WINDOW - Duration::from_millis(1)), 2);
        assert_eq!((counts.of(&1, start + WINDOW), counts.add(1, start + WINDOW)), (0, 1));
    }
}
