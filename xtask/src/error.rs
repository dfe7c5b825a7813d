//! Why a command stopped, as a person wants to read it.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use thiserror::Error;

/// Why a command stopped.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("`{command}` could not be started")]
    Start { command: String, source: io::Error },

    #[error("`{command}` ended with {status}")]
    Failed { command: String, status: ExitStatus },

    #[error("the output of `{command}` could not be passed on")]
    Output { command: String, source: io::Error },

    /// The tests have said so themselves, and their closing line has to stay the last.
    #[error("tests failed")]
    TestsFailed,

    #[error("`{command}` ran no test")]
    NoTest { command: String },

    #[error("{} could not be used", path.display())]
    File { path: PathBuf, source: io::Error },

    #[error("{what} cannot be had here: {reason}")]
    CannotBeHad { what: &'static str, reason: String },

    #[error("there is no fuzz target {target:?}: {reason}")]
    NoTarget { target: String, reason: String },

    #[error("some of what fuzzing needs is missing:\n{}", list(missing))]
    MissingForFuzzing { missing: Vec<String> },

    #[error("some of what the tests need is missing:\n{}", list(missing))]
    Missing { missing: Vec<String> },
}

impl Error {
    /// Prints the error and what caused it, unless the reader knows already.
    pub(crate) fn report(&self) {
        if matches!(self, Error::TestsFailed) {
            return;
        }
        eprintln!("error: {self}");
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            eprintln!("  caused by: {error}");
            cause = error.source();
        }
    }
}

fn list(items: &[String]) -> String {
    let lines: Vec<String> = items.iter().map(|item| format!("  - {item}")).collect();
    lines.join("\n")
}
