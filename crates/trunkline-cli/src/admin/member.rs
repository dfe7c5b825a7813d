//! A member of a consumer that the server holds for this process.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use trunkline::backend::{
    AckToken, ConsumeError, ConsumerConfig, Fetched, Fut, Lease, Member, Settle, Settled, StreamError,
};
use trunkline_server::admin::{
    ConsumerConfigJson, Deleted, FETCH_MAX, FETCH_WAIT_MAX, Fetch, FetchedJson, Joined, LeaseJson,
    LeaseRequest, MEMBER_EXPIRY, Problem, SETTLE_MAX, SettledJson, SettlementJson, Settlements,
};

use super::backend::stream_error;
use super::link::{CallError, Link};

pub(super) struct AdminMember {
    seat: Arc<Seat>,
    name: String,
    /// Tells the server that this process lives while nothing else does; aborted with the member.
    heartbeat: JoinHandle<()>,
}

/// The member's place at the server.
struct Seat {
    link: Arc<Link>,
    stream: String,
    config: ConsumerConfig,
    /// What the server knows it by. Another one after a silence that was too long: whatever was given to the one before
    /// is lost to it then, as the server fences it.
    id: Mutex<String>,
}

async fn take_seat(link: &Link, stream: &str, config: &ConsumerConfig) -> Result<Joined, StreamError> {
    let path = format!("/streams/{stream}/consumers/{}/members", config.name);
    let body = ConsumerConfigJson::from(config);
    link.call(Method::POST, &path, Some(&body), link.limit()).await.map_err(|error| stream_error(link, error))
}

impl Seat {
    fn id(&self) -> String {
        self.id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn call<B: Serialize, J: DeserializeOwned>(
        &self,
        what: &str,
        body: &B,
        wait: Duration,
    ) -> Result<J, CallError> {
        let path = format!("/members/{}/{what}", self.id());
        self.link.call(Method::POST, &path, Some(body), self.link.limit() + wait).await
    }

    async fn join_again(&self) -> Result<(), ConsumeError> {
        let joined = take_seat(&self.link, &self.stream, &self.config).await;
        let joined = joined.map_err(|error| match error {
            StreamError::NoStream(_) => self.gone(),
            other => self.away(other.to_string()),
        })?;
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = joined.member;
        Ok(())
    }

    fn gone(&self) -> ConsumeError {
        ConsumeError::Gone { stream: self.stream.clone(), consumer: self.config.name.clone() }
    }

    fn away(&self, reason: String) -> ConsumeError {
        ConsumeError::NotConnected { server: self.link.server(), reason }
    }

    fn error(&self, error: CallError) -> ConsumeError {
        match error {
            CallError::Said(_, said) => match said.problem {
                Problem::NoConsumer { .. } | Problem::NoStream { .. } => self.gone(),
                _ => self.away(said.error),
            },
            CallError::Lost { reason, .. } | CallError::Untrusted { reason } => self.away(reason),
        }
    }
}

fn is_dropped(error: &CallError) -> bool {
    matches!(error, CallError::Said(_, said) if said.problem == Problem::NoMember)
}

impl AdminMember {
    pub(super) async fn join(
        link: Arc<Link>,
        stream: String,
        config: ConsumerConfig,
    ) -> Result<Self, StreamError> {
        let joined = take_seat(&link, &stream, &config).await?;
        let seat = Arc::new(Seat { link, stream, config, id: Mutex::new(joined.member) });
        let beating = seat.clone();
        let heartbeat = tokio::spawn(async move {
            loop {
                tokio::time::sleep(MEMBER_EXPIRY / 3).await;
                // A member that is gone or a server that is away shows at the next fetch.
                let _ = beating.call::<_, Deleted>("heartbeat", &(), Duration::ZERO).await;
            }
        });
        Ok(Self { seat, name: joined.name, heartbeat })
    }

    async fn fetch_some(&self, max: usize, wait: Duration) -> Result<Fetched, ConsumeError> {
        let wait = wait.min(FETCH_WAIT_MAX);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let body = Fetch { max: max.clamp(1, FETCH_MAX), wait_ms };
        let mut answer = self.seat.call::<_, FetchedJson>("fetch", &body, wait).await;
        if answer.as_ref().is_err_and(is_dropped) {
            self.seat.join_again().await?;
            answer = self.seat.call("fetch", &body, wait).await;
        }
        let fetched = answer.map_err(|error| self.seat.error(error))?;
        fetched.try_into().map_err(|error| self.seat.away(format!("unexpected answer: {error}")))
    }

    async fn settle_some(&self, batch: &[(AckToken, Settle)]) -> Result<Vec<Settled>, ConsumeError> {
        let body = Settlements { settlements: batch.iter().map(SettlementJson::from).collect() };
        match self.seat.call::<_, SettledJson>("settle", &body, Duration::ZERO).await {
            Ok(settled) => Ok(settled.into()),
            // What it had been given is not its own any more.
            Err(error) if is_dropped(&error) => Ok(vec![Settled::LeaseLost; batch.len()]),
            Err(error) => Err(self.seat.error(error)),
        }
    }
}

impl Drop for AdminMember {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

impl Member for AdminMember {
    fn name(&self) -> &str {
        &self.name
    }

    fn fetch(&self, max: usize, wait: Duration) -> Fut<'_, Result<Fetched, ConsumeError>> {
        Box::pin(self.fetch_some(max, wait))
    }

    fn settle(&self, batch: Vec<(AckToken, Settle)>) -> Fut<'_, Result<Vec<Settled>, ConsumeError>> {
        Box::pin(async move {
            let mut settled = Vec::with_capacity(batch.len());
            for some in batch.chunks(SETTLE_MAX) {
                settled.extend(self.settle_some(some).await?);
            }
            Ok(settled)
        })
    }

    fn lease(&self, ttl: Duration) -> Fut<'_, Result<Lease, ConsumeError>> {
        Box::pin(async move {
            let body = LeaseRequest { ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) };
            let mut answer = self.seat.call::<_, LeaseJson>("lease", &body, Duration::ZERO).await;
            if answer.as_ref().is_err_and(is_dropped) {
                self.seat.join_again().await?;
                answer = self.seat.call("lease", &body, Duration::ZERO).await;
            }
            answer.map(Lease::from).map_err(|error| self.seat.error(error))
        })
    }

    fn leave(&self) -> Fut<'_, Result<(), ConsumeError>> {
        Box::pin(async move {
            self.heartbeat.abort();
            let path = format!("/members/{}", self.seat.id());
            let link = &self.seat.link;
            match link.call::<(), Deleted>(Method::DELETE, &path, None, link.limit()).await {
                Err(error) if !is_dropped(&error) => Err(self.seat.error(error)),
                _ => Ok(()),
            }
        })
    }
}
