//! Runs `cargo test`, passes its output on as it comes, and adds up what the test binaries report.
//!
//! Integration tests start servers and live by the clock. One of them that fails gets a second try by itself; a run that
//! needed one says so in its last lines, and a change that needs many has failed. Unit tests get none.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use crate::environment::{cargo, root, test_variables};
use crate::error::Error;
use crate::step::{announce, describe, elapsed};

/// Most integration tests of one run that get a second try.
const SECOND_TRIES_MAX: usize = 3;

/// What all test binaries of one run report together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Tests that failed, by name.
    names: Vec<String>,
}

impl Tally {
    /// Adds the counts of a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`, and the name in one such as
    /// `test it::holds ... FAILED`; other lines add nothing.
    fn add(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.names.push(name.to_owned());
        }
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|result| result.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            let Some((Ok(count), what)) =
                part.split_once(' ').map(|(count, what)| (count.parse::<u64>(), what))
            else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }

    /// The closing line: `N passed, N failed`, and how many were skipped where any were.
    fn closing_line(&self) -> String {
        let Tally { passed, failed, ignored, .. } = self;
        match ignored {
            0 => format!("{passed} passed, {failed} failed"),
            _ => format!("{passed} passed, {failed} failed, {ignored} skipped"),
        }
    }
}

/// How a `cargo test` ended.
struct Run {
    status: ExitStatus,
    tally: Tally,
    /// Arguments that select each target that failed, such as `-p trunkline --test it`.
    targets: Vec<String>,
}

/// How often a test may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tries {
    One,
    /// A few integration tests that fail are tried again.
    Two,
}

/// Runs this `cargo test` command; its last output is the line that sums up the tests.
pub(crate) fn run(command: &mut Command, tries: Tries) -> Result<(), Error> {
    let started = Instant::now();
    let Run { mut status, mut tally, targets } = run_once(command)?;
    let mut recovered = Vec::new();
    if tries == Tries::Two && !status.success() && may_try_again(&tally, &targets) {
        announce("second try: what failed, by itself");
        // Of the whole workspace, as it was built: by itself a package has other features of what it depends on.
        let tests: BTreeSet<&str> = targets.iter().filter_map(|target| target.rsplit(' ').next()).collect();
        let mut again = Command::new(cargo());
        again.args(["test", "--workspace", "--no-fail-fast"]);
        for test in tests {
            again.args(["--test", test]);
        }
        again.args(["--", "--exact"]).args(&tally.names).envs(variables_of(command));
        let again = run_once(&mut again)?;
        // Each of them has to have run again.
        if again.status.success() && again.tally.passed >= tally.failed {
            status = again.status;
            tally.passed += tally.failed;
            tally.failed = 0;
            recovered = std::mem::take(&mut tally.names);
        }
    }
    println!("   {}", elapsed(started.elapsed()));
    for name in &recovered {
        println!("   failed at first and passed at its second try: {name}");
    }
    // What does not compile runs no test, and then there is nothing to sum up.
    if tally.passed + tally.failed > 0 {
        println!("{}", tally.closing_line());
    }
    match (status.success(), tally) {
        (true, Tally { passed: 0, .. }) => Err(Error::NoTest { command: describe(command) }),
        (_, Tally { failed: 1.., .. }) => Err(Error::TestsFailed),
        (true, _) => Ok(()),
        (false, _) => Err(Error::Failed { command: describe(command), status }),
    }
}

/// Whether what failed is a few integration tests, and nothing else did.
fn may_try_again(tally: &Tally, targets: &[String]) -> bool {
    let failed = tally.names.len();
    (1..=SECOND_TRIES_MAX).contains(&failed)
        && failed as u64 == tally.failed
        && !targets.is_empty()
        && targets.iter().all(|target| target.contains(" --test "))
}

/// What the command sets in the environment of the tests.
fn variables_of(command: &Command) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    let set = command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    set.collect()
}

fn run_once(command: &mut Command) -> Result<Run, Error> {
    let mut child = command
        .current_dir(root())
        .envs(test_variables())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Start { command: describe(command), source })?;
    let output = |source| Error::Output { command: describe(command), source };
    let stdout = child.stdout.take().expect("stdout is a pipe");
    let stderr = child.stderr.take().expect("stderr is a pipe");
    let mut tally = Tally::default();
    let mut targets = Vec::new();
    std::thread::scope(|scope| {
        let errors = scope.spawn(|| {
            pass_on(stderr, std::io::stderr(), |line| targets.extend(failed_target(line).map(str::to_owned)))
        });
        pass_on(stdout, std::io::stdout(), |line| tally.add(line))?;
        errors.join().expect("passing lines on does not panic")
    })
    .map_err(output)?;
    let status = child.wait().map_err(output)?;
    Ok(Run { status, tally, targets })
}

/// Passes lines on as they come. Bytes, since a failing test may print anything.
fn pass_on(from: impl Read, mut to: impl Write, mut see: impl FnMut(&str)) -> std::io::Result<()> {
    for line in BufReader::new(from).split(b'\n') {
        let mut line = line?;
        see(&String::from_utf8_lossy(&line));
        line.push(b'\n');
        to.write_all(&line)?;
    }
    Ok(())
}

/// The target in a line of cargo's list of those that failed.
fn failed_target(line: &str) -> Option<&str> {
    line.strip_prefix("    `")?.strip_suffix('`').filter(|target| target.starts_with("-p "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_binaries_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test it::holds ... ok",
            "test it::breaks ... FAILED",
            "test it::tells ... FAILED",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "a test that prints 7 passed; 7 failed",
            "test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 1.20s",
        ] {
            tally.add(line);
        }
        let names = vec!["it::breaks".to_owned(), "it::tells".to_owned()];
        let expected = Tally { passed: 13, failed: 2, ignored: 1, names };
        assert_eq!(tally, expected);
        assert_eq!(tally.closing_line(), "13 passed, 2 failed, 1 skipped");
        assert_eq!(Tally::default().closing_line(), "0 passed, 0 failed");
    }

    #[test]
    fn a_few_integration_tests_get_a_second_try_and_nothing_else_does() {
        let check = |failed: usize, counted, targets: &[&str]| {
            let names = (0..failed).map(|n| format!("it::t{n}")).collect();
            let tally = Tally { passed: 10, failed: counted, ignored: 0, names };
            let targets: Vec<_> = targets.iter().map(|target| (*target).to_owned()).collect();
            may_try_again(&tally, &targets)
        };
        let it = "-p trunkline --test it";
        assert!(check(1, 1, &[it]));
        assert!(check(3, 3, &[it, "-p trunkline-cli --test it"]));
        assert!(!check(4, 4, &[it]), "too many");
        assert!(!check(1, 1, &["-p trunkline --lib"]), "a unit test");
        assert!(!check(2, 2, &[it, "-p trunkline --lib"]), "one of them a unit test");
        assert!(!check(1, 2, &[it]), "somebody printed over the line of a name");
        assert!(!check(0, 0, &[]), "it did not compile");
    }

    #[test]
    fn targets_that_failed_are_read_from_cargos_list() {
        assert_eq!(failed_target("    `-p trunkline-cli --test it`"), Some("-p trunkline-cli --test it"));
        assert_eq!(failed_target("error: 2 targets failed:"), None);
        assert_eq!(failed_target("    `something else`"), None);
    }
}
