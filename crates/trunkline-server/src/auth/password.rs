//! Secrets as the server keeps them: digests of plain text, or hashes with what it has learnt of them.

use std::sync::Arc;

use parking_lot::Mutex;
use ring::digest;
use subtle::ConstantTimeEq as _;
use trunkline::config::Secret;

use super::AuthError;

/// How to hash a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HashScheme {
    /// `$2b$…`, which nats-server reads too.
    Bcrypt {
        /// Each step doubles the time it takes; 4 to 31.
        cost: u32,
    },
    /// `$argon2id$…`, with the parameters that the authors of the implementation recommend.
    Argon2,
}

/// Why there is no hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HashError {
    /// bcrypt looks at so many bytes and would let in whoever knows those.
    #[error("the password is {length} bytes long, and bcrypt looks at {limit} at most")]
    TooLong {
        /// Bytes of the password.
        length: usize,
        /// Most bytes.
        limit: usize,
    },
    /// Anything else, such as a cost that there is not.
    #[error("the password cannot be hashed: {reason}")]
    Failed {
        /// What the implementation said.
        reason: String,
    },
}

/// The hash of a password or token, for the configuration. Takes as long as it was meant to take.
///
/// # Errors
/// See [`HashError`].
pub fn hash_password(password: &str, scheme: HashScheme) -> Result<String, HashError> {
    let failed = |reason: String| HashError::Failed { reason };
    match scheme {
        HashScheme::Bcrypt { .. } if password.len() > BCRYPT_BYTES_MAX => {
            Err(HashError::TooLong { length: password.len(), limit: BCRYPT_BYTES_MAX })
        }
        HashScheme::Bcrypt { cost } => {
            bcrypt::hash(password, cost).map_err(|error| failed(error.to_string()))
        }
        HashScheme::Argon2 => {
            let hash = argon2::PasswordHasher::hash_password(&argon2::Argon2::default(), password.as_bytes());
            Ok(hash.map_err(|error| failed(error.to_string()))?.to_string())
        }
    }
}

/// Bytes of a password that bcrypt looks at; one more is its terminating zero.
const BCRYPT_BYTES_MAX: usize = 71;

/// A random text of this server, which goes into every digest: they are of no use to anybody else.
#[derive(Clone)]
pub(super) struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Key {
    pub(super) fn random() -> Result<Self, AuthError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| AuthError::Random { reason: error.to_string() })?;
        Ok(Self(key))
    }

    /// A number that stands for a text, and that nobody else can tell.
    pub(super) fn number(&self, text: &str) -> u64 {
        let Digest([a, b, c, d, e, f, g, h, ..]) = self.digest(text);
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    fn digest(&self, secret: &str) -> Digest {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&self.0);
        context.update(secret.as_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Digest(bytes)
    }
}

/// Stands for a secret. All have one length, so that comparing them tells nothing about the secret's.
#[derive(Clone, Copy)]
struct Digest([u8; 32]);

impl Digest {
    fn is(&self, other: &Digest) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What can be said of a secret that a client gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// Only the hash can tell: [`Password::verify`].
    Unknown,
}

/// A password or token.
#[derive(Debug)]
pub(super) struct Password {
    /// As configured, to find it again after a reload.
    configured: Secret,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Plain(Digest),
    Hashed {
        scheme: Scheme,
        /// The digest of the secret that has once been found to match: whoever gives it again is let in at once, so that
        /// a flood of others does not keep it waiting. Held for a copy.
        known: Mutex<Option<Digest>>,
        /// The digest of the last one that was found not to match. It is asked for clients alone that were let in before: who
        /// is refused must not learn that somebody has guessed the same. Held for a copy.
        wrong: Mutex<Option<Digest>>,
    },
}

#[derive(Debug, Clone, Copy)]
enum Scheme {
    Bcrypt,
    Argon2,
}

impl Password {
    /// `user` is whose it is, for errors.
    ///
    /// # Errors
    /// [`AuthError::Hash`]: a text that begins like a hash is never taken for a plain password, because then the hash
    /// would be the password.
    pub(super) fn new(configured: &Secret, user: &str, key: &Key) -> Result<Self, AuthError> {
        let text = configured.expose();
        let broken = |reason: String| AuthError::Hash { user: user.to_owned(), reason };
        let scheme = if ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| text.starts_with(prefix)) {
            text.parse::<bcrypt::HashParts>().map_err(|error| broken(error.to_string()))?;
            Some(Scheme::Bcrypt)
        } else if text.starts_with("$argon2") {
            argon2_hash(text).map_err(broken)?;
            Some(Scheme::Argon2)
        } else {
            None
        };
        let form = match scheme {
            None => Form::Plain(key.digest(text)),
            Some(scheme) => Form::Hashed { scheme, known: Mutex::default(), wrong: Mutex::default() },
        };
        Ok(Self { configured: configured.clone(), form })
    }

    pub(super) fn is_plain(&self) -> bool {
        matches!(self.form, Form::Plain(_))
    }

    /// Whether it was configured with this very text.
    pub(super) fn is_of(&self, configured: &Secret) -> bool {
        self.configured == *configured
    }

    /// What can be said at once.
    pub(super) fn check(&self, given: &str, key: &Key) -> Verdict {
        match &self.form {
            Form::Plain(digest) => match digest.is(&key.digest(given)) {
                true => Verdict::Right,
                false => Verdict::Wrong,
            },
            Form::Hashed { known, .. } => {
                let known = *known.lock();
                match known.is_some_and(|known| known.is(&key.digest(given))) {
                    true => Verdict::Right,
                    false => Verdict::Unknown,
                }
            }
        }
    }

    /// Takes as long as the hash was made to take: never to be called by a thread that serves clients.
    pub(super) fn verify(&self, given: &str) -> bool {
        let hash = self.configured.expose();
        match &self.form {
            // Never asked: these are checked at once.
            Form::Plain(_) => false,
            Form::Hashed { scheme: Scheme::Bcrypt, .. } => bcrypt::verify(given, hash).unwrap_or(false),
            Form::Hashed { scheme: Scheme::Argon2, .. } => {
                use argon2::PasswordVerifier as _;
                let verify =
                    |hash| argon2::Argon2::default().verify_password(given.as_bytes(), &hash).is_ok();
                argon2_hash(hash).is_ok_and(verify)
            }
        }
    }

    /// Remembers whether `given` is right.
    pub(super) fn learn(&self, given: &str, right: bool, key: &Key) {
        if let Form::Hashed { known, wrong, .. } = &self.form {
            *if right { known } else { wrong }.lock() = Some(key.digest(given));
        }
    }

    /// Whether `given` was found wrong just before. A hash never changes, so it still is.
    pub(super) fn is_known_wrong(&self, given: &str, key: &Key) -> bool {
        let Form::Hashed { wrong, .. } = &self.form else { return false };
        let wrong = *wrong.lock();
        wrong.is_some_and(|wrong| wrong.is(&key.digest(given)))
    }
}

/// One `Password` may be shared by the directories before and after a reload.
pub(super) type SharedPassword = Arc<Password>;

fn argon2_hash(text: &str) -> Result<argon2::password_hash::phc::PasswordHash, String> {
    let hash = argon2::password_hash::phc::PasswordHash::new(text).map_err(|error| error.to_string())?;
    match hash.hash.is_some() && hash.salt.is_some() {
        true => Ok(hash),
        false => Err("salt or hash is missing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Result<Password, AuthError> {
        Password::new(&Secret::new(text), "ann", &Key([7; 32]))
    }

    #[test]
    fn plain_text_is_checked_at_once() {
        let (key, password) = (Key([7; 32]), password("hunter2").unwrap());
        assert!(password.is_plain());
        assert_eq!(password.check("hunter2", &key), Verdict::Right);
        for wrong in ["", "hunter", "hunter22", "Hunter2"] {
            assert_eq!(password.check(wrong, &key), Verdict::Wrong, "{wrong}");
        }
        assert!(!password.verify("hunter2"), "there is no hash to verify");
    }

    #[test]
    fn hashes_are_verified_once_and_known_from_then_on() {
        let key = Key([7; 32]);
        // At the lowest costs there are.
        let params = argon2::Params::new(8, 1, 1, None).unwrap();
        let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let argon2 = argon2::PasswordHasher::hash_password(&argon2, b"hunter2").unwrap().to_string();
        let bcrypt = bcrypt::hash("hunter2", 4).unwrap();
        for hash in [&bcrypt, &bcrypt.replace("$2b$", "$2a$"), &argon2] {
            let password = password(hash).unwrap();
            assert!(!password.is_plain());
            assert_eq!(password.check("hunter2", &key), Verdict::Unknown);
            assert!(password.verify("hunter2") && !password.verify("hunter3") && !password.verify(""));
            password.learn("hunter2", true, &key);
            assert_eq!(password.check("hunter2", &key), Verdict::Right);
            assert_eq!(password.check("hunter3", &key), Verdict::Unknown, "it may have changed");
            password.learn("hunter3", false, &key);
            assert!(password.is_known_wrong("hunter3", &key) && !password.is_known_wrong("hunter2", &key));
            assert_eq!(password.check("hunter2", &key), Verdict::Right);
        }
    }

    #[test]
    fn what_begins_like_a_hash_and_is_none_is_refused() {
        for broken in ["$2b$", "$2a$10$tooshort", "$argon2id$", "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ"] {
            let error = password(broken).expect_err(broken);
            assert!(matches!(error, AuthError::Hash { .. }), "{error}");
            assert!(!error.to_string().contains("tooshort"), "{error}");
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        for text in ["hunter2", &bcrypt::hash("hunter2", 4).unwrap()] {
            let shown = format!("{:?}", password(text).unwrap());
            assert!(!shown.contains("hunter") && !shown.contains("$2b"), "{shown}");
        }
    }
}
