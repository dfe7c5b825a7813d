//! HTTP where there is no embedded server, because clients are with the NATS servers themselves: probes, and what runs
//! beside the bus.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::backend::Backend;
use trunkline::config::Config;
use trunkline::observe::{self, Observer};
use trunkline::status::BackendStatus;

use super::api::answer::{ApiError, ok};
use super::api::{Token, conversations, token_guard};
use super::{Bounds, host, json as document, serve};
use crate::admin::{BASE, ComponentsJson, Problem};
use crate::auth::AuthOptions;
use crate::health::Readiness;
use crate::options::Limits;
use crate::server::{Exposure, StartError, bind, local_address};
use crate::tls::{Plan, TlsError, TlsOptions};

/// How to start a [`BesideServer`].
pub struct BesideOptions<'a> {
    /// Where it listens, and for whom; section `server`.
    pub config: &'a Config,
    /// How the backend is, for `/readyz`.
    pub backend_status: watch::Receiver<BackendStatus>,
    /// What runs beside the bus, for `/api/v1/components`.
    pub components: watch::Receiver<ComponentsJson>,
    /// What sees the messages of the bus, for `/api/v1/conversations` and `/api/v1/observations`; it is run here. `None`
    /// records nothing.
    pub observer: Option<Arc<Observer>>,
    /// Where libraries report what they see.
    pub backend: Arc<dyn Backend>,
}

/// `/healthz`, `/readyz`, `/api/v1/components` and what was seen on the bus, over HTTP. Dropping it stops it without waiting.
pub struct BesideServer {
    address: SocketAddr,
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
    /// Binds `server.http` and starts serving; `None` where that is off.
    ///
    /// # Errors
    /// An address that is taken or not allowed, certificates that cannot be used.
    pub async fn start(options: BesideOptions<'_>) -> Result<Option<Self>, StartError> {
        let server = &options.config.server;
        let Some(wanted) = server.http else { return Ok(None) };
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
        let listener = bind(wanted, "server.http", rule)?;
        let address = local_address(&listener, wanted, "server.http")?;
        let loopback = address.ip().is_loopback();
        let (observer, backend) = (options.observer.clone(), options.backend.clone());
        let app = router(options, token.clone(), !loopback);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        if let Some(observer) = observer {
            tasks.spawn(observer.clone().run(stop.clone()));
            tasks.spawn(observe::collect(observer, backend, stop.clone()));
        }
        let bounds = Bounds::alone(&Limits::from(&server.limits));
        tasks.spawn(serve(listener, app, bounds, move || tls.http.get(), stop.clone(), tasks.clone()));
        Ok(Some(Self { address, secure, token, stop, tasks }))
    }

    /// Where it is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.address
    }

    /// As [`BesideServer::http_addr`], with `http` or `https` before it.
    pub fn http_url(&self) -> String {
        format!("{}://{}", if self.secure { "https" } else { "http" }, self.address)
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

fn router(options: BesideOptions<'_>, token: Token, any_host: bool) -> Router {
    let state = Beside { components: options.components, observer: options.observer };
    let api = Router::new()
        .route("/components", get(components))
        .merge(conversations::routes(|beside: &Beside| beside.observer.clone()))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(token, token_guard))
        .with_state(state);
    Router::new()
        .route("/healthz", get(async || document(&json!({"status": "ok"}))))
        .route("/readyz", get(readyz))
        .with_state(options.backend_status)
        .nest(BASE, api)
        .layer(middleware::from_fn(move |request: Request, next: Next| async move {
            match host::check(&request, any_host) {
                Ok(()) => next.run(request).await,
                Err(error) => (error.status(), format!("{error}\n")).into_response(),
            }
        }))
}

/// What the handlers of the API know.
#[derive(Clone)]
struct Beside {
    components: watch::Receiver<ComponentsJson>,
    observer: Option<Arc<Observer>>,
}

async fn components(State(beside): State<Beside>) -> Response {
    ok(&*beside.components.borrow())
}

async fn readyz(State(status): State<watch::Receiver<BackendStatus>>) -> Response {
    let backend = status.borrow().clone();
    let readiness = Readiness::of(&backend.state);
    let code = match readiness {
        Readiness::Ok => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let check = json!({
        "status": readiness,
        "backend": backend.backend.to_string(),
        "server": backend.server,
        "state": backend.state.as_str(),
        "reason": backend.state.reason(),
    });
    let version = env!("CARGO_PKG_VERSION");
    (code, document(&json!({"status": readiness, "version": version, "checks": {"backend": check}})))
        .into_response()
}

async fn not_found(uri: axum::http::Uri) -> ApiError {
    let text =
        format!("there is no {} here: clients are with the NATS servers, and so are streams", uri.path());
    ApiError::new(Problem::NotFound, text)
}
