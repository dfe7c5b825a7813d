//! The smallest HTTP client that can ask a server how it is: one GET, a bounded answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::trust::{self, Trust, TrustError};

/// Most bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum HttpError {
    #[error("{url} is neither an http:// nor an https:// address")]
    Url { url: String },
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the certificate of {url} is not trusted: {reason}")]
    Untrusted { url: String, reason: String },
    #[error("cannot reach {url}")]
    Io { url: String, source: io::Error },
    #[error("{url} gave no answer within {waited:?} (--timeout)")]
    Timeout { url: String, waited: Duration },
    #[error("{url} answered something that is not HTTP")]
    NotHttp { url: String },
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// Asks for `path` of the server at `base`, which has to be one that is believed where it speaks TLS.
///
/// # Errors
/// See [`HttpError`]; an answer with any status is not one.
pub(crate) async fn get(base: &Url, path: &str, trust: &Trust, limit: Duration) -> Result<Answer, HttpError> {
    let url = || base.to_string().trim_end_matches('/').to_owned();
    let (Some(host), Some(port)) = (base.host_str(), base.port_or_known_default()) else {
        return Err(HttpError::Url { url: url() });
    };
    let tls = match base.scheme() {
        "http" => None,
        "https" => Some(TlsConnector::from(Arc::new(trust.client()?))),
        _ => return Err(HttpError::Url { url: url() }),
    };
    let bytes = tokio::time::timeout(limit, exchange(host, port, tls, path))
        .await
        .map_err(|_| HttpError::Timeout { url: url(), waited: limit })?
        .map_err(|source| match trust::refusal(&source) {
            Some(reason) => HttpError::Untrusted { url: url(), reason },
            None => HttpError::Io { url: url(), source },
        })?;
    parse(&bytes).ok_or_else(|| HttpError::NotHttp { url: url() })
}

/// HTTP/1.0: the answer ends with the connection, so there are no chunks to undo.
async fn exchange(host: &str, port: u16, tls: Option<TlsConnector>, path: &str) -> io::Result<Vec<u8>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await?;
    let host = format!("{host}:{port}");
    match tls {
        None => exchange_over(stream, &host, path).await,
        Some(tls) => {
            let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
            exchange_over(tls.connect(name, stream).await?, &host, path).await
        }
    }
}

/// The whole answer to a question over this connection; `host` is the name and port that it was made to.
pub(crate) async fn exchange_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
) -> io::Result<Vec<u8>> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Status and body, of what is an answer at all.
pub(crate) fn parse(bytes: &[u8]) -> Option<Answer> {
    let head_bytes = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..head_bytes]).ok()?;
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok()?;
    Some(Answer { status, body: bytes[head_bytes + 4..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_split_into_status_and_body() {
        let answer = parse(b"HTTP/1.0 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (503, &b"{}"[..]));
    }

    #[test]
    fn what_is_not_http_is_no_answer() {
        for bytes in [&b""[..], b"INFO {}\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n"] {
            assert!(parse(bytes).is_none(), "{bytes:?}");
        }
    }
}
