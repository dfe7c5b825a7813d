//! Questions to the servers behind the backend, for whoever checks how they are set up. Nothing here changes anything there,
//! unless the question itself does.

use std::time::Duration;

use redis::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::connect::{ConnectFailure, Connection};
use super::options::{RedisConnectError, RedisOptions};
use super::slots::Address;

/// Delay between two attempts to connect.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// A connection to one of the servers that a bus with these options would use, found and made as the bus does.
///
/// ```no_run
/// use trunkline::backend::redis::{RedisInspection, RedisOptions};
/// # async fn example(options: RedisOptions) -> Result<(), Box<dyn std::error::Error>> {
/// for server in &mut RedisInspection::connect(&options).await? {
///     println!("{}: {:?}", server.address(), server.ask(&["TIME"]).await?);
/// }
/// # Ok(()) }
/// ```
pub struct RedisInspection {
    address: Address,
    connection: Connection,
    answer_timeout: Duration,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisAnswer {
    /// Nil.
    Nothing,
    /// A number.
    Number(i64),
    /// A text; bytes that are no UTF-8 are replaced.
    Text(String),
    /// Several answers.
    List(Vec<RedisAnswer>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisAskError {
    /// The server refuses, which is an answer, too: one that begins with `NOPERM` is about the user.
    #[error("{reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
    /// The connection broke, or the server took too long.
    #[error("no answer: {reason}")]
    Lost {
        /// What was seen.
        reason: String,
    },
}

impl RedisInspection {
    /// Connects to every server that serves a slot: one, the master that sentinels name, or the masters of a cluster. Tries
    /// again until `connect_timeout` has passed, unless the answer would stay the same.
    ///
    /// # Errors
    /// As [`super::RedisBackend::connect`], for the first server that cannot be used.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn connect(options: &RedisOptions) -> Result<Vec<Self>, RedisConnectError> {
        let (topology, connector) = options.topology()?;
        let by = Instant::now() + options.connect_timeout;
        let mut last = ConnectFailure::Failed("no answer".to_owned());
        loop {
            let attempt = async {
                let mut found = Vec::new();
                for address in topology.find(&connector, Vec::new()).await?.servers() {
                    let connection = connector.open(&address).await?;
                    found.push(Self { address, connection, answer_timeout: options.publish_timeout });
                }
                Ok::<_, ConnectFailure>(found)
            };
            match timeout_at(by, attempt).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(failure)) if failure.is_final() => {
                    return Err(failure.into_error(options.server(), options.connect_timeout));
                }
                Ok(Err(failure)) => last = failure,
                Err(_) => return Err(last.into_error(options.server(), options.connect_timeout)),
            }
            if timeout_at(by, tokio::time::sleep(RETRY_DELAY)).await.is_err() {
                return Err(last.into_error(options.server(), options.connect_timeout));
            }
        }
    }

    /// Host and port, an IPv6 address in brackets.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Name or IP address, one of IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.address.host
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port
    }

    /// Sends a command, which has at least a name, and waits for its answer, `publish_timeout` at most.
    ///
    /// # Errors
    /// See [`RedisAskError`].
    ///
    /// # Cancel safety
    /// The command may have been carried out.
    pub async fn ask(&mut self, words: &[&str]) -> Result<RedisAnswer, RedisAskError> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        match timeout(self.answer_timeout, self.connection.send(&command, false)).await {
            Ok(Ok(Value::ServerError(error))) => {
                // As the server wrote it: its first word is the code.
                let reason = format!("{} {}", error.code(), error.details().unwrap_or_default());
                Err(RedisAskError::Refused { reason })
            }
            Ok(Ok(answer)) => Ok(RedisAnswer::from(answer)),
            Ok(Err(error)) => Err(RedisAskError::Lost { reason: error.to_string() }),
            Err(_) => Err(RedisAskError::Lost { reason: format!("none within {:?}", self.answer_timeout) }),
        }
    }
}

impl std::fmt::Debug for RedisInspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisInspection").field("address", &self.address).finish_non_exhaustive()
    }
}

impl RedisAnswer {
    /// The text, unless it is something else.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, also one that stands in a text.
    pub fn as_number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// The elements of a list; none of anything else.
    pub fn as_list(&self) -> &[RedisAnswer] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }
}

impl From<Value> for RedisAnswer {
    fn from(value: Value) -> Self {
        match value {
            Value::Nil => Self::Nothing,
            Value::Int(number) => Self::Number(number),
            Value::BulkString(bytes) => Self::Text(String::from_utf8_lossy(&bytes).into_owned()),
            Value::SimpleString(text) => Self::Text(text),
            Value::Okay => Self::Text("OK".to_owned()),
            Value::Array(values) | Value::Set(values) => {
                Self::List(values.into_iter().map(Self::from).collect())
            }
            other => Self::Text(format!("{other:?}")),
        }
    }
}
