//! The binary under the name `nats-server`, beside the real one: the same command lines, files and signals, and what both
//! make of them.

mod certificates;
mod clients;
mod command_line;
mod keys;
mod lame_duck;
mod log;
mod monitoring;
mod reload;
mod running;
mod services;
mod tls;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use trunkline_testkit::environment;

use crate::command::{Running, start};

/// A directory in which our binary has the name, and in which servers work.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join("bin")).expect("a new directory takes another");
        symlink(env!("CARGO_BIN_EXE_trunkline"), directory.path().join("bin/nats-server"))
            .expect("a new name");
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn ours(&self) -> PathBuf {
        self.path().join("bin/nats-server")
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path().join(name), content).expect("a temporary directory takes a file");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.path()).env("TEST_PORT", "4222").env("NO_COLOR", "1");
        command
    }

    /// Starts our server with a configuration of this content, on free ports, and waits until it is ready.
    fn start(&self, config: &str) -> Running {
        self.write("server.conf", config);
        let arguments = ["-c", "server.conf", "-p", "-1", "-a", "127.0.0.1", "-P", "server.pid"];
        let mut running = start(self.command(&self.ours(), &arguments), b"");
        running.until_it_says("Server is ready");
        running
    }
}

fn theirs() -> PathBuf {
    environment::nats_server()
}

/// The address in the line that says where a server listens.
fn address_in(line: &str) -> String {
    line.rsplit(' ').next().unwrap_or_default().to_owned()
}
