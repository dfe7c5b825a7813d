//! One connection to one server: TCP, TLS where it is asked for, credentials, and a first answer.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, RedisError, Value};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::options::RedisConnectError;
use super::pushed::Pushed;
use super::slots::Address;

/// Longest time one attempt to connect may take.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// How much of it the handshake of TLS may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(800);

/// A connection, closed with its last clone even if a read that blocks is under way.
#[derive(Clone)]
pub(super) struct Connection {
    commands: MultiplexedConnection,
    driver: Arc<Driver>,
}

/// Moves bytes between the socket and the commands; ends with the last clone of the connection.
struct Driver {
    pushed: Arc<Pushed>,
    _task: AbortOnDropHandle<()>,
}

impl Driver {
    /// Waits for the answer to what is sent, having the bytes leave at once.
    async fn sending<T>(&self, sending: impl Future<Output = T>) -> T {
        let mut sending = std::pin::pin!(sending);
        let mut left = false;
        std::future::poll_fn(|cx| match std::mem::replace(&mut left, true) {
            false => self.pushed.push(|| sending.as_mut().poll(cx)),
            true => sending.as_mut().poll(cx),
        })
        .await
    }
}

/// What is sent in one go.
pub(super) enum Sent<'a> {
    Command(&'a Cmd),
    /// An atomic pipeline.
    Transaction(&'a redis::Pipeline),
}

impl Connection {
    /// Sends it and waits for the answer, after having said that it may be about a slot on its way there.
    pub(super) async fn carry_out(&mut self, sent: &Sent<'_>, asking: bool) -> Result<Value, RedisError> {
        match sent {
            Sent::Command(command) => self.send(command, asking).await,
            Sent::Transaction(pipeline) => self.transact(pipeline, asking).await,
        }
    }

    /// The answer to EXEC; where that one is refused, the refusal that came first tells why.
    async fn transact(&mut self, pipeline: &redis::Pipeline, asking: bool) -> Result<Value, RedisError> {
        if asking {
            // What it says holds until EXEC.
            self.driver.sending(self.commands.send_packed_command(&redis::cmd("ASKING"))).await?;
        }
        // MULTI and EXEC have an answer, too.
        let mut answers = self.send_all(pipeline, pipeline.len() + 2).await?;
        match answers.pop() {
            Some(Value::ServerError(last)) => {
                let first = answers.into_iter().find_map(|answer| match answer {
                    Value::ServerError(error) => Some(error),
                    _ => None,
                });
                Ok(Value::ServerError(first.unwrap_or(last)))
            }
            Some(answer) => Ok(answer),
            None => Err(RedisError::from((redis::ErrorKind::UnexpectedReturnType, "no answer"))),
        }
    }

    /// Sends a command and waits for the answer, after having said that it may be about a slot on its way there.
    pub(super) async fn send(&mut self, command: &Cmd, asking: bool) -> Result<Value, RedisError> {
        if !asking {
            return self.driver.sending(self.commands.send_packed_command(command)).await;
        }
        let mut both = redis::Pipeline::with_capacity(2);
        both.cmd("ASKING").add_command(command.clone());
        let mut answers = self.send_all(&both, 2).await?;
        answers.pop().ok_or_else(|| RedisError::from((redis::ErrorKind::UnexpectedReturnType, "no answer")))
    }

    /// Sends commands and waits for so many answers, each of which may be a refusal.
    pub(super) async fn send_all(
        &mut self,
        pipeline: &redis::Pipeline,
        answers: usize,
    ) -> Result<Vec<Value>, RedisError> {
        self.driver.sending(self.commands.send_packed_commands(pipeline, 0, answers)).await
    }
}

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(super) enum ConnectFailure {
    /// The credentials are refused, or do not allow what the bus needs.
    Unauthorized(String),
    /// The two sides do not agree on TLS: a certificate is not trusted, is missing, or is for another name.
    Tls(String),
    /// What the address leads to is not what the URL says.
    Wrong(String),
    /// Anything else, which may pass.
    Failed(String),
}

impl ConnectFailure {
    /// What was seen.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Unauthorized(reason) | Self::Tls(reason) | Self::Wrong(reason) | Self::Failed(reason) => {
                reason
            }
        }
    }

    /// Whether the next attempt would end the same.
    pub(super) fn is_final(&self) -> bool {
        !matches!(self, Self::Failed(_))
    }

    /// As an error of whoever wanted to connect to `server` and has `waited` for it.
    pub(super) fn into_error(self, server: String, waited: Duration) -> RedisConnectError {
        match self {
            Self::Unauthorized(reason) => RedisConnectError::Unauthorized { server, reason },
            Self::Tls(reason) => RedisConnectError::Tls { server, reason },
            Self::Wrong(reason) => RedisConnectError::BadServer { server, reason },
            Self::Failed(reason) => RedisConnectError::Unreachable { server, waited, reason },
        }
    }

    fn of(error: &RedisError) -> Self {
        let reason = error.to_string();
        match error.code() {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Self::Unauthorized(reason),
            _ if error.kind() == redis::ErrorKind::AuthenticationFailed => Self::Unauthorized(reason),
            _ if error.kind() == redis::ErrorKind::Parse => Self::Failed(
                "the answer is not that of a Redis server; does something else listen there?".to_owned(),
            ),
            _ => Self::Failed(reason),
        }
    }
}

/// How connections to servers of one kind are made.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) tls: Option<TlsConnector>,
    pub(super) login: RedisConnectionInfo,
}

impl Connector {
    /// Connects, logs in, and waits for a first answer: a server that loads its data accepts connections, too.
    pub(super) async fn open(&self, address: &Address) -> Result<Connection, ConnectFailure> {
        let late = || ConnectFailure::Failed(format!("{address}: no answer within {ATTEMPT_TIMEOUT:?}"));
        timeout(ATTEMPT_TIMEOUT, self.open_now(address)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn open_now(&self, address: &Address) -> Result<Connection, ConnectFailure> {
        let failed = |error: std::io::Error| ConnectFailure::Failed(format!("{address}: {error}"));
        let socket = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        let Some(tls) = &self.tls else { return self.log_in(socket).await };
        let name = ServerName::try_from(address.host.clone())
            .map_err(|_| ConnectFailure::Tls(format!("{address}: no certificate can be for this name")))?;
        let shaken =
            |error: std::io::Error| match error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) {
                true => ConnectFailure::Tls(format!("{address}: {error}")),
                false => failed(error),
            };
        // A server without TLS waits for the rest of a command that never comes.
        let mute = || {
            ConnectFailure::Failed(format!("{address}: no answer to TLS; does it speak TLS on this port?"))
        };
        let shaking = timeout(HANDSHAKE_TIMEOUT, tls.connect(name, socket));
        let mut socket = shaking.await.map_err(|_| mute())?.map_err(shaken)?;
        // With TLS 1.3 a server refuses the certificate of its client only after the client is done: the first thing
        // read tells.
        socket.write_all(b"PING\r\n").await.map_err(shaken)?;
        let mut byte = 0;
        while byte != b'\n' {
            byte = socket.read_u8().await.map_err(shaken)?;
        }
        self.log_in(socket).await
    }

    async fn log_in<S>(&self, socket: S) -> Result<Connection, ConnectFailure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Reads that block take any time; whoever sends a command waits no longer than it wants to.
        let settings = AsyncConnectionConfig::new().set_response_timeout(None);
        let failed = |error: RedisError| ConnectFailure::of(&error);
        let (commands, driver) =
            MultiplexedConnection::new_with_config(&self.login, socket, settings).await.map_err(failed)?;
        let pushed = Pushed::new(driver);
        let task = AbortOnDropHandle::new(tokio::spawn(pushed.task()));
        let mut connection = Connection { commands, driver: Arc::new(Driver { pushed, _task: task }) };
        match connection.send(&redis::cmd("PING"), false).await {
            Ok(Value::ServerError(error)) => Err(ConnectFailure::of(&error.into())),
            Ok(Value::SimpleString(answer)) if answer == "PONG" => Ok(connection),
            // Answers come in the order of the questions: none on this connection can be believed.
            Ok(_) => Err(ConnectFailure::Failed("PING has another answer than PONG".to_owned())),
            Err(error) => Err(ConnectFailure::of(&error)),
        }
    }
}
