//! The listener for WebSocket clients: where it is, and which web pages may use it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use trunkline::config::WebSocket as Config;
use tungstenite::http::{HeaderMap, Uri, header};

use crate::tls::TlsOptions;

/// What clients gather in one frame beside two of the largest messages: the client of browsers sends at once what it has
/// when the second comes.
const FRAME_SLACK_BYTES: usize = 1 << 20;

/// A listener for NATS clients over WebSocket, browsers above all. Section `server.websocket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSocketOptions {
    /// Where it listens; port 0 is any free one. Key `server.websocket.listen`.
    pub listen: SocketAddr,
    /// Whether it is without TLS even where there is TLS for other clients: behind a proxy that does TLS itself. Default no,
    /// key `server.websocket.no_tls`.
    pub no_tls: bool,
    /// Certificates of its own; `None` are those of [`ServerOptions::tls`](crate::ServerOptions::tls). Without `no_tls`.
    pub tls: Option<TlsOptions>,
    /// Whether pages of the host that the client connects to may connect. Default yes, key `server.websocket.same_origin`.
    pub same_origin: bool,
    /// Origins of other pages that may connect, such as `https://chat.example.org`; `*` are all. Default none, key
    /// `server.websocket.allowed_origins`.
    pub allowed_origins: Vec<String>,
    /// Whether a page has to be both of the same origin and among those that are allowed, where both are asked for: the rule
    /// of nats-server. Default no.
    pub both_origins: bool,
    /// Longest time until a client has asked for a WebSocket. Default 2 s, key `server.websocket.handshake_timeout`.
    pub handshake_timeout: Duration,
}

impl WebSocketOptions {
    /// Defaults, at `listen`.
    pub fn at(listen: SocketAddr) -> Self {
        Self {
            listen,
            no_tls: false,
            tls: None,
            same_origin: true,
            allowed_origins: Vec::new(),
            both_origins: false,
            handshake_timeout: Duration::from_secs(2),
        }
    }

    /// What the configuration says; `None` where it says nothing of an address.
    pub(crate) fn from_config(config: &Config) -> Option<Self> {
        let listen = config.listen?;
        Some(Self {
            listen,
            no_tls: config.no_tls,
            tls: None,
            same_origin: config.same_origin,
            allowed_origins: config.allowed_origins.clone(),
            both_origins: false,
            handshake_timeout: config.handshake_timeout,
        })
    }
}

/// An origin that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin:?} is no origin (server.websocket.allowed_origins)")]
pub struct OriginError {
    /// What was given.
    pub origin: String,
}

/// Which pages may connect.
#[derive(Debug)]
pub(crate) struct Origins {
    same: bool,
    any: bool,
    /// Both have to hold.
    both: bool,
    allowed: Vec<Origin>,
}

/// Scheme, host in small letters, port.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        // Browsers send nothing behind the port.
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return None;
        }
        Self::at(secure, uri.host()?, uri.port_u16())
    }

    fn at(secure: bool, host: &str, port: Option<u16>) -> Option<Self> {
        let port = port.unwrap_or(if secure { 443 } else { 80 });
        (!host.is_empty()).then(|| Self { secure, host: host.to_ascii_lowercase(), port })
    }
}

impl Origins {
    pub(crate) fn new(options: &WebSocketOptions) -> Result<Self, OriginError> {
        let named = options.allowed_origins.iter().filter(|origin| *origin != "*");
        let allowed = named
            .map(|origin| Origin::parse(origin).ok_or_else(|| OriginError { origin: origin.clone() }))
            .collect::<Result<Vec<_>, _>>()?;
        let any = options.allowed_origins.iter().any(|origin| origin == "*");
        let both = options.both_origins && options.same_origin && !options.allowed_origins.is_empty();
        Ok(Self { same: options.same_origin, any, both, allowed })
    }
}

/// The listener as it is.
#[derive(Debug)]
pub(crate) struct WebListener {
    pub(crate) options: WebSocketOptions,
    pub(crate) address: SocketAddr,
    pub(crate) origins: Arc<Origins>,
    /// It speaks TLS.
    pub(crate) secure: bool,
}

/// What one client's request for a WebSocket is held to.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    pub(crate) origins: Arc<Origins>,
    /// It comes over TLS.
    pub(crate) secure: bool,
    /// Most bytes of a message of WebSocket.
    pub(crate) message_bytes_max: usize,
}

/// Why a request for a WebSocket is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("pages of this origin may not connect (server.websocket.allowed_origins)")]
pub(crate) struct Refused;

impl Gate {
    pub(crate) fn new(origins: Arc<Origins>, secure: bool, max_payload: usize) -> Self {
        Self {
            origins,
            secure,
            message_bytes_max: max_payload.saturating_mul(2).saturating_add(FRAME_SLACK_BYTES),
        }
    }

    /// Whether the page that a request comes from may connect. What is no browser gives no origin, and no browser lets a
    /// page leave it out.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else { return Ok(()) };
        let is_any = self.origins.any;
        if is_any && !self.origins.both {
            return Ok(());
        }
        let origin = origin.to_str().ok().filter(|_| origins.next().is_none());
        let origin = origin.and_then(Origin::parse).ok_or(Refused)?;
        let is_same = || {
            let host: Uri = headers.get(header::HOST)?.to_str().ok()?.parse().ok()?;
            // By TLS a page has proved that the name is the server's. Without, a page of any site may come from a name of its
            // own, have that resolve to this machine, and be of the same origin.
            let is_own = self.secure || is_no_name(host.host()?);
            Origin::at(self.secure, host.host()?, host.port_u16()).filter(|own| is_own && *own == origin)
        };
        let is_same = self.origins.same && is_same().is_some();
        let is_allowed = is_any || self.origins.allowed.contains(&origin);
        let may_connect = if self.origins.both { is_same && is_allowed } else { is_same || is_allowed };
        match may_connect {
            true => Ok(()),
            false => Err(Refused),
        }
    }
}

/// Whether it is an address or `localhost`, which nobody can have resolve to something else.
fn is_no_name(host: &str) -> bool {
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok()
        || v6.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(options: &WebSocketOptions, secure: bool, headers: &[(&str, &str)]) -> bool {
        let origins = Origins::new(options).expect("origins that are some");
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(header::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        Gate::new(Arc::new(origins), secure, 1).check(&map).is_ok()
    }

    #[test]
    fn pages_connect_from_where_they_may() {
        let mut options = WebSocketOptions::at(([127, 0, 0, 1], 0).into());
        options.allowed_origins = vec!["https://chat.example.org".to_owned()];
        let host = ("host", "bus.example.org:8443");
        let cases = [
            (None, true),
            (Some("https://chat.example.org"), true),
            (Some("https://CHAT.example.org:443"), true),
            (Some("http://chat.example.org"), false),
            (Some("https://chat.example.org:444"), false),
            (Some("https://chat.example.org.evil.net"), false),
            (Some("https://bus.example.org:8443"), true),
            (Some("http://bus.example.org:8443"), false),
            (Some("https://bus.example.org"), false),
            (Some("null"), false),
            (Some("file://"), false),
            (Some(""), false),
        ];
        for (origin, expected) in cases {
            let headers: Vec<_> = origin.map(|origin| ("origin", origin)).into_iter().chain([host]).collect();
            assert_eq!(verdict(&options, true, &headers), expected, "{origin:?}");
        }
        let twice = [("origin", "https://chat.example.org"), ("origin", "https://evil.net"), host];
        assert!(!verdict(&options, true, &twice), "two origins");
        options.same_origin = false;
        assert!(!verdict(&options, true, &[("origin", "https://bus.example.org:8443"), host]));
        options.allowed_origins = vec!["*".to_owned()];
        assert!(verdict(&options, true, &[("origin", "null"), host]));
    }

    #[test]
    fn without_tls_a_page_is_of_the_same_origin_by_addresses_and_by_no_name() {
        let mut options = WebSocketOptions::at(([127, 0, 0, 1], 0).into());
        let cases = [
            ("127.0.0.1:9222", true),
            ("localhost:9222", true),
            ("LOCALHOST:9222", true),
            ("[::1]:9222", true),
            ("10.1.2.3:9222", true),
            ("evil.example:9222", false),
            ("127.0.0.1.evil.example:9222", false),
            ("localhost.evil.example:9222", false),
        ];
        for (host, expected) in cases {
            let origin = format!("http://{host}");
            let headers = [("origin", &*origin), ("host", host)];
            assert_eq!(verdict(&options, false, &headers), expected, "{host}");
            let secure = format!("https://{host}");
            assert!(verdict(&options, true, &[("origin", &*secure), ("host", host)]), "{host}");
        }
        options.allowed_origins = vec!["http://chat.internal:9222".to_owned()];
        let named = [("origin", "http://chat.internal:9222"), ("host", "chat.internal:9222")];
        assert!(verdict(&options, false, &named), "one that is allowed");
    }

    #[test]
    fn what_is_no_origin_is_refused_at_the_start() {
        for origin in ["chat.example.org", "ftp://chat.example.org", "https://chat.example.org/path", ""] {
            let mut options = WebSocketOptions::at(([127, 0, 0, 1], 0).into());
            options.allowed_origins = vec![origin.to_owned()];
            assert!(Origins::new(&options).is_err(), "{origin:?}");
        }
    }
}
