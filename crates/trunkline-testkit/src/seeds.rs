//! Seeds of random tests: printed, and replayed by the environment.

use std::time::{Duration, Instant};

/// Replays the test with this seed alone.
pub const SEED_VARIABLE: &str = "TRUNKLINE_TEST_SEED";
/// How many seeds a random test tries.
pub const SEEDS_VARIABLE: &str = "TRUNKLINE_TEST_SEEDS";
/// The first of the seeds, those after it follow in order; fresh ones where it is not set.
pub const FIRST_SEED_VARIABLE: &str = "TRUNKLINE_TEST_FIRST_SEED";
/// Longest time a random test goes on trying seeds, however many are asked for.
pub const SOAK_VARIABLE: &str = "TRUNKLINE_TEST_SOAK_SECONDS";

/// The seeds that a random test should try: the one of [`SEED_VARIABLE`], those from [`FIRST_SEED_VARIABLE`] on, or fresh
/// ones, `usual` of them unless [`SEEDS_VARIABLE`] says how many. Each is printed before it is used, so that a failure shows it.
///
/// # Panics
/// When a variable holds no number.
pub fn seeds(usual: u64) -> impl Iterator<Item = u64> {
    let fixed = number(SEED_VARIABLE);
    let soak = number(SOAK_VARIABLE).map(Duration::from_secs);
    let count = match (fixed, number(SEEDS_VARIABLE)) {
        (Some(_), _) => 1,
        (None, Some(count)) => count,
        // A soak without a count goes on until its time is over.
        (None, None) => soak.map_or(usual, |_| u64::MAX),
    };
    let first = number(FIRST_SEED_VARIABLE);
    let fresh = move |n: u64| first.map_or_else(|| fastrand::u64(..), |first| first.wrapping_add(n));
    let started = Instant::now();
    (0..count)
        .take_while(move |_| soak.is_none_or(|soak| started.elapsed() < soak))
        .map(move |n| fixed.unwrap_or_else(|| fresh(n)))
        .inspect(|seed| println!("replay with {SEED_VARIABLE}={seed}"))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number")))
}

#[cfg(test)]
mod tests {
    use super::seeds;

    #[test]
    fn at_least_one_seed_is_tried() {
        assert!(seeds(3).take(2).count() >= 1);
    }
}
