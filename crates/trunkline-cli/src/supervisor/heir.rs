//! The heir of a guardian: one more small process, between `up` and the guardian.
//!
//! Whoever is killed with SIGKILL cannot clean up, and neither can `up` if it dies in the same moment. So each component
//! has two processes that know what belongs to it: what a guardian leaves comes to its heir, which ends it and then itself.
//! The heir is told nothing and asked nothing. It is not named after `trunkline`, so that who ends everything that is
//! (`pkill -9 -f trunkline`) leaves the one that cleans up.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use super::guardian::{GUARD, SELF};
use super::orphans::descendants;

/// First argument of an heir; the name of the component is the second.
pub(super) const HEIR: &str = "__heir";

/// Runs as the heir of the guardian of this component.
pub(super) fn run(component: &OsStr) -> ExitCode {
    match inherit(component) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Stderr is the component's log; there is nobody else to tell.
            let _ = writeln!(io::stderr(), "the guardian of a component cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

fn inherit(component: &OsStr) -> io::Result<()> {
    prctl::set_name(c"heir")?;
    // Signals for a whole process group or control group are for the guardian, which starts without this.
    not_for_heirs().thread_block()?;
    prctl::set_child_subreaper(true)?;
    let guardian =
        Command::new(SELF).arg0("trunkline").arg(GUARD).arg(getpid().to_string()).arg(component).spawn()?;
    let guardian = Pid::from_raw(i32::try_from(guardian.id()).map_err(io::Error::other)?);
    // As long as it runs, all that ends below it comes to the guardian.
    while !has_ended(guardian, waitpid(guardian, None))? {}
    loop {
        for pid in descendants(getpid()).into_keys() {
            // What cannot be sent a signal has ended.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // Each end may bring more: what started a process in the moment in which it was killed leaves it here.
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Signals that an heir blocks. Who it starts inherits that, and has to undo it.
pub(super) fn not_for_heirs() -> SigSet {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().collect()
}

fn has_ended(guardian: Pid, waited: nix::Result<WaitStatus>) -> io::Result<bool> {
    match waited {
        Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => Ok(pid == guardian),
        Ok(_) | Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
