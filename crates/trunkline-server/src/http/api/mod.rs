//! The admin API, `/api/v1`: streams, consumers, stored messages, and work for clients without a connection of their own.
//!
//! Every request needs the token, or a user that is allowed to. What a request asks for is done by the backend that the server is a front of; nothing
//! here decides about retry or dead letters, which is the business of the bus that the client runs.

pub(crate) mod answer;
mod consumers;
pub(crate) mod conversations;
mod guard;
mod members;
mod publish;
mod streams;
pub(super) mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use tokio::sync::{Semaphore, watch};
use trunkline::Unsupported;
use trunkline::backend::{Backend, Streams};
use trunkline::observe::Observer;

use crate::admin::{BASE, ComponentsJson, Problem, ServerJson};
use crate::auth::GLOBAL_ACCOUNT;
use crate::options::AdminDefaults;
use crate::shared::Shared;
use answer::{ApiError, ok};
use conversations::Seen;
pub(crate) use guard::{Door, Token, token_guard};
pub(crate) use members::Members;
pub(crate) use views::Views;

/// What the handlers know.
pub(crate) struct Api {
    backend: Arc<dyn Backend>,
    token: Token,
    /// Whose users some may be allowed to use it.
    auth: Arc<Shared>,
    subject_root: String,
    max_payload: usize,
    defaults: AdminDefaults,
    members: Arc<Members>,
    components: Option<watch::Receiver<ComponentsJson>>,
    /// What sees the messages; `None` where nothing is recorded.
    observer: Option<Arc<Observer>>,
    /// Longest wait for the rest of a request's body.
    patience: Duration,
    /// One permit for each request whose user's password takes a hash to be checked; who gets none is sent away at once.
    verifying: Semaphore,
}

/// Most requests that wait for a hash at a time: few of the connections that there may be.
const VERIFYING_MAX: usize = 16;

impl Api {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        (token, auth): (Token, Arc<Shared>),
        subject_root: String,
        max_payload: usize,
        (defaults, components): (AdminDefaults, Option<watch::Receiver<ComponentsJson>>),
        (observer, patience): (Option<Arc<Observer>>, Duration),
    ) -> Self {
        let members = Arc::default();
        Self {
            backend,
            token,
            auth,
            subject_root,
            max_payload,
            defaults,
            members,
            components,
            observer,
            patience,
            verifying: Semaphore::new(VERIFYING_MAX),
        }
    }

    pub(crate) fn observer(&self) -> Option<&Arc<Observer>> {
        self.observer.as_ref()
    }

    /// What sees the messages of an account; that there is none, or none of this name.
    fn observer_of(&self, account: Option<&str>) -> Seen {
        match account.filter(|name| *name != GLOBAL_ACCOUNT) {
            None => Seen::Here(self.observer.clone()),
            Some(name) => self.auth.observer_of(name).map_or_else(
                || {
                    let known = self.auth.auth.accounts();
                    Seen::NoAccount(known.iter().map(|account| account.name.to_string()).collect())
                },
                Seen::Here,
            ),
        }
    }

    pub(crate) fn members(&self) -> &Arc<Members> {
        &self.members
    }

    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        self.backend.streams()
    }
}

/// The routes of the API.
pub(crate) fn router(api: Arc<Api>, views: Arc<Views>) -> Router {
    let routes = Router::new()
        .route("/server", get(server))
        .route("/components", get(components))
        .route("/publish", post(publish::publish))
        .route("/streams", get(streams::list).post(streams::ensure))
        .route("/streams/{stream}", get(streams::info).delete(streams::remove))
        .route("/streams/{stream}/messages", get(streams::read))
        .route("/streams/{stream}/messages/delete", post(streams::delete))
        .route("/streams/{stream}/consumers", get(consumers::list))
        .route("/streams/{stream}/consumers/{consumer}", get(consumers::info).delete(consumers::remove))
        .route("/streams/{stream}/consumers/{consumer}/members", post(members::join))
        .route("/members/{member}", axum::routing::delete(members::leave))
        .route("/members/{member}/fetch", post(members::fetch))
        .route("/members/{member}/settle", post(members::settle))
        .route("/members/{member}/lease", post(members::lease))
        .route("/members/{member}/heartbeat", post(members::heartbeat))
        .merge(conversations::routes(|api: &Arc<Api>, account| api.observer_of(account)))
        .with_state(api.clone())
        .merge(views::router(views))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(api, guard::guard));
    Router::new().nest(BASE, routes)
}

async fn server(State(api): State<Arc<Api>>) -> Response {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    ok(&ServerJson {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        backend: api.backend.capabilities().kind.to_string(),
        subject_root: api.subject_root.clone(),
        max_payload: api.max_payload,
        ack_wait_ms: millis(api.defaults.ack_wait),
        max_deliver: api.defaults.retry.max_deliver,
        backoff_ms: api.defaults.retry.backoff.iter().copied().map(millis).collect(),
        initial_start: crate::admin::show_start(api.defaults.initial_start),
    })
}

async fn components(State(api): State<Arc<Api>>) -> Response {
    // One that has stopped leaves its last state.
    let known = api.components.as_ref().map(|components| components.borrow().clone());
    ok(&known.unwrap_or_default())
}

async fn not_found(uri: axum::http::Uri) -> ApiError {
    ApiError::new(Problem::NotFound, format!("there is no {} in the admin API", uri.path()))
}

async fn not_allowed(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    ApiError::new(Problem::MethodNotAllowed, format!("{method} is not possible on {}", uri.path()))
}
