//! How to connect to Redis, and why that may fail.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::tls::{RedisTls, RedisTlsError};
use crate::config::{RedisTopology, RedisUrl, Secret};
use crate::memory::MemoryBudget;

/// How to connect to Redis.
#[derive(Clone)]
#[non_exhaustive]
pub struct RedisOptions {
    /// Where it is. Key `messaging.redis_url`.
    pub url: RedisUrl,
    /// Certificates for `rediss://`; the authorities of the system unless set. Section `messaging.redis_tls`.
    pub tls: RedisTls,
    /// User and password of the sentinels themselves, where they ask for any; those in the URL are for the servers that
    /// the sentinels watch. Keys `messaging.redis_sentinel.username` and `.password`.
    pub sentinel_username: Option<String>,
    /// See `sentinel_username`.
    pub sentinel_password: Option<Secret>,
    /// Start of every key; two prefixes on one server never see each other. Default `atlas_bus`, key
    /// `messaging.stream_prefix`.
    pub prefix: String,
    /// Longest wait for the first connection. Default 3 s, key `messaging.connect_timeout`.
    pub connect_timeout: Duration,
    /// Longest wait for the outcome of a publish that sets none, and for the answer to any other command. Default 5 s,
    /// key `messaging.publish_timeout`.
    pub publish_timeout: Duration,
    /// How long a deduplication id is remembered. Default 2 min, key `messaging.dedupe_window`.
    pub dedupe_window: Duration,
    /// Replicas that must have a message before its publish has succeeded; needs such replicas. Default 0, key
    /// `messaging.wait_replicas`.
    pub wait_replicas: u32,
    /// Most messages that wait for one live subscription, and most that wait to be sent. Default 65536, key
    /// `messaging.max_pending`.
    pub max_pending: usize,
    /// Largest headers and payload together, in bytes. Default 1 MiB, key `server.limits.max_payload`.
    pub max_payload: usize,
    /// What waits for subscriptions is charged to it, and bounded by it. Default without a limit, key
    /// `runtime.resources.memory`.
    pub memory: Arc<MemoryBudget>,
}

impl RedisOptions {
    /// The defaults, for the server at `url`.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            tls: RedisTls::default(),
            sentinel_username: None,
            sentinel_password: None,
            prefix: "atlas_bus".to_owned(),
            connect_timeout: Duration::from_secs(3),
            publish_timeout: Duration::from_secs(5),
            dedupe_window: Duration::from_secs(120),
            wait_replicas: 0,
            max_pending: 65_536,
            max_payload: 1 << 20,
            memory: Arc::default(),
        }
    }

    /// The server as it may be shown.
    pub(super) fn server(&self) -> String {
        let scheme = if self.url.tls { "rediss" } else { "redis" };
        let hosts: Vec<String> = self.url.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        let (hosts, db) = (hosts.join(","), self.url.db);
        match &self.url.topology {
            RedisTopology::Single => format!("{scheme}://{hosts}/{db}"),
            RedisTopology::Sentinel { master } => format!("{scheme}-sentinel://{hosts}/{master}/{db}"),
            RedisTopology::Cluster => format!("{scheme}-cluster://{hosts}"),
        }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("url", &self.url)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Why no connection to Redis was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisConnectError {
    /// The address cannot be used.
    #[error("{server} cannot be used: {reason} (messaging.redis_url)")]
    BadServer {
        /// Which server, without credentials.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server does not let us in, or does not let us do what the bus needs.
    #[error("{server} refused the credentials: {reason}")]
    Unauthorized {
        /// Which server, without credentials.
        server: String,
        /// What it said.
        reason: String,
    },
    /// TLS was not agreed on: a certificate is not trusted, is missing, or is for another name.
    #[error("no TLS with {server}: {reason} (messaging.redis_tls)")]
    Tls {
        /// Which server, without credentials.
        server: String,
        /// What the handshake failed with.
        reason: String,
    },
    /// The certificates that the configuration names cannot be used.
    #[error("TLS to Redis cannot be set up: {reason}")]
    TlsFiles {
        /// What is wrong, with its causes.
        reason: String,
        /// The same as a value.
        source: Box<RedisTlsError>,
    },
    /// The server could not be reached in time.
    #[error("{server} could not be reached within {waited:?}: {reason}")]
    Unreachable {
        /// Which server, without credentials.
        server: String,
        /// How long was tried.
        waited: Duration,
        /// What the last attempt failed with.
        reason: String,
    },
}

impl RedisConnectError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// What the operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::BadServer { .. } => {
                "redis:// is for one server, redis-sentinel://host,host/master for sentinels, redis-cluster://host,host \
                 for a cluster"
            }
            Self::Tls { .. } => {
                "messaging.redis_tls.ca_file names the authority of the server's certificate, cert_file and key_file the \
                 certificate it asks for; the host in messaging.redis_url must be one the certificate is for"
            }
            Self::TlsFiles { .. } => "correct the section messaging.redis_tls",
            Self::Unauthorized { .. } => {
                "compare user, password and ACL rules with the server's configuration"
            }
            Self::Unreachable { .. } => "start the server, or correct messaging.redis_url",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_shown_as_what_they_are() {
        for (url, shown) in [
            ("redis://h", "redis://h:6379/0"),
            ("redis-sentinel://u:p@a,b:1/main/2", "redis-sentinel://a:26379,b:1/main/2"),
            ("rediss+cluster://:p@a,b", "rediss-cluster://a:6379,b:6379"),
        ] {
            assert_eq!(RedisOptions::new(RedisUrl::parse(url).unwrap()).server(), shown);
        }
    }

    #[test]
    fn credentials_show_nowhere() {
        let options = RedisOptions::new(RedisUrl::parse("rediss://user:secret@[::1]:7000/2").unwrap());
        assert_eq!(options.server(), "rediss://[::1]:7000/2");
        assert!(!format!("{options:?}").contains("secret"));
        let (_, connector) = options.topology().unwrap();
        let login = connector.login;
        assert_eq!((login.username(), login.password(), login.db()), (Some("user"), Some("secret"), 2));
    }
}
