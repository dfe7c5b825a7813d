//! This machine: how many files a process may open, and how much memory it may take.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use procfs::{Current as _, Meminfo};
use trunkline::backend::BackendKind;
use trunkline::config::Config;

use crate::checks::{Finding, disk, processes};

const FILES: &str = "files";
const MEMORY: &str = "memory";

/// File descriptors of `up` beside those of its clients: listeners, the runtime, connections to the backend, HTTP.
const FILES_BESIDE: u64 = 512;

/// Below this even a laptop has trouble.
const FILES_MIN: u64 = 1024;

/// Looks at the limits of the running `up` with this process id, else at those that one started here would get.
pub(super) fn check(config: &Config, up: Option<i32>) -> Vec<Finding> {
    let files = up.and_then(processes::files_max);
    let whose = if files.is_some() { "the running trunkline" } else { "a process started here" };
    let mut findings = Vec::new();
    match files.map(Ok).unwrap_or_else(|| getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| soft)) {
        Ok(limit) => findings.push(files_for(limit, config.server.limits.max_connections, whose)),
        Err(error) => {
            let text = format!("the limit of open files is not known: {error}");
            findings.push(Finding::warn(FILES, text, "look with `ulimit -n`"));
        }
    }
    let group = cgroup_limit(Path::new("/sys/fs/cgroup"), &cgroup_path());
    let machine = Meminfo::current().ok().map(|memory| memory.mem_total);
    let wanted = config.runtime.resources.memory;
    findings.push(memory_for(wanted, group, machine));
    // On NATS clients send to other servers, which have limits of their own.
    if let Some(memory) = wanted.filter(|_| config.messaging.backend != BackendKind::Nats) {
        let room = trunkline_server::room_for_buffers(memory).map(|bytes| bytes as u64);
        findings.extend(room.and_then(|room| payload_for(config.server.limits.max_payload, memory, room)));
    }
    findings
}

/// Whether a message may be larger than all buffers together.
fn payload_for(max_payload: u64, memory: u64, room: u64) -> Option<Finding> {
    let show = disk::bytes;
    (max_payload > room).then(|| {
        Finding::warn(
            MEMORY,
            format!(
                "server.limits.max_payload is {}, and of runtime.resources.memory ({}) some {} are left for all buffers \
                 together: whoever sends or reads a message of that size may be cut off for it",
                show(max_payload),
                show(memory),
                show(room)
            ),
            "lower server.limits.max_payload, or raise runtime.resources.memory",
        )
    })
}

fn files_for(limit: u64, connections: u64, whose: &str) -> Finding {
    let wanted = connections.saturating_add(FILES_BESIDE);
    let fix = "`ulimit -n 65536` in the shell, LimitNOFILE= for systemd, `--ulimit nofile=` for a container; or lower \
               server.limits.max_connections";
    match limit {
        limit if limit >= wanted => {
            Finding::ok(FILES, format!("{whose} may open {limit} files, enough for {connections} clients"))
        }
        limit if limit < FILES_MIN => {
            Finding::fail(FILES, format!("{whose} may open {limit} files only"), fix)
        }
        limit => {
            let room = limit.saturating_sub(FILES_BESIDE);
            let text = format!(
                "{whose} may open {limit} files: some {room} clients, and server.limits.max_connections is {connections}"
            );
            Finding::warn(FILES, text, fix)
        }
    }
}

fn memory_for(wanted: Option<u64>, group: Option<u64>, machine: Option<u64>) -> Finding {
    let bounds = [(group, "the container (its control group) may take"), (machine, "this machine has")];
    let least = bounds.into_iter().filter_map(|(bytes, what)| Some((bytes?, what))).min();
    let show = disk::bytes;
    match (wanted, least) {
        (Some(wanted), Some((bound, what))) if wanted > bound => Finding::fail(
            MEMORY,
            format!(
                "runtime.resources.memory is {}, and {what} {}: the kernel would end the bus first",
                show(wanted),
                show(bound)
            ),
            "lower runtime.resources.memory below that, or raise the other limit",
        ),
        (Some(wanted), Some((bound, what))) if wanted > bound / 10 * 9 => Finding::warn(
            MEMORY,
            format!(
                "runtime.resources.memory is {}, and {what} {}: little is left for anything else",
                show(wanted),
                show(bound)
            ),
            "leave a tenth of it to the rest",
        ),
        (Some(wanted), _) => Finding::ok(MEMORY, format!("runtime.resources.memory is {}", show(wanted))),
        (None, _) if group.is_some() => Finding::warn(
            MEMORY,
            format!(
                "runtime.resources.memory is not set, and the container may take {}",
                group.map(show).unwrap_or_default()
            ),
            "set runtime.resources.memory to nine tenths of that: then the slowest consumer goes, and not the bus",
        ),
        (None, _) => Finding::ok(
            MEMORY,
            format!(
                "runtime.resources.memory is not set, so buffers have their own bounds only{}",
                machine.map(|bytes| format!("; this machine has {}", show(bytes))).unwrap_or_default()
            ),
        ),
    }
}

/// The control group of this process, relative to the root of them.
fn cgroup_path() -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    // `0::/path` is version 2; of version 1 the line of the controller counts.
    let path = lines.iter().find_map(|line| line.strip_prefix("0::")).filter(|path| *path != "/");
    let legacy = lines.iter().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
    PathBuf::from(path.or(legacy).unwrap_or("/"))
}

/// The least that the group or one above it may take.
fn cgroup_limit(root: &Path, group: &Path) -> Option<u64> {
    let relative = group.strip_prefix("/").unwrap_or(group);
    let mut least = None;
    for group in relative.ancestors() {
        for file in [
            root.join(group).join("memory.max"),
            root.join("memory").join(group).join("memory.limit_in_bytes"),
        ] {
            let text = fs::read_to_string(file).unwrap_or_default();
            // Version 2 writes `max` for none, version 1 a number larger than any memory.
            let limit = text.trim().parse::<u64>().ok().filter(|limit| *limit < 1 << 60);
            least = least.into_iter().chain(limit).min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Verdict;

    #[test]
    fn files_are_held_against_the_clients_that_are_allowed() {
        for (limit, connections, verdict) in [
            (100_000, 65_536, Verdict::Ok),
            (1024, 65_536, Verdict::Warn),
            (1023, 65_536, Verdict::Fail),
            (1024, 500, Verdict::Ok),
        ] {
            assert_eq!(files_for(limit, connections, "it").verdict, verdict, "{limit} {connections}");
        }
    }

    #[test]
    fn memory_is_held_against_the_least_that_there_is() {
        const MB: u64 = 1 << 20;
        for (wanted, group, machine, verdict) in [
            (None, None, Some(8000 * MB), Verdict::Ok),
            (None, Some(512 * MB), Some(8000 * MB), Verdict::Warn),
            (Some(512 * MB), Some(1000 * MB), Some(8000 * MB), Verdict::Ok),
            (Some(950 * MB), Some(1000 * MB), Some(8000 * MB), Verdict::Warn),
            (Some(1001 * MB), Some(1000 * MB), Some(8000 * MB), Verdict::Fail),
            (Some(9000 * MB), None, Some(8000 * MB), Verdict::Fail),
        ] {
            assert_eq!(memory_for(wanted, group, machine).verdict, verdict, "{wanted:?} {group:?}");
        }
    }

    #[test]
    fn a_message_that_all_buffers_together_have_no_room_for_is_told() {
        assert!(payload_for(1 << 20, 64 << 20, 8 << 20).is_none());
        let found = payload_for(64 << 20, 96 << 20, 8 << 20).expect("it is too large");
        assert_eq!(found.verdict, Verdict::Warn);
        for named in
            ["server.limits.max_payload is 64.0 MiB", "runtime.resources.memory (96.0 MiB)", "8.0 MiB"]
        {
            assert!(found.text.contains(named), "{}", found.text);
        }
    }

    #[test]
    fn the_least_of_all_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        assert_eq!(cgroup_limit(root.path(), Path::new("/a/b")), None);
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("a/memory.max"), "1000\n").unwrap();
        assert_eq!(cgroup_limit(root.path(), Path::new("/a/b")), Some(1000));
        let old = root.path().join("memory/a/b");
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(cgroup_limit(root.path(), Path::new("/a/b")), Some(1000));
        fs::write(old.join("memory.limit_in_bytes"), "500\n").unwrap();
        assert_eq!(cgroup_limit(root.path(), Path::new("/a/b")), Some(500));
    }
}
