//! `trunkline bench redis`: what the `redis` backend costs over plain commands of the same client library on the same
//! server. Each scenario is run in turns, raw and ours; every run checks that all messages came, once and in order.
//!
//! The parts: `server` (one that runs already, or one that is started for the run), `raw` and `ours` (the scenarios, each
//! against its side), `report`.

mod ours;
mod raw;
mod report;
mod server;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use clap::ValueEnum;
use serde::Serialize;

use super::error::BenchError;
use super::halt::Halt;
use super::measure::{Flow, Usage};
use super::process;
use super::units::{parse_count, parse_duration, parse_size};
use report::Report;
use server::Server;

const HELP: &str = "Examples:
  trunkline bench redis                                all scenarios, on a redis-server started for it
  trunkline bench redis publish consume --redis-url redis://127.0.0.1:6379 --json";

/// Measure the redis backend against plain commands of the same client library.
///
/// `publish` keeps messages in flight: raw is pipelined XADD with MAXLEN ~, two pipelines at a time. `consume` takes
/// batches and acknowledges them: raw is XREADGROUP pipelined with the XACK of the batch before. `latency` is the time
/// from the publish to the subscriber: raw is XADD to a loop of blocking XREAD. Keys begin with a random prefix and are
/// removed afterwards.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct RedisArgs {
    /// What to measure; all by default
    #[arg(value_enum, value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,

    /// The server to load; without it one is started for the run
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,

    /// The program to start where no --redis-url is given
    #[arg(long, value_name = "PROGRAM", default_value = "redis-server", conflicts_with = "redis_url")]
    redis_server: String,

    /// Payload of each message, at least 16 B
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256")]
    payload: usize,

    /// Messages per run of publish and consume; latency takes a hundredth
    #[arg(long, value_name = "COUNT", value_parser = parse_count, default_value = "300k")]
    messages: u64,

    /// Messages that a publisher keeps in flight
    #[arg(long, value_name = "N", default_value_t = 256)]
    in_flight: usize,

    /// Messages of one fetch, and settled together
    #[arg(long, value_name = "N", default_value_t = 128)]
    batch: usize,

    /// Runs of each side, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,

    /// How long nothing may move before a run counts as failed
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    timeout: Duration,

    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scenario {
    /// Messages in flight at once, each with its outcome
    Publish,
    /// Fetch and acknowledge
    Consume,
    /// From publish to receive, one message at a time
    Latency,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    /// Commands of the client library.
    Raw,
    /// The backend: publishes through the bus, `Member::fetch` and `Member::settle`.
    Backend,
    /// A consumer with handlers on the bus.
    Handlers,
}

impl Scenario {
    fn sides(self) -> &'static [Side] {
        match self {
            Self::Publish | Self::Latency => &[Side::Raw, Side::Backend],
            Self::Consume => &[Side::Raw, Side::Backend, Side::Handlers],
        }
    }
}

/// What every run is told.
struct Load {
    url: String,
    /// Start of every key.
    prefix: String,
    payload_bytes: usize,
    messages: u64,
    in_flight: usize,
    batch: usize,
    halt: Halt,
}

/// A payload that carries its number and the time it was made, so that the receiver can check the one and measure by the
/// other.
struct Stamp(Instant);

impl Stamp {
    const BYTES: usize = 16;

    fn payload(&self, number: u64, bytes: usize) -> Bytes {
        let mut payload = BytesMut::zeroed(bytes.max(Self::BYTES));
        let nanos = u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX);
        (&mut payload[..]).put_u64(number);
        (&mut payload[8..]).put_u64(nanos);
        payload.freeze()
    }

    /// The number of a payload, and how long ago it was made.
    fn read(&self, payload: &[u8]) -> Option<(u64, Duration)> {
        let number = u64::from_be_bytes(payload.get(..8)?.try_into().ok()?);
        let nanos = u64::from_be_bytes(payload.get(8..16)?.try_into().ok()?);
        Some((number, self.0.elapsed().saturating_sub(Duration::from_nanos(nanos))))
    }
}

/// All samples of one scenario, by side.
struct Row {
    scenario: Scenario,
    samples: Vec<(Side, Vec<Flow>)>,
}

/// Measures and prints, on the calling thread.
///
/// # Errors
/// See [`BenchError`].
pub(super) fn measure_and_print(args: &RedisArgs, interrupted: &Arc<AtomicBool>) -> Result<(), BenchError> {
    check_ranges(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| BenchError::Socket { doing: "start a runtime", source })?;
    let halt = || Halt::new(interrupted, args.timeout);
    let server = Server::of(args, &halt())?;
    let prefix = format!("trunkline_bench_{:016x}", fastrand::u64(..));
    let measured = runtime.block_on(async {
        let rows = measure(args, &server, &prefix, &halt).await;
        let cleaned = server.remove_keys(&prefix).await;
        rows.and_then(|rows| cleaned.map(|()| rows))
    });
    let version = runtime.block_on(server.version()).unwrap_or_default();
    let report = Report::new(args, &measured?, version);
    let text = if args.json { report.json() } else { report.text() };
    writeln!(std::io::stdout().lock(), "{text}").map_err(|source| BenchError::Print { source })
}

async fn measure(
    args: &RedisArgs,
    server: &Server,
    prefix: &str,
    halt: &impl Fn() -> Halt,
) -> Result<Vec<Row>, BenchError> {
    let all = [Scenario::Publish, Scenario::Consume, Scenario::Latency];
    let scenarios = if args.scenarios.is_empty() { &all[..] } else { &args.scenarios };
    let mut rows = Vec::new();
    for &scenario in scenarios {
        let mut samples: Vec<(Side, Vec<Flow>)> =
            scenario.sides().iter().map(|side| (*side, Vec::new())).collect();
        // The first round only warms up the server and the allocator.
        for round in 0..=args.runs {
            for (side, samples) in &mut samples {
                let messages =
                    if scenario == Scenario::Latency { args.messages / 100 } else { args.messages };
                let load = Load {
                    url: server.url().to_owned(),
                    prefix: prefix.to_owned(),
                    payload_bytes: args.payload,
                    messages: messages.max(1),
                    in_flight: args.in_flight,
                    batch: args.batch,
                    halt: halt(),
                };
                let flow = run(scenario, *side, &load, server).await.map_err(|source| match source {
                    BenchError::Interrupted => source,
                    source => BenchError::Run {
                        scenario: format!("{scenario:?}").to_lowercase(),
                        server: format!("{side:?}").to_lowercase(),
                        source: Box::new(source),
                    },
                })?;
                if round > 0 {
                    samples.push(flow);
                }
                // One run must not leave the next one a fuller server.
                server.remove_keys(prefix).await?;
            }
        }
        rows.push(Row { scenario, samples });
    }
    Ok(rows)
}

async fn run(scenario: Scenario, side: Side, load: &Load, server: &Server) -> Result<Flow, BenchError> {
    let running = async {
        match (scenario, side) {
            (Scenario::Publish, Side::Raw) => raw::publish(load, server).await,
            (Scenario::Publish, _) => ours::publish(load, server).await,
            (Scenario::Consume, Side::Raw) => raw::consume(load, server).await,
            (Scenario::Consume, Side::Backend) => ours::consume(load, server).await,
            (Scenario::Consume, Side::Handlers) => ours::handle(load, server).await,
            (Scenario::Latency, Side::Raw) => raw::latency(load, server).await,
            (Scenario::Latency, _) => ours::latency(load, server).await,
        }
    };
    let interrupted = async {
        loop {
            tokio::time::sleep(super::halt::POLL).await;
            if let Err(error) = load.halt.check() {
                return error;
            }
        }
    };
    tokio::select! {
        flow = running => flow,
        error = interrupted => Err(error),
    }
}

/// The readings before a run, to be compared with those after it.
struct Meter {
    started: Instant,
    own: Duration,
    server: Duration,
}

impl Meter {
    async fn start(server: &Server) -> Result<Self, BenchError> {
        let server = server.cpu().await?;
        Ok(Self { own: process::own_cpu()?, started: Instant::now(), server })
    }

    async fn stop(self, server: &Server, messages: u64) -> Result<Flow, BenchError> {
        let elapsed = self.started.elapsed();
        let load_cpu = process::own_cpu()?.saturating_sub(self.own);
        let cpu = server.cpu().await?.saturating_sub(self.server);
        let server = Some(Usage { cpu, rss_bytes: 0 });
        Ok(Flow { published: messages, messages, elapsed, load_cpu, server, latency: None })
    }
}

/// What is checked of messages that arrive one after another: that the next one comes next.
fn check_order(expected: u64, received: u64) -> Result<(), BenchError> {
    match received == expected {
        true => Ok(()),
        false => Err(BenchError::Order { role: "consumer".to_owned(), publisher: 0, expected, received }),
    }
}

/// `future`, unless it takes longer than the run's patience.
async fn soon<T>(load: &Load, role: &str, future: impl Future<Output = T>) -> Result<T, BenchError> {
    let waited = load.halt.timeout;
    let stalled = |_| BenchError::Stalled { role: role.to_owned(), waited };
    tokio::time::timeout(waited, future).await.map_err(stalled)
}

fn redis_failed(doing: &'static str) -> impl Fn(::redis::RedisError) -> BenchError {
    move |source| BenchError::Redis { doing, source: Box::new(source) }
}

fn bus_failed(error: impl std::error::Error + Send + Sync + 'static) -> BenchError {
    BenchError::Bus { source: Box::new(error) }
}

fn check_ranges(args: &RedisArgs) -> Result<(), BenchError> {
    for (option, given, min, max) in [
        ("--payload", args.payload, Stamp::BYTES, 1 << 20),
        ("--in-flight", args.in_flight, 2, 1 << 16),
        ("--batch", args.batch, 1, 512),
        ("--runs", args.runs, 1, 1000),
        ("--messages", usize::try_from(args.messages).unwrap_or(usize::MAX), 1, 100_000_000),
    ] {
        if !(min..=max).contains(&given) {
            let (given, min, max) = (given as u64, min as u64, max as u64);
            return Err(BenchError::Range { option, given, min, max });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_its_payload() {
        let stamp = Stamp(Instant::now());
        let payload = stamp.payload(7, 256);
        let (number, age) = stamp.read(&payload).expect("a stamp");
        assert_eq!((number, payload.len()), (7, 256));
        assert!(age < Duration::from_secs(60));
        assert!(stamp.read(b"short").is_none());
    }

    #[test]
    fn a_message_out_of_its_turn_is_an_error() {
        assert!(check_order(3, 3).is_ok());
        assert!(matches!(check_order(3, 4), Err(BenchError::Order { expected: 3, received: 4, .. })));
    }
}
