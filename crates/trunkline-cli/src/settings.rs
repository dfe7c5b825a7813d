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
        Some(way_out(self.0.errors().first()?).into())
    }
}

/// What to do about a mistake in a configuration.
pub(crate) fn way_out(mistake: &ConfigError) -> &'static str {
    match mistake {
        ConfigError::Unreadable { .. } => "check the path given with --config or TRUNKLINE_CONFIG",
        ConfigError::UnknownKey { .. } | ConfigError::UnknownVariable { .. } => {
            "`trunkline config keys` lists every key with its variable and default"
        }
        ConfigError::Syntax { reason, .. } if reason.contains("tabs") => {
            "indent with spaces, never with tabs"
        }
        ConfigError::Syntax { .. } => {
            "the keys of a section begin in the same column, with a space behind the colon; a value with `: `, ` #` or a brace in it stands in quotes"
        }
        ConfigError::DuplicateKey { .. } => "keep one of the two",
        ConfigError::UnknownDependency { .. } => "depends_on lists names below components",
        ConfigError::DependencyCycle { .. } => {
            "take one of these out of depends_on: the bus carries messages both ways"
        }
        _ => "`trunkline config keys` says what each key takes",
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
