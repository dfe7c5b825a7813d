//! Ways to a bus: in this process, or as a configuration says.

use std::sync::Arc;

use trunkline_core::redelivery::RetryPolicy;
use trunkline_core::{OffsetError, Pattern, StreamOffset, SubjectError, Token};

use super::outbox::OutboxOptions;
use super::{Bus, BusOptions};
use crate::backend::memory::{Hub, HubOptions, MemoryBackend};
use crate::backend::nats::{NatsAuth, NatsBackend, NatsConnectError, NatsOptions};
#[cfg(feature = "redis")]
use crate::backend::redis::{RedisBackend, RedisConnectError, RedisOptions};
use crate::backend::{Backend, BackendKind, Capabilities, Start, StreamConfig, StreamError, Unsupported};
use crate::config::{self, Config, Fallback, InitialStreamId, Messaging, RedisTopology};
use crate::memory::MemoryBudget;
use crate::observe::{ObserveOptions, Observer};
use crate::topics::Topics;

/// Why a bus could not be had as configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// NATS cannot be reached or used, and `messaging.fallback` is `fail`.
    #[error("backend nats cannot be used (messaging.fallback is fail)")]
    Nats(#[source] NatsConnectError),
    /// Redis cannot be reached or used, and `messaging.fallback` is `fail`.
    #[cfg(feature = "redis")]
    #[error("backend redis cannot be used (messaging.fallback is fail)")]
    Redis(#[source] RedisConnectError),
    /// This build has no such backend, and `messaging.fallback` is `fail`.
    #[error("backend {backend} is not in this build (messaging.fallback is fail)")]
    NotInBuild {
        /// The backend that was asked for.
        backend: BackendKind,
    },
    /// A stream of `messaging.streams` cannot be made.
    #[error("a configured stream cannot be made (messaging.streams)")]
    Stream(#[source] StreamError),
    /// Streams are configured, and the backend has none.
    #[error("streams are configured (messaging.streams)")]
    NoStreams(#[source] Unsupported),
    /// The saved offset is one of another backend.
    #[error("offset {offset} is not one of backend {backend} (messaging.initial_stream_id)")]
    ForeignStart {
        /// The backend.
        backend: BackendKind,
        /// The offset.
        offset: StreamOffset,
    },
    /// `messaging.subject_root` is no token, or too long.
    #[error("the root of the subjects cannot be used (messaging.subject_root)")]
    Root(#[source] SubjectError),
    /// `messaging.initial_stream_id` is no offset.
    #[error("the start of new readers is no offset (messaging.initial_stream_id)")]
    InitialStart(#[source] OffsetError),
}

impl ConnectError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Nats(error) => error.is_retryable(),
            #[cfg(feature = "redis")]
            Self::Redis(error) => error.is_retryable(),
            Self::Stream(error) => error.is_retryable(),
            _ => false,
        }
    }

    /// What the operator can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Nats(error) => Some(error.hint()),
            #[cfg(feature = "redis")]
            Self::Redis(error) => Some(error.hint()),
            Self::NotInBuild { .. } => {
                Some("set messaging.backend to in_memory or nats, or messaging.fallback to in_memory")
            }
            Self::NoStreams(error) => Some(error.hint()),
            Self::ForeignStart { .. } => Some(
                "redis writes offsets as MS-SEQ, the others as N; use $ or 0-0 after a change of backend",
            ),
            _ => None,
        }
    }
}

/// What an embedded server is put in front of.
#[derive(Clone)]
pub enum Front {
    /// The hub of this process: its sessions are on the very router that components of the process use.
    Hub(Arc<Hub>),
    /// A backend outside of this process: what clients publish goes there, and what they get comes only from there.
    Bridge(Arc<dyn Backend>),
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hub(hub) => f.debug_tuple("Hub").field(hub).finish(),
            Self::Bridge(backend) => f.debug_tuple("Bridge").field(&backend.capabilities().kind).finish(),
        }
    }
}

/// Room beside `server.limits.max_payload` for the headers that a bridge puts on messages of its clients.
#[cfg(feature = "redis")]
const OWN_HEADER_BYTES: usize = 1024;

impl Bus {
    /// A bus within this process, with default settings and a hub of its own. Nothing outlives it.
    pub fn in_memory() -> Self {
        let options = BusOptions::default();
        let hub = Arc::new(Hub::new(HubOptions::default()));
        reserve_dead_letters(&hub, &options.subject_root);
        Self::on_hub(&hub, options)
    }

    /// A bus within this process on a hub that others are on too, such as the embedded server.
    ///
    /// # Panics
    /// As [`Bus::with_backend`].
    pub fn on_hub(hub: &Arc<Hub>, options: BusOptions) -> Self {
        Self::with_backend(Arc::new(MemoryBackend::connect_to(hub)), options)
    }

    /// A bus as the configuration says, with its streams made.
    ///
    /// With `backend: in_memory` it is a hub of its own. A backend that cannot be reached within
    /// `messaging.connect_timeout` is an error or, with `messaging.fallback: in_memory`, a hub of its own whose status
    /// is degraded; that is logged as a warning.
    ///
    /// # Errors
    /// See [`ConnectError`].
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use trunkline::{Bus, config::Config};
    /// let bus = Bus::connect(Config::default()).await?;
    /// assert!(bus.status().backend.state.is_ready());
    /// # Ok(()) }
    /// ```
    pub async fn connect(config: Config) -> Result<Self, ConnectError> {
        Ok(Self::open(&config).await?.0)
    }

    /// As [`Bus::connect`], for a process that puts an embedded server in front of the bus, and what that is. With
    /// `backend: nats` there is nothing to serve: clients go to the NATS servers themselves.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open_front(config: &Config) -> Result<(Self, Option<Front>), ConnectError> {
        let (bus, hub) = Self::open_as(config, true).await?;
        let front = match (hub, bus.backend().capabilities().kind) {
            (Some(hub), _) => Some(Front::Hub(hub)),
            (None, BackendKind::Redis) => Some(Front::Bridge(bus.backend().clone())),
            (None, _) => None,
        };
        Ok((bus, front))
    }

    /// As [`Bus::connect`], and the hub when the bus is in this process.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open(config: &Config) -> Result<(Self, Option<Arc<Hub>>), ConnectError> {
        Self::open_as(config, false).await
    }

    async fn open_as(config: &Config, front: bool) -> Result<(Self, Option<Arc<Hub>>), ConnectError> {
        let messaging = &config.messaging;
        for (key, reason) in config.without_effect() {
            tracing::warn!(key, reason, "this setting has no effect");
        }
        let mut options = BusOptions::try_from(messaging)?;
        let root = options.subject_root.clone();
        let is_observed = config.observe.enabled.unwrap_or(front);
        let hub = || {
            let hub = Arc::new(Hub::new(HubOptions::from(config)));
            reserve_dead_letters(&hub, &root);
            // Where there is no server in front of it nobody could look at what was recorded.
            if is_observed && front {
                let wanted = ObserveOptions::from_config(config, root.clone(), hub.memory().clone());
                hub.observe(&Observer::new(wanted));
            }
            hub
        };
        let (backend, hub): (Arc<dyn Backend>, _) = match messaging.backend {
            BackendKind::InMemory => {
                let hub = hub();
                (Arc::new(MemoryBackend::connect_to(&hub)), Some(hub))
            }
            #[cfg(feature = "redis")]
            BackendKind::Redis => {
                let mut wanted = RedisOptions::from(config);
                if front {
                    // What clients may send is the server's to check.
                    wanted.max_payload = wanted.max_payload.saturating_add(OWN_HEADER_BYTES);
                }
                match RedisBackend::connect(wanted).await {
                    Ok(backend) => (Arc::new(backend), None),
                    Err(error) => {
                        let hub = hub();
                        (Arc::new(fall_back(messaging, &hub, ConnectError::Redis(error))?), Some(hub))
                    }
                }
            }
            #[cfg(not(feature = "redis"))]
            BackendKind::Redis => {
                let hub = hub();
                let error = ConnectError::NotInBuild { backend: BackendKind::Redis };
                (Arc::new(fall_back(messaging, &hub, error)?), Some(hub))
            }
            BackendKind::Nats => match NatsBackend::connect(NatsOptions::from(config)).await {
                Ok(backend) => (Arc::new(backend), None),
                Err(error) => {
                    let hub = hub();
                    (Arc::new(fall_back(messaging, &hub, ConnectError::Nats(error))?), Some(hub))
                }
            },
        };
        let capabilities = backend.capabilities();
        if capabilities.kind == BackendKind::InMemory {
            // Also on the fallback: there is no server that could be away.
            options.outbox = None;
        }
        options.initial_start = start_on(capabilities, messaging.backend, options.initial_start)?;
        ensure_streams(&*backend, messaging).await?;
        options.observer = match &hub {
            Some(hub) => hub.observer().cloned(),
            None => is_observed.then(|| {
                let memory = backend.memory().unwrap_or_default();
                let wanted = ObserveOptions::from_config(config, root.clone(), memory);
                Observer::new(if front { wanted } else { wanted.to_report() })
            }),
        };
        let reported = options.observer.clone().filter(|_| !front && hub.is_none());
        let bus = Self::with_backend(backend, options);
        if let Some(observer) = reported {
            bus.report(&observer);
        }
        Ok((bus, hub))
    }
}

impl Config {
    /// What is set and changes nothing with this backend, so that nobody relies on it: the keys, and why. [`Bus::connect`]
    /// logs it.
    pub fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        let default = Config::default();
        let (messaging, backend) = (&self.messaging, self.messaging.backend);
        let copies = messaging.streams.iter().any(|stream| stream.replicas > 1);
        let all = [
            (
                messaging.outbox && backend == BackendKind::InMemory,
                "messaging.outbox",
                "in this process there is no server that could be away",
            ),
            (
                messaging.stream_prefix != default.messaging.stream_prefix
                    && backend == BackendKind::InMemory,
                "messaging.stream_prefix",
                "only the names of Redis keys and of JetStream streams have it",
            ),
            (
                messaging.redis_tls != default.messaging.redis_tls && !messaging.redis_url.tls,
                "messaging.redis_tls",
                "messaging.redis_url asks for no TLS: rediss:// does",
            ),
            (
                messaging.redis_sentinel != default.messaging.redis_sentinel
                    && !matches!(messaging.redis_url.topology, RedisTopology::Sentinel { .. }),
                "messaging.redis_sentinel",
                "messaging.redis_url names no sentinels: redis-sentinel:// does",
            ),
            (
                messaging.nats_auth != default.messaging.nats_auth && messaging.nats_url.has_credentials(),
                "messaging.nats_auth",
                "messaging.nats_url has credentials, which go first",
            ),
            (
                copies && backend != BackendKind::Nats,
                "messaging.streams[].replicas",
                "only JetStream keeps copies",
            ),
        ];
        all.into_iter().filter(|(set, ..)| *set).map(|(_, key, reason)| (key, reason)).collect()
    }
}

/// Where new readers start on the backend in use. An offset of another backend is refused and never turned into another
/// start; the fallback begins empty, so that the offset of the backend that was asked for stands before everything there.
fn start_on(backend: Capabilities, wanted: BackendKind, start: Start) -> Result<Start, ConnectError> {
    match start {
        Start::After(offset)
            if matches!(offset, StreamOffset::Entry(..)) != (wanted == BackendKind::Redis) =>
        {
            Err(ConnectError::ForeignStart { backend: wanted, offset })
        }
        Start::After(_) if backend.kind != wanted => Ok(Start::Beginning),
        start => {
            if start != Start::New && !backend.streams {
                tracing::warn!(
                    key = "messaging.initial_stream_id",
                    "this setting has no effect: the backend stores nothing that a reader could start in"
                );
            }
            Ok(start)
        }
    }
}

fn reserve_dead_letters(hub: &Hub, root: &Token) {
    hub.reserve(&Pattern::new(format!("{root}.dead.>")).expect("a token and literals"));
}

/// The backend in memory in the place of the one that was asked for, or `error` where that is not allowed.
fn fall_back(
    messaging: &Messaging,
    hub: &Arc<Hub>,
    error: ConnectError,
) -> Result<MemoryBackend, ConnectError> {
    if messaging.fallback() == Fallback::Fail {
        return Err(error);
    }
    let wanted = messaging.backend;
    let reason = match &error {
        ConnectError::Nats(cause) => cause.to_string(),
        #[cfg(feature = "redis")]
        ConnectError::Redis(cause) => cause.to_string(),
        _ => format!("backend {wanted} is not in this build"),
    };
    tracing::warn!(
        backend = %wanted,
        %reason,
        "RUNNING ON THE FALLBACK: messages, streams and consumers are kept in the memory of this process; they are lost \
         when it ends, and nobody else on the configured backend sees them. Set messaging.fallback to fail to refuse this"
    );
    Ok(MemoryBackend::degraded(hub, format!("running on the fallback in_memory: {reason}")))
}

async fn ensure_streams(backend: &dyn Backend, messaging: &Messaging) -> Result<(), ConnectError> {
    if messaging.streams.is_empty() {
        return Ok(());
    }
    let streams = backend.streams().map_err(ConnectError::NoStreams)?;
    for stream in &messaging.streams {
        let config = StreamConfig {
            max_age: stream.max_age,
            max_messages: stream.max_messages,
            max_bytes: stream.max_bytes,
            // At most 5 (`messaging.streams[].replicas`).
            replicas: u8::try_from(stream.replicas).unwrap_or(u8::MAX),
            ..StreamConfig::new(stream.name.clone(), stream.subjects.clone())
        };
        streams.ensure(config).await.map_err(ConnectError::Stream)?;
    }
    Ok(())
}

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
    use super::*;
    use crate::config::Loader;
    use crate::status::BackendState;

    fn config(yaml: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, yaml).unwrap();
        Loader::new().file(&file).load().unwrap().config
    }

    #[tokio::test]
    async fn an_unreachable_backend_falls_back_only_where_that_is_allowed() {
        let unreachable = "messaging: {backend: nats, nats_url: 'nats://127.0.0.1:1', connect_timeout: 200ms";
        let bus = Bus::connect(config(&format!("{unreachable}, fallback: in_memory}}"))).await.unwrap();
        let status = bus.status().backend;
        assert!(matches!(status.state, BackendState::Degraded { .. }), "{status:?}");
        assert_eq!(status.backend, BackendKind::InMemory);
        let error = Bus::connect(config(&format!("{unreachable}}}"))).await.unwrap_err();
        assert!(matches!(error, ConnectError::Nats(_)) && error.is_retryable(), "{error:?}");
    }

    #[cfg(not(feature = "redis"))]
    #[tokio::test]
    async fn redis_falls_back_because_it_is_not_in_this_build() {
        let bus = Bus::connect(config("messaging: {backend: redis}")).await.unwrap();
        let status = bus.status().backend;
        assert!(
            status.state.reason().is_some_and(|reason| reason.contains("not in this build")),
            "{status:?}"
        );
        let error = Bus::connect(config("messaging: {backend: redis, fallback: fail}")).await.unwrap_err();
        assert!(matches!(error, ConnectError::NotInBuild { backend: BackendKind::Redis }), "{error:?}");
    }

    // What a build without the backend decides, in every build: the test above runs only in one without it.
    #[test]
    fn a_backend_that_is_not_in_the_build_falls_back_unless_that_is_forbidden() {
        let hub = Arc::new(Hub::new(HubOptions::default()));
        let error = || ConnectError::NotInBuild { backend: BackendKind::Redis };
        let backend = fall_back(&config("messaging: {backend: redis}").messaging, &hub, error()).unwrap();
        let state = backend.status().borrow().state.clone();
        assert!(
            state.reason().is_some_and(|reason| reason.contains("redis is not in this build")),
            "{state:?}"
        );
        let forbidden = config("messaging: {backend: redis, fallback: fail}").messaging;
        let error = fall_back(&forbidden, &hub, error()).unwrap_err();
        assert!(matches!(error, ConnectError::NotInBuild { .. }) && error.hint().is_some(), "{error:?}");
    }

    #[cfg(feature = "redis")]
    #[tokio::test]
    async fn redis_that_cannot_be_had_falls_back_unless_that_is_forbidden() {
        for (url, retryable) in [
            ("redis://127.0.0.1:1", true),
            ("redis-sentinel://127.0.0.1:1/main", true),
            ("redis-cluster://127.0.0.1:1", true),
        ] {
            let redis = format!("messaging: {{backend: redis, redis_url: '{url}', connect_timeout: 200ms");
            let bus = Bus::connect(config(&format!("{redis}}}"))).await.unwrap();
            let status = bus.status().backend;
            assert!(matches!(status.state, BackendState::Degraded { .. }), "{url}: {status:?}");
            assert_eq!(status.backend, BackendKind::InMemory);
            let error = Bus::connect(config(&format!("{redis}, fallback: fail}}"))).await.unwrap_err();
            assert!(matches!(error, ConnectError::Redis(_)), "{url}: {error:?}");
            assert_eq!(error.is_retryable(), retryable, "{url}: {error:?}");
            assert!(error.hint().is_some());
        }
    }

    #[cfg(feature = "redis")]
    #[tokio::test]
    async fn redis_keeps_what_the_configuration_says_under_its_prefix() {
        let server = trunkline_testkit::RedisServer::start();
        let written = config(&format!(
            "messaging: {{backend: redis, redis_url: '{}', stream_prefix: other, fallback: fail, \
             streams: [{{name: audit, subjects: ['nachos.audit.>'], max_messages: 10}}]}}",
            server.url()
        ));
        let (bus, hub) = Bus::open(&written).await.unwrap();
        assert!(hub.is_none() && bus.status().backend.state.is_ready(), "{:?}", bus.status());
        // Another process under another prefix sees nothing of it.
        let mut elsewhere = written;
        elsewhere.messaging.stream_prefix = "elsewhere".to_owned();
        elsewhere.messaging.streams.clear();
        let backend = RedisBackend::connect(RedisOptions::from(&elsewhere)).await.unwrap();
        assert!(backend.streams().unwrap().list().await.unwrap().is_empty());
        elsewhere.messaging.stream_prefix = "other".to_owned();
        let backend = RedisBackend::connect(RedisOptions::from(&elsewhere)).await.unwrap();
        let streams = backend.streams().unwrap().list().await.unwrap();
        assert_eq!(streams[0].config.max_messages, Some(10));
    }

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

    #[tokio::test]
    async fn configured_streams_are_there_when_connect_returns() {
        let config = config("messaging: {streams: [{name: audit, subjects: ['a.>'], max_messages: 10}]}");
        let (_bus, hub) = Bus::open(&config).await.unwrap();
        let streams = crate::backend::Streams::list(&*hub.unwrap()).await.unwrap();
        assert_eq!(streams[0].config.max_messages, Some(10));
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

    #[tokio::test]
    async fn what_would_be_promised_and_not_kept_is_refused() {
        let error =
            Bus::connect(config("messaging: {initial_stream_id: 1692632086370-0}")).await.unwrap_err();
        let offset = StreamOffset::Entry(1_692_632_086_370, 0);
        assert!(
            matches!(error, ConnectError::ForeignStart { backend: BackendKind::InMemory, offset: o } if o == offset),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_saved_offset_stands_before_everything_on_the_fallback() {
        let redis = "messaging: {backend: redis, initial_stream_id: 1692632086370-0}";
        let bus = Bus::connect(config(redis)).await.unwrap();
        assert_eq!(bus.options().initial_start, Start::Beginning);
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let named =
            |yaml: &str| config(yaml).without_effect().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert!(named("messaging: {backend: nats}").is_empty());
        assert!(
            named("messaging: {backend: redis, stream_prefix: mine}").is_empty(),
            "the fallback is loud by itself"
        );
        let files = "redis_tls: {ca_file: ca.pem}, redis_sentinel: {password: pw}";
        assert_eq!(
            named(&format!("messaging: {{backend: redis, {files}}}")),
            ["messaging.redis_tls", "messaging.redis_sentinel"]
        );
        let url = "redis_url: 'rediss-sentinel://a/main'";
        assert!(named(&format!("messaging: {{backend: redis, {url}, {files}}}")).is_empty());
        let both = "nats_auth: {token: t}, nats_url: 'nats://u:p@h'";
        assert_eq!(named(&format!("messaging: {{backend: nats, {both}}}")), ["messaging.nats_auth"]);
        let streams = "streams: [{name: a, subjects: [a], replicas: 3}]";
        assert_eq!(
            named(&format!(
                "{{messaging: {{outbox: on, stream_prefix: mine, {streams}}}, runtime: {{resources: {{memory: 1GB}}}}}}"
            )),
            ["messaging.outbox", "messaging.stream_prefix", "messaging.streams[].replicas"]
        );
    }
}
