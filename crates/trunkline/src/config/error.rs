//! What can be wrong with a configuration, each mistake with its origin. Secrets never get into these texts: whoever
//! makes an error about a value describes the value through `settings::describe`, which knows what is secret.

use std::fmt;
use std::path::PathBuf;

use super::tree::Origin;

/// A configuration that cannot be used. Every variant names where the mistake stands and what is allowed instead.
///
/// Loading does not stop at the first mistake: more than one comes as [`ConfigError::Several`], one line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file that was asked for cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The path as it was given.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file that a variable names for its value cannot be read.
    #[error("{origin}: {} cannot be read", path.display())]
    UnreadableValue {
        /// The variable, which ends in `_FILE`.
        origin: Origin,
        /// The path that it has.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is larger than any configuration is.
    #[error("{} is larger than {limit} bytes, the limit for a configuration file", path.display())]
    TooLarge {
        /// The path as it was given.
        path: PathBuf,
        /// Largest size that is read.
        limit: u64,
    },
    /// The text is not YAML or TOML, or uses a part of it that a configuration has no use for.
    #[error("{origin}: {reason}")]
    Syntax {
        /// Where reading stopped.
        origin: Origin,
        /// What the parser said.
        reason: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key \"{key}\"{}", did_you_mean(nearest))]
    UnknownKey {
        /// Where the key stands.
        origin: Origin,
        /// The key with its whole path.
        key: String,
        /// The existing key that comes closest.
        nearest: Option<String>,
    },
    /// A `TRUNKLINE_*` variable that is almost, but not quite, the name of a key.
    #[error("{name}: unknown variable{}", did_you_mean(&Some(nearest.clone())))]
    UnknownVariable {
        /// Name of the variable.
        name: String,
        /// Name of the variable that was probably meant.
        nearest: String,
    },
    /// The same key twice in one source.
    #[error("{origin}: {key} is already given at {first}")]
    DuplicateKey {
        /// Where it stands the second time.
        origin: Origin,
        /// The key.
        key: String,
        /// Where it stands the first time.
        first: Origin,
    },
    /// A key that must be given is not.
    #[error("{origin}: {key} is missing")]
    Missing {
        /// Where the section stands to which the key belongs.
        origin: Origin,
        /// The key with its whole path.
        key: String,
    },
    /// A value that is not of the key's type.
    #[error("{origin}: {key} is {value}, expected {expected}")]
    Value {
        /// Where the value stands.
        origin: Origin,
        /// The key with its whole path.
        key: String,
        /// The value in quotes, or what kind of value it is; `***` for secrets.
        value: String,
        /// What the key takes, with an example.
        expected: String,
    },
    /// A value of the right type outside its range.
    #[error("{origin}: {key} is {value}, allowed is {min} to {max}")]
    OutOfRange {
        /// Where the value stands.
        origin: Origin,
        /// The key with its whole path.
        key: String,
        /// The value in quotes.
        value: String,
        /// Smallest value allowed.
        min: &'static str,
        /// Largest value allowed.
        max: &'static str,
    },
    /// A URL that cannot be used.
    #[error("{origin}: {key} is {value}: {reason}")]
    Url {
        /// Where the value stands.
        origin: Origin,
        /// The key with its whole path.
        key: String,
        /// The URL in quotes, without its credentials.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Text that is not a subject or not a pattern.
    #[error("{origin}: {key} is {value}: {reason}")]
    Subject {
        /// Where the value stands.
        origin: Origin,
        /// The key with its whole path.
        key: String,
        /// The text in quotes.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two streams, two users or two other items of a list share what must be unique.
    #[error("{origin}: {what} \"{name}\" is already defined at {first}")]
    DuplicateName {
        /// Where the second one stands.
        origin: Origin,
        /// What it names: a stream or a user.
        what: &'static str,
        /// The name.
        name: String,
        /// Where the first one stands.
        first: Origin,
    },
    /// Patterns of two streams match a common subject, so that a message would belong to both.
    #[error("{}: pattern {later} overlaps {earlier} at {}", later.origin, earlier.origin)]
    Overlap {
        /// The pattern that stands later.
        later: Box<StreamPattern>,
        /// The pattern that stands earlier.
        earlier: Box<StreamPattern>,
    },
    /// A component waits for one that does not exist.
    #[error(
        "{origin}: component \"{component}\" depends on unknown component \"{dependency}\"{}",
        did_you_mean(nearest)
    )]
    UnknownDependency {
        /// Where the dependency stands.
        origin: Origin,
        /// The component that waits.
        component: String,
        /// The name it waits for.
        dependency: String,
        /// The existing component that comes closest.
        nearest: Option<String>,
    },
    /// Components wait for each other in a circle, so that none of them could start.
    #[error("{origin}: components depend on each other in a circle: {}", cycle.join(" -> "))]
    DependencyCycle {
        /// Where the dependency stands that closes the circle.
        origin: Origin,
        /// The components on the circle; the first is repeated at the end.
        cycle: Vec<String>,
    },
    /// Values that are each valid but not together.
    #[error("{origin}: {key} {reason}")]
    Inconsistent {
        /// Where the value stands.
        origin: Origin,
        /// The key with its whole path.
        key: String,
        /// What it lacks or contradicts.
        reason: String,
    },
    /// More than one mistake, in the order in which they were found; never fewer than two.
    #[error("{}", lines(errors))]
    Several {
        /// The mistakes.
        errors: Vec<ConfigError>,
    },
}

/// A pattern of a stream and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPattern {
    /// Name of the stream.
    pub stream: String,
    /// The pattern.
    pub pattern: String,
    /// Where the pattern stands.
    pub origin: Origin,
}

impl fmt::Display for StreamPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" of stream \"{}\"", self.pattern, self.stream)
    }
}

impl ConfigError {
    /// The single mistakes: those of [`ConfigError::Several`], else the error itself.
    pub fn errors(&self) -> &[ConfigError] {
        match self {
            ConfigError::Several { errors } => errors,
            one => std::slice::from_ref(one),
        }
    }

    /// One error out of what was collected, `None` when nothing was.
    pub(crate) fn from_list(mut errors: Vec<ConfigError>) -> Option<ConfigError> {
        match errors.len() {
            0 | 1 => errors.pop(),
            _ => Some(ConfigError::Several { errors }),
        }
    }
}

/// Something in the configuration that does not stop the start but that its author should know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigWarning {
    /// A `TRUNKLINE_*` variable resembles no key; it may well belong to the component itself.
    #[error("{name}: no key has this variable, it is ignored")]
    UnknownVariable {
        /// Name of the variable.
        name: String,
    },
    /// `REDIS_URL` or `NATS_URL` cannot be used, and the configured backend does not need it.
    #[error("{name}: {reason}; it is ignored because the backend does not use it")]
    UnusedUrl {
        /// Name of the variable.
        name: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// `TRUNKLINE_URL` beat a flag.
    #[error("{flag}: {key} is overridden by TRUNKLINE_URL")]
    Overridden {
        /// Name of the flag.
        flag: String,
        /// The key that the flag sets.
        key: String,
    },
    /// `TRUNKLINE_URL` names another server than the one that the credentials in the file are for.
    #[error("{origin}: {key} is not used, TRUNKLINE_URL names another server")]
    CredentialsOfOthers {
        /// Where the credentials stand.
        origin: Origin,
        /// The key of the credentials.
        key: String,
    },
    /// The working directory holds more than one configuration file.
    #[error("{} is ignored: {} was found first", ignored.display(), used.display())]
    SecondFile {
        /// The file that was read.
        used: PathBuf,
        /// The file that was not.
        ignored: PathBuf,
    },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean \"{nearest}\"?"),
        None => String::new(),
    }
}

fn lines(errors: &[ConfigError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
