//! A crowd beside the load: connections with subscriptions that never match it, and subscriptions that come and go. What
//! a server remembers of its subscriptions must serve in their midst, too.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::connection::{CONTROL_BUFFER_BYTES, Connection};
use super::endpoint::Endpoint;
use super::error::BenchError;
use super::halt::{Halt, first_error};
use super::load::joined;

/// Between two bursts of subscriptions that come and go.
const BURST_EVERY: Duration = Duration::from_millis(5);

/// How large the crowd is; with nobody in it, there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Crowd {
    pub(super) connections: usize,
    /// Of all of them together.
    pub(super) subscriptions: usize,
    /// Subscriptions that come and go in a second, under the first token of the load's subject.
    pub(super) churn: u64,
}

impl Crowd {
    /// Does `work` in the midst of the crowd, which is there before it begins and stays until it ends.
    ///
    /// # Errors
    /// Those of `work`; a connection of the crowd that is refused or lost.
    pub(super) fn around<T>(
        self,
        subject: &str,
        endpoint: &Endpoint,
        halt: &Halt,
        work: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let mut members = self.gather(subject, endpoint, halt)?;
        let done = match self.churn {
            0 => work()?,
            _ => self.churning(subject, endpoint, halt, work)?,
        };
        // One that was cut off has not been part of what was measured.
        for (index, member) in members.iter_mut().enumerate() {
            member.round_trip(&format!("connection {index} of the crowd"), halt)?;
        }
        Ok(done)
    }

    fn gather(self, subject: &str, endpoint: &Endpoint, halt: &Halt) -> Result<Vec<Connection>, BenchError> {
        let mut members = Vec::with_capacity(self.connections);
        for index in 0..self.connections {
            halt.check()?;
            let mut member = Connection::open(endpoint, CONTROL_BUFFER_BYTES, halt)?;
            let mut lines = String::new();
            for n in (index..self.subscriptions).step_by(self.connections) {
                writeln!(lines, "SUB {} {n}\r", pattern(subject, n)).expect("a String takes all");
            }
            member.send(lines.as_bytes(), halt)?;
            members.push(member);
        }
        for (index, member) in members.iter_mut().enumerate() {
            member.round_trip(&format!("connection {index} of the crowd"), halt)?;
        }
        Ok(members)
    }

    fn churning<T>(
        self,
        subject: &str,
        endpoint: &Endpoint,
        halt: &Halt,
        work: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let mut connection = Connection::open(endpoint, CONTROL_BUFFER_BYTES, halt)?;
        let over = AtomicBool::new(false);
        let first = first_token(subject);
        // The scope owns the thread, which ends with the work, or within a burst after anybody has failed.
        thread::scope(|scope| {
            let churn = scope.spawn(|| {
                let mut churn = || {
                    let (begun, mut done) = (Instant::now(), 0);
                    while !over.load(Ordering::Relaxed) {
                        halt.check()?;
                        let due = (begun.elapsed().as_secs_f64() * self.churn as f64) as u64;
                        let burst: String = (done..due)
                            .map(|n| format!("SUB {first}.churn.{}.* c{n}\r\nUNSUB c{n}\r\n", n % 1024))
                            .collect();
                        connection.send(burst.as_bytes(), halt)?;
                        done = due;
                        thread::sleep(BURST_EVERY);
                    }
                    connection.round_trip("who subscribes and unsubscribes", halt)
                };
                halt.watch(churn())
            });
            let done = halt.watch(work());
            over.store(true, Ordering::Relaxed);
            match (done, joined(churn)) {
                (Ok(done), Ok(())) => Ok(done),
                (Ok(_), Err(error)) | (Err(error), Ok(())) => Err(error),
                (Err(a), Err(b)) => {
                    Err(first_error::<()>(vec![Err(a), Err(b)]).err().unwrap_or(BenchError::Interrupted))
                }
            }
        })
    }
}

fn first_token(subject: &str) -> &str {
    subject.split('.').next().unwrap_or(subject)
}

/// Patterns of every kind, a fifth of them each: without wildcard, with one in the middle, at the end and at the start, and
/// under the first token of the load's subject. All have four tokens or more, so that none matches what a benchmark
/// publishes by itself.
fn pattern(subject: &str, n: usize) -> String {
    let first = first_token(subject);
    match n % 5 {
        0 => format!("crowd.{}.of.{n}", n % 97),
        1 => format!("crowd.*.with.{n}"),
        2 => format!("crowd.{}.all.{n}.>", n % 89),
        3 => format!("*.{}.any.{n}", n % 83),
        _ => format!("{first}.{}.*.{n}", n % 79),
    }
}

#[cfg(test)]
mod tests {
    use trunkline::{Pattern, Subject};

    use super::*;

    #[test]
    fn the_crowd_listens_to_everything_but_the_load() {
        let subject: Subject = "bench.x7k2p9".parse().unwrap();
        for n in 0..1000 {
            let pattern: Pattern = pattern(subject.as_str(), n).parse().unwrap();
            assert!(!pattern.matches(&subject), "{pattern}");
        }
    }
}
