//! What `up` and the guardian of a component say to each other, over a socket that is the guardian's stdin.
//!
//! The first thing said is what to run: the length in bytes, then the program and its arguments, each with a zero byte
//! behind it. Orders are single bytes. Reports are lines of JSON. That the socket ends means that the other has gone.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest command; more than the system takes.
const COMMAND_BYTES_MAX: u32 = 16 << 20;

/// A program and its arguments, as they go over the socket.
///
/// # Errors
/// A zero byte in one of them, which no program can be given, or too many bytes.
pub(super) fn command_bytes<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    for word in words {
        if word.as_bytes().contains(&0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a zero byte stands in its command"));
        }
        bytes.extend(word.as_bytes());
        bytes.push(0);
    }
    let length = u32::try_from(bytes.len() - 4).ok().filter(|length| *length <= COMMAND_BYTES_MAX);
    let length = length.ok_or(io::ErrorKind::ArgumentListTooLong)?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

/// Reads what [`command_bytes`] made.
///
/// # Errors
/// The other has gone, or says something else.
pub(super) async fn read_command(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<OsString>> {
    let length = from.read_u32().await?;
    if length > COMMAND_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes).await?;
    // Behind the last zero byte is nothing, and no word.
    bytes.pop();
    Ok(bytes.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect())
}

/// What a guardian is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Ask the component to end.
    Terminate,
    /// End it with all that it started.
    Kill,
}

impl Order {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Terminate => b't',
            Self::Kill => b'k',
        }
    }

    pub(super) fn of(byte: u8) -> Option<Self> {
        [Self::Terminate, Self::Kill].into_iter().find(|order| order.byte() == byte)
    }
}

/// What a guardian tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// The component runs.
    Started { pid: u32 },
    /// It could not be run.
    NotStarted { reason: String },
    /// It has ended, and with it everything that it had started.
    Ended { code: Option<i32>, signal: Option<i32> },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_arrives_word_for_word() {
        let words = [&b"/bin/\xffecho"[..], b"", b"two words", b""].map(OsStr::from_bytes);
        let bytes = command_bytes(words).unwrap();
        assert_eq!(read_command(&mut bytes.as_slice()).await.unwrap(), words);
        assert!(read_command(&mut &bytes[..bytes.len() - 1]).await.is_err(), "half of it is none");
        assert!(command_bytes([OsStr::from_bytes(b"a\0b")]).is_err());
    }
}
