//! What `bench redis` and `bench nats` have in common: a backend beside plain calls of the client library it is made with,
//! on the same server. Each scenario is run in turns, side after side, so that what else the machine does falls on all of
//! them; every run checks that all messages came, once and in order. What the scenarios do is told in `redis` and `nats`.

mod meter;
mod report;
mod stamp;

use std::time::Duration;

use clap::ValueEnum;
use tokio_util::task::TaskTracker;

pub(super) use meter::{Meter, Metered};
pub(super) use report::Report;
pub(super) use stamp::Stamp;

use super::error::BenchError;
use super::halt::{self, Halt};
use super::measure::Flow;
use super::units::{parse_count, parse_duration, parse_size};
use hdrhistogram::Histogram;

/// How much is done, and how often.
#[derive(Debug, clap::Args)]
pub(super) struct BesideArgs {
    /// Payload of each message, at least 16 B
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256")]
    pub(super) payload: usize,

    /// Messages per run; scenarios that measure a time take a part of them
    #[arg(long, value_name = "COUNT", value_parser = parse_count, default_value = "300k")]
    pub(super) messages: u64,

    /// Messages or requests that are under way at once
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(super) in_flight: usize,

    /// Messages of one fetch, and settled together
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(super) batch: usize,

    /// Runs of each side, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(super) runs: usize,

    /// How long nothing may move before a run counts as failed
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    pub(super) timeout: Duration,

    /// Print one JSON document instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

impl BesideArgs {
    /// # Errors
    /// [`BenchError::Range`] for the first value that nothing can be measured with.
    pub(super) fn check_ranges(&self) -> Result<(), BenchError> {
        for (option, given, min, max) in [
            ("--payload", self.payload, Stamp::BYTES, 1 << 20),
            ("--in-flight", self.in_flight, 2, 1 << 16),
            ("--batch", self.batch, 1, 512),
            ("--runs", self.runs, 1, 1000),
            ("--messages", usize::try_from(self.messages).unwrap_or(usize::MAX), 1, 100_000_000),
        ] {
            if !(min..=max).contains(&given) {
                let (given, min, max) = (given as u64, min as u64, max as u64);
                return Err(BenchError::Range { option, given, min, max });
            }
        }
        Ok(())
    }

    /// What one run is told: where the server is, what everything it makes there begins with, and how many messages.
    pub(super) fn load(&self, url: &str, prefix: &str, messages: u64, halt: Halt) -> Load {
        Load {
            url: url.to_owned(),
            prefix: prefix.to_owned(),
            payload_bytes: self.payload,
            messages: messages.max(1),
            in_flight: self.in_flight,
            batch: self.batch,
            halt,
            deeds: TaskTracker::new(),
        }
    }
}

/// What every run is told.
pub(super) struct Load {
    pub(super) url: String,
    /// Start of every name that the run makes on the server.
    pub(super) prefix: String,
    pub(super) payload_bytes: usize,
    pub(super) messages: u64,
    pub(super) in_flight: usize,
    pub(super) batch: usize,
    pub(super) halt: Halt,
    /// What may not be given up half way, see [`Load::whole`]. Each ends by itself within the timeouts of its client library;
    /// [`Load::deeds_done`] waits for them.
    deeds: TaskTracker,
}

impl Load {
    /// A prefix that nobody else uses.
    pub(super) fn random_prefix() -> String {
        format!("trunkline_bench_{:016x}", fastrand::u64(..))
    }

    /// Makes something on the server. A run that is interrupted meanwhile gives up waiting and not the deed: what was made
    /// without anybody noticing would stay there.
    ///
    /// # Errors
    /// That of the deed.
    pub(super) async fn whole<T: Send + 'static>(
        &self,
        deed: impl Future<Output = Result<T, BenchError>> + Send + 'static,
    ) -> Result<T, BenchError> {
        self.deeds.spawn(deed).await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(BenchError::Interrupted),
        })
    }

    /// Waits until everything that was begun to be made is made.
    pub(super) async fn deeds_done(&self) {
        self.deeds.close();
        self.deeds.wait().await;
    }
}

/// A scenario, and who can do it.
pub(super) trait Compared: ValueEnum + Copy + 'static {
    type Side: ValueEnum + Copy + 'static;

    /// The first is what the others are compared with.
    fn sides(self) -> &'static [Self::Side];

    fn measured(self) -> Measured;
}

/// What a scenario is about, and its ratios of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measured {
    /// Messages per second: more is better.
    Rate,
    /// The median time: less is better.
    Latency,
}

/// All samples of one scenario, by side.
struct Row {
    scenario: String,
    measured: Measured,
    samples: Vec<(String, Vec<Flow>)>,
}

/// What a comparison has found.
pub(super) struct Rows(Vec<Row>);

/// Runs every side of every scenario `runs` times, in turns, after one round that only warms up server and allocator.
///
/// # Errors
/// That of the first run that fails, with its scenario and side.
pub(super) async fn in_turns<C: Compared>(
    scenarios: &[C],
    runs: usize,
    run: impl AsyncFn(C, C::Side) -> Result<Flow, BenchError>,
) -> Result<Rows, BenchError> {
    let mut rows = Vec::new();
    for &scenario in if scenarios.is_empty() { C::value_variants() } else { scenarios } {
        let sides = scenario.sides();
        let mut samples: Vec<(String, Vec<Flow>)> =
            sides.iter().map(|side| (name(*side), Vec::new())).collect();
        for round in 0..=runs {
            for (side, (named, samples)) in sides.iter().zip(&mut samples) {
                let flow = run(scenario, *side).await.map_err(|source| match source {
                    BenchError::Interrupted => source,
                    source => BenchError::Run {
                        scenario: name(scenario),
                        server: named.clone(),
                        source: Box::new(source),
                    },
                })?;
                if round > 0 {
                    samples.push(flow);
                }
            }
        }
        rows.push(Row { scenario: name(scenario), measured: scenario.measured(), samples });
    }
    Ok(Rows(rows))
}

/// The name on the command line and in JSON.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// `running`, unless the user ends it.
///
/// # Errors
/// Its own, or [`BenchError::Interrupted`].
pub(super) async fn unless_interrupted<T>(
    halt: &Halt,
    running: impl Future<Output = Result<T, BenchError>>,
) -> Result<T, BenchError> {
    let interrupted = async {
        loop {
            tokio::time::sleep(halt::POLL).await;
            if let Err(error) = halt.check() {
                return error;
            }
        }
    };
    tokio::select! {
        done = running => done,
        error = interrupted => Err(error),
    }
}

/// What is checked of messages that arrive one after another: that the next one comes next.
pub(super) fn check_order(expected: u64, received: u64) -> Result<(), BenchError> {
    match received == expected {
        true => Ok(()),
        false => Err(BenchError::Order { role: "consumer".to_owned(), publisher: 0, expected, received }),
    }
}

/// `future`, unless it takes longer than the run's patience.
pub(super) async fn soon<T>(
    load: &Load,
    role: &str,
    future: impl Future<Output = T>,
) -> Result<T, BenchError> {
    let waited = load.halt.timeout;
    let stalled = |_| BenchError::Stalled { role: role.to_owned(), waited };
    tokio::time::timeout(waited, future).await.map_err(stalled)
}

pub(super) fn bus_failed(error: impl std::error::Error + Send + Sync + 'static) -> BenchError {
    BenchError::Bus { source: Box::new(error) }
}

/// Of times in nanoseconds; it grows as needed.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

/// Notes one time. Only what no clock shows has no place in the histogram.
pub(super) fn record(histogram: &mut Histogram<u64>, time: Duration) {
    let _ = histogram.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_message_out_of_its_turn_is_an_error() {
        assert!(check_order(3, 3).is_ok());
        assert!(matches!(check_order(3, 4), Err(BenchError::Order { expected: 3, received: 4, .. })));
    }

    #[derive(Clone, Copy, Debug, ValueEnum, PartialEq)]
    enum Letter {
        A,
        B,
    }

    impl Compared for Letter {
        type Side = Self;

        fn sides(self) -> &'static [Self] {
            &[Self::A, Self::B]
        }

        fn measured(self) -> Measured {
            Measured::Rate
        }
    }

    fn flow() -> Flow {
        Flow {
            published: 1,
            messages: 1,
            elapsed: Duration::from_secs(1),
            load_cpu: Duration::ZERO,
            server: None,
            latency: None,
        }
    }

    #[tokio::test]
    async fn sides_take_turns_and_the_first_round_does_not_count() {
        let order = RefCell::new(String::new());
        let rows = in_turns(&[Letter::B], 2, async |_, side| {
            order.borrow_mut().push_str(&name(side));
            Ok(flow())
        });
        let Rows(rows) = rows.await.expect("no run fails");
        assert_eq!(order.into_inner(), "ababab");
        assert_eq!(rows.len(), 1);
        assert!(rows[0].samples.iter().all(|(_, flows)| flows.len() == 2));
    }

    #[tokio::test]
    async fn a_run_that_fails_is_named() {
        let failed = in_turns(&[Letter::B], 1, async |_, _| Err(BenchError::Closed)).await;
        match failed.err() {
            Some(BenchError::Run { scenario, server, .. }) => assert_eq!((&*scenario, &*server), ("b", "a")),
            other => panic!("{other:?}"),
        }
    }
}
