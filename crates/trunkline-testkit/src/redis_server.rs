//! A real `redis-server` to run tests against.

use std::ffi::OsString;
use std::net::TcpListener;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environment;
use crate::process::{Addresses, Program, ServerProcess, log_path};
use crate::servers::temporary_directory;

/// Ports to choose from: below those that the system gives to outgoing connections, so that no connection of another
/// test sits on the port while the server is away.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Which server stands behind the `redis` backend in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisVersion {
    /// The package of the system.
    System,
    /// Redis 6.0, the oldest that is supported.
    Redis60,
    /// Redis 6.2, which many hosts still offer.
    Redis62,
    /// Redis 8, the newest.
    Redis8,
    /// Valkey, the newest.
    Valkey,
}

impl RedisVersion {
    /// All of them, by age.
    pub const ALL: [RedisVersion; 5] = [
        RedisVersion::Redis60,
        RedisVersion::Redis62,
        RedisVersion::System,
        RedisVersion::Redis8,
        RedisVersion::Valkey,
    ];

    /// How messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "the system's Redis",
            Self::Redis60 => "Redis 6.0",
            Self::Redis62 => "Redis 6.2",
            Self::Redis8 => "Redis 8",
            Self::Valkey => "Valkey",
        }
    }
}

/// Arguments of a server with an append-only file that is synced with each write.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// A real `redis-server` on a port of 127.0.0.1 that was free; the rest of it is [`ServerProcess`].
///
/// With an append-only file it comes back with its data after a kill; without one it comes back empty. Its files lie in
/// the server's directory and go with it.
pub struct RedisServer(ServerProcess);

impl RedisServer {
    /// Starts a server with an append-only file that is synced with each write: with `everysec` the server may hold
    /// back even the write while a sync is under way, and a kill then takes what was confirmed.
    ///
    /// # Panics
    /// When there is no `redis-server` (the message says how to get it) or it does not come up.
    pub fn start() -> RedisServer {
        RedisServer::start_version(RedisVersion::System, DURABLE)
    }

    /// As [`RedisServer::start`], with a server of this version.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_durable(version: RedisVersion) -> RedisServer {
        RedisServer::start_version(version, DURABLE)
    }

    /// Starts a server that keeps nothing over a restart.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_volatile() -> RedisServer {
        RedisServer::start_with(["--appendonly", "no"])
    }

    /// Starts a server with these arguments besides the ones for address and directory.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_with<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> RedisServer {
        RedisServer::start_version(RedisVersion::System, arguments)
    }

    /// As [`RedisServer::start_with`], with a server of this version.
    ///
    /// # Panics
    /// As [`RedisServer::start`].
    pub fn start_version<A: Into<OsString>>(
        version: RedisVersion,
        arguments: impl IntoIterator<Item = A>,
    ) -> RedisServer {
        let program = RedisServerProgram {
            path: environment::redis_server(version),
            port: free_port(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        };
        RedisServer(ServerProcess::start(Box::new(program), temporary_directory()))
    }
}

impl Deref for RedisServer {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        &self.0
    }
}

impl DerefMut for RedisServer {
    fn deref_mut(&mut self) -> &mut ServerProcess {
        &mut self.0
    }
}

struct RedisServerProgram {
    path: PathBuf,
    port: u16,
    arguments: Vec<OsString>,
}

impl Program for RedisServerProgram {
    fn name(&self) -> &str {
        "redis-server"
    }

    fn command(&self, directory: &Path, _former: Option<&Addresses>) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", ""])
            .arg("--dir")
            .arg(directory)
            .args(&self.arguments);
        command
    }

    /// Redis writes no file of ports, but says in its log when it is ready, with its process id.
    fn ports_file(&self, directory: &Path, _pid: u32) -> PathBuf {
        log_path(directory)
    }

    fn parse_ports(&self, content: &str, pid: u32) -> Option<Addresses> {
        let own = format!("{pid}:");
        let ready = |line: &str| line.starts_with(&own) && line.contains("Ready to accept connections");
        let url = format!("redis://127.0.0.1:{}", self.port);
        content.lines().any(ready).then(|| Addresses { nats: url.clone(), http: url })
    }
}

fn free_port() -> u16 {
    (0..1000)
        .map(|_| fastrand::u16(PORTS))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one of a thousand ports is free")
}
