//! How to connect to Redis, and why that may fail.

use std::fmt;
use std::time::Duration;

use redis::{ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo};

use crate::config::{RedisTopology, RedisUrl};

/// How to connect to Redis.
#[derive(Clone)]
#[non_exhaustive]
pub struct RedisOptions {
    /// Where it is. Key `messaging.redis_url`.
    pub url: RedisUrl,
    /// Start of every key; two prefixes on one server never see each other. Default `atlas_bus`, key
    /// `messaging.stream_prefix`.
    pub prefix: String,
    /// First token of the platform's subjects, whose second token names the family of what no configured stream stores.
    /// Default `nachos`, key `messaging.subject_root`.
    pub subject_root: String,
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
}

impl RedisOptions {
    /// The defaults, for the server at `url`.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            prefix: "atlas_bus".to_owned(),
            subject_root: "nachos".to_owned(),
            connect_timeout: Duration::from_secs(3),
            publish_timeout: Duration::from_secs(5),
            dedupe_window: Duration::from_secs(120),
            wait_replicas: 0,
            max_pending: 65_536,
            max_payload: 1 << 20,
        }
    }

    /// What the client library connects with.
    pub(super) fn client(&self) -> Result<redis::Client, RedisConnectError> {
        match &self.url.topology {
            RedisTopology::Single => {}
            RedisTopology::Sentinel { .. } => {
                return Err(RedisConnectError::Topology { topology: "Redis Sentinel" });
            }
            RedisTopology::Cluster => {
                return Err(RedisConnectError::Topology { topology: "Redis Cluster" });
            }
        }
        let unusable = |error: redis::RedisError| RedisConnectError::BadServer {
            server: self.server(),
            reason: error.to_string(),
        };
        let (host, port) = self.url.hosts.first().cloned().unwrap_or_else(|| ("localhost".to_owned(), 6379));
        // The brackets of an IPv6 address belong to the URL, not to the address.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let address = match self.url.tls {
            false => ConnectionAddr::Tcp(host, port),
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        let mut settings = RedisConnectionInfo::default().set_db(i64::from(self.url.db));
        if let Some(user) = &self.url.username {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.url.password {
            settings = settings.set_password(password.expose());
        }
        let info = address.into_connection_info().map_err(unusable)?.set_redis_settings(settings);
        redis::Client::open(info).map_err(unusable)
    }

    /// The server as it may be shown.
    pub(super) fn server(&self) -> String {
        let scheme = if self.url.tls { "rediss" } else { "redis" };
        let hosts: Vec<String> = self.url.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        format!("{scheme}://{}/{}", hosts.join(","), self.url.db)
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
    /// The URL names what this backend does not connect to.
    #[error("{topology} is not supported, only a single server is (messaging.redis_url)")]
    Topology {
        /// What it names.
        topology: &'static str,
    },
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
            Self::Topology { .. } | Self::BadServer { .. } => "give an address like redis://127.0.0.1:6379/0",
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
    fn what_is_not_a_single_server_is_refused_by_name() {
        for (url, name) in [
            ("redis-sentinel://a:26379/master", "Redis Sentinel"),
            ("rediss-cluster://a:6379,b:6379", "Redis Cluster"),
        ] {
            let error = RedisOptions::new(RedisUrl::parse(url).unwrap()).client().unwrap_err();
            let text = error.to_string();
            assert!(text.contains(name) && text.contains("messaging.redis_url"), "{text}");
            assert!(!error.is_retryable());
        }
    }

    #[test]
    fn credentials_show_nowhere() {
        let options = RedisOptions::new(RedisUrl::parse("rediss://user:secret@[::1]:7000/2").unwrap());
        assert_eq!(options.server(), "rediss://[::1]:7000/2");
        assert!(!format!("{options:?}").contains("secret"));
        let client = options.client().unwrap();
        let settings = client.get_connection_info().redis_settings();
        assert_eq!(
            (settings.username(), settings.password(), settings.db()),
            (Some("user"), Some("secret"), 2)
        );
    }
}
