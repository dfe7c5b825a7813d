//! The append-only log of a Redis server that is not running: cut as a kill within a write leaves it, and mended as the
//! operator's page says.
//!
//! A write that ends within a transaction leaves one without its end. Redis, up to the newest that is tried here, takes away the
//! command that was cut and leaves the beginning of the transaction, behind which it then writes. The next start carries the
//! beginning out together with what follows. Valkey 9.1.2 takes away all of it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::environment;
use crate::redis_version::RedisVersion;

const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";

/// Whether the server, started with a log that is cut within a transaction, keeps the beginning of it.
pub fn keeps_cut_transactions(version: RedisVersion) -> bool {
    version != RedisVersion::Valkey
}

/// Has the server's own tool take away a transaction that is cut, as a whole. Where there is no log nothing is done.
///
/// # Panics
/// When the tool finds more than that to mend, or cannot be run.
pub(crate) fn mend(version: RedisVersion, directory: &Path) {
    if !keeps_cut_transactions(version) {
        return;
    }
    let parts = directory.join("appendonlydir/appendonly.aof.manifest");
    let log = [parts, directory.join("appendonly.aof")].into_iter().find(|log| log.exists());
    let Some(log) = log else { return };
    // The tool is the server's program under another name, by which the packages install it, too. It asks before it
    // cuts.
    let answer = directory.join("yes");
    fs::write(&answer, "y\n").expect("a temporary directory takes files");
    let ran = Command::new(environment::redis_server(version))
        .arg0("redis-check-aof")
        .arg("--fix")
        .arg(&log)
        .stdin(Stdio::from(File::open(&answer).expect("it was just written")))
        .output()
        .unwrap_or_else(|error| panic!("redis-check-aof cannot be run: {error}"));
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "redis-check-aof ends with {}: {said}", ran.status);
}

/// Cuts the log within the last transaction that has `marker` in it, right before its end: all of its commands are there.
///
/// # Panics
/// When there is no such transaction, or no log.
pub(crate) fn cut_within(directory: &Path, marker: &[u8]) {
    let log = latest(directory);
    let written = fs::read(&log).expect("a log can be read");
    let marked = rfind(&written, marker).expect("the log has the marker");
    let begun = rfind(&written[..marked], MULTI).expect("the marker is within a transaction");
    let end = find(&written[marked..], EXEC).expect("the transaction has an end") + marked;
    assert!(find(&written[begun..marked], EXEC).is_none(), "the marker is behind the last transaction");
    let log = OpenOptions::new().write(true).open(log).expect("a log can be written");
    // A few bytes of the end are there, as of anything that is cut.
    log.set_len((end + 4) as u64).expect("a file can be cut");
}

/// The file that the server writes to: the last in its directory, or before Redis 7.0 the only one.
fn latest(directory: &Path) -> PathBuf {
    let parts = fs::read_dir(directory.join("appendonlydir")).into_iter().flatten();
    let paths = parts.filter_map(Result::ok).map(|part| part.path());
    let written = paths.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max();
    written.unwrap_or_else(|| directory.join("appendonly.aof"))
}

fn find(within: &[u8], wanted: &[u8]) -> Option<usize> {
    within.windows(wanted.len()).position(|part| part == wanted)
}

fn rfind(within: &[u8], wanted: &[u8]) -> Option<usize> {
    within.windows(wanted.len()).rposition(|part| part == wanted)
}
