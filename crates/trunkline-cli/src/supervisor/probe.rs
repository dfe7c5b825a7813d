//! Is a component ready? Asked again and again, until it is or nobody wants to know any more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use trunkline::backend::PublishError;
use trunkline::backend::memory::{Hub, Target};
use trunkline::config::Ready;
use trunkline::{Bus, Headers, Message, PROBE_HEADER, RequestError, Subject};
use url::Url;

use crate::http;
use crate::unverified::Unverified;

/// Pause after the first question; each one after it is longer, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause between two questions.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A responder that is there may take its time with a probe; that it is there is said at once.
const RESPONDER_PATIENCE: Duration = Duration::from_millis(500);

/// Where responders are looked for.
#[derive(Clone)]
pub(crate) struct Responders {
    pub(crate) bus: Bus,
    /// The hub of this process: it knows who listens without asking anybody.
    pub(crate) hub: Option<Arc<Hub>>,
}

/// Returns when the component is ready; never for what is not asked, or asked of a bus that is not given.
///
/// # Cancel safety
/// Dropping the future ends the questions.
pub(crate) async fn until_ready(ready: &Ready, responders: Option<&Responders>) {
    let mut pause = PAUSE_MIN;
    loop {
        let is_ready = match ready {
            Ready::Started | Ready::Log(_) => std::future::pending().await,
            Ready::Http(url) => answers(url).await,
            Ready::Tcp(address) => connects(address).await,
            Ready::Responder(subject) => match responders {
                Some(responders) => responders.has(subject).await,
                None => std::future::pending().await,
            },
        };
        if is_ready {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn connects(address: &str) -> bool {
    matches!(tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// Whether the URL answers with a status of 2xx.
async fn answers(url: &Url) -> bool {
    matches!(tokio::time::timeout(PATIENCE, status(url)).await, Ok(Some(200..=299)))
}

async fn status(url: &Url) -> Option<u16> {
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let stream = TcpStream::connect((bare, port)).await.ok()?;
    let host = format!("{host}:{port}");
    let answer = match url.scheme() {
        "https" => {
            let name = ServerName::try_from(bare.to_owned()).ok()?;
            // Any certificate will do, as for the probes of orchestrators: the question is whether the component is up,
            // nothing secret is sent, and whether its certificate is good is asked by those who connect to it.
            let tls = Unverified::default().client().ok()?;
            let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.ok()?;
            http::exchange_over(stream, &host, &path).await
        }
        _ => http::exchange_over(stream, &host, &path).await,
    };
    http::parse(&answer.ok()?).map(|answer| answer.status)
}

impl Responders {
    async fn has(&self, subject: &Subject) -> bool {
        if let Some(hub) = &self.hub {
            let found = hub.router().matches(subject.as_bytes());
            let listens = |target: &Target| matches!(target, Target::Inbox(_) | Target::Session(_));
            return found.subscribers.iter().any(listens) || !found.queues.is_empty();
        }
        // Elsewhere only a message shows whether somebody takes it. Responders of the library answer it by themselves; of
        // others an answer does not matter, and its absence says that somebody is at work on it.
        let mut headers = Headers::new();
        if headers.append(PROBE_HEADER, "ready").is_err() {
            return false;
        }
        let message = Message { subject: subject.clone(), reply: None, headers, payload: Bytes::new() };
        match self.bus.request_message(message, RESPONDER_PATIENCE).await {
            Ok(_)
            // Whoever refuses an empty message is there, too.
            | Err(
                RequestError::Timeout { .. } | RequestError::Service { .. } | RequestError::ReplyStream { .. },
            ) => true,
            // Nobody will ever know: better to go on than to hold up what waits.
            Err(RequestError::Publish(error @ PublishError::Denied { .. })) => {
                tracing::warn!(%subject, %error, "this user may not ask for the responder, which is taken to be there");
                true
            }
            Err(_) => false,
        }
    }
}
