//! The connection on which commands are sent, made anew for ever, and the state of it.
//!
//! One multiplexed connection carries everything that does not block: publishes, settlements, queries. It is asked for
//! a PING every second; one that does not answer is given up, so that nothing waits for a server that has fallen
//! silent. Reads that block have connections of their own, from [`Link::open`]; they, too, are given up when this one
//! is lost.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, RedisError, ServerError, ServerErrorKind, Value};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::options::{RedisConnectError, RedisOptions};
use super::scripts::Script;
use crate::backend::{BackendKind, ConsumeError, PublishError, StreamError, SubscribeError};
use crate::status::{BackendState, BackendStatus};

/// How often the connection is asked whether it works.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How long the answer may take: with the interval it makes the 2 s within which the status tells of an outage.
const PING_TIMEOUT: Duration = Duration::from_millis(900);
/// Longest time one attempt to connect may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// First and longest delay between attempts.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(20);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(2);

/// A connection that works as far as is known.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) connection: MultiplexedConnection,
    /// Cancelled when it is given up.
    pub(super) lost: CancellationToken,
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

/// See the module's text.
pub(super) struct Link {
    client: redis::Client,
    /// For people, without credentials.
    pub(super) server: String,
    pub(super) answer_timeout: Duration,
    current: watch::Sender<Option<Current>>,
    status: watch::Sender<BackendStatus>,
    /// Somebody saw a command fail: the connection is to be looked at now.
    suspect: Notify,
    /// New work is refused.
    pub(super) refusing: AtomicBool,
}

impl Link {
    /// Connects for the first time, trying again until `connect_timeout` has passed unless the answer would stay the same.
    pub(super) async fn connect(options: &RedisOptions) -> Result<Arc<Self>, RedisConnectError> {
        let server = options.server();
        let connecting = BackendStatus::new(BackendKind::Redis, server.clone(), BackendState::Connecting);
        let link = Self {
            client: options.client()?,
            server: server.clone(),
            answer_timeout: options.publish_timeout,
            current: watch::Sender::new(None),
            status: watch::Sender::new(connecting),
            suspect: Notify::new(),
            refusing: AtomicBool::new(false),
        };
        let mut last = "no answer".to_owned();
        let trying = async {
            loop {
                match link.open().await {
                    Ok(connection) => return Ok(connection),
                    Err(error) if is_unauthorized(&error) => {
                        return Err(RedisConnectError::Unauthorized {
                            server: server.clone(),
                            reason: error.to_string(),
                        });
                    }
                    Err(error) => last = error.to_string(),
                }
                tokio::time::sleep(RECONNECT_DELAY_MIN * 5).await;
            }
        };
        let connection = match timeout(options.connect_timeout, trying).await {
            Ok(connected) => connected?,
            Err(_) => {
                let waited = options.connect_timeout;
                return Err(RedisConnectError::Unreachable { server, waited, reason: last });
            }
        };
        link.install(connection);
        Ok(Arc::new(link))
    }

    /// A connection of its own for reads that block. Answers may take any time.
    pub(super) async fn open(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ATTEMPT_TIMEOUT))
            .set_response_timeout(None);
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        // A server that loads its data, or lets nobody in, accepts connections too.
        match timeout(ATTEMPT_TIMEOUT, connection.send_packed_command(&redis::cmd("PING"))).await {
            Ok(Ok(Value::ServerError(error))) => Err(error.into()),
            Ok(Ok(_)) => Ok(connection),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(RedisError::from((ErrorKind::Io, "no answer to PING"))),
        }
    }

    /// Keeps the connection, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let keeping = async {
            loop {
                let reason = self.until_lost().await;
                self.give_up(&reason);
                self.reconnect().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = keeping => {}
        }
        if let Some(current) = self.current.send_replace(None) {
            current.lost.cancel();
        }
        self.set_status(BackendState::Closed);
    }

    async fn until_lost(&self) -> String {
        loop {
            let Some(mut current) = self.current() else { return "no connection".to_owned() };
            tokio::select! {
                () = tokio::time::sleep(PING_INTERVAL) => {}
                () = self.suspect.notified() => {}
            }
            match timeout(PING_TIMEOUT, current.connection.send_packed_command(&redis::cmd("PING"))).await {
                Ok(Ok(Value::ServerError(error))) => return error.to_string(),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return format!("no answer to PING within {PING_TIMEOUT:?}"),
            }
        }
    }

    fn give_up(&self, reason: &str) {
        if let Some(current) = self.current.send_replace(None) {
            current.lost.cancel();
        }
        tracing::warn!(server = self.server, reason, "the connection to Redis is lost");
        self.set_status(BackendState::Disconnected { reason: reason.to_owned() });
    }

    async fn reconnect(&self) {
        let mut delay = RECONNECT_DELAY_MIN;
        loop {
            // Jitter, so that all clients of a restarted server do not come back in the same moment.
            tokio::time::sleep(delay.mul_f64(fastrand::f64().mul_add(0.5, 1.0))).await;
            delay = (delay * 2).min(RECONNECT_DELAY_MAX);
            match self.open().await {
                Ok(connection) => {
                    tracing::info!(server = self.server, "connected to Redis again");
                    return self.install(connection);
                }
                Err(error) => {
                    let reason = format!("cannot connect: {error}");
                    self.status.send_if_modified(|status| {
                        let state = BackendState::Disconnected { reason };
                        let changed = status.state != state;
                        // The outage began when the connection was lost: `since` stays.
                        status.state = state;
                        changed
                    });
                }
            }
        }
    }

    fn install(&self, connection: MultiplexedConnection) {
        let lost = CancellationToken::new();
        self.current.send_replace(Some(Current { connection, lost }));
        self.set_status(BackendState::Connected);
    }

    fn set_status(&self, state: BackendState) {
        self.status.send_modify(|status| {
            *status = BackendStatus::new(BackendKind::Redis, self.server.clone(), state);
        });
    }

    pub(super) fn status(&self) -> watch::Receiver<BackendStatus> {
        self.status.subscribe()
    }

    pub(super) fn current(&self) -> Option<Current> {
        self.current.borrow().clone()
    }

    /// Whether there is a connection that works as far as is known.
    pub(super) fn is_connected(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// Waits for a connection that works.
    pub(super) async fn connected(&self) -> Option<Current> {
        let mut current = self.current.subscribe();
        let found = current.wait_for(Option::is_some).await.ok()?;
        found.clone()
    }

    /// Has the connection looked at, because a command on one to the same server failed.
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

    /// Sends one command and waits for the answer.
    pub(super) async fn query(&self, command: &Cmd) -> Result<Value, Failure> {
        let mut current = self.current().ok_or_else(|| Failure::NotConnected(self.reason()))?;
        let started = tokio::time::Instant::now();
        let answer = tokio::select! {
            answer = current.connection.send_packed_command(command) => answer,
            () = current.lost.cancelled() => return Err(Failure::Unknown(started.elapsed())),
            () = tokio::time::sleep(self.answer_timeout) => return Err(Failure::Unknown(self.answer_timeout)),
        };
        match answer {
            Ok(Value::ServerError(error)) => Err(Failure::Refused(error)),
            Ok(value) => Ok(value),
            Err(_) => {
                self.suspect();
                Err(Failure::Unknown(started.elapsed()))
            }
        }
    }

    /// Sends a transaction and waits for the answers to its commands, each of which may be a refusal.
    pub(super) async fn transaction(&self, pipeline: &redis::Pipeline) -> Result<Vec<Value>, Failure> {
        let mut current = self.current().ok_or_else(|| Failure::NotConnected(self.reason()))?;
        let started = tokio::time::Instant::now();
        // In front of the answers come one to MULTI, and one to each command that says that it waits for EXEC.
        let sending = current.connection.send_packed_commands(pipeline, pipeline.len() + 1, 1);
        let answer = tokio::select! {
            answer = sending => answer,
            () = current.lost.cancelled() => return Err(Failure::Unknown(started.elapsed())),
            () = tokio::time::sleep(self.answer_timeout) => return Err(Failure::Unknown(self.answer_timeout)),
        };
        match answer.map(|mut answers| answers.pop()) {
            Ok(Some(Value::Array(answers))) => Ok(answers),
            Ok(Some(Value::ServerError(error))) => Err(Failure::Refused(error)),
            Ok(other) => Err(Failure::Unexpected(format!("{other:?}"))),
            Err(_) => {
                self.suspect();
                Err(Failure::Unknown(started.elapsed()))
            }
        }
    }

    /// Runs a script, giving it to the server first where it is not known there.
    pub(super) fn run_script<'a, A: FnOnce(&mut Cmd)>(
        &'a self,
        script: &'a Script,
        keys: &[&str],
        arguments: A,
    ) -> impl Future<Output = Result<Value, Failure>> + Send + use<'a, A> {
        let mut command = script.command(keys);
        arguments(&mut command);
        async move {
            match self.query(&command).await {
                Err(Failure::Refused(error)) if is_unknown_script(&error) => {
                    self.query(redis::cmd("SCRIPT").arg("LOAD").arg(script.source())).await?;
                    self.query(&command).await
                }
                answer => answer,
            }
        }
    }

    /// Ends a read that blocks on the connection with this id.
    pub(super) async fn unblock(&self, client_id: i64) {
        // Where this fails the read ends by itself a little later.
        let _ = self.query(redis::cmd("CLIENT").arg("UNBLOCK").arg(client_id)).await;
    }

    pub(super) fn not_connected(&self) -> PublishError {
        PublishError::NotConnected { server: self.server.clone(), reason: self.reason() }
    }

    fn failed(&self, failure: Failure) -> (String, String) {
        let reason = match failure {
            Failure::NotConnected(reason) => reason,
            Failure::Unknown(waited) => format!("no answer within {waited:?}"),
            Failure::Refused(error) => error.to_string(),
            Failure::Unexpected(answer) => format!("unexpected answer: {answer}"),
        };
        (self.server.clone(), reason)
    }

    /// What the first command after connecting failed with.
    pub(super) fn unusable(&self, failure: Failure, waited: Duration) -> RedisConnectError {
        let denied =
            matches!(&failure, Failure::Refused(error) if matches!(error.code(), "NOPERM" | "NOAUTH"));
        let (server, reason) = self.failed(failure);
        match denied {
            true => RedisConnectError::Unauthorized { server, reason },
            false => RedisConnectError::Unreachable { server, waited, reason },
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

/// Whether the server does not know the script any more: it was restarted, or told to forget.
pub(super) fn is_unknown_script(error: &ServerError) -> bool {
    error.kind() == Some(ServerErrorKind::NoScript)
}

fn is_unauthorized(error: &RedisError) -> bool {
    let denied = matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"));
    denied || error.kind() == ErrorKind::AuthenticationFailed
}
