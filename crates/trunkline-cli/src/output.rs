//! Data on stdout: every record is flushed when it is written, so that the reader of a pipe sees it at once.

use std::borrow::Cow;
use std::io::{self, Write};

use serde::Serialize;

use crate::failure::{Explain, Kind};
use crate::logging;
use crate::trace::is_steering;

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
    let text = serde_json::to_string(value).map_err(OutputError::Json)?;
    bytes(format!("{}\n", harmless(text)).as_bytes())
}

/// Writes a value as indented JSON, for documents that people read too.
///
/// # Errors
/// See [`OutputError`].
pub(crate) fn json_document(value: &impl Serialize) -> Result<(), OutputError> {
    let text = serde_json::to_string_pretty(value).map_err(OutputError::Json)?;
    bytes(format!("{}\n", harmless(text)).as_bytes())
}

/// The same JSON, with the characters escaped that JSON may have as they are and that steer a terminal: they can only
/// stand in its strings.
fn harmless(json: String) -> String {
    let steers = |character: char| character != '\n' && is_steering(character);
    if !json.contains(steers) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        match steers(character) {
            // All of them are below U+10000.
            true => escaped.push_str(&format!("\\u{:04x}", u32::from(character))),
            false => escaped.push(character),
        }
    }
    escaped
}

/// Writes a line of progress on stderr, where it cannot get between the data.
pub(crate) fn note(text: &str) {
    if logging::is_json() {
        return tracing::info!("{}", anstream::adapter::strip_str(text));
    }
    // Progress that nobody can see is no reason to stop.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn json_says_the_same_without_steering_the_terminal() {
        let value = json!({"a\u{9b}": "x\u{1b}[2J\u{7f}\u{202e}y\nz", "天": "\\u{9b}"});
        for text in [serde_json::to_string(&value), serde_json::to_string_pretty(&value)] {
            let text = harmless(text.unwrap());
            assert!(!text.contains(|c| c != '\n' && is_steering(c)), "{text:?}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
    }
}
