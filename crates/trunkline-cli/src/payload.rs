//! Where a payload comes from: an argument, a file, or stdin. Bytes, whatever they are.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::failure::{Explain, Kind};

/// Most bytes that are read; servers refuse far smaller payloads, and say which limit it was.
const BYTES_MAX: usize = 64 << 20;

/// The payload of one message.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PayloadArgs {
    /// Payload; `-` reads stdin, and so does leaving it out when stdin is not a terminal
    #[arg(value_name = "PAYLOAD", conflicts_with = "file")]
    payload: Option<OsString>,

    /// Read the payload from this file; `-` is stdin
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Why there is no payload.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PayloadError {
    #[error("no payload is given")]
    Missing,
    #[error("cannot read {name}")]
    Read { name: String, source: io::Error },
    #[error("{name} holds more than {limit} bytes")]
    TooLarge { name: String, limit: usize },
    #[error("nothing came from stdin for {waited:?} (--timeout)")]
    Timeout { waited: Duration },
}

impl Explain for PayloadError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing => Kind::Usage,
            _ => Kind::Failed,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Missing => {
                Some("give it as an argument ('' for an empty one), with --file, or on stdin".into())
            }
            Self::Read { .. } => Some("check the path, and that it may be read".into()),
            Self::TooLarge { .. } => Some("put large data elsewhere and send where it is".into()),
            Self::Timeout { .. } => {
                Some("close stdin, or give the payload as an argument ('' for an empty one)".into())
            }
        }
    }
}

impl PayloadArgs {
    /// Whether anything was said about the payload.
    pub(crate) fn is_given(&self) -> bool {
        self.payload.is_some() || self.file.is_some()
    }

    /// Reads it. `patience` is the longest wait for each part that comes from stdin.
    ///
    /// # Errors
    /// See [`PayloadError`].
    pub(crate) async fn read(&self, patience: Duration) -> Result<Bytes, PayloadError> {
        match (&self.payload, &self.file) {
            (Some(text), _) if text == "-" => read_stdin(patience).await,
            (Some(text), _) => Ok(text.clone().into_vec().into()),
            (None, Some(path)) if path == Path::new("-") => read_stdin(patience).await,
            (None, Some(path)) => read_file(path).await,
            (None, None) if io::stdin().is_terminal() => Err(PayloadError::Missing),
            (None, None) => read_stdin(patience).await,
        }
    }
}

async fn read_file(path: &Path) -> Result<Bytes, PayloadError> {
    let name = path.display().to_string();
    match tokio::fs::File::open(path).await {
        Ok(file) => read(file, &name, None).await,
        Err(source) => Err(PayloadError::Read { name, source }),
    }
}

async fn read_stdin(patience: Duration) -> Result<Bytes, PayloadError> {
    read(tokio::io::stdin(), "stdin", Some(patience)).await
}

async fn read(
    mut source: impl AsyncRead + Unpin,
    name: &str,
    patience: Option<Duration>,
) -> Result<Bytes, PayloadError> {
    let mut bytes = Vec::new();
    loop {
        let part = source.read_buf(&mut bytes);
        let read = match patience {
            Some(waited) => {
                tokio::time::timeout(waited, part).await.map_err(|_| PayloadError::Timeout { waited })?
            }
            None => part.await,
        };
        match read {
            Ok(0) => return Ok(bytes.into()),
            Ok(_) if bytes.len() > BYTES_MAX => {
                return Err(PayloadError::TooLarge { name: name.to_owned(), limit: BYTES_MAX });
            }
            Ok(_) => {}
            Err(source) => return Err(PayloadError::Read { name: name.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn arguments_and_files_are_taken_byte_for_byte() {
        let all: Vec<u8> = (0..=255).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("payload");
        std::fs::write(&path, &all).unwrap();
        let from_file = PayloadArgs { payload: None, file: Some(path) };
        assert_eq!(from_file.read(PATIENCE).await.unwrap(), all);

        let odd = vec![0xff, b'x', 0xfe];
        let argument = PayloadArgs { payload: Some(OsString::from_vec(odd.clone())), file: None };
        assert_eq!(argument.read(PATIENCE).await.unwrap(), odd);
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_named() {
        let args = PayloadArgs { payload: None, file: Some("/nonexistent/payload".into()) };
        let error = args.read(PATIENCE).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/payload"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_says_nothing_is_given_up() {
        let (_silent, source) = tokio::io::duplex(8);
        let error = read(source, "stdin", Some(PATIENCE)).await.unwrap_err();
        assert!(matches!(error, PayloadError::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_source_without_end_is_refused() {
        let error = read(tokio::io::repeat(0), "stdin", Some(PATIENCE)).await.unwrap_err();
        assert!(matches!(error, PayloadError::TooLarge { .. }), "{error}");
    }
}
