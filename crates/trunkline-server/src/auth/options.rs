//! What a server is told about users.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use trunkline::config::{Permissions, Secret, Server, User};

/// Who may connect, and what they may do. The default asks nobody who they are and allows everything.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthOptions {
    /// Users of the space of subjects that components of this process are in, too. Keys `server.users[]` and, as one more,
    /// `server.auth.user`.
    pub users: Vec<User>,
    /// Users of other spaces of subjects, each apart from all others. Key `server.accounts`.
    pub accounts: BTreeMap<String, Vec<User>>,
    /// A token, or its hash, in the place of a user. Key `server.auth.token`.
    pub token: Option<Secret>,
    /// The user that a client without credentials is taken for. Key `server.auth.no_auth_user`.
    pub no_auth_user: Option<String>,
    /// Permissions of whoever has none of its own; `None` allows everything. Key `server.permissions`.
    pub default_permissions: Option<Permissions>,
    /// Whether the certificate of a client says which user it is, and nothing that it says itself; such users may be without
    /// a password. Clients without TLS, where there may be some, have passwords all the same. Goes with
    /// [`ClientCertificates::Mapped`](crate::ClientCertificates::Mapped). Key `server.tls.verify_and_map`.
    pub by_certificate: bool,
    /// Names of users whose passwords were made for this run and stand in no file, so that nobody is told to hash them.
    pub made: BTreeSet<String>,
    /// Longest time until a client has said who it is. Default 2 s, key `server.limits.auth_timeout`.
    pub timeout: Duration,
    /// Failed attempts of one address as one user within a minute, past which attempts are refused unchecked; `None` is
    /// any number. Default 30, key `server.limits.auth_failures`.
    pub failures_max: Option<u32>,
}

/// Users that cannot be put in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// A password begins like a hash and is none.
    #[error("the password of {user} begins like a hash and is none: {reason}")]
    Hash {
        /// Whose password.
        user: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An nkey that is no public key of a user.
    #[error("{nkey} is not the public nkey of a user")]
    Nkey {
        /// What was given.
        nkey: String,
    },
    /// A user needs a name and a password, or an nkey, and not both.
    #[error("user {user:?} needs a name and a password, or an nkey")]
    Incomplete {
        /// What is known of the user.
        user: String,
    },
    /// Two users of one name: which of them a client is, could not be told.
    #[error("there are two users {user:?}")]
    Twice {
        /// The name.
        user: String,
    },
    /// The user that clients without credentials are taken for does not exist.
    #[error("there is no user {user:?} to take clients without credentials for (server.auth.no_auth_user)")]
    NoAuthUser {
        /// The name.
        user: String,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {reason}")]
    Random {
        /// What it said.
        reason: String,
    },
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self {
            users: Vec::new(),
            accounts: BTreeMap::new(),
            token: None,
            no_auth_user: None,
            default_permissions: None,
            by_certificate: false,
            made: BTreeSet::new(),
            timeout: Duration::from_secs(2),
            failures_max: Some(30),
        }
    }
}

impl AuthOptions {
    /// Whether anybody is asked who they are: without users and token nobody could say.
    pub fn is_required(&self) -> bool {
        !self.users.is_empty()
            || self.token.is_some()
            || self.accounts.values().any(|users| !users.is_empty())
    }
}

impl From<&Server> for AuthOptions {
    fn from(server: &Server) -> Self {
        let (auth, unset) = (&server.auth, Server::default());
        let mut users = server.users.clone();
        if let (Some(name), Some(password)) = (&auth.user, &auth.password) {
            users.push(User {
                user: Some(name.clone()),
                password: Some(password.clone()),
                nkey: None,
                admin: false,
                permissions: None,
                connection_types: None,
            });
        }
        let accounts = &server.accounts;
        Self {
            users,
            accounts: accounts.iter().map(|(name, account)| (name.clone(), account.users.clone())).collect(),
            token: auth.token.clone(),
            no_auth_user: auth.no_auth_user.clone(),
            default_permissions: (server.permissions != unset.permissions)
                .then(|| server.permissions.clone()),
            by_certificate: server.tls.verify_and_map,
            made: BTreeSet::new(),
            timeout: server.limits.auth_timeout,
            failures_max: server.limits.auth_failures,
        }
    }
}
