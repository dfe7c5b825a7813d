//! Where the NATS servers are and how to be let in: what [`super::NatsBackend::connect`] takes, checked once.
//!
//! Credentials are taken out of the server addresses here, so that nothing past this file can show them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::ServerAddr;
use trunkline_core::{Subject, SubjectError};
use url::Url;

use crate::memory::MemoryBudget;

/// Bytes left below the longest subject for what is appended to the inbox prefix.
const INBOX_ROOM: usize = 128;

/// How to connect to NATS.
#[derive(Clone)]
pub struct NatsOptions {
    /// Servers of one cluster, tried in random order: `nats://host:4222`, `tls://host`, `host:port`, with
    /// `user:password@` or `token@` where the server wants them; an entry may hold several, separated by commas.
    pub servers: Vec<String>,
    /// Name of this client, shown by the server's monitoring.
    pub name: Option<String>,
    /// Who we are. What a server address says counts only when this is [`NatsAuth::FromUrl`].
    pub auth: NatsAuth,
    /// TLS beyond what a `tls://` address or the server's own demand bring.
    pub tls: NatsTls,
    /// First tokens of reply subjects; the user must be allowed to subscribe below it. Default `_INBOX`.
    pub inbox_prefix: String,
    /// Longest time for the first connection, all attempts together. Default 3 s.
    pub connect_timeout: Duration,
    /// Longest wait for the outcome of a publish or a flush. Default 5 s.
    pub publish_timeout: Duration,
    /// How often a silent connection is probed; the third unanswered probe ends it, so that a stopped
    /// server is noticed within three intervals. Default 600 ms, so that it is within two seconds; at least 10 ms.
    pub ping_interval: Duration,
    /// Most messages that wait for the reader of a subscription which does not say otherwise. Default 65536.
    pub max_pending: usize,
    /// What messages are charged to that wait for their readers, or for JetStream to take them; without a limit by default.
    /// Key `runtime.resources.memory`.
    pub memory: Arc<MemoryBudget>,
    /// First part of the names of streams and buckets on JetStream: letters, digits, `_`, `-`, `:`. Default `atlas_bus`,
    /// key `messaging.stream_prefix`.
    pub stream_prefix: String,
    /// First token of the platform's subjects: no stream may take its requests. Default `nachos`, key
    /// `messaging.subject_root`.
    pub subject_root: String,
    /// How long a deduplication id is remembered. Default 2 min, key `messaging.dedupe_window`.
    pub dedupe_window: Duration,
}

impl NatsOptions {
    /// Options for these servers, everything else by default.
    pub fn new<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            name: None,
            auth: NatsAuth::default(),
            tls: NatsTls::default(),
            inbox_prefix: "_INBOX".to_owned(),
            connect_timeout: Duration::from_secs(3),
            publish_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_millis(600),
            max_pending: 65_536,
            memory: Arc::default(),
            stream_prefix: "atlas_bus".to_owned(),
            subject_root: "nachos".to_owned(),
            dedupe_window: Duration::from_secs(120),
        }
    }
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<&str> =
            self.servers.iter().flat_map(|s| s.split(',')).map(without_user_info).collect();
        f.debug_struct("NatsOptions")
            .field("servers", &servers)
            .field("name", &self.name)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("connect_timeout", &self.connect_timeout)
            .field("publish_timeout", &self.publish_timeout)
            .field("ping_interval", &self.ping_interval)
            .field("max_pending", &self.max_pending)
            .field("memory", &self.memory)
            .field("stream_prefix", &self.stream_prefix)
            .field("subject_root", &self.subject_root)
            .field("dedupe_window", &self.dedupe_window)
            .finish()
    }
}

/// How a client proves who it is. Its `Debug` output hides secrets.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum NatsAuth {
    /// What the server addresses say: `user:password@`, `token@`, or nothing.
    #[default]
    FromUrl,
    /// User and password.
    UserPassword {
        /// Name of the user.
        user: String,
        /// Its password.
        password: String,
    },
    /// One token.
    Token(String),
    /// An nkey seed, `SU…`.
    Nkey(String),
    /// A file with an nkey seed, in a line of its own.
    NkeyFile(PathBuf),
    /// A `.creds` file with a JWT and an nkey seed.
    CredentialsFile(PathBuf),
}

impl fmt::Debug for NatsAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromUrl => f.write_str("FromUrl"),
            Self::UserPassword { user, .. } => write!(f, "UserPassword {{ user: {user:?}, password: *** }}"),
            Self::Token(_) => f.write_str("Token(***)"),
            Self::Nkey(_) => f.write_str("Nkey(***)"),
            Self::NkeyFile(path) => f.debug_tuple("NkeyFile").field(path).finish(),
            Self::CredentialsFile(path) => f.debug_tuple("CredentialsFile").field(path).finish(),
        }
    }
}

/// TLS settings of the client.
#[derive(Debug, Clone, Default)]
pub struct NatsTls {
    /// Refuse a connection without TLS, whatever the addresses say. Certificates below ask for the same.
    pub required: bool,
    /// Shake hands before the server's first line, as servers with `handshake_first` want it.
    pub first: bool,
    /// PEM files with the roots to trust instead of the system's.
    pub root_certificates: Vec<PathBuf>,
    /// PEM files with our own certificate and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

/// Why no connection to NATS was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NatsConnectError {
    /// The list of servers is empty.
    #[error("no NATS server is named (messaging.nats_url)")]
    NoServers,
    /// An address that cannot be used.
    #[error("{server:?} is no address of a NATS server: {reason} (messaging.nats_url)")]
    BadServer {
        /// The address without credentials.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The inbox prefix is not a subject, or too long.
    #[error("inbox prefix {prefix:?} cannot be used")]
    BadInboxPrefix {
        /// The prefix.
        prefix: String,
        /// What is wrong with it.
        source: SubjectError,
    },
    /// JetStream takes no names that begin so.
    #[error("{prefix:?} cannot begin the names of streams: {reason} (messaging.stream_prefix)")]
    BadStreamPrefix {
        /// The prefix.
        prefix: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file with credentials cannot be read, or has no seed, or no JWT where there should be one.
    #[error("{} ({setting}) cannot be used", path.display())]
    Credentials {
        /// Where it is.
        path: PathBuf,
        /// The key of the configuration that names it.
        setting: &'static str,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The nkey is no seed of a user.
    #[error("the nkey is no seed of a user")]
    Nkey,
    /// A file with certificates or a key cannot be read, or has none.
    #[error("{} ({setting}) cannot be used: {reason}", path.display())]
    TlsFile {
        /// Where it is.
        path: PathBuf,
        /// The key of the configuration that names it.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The server does not let us in.
    #[error("{server} refused the credentials: {reason}")]
    Unauthorized {
        /// Which server, without credentials.
        server: String,
        /// What it said.
        reason: String,
    },
    /// The server is there, but TLS with it fails.
    #[error("no TLS with {server}: {reason}")]
    Tls {
        /// Which server, without credentials.
        server: String,
        /// What went wrong.
        reason: String,
    },
    /// No server could be reached in time.
    #[error("{server} could not be reached within {waited:?}: {reason}")]
    Unreachable {
        /// Which servers, without credentials.
        server: String,
        /// How long was tried.
        waited: Duration,
        /// What the last attempt failed with.
        reason: String,
    },
    /// The user may not subscribe to its own inbox: no reply and no confirmation could reach it.
    #[error("{server} denies the inbox: {reason}")]
    InboxDenied {
        /// Which server, without credentials.
        server: String,
        /// What it said.
        reason: String,
    },
}

impl NatsConnectError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// What the operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoServers | Self::BadServer { .. } => "give an address like nats://127.0.0.1:4222",
            Self::BadInboxPrefix { .. } => "give one or more tokens, as in _INBOX",
            Self::BadStreamPrefix { .. } => "give letters, digits, '_' and '-', as in atlas_bus",
            Self::Credentials { .. } => {
                "`nsc generate creds` writes a credentials file, `nk -gen user` the seed of an nkey"
            }
            Self::Nkey => "`nk -gen user` makes one; it begins with SU",
            Self::Unauthorized { .. } => {
                "compare the credentials in messaging.nats_url, or those of messaging.nats_auth, with the server's \
                 configuration"
            }
            Self::TlsFile { .. } => "correct the section messaging.nats_tls",
            Self::Tls { .. } => {
                "messaging.nats_tls.ca_file names the authority of the server's certificate, cert_file and key_file the \
                 certificate it asks for; the host in messaging.nats_url must be one the certificate is for"
            }
            Self::Unreachable { .. } => "start the server, or correct messaging.nats_url",
            Self::InboxDenied { .. } => {
                "allow the user to subscribe to the inbox, `_INBOX.>` unless set otherwise"
            }
        }
    }
}

/// The addresses, checked: what to connect to, what to show, and the credentials that stood in them.
pub(super) struct Servers {
    /// Without credentials.
    pub(super) addresses: Vec<ServerAddr>,
    /// For people.
    pub(super) shown: String,
    /// Of the first address that had any.
    pub(super) auth: NatsAuth,
}

impl Servers {
    pub(super) fn parse(texts: &[String]) -> Result<Self, NatsConnectError> {
        let mut servers = Self { addresses: Vec::new(), shown: String::new(), auth: NatsAuth::FromUrl };
        for text in texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|t| !t.is_empty()) {
            servers.add(text)?;
        }
        if servers.addresses.is_empty() {
            return Err(NatsConnectError::NoServers);
        }
        Ok(servers)
    }

    fn add(&mut self, text: &str) -> Result<(), NatsConnectError> {
        let bad = |reason: String| NatsConnectError::BadServer {
            server: without_user_info(text).to_owned(),
            reason,
        };
        let mut url: Url = if text.contains("://") { text.parse() } else { format!("nats://{text}").parse() }
            .map_err(|error: url::ParseError| bad(error.to_string()))?;
        if !matches!(url.scheme(), "nats" | "tls") {
            return Err(bad(format!("scheme {:?}, expected nats or tls", url.scheme())));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(bad("no host".to_owned()));
        }
        let auth = auth_of(&url).map_err(&bad)?;
        // Neither call fails: the URL has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let address = ServerAddr::from_url(url).map_err(|error| bad(error.to_string()))?;
        if matches!(self.auth, NatsAuth::FromUrl) {
            self.auth = auth;
        }
        if !self.shown.is_empty() {
            self.shown.push(',');
        }
        let host = if address.host().contains(':') {
            format!("[{}]", address.host())
        } else {
            address.host().to_owned()
        };
        self.shown.push_str(&format!("{}://{host}:{}", address.scheme(), address.port()));
        self.addresses.push(address);
        Ok(())
    }
}

/// The inbox prefix as a subject that leaves room for what follows it.
pub(super) fn check_inbox_prefix(prefix: &str) -> Result<(), NatsConnectError> {
    let bad = |source| NatsConnectError::BadInboxPrefix { prefix: prefix.to_owned(), source };
    Subject::new(prefix).map_err(bad)?;
    Subject::new(format!("{prefix}.{}", "x".repeat(INBOX_ROOM))).map_err(bad)?;
    Ok(())
}

fn auth_of(url: &Url) -> Result<NatsAuth, String> {
    let user = percent_decode(url.username())?;
    match url.password() {
        None if user.is_empty() => Ok(NatsAuth::FromUrl),
        None => Ok(NatsAuth::Token(user)),
        Some(password) => Ok(NatsAuth::UserPassword { user, password: percent_decode(password)? }),
    }
}

fn percent_decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| "credentials are not UTF-8".to_owned())
}

/// The address as it may be shown.
fn without_user_info(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Servers, NatsConnectError> {
        Servers::parse(&[text.to_owned()])
    }

    #[test]
    fn credentials_leave_the_address() {
        let cases = [
            ("nats://u:p%40ss%3A1@a:4222,b", "nats://a:4222,nats://b:4222", "u/p@ss:1"),
            ("tls://secret@host:1", "tls://host:1", "token secret"),
            ("[::1]:4333", "nats://[::1]:4333", "none"),
            ("nats://a , nats://late:pw@b", "nats://a:4222,nats://b:4222", "late/pw"),
            ("nats://u:100%25@a", "nats://a:4222", "u/100%"),
        ];
        for (text, shown, auth) in cases {
            let servers = parse(text).unwrap();
            assert_eq!(servers.shown, shown);
            let found = match servers.auth {
                NatsAuth::UserPassword { user, password } => format!("{user}/{password}"),
                NatsAuth::Token(token) => format!("token {token}"),
                _ => "none".to_owned(),
            };
            assert_eq!(found, auth, "{text}");
            assert!(servers.addresses.iter().all(|address| !address.has_user_pass()), "{text}");
        }
    }

    #[test]
    fn bad_addresses_are_refused_without_showing_credentials() {
        for text in ["http://a", "nats://u:secret@", "nats://u:secret@host:99999", "ws://u:secret@h"] {
            let error = parse(text).err().unwrap_or_else(|| panic!("{text} was accepted"));
            assert!(matches!(error, NatsConnectError::BadServer { .. }), "{text}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(matches!(parse(" , "), Err(NatsConnectError::NoServers)));
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let mut options = NatsOptions::new(["nats://u:secret@a,nats://u:secret@b"]);
        for auth in [
            NatsAuth::FromUrl,
            NatsAuth::Token("secret".to_owned()),
            NatsAuth::Nkey("secret".to_owned()),
            NatsAuth::UserPassword { user: "u".to_owned(), password: "secret".to_owned() },
        ] {
            options.auth = auth;
            assert!(!format!("{options:?}").contains("secret"), "{options:?}");
        }
    }
}
