//! The lease of a keyed consumer: one key of a bucket, written only over the revision that was read before.
//!
//! Clocks of different machines are never compared. A lease has run out for another member when that member has seen the
//! same revision for as long as the lease says, by its own clock; for its holder it runs out that long after it asked.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::api::Failure;
use super::bucket::Entry;
use super::member::NatsMember;
use crate::backend::{ConsumeError, Lease};

/// Naks under way to the server before it is waited for.
const NAKS_AT_ONCE: u64 = 1024;

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
    mine: Option<u64>,
    /// A revision of another member, and since when it is known.
    seen: Option<(u64, Instant)>,
    /// Everything that was unsettled has been called back since this member became the active one.
    taken_over: bool,
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

    async fn write_lease(&self, ttl: Duration, expected: u64) -> Result<Option<u64>, Failure> {
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
        // What was lost on its way is called back, too, or what stands behind it would overtake it.
        let new = !state.taken_over || self.lost_track.swap(false, Ordering::SeqCst);
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

    /// Has everything that is unsettled delivered again, by offset.
    ///
    /// A nak is honoured whoever sends it, for any delivery that was made and is not settled; for all others it is
    /// ignored. So one is sent for each message between the ack floor and the newest delivery: one message that waits for
    /// long while others behind it are settled makes that many. The lease is renewed meanwhile, or another member would
    /// take over half way, and begin anew.
    ///
    /// Returns when the lease was asked for last; `None` when another member has it.
    async fn call_back(
        &self,
        lease: &mut LeaseState,
        mut asked: Instant,
        ttl: Duration,
    ) -> Result<Option<Instant>, Failure> {
        let api = &self.jetstream.api;
        let state = self.jetstream.consumer_state(&self.on_server, &self.config.name).await?;
        let Some(state) = state else {
            return Err(Failure::Refused(super::api::Refusal {
                code: 404,
                err_code: super::api::codes::CONSUMER_NOT_FOUND,
                description: "consumer not found".to_owned(),
            }));
        };
        if state.is_idle() {
            return Ok(Some(asked));
        }
        let delivered = &state.delivered;
        let ack = |sequence: u64| {
            let (stream, consumer) = (&self.on_server, &self.config.name);
            format!("$JS.ACK.{stream}.{consumer}.1.{sequence}.{}.0.0", delivered.consumer_seq)
        };
        let wait = api.link.publish_timeout;
        for sequence in state.ack_floor.stream_seq + 1..=delivered.stream_seq {
            let payload = Bytes::from_static(b"-NAK");
            // The last one of each lot is waited for: then the server has handled those before.
            if sequence == delivered.stream_seq || sequence % NAKS_AT_ONCE == 0 {
                api.ask(ack(sequence), None, payload, wait).await?;
                if let Some(revision) = lease.mine.filter(|_| asked.elapsed() >= ttl / 3) {
                    let now = Instant::now();
                    lease.mine = self.write_lease(ttl, revision).await?;
                    if lease.mine.is_none() {
                        return Ok(None);
                    }
                    asked = now;
                }
                continue;
            }
            let nak = OutboundMessage { subject: ack(sequence).into(), reply: None, payload, headers: None };
            let sent = api.link.client.publish_message(nak).await;
            sent.map_err(|_| Failure::NotConnected(api.link.events.reason()))?;
        }
        Ok(Some(asked))
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
