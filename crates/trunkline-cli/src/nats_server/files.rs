//! The files by which others find the server: the one with its process id, and the one with its ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What is in the ports file; what is not served has no list.
#[derive(Debug, Serialize)]
pub(crate) struct Ports {
    pub(crate) nats: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) monitoring: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) websocket: Vec<String>,
}

/// URLs by which programs on this machine reach a server at an address.
pub(crate) fn urls(scheme: &str, address: SocketAddr) -> Vec<String> {
    let port = address.port();
    let at = |ip: IpAddr| format!("{scheme}://{}", SocketAddr::new(ip, port));
    let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    match address.ip() {
        // Nobody connects to all of the machine's addresses.
        IpAddr::V4(ip) if ip.is_unspecified() => vec![at(v4)],
        IpAddr::V6(ip) if ip.is_unspecified() => vec![at(v4), at(v6)],
        ip => vec![at(ip)],
    }
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

/// `DIRECTORY/PROGRAM_PID.ports`.
pub(crate) fn ports_path(directory: &Path, program: &str) -> PathBuf {
    directory.join(format!("{program}_{}.ports", std::process::id()))
}

/// Writes `DIRECTORY/PROGRAM_PID.ports`, beside its place first, so that nobody reads half of it.
///
/// # Errors
/// The directory does not exist or may not be written to.
pub(crate) fn write_ports(directory: &Path, program: &str, ports: &Ports) -> std::io::Result<OwnFile> {
    let path = ports_path(directory, program);
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)?;
    serde_json::to_writer(&mut file, ports)?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(OwnFile { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_file_is_that_of_nats_server_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let at = |scheme, address: &str| urls(scheme, address.parse().unwrap());
        let ports = Ports {
            nats: at("nats", "10.1.2.3:41"),
            monitoring: at("http", "0.0.0.0:42"),
            websocket: at("ws", "[::]:43"),
        };
        let file = write_ports(directory.path(), "nats-server", &ports).unwrap();
        let path = directory.path().join(format!("nats-server_{}.ports", std::process::id()));
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"nats\":[\"nats://10.1.2.3:41\"],\"monitoring\":[\"http://127.0.0.1:42\"],\
             \"websocket\":[\"ws://127.0.0.1:43\",\"ws://[::1]:43\"]}"
        );
        drop(file);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
