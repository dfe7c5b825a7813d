//! The files by which others find the server: the one with its process id, and the one with its ports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What is in the ports file; a server without monitoring has no list of it.
#[derive(Debug, Serialize)]
struct Ports {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nats: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    monitoring: Vec<String>,
}

/// A file that goes with the server.
#[derive(Debug)]
pub(crate) struct OwnFile {
    path: PathBuf,
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes the number of this process. It stays when the server ends, as that of nats-server does.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_pid(path: &Path) -> std::io::Result<()> {
    std::fs::write(path, std::process::id().to_string())
}

/// Writes `DIRECTORY/PROGRAM_PID.ports`, beside its place first, so that nobody reads half of it.
///
/// # Errors
/// The directory does not exist or may not be written to.
pub(crate) fn write_ports(
    directory: &Path,
    program: &str,
    nats: SocketAddr,
    http: Option<SocketAddr>,
) -> std::io::Result<OwnFile> {
    let ports = Ports {
        nats: vec![format!("nats://{nats}")],
        monitoring: http.iter().map(|http| format!("http://{http}")).collect(),
    };
    let path = directory.join(format!("{program}_{}.ports", std::process::id()));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)?;
    serde_json::to_writer(&mut file, &ports)?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(OwnFile { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_file_is_that_of_nats_server_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let nats = "127.0.0.1:41".parse().unwrap();
        let file = write_ports(directory.path(), "nats-server", nats, Some("127.0.0.1:42".parse().unwrap()))
            .unwrap();
        let path = directory.path().join(format!("nats-server_{}.ports", std::process::id()));
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"nats\":[\"nats://127.0.0.1:41\"],\"monitoring\":[\"http://127.0.0.1:42\"]}"
        );
        drop(file);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
