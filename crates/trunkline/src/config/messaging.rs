//! The section `messaging`: which backend carries the messages, where it is, and what streams and consumers are like.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;

use super::declare::{choices, settings};
use super::settings::{Fault, Format, Leaf, Rule};
use super::urls::{NatsUrl, RedisUrl};
use super::values::Secret;
use trunkline_core::Pattern;

settings! {
    /// Which backend carries the messages, where it is, and what streams and consumers are like.
    pub struct Messaging in "messaging." {
        /// What carries the messages: `in_memory`, `redis` or `nats`.
        pub backend: Backend => default("in_memory");
        /// Where Redis is, with `REDIS_URL` as a second source: `redis://`, `rediss://`, Sentinel or Cluster.
        pub redis_url: RedisUrl => default("redis://localhost:6379/0");
        /// Certificates for `rediss://`.
        pub redis_tls: RedisTls;
        /// Credentials of sentinels.
        pub redis_sentinel: RedisSentinel;
        /// Prefix of every Redis key and of JetStream names.
        pub stream_prefix: String => default("atlas_bus"), format(Format::Prefix);
        /// Where a new reader starts: `$` for only what comes after, `0-0` for everything, or a saved offset.
        pub initial_stream_id: InitialStreamId => default("$");
        /// What happens when the backend cannot be reached within `connect_timeout` at start.
        /// Unless set, `in_memory` for redis and `fail` for nats: see [`Messaging::fallback`].
        pub fallback: Option<Fallback>;
        /// Longest wait for the backend at start.
        pub connect_timeout: Duration => default("3s"), range("100ms", "10m");
        /// Where NATS is, with `NATS_URL` as a second source: servers separated by commas, `nats://` or `tls://`.
        pub nats_url: NatsUrl => default("nats://127.0.0.1:4222");
        /// Who the bus is to NATS, where `messaging.nats_url` has no credentials.
        pub nats_auth: NatsAuth;
        /// Certificates for `tls://`, and for servers that demand TLS.
        pub nats_tls: NatsTls;
        /// First token of the platform's subjects.
        pub subject_root: String => default("nachos"), format(Format::Token);
        /// Streams: which subjects are stored, and for how long.
        pub streams: Vec<Stream>;
        /// Defaults of consumers.
        pub consumer: Consumer;
        /// Longest time until a publish has an outcome.
        pub publish_timeout: Duration => default("5s"), range("10ms", "10m");
        /// Whether what is published while the server is away is kept in this process and sent later.
        pub outbox: bool => default("off");
        /// Most messages that the outbox keeps; past it publishing fails.
        pub outbox_max_messages: u64 => default("10000"), range("1", "16777216");
        /// Most bytes that the outbox keeps; past it publishing fails.
        pub outbox_max_bytes: u64 => default("64MB"), format(Format::Bytes), range("1KB", "16GB");
        /// How long the id of a message that asks for deduplication is remembered.
        pub dedupe_window: Duration => default("2m"), range("100ms", "24h");
        /// Replicas of Redis that must have a message before its publish has succeeded.
        pub wait_replicas: u32 => default("0"), range("0", "16");
        /// Most messages that wait in one buffer of this process.
        pub max_pending: u64 => default("65536"), range("1", "16777216");
    }
}

settings! {
    /// Certificates for `rediss://`, in PEM. Paths are relative to the working directory.
    pub struct RedisTls in "messaging.redis_tls." {
        /// Authorities that the certificates of servers must come from; those of the system unless set.
        pub ca_file: Option<PathBuf>;
        /// Certificate chain for servers that ask for one.
        pub cert_file: Option<PathBuf>;
        /// Private key of that certificate.
        pub key_file: Option<PathBuf>;
    }
}

settings! {
    /// Who the bus is to NATS: a user and its password, a token, an nkey, or a credentials file; only one of them. Credentials
    /// in `messaging.nats_url` go first. Paths are relative to the working directory.
    pub struct NatsAuth in "messaging.nats_auth." {
        /// Name of the user.
        pub username: Option<String>;
        /// Its password.
        pub password: Option<Secret>;
        /// Token, for servers that know no users.
        pub token: Option<Secret>;
        /// File with the seed of an nkey, `SU…`.
        pub nkey_file: Option<PathBuf>;
        /// Credentials file, as `nsc generate creds` writes it: a JWT and the seed of its nkey.
        pub credentials_file: Option<PathBuf>;
    }
}

settings! {
    /// Certificates for NATS, in PEM. Paths are relative to the working directory.
    pub struct NatsTls in "messaging.nats_tls." {
        /// Authorities that the certificates of servers must come from; those of the system unless set.
        pub ca_file: Option<PathBuf>;
        /// Certificate chain for servers that ask for one.
        pub cert_file: Option<PathBuf>;
        /// Private key of that certificate.
        pub key_file: Option<PathBuf>;
        /// Whether servers wait for the handshake before their first line, as theirs says in `handshake_first`.
        pub handshake_first: bool => default("false");
    }
}

settings! {
    /// Credentials of sentinels; those in `messaging.redis_url` are for the servers that the sentinels watch.
    pub struct RedisSentinel in "messaging.redis_sentinel." {
        /// User name of the sentinels' ACLs.
        pub username: Option<String>;
        /// Password, with or without a user name.
        pub password: Option<Secret>;
    }
}

settings! {
    /// A stream: which subjects are stored, and for how long. Limits win over unread messages, which are then counted.
    pub struct Stream in "messaging.streams[]." {
        /// Name, unique among the streams.
        pub name: String => format(Format::Name);
        /// Patterns of the subjects it stores, at least one; those of two streams may not overlap.
        pub subjects: Vec<Pattern>;
        /// Age at which messages are removed; unlimited unless set.
        pub max_age: Option<Duration> => range("1s", "36500d");
        /// Number of messages beyond which the oldest are removed; unlimited unless set.
        pub max_messages: Option<u64> => range("1", "1000000000000");
        /// Size beyond which the oldest messages are removed, approximate on redis; unlimited unless set.
        pub max_bytes: Option<u64> => format(Format::Bytes), range("1KB", "1000TB");
        /// Copies that JetStream keeps.
        pub replicas: u32 => default("1"), range("1", "5");
    }
}

settings! {
    /// Defaults of consumers.
    pub struct Consumer in "messaging.consumer." {
        /// Longest time a delivery may stay unacknowledged before it is redelivered.
        pub ack_wait: Duration => default("30s"), range("100ms", "12h");
        /// Most deliveries of one message; after them it becomes a dead letter.
        pub max_deliver: u32 => default("5"), range("1", "1000");
        /// Waits before the second, third, … delivery; the last one repeats.
        pub backoff: Vec<Duration> => default("[1s, 5s, 30s]"), range("1ms", "24h");
    }
}

impl Messaging {
    /// What happens when the backend cannot be reached at start: as configured, else `in_memory` for redis and `fail`
    /// for nats. A JetStream deployment expects its messages to survive, which memory could not promise.
    pub fn fallback(&self) -> Fallback {
        self.fallback.unwrap_or(match self.backend {
            Backend::InMemory | Backend::Redis => Fallback::InMemory,
            Backend::Nats => Fallback::Fail,
        })
    }
}

choices! {
    /// What carries the messages.
    pub enum Backend {
        /// This process.
        InMemory = "in_memory",
        /// Redis Streams.
        Redis = "redis",
        /// NATS, with JetStream for streams.
        Nats = "nats",
    }
}

choices! {
    /// What happens when the backend cannot be reached at start.
    pub enum Fallback {
        /// Warn loudly and run degraded on the in-memory backend; never switches while running.
        InMemory = "in_memory",
        /// Fail to start.
        Fail = "fail",
    }
}

/// Where a new reader starts: a consumer when it is created, a subscription on stored subjects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitialStreamId {
    /// `$`: only what comes after.
    New,
    /// `0-0`, or `0`: everything that is stored.
    Beginning,
    /// A saved offset, `N` or `MS-SEQ`, checked to be one; which of the two a backend takes is its own business.
    At(String),
}

impl Leaf for InitialStreamId {
    fn expected(_: &Rule) -> Cow<'static, str> {
        "$ for new messages, 0-0 for all, or a saved offset such as 1526919030474-55 or 1042".into()
    }

    fn parse(text: &str, _: &Rule) -> Result<Self, Fault> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
            digits.then(|| text.parse::<u64>().ok()).flatten()
        };
        // Anything else is refused: an offset taken for `$` by mistake loses every message before it.
        match text {
            "$" => Ok(InitialStreamId::New),
            "0" | "0-0" => Ok(InitialStreamId::Beginning),
            _ => {
                let (first, second) = text.split_once('-').unwrap_or((text, "0"));
                match (number(first), number(second)) {
                    (Some(_), Some(_)) => Ok(InitialStreamId::At(text.to_owned())),
                    _ => Err(Fault::Type),
                }
            }
        }
    }

    fn render(&self, _: &Rule) -> Json {
        match self {
            InitialStreamId::New => "$".into(),
            InitialStreamId::Beginning => "0-0".into(),
            InitialStreamId::At(offset) => offset.as_str().into(),
        }
    }
}
