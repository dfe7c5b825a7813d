//! The work of checking passwords against hashes, which are made to be slow: off the threads that serve clients, and a
//! bounded number at a time, so that a flood of passwords slows down other passwords and nothing else.

use std::sync::Arc;

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
}

impl Hashing {
    /// Leaves half of the processors to those who are served.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { permits: Arc::new(Semaphore::new((processors / 2).max(1))) }
    }

    pub(super) async fn permit(&self) -> OwnedSemaphorePermit {
        self.permits.clone().acquire_owned().await.expect("the semaphore is never closed")
    }
}

/// Who the client is, if the password is right. The permit is held by the thread that hashes, whatever becomes of who waits.
pub(super) async fn verify(
    verification: Verification,
    permit: OwnedSemaphorePermit,
    key: Key,
) -> Option<Arc<Identity>> {
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
