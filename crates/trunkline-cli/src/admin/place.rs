//! Which server a command asks over HTTP, with which token, and whose certificate it believes.

use std::path::PathBuf;

use trunkline::config::{Config, NatsUrl};
use url::Url;

use super::{AdminError, http_of, token};
use crate::failure::Failure;
use crate::settings::{self, GlobalArgs};
use crate::trust::Trust;

/// The options that name a server.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ServerPlace {
    /// Where the server answers HTTP or HTTPS [default: that of --url, else the configured server.http]
    #[arg(long, value_name = "URL", conflicts_with = "url")]
    pub(super) http: Option<Url>,

    /// A `trunkline up` of this user on this machine, by the address of its clients
    #[arg(long, value_name = "URL", value_parser = NatsUrl::parse)]
    pub(super) url: Option<NatsUrl>,

    #[command(flatten)]
    pub(super) credentials: Credentials,
}

/// What lets a command in, and tells it whom it talks to.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Credentials {
    /// Token of the admin API [default: $TRUNKLINE_ADMIN_TOKEN, else found for a `trunkline up` of this user]
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,

    /// PEM file of the authority that has signed the certificate of an https:// address, or of that certificate itself
    /// [default: those of the system, and the certificate of a `trunkline up` of this user, or of server.tls.cert_file]
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

/// A server that was named, of which nothing was asked yet.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) http: Url,
    pub(super) token: Option<String>,
    /// The token had to be looked for.
    pub(super) token_is_found: bool,
    pub(crate) trust: Trust,
}

impl Named {
    /// The server at this address, which `configured` is about, where there is a configuration.
    ///
    /// The token is the given one, else that of the environment, of a server of this user on this machine, or of the
    /// configuration. The certificate may be that of either.
    pub(crate) fn new(http: Url, given: &Credentials, configured: Option<&Config>) -> Self {
        let from_environment =
            || std::env::var("TRUNKLINE_ADMIN_TOKEN").ok().filter(|token| !token.is_empty());
        let given_token = given.token.clone().or_else(from_environment);
        let token_is_found = given_token.is_none();
        let found = token::find(&http);
        // Only for the address that the same configuration names: a token is not shown to strangers.
        let server = configured.map(|config| &config.server);
        let of_config = || Some(server?.auth.admin_token.as_ref()?.expose().to_owned());
        let own_file = found.as_ref().and_then(|found| found.certificate.clone());
        let own_file = own_file.or_else(|| server?.tls.cert_file.clone());
        let token = given_token.or_else(|| found.map(|found| found.admin_token)).or_else(of_config);
        Self { http, token, token_is_found, trust: Trust { ca_file: given.tls_ca.clone(), own_file } }
    }
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
        Ok(Named::new(http, &self.credentials, configured.as_ref()))
    }
}
