//! Why a server does not start, and what its operator can do about it.

use std::net::SocketAddr;

use trunkline::backend::BackendKind;
use trunkline_core::SubjectError;

use crate::auth::AuthError;
use crate::tls::TlsError;
use crate::websocket::OriginError;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} ({setting})")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The configuration key that names it.
        setting: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The threads for connections cannot be started.
    #[error("cannot start {count} threads for connections")]
    Threads {
        /// How many were to be started.
        count: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address can be reached from other machines, and this server asks nobody who they are.
    #[error(
        "{setting} is {address}, which is reachable from other machines, and the server has no authentication"
    )]
    Exposed {
        /// The address.
        address: SocketAddr,
        /// The configuration key that names it.
        setting: &'static str,
    },
    /// The address can be reached from other machines, and passwords and messages would travel there in plain text.
    #[error("{setting} is {address}, which is reachable from other machines, and the server has no TLS")]
    Plaintext {
        /// The address.
        address: SocketAddr,
        /// The configuration key that names it.
        setting: &'static str,
    },
    /// Certificates or keys that cannot be used.
    #[error("TLS cannot be served")]
    Tls(#[from] TlsError),
    /// An origin that cannot be one.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The WebSocket listener is configured, all but its address.
    #[error("server.websocket is set, and server.websocket.listen is not")]
    WebSocketAddress,
    /// Users that cannot be put in force.
    #[error("the users of the server cannot be put in force")]
    Auth(#[from] AuthError),
    /// Accounts are spaces of subjects apart, and the backend of a bridge has only one.
    #[error("server.accounts is set, and backend {backend} has one space of subjects for all accounts")]
    Accounts {
        /// The backend.
        backend: BackendKind,
    },
    /// The system gives no random bytes to make the admin token of.
    #[error("the admin token cannot be made: {reason}")]
    AdminToken {
        /// What the system said.
        reason: String,
    },
    /// The first token of the platform's subjects cannot be one.
    #[error("{root:?} cannot begin a subject (messaging.subject_root)")]
    SubjectRoot {
        /// What was given.
        root: String,
        /// What is wrong with it.
        source: SubjectError,
    },
}

impl StartError {
    /// What the operator can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Bind { setting, .. } => {
                format!("set {setting} to another address; port 0 is any free one")
            }
            Self::Threads { .. } => "set runtime.resources.cpus to fewer, or raise the limit of processes".to_owned(),
            Self::Exposed { setting, .. } => {
                format!("set server.users or server.auth, or {setting} to a loopback address such as 127.0.0.1:4222")
            }
            Self::Plaintext { setting, .. } => {
                format!(
                    "set server.tls.cert_file and key_file (for server.listen and server.websocket.listen), server.plaintext to true if the network is to be trusted, or {setting} to a loopback address"
                )
            }
            Self::Tls(error) => error.hint(),
            Self::Origin(_) => "an origin has a scheme, a host, and a port where it is not the scheme's own: https://chat.example.org".to_owned(),
            Self::WebSocketAddress => "set server.websocket.listen to an address such as 127.0.0.1:8443".to_owned(),
            Self::Auth(error) => match error {
                AuthError::Hash { .. } => "`trunkline passwd` makes a hash for server.users and server.auth".to_owned(),
                AuthError::Nkey { .. } => "a public nkey begins with U; its seed, with SU, stays with the client".to_owned(),
                _ => "`trunkline config keys` says what server.users and server.auth take".to_owned(),
            },
            Self::Accounts { .. } => {
                "use one server with its own messaging.stream_prefix for each account, or permissions in one account"
                    .to_owned()
            }
            Self::AdminToken { .. } => "set server.auth.admin_token".to_owned(),
            Self::SubjectRoot { .. } => "set messaging.subject_root to a word such as nachos".to_owned(),
        }
    }
}
