//! Data on stdout: every record is flushed when it is written, so that the reader of a pipe sees it at once.

use std::borrow::Cow;
use std::io::{self, Write};

use serde::Serialize;

use crate::failure::{Explain, Kind};
use crate::logging;

/// Why data could not be printed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OutputError {
    /// The reader of stdout has gone.
    #[error("stdout was closed by its reader")]
    Closed,
    /// Anything else, a full disk for example.
    #[error("cannot write to stdout")]
    Write(#[source] io::Error),
    /// A value without a JSON form.
    #[error("cannot write the result as JSON")]
    Json(#[source] serde_json::Error),
}

impl Explain for OutputError {
    fn kind(&self) -> Kind {
        match self {
            Self::Closed => Kind::ReaderGone,
            _ => Kind::Failed,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        matches!(self, Self::Write(_))
            .then(|| "check where stdout is redirected to, and the disk's free space".into())
    }
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Write(error),
        }
    }
}

/// Writes a line of text.
///
/// # Errors
/// See [`OutputError`].
pub(crate) fn line(text: &str) -> Result<(), OutputError> {
    let mut stdout = anstream::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

/// Writes bytes as they are, without a line end.
///
/// # Errors
/// See [`OutputError`].
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), OutputError> {
    // Not through anstream: it would strip what looks like an escape sequence, and payloads are not ours to change.
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// See [`OutputError`].
pub(crate) fn json(value: &impl Serialize) -> Result<(), OutputError> {
    let mut text = serde_json::to_vec(value).map_err(OutputError::Json)?;
    text.push(b'\n');
    bytes(&text)
}

/// Writes a value as indented JSON, for documents that people read too.
///
/// # Errors
/// See [`OutputError`].
pub(crate) fn json_document(value: &impl Serialize) -> Result<(), OutputError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(OutputError::Json)?;
    text.push(b'\n');
    bytes(&text)
}

/// Writes a line of progress on stderr, where it cannot get between the data.
pub(crate) fn note(text: &str) {
    if logging::is_json() {
        return tracing::info!("{}", anstream::adapter::strip_str(text));
    }
    // Progress that nobody can see is no reason to stop.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}
