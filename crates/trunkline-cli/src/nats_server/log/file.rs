//! The log's file. Past a size it is put aside under a name with the time in it, and an empty one goes on, as nats-server
//! does it with `logfile_size_limit` and `logfile_max_num`.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Zoned;

use super::super::settings::describe;

/// Traces have messages in them, which are not for everybody on the machine.
const MODE: u32 = 0o640;

/// When a file is put aside, and how many are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// Past so many bytes; 0 is never.
    pub(crate) bytes_max: u64,
    /// With the one that is written to; 0 is any number.
    pub(crate) files_max: usize,
}

pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    rotation: Rotation,
}

impl LogFile {
    /// # Errors
    /// It can neither be opened nor made.
    pub(super) fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let (file, bytes) = append_to(path)?;
        Ok(Self { path: path.to_owned(), file, bytes, rotation })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// There is none at the place any more, and none can be made; the former one is kept.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.bytes) = append_to(&self.path)?;
        Ok(())
    }

    /// Writes a line. `formatted` makes lines of what there is to say of the files themselves.
    pub(super) fn write(&mut self, line: &str, formatted: impl Fn(&str, &str) -> String) {
        self.append(line);
        if self.rotation.bytes_max == 0 || self.bytes <= self.rotation.bytes_max {
            return;
        }
        match self.put_aside() {
            Ok(name) => {
                self.append(&formatted("INF", &format!("Rotated log, backup saved as {name:?}")));
                for (name, removed) in self.purge() {
                    let line = match removed {
                        Ok(()) => formatted("INF", &format!("Purged log file {name:?}")),
                        Err(error) => {
                            let cause = describe(&error);
                            formatted("ERR", &format!("Unable to purge log file {name:?}: {cause}"))
                        }
                    };
                    self.append(&line);
                }
            }
            Err(error) => {
                // Tried again when as much has come again, and not with every line.
                self.bytes = 0;
                self.append(&formatted("ERR", &format!("Unable to rotate the log: {}", describe(&error))));
            }
        }
    }

    fn append(&mut self, line: &str) {
        // Where the log cannot be written there is nowhere left to say so.
        let _ = self.file.write_all(line.as_bytes());
        self.bytes += line.len() as u64;
    }

    /// Gives the file another name and begins an empty one; returns that name.
    fn put_aside(&mut self) -> io::Result<String> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(format!(".{}", Zoned::now().strftime("%Y.%m.%d.%H.%M.%S.%9f")));
        std::fs::rename(&self.path, &aside)?;
        self.reopen()?;
        Ok(aside.to_string_lossy().into_owned())
    }

    /// Removes the oldest of the files that were put aside, where there are more than may be.
    fn purge(&self) -> Vec<(String, io::Result<()>)> {
        let (Some(kept), Some(name)) = (self.rotation.files_max.checked_sub(1), self.path.file_name()) else {
            return Vec::new();
        };
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let prefix = format!("{}.", name.to_string_lossy());
        let is_aside = |name: &String| name.strip_prefix(&prefix).is_some_and(is_time);
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut aside: Vec<String> = names.filter(is_aside).collect();
        // The time in them is their order.
        aside.sort();
        aside.truncate(aside.len().saturating_sub(kept));
        let remove = |name: String| {
            let path = self.path.with_file_name(&name);
            (path.to_string_lossy().into_owned(), std::fs::remove_file(&path))
        };
        aside.into_iter().map(remove).collect()
    }
}

/// Whether a name ends as those of files do that were put aside.
fn is_time(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let lengths = [4, 2, 2, 2, 2, 2, 9];
    let fits =
        |(part, length): (&&str, usize)| part.len() == length && part.bytes().all(|b| b.is_ascii_digit());
    parts.len() == lengths.len() && parts.iter().zip(lengths).all(fits)
}

/// The file, and how much is in it.
fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let file = File::options().create(true).append(true).mode(MODE).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in a directory, by size.
    fn sizes(directory: &Path) -> Vec<u64> {
        let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
        let mut names: Vec<_> = entries.map(|entry| entry.path()).collect();
        names.sort();
        names.iter().map(|path| std::fs::metadata(path).unwrap().len()).collect()
    }

    fn write(file: &mut LogFile, lines: usize) {
        for _ in 0..lines {
            file.write("0123456789\n", |_, text| format!("{}\n", text.split(' ').next().unwrap()));
        }
    }

    #[test]
    fn a_file_that_is_full_is_put_aside_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        // Others have names alike and stay.
        std::fs::write(directory.path().join("x.log.2020"), "").unwrap();
        let mut file = LogFile::open(&path, Rotation { bytes_max: 30, files_max: 0 }).unwrap();
        write(&mut file, 3);
        assert_eq!(sizes(directory.path()), [8, 0, 33], "`Rotated` is in the new one");
        write(&mut file, 6);
        assert_eq!(sizes(directory.path()), [8, 0, 33, 41, 41]);
        let mut file = LogFile::open(&path, Rotation { bytes_max: 30, files_max: 2 }).unwrap();
        write(&mut file, 3);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "Rotated\nPurged\nPurged\nPurged\n", "one is kept");
        assert_eq!(sizes(directory.path()).len(), 3);
    }

    #[test]
    fn what_cannot_be_put_aside_is_written_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let mut file = LogFile::open(&path, Rotation { bytes_max: 30, files_max: 0 }).unwrap();
        write(&mut file, 2);
        std::fs::remove_file(&path).unwrap();
        write(&mut file, 2);
        assert_eq!(file.bytes, "Unable\n".len() as u64 + 11);
        file.reopen().unwrap();
        write(&mut file, 1);
        assert_eq!(sizes(directory.path()), [11]);
    }
}
