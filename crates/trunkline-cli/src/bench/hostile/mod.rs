//! `trunkline bench hostile`: what one hostile client does to the others. Well-behaved clients ask and answer beside it, and
//! their round trips with it are held against those without it, in turns and on the same server.
//!
//! The hostile client is a process of its own with the lowest priority: what is measured is what it makes the server do, and
//! not how it takes processors away from it.

mod attack;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::ValueEnum as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::compare::ServerSpec;
use super::endpoint::Endpoint;
use super::error::BenchError;
use super::halt::Halt;
use super::measure::Flow;
use super::plan::{Amount, Scenario, WindowLimit, Workload};
use super::request;
use super::server::Server;
use super::stats::{Summary, ratio};
use super::units::{parse_duration, parse_size};
use attack::{Attack, Scene};

const HELP: &str = "Examples:
  trunkline bench hostile                              all of them, on a server of this program that is started for it
  trunkline bench hostile churn flood --server 'nats=nats-server' --json
  trunkline bench hostile --server 'small=trunkline --config small.yaml up --listen 127.0.0.1:{port}'";

/// Before a measurement: the hostile client has begun, the server of the one before has recovered.
const SETTLE: Duration = Duration::from_millis(500);

/// Measure what one hostile client does to the others.
///
/// Round trips of a well-behaved requester and responder, without and with the hostile client, in turns. The ratio is that of
/// the 99th percentiles, each the median of all runs.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct HostileArgs {
    /// What the hostile client does; everything by default
    #[arg(value_enum, value_name = "ATTACK")]
    attacks: Vec<Attack>,

    /// The server that is started, as for `bench --compare`; this program by default
    #[arg(long, value_name = "NAME=COMMAND")]
    server: Option<String>,

    /// How long each run asks and answers
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    duration: Duration,

    /// Runs of each kind, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,

    /// Requests that the well-behaved client keeps in flight
    #[arg(long, value_name = "K", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    in_flight: u16,

    /// Their payload
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "128")]
    payload: usize,

    /// How long nothing may move before a run counts as failed
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    timeout: Duration,

    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,

    /// Be the hostile client, on the server at this address, until stdin ends
    #[arg(long, hide = true, requires = "attacks")]
    attack_at: Option<String>,

    /// The first token of the subjects of the others
    #[arg(long, hide = true, default_value = "bench")]
    token: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    server: String,
    version: String,
    in_flight: u16,
    runs: u16,
    attacks: Vec<Row>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    attack: Attack,
    /// What the hostile client did in all runs: its operations, messages, connections, or batches of 256 KiB.
    done: u64,
    p50_us: Pair,
    p99_us: Pair,
    per_second: Pair,
    /// The most memory that the server had at the end of a run.
    rss_bytes_max: u64,
}

/// A number without and with the hostile client.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pair {
    calm: Summary,
    hostile: Summary,
    ratio: Option<f64>,
}

impl Pair {
    fn of(calm: &[Flow], hostile: &[Flow], value: impl Fn(&Flow) -> f64) -> Option<Self> {
        let summary = |flows: &[Flow]| Summary::of(flows.iter().map(&value));
        let (calm, hostile) = (summary(calm)?, summary(hostile)?);
        Some(Self { ratio: ratio(hostile.median, calm.median), calm, hostile })
    }
}

/// Measures and prints, on the calling thread.
///
/// # Errors
/// See [`BenchError`].
pub(super) fn measure_and_print(args: &HostileArgs, interrupted: &Arc<AtomicBool>) -> Result<(), BenchError> {
    if let Some(address) = &args.attack_at {
        return attack(address, args);
    }
    let spec = match &args.server {
        Some(given) => ServerSpec::parse(given)?,
        None => {
            let program = std::env::current_exe().map_err(|source| spawn_error("trunkline", source))?;
            let program = program.to_string_lossy();
            ServerSpec::new("trunkline", &[&program, "up", "--listen", "127.0.0.1:{port}", "--http", "off"])
        }
    };
    let halt = Halt::new(interrupted, args.timeout);
    let mut server = Server::start(&spec, &halt)?;
    let attacks = if args.attacks.is_empty() { Attack::value_variants() } else { &args.attacks };
    let mut rows = Vec::new();
    for attack in attacks {
        let row = measure(*attack, args, &server, &halt);
        rows.push(row.map_err(|error| server.explain(error))?);
    }
    let report = Report {
        server: spec.name.clone(),
        version: server.version().to_owned(),
        in_flight: args.in_flight,
        runs: args.runs,
        attacks: rows,
    };
    let text = if args.json { json(&report) } else { table(&report) };
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").map_err(|source| BenchError::Print { source })
}

fn measure(attack: Attack, args: &HostileArgs, server: &Server, halt: &Halt) -> Result<Row, BenchError> {
    let (endpoint, processes) = (server.endpoint(), server.processes());
    let workload = Workload {
        scenario: Scenario::Request,
        subject: format!("{}.ask", args.token),
        payload_bytes: args.payload,
        publishers: 0,
        subscribers: 1,
        clients: 1,
        in_flight: usize::from(args.in_flight),
        amount: Amount::For(args.duration),
        warm_up: SETTLE,
        window: WindowLimit { messages: u64::MAX, bytes: u64::MAX },
    };
    let round = || request::run(&workload, &endpoint, processes, halt);
    let (mut calm, mut hostile, mut done) = (Vec::new(), Vec::new(), 0);
    for _ in 0..args.runs {
        calm.push(round()?);
        let attacker = Attacker::start(attack, &endpoint, &args.token)?;
        hostile.push(round()?);
        done += attacker.stop()?;
    }
    let rss = |flow: &Flow| flow.server.map_or(0, |usage| usage.rss_bytes);
    let rss_bytes_max = calm.iter().chain(&hostile).map(rss).max().unwrap_or_default();
    let micros = |q: f64| {
        move |flow: &Flow| flow.latency.as_ref().map_or(f64::NAN, |l| l.value_at_quantile(q) as f64 / 1e3)
    };
    let pair = |value: &dyn Fn(&Flow) -> f64| Pair::of(&calm, &hostile, value).ok_or(BenchError::Closed);
    Ok(Row {
        attack,
        done,
        p50_us: pair(&micros(0.5))?,
        p99_us: pair(&micros(0.99))?,
        per_second: pair(&Flow::rate)?,
        rss_bytes_max,
    })
}

fn spawn_error(name: &str, source: std::io::Error) -> BenchError {
    BenchError::Spawn { name: name.to_owned(), source }
}

/// The hostile client's process. It ends when this is dropped.
struct Attacker {
    child: Child,
    said: Option<BufReader<ChildStdout>>,
}

impl Attacker {
    fn start(attack: Attack, endpoint: &Endpoint, token: &str) -> Result<Self, BenchError> {
        let failed = |source| spawn_error("the hostile client", source);
        let program = std::env::current_exe().map_err(failed)?;
        let child = Command::new("nice")
            .args(["-n", "19"])
            .arg(program)
            .args(["bench", "hostile", &attack.name(), "--attack-at", &endpoint.address(), "--token", token])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut attacker = Self { child, said: None };
        // Its first line: what is measured from here on is measured with it.
        let said =
            attacker.child.stdout.take().ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
        let mut said = BufReader::new(said);
        said.read_line(&mut String::new()).map_err(failed)?;
        attacker.said = Some(said);
        Ok(attacker)
    }

    /// Ends it, and returns what it has done.
    fn stop(mut self) -> Result<u64, BenchError> {
        drop(self.child.stdin.take());
        let mut last = String::new();
        let read = self.said.as_mut().map(|said| said.read_to_string(&mut last)).transpose();
        read.map_err(|source| spawn_error("the hostile client", source))?;
        // A line for each time that it had to begin anew, and the number.
        let number = last.lines().last().and_then(|number| number.parse().ok());
        Ok(number.unwrap_or_default())
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the hostile client's process does.
fn attack(address: &str, args: &HostileArgs) -> Result<(), BenchError> {
    let failed = |source| BenchError::Connect { address: address.to_owned(), source };
    let found: Option<SocketAddr> = address.to_socket_addrs().map_err(failed)?.next();
    let (Some(address), Some(attack)) = (found, args.attacks.first()) else {
        return Err(failed(std::io::ErrorKind::AddrNotAvailable.into()));
    };
    let over = AtomicBool::new(false);
    let begun = || {
        let _ = std::io::stdout().write_all(b"begun\n");
        let _ = std::io::stdout().flush();
    };
    let scene = Scene { address, token: &args.token, over: &over, done: AtomicU64::new(0), begun: &begun };
    thread::scope(|scope| {
        // Ends with the process that has started this one, at the latest.
        scope.spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            over.store(true, Ordering::Relaxed);
        });
        attack.run(&scene);
    });
    writeln!(std::io::stdout(), "{}", scene.done.into_inner()).map_err(|source| BenchError::Print { source })
}

fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).expect("numbers and names are JSON")
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "hostile client",
        "did",
        "p50 µs",
        "with it",
        "p99 µs",
        "with it",
        "ratio",
        "req/s",
        "with it",
        "rss MiB",
    ]);
    for row in &report.attacks {
        let one = |value: f64| format!("{value:.0}");
        table.add_row([
            row.attack.name(),
            row.done.to_string(),
            one(row.p50_us.calm.median),
            one(row.p50_us.hostile.median),
            one(row.p99_us.calm.median),
            one(row.p99_us.hostile.median),
            row.p99_us.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}×")),
            one(row.per_second.calm.median),
            one(row.per_second.hostile.median),
            one(row.rss_bytes_max as f64 / f64::from(1 << 20)),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let Report { server, version, in_flight, runs, .. } = report;
    format!(
        "{}\n\n{server} {version}: round trips of a well-behaved client, {in_flight} in flight, medians of {runs} runs",
        table.trim_fmt()
    )
}
