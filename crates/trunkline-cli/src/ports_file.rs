//! The file that tells scripts which ports were bound: written whole when the bus is ready, removed when it stops.

use std::borrow::Cow;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::admin::dashboard_url;
use crate::failure::Explain;

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the ports file {}", path.display())]
pub(crate) struct PortsFileError {
    path: PathBuf,
    source: io::Error,
}

impl Explain for PortsFileError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        Some("give a path in a directory that exists and may be written to (--ports-file)".into())
    }
}

/// What stands in the file.
#[derive(Debug, Serialize)]
struct Ports {
    #[serde(skip_serializing_if = "Option::is_none")]
    nats: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    websocket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dashboard: Option<String>,
}

/// Where the bus is to be found, as far as it listens.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) nats: Option<SocketAddr>,
    pub(crate) http: Option<String>,
    /// Where probes and metrics are served apart.
    pub(crate) metrics: Option<String>,
    pub(crate) websocket: Option<String>,
}

/// The file, as long as it exists.
#[derive(Debug)]
pub(crate) struct PortsFile {
    path: PathBuf,
}

impl PortsFile {
    /// Writes `{"nats":"nats://HOST:PORT","http":"http://HOST:PORT","admin_token":"TOKEN","dashboard":URL}`, with
    /// `"metrics":"http://HOST:PORT"` and `"websocket":"ws://HOST:PORT"` where there are such, beside the path and renames
    /// it there, so that whoever waits for the file never reads half of it. Only this user may read it.
    ///
    /// # Errors
    /// The directory does not exist or may not be written to.
    pub(crate) fn write(
        path: &Path,
        Addresses { nats, http, metrics, websocket }: Addresses,
        admin_token: Option<&str>,
    ) -> Result<Self, PortsFileError> {
        let ports = Ports {
            dashboard: http.as_deref().map(|http| dashboard_url(http, admin_token)),
            nats: nats.map(|addr| format!("nats://{addr}")),
            http,
            metrics,
            websocket,
            admin_token: admin_token.map(str::to_owned),
        };
        put(path, &ports).map_err(|source| PortsFileError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned() })
    }
}

fn put(path: &Path, ports: &Ports) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Made with mode 0600, which it keeps: there is a token in it.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer(&mut file, ports)?;
    file.write_all(b"\n")?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

impl Drop for PortsFile {
    fn drop(&mut self) {
        // Somebody may have removed it already; then there is nothing left to do.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_holds_what_was_bound_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ports.json");
        let addresses = Addresses {
            nats: Some("127.0.0.1:41".parse().unwrap()),
            http: Some("http://127.0.0.1:42".to_owned()),
            metrics: Some("http://127.0.0.1:44".to_owned()),
            websocket: Some("wss://127.0.0.1:43".to_owned()),
        };
        let file = PortsFile::write(&path, addresses, Some("x")).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"nats\":\"nats://127.0.0.1:41\",\"http\":\"http://127.0.0.1:42\",\"metrics\":\"http://127.0.0.1:44\",\"websocket\":\"wss://127.0.0.1:43\",\"admin_token\":\"x\",\"dashboard\":\"http://127.0.0.1:42/dashboard#token=x\"}\n"
        );
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_the_path() {
        let missing = Path::new("/nonexistent-directory/ports.json");
        let error = PortsFile::write(missing, Addresses::default(), None).unwrap_err();
        assert!(error.to_string().contains("/nonexistent-directory/ports.json"));
    }
}
