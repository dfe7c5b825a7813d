//! The connection of a command to a running bus: which one, and what can go wrong with it.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use trunkline::backend::nats::{NatsBackend, NatsConnectError, NatsOptions};
use trunkline::backend::{PublishError, SubscribeError};
use trunkline::config::{Backend, Config, Fallback, NatsUrl};
use trunkline::observe::{ObserveOptions, Observer};
use trunkline::{Bus, BusOptions, ConnectError, RequestError, RespondError, StreamReplyError, Token};

use crate::duration;
use crate::failure::{Explain, Failure, Kind};
use crate::settings::{self, GlobalArgs};

const PERMISSIONS: &str =
    "see the permissions of this user (server.users, or those of the NATS server), or use another in --url";

/// How long a command that is done waits for the connection to close.
const CLOSING: Duration = Duration::from_secs(2);

/// Which bus, and how long to wait for it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ClientArgs {
    /// Servers to connect to, separated by commas [default: $TRUNKLINE_URL, else what the configuration says,
    /// which may be Redis, else nats://127.0.0.1:4222]
    #[arg(long, value_name = "URL", value_parser = NatsUrl::parse)]
    url: Option<NatsUrl>,

    /// Longest wait for the connection
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "3s")]
    connect_timeout: Duration,
}

/// Why a command did not reach the bus, or lost it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ClientError {
    #[error(
        "the configured server listens on any free port, so its address is not known here (server.listen)"
    )]
    NoPort,
    #[error("the address of the configured server is no URL: {reason} (server.listen)")]
    Address { reason: String },
    #[error(transparent)]
    Connect(#[from] NatsConnectError),
    #[error(transparent)]
    Bus(#[from] ConnectError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Subscribe(#[from] SubscribeError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Stream(#[from] StreamReplyError),
    #[error(transparent)]
    Respond(#[from] RespondError),
    #[error("cannot listen to signals")]
    Signals(#[source] std::io::Error),
    #[error("the connection was closed")]
    Closed,
}

impl Explain for ClientError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoPort | Self::Address { .. } | Self::Request(RequestError::ReplyStream { .. }) => {
                Kind::Usage
            }
            _ => Kind::Failed,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NoPort => {
                Some("give --url; `trunkline up --ports-file FILE` writes where it listens".into())
            }
            Self::Connect(NatsConnectError::Unreachable { .. }) => {
                Some("start a bus with `trunkline up`, or name another with --url".into())
            }
            Self::Connect(error) => Some(error.hint().into()),
            Self::Bus(error) => error.hint().map(Cow::from),
            Self::Publish(error) | Self::Request(RequestError::Publish(error)) => publish_hint(error),
            Self::Subscribe(error)
            | Self::Request(RequestError::Inbox(error))
            | Self::Respond(RespondError::Subscribe(error)) => subscribe_hint(error),
            Self::Request(RequestError::NoResponders { subject })
            | Self::Stream(StreamReplyError::NoResponders { subject }) => Some(
                format!("start who answers there, for example `trunkline reply {subject} --echo`").into(),
            ),
            Self::Request(RequestError::Timeout { .. }) | Self::Stream(StreamReplyError::Timeout { .. }) => {
                Some("give it longer with --timeout, or look at the responder's log".into())
            }
            Self::Request(RequestError::ReplyStream { .. }) => Some("add --stream".into()),
            _ => None,
        }
    }
}

fn publish_hint(error: &PublishError) -> Option<Cow<'static, str>> {
    match error {
        PublishError::TooLarge { .. } => {
            Some("raise server.limits.max_payload, or put large data elsewhere and send where it is".into())
        }
        PublishError::Denied { .. } => Some(PERMISSIONS.into()),
        PublishError::Unsupported(error) => Some(error.hint().into()),
        _ => None,
    }
}

fn subscribe_hint(error: &SubscribeError) -> Option<Cow<'static, str>> {
    match error {
        SubscribeError::Denied { .. } => Some(PERMISSIONS.into()),
        SubscribeError::Unsupported(error) => Some(error.hint().into()),
        _ => None,
    }
}

impl ClientArgs {
    /// Connects. `patience` is the longest wait for the outcome of a publish.
    ///
    /// # Errors
    /// No server that lets us in within the time given; a configuration that cannot be used.
    pub(crate) async fn connect(&self, global: &GlobalArgs, patience: Duration) -> Result<Client, Failure> {
        // With the address given, no file or variable matters, not even a broken one.
        let url = match &self.url {
            Some(url) => url.clone(),
            None => {
                let config = settings::load(global, [])?.config;
                if config.messaging.backend == Backend::Redis {
                    let bus = connect_to_redis(config, self.connect_timeout, patience).await?;
                    let server = bus.status().backend.server;
                    return Ok(Client { bus, server });
                }
                if config.messaging.backend == Backend::Nats {
                    // The configuration may say who we are, and whom to trust, beside the address.
                    let nats = NatsOptions::from(&config.messaging);
                    let options = BusOptions { observer: observer(&config), ..BusOptions::default() };
                    let bus = connect_with(nats, options, self.connect_timeout, patience).await?;
                    return Ok(Client { bus, server: config.messaging.nats_url.to_string() });
                }
                url_of(&config)?
            }
        };
        let bus = connect_to(&url, self.connect_timeout, patience).await?;
        Ok(Client { bus, server: url.to_string() })
    }
}

/// A bus over these NATS servers. `patience` is the longest wait for the outcome of a publish.
///
/// # Errors
/// No server that lets us in within the time given.
pub(crate) async fn connect_to(
    url: &NatsUrl,
    connect_timeout: Duration,
    patience: Duration,
) -> Result<Bus, ClientError> {
    let nats = NatsOptions::new(url.servers().iter().map(ToString::to_string));
    connect_with(nats, BusOptions::default(), connect_timeout, patience).await
}

/// A bus over NATS servers with these settings. `patience` is the longest wait for the outcome of a publish.
///
/// # Errors
/// No server that lets us in within the time given.
pub(crate) async fn connect_with(
    nats: NatsOptions,
    options: BusOptions,
    connect_timeout: Duration,
    patience: Duration,
) -> Result<Bus, ClientError> {
    let name = Some("trunkline".to_owned());
    let nats = NatsOptions { name, connect_timeout, publish_timeout: patience, ..nats };
    let backend = NatsBackend::connect(nats).await?;
    let observer = options.observer.clone();
    let options = BusOptions { publish_timeout: patience, ..options };
    let bus = Bus::with_backend(Arc::new(backend), options);
    if let Some(observer) = observer {
        bus.report(&observer);
    }
    Ok(bus)
}

/// What sees what a command does, where the configuration has it reported to the record of `trunkline up`.
pub(crate) fn observer(config: &Config) -> Option<Arc<Observer>> {
    let root = Token::new(config.messaging.subject_root.as_str()).ok()?;
    let wanted = ObserveOptions::from_config(config, root, Arc::default()).to_report();
    (config.observe.enabled == Some(true)).then(|| Observer::new(wanted))
}

/// The bus of a configuration with backend redis: everybody is on the same server, with no other process between them.
/// There is no fallback, because a command alone on a bus of its own would find nobody there.
///
/// # Errors
/// No server that lets us in within the time given; a stream of the configuration that cannot be made.
pub(crate) async fn connect_to_redis(
    mut config: Config,
    connect_timeout: Duration,
    patience: Duration,
) -> Result<Bus, ClientError> {
    config.messaging.fallback = Some(Fallback::Fail);
    config.messaging.connect_timeout = connect_timeout;
    config.messaging.publish_timeout = patience;
    Ok(Bus::connect(config).await?)
}

/// Where clients of the configured bus connect: to the NATS servers themselves, or to the embedded server.
///
/// # Errors
/// A server that binds any free port can only be found by its ports file.
pub(crate) fn url_of(config: &Config) -> Result<NatsUrl, ClientError> {
    if config.messaging.backend == Backend::Nats {
        return Ok(config.messaging.nats_url.clone());
    }
    let address = reachable(config.server.listen).ok_or(ClientError::NoPort)?;
    NatsUrl::parse(&format!("nats://{address}")).map_err(|reason| ClientError::Address { reason })
}

/// The address under which this machine reaches what listens there; `None` for a port that is chosen when it starts.
pub(crate) fn reachable(listen: SocketAddr) -> Option<SocketAddr> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    (listen.port() != 0).then(|| SocketAddr::new(ip, listen.port()))
}

/// A connection to the bus.
pub(crate) struct Client {
    /// What the command works with.
    pub(crate) bus: Bus,
    server: String,
}

impl Client {
    /// Where it is, without credentials.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Disconnects. What has to be received must have been flushed before.
    pub(crate) async fn close(self) {
        // The work is done by now: that the server has gone in the meantime makes it no failure.
        if let Err(error) = self.bus.drain(CLOSING).await {
            tracing::debug!(%error, "the connection was not closed in good order");
        }
    }
}

#[cfg(test)]
mod tests {
    use trunkline::config::Loader;

    use super::*;

    fn config(variables: &[(&str, &str)]) -> Config {
        Loader::new().env(variables.iter().copied()).working_dir("/nonexistent").load().unwrap().config
    }

    #[test]
    fn clients_go_where_the_configuration_says() {
        for (variables, url) in [
            (&[][..], "nats://127.0.0.1:4222"),
            (&[("TRUNKLINE_SERVER_LISTEN", "0.0.0.0:4555")], "nats://127.0.0.1:4555"),
            (&[("TRUNKLINE_SERVER_LISTEN", "[::]:4555")], "nats://[::1]:4555"),
            (&[("TRUNKLINE_URL", "nats://a:1,nats://b:2")], "nats://a:1,nats://b:2"),
            (&[("TRUNKLINE_URL", "redis://r:6379")], "nats://127.0.0.1:4222"),
        ] {
            assert_eq!(url_of(&config(variables)).unwrap().to_string(), url, "{variables:?}");
        }
    }

    #[test]
    fn a_port_that_is_chosen_later_is_not_guessed() {
        let error = url_of(&config(&[("TRUNKLINE_SERVER_LISTEN", "127.0.0.1:0")])).unwrap_err();
        assert!(matches!(error, ClientError::NoPort));
        assert!(error.hint().is_some_and(|hint| hint.contains("--url")));
    }
}
