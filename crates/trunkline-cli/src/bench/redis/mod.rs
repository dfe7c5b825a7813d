//! `trunkline bench redis`: what the `redis` backend costs over plain commands of the same client library on the same
//! server; how it is measured is told in `beside`.
//!
//! The parts: `server` (one that runs already, or one that is started for the run), `raw` and `ours` (the scenarios, each
//! against its side).

mod ours;
mod raw;
mod server;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::ValueEnum;

use super::beside::{BesideArgs, Compared, Load, Measured, Report, Rows, in_turns, unless_interrupted};
use super::error::BenchError;
use super::halt::Halt;
use super::measure::Flow;
use server::Server;

const HELP: &str = "Examples:
  trunkline bench redis                                all scenarios, on a redis-server started for it
  trunkline bench redis publish consume --redis-url redis://127.0.0.1:6379 --json";

/// Measure the redis backend against plain commands of the same client library.
///
/// `publish` keeps messages in flight: raw is pipelined XADD with MAXLEN ~, two pipelines at a time. `consume` takes
/// batches and acknowledges them: raw is XREADGROUP pipelined with the XACK of the batch before. `latency` is the time
/// from the publish to the subscriber, of a hundredth of the messages: raw is XADD to a loop of blocking XREAD. Keys begin with a random prefix and are
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

    #[command(flatten)]
    common: BesideArgs,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Messages in flight at once, each with its outcome
    Publish,
    /// Fetch and acknowledge
    Consume,
    /// From publish to receive, one message at a time
    Latency,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Side {
    /// Commands of the client library.
    Raw,
    /// The backend: publishes through the bus, `Member::fetch` and `Member::settle`.
    Backend,
    /// A consumer with handlers on the bus.
    Handlers,
}

impl Compared for Scenario {
    type Side = Side;

    fn sides(self) -> &'static [Side] {
        match self {
            Self::Publish | Self::Latency => &[Side::Raw, Side::Backend],
            Self::Consume => &[Side::Raw, Side::Backend, Side::Handlers],
        }
    }

    fn measured(self) -> Measured {
        match self {
            Self::Publish | Self::Consume => Measured::Rate,
            Self::Latency => Measured::Latency,
        }
    }
}

/// Measures and prints, on the calling thread.
///
/// # Errors
/// See [`BenchError`].
pub(super) fn measure_and_print(args: &RedisArgs, interrupted: &Arc<AtomicBool>) -> Result<(), BenchError> {
    args.common.check_ranges()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| BenchError::Socket { doing: "start a runtime", source })?;
    let halt = || Halt::new(interrupted, args.common.timeout);
    let server = Server::of(args, &halt())?;
    let prefix = Load::random_prefix();
    let measured = runtime.block_on(async {
        let rows = measure(args, &server, &prefix, &halt).await;
        let cleaned = server.remove_keys(&prefix).await;
        rows.and_then(|rows| cleaned.map(|()| rows))
    });
    let version = runtime.block_on(server.version()).unwrap_or_default();
    let report = Report::new(&args.common, &measured?, format!("redis {version}"));
    let text = if args.common.json { report.json() } else { report.text() };
    writeln!(std::io::stdout().lock(), "{text}").map_err(|source| BenchError::Print { source })
}

async fn measure(
    args: &RedisArgs,
    server: &Server,
    prefix: &str,
    halt: &impl Fn() -> Halt,
) -> Result<Rows, BenchError> {
    in_turns(&args.scenarios, args.common.runs, async |scenario, side| {
        let all = args.common.messages;
        let messages = if scenario == Scenario::Latency { all / 100 } else { all };
        let load = args.common.load(server.url(), prefix, messages, halt());
        let flow = unless_interrupted(&load.halt, run(scenario, side, &load, server)).await;
        // One run must not leave the next one a fuller server.
        server.remove_keys(prefix).await?;
        flow
    })
    .await
}

async fn run(scenario: Scenario, side: Side, load: &Load, server: &Server) -> Result<Flow, BenchError> {
    match (scenario, side) {
        (Scenario::Publish, Side::Raw) => raw::publish(load, server).await,
        (Scenario::Publish, _) => ours::publish(load, server).await,
        (Scenario::Consume, Side::Raw) => raw::consume(load, server).await,
        (Scenario::Consume, Side::Backend) => ours::consume(load, server).await,
        (Scenario::Consume, Side::Handlers) => ours::handle(load, server).await,
        (Scenario::Latency, Side::Raw) => raw::latency(load, server).await,
        (Scenario::Latency, _) => ours::latency(load, server).await,
    }
}

fn redis_failed(doing: &'static str) -> impl Fn(::redis::RedisError) -> BenchError {
    move |source| BenchError::Redis { doing, source: Box::new(source) }
}
