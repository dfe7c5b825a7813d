//! What spans cost where they are off: the library as everybody has it, without a tracer, against one that is built without
//! the code that makes spans.
//!
//! Both are the same `trunkline bench --in-process`, in turns, so that what else the machine does meets both.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::environment::{cargo, root};
use crate::error::Error;
use crate::step;

/// How the library is told to make no spans.
const WITHOUT: &str = "--cfg trunkline_without_spans";

/// How often, and how long.
#[derive(Args)]
pub(crate) struct SpansArguments {
    /// Turns, of which the medians are compared.
    #[arg(long, value_name = "N", default_value_t = 15)]
    turns: usize,
    /// How long each of the two publishes in a turn.
    #[arg(long, value_name = "TIME", default_value = "1s")]
    duration: String,
    /// Size of the messages.
    #[arg(long, value_name = "SIZE", default_value = "128")]
    payload: String,
    /// The profile of cargo by which both are built.
    #[arg(long, value_name = "NAME", default_value = "release")]
    profile: String,
}

/// Builds both and measures them.
pub(crate) fn spans(arguments: &SpansArguments) -> Result<(), Error> {
    step::announce("spans: the build that everybody has, and one without spans");
    let (usual, without) = (build(arguments, "usual", "")?, build(arguments, "without", WITHOUT)?);
    let (mut off, mut away) = (Vec::new(), Vec::new());
    for turn in 1..=arguments.turns.max(1) {
        // Who goes first changes from turn to turn.
        if turn % 2 == 0 {
            away.push(rate(arguments, &without)?);
            off.push(rate(arguments, &usual)?);
        } else {
            off.push(rate(arguments, &usual)?);
            away.push(rate(arguments, &without)?);
        }
        if let (Some(off), Some(away)) = (off.last(), away.last()) {
            println!("turn {turn}: {}", compared(*off, *away));
        }
    }
    println!("medians: {}", compared(median(off), median(away)));
    Ok(())
}

/// Builds the command into a directory of its own, so that the two do not displace each other.
fn build(arguments: &SpansArguments, name: &str, flags: &str) -> Result<PathBuf, Error> {
    let target = root().join("target/spans").join(name);
    let profile = arguments.profile.as_str();
    step::run_command(
        Command::new(cargo())
            .args(["build", "--package", "trunkline-cli", "--profile", profile, "--target-dir"])
            .arg(&target)
            .env("RUSTFLAGS", flags),
    )?;
    // Cargo's own profile for development has a directory of another name.
    Ok(target.join(if profile == "dev" { "debug" } else { profile }).join("trunkline"))
}

/// Messages a second, from a publisher to a subscription of the same bus on one thread.
fn rate(arguments: &SpansArguments, program: &Path) -> Result<f64, Error> {
    let mut bench = Command::new(program);
    bench.args(["bench", "sub", "--in-process", "--json", "--no-progress", "--runs", "1"]);
    bench.args(["--duration", &arguments.duration, "--payload", &arguments.payload]);
    let command = step::describe(&bench);
    let output = match bench.output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => return Err(Error::Failed { command, status: output.status }),
        Err(source) => return Err(Error::Start { command, source }),
    };
    let rate = median_of_report(&String::from_utf8_lossy(&output.stdout));
    rate.ok_or_else(|| Error::CannotBeHad { what: "a rate", reason: format!("`{command}` told none") })
}

/// The median of the rates of messages in a report of one scenario.
fn median_of_report(json: &str) -> Option<f64> {
    let (_, rates) = json.split_once("\"messages_per_second\"")?;
    let (_, median) = rates.split_once("\"median\":")?;
    median.split([',', '}']).next()?.trim().parse().ok()
}

fn compared(off: f64, away: f64) -> String {
    format!("spans off {off:.0}/s, without their code {away:.0}/s, {:+.2} %", (off / away - 1.0) * 100.0)
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_found_in_a_report() {
        let report = r#"{"results": [{"servers": [{"messages": 7, "messages_per_second": {"median": 5136332.5, "min": 1}}]}]}"#;
        assert_eq!(median_of_report(report), Some(5_136_332.5));
        assert_eq!(median_of_report("{}"), None);
    }

    #[test]
    fn the_middle_one_counts() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}
