//! Runs the binary: to its end, or in the background. Every wait has a bound, and nothing outlives its test.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for anything; all of it takes well under a second on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout);
        let shown: String = stdout.chars().take(4096).collect();
        write!(f, "{} after {:?}\n--- stdout\n{shown}\n--- stderr\n{}", self.status, self.took, self.stderr)
    }
}

impl Ended {
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// The output of a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Vec<u8> {
        assert!(self.status.success(), "failed: {self:?}");
        self.stdout
    }

    /// The lines of a success.
    #[track_caller]
    pub(crate) fn lines(self) -> Vec<String> {
        let text = String::from_utf8(self.ok()).expect("the output is text");
        text.lines().map(str::to_owned).collect()
    }

    /// The lines of a success, each one JSON.
    #[track_caller]
    pub(crate) fn json(self) -> Vec<serde_json::Value> {
        self.lines()
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
            .collect()
    }
}

/// A command that runs. Dropping it kills it.
pub(crate) struct Running {
    child: Child,
    started: Instant,
    /// Lines of stderr as they come; disconnected at its end.
    stderr: Receiver<String>,
    said: Vec<String>,
    /// Pieces of stdout as they come; disconnected at its end.
    stdout: Receiver<Vec<u8>>,
    /// What was on stdout so far.
    printed: Vec<u8>,
}

/// A command line; without configuration, in a directory without files, and with no colours.
pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("TRUNKLINE_")
            || text.starts_with("OTEL_")
            || text == "NATS_URL"
            || text == "REDIS_URL"
        {
            command.env_remove(&name);
        }
    }
    command.args(arguments).current_dir(env!("CARGO_TARGET_TMPDIR")).env("NO_COLOR", "1");
    command
}

/// Runs to the end with nothing on stdin.
#[track_caller]
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Ended {
    start(command(arguments), b"").end()
}

/// Runs to the end with this on stdin.
#[track_caller]
pub(crate) fn run_with_input<S: AsRef<std::ffi::OsStr>>(arguments: &[S], input: &[u8]) -> Ended {
    start(command(arguments), input).end()
}

/// Starts in the background.
pub(crate) fn start(mut command: Command, input: &[u8]) -> Running {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the binary starts");
    let (mut stdin, mut stdout, stderr) = (
        child.stdin.take().expect("stdin is piped"),
        child.stdout.take().expect("stdout is piped"),
        child.stderr.take().expect("stderr is piped"),
    );
    let input = input.to_vec();
    // Each of these threads ends with the pipe it serves, which ends with the child at the latest.
    thread::spawn(move || {
        // A command that does not read its input may close it.
        let _ = stdin.write_all(&input);
    });
    let (lines, stderr_lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let (chunks, stdout_chunks) = channel();
    thread::spawn(move || {
        let mut chunk = vec![0; 64 << 10];
        while let Ok(bytes @ 1..) = stdout.read(&mut chunk) {
            if chunks.send(chunk[..bytes].to_vec()).is_err() {
                return;
            }
        }
    });
    Running {
        child,
        started: Instant::now(),
        stderr: stderr_lines,
        said: Vec::new(),
        stdout: stdout_chunks,
        printed: Vec::new(),
    }
}

impl Running {
    /// Waits until a line on stderr contains `text`, and returns the line.
    #[track_caller]
    pub(crate) fn until_it_says(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stderr.recv_timeout(left) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(_) => panic!("it never said {text:?}, but: {:#?}", self.said),
            }
        }
    }

    /// Waits until so many lines are on stdout.
    #[track_caller]
    pub(crate) fn until_it_has_printed(&mut self, lines: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.printed.iter().filter(|byte| **byte == b'\n').count() < lines {
            match self.stdout.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.printed.extend(chunk),
                Err(_) => {
                    panic!("it never printed {lines} lines, but: {}", String::from_utf8_lossy(&self.printed))
                }
            }
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id fits")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the process is there");
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn end(self) -> Ended {
        self.end_within(PATIENCE)
    }

    /// Waits for the end of what may take longer than other commands.
    #[track_caller]
    pub(crate) fn end_within(mut self, patience: Duration) -> Ended {
        let deadline = Instant::now() + patience;
        loop {
            match self.stdout.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.printed.extend(chunk),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("it did not end within {patience:?}: {:#?}", self.said)
                }
            }
        }
        loop {
            match self.stderr.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("stderr stayed open: {:#?}", self.said),
            }
        }
        // Both pipes are closed, so the process is ending: this wait is short.
        let status = self.child.wait().expect("the process can be waited for");
        let took = self.started.elapsed();
        let mut stderr = self.said.join("\n");
        stderr.push('\n');
        Ended { status, stdout: std::mem::take(&mut self.printed), stderr, took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All bytes there are.
pub(crate) fn all_bytes() -> Vec<u8> {
    (0..=255).collect()
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}
