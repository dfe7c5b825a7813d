//! The `redis` backend: real Redis Streams, from Redis 6.0 on, on one server, on a master that Sentinel watches, or on a
//! Cluster; over TLS or not.
//!
//! A stream is one key, `PREFIX:{NAME}`; what belongs to it lies beside it in keys that start the same. Subjects that no
//! configured stream matches go to one built-in stream for each family of the platform's subjects, replies to one
//! expiring stream for each process. Whatever must look and act in one step is a Lua script.
//!
//! | part | what it does |
//! |---|---|
//! | `topology`, `slots` | how the servers are found, and which of them has which key |
//! | `connect`, `tls` | one connection: TCP, TLS, credentials |
//! | `link`, `keeper` | connections for all that does not block, made anew for ever; the status |
//! | `acl` | what a user has to be allowed |
//! | `inspect` | questions to the servers, for whoever checks them |
//! | `routes`, `shared`, `changes` | which stream keeps which subject, the same for everybody by a version on the server |
//! | `publish` | batches of messages, and an outcome for each |
//! | `live`, `source`, `control` | subscriptions, and the streams that they draw from |
//! | `reader`, `track` | one blocking read for all streams that lie together, and who is given what it brings |
//! | `groups`, `shares`, `claims` | queue groups: which process has a message, and which member there |
//! | `presence` | who answers requests, and is a member of a queue group, by heartbeat |
//! | `streams`, `deleted`, `member` | streams, what was deleted from them, and durable consumers on them |
//!
//! What `Stored` survives is for the server to say: a crash, as far as `appendfsync` goes; a failover, as far as the
//! replica had come. A replica that takes over lacks what the master had confirmed and not yet passed on, and what a
//! master that was cut off takes until it notices: `min-replicas-to-write 1` with `min-replicas-max-lag` on the servers
//! bounds the latter. Who reads does not notice what was lost so; ids and numbers go on after those of the replica.
//!
//! The client library reads and writes the protocol. Its own reconnecting is not used: which command may have been
//! carried out, and what is read again from where, is for the bus to know.

mod acl;
mod changes;
mod claims;
mod connect;
mod control;
mod deleted;
mod entry;
mod groups;
mod inspect;
mod keeper;
mod link;
mod live;
mod member;
mod options;
mod presence;
mod publish;
mod pushed;
mod reader;
mod refusal;
mod routes;
mod scripts;
mod shared;
mod shares;
mod slots;
mod source;
mod streams;
mod tls;
mod topology;
mod track;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use trunkline_core::{Message, Pattern, Subject};

pub use acl::ACL_RULES;
pub use inspect::{RedisAnswer, RedisAskError, RedisInspection};
pub use options::{RedisConnectError, RedisOptions};
pub use tls::{RedisTls, RedisTlsError, RedisTlsFileError};

use crate::backend::runtime::OwnRuntime;
use crate::backend::{
    Backend, BackendKind, Capabilities, DrainError, Fut, LiveSource, NoResponders, PublishError,
    PublishOptions, Publishing, Streams, SubscribeError, SubscribeOptions, Unsupported,
};
use crate::memory::MemoryBudget;
use crate::status::BackendStatus;
use link::Link;
use live::Live;
use presence::Presence;
use publish::Publisher;
use routes::Routes;
use shared::Shared;
use streams::RedisStreams;

/// A connection to Redis: one server, the master that sentinels name, or the nodes of a cluster.
///
/// Its tasks end when it is dropped. Dropping does not wait for messages under way: [`Backend::flush`] or
/// [`Backend::drain`] first.
pub struct RedisBackend {
    shared: Arc<Shared>,
    publisher: Publisher,
    live: Arc<Live>,
    streams: RedisStreams,
    inboxes: AtomicU64,
    tasks: TaskTracker,
    /// Ends all tasks of this backend.
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
    /// Runs the tasks where the caller's runtime has one thread only; dropped last.
    _runtime: Option<OwnRuntime>,
}

impl RedisBackend {
    /// Connects. Call it within a tokio runtime that lives as long as the backend.
    ///
    /// Tries again until `connect_timeout` has passed when the server does not answer; a bad address and bad credentials
    /// fail at once. Once connected, it reconnects for ever, with backoff up to 2 s and jitter.
    ///
    /// # Errors
    /// See [`RedisConnectError`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn connect(options: RedisOptions) -> Result<Self, RedisConnectError> {
        let runtime =
            OwnRuntime::where_needed("trunkline-redis").map_err(|error| RedisConnectError::Unreachable {
                server: options.url.to_string(),
                waited: Duration::ZERO,
                reason: format!("no thread for the connection: {error}"),
            })?;
        let Some(runtime) = runtime else { return Self::connect_here(options).await };
        match runtime.handle().spawn(Self::connect_here(options)).await {
            Ok(connected) => connected.map(|backend| Self { _runtime: Some(runtime), ..backend }),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Connects, with all tasks on the runtime of the caller.
    async fn connect_here(options: RedisOptions) -> Result<Self, RedisConnectError> {
        let known = Routes::new(&options.prefix, (0, 0), []);
        let link = Link::connect(&options, known.keys()).await?;
        let unreachable = |failure| link.unusable(failure, options.connect_timeout);
        let shared = Arc::new(Shared::new(link.clone(), options.clone()));
        // From here on every change of the routes is followed; what they are now is read after that.
        let control = shared.control_tip().await.map_err(unreachable)?;
        shared.reload().await.map_err(unreachable)?;

        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (presence, unlisted) = Presence::new(&shared);
        let live = Live::new(&shared, &presence, &tasks, &stop);
        let (publisher, writer) = Publisher::new(&shared, stop.clone());
        tasks.spawn(link.run(stop.clone()));
        tasks.spawn(presence.run(unlisted, stop.clone()));
        tasks.spawn(control::follow_routes(live.clone(), control));
        tasks.spawn(writer);
        Ok(Self {
            streams: RedisStreams(shared.clone()),
            shared,
            publisher,
            live,
            inboxes: AtomicU64::new(0),
            tasks,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
            _runtime: None,
        })
    }

    /// Messages that subscriptions of this backend were not given because their readers were slow. Each is reported as a
    /// gap, too.
    pub fn dropped_messages(&self) -> u64 {
        self.live.dropped.load(Ordering::Relaxed)
    }

    async fn drain_until(&self, by: Instant) -> Result<(), DrainError> {
        let link = &self.shared.link;
        if link.refusing.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let left = self.live.subscriptions().len() as u64;
        let draining = async {
            let flushed = self.publisher.flush(by.saturating_duration_since(Instant::now())).await;
            for subscription in self.live.subscriptions() {
                if let Err(error) = self.live.finish(&subscription).await {
                    tracing::debug!(%error, "a subscription ended before it had everything");
                }
            }
            flushed
        };
        let drained = tokio::time::timeout_at(by.into(), draining).await;
        let reason = link.reason();
        let connected = link.is_connected();
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        match drained {
            Ok(Ok(())) => Ok(()),
            // Nothing was under way: the missing connection has cost nothing.
            Ok(Err(PublishError::NotConnected { .. })) if left == 0 => Ok(()),
            Ok(Err(_)) if !connected => Err(DrainError::NotConnected { server: link.server.clone(), reason }),
            Ok(Err(_)) | Err(_) => Err(DrainError::Deadline { left: left.max(1) }),
        }
    }
}

impl std::fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisBackend").field("server", &self.shared.link.server).finish_non_exhaustive()
    }
}

impl Backend for RedisBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: BackendKind::Redis,
            streams: true,
            subscribe_from_offset: true,
            durable: true,
            resumes_after_reconnect: true,
            fenced_acks: true,
            dedupe: true,
            no_responders: NoResponders::Registry,
        }
    }

    fn status(&self) -> watch::Receiver<BackendStatus> {
        self.shared.link.status()
    }

    fn new_inbox(&self) -> Subject {
        let n = self.inboxes.fetch_add(1, Ordering::Relaxed);
        Subject::new(format!("{}.{}.{n}", routes::INBOX, self.shared.process))
            .expect("made of letters, digits and dots")
    }

    fn publish(&self, m: Message, o: PublishOptions) -> Publishing {
        let timeout = o.timeout.unwrap_or(self.shared.options.publish_timeout);
        self.publisher.publish(m, o, timeout)
    }

    fn breaks(&self) -> Option<u64> {
        Some(self.publisher.breaks())
    }

    fn memory(&self) -> Option<Arc<MemoryBudget>> {
        Some(self.shared.options.memory.clone())
    }

    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        Box::pin(async move {
            match self.shared.link.refusing.load(Ordering::SeqCst) {
                true => Err(PublishError::Closed),
                false => self.publisher.flush(self.shared.options.publish_timeout).await,
            }
        })
    }

    fn subscribe(
        &self,
        p: Pattern,
        o: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        Box::pin(self.live.subscribe(p, o))
    }

    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        Ok(&self.streams)
    }

    fn drain(&self, by: Instant) -> Fut<'_, Result<(), DrainError>> {
        Box::pin(self.drain_until(by))
    }
}
