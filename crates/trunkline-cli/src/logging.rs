//! Logs on stderr: which lines, and how they look.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::failure::{Explain, Kind};

/// The environment variable that is asked when `--log-level` is not given.
const VARIABLE: &str = "TRUNKLINE_LOG";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// Set once, when logging starts.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Whether everything on stderr is to be JSON, one object a line.
pub(crate) fn is_json() -> bool {
    FORMAT.get() == Some(&LogFormat::Json)
}

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
pub(crate) fn start(flag: Option<&str>, default: &str, format: LogFormat) -> Result<(), LogFilterError> {
    let from_env = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let (origin, given) = match (flag, from_env) {
        (Some(flag), _) => ("--log-level", flag.to_owned()),
        (None, Some(text)) => (VARIABLE, text),
        (None, None) => ("default", default.to_owned()),
    };
    let filter =
        EnvFilter::builder().parse(&given).map_err(|source| LogFilterError { origin, given, source })?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    // Errors here and below mean that logging was started before, which only tests in one process could do; it keeps
    // working then.
    let _ = FORMAT.set(format);
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let _ = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal() && !no_color).try_init(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
        }
    };
    Ok(())
}
