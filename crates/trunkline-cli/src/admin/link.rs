//! Requests to an admin API: JSON both ways, over kept connections, bounded in bytes and in time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use trunkline_server::admin::{BASE, ErrorJson, Problem};
use url::Url;

use super::AdminError;
use super::token;
use crate::failure::chain;

/// Most bytes of an answer: a full page or fetch in Base64, and one large message more.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// A connection that was not used for so long is closed here, before the server does, so that no request is lost on it.
const IDLE: Duration = Duration::from_secs(4);

/// Why there is no good answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server said what is wrong.
    Said(u16, Box<ErrorJson>),
    /// There is no answer; `sent` says whether the request may have been acted on.
    Lost { reason: String, sent: bool },
}

/// The way to one server.
pub(super) struct Link {
    client: Client<HttpConnector, Full<Bytes>>,
    url: Url,
    /// Replaced when the server was started anew and the token had been found, not given.
    token: Mutex<String>,
    token_is_found: bool,
    limit: Duration,
}

impl Link {
    pub(super) fn new(
        url: &Url,
        token: String,
        token_is_found: bool,
        limit: Duration,
    ) -> Result<Self, AdminError> {
        if url.scheme() != "http" || !url.has_host() {
            return Err(AdminError::Url { url: super::shown(url) });
        }
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build_http();
        Ok(Self { client, url: url.clone(), token: Mutex::new(token), token_is_found, limit })
    }

    pub(super) fn server(&self) -> String {
        super::shown(&self.url)
    }

    /// Longest wait for an answer.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Asks, for the answer to a person.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        let url = self.server();
        self.call::<(), T>(Method::GET, path, None, self.limit).await.map_err(|error| error.of(url))
    }

    /// The token in use. It changes when the one that was found is refused and there is another.
    pub(super) fn token(&self) -> String {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for an answer without end, and returns what comes of it once it has begun.
    pub(super) async fn open(&self, path: &str) -> Result<Incoming, CallError> {
        let token = self.token();
        let first = self.begin(&Method::GET, path, Bytes::new(), &token).await?;
        let (status, body) = match first {
            (401, _) if self.renew(&token) => {
                self.begin(&Method::GET, path, Bytes::new(), &self.token()).await?
            }
            answered => answered,
        };
        match status {
            200..300 => Ok(body),
            status => {
                let answer = tokio::time::timeout(self.limit, whole(body)).await;
                let answer = answer.unwrap_or_else(|_| Err(self.timed_out(self.limit)))?;
                Err(CallError::Said(status, Box::new(said(&answer))))
            }
        }
    }

    fn timed_out(&self, limit: Duration) -> CallError {
        CallError::Lost { reason: format!("no answer within {limit:?}"), sent: true }
    }

    /// Sends a request and waits for the head of its answer.
    async fn begin(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        token: &str,
    ) -> Result<(u16, Incoming), CallError> {
        match tokio::time::timeout(self.limit, self.send(method, path, body, token)).await {
            Ok(result) => result,
            Err(_) => Err(self.timed_out(self.limit)),
        }
    }

    /// One request; a token that was found and is refused is looked for once more.
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
        let token = self.token();
        let first = self.once(&method, path, body.clone(), &token, limit).await;
        let (status, answer) = match first? {
            (401, _) if self.renew(&token) => self.once(&method, path, body, &self.token(), limit).await?,
            answered => answered,
        };
        if (200..300).contains(&status) {
            return serde_json::from_slice(&answer).map_err(|error| CallError::Lost {
                reason: format!("unexpected answer: {error}"),
                sent: true,
            });
        }
        Err(CallError::Said(status, Box::new(said(&answer))))
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

    async fn once(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        token: &str,
        limit: Duration,
    ) -> Result<(u16, Bytes), CallError> {
        let exchange = async {
            let (status, body) = self.send(method, path, body, token).await?;
            Ok((status, whole(body).await?))
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(result) => result,
            Err(_) => Err(self.timed_out(limit)),
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
        let response = self.client.request(request).await;
        let response =
            response.map_err(|error| CallError::Lost { sent: !error.is_connect(), reason: chain(&error) })?;
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
            Self::Lost { reason, .. } => AdminError::Unreachable { url, reason },
        }
    }
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
