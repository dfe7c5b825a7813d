//! Who may connect, and what they may do.
//!
//! - [`options`]: what a server is told; a configuration of any syntax ends here.
//! - [`directory`]: those options compiled: from what CONNECT says to an [`Identity`].
//! - [`password`]: secrets, compared in constant time, and hashes of them; [`hashing`] bounds the work of checking those.
//! - [`attempts`]: how often an address has failed; [`counts`], how that is kept and forgotten.
//! - [`permissions`]: what an identity may publish and subscribe to; [`replies`], what it may answer;
//!   [`shown`], what its user is told of it.
//!
//! The directory is replaced as a whole. Every replacement has a higher generation, and each session that meets one
//! considers anew whether its client is still allowed what it does; nobody else changes a session.

mod attempts;
mod counts;
mod directory;
mod hashing;
mod options;
mod password;
mod permissions;
mod replies;
mod shown;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, RwLock};
use trunkline::Pattern;
use trunkline::backend::memory::Hub;
use trunkline_protocol::ConnectOptions;

use attempts::{Attempts, Guess, digest_of};
use directory::{Directory, Found};
use hashing::{Hashing, Place};
use password::Key;

use crate::arrival::Secured;
use crate::client::Kind;
use crate::doorkeeper::network_of;
use crate::tally::Tally;

pub(crate) use attempts::TokenGuesses;
pub(crate) use directory::{Identity, TOKEN_SHOWN};
pub(crate) use hashing::Verification;
pub use options::{AuthError, AuthOptions};
pub use password::{HashError, HashScheme, hash_password};
pub(crate) use permissions::{PatternSet, Permissions};
pub(crate) use replies::Replies;
pub(crate) use shown::ShownPermissions;

/// Name of the account of everybody who is in no other; nats-server's word.
pub(crate) const GLOBAL_ACCOUNT: &str = "$G";
/// Random bytes of the nonce that a client with an nkey signs; as on nats-server.
const NONCE_BYTES: usize = 11;

/// A space of subjects.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) name: Box<str>,
    /// Where its clients meet; for [`GLOBAL_ACCOUNT`] the hub that the server is a front of.
    pub(crate) hub: Arc<Hub>,
    /// What those have done who were here and are gone. Nothing else is locked while it is held.
    pub(crate) gone: Mutex<Tally>,
}

/// What is known of a connection, whatever its client says in CONNECT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection<'a> {
    /// What the client was given to sign.
    pub(crate) nonce: Option<&'a str>,
    /// What came of TLS.
    pub(crate) secured: Option<&'a Secured>,
    /// `None` for one of HTTP.
    pub(crate) kind: Option<Kind>,
}

/// Why a client is not let in, or not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No credentials, or wrong ones.
    Credentials,
    /// No credentials in time.
    Timeout,
    /// Too many failures of this address; nothing was checked.
    TooMany,
    /// The user is gone, or its credentials have changed.
    Revoked,
}

impl Failure {
    pub(crate) const ALL: [Failure; 4] =
        [Failure::Credentials, Failure::Timeout, Failure::TooMany, Failure::Revoked];

    /// The value of the metric's label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Timeout => "timeout",
            Self::TooMany => "too_many",
            Self::Revoked => "revoked",
        }
    }
}

/// What a client is answered.
pub(crate) enum Answer {
    Granted(Arc<Identity>),
    Refused(Failure),
    /// It takes a hash to know: [`Auth::verify`] does the work, off the worker threads.
    Verify(Verification),
}

/// What came of replacing the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// Users there are now, in all accounts.
    pub users: usize,
    /// Connections that consider anew what they are allowed.
    pub connections: usize,
    /// Connections that were closed because there may be fewer now.
    pub closed: usize,
}

/// Everything about authentication that the connections of a server share.
#[derive(Debug)]
pub(crate) struct Auth {
    /// Guards the pointer alone; taken when a client connects, and when a session meets a new generation.
    directory: RwLock<Arc<Directory>>,
    generation: AtomicU64,
    /// Guards the list of accounts, of which none ever goes while the server runs: its hub would come back empty. Taken
    /// when the directory is replaced and by monitoring.
    accounts: Mutex<BTreeMap<Box<str>, Arc<Account>>>,
    /// Subjects on which only the bus itself publishes, in every account.
    reserved: Pattern,
    key: Key,
    hashing: Hashing,
    attempts: Arc<Attempts>,
    failures: [AtomicU64; Failure::ALL.len()],
    /// When the directory was made.
    loaded: Mutex<SystemTime>,
}

impl AuthOptions {
    /// Whether a server could be started with them.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn check(&self) -> Result<(), AuthError> {
        let name: Box<str> = GLOBAL_ACCOUNT.into();
        let account = Arc::new(Account { name, hub: Arc::default(), gone: Mutex::default() });
        Directory::new(self, &Key::random()?, None, &mut |_| account.clone()).map(drop)
    }
}

impl Auth {
    /// `hub` is the one of [`GLOBAL_ACCOUNT`].
    pub(crate) fn new(options: &AuthOptions, hub: Arc<Hub>, reserved: Pattern) -> Result<Self, AuthError> {
        hub.reserve(&reserved);
        let global = Arc::new(Account { name: GLOBAL_ACCOUNT.into(), hub, gone: Mutex::default() });
        let accounts = Mutex::new(BTreeMap::from([(global.name.clone(), global)]));
        let key = Key::random()?;
        let directory = Directory::new(options, &key, None, &mut |name| enter(&accounts, name, &reserved))?;
        directory.warn_about_plain_text(&options.made);
        Ok(Self {
            directory: RwLock::new(Arc::new(directory)),
            generation: AtomicU64::new(0),
            accounts,
            reserved,
            key,
            hashing: Hashing::new(),
            attempts: Arc::default(),
            failures: Default::default(),
            loaded: Mutex::new(SystemTime::now()),
        })
    }

    /// Puts other users and permissions in force. What is wrong with them leaves everything as it was.
    pub(crate) fn replace(&self, options: &AuthOptions) -> Result<usize, AuthError> {
        let mut enter = |name: &str| enter(&self.accounts, name, &self.reserved);
        let directory = Directory::new(options, &self.key, Some(&self.directory()), &mut enter)?;
        directory.warn_about_plain_text(&options.made);
        let users = directory.users();
        *self.directory.write() = Arc::new(directory);
        *self.loaded.lock() = SystemTime::now();
        // Behind the directory: who sees the number sees what it stands for.
        self.generation.fetch_add(1, Ordering::Release);
        Ok(users)
    }

    fn directory(&self) -> Arc<Directory> {
        self.directory.read().clone()
    }

    /// Changes with every replacement.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Who a client is that has not said so, where nobody must.
    pub(crate) fn anonymous(&self, connection: Connection<'_>) -> Option<Arc<Identity>> {
        self.directory().anonymous(connection)
    }

    /// What CONNECT calls its user, for the log and for monitoring.
    pub(crate) fn name_of<'a>(&self, said: &'a ConnectOptions) -> &'a str {
        self.directory().name_of(said)
    }

    /// How long a client may take to say who it is; `None` where nobody must.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let directory = self.directory();
        (!directory.has_anonymous()).then_some(directory.timeout)
    }

    /// The longest time until a client has said who it is, whether or not anybody must.
    pub(crate) fn configured_timeout(&self) -> Duration {
        self.directory().timeout
    }

    /// Whether there are users or a token.
    pub(crate) fn is_configured(&self) -> bool {
        self.directory().is_required()
    }

    /// What a client is to sign, where nkeys are in use.
    pub(crate) fn nonce(&self) -> Option<Box<str>> {
        if !self.directory().has_nkeys() {
            return None;
        }
        use base64::Engine as _;
        let mut bytes = [0; NONCE_BYTES];
        // Without randomness nobody could sign anything of worth, so nobody is asked to and nkeys are refused.
        getrandom::fill(&mut bytes).ok()?;
        Some(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes).into())
    }

    /// Whether a client at `address` is who CONNECT says it is.
    pub(crate) fn check(&self, said: &ConnectOptions, connection: Connection<'_>, address: IpAddr) -> Answer {
        let directory = self.directory();
        let limit = directory.failures_max.filter(|_| directory.is_required());
        let name = directory.name_of(said);
        let guess = limit.map(|limit| Guess::new(address, name, limit));
        let now = Instant::now();
        if guess.is_some_and(|guess| !self.attempts.may_guess(&guess, now)) {
            return Answer::Refused(Failure::TooMany);
        }
        // Connections of HTTP are few: none is held.
        let held = connection.kind.map(|_| directory.timeout / 4 * 3);
        let place = Place { address: network_of(address), user: digest_of(name), held };
        let answer = Self::answer(directory.find(said, connection), guess, Some(place));
        if let (Answer::Refused(_), Some(guess)) = (&answer, guess) {
            self.attempts.failed(&guess, now);
        }
        answer
    }

    /// As [`Auth::check`], for a client that was let in before: it guesses nothing.
    pub(crate) fn check_again(&self, said: &ConnectOptions, connection: Connection<'_>) -> Answer {
        match Self::answer(self.directory().find(said, connection), None, None) {
            Answer::Refused(_) => Answer::Refused(Failure::Revoked),
            other => other,
        }
    }

    fn answer(found: Found, guess: Option<Guess>, place: Option<Place>) -> Answer {
        match found {
            Found::Identity(identity) => Answer::Granted(identity),
            Found::Nobody => Answer::Refused(Failure::Credentials),
            Found::Hashed { identity, password, given } => {
                Answer::Verify(Verification { identity, password, given, guess, place })
            }
        }
    }

    /// Does the work that [`Answer::Verify`] asks for.
    ///
    /// # Errors
    /// Why the client is not let in.
    ///
    /// # Cancel safety
    /// A hash that is under way ends by itself, and a failure counts all the same.
    pub(crate) async fn verify(&self, verification: Verification) -> Result<Arc<Identity>, Failure> {
        let has_turn = AtomicBool::new(false);
        tokio::select! {
            biased;
            outcome = self.verify_in_turn(&verification, &has_turn) => outcome,
            identity = self.look_ahead(&verification, &has_turn) => Ok(identity),
        }
    }

    /// In the order in which they came, whether or not anybody has the name.
    async fn verify_in_turn(
        &self,
        verification: &Verification,
        has_turn: &AtomicBool,
    ) -> Result<Arc<Identity>, Failure> {
        let (guess, place) = (verification.guess, verification.place);
        let permit = self.hashing.permit(place.map(|place| place.address)).await;
        // What has become known while this one waited need not be found out again: many clients of one user come at a
        // time, when a server has restarted.
        if let Some(identity) = verification.known(&self.key) {
            return Ok(identity);
        }
        // Many clients of one user are asked again at a time, too, when its password was replaced.
        if place.is_none() && verification.password.is_known_wrong(verification.given.expose(), &self.key) {
            return Err(Failure::Credentials);
        }
        if guess.is_some_and(|guess| !self.attempts.may_hash(&guess, Instant::now())) {
            drop(permit);
            let is_about_user = guess.is_some_and(|guess| !self.attempts.may_guess(&guess, Instant::now()));
            // Others of its address have failed: it may be right all the same, and is looked at ahead meanwhile.
            if let Some(time) = place.and_then(|place| place.held).filter(|_| !is_about_user) {
                self.hashing.hold(time).await;
            }
            return Err(Failure::TooMany);
        }
        has_turn.store(true, Ordering::Relaxed);
        let counted = guess.map(|guess| (guess, self.attempts.clone()));
        let identity = hashing::verify(verification, counted, permit, self.key.clone()).await;
        identity.ok_or(Failure::Credentials)
    }

    /// Who the client is, if that is found out before its turn has come. Never ends otherwise: whoever is wrong is told in
    /// its turn, as are those whose names nobody has.
    async fn look_ahead(&self, verification: &Verification, has_turn: &AtomicBool) -> Arc<Identity> {
        let Some(place) = verification.place else { return std::future::pending().await };
        let is_user = verification.identity.is_some();
        let permit = self.hashing.permit_ahead(place, is_user).await;
        if let Some(identity) = verification.known(&self.key) {
            return identity;
        }
        let may_look = |guess: Guess| self.attempts.may_look_ahead(&guess, is_user, Instant::now());
        match !has_turn.load(Ordering::Relaxed) && verification.guess.is_none_or(may_look) {
            true => {
                if let Some(identity) = hashing::verify(verification, None, permit, self.key.clone()).await {
                    return identity;
                }
            }
            // Others want it.
            false => drop(permit),
        }
        std::future::pending().await
    }

    /// Whether a token for the admin API from this address is worth a look: whether not too many were wrong of late.
    pub(crate) fn may_open_admin(&self, address: IpAddr) -> bool {
        self.attempts.may_guess_token(address, self.directory().failures_max)
    }

    /// A token for the admin API from this address was wrong.
    pub(crate) fn admin_failed(&self, address: IpAddr) {
        self.attempts.token_failed(address, self.directory().failures_max);
    }

    pub(crate) fn count_failure(&self, why: Failure) {
        self.failures[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failures(&self, why: Failure) -> u64 {
        self.failures[why as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn users(&self) -> usize {
        self.directory().users()
    }

    pub(crate) fn loaded(&self) -> SystemTime {
        *self.loaded.lock()
    }

    pub(crate) fn accounts(&self) -> Vec<Arc<Account>> {
        self.accounts.lock().values().cloned().collect()
    }
}

/// The account of this name, which is made if need be.
fn enter(accounts: &Mutex<BTreeMap<Box<str>, Arc<Account>>>, name: &str, reserved: &Pattern) -> Arc<Account> {
    let mut accounts = accounts.lock();
    if let Some(account) = accounts.get(name) {
        return account.clone();
    }
    let options = accounts[GLOBAL_ACCOUNT].hub.options().clone();
    let hub = Arc::new(Hub::new(options));
    hub.reserve(reserved);
    let account = Arc::new(Account { name: name.into(), hub, gone: Mutex::default() });
    accounts.insert(account.name.clone(), account.clone());
    account
}
