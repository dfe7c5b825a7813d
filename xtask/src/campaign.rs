//! The same tests for longer: in release mode, with more seeds and more time for those that take
//! either from the environment.

use std::process::Command;

use clap::Args;

use crate::cargo_test::{self, Tries};
use crate::environment::cargo;
use crate::error::Error;
use crate::setup::Missing;
use crate::step::{self, Step};

/// Cases that a property of pure code is tried on, for each seed of the tests that start servers.
const CASES_PER_SEED: u64 = 50;

/// How long, and how wide.
#[derive(Args)]
pub(crate) struct SoakArguments {
    /// Seconds each test that runs for a time goes on (TRUNKLINE_TEST_SOAK_SECONDS).
    #[arg(long, env = "TRUNKLINE_TEST_SOAK_SECONDS", value_name = "N", default_value_t = 600)]
    seconds: u64,
    /// Seeds each randomised test tries (TRUNKLINE_TEST_SEEDS).
    #[arg(long, env = "TRUNKLINE_TEST_SEEDS", value_name = "N", default_value_t = 1000)]
    seeds: u64,
    /// Run only tests whose name contains this.
    #[arg(value_name = "NAME")]
    filter: Option<String>,
}

/// Runs all tests as a campaign.
pub(crate) fn soak(arguments: &SoakArguments) -> Result<(), Error> {
    step::run(Step::Setup, Missing::Install)?;
    step::announce(&format!("soak: {} s, {} seeds", arguments.seconds, arguments.seeds));
    cargo_test::run(
        Command::new(cargo())
            .args(["test", "--release", "--workspace", "--no-fail-fast"])
            .args(&arguments.filter)
            .env("TRUNKLINE_TEST_SOAK_SECONDS", arguments.seconds.to_string())
            .env("TRUNKLINE_TEST_SEEDS", arguments.seeds.to_string())
            .env("PROPTEST_CASES", arguments.seeds.saturating_mul(CASES_PER_SEED).to_string()),
        Tries::One,
    )
}
