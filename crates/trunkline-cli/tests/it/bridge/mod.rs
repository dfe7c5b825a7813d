//! `trunkline up` on Redis: stock clients on a bridge, and several bridges that are one bus.

mod between;
mod clients;
mod conversation;
mod outage;
mod raw;
mod redis;
mod up;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use tempfile::TempDir;
use trunkline_testkit::servers::TrunklineServer;
use trunkline_testkit::{RedisServer, ServerProcess};

/// A `trunkline up` on a Redis server; the rest of it is [`ServerProcess`].
struct Bridge {
    server: TrunklineServer,
    /// Holds the configuration, which every restart reads again.
    _directory: TempDir,
}

impl Bridge {
    fn start(redis: &RedisServer) -> Self {
        Self::with(redis, "")
    }

    /// With more lines in the `messaging` part of the configuration.
    fn with(redis: &RedisServer, messaging: &str) -> Self {
        Self::at(redis.url(), messaging)
    }

    /// On whatever is at this URL.
    fn at(redis_url: &str, messaging: &str) -> Self {
        let directory = tempfile::tempdir().expect("the system's temporary directory takes another");
        let file = directory.path().join("config.yaml");
        std::fs::write(&file, configuration(redis_url, messaging))
            .expect("a temporary directory takes a file");
        let arguments = ["--config".as_ref(), file.as_os_str()];
        let server = TrunklineServer::start(Path::new(env!("CARGO_BIN_EXE_trunkline")), arguments);
        Self { server, _directory: directory }
    }
}

/// A configuration for the Redis server at `url`, with more lines in its `messaging` part.
fn configuration(url: &str, messaging: &str) -> String {
    let mut text = format!("messaging:\n  backend: redis\n  redis_url: {url}\n  fallback: fail\n");
    for line in messaging.lines() {
        writeln!(text, "  {line}").expect("a string takes a line");
    }
    text
}

/// The body of an answer over HTTP.
fn http_get(url: &str, path: &str) -> String {
    let address = url.trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).expect("HTTP is served");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("a request");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer of text");
    answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned()
}

impl Deref for Bridge {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        &self.server
    }
}

impl DerefMut for Bridge {
    fn deref_mut(&mut self) -> &mut ServerProcess {
        &mut self.server
    }
}
