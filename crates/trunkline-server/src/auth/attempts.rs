//! How often each address has failed to authenticate, so that guessing passwords is slow.
//!
//! A failure counts for the address, and for the address and the user it named. The second bounds how many guesses there
//! are; the first, how much hashing one address may ask for. Names are counted apart, so that one component with an old
//! password does not lock out the others of its machine.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::counts::Counts;
use crate::doorkeeper::network_of;

/// How long a failure counts.
const WINDOW: Duration = Duration::from_secs(60);
/// Most entries; past it those go that have failed least, the oldest of them first: whoever has failed often is not forgotten
/// because somebody comes by many names.
const ENTRIES_MAX: usize = 8192;
/// An address may ask for so many times the hashing that one user may.
const HASHING_PER_ADDRESS: u32 = 4;
/// What looks ahead are counted for of names that nobody has: all of an address are as one.
const STRANGERS: u64 = 0;

/// What wrong tokens of the admin API are counted for. No user has such a name.
const ADMIN_NAME: &str = "\nthe admin token";

/// Who tries to be whom, and how often that may fail.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guess {
    address: IpAddr,
    /// A digest of the name, so that long names take no memory. It only keeps counters apart.
    user: u64,
    limit: u32,
}

impl Guess {
    /// `limit` is for one user from one address.
    pub(super) fn new(address: IpAddr, user: &str, limit: u32) -> Self {
        Self { address: network_of(address), user: digest_of(user), limit }
    }

    fn of_address(&self) -> Entry {
        (self.address, Counted::Address)
    }

    fn of_user(&self) -> Entry {
        (self.address, Counted::User(self.user))
    }
}

/// A number for a name, which only keeps names apart.
pub(super) fn digest_of(user: &str) -> u64 {
    foldhash::quality::FixedState::with_seed(0).hash_one(user)
}

/// What of an address is counted.
type Entry = (IpAddr, Counted);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Counted {
    /// Failures of all.
    Address,
    /// Failures as one user.
    User(u64),
    /// Looks ahead at one user's password.
    Ahead(u64),
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Attempts {
    /// Held for a look or a change; nothing is called meanwhile.
    counts: Mutex<Counts<Entry>>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { counts: Mutex::new(Counts::new(WINDOW, ENTRIES_MAX)) }
    }
}

impl Attempts {
    /// Whether this user may be tried from this address.
    pub(super) fn may_guess(&self, guess: &Guess, now: Instant) -> bool {
        self.count(guess.of_user(), now) < guess.limit
    }

    /// Whether it may be tried by way of a hash, of which an address may ask for so many.
    pub(super) fn may_hash(&self, guess: &Guess, now: Instant) -> bool {
        self.may_guess(guess, now)
            && self.count(guess.of_address(), now) < guess.limit.saturating_mul(HASHING_PER_ADDRESS)
    }

    /// Whether one more look ahead may be taken at a password of this user from this address, and counts it: as many as
    /// there may be guesses, and at all that are nobody's together as many as an address may ask for.
    pub(super) fn may_look_ahead(&self, guess: &Guess, is_user: bool, now: Instant) -> bool {
        let (who, limit) = match is_user {
            true => (guess.user, guess.limit),
            false => (STRANGERS, guess.limit.saturating_mul(HASHING_PER_ADDRESS)),
        };
        self.may_guess(guess, now)
            && self.counts.lock().add((guess.address, Counted::Ahead(who)), now) <= limit
    }

    fn count(&self, entry: Entry, now: Instant) -> u32 {
        self.counts.lock().of(&entry, now)
    }

    /// Counts a failure. The log is told once a minute when there are too many.
    pub(super) fn failed(&self, guess: &Guess, now: Instant) {
        if self.count_failure(guess, now) == guess.limit {
            let (address, limit) = (guess.address, guess.limit);
            tracing::warn!(%address, limit, "too many failed attempts as one user: more are refused unchecked for a minute");
        }
    }

    /// Whether a token for the admin API from this address is worth a look: whether fewer than `limit` were wrong of late.
    pub(super) fn may_guess_token(&self, address: IpAddr, limit: Option<u32>) -> bool {
        limit.is_none_or(|limit| self.may_guess(&Guess::new(address, ADMIN_NAME, limit), Instant::now()))
    }

    /// A token for the admin API from this address was wrong.
    pub(super) fn token_failed(&self, address: IpAddr, limit: Option<u32>) {
        if let Some(limit) = limit {
            self.failed(&Guess::new(address, ADMIN_NAME, limit), Instant::now());
        }
    }

    /// Returns how many there are of this user.
    fn count_failure(&self, guess: &Guess, now: Instant) -> u32 {
        let mut counts = self.counts.lock();
        counts.add(guess.of_address(), now);
        counts.add(guess.of_user(), now)
    }
}

/// Tokens for the admin API that were wrong, where a server has no users to count such things with.
#[derive(Debug)]
pub(crate) struct TokenGuesses {
    attempts: Attempts,
    /// For one address within the window; `None` is any number.
    limit: Option<u32>,
}

impl TokenGuesses {
    pub(crate) fn new(limit: Option<u32>) -> Self {
        Self { attempts: Attempts::default(), limit }
    }

    /// As [`Attempts::may_guess_token`].
    pub(crate) fn may_guess(&self, address: IpAddr) -> bool {
        self.attempts.may_guess_token(address, self.limit)
    }

    /// As [`Attempts::token_failed`].
    pub(crate) fn failed(&self, address: IpAddr) {
        self.attempts.token_failed(address, self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn guess(address: IpAddr, user: &str) -> Guess {
        Guess::new(address, user, 3)
    }

    #[test]
    fn one_user_of_an_address_is_limited_and_the_others_are_not() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let ann = guess(HERE, "ann");
        for n in 0..3 {
            assert!(attempts.may_guess(&ann, now), "{n}");
            attempts.failed(&ann, now);
        }
        assert!(!attempts.may_guess(&ann, now) && !attempts.may_hash(&ann, now));
        assert!(attempts.may_guess(&guess(HERE, "bob"), now));
        assert!(attempts.may_guess(&guess("10.0.0.1".parse().unwrap(), "ann"), now));
    }

    #[test]
    fn a_minute_later_it_is_forgotten() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let ann = Guess::new(HERE, "ann", 1);
        attempts.failed(&ann, now);
        assert!(!attempts.may_guess(&ann, now + WINDOW - Duration::from_millis(1)));
        assert!(attempts.may_guess(&ann, now + WINDOW));
        attempts.failed(&ann, now + WINDOW);
        assert!(!attempts.may_guess(&ann, now + WINDOW * 2 - Duration::from_millis(1)));
    }

    #[test]
    fn many_names_of_one_address_may_ask_for_so_much_hashing() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..HASHING_PER_ADDRESS * 3 {
            let guess = guess(HERE, &format!("user {n}"));
            assert!(attempts.may_hash(&guess, now), "{n}");
            attempts.failed(&guess, now);
        }
        let ann = guess(HERE, "ann");
        assert!(!attempts.may_hash(&ann, now) && attempts.may_guess(&ann, now));
        assert!(attempts.may_hash(&guess("10.0.0.1".parse().unwrap(), "ann"), now));
    }

    #[test]
    fn looks_ahead_are_limited_for_each_user_and_for_all_strangers_together() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let looks = |name: &str, is_user| {
            (0..50).filter(|_| attempts.may_look_ahead(&guess(HERE, name), is_user, now)).count()
        };
        assert_eq!((looks("ann", true), looks("bob", true)), (3, 3));
        assert_eq!((looks("nobody", false), looks("somebody", false)), (3 * HASHING_PER_ADDRESS as usize, 0));
        assert!(attempts.may_guess(&guess(HERE, "ann"), now), "a look is no failure");
        let cyd = guess(HERE, "cyd");
        (0..3).for_each(|_| attempts.failed(&cyd, now));
        assert!(!attempts.may_look_ahead(&cyd, true, now));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_oldest_first() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        let of = |n: u32| Guess::new(IpAddr::V4(std::net::Ipv4Addr::from_bits(n)), "ann", 1);
        for n in 0..ENTRIES_MAX as u32 {
            attempts.failed(&of(n), start + Duration::from_micros(u64::from(n)));
        }
        let now = start + Duration::from_secs(1);
        assert_eq!(attempts.counts.lock().len(), ENTRIES_MAX);
        assert!(attempts.may_guess(&of(0), now));
        assert!(!attempts.may_guess(&of(ENTRIES_MAX as u32 - 1), now));
    }

    #[test]
    fn many_names_do_not_make_it_forget_who_has_failed_often() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        let ann = guess(HERE, "ann");
        (0..3).for_each(|_| attempts.failed(&ann, start));
        for n in 0..2 * ENTRIES_MAX as u32 {
            attempts.failed(&guess(HERE, &format!("user {n}")), start + Duration::from_micros(u64::from(n)));
        }
        let now = start + Duration::from_secs(1);
        assert!(!attempts.may_guess(&ann, now) && !attempts.may_hash(&guess(HERE, "bob"), now));
    }

    #[test]
    fn neighbours_in_ipv6_are_one() {
        let of = |text: &str| guess(text.parse().unwrap(), "").address;
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:127.0.0.1"), HERE);
    }
}
