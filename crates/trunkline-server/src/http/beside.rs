//! HTTP where there is no embedded server, because clients are with the NATS servers themselves: probes, and what runs
//! beside the bus.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::config::Config;
use trunkline::health::{HealthCheck, SystemHealth};
use trunkline::observe::{self, Observer};
use trunkline::{Bus, Message, PublishError, PublishOptions};

use super::api::answer::{ApiError, ok};
use super::api::conversations::{self, Seen};
use super::api::{Door, Token, Views, token_guard, views};
use super::metrics::{Process, of_bus};
use super::{Bounds, dashboard, host, json, readiness, serve};
use crate::admin::{BASE, ComponentsJson, Problem};
use crate::auth::{AuthOptions, GLOBAL_ACCOUNT};
use crate::health::{Speaker, broadcast, component_checks};
use crate::options::Limits;
use crate::promises::{Promises, STREAMS};
use crate::server::{Exposure, METRICS_LISTEN, StartError, listen};
use crate::tls::{Plan, TlsError, TlsOptions};

/// Who speaks: `trunkline up`, which is no server here.
const COMPONENT: &str = "trunkline";
/// How often the health of the bus is told where nothing changes.
const HEALTH_INTERVAL: Duration = Duration::from_secs(10);

/// How to start a [`BesideServer`].
pub struct BesideOptions<'a> {
    /// Where it listens, and for whom; section `server`.
    pub config: &'a Config,
    /// The bus of this process: for the dashboard, `/readyz`, `/metrics` and `{root}.system.health`.
    pub bus: &'a Bus,
    /// What runs beside the bus, for `/api/v1/components`.
    pub components: watch::Receiver<ComponentsJson>,
    /// What sees the messages of the bus, for `/api/v1/conversations` and `/api/v1/observations`; it is run here. `None`
    /// records nothing.
    pub observer: Option<Arc<Observer>>,
}

/// `/healthz`, `/readyz`, `/metrics`, the dashboard and what it shows of `/api/v1`, over HTTP; and the health of the bus,
/// told on `{root}.system.health`. Dropping it stops it without waiting.
pub struct BesideServer {
    address: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    secure: bool,
    token: Token,
    stop: CancellationToken,
    /// The listener and its connections; ended by `stop`.
    tasks: TaskTracker,
}

impl std::fmt::Debug for BesideServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BesideServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl BesideServer {
    /// Binds `server.http` and `server.metrics_listen` and starts serving; `None` where both are off.
    ///
    /// # Errors
    /// An address that is taken or not allowed, certificates that cannot be used.
    pub async fn start(options: BesideOptions<'_>) -> Result<Option<Self>, StartError> {
        let server = &options.config.server;
        if server.http.is_none() && server.metrics_listen.is_none() {
            return Ok(None);
        }
        let token = Token::new(server.auth.admin_token.as_ref().map(|token| token.expose().to_owned()))
            .map_err(|error| StartError::AdminToken { reason: error.to_string() })?;
        let http = match (server.tls.http, TlsOptions::from_config(&server.tls)?) {
            (true, Some(tls)) => Some(tls.for_http()),
            (true, None) => return Err(TlsError::for_http().into()),
            (false, _) => None,
        };
        let plan = Plan { clients: None, web: None, http };
        let tls = tokio::task::spawn_blocking(move || plan.read()).await;
        let tls = tls.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        let secure = tls.http.get().is_some();
        let auth = AuthOptions::from(server).is_required();
        let rule = Exposure { auth, safe: secure || server.plaintext };
        let http = server.http.map(|wanted| listen(wanted, "server.http", rule)).transpose()?;
        let metrics = server.metrics_listen.map(|wanted| listen(wanted, METRICS_LISTEN, Exposure::PROBES));
        let metrics = metrics.transpose()?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        if let Some(observer) = options.observer.clone() {
            let backend = options.bus.backend().clone();
            tasks.spawn(observer.clone().run(stop.clone()));
            tasks.spawn(observe::collect(observer, backend, stop.clone()));
        }
        let beside = Arc::new(Beside {
            bus: options.bus.clone(),
            components: options.components,
            observer: options.observer,
            promises: Arc::new(Promises::new(Promises::of(&options.config.messaging))),
            started: Instant::now(),
        });
        let subject = beside.bus.topics().system().health().subject().clone();
        let status = beside.bus.backend_status();
        tasks.spawn(broadcast(beside.clone(), status, (subject, HEALTH_INTERVAL), stop.clone()));
        tasks.spawn(beside.promises.clone().watch(beside.bus.backend().clone(), stop.clone()));
        let bounds = Bounds::alone(&Limits::from(&server.limits));
        let tls = Arc::new(tls);
        let start = |listener, app, address: SocketAddr| {
            let app = guarded(app, !address.ip().is_loopback());
            let (bounds, tls) = (bounds.clone(), tls.clone());
            tasks.spawn(serve(listener, app, bounds, move || tls.http.get(), stop.clone(), tasks.clone()));
            address
        };
        let metrics =
            metrics.map(|(listener, address)| start(listener, probes().with_state(beside.clone()), address));
        let door = Door::new(token.clone(), server.limits.auth_failures);
        let address = http.map(|(listener, address)| start(listener, router(beside, door), address));
        Ok(Some(Self { address, metrics, secure, token, stop, tasks }))
    }

    /// Where all of it is served.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.address
    }

    /// As [`BesideServer::http_addr`], with `http` or `https` before it.
    pub fn http_url(&self) -> Option<String> {
        self.url(self.address)
    }

    /// Where probes and metrics are served apart, with `http` or `https` before it.
    pub fn metrics_url(&self) -> Option<String> {
        self.url(self.metrics)
    }

    fn url(&self, address: Option<SocketAddr>) -> Option<String> {
        Some(format!("{}://{}", if self.secure { "https" } else { "http" }, address?))
    }

    /// The token of the admin API.
    pub fn admin_token(&self) -> &str {
        self.token.expose()
    }

    /// Stops, and waits for requests under way at most `within`.
    pub async fn shutdown(&self, within: Duration) {
        self.stop.cancel();
        self.tasks.close();
        // What is not done by then ends with the process.
        let _ = tokio::time::timeout(within, self.tasks.wait()).await;
    }
}

impl Drop for BesideServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What the handlers know.
struct Beside {
    bus: Bus,
    components: watch::Receiver<ComponentsJson>,
    observer: Option<Arc<Observer>>,
    promises: Arc<Promises>,
    started: Instant,
}

impl Beside {
    fn health(&self, checks: BTreeMap<String, HealthCheck>) -> SystemHealth {
        SystemHealth::new(COMPONENT, env!("CARGO_PKG_VERSION"), self.started.elapsed(), checks)
    }
}

impl Speaker for Beside {
    fn document(&self) -> SystemHealth {
        let mut checks = component_checks(&self.components.borrow().components);
        checks.extend(self.bus.checks());
        checks.extend(self.promises.check().map(|check| (STREAMS.to_owned(), check)));
        self.health(checks)
    }

    async fn send(&self, message: Message) {
        // Past the outbox: what was true then must not be told when the server is back.
        match self.bus.backend().publish(message, PublishOptions::default()).outcome().await {
            // The state has been logged, and there is nobody here to tell.
            Ok(_) | Err(PublishError::NotConnected { .. } | PublishError::Closed) => {}
            Err(error) => tracing::warn!(%error, "the health of the bus was not published"),
        }
    }
}

fn probes() -> Router<Arc<Beside>> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

/// Refuses names that are not this machine's, unless others may ask.
fn guarded(router: Router, any_host: bool) -> Router {
    router.layer(middleware::from_fn(move |request: Request, next: Next| async move {
        match host::check(&request, any_host) {
            Ok(()) => next.run(request).await,
            Err(error) => (error.status(), format!("{error}\n")).into_response(),
        }
    }))
}

fn router(beside: Arc<Beside>, door: Door) -> Router {
    let (bus, status) = (beside.bus.clone(), beside.bus.backend_status());
    let telemetry = bus.telemetry().clone();
    let seen = Views::new(bus, status, Some(telemetry), (None, beside.observer.clone()));
    let api = Router::new()
        .route("/components", get(components))
        .merge(conversations::routes(|beside: &Arc<Beside>, account| match account {
            None | Some(GLOBAL_ACCOUNT) => Seen::Here(beside.observer.clone()),
            Some(_) => Seen::NoAccount(vec![GLOBAL_ACCOUNT.to_owned()]),
        }))
        .with_state(beside.clone())
        .merge(views::router(Arc::new(seen)))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(door, token_guard));
    probes().with_state(beside).nest(BASE, api).merge(dashboard::router())
}

async fn components(State(beside): State<Arc<Beside>>) -> Response {
    ok(&*beside.components.borrow())
}

async fn healthz(State(beside): State<Arc<Beside>>) -> Response {
    json(&beside.health(BTreeMap::from([("process".to_owned(), HealthCheck::ok())])))
}

async fn readyz(State(beside): State<Arc<Beside>>) -> Response {
    readiness(&beside.document())
}

async fn metrics(State(beside): State<Arc<Beside>>, headers: HeaderMap) -> Response {
    let process = Process {
        uptime: beside.started.elapsed(),
        memory: beside.bus.backend().memory(),
        backend: beside.bus.status().backend,
        health: beside.document(),
        components: beside.components.borrow().components.clone(),
    };
    of_bus(&beside.bus, process, headers).await
}

async fn not_found(uri: axum::http::Uri) -> ApiError {
    let text =
        format!("there is no {} here: clients are with the NATS servers, and so are streams", uri.path());
    ApiError::new(Problem::NotFound, text)
}
