//! Section `websocket`.

use std::time::Duration;

use trunkline_server::TlsOptions;

use super::super::conf::{Entry, Map, Value};
use super::read::Mistakes;
use super::top::says_nothing;
use super::{Listen, Settings, tls};

/// The listener for clients over WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WebSocket {
    pub(crate) listen: Listen,
    /// `None` where there is to be none.
    pub(crate) tls: Option<TlsOptions>,
    pub(crate) same_origin: bool,
    pub(crate) allowed_origins: Vec<String>,
    pub(crate) handshake_timeout: Duration,
}

impl WebSocket {
    /// Whether the file says which pages may connect.
    pub(crate) fn asks_for_origin(&self) -> bool {
        self.same_origin || !self.allowed_origins.is_empty()
    }
}

/// Reads the section. Without a port there is no listener, as on nats-server.
pub(super) fn read(entry: &Entry, map: &Map, settings: &mut Settings, mistakes: &mut Mistakes) {
    let Value::Map(section) = &entry.node.value else {
        let kind = if entry.node.value.kind() == "boolean" { "bool" } else { entry.node.value.kind() };
        return mistakes.note(&entry.place, format!("Expected websocket to be a map, got {kind}"));
    };
    let (mut port, mut host, mut no_tls) = (None, None, false);
    let mut web = WebSocket {
        listen: Listen { host: None, port: 0 },
        tls: None,
        same_origin: false,
        allowed_origins: Vec::new(),
        handshake_timeout: Duration::from_secs(2),
    };
    for inner in &section.entries {
        match inner.key.to_ascii_lowercase().as_str() {
            "listen" => {
                if let Some(listen) = mistakes.listen(inner) {
                    host = listen.host.or(host.take());
                    port = Some(listen.port);
                }
            }
            // 0 is what is not set.
            "port" if inner.node.value == Value::Integer(0) => {}
            "port" => port = mistakes.integer(inner).and_then(|number| mistakes.port(inner, number)),
            "host" | "net" => host = mistakes.text(inner),
            "no_tls" => no_tls = mistakes.bool(inner).unwrap_or(no_tls),
            "tls" => web.tls = tls::read(inner, &mut settings.ignored, mistakes),
            "same_origin" => web.same_origin = mistakes.bool(inner).unwrap_or(web.same_origin),
            "allowed_origins" | "allowed_origin" | "allow_origins" | "allow_origin" | "origins"
            | "origin" => web.allowed_origins = mistakes.texts(inner).unwrap_or_default(),
            "handshake_timeout" => {
                if let Some(timeout) = mistakes.duration(inner).filter(|timeout| !timeout.is_zero()) {
                    web.handshake_timeout = timeout;
                }
            }
            // A client may offer to compress and has to do without when the server does not take it up.
            "compress" | "compression" => {
                if mistakes.bool(inner) == Some(true) {
                    settings.ignored.push(format!("{}.{}", entry.key, inner.key));
                }
            }
            "ping_interval" => {
                let interval = mistakes.duration_with_unit(inner).filter(|interval| !interval.is_zero());
                settings.limits.websocket_ping_interval = interval;
            }
            "advertise" => {
                mistakes.text(inner);
                settings.ignored.push(format!("{}.{}", entry.key, inner.key));
            }
            key => read_absent(key, inner, map, mistakes),
        }
    }
    if web.tls.as_ref().is_some_and(|tls| tls.handshake_rate.is_some()) {
        settings.ignored.push(format!("{}.tls.connection_rate_limit", entry.key));
    }
    if no_tls {
        web.tls = None;
    }
    let Some(port) = port else { return };
    if web.tls.is_none() && !no_tls {
        mistakes.note(&entry.place, "websocket requires TLS configuration");
    }
    web.listen = Listen { host, port };
    settings.websocket = Some(web);
}

/// Keys of what is not here.
fn read_absent(key: &str, entry: &Entry, map: &Map, mistakes: &mut Mistakes) {
    let reason = match key {
        "no_auth_user" => {
            let general = map.get("no_auth_user").map(|node| &node.value);
            if general == Some(&entry.node.value) {
                return;
            }
            "there is one no_auth_user for all clients, at the top level"
        }
        "authorization" | "auth" => "its clients are the users of the server",
        "jwt_cookie" | "user_cookie" | "pass_cookie" | "token_cookie" => {
            "clients say in CONNECT who they are, and not in cookies"
        }
        "headers" => "it adds no headers to its answer",
        _ => return mistakes.unknown(entry),
    };
    // What is empty asks for nothing.
    if entry.node.value == Value::Text(String::new()) || says_nothing(&entry.node) {
        return;
    }
    mistakes.note(&entry.place, format!("{:?} is not supported by this server: {reason}", entry.key));
}
