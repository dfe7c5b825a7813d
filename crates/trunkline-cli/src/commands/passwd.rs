//! `trunkline passwd`: the hash of a password, so that the configuration need not hold the password itself.

use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal, Write};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde_json::json;
use trunkline_server::{HashError, HashScheme, hash_password};

use crate::failure::{Explain, Failure, Kind};
use crate::output;

/// Longest password that is read, in bytes.
const PASSWORD_BYTES_MAX: usize = 1024;
/// Random bytes of a password that is made here.
const MADE_BYTES: usize = 18;

/// Make the hash of a password or token, for server.users and server.auth
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline passwd                        asks for the password and prints its hash
  trunkline passwd --generate             makes a password and prints it with its hash
  pass show bus/gateway | trunkline passwd --scheme argon2

In the configuration:
  server:
    users:
      - { user: gateway, password: '$2b$11$…' }")]
pub(crate) struct PasswdArgs {
    /// How to hash; nats-server reads bcrypt only
    #[arg(long, value_enum, default_value = "bcrypt")]
    scheme: Scheme,

    /// Each step doubles the time of a bcrypt hash; 11 is some 100 ms
    #[arg(long, value_name = "N", default_value = "11", value_parser = clap::value_parser!(u32).range(4..=20))]
    cost: u32,

    /// Make a random password instead of asking for one
    #[arg(long)]
    generate: bool,

    /// One JSON document: hash, and password with --generate
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Scheme {
    Bcrypt,
    Argon2,
}

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PasswdError {
    #[error("cannot read the password")]
    Read(#[source] io::Error),
    #[error("there is no password on stdin")]
    Missing,
    #[error("the password is longer than {PASSWORD_BYTES_MAX} bytes")]
    TooLong,
    #[error("the two passwords differ")]
    Differ,
    #[error("the system gives no random bytes: {reason}")]
    Random { reason: String },
    #[error(transparent)]
    Hash(#[from] HashError),
}

impl Explain for PasswdError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing | Self::TooLong | Self::Differ | Self::Hash(HashError::TooLong { .. }) => {
                Kind::Usage
            }
            _ => Kind::Failed,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Missing => Some("give it as a line on stdin, or let --generate make one".into()),
            Self::Hash(HashError::TooLong { .. }) => Some("--scheme argon2 has no such limit".into()),
            _ => None,
        }
    }
}

/// Asks, hashes and prints.
pub(crate) fn run(args: &PasswdArgs) -> Result<(), Failure> {
    let password = match args.generate {
        true => made()?,
        false => asked()?,
    };
    let scheme = match args.scheme {
        Scheme::Bcrypt => HashScheme::Bcrypt { cost: args.cost },
        Scheme::Argon2 => HashScheme::Argon2,
    };
    let hash = hash_password(&password, scheme).map_err(PasswdError::from)?;
    match (args.json, args.generate) {
        (true, true) => output::json_document(&json!({ "password": password, "hash": hash }))?,
        (true, false) => output::json_document(&json!({ "hash": hash }))?,
        (false, true) => output::line(&format!("password  {password}\nhash      {hash}"))?,
        (false, false) => output::line(&hash)?,
    }
    Ok(())
}

fn made() -> Result<String, PasswdError> {
    let mut bytes = [0; MADE_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| PasswdError::Random { reason: error.to_string() })?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// From a person, twice and unseen; from a pipe, the first line.
fn asked() -> Result<String, PasswdError> {
    if !io::stdin().is_terminal() {
        return line();
    }
    let (first, second) = (prompted("Password: ")?, prompted("Once more: ")?);
    match first == second {
        true => Ok(first),
        false => Err(PasswdError::Differ),
    }
}

fn prompted(prompt: &str) -> Result<String, PasswdError> {
    let mut stderr = io::stderr();
    write!(stderr, "{prompt}").and_then(|()| stderr.flush()).map_err(PasswdError::Read)?;
    let unseen = Unseen::start().map_err(PasswdError::Read)?;
    let password = line();
    drop(unseen);
    writeln!(stderr).map_err(PasswdError::Read)?;
    password
}

fn line() -> Result<String, PasswdError> {
    let mut text = String::new();
    let mut stdin = io::Read::take(io::stdin().lock(), PASSWORD_BYTES_MAX as u64 + 2);
    stdin.read_line(&mut text).map_err(PasswdError::Read)?;
    let password = text.trim_end_matches(['\r', '\n']);
    match password.len() {
        0 => Err(PasswdError::Missing),
        length if length > PASSWORD_BYTES_MAX => Err(PasswdError::TooLong),
        _ => Ok(password.to_owned()),
    }
}

/// While it lives, the terminal does not show what is typed.
struct Unseen(Termios);

impl Unseen {
    fn start() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut without = before.clone();
        without.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &without)?;
        Ok(Self(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing anyway.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
