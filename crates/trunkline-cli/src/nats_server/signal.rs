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
    #[error("{}", failures(.0))]
    Send(Vec<NotSent>),
}

/// A process that could not be sent to.
#[derive(Debug)]
pub(crate) struct NotSent {
    command: String,
    pid: i32,
    errno: Errno,
}

fn failures(failures: &[NotSent]) -> String {
    let line = |NotSent { command, pid, errno }: &NotSent| {
        format!("\nsignal {command:?} {pid}: {}", describe(*errno))
    };
    failures.iter().map(line).collect()
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

/// Sends what `COMMAND[=PID]` says; a process may be given by its number, by a file that has it, or, with `*` at the end, by
/// the beginning of its number: then there may be several.
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
    let pids = match process.filter(|process| !process.is_empty()) {
        None => match running()?[..] {
            [] => return Err(SignalError::Nobody),
            [pid] => vec![pid],
            ref pids => return Err(SignalError::Several(pids.to_vec())),
        },
        Some(process) => match process.strip_suffix('*') {
            Some(beginning) => beginning_with(beginning)?,
            None => vec![read_pid(process)?],
        },
    };
    let sent = |pid: i32| kill(Pid::from_raw(pid), signal);
    let failed = pids.into_iter().filter_map(|pid| {
        let command = command.to_owned();
        sent(pid).err().map(|errno| NotSent { command, pid, errno })
    });
    match failed.collect::<Vec<_>>() {
        failed if failed.is_empty() => Ok(()),
        failed => Err(SignalError::Send(failed)),
    }
}

/// Servers that run, by the beginning of their numbers.
fn beginning_with(beginning: &str) -> Result<Vec<i32>, SignalError> {
    if !beginning.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SignalError::Pid(beginning.to_owned()));
    }
    let mut pids = running()?;
    pids.retain(|pid| pid.to_string().starts_with(beginning));
    match pids.is_empty() {
        true => Err(SignalError::Nobody),
        false => Ok(pids),
    }
}

/// Numbers that stand for groups of processes, or for all of them, are none.
fn read_pid(text: &str) -> Result<i32, SignalError> {
    let number = |text: &str| text.trim().parse::<i32>().ok().filter(|pid| *pid > 0);
    let from_file = || std::fs::read_to_string(text).ok().and_then(|content| number(&content));
    number(text).or_else(from_file).ok_or_else(|| SignalError::Pid(text.to_owned()))
}

/// The servers that run, under whichever of their names.
fn running() -> Result<Vec<i32>, SignalError> {
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
    Ok(pids)
}
