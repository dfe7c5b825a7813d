//! How commands of the same user find the token of a server: a file only that user can read, named by the HTTP port.
//!
//! It lies in `$XDG_RUNTIME_DIR/trunkline`, else in a directory of the user's own below the one for temporary files. A
//! directory that others own or may look into is neither written to nor believed.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};
use url::Url;

/// Most bytes of a file that is one of ours.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Most files that are looked at for an address.
const FILES_MAX: usize = 1024;

/// What stands in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Where clients connect.
    pub(crate) nats: String,
    /// Where the admin API is.
    pub(crate) http: String,
    /// Its token.
    pub(crate) admin_token: String,
    /// The file of its certificate, where it is asked over HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<PathBuf>,
    /// The process that wrote it.
    pid: i32,
}

/// The file of a running server, as long as it exists.
#[derive(Debug)]
pub(crate) struct RuntimeFile {
    path: PathBuf,
    /// Where a page may lie that sends a browser there.
    redirect: PathBuf,
    content: Vec<u8>,
}

impl RuntimeFile {
    /// Writes the file, readable by this user alone. With the file of a certificate the server is asked over HTTPS.
    ///
    /// # Errors
    /// There is no directory that is this user's alone, or it cannot be written to.
    pub(crate) fn write(
        nats: &str,
        http: SocketAddr,
        token: &str,
        certificate: Option<&Path>,
    ) -> io::Result<Self> {
        Self::write_in(&directory(), nats, http, token, certificate)
    }

    fn write_in(
        directory: &Path,
        nats: &str,
        http: SocketAddr,
        token: &str,
        certificate: Option<&Path>,
    ) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        check_private(directory)?;
        remove_orphans(directory);
        let found = Found {
            nats: nats.to_owned(),
            http: format!("{}://{http}", if certificate.is_some() { "https" } else { "http" }),
            admin_token: token.to_owned(),
            // Other commands may be in other directories.
            certificate: certificate.map(std::path::absolute).transpose()?,
            pid: std::process::id().try_into().unwrap_or_default(),
        };
        let content = serde_json::to_vec(&found)?;
        let path = directory.join(file_name(http.port()));
        // A temporary file of this kind is made with mode 0600, and keeps it when it is renamed.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&content)?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(Self { path, redirect: directory.join(redirect_name(http.port())), content })
    }
}

impl RuntimeFile {
    /// Writes a page with the token of the server at this port, readable by this user alone, for a browser to be sent to it.
    /// It goes with the server's own file.
    ///
    /// # Errors
    /// There is no directory that is this user's alone, or it cannot be written to.
    pub(crate) fn redirect(
        port: u16,
        write: impl FnOnce(&mut tempfile::NamedTempFile) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        let directory = directory();
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        check_private(&directory)?;
        let path = directory.join(redirect_name(port));
        let mut file = tempfile::NamedTempFile::new_in(&directory)?;
        write(&mut file)?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(path)
    }
}

impl Drop for RuntimeFile {
    fn drop(&mut self) {
        // A server that took over the port in the meantime has written its own.
        if fs::read(&self.path).is_ok_and(|content| content == self.content) {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_file(&self.redirect);
        }
    }
}

/// Removes the files of servers that were killed.
fn remove_orphans(directory: &Path) {
    for file in fs::read_dir(directory).into_iter().flatten().take(FILES_MAX).flatten() {
        let is_orphan =
            |found: &Found| found.pid > 0 && kill(Pid::from_raw(found.pid), None) == Err(Errno::ESRCH);
        if read(&file.path()).as_ref().is_some_and(is_orphan) {
            // Another server may be at it too.
            let _ = fs::remove_file(file.path());
        }
    }
}

/// What the server at this address wrote, if it is one of this user's on this machine.
pub(crate) fn find(http: &Url) -> Option<Found> {
    find_in(&directory(), http)
}

fn find_in(directory: &Path, http: &Url) -> Option<Found> {
    let loopback = match http.host()? {
        url::Host::Domain(name) => name == "localhost",
        url::Host::Ipv4(ip) => ip.is_loopback(),
        url::Host::Ipv6(ip) => ip.is_loopback(),
    };
    // The token of a server on this machine must not be shown to a host elsewhere that has the same port.
    if !loopback {
        return None;
    }
    check_private(directory).ok()?;
    let found = read(&directory.join(file_name(http.port_or_known_default()?)))?;
    // Nor is it sent in the clear where the server has TLS.
    Url::parse(&found.http).is_ok_and(|url| url.scheme() == http.scheme()).then_some(found)
}

/// The server of this user whose clients connect to this address.
pub(crate) fn find_by_nats(url: &str) -> Option<Found> {
    let directory = directory();
    check_private(&directory).ok()?;
    let wanted = loopback_name(url);
    let files = fs::read_dir(&directory).ok()?.take(FILES_MAX).flatten();
    files.filter_map(|file| read(&file.path())).find(|found| loopback_name(&found.nats) == wanted)
}

/// The address with one name for the loopback.
fn loopback_name(url: &str) -> String {
    url.trim_end_matches('/').replace("//localhost:", "//127.0.0.1:").replace("//[::1]:", "//127.0.0.1:")
}

fn read(path: &Path) -> Option<Found> {
    let meta = fs::symlink_metadata(path).ok()?;
    let ours = meta.is_file() && meta.uid() == geteuid().as_raw() && meta.len() <= FILE_BYTES_MAX;
    if !ours {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn file_name(port: u16) -> String {
    format!("admin-{port}.json")
}

fn redirect_name(port: u16) -> String {
    format!("dashboard-{port}.html")
}

fn directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute() && dir.is_dir())
    {
        Some(runtime) => runtime.join("trunkline"),
        None => std::env::temp_dir().join(format!("trunkline-{}", geteuid())),
    }
}

/// The directory is a real one, this user's, and closed to everybody else.
fn check_private(directory: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(directory)?;
    if meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    let text = format!("{} is not a directory of this user alone", directory.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn addresses() -> (&'static str, SocketAddr) {
        ("nats://127.0.0.1:41", "127.0.0.1:42".parse().unwrap())
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_file_is_private_found_by_the_loopback_only_and_goes_with_its_owner() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("trunkline");
        let (nats, http) = addresses();
        let file = RuntimeFile::write_in(&directory, nats, http, "secret", None).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&file.path).unwrap().mode() & 0o777, 0o600);
        for good in ["http://127.0.0.1:42", "http://localhost:42"] {
            assert_eq!(find_in(&directory, &url(good)).unwrap().admin_token, "secret", "{good}");
        }
        for strange in
            ["http://192.168.0.1:42", "http://evil.example:42", "http://127.0.0.1:43", "https://127.0.0.1:42"]
        {
            assert!(find_in(&directory, &url(strange)).is_none(), "{strange}");
        }
        let newer = RuntimeFile::write_in(&directory, nats, http, "other", None).unwrap();
        drop(file);
        assert_eq!(find_in(&directory, &url("http://127.0.0.1:42")).unwrap().admin_token, "other");
        drop(newer);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn files_of_servers_that_are_gone_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("trunkline");
        let (nats, http) = addresses();
        let mine = RuntimeFile::write_in(&directory, nats, http, "secret", None).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let orphan = format!(r#"{{"nats":"","http":"","admin_token":"x","pid":{pid}}}"#);
        fs::write(directory.join("admin-1.json"), orphan).unwrap();
        let other =
            RuntimeFile::write_in(&directory, nats, "127.0.0.1:43".parse().unwrap(), "secret", None).unwrap();
        assert!(!directory.join("admin-1.json").exists());
        assert!(mine.path.exists() && other.path.exists());
    }

    #[test]
    fn a_directory_that_others_may_enter_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (nats, http) = addresses();
        assert!(RuntimeFile::write_in(directory.path(), nats, http, "secret", None).is_err());
        fs::write(
            directory.path().join("admin-42.json"),
            r#"{"nats":"","http":"","admin_token":"x","pid":1}"#,
        )
        .unwrap();
        assert!(find_in(directory.path(), &url("http://127.0.0.1:42")).is_none());
    }
}
