//! The HTTP side of the server: probes, metrics, and monitoring in nats-server's shape.
//!
//! Everything here but the admin API reads what the server counts anyway, when somebody asks, and changes nothing: no session
//! ever waits for it.

mod accountz;
mod accstatz;
mod alone;
mod api;
mod aside;
mod beside;
mod connz;
mod dashboard;
mod durations;
mod guests;
mod host;
mod metrics;
mod params;
mod serve;
mod subsz;
mod varz;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use serde::Serialize;
use trunkline::Telemetry;
use trunkline::health::SystemHealth;

use self::params::Params;
use crate::health::{Health, Speaker as _, is_ready};
use crate::process::CpuShare;
use crate::refusals::HttpRefusal;
use crate::shared::Shared;

pub(crate) use api::{Api, Members, Token, Views};
pub use beside::{BesideOptions, BesideServer};
pub(crate) use serve::{Bounds, serve};

const DASHBOARD: &str = "/dashboard";

/// What there is to ask for: path, and what it answers.
const ENDPOINTS: [(&str, &str); 14] = [
    ("/", "this list"),
    (DASHBOARD, "all of this to look at; needs the admin token"),
    ("/healthz", "whether the server is alive"),
    ("/readyz", "whether it can do what the configuration promises"),
    ("/metrics", "metrics, for Prometheus"),
    ("/varz", "the server"),
    ("/connz", "its connections"),
    ("/subsz", "its subscriptions"),
    ("/accountz", "its accounts"),
    ("/accstatz", "what the clients of each account have done"),
    ("/routez", "its routes, of which there are none"),
    ("/gatewayz", "its gateways, of which there are none"),
    ("/leafz", "its leaf nodes, of which there are none"),
    ("/jsz", "its JetStream, which it does without"),
];

/// What nats-server's probe can be asked about beside the server.
const HEALTH_FLAGS: [&str; 5] =
    ["js-enabled", "js-enabled-only", "js-server-only", "js-meta-only", "details"];

/// What the handlers know.
#[derive(Debug)]
pub(crate) struct Monitor {
    shared: Arc<Shared>,
    health: Arc<Health>,
    /// Of a bus in this process.
    telemetry: Option<Telemetry>,
    /// Where all of it is served; `None` where only probes and metrics are.
    address: Option<SocketAddr>,
    /// `/healthz` answers as nats-server's does, and no more.
    nats_probes: bool,
    /// Under which all of it but the admin API and the dashboard is served; empty, or with a slash before it.
    base: String,
    /// Requests for each of [`ENDPOINTS`].
    requests: [AtomicU64; ENDPOINTS.len()],
    cpu: CpuShare,
}

impl Monitor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        health: Arc<Health>,
        telemetry: Option<Telemetry>,
        (address, nats_probes): (Option<SocketAddr>, bool),
        base: String,
    ) -> Self {
        Self {
            shared,
            health,
            telemetry,
            address,
            nats_probes,
            base,
            requests: Default::default(),
            cpu: CpuShare::new(),
        }
    }

    fn count_request(&self, path: &str) {
        let Some(path) = path.strip_prefix(&self.base) else { return };
        let path = if path.is_empty() { "/" } else { path };
        if let Some(at) = ENDPOINTS.iter().position(|(known, _)| *known == path) {
            self.requests[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Paths that were asked for, without the base as on nats-server, and how often.
    fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.requests.iter().map(|count| count.load(Ordering::Relaxed));
        ENDPOINTS.iter().map(|(path, _)| *path).zip(counts).filter(|(_, count)| *count > 0)
    }

    /// Where one of [`ENDPOINTS`] is served.
    fn path_of(&self, endpoint: &str) -> String {
        match (self.base.as_str(), endpoint) {
            (_, DASHBOARD) | ("", _) => endpoint.to_owned(),
            (base, "/") => base.to_owned(),
            (base, _) => format!("{base}{endpoint}"),
        }
    }
}

/// Everything that is served, at `address`.
pub(crate) fn router(monitor: Arc<Monitor>, address: SocketAddr, api: Arc<Api>, views: Arc<Views>) -> Router {
    let base = monitor.base.clone();
    let at = |path: &str| format!("{base}{path}");
    let list = if base.is_empty() { "/" } else { base.as_str() };
    let router = probe_routes(&base)
        .route(list, get(index))
        .route(&at("/varz"), get(varz::varz))
        .route(&at("/connz"), get(connz::connz))
        .route(&at("/subsz"), get(subsz::subsz))
        .route(&at("/subscriptionsz"), get(subsz::subsz))
        .route(&at("/accountz"), get(accountz::accountz))
        .route(&at("/accstatz"), get(accstatz::accstatz))
        .route(&at("/routez"), get(alone::routez))
        .route(&at("/gatewayz"), get(alone::gatewayz))
        .route(&at("/leafz"), get(alone::leafz))
        .route(&at("/jsz"), get(alone::jsz))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .with_state(monitor.clone())
        .merge(api::router(api, views))
        .merge(dashboard::router());
    guarded(router, monitor, address)
}

/// Probes and metrics alone, at `address`.
pub(crate) fn probes(monitor: Arc<Monitor>, address: SocketAddr) -> Router {
    guarded(probe_routes(&monitor.base).with_state(monitor.clone()), monitor, address)
}

fn probe_routes(base: &str) -> Router<Arc<Monitor>> {
    Router::new()
        .route(&format!("{base}/healthz"), get(healthz))
        .route(&format!("{base}/readyz"), get(readyz))
        .route(&format!("{base}/metrics"), get(metrics::metrics))
}

fn guarded(router: Router, monitor: Arc<Monitor>, address: SocketAddr) -> Router {
    router.layer(middleware::from_fn_with_state((monitor, !address.ip().is_loopback()), guard))
}

/// Before every handler: refuses names that are not this machine's, unless others may ask, then counts.
async fn guard(
    State((monitor, any_host)): State<(Arc<Monitor>, bool)>,
    request: Request,
    next: Next,
) -> Response {
    if let Err(error) = host::check(&request, any_host) {
        monitor.shared.refusals.count_http(HttpRefusal::Host);
        let path = request.uri().path();
        match monitor.shared.refusals.may_tell(Instant::now()) {
            true => tracing::warn!(path, %error, "a request is refused"),
            false => tracing::debug!(path, %error, "a request is refused"),
        }
        return (error.status(), format!("{error}\n")).into_response();
    }
    monitor.count_request(request.uri().path());
    next.run(request).await
}

async fn index(State(monitor): State<Arc<Monitor>>) -> Html<String> {
    // Relative, as there may be a proxy in front that has them somewhere else: up from where this page is.
    let up = "../".repeat(monitor.base.matches('/').count().saturating_sub(1));
    let line = |(endpoint, what): &(&str, &str)| {
        let path = monitor.path_of(endpoint);
        format!("<li><a href=\"./{up}{}\">{path}</a> {what}</li>\n", path.trim_start_matches('/'))
    };
    let list: String = ENDPOINTS.iter().map(line).collect();
    let version = env!("CARGO_PKG_VERSION");
    Html(format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Trunkline {version}</title>\n\
         <h1>Trunkline {version}</h1>\n<ul>\n{list}</ul>\n</html>\n"
    ))
}

/// The server is alive when it answers, whatever has become of the backend: restarting it would help nobody. How the
/// backend is stands beside that where it is not well.
async fn healthz(State(monitor): State<Arc<Monitor>>, params: Params) -> Response {
    if monitor.nats_probes {
        // What they ask about is not here, and so is well; but a mistyped one asks for nothing.
        for flag in HEALTH_FLAGS {
            if let Err(error) = params.flag(flag) {
                return error.into_response();
            }
        }
        return ([(header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#).into_response();
    }
    let state = monitor.health.backend().state;
    let mut document = serde_json::to_value(monitor.health.alive()).unwrap_or_default();
    if let (false, Some(fields)) = (state.is_ready(), document.as_object_mut()) {
        fields.insert("backend".to_owned(), state.as_str().into());
    }
    // In one line, which is what probes show of it.
    ([(header::CONTENT_TYPE, "application/json")], document.to_string()).into_response()
}

async fn readyz(State(monitor): State<Arc<Monitor>>) -> Response {
    readiness(&monitor.health.document())
}

fn readiness(health: &SystemHealth) -> Response {
    let status = if is_ready(health) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, json(health)).into_response()
}

async fn not_found(State(monitor): State<Arc<Monitor>>, request: Request) -> Response {
    let path = request.uri().path();
    if let Some(clean) = without_empty_parts(path) {
        // As on nats-server: who is given its address with a slash behind it asks for `//varz`.
        let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
        return Redirect::temporary(&format!("{clean}{query}")).into_response();
    }
    let paths = ENDPOINTS.map(|(endpoint, _)| monitor.path_of(endpoint)).join(", ");
    (StatusCode::NOT_FOUND, format!("there is no {path}; there are {paths}\n")).into_response()
}

/// The path with one slash wherever it has several; `None` where it has not.
fn without_empty_parts(path: &str) -> Option<String> {
    if !path.contains("//") {
        return None;
    }
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    let end = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    Some(format!("/{}{end}", parts.join("/")))
}

async fn not_allowed(request: Request) -> (StatusCode, String) {
    let (method, path) = (request.method(), request.uri().path());
    (StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not possible on {path}, GET is\n"))
}

/// An answer in JSON, indented as nats-server's is: scripts read it line by line, and people read it too.
fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => internal(&error),
    }
}

fn internal(error: &dyn std::error::Error) -> Response {
    tracing::warn!(%error, "cannot answer a monitoring request");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}
