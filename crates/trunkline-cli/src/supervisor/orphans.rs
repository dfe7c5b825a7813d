//! What is left of components whose guardian was killed together with its heir: it comes to `up`, which ends it.
//!
//! `up` asks the kernel for the processes below it that lose their parents, as guardians and heirs do. A child that it has
//! not started itself is such an orphan.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often is looked for what is left while it is being killed.
const SWEEP: Duration = Duration::from_millis(20);
/// Longest time for it. Only what hangs in the kernel lives longer than that after SIGKILL.
const SWEEP_WITHIN: Duration = Duration::from_secs(10);

/// The children of `up`: those that are known, and the orphans among the others.
#[derive(Debug, Clone)]
pub(super) struct Children {
    /// Processes that were started here or were there before. The lock is held while one is started and while orphans are
    /// looked for, so that a new one is never taken for an orphan; never across a wait.
    known: Arc<Mutex<BTreeSet<i32>>>,
}

impl Children {
    /// Has orphans come to this process from now on.
    ///
    /// # Errors
    /// The kernel refuses that.
    pub(super) fn adopt() -> io::Result<Self> {
        prctl::set_child_subreaper(true)?;
        // A shell may have started some in the background before it became `up`.
        let before = descendants(getpid()).into_keys().collect();
        Ok(Self { known: Arc::new(Mutex::new(before)) })
    }

    /// Starts a process that is no orphan.
    ///
    /// # Errors
    /// Those of starting it.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut known = self.known();
        let child = command.spawn()?;
        known.extend(child.id().and_then(|id| i32::try_from(id).ok()));
        Ok(child)
    }

    /// Waits for the end of a process that was started here.
    pub(super) async fn wait(&self, child: &mut Child) {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        if let Err(error) = child.wait().await {
            tracing::debug!(%error, "a guardian cannot be waited for");
        }
        if let Some(id) = id {
            self.known().remove(&id);
        }
    }

    /// Ends all orphans with everything below them, and returns when there are none any more.
    pub(super) async fn end_orphans(&self) {
        let started = Instant::now();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            sweep.tick().await;
            let children = self.clone();
            // Reading /proc takes milliseconds where many processes run.
            let left = spawn_blocking(move || children.kill_orphans()).await.unwrap_or_default();
            if left.is_empty() {
                return;
            }
            if started.elapsed() > SWEEP_WITHIN {
                return tracing::warn!(pids = ?left, "what a component left behind cannot be ended");
            }
        }
    }

    /// Kills the orphans, and returns those that there were.
    fn kill_orphans(&self) -> Vec<i32> {
        let known = self.known();
        let parents = Parents::now();
        let mut left = Vec::new();
        for (pid, _) in parents.children(getpid().as_raw()) {
            if known.contains(pid) {
                continue;
            }
            let orphan = Pid::from_raw(*pid);
            // What has ended counts: the processes that it left may be children of this one only since.
            left.push(*pid);
            if waitpid(orphan, Some(WaitPidFlag::WNOHANG)) != Ok(WaitStatus::StillAlive) {
                continue;
            }
            for pid in parents.below(*pid).into_keys().chain([*pid]) {
                // What cannot be sent a signal has ended.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        left
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything below a process, each with its process group.
pub(super) fn descendants(of: Pid) -> BTreeMap<i32, i32> {
    Parents::now().below(of.as_raw())
}

/// Who was whose child at one moment.
struct Parents(BTreeMap<i32, Vec<(i32, i32)>>);

impl Parents {
    fn now() -> Self {
        let mut children: BTreeMap<i32, Vec<(i32, i32)>> = BTreeMap::new();
        let processes = procfs::process::all_processes().into_iter().flatten();
        for stat in processes.flatten().filter_map(|process| process.stat().ok()) {
            children.entry(stat.ppid).or_default().push((stat.pid, stat.pgrp));
        }
        Self(children)
    }

    /// Children with their process groups.
    fn children(&self, of: i32) -> &[(i32, i32)] {
        self.0.get(&of).map_or(&[], Vec::as_slice)
    }

    fn below(&self, top: i32) -> BTreeMap<i32, i32> {
        let mut found = BTreeMap::new();
        let mut parents = vec![top];
        while let Some(parent) = parents.pop() {
            for (pid, group) in self.children(parent) {
                if found.insert(*pid, *group).is_none() {
                    parents.push(*pid);
                }
            }
        }
        found
    }
}
