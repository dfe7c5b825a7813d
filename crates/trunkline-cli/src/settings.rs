//! From the command line to a configuration: the flags that every command takes, and those that set a key.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use trunkline::config::{ConfigError, Loaded, Loader, Origin};
use trunkline_server::{AuthOptions, AuthSource};

use crate::failure::{Explain, Kind};
use crate::logging::LogFormat;

/// Flags of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct GlobalArgs {
    /// Configuration file [default: $TRUNKLINE_CONFIG, else config.yaml, config.yml or config.toml here]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// What is logged on stderr: error, warn, info, debug, trace, or a filter [default: $TRUNKLINE_LOG]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,

    /// How what is logged looks: lines for people, or one JSON object a line
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t)]
    pub(crate) log_format: LogFormat,
}

/// A key that a flag sets.
#[derive(Debug, Clone)]
pub(crate) struct Override {
    pub(crate) key: &'static str,
    pub(crate) value: String,
    pub(crate) flag: &'static str,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct SettingsError(Box<ConfigError>);

impl From<ConfigError> for SettingsError {
    fn from(error: ConfigError) -> Self {
        Self(Box::new(error))
    }
}

impl Explain for SettingsError {
    fn kind(&self) -> Kind {
        // A flag is the command line's mistake; a file or a variable is wrong however the command is called.
        match self.0.errors().iter().all(comes_from_a_flag) {
            true => Kind::Usage,
            false => Kind::Failed,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        let first = self.0.errors().first()?;
        Some(match first {
            ConfigError::Unreadable { .. } => "check the path given with --config or TRUNKLINE_CONFIG".into(),
            ConfigError::UnknownKey { .. } | ConfigError::UnknownVariable { .. } => {
                "`trunkline config keys` lists every key with its variable and default".into()
            }
            _ => "`trunkline config keys` says what each key takes".into(),
        })
    }
}

/// Where the running server reads its users and permissions again: the sources of the configuration, as they are then.
pub(crate) fn auth_source(global: &GlobalArgs, overrides: Vec<Override>) -> AuthSource {
    let global = global.clone();
    Arc::new(move || {
        let loaded = load(&global, overrides.clone())?;
        Ok(AuthOptions::from(&loaded.config.server))
    })
}

fn comes_from_a_flag(error: &ConfigError) -> bool {
    match error {
        ConfigError::Value { origin, .. }
        | ConfigError::OutOfRange { origin, .. }
        | ConfigError::Url { origin, .. }
        | ConfigError::Subject { origin, .. } => matches!(origin, Origin::Flag(_)),
        _ => false,
    }
}

/// Reads the configuration, and prints what its author should know as warnings.
///
/// # Errors
/// Everything that is wrong with file, environment and flags.
pub(crate) fn load(
    global: &GlobalArgs,
    overrides: impl IntoIterator<Item = Override>,
) -> Result<Loaded, SettingsError> {
    let mut loader = Loader::new();
    if let Some(path) = &global.config {
        loader = loader.file(path);
    }
    for Override { key, value, flag } in overrides {
        loader = loader.flag(key, value, flag);
    }
    let loaded = loader.load()?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(loaded)
}
