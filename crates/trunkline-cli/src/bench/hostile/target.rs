//! The server that hostile clients are let loose on: this program with its defaults, or with what they attack.

use std::io::Error;
use std::path::Path;

use tempfile::TempDir;
use trunkline_server::{HashScheme, hash_password};

use super::super::compare::ServerSpec;
use super::super::error::BenchError;
use super::spawn_error;

/// What `trunkline passwd` makes, too.
const BCRYPT_COST: u32 = 11;

/// How to start it, and the files that it needs as long as it runs.
pub(super) struct Target {
    pub(super) spec: ServerSpec,
    _files: Option<TempDir>,
}

impl Target {
    /// The server that was asked for.
    pub(super) fn given(spec: ServerSpec) -> Self {
        Self { spec, _files: None }
    }

    /// This program with its defaults.
    pub(super) fn plain() -> Result<Self, BenchError> {
        let program = program()?;
        let words = [program.as_str(), "up", "--listen", "127.0.0.1:{port}", "--http", "off"];
        Ok(Self { spec: ServerSpec::new("trunkline", &words), _files: None })
    }

    /// This program with users and TLS, both of which well-behaved clients may do without. Passwords are never refused
    /// unchecked, which would end the attack after a moment.
    pub(super) fn guarded() -> Result<Self, BenchError> {
        let files = tempfile::tempdir().map_err(|source| spawn_error("trunkline", source))?;
        let config = write_files(files.path()).map_err(|source| spawn_error("trunkline", source))?;
        let program = program()?;
        let words = [&program, "--config", &config, "up", "--listen", "127.0.0.1:{port}", "--http", "off"];
        Ok(Self { spec: ServerSpec::new("trunkline", &words), _files: Some(files) })
    }
}

fn program() -> Result<String, BenchError> {
    let program = std::env::current_exe().map_err(|source| spawn_error("trunkline", source))?;
    Ok(program.to_string_lossy().into_owned())
}

/// Returns the path of the configuration.
fn write_files(directory: &Path) -> std::io::Result<String> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(Error::other)?;
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let [cert, key, config] = ["cert.pem", "key.pem", "config.yaml"].map(path);
    std::fs::write(&cert, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let hash = hash_password("the password of a benchmark", HashScheme::Bcrypt { cost: BCRYPT_COST });
    let yaml = serde_json::json!({
        "server": {
            "auth": { "no_auth_user": "bench" },
            "users": [{ "user": "bench", "password": hash.map_err(Error::other)? }],
            "limits": { "auth_failures": 1_000_000 },
            "tls": { "cert_file": cert, "key_file": key, "allow_non_tls": true },
        }
    });
    // JSON is YAML.
    std::fs::write(&config, yaml.to_string())?;
    Ok(config)
}
