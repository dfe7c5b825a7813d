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
use crate::arrival::Secured;
use crate::client::Kind;
use crate::tls::canonical_subject;

/// What monitoring shows for a client that came with a token.
pub(crate) const TOKEN_SHOWN: &str = "[REDACTED]";

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
    certified: Option<Certified>,
    nkeys: HashMap<Box<str>, (KeyPair, Arc<Identity>), foldhash::quality::RandomState>,
    token: Option<Entry>,
    /// Whoever gives no credentials, where that is allowed.
    anonymous: Option<Arc<Identity>>,
    /// What users have for passwords, in the order in which they are configured: what is said of users that do not exist
    /// takes as long as what is said of these.
    decoys: Vec<SharedPassword>,
    /// There is anybody to be.
    is_required: bool,
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
            decoys: Vec::new(),
            is_required: options.is_required(),
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
        if directory.decoys.is_empty() {
            directory.decoys.extend(directory.token.iter().map(|entry| entry.password.clone()));
        }
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
                self.decoys.push(password.clone());
                let entry = Entry { password, identity: identity(name) };
                match self.users.insert(name.as_str().into(), entry) {
                    None => Ok(()),
                    Some(_) => Err(twice(name)),
                }
            }
            (None, None, Some(nkey)) => {
                // The other half of the key, in the place of this one, is a secret.
                let is_seed = nkey.starts_with('S');
                let shown = || if is_seed { "a seed".to_owned() } else { nkey.clone() };
                let bad = || AuthError::Nkey { nkey: shown() };
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
        self.is_required
    }

    /// Whether somebody may be let in without saying a word.
    pub(super) fn has_anonymous(&self) -> bool {
        self.anonymous.is_some()
    }

    /// Who a client is that says nothing of itself, on this connection.
    pub(super) fn anonymous(&self, connection: Connection<'_>) -> Option<Arc<Identity>> {
        // Where certificates say who a client is, one that names nobody is nobody's, and not anybody's.
        match self.certified(connection) {
            Some(_) => None,
            None => self.anonymous.clone().filter(|identity| identity.may_come_by(connection.kind)),
        }
    }

    /// Whom certificates name, and what is known of that of this connection, where it says who the client is.
    fn certified<'a>(&'a self, connection: Connection<'a>) -> Option<(&'a Certified, &'a Secured)> {
        self.certified.as_ref().zip(connection.secured.filter(|secured| secured.is_mapped))
    }

    /// What of CONNECT is looked at: the first of these that it has.
    fn credential<'a>(&self, said: &'a ConnectOptions) -> Credential<'a> {
        if let Some(nkey) = given(&said.nkey).filter(|_| self.has_nkeys()) {
            return Credential::Nkey(nkey);
        }
        match (given(&said.user), given(&said.auth_token)) {
            (Some(name), _) => Credential::User { name, password: said.pass.as_deref().unwrap_or_default() },
            (None, Some(token)) => Credential::Token(token),
            (None, None) => Credential::Nothing,
        }
    }

    /// What CONNECT calls its user: what failures are counted for, and what logs show. Never a secret. It is of the very
    /// credential that is checked: one that is not could be another for each guess.
    pub(super) fn name_of<'a>(&self, said: &'a ConnectOptions) -> &'a str {
        match self.credential(said) {
            Credential::Nkey(name) | Credential::User { name, .. } => name,
            Credential::Token(_) => TOKEN_SHOWN,
            Credential::Nothing => "",
        }
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
        let Connection { nonce, kind, .. } = connection;
        if !self.is_required() {
            return self.without_credentials(connection);
        }
        if let Some((certified, secured)) = self.certified(connection) {
            let owner = secured.owner.iter();
            let mut names = owner.flat_map(|owner| owner.names.iter().chain(&owner.subject));
            let found = names
                .find_map(|name| certified.get(name.as_str()).filter(|identity| identity.may_come_by(kind)));
            return found.cloned().map_or(Found::Nobody, Found::Identity);
        }
        match self.credential(said) {
            Credential::Nkey(nkey) => match self.nkeys.get(nkey) {
                Some((pair, identity)) if identity.may_come_by(kind) && is_signed(pair, said, nonce) => {
                    Found::Identity(identity.clone())
                }
                _ => Found::Nobody,
            },
            Credential::User { name, password } => {
                let entry = self.users.get(name).filter(|entry| entry.identity.may_come_by(kind));
                self.check(entry, name, password)
            }
            Credential::Token(token) => self.check(self.token.as_ref(), TOKEN_SHOWN, token),
            Credential::Nothing => self.without_credentials(connection),
        }
    }

    fn without_credentials(&self, connection: Connection<'_>) -> Found {
        self.anonymous(connection).map_or(Found::Nobody, Found::Identity)
    }

    /// `name` is who it is said to be, whether or not there is an entry.
    fn check(&self, entry: Option<&Entry>, name: &str, secret: &str) -> Found {
        let (password, identity) = match entry {
            Some(Entry { password, identity }) => (password, Some(identity)),
            None => match self.decoy(name) {
                Some(password) => (password, None),
                None => return Found::Nobody,
            },
        };
        let is_plain = password.is_plain();
        match (password.check(secret, &self.key), identity) {
            (Verdict::Right, Some(identity)) => Found::Identity(identity.clone()),
            (Verdict::Wrong, _) => Found::Nobody,
            (Verdict::Right, None) if is_plain => Found::Nobody,
            (Verdict::Right | Verdict::Unknown, identity) => Found::Hashed {
                identity: identity.cloned(),
                password: password.clone(),
                given: Secret::new(secret),
            },
        }
    }

    /// The password that is looked at for a user that does not exist: somebody's, and the same one each time. So it takes
    /// as long as it may take for a user that does, whatever their passwords are in: plain text or hashes of any cost.
    fn decoy(&self, name: &str) -> Option<&SharedPassword> {
        let drawn = self.key.number(name).checked_rem(self.decoys.len() as u64)?;
        self.decoys.get(usize::try_from(drawn).ok()?)
    }
}

/// Users by what certificates call them.
type Certified = HashMap<Box<str>, Arc<Identity>, foldhash::quality::RandomState>;

/// See [`Directory::credential`].
#[derive(Clone, Copy)]
enum Credential<'a> {
    Nkey(&'a str),
    User { name: &'a str, password: &'a str },
    Token(&'a str),
    Nothing,
}

/// Some libraries send empty text for what they do not have.
fn given(field: &Option<String>) -> Option<&str> {
    field.as_deref().filter(|text| !text.is_empty())
}

/// Whether the nonce is signed with the key.
fn is_signed(pair: &KeyPair, said: &ConnectOptions, nonce: Option<&str>) -> bool {
    let (Some(signature), Some(nonce)) = (given(&said.sig), nonce) else { return false };
    let signature = URL_SAFE_NO_PAD.decode(signature).or_else(|_| STANDARD.decode(signature));
    signature.is_ok_and(|signature| pair.verify(nonce.as_bytes(), &signature).is_ok())
}

#[cfg(test)]
mod tests {
    use trunkline::backend::memory::Hub;

    use super::*;
    use crate::tls::Owner;

    /// A user of this name and password.
    fn user(name: &str, password: &str) -> UserConfig {
        UserConfig {
            user: Some(name.to_owned()),
            password: Some(Secret::new(password)),
            nkey: None,
            admin: false,
            permissions: None,
            connection_types: None,
        }
    }

    fn directory(passwords: &[&str]) -> Directory {
        let named = |(n, password): (usize, &&str)| user(&format!("user {n}"), password);
        let users = passwords.iter().enumerate().map(named).collect();
        compiled(&AuthOptions { users, ..AuthOptions::default() })
    }

    fn compiled(options: &AuthOptions) -> Directory {
        let global = Arc::new(Account {
            name: GLOBAL_ACCOUNT.into(),
            hub: Arc::new(Hub::default()),
            gone: Default::default(),
        });
        let key = Key::random().expect("the system has random bytes");
        Directory::new(options, &key, None, &mut |_| global.clone()).expect("users that can be")
    }

    /// Whoever is found by a password, a key, a certificate, or without a word.
    #[test]
    fn a_user_is_found_by_the_connections_that_it_may_come_by_and_by_no_other() {
        const NONCE: &str = "nonce";
        let pair = KeyPair::new_user();
        let secured = Secured {
            version: "1.3",
            cipher: String::new(),
            first: false,
            owner: Some(Owner { names: vec!["ann.tools".to_owned()], subject: None }),
            peers: Arc::default(),
            is_mapped: true,
        };
        let said = |name: &str, password: &str| ConnectOptions {
            user: Some(name.to_owned()),
            pass: Some(password.to_owned()),
            ..ConnectOptions::default()
        };
        let signature = pair.sign(NONCE.as_bytes()).expect("it has a seed");
        let signed = ConnectOptions {
            nkey: Some(pair.public_key()),
            sig: Some(URL_SAFE_NO_PAD.encode(signature)),
            ..ConnectOptions::default()
        };
        let ways = [
            ("a password", said("ann", "a"), None),
            ("a key", signed, None),
            ("a certificate", ConnectOptions::default(), Some(&secured)),
            ("not a word", ConnectOptions::default(), None),
        ];
        for (types, expected) in [
            (None, [true, true, true]),
            (Some(vec![]), [false, false, true]),
            (Some(vec![ConnectionType::Standard]), [true, false, true]),
            (Some(vec![ConnectionType::WebSocket]), [false, true, true]),
            (Some(vec![ConnectionType::WebSocket, ConnectionType::Standard]), [true, true, true]),
        ] {
            let limited = |user: UserConfig| UserConfig { connection_types: types.clone(), ..user };
            let by_key =
                UserConfig { user: None, password: None, nkey: Some(pair.public_key()), ..user("", "") };
            let by_certificate = UserConfig { password: None, ..user("ann.tools", "") };
            let users = [user("ann", "a"), by_key, by_certificate].map(limited).into();
            let directory = compiled(&AuthOptions {
                users,
                by_certificate: true,
                no_auth_user: Some("ann".to_owned()),
                ..AuthOptions::default()
            });
            for (what, said, secured) in &ways {
                // Over HTTP everybody may come.
                let kinds = [Some(Kind::Nats), Some(Kind::WebSocket), None];
                let found = kinds.map(|kind| {
                    let connection = Connection { nonce: Some(NONCE), secured: *secured, kind };
                    matches!(directory.find(said, connection), Found::Identity(_))
                });
                assert_eq!(found, expected, "{what}, {types:?}");
            }
        }
    }

    /// Whether it takes a hash to say that a user of this name has not this password.
    fn takes_a_hash(directory: &Directory, name: &str, password: &str) -> bool {
        let said = ConnectOptions {
            user: Some(name.to_owned()),
            pass: Some(password.to_owned()),
            ..ConnectOptions::default()
        };
        let connection = Connection { nonce: None, secured: None, kind: None };
        match directory.find(&said, connection) {
            Found::Hashed { identity, .. } => identity.is_none(),
            Found::Nobody => false,
            Found::Identity(_) => panic!("{name} is nobody"),
        }
    }

    #[test]
    fn names_that_nobody_has_take_as_long_as_names_that_somebody_has() {
        let hash = bcrypt::hash("hashed", 4).expect("short enough");
        let mixed = directory(&["plain", &hash, "plain too", &hash]);
        let strangers: Vec<String> = (0..64).map(|n| format!("stranger {n}")).collect();
        for password in ["plain", "hashed", "wrong"] {
            let answers: Vec<bool> =
                strangers.iter().map(|name| takes_a_hash(&mixed, name, password)).collect();
            assert!(answers.contains(&true) && answers.contains(&false), "{password}: {answers:?}");
            let again: Vec<bool> =
                strangers.iter().map(|name| takes_a_hash(&mixed, name, password)).collect();
            assert_eq!(answers, again, "each of them takes the same every time");
        }
        let hashed = directory(&[&hash]);
        assert!(strangers.iter().all(|name| takes_a_hash(&hashed, name, "hashed")));
        let plain = directory(&["plain"]);
        assert!(!strangers.iter().any(|name| takes_a_hash(&plain, name, "plain")));
    }
}
