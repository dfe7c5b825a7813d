//! `trunkline up`: the bus of this machine, from start to clean stop.

mod banner;
mod start;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trunkline::config::{Config, Limits, Loaded};
use trunkline_server::AuthSource;

use crate::admin::RuntimeFile;
use crate::client::ClientError;
use crate::demo;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output;
use crate::ports_file::{Addresses, PortsFile};
use crate::settings::Override;
use crate::supervisor::{self, Supervisor};

use start::Running;

/// How long a stop may take: what waits for clients is sent until then, and dropped after it.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// Start the bus, and the components of the configuration on it
///
/// Needs nothing: no file, no flag, no other server. With `components` in the configuration it starts them in the order of
/// what they depend on, starts again what crashes, shows their logs, and stops them before the bus.
/// Ctrl-C or SIGTERM stops it cleanly, a second one at once.
/// SIGHUP reads users, permissions and certificates again; SIGUSR2 asks clients to go elsewhere, and stops when they have.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline up                                      NATS clients on 127.0.0.1:4222, HTTP on 127.0.0.1:8222
  trunkline up --demo                               and a small agent platform on it, to play with
  trunkline up --listen 127.0.0.1:0 --http 127.0.0.1:0 --ports-file ports.json
  TRUNKLINE_URL=nats://bus.example:4222 trunkline up --demo")]
pub(crate) struct UpArgs {
    /// Address for NATS clients; port 0 takes a free one [default: server.listen, 127.0.0.1:4222]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,

    /// Address for health and monitoring, or `off` [default: server.http, 127.0.0.1:8222]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,

    /// What carries the messages: in_memory, redis or nats [default: messaging.backend, in_memory]
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,

    /// Write the URLs that were bound to this file once the bus is ready; it is removed at the end
    #[arg(long, value_name = "FILE")]
    ports_file: Option<PathBuf>,

    /// Run a small agent platform on the bus and print its conversations
    #[arg(long)]
    demo: bool,

    /// End after so many conversations of the demo
    #[arg(long, value_name = "N", requires = "demo", value_parser = clap::value_parser!(u64).range(1..))]
    demo_conversations: Option<u64>,
}

impl UpArgs {
    /// The keys that the flags set.
    pub(crate) fn overrides(&self) -> Vec<Override> {
        let flags = [
            ("server.listen", "--listen", &self.listen),
            ("server.http", "--http", &self.http),
            ("messaging.backend", "--backend", &self.backend),
        ];
        flags
            .into_iter()
            .filter_map(|(key, flag, value)| Some(Override { key, flag, value: value.clone()? }))
            .collect()
    }
}

/// Runs the bus until it is told to stop.
///
/// The bus comes first; components start when it is ready, and have ended when it stops.
pub(crate) async fn run(
    loaded: Loaded,
    args: UpArgs,
    source: AuthSource,
    worker_threads: usize,
) -> Result<(), Failure> {
    // What is missing is told before anything runs.
    supervisor::check(&loaded.config)?;
    let (status, components) = watch::channel(supervisor::first_status(&loaded.config, worker_threads));
    let interrupts = Interrupts::listen().map_err(ClientError::Signals)?;
    let mut hangups = Hangups::listen().map_err(ClientError::Signals)?;
    let mut lame_duck = signal(SignalKind::user_defined2()).map_err(ClientError::Signals)?;
    let running = tokio::select! {
        running = start::start(&loaded, source, components) => running?,
        () = interrupts.stop().cancelled() => return Ok(()),
    };
    let ports = match &args.ports_file {
        Some(path) => {
            let addresses = Addresses {
                nats: running.nats_addr(),
                http: running.http_url(),
                metrics: running.metrics_url(),
                websocket: running.websocket_url(),
            };
            Some(PortsFile::write(path, addresses, running.admin_token())?)
        }
        None => None,
    };
    let token_file = write_token(&running, &loaded.config);
    tell_service_manager(&[NotifyState::Ready]);
    output::note(&banner::text(&loaded, &running, args.demo));
    let mut supervisor = match loaded.config.components.is_empty() {
        true => None,
        false => {
            let (access, bus, hub) =
                (running.access().clone(), running.bus().clone(), running.hub().cloned());
            Some(Supervisor::new(&loaded.config, access, bus, hub, status)?)
        }
    };
    let ending = CancellationToken::new();
    let mut result = tokio::select! {
        result = work(&running, &args, &interrupts) => result,
        result = supervise(&mut supervisor, &ending, &interrupts) => result,
        () = hangups.reload(&running) => Ok(()),
        () = see_off(&mut lame_duck, &running, &loaded.config.server.limits) => Ok(()),
    };
    tell_service_manager(&[NotifyState::Stopping]);
    if let Some(mut supervisor) = supervisor {
        output::note("stopping components");
        ending.cancel();
        let stopped = supervisor.supervise(&ending, &interrupts).await;
        result = result.and_then(|()| Ok(stopped?));
        supervisor.finish().await;
    }
    // The file goes first: who reads it from now on shall not find a bus that refuses connections.
    drop(ports);
    drop(token_file);
    stop(running, &interrupts).await;
    result
}

/// Tells systemd, where it has started this process and waits to be told (`Type=notify`).
fn tell_service_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// Lets commands of this user find the admin API without being told. Where that cannot be, they are given `--token`.
fn write_token(running: &Running, config: &Config) -> Option<RuntimeFile> {
    // With the NATS servers clients find streams and messages there, and only what runs beside the bus here.
    let nats = running.nats_addr().map(|address| format!("nats://{address}")).unwrap_or_default();
    let (http, token) = (running.http_addr()?, running.admin_token()?);
    let tls = running.http_url().is_some_and(|url| url.starts_with("https:"));
    let certificate = config.server.tls.cert_file.as_deref().filter(|_| tls);
    match RuntimeFile::write(&nats, http, token, certificate) {
        Ok(file) => Some(file),
        Err(error) => {
            tracing::warn!(%error, "the admin token is not kept for other commands, give them --token");
            None
        }
    }
}

/// Looks after the components until none is left, or for ever where there are none.
async fn supervise(
    supervisor: &mut Option<Supervisor>,
    ending: &CancellationToken,
    interrupts: &Interrupts,
) -> Result<(), Failure> {
    match supervisor {
        Some(supervisor) => Ok(supervisor.supervise(ending, interrupts).await?),
        None => std::future::pending().await,
    }
}

async fn work(running: &Running, args: &UpArgs, interrupts: &Interrupts) -> Result<(), Failure> {
    if args.demo {
        let options = demo::DemoOptions { conversations: args.demo_conversations };
        return Ok(demo::run(running.bus(), options, interrupts.stop()).await?);
    }
    interrupts.stop().cancelled().await;
    Ok(())
}

/// SIGUSR2: clients are asked to go elsewhere. Returns when they have, or when the time for it is over.
async fn see_off(signals: &mut Signal, running: &Running, limits: &Limits) {
    if signals.recv().await.is_none() {
        return std::future::pending().await;
    }
    output::note("lame duck mode: clients are asked to go elsewhere");
    running.lame_duck(limits.lame_duck_grace_period, limits.lame_duck_duration).await;
}

/// SIGHUP: users, permissions and certificates are to be read again, or the terminal is gone.
struct Hangups {
    signals: Signal,
    at_terminal: bool,
}

impl Hangups {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { signals: signal(SignalKind::hangup())?, at_terminal: std::io::stderr().is_terminal() })
    }

    /// Reloads at every signal, until the terminal is gone that the bus was started at.
    async fn reload(&mut self, running: &Running) {
        while self.signals.recv().await.is_some() {
            // A terminal that has hung up is none any more.
            if self.at_terminal && !std::io::stderr().is_terminal() {
                return;
            }
            running.reload().await;
        }
    }
}

async fn stop(running: Running, interrupts: &Interrupts) {
    let started = Instant::now();
    output::note("stopping");
    tokio::select! {
        cut = running.stop(STOP_WITHIN) => match cut {
            0 => tracing::debug!(took = ?started.elapsed(), "stopped"),
            cut => tracing::warn!(connections = cut, waited = ?STOP_WITHIN, "connections were cut with messages left for them"),
        },
        () = interrupts.kill().cancelled() => tracing::warn!("stopped at once, as asked by a second signal"),
    }
}
