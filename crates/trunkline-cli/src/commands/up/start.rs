//! From a configuration to a running bus, with the server in front of it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use trunkline::config::Loaded;
use trunkline::{Bus, ConnectError};
use trunkline_server::{AdminDefaults, AuthOptions, AuthSource, Server, ServerOptions, StartError};

use crate::failure::{Explain, Kind, chain};

/// Why the bus did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum UpError {
    #[error(transparent)]
    Server(#[from] StartError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl Explain for UpError {
    fn kind(&self) -> Kind {
        Kind::Failed
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Server(StartError::Bind { setting, .. }) => {
                let flag = if *setting == "server.http" { "--http" } else { "--listen" };
                let text = format!(
                    "another `trunkline up` may be running: stop what uses that address, or choose another with {flag} or {setting}; port 0 takes a free one"
                );
                Some(text.into())
            }
            Self::Server(error) => Some(error.hint().into()),
            Self::Connect(error) => error.hint().map(Into::into),
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

    /// As [`Running::http_addr`], with `http` or `https` before it.
    pub(crate) fn http_url(&self) -> Option<String> {
        self.server.as_ref().and_then(Server::http_url)
    }

    /// Where NATS clients connect over WebSocket.
    pub(crate) fn websocket_url(&self) -> Option<String> {
        self.server.as_ref().and_then(Server::websocket_url)
    }

    /// The token of the admin API, where it is served.
    pub(crate) fn admin_token(&self) -> Option<&str> {
        let server = self.server.as_ref()?;
        server.http_addr().map(|_| server.admin_token())
    }

    /// Reads users and permissions again and puts them in force. What is wrong with them is told, and changes nothing.
    pub(crate) async fn reload(&self) {
        let Some(server) = &self.server else {
            return tracing::info!("there is nothing to reload: clients are with the NATS servers");
        };
        // Its success is told by the server.
        if let Err(error) = server.reload_from_source().await {
            tracing::error!(error = chain(&error), "users and permissions stay as they are");
        }
    }

    /// Asks clients to go elsewhere, and waits until they have, `within` the time given at most.
    pub(crate) async fn lame_duck(&self, grace: Duration, within: Duration) {
        if let Some(server) = &self.server {
            server.lame_duck(grace, within).await;
        }
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
pub(crate) async fn start(loaded: &Loaded, source: AuthSource) -> Result<Running, UpError> {
    let config = &loaded.config;
    if !config.components.is_empty() {
        tracing::warn!("components are configured, and this build does not start them: start them yourself");
    }
    let (bus, front) = Bus::open_front(config).await?;
    let server = match front {
        Some(front) => {
            let options = ServerOptions {
                backend_status: Some(bus.backend_status()),
                telemetry: Some(bus.telemetry().clone()),
                backend: Some(bus.backend().clone()),
                admin_defaults: AdminDefaults::from(bus.options()),
                auth_source: Some(source),
                ..ServerOptions::from_config(config, front)?
            };
            Some(Server::start(options).await?)
        }
        None => {
            if AuthOptions::from(&config.server).is_required() {
                tracing::warn!(
                    "users are configured, and clients connect to the NATS servers, which have their own"
                );
            }
            None
        }
    };
    Ok(Running { bus, server })
}
