//! From a configuration to a running bus with the server in front of it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use trunkline::config::{Config, Loaded};
use trunkline::{Bus, ConnectError};
use trunkline_server::{Limits, Server, ServerOptions, StartError};

use crate::failure::Explain;

/// Subscriptions of one client where the configuration sets no limit.
const SUBSCRIPTIONS_MAX: usize = 1_000_000;

/// Why the bus did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum UpError {
    #[error(transparent)]
    Server(#[from] StartError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{setting} asks for {missing}, which this build does not have")]
    NotServed { setting: &'static str, missing: &'static str },
}

impl Explain for UpError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Server(StartError::Bind { setting, .. }) => {
                let flag = if *setting == "server.http" { "--http" } else { "--listen" };
                let text = format!(
                    "stop what uses that address, or choose another with {flag} or {setting}; port 0 takes a free one"
                );
                Some(text.into())
            }
            Self::Server(error) => Some(error.hint().into()),
            Self::Connect(error) => error.hint().map(Cow::from),
            Self::NotServed { setting, .. } => {
                Some(format!("remove {setting} from the configuration").into())
            }
        }
    }
}

/// A bus that runs, with the server in front of it.
pub(crate) struct Running {
    bus: Bus,
    server: Option<Server>,
}

impl Running {
    /// The bus, as a component in this process sees it.
    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Where NATS clients connect; with backend nats they connect to the servers themselves.
    pub(crate) fn nats_addr(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(Server::nats_addr)
    }

    /// Where health and monitoring are served.
    pub(crate) fn http_addr(&self) -> Option<SocketAddr> {
        self.server.as_ref().and_then(Server::http_addr)
    }

    /// Stops both within the time given, and returns how many connections had to be cut.
    pub(crate) async fn stop(self, within: Duration) -> usize {
        let started = tokio::time::Instant::now();
        let cut = match &self.server {
            Some(server) => server.shutdown(within).await,
            None => 0,
        };
        if let Err(error) = self.bus.drain(within.saturating_sub(started.elapsed())).await {
            tracing::warn!(%error, "the bus was stopped with work unfinished");
        }
        cut
    }
}

/// Starts what the configuration says.
///
/// # Errors
/// A backend that cannot be reached with `fallback: fail`, an address that is taken, streams that cannot be made.
pub(crate) async fn start(loaded: &Loaded) -> Result<Running, UpError> {
    let config = &loaded.config;
    refuse_what_is_not_served(config)?;
    let (bus, hub) = Bus::open(config).await?;
    let server = match hub {
        Some(hub) => {
            let mut options = ServerOptions::new(hub);
            options.listen = config.server.listen;
            options.http = config.server.http;
            options.limits = limits(config);
            options.subject_root.clone_from(&config.messaging.subject_root);
            options.backend_status = Some(bus.backend().status());
            Some(Server::start(options).await?)
        }
        None => None,
    };
    Ok(Running { bus, server })
}

/// What would make the bus less safe or less complete than the configuration says must not be passed over in silence.
fn refuse_what_is_not_served(config: &Config) -> Result<(), UpError> {
    let server = &config.server;
    let auth = &server.auth;
    let refusals = [
        (!server.users.is_empty(), "server.users", "authentication"),
        (auth.user.is_some() || auth.token.is_some(), "server.auth", "authentication"),
        (server.tls.is_on(), "server.tls", "TLS"),
        (server.websocket.listen.is_some(), "server.websocket.listen", "WebSocket"),
        (server.metrics_listen.is_some(), "server.metrics_listen", "an address of its own for metrics"),
        (!config.components.is_empty(), "components", "a supervisor"),
    ];
    match refusals.into_iter().find(|(given, ..)| *given) {
        Some((_, setting, missing)) => Err(UpError::NotServed { setting, missing }),
        None => Ok(()),
    }
}

fn limits(config: &Config) -> Limits {
    let limits = &config.server.limits;
    Limits {
        max_payload: saturating(limits.max_payload),
        max_control_line: saturating(limits.max_control_line),
        max_connections: saturating(limits.max_connections),
        max_subscriptions: limits.max_subscriptions.map_or(SUBSCRIPTIONS_MAX, saturating),
        max_pending: saturating(limits.max_pending),
        ping_interval: limits.ping_interval,
        ping_max: limits.ping_max,
        write_deadline: limits.write_deadline,
    }
}

/// A limit as this machine counts; what does not fit is more than it could ever hold.
fn saturating(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
