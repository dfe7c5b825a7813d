//! TLS for clients: which certificate the server shows, which it asks for, and the same again after a reload.
//!
//! The handshake itself, as every byte of TLS, goes through [`crate::socket`]; when it comes is [`crate::arrival`]'s matter.

mod certificate;
mod files;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::ServerConfig;
use trunkline::config::{HandshakeFirst, Server, Tls as Config, TlsVersion};

pub(crate) use certificate::{Fingerprint, Owner, canonical_subject};

const CERT: &str = "server.tls.cert_file";
const KEY: &str = "server.tls.key_file";
const CA: &str = "server.tls.ca_file";
const VERIFY: &str = "server.tls.verify";

/// Certificates of a server, and which it wants to see. All files are PEM. Section `server.tls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificate that clients are shown, with those between it and its authority. Key `server.tls.cert_file`.
    pub cert_file: PathBuf,
    /// Its private key. Key `server.tls.key_file`.
    pub key_file: PathBuf,
    /// Authorities that client certificates must come from. Key `server.tls.ca_file`.
    pub ca_file: Option<PathBuf>,
    /// What clients have to show of themselves.
    pub clients: ClientCertificates,
    /// Whether clients that speak no TLS are served, too. Default no, key `server.tls.allow_non_tls`.
    pub allow_non_tls: bool,
    /// Whether the handshake comes before the server's first line. Default [`HandshakeFirst::Off`], as NATS clients expect;
    /// key `server.tls.handshake_first`.
    pub handshake_first: HandshakeFirst,
    /// Oldest version of TLS that is spoken. Default 1.2, key `server.tls.min_version`.
    pub min_version: TlsVersion,
    /// Longest handshake. Default 2 s, key `server.tls.timeout`.
    pub timeout: Duration,
}

/// What clients have to show of themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nothing.
    #[default]
    Ignored,
    /// A certificate that one of the authorities has signed. Key `server.tls.verify`.
    Required,
    /// The same, and it says which user the client is: by an e-mail address, a DNS name, a URI or its subject, as on
    /// nats-server. Key `server.tls.verify_and_map`.
    Mapped,
}

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be used.
    #[error("{} ({setting}) cannot be used", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// The key of the configuration that names it.
        setting: &'static str,
        /// What is wrong with it.
        source: TlsFileError,
    },
    /// One setting wants another beside it.
    #[error("{given} is set, and {missing} is not")]
    Incomplete {
        /// What is set.
        given: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// Certificate and key do not belong together, or are of a kind that TLS does not know.
    #[error("the certificate in {} and the key in {} cannot be used together (server.tls)", cert.display(), key.display())]
    Unusable {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFileError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// It is not PEM, or not what it should be.
    #[error("it is not PEM with {expected}")]
    Content {
        /// What should stand in it.
        expected: &'static str,
    },
    /// What stands in it cannot be trusted.
    #[error("what stands in it is no authority")]
    Authority(#[source] rustls::Error),
}

impl TlsError {
    /// HTTP is to be served with a certificate that nobody has named.
    pub(crate) fn for_http() -> Self {
        Self::Incomplete { given: "server.tls.http", missing: CERT }
    }

    pub(crate) fn hint(&self) -> String {
        match self {
            Self::File { setting, .. } => format!(
                "{setting} names a PEM file that this user may read; paths are relative to the working directory"
            ),
            Self::Incomplete { missing, .. } => format!("set {missing}"),
            Self::Unusable { .. } => format!(
                "{CERT} holds the server's certificate first, then those between it and the authority; {KEY} the key of the first"
            ),
        }
    }
}

impl TlsOptions {
    /// This certificate, and the defaults.
    pub fn new(cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        Self {
            cert_file: cert_file.into(),
            key_file: key_file.into(),
            ca_file: None,
            clients: ClientCertificates::Ignored,
            allow_non_tls: false,
            handshake_first: HandshakeFirst::Off,
            min_version: TlsVersion::V12,
            timeout: Duration::from_secs(2),
        }
    }

    /// What the configuration says; `None` where it says nothing of a certificate.
    ///
    /// # Errors
    /// Settings that mean nothing without others.
    pub(crate) fn from_config(config: &Config) -> Result<Option<Self>, TlsError> {
        let unset = Server::default().tls;
        let (Some(cert_file), Some(key_file)) = (&config.cert_file, &config.key_file) else {
            let missing = match (&config.cert_file, &config.key_file) {
                (None, None) if *config == unset => return Ok(None),
                (None, None) => return Err(TlsError::Incomplete { given: "server.tls", missing: CERT }),
                (None, _) => return Err(TlsError::Incomplete { given: KEY, missing: CERT }),
                (Some(_), _) => KEY,
            };
            return Err(TlsError::Incomplete { given: CERT, missing });
        };
        let (clients, given) = match (config.verify_and_map, config.verify) {
            (true, _) => (ClientCertificates::Mapped, "server.tls.verify_and_map"),
            (false, true) => (ClientCertificates::Required, VERIFY),
            (false, false) => (ClientCertificates::Ignored, ""),
        };
        if clients != ClientCertificates::Ignored && config.ca_file.is_none() {
            return Err(TlsError::Incomplete { given, missing: CA });
        }
        Ok(Some(Self {
            cert_file: cert_file.clone(),
            key_file: key_file.clone(),
            ca_file: config.ca_file.clone(),
            clients,
            allow_non_tls: config.allow_non_tls,
            handshake_first: config.handshake_first,
            min_version: config.min_version,
            timeout: config.timeout,
        }))
    }

    /// Reads the files and tells whether a server could start with them. May block.
    ///
    /// # Errors
    /// What [`Server::start`](crate::Server::start) would say.
    pub fn check(&self) -> Result<(), TlsError> {
        files::load(self).map(drop)
    }

    /// Whether every client has to show a certificate.
    pub(crate) fn verifies(&self) -> bool {
        self.clients != ClientCertificates::Ignored
    }

    /// The same certificate for HTTP, whose clients prove who they are by other means.
    pub(crate) fn for_http(&self) -> Self {
        Self { clients: ClientCertificates::Ignored, ..self.clone() }
    }
}

/// What the handshakes that begin now go by. Never changed: a reload puts another in its place, and connections that are there
/// stay as they are.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) options: TlsOptions,
    pub(crate) config: Arc<ServerConfig>,
    /// Until when the server's certificate is good.
    pub(crate) not_after: Option<jiff::Timestamp>,
}

impl Tls {
    /// Reads the files. May block.
    pub(crate) fn new(options: TlsOptions) -> Result<Arc<Self>, TlsError> {
        let (config, not_after) = files::load(&options)?;
        Ok(Arc::new(Self { options, config, not_after }))
    }
}

/// Which TLS each listener is to have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    pub(crate) clients: Option<TlsOptions>,
    pub(crate) web: Option<TlsOptions>,
    pub(crate) http: Option<TlsOptions>,
}

impl Plan {
    /// Reads the files, those of the same options once. May block.
    pub(crate) fn read(&self) -> Result<Slots, TlsError> {
        let read = |options: &Option<TlsOptions>| options.clone().map(Tls::new).transpose();
        let clients = read(&self.clients)?;
        let web = match self.web == self.clients {
            true => clients.clone(),
            false => read(&self.web)?,
        };
        Ok(Slots { clients: Slot::new(clients), web: Slot::new(web), http: Slot::new(read(&self.http)?) })
    }
}

/// The TLS of each listener, as it is now.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) clients: Slot,
    pub(crate) web: Slot,
    pub(crate) http: Slot,
}

impl Slots {
    /// What it would take to have the same again.
    pub(crate) fn plan(&self) -> Plan {
        let options = |slot: &Slot| slot.get().map(|tls| tls.options.clone());
        Plan { clients: options(&self.clients), web: options(&self.web), http: options(&self.http) }
    }

    /// Puts what was read in force.
    pub(crate) fn replace(&self, read: &Slots) {
        for (own, new) in [(&self.clients, &read.clients), (&self.web, &read.web), (&self.http, &read.http)] {
            *own.tls.write() = new.get();
        }
    }
}

/// The TLS of one listener, or that it has none.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Guards the pointer alone; taken when a client comes, by monitoring, and when the files are read again.
    tls: RwLock<Option<Arc<Tls>>>,
}

impl Slot {
    fn new(tls: Option<Arc<Tls>>) -> Self {
        Self { tls: RwLock::new(tls) }
    }

    pub(crate) fn get(&self) -> Option<Arc<Tls>> {
        self.tls.read().clone()
    }
}
