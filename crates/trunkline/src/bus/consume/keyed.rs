//! Which delivery may start when order by key is wanted. A state machine: deliveries in, the next one to start out; no
//! clock, no task, no backend.
//!
//! One delivery of a key is at work at a time, the lowest offset first. A key stays blocked from the start of a
//! delivery until its settlement is confirmed, and, when it failed, until it has come again: later messages of the key
//! are parked meanwhile, those of other keys go on.

use std::collections::BTreeMap;

use hashbrown::HashMap;

/// The parked deliveries of all keys. `O` orders deliveries, `W` says until when a failed one is waited for.
#[derive(Debug)]
pub(super) struct Keyed<O, T, W> {
    /// Most deliveries at work at once.
    limit: usize,
    running: usize,
    parked: usize,
    keys: HashMap<String, Queue<O, T, W>, foldhash::fast::RandomState>,
    /// The first delivery of every key that is free and has one. Always in step with `keys`.
    ready: BTreeMap<O, String>,
}

#[derive(Debug)]
struct Queue<O, T, W> {
    state: State<O, W>,
    parked: BTreeMap<O, T>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State<O, W> {
    /// The first parked delivery may start.
    Free,
    /// This one is at work, or its settlement is not confirmed.
    Busy(O),
    /// This one failed and comes again.
    Waiting { offset: O, until: W },
}

impl<O: Copy + Ord, T, W: Copy + Ord> Keyed<O, T, W> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, running: 0, parked: 0, keys: HashMap::default(), ready: BTreeMap::new() }
    }

    /// Deliveries that wait here.
    pub(super) fn parked(&self) -> usize {
        self.parked
    }

    /// The parked deliveries with their keys, for renewing their leases.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.keys.iter().flat_map(|(key, queue)| queue.parked.values().map(|item| (key.as_str(), item)))
    }

    /// The parked deliveries, to change what is known of them.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.keys.values_mut().flat_map(|queue| queue.parked.values_mut())
    }

    /// Until when each key that waits for a failed message does so at least.
    pub(super) fn waits(&self) -> impl Iterator<Item = W> {
        self.keys.values().filter_map(|queue| match queue.state {
            State::Waiting { until, .. } => Some(until),
            State::Free | State::Busy(_) => None,
        })
    }

    /// A parked delivery.
    pub(super) fn get_mut(&mut self, key: &str, offset: O) -> Option<&mut T> {
        self.keys.get_mut(key)?.parked.get_mut(&offset)
    }

    /// Parks a delivery until it is its turn. A newer delivery takes the place of an older one of the same message.
    pub(super) fn park(&mut self, key: &str, offset: O, item: T) {
        let queue =
            self.keys.entry_ref(key).or_insert_with(|| Queue { state: State::Free, parked: BTreeMap::new() });
        let first_before = queue.parked.keys().next().copied();
        if queue.parked.insert(offset, item).is_none() {
            self.parked += 1;
        }
        if matches!(queue.state, State::Waiting { offset: awaited, .. } if awaited == offset) {
            queue.state = State::Free;
        } else if let (State::Free, Some(first)) = (queue.state, first_before) {
            self.ready.remove(&first);
        }
        self.make_ready(key);
    }

    /// The next delivery to start, if one may; its key is busy from now on.
    pub(super) fn start_next(&mut self) -> Option<(String, O, T)> {
        if self.running >= self.limit {
            return None;
        }
        let (offset, key) = self.ready.pop_first()?;
        let queue = self.keys.get_mut(&key)?;
        let item = queue.parked.remove(&offset)?;
        queue.state = State::Busy(offset);
        self.parked -= 1;
        self.running += 1;
        Some((key, offset, item))
    }

    /// Its handler has ended: another may start, but not of its key.
    pub(super) fn ended(&mut self) {
        self.running -= 1;
    }

    /// Its message is settled for good: the key goes on.
    pub(super) fn settled(&mut self, key: &str, offset: O) {
        if let Some(queue) = self.keys.get_mut(key)
            && queue.state == State::Busy(offset)
        {
            queue.state = State::Free;
            self.make_ready(key);
        }
    }

    /// Its message comes again: the key waits for it, at least until `until`.
    pub(super) fn wait_for(&mut self, key: &str, offset: O, until: W) {
        if let Some(queue) = self.keys.get_mut(key)
            && queue.state == State::Busy(offset)
        {
            // It may be back already, when its lease was lost while the handler was at work.
            queue.state = match queue.parked.contains_key(&offset) {
                true => State::Free,
                false => State::Waiting { offset, until },
            };
            self.make_ready(key);
        }
    }

    /// Frees the keys that have waited past their time: the backend has nothing more to give, so the message was removed.
    /// Returns how many.
    pub(super) fn give_up_waiting(&mut self, nothing_left_at: W) -> usize {
        let overdue: Vec<String> = self
            .keys
            .iter()
            .filter(
                |(_, queue)| matches!(queue.state, State::Waiting { until, .. } if until <= nothing_left_at),
            )
            .map(|(key, _)| key.clone())
            .collect();
        for key in &overdue {
            if let Some(queue) = self.keys.get_mut(key) {
                queue.state = State::Free;
            }
            self.make_ready(key);
        }
        overdue.len()
    }

    /// Drops all parked deliveries and everything waited for: they are another member's now. Keys at work stay busy
    /// until their handlers have ended.
    pub(super) fn clear(&mut self) {
        self.parked = 0;
        self.ready.clear();
        self.keys.retain(|_, queue| {
            queue.parked.clear();
            matches!(queue.state, State::Busy(_))
        });
    }

    /// Brings `ready` in step with a key, and drops the key when nothing is left of it.
    fn make_ready(&mut self, key: &str) {
        let Some(queue) = self.keys.get(key) else { return };
        if queue.state != State::Free {
            return;
        }
        match queue.parked.keys().next() {
            Some(first) => drop(self.ready.insert(*first, key.to_owned())),
            None => drop(self.keys.remove(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Sut = Keyed<u32, &'static str, u32>;

    fn started(keyed: &mut Sut) -> Vec<u32> {
        std::iter::from_fn(|| keyed.start_next().map(|(_, offset, _)| offset)).collect()
    }

    fn parked(messages: &[(&str, u32)], limit: usize) -> Sut {
        let mut keyed = Sut::new(limit);
        for (key, offset) in messages {
            keyed.park(key, *offset, "");
        }
        keyed
    }

    #[test]
    fn one_of_each_key_starts_in_order_of_offsets() {
        let mut keyed = parked(&[("b", 2), ("a", 1), ("a", 3), ("c", 4)], 2);
        assert_eq!(started(&mut keyed), [1, 2]);
        keyed.ended();
        assert_eq!(started(&mut keyed), [4], "a is busy until its settlement is confirmed");
        keyed.ended();
        keyed.settled("a", 1);
        assert_eq!(started(&mut keyed), [3]);
    }

    #[test]
    fn a_failed_message_blocks_its_key_and_no_other_until_it_has_come_again() {
        let mut keyed = parked(&[("a", 1), ("a", 2), ("b", 3)], 8);
        assert_eq!(started(&mut keyed), [1, 3]);
        keyed.ended();
        keyed.wait_for("a", 1, 100);
        assert!(started(&mut keyed).is_empty());
        keyed.park("b", 4, "");
        keyed.ended();
        keyed.settled("b", 3);
        assert_eq!(started(&mut keyed), [4]);
        keyed.park("a", 1, "again");
        assert_eq!(started(&mut keyed), [1]);
        keyed.ended();
        keyed.settled("a", 1);
        assert_eq!(started(&mut keyed), [2]);
    }

    #[test]
    fn a_message_that_never_comes_again_frees_its_key_once_nothing_is_left_to_wait_for() {
        let mut keyed = parked(&[("a", 1), ("a", 2)], 8);
        assert_eq!(started(&mut keyed), [1]);
        keyed.ended();
        keyed.wait_for("a", 1, 100);
        assert_eq!(keyed.give_up_waiting(99), 0);
        assert_eq!(keyed.give_up_waiting(100), 1);
        assert_eq!(started(&mut keyed), [2]);
    }

    #[test]
    fn a_redelivery_that_overtakes_the_end_of_its_handler_runs_next() {
        let mut keyed = parked(&[("a", 1), ("a", 2)], 8);
        assert_eq!(started(&mut keyed), [1]);
        keyed.park("a", 1, "again");
        keyed.ended();
        keyed.wait_for("a", 1, 100);
        assert_eq!(started(&mut keyed), [1]);
    }

    #[test]
    fn a_newer_delivery_takes_the_place_of_an_older_one() {
        let mut keyed = Sut::new(8);
        keyed.park("a", 1, "old");
        keyed.park("a", 1, "new");
        assert_eq!(keyed.parked(), 1);
        assert_eq!(keyed.start_next(), Some(("a".to_owned(), 1, "new")));
        assert_eq!(keyed.start_next(), None);
    }

    #[test]
    fn losing_the_lease_drops_what_is_parked_and_keeps_busy_keys_busy() {
        let mut keyed = parked(&[("a", 1), ("a", 2), ("b", 3)], 1);
        assert_eq!(started(&mut keyed), [1]);
        keyed.clear();
        assert_eq!(keyed.parked(), 0);
        keyed.park("a", 1, "again");
        keyed.park("b", 3, "again");
        keyed.ended();
        assert_eq!(started(&mut keyed), [3], "the old handler of a is not over yet");
        keyed.ended();
        keyed.wait_for("a", 1, 100);
        assert_eq!(started(&mut keyed), [1]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Park(u8, u32),
        Start,
        Succeed(usize),
        Fail(usize),
        Return(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..4u8, 0..1000u32).prop_map(|(key, offset)| Step::Park(key, offset)),
            3 => Just(Step::Start),
            2 => any::<usize>().prop_map(Step::Succeed),
            1 => any::<usize>().prop_map(Step::Fail),
            1 => any::<usize>().prop_map(Step::Return),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// Whatever happens: never two of a key at once, never more than the limit, a failed message is the next of its
        /// key, and in the end everything parked has started.
        #[test]
        fn keys_are_sequential_bounded_and_never_stuck(steps in steps(), limit in 1..4usize) {
            let mut keyed = Keyed::<u32, (), u32>::new(limit);
            let mut running: Vec<(String, u32)> = Vec::new();
            let mut failed: Vec<(String, u32)> = Vec::new();
            let mut waiting = std::collections::BTreeSet::new();
            let start = |keyed: &mut Keyed<u32, (), u32>,
                             running: &mut Vec<(String, u32)>,
                             failed: &[(String, u32)],
                             waiting: &mut std::collections::BTreeSet<u32>| {
                let Some((key, offset, ())) = keyed.start_next() else { return false };
                assert!(running.iter().all(|(other, _)| *other != key), "two of a key at once");
                assert!(failed.iter().all(|(other, _)| *other != key), "overtook a failed message");
                assert!(waiting.remove(&offset));
                running.push((key, offset));
                assert!(running.len() <= limit);
                true
            };
            for step in steps {
                match step {
                    Step::Park(key, offset) => {
                        // An offset belongs to one key, and is given once until it fails.
                        let offset = offset * 4 + u32::from(key);
                        let known = waiting.contains(&offset)
                            || running.iter().chain(&failed).any(|(_, other)| *other == offset);
                        if !known {
                            waiting.insert(offset);
                            keyed.park(&key.to_string(), offset, ());
                        }
                    }
                    Step::Start => drop(start(&mut keyed, &mut running, &failed, &mut waiting)),
                    Step::Succeed(at) if !running.is_empty() => {
                        let (key, offset) = running.swap_remove(at % running.len());
                        keyed.ended();
                        keyed.settled(&key, offset);
                    }
                    Step::Fail(at) if !running.is_empty() => {
                        let (key, offset) = running.swap_remove(at % running.len());
                        keyed.ended();
                        keyed.wait_for(&key, offset, 0);
                        failed.push((key, offset));
                    }
                    Step::Return(at) if !failed.is_empty() => {
                        let (key, offset) = failed.swap_remove(at % failed.len());
                        waiting.insert(offset);
                        keyed.park(&key, offset, ());
                    }
                    _ => {}
                }
                prop_assert_eq!(keyed.parked(), waiting.len());
            }
            for (key, offset) in std::mem::take(&mut failed) {
                waiting.insert(offset);
                keyed.park(&key, offset, ());
            }
            while !waiting.is_empty() {
                if !start(&mut keyed, &mut running, &failed, &mut waiting) {
                    prop_assert!(!running.is_empty(), "stuck with {} parked", keyed.parked());
                    let (key, offset) = running.pop().unwrap();
                    keyed.ended();
                    keyed.settled(&key, offset);
                }
            }
        }
    }
}
