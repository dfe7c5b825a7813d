//! How properties run a consumer of the bus and watch it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use trunkline::backend::{Backend, ConsumerInfo, ReadRequest, Start, StreamError};
use trunkline::{Bus, Consumer, Delivered, HandlerError, Key, Message};

use crate::conformance::Harness;
use crate::conformance::probe::{PATIENCE, ensure, soon, streams};

/// Makes the stream `work` over `work.*`, and gives its name.
pub async fn work(harness: &Harness) -> String {
    let name = harness.stream("work");
    ensure(&*harness.backend().await, &name, harness.pattern("work.*")).await;
    name
}

/// How the consumer `c` of a stream stands.
pub async fn info(backend: &dyn Backend, stream: &str) -> ConsumerInfo {
    let info = soon("info", streams(backend).consumer_info(stream, "c")).await;
    info.expect("the stream is there").expect("the consumer is there")
}

/// Waits until everything that the stream has for its consumer is settled.
pub async fn settled(backend: &dyn Backend, stream: &str) {
    let all_settled = async {
        loop {
            let info = info(backend, stream).await;
            if info.pending == 0 && info.lag == 0 {
                return;
            }
            // The trait has no event for it: whoever wants to know asks again.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("everything is settled", all_settled).await;
}

/// Name of the built-in stream of dead letters.
pub fn dead_stream(harness: &Harness) -> String {
    format!("dead-{}", harness.root())
}

/// All dead letters there are, in order.
pub async fn dead_letters(harness: &Harness) -> Vec<Arc<Message>> {
    let backend = harness.backend().await;
    let request = ReadRequest { from: Start::Beginning, filter: Some(harness.pattern("dead.>")), max: 1000 };
    match soon("read", streams(&*backend).read(&dead_stream(harness), request)).await {
        Ok(page) => page.messages.into_iter().map(|stored| stored.message).collect(),
        Err(StreamError::NoStream(_)) => Vec::new(),
        Err(error) => panic!("dead letters cannot be read: {error:?}"),
    }
}

/// A consumer in the making: `c` of a stream, from the beginning.
#[derive(Debug, Clone)]
pub struct Job {
    stream: String,
    concurrency: usize,
    by_subject: bool,
}

impl Job {
    /// One that handles one delivery at a time.
    pub fn new(stream: &str) -> Self {
        Self { stream: stream.to_owned(), concurrency: 1, by_subject: false }
    }

    /// Sets how many deliveries it handles at once.
    pub fn concurrency(mut self, deliveries: usize) -> Self {
        self.concurrency = deliveries;
        self
    }

    /// Orders it by subject; a subject that ends in `approval` is no key.
    pub fn by_subject(mut self) -> Self {
        self.by_subject = true;
        self
    }
}

/// A handler that began.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The number in the payload; 0 where it holds none.
    pub number: u64,
    /// Which delivery it was.
    pub attempt: u32,
    /// When.
    pub at: Instant,
}

/// A running consumer, and every run of its handler.
#[derive(Debug)]
pub struct Running {
    consumer: Consumer,
    runs: mpsc::UnboundedReceiver<Run>,
}

/// Starts a consumer.
pub async fn start<F, H>(bus: &Bus, job: Job, handler: F) -> Running
where
    F: Fn(Delivered) -> H + Send + Sync + 'static,
    H: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    // Bounded by what the property publishes.
    let (ran, runs) = mpsc::unbounded_channel();
    let stream = bus.stream(&job.stream).expect("a backend with streams");
    let builder = stream.consumer("c").expect("a valid name").start(Start::Beginning);
    let mut builder = builder.concurrency(job.concurrency);
    if job.by_subject {
        builder = builder.ordered_by(Key::with(|received| {
            let subject = received.subject();
            (subject.tokens().last() != Some("approval")).then(|| subject.to_string())
        }));
    }
    let spawned = builder.spawn(move |delivered: Delivered| {
        let payload = std::str::from_utf8(&delivered.received().message().payload).unwrap_or_default();
        let number = payload.parse().unwrap_or_default();
        // Nobody counts the runs any more once the property has dropped its end.
        let _ = ran.send(Run { number, attempt: delivered.attempt(), at: Instant::now() });
        handler(delivered)
    });
    let consumer = soon("spawn", spawned).await.expect("joining a consumer of a stream that is there");
    Running { consumer, runs }
}

impl Running {
    /// The next run of the handler, which must come.
    pub async fn run(&mut self) -> Run {
        soon("the next run of a handler", self.runs.recv()).await.expect("the consumer runs")
    }

    /// All runs that nobody has looked at.
    pub fn runs_so_far(&mut self) -> Vec<Run> {
        std::iter::from_fn(|| self.runs.try_recv().ok()).collect()
    }

    /// Whether every run has been looked at. To be asked when nothing is left to run.
    pub fn no_more_runs(&mut self) -> bool {
        self.runs_so_far().is_empty()
    }

    /// Stops it and cancels its handlers.
    pub async fn stop(self) {
        soon("stop", self.consumer.stop()).await.expect("it ran until now");
    }
}

/// Something on a runtime of its own that can die as a process does: all its tasks are dropped where they are.
pub struct Mortal<T> {
    runtime: Runtime,
    /// What it made.
    pub made: T,
}

/// Runs `future` on a runtime of its own.
pub async fn die_with<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Mortal<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime for the test");
    let made = soon("the start", runtime.spawn(future)).await.expect("no panic");
    Mortal { runtime, made }
}

impl<T> Mortal<T> {
    /// Dies. Only when all its tasks have been dropped is what it made dropped too: a handle that is dropped earlier
    /// would have them end in good order.
    pub async fn die(self) {
        let Self { runtime, made } = self;
        let ending = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE));
        soon("the death", ending).await.expect("no panic");
        drop(made);
    }
}
