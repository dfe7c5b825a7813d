//! The users of a server, compiled: from what CONNECT says to who the client is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hashbrown::HashMap;
use nkeys::{KeyPair, KeyPairType};
use trunkline::config::{ConnectionType, Secret, User as UserConfig};
use trunkline_protocol::ConnectOptions;

use super::password::{Key, Password, SharedPassword, Verdict};
use super::permissions::Permissions;
use super::{Account, AuthError, AuthOptions, Connection, GLOBAL_ACCOUNT};
use crate::client::Kind;
use crate::tls::canonical_subject;

/// What monitoring shows for a client that came with a token.
const TOKEN_SHOWN: &str = "[REDACTED]";

/// Who a client is.
#[derive(Debug)]
pub(crate) struct Identity {
    /// As monitoring shows it; `None` for a client that nobody asked.
    pub(crate) name: Option<Box<str>>,
    pub(crate) account: Arc<Account>,
    /// `None` allows everything.
    pub(crate) permissions: Option<Arc<Permissions>>,
    /// It may use the admin API, which is about the global account.
    pub(crate) admin: bool,
    /// How it may connect; `None` is any way.
    connection_types: Option<Box<[ConnectionType]>>,
}

impl Identity {
    pub(super) fn may_come_by(&self, kind: Option<Kind>) -> bool {
        let (Some(types), Some(kind)) = (&self.connection_types, kind) else { return true };
        types.contains(&match kind {
            Kind::Nats => ConnectionType::Standard,
            Kind::WebSocket => ConnectionType::WebSocket,
        })
    }
}

/// What CONNECT leads to.
pub(super) enum Found {
    Identity(Arc<Identity>),
    Nobody,
    /// It depends on a hash; see [`super::Verification`].
    Hashed {
        identity: Option<Arc<Identity>>,
        password: SharedPassword,
        given: Secret,
    },
}

/// A secret, and who knows it.
#[derive(Debug)]
struct Entry {
    password: SharedPassword,
    identity: Arc<Identity>,
}

/// See the module's text.
pub(super) struct Directory {
    users: HashMap<Box<str>, Entry, foldhash::quality::RandomState>,
    /// Users by what their certificates say, where that is what counts: their names, and those that are subjects in one form.
    certified: Option<HashMap<Box<str>, Arc<Identity>, foldhash::quality::RandomState>>,
    nkeys: HashMap<Box<str>, (KeyPair, Arc<Identity>), foldhash::quality::RandomState>,
    token: Option<Entry>,
    /// Whoever gives no credentials, where that is allowed.
    anonymous: Option<Arc<Identity>>,
    /// Somebody's hash, against which passwords of users that do not exist are checked.
    decoy: Option<SharedPassword>,
    pub(super) timeout: Duration,
    pub(super) failures_max: Option<u32>,
    key: Key,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("users", &self.users()).finish_non_exhaustive()
    }
}

impl Directory {
    /// `former` is the directory that it follows, and `account` gives the account of a name.
    pub(super) fn new(
        options: &AuthOptions,
        key: &Key,
        former: Option<&Directory>,
        account: &mut dyn FnMut(&str) -> Arc<Account>,
    ) -> Result<Self, AuthError> {
        let defaults = options.default_permissions.as_ref().map(|config| Arc::new(Permissions::new(config)));
        let global = account(GLOBAL_ACCOUNT);
        let mut directory = Self {
            users: HashMap::default(),
            certified: options.by_certificate.then(HashMap::default),
            nkeys: HashMap::default(),
            token: None,
            anonymous: None,
            decoy: None,
            timeout: options.timeout,
            failures_max: options.failures_max,
            key: key.clone(),
        };
        let everybody = |name: Option<&str>| {
            let name = name.map(Into::into);
            Arc::new(Identity {
                name,
                account: global.clone(),
                permissions: defaults.clone(),
                admin: false,
                connection_types: None,
            })
        };
        for user in &options.users {
            directory.add(user, &global, defaults.as_ref(), former)?;
        }
        for (name, users) in &options.accounts {
            let account = account(name);
            for user in users {
                directory.add(user, &account, defaults.as_ref(), former)?;
            }
        }
        if let Some(token) = &options.token {
            let known = former.and_then(|former| former.token.as_ref());
            let password = directory.password(token, "the token", known)?;
            directory.token = Some(Entry { password, identity: everybody(Some(TOKEN_SHOWN)) });
        }
        directory.anonymous = match &options.no_auth_user {
            None => (!options.is_required()).then(|| everybody(None)),
            Some(name) => Some(directory.named(name)?),
        };
        let mut passwords = directory.users.values().chain(&directory.token).map(|entry| &entry.password);
        directory.decoy = passwords.find(|password| !password.is_plain()).cloned();
        Ok(directory)
    }

    fn add(
        &mut self,
        user: &UserConfig,
        account: &Arc<Account>,
        defaults: Option<&Arc<Permissions>>,
        former: Option<&Directory>,
    ) -> Result<(), AuthError> {
        let permissions = match &user.permissions {
            Some(own) => Some(Arc::new(Permissions::new(own))),
            None => defaults.cloned(),
        };
        let identity = |name: &str| {
            let admin = user.admin && *account.name == *GLOBAL_ACCOUNT;
            let (account, permissions) = (account.clone(), permissions.clone());
            let connection_types = user.connection_types.as_deref().map(Into::into);
            Arc::new(Identity { name: Some(name.into()), account, permissions, admin, connection_types })
        };
        let twice = |name: &str| AuthError::Twice { user: name.to_owned() };
        if let (Some(certified), Some(name)) = (&mut self.certified, &user.user) {
            // Found in one form, and shown as it was given.
            let key = canonical_subject(name).unwrap_or_else(|| name.clone());
            if certified.insert(key.as_str().into(), identity(name)).is_some() {
                return Err(twice(name));
            }
            if user.password.is_none() && user.nkey.is_none() {
                return Ok(());
            }
        }
        match (&user.user, &user.password, &user.nkey) {
            (Some(name), Some(password), None) => {
                let known = former.and_then(|former| former.users.get(name.as_str()));
                let password = self.password(password, name, known)?;
                let entry = Entry { password, identity: identity(name) };
                match self.users.insert(name.as_str().into(), entry) {
                    None => Ok(()),
                    Some(_) => Err(twice(name)),
                }
            }
            (None, None, Some(nkey)) => {
                let bad = || AuthError::Nkey { nkey: nkey.clone() };
                let pair = KeyPair::from_public_key(nkey).map_err(|_| bad())?;
                if !matches!(pair.key_pair_type(), KeyPairType::User) {
                    return Err(bad());
                }
                match self.nkeys.insert(nkey.as_str().into(), (pair, identity(nkey))) {
                    None => Ok(()),
                    Some(_) => Err(twice(nkey)),
                }
            }
            (name, _, nkey) => {
                let user = name.as_ref().or(nkey.as_ref()).cloned().unwrap_or_default();
                Err(AuthError::Incomplete { user })
            }
        }
    }

    /// A password, with all that is known of it if `former` has the same.
    fn password(
        &self,
        configured: &Secret,
        user: &str,
        former: Option<&Entry>,
    ) -> Result<SharedPassword, AuthError> {
        match former.filter(|former| former.password.is_of(configured)) {
            Some(former) => Ok(former.password.clone()),
            None => Ok(Arc::new(Password::new(configured, user, &self.key)?)),
        }
    }

    fn named(&self, name: &str) -> Result<Arc<Identity>, AuthError> {
        let user = self.users.get(name).map(|entry| &entry.identity);
        let key = canonical_subject(name);
        let user = user.or_else(|| self.certified.as_ref()?.get(key.as_deref().unwrap_or(name)));
        let user = user.or_else(|| self.nkeys.get(name).map(|(_, identity)| identity));
        user.cloned().ok_or_else(|| AuthError::NoAuthUser { user: name.to_owned() })
    }

    pub(super) fn users(&self) -> usize {
        let certified = self.certified.iter().flat_map(HashMap::values);
        let by_certificate =
            certified.filter(|user| user.name.as_ref().is_none_or(|name| !self.users.contains_key(name)));
        self.users.len() + by_certificate.count() + self.nkeys.len() + usize::from(self.token.is_some())
    }

    pub(super) fn has_nkeys(&self) -> bool {
        !self.nkeys.is_empty()
    }

    /// Whether there is anybody to be.
    pub(super) fn is_required(&self) -> bool {
        self.users() > 0
    }

    pub(super) fn anonymous(&self) -> Option<Arc<Identity>> {
        self.anonymous.clone()
    }

    /// `made` are users whose passwords stand nowhere.
    pub(super) fn warn_about_plain_text(&self, made: &BTreeSet<String>) {
        let configured = self.users.iter().filter(|(name, _)| !made.contains(name.as_ref()));
        let entries = configured.map(|(_, entry)| entry).chain(&self.token);
        let plain = entries.filter(|entry| entry.password.is_plain()).count();
        if plain > 0 {
            tracing::warn!(
                passwords = plain,
                "passwords are configured in plain text: `trunkline passwd` makes a hash"
            );
        }
    }

    /// Who says this on this connection. A user that may not come by it is as one that does not exist.
    pub(super) fn find(&self, said: &ConnectOptions, connection: Connection<'_>) -> Found {
        let Connection { nonce, secured, kind } = connection;
        if !self.is_required() {
            return self.without_credentials(kind);
        }
        if let (Some(certified), Some(secured)) =
            (&self.certified, secured.filter(|secured| secured.is_mapped))
        {
            let owner = secured.owner.iter();
            let mut names = owner.flat_map(|owner| owner.names.iter().chain(&owner.subject));
            let found = names
                .find_map(|name| certified.get(name.as_str()).filter(|identity| identity.may_come_by(kind)));
            return found.cloned().map_or(Found::Nobody, Found::Identity);
        }
        if let Some(nkey) = given(&said.nkey).filter(|_| self.has_nkeys()) {
            return match self.nkeys.get(nkey) {
                Some((pair, identity)) if identity.may_come_by(kind) && is_signed(pair, said, nonce) => {
                    Found::Identity(identity.clone())
                }
                _ => Found::Nobody,
            };
        }
        if let Some(name) = given(&said.user) {
            let entry = self.users.get(name).filter(|entry| entry.identity.may_come_by(kind));
            return self.check(entry, said.pass.as_deref().unwrap_or_default());
        }
        match given(&said.auth_token) {
            Some(token) => self.check(self.token.as_ref(), token),
            None => self.without_credentials(kind),
        }
    }

    fn without_credentials(&self, kind: Option<Kind>) -> Found {
        let anonymous = self.anonymous.clone().filter(|identity| identity.may_come_by(kind));
        anonymous.map_or(Found::Nobody, Found::Identity)
    }

    fn check(&self, entry: Option<&Entry>, secret: &str) -> Found {
        let Some(Entry { password, identity }) = entry else {
            let Some(decoy) = &self.decoy else { return Found::Nobody };
            return Found::Hashed { identity: None, password: decoy.clone(), given: Secret::new(secret) };
        };
        match password.check(secret, &self.key) {
            Verdict::Right => Found::Identity(identity.clone()),
            Verdict::Wrong => Found::Nobody,
            Verdict::Unknown => Found::Hashed {
                identity: Some(identity.clone()),
                password: password.clone(),
                given: Secret::new(secret),
            },
        }
    }
}

/// Some libraries send empty text for what they do not have.
fn given(field: &Option<String>) -> Option<&str> {
    field.as_deref().filter(|text| !text.is_empty())
}

/// What CONNECT calls its user: what failures are counted for, and what logs show. Never a secret.
pub(crate) fn name_of(said: &ConnectOptions) -> &str {
    given(&said.nkey).or(given(&said.user)).unwrap_or(if given(&said.auth_token).is_some() {
        TOKEN_SHOWN
    } else {
        ""
    })
}

/// Whether the nonce is signed with the key.
fn is_signed(pair: &KeyPair, said: &ConnectOptions, nonce: Option<&str>) -> bool {
    let (Some(signature), Some(nonce)) = (given(&said.sig), nonce) else { return false };
    let signature = URL_SAFE_NO_PAD.decode(signature).or_else(|_| STANDARD.decode(signature));
    signature.is_ok_and(|signature| pair.verify(nonce.as_bytes(), &signature).is_ok())
}
