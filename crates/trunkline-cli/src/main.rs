//! The `trunkline` command: starts the bus, and talks to a running one from a shell.
//!
//! Here a command line becomes a command and its end an exit code; what each command does stands in `commands`.

mod admin;
mod args;
mod bench;
mod checks;
mod client;
mod commands;
mod demo;
mod duration;
mod env_file;
mod exec;
mod export;
mod failure;
mod http;
mod interrupt;
mod logging;
mod message;
mod nats_server;
mod output;
mod payload;
mod ports_file;
mod settings;
mod show;
mod supervisor;
mod trace;
mod traces;
mod trust;
mod unverified;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::Cli;

/// The hot paths of the embedded server allocate per message; this allocator costs them least.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // What calls for a nats-server has a command line of its own, in another manner.
    let line: Vec<OsString> = std::env::args_os().collect();
    // This binary between `up` and a component.
    if let Some(code) = supervisor::dispatch(&line) {
        return code;
    }
    if let Some(arguments) = nats_server::arguments(&line) {
        return nats_server::run(arguments);
    }
    let cli = match Cli::try_parse_from(line) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Prints what clap has to say: help and version on stdout, a mistake on stderr with the hint where to look.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Nothing is left to be said when even the help cannot be printed.
        let _ = error.print();
        return ExitCode::from(u8::from(error.use_stderr()) * 2);
    }
    let text = error.render().ansi().to_string();
    let text = text.split("For more information").next().unwrap_or_default().trim_end();
    let mut stderr = anstream::stderr().lock();
    let _ = writeln!(stderr, "{text}\nhint: add --help for the flags and an example");
    ExitCode::from(2)
}
