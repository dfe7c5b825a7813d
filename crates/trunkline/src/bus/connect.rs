//! Ways to a bus: in this process, or as a configuration says.

mod error;
mod options;
mod without_effect;

use std::sync::Arc;

use trunkline_core::{Pattern, StreamOffset, Token};

use super::{Bus, BusOptions};
use crate::backend::memory::{Hub, HubOptions, MemoryBackend};
use crate::backend::nats::{NatsBackend, NatsOptions};
#[cfg(feature = "redis")]
use crate::backend::redis::{RedisBackend, RedisOptions};
use crate::backend::{Backend, BackendKind, Capabilities, Start, StreamConfig};
use crate::config::{Config, Fallback, Messaging};
use crate::observe::{ObserveOptions, Observer};

pub use self::error::ConnectError;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loader;
    use crate::status::BackendState;

    pub(super) fn config(yaml: &str) -> Config {
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

    #[tokio::test]
    async fn configured_streams_are_there_when_connect_returns() {
        let config = config("messaging: {streams: [{name: audit, subjects: ['a.>'], max_messages: 10}]}");
        let (_bus, hub) = Bus::open(&config).await.unwrap();
        let streams = crate::backend::Streams::list(&*hub.unwrap()).await.unwrap();
        assert_eq!(streams[0].config.max_messages, Some(10));
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
}
