//! The other end of a run, the same for all sides: a raw socket on a thread of its own, whose CPU time is known and so can
//! be left out of what the side under test costs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::batch::Batch;
use super::super::beside::Load;
use super::super::body::Body;
use super::super::connection::{CONTROL_BUFFER_BYTES, Connection};
use super::super::endpoint::Endpoint;
use super::super::error::BenchError;
use super::super::halt::Halt;
use super::super::process;
use super::super::request::{READ_BYTES, respond};
use super::super::window::Window;

/// Most messages that a publisher is ahead of the subscriber, far below what either side can hold.
pub(super) const WINDOW_MESSAGES: u64 = 16_384;

/// A publisher or a responder.
pub(super) struct Peer {
    /// Its own, so that the run which drops it still fails by its own reason.
    halt: Arc<Halt>,
    begin: mpsc::Sender<()>,
    /// Above zero while it is needed.
    needed: Arc<AtomicUsize>,
    /// It ends with its work, when it is not needed any more, or within a POLL after this was dropped.
    thread: Option<JoinHandle<Result<Duration, BenchError>>>,
}

impl Peer {
    /// Publishes numbered messages, within a window ahead of its reader, once it is told to [begin](Self::begin).
    pub(super) async fn publisher(
        load: &Arc<Load>,
        endpoint: &Endpoint,
        subject: &str,
        window: &Arc<Window>,
    ) -> Result<Self, BenchError> {
        let (endpoint, window) = (endpoint.clone(), window.clone());
        let claim = Window::claim_max(WINDOW_MESSAGES, 1);
        let mut batch = Batch::new(
            subject,
            (Body::Raw, load.payload_bytes),
            0,
            usize::try_from(claim).unwrap_or(usize::MAX),
        );
        let open = move |halt: &Halt| Connection::open(&endpoint, CONTROL_BUFFER_BYTES, halt);
        let messages = load.messages;
        Self::start(load, open, move |mut connection, halt, _| {
            let mut sent = 0;
            while sent < messages {
                let count = batch.messages().min(messages - sent);
                window.claim(count, "the publisher", halt)?;
                connection.send(batch.stamped(sent, count), halt)?;
                sent += count;
            }
            Ok(())
        })
        .await
    }

    /// Sends every payload back, until the run is over.
    pub(super) async fn responder(
        load: &Arc<Load>,
        endpoint: &Endpoint,
        subject: &str,
    ) -> Result<Self, BenchError> {
        let (endpoint, subscribe) = (endpoint.clone(), format!("SUB {subject} 1\r\n"));
        let open = move |halt: &Halt| {
            let mut connection = Connection::open(&endpoint, READ_BYTES, halt)?;
            connection.send(subscribe.as_bytes(), halt)?;
            connection.round_trip("the responder", halt)?;
            Ok(connection)
        };
        Self::start(load, open, |mut connection, halt, needed| respond(&mut connection, needed, halt)).await
    }

    async fn start(
        load: &Arc<Load>,
        open: impl FnOnce(&Halt) -> Result<Connection, BenchError> + Send + 'static,
        work: impl FnOnce(Connection, &Halt, &AtomicUsize) -> Result<(), BenchError> + Send + 'static,
    ) -> Result<Self, BenchError> {
        let (ready, prepared) = oneshot::channel();
        let (begin, begun) = mpsc::channel();
        let needed = Arc::new(AtomicUsize::new(1));
        let halt = Arc::new(Halt::new(&Arc::default(), load.halt.timeout));
        let thread = std::thread::spawn({
            let (halt, needed) = (halt.clone(), needed.clone());
            move || {
                let connection = open(&halt)?;
                // Fails when the run is over already, and then the next line does, too.
                let _ = ready.send(());
                let Ok(()) = begun.recv() else { return Ok(Duration::ZERO) };
                let before = process::thread_cpu()?;
                work(connection, &halt, &needed)?;
                Ok(process::thread_cpu()?.saturating_sub(before))
            }
        });
        let peer = Self { halt, begin, needed, thread: Some(thread) };
        match prepared.await {
            Ok(()) => Ok(peer),
            // It has failed: its own error says why.
            Err(_) => peer.end().await.and(Err(BenchError::Closed)),
        }
    }

    /// Lets it work.
    pub(super) fn begin(&self) {
        // Fails when it has ended, which `end` tells.
        let _ = self.begin.send(());
    }

    /// Waits for its end, and tells what CPU time its work took.
    pub(super) async fn end(mut self) -> Result<Duration, BenchError> {
        self.needed.store(0, Ordering::Release);
        let Some(thread) = self.thread.take() else { return Ok(Duration::ZERO) };
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        match joined {
            Ok(Ok(cpu)) => cpu,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => Err(BenchError::Interrupted),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // The run has failed. Whatever this waits for, it looks up within a POLL.
            self.halt.fail();
            self.needed.store(0, Ordering::Release);
            let (closed, _) = mpsc::channel();
            self.begin = closed;
            let _ = thread.join();
        }
    }
}
