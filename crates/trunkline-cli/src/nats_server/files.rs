//! The files by which others find the server: the one with its process id, and the one with its ports.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// What is in the ports file; what is not served has no list.
#[derive(Debug, Serialize)]
struct Ports {
    nats: [String; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    monitoring: Option<[String; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    websocket: Option<[String; 1]>,
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
    nats: String,
    http: Option<String>,
    websocket: Option<String>,
) -> std::io::Result<OwnFile> {
    let one = |url: Option<String>| url.map(|url| [url]);
    let ports = Ports { nats: [nats], monitoring: one(http), websocket: one(websocket) };
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
        let url = |url: &str| Some(url.to_owned());
        let (nats, http, web) = ("nats://h:41".to_owned(), url("http://h:42"), url("ws://h:43"));
        let file = write_ports(directory.path(), "nats-server", nats, http, web).unwrap();
        let path = directory.path().join(format!("nats-server_{}.ports", std::process::id()));
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            r#"{"nats":["nats://h:41"],"monitoring":["http://h:42"],"websocket":["ws://h:43"]}"#
        );
        drop(file);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
