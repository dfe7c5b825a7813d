//! The server under the name `nats-server`: its command line, its configuration file, its log, its files and its signals,
//! so that whatever starts a nats-server can start this one.
//!
//! - [`flags`], [`help`]: the command line.
//! - [`conf`]: the syntax of configuration files; [`settings`]: what their keys mean.
//! - [`log`], [`files`], [`signal`]: what others see of the process.
//! - [`serve`]: from start to stop; [`reload`]: what changes in between.
//!
//! What the server does for its clients is `trunkline_server`'s; nothing here knows the protocol.

mod conf;
mod files;
mod flags;
mod help;
mod log;
mod reload;
mod serve;
mod settings;
mod signal;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use flags::{FlagError, Request};
use settings::Settings;

/// The name it goes by.
pub(crate) const PROGRAM: &str = "nats-server";
/// The nats-server whose behaviour towards clients this one has. Scripts ask for it, and INFO and `/varz` say the same.
const COMPATIBLE_WITH: &str = "2.15.1";

/// The arguments behind the name, if the command line calls for a nats-server: by the program's own name, or as
/// `trunkline nats-server`.
pub(crate) fn arguments(line: &[OsString]) -> Option<&[OsString]> {
    if is_name(line.first()) {
        return line.get(1..);
    }
    line.get(1).filter(|first| *first == PROGRAM).and_then(|_| line.get(2..))
}

/// Whether a process with this program and first argument is such a server.
fn is_invoked_by<S: AsRef<OsStr>>(program: Option<S>, first: Option<S>) -> bool {
    let is_trunkline = |name: &OsStr| Path::new(name).file_stem() == Some(OsStr::new("trunkline"));
    is_name(program.as_ref())
        || (program.is_some_and(|name| is_trunkline(name.as_ref()))
            && first.is_some_and(|first| first.as_ref() == OsStr::new(PROGRAM)))
}

fn is_name<S: AsRef<OsStr>>(program: Option<S>) -> bool {
    program.is_some_and(|name| Path::new(name.as_ref()).file_name() == Some(OsStr::new(PROGRAM)))
}

/// Runs what the command line asks for, to its end.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let arguments: Vec<String> =
        arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let flags = match flags::parse(&arguments) {
        Ok(Request::Serve(flags)) => flags,
        Ok(Request::Help) => return print(help::HELP),
        Ok(Request::HelpTls) => return print(help::HELP_TLS),
        Ok(Request::Version) => {
            // To the letter: there are scripts that take everything behind the `v` for the version.
            return print(&format!("{PROGRAM}: v{COMPATIBLE_WITH}\n"));
        }
        Ok(Request::Signal(request)) => {
            return match signal::send(&request) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => refuse(&crate::failure::chain(&error)),
            };
        }
        Err(error @ (FlagError::Command(_) | FlagError::NotServed { .. })) => {
            return refuse(&error.to_string());
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            print(help::HELP);
            // nats-server ends with 0 here, as if it had been asked for help. Who made the mistake should know.
            return ExitCode::FAILURE;
        }
    };
    if flags.test && flags.config.is_none() {
        return refuse("must specify [-c, --config] option to check configuration file syntax");
    }
    let settings = match Settings::load(&flags) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error.to_string()),
    };
    match &settings.file {
        Some(file) if flags.test && settings.is_nothing_said => {
            refuse(&format!("{}: config has no values or is empty\n", file.path.display()))
        }
        Some(_) if flags.test && !settings.doubts.is_empty() => refuse(&settings::lines(&settings.doubts)),
        Some(file) if flags.test => {
            refuse(&format!("configuration file {} is valid (sha256:{})", file.path.display(), file.sha256));
            ExitCode::SUCCESS
        }
        _ => {
            // Where nats-server says so, too, and before there is a log.
            let _ = write!(std::io::stderr(), "{}", settings::lines(&settings.doubts));
            serve::run(&flags, settings)
        }
    }
}

fn print(text: &str) -> ExitCode {
    // Whoever reads no more of it has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Says on stderr, in the server's name, why nothing was started.
fn refuse(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{PROGRAM}: {text}");
    ExitCode::FAILURE
}
