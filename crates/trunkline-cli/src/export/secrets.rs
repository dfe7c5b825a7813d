//! Secrets of a deployment: what they are, who reads them, and how new ones are made.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::ExportError;

/// Random bytes of a password; its text has 32 letters, none of which needs quoting in a URL, a file or a shell.
const PASSWORD_BYTES: usize = 24;

/// Who reads a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reader {
    /// The bus, by the variable that names its file; `None` where its configuration does.
    Bus(Option<String>),
    Redis,
    /// Every server of the NATS cluster.
    Nats,
    /// A component: the file is its environment.
    Component(String),
    /// People, and nothing that runs.
    Operator,
    /// Whoever waits for the streams of the configuration, on NATS.
    Probe,
}

/// A file that only its reader may see.
#[derive(Clone)]
pub(crate) struct SecretFile {
    /// Name of the file.
    pub(crate) name: String,
    pub(crate) content: String,
    pub(crate) reader: Reader,
}

/// A password that nobody can guess. It begins with a letter: nats.js takes digits behind the first colon of a URL for the
/// port.
pub(super) fn password() -> Result<String, ExportError> {
    let mut bytes = [0; PASSWORD_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| ExportError::Random { reason: error.to_string() })?;
    Ok(format!("p{}", URL_SAFE_NO_PAD.encode(bytes)))
}
