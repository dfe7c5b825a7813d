//! The lease of a keyed consumer: one key of a bucket, written only over the revision that was read before.
//!
//! Clocks of different machines are never compared. A lease has run out for another member when that member has seen the
//! same revision for as long as the lease says, by its own clock; for its holder it runs out that long after it asked.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::api::Failure;
use super::bucket::Entry;
use super::consumers::Leadership;
use super::member::NatsMember;
use crate::backend::{ConsumeError, Lease};

/// What is written.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    holder: String,
    /// 0 when the holder has left.
    ttl_ms: u64,
}

/// What this member knows of the lease.
#[derive(Debug, Default)]
pub(super) struct LeaseState {
    /// The revision that made this member the active one.
    pub(super) mine: Option<u64>,
    /// A revision of another member, and since when it is known.
    seen: Option<(u64, Instant)>,
    /// Everything that was unsettled has been called back since this member became the active one.
    taken_over: bool,
    /// Who led the consumer when everything was called back last.
    pub(super) under: Option<Leadership>,
}

impl NatsMember {
    pub(super) async fn take_lease(&self, ttl: Duration) -> Result<Lease, ConsumeError> {
        self.check_open()?;
        let mut state = self.leasing.lock().await;
        let lease = self.advance_lease(&mut state, ttl).await;
        lease.map_err(|failure| self.failed(failure))
    }

    async fn advance_lease(&self, state: &mut LeaseState, ttl: Duration) -> Result<Lease, Failure> {
        let asked = Instant::now();
        if let Some(revision) = state.mine {
            if let Some(revision) = self.write_lease(ttl, revision).await? {
                return self.held(state, revision, asked, ttl).await;
            }
            // Another one has it now, or an earlier attempt of this member succeeded unheard.
            state.mine = None;
        }
        let entry = self.jetstream.bucket.lease(&self.stream, &self.config.name).await?;
        let revision = match &entry {
            None => 0,
            Some(entry) if self.is_free(state, entry, asked) => entry.revision,
            Some(_) => {
                state.taken_over = false;
                self.leased.send_replace(None);
                return Ok(Lease::Standby);
            }
        };
        match self.write_lease(ttl, revision).await? {
            Some(revision) => self.held(state, revision, asked, ttl).await,
            None => {
                state.taken_over = false;
                self.leased.send_replace(None);
                Ok(Lease::Standby)
            }
        }
    }

    /// Whether this member may write over what is there.
    fn is_free(&self, state: &mut LeaseState, entry: &Entry, now: Instant) -> bool {
        let Ok(written) = serde_json::from_slice::<Written>(&entry.value) else { return true };
        if written.holder == self.identity() {
            return true;
        }
        // Somebody else was active in between.
        state.taken_over = false;
        let since = match state.seen {
            Some((revision, since)) if revision == entry.revision => since,
            _ => state.seen.insert((entry.revision, now)).1,
        };
        now.saturating_duration_since(since) >= Duration::from_millis(written.ttl_ms)
    }

    pub(super) async fn write_lease(&self, ttl: Duration, expected: u64) -> Result<Option<u64>, Failure> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        let value = Written { holder: self.identity().to_owned(), ttl_ms };
        self.put_written(&value, expected).await
    }

    async fn put_written(&self, value: &Written, expected: u64) -> Result<Option<u64>, Failure> {
        let value = serde_json::to_vec(value).map_err(|error| Failure::unexpected("a lease", error))?;
        self.jetstream.bucket.put_lease(&self.stream, &self.config.name, value.into(), expected).await
    }

    /// This member is the active one. When it was not before, it has everything unsettled called back first.
    async fn held(
        &self,
        state: &mut LeaseState,
        revision: u64,
        mut asked: Instant,
        ttl: Duration,
    ) -> Result<Lease, Failure> {
        state.mine = Some(revision);
        state.seen = None;
        // What was lost on its way is called back, too, or what stands behind it would overtake it. Taking over does that, so
        // it is known from then on in either case: remembered past it, it would have everything called back once more.
        let lost_track = self.lost_track.swap(false, Ordering::SeqCst);
        let new = lost_track || !state.taken_over;
        if new {
            state.taken_over = false;
            self.dropped_fetch.store(false, Ordering::SeqCst);
            self.held.lock().clear();
            match self.call_back(state, asked, ttl).await? {
                Some(renewed) => asked = renewed,
                None => return Ok(Lease::Standby),
            }
            state.taken_over = true;
        }
        self.leased.send_replace(Some(asked + ttl));
        Ok(Lease::Held { new })
    }

    /// Frees the lease, if this member has it.
    pub(super) async fn free_lease(&self) -> Result<(), Failure> {
        let mut state = self.leasing.lock().await;
        self.leased.send_replace(None);
        let Some(revision) = state.mine.take() else { return Ok(()) };
        let free = Written { holder: self.identity().to_owned(), ttl_ms: 0 };
        // When another one has it already, there is nothing to free.
        self.put_written(&free, revision).await.map(drop)
    }
}
