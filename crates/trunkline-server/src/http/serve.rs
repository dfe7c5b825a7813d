//! Connections of the HTTP listener: how many, how long they may take, and how they end.

use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::guests::{Guest, Guests};
use crate::options::Limits;
use crate::shared::Shared;
use crate::tls::Tls;

/// Most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// What a request may still take once the server stops.
const STOP_WITHIN: Duration = Duration::from_secs(1);
/// Pause after an accept that failed for want of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a request comes from; an extension of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// How many clients there may be, and how patient they are waited for.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    connections: usize,
    /// For a request's head, idle time included, and for an answer to be taken.
    patience: Duration,
    /// Counts who had to make room for others.
    evicted: Arc<AtomicU64>,
}

impl Bounds {
    pub(crate) fn of(shared: &Shared) -> Self {
        let limits = shared.limits();
        Self {
            connections: limits.http_connections.max(1),
            patience: limits.http_timeout,
            evicted: shared.http_evicted.clone(),
        }
    }

    /// Of a listener without a server of NATS beside it.
    pub(crate) fn alone(limits: &Limits) -> Self {
        Self {
            connections: limits.http_connections.max(1),
            patience: limits.http_timeout,
            evicted: Arc::default(),
        }
    }
}

/// Serves `app`, over TLS if `secure` gives some. Owned by the server's tracker, as is every connection; ends by `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    bounds: Bounds,
    secure: impl Fn() -> Option<Arc<Tls>> + Send + 'static,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let slots = Arc::new(Semaphore::new(bounds.connections));
    let guests = Guests::new(bounds.evicted.clone());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept(&listener, &slots, &guests) => accepted,
        };
        match accepted {
            Ok((socket, peer, slot)) => {
                let socket = Impatient { socket, patience: bounds.patience, stalled: None };
                let guest = Arc::new(guests.welcome());
                let (app, stop) = (app.clone(), stop.clone());
                match secure() {
                    None => tasks.spawn(connection(socket, (peer, bounds.patience, guest), app, stop, slot)),
                    Some(tls) => {
                        tasks.spawn(secured(tls, socket, (peer, bounds.patience, guest), app, stop, slot))
                    }
                };
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    guests: &Guests,
) -> io::Result<(TcpStream, Peer, OwnedSemaphorePermit)> {
    let (socket, peer) = listener.accept().await?;
    if slots.available_permits() == 0 {
        // Nobody may be there to go; then this one waits for a place that becomes free.
        guests.send_one_away();
    }
    let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    Ok((socket, Peer(peer.ip()), slot))
}

/// Does the handshake, then serves the connection.
async fn secured(
    tls: Arc<Tls>,
    socket: Impatient,
    peer: (Peer, Duration, Arc<Guest>),
    app: Router,
    stop: CancellationToken,
    slot: OwnedSemaphorePermit,
) {
    let handshake = TlsAcceptor::from(tls.config.clone()).accept(socket);
    let handshake = tokio::time::timeout(tls.options.timeout, handshake);
    let shaken = tokio::select! {
        () = stop.cancelled() => return,
        () = peer.2.sent_away() => return tracing::debug!("an HTTP connection had to make room for another"),
        shaken = handshake => shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
    };
    match shaken {
        Ok(stream) => connection(stream, peer, app, stop, slot).await,
        Err(error) => tracing::debug!(%error, "an HTTP client did not get through the TLS handshake"),
    }
}

/// Serves one connection; `_slot` is free again when it is over.
async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    socket: S,
    (peer, patience, guest): (Peer, Duration, Arc<Guest>),
    app: Router,
    stop: CancellationToken,
    _slot: OwnedSemaphorePermit,
) {
    let app = TowerToHyperService::new(app);
    let served = guest.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        served.is_served();
        let (answer, served) = (app.call(request), served.clone());
        async move {
            let answer = answer.await;
            served.rest();
            answer.map(|mut answer| {
                keep_to_this_origin(answer.headers_mut());
                answer
            })
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service);
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = guest.sent_away() => return tracing::debug!("an HTTP connection had to make room for another"),
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(STOP_WITHIN, serving).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP connection ended early");
    }
}

/// Tells browsers of every answer that it is what it says it is, whatever somebody has got into it, and for no page of another
/// origin to embed.
fn keep_to_this_origin(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let resources = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(resources, HeaderValue::from_static("same-origin"));
}

/// A socket whose writes fail when the other side takes nothing for so long.
struct Impatient {
    socket: TcpStream,
    patience: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn check<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.check(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.check(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
