//! `trunkline status`: is the bus there, and is it well?
//!
//! A Trunkline server is asked over HTTP, because only there it tells about its backend; any other NATS server is
//! connected to, and the round trip of a PING is the answer.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;
use serde_json::{Map, Value, json};
use trunkline::backend::nats::{NatsBackend, NatsConnectError, NatsOptions};
use trunkline::backend::{Backend as _, PublishError};
use trunkline::config::{Backend, Config, NatsUrl};
use url::Url;

use crate::duration;
use crate::failure::{Explain, Failure};
use crate::http::{self, HttpError};
use crate::output;
use crate::settings::{self, GlobalArgs};

/// What of a server's `/varz` is worth a line, where it is there.
const FACTS: [(&str, &str); 19] = [
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
    ("refused_connections", "connections refused"),
    ("refused_subscriptions", "subscriptions refused"),
    ("mem", "memory, bytes"),
    ("memory_used", "of it in buffers"),
    ("memory_limit", "most in buffers"),
    ("memory_exceeded", "short of memory, times"),
];

/// Tell whether a running bus is ready
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trunkline status
  trunkline status --http http://127.0.0.1:8222 --json
  trunkline status --url nats://demo.nats.io

Exit code 1 when the bus is not ready, so that scripts can wait for it.")]
pub(crate) struct StatusArgs {
    /// Connect to this NATS server instead of asking over HTTP
    #[arg(long, value_name = "URL", value_parser = NatsUrl::parse, conflicts_with = "http")]
    url: Option<NatsUrl>,

    /// Where the server answers HTTP [default: the configured server.http]
    #[arg(long, value_name = "URL")]
    http: Option<Url>,

    /// Longest wait for an answer
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "5s")]
    timeout: Duration,

    /// One JSON document: ready, status, reason, server
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
}

impl Explain for StatusError {
    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NotReady { .. } => Some("see the log of `trunkline up`".into()),
            Self::Http(HttpError::NotHttp { .. }) => {
                Some("--http takes the HTTP address; for the NATS address use --url".into())
            }
            Self::Connect { source, .. } if !source.is_retryable() => Some(source.hint().into()),
            _ => Some("start a bus with `trunkline up`, or name another with --url or --http".into()),
        }
    }
}

/// How the bus is.
#[derive(Debug, Serialize)]
struct Report {
    ready: bool,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The address that was asked.
    asked: String,
    #[serde(rename = "roundTripMicros")]
    round_trip_micros: u64,
    server: Map<String, Value>,
}

/// Asks, prints, and fails when the bus is not ready.
pub(crate) async fn run(global: &GlobalArgs, args: &StatusArgs) -> Result<(), Failure> {
    let report = match target(global, args)? {
        Target::Http(url) => over_http(&url, args.timeout).await?,
        Target::Nats { url, options } => over_nats(&url, *options, args.timeout).await?,
    };
    match args.json {
        true => output::json_document(&report)?,
        false => output::line(&table(&report).trim_fmt())?,
    }
    match report.ready {
        true => Ok(()),
        false => Err(StatusError::NotReady { status: report.status, reason: report.reason }.into()),
    }
}

enum Target {
    Http(Url),
    Nats {
        url: NatsUrl,
        /// With what the configuration says beside the address, when it says it of this one.
        options: Box<NatsOptions>,
    },
}

fn target(global: &GlobalArgs, args: &StatusArgs) -> Result<Target, Failure> {
    let nats = |url: NatsUrl| {
        let options = Box::new(NatsOptions::new(url.servers().iter().map(ToString::to_string)));
        Target::Nats { url, options }
    };
    if let Some(url) = &args.url {
        return Ok(nats(url.clone()));
    }
    if let Some(url) = &args.http {
        return Ok(Target::Http(url.clone()));
    }
    let config = settings::load(global, [])?.config;
    if config.messaging.backend == Backend::Nats {
        let options = Box::new(NatsOptions::from(&config.messaging));
        return Ok(Target::Nats { url: config.messaging.nats_url, options });
    }
    Ok(match http_of(&config) {
        Some(url) => Target::Http(url),
        None => nats(crate::client::url_of(&config)?),
    })
}

/// Where the configured server answers HTTP, unless that is off.
fn http_of(config: &Config) -> Option<Url> {
    let address = crate::client::reachable(config.server.http?)?;
    let scheme = if config.server.tls.http { "https" } else { "http" };
    Url::parse(&format!("{scheme}://{address}")).ok()
}

async fn over_http(url: &Url, limit: Duration) -> Result<Report, StatusError> {
    let started = Instant::now();
    let mut health = http::get(url, "/readyz", limit).await?;
    if health.status == 404 {
        // A nats-server, which knows only this path and no backends.
        health = http::get(url, "/healthz", limit).await?;
    }
    let round_trip_micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let said: Value = serde_json::from_slice(&health.body).unwrap_or_default();
    let text = |pointer: &str| said.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let ready = health.status == 200;
    let status = text("/status").unwrap_or_else(|| if ready { "ok" } else { "not ready" }.to_owned());
    let facts = http::get(url, "/varz", limit).await?;
    let server = match serde_json::from_slice(&facts.body) {
        Ok(Value::Object(server)) if facts.status == 200 => server,
        _ => Map::new(),
    };
    Ok(Report {
        ready,
        status,
        reason: text("/checks/backend/reason").or_else(|| text("/error")),
        asked: url.as_str().trim_end_matches('/').to_owned(),
        round_trip_micros,
        server,
    })
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
    Ok(Report {
        ready,
        status: status.to_owned(),
        reason: None,
        asked: url.to_string(),
        round_trip_micros,
        server,
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
    table
}
