//! How the servers that carry the bus are found: one address, a master that sentinels know, or the nodes of a cluster.
//!
//! All three give the same: a map of who serves which slots. One server, or one master, serves them all.

use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use redis::{Cmd, RedisConnectionInfo, Value};
use tokio::time::timeout;

use super::connect::{ConnectFailure, Connection, Connector};
use super::entry::{list, text};
use super::options::{RedisConnectError, RedisOptions};
use super::slots::{Address, SlotMap, read_master};
use super::tls::in_full;
use crate::config::RedisTopology;

/// How long one look at the servers may take: with the interval of looks it makes the 2 s within which the status tells
/// of an outage.
pub(super) const LOOK_TIMEOUT: Duration = Duration::from_millis(900);

/// How long one sentinel, or one node that is asked for the slots, may take: another one may know.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// How a server answered when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// It does what it is there for.
    Fine,
    /// It answers, but serves nothing now.
    Idle(String),
    /// The user may not look.
    Denied(String),
    /// It does not answer, or is no longer what it was.
    Lost(String),
}

/// See the module's text.
pub(super) enum Topology {
    Single(Address),
    Sentinel(Sentinels),
    Cluster {
        /// Where to ask when no node is connected.
        seeds: Vec<Address>,
    },
}

/// The sentinels of one master.
pub(super) struct Sentinels {
    master: String,
    connector: Connector,
    /// Each with the connection on which it was asked last. Held to take the connection or put it back.
    hosts: Vec<(Address, Mutex<Option<Connection>>)>,
}

impl RedisOptions {
    /// How servers are found, and how they are connected to.
    pub(super) fn topology(&self) -> Result<(Topology, Connector), RedisConnectError> {
        let tls = match self.url.tls {
            false => None,
            true => Some(self.tls.connector()?),
        };
        let login = |user: Option<&str>, password: Option<&str>, db| {
            // The name of the library would be one more command that a user has to be allowed.
            let mut login = RedisConnectionInfo::default().set_db(db).set_skip_set_lib_name();
            if let Some(user) = user {
                login = login.set_username(user);
            }
            if let Some(password) = password {
                login = login.set_password(password);
            }
            login
        };
        let (user, password) = (self.url.username.as_deref(), self.url.password.as_ref());
        let login_here = login(user, password.map(|password| password.expose()), i64::from(self.url.db));
        let connector = Connector { tls: tls.clone(), login: login_here };
        let hosts: Vec<Address> =
            self.url.hosts.iter().map(|(host, port)| Address::new(host, *port)).collect();
        let topology = match &self.url.topology {
            RedisTopology::Single => {
                Topology::Single(hosts.into_iter().next().unwrap_or_else(|| Address::new("localhost", 6379)))
            }
            RedisTopology::Sentinel { master } => Topology::Sentinel(Sentinels {
                master: master.clone(),
                connector: Connector {
                    tls,
                    login: login(
                        self.sentinel_username.as_deref(),
                        self.sentinel_password.as_ref().map(|password| password.expose()),
                        0,
                    ),
                },
                hosts: hosts.into_iter().map(|host| (host, Mutex::new(None))).collect(),
            }),
            RedisTopology::Cluster => Topology::Cluster { seeds: hosts },
        };
        Ok((topology, connector))
    }
}

impl From<super::tls::RedisTlsError> for RedisConnectError {
    fn from(error: super::tls::RedisTlsError) -> Self {
        Self::TlsFiles { reason: in_full(&error), source: Box::new(error) }
    }
}

impl Topology {
    /// Whether the map may change.
    pub(super) fn can_change(&self) -> bool {
        !matches!(self, Self::Single(_))
    }

    /// Whether a node may refer to another one.
    pub(super) fn redirects(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    /// Whether what nobody serves any more may still be there and answer, and must not be used: a master that was
    /// replaced takes writes until it hears of it, and they are lost.
    pub(super) fn deposes(&self) -> bool {
        matches!(self, Self::Sentinel(_))
    }

    /// Asks who serves which slots. `known` are nodes of a cluster that are connected, the best to ask first.
    pub(super) async fn find(
        &self,
        connector: &Connector,
        known: Vec<(Address, Connection)>,
    ) -> Result<SlotMap, ConnectFailure> {
        match self {
            Self::Single(address) => Ok(SlotMap::whole(address.clone())),
            Self::Sentinel(sentinels) => sentinels.find().await.map(SlotMap::whole),
            Self::Cluster { seeds } => find_nodes(connector, known, seeds).await,
        }
    }

    /// Looks whether a server does what it is there for.
    pub(super) async fn look_at(&self, connection: &mut Connection) -> Health {
        let (question, name) = match self {
            Self::Single(_) => (redis::cmd("PING"), "PING"),
            Self::Sentinel(_) => (redis::cmd("ROLE"), "ROLE"),
            Self::Cluster { .. } => {
                let mut question = redis::cmd("CLUSTER");
                question.arg("INFO");
                (question, "CLUSTER INFO")
            }
        };
        let answer = match timeout(LOOK_TIMEOUT, connection.send(&question, false)).await {
            Ok(Ok(Value::ServerError(error))) => {
                return match error.code() {
                    "NOPERM" | "NOAUTH" => Health::Denied(error.to_string()),
                    _ => Health::Lost(error.to_string()),
                };
            }
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Health::Lost(error.to_string()),
            Err(_) => return Health::Lost(format!("no answer to {name} within {LOOK_TIMEOUT:?}")),
        };
        match self {
            Self::Single(_) => Health::Fine,
            Self::Sentinel(_) => health_by_role(answer),
            Self::Cluster { .. } => {
                let info = text(&answer).unwrap_or_default();
                match info.lines().find_map(|line| line.trim().strip_prefix("cluster_state:")) {
                    Some("ok") => Health::Fine,
                    state => Health::Idle(format!("its cluster_state is {}", state.unwrap_or("unknown"))),
                }
            }
        }
    }
}

/// Whether a server takes writes again that has refused one because it is a replica. A user who may not ask finds out by
/// writing.
pub(super) async fn takes_writes(connection: &mut Connection) -> Health {
    match timeout(LOOK_TIMEOUT, connection.send(&redis::cmd("ROLE"), false)).await {
        Ok(Ok(Value::ServerError(_))) => Health::Fine,
        Ok(Ok(answer)) => match health_by_role(answer) {
            Health::Lost(reason) => Health::Idle(reason),
            health => health,
        },
        Ok(Err(error)) => Health::Lost(error.to_string()),
        Err(_) => Health::Lost(format!("no answer to ROLE within {LOOK_TIMEOUT:?}")),
    }
}

/// The answer of `ROLE`: the first of it is `master`, `slave` or `sentinel`.
fn health_by_role(answer: Value) -> Health {
    match list(answer).ok().and_then(|role| text(role.first()?).ok()) {
        Some(role) if role == "master" => Health::Fine,
        Some(role) if role == "slave" => Health::Lost("it is a replica now, not the master".to_owned()),
        Some(role) => Health::Lost(format!("it is a {role}, not a master")),
        None => Health::Lost("unexpected answer to ROLE".to_owned()),
    }
}

/// Asks one node after the other for the slots, until one knows.
async fn find_nodes(
    connector: &Connector,
    known: Vec<(Address, Connection)>,
    seeds: &[Address],
) -> Result<SlotMap, ConnectFailure> {
    let mut question = redis::cmd("CLUSTER");
    question.arg("SLOTS");
    let mut last = ConnectFailure::Failed("no node of the cluster answers".to_owned());
    for (address, mut connection) in known {
        match ask(&mut connection, &address, &question).await {
            Ok(answer) => return read_slots(answer, &address),
            Err(failure) => last = failure,
        }
    }
    // Not always the same one first: it may be the one that hangs.
    let first = fastrand::usize(..seeds.len().max(1));
    for address in seeds.iter().cycle().skip(first).take(seeds.len()) {
        let asked = async {
            let mut connection = connector.open(address).await?;
            ask(&mut connection, address, &question).await
        };
        match asked.await {
            Ok(answer) => return read_slots(answer, address),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

fn read_slots(answer: Value, asked: &Address) -> Result<SlotMap, ConnectFailure> {
    SlotMap::read(answer, asked)
        .map_err(|failure| ConnectFailure::Failed(format!("{asked}: its slots cannot be read: {failure:?}")))
}

async fn ask(
    connection: &mut Connection,
    address: &Address,
    question: &Cmd,
) -> Result<Value, ConnectFailure> {
    match timeout(ASK_TIMEOUT, connection.send(question, false)).await {
        Ok(Ok(Value::ServerError(error))) => {
            let reason = format!("{address}: {error}");
            Err(match error.code() {
                "NOPERM" | "NOAUTH" => ConnectFailure::Unauthorized(reason),
                _ if reason.contains("cluster support disabled") => {
                    ConnectFailure::Wrong(format!("{address} is no node of a cluster"))
                }
                _ if reason.contains("unknown command") => {
                    ConnectFailure::Wrong(format!("{address} is no sentinel, or no node of a cluster"))
                }
                _ => ConnectFailure::Failed(reason),
            })
        }
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ConnectFailure::Failed(format!("{address}: {error}"))),
        Err(_) => Err(ConnectFailure::Failed(format!("{address}: no answer"))),
    }
}

impl Sentinels {
    /// Asks all sentinels for the master. The newest knowledge counts, so that one that was cut off leads nobody back to
    /// a master of the past.
    async fn find(&self) -> Result<Address, ConnectFailure> {
        let answers = join_all(self.hosts.iter().map(|(address, last)| self.ask(address, last))).await;
        let mut newest: Option<(u64, Address)> = None;
        let mut failure = None;
        for answer in answers {
            match answer {
                Ok(found) if newest.as_ref().is_none_or(|newest| newest.0 < found.0) => newest = Some(found),
                Ok(_) => {}
                // A sentinel that cannot be reached says less than one that answers.
                Err(found) if found.is_final() || failure.is_none() => failure = Some(found),
                Err(_) => {}
            }
        }
        let none = || ConnectFailure::Failed("no sentinel answers".to_owned());
        newest.map(|(_, address)| address).ok_or_else(|| failure.unwrap_or_else(none))
    }

    async fn ask(
        &self,
        address: &Address,
        last: &Mutex<Option<Connection>>,
    ) -> Result<(u64, Address), ConnectFailure> {
        let kept = last.lock().take();
        let mut connection = match kept {
            Some(connection) => connection,
            None => timeout(ASK_TIMEOUT, self.connector.open(address))
                .await
                .unwrap_or_else(|_| Err(ConnectFailure::Failed(format!("{address}: no answer"))))?,
        };
        let mut question = redis::cmd("SENTINEL");
        question.arg("MASTER").arg(&self.master);
        let answer = ask(&mut connection, address, &question).await.map_err(|failure| match failure {
            ConnectFailure::Failed(reason) if reason.contains("No such master") => {
                ConnectFailure::Wrong(format!("the sentinel {address} knows no master {:?}", self.master))
            }
            other => other,
        })?;
        *last.lock() = Some(connection);
        read_master(answer)
            .map_err(|_| ConnectFailure::Failed(format!("{address}: unexpected answer to SENTINEL MASTER")))
    }
}
