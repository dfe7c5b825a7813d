//! Servers that bench starts and always stops again: when the benchmark is done, when it fails, and on Ctrl-C.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::compare::ServerSpec;
use super::connection::{CONTROL_BUFFER_BYTES, Connection};
use super::endpoint::Endpoint;
use super::error::BenchError;
use super::halt::Halt;
use super::process::Processes;

/// How long a server may take to stop before it is killed.
const STOP_MAX: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(10);

/// How much of the end of a server's log an error shows.
const LOG_TAIL_BYTES: u64 = 1500;

/// Attempts with another port, because a free port may be taken before the server binds it.
const ATTEMPTS: usize = 3;

/// A process group that is stopped when this is dropped.
pub(super) struct Server {
    name: String,
    port: u16,
    child: Child,
    log: File,
    version: String,
}

impl Server {
    /// Starts the server on a free port of the loopback address and waits until it accepts clients.
    ///
    /// # Errors
    /// It cannot be started, exits, or accepts no clients within the timeout; with the end of its log.
    pub(super) fn start(spec: &ServerSpec, halt: &Halt) -> Result<Self, BenchError> {
        let mut attempt = 1;
        loop {
            match Self::start_once(spec, halt) {
                Err(BenchError::Exited { .. }) if attempt < ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    /// Where clients find it.
    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::loopback(self.port)
    }

    /// Where its costs can be read.
    pub(super) fn processes(&self) -> Processes {
        Processes::Group(self.child.id() as i32)
    }

    /// Its own name for itself and its version, from INFO.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// What went wrong in a run: that the server has exited, if it has, and otherwise `error`.
    pub(super) fn explain(&mut self, error: BenchError) -> BenchError {
        match self.child.try_wait() {
            Ok(Some(status)) if !matches!(error, BenchError::Interrupted) => BenchError::Exited {
                name: self.name.clone(),
                status: status.to_string(),
                log: self.log_tail(),
            },
            _ => error,
        }
    }

    fn start_once(spec: &ServerSpec, halt: &Halt) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Spawn { name: spec.name.clone(), source };
        let port = free_port().map_err(failed)?;
        let log = tempfile::tempfile().map_err(failed)?;
        let (program, arguments) = spec.command(port);
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log.try_clone().map_err(failed)?)
            // A group of its own: Ctrl-C reaches bench alone, which then stops the whole group.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let mut server = Self { name: spec.name.clone(), port, child, log, version: String::new() };
        server.wait_until_ready(halt)?;
        Ok(server)
    }

    fn wait_until_ready(&mut self, halt: &Halt) -> Result<(), BenchError> {
        let since = Instant::now();
        loop {
            match Connection::open(&self.endpoint(), CONTROL_BUFFER_BYTES, halt) {
                Ok(connection) => {
                    let (name, version) = connection.server();
                    self.version = if name.starts_with('N') && name.len() == 56 {
                        // Without a configured name nats-server shows its random key.
                        version.to_owned()
                    } else {
                        format!("{name} {version}").trim().to_owned()
                    };
                    return Ok(());
                }
                Err(BenchError::Connect { .. } | BenchError::Closed | BenchError::Socket { .. }) => {}
                Err(error) => return Err(error),
            }
            halt.check()?;
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return Err(self.explain(BenchError::Closed));
            }
            if since.elapsed() >= halt.timeout {
                let (name, log) = (self.name.clone(), self.log_tail());
                return Err(BenchError::NotReady { name, port: self.port, waited: halt.timeout, log });
            }
            thread::sleep(STEP);
        }
    }

    /// The end of what the server printed, ready to follow an error message; empty if it printed nothing.
    fn log_tail(&mut self) -> String {
        let mut tail = Vec::new();
        let length = self.log.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        let from = SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES));
        let read = self.log.seek(from).and_then(|_| (&self.log).take(LOG_TAIL_BYTES).read_to_end(&mut tail));
        let text = String::from_utf8_lossy(&tail);
        match (read, text.trim()) {
            (Ok(_), text) if !text.is_empty() => format!("; it printed:\n{text}"),
            _ => String::new(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Group ids are not used again while a member lives, and for a long time after: signalling late is safe.
        let group = Pid::from_raw(self.child.id() as i32);
        let mut signal = Signal::SIGTERM;
        let since = Instant::now();
        loop {
            let _ = killpg(group, signal);
            while matches!(self.child.try_wait(), Ok(None)) {
                if signal == Signal::SIGTERM && since.elapsed() >= STOP_MAX {
                    break;
                }
                thread::sleep(STEP);
            }
            if signal == Signal::SIGKILL {
                return;
            }
            // Once more for what a wrapper has left behind; a group without members is no error worth telling.
            signal = Signal::SIGKILL;
        }
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn start(command: &str) -> Result<Server, BenchError> {
        let spec = ServerSpec::parse(command).expect("valid");
        Server::start(&spec, &Halt::new(&Arc::default(), Duration::from_secs(2)))
    }

    #[test]
    fn a_server_that_exits_is_reported_with_its_log() {
        let error = start("a=sh -c 'echo no room on {port}; exit 3'").err().expect("it exited");
        assert!(matches!(error, BenchError::Exited { .. }), "{error}");
        assert!(error.to_string().contains("no room on"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_exist_is_reported() {
        assert!(matches!(start("a=/nonexistent/program {port}"), Err(BenchError::Spawn { .. })));
    }

    #[test]
    fn a_server_that_never_listens_is_stopped_with_all_its_processes() {
        let pids = tempfile::NamedTempFile::new().expect("a file");
        let path = pids.path().display();
        // The inner process ignores SIGTERM, and its parent does not wait for it.
        let script = format!("(trap \"\" TERM; exec sleep 60) & echo $! > {path}; : {{port}}; wait");
        let error = start(&format!("a=sh -c '{script}'")).err().expect("nobody listens");
        assert!(matches!(error, BenchError::NotReady { .. }), "{error}");
        let inner: i32 =
            std::fs::read_to_string(pids.path()).expect("written").trim().parse().expect("a pid");
        let gone = |pid| match procfs::process::Process::new(pid).and_then(|process| process.stat()) {
            // Killed and not yet collected by init.
            Ok(stat) => stat.state == 'Z',
            Err(_) => true,
        };
        let since = Instant::now();
        while !gone(inner) {
            assert!(since.elapsed() < Duration::from_secs(10), "process {inner} is still there");
            thread::yield_now();
        }
    }
}
