//! Who answers requests, and who is a member of queue groups: entries on the server that end by themselves.
//!
//! Every entry is renewed each 2 s and ends 6 s after the last time, so that those of a process that died go. Who answers
//! is listed beside every stream in which requests for it may be stored, so that publishing asks where it stores. A
//! literal subject has a set of its own, found without looking at any other; an index beside it names those subjects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trunkline_core::Pattern;

use super::link::{Failure, Link};
use super::routes::{Home, Routes, millis};
use super::scripts::HEARTBEAT;
use super::shared::{STALE_RETRIES, Shared};

const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// How soon a renewal that failed is tried again: after an outage entries may have ended.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Entries that wait to be taken away.
const UNLISTED_MAX: usize = 64;
/// Most entries of one script: while it runs the server does nothing else.
const ENTRIES_MAX: usize = 256;
/// How long an entry lasts.
pub(super) const EXPIRY: Duration = Duration::from_secs(6);
/// Key, beside a stream's, of the literal subjects for which somebody is listed there.
pub(super) const LITERAL: &str = "responders.literal";

/// One entry of a sorted set beside the stream at `home`.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    home: String,
    set: String,
    name: String,
    /// When it ends, in ms from now.
    ms: u64,
}

/// The entries by which somebody who answers on `pattern` is found at one stream.
pub(super) fn entries_of(home: &Home, pattern: &Pattern, entry: &str, ms: u64) -> Vec<Entry> {
    let at = |set: String, name: String| Entry { home: home.key.clone(), set, name, ms };
    match pattern.has_wildcard() {
        true => vec![at(home.responders_key(None), format!("{pattern} {entry}"))],
        // The index first: whoever is in a set of his own is in the index, too.
        false => vec![
            at(home.beside(LITERAL), pattern.to_string()),
            at(home.responders_key(Some(pattern.as_str())), entry.to_owned()),
        ],
    }
}

/// Makes or renews entries, one script for each stream.
pub(super) async fn enter(link: &Link, entries: impl IntoIterator<Item = Entry>) -> Result<(), Failure> {
    let mut by_home: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        by_home.entry(entry.home.clone()).or_default().push(entry);
    }
    let scripts = by_home.values().flat_map(|entries| entries.chunks(ENTRIES_MAX)).map(|entries| {
        let keys: Vec<&str> = entries.iter().map(|entry| entry.set.as_str()).collect();
        link.run_script(&HEARTBEAT, &keys, move |command| {
            for Entry { name, ms, .. } in entries {
                command.arg(ms).arg(name);
            }
        })
    });
    // A server that is away does not keep the others from being told.
    join_all(scripts).await.into_iter().try_for_each(|entered| entered.map(|_| ()))
}

/// What is listed.
#[derive(Debug, Clone)]
enum Listed {
    /// Who answers, wherever requests may be.
    Responder { pattern: Pattern, entry: String },
    /// A member of a queue group of one stream.
    Member(Entry),
}

#[derive(Debug, Clone)]
pub(super) struct Listing {
    listed: Listed,
    /// Sets in which it may be by now, each with the stream beside which it lies.
    places: BTreeSet<(String, String)>,
}

impl Listing {
    fn entries(&self, routes: &Routes) -> Vec<Entry> {
        match &self.listed {
            Listed::Member(entry) => vec![entry.clone()],
            Listed::Responder { pattern, entry } => {
                let homes = routes.listing(pattern);
                homes.iter().flat_map(|home| entries_of(home, pattern, entry, millis(EXPIRY))).collect()
            }
        }
    }
}

/// A listing to take away, and whom to tell.
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

    /// Lists who answers on `pattern`: when it returns, nobody who asks is told that there is no one.
    pub(super) async fn list_responder(&self, pattern: &Pattern) -> Result<u64, Failure> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let entry = format!("{}-{id}", self.shared.process);
        let listed = Listed::Responder { pattern: pattern.clone(), entry };
        self.listings.lock().insert(id, Listing { listed, places: BTreeSet::new() });
        let listing = async {
            for _ in 0..STALE_RETRIES {
                let routes = self.shared.routes();
                self.renew(&routes, &[id]).await?;
                // Whoever changes the routes announces it, and copies what is listed after that. So this is in the
                // copy, or it sees the announcement and is listed there, too.
                if self.shared.version().await? == routes.version {
                    return Ok(());
                }
                self.shared.refresh().await?;
            }
            Err(Failure::Unexpected("the routes keep changing".to_owned()))
        };
        match listing.await {
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
        let entry = Entry {
            home: home.key.clone(),
            set: home.of_consumer("queue", group),
            name: member.to_owned(),
            ms: millis(EXPIRY),
        };
        let places = BTreeSet::from([(entry.home.clone(), entry.set.clone())]);
        self.listings.lock().insert(id, Listing { listed: Listed::Member(entry), places });
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
        let mut routes = self.shared.routes_watch();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some((listing, done)) = unlisted.recv() => {
                    self.take_away(&listing).await;
                    let _ = done.send(());
                }
                // Requests may go elsewhere now.
                _ = routes.changed() => renewal = Instant::now(),
                () = tokio::time::sleep_until(renewal) => {
                    let renewed = self.renew_all().await;
                    renewal = Instant::now() + if renewed { RENEW_INTERVAL } else { RETRY_INTERVAL };
                }
            }
        }
    }

    async fn take_away(&self, listing: &Listing) {
        let name = match &listing.listed {
            Listed::Member(entry) => entry.name.clone(),
            Listed::Responder { pattern, entry } if pattern.has_wildcard() => format!("{pattern} {entry}"),
            // Others may answer on the same subject: the index forgets it by itself.
            Listed::Responder { entry, .. } => entry.clone(),
        };
        let removing = listing.places.iter().map(async |(home, set)| {
            let mut command = redis::cmd("ZREM");
            let _ = self.shared.link.query(home, command.arg(set).arg(&name)).await;
        });
        join_all(removing).await;
    }

    async fn renew_all(&self) -> bool {
        let ids: Vec<u64> = self.listings.lock().keys().copied().collect();
        if ids.is_empty() {
            return true;
        }
        match self.renew(&self.shared.routes(), &ids).await {
            Ok(()) => true,
            Err(failure) => {
                tracing::debug!(?failure, "entries of responders are not renewed");
                false
            }
        }
    }

    async fn renew(&self, routes: &Routes, ids: &[u64]) -> Result<(), Failure> {
        let mut all = Vec::new();
        {
            let mut listings = self.listings.lock();
            for id in ids {
                let Some(listing) = listings.get_mut(id) else { continue };
                let entries = listing.entries(routes);
                let of_its_own = |entry: &&Entry| entry.set != format!("{}:{LITERAL}", entry.home);
                listing.places.extend(
                    entries.iter().filter(of_its_own).map(|entry| (entry.home.clone(), entry.set.clone())),
                );
                all.extend(entries);
            }
        }
        enter(&self.shared.link, all).await
    }
}
