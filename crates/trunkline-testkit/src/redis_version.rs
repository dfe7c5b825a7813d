//! Which server programs there are for the `redis` backend, and what they can do.

use std::fmt;
use std::io::Write as _;
use std::process::Command;

use crate::environment;
use crate::servers::temporary_directory;

/// Which server stands behind the `redis` backend in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisVersion {
    /// The package of the system.
    System,
    /// Redis 6.0, the oldest that is supported.
    Redis60,
    /// Redis 6.2, which many hosts still offer.
    Redis62,
    /// Redis 8, the newest.
    Redis8,
    /// Valkey, the newest.
    Valkey,
}

impl RedisVersion {
    /// All of them, by age.
    pub const ALL: [RedisVersion; 5] = [
        RedisVersion::Redis60,
        RedisVersion::Redis62,
        RedisVersion::System,
        RedisVersion::Redis8,
        RedisVersion::Valkey,
    ];

    /// How messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "the system's Redis",
            Self::Redis60 => "Redis 6.0",
            Self::Redis62 => "Redis 6.2",
            Self::Redis8 => "Redis 8",
            Self::Valkey => "Valkey",
        }
    }

    /// Whether the program that is installed was built with TLS, as it says itself.
    ///
    /// # Errors
    /// When it was built without.
    ///
    /// # Panics
    /// When there is no such program, or it says neither.
    pub fn has_tls(self) -> Result<(), NoTls> {
        // Without a certificate none of them starts, and those that know TLS miss the certificate.
        let directory = temporary_directory();
        let output = Command::new(environment::redis_server(self))
            .args(["--port", "0", "--tls-port", "1", "--dir"])
            .arg(directory.path())
            .current_dir(directory.path())
            .output()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.name()));
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        let says = |words: &str| said.iter().any(|said| said.contains(words));
        match says("No tls-cert-file configured") {
            true => Ok(()),
            false if says("Bad directive") || says("Failed finding TLS support") => {
                Err(NoTls { version: self })
            }
            false => panic!("{} says nothing of TLS: {said:?}", self.name()),
        }
    }
}

/// The program of this version was built without TLS: what was to be tried with it cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoTls {
    /// Which one.
    pub version: RedisVersion,
}

impl NoTls {
    /// Says on stderr that a test leaves something out, past what the harness captures: who reads the log of a run in
    /// which all tests passed sees what they did not try.
    pub fn tell(&self) {
        // Where stderr is closed nobody reads it.
        let _ = writeln!(std::io::stderr(), "not tried: {self}");
    }
}

impl fmt::Display for NoTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was built without TLS", self.version.name())
    }
}

impl std::error::Error for NoTls {}
