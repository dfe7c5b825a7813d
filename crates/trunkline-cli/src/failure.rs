//! How a command fails: the exit code, and the lines a person reads on stderr.
//!
//! Every command has an error enum of its own; what they share is [`Explain`]. Nothing here knows a single one of them.

use std::borrow::Cow;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use serde_json::json;

use crate::logging;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default().bold();

/// Which exit code an error stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What was asked for could not be done: exit code 1.
    Failed,
    /// The command line or the configuration asks for something impossible: exit code 2.
    Usage,
    /// Whoever read our output has closed it, as `head` does: exit code 0 and no text.
    ReaderGone,
}

/// An error that a command may end with.
pub(crate) trait Explain: Error + Send + Sync + 'static {
    /// Which exit code it stands for.
    fn kind(&self) -> Kind {
        Kind::Failed
    }

    /// What to try next, where there is something better than reading the error again.
    fn hint(&self) -> Option<Cow<'static, str>> {
        None
    }
}

/// Why a command failed, whichever it was. `?` makes it out of every [`Explain`].
#[derive(Debug)]
pub(crate) struct Failure(Box<dyn Explain>);

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl Failure {
    /// The error with its causes in one line.
    pub(crate) fn text(&self) -> String {
        chain(&*self.0)
    }

    /// Prints the error with its causes and the hint on stderr, and tells what to exit with.
    pub(crate) fn report(&self) -> ExitCode {
        let code = match self.0.kind() {
            Kind::ReaderGone => return ExitCode::SUCCESS,
            Kind::Failed => ExitCode::FAILURE,
            Kind::Usage => ExitCode::from(2),
        };
        let mut stderr = anstream::stderr().lock();
        if logging::is_json() {
            let record = json!({
                "timestamp": jiff::Timestamp::now().to_string(),
                "level": "ERROR",
                "message": chain(&*self.0),
                "hint": self.0.hint(),
            });
            // As below.
            let _ = writeln!(stderr, "{record}");
            return code;
        }
        // With stderr gone too, the exit code is all that can still be said.
        let _ = writeln!(stderr, "{ERROR}error:{ERROR:#} {}", chain(&*self.0));
        if let Some(hint) = self.0.hint() {
            let _ = writeln!(stderr, "{HINT}hint:{HINT:#} {hint}");
        }
        code
    }
}

/// The error and its causes in one line; a cause that the level above already repeats is left out.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the file")]
    struct Outer {
        source: Inner,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("permission denied")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    #[error("wrapped: permission denied")]
    struct Repeating {
        source: Inner,
    }

    #[test]
    fn causes_follow_the_error_once() {
        assert_eq!(chain(&Outer { source: Inner }), "cannot read the file: permission denied");
        assert_eq!(chain(&Repeating { source: Inner }), "wrapped: permission denied");
    }
}
