//! Logs on stderr: which lines, and how they look.

use std::borrow::Cow;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::failure::{Explain, Kind};

/// The environment variable that is asked when `--log-level` is not given.
const VARIABLE: &str = "TRUNKLINE_LOG";

/// A filter that is not one.
#[derive(Debug, thiserror::Error)]
#[error("{origin} is {given:?}, which is not a log filter")]
pub(crate) struct LogFilterError {
    origin: &'static str,
    given: String,
    source: ParseError,
}

impl Explain for LogFilterError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        Some(
            "give error, warn, info, debug or trace, or pairs such as trunkline=debug,async_nats=warn".into(),
        )
    }
}

/// Starts to log what `flag`, else the environment, else `default` lets through.
///
/// # Errors
/// [`LogFilterError`] when the filter cannot be read.
pub(crate) fn start(flag: Option<&str>, default: &str) -> Result<(), LogFilterError> {
    let from_env = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let (origin, given) = match (flag, from_env) {
        (Some(flag), _) => ("--log-level", flag.to_owned()),
        (None, Some(text)) => (VARIABLE, text),
        (None, None) => ("default", default.to_owned()),
    };
    let filter =
        EnvFilter::builder().parse(&given).map_err(|source| LogFilterError { origin, given, source })?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    // An error means that logging was started before, which only tests in one process could do; it keeps working then.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !no_color)
        .with_target(false)
        .try_init();
    Ok(())
}
