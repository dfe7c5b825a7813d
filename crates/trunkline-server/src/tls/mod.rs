//! TLS for clients: which certificate the server shows, which it asks for, and the same again after a reload.
//!
//! The handshake itself, as every byte of TLS, goes through [`crate::socket`]; when it comes is [`crate::arrival`]'s matter.

mod certificate;
mod choice;
mod files;

use std::collections::BTreeSet;
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
    /// Other certificates with their keys. Each client is shown the first that is good for the name that it asks for, of
    /// the one above and these, and the one above where none is. Default none.
    pub others: Vec<CertificateFiles>,
    /// Authorities that client certificates must come from. Key `server.tls.ca_file`.
    pub ca_file: Option<PathBuf>,
    /// What clients have to show of themselves.
    pub clients: ClientCertificates,
    /// Of the certificates that authorities have signed, those of these keys alone are good: SHA-256 of the public key
    /// with its algorithm, in small hexadecimal digits. Default all, which is what none stands for.
    pub pinned: BTreeSet<String>,
    /// Ciphers for TLS 1.2 by their names in the standard, such as `TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384`; those of TLS 1.3
    /// are there in any case. Default all that are good, which is what none stands for.
    pub cipher_suites: Vec<String>,
    /// Groups for the exchange of keys, the preferred ones first: `x25519`, `secp256r1`, `secp384r1`. Default these, which
    /// is what none stands for.
    pub groups: Vec<String>,
    /// Most handshakes of NATS clients that may begin within a second, of all addresses together. Without a limit by
    /// default.
    pub handshake_rate: Option<u32>,
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

/// A certificate, with those between it and its authority, and its private key; files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
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
    /// None of the groups that are named is one that the server has.
    #[error("none of the groups {named} is there to exchange keys by")]
    Groups {
        /// What is named.
        named: String,
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
            Self::Groups { .. } => "x25519, secp256r1 and secp384r1 are there".to_owned(),
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
            others: Vec::new(),
            ca_file: None,
            clients: ClientCertificates::Ignored,
            pinned: BTreeSet::new(),
            cipher_suites: Vec::new(),
            groups: Vec::new(),
            handshake_rate: None,
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
            ca_file: config.ca_file.clone(),
            clients,
            allow_non_tls: config.allow_non_tls,
            handshake_first: config.handshake_first,
            min_version: config.min_version,
            timeout: config.timeout,
            ..Self::new(cert_file, key_file)
        }))
    }

    /// Reads the files and tells whether a server could start with them. May block.
    ///
    /// # Errors
    /// What [`Server::start`](crate::Server::start) would say.
    pub fn check(&self) -> Result<(), TlsError> {
        files::load(self).map(drop)
    }

    /// Names of the ciphers for [`TlsOptions::cipher_suites`] that there are.
    pub fn known_cipher_suites() -> Vec<String> {
        rustls::crypto::ring::default_provider().cipher_suites.iter().map(choice::suite_name).collect()
    }

    /// Whether every client has to show a certificate.
    pub(crate) fn verifies(&self) -> bool {
        self.clients != ClientCertificates::Ignored
    }

    /// The same certificate for HTTP, whose clients prove who they are by other means.
    pub(crate) fn for_http(&self) -> Self {
        Self { clients: ClientCertificates::Ignored, pinned: BTreeSet::new(), ..self.clone() }
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
