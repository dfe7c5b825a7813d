//! What a backend hands to the suite: connections, the column of the table it is held to, and ways to hurt its server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use trunkline::backend::{Backend, BackendKind, Capabilities, Fut, NoResponders};
use trunkline::{Pattern, Subject};

/// A column of the table of guarantees on [`Backend`]: what a backend is held to, whatever it says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// In this process.
    InMemory,
    /// Redis Streams.
    Redis,
    /// NATS without JetStream.
    NatsCore,
    /// NATS with JetStream.
    JetStream,
}

impl Column {
    /// What the column promises. This is the one table that decides whether a property must hold or must be refused.
    pub const fn capabilities(self) -> Capabilities {
        let kind = match self {
            Self::InMemory => BackendKind::InMemory,
            Self::Redis => BackendKind::Redis,
            Self::NatsCore | Self::JetStream => BackendKind::Nats,
        };
        let streams = !matches!(self, Self::NatsCore);
        Capabilities {
            kind,
            streams,
            subscribe_from_offset: streams,
            durable: matches!(self, Self::Redis | Self::JetStream),
            // On JetStream only subscriptions that start in a stream resume.
            resumes_after_reconnect: matches!(self, Self::Redis),
            fenced_acks: matches!(self, Self::InMemory | Self::Redis),
            dedupe: streams,
            no_responders: match self {
                Self::Redis => NoResponders::Registry,
                _ => NoResponders::AtOnce,
            },
        }
    }

    /// Whether there is a server that can go away.
    pub const fn has_server(self) -> bool {
        !matches!(self, Self::InMemory)
    }
}

/// Ways to hurt the server behind a backend. Each future is over when the deed is done.
pub trait Faults: Send + Sync {
    /// Ends the server as `kill -9` does.
    fn kill(&self) -> Fut<'_, ()>;

    /// Starts the server again at the same address, ready when the future is over.
    fn restart(&self) -> Fut<'_, ()>;

    /// Stops the server in its tracks (SIGSTOP): connections stay open, nothing answers.
    fn pause(&self) -> Fut<'_, ()>;

    /// Lets a paused server go on.
    fn resume(&self) -> Fut<'_, ()>;
}

type Connect = dyn Fn() -> Fut<'static, Arc<dyn Backend>> + Send + Sync;

/// One backend under test. Each property gets a harness of its own, with names that no other property uses, so
/// that several may share a server.
pub struct Harness {
    column: Column,
    connect: Box<Connect>,
    faults: Option<Box<dyn Faults>>,
    repeats_deliveries: bool,
    lease_factor: u32,
    root: String,
}

impl Harness {
    /// A backend whose connections `connect` makes; each call of it stands for another process on the same bus.
    pub fn new<F>(column: Column, connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Arc<dyn Backend>> + Send + 'static,
    {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            column,
            connect: Box::new(move || Box::pin(connect())),
            faults: None,
            repeats_deliveries: false,
            lease_factor: 1,
            root: format!("c{}-{:08x}-{n}", std::process::id(), fastrand::u32(..)),
        }
    }

    /// Adds the ways to hurt the server. Every column that has a server needs them.
    pub fn with_faults(mut self, faults: impl Faults + 'static) -> Self {
        self.faults = Some(Box::new(faults));
        self
    }

    /// For a server that is known to give deliveries out again under their old number, see
    /// [`Expectations::repeats_deliveries`](crate::history::Expectations::repeats_deliveries). It is not held to order by key, and
    /// a property that fails is tried again with a fresh server.
    #[must_use]
    pub fn that_repeats_deliveries(mut self) -> Self {
        self.repeats_deliveries = true;
        self
    }

    /// For several servers with a copy of each stream, which have to agree before a delivery or an acknowledgement counts:
    /// leases last so many times as long, so that what is done well within one is not done too late.
    #[must_use]
    pub fn that_has_copies(mut self, times: u32) -> Self {
        self.lease_factor = times;
        self
    }

    /// Whether several servers have a copy of each stream. What was confirmed one or the other of them hears of a moment later.
    pub fn has_copies(&self) -> bool {
        self.lease_factor > 1
    }

    /// How long a lease lasts that `usual` is enough for on a single server.
    pub fn lease(&self, usual: Duration) -> Duration {
        usual * self.lease_factor
    }

    /// Whether the server is known to give deliveries out again under their old number.
    pub fn repeats_deliveries(&self) -> bool {
        self.repeats_deliveries
    }

    /// What the backend is held to.
    pub fn column(&self) -> Column {
        self.column
    }

    /// A fresh connection: another process as far as the bus can tell.
    pub async fn backend(&self) -> Arc<dyn Backend> {
        (self.connect)().await
    }

    /// As [`Harness::backend`], for a runtime of the property's own: the connection lives where the future is polled.
    pub fn connecting(&self) -> Fut<'static, Arc<dyn Backend>> {
        (self.connect)()
    }

    /// How to hurt the server.
    ///
    /// # Panics
    /// When the column has a server and the harness brings no faults: its properties must not pass untested.
    pub fn faults(&self) -> &dyn Faults {
        self.faults.as_deref().expect("a backend with a server brings ways to hurt it: Harness::with_faults")
    }

    /// First token of all subjects of this harness.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A subject that only this harness uses.
    pub fn subject(&self, tail: &str) -> Subject {
        Subject::new(format!("{}.{tail}", self.root)).expect("the suite writes valid subjects")
    }

    /// A pattern that only this harness uses.
    pub fn pattern(&self, tail: &str) -> Pattern {
        Pattern::new(format!("{}.{tail}", self.root)).expect("the suite writes valid patterns")
    }

    /// The name of a stream that only this harness uses.
    pub fn stream(&self, name: &str) -> String {
        format!("{}-{name}", self.root)
    }
}

impl std::fmt::Debug for Harness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harness")
            .field("column", &self.column)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}
