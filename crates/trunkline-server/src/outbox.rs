//! What a connection still has to send.
//!
//! Whoever has bytes for a client writes them straight to its socket, as long as nothing waits there; only what the
//! socket does not take is kept, and the connection's own task writes it when the socket has room. One write a batch
//! and no hand-over between tasks is what makes the server fast.

mod waiting;

use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use trunkline::memory::{Charge, Holding, MemoryBudget};

use crate::socket::Socket;
use waiting::Waiting;

/// Past it a publisher is paused, so that a fast one does not fill memory before a slow reader could say a word.
pub(crate) const HIGH_WATER_BYTES: usize = 1 << 20;
/// Most writes at a time, of 256 KiB each: what waits for a reader that is as fast as its publishers never ends.
const WRITES_MAX: usize = 16;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// So many bytes wait for the socket now.
    Pending(usize),
    /// The connection is closed, or was closed by this write.
    Closed,
}

/// Why the connection's task has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Reads and writes go on.
    No,
    /// What waits is to be sent first.
    WhenFlushed,
    /// At once.
    Now,
}

/// Which bound a client has reached that does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlowBy {
    /// `server.limits.max_pending`.
    Pending,
    /// `server.limits.write_deadline`.
    Deadline,
    /// `runtime.resources.memory`: all buffers together have what they may, and most waits for this client.
    Memory,
}

impl SlowBy {
    pub(crate) const ALL: [SlowBy; 3] = [SlowBy::Pending, SlowBy::Deadline, SlowBy::Memory];

    /// The value of the metric's label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "max_pending",
            Self::Deadline => "write_deadline",
            Self::Memory => "memory",
        }
    }
}

/// How a client was found that does not read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slow {
    pub(crate) by: SlowBy,
    /// Bytes that waited for it.
    pub(crate) pending: usize,
}

#[derive(Debug)]
pub(crate) struct Outbox {
    /// Guards what waits, and with it who may write: only who holds it touches the socket's sending side. It is held
    /// during one non-blocking write and never across an await.
    state: Mutex<State>,
    /// Wakes the connection's task: something waits, or the connection is to end.
    wake: Notify,
    /// Wakes publishers that pause: what waits is below half of the high water mark.
    drained: Notify,
    pending_max: usize,
}

#[derive(Debug)]
struct State {
    /// `None` once the connection is over: routing caches may remember a subscription, and with it this outbox, for as
    /// long as nobody publishes, and the socket must not stay open with them.
    socket: Option<Arc<Socket>>,
    waiting: Waiting,
    /// For what `waiting` takes. It changes when chunks come and go, and not with every message.
    charge: Charge,
    /// Bytes that the socket has taken and TCP has not, as there is TLS or WebSocket between them.
    unsent: usize,
    ending: Ending,
    /// It was cut off because it did not read.
    slow: Option<Slow>,
    /// Since when the socket has taken nothing of what waits.
    stuck_since: Option<Instant>,
}

impl State {
    fn pending(&self) -> usize {
        self.waiting.len() + self.unsent
    }

    fn end(&mut self, ending: Ending) {
        if ending == Ending::Now {
            self.waiting.clear();
            self.unsent = 0;
            self.charge.set(0);
        }
        if self.ending != Ending::Now {
            self.ending = ending;
        }
    }
}

impl Outbox {
    pub(crate) fn new(socket: Arc<Socket>, pending_max: usize, memory: &Arc<MemoryBudget>) -> Self {
        let state = State {
            socket: Some(socket),
            waiting: Waiting::default(),
            charge: Charge::new(memory, Holding::Output),
            unsent: 0,
            ending: Ending::No,
            slow: None,
            stuck_since: None,
        };
        Self { state: Mutex::new(state), wake: Notify::new(), drained: Notify::new(), pending_max }
    }

    /// The outbox of a connection that is over.
    pub(crate) fn without_socket() -> Self {
        let state = State {
            socket: None,
            waiting: Waiting::default(),
            charge: Charge::new(&Arc::default(), Holding::Output),
            unsent: 0,
            ending: Ending::Now,
            slow: None,
            stuck_since: None,
        };
        Self { state: Mutex::new(state), wake: Notify::new(), drained: Notify::new(), pending_max: 0 }
    }

    /// Lets go of the socket: the connection is over.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.end(Ending::Now);
        state.socket = None;
        drop(state);
        self.drained.notify_waiters();
    }

    /// Sends the slices in order: to the socket when nothing waits, behind what waits otherwise. Of more slices than the kernel
    /// takes in one call, the standard library offers it the first.
    pub(crate) fn write(&self, slices: &[IoSlice<'_>], total: usize) -> Written {
        let mut state = self.state.lock();
        if state.ending != Ending::No {
            return Written::Closed;
        }
        let mut written = 0;
        let idle = state.pending() == 0;
        if idle {
            let Some(socket) = &state.socket else { return Written::Closed };
            match socket.try_write_vectored(slices) {
                Ok(n) => {
                    written = n;
                    state.unsent = socket.unsent();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    state.end(Ending::Now);
                    self.wake.notify_one();
                    return Written::Closed;
                }
            }
            if written == total && state.unsent == 0 {
                return Written::Pending(0);
            }
        }
        self.keep(&mut state, slices, written, total - written, idle)
    }

    /// Leaves bytes to the connection's task: what is published in this process one message at a time is written in
    /// batches that way.
    pub(crate) fn write_later(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Written {
        let mut state = self.state.lock();
        if state.ending != Ending::No {
            return Written::Closed;
        }
        let idle = state.pending() == 0;
        state.waiting.put(encode);
        self.check_bound(&mut state, idle)
    }

    fn keep(
        &self,
        state: &mut State,
        slices: &[IoSlice<'_>],
        skip: usize,
        rest: usize,
        idle: bool,
    ) -> Written {
        state.waiting.extend(slices, skip, rest);
        self.check_bound(state, idle)
    }

    /// Wakes the task if something waits for the first time, and cuts the client off past the bound.
    fn check_bound(&self, state: &mut State, was_idle: bool) -> Written {
        let pending = state.pending();
        let allocated = state.waiting.allocated() + state.unsent;
        state.charge.set(allocated);
        if pending > self.pending_max {
            state.slow = Some(Slow { by: SlowBy::Pending, pending });
            state.end(Ending::Now);
            self.wake.notify_one();
            return Written::Closed;
        }
        if was_idle {
            state.stuck_since = Some(Instant::now());
            self.wake.notify_one();
        }
        Written::Pending(pending)
    }

    /// Writes what waits as far as the socket takes it, up to 4 MiB; `true` when nothing waits any more.
    pub(crate) fn flush(&self) -> bool {
        for _ in 0..WRITES_MAX {
            let mut state = self.state.lock();
            if state.pending() == 0 {
                self.emptied(&mut state);
                return true;
            }
            let Some(socket) = &state.socket else { return true };
            let written = match state.waiting.len() {
                0 => socket.try_flush().map(|_| 0),
                _ => socket.try_write_vectored(&state.waiting.first()),
            };
            let unsent = socket.unsent();
            match written {
                Ok(n) => {
                    let before = state.pending();
                    state.waiting.sent(n);
                    state.unsent = unsent;
                    let allocated = state.waiting.allocated() + unsent;
                    state.charge.set(allocated);
                    state.stuck_since = Some(Instant::now());
                    let low = HIGH_WATER_BYTES / 2;
                    if before > low && state.pending() <= low {
                        self.drained.notify_waiters();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if unsent < state.unsent {
                        state.unsent = unsent;
                        state.stuck_since = Some(Instant::now());
                    }
                    return false;
                }
                Err(_) => {
                    state.end(Ending::Now);
                    return true;
                }
            }
        }
        false
    }

    fn emptied(&self, state: &mut State) {
        state.stuck_since = None;
        self.drained.notify_waiters();
    }

    /// Whether the socket has something to send that nobody has written: an answer to a ping, or to a new key.
    pub(crate) fn note_unsent(&self) -> bool {
        let mut state = self.state.lock();
        if state.ending == Ending::Now {
            return false;
        }
        state.unsent = state.socket.as_ref().map_or(0, |socket| socket.unsent());
        state.pending() > 0
    }

    /// Ends the connection: at once, or after what waits was sent.
    pub(crate) fn end(&self, ending: Ending) {
        self.state.lock().end(ending);
        self.wake.notify_one();
    }

    pub(crate) fn ending(&self) -> Ending {
        let state = self.state.lock();
        match state.ending {
            Ending::WhenFlushed if state.pending() == 0 => Ending::Now,
            other => other,
        }
    }

    /// Set where the client was cut off because it did not read.
    pub(crate) fn slow(&self) -> Option<Slow> {
        self.state.lock().slow
    }

    pub(crate) fn pending(&self) -> usize {
        self.state.lock().pending()
    }

    /// Bytes of memory that are charged for what waits.
    pub(crate) fn held(&self) -> usize {
        self.state.lock().charge.bytes()
    }

    /// For how long the socket has taken nothing of what waits.
    pub(crate) fn stuck_for(&self, now: Instant) -> Option<Duration> {
        self.state.lock().stuck_since.map(|since| now.saturating_duration_since(since))
    }

    /// Cuts the client off because it does not read.
    pub(crate) fn cut_off_slow(&self, by: SlowBy) {
        {
            let mut state = self.state.lock();
            if state.ending == Ending::Now {
                return;
            }
            state.slow = Some(Slow { by, pending: state.pending() });
        }
        self.end(Ending::Now);
    }

    /// Wakes the connection's task for another reason than its output.
    pub(crate) fn rouse(&self) {
        self.wake.notify_one();
    }

    /// Waits until something waits for the first time, or the connection is to end, or has been roused.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Waits until what waits is below half of the high water mark.
    pub(crate) async fn has_drained(&self) {
        let drained = self.drained.notified();
        if self.pending() > HIGH_WATER_BYTES / 2 && self.ending() == Ending::No {
            drained.await;
        }
    }
}
