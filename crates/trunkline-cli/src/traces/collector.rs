//! The HTTP client that spans go out by: one POST over a connection of its own, with TLS where the address asks for it.
//!
//! It runs on the thread of the SDK that sends, with a runtime made for one request: a command may be ending, and its own
//! runtime gone, while its last spans are sent.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::failure::chain;

/// Longest time for one request, where the variables name none: the specification's number.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why there is no way to a collector.
#[derive(Debug, thiserror::Error)]
pub(super) enum CollectorError {
    #[error("{variable} names {path:?}, which has no certificates in PEM")]
    Certificates { variable: &'static str, path: PathBuf },
}

/// A way to a collector.
#[derive(Debug)]
pub(super) struct Collector {
    tls: Arc<ClientConfig>,
    timeout: Duration,
    trouble: Trouble,
}

/// Why the latest request had no answer: the exporter tells only that there was none.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, error: &HttpError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(chain(&**error));
    }
}

impl Collector {
    /// With what the variables say of certificates and time.
    ///
    /// # Errors
    /// Certificates that cannot be read.
    pub(super) fn from_environment(
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<Self, CollectorError> {
        let timeouts = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
        let millis = timeouts.iter().find_map(|name| variable(name)?.trim().parse().ok());
        let mut roots = RootCertStore::empty();
        let files = ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];
        match files.iter().find_map(|name| Some((*name, PathBuf::from(variable(name)?)))) {
            Some((variable, path)) => {
                let read: Vec<_> =
                    CertificateDer::pem_file_iter(&path).into_iter().flatten().flatten().collect();
                if roots.add_parsable_certificates(read).0 == 0 {
                    return Err(CollectorError::Certificates { variable, path });
                }
            }
            // Where the system has no list of authorities, a collector with TLS cannot be trusted, and that is said then.
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows the versions of TLS that rustls does")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let timeout = millis.map_or(TIMEOUT, Duration::from_millis);
        Ok(Self { tls: Arc::new(tls), timeout, trouble: Trouble::default() })
    }

    pub(super) fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (host, port) = address(&request)?;
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        if request.uri().scheme_str() != Some("https") {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(host)?;
        exchange(TlsConnector::from(self.tls.clone()).connect(name, stream).await?, request).await
    }
}

impl HttpClient for Collector {
    fn send_bytes<'this, 'sending>(
        &'this self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'sending>>
    where
        'this: 'sending,
        Self: 'sending,
    {
        Box::pin(async move {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let answer =
                runtime.block_on(async { tokio::time::timeout(self.timeout, self.send(request)).await });
            // A look-up of a name may still be under way on a thread of its own.
            runtime.shutdown_background();
            let late = || Err(format!("no answer within {:?}", self.timeout).into());
            answer.unwrap_or_else(|_| late()).inspect_err(|error| self.trouble.note(error))
        })
    }
}

/// Host and port of a request's address.
fn address(request: &Request<Bytes>) -> Result<(String, u16), HttpError> {
    let uri = request.uri();
    let default = match uri.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return Err(format!("{uri} is neither http:// nor https://").into()),
    };
    let host = uri.host().ok_or_else(|| format!("{uri} names no host"))?;
    Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), uri.port_u16().unwrap_or(default)))
}

/// Sends a request over a connection, and reads the answer whole.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    if let Some(authority) = parts.uri.authority() {
        parts.headers.insert(hyper::header::HOST, authority.as_str().parse()?);
    }
    // In the form of a request to the server itself, not to a proxy.
    parts.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let talking = async {
        let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    let driving = async {
        // Its failure is the failure of what is asked over it.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = talking => answer,
        () = driving => unreachable!("it waits for ever"),
    }
}
