//! The development commands of this repository, run as `cargo xtask COMMAND`.
//!
//! They only start other programs in order and watch how they end. What is tested lives in the
//! crates; nothing here is needed to build them.

mod campaign;
mod cargo_test;
mod environment;
mod error;
mod fuzz;
mod setup;
mod spans;
mod step;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::error::Error;
use crate::step::Step;

/// Development commands of this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the tests need beside cargo; quick when it is already there.
    Setup,
    /// Run every check that has to hold before a change lands.
    Test(TestArguments),
    /// Run the tests as a longer campaign, in release mode.
    Soak(campaign::SoakArguments),
    /// Run the fuzz targets, with a nightly toolchain and cargo-fuzz.
    Fuzz(fuzz::FuzzArguments),
    /// Measure what spans cost where they are off, against a build without them.
    Spans(spans::SpansArguments),
}

#[derive(Args)]
struct TestArguments {
    /// Run only this step; may be given several times, the order stays.
    #[arg(long, value_name = "STEP")]
    only: Vec<Step>,
    /// Install nothing; fail when something is missing.
    #[arg(long)]
    no_install: bool,
}

// Ctrl-C goes to the whole process group, so the program of the current step ends with this one.
// There is nothing to put right afterwards: setup marks an installation as whole only once it is.
fn main() -> ExitCode {
    let done = match Xtask::parse().command {
        Command::Setup => step::run(Step::Setup, setup::Missing::Install),
        Command::Test(arguments) => test(&arguments),
        Command::Soak(arguments) => campaign::soak(&arguments),
        Command::Fuzz(arguments) => fuzz::fuzz(&arguments),
        Command::Spans(arguments) => spans::spans(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.report();
            ExitCode::FAILURE
        }
    }
}

fn test(arguments: &TestArguments) -> Result<(), Error> {
    let missing = if arguments.no_install { setup::Missing::Fail } else { setup::Missing::Install };
    Step::ALL
        .into_iter()
        .filter(|step| arguments.only.is_empty() || arguments.only.contains(step))
        .try_for_each(|step| step::run(step, missing))
}
