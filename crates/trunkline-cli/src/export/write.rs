//! A deployment onto the disk: nothing that is there is lost, and secrets are never readable by others, not even for a moment.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};
use serde::Serialize;

use super::error::ExportError;
use super::render::{File, Mode};

/// Who containers run as where the files were made by root.
const NOBODY_SPECIAL: u32 = 10001;

/// The user whose the files are, and as whom services read them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Whether files have to be given to that user.
    give: bool,
}

impl Owner {
    /// Who runs this process; where that is root, somebody without rights, whom the files are given to.
    pub(crate) fn of_process() -> Owner {
        match geteuid().is_root() {
            true => Owner { uid: NOBODY_SPECIAL, gid: NOBODY_SPECIAL, give: true },
            false => Owner { uid: geteuid().as_raw(), gid: getegid().as_raw(), give: false },
        }
    }

    /// The same, but the files stay whose they are: who reads them is root, as service managers are.
    pub(crate) fn keeping(self) -> Owner {
        Owner { give: false, ..self }
    }
}

/// What was written.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    /// Where the deployment is.
    pub(crate) directory: PathBuf,
    /// Its files, below that.
    pub(crate) files: Vec<PathBuf>,
    /// Where files that were there before have been moved to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backup: Option<PathBuf>,
}

/// Writes the files below a directory. With `force`, those that are there are moved to a directory of backups; directories
/// for data are left as they are.
///
/// # Errors
/// Files that are there without `force`, before anything was written; a directory that cannot be written to.
pub(crate) fn write(
    directory: &Path,
    files: &[File],
    owner: Owner,
    force: bool,
) -> Result<Written, ExportError> {
    let is_there =
        |file: &&File| file.content.is_some() && directory.join(&file.path).symlink_metadata().is_ok();
    let there: Vec<&File> = files.iter().filter(is_there).collect();
    if !there.is_empty() && !force {
        return Err(ExportError::Exists {
            paths: there.iter().map(|file| directory.join(&file.path)).collect(),
        });
    }
    make_directory(directory, 0o755)?;
    let backup = match there.is_empty() {
        true => None,
        false => Some(back_up(directory, &there)?),
    };
    for file in files {
        put(directory, file, owner)?;
    }
    let files = files.iter().filter(|file| file.content.is_some()).map(|file| file.path.clone()).collect();
    Ok(Written { directory: directory.to_owned(), files, backup })
}

fn back_up(directory: &Path, files: &[&File]) -> Result<PathBuf, ExportError> {
    let stamp = jiff::Zoned::now().strftime("%Y%m%dT%H%M%S").to_string();
    // Two in one second are two.
    let names =
        std::iter::once(format!("backup-{stamp}")).chain((2..100).map(|n| format!("backup-{stamp}-{n}")));
    let free = names.map(|name| directory.join(name)).find(|path| path.symlink_metadata().is_err());
    let backup = free.unwrap_or_else(|| directory.join("backup-last"));
    make_directory(&backup, 0o700)?;
    for file in files {
        let (from, to) = (directory.join(&file.path), backup.join(&file.path));
        make_directory(to.parent().unwrap_or(&backup), 0o700)?;
        fs::rename(&from, &to).map_err(failed(&from))?;
    }
    Ok(backup)
}

fn put(directory: &Path, file: &File, owner: Owner) -> Result<(), ExportError> {
    let path = directory.join(&file.path);
    let mode = if file.mode == Mode::Secret { 0o600 } else { 0o644 };
    let Some(content) = &file.content else {
        // The directory with all data is passed through by its user, too.
        make_directory(path.parent().unwrap_or(directory), 0o755)?;
        make_directory(&path, 0o700)?;
        return give(&path, owner);
    };
    let parent_mode = if file.mode == Mode::Secret { 0o700 } else { 0o755 };
    let parent = path.parent().unwrap_or(directory);
    make_directory(parent, parent_mode)?;
    let mut options = OpenOptions::new();
    let mut out = options.write(true).create_new(true).mode(mode).open(&path).map_err(failed(&path))?;
    out.write_all(content.as_bytes()).map_err(failed(&path))?;
    // Whatever the process takes away from new files.
    out.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed(&path))?;
    match file.mode {
        Mode::Secret => give(&path, owner),
        Mode::Plain => Ok(()),
    }
}

fn give(path: &Path, owner: Owner) -> Result<(), ExportError> {
    match owner.give {
        true => chown(path, Some(owner.uid), Some(owner.gid)).map_err(failed(path)),
        false => Ok(()),
    }
}

/// Makes a directory and those above it; the mode is that of all that are new.
fn make_directory(path: &Path, mode: u32) -> Result<(), ExportError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ExportError {
    let path = path.to_owned();
    move |source| ExportError::Write { path, source }
}
