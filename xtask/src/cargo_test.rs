//! Runs `cargo test`, passes its output on as it comes, and adds up what the test binaries report.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::environment::{root, test_variables};
use crate::error::Error;
use crate::step::{describe, elapsed};

/// What all test binaries of one run report together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// Adds the counts of a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`; other
    /// lines add nothing.
    fn add(&mut self, line: &str) {
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
    fn closing_line(self) -> String {
        let Tally { passed, failed, ignored } = self;
        match ignored {
            0 => format!("{passed} passed, {failed} failed"),
            _ => format!("{passed} passed, {failed} failed, {ignored} skipped"),
        }
    }
}

/// Runs this `cargo test` command; its last output is the line that sums up the tests.
pub(crate) fn run(command: &mut Command) -> Result<(), Error> {
    let started = Instant::now();
    let mut child = command
        .current_dir(root())
        .envs(test_variables())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Start { command: describe(command), source })?;
    let output = |source| Error::Output { command: describe(command), source };
    let lines = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    let mut tally = Tally::default();
    // Bytes, since a failing test may print anything.
    for line in lines.split(b'\n') {
        let mut line = line.map_err(output)?;
        tally.add(&String::from_utf8_lossy(&line));
        line.push(b'\n');
        std::io::stdout().write_all(&line).map_err(output)?;
    }
    let status = child.wait().map_err(output)?;
    println!("   {}", elapsed(started.elapsed()));
    // What does not compile runs no test, and then there is nothing to sum up.
    if tally.passed + tally.failed > 0 {
        println!("{}", tally.closing_line());
    }
    match (status.success(), tally) {
        (true, Tally { passed: 0, .. }) => Err(Error::NoTest { command: describe(command) }),
        (true, _) => Ok(()),
        (false, Tally { failed: 1.., .. }) => Err(Error::TestsFailed),
        (false, _) => Err(Error::Failed { command: describe(command), status }),
    }
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
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "a test that prints 7 passed; 7 failed",
            "test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 1.20s",
        ] {
            tally.add(line);
        }
        let expected = Tally { passed: 13, failed: 2, ignored: 1 };
        assert_eq!(tally, expected);
        assert_eq!(tally.closing_line(), "13 passed, 2 failed, 1 skipped");
        assert_eq!(Tally::default().closing_line(), "0 passed, 0 failed");
    }
}
