//! The addresses of the embedded server: free, or held by our own `up`; and what may be served there.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use trunkline::config::Config;
use trunkline_server::{AuthOptions, StartError};
use url::Url;

use crate::checks::{Finding, processes};
use crate::trust::Trust;
use crate::{client, http};

const CHECK: &str = "ports";

/// A bus that runs with this configuration's addresses.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) pid: i32,
}

/// Looks at every address that `trunkline up` would listen on.
pub(super) async fn check(config: &Config, limit: Duration) -> (Vec<Finding>, Option<Up>) {
    let server = &config.server;
    let tls = server.tls.is_on() && !server.tls.allow_non_tls;
    let addresses = [
        ("server.listen", Some(server.listen), tls),
        ("server.http", server.http, server.tls.http),
        ("server.metrics_listen", server.metrics_listen, server.tls.http),
        ("server.websocket.listen", server.websocket.listen, server.tls.is_on() && !server.websocket.no_tls),
    ];
    let (mut findings, mut up) = (Vec::new(), None);
    for (setting, address, encrypted) in addresses {
        let Some(address) = address else { continue };
        findings.extend(exposed(config, setting, address, encrypted));
        match free(address) {
            Ok(()) if address.port() == 0 => {
                findings
                    .push(Finding::ok(CHECK, format!("{setting} takes any free port of {}", address.ip())));
            }
            Ok(()) => findings.push(Finding::ok(CHECK, format!("{address} is free ({setting})"))),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let (finding, found) = held(config, setting, address, limit).await;
                findings.push(finding);
                up = up.or(found);
            }
            Err(error) => findings.push(refused(setting, address, &error)),
        }
    }
    (findings, up)
}

/// Listens for a moment, as `up` does, and takes no connection.
fn free(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

/// What others on the network could reach needs users and TLS, or the server does not start.
fn exposed(config: &Config, setting: &'static str, address: SocketAddr, encrypted: bool) -> Option<Finding> {
    if address.ip().is_loopback() || setting == "server.metrics_listen" {
        return None;
    }
    let error = match AuthOptions::from(&config.server).is_required() {
        false => StartError::Exposed { setting, address },
        true if !encrypted && !config.server.plaintext => StartError::Plaintext { setting, address },
        true => return None,
    };
    Some(Finding::fail(CHECK, error.to_string(), error.hint()))
}

/// Somebody listens there: a bus of this program, or somebody else.
async fn held(
    config: &Config,
    setting: &'static str,
    address: SocketAddr,
    limit: Duration,
) -> (Finding, Option<Up>) {
    let listener = processes::listener(address);
    if let Some(found) = listener.as_ref().filter(|found| found.is_this_program) {
        let text = format!("{address} is held by a running trunkline, process {} ({setting})", found.pid);
        return (Finding::ok(CHECK, text), Some(Up { pid: found.pid }));
    }
    // One of another user, or in a container, tells over HTTP what it is.
    if listener.is_none() && answers_as_ours(config, limit).await {
        let text = format!("{address} is held by a running trunkline of another user ({setting})");
        return (Finding::ok(CHECK, text), None);
    }
    let who = match &listener {
        Some(found) => format!("process {} ({})", found.pid, found.name),
        None => "another program, of another user".to_owned(),
    };
    let flag = if setting == "server.http" { "--http" } else { "--listen" };
    let fix = match setting {
        "server.listen" | "server.http" => {
            format!("stop it, or choose another address with {flag} or {setting}; port 0 takes a free one")
        }
        _ => format!("stop it, or set {setting} to another address; port 0 takes a free one"),
    };
    (Finding::fail(CHECK, format!("{address} is taken by {who} ({setting})"), fix), None)
}

async fn answers_as_ours(config: &Config, limit: Duration) -> bool {
    let Some(address) = config.server.http.and_then(client::reachable) else { return false };
    let tls = &config.server.tls;
    let scheme = if tls.http { "https" } else { "http" };
    let Ok(url) = Url::parse(&format!("{scheme}://{address}")) else { return false };
    let trust = Trust { ca_file: None, own_file: tls.cert_file.clone() };
    let Ok(answer) = http::get(&url, "/varz", &trust, limit).await else { return false };
    serde_json::from_slice::<serde_json::Value>(&answer.body).is_ok_and(|varz| varz.get("backend").is_some())
}

fn refused(setting: &str, address: SocketAddr, error: &io::Error) -> Finding {
    let fix = match error.kind() {
        ErrorKind::PermissionDenied => {
            format!("ports below 1024 need a right (CAP_NET_BIND_SERVICE): set {setting} to a higher one")
        }
        ErrorKind::AddrNotAvailable => format!("set {setting} to an address that this machine has"),
        _ => format!("set {setting} to another address"),
    };
    Finding::fail(CHECK, format!("nothing can listen on {address}: {error} ({setting})"), fix)
}
