//! The dashboard of a bus: its address with the token in it, found as other commands find the admin API.

use std::time::Duration;

use trunkline_server::admin::OverviewJson;

use super::link::Link;
use super::place::ServerPlace;
use super::{AdminError, shown};
use crate::failure::Failure;
use crate::settings::GlobalArgs;

/// Which bus.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Which server")]
pub(crate) struct DashboardPlace {
    #[command(flatten)]
    server: ServerPlace,
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
        let server = self.server.find(global)?;
        let address = shown(&server.http);
        if server.token.is_none() {
            return Err(AdminError::NoToken { url: address }.into());
        }
        let link = Link::new(&server, limit)?;
        link.get::<OverviewJson>("/overview").await?;
        let port = server.http.port_or_known_default().unwrap_or_default();
        Ok((dashboard_url(&address, Some(&link.token())), port))
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
