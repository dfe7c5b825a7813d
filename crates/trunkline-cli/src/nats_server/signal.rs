//! `--signal COMMAND[=PID]`: tells a running server something.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PROGRAM;

/// A server that was not told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignalError {
    #[error("unknown signal {0:?}")]
    Unknown(String),
    #[error("invalid pid: {0}")]
    Pid(String),
    #[error("no {PROGRAM} processes running")]
    Nobody,
    #[error("multiple {PROGRAM} processes running:{}", list(.0))]
    Several(Vec<i32>),
    #[error("cannot list the processes of this machine")]
    Processes(#[source] procfs::ProcError),
    #[error("\nsignal {command:?} {pid}: {}", describe(*errno))]
    Send { command: String, pid: i32, errno: Errno },
}

fn list(pids: &[i32]) -> String {
    pids.iter().map(|pid| format!("\n{pid}")).collect()
}

fn describe(errno: Errno) -> String {
    match errno {
        Errno::ESRCH => "no such process".to_owned(),
        Errno::EPERM => "operation not permitted".to_owned(),
        other => other.to_string(),
    }
}

/// Sends what `COMMAND[=PID]` says; a process may be given by its number or by a file that has it.
///
/// # Errors
/// An unknown command, no process to send it to, or one that cannot be sent to.
pub(crate) fn send(request: &str) -> Result<(), SignalError> {
    let (command, process) = match request.split_once('=') {
        Some((command, process)) => (command, Some(process)),
        None => (request, None),
    };
    let signal = match command {
        "stop" => Signal::SIGKILL,
        "quit" => Signal::SIGINT,
        "term" => Signal::SIGTERM,
        "reopen" => Signal::SIGUSR1,
        "reload" => Signal::SIGHUP,
        "ldm" => Signal::SIGUSR2,
        _ => return Err(SignalError::Unknown(command.to_owned())),
    };
    let pid = match process.filter(|process| !process.is_empty()) {
        Some(process) => read_pid(process)?,
        None => find()?,
    };
    let failed = |errno| SignalError::Send { command: command.to_owned(), pid, errno };
    kill(Pid::from_raw(pid), signal).map_err(failed)
}

/// Numbers that stand for groups of processes, or for all of them, are none.
fn read_pid(text: &str) -> Result<i32, SignalError> {
    let number = |text: &str| text.trim().parse::<i32>().ok().filter(|pid| *pid > 0);
    let from_file = || std::fs::read_to_string(text).ok().and_then(|content| number(&content));
    number(text).or_else(from_file).ok_or_else(|| SignalError::Pid(text.to_owned()))
}

/// The one server that runs, under whichever of its names.
fn find() -> Result<i32, SignalError> {
    let own = std::process::id();
    let mut pids = Vec::new();
    for process in procfs::process::all_processes().map_err(SignalError::Processes)? {
        // One that ends meanwhile is none.
        let Some((process, line)) =
            process.ok().and_then(|process| Some((process.pid, process.cmdline().ok()?)))
        else {
            continue;
        };
        let is_server = super::is_invoked_by(line.first(), line.get(1));
        if is_server && u32::try_from(process) != Ok(own) {
            pids.push(process);
        }
    }
    match pids[..] {
        [] => Err(SignalError::Nobody),
        [pid] => Ok(pid),
        _ => Err(SignalError::Several(pids)),
    }
}
