//! `trunkline bench nats`: what the `nats` backend costs over plain calls of the same client library, async-nats, on the same
//! server; how it is measured is told in `beside`.
//!
//! The parts: `server` (one that runs already, or one that is started for the run), `peer` (the other end of a run, the
//! same for all sides), `raw` and `ours` (the scenarios, each against its side).

mod ours;
mod peer;
mod raw;
mod server;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::ValueEnum;
use tokio_util::task::AbortOnDropHandle;

use super::beside::{BesideArgs, Compared, Load, Measured, Report, Rows, in_turns, unless_interrupted};
use super::error::BenchError;
use super::halt::Halt;
use super::measure::Flow;
use server::Server;

const HELP: &str = "Examples:
  trunkline bench nats                                 all scenarios, on a nats-server started for it
  trunkline bench nats publish request --nats-url nats://127.0.0.1:4222 --json

What is compared in `pull`, where the backend always waits for the server to confirm a settlement:
  raw          fetch, and double_ack of every message: confirmed, as the backend's
  raw-request  fetch, and a request with +ACK for every message: confirmed, and cheaper than double_ack
  raw-ack      fetch, and ack of every message: nobody learns whether the server has it
  backend      Member::fetch and Member::settle
  handlers     a consumer on the bus, with handlers that do nothing";

/// Measure the nats backend against plain calls of the same client library.
///
/// `publish` awaits one publish after another, then that the server has all; `subscribe` receives what a publisher on a
/// socket of its own sends; `request` keeps requests in flight to a responder on another, and its number is a tenth of
/// the messages. `js-publish` keeps messages in flight, each until its confirmation; `pull` fetches batches while it
/// acknowledges the one before. Publisher and responder are the same for both sides and not part of the client's cost.
/// Subjects and streams begin with a random prefix; streams are removed afterwards.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct NatsArgs {
    /// What to measure; all by default
    #[arg(value_enum, value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,

    /// The server to load, `nats://[USER:PASSWORD@]HOST[:PORT]`; without it one is started for the run
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,

    /// Process of the server at --nats-url, to report its CPU
    #[arg(long, value_name = "PID", requires = "nats_url", value_parser = clap::value_parser!(i32).range(1..))]
    server_pid: Option<i32>,

    /// The program to start where no --nats-url is given [default: nats-server on the PATH, or that of `cargo xtask setup`]
    #[arg(long, value_name = "PROGRAM", conflicts_with = "nats_url")]
    nats_server: Option<String>,

    #[command(flatten)]
    common: BesideArgs,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Core NATS, one publish after another
    Publish,
    /// Core NATS, what one subscription receives
    Subscribe,
    /// Core NATS, requests in flight at once
    Request,
    /// JetStream, messages in flight at once, each until it is confirmed
    JsPublish,
    /// JetStream, fetch and acknowledge
    Pull,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Side {
    /// Calls of the client library; in `pull` with double acks.
    Raw,
    /// The same, acknowledging by requests.
    RawRequest,
    /// The same, with acks that nobody confirms.
    RawAck,
    /// The bus on its backend.
    Backend,
    /// A consumer with handlers on the bus.
    Handlers,
}

impl Compared for Scenario {
    type Side = Side;

    fn sides(self) -> &'static [Side] {
        match self {
            Self::Publish | Self::Subscribe | Self::Request | Self::JsPublish => &[Side::Raw, Side::Backend],
            Self::Pull => &[Side::Raw, Side::RawRequest, Side::RawAck, Side::Backend, Side::Handlers],
        }
    }

    fn measured(self) -> Measured {
        Measured::Rate
    }
}

/// Measures and prints, on the calling thread.
///
/// # Errors
/// See [`BenchError`].
pub(super) fn measure_and_print(args: &NatsArgs, interrupted: &Arc<AtomicBool>) -> Result<(), BenchError> {
    args.common.check_ranges()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| BenchError::Socket { doing: "start a runtime", source })?;
    let halt = || Halt::new(interrupted, args.common.timeout);
    let server = Arc::new(Server::of(args, &halt())?);
    let rows = runtime.block_on(measure(args, &server, &Load::random_prefix(), &halt))?;
    let report = Report::new(&args.common, &rows, format!("nats-server {}", server.version()));
    let text = if args.common.json { report.json() } else { report.text() };
    writeln!(std::io::stdout().lock(), "{text}").map_err(|source| BenchError::Print { source })
}

async fn measure(
    args: &NatsArgs,
    server: &Arc<Server>,
    prefix: &str,
    halt: &impl Fn() -> Halt,
) -> Result<Rows, BenchError> {
    in_turns(&args.scenarios, args.common.runs, async |scenario, side| {
        let all = args.common.messages;
        let messages = if scenario == Scenario::Request { all / 10 } else { all };
        let load = Arc::new(args.common.load(server.url(), prefix, messages, halt()));
        // As a program's own tasks do, it runs beside those of the client library, on the threads that run them.
        let mut running =
            AbortOnDropHandle::new(tokio::spawn(run(scenario, side, load.clone(), server.clone())));
        let done = async {
            (&mut running).await.unwrap_or_else(|error| match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(BenchError::Interrupted),
            })
        };
        let flow = unless_interrupted(&load.halt, done).await;
        // What an interrupted run still makes would come after the cleaning up.
        if !running.is_finished() {
            running.abort();
            // It was interrupted, whatever it says.
            let _ = running.await;
        }
        load.deeds_done().await;
        // One run must not leave the next one a fuller server.
        let removed = raw::remove_streams(server.url(), prefix).await;
        flow.and_then(|flow| removed.map(|()| flow))
    })
    .await
}

async fn run(
    scenario: Scenario,
    side: Side,
    load: Arc<Load>,
    server: Arc<Server>,
) -> Result<Flow, BenchError> {
    use raw::Acks;
    let (load, server) = (&load, &*server);
    match (scenario, side) {
        (Scenario::Publish, Side::Raw) => raw::publish(load, server).await,
        (Scenario::Publish, _) => ours::publish(load, server).await,
        (Scenario::Subscribe, Side::Raw) => raw::subscribe(load, server).await,
        (Scenario::Subscribe, _) => ours::subscribe(load, server).await,
        (Scenario::Request, Side::Raw) => raw::request(load, server).await,
        (Scenario::Request, _) => ours::request(load, server).await,
        (Scenario::JsPublish, Side::Raw) => raw::js_publish(load, server).await,
        (Scenario::JsPublish, _) => ours::js_publish(load, server).await,
        (Scenario::Pull, Side::Raw) => raw::pull(load, server, Acks::Double).await,
        (Scenario::Pull, Side::RawRequest) => raw::pull(load, server, Acks::Request).await,
        (Scenario::Pull, Side::RawAck) => raw::pull(load, server, Acks::Plain).await,
        (Scenario::Pull, Side::Backend) => ours::pull(load, server).await,
        (Scenario::Pull, Side::Handlers) => ours::handle(load, server).await,
    }
}

fn nats_failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    doing: &'static str,
) -> impl Fn(E) -> BenchError {
    move |source| BenchError::Nats { doing, source: source.into() }
}
