//! Where the programs are that tests need beside cargo's own: `cargo xtask setup` installs them and
//! `cargo xtask test` names them in the environment. Without these variables the place where
//! `setup` puts them is looked at, so that plain `cargo test` works too.

use std::env;
use std::path::{Path, PathBuf};

/// Names the Python interpreter of the environment that has `nats-py` installed.
pub const PYTHON_VARIABLE: &str = "TRUNKLINE_TEST_PYTHON";
/// Names the directory whose `node_modules` holds the NATS clients for Node.
pub const NODE_PATH_VARIABLE: &str = "TRUNKLINE_TEST_NODE_PATH";
/// Names the `nats-server` program.
pub const NATS_SERVER_VARIABLE: &str = "TRUNKLINE_TEST_NATS_SERVER";

/// Names the `redis-server` program.
pub const REDIS_SERVER_VARIABLE: &str = "TRUNKLINE_TEST_REDIS_SERVER";

/// The Python interpreter to run client scripts with.
///
/// # Panics
/// When there is none; the message says which variable or command provides it.
pub fn python() -> PathBuf {
    locate(PYTHON_VARIABLE, "venv/bin/python", "a Python interpreter with nats-py")
}

/// The directory whose `node_modules` holds the NATS clients for Node.
///
/// # Panics
/// When there is none; the message says which variable or command provides it.
pub fn node_path() -> PathBuf {
    let directory = locate(NODE_PATH_VARIABLE, "node", "the NATS clients for Node");
    let modules = directory.join("node_modules");
    require(&modules, NODE_PATH_VARIABLE, "the NATS clients for Node");
    directory
}

/// The `nats-server` program to compare with.
///
/// # Panics
/// When there is none; the message says which variable or command provides it.
pub fn nats_server() -> PathBuf {
    locate(NATS_SERVER_VARIABLE, "venv/bin/nats-server", "the nats-server program")
}

/// The `redis-server` program: a package of the system, so it is not where `setup` puts the others.
///
/// # Panics
/// When there is none; the message says which variable or command provides it.
pub fn redis_server() -> PathBuf {
    let path =
        env::var_os(REDIS_SERVER_VARIABLE).map_or_else(|| "/usr/bin/redis-server".into(), PathBuf::from);
    require(&path, REDIS_SERVER_VARIABLE, "the redis-server program");
    path
}

fn locate(variable: &str, installed_as: &str, what: &str) -> PathBuf {
    let path = match env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => workspace_root().join("target/test-env").join(installed_as),
    };
    require(&path, variable, what);
    path
}

fn require(path: &Path, variable: &str, what: &str) {
    assert!(
        path.exists(),
        "{what} is not at {}; run `cargo xtask setup` to install it, or name another in {variable}",
        path.display()
    );
}

fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate lies two levels below the root of the workspace")
}
