//! The guardian of a component: this binary once more, as a small process between `up` and the component.
//!
//! It is there so that nothing is left behind, however `up` ends: it holds the other end of a socket, and when that
//! closes it kills the component with all that it started. Processes that went to the background, or into a session of
//! their own, come to the guardian when their parents end, because it asks the kernel for them (`PR_SET_CHILD_SUBREAPER`).
//! The component itself is started through a second step, [`execute`], which asks the kernel to be killed when the
//! guardian dies (`PR_SET_PDEATHSIG`) and then becomes the component. What the guardian itself leaves when it is killed
//! comes to its parent, the `heir`; when that one is killed, the guardian is told and gives up the component.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::heir::{self, HEIR};
use super::orphans::descendants;
use super::wire::{self, Order, Report};

/// First argument of a guardian; behind it stand its parent and the name of the component, which is for people to read.
/// What it runs comes over the socket: who looks for the component by its command line does not mean the guardian.
pub(super) const GUARD: &str = "__guard";
/// First argument of the step between a guardian and its component. None of the three is a command for people.
const EXECUTE: &str = "__execute";
/// The program that a guardian is made of, whatever has become of its file.
pub(super) const SELF: &str = "/proc/self/exe";

/// What a component that ended by itself left behind gets so long to end.
const GRACE: Duration = Duration::from_secs(2);
/// How often is looked for what is left while it is being killed.
const SWEEP: Duration = Duration::from_millis(20);
/// Exit status of what could not be run, as shells have it.
const CANNOT_RUN: u8 = 127;

/// Runs as a guardian if the command line says so; `None` for any other command line.
pub(crate) fn dispatch(line: &[OsString]) -> Option<ExitCode> {
    match line.get(1)?.to_str()? {
        HEIR => Some(heir::run(line.get(2)?)),
        GUARD => Some(run(line.get(2)?)),
        EXECUTE => {
            let error = match execute(line.get(2..)?) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            // Stderr is the component's log; there is nobody else to tell.
            let _ = writeln!(io::stderr(), "cannot run {}: {error}", line.get(3)?.to_string_lossy());
            Some(ExitCode::from(CANNOT_RUN))
        }
        _ => None,
    }
}

fn run(heir: &OsStr) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let guarded = runtime.and_then(|runtime| runtime.block_on(guard(heir)));
    match guarded {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Stderr is the component's log; there is nobody else to tell.
            let _ = writeln!(io::stderr(), "the guardian of a component failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The last step before the component: becomes it.
fn execute(line: &[OsString]) -> io::Result<Infallible> {
    let (parent, command) = line.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have died before it was asked to be told of.
    if !is_parent(parent) {
        return Err(io::Error::other("its guardian has died"));
    }
    Err(Command::new(program).args(arguments).exec())
}

/// Whether the process of this number is still there, as the parent that it was.
fn is_parent(pid: &OsStr) -> bool {
    pid.to_str().and_then(|pid| pid.parse().ok()) == Some(getppid().as_raw())
}

async fn guard(heir: &OsStr) -> io::Result<()> {
    prctl::set_name(c"guardian")?;
    let link = StdStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    link.set_nonblocking(true)?;
    let (mut orders, mut reports) = UnixStream::from_std(link)?.into_split();
    // Signals for a whole process group or control group reach the component by themselves; the guardian ends after it.
    let mut children = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let _interrupts = signal(SignalKind::interrupt())?;
    let _hangups = signal(SignalKind::hangup())?;
    let _quits = signal(SignalKind::quit())?;
    // What this one would leave goes to nobody who knows it once the heir has gone, so it ends before it can.
    let mut heir_ended = signal(SignalKind::user_defined1())?;
    // All of them have their handlers by now.
    heir::not_for_heirs().thread_unblock()?;
    prctl::set_pdeathsig(Signal::SIGUSR1)?;
    prctl::set_child_subreaper(true)?;
    let command = wire::read_command(&mut orders).await?;
    if !is_parent(heir) {
        return Err(io::Error::other("it was left alone"));
    }
    let spawned = Command::new(SELF)
        .arg0("trunkline")
        .arg(EXECUTE)
        .arg(getpid().to_string())
        .args(command)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn();
    let pid = match spawned {
        // It is waited for with everything else that ends here.
        Ok(child) => child.id(),
        Err(error) => return report(&mut reports, &Report::NotStarted { reason: error.to_string() }).await,
    };
    let mut family = Family::of(pid)?;
    let mut is_lost = report(&mut reports, &Report::Started { pid }).await.is_err();
    if is_lost {
        family.kill();
    }
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A child may have ended before the first signal was listened to.
    let mut is_empty = family.reap()?;
    while !is_empty {
        let deadline = family.kill_at;
        tokio::select! {
            _ = children.recv() => is_empty = family.reap()?,
            order = orders.read_u8(), if !is_lost => match order.ok().and_then(Order::of) {
                Some(Order::Terminate) => family.terminate(),
                Some(Order::Kill) => family.kill(),
                // `up` has gone.
                None => {
                    is_lost = true;
                    family.kill();
                }
            },
            _ = terminate.recv() => family.terminate(),
            _ = heir_ended.recv() => {
                // Anybody can send this signal, so it is looked whether it is true.
                if !is_parent(heir) {
                    is_lost = true;
                    family.kill();
                }
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => family.kill(),
            _ = sweep.tick(), if family.is_killing => {
                family.kill();
                is_empty = family.reap()?;
            }
        }
    }
    let Exit { code, signal } = family.exit;
    match is_lost {
        true => Ok(()),
        false => report(&mut reports, &Report::Ended { code, signal }).await,
    }
}

async fn report(to: &mut tokio::net::unix::OwnedWriteHalf, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    tokio::io::AsyncWriteExt::write_all(to, &line).await
}

#[derive(Default)]
struct Exit {
    code: Option<i32>,
    signal: Option<i32>,
}

/// The component, and all that it started.
struct Family {
    first: Pid,
    /// The component itself has been waited for, and its number may be another's.
    first_has_ended: bool,
    exit: Exit,
    /// It was asked to end; those that were asked before are not asked twice, which some take for a second Ctrl-C.
    is_terminating: bool,
    asked: BTreeSet<i32>,
    /// When what is left of a component that ended by itself is killed.
    kill_at: Option<Instant>,
    is_killing: bool,
}

impl Family {
    fn of(pid: u32) -> io::Result<Self> {
        let first = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
        Ok(Self {
            first,
            first_has_ended: false,
            exit: Exit::default(),
            is_terminating: false,
            asked: BTreeSet::new(),
            kill_at: None,
            is_killing: false,
        })
    }

    /// Asks all to end: the component's process group at once, and those outside of it one by one.
    fn terminate(&mut self) {
        self.is_terminating = true;
        let members = descendants(getpid());
        if !self.first_has_ended && self.asked.insert(self.first.as_raw()) {
            let group = self.first.as_raw();
            self.asked
                .extend(members.iter().filter(|(_, its_group)| **its_group == group).map(|(pid, _)| *pid));
            // What cannot be sent a signal has ended, here as below.
            let _ = killpg(self.first, Signal::SIGTERM);
        }
        for pid in members.into_keys() {
            if self.asked.insert(pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
    }

    fn kill(&mut self) {
        self.is_killing = true;
        self.kill_at = None;
        if !self.first_has_ended {
            let _ = killpg(self.first, Signal::SIGKILL);
        }
        for pid in descendants(getpid()).into_keys() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Waits for those that have ended; `true` once nobody is left.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return Ok(false),
                Ok(status) => self.note(status),
                Err(Errno::ECHILD) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn note(&mut self, status: WaitStatus) {
        let exit = match status {
            WaitStatus::Exited(pid, code) if pid == self.first => Exit { code: Some(code), signal: None },
            WaitStatus::Signaled(pid, signal, _) if pid == self.first => {
                Exit { code: None, signal: Some(signal as i32) }
            }
            _ => return,
        };
        self.exit = exit;
        self.first_has_ended = true;
        // What it left behind came to this process in this moment. Where `up` asked for the end, it also says when the
        // time for it is over.
        if !self.is_killing && !self.is_terminating {
            self.kill_at = Some(Instant::now() + GRACE);
        }
        self.terminate();
    }
}
