//! The scenario `idle`: what a connection costs that does nothing. Clients connect, are accepted, and stay silent; the
//! growth of the server's resident memory is divided by their number. Only a server that has not run before gives
//! a true answer, because memory once used is seldom given back.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::connection::{CONTROL_BUFFER_BYTES, Connection};
use super::endpoint::Endpoint;
use super::error::BenchError;
use super::halt::Halt;
use super::measure::Idle;
use super::plan::Workload;
use super::process::Processes;

/// Files that the process needs besides the connections.
const FILES_ASIDE: u64 = 64;

/// Between two readings of a server that settles.
const SETTLE_STEP: Duration = Duration::from_millis(100);
const SETTLE_MAX: Duration = Duration::from_secs(3);
const SETTLED_BYTES: u64 = 64 * 1024;

/// Connects before the first reading: what a server allocates once, for its first client, is not the cost of each.
const FIRST_CLIENTS: usize = 4;

/// Opens the connections, reads the memory before and after, and checks that all are still open.
///
/// # Errors
/// A connection was refused or lost, or the process cannot be read.
pub(super) fn run(
    workload: &Workload,
    endpoint: &Endpoint,
    server: Processes,
    halt: &Halt,
) -> Result<Idle, BenchError> {
    for _ in 0..FIRST_CLIENTS {
        Connection::open(endpoint, CONTROL_BUFFER_BYTES, halt)?;
    }
    let rss_bytes_before = settled(server, halt)?;
    let mut connections = Vec::with_capacity(workload.clients);
    for _ in 0..workload.clients {
        halt.check()?;
        connections.push(Connection::open(endpoint, CONTROL_BUFFER_BYTES, halt)?);
    }
    let rss_bytes_after = settled(server, halt)?;
    for (index, connection) in connections.iter_mut().enumerate() {
        connection.round_trip(&format!("idle connection {index}"), halt)?;
    }
    Ok(Idle { connections: connections.len() as u64, rss_bytes_before, rss_bytes_after })
}

/// The resident memory once it has stopped to change, or after [`SETTLE_MAX`].
fn settled(server: Processes, halt: &Halt) -> Result<u64, BenchError> {
    let rss_bytes = || match server.usage()? {
        Some(usage) => Ok(usage.rss_bytes),
        None => Err(BenchError::IdleWithoutProcess),
    };
    let since = Instant::now();
    let mut last = rss_bytes()?;
    loop {
        halt.check()?;
        thread::sleep(SETTLE_STEP);
        let now = rss_bytes()?;
        if now.abs_diff(last) <= SETTLED_BYTES || since.elapsed() >= SETTLE_MAX {
            return Ok(now);
        }
        last = now;
    }
}

/// Makes sure that so many connections may be open, by raising the soft limit if need be. To be called before
/// servers are started, because they inherit the limit and need as many.
///
/// # Errors
/// [`BenchError::OpenFiles`] when the hard limit is lower.
pub(super) fn allow_connections(connections: usize) -> Result<(), BenchError> {
    let wanted = connections as u64 + FILES_ASIDE;
    let refused = |limit| BenchError::OpenFiles { wanted, limit };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|_| refused(0))?;
    if soft >= wanted {
        return Ok(());
    }
    if hard < wanted {
        return Err(refused(hard));
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map_err(|_| refused(soft))
}
