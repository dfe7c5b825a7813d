//! The `nats` backend: core NATS through the client library, and JetStream where the server has it.
//!
//! The library reconnects, restores subscriptions and speaks the protocol. What it leaves open is closed here:
//! it accepts messages while it is disconnected, its flush proves nothing about the server, it drops messages of
//! slow readers without a count, and says nothing to subscribers about a connection that was away.

mod about;
mod connect;
mod events;
mod inspect;
mod jetstream;
mod link;
mod live;
mod message;
mod options;
mod publish;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use trunkline_core::{Message, Pattern, Subject};

pub use about::NatsServerInfo;
pub use inspect::NatsAskError;
pub use options::{NatsAuth, NatsConnectError, NatsOptions, NatsTls};

use crate::backend::inbox::Inbox;
use crate::backend::runtime::OwnRuntime;
use crate::backend::{
    Backend, BackendKind, Capabilities, DrainError, Fut, LiveSource, NoResponders, PublishError,
    PublishOptions, Publishing, Start, Streams, SubscribeError, SubscribeOptions, Unsupported,
};
use crate::memory::MemoryBudget;
use crate::status::BackendStatus;
use events::{Events, Subscription};
use jetstream::{JetStream, NatsStreams};
use link::{Link, NoProof};
use live::{Listed, NatsSource, subscription_number};
use options::{Servers, check_inbox_prefix};

/// Core NATS, with streams and consumers where the server has JetStream for this user; [`Unsupported`] elsewhere. JetStream
/// is used from 2.9 on, for consumers with order by key from 2.10.15 on.
///
/// **Which publishes are stored.** A message is published with a confirmation, and answered by [`Receipt::Stored`](crate::backend::Receipt::Stored),
/// when a stream of the account matches its subject. The backend keeps a copy of the streams' patterns for that:
/// changes by this process count at once, those by others after 1 s at most, and a subject to which this process
/// publishes for the first time is decided by what the server says after the call. So a stream that another process
/// has just made may store messages whose receipt says no more than [`Receipt::Accepted`](crate::backend::Receipt::Accepted), for up to 1 s; and a message
/// for a stream that somebody has just removed is sent again without it, or, when subscriptions had got it, ends as
/// [`PublishError::OutcomeUnknown`]. While JetStream does not answer, the last copy counts. Messages to inboxes are
/// never stored. At most 4096 confirmations are outstanding, further messages wait, at most `max_pending` of them.
///
/// **In a cluster** a server that takes over a consumer may hand out again, before `ack_wait` is over, what another member is
/// still working on. Servers tell each other of subscriptions a moment later, so what is published through one server right
/// after `subscribe` has returned on another may be too early for it; and what a server has received on core NATS it takes
/// along when it dies before it has passed it on, of which no gap tells the readers elsewhere.
///
/// **What is on the server.** A stream `NAME` is `{stream_prefix}_NAME`; two buckets `{stream_prefix}_leases` and
/// `{stream_prefix}_members` belong to the consumers. What the numbers of
/// a [`ConsumerInfo`](crate::backend::ConsumerInfo) mean here is said beside each of them.
///
/// Each subscription has a task of its own; they, and the connection, end when the backend is dropped. Dropping
/// does not wait for messages under way: [`Backend::flush`] or [`Backend::drain`] first.
pub struct NatsBackend {
    link: Arc<Link>,
    /// Where the server has it for this user.
    streams: Option<NatsStreams>,
    max_pending: usize,
    /// What waits for readers is charged to it.
    memory: Arc<MemoryBudget>,
    /// Where timers live, for callers outside of it.
    runtime: Handle,
    /// Ends all tasks of this backend.
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
    /// Runs [`Link::run`]; ends with `stop`, at the latest when this is dropped.
    _link_task: AbortOnDropHandle<()>,
    /// Runs the connection where the caller's runtime has one thread only; dropped last.
    _runtime: Option<OwnRuntime>,
}

impl NatsBackend {
    /// Connects, and proves that a message goes to the server and back. Call it within a tokio runtime that
    /// lives as long as the backend.
    ///
    /// Tries again until `connect_timeout` has passed when no server answers; bad addresses, credentials and
    /// certificates fail at once. Once connected, it reconnects for ever, with backoff up to 2 s and jitter.
    ///
    /// # Errors
    /// See [`NatsConnectError`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn connect(options: NatsOptions) -> Result<Self, NatsConnectError> {
        let runtime =
            OwnRuntime::where_needed("trunkline-nats").map_err(|error| NatsConnectError::Unreachable {
                server: "NATS".to_owned(),
                waited: Duration::ZERO,
                reason: format!("no thread for the connection: {error}"),
            })?;
        let Some(runtime) = runtime else { return Self::connect_here(options).await };
        // Aborted when this future is dropped, and with it what it has made so far.
        let connecting = AbortOnDropHandle::new(runtime.handle().spawn(Self::connect_here(options)));
        match connecting.await {
            Ok(connected) => {
                let mut backend = connected?;
                backend._runtime = Some(runtime);
                Ok(backend)
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Connects, with all tasks on the runtime of the caller.
    async fn connect_here(options: NatsOptions) -> Result<Self, NatsConnectError> {
        let started = tokio::time::Instant::now();
        let servers = Servers::parse(&options.servers)?;
        check_inbox_prefix(&options.inbox_prefix)?;
        let events = Arc::new(Events::new());
        events.set_reports(format!("{}.system.trace", options.subject_root));
        let client = connect::connect(&options, &servers, &events).await?;

        let echo_prefix = client.new_inbox();
        events.set_echo_prefix(&echo_prefix);
        let stop = CancellationToken::new();
        let stop_on_drop = stop.clone().drop_guard();
        let unreachable = |reason: &str| NatsConnectError::Unreachable {
            server: servers.shown.clone(),
            waited: options.connect_timeout,
            reason: reason.to_owned(),
        };
        let echoes = client
            .subscribe(format!("{echo_prefix}.*"))
            .await
            .map_err(|_| unreachable("the connection broke at once"))?;
        let link = Arc::new(Link::new(
            client,
            Arc::clone(&events),
            servers.shown.clone(),
            options.publish_timeout,
            echo_prefix,
        ));
        let link_task = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&link).run(echoes, stop.clone())));
        let mut backend = Self {
            link,
            streams: None,
            max_pending: options.max_pending,
            memory: options.memory.clone(),
            runtime: Handle::current(),
            stop,
            _stop_on_drop: stop_on_drop,
            _link_task: link_task,
            _runtime: None,
        };

        let mut status = backend.link.status();
        let first = status.wait_for(|status| status.state.is_ready() || events.echo_denied().is_some());
        match tokio::time::timeout_at(started + options.connect_timeout, first).await {
            Ok(Ok(status)) if status.state.is_ready() => {}
            _ => {
                return Err(match events.echo_denied() {
                    Some(reason) => NatsConnectError::InboxDenied {
                        server: servers.shown.clone(),
                        reason: reason.to_owned(),
                    },
                    None => unreachable("connected, but no message came back"),
                });
            }
        }
        drop(status);
        backend.streams = NatsStreams::start(&backend.link, &options, &backend.stop).await?;
        Ok(backend)
    }

    /// Messages that subscriptions of this backend were not given, because their readers were slow, the client
    /// library dropped them, or they could not be decoded. Each is reported as a gap, too.
    pub fn dropped_messages(&self) -> u64 {
        self.link.events.dropped.load(Ordering::Relaxed)
    }

    async fn subscribe_live(
        &self,
        pattern: Pattern,
        options: SubscribeOptions,
    ) -> Result<Box<dyn LiveSource>, SubscribeError> {
        let link = &self.link;
        if link.refusing.load(Ordering::SeqCst) {
            return Err(SubscribeError::Closed);
        }
        if let Some(start) = options.start.filter(|start| *start != Start::New) {
            let jetstream = self.jetstream();
            let jetstream = jetstream.ok_or_else(|| unsupported("subscribing from a start in the past"))?;
            return jetstream.subscribe(pattern, start, options, self.max_pending).await;
        }
        let connection = link.connection().ok_or_else(|| link.not_subscribed())?;
        let queue = options.queue.map(|queue| queue.to_string());
        let max_pending = options.max_pending.unwrap_or(self.max_pending);
        // Listed before the server hears of it, or its refusal could come too early to be seen.
        let inbox = Inbox::within(max_pending, &self.memory);
        let listed = Listed::new(Subscription::new(pattern.clone(), queue.clone(), inbox), &link.events);
        let subject = pattern.as_str().to_owned();
        let subscribing = async {
            match queue {
                Some(queue) => link.client.queue_subscribe(subject, queue).await,
                None => link.client.subscribe(subject).await,
            }
        };
        let subscriber = match tokio::time::timeout(link.publish_timeout, subscribing).await {
            Ok(Ok(subscriber)) => subscriber,
            Ok(Err(_)) | Err(_) => return Err(link.not_subscribed()),
        };
        if let Some(number) = subscription_number(&subscriber) {
            let _ = listed.subscription.sid.set(number);
        }
        let source = NatsSource::start(listed, subscriber, connection, link, self.stop.clone());
        match link.prove(link.publish_timeout).await {
            Ok(()) => {}
            Err(NoProof::Closed) => return Err(SubscribeError::Closed),
            Err(NoProof::Silent(waited)) => {
                let reason = format!("no confirmation within {waited:?}");
                return Err(SubscribeError::NotConnected { server: link.server.clone(), reason });
            }
            Err(NoProof::NotConnected | NoProof::Broken) => return Err(link.not_subscribed()),
        }
        match source.denied() {
            Some(reason) => Err(SubscribeError::Denied { pattern, reason: reason.to_owned() }),
            None => Ok(Box::new(source)),
        }
    }

    fn jetstream(&self) -> Option<&Arc<JetStream>> {
        self.streams.as_ref().map(|streams| &streams.jetstream)
    }

    async fn flush_all(&self) -> Result<(), PublishError> {
        let link = &self.link;
        if let Some(jetstream) = self.jetstream()
            && tokio::time::timeout(link.publish_timeout, jetstream.all_sent()).await.is_err()
        {
            return Err(link.outcome_unknown(link.publish_timeout));
        }
        publish::flush(link, link.publish_timeout).await
    }

    async fn drain_until(&self, by: Instant) -> Result<(), DrainError> {
        let link = &self.link;
        if link.refusing.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let draining = async {
            // Brings in what the server had sent to the subscriptions, see `NatsSource::stop`.
            link.prove(Duration::MAX).await?;
            let live = link.events.live();
            for subscription in &live {
                subscription.ending.cancel();
            }
            for subscription in &live {
                subscription.ended.cancelled().await;
            }
            if let Some(jetstream) = self.jetstream() {
                jetstream.all_confirmed().await;
            }
            // Covers what was published, and that nothing more comes to the subscriptions.
            link.prove(Duration::MAX).await
        };
        let result = match link.connection() {
            None => Err(NoProof::NotConnected),
            Some(_) => tokio::select! {
                drained = tokio::time::timeout_at(by.into(), draining) => {
                    drained.unwrap_or(Err(NoProof::Silent(Duration::ZERO)))
                }
                () = link.disconnected() => Err(NoProof::Broken),
            },
        };
        let unconfirmed = self.jetstream().map_or(0, |jetstream| jetstream.unfinished());
        let (left, lost) = (link.unproven() + unconfirmed, link.take_lost());
        let reason = link.events.reason();
        // Nothing is left for the library's own drain but to close the connection; without one it has no use.
        let closing = tokio::time::timeout_at(by.into(), link.client.drain());
        if result.is_ok() {
            let _ = closing.await;
        }
        link.close();
        self.stop.cancel();
        match result {
            Ok(()) => Ok(()),
            Err(NoProof::Silent(_)) => Err(DrainError::Deadline { left }),
            // Nothing was under way: the missing connection has cost nothing.
            Err(_) if left == 0 && !lost => Ok(()),
            Err(_) => Err(DrainError::NotConnected { server: link.server.clone(), reason }),
        }
    }
}

impl std::fmt::Debug for NatsBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsBackend").field("server", &self.link.server).finish_non_exhaustive()
    }
}

impl Drop for NatsBackend {
    fn drop(&mut self) {
        self.link.close();
    }
}

fn unsupported(operation: &'static str) -> Unsupported {
    Unsupported { operation, backend: BackendKind::Nats }
}

impl Backend for NatsBackend {
    fn capabilities(&self) -> Capabilities {
        let jetstream = self.streams.is_some();
        Capabilities {
            kind: BackendKind::Nats,
            streams: jetstream,
            subscribe_from_offset: jetstream,
            durable: jetstream,
            // Subscriptions that start in the past of a stream do; those on core NATS do not.
            resumes_after_reconnect: false,
            fenced_acks: false,
            dedupe: jetstream,
            no_responders: NoResponders::AtOnce,
        }
    }

    fn status(&self) -> watch::Receiver<BackendStatus> {
        self.link.status()
    }

    fn new_inbox(&self) -> Subject {
        Subject::new(self.link.client.new_inbox())
            .expect("the prefix was checked, and what follows it is one token")
    }

    fn publish(&self, m: Message, o: PublishOptions) -> Publishing {
        if self.link.refusing.load(Ordering::SeqCst) {
            return Publishing::Ready(Err(PublishError::Closed));
        }
        let timeout = o.timeout.unwrap_or(self.link.publish_timeout);
        if let Some(jetstream) = self.jetstream() {
            return jetstream.publish(m, o.dedupe_id, timeout);
        }
        if o.dedupe_id.is_some() {
            return Publishing::Ready(Err(unsupported("publishing with a deduplication id").into()));
        }
        publish::publish(&self.link, &self.runtime, m, timeout)
    }

    fn memory(&self) -> Option<Arc<MemoryBudget>> {
        Some(self.memory.clone())
    }

    fn take_refused_report(&self) -> Option<String> {
        self.link.events.take_refused_report()
    }

    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        Box::pin(self.flush_all())
    }

    fn subscribe(
        &self,
        p: Pattern,
        o: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        Box::pin(self.subscribe_live(p, o))
    }

    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        match &self.streams {
            Some(streams) => Ok(streams),
            None => Err(unsupported("streams")),
        }
    }

    fn drain(&self, by: Instant) -> Fut<'_, Result<(), DrainError>> {
        Box::pin(self.drain_until(by))
    }
}
