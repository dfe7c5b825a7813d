//! Which server a command asks over HTTP, and with which token.

use trunkline::config::NatsUrl;
use url::Url;

use super::{AdminError, http_of, token, token_for};
use crate::failure::Failure;
use crate::settings::{self, GlobalArgs};

/// The options that name a server.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Which server")]
pub(crate) struct ServerPlace {
    /// Where the server answers HTTP [default: that of --url, else the configured server.http]
    #[arg(long, value_name = "URL", conflicts_with = "url")]
    http: Option<Url>,

    /// A `trunkline up` of this user on this machine, by the address of its clients
    #[arg(long, value_name = "URL", value_parser = NatsUrl::parse)]
    url: Option<NatsUrl>,

    /// Token of the admin API [default: $TRUNKLINE_ADMIN_TOKEN, else found for a `trunkline up` of this user]
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
}

/// A server that was named, of which nothing was asked yet.
pub(super) struct Named {
    pub(super) http: Url,
    pub(super) token: Option<String>,
    /// The token had to be looked for.
    pub(super) token_is_found: bool,
}

impl ServerPlace {
    /// # Errors
    /// No server is named, or none of this user has its clients at that address.
    pub(super) fn find(&self, global: &GlobalArgs) -> Result<Named, Failure> {
        let (http, configured) = match (&self.http, &self.url) {
            (Some(http), _) => (http.clone(), None),
            (None, Some(nats)) => {
                let found = token::find_by_nats(&nats.to_string());
                let http = found.and_then(|found| Url::parse(&found.http).ok());
                (http.ok_or_else(|| AdminError::NoServerThere { url: nats.to_string() })?, None)
            }
            (None, None) => {
                let config = settings::load(global, [])?.config;
                (http_of(Some(&config))?, Some(config))
            }
        };
        let (token, token_is_found) = token_for(&http, self.token.clone(), configured.as_ref());
        Ok(Named { http, token, token_is_found })
    }
}
