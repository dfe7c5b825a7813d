//! The steps of `cargo xtask test`, each under a headline and timed.

use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::cargo_test::{self, Tries};
use crate::environment::{cargo, root};
use crate::error::Error;
use crate::setup;

/// Says to test binaries how many tests they run at once.
const TEST_THREADS: &str = "RUST_TEST_THREADS";
/// Tests for each two processors that run at once: most of them wait for servers, leases and clocks and leave two thirds of a
/// processor idle. With four some would take turns that have little time for what they do.
const TESTS_PER_TWO_PROCESSORS: usize = 3;

/// One step, in the order they run. The tests come last, so that the last lines of the output are
/// theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Install what the tests need beside cargo.
    Setup,
    /// Check the format of the code.
    Fmt,
    /// Run clippy on every target; warnings are errors.
    Clippy,
    /// Build the documentation; warnings are errors.
    Doc,
    /// Run the library built without backend redis.
    WithoutRedis,
    /// Run all tests, documentation examples included.
    Test,
}

impl Step {
    pub(crate) const ALL: [Step; 6] =
        [Step::Setup, Step::Fmt, Step::Clippy, Step::Doc, Step::WithoutRedis, Step::Test];

    fn headline(self) -> &'static str {
        match self {
            Step::Setup => "setup: what the tests need beside cargo",
            Step::Fmt => "fmt: the format of the code",
            Step::Clippy => "clippy: lints of every target",
            Step::Doc => "doc: the documentation",
            Step::WithoutRedis => "without-redis: the library built without backend redis",
            Step::Test => "test: all tests",
        }
    }
}

/// Runs one step between its headline and the time it took.
pub(crate) fn run(step: Step, missing: setup::Missing) -> Result<(), Error> {
    announce(step.headline());
    let started = Instant::now();
    match step {
        Step::Setup => setup::run(missing)?,
        Step::Fmt => run_command(Command::new(cargo()).args(["fmt", "--all", "--check"]))?,
        Step::Clippy => {
            let clippy = |arguments: &[&str]| {
                run_command(
                    Command::new(cargo()).arg("clippy").args(arguments).args(["--", "-D", "warnings"]),
                )
            };
            clippy(&["--workspace", "--all-targets"])?;
            // The library alone: the tests of the others need the backends that this build leaves out.
            clippy(&["--package", "trunkline", "--lib", "--no-default-features"])?;
        }
        // A library and a binary are both called `trunkline` and would write the same pages at the same time; one after
        // the other, those of the library stay. Of the whole workspace each time: by themselves packages have other features
        // of what they depend on, which would be checked once more.
        Step::Doc => {
            run_command(cargo_doc().args(["--workspace", "--bins"]))?;
            run_command(cargo_doc().args(["--workspace", "--lib"]))?;
        }
        // By itself: in a build of the whole workspace the library has all its features.
        Step::WithoutRedis => {
            run_command(Command::new(cargo()).args(["run", "--package", "trunkline-without-redis"]))?;
        }
        // Prints its own time, since its closing line has to be the last.
        Step::Test => {
            let mut command = Command::new(cargo());
            command.args(["test", "--workspace", "--no-fail-fast"]);
            // What is drawn at random is the same in every run, so that what fails has to do with the change;
            // `cargo xtask soak` looks for what is rare.
            for name in ["PROPTEST_RNG_SEED", "TRUNKLINE_TEST_FIRST_SEED"] {
                if std::env::var_os(name).is_none() {
                    command.env(name, "1");
                }
            }
            if std::env::var_os(TEST_THREADS).is_none() {
                let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
                command.env(TEST_THREADS, (processors * TESTS_PER_TWO_PROCESSORS).div_ceil(2).to_string());
            }
            return cargo_test::run(&mut command, Tries::Two);
        }
    }
    println!("   {}", elapsed(started.elapsed()));
    Ok(())
}

fn cargo_doc() -> Command {
    let mut command = Command::new(cargo());
    command.args(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    command
}

/// Prints the headline of what comes next.
pub(crate) fn announce(headline: &str) {
    println!("== {headline}");
}

/// A time as people read it: `412 ms`, `7.3 s`, `3 min 20 s`.
pub(crate) fn elapsed(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// Runs a program at the root of the repository, with its output where ours goes and no input.
pub(crate) fn run_command(command: &mut Command) -> Result<(), Error> {
    run_command_in(root(), command)
}

/// The same in another directory.
pub(crate) fn run_command_in(directory: &Path, command: &mut Command) -> Result<(), Error> {
    let status = command
        .current_dir(directory)
        .stdin(std::process::Stdio::null())
        .status()
        .map_err(|source| Error::Start { command: describe(command), source })?;
    if status.success() { Ok(()) } else { Err(Error::Failed { command: describe(command), status }) }
}

/// The command line as one would type it, less the directory of the program.
pub(crate) fn describe(command: &Command) -> String {
    let program = command.get_program();
    let program = std::path::Path::new(program).file_name().unwrap_or(program);
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elapsed_time_reads_well_at_every_size() {
        let check = |milliseconds, expected: &str| {
            assert_eq!(elapsed(Duration::from_millis(milliseconds)), expected);
        };
        check(0, "0 ms");
        check(999, "999 ms");
        check(1_000, "1.0 s");
        check(59_940, "59.9 s");
        check(60_000, "1 min 0 s");
        check(200_400, "3 min 20 s");
    }

    #[test]
    fn commands_are_described_as_typed() {
        let mut command = Command::new("/usr/local/bin/cargo");
        command.args(["fmt", "--check"]);
        assert_eq!(describe(&command), "cargo fmt --check");
    }
}
