//! `trunkline bench hostile`: what one hostile client does to the others. Well-behaved clients ask and answer beside it, and
//! their round trips with it are held against those without it, in turns and on the same server.
//!
//! The hostile client is a process of its own that runs where nobody else wants to. Some CPU it takes all the same, so there is a
//! third kind of run, beside a process that takes as much and leaves the server alone: what is more than that, the server did.

mod attack;
mod hello;
mod helper;
mod target;

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::Duration;

use clap::ValueEnum as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::body::Body;
use super::compare::ServerSpec;
use super::crowd::Crowd;
use super::error::BenchError;
use super::halt::Halt;
use super::measure::Flow;
use super::plan::{Amount, Scenario, WindowLimit, Workload};
use super::request;
use super::server::Server;
use super::stats::{Summary, ratio};
use super::units::{parse_duration, parse_size};
use attack::{Attack, Scene};
use helper::Helper;
use target::Target;

const HELP: &str = "Examples:
  trunkline bench hostile                              all of them, on a server of this program that is started for it
  trunkline bench hostile churn flood --server 'nats=nats-server' --json
  trunkline bench hostile --server 'small=trunkline --config small.yaml up --listen 127.0.0.1:{port}'";

/// Before a measurement: the hostile client has begun, the server of the one before has recovered.
const SETTLE: Duration = Duration::from_millis(500);

/// Measure what one hostile client does to the others.
///
/// Round trips of a well-behaved requester and responder, without and with the hostile client, in turns, and beside a process
/// that takes as much CPU as the hostile client and leaves the server alone ("busy"). The ratios are those of the 99th
/// percentiles, each the median of all runs. The hostile client takes the CPU that is left: on a machine with few processors
/// the difference between both ratios is what the server itself did.
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

    /// Burn so many percent of a processor until stdin ends
    #[arg(long, hide = true)]
    burn: Option<u32>,

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
    /// The 99th percentile beside a process that takes as much CPU as the hostile client, and what it is with the latter
    /// against that.
    p99_us_busy: Summary,
    p99_ratio_to_busy: Option<f64>,
    /// What the hostile client took of one processor, in percent; the most of all runs.
    cpu_percent: u32,
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
    if let Some(percent) = args.burn {
        return burn(percent);
    }
    let halt = Halt::new(interrupted, args.timeout);
    let attacks = if args.attacks.is_empty() { Attack::value_variants() } else { &args.attacks };
    let (guarded, plain): (Vec<Attack>, Vec<Attack>) =
        attacks.iter().partition(|attack| args.server.is_none() && attack.wants_guards());
    let (mut rows, mut name, mut version) = (Vec::new(), String::new(), String::new());
    for (attacks, is_guarded) in [(plain, false), (guarded, true)] {
        if attacks.is_empty() {
            continue;
        }
        let target = match &args.server {
            Some(given) => Target::given(ServerSpec::parse(given)?),
            None if is_guarded => Target::guarded()?,
            None => Target::plain()?,
        };
        let mut server = Server::start(&target.spec, &halt)?;
        for attack in attacks {
            let row = measure(attack, args, &server, &halt);
            rows.push(row.map_err(|error| server.explain(error))?);
        }
        name.clone_from(&target.spec.name);
        server.version().clone_into(&mut version);
    }
    let report = Report { server: name, version, in_flight: args.in_flight, runs: args.runs, attacks: rows };
    let text = if args.json { json(&report) } else { table(&report) };
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").map_err(|source| BenchError::Print { source })
}

fn measure(attack: Attack, args: &HostileArgs, server: &Server, halt: &Halt) -> Result<Row, BenchError> {
    let (endpoint, processes) = (server.endpoint(), server.processes());
    let workload = Workload {
        scenario: Scenario::Request,
        subject: format!("{}.ask", args.token),
        body: Body::Raw,
        is_recorded: false,
        payload_bytes: args.payload,
        publishers: 0,
        subscribers: 1,
        clients: 1,
        crowd: Crowd::default(),
        in_flight: usize::from(args.in_flight),
        amount: Amount::For(args.duration),
        warm_up: SETTLE,
        window: WindowLimit { messages: u64::MAX, bytes: u64::MAX },
    };
    let round = || request::run(&workload, &endpoint, processes, halt);
    let (mut calm, mut hostile, mut busy) = (Vec::new(), Vec::new(), Vec::new());
    let (mut done, mut cpu_percent) = (0, 0);
    for _ in 0..args.runs {
        calm.push(round()?);
        let (name, address) = (attack.name(), endpoint.address());
        let attacker = Helper::start(&[&name, "--attack-at", &address, "--token", &args.token])?;
        hostile.push(round()?);
        let did = attacker.stop()?;
        done += did.times;
        cpu_percent = cpu_percent.max(did.cpu_percent);
        let burner = Helper::start(&["--burn", &did.cpu_percent.to_string()])?;
        busy.push(round()?);
        burner.stop()?;
    }
    let rss = |flow: &Flow| flow.server.map_or(0, |usage| usage.rss_bytes);
    let rss_bytes_max = calm.iter().chain(&hostile).map(rss).max().unwrap_or_default();
    let micros = |q: f64| {
        move |flow: &Flow| flow.latency.as_ref().map_or(f64::NAN, |l| l.value_at_quantile(q) as f64 / 1e3)
    };
    let pair = |value: &dyn Fn(&Flow) -> f64| Pair::of(&calm, &hostile, value).ok_or(BenchError::Closed);
    let p99_us = pair(&micros(0.99))?;
    let p99_us_busy = Summary::of(busy.iter().map(micros(0.99))).ok_or(BenchError::Closed)?;
    Ok(Row {
        attack,
        done,
        p50_us: pair(&micros(0.5))?,
        p99_ratio_to_busy: ratio(p99_us.hostile.median, p99_us_busy.median),
        p99_us,
        p99_us_busy,
        cpu_percent,
        per_second: pair(&Flow::rate)?,
        rss_bytes_max,
    })
}

fn spawn_error(name: &str, source: std::io::Error) -> BenchError {
    BenchError::Spawn { name: name.to_owned(), source }
}

/// What the hostile client's process does.
fn attack(address: &str, args: &HostileArgs) -> Result<(), BenchError> {
    let failed = |source| BenchError::Connect { address: address.to_owned(), source };
    let found: Option<SocketAddr> = address.to_socket_addrs().map_err(failed)?.next();
    let (Some(address), Some(attack)) = (found, args.attacks.first()) else {
        return Err(failed(std::io::ErrorKind::AddrNotAvailable.into()));
    };
    let over = AtomicBool::new(false);
    let begun = helper::say_begun;
    let scene = Scene { address, token: &args.token, over: &over, done: AtomicU64::new(0), begun: &begun };
    thread::scope(|scope| {
        scope.spawn(|| helper::watch_stdin(&over));
        attack.run(&scene);
    });
    helper::say_done(scene.done.into_inner())
}

/// What the process does that takes as much CPU as the hostile client.
fn burn(percent: u32) -> Result<(), BenchError> {
    let over = AtomicBool::new(false);
    helper::say_begun();
    thread::scope(|scope| {
        scope.spawn(|| helper::watch_stdin(&over));
        helper::burn(percent, &over);
    });
    helper::say_done(0)
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
        "busy",
        "ratio",
        "its CPU",
        "req/s",
        "with it",
        "rss MiB",
    ]);
    for row in &report.attacks {
        let one = |value: f64| format!("{value:.0}");
        let times = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}×"));
        table.add_row([
            row.attack.name(),
            row.done.to_string(),
            one(row.p50_us.calm.median),
            one(row.p50_us.hostile.median),
            one(row.p99_us.calm.median),
            one(row.p99_us.hostile.median),
            times(row.p99_us.ratio),
            one(row.p99_us_busy.median),
            times(row.p99_ratio_to_busy),
            format!("{} %", row.cpu_percent),
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
