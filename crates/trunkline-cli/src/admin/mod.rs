//! The way of a command to the streams of a bus: over the admin API of a running `trunkline up`, over NATS, or straight
//! to Redis where the configuration says so.
//!
//! Either way the command gets a [`Bus`], so that retry, dead letters and replay are the library's own.

mod backend;
mod dashboard;
mod error;
mod events;
mod link;
mod member;
mod observe;
mod place;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use trunkline::backend::StreamError;
use trunkline::backend::nats::NatsOptions;
use trunkline::config::{Backend, Config, NatsUrl};
use trunkline::redelivery::RetryPolicy;
use trunkline::{Bus, BusOptions, Token};
use trunkline_server::admin::{ComponentsJson, ServerJson};
use url::Url;

use crate::client::{self, ClientError};
use crate::duration;
use crate::failure::Failure;
use crate::settings::{self, GlobalArgs};

use backend::AdminBackend;
pub(crate) use dashboard::{DashboardPlace, dashboard_url};
pub(crate) use error::AdminError;
use link::Link;
pub(crate) use observe::{Follower, News, ObserveArgs, Observer, Question};
use place::ServerPlace;
pub(crate) use place::{Credentials, Named};
pub(crate) use token::RuntimeFile;

/// How long a command that is done waits for its connection to close.
const CLOSING: Duration = Duration::from_secs(2);

/// Which bus, how to be let in, and how long to wait for it.
#[derive(Debug, Clone, clap::Args)]
#[command(
    next_help_heading = "Which bus",
    mut_arg("url", |url| url.help(
        "The bus by the address of its clients: a `trunkline up` of this user on this machine, or any NATS server"
    ))
)]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    server: ServerPlace,

    /// What the names of streams begin with on a NATS server [default: the configured messaging.stream_prefix, with
    /// --url atlas_bus]
    #[arg(long, value_name = "PREFIX")]
    stream_prefix: Option<String>,

    /// Longest wait for an answer
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "5s")]
    api_timeout: Duration,
}

/// A bus whose streams can be worked on.
pub(crate) struct AdminClient {
    /// What the command works with.
    pub(crate) bus: Bus,
    server: String,
}

impl AdminClient {
    /// Where it is, without credentials.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Disconnects.
    pub(crate) async fn close(self) {
        // The work is done by now: that the server has gone in the meantime makes it no failure.
        if let Err(error) = self.bus.drain(CLOSING).await {
            tracing::debug!(%error, "the connection was not closed in good order");
        }
    }
}

/// Where to go.
enum Place {
    Http(Url),
    Nats(NatsUrl),
}

impl AdminArgs {
    /// The bus that the configuration says, with this limit for each answer.
    pub(crate) fn as_configured(api_timeout: Duration) -> Self {
        Self { server: ServerPlace::default(), stream_prefix: None, api_timeout }
    }

    /// Connects to a bus with streams.
    ///
    /// # Errors
    /// No server, no token, a wrong one, or a NATS server without streams.
    pub(crate) async fn connect(&self, global: &GlobalArgs) -> Result<AdminClient, Failure> {
        let ServerPlace { http, url, .. } = &self.server;
        let configured = match (http, url) {
            (None, None) => Some(settings::load(global, [])?.config),
            _ => None,
        };
        if let Some(config) = &configured
            && config.messaging.backend == Backend::Redis
        {
            let bus = client::connect_to_redis(config.clone(), self.api_timeout, self.api_timeout).await?;
            let server = bus.status().backend.server;
            return Ok(AdminClient { bus, server });
        }
        let place = match (http, url, &configured) {
            (Some(http), ..) => Place::Http(http.clone()),
            (None, Some(url), _) => place_of(url.clone()),
            (None, None, Some(config)) if config.messaging.backend == Backend::Nats => {
                place_of(config.messaging.nats_url.clone())
            }
            (None, None, config) => Place::Http(http_of(config.as_ref())?),
        };
        match place {
            Place::Http(url) => self.over_http(url, configured.as_ref()).await,
            Place::Nats(url) => self.over_nats(&url, configured.as_ref()).await,
        }
    }

    async fn over_http(&self, url: Url, configured: Option<&Config>) -> Result<AdminClient, Failure> {
        let named = Named::new(url, &self.server.credentials, configured);
        if named.token.is_none() {
            return Err(AdminError::NoToken { url: shown(&named.http) }.into());
        }
        let link = Arc::new(Link::new(&named, self.api_timeout)?);
        let server: ServerJson = link.get("/server").await?;
        let options = options_of(&server, self.api_timeout)?;
        let backend = AdminBackend::new(link, &server);
        Ok(AdminClient { bus: Bus::with_backend(Arc::new(backend), options), server: shown(&named.http) })
    }

    async fn over_nats(&self, url: &NatsUrl, configured: Option<&Config>) -> Result<AdminClient, Failure> {
        // With the address given, the configuration that may lie here is that of another bus.
        let (mut nats, options) = match configured.map(|config| &config.messaging) {
            Some(messaging) => {
                let options = BusOptions::try_from(messaging).map_err(AdminError::from)?;
                (NatsOptions::from(messaging), options)
            }
            None => {
                let servers = url.servers().iter().map(ToString::to_string);
                (NatsOptions::new(servers), BusOptions::default())
            }
        };
        if let Some(prefix) = &self.stream_prefix {
            nats.stream_prefix.clone_from(prefix);
        }
        let options = BusOptions { observer: configured.and_then(client::observer), ..options };
        let bus = client::connect_with(nats, options, self.api_timeout, self.api_timeout).await?;
        // What this server cannot do is told before anything is done.
        if let Err(error) = bus.backend().streams() {
            return Err(AdminError::Stream(StreamError::from(error)).into());
        }
        Ok(AdminClient { bus, server: url.to_string() })
    }
}

/// What runs beside the bus of this server; `None` where no token is known, or the server knows of no components.
///
/// # Errors
/// A token that is not the server's, no answer within `limit`.
pub(crate) async fn components(
    server: &Named,
    limit: Duration,
) -> Result<Option<ComponentsJson>, AdminError> {
    if server.token.is_none() {
        return Ok(None);
    }
    let link = Link::new(server, limit)?;
    match link.get("/components").await {
        Ok(components) => Ok(Some(components)),
        // Another server, or an older one.
        Err(AdminError::NotAdmin { .. }) => Ok(None),
        Err(AdminError::Refused { .. }) if server.token_is_found => Ok(None),
        Err(error) => Err(error),
    }
}

/// A NATS address is that of a Trunkline server when one of this user says so; else it is taken as it is.
fn place_of(url: NatsUrl) -> Place {
    let of_server = |server: &trunkline::config::NatsUrl| token::find_by_nats(&server.to_string());
    match of_server(&url).and_then(|file| Url::parse(&file.http).ok()) {
        Some(http) => Place::Http(http),
        None => Place::Nats(url),
    }
}

fn http_of(config: Option<&Config>) -> Result<Url, Failure> {
    let listen: Option<SocketAddr> = config.and_then(|config| config.server.http);
    let scheme = if config.is_some_and(|config| config.server.tls.http) { "https" } else { "http" };
    let address = listen.ok_or(AdminError::NoHttp)?;
    let address = client::reachable(address).ok_or(ClientError::NoPort)?;
    Ok(Url::parse(&format!("{scheme}://{address}"))
        .map_err(|error| ClientError::Address { reason: error.to_string() })?)
}

/// An address without the slash that parsing adds.
fn shown(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// The settings of the server, so that a worker behaves as the configuration of the bus says.
fn options_of(server: &ServerJson, patience: Duration) -> Result<BusOptions, AdminError> {
    let unclear = || AdminError::NotAdmin { url: "the server".to_owned() };
    let initial_start = trunkline_server::admin::parse_start(&server.initial_start).map_err(|_| unclear())?;
    let backoff = server.backoff_ms.iter().copied().map(Duration::from_millis).collect();
    Ok(BusOptions {
        subject_root: Token::new(server.subject_root.clone()).map_err(|_| unclear())?,
        publish_timeout: patience,
        retry: RetryPolicy { max_deliver: server.max_deliver, backoff },
        ack_wait: Duration::from_millis(server.ack_wait_ms),
        initial_start,
        source: "cli".to_owned(),
        ..BusOptions::default()
    })
}
