//! The dashboard of a bus: its address with the token in it, found as other commands find the admin API.

use std::time::Duration;

use trunkline::config::NatsUrl;
use trunkline_server::admin::OverviewJson;
use url::Url;

use super::link::Link;
use super::{AdminError, http_of, shown, token};
use crate::failure::Failure;
use crate::settings::{self, GlobalArgs};

/// Which bus.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Which bus")]
pub(crate) struct DashboardPlace {
    /// Where the server answers HTTP [default: that of --url, else the configured server.http]
    #[arg(long, value_name = "URL", conflicts_with = "url")]
    http: Option<Url>,

    /// The bus by the address of its clients: a `trunkline up` of this user on this machine
    #[arg(long, value_name = "URL", value_parser = NatsUrl::parse)]
    url: Option<NatsUrl>,

    /// Token of the admin API [default: $TRUNKLINE_ADMIN_TOKEN, else found for a `trunkline up` of this user]
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
}

/// The address that opens the dashboard. The token is behind the `#`, where browsers keep it to themselves.
pub(crate) fn dashboard_url(http: &str, token: Option<&str>) -> String {
    let page = format!("{}/dashboard", http.trim_end_matches('/'));
    match token {
        // What an operator has chosen may have characters that an address cannot have.
        Some(token) => {
            let encoded: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
            format!("{page}#token={}", encoded.replace('+', "%20"))
        }
        None => page,
    }
}

impl DashboardPlace {
    /// The address of the dashboard with a token that the server takes; and the HTTP port.
    ///
    /// # Errors
    /// No server, no token, or a wrong one.
    pub(crate) async fn find(&self, global: &GlobalArgs, limit: Duration) -> Result<(String, u16), Failure> {
        let configured = match (&self.http, &self.url) {
            (None, None) => Some(settings::load(global, [])?.config),
            _ => None,
        };
        let http = match (&self.http, &self.url) {
            (Some(http), _) => http.clone(),
            (None, Some(url)) => {
                let found = token::find_by_nats(&url.to_string());
                let http = found.and_then(|file| Url::parse(&file.http).ok());
                http.ok_or_else(|| AdminError::NoDashboard { url: url.to_string() })?
            }
            (None, None) => http_of(configured.as_ref())?,
        };
        let from_environment =
            || std::env::var("TRUNKLINE_ADMIN_TOKEN").ok().filter(|token| !token.is_empty());
        let given = self.token.clone().or_else(from_environment);
        let is_found = given.is_none();
        let found = || token::find(&http).map(|file| file.admin_token);
        let of_config = || {
            let token = configured.as_ref().and_then(|config| config.server.auth.admin_token.as_ref());
            token.map(|token| token.expose().to_owned())
        };
        let token = given.or_else(found).or_else(of_config);
        let token = token.ok_or_else(|| AdminError::NoToken { url: shown(&http) })?;
        // Over TLS the browser has to judge the certificate, and finds out about the token by itself.
        if http.scheme() == "http" {
            let link = Link::new(&http, token.clone(), is_found, limit)?;
            link.get::<OverviewJson>("/overview").await?;
        }
        let port = http.port_or_known_default().unwrap_or_default();
        Ok((dashboard_url(&shown(&http), Some(&token)), port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_behind_the_fragment_whatever_is_in_it() {
        let http = "http://127.0.0.1:8222";
        assert_eq!(dashboard_url(http, Some("abc-_1")), "http://127.0.0.1:8222/dashboard#token=abc-_1");
        assert_eq!(
            dashboard_url(http, Some("a b&c+#")),
            "http://127.0.0.1:8222/dashboard#token=a%20b%26c%2B%23"
        );
        assert_eq!(dashboard_url("http://h:1/", None), "http://h:1/dashboard");
    }
}
