//! The work of checking passwords against hashes, which are made to be slow: off the threads that serve clients, and a
//! bounded number at a time, so that a flood of passwords slows down other passwords and nothing else; and by turns of the
//! addresses that they come from, so that a flood from one address slows down the passwords of that address above all.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trunkline::config::Secret;

use super::attempts::Guess;
use super::directory::Identity;
use super::password::{Key, SharedPassword, Verdict};

/// A password that a client gave, to be checked against a hash.
#[derive(Debug)]
pub(crate) struct Verification {
    /// Who the client is if it is right; `None` checks against somebody's hash for the sake of time alone, so that names
    /// that exist take no longer than others.
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) password: SharedPassword,
    pub(super) given: Secret,
    /// What a failure counts for; `None` for nothing.
    pub(super) guess: Option<Guess>,
    /// Whose turn it waits for; `None` of a client that was let in before, which waits for nobody's.
    pub(super) address: Option<IpAddr>,
}

impl Verification {
    /// Who the client is, if that takes no hash any more.
    pub(super) fn is_known(&self, key: &Key) -> Option<Arc<Identity>> {
        let identity = self.identity.as_ref()?;
        (self.password.check(self.given.expose(), key) == Verdict::Right).then(|| identity.clone())
    }
}

#[derive(Debug)]
pub(super) struct Hashing {
    /// One permit for each thread that may hash. Who waits for one does so in order, and until its time to authenticate is
    /// over; there are never more than there are connections.
    permits: Arc<Semaphore>,
    /// How many of one address may wait for a permit, or have one.
    turns_max: usize,
    /// Guards who of each address has its turn, where somebody has or waits for it. Held for a look or a change.
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    by_address: HashMap<IpAddr, Weak<Semaphore>, foldhash::quality::RandomState>,
    /// How many were left when those were last let go of that nobody waits for.
    after_trim: usize,
}

/// Addresses of which nobody waits any more are let go of when there are twice as many as were left before, and at least so
/// many.
const TRIM_MIN: usize = 64;

/// The right to hash, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _turn: Option<OwnedSemaphorePermit>,
    _permit: OwnedSemaphorePermit,
}

impl Hashing {
    /// Leaves half of the processors to those who are served.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let permits = (processors / 2).max(1);
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            turns_max: (permits / 2).max(1),
            turns: Mutex::default(),
        }
    }

    /// Waits for the turn of this address, and then for a permit.
    ///
    /// # Cancel safety
    /// Who no longer waits has lost its place, and nothing else.
    pub(super) async fn permit(&self, address: Option<IpAddr>) -> Permit {
        let turn = match address {
            Some(address) => Some(acquire(self.turns_of(address)).await),
            None => None,
        };
        Permit { _turn: turn, _permit: acquire(self.permits.clone()).await }
    }

    fn turns_of(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut turns = self.turns.lock();
        if let Some(own) = turns.by_address.get(&address).and_then(Weak::upgrade) {
            return own;
        }
        if turns.by_address.len() >= 2 * turns.after_trim.max(TRIM_MIN) {
            turns.by_address.retain(|_, waited_for| waited_for.strong_count() > 0);
            turns.after_trim = turns.by_address.len();
        }
        let own = Arc::new(Semaphore::new(self.turns_max));
        turns.by_address.insert(address, Arc::downgrade(&own));
        own
    }
}

/// In the order in which they came.
async fn acquire(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    semaphore.acquire_owned().await.expect("the semaphore is never closed")
}

/// Who the client is, if the password is right. The permit is held by the thread that hashes, whatever becomes of who waits.
pub(super) async fn verify(verification: Verification, permit: Permit, key: Key) -> Option<Arc<Identity>> {
    let Verification { identity, password, given, .. } = verification;
    let work = move || {
        let _permit = permit;
        let right = password.verify(given.expose()) && identity.is_some();
        if right {
            password.learn(given.expose(), &key);
        }
        identity.filter(|_| right)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(identity) => identity,
        Err(error) => {
            tracing::error!(%error, "a password could not be checked");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_waits_alone_goes_before_the_rest_of_a_crowd() {
        let hashing =
            Arc::new(Hashing { permits: Arc::new(Semaphore::new(1)), turns_max: 1, turns: Mutex::default() });
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let busy = hashing.permit(None).await;
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        // Each waits before the next comes: tasks of this runtime run in the order in which they were started.
        for last in [1, 1, 1, 1, 2] {
            let (hashing, told) = (hashing.clone(), told.clone());
            tokio::spawn(async move {
                let _permit = hashing.permit(Some(address(last))).await;
                told.send(last).expect("it is listened to");
            });
        }
        drop(told);
        tokio::task::yield_now().await;
        drop(busy);
        let mut seen = Vec::new();
        while let Some(last) = order.recv().await {
            seen.push(last);
        }
        assert_eq!(seen, [1, 2, 1, 1, 1]);
    }

    #[test]
    fn addresses_of_which_nobody_waits_are_forgotten() {
        let hashing = Hashing::new();
        for n in 0..100_000_u32 {
            drop(hashing.turns_of(std::net::Ipv4Addr::from_bits(n).into()));
        }
        assert!(hashing.turns.lock().by_address.len() <= 2 * TRIM_MIN);
    }
}
