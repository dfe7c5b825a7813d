//! Members of consumers that the server holds for clients of the API.
//!
//! A client names its member by an id that only it was told. One whose client says nothing for a while is dropped without
//! leaving: what it had been given stays with its lease, because the client may still be at work on it, and comes again to
//! others when the lease ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;
use trunkline::StreamOffset;
use trunkline::backend::{AckToken, ConsumeError, Fetched, Member, Settle, Settled};
use trunkline::observe::{Handling, Observer, Outcome};

use super::Api;
use super::answer::{ApiError, Body, ok};
use crate::admin::{
    ConsumerConfigJson, Deleted, FETCH_MAX, FETCH_WAIT_MAX, Fetch, FetchedJson, Joined, LeaseJson,
    LeaseRequest, MEMBER_EXPIRY, MEMBERS_MAX, PAGE_BYTES, Problem, SETTLE_MAX, SettledJson, Settlements,
};

type Answer = Result<Response, ApiError>;

/// Most messages asked of the backend at a time, so that a fetch can stop when it is full.
const FETCH_STEP: usize = 16;
/// Shortest lease, so that a client's mistake does not make the members of a consumer fight for it.
const LEASE_MIN: Duration = Duration::from_millis(10);
/// Most deliveries at work in the client of one member that are shown to who looks on.
const GIVEN_MAX: usize = 4096;
/// Longest lease.
const LEASE_MAX: Duration = Duration::from_secs(12 * 3600);

/// The members by id.
#[derive(Default)]
pub(crate) struct Members {
    /// Guards the table; held for a look-up, never across a wait.
    held: Mutex<HashMap<String, Arc<Held>, foldhash::fast::RandomState>>,
}

struct Held {
    member: Arc<dyn Member>,
    /// Its stream and its consumer.
    of: (String, String),
    /// What its client works on, for who looks on: at most [`GIVEN_MAX`].
    given: Mutex<HashMap<(StreamOffset, u32), Handling, foldhash::fast::RandomState>>,
    /// When its client was last heard of.
    heard: Mutex<Instant>,
    /// Requests of its client that are being answered.
    busy: AtomicUsize,
}

/// A member in use: it does not expire meanwhile.
struct Use(Arc<Held>);

impl Use {
    fn of(held: &Arc<Held>) -> Self {
        held.busy.fetch_add(1, Ordering::AcqRel);
        Self(held.clone())
    }

    fn member(&self) -> &dyn Member {
        &*self.0.member
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        *self.0.heard.lock() = Instant::now();
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Held {
    /// Shows to who looks on that the client begins to work on deliveries.
    fn begins(&self, observer: &Arc<Observer>, fetched: &Fetched) {
        let mut given = self.given.lock();
        for delivery in &fetched.deliveries {
            let of = (self.of.0.as_str(), self.of.1.as_str());
            if given.len() < GIVEN_MAX
                && let Some(handling) = Handling::outside(observer, of, delivery, self.member.name())
            {
                given.insert((delivery.offset, delivery.attempt), handling);
            }
        }
    }

    /// Shows what became of them.
    fn ends(&self, batch: &[(AckToken, Settle)], settled: &[Settled]) {
        let mut given = self.given.lock();
        for ((token, settle), outcome) in batch.iter().zip(settled) {
            if *settle == Settle::Progress {
                continue;
            }
            let Some(handling) = given.remove(&(token.offset, token.attempt)) else { continue };
            match outcome {
                Settled::Done => handling.settled(settle, None),
                Settled::LeaseLost => {
                    handling.ended(Outcome::Cancelled, Some("the lease was lost".to_owned()))
                }
            }
        }
    }
}

impl Members {
    /// Puts a member into the table; `None` when there are as many as there may be.
    fn hold(&self, member: Arc<dyn Member>, of: (String, String)) -> Option<String> {
        let mut held = self.held.lock();
        if held.len() >= MEMBERS_MAX {
            return None;
        }
        let id = uuid::Uuid::now_v7().simple().to_string();
        let entry = Held {
            member,
            of,
            given: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            busy: AtomicUsize::new(0),
        };
        held.insert(id.clone(), Arc::new(entry));
        Some(id)
    }

    fn get(&self, id: &str) -> Result<Use, ApiError> {
        let held = self.held.lock();
        held.get(id).map(Use::of).ok_or_else(|| {
            let text = "there is no such member; it left, or its client was silent for too long";
            ApiError::new(Problem::NoMember, text)
        })
    }

    fn is_full(&self) -> bool {
        self.held.lock().len() >= MEMBERS_MAX
    }

    /// Drops the members whose clients were silent for too long.
    pub(crate) fn expire(&self, now: Instant) {
        let mut expired = Vec::new();
        self.held.lock().retain(|_, held| {
            let idle = held.busy.load(Ordering::Acquire) == 0;
            let keep = !idle || now.saturating_duration_since(*held.heard.lock()) < MEMBER_EXPIRY;
            if !keep {
                expired.push(held.clone());
            }
            keep
        });
        for held in expired {
            tracing::info!(member = held.member.name(), "member dropped, its client is silent");
        }
    }
}

fn too_many() -> ApiError {
    let text = format!("clients of the admin API already hold {MEMBERS_MAX} members, which is the limit");
    ApiError::new(Problem::TooManyMembers { limit: MEMBERS_MAX }, text)
}

pub(super) async fn join(
    State(api): State<Arc<Api>>,
    Path((stream, consumer)): Path<(String, String)>,
    Body(config): Body<ConsumerConfigJson>,
) -> Answer {
    // Asked first, so that a refused join does not create a consumer.
    if api.members.is_full() {
        return Err(too_many());
    }
    let member = api.streams()?.join(&stream, config.named(consumer.clone())?).await?;
    let name = member.name().to_owned();
    let id = api.members.hold(member, (stream, consumer)).ok_or_else(too_many)?;
    let expires_ms = u64::try_from(MEMBER_EXPIRY.as_millis()).unwrap_or(u64::MAX);
    Ok(ok(&Joined { member: id, name, expires_ms }))
}

pub(super) async fn fetch(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Body(fetch): Body<Fetch>,
) -> Answer {
    let used = api.members.get(&id)?;
    let max = fetch.max.clamp(1, FETCH_MAX);
    let wait = Duration::from_millis(fetch.wait_ms).min(FETCH_WAIT_MAX);
    let fetched = fetch_some(used.member(), max, wait, api.max_payload).await?;
    if let Some(observer) = api.observer() {
        used.0.begins(observer, &fetched);
    }
    Ok(ok(&FetchedJson::from(&fetched)))
}

/// Fetches in steps until there are enough, nothing more is there, or the answer is full. What was fetched when a later step
/// fails is given out all the same.
async fn fetch_some(
    member: &dyn Member,
    max: usize,
    wait: Duration,
    max_payload: usize,
) -> Result<Fetched, ConsumeError> {
    let step = (PAGE_BYTES / max_payload.max(1)).clamp(1, FETCH_STEP);
    let mut all = member.fetch(max.min(step), wait).await?;
    let mut last = all.deliveries.len();
    while last == step && all.deliveries.len() < max {
        let bytes: usize = all.deliveries.iter().map(|delivery| delivery.message.size_bytes()).sum();
        if bytes >= PAGE_BYTES {
            break;
        }
        let Ok(more) = member.fetch((max - all.deliveries.len()).min(step), Duration::ZERO).await else {
            break;
        };
        last = more.deliveries.len();
        all.missed += more.missed;
        all.deliveries.extend(more.deliveries);
    }
    Ok(all)
}

pub(super) async fn settle(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Body(Settlements { settlements }): Body<Settlements>,
) -> Answer {
    let used = api.members.get(&id)?;
    if settlements.len() > SETTLE_MAX {
        let text = format!("{} settlements are given, the limit is {SETTLE_MAX}", settlements.len());
        return Err(ApiError::new(Problem::BadRequest, text));
    }
    let batch: Vec<(AckToken, Settle)> =
        settlements.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    let settled = used.member().settle(batch.clone()).await?;
    used.0.ends(&batch, &settled);
    Ok(ok(&SettledJson::from(settled)))
}

pub(super) async fn lease(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Body(lease): Body<LeaseRequest>,
) -> Answer {
    let used = api.members.get(&id)?;
    let ttl = Duration::from_millis(lease.ttl_ms).clamp(LEASE_MIN, LEASE_MAX);
    Ok(ok(&LeaseJson::from(used.member().lease(ttl).await?)))
}

pub(super) async fn heartbeat(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Answer {
    drop(api.members.get(&id)?);
    Ok(ok(&Deleted { deleted: 0 }))
}

pub(super) async fn leave(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Answer {
    let used = api.members.get(&id)?;
    used.member().leave().await?;
    api.members.held.lock().remove(&id);
    Ok(ok(&Deleted { deleted: 1 }))
}

#[cfg(test)]
mod tests {
    use trunkline::backend::memory::Hub;
    use trunkline::backend::{ConsumerConfig, Start, StreamConfig, Streams};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silent_members_expire_and_busy_ones_do_not() {
        let hub = Hub::default();
        hub.ensure(StreamConfig::new("s", vec!["s.>".parse().expect("a pattern")])).await.expect("made");
        let config = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("c") };
        let members = Members::default();
        let of = || ("s".to_owned(), "c".to_owned());
        let silent = members.hold(hub.join("s", config.clone()).await.expect("joined"), of()).expect("room");
        let busy = members.hold(hub.join("s", config).await.expect("joined"), of()).expect("room");
        let fetching = members.get(&busy).expect("it is there");
        tokio::time::advance(MEMBER_EXPIRY).await;
        members.expire(Instant::now());
        assert!(members.get(&silent).is_err() && members.get(&busy).is_ok());
        let info = hub.consumer_info("s", "c").await.expect("there").expect("there");
        assert_eq!(info.members, 1);
        drop(fetching);
        tokio::time::advance(MEMBER_EXPIRY / 2).await;
        members.expire(Instant::now());
        assert!(members.get(&busy).is_ok(), "its silence began when the request was over");
        tokio::time::advance(MEMBER_EXPIRY).await;
        members.expire(Instant::now());
        assert!(members.get(&busy).is_err());
    }
}
