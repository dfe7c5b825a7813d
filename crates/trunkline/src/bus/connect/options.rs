//! What the bus, the hub and the backends are told of the configuration.

use std::sync::Arc;

use trunkline_core::Token;
use trunkline_core::redelivery::RetryPolicy;

use super::ConnectError;
use crate::backend::Start;
use crate::backend::memory::HubOptions;
use crate::backend::nats::{NatsAuth, NatsOptions};
#[cfg(feature = "redis")]
use crate::backend::redis::RedisOptions;
use crate::bus::BusOptions;
use crate::bus::outbox::OutboxOptions;
use crate::config::{self, Config, InitialStreamId, Messaging};
use crate::memory::MemoryBudget;
use crate::topics::Topics;

impl TryFrom<&Messaging> for BusOptions {
    type Error = ConnectError;

    fn try_from(messaging: &Messaging) -> Result<Self, ConnectError> {
        let initial_start = match &messaging.initial_stream_id {
            InitialStreamId::New => Start::New,
            InitialStreamId::Beginning => Start::Beginning,
            InitialStreamId::At(offset) => Start::After(offset.parse().map_err(ConnectError::InitialStart)?),
        };
        let consumer = &messaging.consumer;
        let root =
            Token::new(messaging.subject_root.clone()).and_then(Topics::new).map_err(ConnectError::Root)?;
        Ok(Self {
            subject_root: root.root().clone(),
            publish_timeout: messaging.publish_timeout,
            retry: RetryPolicy { max_deliver: consumer.max_deliver, backoff: consumer.backoff.clone() },
            ack_wait: consumer.ack_wait,
            initial_start,
            outbox: messaging.outbox.then(|| OutboxOptions {
                messages_max: saturating(messaging.outbox_max_messages),
                bytes_max: saturating(messaging.outbox_max_bytes),
            }),
            ..Self::default()
        })
    }
}

impl From<&Config> for HubOptions {
    fn from(config: &Config) -> Self {
        Self {
            max_payload: saturating(config.server.limits.max_payload),
            max_pending: saturating(config.messaging.max_pending),
            dedupe_window: config.messaging.dedupe_window,
            memory: Arc::new(MemoryBudget::from_setting(config.runtime.resources.memory)),
            ..Self::default()
        }
    }
}

#[cfg(feature = "redis")]
impl From<&Config> for RedisOptions {
    fn from(config: &Config) -> Self {
        let messaging = &config.messaging;
        let mut options = Self::new(messaging.redis_url.clone());
        let files = &messaging.redis_tls;
        options.tls.ca_file = files.ca_file.clone();
        options.tls.cert_file = files.cert_file.clone();
        options.tls.key_file = files.key_file.clone();
        options.sentinel_username = messaging.redis_sentinel.username.clone();
        options.sentinel_password = messaging.redis_sentinel.password.clone();
        options.prefix = messaging.stream_prefix.clone();
        options.connect_timeout = messaging.connect_timeout;
        options.publish_timeout = messaging.publish_timeout;
        options.dedupe_window = messaging.dedupe_window;
        options.wait_replicas = messaging.wait_replicas;
        options.max_pending = saturating(messaging.max_pending);
        options.max_payload = saturating(config.server.limits.max_payload);
        options.memory = Arc::new(MemoryBudget::from_setting(config.runtime.resources.memory));
        options
    }
}

impl From<&Config> for NatsOptions {
    fn from(config: &Config) -> Self {
        let memory = Arc::new(MemoryBudget::from_setting(config.runtime.resources.memory));
        Self { memory, ..Self::from(&config.messaging) }
    }
}

impl From<&Messaging> for NatsOptions {
    fn from(messaging: &Messaging) -> Self {
        let mut options = Self::new(messaging.nats_url.servers().iter().map(ToString::to_string));
        options.auth = match messaging.nats_url.has_credentials() {
            // Whoever gives an address with credentials, as `TRUNKLINE_URL` may, means just these.
            true => NatsAuth::FromUrl,
            false => NatsAuth::from(&messaging.nats_auth),
        };
        let tls = &messaging.nats_tls;
        options.tls.first = tls.handshake_first;
        options.tls.root_certificates = tls.ca_file.clone().into_iter().collect();
        options.tls.client_certificate = tls.cert_file.clone().zip(tls.key_file.clone());
        options.connect_timeout = messaging.connect_timeout;
        options.publish_timeout = messaging.publish_timeout;
        options.max_pending = saturating(messaging.max_pending);
        options.stream_prefix = messaging.stream_prefix.clone();
        options.subject_root = messaging.subject_root.clone();
        options.dedupe_window = messaging.dedupe_window;
        options
    }
}

/// What is given stands alone: the configuration takes only one way.
impl From<&config::NatsAuth> for NatsAuth {
    fn from(auth: &config::NatsAuth) -> Self {
        let password = auth.password.as_ref().map(|password| password.expose().to_owned());
        let token = auth.token.as_ref().map(|token| token.expose().to_owned());
        match (auth.username.clone().zip(password), token, &auth.nkey_file, &auth.credentials_file) {
            (Some((user, password)), ..) => Self::UserPassword { user, password },
            (None, Some(token), ..) => Self::Token(token),
            (None, None, Some(path), _) => Self::NkeyFile(path.clone()),
            (None, None, None, Some(path)) => Self::CredentialsFile(path.clone()),
            (None, None, None, None) => Self::FromUrl,
        }
    }
}

/// A limit as this machine counts; what does not fit is more than it could ever hold.
fn saturating(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    #[cfg(feature = "redis")]
    #[test]
    fn redis_is_given_certificates_and_credentials_of_sentinels() {
        let options = RedisOptions::from(&config(
            "messaging: {backend: redis, redis_url: 'rediss-sentinel://u:p@a/main', \
             redis_tls: {ca_file: ca.pem, cert_file: cert.pem, key_file: key.pem}, \
             redis_sentinel: {username: watcher, password: seen}}",
        ));
        let file = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().display().to_string();
        assert_eq!(
            [&options.tls.ca_file, &options.tls.cert_file, &options.tls.key_file].map(file),
            ["ca.pem", "cert.pem", "key.pem"]
        );
        assert_eq!(options.sentinel_username.as_deref(), Some("watcher"));
        assert_eq!(options.sentinel_password.as_ref().unwrap().expose(), "seen");
    }

    #[test]
    fn the_outbox_keeps_as_much_as_is_configured() {
        let on = "messaging: {backend: redis, outbox: on, outbox_max_messages: 7, outbox_max_bytes: 1MB}";
        let options = BusOptions::try_from(&config(on).messaging).unwrap();
        assert_eq!(options.outbox, Some(OutboxOptions { messages_max: 7, bytes_max: 1_000_000 }));
        let default = BusOptions::try_from(&config("messaging: {outbox: on}").messaging).unwrap();
        assert_eq!(default.outbox, Some(OutboxOptions::default()));
        assert_eq!(BusOptions::try_from(&Messaging::default()).unwrap().outbox, None);
    }
}
