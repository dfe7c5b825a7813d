//! Users by JWT: an operator made for one test, its account, and the credentials files of users.
//!
//! This is what `nsc` makes, cut down to what a server needs to let somebody in.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::servers::temporary_directory;

/// An operator with one account. The files of its users go when it is dropped.
pub struct NatsOperator {
    directory: TempDir,
    operator: KeyPair,
    account: KeyPair,
}

impl NatsOperator {
    /// Makes an operator that no server knows yet.
    pub fn make() -> NatsOperator {
        NatsOperator {
            directory: temporary_directory(),
            operator: KeyPair::new_operator(),
            account: KeyPair::new_account(),
        }
    }

    /// What a server's configuration says so that it lets in the users of this operator, and nobody else.
    pub fn server_config(&self) -> String {
        let operator = self.operator.public_key();
        let account = self.account.public_key();
        let of_operator = json!({ "type": "operator", "version": 2 });
        let of_account = json!({
            "type": "account", "version": 2,
            "limits": {
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                "leaf": -1,
            },
        });
        let operator_jwt = sign(&self.operator, &operator, None, of_operator);
        let account_jwt = sign(&self.operator, &account, None, of_account);
        format!(
            "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {account}: {account_jwt} }}\n"
        )
    }

    /// Makes a user of the account, and its credentials file.
    pub fn credentials_file(&self, name: &str) -> PathBuf {
        self.write_credentials(name, None)
    }

    /// A user whose time is over.
    pub fn expired_credentials_file(&self, name: &str) -> PathBuf {
        self.write_credentials(name, Some(now() - Duration::from_secs(60)))
    }

    fn write_credentials(&self, name: &str, expires: Option<Duration>) -> PathBuf {
        let user = KeyPair::new_user();
        let claims = json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
        let jwt = sign(&self.account, &user.public_key(), expires, claims);
        let seed = user.seed().expect("a new key has its seed");
        let path = self.directory.path().join(format!("{name}.creds"));
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        fs::write(&path, text).expect("a temporary directory takes a file");
        path
    }
}

/// The seed in a credentials file, which must show nowhere.
///
/// # Panics
/// When there is none.
pub fn seed_of(credentials: &Path) -> String {
    let text = fs::read_to_string(credentials).expect("the file is there");
    let seed = text.lines().find(|line| line.starts_with("SU"));
    seed.expect("a credentials file has a seed").to_owned()
}

/// A new nkey of a user: its seed, and its public key, which a server's configuration names.
pub fn user_nkey() -> (String, String) {
    let user = KeyPair::new_user();
    (user.seed().expect("a new key has its seed"), user.public_key())
}

/// Time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970")
}

/// A JWT by which `issuer` says `claims` of `subject`.
fn sign(issuer: &KeyPair, subject: &str, expires: Option<Duration>, claims: Value) -> String {
    let mut body = json!({
        "jti": format!("{:016x}", fastrand::u64(..)), "iat": now().as_secs(), "iss": issuer.public_key(),
        "name": "test", "sub": subject, "nats": claims,
    });
    if let Some(expires) = expires {
        body["exp"] = json!(expires.as_secs());
    }
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(body));
    let signature = issuer.sign(text.as_bytes()).expect("a new key can sign");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
