//! A TCP proxy that breaks connections on request, to stand between a client and a server. It knows
//! nothing of what it forwards, but for the bytes that a test tells it to look for.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// As much as is read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Chunks under way in one direction of one connection; past it the proxy stops reading, and the
/// sender feels it as any slow network.
const CHUNKS_UNDER_WAY_MAX: usize = 64;

/// Forwards every connection to one target, until told to break them. Faults hold for open and for
/// new connections, until [`heal`](TcpProxy::heal). Dropping the proxy closes everything.
pub struct TcpProxy {
    address: SocketAddr,
    target: Arc<OnceLock<SocketAddr>>,
    fault: watch::Sender<Fault>,
    counts: Arc<watch::Sender<Counts>>,
    losses: Arc<Losses>,
    injections: watch::Sender<Bytes>,
    /// Accepts connections and owns the tasks that serve them; aborted on drop, which ends those
    /// too.
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Fault {
    /// How often connections were cut. A connection ends when this differs from what it was at its
    /// start, so that a cut that is healed at once still cuts.
    cuts: u64,
    refusing: bool,
    silent: bool,
    delay: Duration,
}

/// What of a request is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The request itself: the server never sees it.
    Request,
    /// The answer: the server has carried the request out, and the client never hears.
    Answer,
}

/// What is to be lost next, and how often it was.
#[derive(Debug, Default)]
struct Losses {
    /// Held to set it, or to compare a chunk with it and take it away.
    order: Mutex<Option<(Bytes, Lost)>>,
    done: watch::Sender<usize>,
}

impl Losses {
    /// Looks for the bytes of the order in what a client sent last; `seen` keeps what may be their beginning. An order
    /// is carried out once.
    fn take(&self, seen: &mut Vec<u8>, chunk: &[u8]) -> Option<Lost> {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((wanted, _)) = &*order else {
            seen.clear();
            return None;
        };
        seen.extend_from_slice(chunk);
        if seen.windows(wanted.len()).any(|bytes| bytes == wanted) {
            return order.take().map(|(_, lost)| lost);
        }
        seen.drain(..seen.len().saturating_sub(wanted.len() - 1));
        None
    }

    fn count(&self) {
        self.done.send_modify(|done| *done += 1);
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    accepted: usize,
    open: usize,
}

impl TcpProxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `target`. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(target: SocketAddr) -> io::Result<TcpProxy> {
        let proxy = TcpProxy::reserve()?;
        proxy.aim(target);
        Ok(proxy)
    }

    /// Listens on a free port of 127.0.0.1 for a target that is not known yet: connections are reset until
    /// [`aim`](TcpProxy::aim) names it. So each of several servers can be told where the others will be before any of
    /// them has a port. Must be called within a tokio runtime, where it does not block.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn reserve() -> io::Result<TcpProxy> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let target: Arc<OnceLock<SocketAddr>> = Arc::default();
        let (fault, faults) = watch::channel(Fault::default());
        let counts = Arc::new(watch::Sender::new(Counts::default()));
        let losses = Arc::new(Losses::default());
        let (injections, injected) = watch::channel(Bytes::new());
        let tools = Tools { faults, losses: losses.clone(), injected };
        let accepting = tokio::spawn(accept(listener, target.clone(), tools, counts.clone()));
        Ok(TcpProxy { address, target, fault, counts, losses, injections, accepting })
    }

    /// Names the target of a proxy that was reserved.
    ///
    /// # Panics
    /// When it has another one already.
    pub fn aim(&self, target: SocketAddr) {
        let aimed = self.target.get_or_init(|| target);
        assert_eq!(*aimed, target, "a proxy has one target for good");
    }

    /// Where to connect instead of to the target.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every open connection, and every new one right after it was accepted.
    pub fn cut(&self) {
        self.fault.send_modify(|fault| {
            fault.cuts += 1;
            fault.refusing = true;
        });
    }

    /// Resets every open connection; new ones are served.
    pub fn cut_once(&self) {
        self.fault.send_modify(|fault| fault.cuts += 1);
    }

    /// Delivers everything read from now on so much later, in both directions; order and throughput
    /// stay as they are.
    pub fn delay(&self, delay: Duration) {
        self.fault.send_modify(|fault| fault.delay = delay);
    }

    /// Keeps connections open but forwards nothing, as when a host has vanished. What was sent
    /// meanwhile is delivered after `heal`, as TCP would.
    pub fn half_open(&self) {
        self.fault.send_modify(|fault| fault.silent = true);
    }

    /// Ends every fault.
    pub fn heal(&self) {
        self.fault.send_modify(|fault| *fault = Fault { cuts: fault.cuts, ..Fault::default() });
    }

    /// Sends these bytes to the client of every open connection, as if the server had said them.
    pub fn inject_answer(&self, bytes: impl Into<Bytes>) {
        self.injections.send_replace(bytes.into());
    }

    /// Loses the next request that contains these bytes, or the answer to it. From there on nothing more gets through
    /// on its connection in that direction, whatever is healed; [`TcpProxy::wait_for_lost`] tells when it has happened.
    ///
    /// # Panics
    /// When there are no bytes to look for.
    pub fn lose_next(&self, request: impl Into<Bytes>, lost: Lost) {
        let request = request.into();
        assert!(!request.is_empty(), "every request contains nothing");
        *self.losses.order.lock().unwrap_or_else(PoisonError::into_inner) = Some((request, lost));
    }

    /// Returns once at least `count` requests or answers have been lost since the start by
    /// [`TcpProxy::lose_next`]. An answer counts when the server has sent it.
    pub async fn wait_for_lost(&self, count: usize) {
        let mut done = self.losses.done.subscribe();
        done.wait_for(|done| *done >= count).await.expect("the proxy itself keeps the sender");
    }

    /// Connections accepted since the start, refused ones included.
    pub fn connections_accepted(&self) -> usize {
        self.counts.borrow().accepted
    }

    /// Connections being served now.
    pub fn connections_open(&self) -> usize {
        self.counts.borrow().open
    }

    /// Returns once exactly `count` connections are being served.
    pub async fn wait_for_open(&self, count: usize) {
        let mut counts = self.counts.subscribe();
        let reached = counts.wait_for(|counts| counts.open == count).await;
        reached.expect("the proxy itself keeps the sender");
    }

    /// Returns once at least `count` connections have been accepted since the start.
    pub async fn wait_for_accepted(&self, count: usize) {
        let mut counts = self.counts.subscribe();
        let reached = counts.wait_for(|counts| counts.accepted >= count).await;
        reached.expect("the proxy itself keeps the sender");
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What the tasks of all connections work with.
#[derive(Clone)]
struct Tools {
    faults: watch::Receiver<Fault>,
    losses: Arc<Losses>,
    injected: watch::Receiver<Bytes>,
}

async fn accept(
    listener: TcpListener,
    target: Arc<OnceLock<SocketAddr>>,
    tools: Tools,
    counts: Arc<watch::Sender<Counts>>,
) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A proxy that cannot accept is no use to a test; closing everything shows that
                // soonest.
                let Ok((client, _)) = accepted else { return };
                // The fault is read first: a cut by someone who has seen the count holds for this
                // connection.
                let fault = *tools.faults.borrow();
                counts.send_modify(|counts| counts.accepted += 1);
                let Some(&target) = target.get().filter(|_| !fault.refusing) else {
                    reset(client);
                    continue;
                };
                let open = OpenConnection::count(counts.clone());
                serving.spawn(serve(client, target, tools.clone(), fault.cuts, open));
            }
            Some(_) = serving.join_next() => {}
        }
    }
}

async fn serve(mut client: TcpStream, target: SocketAddr, tools: Tools, cuts: u64, _open: OpenConnection) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        reset(client);
        return;
    };
    for stream in [&client, &server] {
        // A socket that refuses the option still forwards, only later.
        let _ = stream.set_nodelay(true);
    }
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    let lost: OnceLock<Lost> = OnceLock::new();
    let mut seen = Vec::new();
    let request_passes = |chunk: &[u8]| {
        if lost.get().is_none()
            && let Some(ordered) = tools.losses.take(&mut seen, chunk)
        {
            let _ = lost.set(ordered);
            if ordered == Lost::Request {
                tools.losses.count();
            }
        }
        lost.get() != Some(&Lost::Request)
    };
    let mut counted = false;
    let answer_passes = |_: &[u8]| {
        let passes = lost.get() != Some(&Lost::Answer);
        if !passes && !std::mem::replace(&mut counted, true) {
            tools.losses.count();
        }
        passes
    };
    // Nothing is ever said to a server but what its client said.
    let (_never, nothing) = watch::channel(Bytes::new());
    let mut injected = tools.injected.clone();
    injected.mark_unchanged();
    let both_ended = async {
        tokio::join!(
            forward(client_read, server_write, tools.faults.clone(), request_passes, nothing),
            forward(server_read, client_write, tools.faults.clone(), answer_passes, injected)
        );
    };
    let mut cut = tools.faults.clone();
    tokio::select! {
        () = both_ended => return,
        // An error means that the proxy is gone, and so is this connection.
        _ = cut.wait_for(|fault| fault.cuts != cuts) => {}
    }
    reset(client);
    reset(server);
}

/// One direction of a connection, until its end has been passed on.
async fn forward(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut faults: watch::Receiver<Fault>,
    mut passes: impl FnMut(&[u8]) -> bool,
    mut injected: watch::Receiver<Bytes>,
) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_UNDER_WAY_MAX);
    let delays = faults.clone();
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let chunk = buffer.split().freeze();
            if !passes(&chunk) {
                continue;
            }
            let due = Instant::now() + delays.borrow().delay;
            if sender.send((due, chunk)).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        loop {
            let (due, chunk) = tokio::select! {
                chunk = chunks.recv() => match chunk {
                    Some(chunk) => chunk,
                    None => break,
                },
                Ok(()) = injected.changed() => (Instant::now(), injected.borrow_and_update().clone()),
            };
            tokio::time::sleep_until(due).await;
            if faults.wait_for(|fault| !fault.silent).await.is_err() || to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The end of the stream is news too, and no more gets through a silent proxy than data
        // does.
        if faults.wait_for(|fault| !fault.silent).await.is_ok() {
            let _ = to.shutdown().await;
        }
    };
    tokio::join!(reading, writing);
}

/// Closes a socket with a reset instead of an orderly end.
fn reset(stream: TcpStream) {
    // A socket that refuses the option closes in order, which breaks the connection as well.
    let _ = stream.set_zero_linger();
}

/// Counts as an open connection for as long as it lives.
struct OpenConnection(Arc<watch::Sender<Counts>>);

impl OpenConnection {
    fn count(counts: Arc<watch::Sender<Counts>>) -> OpenConnection {
        counts.send_modify(|counts| counts.open += 1);
        OpenConnection(counts)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.send_modify(|counts| counts.open -= 1);
    }
}
