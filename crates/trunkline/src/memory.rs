//! One account for the memory of all buffers of a process: what waits for readers, what is read and not yet whole, what
//! streams keep, the routing table. What must never come in is who gives way when it is used up: that is decided by those
//! who hold something, through [`Relief`].
//!
//! Nobody pays for it by the message. A buffer is charged with what it has allocated, in steps, when that changes; so a
//! connection that keeps up touches the account when its buffers grow for the first time, and then never again.

use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Steps in which buffers are charged. What is smaller belongs to what holds it, such as a connection.
const STEP_BYTES: usize = 4 << 10;
/// What may wait in a queue without being charged, and the steps in which more is: one that is emptied as fast as it fills
/// touches the account never.
const QUEUE_STEP_BYTES: usize = 64 << 10;
/// Least room for buffers, however little the process was given: below it no two clients could talk.
const LEAST_BYTES: isize = 4 << 20;

/// What memory is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// What waits for clients that do not read as fast as they are sent to.
    Output,
    /// What clients have sent and is not a whole operation yet, and what is remembered for them between two batches.
    Input,
    /// What every connection takes, whatever it does.
    Connections,
    /// Subscriptions and the routing table.
    Subscriptions,
    /// Messages in streams of this process.
    Streams,
    /// What waits for subscribers in this process.
    Inboxes,
    /// What clients have published through a bridge, or this process where JetStream stores it, and the backend has not
    /// taken.
    Bridge,
    /// The record of what was seen on the bus.
    Observations,
}

impl Holding {
    /// All of them, in the order they are shown.
    pub const ALL: [Self; 8] = [
        Self::Output,
        Self::Input,
        Self::Connections,
        Self::Subscriptions,
        Self::Streams,
        Self::Inboxes,
        Self::Bridge,
        Self::Observations,
    ];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Input => "input",
            Self::Connections => "connections",
            Self::Subscriptions => "subscriptions",
            Self::Streams => "streams",
            Self::Inboxes => "inboxes",
            Self::Bridge => "bridge",
            Self::Observations => "observations",
        }
    }

    /// Most eighths of all memory for buffers that may be held for it. What stays for long shares seven of them, so that
    /// there is always room for what is on its way.
    fn eighths(self) -> usize {
        match self {
            Self::Output | Self::Input | Self::Inboxes | Self::Bridge => 8,
            Self::Connections | Self::Subscriptions | Self::Streams => 2,
            Self::Observations => 1,
        }
    }
}

/// Who can make room: the server, by cutting off the slowest of its clients.
pub trait Relief: Send + Sync {
    /// Gives back what can be given back until the budget is not exceeded any more.
    fn relieve(&self, budget: &MemoryBudget);
}

/// What all buffers of a process may take together, and what they take. Key `runtime.resources.memory`; without it
/// nothing is refused, and what is held is counted all the same.
///
/// The limit for buffers is what is left of the setting when the program itself has its part; see
/// [`MemoryBudget::set_limit`].
pub struct MemoryBudget {
    /// As the setting says, for people and errors; 0 is none.
    configured: u64,
    /// For buffers alone; `isize::MAX` is none.
    limit: AtomicIsize,
    /// The sum of `held`. Signed, as what one thread gives back may be entered before what another has taken: below nothing
    /// for a moment is nothing, and not all there is.
    used: AtomicIsize,
    held: [AtomicIsize; Holding::ALL.len()],
    /// How often somebody had to give way, or was refused.
    exceeded: AtomicU64,
    relief: OnceLock<Weak<dyn Relief>>,
}

impl std::fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBudget")
            .field("configured", &self.configured)
            .field("limit", &self.limit())
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::unlimited()
    }
}

/// There is no room for something: all buffers together, or those of its kind, have what they may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the memory for buffers is used up: the limit of the process is {limit} bytes (runtime.resources.memory)"
)]
#[non_exhaustive]
pub struct MemoryExhausted {
    /// What the setting says, in bytes.
    pub limit: u64,
}

impl MemoryBudget {
    /// Counts, and refuses nothing.
    pub fn unlimited() -> Self {
        Self::with(0, isize::MAX)
    }

    /// For a process that may take `bytes`: half of it for buffers, until [`MemoryBudget::set_limit`] knows better.
    pub fn new(bytes: u64) -> Self {
        Self::with(bytes, signed(bytes / 2).max(LEAST_BYTES))
    }

    /// As the setting says; `None` is without a limit.
    pub fn from_setting(bytes: Option<u64>) -> Self {
        bytes.map_or_else(Self::unlimited, Self::new)
    }

    fn with(configured: u64, limit: isize) -> Self {
        Self {
            configured,
            limit: AtomicIsize::new(limit),
            used: AtomicIsize::new(0),
            held: Default::default(),
            exceeded: AtomicU64::new(0),
            relief: OnceLock::new(),
        }
    }

    /// What the process may take, in bytes; `None` is without a limit.
    pub fn configured(&self) -> Option<u64> {
        (self.configured > 0).then_some(self.configured)
    }

    /// What buffers may take, in bytes; `None` is without a limit.
    pub fn limit(&self) -> Option<usize> {
        self.configured().map(|_| unsigned(&self.limit))
    }

    /// Sets what buffers may take, 4 MiB at least, as whoever measures the process finds it to be possible. Nothing
    /// happens without a configured limit.
    pub fn set_limit(&self, bytes: usize) {
        if self.configured().is_some() {
            self.limit.store(signed(bytes as u64).max(LEAST_BYTES), Ordering::Relaxed);
        }
    }

    /// What buffers take now, in bytes.
    pub fn used(&self) -> usize {
        unsigned(&self.used)
    }

    /// What is held for one thing, in bytes.
    pub fn held(&self, holding: Holding) -> usize {
        unsigned(&self.held[holding as usize])
    }

    /// How often somebody had to give way, or was refused.
    pub fn exceeded(&self) -> u64 {
        self.exceeded.load(Ordering::Relaxed)
    }

    /// Says who can make room. Whoever says so first stays.
    pub fn set_relief(&self, relief: Weak<dyn Relief>) {
        let _ = self.relief.set(relief);
    }

    /// Whether more is held than may be.
    #[inline]
    pub fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit.load(Ordering::Relaxed)
    }

    /// Has room made if more is held than may be. To be called with no lock held that a buffer of a client needs.
    #[inline]
    pub fn keep(&self) {
        if self.is_exceeded() {
            self.make_room();
        }
    }

    #[cold]
    fn make_room(&self) {
        if let Some(relief) = self.relief.get().and_then(Weak::upgrade) {
            self.exceeded.fetch_add(1, Ordering::Relaxed);
            relief.relieve(self);
        }
    }

    /// Most bytes that may be held for one thing.
    pub fn share(&self, holding: Holding) -> usize {
        self.limit().map_or(usize::MAX, |limit| limit / 8 * holding.eighths())
    }

    /// Whether `more` bytes may be held for something: within its share. That all buffers together have too much for a moment
    /// is no reason to refuse it, since those who hold most are being cut off then.
    ///
    /// # Errors
    /// [`MemoryExhausted`], which is counted.
    pub fn check(&self, holding: Holding, more: usize) -> Result<(), MemoryExhausted> {
        self.keep();
        match self.held(holding).saturating_add(more) <= self.share(holding) {
            true => Ok(()),
            false => {
                self.exceeded.fetch_add(1, Ordering::Relaxed);
                Err(MemoryExhausted { limit: self.configured })
            }
        }
    }

    /// Enters a change: `before` bytes were held for something, and `now` are.
    pub fn enter(&self, holding: Holding, before: usize, now: usize) {
        let change = signed(now as u64) - signed(before as u64);
        if change != 0 {
            self.held[holding as usize].fetch_add(change, Ordering::Relaxed);
            self.used.fetch_add(change, Ordering::Relaxed);
        }
    }
}

fn signed(bytes: u64) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

fn unsigned(bytes: &AtomicIsize) -> usize {
    usize::try_from(bytes.load(Ordering::Relaxed)).unwrap_or_default()
}

/// What one buffer is charged with. It is given back when this is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<MemoryBudget>,
    holding: Holding,
    bytes: usize,
}

impl Charge {
    /// Of nothing, for now.
    pub fn new(budget: &Arc<MemoryBudget>, holding: Holding) -> Self {
        Self { budget: budget.clone(), holding, bytes: 0 }
    }

    /// Of so many bytes, whether there is room or not.
    pub fn of(budget: &Arc<MemoryBudget>, holding: Holding, bytes: usize) -> Self {
        let mut charge = Self::new(budget, holding);
        charge.set_exactly(bytes);
        charge
    }

    /// The buffer has allocated so many bytes by now; counted in steps of 4 KiB, down to nothing for less than a quarter
    /// of one.
    #[inline]
    pub fn set(&mut self, bytes: usize) {
        let steps = bytes.saturating_add(STEP_BYTES * 3 / 4) / STEP_BYTES;
        if self.bytes != steps * STEP_BYTES {
            self.set_exactly(steps * STEP_BYTES);
        }
    }

    #[cold]
    fn set_exactly(&mut self, bytes: usize) {
        self.budget.enter(self.holding, self.bytes, bytes);
        self.bytes = bytes;
    }

    /// What it is charged with.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The account.
    pub fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.enter(self.holding, self.bytes, 0);
    }
}

/// The bytes of what waits in a queue: the first 64 KiB whatever there is, and beyond them as far as there is memory.
#[derive(Debug)]
pub(crate) struct QueueBytes {
    bytes: usize,
    charge: Charge,
}

impl QueueBytes {
    /// Of nothing, for now.
    pub(crate) fn new(budget: &Arc<MemoryBudget>, holding: Holding) -> Self {
        Self { bytes: 0, charge: Charge::new(budget, holding) }
    }

    /// Counts what is to be queued; `false`, and nothing is counted, when the process has no memory for it.
    pub(crate) fn take(&mut self, more: usize) -> bool {
        if self.bytes + more > self.charge.bytes() + QUEUE_STEP_BYTES && self.is_short() {
            return false;
        }
        self.take_anyway(more);
        true
    }

    /// Counts what is queued, whether or not there is memory for it.
    pub(crate) fn take_anyway(&mut self, more: usize) {
        self.bytes += more;
        if self.bytes > self.charge.bytes() + QUEUE_STEP_BYTES {
            self.charge.set(self.bytes.next_multiple_of(QUEUE_STEP_BYTES));
        }
    }

    /// So many bytes wait no longer.
    pub(crate) fn give_back(&mut self, less: usize) {
        self.bytes = self.bytes.saturating_sub(less);
        if self.charge.bytes() > self.bytes + 2 * QUEUE_STEP_BYTES {
            self.charge.set(self.bytes / QUEUE_STEP_BYTES * QUEUE_STEP_BYTES);
        }
    }

    /// Whether all buffers of the process together have more than they may.
    pub(crate) fn is_short(&self) -> bool {
        self.charge.budget().is_exceeded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_charged_in_steps_and_gives_everything_back() {
        let budget = Arc::new(MemoryBudget::unlimited());
        let mut charge = Charge::new(&budget, Holding::Output);
        for (allocated, charged) in [
            (0, 0),
            (1023, 0),
            (1024, 4096),
            (4096, 4096),
            (5119, 4096),
            (5120, 8192),
            (100, 0),
            (9000, 8192),
        ] {
            charge.set(allocated);
            assert_eq!((budget.held(Holding::Output), budget.used()), (charged, charged), "{allocated}");
        }
        let other = Charge::of(&budget, Holding::Streams, 10);
        assert_eq!((budget.used(), budget.held(Holding::Streams)), (8202, 10));
        drop((charge, other));
        assert_eq!((budget.used(), budget.exceeded()), (0, 0));
    }

    #[test]
    fn below_nothing_for_a_moment_is_nothing() {
        let budget = MemoryBudget::new(64 << 20);
        budget.enter(Holding::Subscriptions, 200, 100);
        assert_eq!((budget.held(Holding::Subscriptions), budget.used(), budget.is_exceeded()), (0, 0, false));
        budget.enter(Holding::Subscriptions, 0, 200);
        assert_eq!((budget.held(Holding::Subscriptions), budget.used()), (100, 100));
    }

    #[test]
    fn what_stays_for_long_has_a_share_and_what_is_on_its_way_has_the_rest() {
        let budget = Arc::new(MemoryBudget::new(64 << 20));
        assert_eq!((budget.configured(), budget.limit()), (Some(64 << 20), Some(32 << 20)));
        let mut charges = Vec::new();
        while budget.check(Holding::Subscriptions, 1 << 20).is_ok() {
            charges.push(Charge::of(&budget, Holding::Subscriptions, 1 << 20));
        }
        assert_eq!((charges.len(), budget.exceeded()), (8, 1));
        assert!(budget.check(Holding::Connections, 1 << 20).is_ok(), "each has a share of its own");
        charges.push(Charge::of(&budget, Holding::Output, (24 << 20) + 1));
        assert!(
            budget.is_exceeded() && budget.check(Holding::Connections, 1).is_ok(),
            "output is to give way"
        );
        drop(charges);
        assert!(!budget.is_exceeded());
    }

    #[test]
    fn whoever_can_make_room_is_asked_before_anything_is_refused() {
        struct Readers(parking_lot::Mutex<Vec<Charge>>);
        impl Relief for Readers {
            fn relieve(&self, budget: &MemoryBudget) {
                while budget.is_exceeded() && self.0.lock().pop().is_some() {}
            }
        }
        let budget = Arc::new(MemoryBudget::new(64 << 20));
        let held = (0..5).map(|_| Charge::of(&budget, Holding::Output, 8 << 20)).collect();
        let readers = Arc::new(Readers(parking_lot::Mutex::new(held)));
        let weak: Weak<dyn Relief> = Arc::downgrade(&(readers.clone() as Arc<dyn Relief>));
        budget.set_relief(weak);
        assert_eq!(budget.check(Holding::Subscriptions, 1), Ok(()));
        assert_eq!((readers.0.lock().len(), budget.exceeded()), (4, 1));
    }

    #[test]
    fn without_a_setting_nothing_is_refused_and_everything_is_counted() {
        let budget = Arc::new(MemoryBudget::from_setting(None));
        let _charge = Charge::of(&budget, Holding::Streams, usize::MAX / 4);
        budget.set_limit(1);
        assert_eq!(budget.check(Holding::Streams, usize::MAX / 4), Ok(()));
        assert_eq!((budget.configured(), budget.limit(), budget.is_exceeded()), (None, None, false));
        assert_eq!(budget.used(), usize::MAX / 4);
    }
}
