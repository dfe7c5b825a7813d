//! The `in_memory` backend: everything in this process, nothing past it.
//!
//! A [`Hub`] holds the routing table and the streams; every [`MemoryBackend`] on it is one connection. The embedded
//! server is a front on the same hub, so that its clients and components in this process meet in one router.
//! Nothing here may know the wire protocol: what a session needs stands behind [`SessionSink`].

mod consumer;
mod hub;
mod inbox;
mod live;
mod log;
mod member;
mod streams;
mod wakers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;
use trunkline_core::{MatchCache, Message, Pattern, Role, Subject};

pub use hub::{Delivered, Hub, HubOptions, HubStats, SessionSink, Target, is_observed, stream_of};
pub use inbox::Inbox;
pub use streams::StreamHandle;

use super::{
    Backend, BackendKind, Capabilities, DrainError, Fut, LiveSource, NoResponders, PublishError,
    PublishOptions, Publishing, Start, Streams, SubscribeError, SubscribeOptions, Unsupported,
};
use crate::memory::MemoryBudget;
use crate::status::{BackendState, BackendStatus};

/// One connection to a [`Hub`] in this process.
pub struct MemoryBackend {
    hub: Arc<Hub>,
    /// Answers of the router for what this connection publishes. Held for one routing; whoever finds it taken asks the
    /// shared cache instead of waiting.
    cache: Mutex<MatchCache<Target>>,
    status: watch::Sender<BackendStatus>,
    closed: AtomicBool,
    inboxes: AtomicU64,
    /// Tells this connection's inboxes from those of others on the hub.
    connection: u64,
}

impl std::fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBackend").field("hub", &self.hub).finish_non_exhaustive()
    }
}

impl MemoryBackend {
    /// A connection to `hub`.
    pub fn connect_to(hub: &Arc<Hub>) -> Self {
        let status = BackendStatus::new(BackendKind::InMemory, "this process", BackendState::Connected);
        Self {
            hub: hub.clone(),
            cache: Mutex::new(MatchCache::default()),
            status: watch::Sender::new(status),
            closed: AtomicBool::new(false),
            inboxes: AtomicU64::new(0),
            connection: hub.next_connection(),
        }
    }

    /// A connection that stands in for a backend that could not be reached: it works, and says why it is not what was
    /// configured.
    pub fn degraded(hub: &Arc<Hub>, reason: impl Into<String>) -> Self {
        let backend = Self::connect_to(hub);
        let state = BackendState::Degraded { reason: reason.into() };
        backend.status.send_replace(BackendStatus::new(BackendKind::InMemory, "this process", state));
        backend
    }

    /// The hub it is connected to.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    fn publish_now(&self, m: Message, o: &PublishOptions) -> Result<super::Receipt, PublishError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(PublishError::Closed);
        }
        let targets = match self.cache.try_lock() {
            Some(mut cache) => self.hub.router().lookup(&mut cache, m.subject.as_bytes()).clone(),
            None => self.hub.router().matches(m.subject.as_bytes()),
        };
        self.hub.publish_to(&targets, m, o)
    }
}

impl Backend for MemoryBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: BackendKind::InMemory,
            streams: true,
            subscribe_from_offset: true,
            durable: false,
            resumes_after_reconnect: false,
            fenced_acks: true,
            dedupe: true,
            no_responders: NoResponders::AtOnce,
        }
    }

    fn status(&self) -> watch::Receiver<BackendStatus> {
        self.status.subscribe()
    }

    fn new_inbox(&self) -> Subject {
        let n = self.inboxes.fetch_add(1, Ordering::Relaxed);
        Subject::new(format!("_INBOX.{}-{}.{n}", self.hub.id(), self.connection))
            .expect("made of letters, digits, dashes and dots")
    }

    fn publish(&self, m: Message, o: PublishOptions) -> Publishing {
        Publishing::Ready(self.publish_now(m, &o))
    }

    fn memory(&self) -> Option<Arc<MemoryBudget>> {
        Some(self.hub.memory().clone())
    }

    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        // Every publish is over when it returns.
        Box::pin(std::future::ready(match self.closed.load(Ordering::Acquire) {
            true => Err(PublishError::Closed),
            false => Ok(()),
        }))
    }

    fn subscribe(
        &self,
        p: Pattern,
        o: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        Box::pin(std::future::ready(self.subscribe_now(p, o)))
    }

    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        Ok(&*self.hub)
    }

    fn drain(&self, _by: Instant) -> Fut<'_, Result<(), DrainError>> {
        // Nothing is ever under way in this backend; handlers are the bus's.
        self.closed.store(true, Ordering::Release);
        self.status.send_modify(|status| {
            *status = BackendStatus::new(status.backend, status.server.clone(), BackendState::Closed);
        });
        Box::pin(std::future::ready(Ok(())))
    }
}

impl MemoryBackend {
    fn subscribe_now(&self, p: Pattern, o: SubscribeOptions) -> Result<Box<dyn LiveSource>, SubscribeError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(SubscribeError::Closed);
        }
        match o.start {
            None | Some(Start::New) => {
                let role = match &o.queue {
                    None => Role::Subscriber,
                    Some(queue) => Role::QueueMember(queue.as_str().into()),
                };
                let max_pending = o.max_pending.unwrap_or(self.hub.options().max_pending);
                Ok(Box::new(live::Subscribed::start(self.hub.clone(), p, role, max_pending, o.name)))
            }
            Some(start) => Ok(Box::new(self.hub.follow(p, o.queue, start)?)),
        }
    }
}
