//! Debian's packages, unpacked beside the system's own programs: a `nats-server` would be in the way of another, and start
//! one as a service; and unpacking needs no root.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Installation, file_error, make_directory, may_use_apt, remove_if_there, succeeds};
use crate::environment::{NATS_2_9_VARIABLE, NATS_C_VARIABLE, PROMETHEUS_VARIABLE, nats_2_9_server};
use crate::error::Error;
use crate::step::{run_command, run_command_in};

pub(super) const NATS_2_9: &str = "the nats-server of Debian 12";
pub(super) const PROMETHEUS: &str = "the Prometheus of Debian 12, with promtool";
pub(super) const NATS_C: &str = "the C client of Debian 12";

pub(super) fn install_nats_2_9(installation: &Installation) -> Result<(), Error> {
    if env::var_os(NATS_2_9_VARIABLE).is_some() {
        return Ok(());
    }
    let cannot = |reason: String| Error::CannotBeHad {
        what: NATS_2_9,
        reason: format!("{reason}; name a nats-server 2.9 of your own in {NATS_2_9_VARIABLE}"),
    };
    unpack(&["nats-server"], &installation.directory, cannot)?;
    let wanted = String::from_utf8_lossy(&installation.pins()?).trim().to_owned();
    let said = Command::new(nats_2_9_server()).arg("--version").stdin(Stdio::null()).output();
    let said = said.map_err(|error| cannot(format!("the program of the package does not run, {error}")))?;
    // `nats-server: v2.9.10`
    let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    match said.ends_with(&format!("v{wanted}")) {
        true => Ok(()),
        false => Err(cannot(format!("this system's package has {said:?}, not {wanted} as Debian 12"))),
    }
}

/// The packages are named in the file that pins them: the library, its header, and what it needs that is not everywhere.
pub(super) fn install_nats_c(installation: &Installation) -> Result<(), Error> {
    if env::var_os(NATS_C_VARIABLE).is_some() {
        return Ok(());
    }
    let packages = String::from_utf8_lossy(&installation.pins()?).into_owned();
    let packages: Vec<&str> = packages.split_whitespace().collect();
    unpack(&packages, &installation.directory, |reason| Error::CannotBeHad {
        what: NATS_C,
        reason: format!(
            "{reason}; name a directory of your own, with include/nats/nats.h and lib/libnats.so, in {NATS_C_VARIABLE}"
        ),
    })
}

/// Go programs that need nothing beside the C library, so that the package alone is enough.
pub(super) fn install_prometheus(installation: &Installation) -> Result<(), Error> {
    if env::var_os(PROMETHEUS_VARIABLE).is_some() {
        return Ok(());
    }
    unpack(&["prometheus"], &installation.directory, |reason| Error::CannotBeHad {
        what: PROMETHEUS,
        reason: format!(
            "{reason}; name a directory of your own with prometheus and promtool in {PROMETHEUS_VARIABLE}"
        ),
    })
}

/// Unpacks these packages of the system's release into a directory.
fn unpack(packages: &[&str], directory: &Path, cannot: impl Fn(String) -> Error) -> Result<(), Error> {
    if !succeeds(&["apt-get", "--version"]) || !succeeds(&["dpkg-deb", "--version"]) {
        return Err(cannot("it comes as a package of Debian, and this system takes none".to_owned()));
    }
    make_directory(directory)?;
    // Not as the user that apt otherwise changes to, who may not write there.
    let mut download = Command::new("apt-get");
    download.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]).args(packages);
    if run_command_in(directory, &mut download).is_err() {
        // The lists of packages may be missing, as they are in small images.
        if may_use_apt() {
            run_command(Command::new("apt-get").args(["-qq", "update"]))?;
        }
        run_command_in(directory, &mut download).map_err(|error| cannot(error.to_string()))?;
    }
    let files = fs::read_dir(directory).map_err(file_error(directory))?;
    let files = files.filter_map(|entry| Some(entry.ok()?.path()));
    let files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect();
    if files.len() != packages.len() {
        return Err(cannot(format!("apt-get downloaded {} of {} packages", files.len(), packages.len())));
    }
    for file in files {
        run_command(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(directory))?;
        remove_if_there(&file, fs::remove_file)?;
    }
    Ok(())
}
