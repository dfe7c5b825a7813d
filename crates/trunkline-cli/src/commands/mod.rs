//! The commands, one file each, and the runtime they run on.

pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod consume;
pub(crate) mod consumer;
pub(crate) mod dashboard;
pub(crate) mod dlq;
pub(crate) mod doctor;
pub(crate) mod export;
pub(crate) mod init;
pub(crate) mod passwd;
pub(crate) mod publish;
pub(crate) mod replay;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod status;
pub(crate) mod stream;
pub(crate) mod subscribe;
pub(crate) mod tail;
pub(crate) mod trace;
pub(crate) mod up;
pub(crate) mod wait;

use std::borrow::Cow;
use std::future::Future;

use tokio::runtime::Builder;

use crate::args::{Cli, Command};
use crate::bench::{self, BenchError};
use crate::failure::{Explain, Failure, Kind};
use crate::logging;
use crate::settings::{self, GlobalArgs};
use crate::traces;

/// Threads of a command that is a client: one that works, one that waits for a slow stdout.
const CLIENT_THREADS: usize = 2;

/// The operating system gives no threads or no event queue.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the runtime")]
struct RuntimeError(#[source] std::io::Error);

impl Explain for RuntimeError {}

impl Explain for BenchError {
    fn kind(&self) -> Kind {
        match self.exit_code() {
            2 => Kind::Usage,
            _ => Kind::Failed,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        BenchError::hint(self).map(Cow::from)
    }
}

/// Runs the command to its end.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    let default_level = match command {
        // The client library tells at `info` what the bus says itself.
        Command::Up(_) => "info,async_nats=error",
        _ => "warn,async_nats=error",
    };
    logging::start(global.log_level.as_deref(), default_level, global.log_format)?;
    let traces = traces::start(&command);
    let result = carry_out(&global, command);
    traces.finish();
    result
}

/// Carries the command out.
fn carry_out(global: &GlobalArgs, command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(args) => {
            let loaded = settings::load(global, args.overrides())?;
            let source = settings::auth_source(global, args.overrides());
            let threads = worker_threads(loaded.config.runtime.resources.cpus);
            block_on(threads, up::run(loaded, args, source, threads))
        }
        Command::Pub(args) => block_on(CLIENT_THREADS, publish::run(global, &args)),
        Command::Sub(args) => block_on(CLIENT_THREADS, subscribe::run(global, &args)),
        Command::Request(args) => block_on(CLIENT_THREADS, request::run(global, &args)),
        Command::Reply(args) => block_on(CLIENT_THREADS, reply::run(global, args)),
        Command::Stream(args) => block_on(CLIENT_THREADS, stream::run(global, args)),
        Command::Consumer(args) => block_on(CLIENT_THREADS, consumer::run(global, args)),
        Command::Consume(args) => block_on(CLIENT_THREADS, consume::run(global, args)),
        Command::Dlq(args) => block_on(CLIENT_THREADS, dlq::run(global, args)),
        Command::Replay(args) => block_on(CLIENT_THREADS, replay::run(global, args)),
        Command::Trace(args) => block_on(CLIENT_THREADS, trace::run(global, &args)),
        Command::Tail(args) => block_on(CLIENT_THREADS, tail::run(global, &args)),
        Command::Status(args) => block_on(CLIENT_THREADS, status::run(global, &args)),
        Command::Wait(args) => block_on(CLIENT_THREADS, wait::run(global, &args)),
        Command::Dashboard(args) => block_on(CLIENT_THREADS, dashboard::run(global, &args)),
        Command::Init(args) => block_on(CLIENT_THREADS, init::run(global, args)),
        Command::Doctor(args) => block_on(CLIENT_THREADS, doctor::run(global, &args)),
        Command::Config(args) => config::run(global, &args),
        Command::Export(args) => export::run(global, &args),
        Command::Passwd(args) => passwd::run(&args),
        Command::Bench(args) => block_on(0, async { Ok(bench::run(args).await?) }),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Worker threads for so many processors, which may be a fraction; all processors unless set.
fn worker_threads(cpus: Option<f64>) -> usize {
    match cpus {
        // At most 1024 (`runtime.resources.cpus`), so the cast loses nothing.
        Some(cpus) => (cpus.ceil() as usize).max(1),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// Runs the command on so many worker threads, none being this thread alone.
fn block_on(threads: usize, command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let mut builder = match threads {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if threads > 0 {
        builder.worker_threads(threads);
    }
    let runtime = builder.enable_all().build().map_err(RuntimeError)?;
    let result = runtime.block_on(command);
    // A thread that still waits for a line on stdin cannot be told to stop; it must not hold up the exit.
    runtime.shutdown_background();
    result
}
