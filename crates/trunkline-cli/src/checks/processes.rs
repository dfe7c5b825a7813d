//! Processes of this machine that listen somewhere: who they are, and where they keep their files.
//!
//! Of other users' processes the system tells nothing unless we are root; then there is no answer, and no error either.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process, all_processes};

/// A process that listens on a port of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) pid: i32,
    pub(crate) name: String,
    /// Whether it runs the program that asks.
    pub(crate) is_this_program: bool,
}

/// Who listens on the address, or on the same port of all addresses.
pub(crate) fn listener(address: SocketAddr) -> Option<Listener> {
    let sockets: Vec<u64> =
        entries().into_iter().filter(|entry| listens_on(entry, address)).map(|entry| entry.inode).collect();
    let holds = |process: &Process| {
        let files = process.fd().ok()?;
        let mut sockets_of = files.filter_map(Result::ok).filter_map(|file| match file.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        });
        sockets_of.any(|inode| sockets.contains(&inode)).then_some(())
    };
    if sockets.is_empty() {
        return None;
    }
    let process = all_processes().ok()?.filter_map(Result::ok).find(|process| holds(process).is_some())?;
    let ours = std::env::current_exe().ok();
    Some(Listener {
        pid: process.pid,
        name: process.stat().ok()?.comm,
        is_this_program: process.exe().ok().is_some_and(|exe| Some(exe) == ours),
    })
}

fn entries() -> Vec<TcpNetEntry> {
    let mut all = procfs::net::tcp().unwrap_or_default();
    all.extend(procfs::net::tcp6().unwrap_or_default());
    all
}

fn listens_on(entry: &TcpNetEntry, address: SocketAddr) -> bool {
    let local = entry.local_address;
    let same = |ip: IpAddr| ip.to_canonical();
    entry.state == TcpState::Listen
        && local.port() == address.port()
        && (same(local.ip()) == same(address.ip())
            || local.ip().is_unspecified()
            || address.ip().is_unspecified())
}

/// Files that a process has open, other than those that the system makes up.
pub(crate) fn open_files(pid: i32) -> Vec<PathBuf> {
    let Ok(files) = Process::new(pid).and_then(|process| process.fd()) else { return Vec::new() };
    let path = |target| match target {
        FDTarget::Path(path) if !path.starts_with("/dev") && !path.starts_with("/proc") => Some(path),
        _ => None,
    };
    files.filter_map(Result::ok).filter_map(|file| path(file.target)).collect()
}

/// The directory that a process works in.
pub(crate) fn working_directory(pid: i32) -> Option<PathBuf> {
    Process::new(pid).ok()?.cwd().ok()
}

/// Most files and sockets that a process may have open.
pub(crate) fn files_max(pid: i32) -> Option<u64> {
    match Process::new(pid).ok()?.limits().ok()?.max_open_files.soft_limit {
        procfs::process::LimitValue::Value(limit) => Some(limit),
        procfs::process::LimitValue::Unlimited => Some(u64::MAX),
    }
}

/// The part of a path before the first component of this name.
pub(crate) fn before(path: &Path, name: &str) -> Option<PathBuf> {
    let mut components = path.components();
    let kept: PathBuf = components.by_ref().take_while(|part| part.as_os_str() != name).collect();
    (kept != path).then_some(kept)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_process_behind_a_port_is_found() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listener(listening.local_addr().unwrap()).expect("this process");
        assert_eq!(found.pid, i32::try_from(std::process::id()).unwrap());
        assert!(found.is_this_program);
        let address = listening.local_addr().unwrap();
        drop(listening);
        assert_eq!(listener(address), None);
    }

    #[test]
    fn a_store_is_the_part_before_its_name() {
        let path = Path::new("/data/nats/jetstream/$G/streams/x/msgs/1.blk");
        assert_eq!(before(path, "jetstream"), Some(PathBuf::from("/data/nats")));
        assert_eq!(before(path, "redis"), None);
    }
}
