//! A worker in a process of its own, to be stopped and killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::soon;

/// The process, and the lines it prints. Dropping it kills it.
pub(super) struct Worker {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Worker {
    pub(super) fn start(url: &str, ack_wait: Duration, concurrency: usize) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_redis-worker"))
            .args([url, &ack_wait.as_millis().to_string(), &concurrency.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo has built the worker");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        // Bounded by what the test publishes; the thread ends with the process.
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// Waits for the line that begins like this; the lines before it are not looked at again.
    pub(super) async fn prints(&mut self, wanted: &str) {
        let reading = async {
            while let Some(line) = self.lines.recv().await {
                if line.starts_with(wanted) {
                    return;
                }
            }
            panic!("the worker ended without the line {wanted:?}");
        };
        soon(reading).await;
    }

    /// All lines from here on, for somebody else to read; they end when the process has ended.
    pub(super) fn take_lines(&mut self) -> mpsc::UnboundedReceiver<String> {
        std::mem::replace(&mut self.lines, mpsc::unbounded_channel().1)
    }

    /// Has the handler that waits go on.
    pub(super) fn go_on(&mut self) {
        self.child.stdin.as_mut().expect("a pipe").write_all(b"go on\n").expect("the worker reads");
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are below 2^22"));
        kill(pid, signal).expect("the child is not reaped before it is dropped");
    }

    /// kill -9; what it had printed can still be read.
    pub(super) fn kill(&mut self) {
        self.child.kill().expect("the child is not reaped before");
        self.child.wait().expect("a child can be waited for");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Errors can only mean that it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
