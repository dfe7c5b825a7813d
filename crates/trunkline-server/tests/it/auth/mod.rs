//! Authentication, permissions and accounts, byte for byte, and against nats-server itself.

mod accounts;
mod bridge;
mod compared;
mod credentials;
mod reload;
mod storm;
mod who;

use std::net::SocketAddr;
use std::sync::Arc;

use trunkline::backend::memory::Hub;
use trunkline::config::Loader;
use trunkline_server::{AuthOptions, Server, ServerOptions};

use super::client::Raw;
use super::fixture::options;

const VIOLATION: &str = "-ERR 'Authorization Violation'\r\n";

/// What the section `server` of a configuration says about users.
pub(crate) fn auth(yaml: &str) -> AuthOptions {
    let loaded = Loader::new().env([("TRUNKLINE_SERVER", yaml)]).working_dir("/nonexistent").load();
    AuthOptions::from(&loaded.unwrap_or_else(|error| panic!("{yaml}: {error}")).config.server)
}

/// A server on free ports with these users.
async fn server(yaml: &str) -> Server {
    server_with(|options| options.auth = auth(yaml)).await
}

pub(crate) async fn server_with(change: impl FnOnce(&mut ServerOptions)) -> Server {
    Server::start(options(Arc::new(Hub::default()), change)).await.expect("free ports and valid users")
}

/// CONNECT with these fields, and nothing of what is the default otherwise.
fn connect(fields: &str) -> String {
    let comma = if fields.is_empty() { "" } else { "," };
    format!("CONNECT {{\"verbose\":false,\"pedantic\":false{comma}{fields}}}\r\n")
}

fn user(name: &str, password: &str) -> String {
    format!("\"user\":\"{name}\",\"pass\":\"{password}\"")
}

/// What the server answers to CONNECT with these fields and a PING; with all it says when it closes.
async fn answer(address: SocketAddr, fields: &str) -> String {
    let mut raw = Raw::connect(address).await;
    raw.send(format!("{}PING\r\n", connect(fields))).await;
    let line = raw.line().await;
    match line.starts_with("-ERR") {
        true => format!("{line}\r\n{}", raw.until_closed().await),
        false => format!("{line}\r\n"),
    }
}

/// A client that is let in with this name and password.
async fn client(address: SocketAddr, name: &str, password: &str) -> Raw {
    Raw::ready(address, &user(name, password)).await
}
