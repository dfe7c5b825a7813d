//! The connections on which commands are sent, one for each server that serves slots the bus needs.
//!
//! A connection carries everything that does not block: publishes, settlements, queries. Each command goes to the server
//! of its key's slot. Which server that is, and that the connections are there, is kept up to date by `keeper`, for
//! ever. Reads that block have connections of their own, from [`Link::open`]; they, too, are given up when the one they
//! were opened beside is lost.
//!
//! A node of a cluster that does not serve a slot says so before it does anything, so what it refused is sent again to
//! whom it names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, RedisError, ServerError, ServerErrorKind, Value};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::acl::{denied, is_denied};
use super::connect::{ConnectFailure, Connection, Connector, Sent};
use super::entry::{number, unexpected};
use super::keeper::Keeper;
use super::options::{RedisConnectError, RedisOptions};
use super::refusal;
use super::scripts::Script;
use super::slots::{Address, Redirect, SlotMap, redirect, slot};
use super::topology::Topology;
use crate::backend::{BackendKind, ConsumeError, PublishError, StreamError, SubscribeError};
use crate::status::{BackendState, BackendStatus};

/// How long what was redirected waits for the map of the slots to change, before it is sent again anyway.
const REDIRECT_DELAY: Duration = Duration::from_millis(20);

/// How long after an outage others may not have come back: the longest delay of their attempts, with jitter.
const SETTLING: Duration = Duration::from_secs(3);

/// A connection that works as far as is known.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) address: Address,
    pub(super) connection: Connection,
    /// Cancelled when it is given up.
    pub(super) lost: CancellationToken,
    /// Which scripts that append messages its server has run since it was connected to.
    pub(super) ran: Ran,
}

/// Scripts that a server knows: one that it does not know is refused where the one behind it may be carried out.
#[derive(Debug, Clone, Default)]
pub(super) struct Ran(Arc<AtomicU8>);

impl Ran {
    /// Takes note of the scripts in this set.
    pub(super) fn add(&self, scripts: u8) {
        if !self.has(scripts) {
            self.0.fetch_or(scripts, Ordering::SeqCst);
        }
    }

    /// Whether it has run all scripts in this set.
    pub(super) fn has(&self, scripts: u8) -> bool {
        self.0.load(Ordering::SeqCst) & scripts == scripts
    }
}

/// Why a command has no answer.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// It has not left.
    NotConnected(String),
    /// It may have been carried out: the connection broke, or the answer took longer than this.
    Unknown(Duration),
    /// The server refused it.
    Refused(ServerError),
    /// The answer is not of the form that was expected.
    Unexpected(String),
}

/// Who serves which slots, and the connections there are.
#[derive(Clone, Default)]
pub(super) struct Layout {
    pub(super) slots: SlotMap,
    /// How often the slots have been found elsewhere.
    pub(super) changes: u64,
    pub(super) nodes: HashMap<Address, Current>,
}

impl Layout {
    fn serving(&self, slot: u16) -> Option<&Current> {
        self.nodes.get(self.slots.owner(slot)?)
    }
}

/// See the module's text.
pub(super) struct Link {
    pub(super) topology: Topology,
    pub(super) connector: Connector,
    /// For people, without credentials.
    pub(super) server: String,
    pub(super) answer_timeout: Duration,
    /// Changed by the keeper, and where a node asks to ask another one.
    pub(super) layout: watch::Sender<Arc<Layout>>,
    /// Slots of the keys that the bus uses. Held to copy or replace them.
    needed: Mutex<Arc<BTreeSet<u16>>>,
    /// Who is said to know the slots best. Held to put or take it.
    pub(super) well_informed: Mutex<Option<Address>>,
    pub(super) status: watch::Sender<BackendStatus>,
    /// Somebody saw a command fail: the servers are to be looked at now.
    pub(super) suspect: Notify,
    /// A server has refused a write because it is a replica. Where there is only one, it is to say when that is over.
    pub(super) demoted: AtomicBool,
    /// Readers that a server refuses their streams although it is well, by number, and why: several may read the same
    /// stream. Held for one map operation.
    refused_reads: Mutex<BTreeMap<u64, String>>,
    /// Until when those who answer requests may not have listed themselves again. Held to copy or replace it.
    settled_at: Mutex<Option<Instant>>,
    /// New work is refused.
    pub(super) refusing: AtomicBool,
}

impl Link {
    /// Connects for the first time, trying again until `connect_timeout` has passed unless the answer would stay the
    /// same. `needed` are the keys that the bus uses in any case.
    pub(super) async fn connect(
        options: &RedisOptions,
        needed: impl IntoIterator<Item = String>,
    ) -> Result<Arc<Self>, RedisConnectError> {
        let server = options.server();
        let connecting = BackendStatus::new(BackendKind::Redis, server.clone(), BackendState::Connecting);
        let (topology, connector) = options.topology()?;
        let link = Arc::new(Self {
            topology,
            connector,
            server: server.clone(),
            answer_timeout: options.publish_timeout,
            layout: watch::Sender::default(),
            needed: Mutex::default(),
            well_informed: Mutex::new(None),
            status: watch::Sender::new(connecting),
            suspect: Notify::new(),
            demoted: AtomicBool::new(false),
            refused_reads: Mutex::default(),
            settled_at: Mutex::new(None),
            refusing: AtomicBool::new(false),
        });
        link.need(needed);
        let mut keeper = Keeper::new(&link, true);
        let connecting = tokio::time::timeout(options.connect_timeout, keeper.until_complete()).await;
        let waited = options.connect_timeout;
        match connecting {
            Ok(Ok(())) => {
                drop(keeper);
                Ok(link)
            }
            Ok(Err(failure)) => Err(failure.into_error(server, waited)),
            Err(_) => {
                let reason = keeper.last_failure().unwrap_or_else(|| "no answer".to_owned());
                Err(RedisConnectError::Unreachable { server, waited, reason })
            }
        }
    }

    /// Keeps the connections, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = async { Keeper::new(&self, false).keep().await } => {}
        }
        let layout = self.layout.send_replace(Arc::default());
        layout.nodes.values().for_each(|node| node.lost.cancel());
        self.set_state(BackendState::Closed);
    }

    /// These keys, and no others, are what the bus uses from now on.
    pub(super) fn need(&self, keys: impl IntoIterator<Item = String>) {
        let slots: BTreeSet<u16> = keys.into_iter().map(|key| slot(&key)).collect();
        let mut needed = self.needed.lock();
        if **needed != slots {
            *needed = Arc::new(slots);
            self.suspect.notify_one();
        }
    }

    pub(super) fn needed(&self) -> Arc<BTreeSet<u16>> {
        self.needed.lock().clone()
    }

    pub(super) fn set_state(&self, state: BackendState) {
        self.status.send_if_modified(|status| {
            let disconnected = |state: &BackendState| matches!(state, BackendState::Disconnected { .. });
            if status.state == state {
                return false;
            }
            match disconnected(&status.state) && disconnected(&state) {
                // The outage began when the first connection was lost: `since` stays.
                true => status.state = state,
                false => *status = BackendStatus::new(BackendKind::Redis, self.server.clone(), state),
            }
            true
        });
    }

    /// All servers are there.
    pub(super) fn set_well(&self) {
        let refused = self.refused_reads.lock().values().next().cloned();
        self.set_state(match refused {
            Some(reason) => BackendState::Degraded { reason },
            None => BackendState::Connected,
        });
    }

    /// Takes note of why a reader is refused its streams, or that it is not. Says whether that is news: not where another
    /// one is refused for the same reason.
    pub(super) fn note_refused_read(&self, reader: u64, reason: Option<String>) -> bool {
        let mut refused = self.refused_reads.lock();
        let before = match &reason {
            Some(reason) => refused.insert(reader, reason.clone()),
            None => refused.remove(&reader),
        };
        let changed = before != reason;
        let about = reason.or(before);
        let news = changed
            && !refused.iter().any(|(other, known)| *other != reader && Some(known) == about.as_ref());
        drop(refused);
        if changed {
            // Whoever looks at the servers says in the status how all of it stands.
            self.suspect();
        }
        news
    }

    pub(super) fn status(&self) -> watch::Receiver<BackendStatus> {
        self.status.subscribe()
    }

    /// What ends by itself on the servers may have ended now while its owner lives.
    pub(super) fn settle(&self) {
        self.settle_until(Instant::now() + SETTLING);
    }

    /// As [`Link::settle`], until this moment.
    pub(super) fn settle_until(&self, until: Instant) {
        let mut settled_at = self.settled_at.lock();
        *settled_at = (*settled_at).max(Some(until));
    }

    /// Until when what ends by itself may have ended while its owner lives, because a server was away a moment ago or has
    /// lost its data; `None` where that is past.
    pub(super) fn settling(&self) -> Option<Instant> {
        self.settled_at.lock().filter(|until| *until > Instant::now())
    }

    /// Whether any server is connected.
    pub(super) fn is_connected(&self) -> bool {
        !self.layout.borrow().nodes.is_empty()
    }

    /// A number that is another one when slots have moved.
    pub(super) fn map_changes(&self) -> u64 {
        self.layout.borrow().changes
    }

    /// The connection to the server of a key.
    pub(super) fn current(&self, key: &str) -> Option<Current> {
        self.layout.borrow().serving(slot(key)).cloned()
    }

    /// Waits for a connection to the server of a key. `None` once the link is closed for good.
    pub(super) async fn connected(&self, key: &str) -> Option<Current> {
        let slot = slot(key);
        let mut layout = self.layout.subscribe();
        let found = layout.wait_for(|layout| layout.serving(slot).is_some()).await.ok()?;
        found.serving(slot).cloned()
    }

    /// A connection beside one that there is, to the same server. It is given up with that one, and by itself.
    pub(super) async fn open_beside(&self, current: &Current) -> Result<Current, ConnectFailure> {
        let connection = self.connector.open(&current.address).await?;
        Ok(Current { connection, lost: current.lost.child_token(), ..current.clone() })
    }

    /// A connection of its own, to the server of `key`, for reads that block. Answers may take any time.
    pub(super) async fn open(&self, key: &str) -> Result<Blocking, Failure> {
        let current = self.current(key).ok_or_else(|| Failure::NotConnected(self.reason()))?;
        self.open_at(current.address, false).await
    }

    async fn open_at(&self, address: Address, asking: bool) -> Result<Blocking, Failure> {
        let broken = |reason: String| Failure::NotConnected(reason);
        let mut connection =
            self.connector.open(&address).await.map_err(|failure| broken(failure.reason().to_owned()))?;
        let id = connection.send(redis::cmd("CLIENT").arg("ID"), false).await;
        let id = match id.map_err(|error| broken(error.to_string()))? {
            Value::ServerError(error) => return Err(Failure::Refused(error)),
            id => number(&id)?,
        };
        Ok(Blocking { connection, asking, reader: Arc::new(Mutex::new((address, id))) })
    }

    /// Ends a read that blocks.
    pub(super) async fn unblock(&self, reader: &BlockedReader) {
        let (address, id) = reader.lock().clone();
        let Ok(mut node) = self.reach(&address).await else { return };
        let mut command = redis::cmd("CLIENT");
        command.arg("UNBLOCK").arg(id);
        // Where this fails the read ends by itself a little later.
        let _ = tokio::time::timeout(self.answer_timeout, node.connection.send(&command, false)).await;
    }

    /// A connection to a node that need not serve any slot.
    async fn reach(&self, address: &Address) -> Result<Current, ConnectFailure> {
        let known = self.layout.borrow().nodes.get(address).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let connection = self.connector.open(address).await?;
        Ok(self.install(address.clone(), connection))
    }

    /// Takes a connection into use.
    pub(super) fn install(&self, address: Address, connection: Connection) -> Current {
        let (lost, ran) = (CancellationToken::new(), Ran::default());
        let current = Current { address: address.clone(), connection, lost, ran };
        self.change(|layout| {
            layout.nodes.insert(address, current.clone());
        });
        current
    }

    /// Changes the layout and tells everybody who waits for it.
    pub(super) fn change(&self, change: impl FnOnce(&mut Layout)) {
        self.layout.send_modify(|layout| change(Arc::make_mut(layout)));
    }

    /// Has the servers looked at, because a command to one of them failed.
    pub(super) fn suspect(&self) {
        self.suspect.notify_one();
    }

    /// Why there is no connection.
    pub(super) fn reason(&self) -> String {
        let status = self.status.borrow();
        match &status.state {
            BackendState::Closed => "the bus is closed".to_owned(),
            state => state.reason().unwrap_or("the connection is being made").to_owned(),
        }
    }

    /// Sends one command about `key` and waits for the answer.
    pub(super) async fn query(&self, key: &str, command: &Cmd) -> Result<Value, Failure> {
        self.carry_out(key, Sent::Command(command)).await
    }

    /// Sends a transaction about `key` and waits for the answers to its commands, each of which may be a refusal.
    pub(super) async fn transaction(
        &self,
        key: &str,
        pipeline: &redis::Pipeline,
    ) -> Result<Vec<Value>, Failure> {
        match self.carry_out(key, Sent::Transaction(pipeline)).await? {
            Value::Array(answers) => Ok(answers),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends to the server that has `key`, and follows it to another one.
    async fn carry_out(&self, key: &str, sent: Sent<'_>) -> Result<Value, Failure> {
        let slot = slot(key);
        let started = Instant::now();
        let deadline = started + self.answer_timeout;
        let (mut asked, mut refused): (_, Option<ServerError>) = (None, None);
        loop {
            let serving = self.layout.borrow().serving(slot).cloned();
            let (mut node, asking) = match (asked.take(), serving) {
                (Some(node), _) => (node, true),
                (None, Some(node)) => (node, false),
                (None, None) if refused.is_none() || Instant::now() >= deadline => {
                    return Err(Failure::NotConnected(self.reason()));
                }
                (None, None) => {
                    self.changed(deadline).await;
                    continue;
                }
            };
            let answer = tokio::select! {
                answer = node.connection.carry_out(&sent, asking) => answer,
                () = node.lost.cancelled() => return Err(Failure::Unknown(started.elapsed())),
                () = tokio::time::sleep_until(deadline) => return Err(Failure::Unknown(self.answer_timeout)),
            };
            let error = match answer {
                Ok(Value::ServerError(error)) => error,
                Ok(value) => return Ok(value),
                Err(_) => {
                    self.suspect();
                    return Err(Failure::Unknown(started.elapsed()));
                }
            };
            match self.redirected(&error, &node.address) {
                None => return Err(Failure::Refused(error)),
                Some(_) if Instant::now() >= deadline => return Err(Failure::Refused(error)),
                Some(Redirect::Ask(address)) => match self.reach(&address).await {
                    Ok(node) => asked = Some(node),
                    Err(_) => self.changed(deadline).await,
                },
                Some(Redirect::Moved(_) | Redirect::Later) => self.changed(deadline).await,
            }
            refused = Some(error);
        }
    }

    /// What to do about a refusal, which is not about the command itself. It has the map of the slots looked at.
    pub(super) fn redirected(&self, error: &ServerError, from: &Address) -> Option<Redirect> {
        if is_demoted(error) {
            self.demoted.store(true, Ordering::SeqCst);
            self.suspect();
        }
        if !self.topology.redirects() {
            return None;
        }
        let redirect = redirect(error, from)?;
        match &redirect {
            Redirect::Moved(address) => {
                *self.well_informed.lock() = Some(address.clone());
                self.suspect();
            }
            Redirect::Later => self.suspect(),
            // The slot has not moved yet.
            Redirect::Ask(_) => {}
        }
        Some(redirect)
    }

    /// Waits for the layout to change, a little, and not past `deadline`.
    pub(super) async fn changed(&self, deadline: Instant) {
        let mut layout = self.layout.subscribe();
        let until = deadline.min(Instant::now() + REDIRECT_DELAY);
        let _ = tokio::time::timeout_at(until, layout.changed()).await;
    }

    /// Runs a script, giving it to the server where it is not known there.
    pub(super) fn run_script<'a, A: FnOnce(&mut Cmd)>(
        &'a self,
        script: &'a Script,
        keys: &[&str],
        arguments: A,
    ) -> impl Future<Output = Result<Value, Failure>> + Send + use<'a, A> {
        let mut command = script.command(keys);
        arguments(&mut command);
        let key = keys.first().map(|key| (*key).to_owned()).unwrap_or_default();
        async move { self.query_script(&key, script, &command).await }
    }

    /// Sends a command that [`Script::command`] began, with the script itself where it is not known.
    pub(super) async fn query_script(
        &self,
        key: &str,
        script: &Script,
        command: &Cmd,
    ) -> Result<Value, Failure> {
        match self.query(key, command).await {
            Err(Failure::Refused(error)) if is_unknown_script(&error) => {
                self.query(key, &script.in_full(command)).await
            }
            answer => answer,
        }
    }

    pub(super) fn not_connected(&self) -> PublishError {
        PublishError::NotConnected { server: self.server.clone(), reason: self.reason() }
    }

    fn failed(&self, failure: Failure) -> (String, String) {
        let reason = match failure {
            Failure::NotConnected(reason) => reason,
            Failure::Unknown(waited) => format!("no answer within {waited:?}"),
            Failure::Refused(error) if is_denied(&error) => denied(&error),
            Failure::Refused(error) => error.to_string(),
            Failure::Unexpected(answer) => format!("unexpected answer: {answer}"),
        };
        (self.server.clone(), reason)
    }

    /// What the first command after connecting failed with.
    pub(super) fn unusable(&self, failure: Failure, waited: Duration) -> RedisConnectError {
        let refused = match &failure {
            Failure::Refused(error) if is_denied(error) => "NOPERM".to_owned(),
            Failure::Refused(error) => error.code().to_owned(),
            _ => String::new(),
        };
        let (server, reason) = self.failed(failure);
        match refused.as_str() {
            "NOPERM" => RedisConnectError::Unauthorized { server, reason },
            "MOVED" | "CLUSTERDOWN" | "ASK" => RedisConnectError::BadServer {
                server,
                reason: "it is a node of a cluster: redis-cluster:// connects to those".to_owned(),
            },
            _ => RedisConnectError::Unreachable { server, waited, reason },
        }
    }

    pub(super) fn stream_error(&self, failure: Failure) -> StreamError {
        let (server, reason) = self.failed(failure);
        StreamError::NotConnected { server, reason }
    }

    pub(super) fn subscribe_error(&self, failure: Failure) -> SubscribeError {
        let (server, reason) = self.failed(failure);
        SubscribeError::NotConnected { server, reason }
    }

    pub(super) fn consume_error(&self, failure: Failure) -> ConsumeError {
        let (server, reason) = self.failed(failure);
        ConsumeError::NotConnected { server, reason }
    }
}

/// Where a reader blocks, and the number of its connection there.
pub(super) type BlockedReader = Arc<Mutex<(Address, u64)>>;

/// A connection for reads that block.
pub(super) struct Blocking {
    connection: Connection,
    /// What is read is on its way to this node, and not yet its own.
    asking: bool,
    reader: BlockedReader,
}

impl Blocking {
    /// What [`Link::unblock`] ends the read by. It follows the reader to another node.
    pub(super) fn reader(&self) -> BlockedReader {
        self.reader.clone()
    }

    /// Reads. A read of what is on its way to another node goes on there; any other refusal is the caller's to look at.
    ///
    /// # Cancel safety
    /// A read that is dropped leaves the connection busy until it would have ended: drop the connection, too.
    pub(super) async fn read(&mut self, link: &Link, command: &Cmd) -> Result<Value, RedisError> {
        let answer = self.connection.send(command, self.asking).await?;
        let Value::ServerError(error) = &answer else { return Ok(answer) };
        let from = self.reader.lock().0.clone();
        let Some(Redirect::Ask(address)) = link.redirected(error, &from) else { return Ok(answer) };
        let Ok(there) = link.open_at(address, true).await else { return Ok(answer) };
        let (address, id) = there.reader.lock().clone();
        *self.reader.lock() = (address, id);
        (self.connection, self.asking) = (there.connection, true);
        self.connection.send(command, true).await
    }
}

/// Whether the server does not know the script any more: it was restarted, or told to forget.
pub(super) fn is_unknown_script(error: &ServerError) -> bool {
    error.kind() == Some(ServerErrorKind::NoScript)
}

/// Whether the server is no master any more.
pub(super) fn is_demoted(error: &ServerError) -> bool {
    refusal::code(error) == "READONLY"
}
