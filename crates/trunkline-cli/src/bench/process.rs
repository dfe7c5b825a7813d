//! What a server costs, read from `/proc`: CPU time and resident memory of its process, or of its process group when bench
//! started it, so that a wrapper such as `sh -c` or `taskset` does not hide the server behind it.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use procfs::ProcError;
use procfs::process::{Process, Stat, all_processes};

use super::error::BenchError;
use super::measure::Usage;

/// The processes that belong to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processes {
    /// A server somewhere else: nothing can be read.
    Unknown,
    /// One process, named by the user.
    One(i32),
    /// All processes of a group, which bench started.
    Group(i32),
}

impl Processes {
    /// What CPU time they have used since they started, `None` when they are unknown. Cheaper than [`Self::usage`], which
    /// counts the pages of memory while the process waits.
    ///
    /// # Errors
    /// As [`Self::usage`].
    pub(super) fn cpu(self) -> Result<Option<Duration>, BenchError> {
        self.sum(|process| Ok(Usage { cpu: cpu_of(&process.stat()?), rss_bytes: 0 }))
            .map(|usage| usage.map(|usage| usage.cpu))
    }

    /// What they have used since they started, `None` when they are unknown.
    ///
    /// # Errors
    /// [`BenchError::Process`] when they cannot be read, for instance because they have ended.
    pub(super) fn usage(self) -> Result<Option<Usage>, BenchError> {
        self.sum(usage_of)
    }

    fn sum(self, usage_of: fn(&Process) -> Result<Usage, ProcError>) -> Result<Option<Usage>, BenchError> {
        let failed = |pid, source| BenchError::Process { pid, source };
        match self {
            Self::Unknown => Ok(None),
            Self::One(pid) => {
                let process = Process::new(pid).map_err(|source| failed(pid, source))?;
                usage_of(&process).map(Some).map_err(|source| failed(pid, source))
            }
            Self::Group(leader) => {
                let mut sum: Option<Usage> = None;
                let listed = all_processes().map_err(|source| failed(leader, source))?;
                // A process that ends while the list is read is no longer a part of the server.
                for process in listed.filter_map(Result::ok) {
                    let in_group = process.stat().is_ok_and(|stat| stat.pgrp == leader);
                    if let (true, Ok(usage)) = (in_group, usage_of(&process)) {
                        let sum = sum.get_or_insert_default();
                        sum.cpu += usage.cpu;
                        sum.rss_bytes += usage.rss_bytes;
                    }
                }
                let gone = || failed(leader, ProcError::NotFound(None));
                sum.ok_or_else(gone).map(Some)
            }
        }
    }
}

/// CPU time of this process, finer than the ticks that `/proc` counts in.
///
/// # Errors
/// [`BenchError::OwnUsage`] when the system does not tell.
pub(super) fn own_cpu() -> Result<Duration, BenchError> {
    cpu(UsageWho::RUSAGE_SELF)
}

/// CPU time of the calling thread.
///
/// # Errors
/// As [`own_cpu`].
pub(super) fn thread_cpu() -> Result<Duration, BenchError> {
    cpu(UsageWho::RUSAGE_THREAD)
}

fn cpu(whose: UsageWho) -> Result<Duration, BenchError> {
    let usage = getrusage(whose).map_err(|source| BenchError::OwnUsage { source })?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}

fn usage_of(process: &Process) -> Result<Usage, ProcError> {
    let stat = process.stat()?;
    Ok(Usage { cpu: cpu_of(&stat), rss_bytes: rss_bytes(process).unwrap_or(stat.rss * procfs::page_size()) })
}

fn cpu_of(stat: &Stat) -> Duration {
    let ticks = stat.utime + stat.stime;
    Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64)
}

/// Resident memory counted page by page: since Linux 6.2 the cheaper counters lag behind by some pages per CPU.
fn rss_bytes(process: &Process) -> Option<u64> {
    let rollup = process.smaps_rollup().ok()?;
    rollup.memory_map_rollup.iter().find_map(|map| map.extension.map.get("Rss").copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_usage_can_be_read() {
        let usage = Processes::One(std::process::id() as i32).usage().expect("own process").expect("known");
        assert!(usage.rss_bytes > 100 * 1024, "{usage:?}");
    }

    #[test]
    fn a_process_that_does_not_exist_is_an_error() {
        assert!(matches!(Processes::One(i32::MAX).usage(), Err(BenchError::Process { .. })));
        assert!(matches!(Processes::Group(i32::MAX).usage(), Err(BenchError::Process { .. })));
        assert!(Processes::Unknown.usage().expect("nothing to read").is_none());
    }
}
