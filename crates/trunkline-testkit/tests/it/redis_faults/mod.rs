//! The `redis` backend under faults, as its users see it: what a publisher was told is what the server has, nothing is
//! lost that was stored, nothing spins, and all goes on when the fault is over.

mod answers;
mod campaign;
mod connection;
mod data;
mod disk;
mod killed;
mod limits;
mod publishing;
mod refusals;
mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use trunkline::backend::redis::{RedisBackend, RedisOptions};
use trunkline::backend::{
    Backend, ConsumerConfig, Delivery, Gap, LiveEvent, LiveSource, Member, PublishError, PublishOptions,
    ReadRequest, Receipt, Settle, Settled, Start, StreamConfig, Streams, SubscribeOptions,
};
use trunkline::config::RedisUrl;
use trunkline::status::BackendState;
use trunkline::{Message, StreamOffset, Subject};
use trunkline_testkit::{RedisServer, TcpProxy};

/// Longer than anything here may take; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(20);
/// How soon the status tells of an outage, and what a busy machine may add.
const NOTICED: Duration = Duration::from_millis(2000 + 700);
/// The stream of these tests, and the key it has.
const STREAM: &str = "work";
const KEY: &str = "atlas_bus:{work}";

/// Runs a test function on every version of the server.
macro_rules! on_every_version {
    ($($name:ident;)*) => {$(
        mod $name {
            use trunkline_testkit::RedisVersion;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn redis_6_0() {
                super::$name(RedisVersion::Redis60).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn redis_6_2() {
                super::$name(RedisVersion::Redis62).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn redis_of_the_system() {
                super::$name(RedisVersion::System).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn redis_8() {
                super::$name(RedisVersion::Redis8).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn valkey() {
                super::$name(RedisVersion::Valkey).await;
            }
        }
    )*};
}
pub(crate) use on_every_version;

#[track_caller]
fn soon<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let asked = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(value) => value,
            Err(_) => panic!("what {asked} waits for does not happen"),
        }
    }
}

fn options(url: &str) -> RedisOptions {
    RedisOptions::new(RedisUrl::parse(url).expect("a URL"))
}

async fn connect(server: &RedisServer) -> RedisBackend {
    soon(RedisBackend::connect(options(server.url()))).await.expect("the server is up")
}

/// A backend that reaches the server through a proxy.
async fn connect_through(proxy: &TcpProxy) -> RedisBackend {
    let url = format!("redis://{}", proxy.address());
    soon(RedisBackend::connect(options(&url))).await.expect("the server is up")
}

async fn proxy(server: &RedisServer) -> TcpProxy {
    TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port()))).await.expect("a free port")
}

/// A connection of the test's own.
async fn raw(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).expect("a URL");
    soon(client.get_multiplexed_async_connection()).await.expect("the server is up")
}

/// Runs a command of words separated by spaces.
async fn run<T: redis::FromRedisValue>(connection: &mut MultiplexedConnection, command: &str) -> T {
    let mut words = command.split(' ');
    let mut command = redis::cmd(words.next().expect("a command"));
    words.for_each(|word| {
        command.arg(word);
    });
    soon(command.query_async(connection)).await.expect("the server answers")
}

fn streams(backend: &RedisBackend) -> &dyn Streams {
    backend.streams().expect("redis has streams")
}

/// Makes the stream of the test.
async fn ensure(backend: &RedisBackend, max_messages: Option<u64>) {
    let mut config = StreamConfig::new(STREAM, vec!["work.*".parse().expect("a pattern")]);
    config.max_messages = max_messages;
    soon(streams(backend).ensure(config)).await.expect("a stream");
}

fn message(payload: impl ToString) -> Message {
    Message::new("work.x".parse::<Subject>().expect("a subject"), payload.to_string())
}

async fn publish(backend: &RedisBackend, payload: impl ToString) -> Result<Receipt, PublishError> {
    soon(backend.publish(message(payload), PublishOptions::default()).outcome()).await
}

/// Publishes what must be stored, again after each fault.
async fn publish_again(backend: &RedisBackend, payload: impl ToString) {
    let payload = payload.to_string();
    let publishing = async {
        while let Err(error) = publish(backend, &payload).await {
            assert!(error.is_retryable(), "{error:?}");
            wait_for(backend, BackendState::is_ready).await;
        }
    };
    soon(publishing).await;
}

async fn subscribe(backend: &RedisBackend, queue: Option<&str>) -> Box<dyn LiveSource> {
    let queue = queue.map(|queue| queue.parse().expect("a token"));
    let options = SubscribeOptions { queue, ..SubscribeOptions::default() };
    soon(backend.subscribe("work.*".parse().expect("a pattern"), options)).await.expect("a subscription")
}

/// The next event as text: a payload, `gap N`, `gap ?`, `end`.
async fn next(source: &mut dyn LiveSource) -> String {
    let mut events = Vec::new();
    soon(std::future::poll_fn(|cx| source.poll_batch(cx, 1, &mut events))).await;
    match events.pop() {
        Some(LiveEvent::Message { message, .. }) => String::from_utf8_lossy(&message.payload).into_owned(),
        Some(LiveEvent::Gap(Gap { missed: Some(missed) })) => format!("gap {missed}"),
        Some(LiveEvent::Gap(Gap { missed: None })) => "gap ?".to_owned(),
        None => "end".to_owned(),
    }
}

/// Reads a subscription until `last` comes.
async fn until(source: &mut dyn LiveSource, last: impl ToString) -> Vec<String> {
    let (last, mut seen) = (last.to_string(), Vec::new());
    while seen.last() != Some(&last) {
        seen.push(next(source).await);
    }
    seen
}

async fn join(backend: &RedisBackend, ack_wait: Duration) -> Arc<dyn Member> {
    let config = ConsumerConfig { start: Start::Beginning, ack_wait, ..ConsumerConfig::new("c") };
    soon(streams(backend).join(STREAM, config)).await.expect("a member")
}

/// Fetches until there is something, through outages.
async fn fetch(member: &dyn Member, max: usize) -> Vec<Delivery> {
    let fetching = async {
        loop {
            match member.fetch(max, PATIENCE).await {
                Ok(fetched) if fetched.deliveries.is_empty() => {}
                Ok(fetched) => return fetched.deliveries,
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    };
    soon(fetching).await
}

/// Acknowledges deliveries whose lease is held.
async fn ack(member: &dyn Member, deliveries: &[Delivery]) {
    let batch = deliveries.iter().map(|delivery| (delivery.token.clone(), Settle::Ack)).collect();
    let answers = soon(member.settle(batch)).await.expect("settling on a live connection");
    assert!(answers.iter().all(|answer| *answer == Settled::Done), "{answers:?} for {deliveries:?}");
}

fn payloads(deliveries: &[Delivery]) -> Vec<String> {
    deliveries
        .iter()
        .map(|delivery| String::from_utf8_lossy(&delivery.message.payload).into_owned())
        .collect()
}

/// Everything in the stream: payload and offset.
async fn stored(backend: &RedisBackend) -> Vec<(String, StreamOffset)> {
    let (mut from, mut all) = (Start::Beginning, Vec::new());
    loop {
        let request = ReadRequest { from, filter: None, max: 1000 };
        let page = soon(streams(backend).read(STREAM, request)).await.expect("a page");
        all.extend(
            page.messages
                .iter()
                .map(|stored| (String::from_utf8_lossy(&stored.message.payload).into_owned(), stored.offset)),
        );
        from = page.next;
        if page.end {
            return all;
        }
    }
}

async fn wait_for(backend: &RedisBackend, what: impl Fn(&BackendState) -> bool) {
    let mut status = backend.status();
    soon(status.wait_for(|status| what(&status.state))).await.expect("a backend");
}

/// Waits until the status says that the server is away, and returns how long that took.
async fn noticed(backend: &RedisBackend) -> Duration {
    let since = Instant::now();
    wait_for(backend, |state| matches!(state, BackendState::Disconnected { .. })).await;
    since.elapsed()
}

async fn back(backend: &RedisBackend) {
    wait_for(backend, BackendState::is_ready).await;
}

/// Commands that the server carries out within a second, those within scripts included.
async fn commands_per_second(connection: &mut MultiplexedConnection) -> u64 {
    let before = info(connection, "stats", "total_commands_processed").await;
    let since = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = info(connection, "stats", "total_commands_processed").await;
    (after - before) * 1000 / u64::try_from(since.elapsed().as_millis()).expect("a short time")
}

/// A number in INFO.
async fn info(connection: &mut MultiplexedConnection, section: &str, field: &str) -> u64 {
    let text: String = run(connection, &format!("INFO {section}")).await;
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("INFO has no {field}: {text}"))
}

/// What a publisher was told, by payload.
#[derive(Debug, Default)]
struct Ledger(BTreeMap<String, Told>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Stored(StreamOffset),
    NotConnected,
    Unknown,
}

impl Ledger {
    fn enter(&mut self, payload: String, outcome: &Result<Receipt, PublishError>) {
        let told = match outcome {
            Ok(Receipt::Stored { offset, duplicate: false, .. }) => Told::Stored(*offset),
            Err(PublishError::NotConnected { .. }) => Told::NotConnected,
            Err(PublishError::OutcomeUnknown { .. }) => Told::Unknown,
            other => panic!("nobody provoked {other:?}"),
        };
        assert_eq!(self.0.insert(payload, told), None, "published once");
    }

    fn count(&self, what: impl Fn(&Told) -> bool) -> usize {
        self.0.values().filter(|told| what(told)).count()
    }

    /// Everything that was told is true: `Stored` is there once at its offset, `NotConnected` is not, nothing is there
    /// twice and nothing that nobody published.
    fn is_true_of(&self, stored: &[(String, StreamOffset)]) {
        let mut found: BTreeMap<&str, Vec<StreamOffset>> = BTreeMap::new();
        for (payload, offset) in stored {
            found.entry(payload).or_default().push(*offset);
        }
        for (payload, offsets) in &found {
            assert!(self.0.contains_key(*payload), "nobody published {payload}");
            assert_eq!(offsets.len(), 1, "{payload} is there at {offsets:?}");
        }
        for (payload, told) in &self.0 {
            let there = found.get(payload.as_str()).map(|offsets| offsets[0]);
            match told {
                Told::Stored(offset) => assert_eq!(there, Some(*offset), "{payload} was told to be stored"),
                Told::NotConnected => assert_eq!(there, None, "{payload} was told not to be published"),
                Told::Unknown => {}
            }
        }
    }
}
