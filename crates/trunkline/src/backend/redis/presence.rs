//! Who answers requests, and who is a member of queue groups: entries on the server that end by themselves.
//!
//! Every entry is renewed each 2 s and ends 6 s after the last time, so that those of a process that died go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use std::collections::HashMap;
use tokio_util::sync::CancellationToken;
use trunkline_core::Pattern;

use super::link::Failure;
use super::routes::{Home, millis};
use super::scripts::HEARTBEAT;
use super::shared::Shared;

const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// How long an entry lasts.
pub(super) const EXPIRY: Duration = Duration::from_secs(6);

/// One entry: in which sorted set, and under which name.
#[derive(Debug, Clone)]
pub(super) struct Listing {
    set: String,
    name: String,
}

/// All entries of this process.
pub(super) struct Presence {
    shared: Arc<Shared>,
    /// Held for one map operation, or to copy the entries.
    listings: Mutex<HashMap<u64, Listing>>,
    next_id: AtomicU64,
}

impl Presence {
    pub(super) fn new(shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared: shared.clone(), listings: Mutex::default(), next_id: AtomicU64::new(0) })
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

    /// Renews an entry no more.
    pub(super) fn forget(&self, id: u64) -> Option<Listing> {
        self.listings.lock().remove(&id)
    }

    /// Takes an entry away. Where that fails it ends by itself.
    pub(super) async fn unlist(&self, id: u64) {
        if let Some(Listing { set, name }) = self.forget(id) {
            let _ = self.shared.link.query(redis::cmd("ZREM").arg(set).arg(name)).await;
        }
    }

    /// Renews all entries, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let renewing = async {
            loop {
                // At once after a reconnect: while it lasted entries may have ended.
                let Some(current) = self.shared.link.connected().await else { return };
                let listings: Vec<Listing> = self.listings.lock().values().cloned().collect();
                if !listings.is_empty()
                    && let Err(failure) = self.renew(&listings).await
                {
                    tracing::debug!(?failure, "entries of responders are not renewed");
                }
                tokio::select! {
                    () = tokio::time::sleep(RENEW_INTERVAL) => {}
                    () = current.lost.cancelled() => {}
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = renewing => {}
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
