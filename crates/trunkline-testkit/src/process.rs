//! A server as a child process: started on free ports, stopped, killed, frozen and restarted on the
//! same ports, gone without a trace when dropped. What is particular to one server program lives in
//! `servers`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for a server to say where it listens, and for one to end after SIGTERM. Either
/// takes milliseconds; the bound leaves room for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a child's files and state are looked at: neither can be awaited without a runtime.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// As much of a server's log as goes into a panic message.
const LOG_TAIL_BYTES: usize = 16 * 1024;

/// Where a running server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) nats: String,
    pub(crate) http: String,
}

impl Addresses {
    pub(crate) fn nats_port(&self) -> u16 {
        port_of(&self.nats)
    }

    pub(crate) fn http_port(&self) -> u16 {
        port_of(&self.http)
    }
}

/// What is particular to one server program.
pub(crate) trait Program: Send + Sync {
    /// How messages call it.
    fn name(&self) -> &str;

    /// The command that starts it: on any free ports, or on those of its former life. Its working
    /// directory is `directory`.
    fn command(&self, directory: &Path, former: Option<&Addresses>) -> Command;

    /// The file in which the process `pid` says where it listens.
    fn ports_file(&self, directory: &Path, pid: u32) -> PathBuf;

    /// Reads that file of the process `pid`. `None` while it is incomplete, which it is for a moment: servers write
    /// it in place.
    fn parse_ports(&self, content: &str, pid: u32) -> Option<Addresses>;
}

/// A server process and the temporary directory it works in.
///
/// Dropping it kills the process, waits for its end and removes the directory.
pub struct ServerProcess {
    program: Box<dyn Program>,
    directory: TempDir,
    addresses: Addresses,
    child: Option<Child>,
}

impl ServerProcess {
    pub(crate) fn start(program: Box<dyn Program>, directory: TempDir) -> ServerProcess {
        let (child, addresses) = launch(program.as_ref(), directory.path(), None);
        ServerProcess { program, directory, addresses, child: Some(child) }
    }

    /// The URL for clients, such as `nats://127.0.0.1:40123`; the same through every restart.
    pub fn url(&self) -> &str {
        &self.addresses.nats
    }

    /// The URL of the monitoring port, such as `http://127.0.0.1:40124`; the same through every
    /// restart.
    pub fn http(&self) -> &str {
        &self.addresses.http
    }

    /// The port for clients, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.addresses.nats_port()
    }

    /// The process id of the running server.
    ///
    /// # Panics
    /// When the server is not running.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} is not running", self.program.name())).id()
    }

    /// Whether the server was started and neither ended since by this value nor waited for.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// The directory the server works in: its log, and whatever it stores.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Everything the server has written to stdout and stderr, over all its lives.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&read_log(self.directory.path())).into_owned()
    }

    /// Asks the server to end (SIGTERM) and returns how it did.
    ///
    /// # Panics
    /// When it is not running, or still there after ten seconds.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        // A frozen process sees the first signal only once it runs again.
        self.signal(Signal::SIGCONT);
        self.wait_for_exit()
    }

    /// Ends the server on the spot (SIGKILL), as a crash would.
    ///
    /// # Panics
    /// When it is not running.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_for_exit();
    }

    /// Starts the server again on the same ports and in the same directory; stops it first where it
    /// still runs.
    pub fn restart(&mut self) {
        if self.child.is_some() {
            self.stop();
        }
        let (child, addresses) = launch(self.program.as_ref(), self.directory.path(), Some(&self.addresses));
        self.child = Some(child);
        assert_eq!(addresses, self.addresses, "{} came back elsewhere", self.program.name());
    }

    /// Freezes the server (SIGSTOP) and returns once all of its threads stand still: connections
    /// stay open and nothing answers.
    ///
    /// # Panics
    /// When it is not running, or does not stand still within ten seconds.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let pid = pid(self.pid());
        // Asks for stops alone, so that an exit stays for `Child` to reap.
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        let deadline = Instant::now() + PATIENCE;
        while waitid(Id::Pid(pid), flags) != Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)) {
            assert!(
                Instant::now() < deadline,
                "{} does not stand still {PATIENCE:?} after SIGSTOP",
                self.program.name()
            );
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Lets a frozen server go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends any signal to the server.
    ///
    /// # Panics
    /// When it is not running.
    pub fn signal(&self, signal: Signal) {
        // The child is reaped only by this value, so its pid cannot have become another process's.
        kill(pid(self.pid()), signal)
            .unwrap_or_else(|error| panic!("{signal} could not be sent to {}: {error}", self.program.name()));
    }

    /// Waits for the server to end by itself or by a signal sent before.
    ///
    /// # Panics
    /// When it is not running, or still there after ten seconds.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        self.wait_for_exit_within(PATIENCE)
    }

    /// As [`ServerProcess::wait_for_exit`], for servers that may take another time to end.
    ///
    /// # Panics
    /// When it is not running, or still there after this time.
    pub fn wait_for_exit_within(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            let child = self.child.as_mut().expect("a stopped server has no exit to wait for");
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                self.child = None;
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} still runs {patience:?} after it was told to end; its log:\n{}",
                self.program.name(),
                log_tail(self.directory.path())
            );
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
        }
    }
}

/// Kills and reaps a child; one that has ended already is fine.
pub(crate) fn end(child: &mut Child) {
    // Errors can only mean that the child is gone, and a panic here would hide the failure of the
    // test.
    let _ = child.kill();
    let _ = child.wait();
}

fn launch(program: &dyn Program, directory: &Path, former: Option<&Addresses>) -> (Child, Addresses) {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log_path(directory))
        .expect("a temporary directory takes a log file");
    let mut command = program.command(directory, former);
    command
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file handle can be cloned"))
        .stderr(log);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{} could not be started as {command:?}: {error}", program.name()));

    let ports_file = program.ports_file(directory, child.id());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let addresses = fs::read_to_string(&ports_file)
            .ok()
            .and_then(|content| program.parse_ports(&content, child.id()));
        if let Some(addresses) = addresses {
            return (child, addresses);
        }
        let ended = child.try_wait().expect("a child can be waited for");
        if ended.is_some() || Instant::now() >= deadline {
            end(&mut child);
            let how = match ended {
                Some(status) => format!("ended with {status}"),
                None => format!("did not write {} within {PATIENCE:?}", ports_file.display()),
            };
            panic!("{} {how}, started as {command:?}; its log:\n{}", program.name(), log_tail(directory));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

pub(crate) fn log_path(directory: &Path) -> PathBuf {
    directory.join("server.log")
}

fn read_log(directory: &Path) -> Vec<u8> {
    fs::read(log_path(directory)).unwrap_or_default()
}

fn log_tail(directory: &Path) -> String {
    let log = read_log(directory);
    let start = log.len().saturating_sub(LOG_TAIL_BYTES);
    String::from_utf8_lossy(&log[start..]).into_owned()
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("process ids are below 2^22"))
}

fn port_of(url: &str) -> u16 {
    url.rsplit_once(':')
        .and_then(|(_, port)| port.trim_end_matches('/').parse().ok())
        .unwrap_or_else(|| panic!("{url:?} has no port"))
}
