//! Who answers requests, and who is a member of queue groups: entries on the server that end by themselves.
//!
//! Every entry is renewed each 2 s and ends 6 s after the last time, so that those of a process that died go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use std::collections::HashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trunkline_core::Pattern;

use super::link::Failure;
use super::routes::{Home, millis};
use super::scripts::HEARTBEAT;
use super::shared::Shared;

const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// How soon a renewal that failed is tried again: after an outage entries may have ended.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Entries that wait to be taken away.
const UNLISTED_MAX: usize = 64;
/// How long an entry lasts.
pub(super) const EXPIRY: Duration = Duration::from_secs(6);

/// One entry: in which sorted set, and under which name.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    set: String,
    name: String,
}

/// An entry to take away, and whom to tell.
pub(super) type Unlisted = (Listing, oneshot::Sender<()>);

/// All entries of this process.
pub(super) struct Presence {
    shared: Arc<Shared>,
    /// Held for one map operation, or to copy the entries.
    listings: Mutex<HashMap<u64, Listing>>,
    next_id: AtomicU64,
    unlisted: mpsc::Sender<Unlisted>,
}

impl Presence {
    /// No entries yet, and what [`Presence::run`] is to be spawned with.
    pub(super) fn new(shared: &Arc<Shared>) -> (Arc<Self>, mpsc::Receiver<Unlisted>) {
        let (sender, unlisted) = mpsc::channel(UNLISTED_MAX);
        let next_id = AtomicU64::new(0);
        let presence = Self { shared: shared.clone(), listings: Mutex::default(), next_id, unlisted: sender };
        (Arc::new(presence), unlisted)
    }

    /// Lists who answers on `pattern`. A literal subject has a set of its own, found without looking at any other.
    pub(super) async fn list_responder(&self, pattern: &Pattern) -> Result<u64, Failure> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (prefix, entry) = (&self.shared.options.prefix, format!("{}-{id}", self.shared.process));
        let listing = match pattern.has_wildcard() {
            false => Listing { set: format!("{prefix}:responders:{pattern}"), name: entry },
            true => Listing { set: format!("{prefix}:responders"), name: format!("{pattern} {entry}") },
        };
        self.listings.lock().insert(id, listing.clone());
        match self.renew(&[listing]).await {
            Ok(()) => Ok(id),
            Err(failure) => {
                self.listings.lock().remove(&id);
                Err(failure)
            }
        }
    }

    /// Keeps the entry of a member of a queue group, which its joining made.
    pub(super) fn keep_member(&self, home: &Home, group: &str, member: &str) -> u64 {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let listing = Listing { set: home.of_consumer("queue", group), name: member.to_owned() };
        self.listings.lock().insert(id, listing);
        id
    }

    /// Takes an entry away. Where that fails it ends by itself.
    pub(super) async fn unlist(&self, id: u64) {
        let listing = self.listings.lock().remove(&id);
        if let Some(listing) = listing {
            let (done, over) = oneshot::channel();
            // Without the task nothing renews the entry, and it ends by itself.
            if self.unlisted.send((listing, done)).await.is_ok() {
                let _ = over.await;
            }
        }
    }

    /// Renews all entries and takes away those that are to go, until `stop`. One task does both, so that an entry which
    /// was taken away is not renewed by a command that was on its way.
    pub(super) async fn run(
        self: Arc<Self>,
        mut unlisted: mpsc::Receiver<Unlisted>,
        stop: CancellationToken,
    ) {
        let mut renewal = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some((listing, done)) = unlisted.recv() => {
                    let mut command = redis::cmd("ZREM");
                    let _ = self.shared.link.query(command.arg(listing.set).arg(listing.name)).await;
                    let _ = done.send(());
                }
                () = tokio::time::sleep_until(renewal) => {
                    let renewed = self.renew_all().await;
                    renewal = Instant::now() + if renewed { RENEW_INTERVAL } else { RETRY_INTERVAL };
                }
            }
        }
    }

    async fn renew_all(&self) -> bool {
        let listings: Vec<Listing> = self.listings.lock().values().cloned().collect();
        if listings.is_empty() {
            return true;
        }
        match self.renew(&listings).await {
            Ok(()) => true,
            Err(failure) => {
                tracing::debug!(?failure, "entries of responders are not renewed");
                false
            }
        }
    }

    async fn renew(&self, listings: &[Listing]) -> Result<(), Failure> {
        let renewing = self.shared.link.run_script(&HEARTBEAT, &[], |command| {
            command.arg(millis(EXPIRY));
            for Listing { set, name } in listings {
                command.arg(set).arg(name);
            }
        });
        renewing.await.map(|_| ())
    }
}
