//! SIGINT and SIGTERM: the first asks for a clean stop, the second ends the process whatever it is doing.

use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long the second signal leaves for removing files and printing a last line.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Listens to the signals from its making until it is dropped.
#[derive(Debug)]
pub(crate) struct Interrupts {
    stop: CancellationToken,
    kill: CancellationToken,
    /// Waits for the two signals; aborted on drop, so that it never outlives the command.
    task: JoinHandle<()>,
}

impl Interrupts {
    /// Starts to listen.
    ///
    /// # Errors
    /// The operating system refuses a handler.
    pub(crate) fn listen() -> io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let (on_first, on_second) = (stop.clone(), kill.clone());
        let task = tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = interrupt.recv() => Signal::SIGINT,
                    _ = terminate.recv() => Signal::SIGTERM,
                }
            };
            next().await;
            on_first.cancel();
            let second = next().await;
            on_second.cancel();
            // The command gets a moment to leave by itself; one that hangs is ended here, from its own thread.
            tokio::time::sleep(LAST_WORDS).await;
            std::process::exit(128 + second as i32);
        });
        Ok(Self { stop, kill, task })
    }

    /// Cancelled by the first signal.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Cancelled by the second signal.
    pub(crate) fn kill(&self) -> &CancellationToken {
        &self.kill
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.task.abort();
    }
}
