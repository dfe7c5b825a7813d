//! From a configuration to a running bus, with the server in front of it.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trunkline::backend::memory::Hub;
use trunkline::config::{Loaded, Origin};
use trunkline::{Bus, ConnectError, Front};
use trunkline_server::admin::ComponentsJson;
use trunkline_server::{
    AdminDefaults, AuthOptions, AuthSource, BesideOptions, BesideServer, Server, ServerOptions, StartError,
};

use crate::failure::{Explain, Kind, chain};
use crate::supervisor::{Access, MadeUsers, PasswordError, Place};

/// Why the bus did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum UpError {
    #[error(transparent)]
    Server(#[from] StartError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Passwords(#[from] PasswordError),
}

impl Explain for UpError {
    fn kind(&self) -> Kind {
        Kind::Failed
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Server(StartError::Bind { setting, source, .. }) => Some(bind_hint(setting, source).into()),
            Self::Server(error) => Some(error.hint().into()),
            Self::Connect(error) => error.hint().map(Into::into),
            Self::Passwords(_) => None,
        }
    }
}

/// What to do about an address that cannot be listened on.
fn bind_hint(setting: &str, source: &io::Error) -> String {
    let setting = match setting {
        "server.listen" => "--listen or server.listen".to_owned(),
        "server.http" => "--http or server.http".to_owned(),
        // The others have no flag.
        setting => setting.to_owned(),
    };
    match source.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 take a privilege: choose a higher one with {setting}, or give the program the capability CAP_NET_BIND_SERVICE"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("no network interface of this machine has that address: choose another with {setting}")
        }
        _ => format!(
            "another `trunkline up` may be running: stop what uses that address, or choose another with {setting}; port 0 takes a free one"
        ),
    }
}

/// A bus that runs, with the server in front of it.
pub(crate) struct Running {
    bus: Bus,
    server: Option<Server>,
    /// Where there is no server, and components are to be asked about.
    beside: Option<BesideServer>,
    hub: Option<Arc<Hub>>,
    access: Access,
}

impl Running {
    /// How components reach the bus.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// The hub of this process, where the messages are in it.
    pub(crate) fn hub(&self) -> Option<&Arc<Hub>> {
        self.hub.as_ref()
    }

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
        let beside = self.beside.as_ref().and_then(BesideServer::http_addr);
        self.server.as_ref().and_then(Server::http_addr).or(beside)
    }

    /// As [`Running::http_addr`], with `http` or `https` before it.
    pub(crate) fn http_url(&self) -> Option<String> {
        let beside = self.beside.as_ref().and_then(BesideServer::http_url);
        self.server.as_ref().and_then(Server::http_url).or(beside)
    }

    /// Where probes and metrics are served apart.
    pub(crate) fn metrics_url(&self) -> Option<String> {
        let beside = self.beside.as_ref().and_then(BesideServer::metrics_url);
        self.server.as_ref().and_then(Server::metrics_url).or(beside)
    }

    /// Where NATS clients connect over WebSocket.
    pub(crate) fn websocket_url(&self) -> Option<String> {
        self.server.as_ref().and_then(Server::websocket_url)
    }

    /// The token of the admin API, where it is served.
    pub(crate) fn admin_token(&self) -> Option<&str> {
        if let Some(beside) = &self.beside {
            return beside.http_addr().map(|_| beside.admin_token());
        }
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
        if let Some(beside) = &self.beside {
            beside.shutdown(within.saturating_sub(started.elapsed())).await;
        }
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
pub(crate) async fn start(
    loaded: &Loaded,
    source: AuthSource,
    components: watch::Receiver<ComponentsJson>,
) -> Result<Running, UpError> {
    let config = &loaded.config;
    let (bus, front) = Bus::open_front(config).await?;
    crate::traces::show(bus.telemetry());
    let hub = match &front {
        Some(Front::Hub(hub)) => Some(hub.clone()),
        _ => None,
    };
    let Some(front) = front else {
        if AuthOptions::from(&config.server).is_required() {
            tracing::warn!(
                "users are configured, and clients connect to the NATS servers, which have their own"
            );
        }
        let access = Access::new(config, Place::Nats, MadeUsers::default());
        let beside = start_beside(loaded, &bus, components).await?;
        return Ok(Running { bus, server: None, beside, hub, access });
    };
    let users = MadeUsers::make(config)?;
    let mut options = ServerOptions {
        backend_status: Some(bus.backend_status()),
        telemetry: Some(bus.telemetry().clone()),
        bus: Some(bus.clone()),
        backend: Some(bus.backend().clone()),
        admin_defaults: AdminDefaults::from(bus.options()),
        auth_source: Some(users.clone().beside(source)),
        components: Some(components),
        observer: bus.options().observer.clone(),
        threads: tokio::runtime::Handle::current().metrics().num_workers(),
        ..ServerOptions::from_config(config, front)?
    };
    users.join(&mut options.auth);
    let server = Server::start(options).await?;
    let tls = config.server.tls.is_on() && !config.server.tls.allow_non_tls;
    let access = Access::new(config, Place::Embedded { address: server.nats_addr(), tls }, users);
    Ok(Running { bus, server: Some(server), beside: None, hub, access })
}

/// HTTP beside the NATS servers: for components, conversations, and the dashboard.
async fn start_beside(
    loaded: &Loaded,
    bus: &Bus,
    components: watch::Receiver<ComponentsJson>,
) -> Result<Option<BesideServer>, StartError> {
    let (config, observer) = (&loaded.config, bus.options().observer.clone());
    // Several buses of one machine may be with NATS servers, and each of them works without a page about it.
    let may_do_without = config.components.is_empty()
        && config.server.metrics_listen.is_none()
        && loaded.origin("server.http") == Origin::Default;
    let options = BesideOptions { config, bus, components, observer };
    match BesideServer::start(options).await {
        Err(error @ StartError::Bind { .. }) if may_do_without => {
            tracing::warn!(
                error = chain(&error),
                "there is no dashboard, and conversations are not served (server.http)"
            );
            Ok(None)
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_depends_on_why_an_address_cannot_be_listened_on() {
        for (kind, expected) in [
            (io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            (io::ErrorKind::AddrNotAvailable, "no network interface"),
            (io::ErrorKind::AddrInUse, "another `trunkline up` may be running"),
        ] {
            let address = "127.0.0.1:80".parse().unwrap();
            let error = StartError::Bind { address, setting: "server.http", source: kind.into() };
            let hint = UpError::from(error).hint().unwrap_or_default().into_owned();
            assert!(hint.contains(expected) && hint.contains("--http or server.http"), "{hint}");
        }
        let address = "127.0.0.1:80".parse().unwrap();
        let source = io::ErrorKind::AddrInUse.into();
        let error = StartError::Bind { address, setting: "server.websocket.listen", source };
        let hint = UpError::from(error).hint().unwrap_or_default().into_owned();
        assert!(hint.contains("with server.websocket.listen") && !hint.contains("--listen"), "{hint}");
    }
}
