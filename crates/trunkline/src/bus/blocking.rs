//! Waiting for a publish where nothing may be awaited.
//!
//! The future runs on a thread of its own with a runtime of its own, so that the caller may block any thread, that of
//! a current-thread runtime included, and the publish still goes on.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::backend::{Fut, PublishError, Receipt};

/// The thread, started when it is first needed, joined when it is dropped.
#[derive(Default)]
pub(crate) struct BlockingPublisher {
    /// Guards the start of the thread; held for that alone.
    thread: Mutex<Option<Worker>>,
}

struct Worker {
    /// Not bounded by itself: every caller waits for its one future, and those it gave up on end by their own timeout.
    /// `None` once the worker is being dropped.
    jobs: Option<UnboundedSender<Fut<'static, ()>>>,
    handle: Option<JoinHandle<()>>,
}

impl BlockingPublisher {
    /// Runs `publishing` and blocks this thread until it is over or `wait` has passed, when its outcome is unknown.
    pub(crate) fn wait(
        &self,
        publishing: Fut<'static, Result<Receipt, PublishError>>,
        wait: Duration,
        server: impl FnOnce() -> String,
    ) -> Result<Receipt, PublishError> {
        let (outcome, result): (SyncSender<_>, _) = sync_channel(1);
        self.run(Box::pin(async move {
            // The caller may have given up by now.
            let _ = outcome.send(publishing.await);
        }));
        match result.recv_timeout(wait) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(PublishError::OutcomeUnknown { server: server(), waited: wait })
            }
        }
    }

    /// Runs `future` to its end, or until the bus is gone.
    pub(crate) fn run(&self, future: Fut<'static, ()>) {
        let mut thread = self.thread.lock();
        let worker = thread.get_or_insert_with(Worker::start);
        if let Some(jobs) = &worker.jobs {
            // It fails only when the thread could not start, and then the caller learns by its timeout.
            let _ = jobs.send(future);
        }
    }
}

impl Worker {
    fn start() -> Self {
        let (jobs, queue) = unbounded_channel();
        let handle = std::thread::Builder::new().name("trunkline-blocking".into()).spawn(move || run(queue));
        if let Err(error) = &handle {
            tracing::error!(%error, "no thread for blocking publishes");
        }
        Self { jobs: Some(jobs), handle: handle.ok() }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(handle) = self.handle.take() {
            // The last clone of a bus may be dropped by a future on this very thread.
            if handle.thread().id() != std::thread::current().id() {
                let _ = handle.join();
            }
        }
    }
}

fn run(mut queue: UnboundedReceiver<Fut<'static, ()>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime for blocking publishes");
            return;
        }
    };
    runtime.block_on(async move {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                job = queue.recv() => match job {
                    Some(job) => drop(running.spawn(job)),
                    None => return,
                },
                Some(_) = running.join_next() => {}
            }
        }
    });
}
