//! The state of the connection, and proof of what the server has received.
//!
//! The client library's own flush ends when bytes are with the kernel. Proof is an *echo*: a message to our own
//! inbox comes back only after the server has handled everything sent before it on the same connection. A
//! server that refuses the echo says so in the same order, which proves as much. A *fence* goes with it, so that
//! refusals are known when the proof is there: the library reports them in a task of its own.
//!
//! Connections are numbered by the library's count of them. A connection is *announced* once an echo has passed
//! it, for only then are the subscriptions restored on the server. Nothing is published on one that is not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::connection::State;
use async_nats::message::OutboundMessage;
use async_nats::{Client, Statistics, Subscriber};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::events::Events;
use crate::backend::{BackendKind, PublishError, SubscribeError};
use crate::status::{BackendState, BackendStatus};

/// How often the connection is looked at when no event says that it changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long the refusal of a fence may take from the library to us once the server's answer is there. It is
/// microseconds, but the library drops events when too many wait.
const FENCE_WAIT: Duration = Duration::from_millis(100);

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoProof {
    /// There is no connection.
    NotConnected,
    /// The connection broke before the echo came.
    Broken,
    /// No echo came in this time.
    Silent(Duration),
    /// The backend is draining or closed.
    Closed,
}

/// See the module's text.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) events: Arc<Events>,
    /// For people, without credentials.
    pub(super) server: String,
    pub(super) publish_timeout: Duration,
    statistics: Arc<Statistics>,
    status: watch::Sender<BackendStatus>,
    announced: watch::Sender<u64>,
    /// The connection announced last, 0 while there is none. Written by the link's task alone.
    current: AtomicU64,
    /// Messages handed to the library, and how many of them a proof has covered or a loss has written off.
    handed: AtomicU64,
    settled: AtomicU64,
    /// A connection broke with messages under way, and no flush has said so yet.
    lost: AtomicBool,
    /// New work is refused.
    pub(super) refusing: AtomicBool,
    echo_prefix: String,
    next_echo: AtomicU64,
    /// Fences sent on all connections together.
    fences_sent: AtomicU64,
    /// Who waits for which echo. Held for one map operation. Dropping a sender tells that the connection broke.
    waiting: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

impl Link {
    pub(super) fn new(
        client: Client,
        events: Arc<Events>,
        server: String,
        publish_timeout: Duration,
        echo_prefix: String,
    ) -> Self {
        let connecting = BackendStatus::new(BackendKind::Nats, server.clone(), BackendState::Connecting);
        Self {
            statistics: client.statistics(),
            client,
            events,
            server,
            publish_timeout,
            status: watch::Sender::new(connecting),
            announced: watch::Sender::new(0),
            current: AtomicU64::new(0),
            handed: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            echo_prefix,
            next_echo: AtomicU64::new(0),
            fences_sent: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    pub(super) fn status(&self) -> watch::Receiver<BackendStatus> {
        self.status.subscribe()
    }

    pub(super) fn announced(&self) -> watch::Receiver<u64> {
        self.announced.subscribe()
    }

    pub(super) fn statistics(&self) -> Arc<Statistics> {
        Arc::clone(&self.statistics)
    }

    /// The number of the connection that works now, if there is one.
    pub(super) fn connection(&self) -> Option<u64> {
        let current = self.current.load(Ordering::SeqCst);
        (current != 0 && current == self.connected()).then_some(current)
    }

    /// What the library says: the number of its connection, 0 while there is none.
    fn connected(&self) -> u64 {
        match self.client.connection_state() {
            State::Connected => self.statistics.connects.load(Ordering::SeqCst),
            State::Pending | State::Disconnected => 0,
        }
    }

    /// A message was handed to the library for this connection.
    pub(super) fn handed(&self, connection: u64) {
        self.handed.fetch_add(1, Ordering::SeqCst);
        // The connection may have been written off between the check before the message was handed over and the
        // count: then nobody has counted it, and it must not be taken for one of the next connection.
        if self.current.load(Ordering::SeqCst) != connection {
            self.lost.store(true, Ordering::SeqCst);
        }
    }

    /// Messages handed to the library that no proof has covered.
    pub(super) fn unproven(&self) -> u64 {
        self.handed.load(Ordering::SeqCst).saturating_sub(self.settled.load(Ordering::SeqCst))
    }

    /// Whether messages were lost, or may have been, since the last call.
    pub(super) fn take_lost(&self) -> bool {
        if self.connection().is_none() {
            // The link's task may not have seen it yet.
            self.write_off_messages();
        }
        self.lost.swap(false, Ordering::SeqCst)
    }

    pub(super) fn not_connected(&self) -> PublishError {
        PublishError::NotConnected { server: self.server.clone(), reason: self.events.reason() }
    }

    pub(super) fn not_subscribed(&self) -> SubscribeError {
        SubscribeError::NotConnected { server: self.server.clone(), reason: self.events.reason() }
    }

    pub(super) fn outcome_unknown(&self, waited: Duration) -> PublishError {
        PublishError::OutcomeUnknown { server: self.server.clone(), waited }
    }

    /// Waits until there is no working connection.
    pub(super) async fn disconnected(&self) {
        let mut status = self.status.subscribe();
        // Fails when the link is gone, and then there is no connection either.
        let _ = status.wait_for(|status| !status.state.is_ready()).await;
    }

    /// Proves that the server has handled everything handed over before on the connection there is now. What it
    /// refused of that has been noted in `events` by then.
    pub(super) async fn prove(&self, wait: Duration) -> Result<(), NoProof> {
        let handed = self.handed.load(Ordering::SeqCst);
        let connection = self.connection().ok_or_else(|| self.without_connection())?;
        let mut echo = Echo::new(self);
        let result = tokio::time::timeout(wait, async {
            self.send_fence().await;
            let message = self.echo_message(&format!("b{}", echo.id));
            if self.client.publish_message(message).await.is_err() {
                return Err(self.without_connection());
            }
            (&mut echo.received).await.map_err(|_| NoProof::Broken)?;
            self.await_fences().await;
            Ok(())
        })
        .await;
        match result {
            Err(_) => Err(NoProof::Silent(wait)),
            // The echo may have waited for the next connection: then it proves nothing about this one.
            Ok(Ok(())) if self.current.load(Ordering::SeqCst) != connection => Err(NoProof::Broken),
            Ok(Ok(())) => {
                self.settled.fetch_max(handed, Ordering::SeqCst);
                Ok(())
            }
            Ok(Err(broken)) => Err(broken),
        }
    }

    /// Sends what every server refuses without closing the connection: a subscription with `>` before its end.
    async fn send_fence(&self) {
        self.fences_sent.fetch_add(1, Ordering::SeqCst);
        // Dropped, and so taken back, at once. Where it cannot be sent, the echo cannot either.
        let _ = self.client.subscribe(format!("{}.>.fence", self.echo_prefix)).await;
    }

    /// Waits for the fences of all proofs under way, which is no longer than for the own one and a round trip.
    async fn await_fences(&self) {
        let sent = self.fences_sent.load(Ordering::SeqCst);
        let fences = self.events.fences_passed();
        let mut passed = fences.subscribe();
        let all_passed = passed.wait_for(|passed| *passed >= sent);
        if tokio::time::timeout(FENCE_WAIT, all_passed).await.is_err() {
            self.forget_fences(sent);
        }
    }

    /// Those up to here will not come any more.
    fn forget_fences(&self, sent: u64) {
        self.events.fences_passed().send_if_modified(|passed| {
            let behind = *passed < sent;
            *passed = sent.max(*passed);
            behind
        });
    }

    fn without_connection(&self) -> NoProof {
        match self.status.borrow().state {
            BackendState::Closed => NoProof::Closed,
            _ => NoProof::NotConnected,
        }
    }

    fn echo_message(&self, token: &str) -> OutboundMessage {
        let subject = format!("{}.{token}", self.echo_prefix).into();
        OutboundMessage { subject, reply: None, payload: Default::default(), headers: None }
    }

    /// The link's task: takes echoes, sees connections break and come back. Ends with `stop`, or when the library
    /// has closed the connection for good.
    pub(super) async fn run(self: Arc<Self>, mut echoes: Subscriber, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.events.wake.notified() => {}
                echo = echoes.next() => {
                    let Some(echo) = echo else { break };
                    self.on_echo(&echo.subject);
                }
                // Asks again: the echo, or the news of its refusal, may have been lost.
                _ = look.tick() => asked = 0,
            }
            for subject in self.events.take_refused_echoes() {
                self.on_echo(&subject);
            }
            self.look(&mut asked).await;
        }
        self.close();
    }

    /// Compares what is announced with what the library says.
    async fn look(&self, asked: &mut u64) {
        let (connected, current) = (self.connected(), self.current.load(Ordering::SeqCst));
        if current != 0 && current != connected {
            self.write_off();
        }
        if connected == 0 {
            self.set_state(BackendState::Disconnected { reason: self.events.reason() });
        } else if connected != current && *asked != connected {
            if let Some(denied) = self.events.echo_denied() {
                self.set_state(BackendState::Disconnected { reason: denied.to_owned() });
            }
            *asked = connected;
            let message = self.echo_message(&format!("c{connected}"));
            // Never waits long: the library takes messages while it is connected, and if it stops being so, the
            // next look comes from the timer.
            let _ = tokio::time::timeout(LOOK_INTERVAL, self.client.publish_message(message)).await;
        }
    }

    /// The announced connection is gone, and what it had not proven with it.
    fn write_off(&self) {
        self.current.store(0, Ordering::SeqCst);
        self.write_off_messages();
        self.waiting.lock().clear();
        let reason = self.events.reason();
        tracing::warn!(server = self.server, reason, "disconnected from NATS");
        self.set_state(BackendState::Disconnected { reason });
    }

    fn write_off_messages(&self) {
        let handed = self.handed.load(Ordering::SeqCst);
        if self.settled.swap(handed, Ordering::SeqCst) < handed {
            self.lost.store(true, Ordering::SeqCst);
        }
    }

    fn on_echo(&self, subject: &str) {
        let token = subject.rsplit('.').next().unwrap_or_default();
        if let Some(id) = token.strip_prefix('b').and_then(|id| id.parse().ok()) {
            if let Some(waiting) = self.waiting.lock().remove(&id) {
                // Who asked may have given up meanwhile.
                let _ = waiting.send(());
            }
        } else if let Some(connection) = token.strip_prefix('c').and_then(|number| number.parse().ok()) {
            self.announce(connection);
        }
    }

    fn announce(&self, connection: u64) {
        if connection != self.connected() || connection == self.current.load(Ordering::SeqCst) {
            return;
        }
        self.forget_fences(self.fences_sent.load(Ordering::SeqCst));
        self.current.store(connection, Ordering::SeqCst);
        match connection {
            1 => tracing::info!(server = self.server, "connected to NATS"),
            // As loud as the loss was.
            _ => tracing::warn!(server = self.server, connection, "connected to NATS again"),
        }
        self.set_state(BackendState::Connected);
        self.announced.send_replace(connection);
    }

    /// Nothing works from now on, and nothing will again.
    pub(super) fn close(&self) {
        self.refusing.store(true, Ordering::SeqCst);
        self.events.closed.store(true, Ordering::SeqCst);
        self.current.store(0, Ordering::SeqCst);
        self.waiting.lock().clear();
        self.set_state(BackendState::Closed);
    }

    fn set_state(&self, state: BackendState) {
        self.status.send_if_modified(|status| {
            if status.state == state || status.state == BackendState::Closed {
                return false;
            }
            // A new reason is not a new state: `since` tells for how long it has been away.
            let since = status.since;
            let same = status.state.as_str() == state.as_str();
            *status = BackendStatus::new(BackendKind::Nats, status.server.clone(), state);
            if same {
                status.since = since;
            }
            true
        });
    }
}

/// One echo that is waited for; forgotten when dropped.
struct Echo<'a> {
    link: &'a Link,
    id: u64,
    received: oneshot::Receiver<()>,
}

impl<'a> Echo<'a> {
    fn new(link: &'a Link) -> Self {
        let id = link.next_echo.fetch_add(1, Ordering::Relaxed);
        let (sender, received) = oneshot::channel();
        link.waiting.lock().insert(id, sender);
        Self { link, id, received }
    }
}

impl Drop for Echo<'_> {
    fn drop(&mut self) {
        self.link.waiting.lock().remove(&self.id);
    }
}
