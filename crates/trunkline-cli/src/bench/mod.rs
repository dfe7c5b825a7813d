//! `trunkline bench`: a load generator for any NATS server, and a comparison of several.
//!
//! It must cost less than either server it measures: raw blocking sockets, batches encoded once, deliveries checked by
//! comparison with what must come. A run with a lost, doubled or reordered message is an error and no number. The parts:
//! `plan` (what to measure), `body` (what is in a message), `matrix` (in which order), `load`, `request` and `idle` (one run each, over `connection`),
//! `inproc` (the same without a socket), `redis` and `nats` (the backends beside plain calls of their client libraries, on
//! what `beside` has for both), `hostile` (what one client does to the others), `server` and `process` (what the server costs), `stats`, `report` and `table`.

mod batch;
mod beside;
mod body;
mod compare;
mod connection;
mod desk;
mod endpoint;
mod error;
mod frames;
mod halt;
mod hostile;
mod idle;
mod inproc;
mod load;
mod matrix;
mod measure;
mod nats;
mod plan;
mod process;
mod progress;
mod redis;
mod report;
mod request;
mod server;
mod stamp;
mod stats;
mod table;
mod tally;
mod units;
mod window;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

pub(crate) use error::BenchError;
use plan::{Plan, Scenario};
use progress::Progress;
use units::{parse_count, parse_duration, parse_size};

/// Measure a NATS server, or compare several.
///
/// Rates count deliveries: with four subscribers every published message counts four times. `pub` counts messages
/// published, `request` round trips. The clock runs from the first publish to the last receive. Every run
/// checks that each message arrived once and in order; otherwise it fails.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    backend: Option<BackendBench>,

    /// What to measure; all that is possible by default
    #[arg(value_enum, value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,

    /// The server to load: `nats://[USER:PASSWORD@]HOST[:PORT]`
    #[arg(long, default_value = "nats://127.0.0.1:4222", value_name = "URL")]
    url: String,

    /// Process of the server at --url, to report its CPU and memory
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    server_pid: Option<i32>,

    /// Start this server and measure it; give two or more, the first is the baseline of all ratios
    ///
    /// `{port}` in COMMAND becomes a free port. `nats-server` gets `-p PORT -a 127.0.0.1` appended if it has none,
    /// and `trunkline` without arguments becomes `trunkline up` on that port. Runs are interleaved.
    #[arg(long, value_name = "NAME=COMMAND", conflicts_with_all = ["url", "server_pid"])]
    compare: Vec<String>,

    /// Measure the library in this process, on one thread, instead of a server: `sub` and `fanout`
    #[arg(long, conflicts_with_all = ["url", "server_pid", "compare"])]
    in_process: bool,

    /// Start this program twice, without and with the record of conversations, and measure what that costs
    ///
    /// Each scenario is run on a subject that is not recorded and on one that is, there with envelopes where they fit.
    /// Runs are interleaved.
    #[arg(long, conflicts_with_all = ["url", "server_pid", "compare", "in_process", "subject"])]
    observe: bool,

    /// Payload sizes, for example 16,1KiB; from 8 B up messages are numbered and their order is checked
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = parse_size, default_value = "16,128,1KiB,8KiB")]
    payload: Vec<usize>,

    /// Requesters [default: 1], or idle connections [default: 1000]
    #[arg(long, value_name = "N")]
    clients: Option<usize>,

    /// Publishers of `pub`, `fanout` [default: 1] and `queue` [default: 4]
    #[arg(long, value_name = "N")]
    publishers: Option<usize>,

    /// Subscribers of `fanout` and `queue` [default: 4], responders of `request` [default: 1]
    #[arg(long, value_name = "N")]
    subscribers: Option<usize>,

    /// Requests that each requester keeps in flight [default: 64]
    #[arg(long, value_name = "K")]
    in_flight: Option<usize>,

    /// Messages per run, all publishers together
    #[arg(long, value_name = "COUNT", value_parser = parse_count, conflicts_with = "duration")]
    messages: Option<u64>,

    /// How long to publish in each run [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Load before each run that is not measured
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "200ms")]
    warm_up: Duration,

    /// Subject to publish on [default: bench. and a random token]
    #[arg(long)]
    subject: Option<String>,

    /// Runs of each scenario, of which the median counts [default: 3, with --compare 5]
    #[arg(long, value_name = "N")]
    runs: Option<usize>,

    /// Most messages that publishers may be ahead of the slowest subscriber
    #[arg(long, value_name = "COUNT", value_parser = parse_count, default_value = "65536")]
    window_messages: u64,

    /// Most bytes that publishers may be ahead of the slowest subscriber; must stay below what makes the
    /// server cut off a slow consumer (64 MiB on most)
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "16MiB")]
    window_bytes: usize,

    /// How long nothing may move before a run counts as failed
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    timeout: Duration,

    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,

    /// Show no progress, even on a terminal
    #[arg(long)]
    no_progress: bool,
}

/// What is measured instead of a server.
#[derive(Debug, clap::Subcommand)]
enum BackendBench {
    Redis(redis::RedisArgs),
    Nats(nats::NatsArgs),
    Hostile(hostile::HostileArgs),
}

/// Runs the benchmark and prints its result on stdout. SIGINT and SIGTERM end it early, and with it all servers it started.
///
/// # Errors
/// See [`BenchError`]; [`BenchError::kind`] tells a wrong command line from a failed run.
///
/// # Cancel safety
/// Dropped before the end, the load goes on in its threads until the runtime shuts down; send a signal instead.
pub(crate) async fn run(args: BenchArgs) -> Result<(), BenchError> {
    let work: Work = match args.backend {
        Some(BackendBench::Redis(args)) => {
            Box::new(move |interrupted| redis::measure_and_print(&args, interrupted))
        }
        Some(BackendBench::Nats(args)) => {
            Box::new(move |interrupted| nats::measure_and_print(&args, interrupted))
        }
        Some(BackendBench::Hostile(args)) => {
            Box::new(move |interrupted| hostile::measure_and_print(&args, interrupted))
        }
        None => {
            let plan = Plan::new(&args)?;
            Box::new(move |interrupted| measure_and_print(&plan, &args, interrupted))
        }
    };
    let failed = |source| BenchError::Signals { source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    // Ends by itself when the plan is done, and within a POLL plus the servers' shutdown after an interruption.
    let mut worker = tokio::task::spawn_blocking({
        let interrupted = Arc::clone(&interrupted);
        move || work(&interrupted)
    });
    loop {
        tokio::select! {
            finished = &mut worker => {
                return finished.unwrap_or_else(|error| match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Err(BenchError::Interrupted),
                });
            }
            _ = terminate.recv() => interrupted.store(true, Ordering::Relaxed),
            _ = interrupt.recv() => interrupted.store(true, Ordering::Relaxed),
        }
    }
}

/// What runs on a thread of its own until it is done or the flag is set.
type Work = Box<dyn FnOnce(&Arc<AtomicBool>) -> Result<(), BenchError> + Send>;

fn measure_and_print(plan: &Plan, args: &BenchArgs, interrupted: &Arc<AtomicBool>) -> Result<(), BenchError> {
    let results = {
        let progress = Progress::new(matrix::steps(plan), !args.no_progress);
        matrix::run(plan, interrupted, &progress)?
    };
    let report = report::Report::new(&results, plan.runs);
    let text = if args.json { report.json() } else { report.text() };
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").map_err(|source| BenchError::Print { source })
}
