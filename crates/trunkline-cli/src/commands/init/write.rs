//! Putting the file in its place: whole or not at all, and never over another one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::InitError;

/// Names that are found without being told, of which one is read.
const FOUND: [&str; 3] = ["config.yaml", "config.yml", "config.toml"];

/// Most backups of one file.
const BACKUPS_MAX: u32 = 9999;

/// As other files of this user, less what its umask takes away: there is no secret in it.
const MODE: u32 = 0o644;

/// Whether a file could be written there.
///
/// # Errors
/// One exists that would be replaced without `force`, or that would be read instead of this one or beside it.
pub(super) fn may_write(path: &Path, force: bool) -> Result<(), InitError> {
    if path.extension().is_some_and(|extension| extension == "toml") {
        return Err(InitError::Toml { path: path.to_owned() });
    }
    existing(path, force)?;
    let directory = directory(path);
    let name = path.file_name().unwrap_or_default();
    if FOUND.iter().any(|found| name == *found) {
        let mut others = FOUND.iter().filter(|found| name != **found).map(|found| directory.join(found));
        if let Some(other) = others.find(|other| other.is_file()) {
            return Err(InitError::Beside { other });
        }
    }
    match directory.is_dir() {
        true => Ok(()),
        false => Err(InitError::Write { path: path.to_owned(), source: ErrorKind::NotFound.into() }),
    }
}

/// The permissions of the file that is there and may be replaced.
fn existing(path: &Path, force: bool) -> Result<Option<Permissions>, InitError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(InitError::Write { path: path.to_owned(), source }),
        Ok(_) if !force => Err(InitError::Exists { path: path.to_owned() }),
        // Renaming over a link would leave what it leads to as it is, and nobody would know.
        Ok(meta) if !meta.is_file() => Err(InitError::NoFile { path: path.to_owned() }),
        Ok(meta) => Ok(Some(meta.permissions())),
    }
}

/// Writes the file. With `force` one that was there is kept, and the path of that is given.
///
/// # Errors
/// As [`may_write`], and what the system says.
pub(super) fn write(path: &Path, text: &str, force: bool) -> Result<Option<PathBuf>, InitError> {
    may_write(path, force)?;
    let failed = |source| InitError::Write { path: path.to_owned(), source };
    let before = existing(path, force)?;
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(directory(path))
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    let Some(permissions) = before else {
        return match file.persist_noclobber(path) {
            Ok(_) => Ok(None),
            // Somebody was faster.
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
                Err(InitError::Exists { path: path.to_owned() })
            }
            Err(error) => Err(failed(error.error)),
        };
    };
    let backup = keep(path, &permissions).map_err(failed)?;
    file.as_file().set_permissions(permissions).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(Some(backup))
}

/// Copies the file to the first name with a number that nobody has.
fn keep(path: &Path, permissions: &Permissions) -> io::Result<PathBuf> {
    for number in 1..=BACKUPS_MAX {
        let mut name: OsString = path.as_os_str().to_owned();
        name.push(format!(".bak-{number}"));
        // Readable by nobody else until it has the permissions of what it is a copy of.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name) {
            Ok(mut copy) => {
                io::copy(&mut File::open(path)?, &mut copy)?;
                copy.set_permissions(permissions.clone())?;
                copy.sync_all()?;
                return Ok(name.into());
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(ErrorKind::AlreadyExists, format!("there are {BACKUPS_MAX} backups already")))
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_is_ever_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(write(&path, "one", false).unwrap(), None);
        assert!(matches!(write(&path, "two", false), Err(InitError::Exists { .. })));
        assert_eq!(read("config.yaml"), "one");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for (text, backup) in [("two", "config.yaml.bak-1"), ("three", "config.yaml.bak-2")] {
            assert_eq!(write(&path, text, true).unwrap(), Some(directory.path().join(backup)));
        }
        assert_eq!((read("config.yaml"), read("config.yaml.bak-1")), ("three".to_owned(), "one".to_owned()));
        assert_eq!(read("config.yaml.bak-2"), "two");
        for name in ["config.yaml", "config.yaml.bak-1"] {
            let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3, "no temporary file is left");
    }

    #[test]
    fn what_could_not_be_read_later_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("config.toml"), "").unwrap();
        assert!(matches!(write(&at("config.yaml"), "x", true), Err(InitError::Beside { .. })));
        assert!(matches!(write(&at("other.toml"), "x", false), Err(InitError::Toml { .. })));
        assert!(write(&at("other.yaml"), "x", false).is_ok());
        std::os::unix::fs::symlink(at("other.yaml"), at("link.yaml")).unwrap();
        assert!(matches!(write(&at("link.yaml"), "y", true), Err(InitError::NoFile { .. })));
        assert!(matches!(write(&at("none/config.yaml"), "y", false), Err(InitError::Write { .. })));
        assert_eq!(fs::read_to_string(at("other.yaml")).unwrap(), "x");
    }
}
