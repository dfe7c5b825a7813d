//! The servers that tests run against: the real `nats-server`, and our own binary.

use std::ffi::OsString;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::environment;
use crate::process::{Addresses, Program, ServerProcess};

/// A real `nats-server` on free ports of 127.0.0.1; the rest of it is [`ServerProcess`].
///
/// JetStream is off unless `-js` is given; its store lies in the server's directory and survives
/// restarts.
pub struct NatsServer(ServerProcess);

impl NatsServer {
    /// Starts the server with these arguments besides the ones for addresses and store.
    ///
    /// # Panics
    /// When there is no `nats-server` (the message says how to get it) or it does not come up.
    pub fn start<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> NatsServer {
        NatsServer::launch(arguments.into_iter().map(Into::into).collect(), temporary_directory())
    }

    /// As [`NatsServer::start`], with the server of version 2.9 that Debian 12 has.
    ///
    /// # Panics
    /// As [`NatsServer::start`].
    pub fn start_2_9<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> NatsServer {
        let arguments = arguments.into_iter().map(Into::into).collect();
        NatsServer::launch_program(environment::nats_server_2_9(), arguments, temporary_directory())
    }

    /// Starts the server with a config file of this content. Addresses given there are overruled.
    ///
    /// # Panics
    /// As [`NatsServer::start`].
    pub fn start_with_config(content: &str) -> NatsServer {
        NatsServer::launch_with_config(environment::nats_server(), content)
    }

    /// As [`NatsServer::start_with_config`], with the server of version 2.9 that Debian 12 has.
    ///
    /// # Panics
    /// As [`NatsServer::start`].
    pub fn start_2_9_with_config(content: &str) -> NatsServer {
        NatsServer::launch_with_config(environment::nats_server_2_9(), content)
    }

    fn launch_with_config(program: PathBuf, content: &str) -> NatsServer {
        let directory = temporary_directory();
        let path = directory.path().join("nats-server.conf");
        fs::write(&path, content).expect("a temporary directory takes a file");
        NatsServer::launch_program(program, vec!["-c".into(), path.into()], directory)
    }

    /// Starts another program that goes by the name `nats-server`, with these arguments besides the ones for addresses and
    /// store: whatever a test does with the real one it can do with that.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_program<A: Into<OsString>>(
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> NatsServer {
        let arguments = arguments.into_iter().map(Into::into).collect();
        let program = NatsServerProgram { path: program.to_owned(), arguments };
        NatsServer(ServerProcess::start(Box::new(program), temporary_directory()))
    }

    fn launch(arguments: Vec<OsString>, directory: TempDir) -> NatsServer {
        NatsServer::launch_program(environment::nats_server(), arguments, directory)
    }

    fn launch_program(path: PathBuf, arguments: Vec<OsString>, directory: TempDir) -> NatsServer {
        let program = NatsServerProgram { path, arguments };
        NatsServer(ServerProcess::start(Box::new(program), directory))
    }
}

struct NatsServerProgram {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program for NatsServerProgram {
    fn name(&self) -> &str {
        "nats-server"
    }

    fn command(&self, directory: &Path, former: Option<&Addresses>) -> Command {
        let port = |former: Option<u16>| former.map_or_else(|| "-1".to_owned(), |port| port.to_string());
        let mut command = Command::new(&self.path);
        command
            .args(["-a", "127.0.0.1"])
            .args(["-p", &port(former.map(Addresses::nats_port))])
            .args(["-m", &port(former.map(Addresses::http_port))])
            .arg("--ports_file_dir")
            .arg(directory)
            .arg("-sd")
            .arg(directory.join("store"))
            .args(&self.arguments);
        command
    }

    fn ports_file(&self, directory: &Path, pid: u32) -> PathBuf {
        directory.join(format!("nats-server_{pid}.ports"))
    }

    fn parse_ports(&self, content: &str, _pid: u32) -> Option<Addresses> {
        let ports: Value = serde_json::from_str(content).ok()?;
        let first = |list: &str| Some(ports.get(list)?.get(0)?.as_str()?.to_owned());
        Some(Addresses { nats: first("nats")?, http: first("monitoring")? })
    }
}

/// Our own server, `trunkline up`, on free ports of 127.0.0.1; the rest of it is [`ServerProcess`].
///
/// It reads no configuration but the arguments: its working directory is empty, and variables that
/// would configure it are not passed on.
pub struct TrunklineServer(ServerProcess);

impl TrunklineServer {
    /// Starts `BINARY up` with these arguments besides the ones for addresses. Tests of the crate
    /// that builds the binary pass `Path::new(env!("CARGO_BIN_EXE_trunkline"))`.
    ///
    /// # Panics
    /// When there is no such file or the server does not come up.
    pub fn start<A: Into<OsString>>(
        binary: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> TrunklineServer {
        assert!(
            binary.exists(),
            "there is no trunkline binary at {}; cargo builds it for the tests of trunkline-cli: `cargo test -p trunkline-cli`",
            binary.display()
        );
        let program = TrunklineProgram {
            path: binary.to_owned(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        };
        TrunklineServer(ServerProcess::start(Box::new(program), temporary_directory()))
    }
}

struct TrunklineProgram {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program for TrunklineProgram {
    fn name(&self) -> &str {
        "trunkline"
    }

    fn command(&self, directory: &Path, former: Option<&Addresses>) -> Command {
        let address = |former: Option<u16>| format!("127.0.0.1:{}", former.unwrap_or(0));
        let ports_file = self.ports_file(directory, 0);
        // The file of a former life would be taken for this one's. There is none at the first
        // start.
        let _ = fs::remove_file(&ports_file);
        let mut command = Command::new(&self.path);
        for (variable, _) in std::env::vars_os() {
            let name = variable.to_string_lossy();
            if name.starts_with("TRUNKLINE_") || name == "NATS_URL" || name == "REDIS_URL" {
                command.env_remove(&variable);
            }
        }
        command
            .arg("up")
            .args(["--listen", &address(former.map(Addresses::nats_port))])
            .args(["--http", &address(former.map(Addresses::http_port))])
            .arg("--ports-file")
            .arg(ports_file)
            .args(&self.arguments);
        command
    }

    fn ports_file(&self, directory: &Path, _pid: u32) -> PathBuf {
        directory.join("trunkline.ports")
    }

    fn parse_ports(&self, content: &str, _pid: u32) -> Option<Addresses> {
        let ports: Value = serde_json::from_str(content).ok()?;
        Some(Addresses {
            nats: ports.get("nats")?.as_str()?.to_owned(),
            http: ports.get("http")?.as_str()?.to_owned(),
        })
    }
}

impl Deref for NatsServer {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        &self.0
    }
}

impl DerefMut for NatsServer {
    fn deref_mut(&mut self) -> &mut ServerProcess {
        &mut self.0
    }
}

impl Deref for TrunklineServer {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        &self.0
    }
}

impl DerefMut for TrunklineServer {
    fn deref_mut(&mut self) -> &mut ServerProcess {
        &mut self.0
    }
}

pub(crate) fn temporary_directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("trunkline-test-")
        .tempdir()
        .expect("the system's temporary directory takes another")
}
