//! Requests to an admin API: JSON both ways, over kept connections, with TLS where the address asks for it, bounded in
//! bytes and in time.

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use trunkline_server::admin::{BASE, ErrorJson, Problem};
use url::Url;

use super::place::Named;
use super::{AdminError, token};
use crate::failure::chain;
use crate::trust;

/// Most bytes of an answer: a full page or fetch in Base64, and one large message more.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// A connection that was not used for so long is closed here, before the server does, so that no request is lost on it.
const IDLE: Duration = Duration::from_secs(4);

/// Said where an answer is one of another protocol; of TLS, as often as not.
const NOT_HTTP: &str = "it does not answer in HTTP; with server.tls.http its address begins with https://";

/// Why there is no good answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server said what is wrong.
    Said(u16, Box<ErrorJson>),
    /// The server is not asked, because its certificate is not trusted.
    Untrusted { reason: String },
    /// There is no answer; `sent` says whether the request may have been acted on.
    Lost { reason: String, sent: bool },
}

/// The way to one server.
pub(super) struct Link {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Url,
    /// Replaced when the server was started anew and the token had been found, not given.
    token: Mutex<String>,
    token_is_found: bool,
    limit: Duration,
}

/// Until when there has to be an answer.
#[derive(Clone, Copy)]
struct Deadline {
    limit: Duration,
    at: Instant,
}

impl Deadline {
    fn after(limit: Duration) -> Self {
        Self { limit, at: Instant::now() + limit }
    }

    async fn keep<T>(self, work: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
        let late = |_| CallError::Lost { reason: format!("no answer within {:?}", self.limit), sent: true };
        timeout_at(self.at, work).await.map_err(late)?
    }
}

impl Link {
    /// # Errors
    /// An address that is not of HTTP, `--tls-ca` without certificates.
    pub(super) fn new(server: &Named, limit: Duration) -> Result<Self, AdminError> {
        let url = server.http.clone();
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(AdminError::Url { url: super::shown(&url) });
        }
        let connector = HttpsConnectorBuilder::new().with_tls_config(server.trust.client()?);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector.https_or_http().enable_http1().build());
        let token = Mutex::new(server.token.clone().unwrap_or_default());
        Ok(Self { client, url, token, token_is_found: server.token_is_found, limit })
    }

    pub(super) fn server(&self) -> String {
        super::shown(&self.url)
    }

    /// Longest wait for an answer.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// The token in use. It changes when the one that was found is refused and there is another.
    pub(super) fn token(&self) -> String {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks, for the answer to a person.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        let url = self.server();
        self.call::<(), T>(Method::GET, path, None, self.limit).await.map_err(|error| error.of(url))
    }

    /// Asks for an answer without end, and returns what comes of it once it has begun.
    pub(super) async fn open(&self, path: &str) -> Result<Incoming, CallError> {
        let deadline = Deadline::after(self.limit);
        match self.ask(&Method::GET, path, Bytes::new(), deadline).await? {
            (200..300, body) => Ok(body),
            (status, body) => {
                Err(CallError::Said(status, Box::new(said(&deadline.keep(whole(body)).await?))))
            }
        }
    }

    /// Asks for an answer in JSON, whole within `limit`.
    pub(super) async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        limit: Duration,
    ) -> Result<T, CallError> {
        let not_sent = |reason: String| CallError::Lost { reason, sent: false };
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| not_sent(error.to_string()))?.into(),
            None => Bytes::new(),
        };
        let deadline = Deadline::after(limit);
        let (status, body) = self.ask(&method, path, body, deadline).await?;
        let answer = deadline.keep(whole(body)).await?;
        if !(200..300).contains(&status) {
            return Err(CallError::Said(status, Box::new(said(&answer))));
        }
        serde_json::from_slice(&answer)
            .map_err(|error| CallError::Lost { reason: format!("unexpected answer: {error}"), sent: true })
    }

    /// Sends a request and waits for the head of its answer. A token that was found and is refused is looked for once more.
    async fn ask(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        deadline: Deadline,
    ) -> Result<(u16, Incoming), CallError> {
        let token = self.token();
        match deadline.keep(self.send(method, path, body.clone(), &token)).await? {
            (401, _) if self.renew(&token) => {
                deadline.keep(self.send(method, path, body, &self.token())).await
            }
            answered => Ok(answered),
        }
    }

    /// Looks for the token of a server that was started anew; `false` when there is no other.
    fn renew(&self, refused: &str) -> bool {
        let found = self.token_is_found.then(|| token::find(&self.url)).flatten();
        match found.map(|found| found.admin_token).filter(|token| token != refused) {
            Some(token) => {
                *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
                true
            }
            None => false,
        }
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        token: &str,
    ) -> Result<(u16, Incoming), CallError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{BASE}{path}", self.server()))
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| CallError::Lost { reason: error.to_string(), sent: false })?;
        let response = self.client.request(request).await.map_err(|error| match trust::refusal(&error) {
            Some(reason) => CallError::Untrusted { reason },
            None if is_not_http(&error) => CallError::Lost { sent: true, reason: NOT_HTTP.to_owned() },
            None => CallError::Lost { sent: !error.is_connect(), reason: chain(&error) },
        })?;
        Ok((response.status().as_u16(), response.into_body()))
    }
}

impl CallError {
    /// The same for a person, of the server at this address.
    pub(super) fn of(self, url: String) -> AdminError {
        match self {
            Self::Said(401, said) => AdminError::Refused { url, said: said.error },
            Self::Said(404, _) => AdminError::NotAdmin { url },
            Self::Said(status, said) => AdminError::Answer { url, status, said: said.error, hint: said.hint },
            Self::Untrusted { reason } => AdminError::Untrusted { url, reason },
            Self::Lost { reason, .. } => AdminError::Unreachable { url, reason },
        }
    }
}

/// The answer is one of another protocol.
fn is_not_http(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.downcast_ref().is_some_and(hyper::Error::is_parse) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// All of an answer.
async fn whole(body: Incoming) -> Result<Bytes, CallError> {
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    Ok(body.map_err(|error| CallError::Lost { reason: error.to_string(), sent: true })?.to_bytes())
}

/// What the server says is wrong, in its own form or in whatever it sent.
fn said(answer: &[u8]) -> ErrorJson {
    serde_json::from_slice(answer).unwrap_or_else(|_| ErrorJson {
        error: String::from_utf8_lossy(answer).chars().take(200).collect::<String>().trim().to_owned(),
        hint: None,
        problem: Problem::Internal,
    })
}
