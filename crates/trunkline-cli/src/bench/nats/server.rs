//! The nats-server under load: one that runs already, or one with JetStream that is started for the run and stopped with it.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::super::beside::Metered;
use super::super::compare::ServerSpec;
use super::super::connection::{CONTROL_BUFFER_BYTES, Connection};
use super::super::endpoint::Endpoint;
use super::super::error::BenchError;
use super::super::halt::Halt;
use super::super::process::Processes;
use super::super::server;
use super::NatsArgs;

const PROGRAM: &str = "nats-server";
/// Where `cargo xtask setup` puts one, seen from the root of the repository.
const OF_SETUP: &str = "target/test-env/venv/bin/nats-server";

/// Where the load goes.
pub(super) struct Server {
    url: String,
    endpoint: Endpoint,
    processes: Processes,
    version: String,
    /// Held to be stopped, and then its store removed.
    _started: Option<(server::Server, TempDir)>,
}

impl Server {
    /// The server that the command line names, or a new one.
    ///
    /// # Errors
    /// A bad URL, a server that is not there, or one that does not start.
    pub(super) fn of(args: &NatsArgs, halt: &Halt) -> Result<Self, BenchError> {
        match &args.nats_url {
            Some(url) => {
                let endpoint = Endpoint::parse(url)?;
                let connection = Connection::open(&endpoint, CONTROL_BUFFER_BYTES, halt)?;
                connection.check_payload(args.common.payload)?;
                Ok(Self {
                    url: url.clone(),
                    endpoint,
                    processes: args.server_pid.map_or(Processes::Unknown, Processes::One),
                    version: connection.server().1.to_owned(),
                    _started: None,
                })
            }
            None => Self::start(args.nats_server.as_deref().unwrap_or_else(|| program()), halt),
        }
    }

    fn start(program: &str, halt: &Halt) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Spawn { name: program.to_owned(), source };
        let store = tempfile::tempdir().map_err(failed)?;
        let directory = store.path().display().to_string();
        let words = [program, "-a", "127.0.0.1", "-p", "{port}", "-js", "-sd", &directory];
        let started = server::Server::start(&ServerSpec::new(program, &words), halt)?;
        let endpoint = started.endpoint();
        Ok(Self {
            url: format!("nats://{}", endpoint.address()),
            endpoint,
            processes: started.processes(),
            version: started.version().to_owned(),
            _started: Some((started, store)),
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What it says it is.
    pub(super) fn version(&self) -> &str {
        &self.version
    }
}

impl Metered for Server {
    async fn cpu(&self) -> Result<Option<Duration>, BenchError> {
        self.processes.cpu()
    }
}

/// The one on the PATH, or else that of this repository, when bench runs at its root.
fn program() -> &'static str {
    let on_path = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(PROGRAM).is_file()));
    if !on_path && Path::new(OF_SETUP).is_file() { OF_SETUP } else { PROGRAM }
}
