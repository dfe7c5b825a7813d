//! On NATS, too, what waits in this process is charged to `runtime.resources.memory`, and bounded by it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::{
    Backend, LiveEvent, LiveSource, PublishError, PublishOptions, Publishing, Receipt, Start, StreamConfig,
    SubscribeOptions,
};
use trunkline::config::Loader;
use trunkline::memory::Holding;
use trunkline::{Bus, MemoryBudget, Message};
use trunkline_testkit::{NatsServer, TcpProxy};

/// Longer than anything here may take; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(30);
const LARGE: usize = 512 << 10;
/// Half of these are for buffers: 32 messages of that size.
const MEMORY: u64 = 32 << 20;

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

fn message(subject: &str, text: &str, size: usize) -> Message {
    let mut payload = text.to_owned().into_bytes();
    payload.resize(size.max(text.len()), b' ');
    Message::new(subject.parse().expect("a subject"), payload)
}

async fn publish(backend: &NatsBackend, message: Message) {
    soon("a publish", backend.publish(message, PublishOptions::default()).outcome())
        .await
        .expect("it is taken");
}

/// The messages up to the last one, and how many are missing; whoever publishes that one waits until the others were read.
#[derive(Debug, Default)]
struct Read {
    received: u64,
    missed: u64,
    last: bool,
}

impl Read {
    async fn some(&mut self, source: &mut dyn LiveSource) {
        let mut events = Vec::new();
        soon("an event", std::future::poll_fn(|cx| source.poll_batch(cx, 1000, &mut events))).await;
        for event in events {
            match event {
                LiveEvent::Message { message, .. } if message.payload.starts_with(b"last") => {
                    self.last = true
                }
                LiveEvent::Message { .. } => self.received += 1,
                LiveEvent::Gap(gap) => self.missed += gap.missed.expect("it was counted"),
            }
        }
    }
}

/// A reader that reads nothing keeps what there is memory for, and is told how much it missed; another one misses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_there_is_no_memory_for_is_a_gap_of_the_reader_for_whom_most_waits() {
    const MESSAGES: u64 = 100;
    let server = NatsServer::start::<&str>([]);
    let memory = Arc::new(MemoryBudget::new(MEMORY));
    let options = NatsOptions { memory: memory.clone(), ..NatsOptions::new([server.url()]) };
    let backend = soon("the server", NatsBackend::connect(options)).await.expect("it is up");
    let subscribe = async |pattern: &str| {
        let subscribing = backend.subscribe(pattern.parse().expect("a pattern"), SubscribeOptions::default());
        soon("a subscription", subscribing).await.expect("a live connection")
    };
    let (mut slow, mut fast) = (subscribe("large").await, subscribe("small").await);
    let sender = NatsBackend::connect(NatsOptions::new([server.url()])).await.expect("it is up");
    for n in 0..MESSAGES {
        publish(&sender, message("large", "n", LARGE)).await;
        publish(&sender, message("small", &n.to_string(), 0)).await;
    }
    soon("the messages", sender.flush()).await.expect("a live connection");
    let mut small = Read::default();
    while small.received < MESSAGES {
        small.some(&mut *fast).await;
    }
    assert_eq!(small.missed, 0, "a little is always taken");
    // Everything was sent to this connection by now, and is in the inbox or counted.
    soon("a flush", backend.flush()).await.expect("a live connection");
    let mut large = Read::default();
    while large.received + large.missed < MESSAGES {
        let held = memory.held(Holding::Inboxes) as u64;
        assert!(held <= MEMORY / 2 + 2 * LARGE as u64, "{held} bytes are held");
        large.some(&mut *slow).await;
    }
    assert!(large.missed >= MESSAGES / 2 && large.received >= 20, "{large:?}");
    assert_eq!(backend.dropped_messages(), large.missed);
    assert!(memory.held(Holding::Inboxes) <= 128 << 10, "{}", memory.held(Holding::Inboxes));
    publish(&sender, message("large", "last", LARGE)).await;
    while !large.last {
        large.some(&mut *slow).await;
    }
    assert_eq!(large.received + large.missed, MESSAGES, "what is read is no gap later");
    drop((slow, fast, backend));
    assert_eq!(memory.used(), 0);
}

/// Whoever reads a stream from its beginning reads all of it, however little memory there is: what is stored can wait there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_waits_in_its_stream_while_memory_is_short() {
    const MESSAGES: u64 = 80;
    let server = NatsServer::start(["-js"]);
    let memory = Arc::new(MemoryBudget::new(MEMORY));
    let options = NatsOptions { memory: memory.clone(), ..NatsOptions::new([server.url()]) };
    let backend = soon("the server", NatsBackend::connect(options)).await.expect("it is up");
    let streams = backend.streams().expect("JetStream");
    let config = StreamConfig::new("all".to_owned(), vec!["all.>".parse().expect("a pattern")]);
    soon("a stream", streams.ensure(config)).await.expect("it is made");
    for _ in 0..MESSAGES {
        publish(&backend, message("all.x", "n", LARGE)).await;
    }
    let options = SubscribeOptions { start: Some(Start::Beginning), ..SubscribeOptions::default() };
    let subscribing = backend.subscribe("all.>".parse().expect("a pattern"), options);
    let mut source = soon("a subscription", subscribing).await.expect("it is stored");
    // It is not read before there is no more memory.
    soon("a full inbox", async {
        while !memory.is_exceeded() {
            soon("a flush", backend.flush()).await.expect("a live connection");
        }
    })
    .await;
    let mut read = Read::default();
    while read.received + read.missed < MESSAGES {
        let held = memory.held(Holding::Inboxes) as u64;
        assert!(held <= MEMORY / 2 + 4 * LARGE as u64, "{held} bytes are held");
        read.some(&mut *source).await;
    }
    assert_eq!((read.received, read.missed), (MESSAGES, 0));
}

/// What waits for a JetStream that does not answer is charged, too. Past the bound a publish is refused and was not sent; what
/// was taken is stored when there is an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_there_is_no_memory_for_is_refused_before_it_is_sent() {
    const MESSAGES: usize = 60;
    let server = NatsServer::start(["-js"]);
    let direct = soon("the server", NatsBackend::connect(NatsOptions::new([server.url()]))).await;
    let direct = direct.expect("it is up");
    let streams = direct.streams().expect("JetStream");
    let config = StreamConfig::new("all".to_owned(), vec!["all.>".parse().expect("a pattern")]);
    soon("a stream", streams.ensure(config)).await.expect("it is made");

    let proxy =
        TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port()))).await.expect("a free port");
    let memory = Arc::new(MemoryBudget::new(MEMORY));
    let url = format!("nats://{}", proxy.address());
    let options =
        NatsOptions { memory: memory.clone(), publish_timeout: PATIENCE, ..NatsOptions::new([url]) };
    let backend = soon("the server", NatsBackend::connect(options)).await.expect("it is up");
    // Nobody knows yet what is stored, and nobody answers who is asked.
    proxy.half_open();
    let (mut taken, mut refused) = (Vec::new(), 0);
    for n in 0..MESSAGES {
        let message = message(&format!("all.{n}"), &n.to_string(), LARGE);
        match backend.publish(message, PublishOptions::default()) {
            Publishing::Ready(Err(error)) => {
                let text = error.to_string();
                assert!(matches!(error, PublishError::NotConnected { .. }), "{error:?}");
                assert!(text.contains("runtime.resources.memory"), "{text}");
                refused += 1;
            }
            publishing => taken.push(publishing),
        }
        let held = memory.held(Holding::Bridge) as u64;
        assert!(held <= MEMORY / 2 + 2 * LARGE as u64, "{held} bytes are held");
    }
    assert!(taken.len() >= 20 && refused >= MESSAGES / 4, "{} taken, {refused} refused", taken.len());
    assert!(memory.held(Holding::Bridge) >= 20 * LARGE, "{}", memory.held(Holding::Bridge));
    // A little is always taken.
    taken.push(backend.publish(message("all.small", "small", 0), PublishOptions::default()));

    proxy.heal();
    let stored = taken.len() as u64;
    for publishing in taken {
        let receipt = soon("an outcome", publishing.outcome()).await.expect("it was taken");
        assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}");
    }
    let all = soon("the streams", streams.list()).await.expect("there is one");
    assert_eq!(all[0].messages, stored, "what was refused was not sent");
    assert!(memory.held(Holding::Bridge) <= 128 << 10, "{}", memory.held(Holding::Bridge));
    drop(backend);
}

/// The key reaches the backend, and whoever is in front of it finds the account.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_setting_bounds_the_backend() {
    let server = NatsServer::start::<&str>([]);
    let yaml = format!("{{backend: nats, nats_url: '{}'}}", server.url());
    let env = [("TRUNKLINE_MESSAGING", yaml.as_str()), ("TRUNKLINE_RUNTIME_RESOURCES_MEMORY", "64MiB")];
    let config = Loader::new().env(env).working_dir("/nonexistent").load().expect("valid").config;
    let bus = soon("the bus", Bus::connect(config)).await.expect("the server is up");
    let memory = bus.backend().memory().expect("an account");
    assert_eq!(memory.configured(), Some(64 << 20));
}
