//! Runs the fuzz targets with cargo-fuzz, one after the other. They need a nightly toolchain, which nothing else here does;
//! without one, ordinary tests still run the same targets over the inputs that are kept.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;

use crate::environment::root;
use crate::error::Error;
use crate::step;

/// Longest time for one input, in seconds.
const INPUT_SECONDS_MAX: u32 = 10;
/// Most memory of a target, in MiB; libFuzzer's own bound, with room for the sanitizer.
const MEMORY_MIB_MAX: u32 = 3072;

/// What to fuzz, and for how long.
#[derive(Args)]
pub(crate) struct FuzzArguments {
    /// The targets; all of them if there is none.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Seconds that each target is run for.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

/// Runs the targets.
pub(crate) fn fuzz(arguments: &FuzzArguments) -> Result<(), Error> {
    let known = targets()?;
    if let Some(unknown) = arguments.targets.iter().find(|target| !known.contains(target)) {
        let reason = format!("the targets are {}", known.join(", "));
        return Err(Error::NoTarget { target: unknown.clone(), reason });
    }
    find_tools()?;
    let chosen =
        known.iter().filter(|target| arguments.targets.is_empty() || arguments.targets.contains(target));
    for target in chosen {
        step::announce(&format!("fuzz: {target}, {} s", arguments.seconds));
        run(target, arguments.seconds)?;
    }
    Ok(())
}

/// What the targets are called: each has a directory of inputs to begin with.
fn targets() -> Result<Vec<String>, Error> {
    let path = directory().join("seeds");
    let unusable = |source| Error::File { path: path.clone(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(&path).map_err(unusable)? {
        names.push(entry.map_err(unusable)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn directory() -> PathBuf {
    root().join("fuzz")
}

/// Says everything that is missing at once, and how to get it.
fn find_tools() -> Result<(), Error> {
    let wanted = [
        (&["rustc", "+nightly", "--version"][..], "a nightly toolchain: `rustup toolchain install nightly`"),
        (&["cargo", "+nightly", "fuzz", "--version"], "cargo-fuzz: `cargo install cargo-fuzz --locked`"),
    ];
    let missing: Vec<String> =
        wanted.into_iter().filter(|(probe, _)| !runs(probe)).map(|(_, what)| what.to_owned()).collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::MissingForFuzzing { missing }) }
}

fn runs(probe: &[&str]) -> bool {
    let status = rustup(probe[0]).args(&probe[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A program of rustup's. The toolchain that runs this command says which one it is in the environment, and would overrule
/// the one that is asked for.
fn rustup(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    command
}

fn run(target: &str, seconds: u32) -> Result<(), Error> {
    let found = directory().join("corpus").join(target);
    fs::create_dir_all(&found).map_err(|source| Error::File { path: found, source })?;
    // What is found goes to the first directory, what is kept is only read.
    let (found, kept) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
    step::run_command(
        rustup("cargo")
            .args(["+nightly", "fuzz", "run", target, &found, &kept, "--"])
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
            .arg("-print_final_stats=1"),
    )
}
