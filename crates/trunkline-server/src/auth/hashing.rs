//! The work of checking passwords against hashes, which are made to be slow: off the threads that serve clients, and a
//! bounded number at a time, so that a flood of passwords slows down other passwords and nothing else; and by turns of the
//! addresses that they come from, so that a flood from one address slows down the passwords of that address above all.
//!
//! Those who wait for their turn are looked at *ahead* of it, too, by turns of the names that they say: whose password is
//! right comes in past all who try other names, wherever those come from. A look ahead lets in and refuses nobody. So who
//! is refused is told in the order in which they came, whether or not anybody has the name: nobody learns that by the time.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use trunkline::config::Secret;

use super::attempts::{Attempts, Guess};
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
    pub(super) place: Option<Place>,
}

/// Where those stand who wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) address: IpAddr,
    /// A digest of the name.
    pub(super) user: u64,
    /// How long a client may be held that comes from where too many failed, so that it can be looked at ahead; `None` refuses
    /// it at once.
    pub(super) held: Option<Duration>,
}

impl Verification {
    /// Who the client is, if that takes no hash any more.
    pub(super) fn known(&self, key: &Key) -> Option<Arc<Identity>> {
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
    /// Guards who of each line has its turn, where somebody has or waits for it. Held for a look or a change.
    turns: Mutex<Turns>,
    /// Guards who is held, those who came first in front. Held for a look or a change.
    held: Mutex<VecDeque<Arc<Held>>>,
}

#[derive(Debug, Default)]
struct Turns {
    by_line: HashMap<Line, Weak<Semaphore>, foldhash::quality::RandomState>,
    /// How many were left when those were last let go of that nobody waits for.
    after_trim: usize,
}

/// Those who take turns with others, and one after the other among themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Line {
    Address(IpAddr),
    /// Ahead: one user from one address, the user, the address.
    Pair(IpAddr, u64),
    User(u64),
    AddressAhead(IpAddr),
    /// Ahead: all names that nobody has.
    Strangers,
}

/// A client that is held before it is refused.
#[derive(Debug, Default)]
struct Held {
    /// Others need its place.
    released: Notify,
    is_over: AtomicBool,
}

/// Most clients that are held. Past it those go first that were held for longest.
const HELD_MAX: usize = 1024;

/// Lines in which nobody waits any more are let go of when there are twice as many as were left before, and at least so
/// many.
const TRIM_MIN: usize = 64;

/// The right to hash, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _turns: [Option<OwnedSemaphorePermit>; 3],
    _permit: OwnedSemaphorePermit,
}

impl Hashing {
    /// Leaves half of the processors to those who are served.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with((processors / 2).max(1))
    }

    fn with(permits: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            turns_max: (permits / 2).max(1),
            turns: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// Waits for the turn of this address, and then for a permit.
    ///
    /// # Cancel safety
    /// Who no longer waits has lost its place, and nothing else.
    pub(super) async fn permit(&self, address: Option<IpAddr>) -> Permit {
        let turn = match address {
            Some(address) => Some(acquire(self.turns_of(Line::Address(address), self.turns_max)).await),
            None => None,
        };
        Permit { _turns: [turn, None, None], _permit: acquire(self.permits.clone()).await }
    }

    /// Waits for a look ahead. One user's attempts from one address take turns, then one user's from anywhere, then those of
    /// an address: a name that is attacked keeps other names of its address waiting for one hash at most, and an address
    /// those of others. All names that nobody has are as one.
    ///
    /// # Cancel safety
    /// As [`Hashing::permit`].
    pub(super) async fn permit_ahead(&self, place: Place, is_user: bool) -> Permit {
        let Place { address, user, .. } = place;
        let lines = match is_user {
            true => {
                [Some(Line::Pair(address, user)), Some(Line::User(user)), Some(Line::AddressAhead(address))]
            }
            false => [Some(Line::Strangers), None, None],
        };
        let mut turns = [None, None, None];
        for (turn, line) in turns.iter_mut().zip(lines) {
            if let Some(line) = line {
                *turn = Some(acquire(self.turns_of(line, 1)).await);
            }
        }
        Permit { _turns: turns, _permit: acquire(self.permits.clone()).await }
    }

    fn turns_of(&self, line: Line, turns_max: usize) -> Arc<Semaphore> {
        let mut turns = self.turns.lock();
        if let Some(own) = turns.by_line.get(&line).and_then(Weak::upgrade) {
            return own;
        }
        if turns.by_line.len() >= 2 * turns.after_trim.max(TRIM_MIN) {
            turns.by_line.retain(|_, waited_for| waited_for.strong_count() > 0);
            turns.after_trim = turns.by_line.len();
        }
        let own = Arc::new(Semaphore::new(turns_max));
        turns.by_line.insert(line, Arc::downgrade(&own));
        own
    }

    /// Waits for so long, or until there are too many who do.
    ///
    /// # Cancel safety
    /// Who no longer waits gives its place to another.
    pub(super) async fn hold(&self, time: Duration) {
        /// However it ends, its place is free.
        struct Leaving(Arc<Held>);
        impl Drop for Leaving {
            fn drop(&mut self) {
                self.0.is_over.store(true, Ordering::Relaxed);
            }
        }
        let own = Leaving(Arc::default());
        {
            let mut held = self.held.lock();
            held.push_back(own.0.clone());
            if held.len() > HELD_MAX {
                held.retain(|other| !other.is_over.load(Ordering::Relaxed));
                // An eighth, so that not everybody who comes has to look at all of them.
                let leaving = held.len().saturating_sub(HELD_MAX - HELD_MAX / 8);
                if held.len() > HELD_MAX {
                    held.drain(..leaving).for_each(|other| other.released.notify_one());
                }
            }
        }
        let _ = tokio::time::timeout(time, own.0.released.notified()).await;
    }
}

/// In the order in which they came.
async fn acquire(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    semaphore.acquire_owned().await.expect("the semaphore is never closed")
}

/// Who the client is, if the password is right; a failure is counted for `counted`. The permit is held by the thread that
/// hashes, which goes on and counts whatever becomes of who waits: hanging up is no way to have hashes for nothing.
pub(super) async fn verify(
    verification: &Verification,
    counted: Option<(Guess, Arc<Attempts>)>,
    permit: Permit,
    key: Key,
) -> Option<Arc<Identity>> {
    let (identity, password) = (verification.identity.clone(), verification.password.clone());
    let given = verification.given.clone();
    let work = move || {
        let _permit = permit;
        let right = password.verify(given.expose()) && identity.is_some();
        if identity.is_some() {
            password.learn(given.expose(), right, &key);
        }
        if let Some((guess, attempts)) = counted.filter(|_| !right) {
            attempts.failed(&guess, std::time::Instant::now());
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

    type Permitting = std::pin::Pin<Box<dyn Future<Output = Permit> + Send>>;

    /// The order in which those get permits who wait for them, behind one who hashes.
    async fn order<T: Copy + Send + 'static>(
        waiting: &[T],
        permit: fn(Arc<Hashing>, T) -> Permitting,
    ) -> Vec<T> {
        let hashing = Arc::new(Hashing::with(1));
        let busy = hashing.permit(None).await;
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        // Each waits before the next comes: tasks of this runtime run in the order in which they were started.
        for who in waiting.iter().copied() {
            let (hashing, told) = (hashing.clone(), told.clone());
            tokio::spawn(async move {
                let _permit = permit(hashing, who).await;
                told.send(who).expect("it is listened to");
            });
        }
        drop(told);
        tokio::task::yield_now().await;
        drop(busy);
        let mut seen = Vec::new();
        while let Some(who) = order.recv().await {
            seen.push(who);
        }
        seen
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test]
    async fn one_that_waits_alone_goes_before_the_rest_of_a_crowd() {
        let seen = order(&[1, 1, 1, 1, 2], |hashing, last| {
            Box::pin(async move { hashing.permit(Some(address(last))).await })
        });
        assert_eq!(seen.await, [1, 2, 1, 1, 1]);
    }

    #[tokio::test]
    async fn ahead_one_name_waits_for_one_of_another_and_strangers_are_as_one() {
        const STRANGER: u64 = 0;
        let waiting =
            [(1, STRANGER), (2, STRANGER), (1, 7), (1, 7), (3, STRANGER), (1, 7), (1, 8), (2, 9), (2, 7)];
        let seen = order(&waiting, |hashing, (last, user)| {
            let place = Place { address: address(last), user, held: None };
            Box::pin(async move { hashing.permit_ahead(place, user != STRANGER).await })
        });
        // One stranger, one as user 7, and user 9 wait for the permit at first; 8 for the turn of its address.
        let expected =
            [(1, STRANGER), (1, 7), (2, 9), (2, STRANGER), (1, 8), (2, 7), (3, STRANGER), (1, 7), (1, 7)];
        assert_eq!(seen.await, expected);
    }

    #[tokio::test]
    async fn ahead_one_name_has_one_turn_wherever_it_is_tried_from() {
        let seen = order(&[(1, 7), (2, 7), (3, 7), (4, 9)], |hashing, (last, user)| {
            let place = Place { address: address(last), user, held: None };
            Box::pin(async move { hashing.permit_ahead(place, true).await })
        });
        assert_eq!(seen.await, [(1, 7), (4, 9), (2, 7), (3, 7)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_no_longer_waits_holds_no_place_of_those_who_do() {
        let hashing = Arc::new(Hashing::with(1));
        let hold = |time| {
            let hashing = hashing.clone();
            tokio::spawn(async move {
                let began = tokio::time::Instant::now();
                hashing.hold(time).await;
                began.elapsed() >= time
            })
        };
        let long = Duration::from_secs(60);
        let first = hold(long);
        tokio::task::yield_now().await;
        for _ in 0..HELD_MAX {
            let other = hold(long);
            tokio::task::yield_now().await;
            other.abort();
            assert!(other.await.is_err(), "it has hung up");
        }
        assert!(hold(long).await.unwrap() && first.await.unwrap(), "nobody had to leave for them");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_held_for_longest_leaves_when_there_are_too_many() {
        let hashing = Arc::new(Hashing::with(1));
        let (told, mut released) = tokio::sync::mpsc::unbounded_channel();
        let long = Duration::from_secs(60);
        for n in 0..=HELD_MAX {
            let (hashing, told) = (hashing.clone(), told.clone());
            tokio::spawn(async move {
                let began = tokio::time::Instant::now();
                hashing.hold(long).await;
                told.send((n, began.elapsed() >= long)).expect("it is listened to");
            });
        }
        drop(told);
        let mut waited = vec![None; HELD_MAX + 1];
        while let Some((n, in_full)) = released.recv().await {
            waited[n] = Some(in_full);
        }
        let leaving = HELD_MAX / 8 + 1;
        assert!(waited[..leaving].iter().all(|in_full| *in_full == Some(false)));
        assert!(waited[leaving..].iter().all(|in_full| *in_full == Some(true)));
    }

    #[test]
    fn lines_in_which_nobody_waits_are_forgotten() {
        let hashing = Hashing::new();
        let turns_of = |n| hashing.turns_of(Line::Address(std::net::Ipv4Addr::from_bits(n).into()), 1);
        let waited_for = turns_of(0);
        for n in 1..100_000_u32 {
            drop(turns_of(n));
        }
        assert!(hashing.turns.lock().by_line.len() <= 2 * TRIM_MIN);
        assert!(Arc::ptr_eq(&waited_for, &turns_of(0)), "somebody waits in this one");
    }
}
