//! `trunkline status`: is the bus there, and is it well?
//!
//! A Trunkline server is asked over HTTP, because only there it tells about its backend and about what runs beside it; any
//! other NATS server is connected to, and the round trip of a PING is the answer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use jiff::{Timestamp, Unit};
use serde::Serialize;
use serde_json::{Map, Value, json};
use trunkline::backend::nats::{NatsBackend, NatsConnectError, NatsOptions};
use trunkline::backend::{Backend as _, PublishError};
use trunkline::config::{Backend, Config, NatsUrl};
use trunkline::health::{BACKEND, HealthCheck, HealthStatus, MEMORY, SystemHealth};
use trunkline_server::admin::{ComponentJson, ComponentState, ResourcesJson};
use url::Url;

use crate::admin::{self, AdminError, Credentials, Named};
use crate::duration;
use crate::failure::{Explain, Failure};
use crate::http::{self, HttpError};
use crate::output;
use crate::settings::{self, GlobalArgs};
use crate::trust::UNTRUSTED;

/// What of a server's `/varz` is worth a line, where it is there.
const FACTS: [(&str, &str); 20] = [
    ("server_id", "server id"),
    ("server_name", "name"),
    ("version", "version"),
    ("backend", "backend"),
    ("uptime", "uptime"),
    ("connections", "connections"),
    ("subscriptions", "subscriptions"),
    ("in_msgs", "messages in"),
    ("out_msgs", "messages out"),
    ("slow_consumers", "slow consumers"),
    ("denied_msgs", "messages denied"),
    ("denied_subscriptions", "subscriptions denied"),
    ("auth_failures", "failed log-ins"),
    ("refused_requests", "requests refused"),
    ("refused_connections", "connections refused"),
    ("refused_subscriptions", "subscriptions refused"),
    ("mem", "memory, bytes"),
    ("memory_used", "of it in buffers"),
    ("memory_limit", "most in buffers"),
    ("memory_exceeded", "short of memory, times"),
];

/// Longest wait for an answer, and for everything to be ready.
const PATIENCE: Duration = Duration::from_secs(5);
const WAIT: Duration = Duration::from_secs(60);
/// Pause between two questions while waiting.
const PAUSE: Duration = Duration::from_millis(200);

/// Tell whether a running bus is ready, and each of its components
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline status
  trunkline status --http http://127.0.0.1:8222 --json
  trunkline status --wait --timeout 2m
  trunkline status --url nats://demo.nats.io

Exit code 1 when the bus or a component is not ready. With --wait that is told when the time is over, or as soon as a
component has failed for good.")]
pub(crate) struct StatusArgs {
    /// Connect to this NATS server instead of asking over HTTP
    #[arg(long, value_name = "URL", value_parser = NatsUrl::parse, conflicts_with = "http")]
    url: Option<NatsUrl>,

    /// Where the server answers HTTP or HTTPS [default: the configured server.http]
    #[arg(long, value_name = "URL")]
    http: Option<Url>,

    /// Wait until the bus and all components are ready, also for a bus that is not there yet
    #[arg(long)]
    wait: bool,

    /// Longest wait for an answer; with --wait, for everything to be ready [default: 5s, with --wait 1m]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,

    #[command(flatten)]
    credentials: Credentials,

    /// One JSON document: ready, status, reason, component, version, uptime, checks, server, resources, components
    #[arg(long)]
    json: bool,
}

/// Why there is no good news.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StatusError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("cannot connect to {url}")]
    Connect { url: String, source: NatsConnectError },
    #[error("{url} stopped to answer")]
    Flush { url: String, source: PublishError },
    #[error("the bus is not ready: {status}{}", .reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default())]
    NotReady { status: String, reason: Option<String> },
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("not ready: {}", .components.join("; "))]
    Components { components: Vec<String> },
    #[error("not everything is ready after {waited:?} (--timeout)")]
    Waited { waited: Duration, source: Box<StatusError> },
}

impl Explain for StatusError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NotReady { .. } | Self::Components { .. } => Some("see the log of `trunkline up`".into()),
            Self::Waited { source, .. } => source.hint(),
            Self::Admin(error) => error.hint(),
            Self::Http(HttpError::NotHttp { .. }) => {
                Some("--http takes the HTTP address, with https:// where server.tls.http is on; for the NATS address use --url".into())
            }
            Self::Http(HttpError::Untrusted { .. } | HttpError::Trust(_)) => Some(UNTRUSTED.into()),
            Self::Connect { source, .. } if !source.is_retryable() => Some(source.hint().into()),
            _ => Some("start a bus with `trunkline up`, or name another with --url or --http".into()),
        }
    }
}

/// How the bus is.
#[derive(Debug, Serialize)]
struct Report {
    /// The bus and all components.
    ready: bool,
    #[serde(skip)]
    bus_ready: bool,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Who answered, and as it says of itself: its version, seconds since its start, and what it looked at.
    component: String,
    version: String,
    uptime: Option<u64>,
    checks: BTreeMap<String, HealthCheck>,
    /// The address that was asked.
    asked: String,
    #[serde(rename = "roundTripMicros")]
    round_trip_micros: u64,
    server: Map<String, Value>,
    /// What the process of the bus may use; of a Trunkline server whose admin token is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<ResourcesJson>,
    components: Vec<ComponentJson>,
}

impl Report {
    /// What is not as it should be.
    fn check(&self) -> Result<(), StatusError> {
        if !self.bus_ready {
            return Err(StatusError::NotReady { status: self.status.clone(), reason: self.reason.clone() });
        }
        let not_well = self.components.iter().filter(|component| !component.state.is_well());
        let components: Vec<String> =
            not_well.map(|component| format!("{} is {}", component.name, shown(component))).collect();
        match components.is_empty() {
            true => Ok(()),
            false => Err(StatusError::Components { components }),
        }
    }

    /// Whether waiting is of no use.
    fn is_hopeless(&self) -> bool {
        self.components.iter().any(|component| component.state == ComponentState::Failed)
    }
}

/// Asks, prints, and fails when something is not ready.
pub(crate) async fn run(global: &GlobalArgs, args: &StatusArgs) -> Result<(), Failure> {
    let (target, config) = target(global, args)?;
    let report = match args.wait {
        true => wait(&target, config.as_ref(), args).await?,
        false => ask(&target, config.as_ref(), args, args.timeout.unwrap_or(PATIENCE)).await?,
    };
    match args.json {
        true => output::json_document(&report)?,
        false => output::line(&table(&report).trim_fmt())?,
    }
    Ok(report.check()?)
}

/// Asks until everything is ready, something has failed for good, or the time is over.
async fn wait(target: &Target, config: Option<&Config>, args: &StatusArgs) -> Result<Report, StatusError> {
    let waited = args.timeout.unwrap_or(WAIT);
    let deadline = Instant::now() + waited;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = ask(target, config, args, left.clamp(PAUSE, PATIENCE)).await;
        let missing = match answer {
            Ok(report) => match report.check() {
                Ok(()) => return Ok(report),
                Err(_) if report.is_hopeless() => return Ok(report),
                Err(missing) => missing,
            },
            Err(
                error @ (StatusError::Admin(AdminError::Refused { .. })
                | StatusError::Http(HttpError::Trust(_) | HttpError::Url { .. })),
            ) => return Err(error),
            Err(missing) => missing,
        };
        if Instant::now() + PAUSE >= deadline {
            return Err(StatusError::Waited { waited, source: Box::new(missing) });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask(
    target: &Target,
    config: Option<&Config>,
    args: &StatusArgs,
    limit: Duration,
) -> Result<Report, StatusError> {
    let url = match target {
        Target::Nats { url, options } => return over_nats(url, (**options).clone(), limit).await,
        Target::Http(url) => url,
    };
    // Looked for each time: a bus that is not there yet has left neither token nor certificate.
    let server = Named::new(url.clone(), &args.credentials, config);
    let mut report = over_http(&server, limit).await?;
    if let Some(known) = admin::components(&server, limit).await? {
        report.ready = report.bus_ready && known.components.iter().all(|it| it.state.is_well());
        (report.resources, report.components) = (Some(known.resources), known.components);
    }
    Ok(report)
}

enum Target {
    Http(Url),
    Nats {
        url: NatsUrl,
        /// With what the configuration says beside the address, when it says it of this one.
        options: Box<NatsOptions>,
    },
}

/// Whom to ask, and the configuration that says so.
fn target(global: &GlobalArgs, args: &StatusArgs) -> Result<(Target, Option<Config>), Failure> {
    let nats = |url: NatsUrl| {
        let options = Box::new(NatsOptions::new(url.servers().iter().map(ToString::to_string)));
        Target::Nats { url, options }
    };
    if let Some(url) = &args.url {
        return Ok((nats(url.clone()), None));
    }
    if let Some(url) = &args.http {
        return Ok((Target::Http(url.clone()), None));
    }
    let config = settings::load(global, [])?.config;
    let http = http_of(&config);
    // With NATS servers behind it, `up` answers only where it has components to tell about.
    if config.messaging.backend == Backend::Nats && (config.components.is_empty() || http.is_none()) {
        let options = Box::new(NatsOptions::from(&config.messaging));
        return Ok((Target::Nats { url: config.messaging.nats_url.clone(), options }, Some(config)));
    }
    let target = match http {
        Some(url) => Target::Http(url),
        None => nats(crate::client::url_of(&config)?),
    };
    Ok((target, Some(config)))
}

/// Where the configured server answers HTTP, unless that is off.
fn http_of(config: &Config) -> Option<Url> {
    let address = crate::client::reachable(config.server.http?)?;
    let scheme = if config.server.tls.http { "https" } else { "http" };
    Url::parse(&format!("{scheme}://{address}")).ok()
}

async fn over_http(server: &Named, limit: Duration) -> Result<Report, StatusError> {
    let (url, trust) = (&server.http, &server.trust);
    let started = Instant::now();
    let mut health = http::get(url, "/readyz", trust, limit).await?;
    if health.status == 404 {
        // A nats-server, which knows only this path and no backends.
        health = http::get(url, "/healthz", trust, limit).await?;
    }
    let round_trip_micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let ready = health.status == 200;
    let error = serde_json::from_slice(&health.body).ok();
    let error = error.and_then(|said: Value| said.get("error")?.as_str().map(str::to_owned));
    let said: SystemHealth = serde_json::from_slice(&health.body).unwrap_or_default();
    let status = match said.status.as_str() {
        "" => if ready { "ok" } else { "not ready" }.to_owned(),
        status => status.to_owned(),
    };
    // A component that is not ready is told as what it is, further down.
    let bus_ready = ready || (!said.checks.is_empty() && bus_is_well(&said));
    let facts = http::get(url, "/varz", trust, limit).await?;
    let server = match serde_json::from_slice(&facts.body) {
        Ok(Value::Object(server)) if facts.status == 200 => server,
        _ => Map::new(),
    };
    Ok(Report {
        ready,
        bus_ready,
        status,
        reason: said.reason.or(error),
        component: said.component,
        version: said.version,
        uptime: said.uptime,
        checks: said.checks,
        asked: url.as_str().trim_end_matches('/').to_owned(),
        round_trip_micros,
        server,
        resources: None,
        components: Vec::new(),
    })
}

/// Whether all that is not well is components.
fn bus_is_well(health: &SystemHealth) -> bool {
    let ok = |(name, check): (&String, &HealthCheck)| {
        name.starts_with("component.") || name == MEMORY || check.status() == HealthStatus::Ok
    };
    health.checks.iter().all(ok)
}

async fn over_nats(url: &NatsUrl, options: NatsOptions, limit: Duration) -> Result<Report, StatusError> {
    let options = NatsOptions { connect_timeout: limit, publish_timeout: limit, ..options };
    let backend = NatsBackend::connect(options)
        .await
        .map_err(|source| StatusError::Connect { url: url.to_string(), source })?;
    let started = Instant::now();
    backend.flush().await.map_err(|source| StatusError::Flush { url: url.to_string(), source })?;
    let round_trip_micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let info = backend.server_info();
    let facts = json!({
        "server_id": info.server_id,
        "server_name": info.server_name,
        "version": info.version,
        "max_payload": info.max_payload,
        "headers": info.headers,
        "jetstream": info.jetstream,
        "auth_required": info.auth_required,
        "tls_required": info.tls_required,
    });
    let server = match facts {
        Value::Object(server) => server,
        _ => Map::new(),
    };
    let (status, ready) = match info.lame_duck {
        true => ("shutting down", false),
        false => ("ok", true),
    };
    let connection = HealthCheck::of_backend(&backend.status().borrow().clone());
    Ok(Report {
        ready,
        bus_ready: ready,
        status: status.to_owned(),
        reason: None,
        component: "nats-server".to_owned(),
        version: info.version.clone(),
        // It tells that to nobody who is only a client.
        uptime: None,
        checks: BTreeMap::from([(BACKEND.to_owned(), connection)]),
        asked: url.to_string(),
        round_trip_micros,
        server,
        resources: None,
        components: Vec::new(),
    })
}

fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.add_row(["status", &report.status]);
    if let Some(reason) = &report.reason {
        table.add_row(["reason", reason]);
    }
    table.add_row(["asked", &report.asked]);
    table.add_row(["round trip", &duration::show(Duration::from_micros(report.round_trip_micros))]);
    for (key, label) in FACTS {
        let value = match report.server.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => continue,
            Some(other) => other.to_string(),
        };
        table.add_row([label, &value]);
    }
    if let Some(resources) = &report.resources {
        let cpus = resources.cpus.map_or("all processors".to_owned(), |cpus| format!("cpus {cpus}"));
        table.add_row(["worker threads", &format!("{} ({cpus})", resources.worker_threads)]);
        let memory = resources.memory.map_or("no bound".to_owned(), |bytes| format!("{bytes} bytes"));
        table.add_row(["memory", &memory]);
    }
    for component in &report.components {
        let pid = component.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
        let restarts = match component.restarts {
            0 => String::new(),
            restarts => format!(", restarts {restarts}"),
        };
        let text = format!("{}{pid}{restarts}, since {}", shown(component), component.since);
        table.add_row([&component.name, &text]);
    }
    table
}

/// The state of a component with what explains it.
fn shown(component: &ComponentJson) -> String {
    let reason = component.reason.as_deref();
    match component.state {
        ComponentState::Waiting => format!("waiting for {}", component.waiting_for.join(", ")),
        ComponentState::Restarting => {
            let at = component.restart_at.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
            let left =
                at.map_or(0.0, |at| (at - Timestamp::now()).total(Unit::Second).unwrap_or_default().max(0.0));
            format!("restarting in {left:.1} s after {}", reason.unwrap_or("its end"))
        }
        state => match reason {
            Some(reason) => format!("{} ({reason})", state.as_str()),
            None => state.as_str().to_owned(),
        },
    }
}
