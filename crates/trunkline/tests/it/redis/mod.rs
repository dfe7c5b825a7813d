//! The `redis` backend against a real redis-server: what the suite cannot see, because it is about Redis.

mod acl;
mod cluster;
mod faults;
mod keys;
mod outbox;
mod outbox_refused;
mod publishing;
mod queues;
mod sentinel;
mod tls;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use trunkline::backend::redis::{RedisBackend, RedisOptions};
use trunkline::backend::{
    Backend, Gap, LiveEvent, LiveSource, PublishError, PublishOptions, Receipt, StreamConfig, StreamInfo,
    Streams, SubscribeOptions,
};
use trunkline::config::RedisUrl;
use trunkline::status::BackendState;
use trunkline::{Message, Subject};
use trunkline_testkit::{RedisServer, TcpProxy};

/// Longer than anything here may take; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test function on the system's server, and on the oldest and the newest that are installed.
macro_rules! on_oldest_and_newest {
    ($($name:ident;)*) => {$(
        mod $name {
            use trunkline_testkit::RedisVersion;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn redis_6_0() {
                super::$name(RedisVersion::Redis60).await;
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
use on_oldest_and_newest;

fn options(url: &str) -> RedisOptions {
    RedisOptions::new(RedisUrl::parse(url).expect("a URL"))
}

async fn connect(server: &RedisServer) -> RedisBackend {
    RedisBackend::connect(options(server.url())).await.expect("the server is up")
}

/// A backend that reaches the server through a proxy.
async fn connect_through(proxy: &TcpProxy) -> RedisBackend {
    RedisBackend::connect(options(&format!("redis://{}", proxy.address()))).await.expect("the server is up")
}

async fn proxy(server: &RedisServer) -> TcpProxy {
    TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], server.port()))).await.expect("a free port")
}

/// A connection of the test's own.
async fn raw(server: &RedisServer) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(server.url()).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("the server is up")
}

async fn run<T: redis::FromRedisValue>(
    connection: &mut redis::aio::MultiplexedConnection,
    command: &str,
) -> T {
    let mut words = command.split(' ');
    let mut command = redis::cmd(words.next().expect("a command"));
    words.for_each(|word| {
        command.arg(word);
    });
    command.query_async(connection).await.expect("the server answers")
}

fn subject(text: &str) -> Subject {
    text.parse().expect("a subject")
}

async fn publish(backend: &RedisBackend, to: &str, payload: impl ToString) -> Result<Receipt, PublishError> {
    let message = Message::new(subject(to), payload.to_string());
    soon(backend.publish(message, PublishOptions::default()).outcome()).await
}

/// Publishes until it is surely stored; twice does no harm by the id.
async fn publish_surely(backend: &RedisBackend, to: &str, n: u64) {
    let publishing = async {
        loop {
            let options =
                PublishOptions { dedupe_id: Some(format!("{to}-{n}")), ..PublishOptions::default() };
            match backend.publish(Message::new(subject(to), n.to_string()), options).outcome().await {
                Ok(_) => return,
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    wait_for(backend, BackendState::is_ready).await;
                }
            }
        }
    };
    soon(publishing).await;
}

async fn subscribe(backend: &RedisBackend, pattern: &str, options: SubscribeOptions) -> Box<dyn LiveSource> {
    soon(backend.subscribe(pattern.parse().expect("a pattern"), options)).await.expect("a subscription")
}

async fn ensure(backend: &RedisBackend, config: StreamConfig) -> StreamInfo {
    soon(streams(backend).ensure(config)).await.expect("a stream")
}

fn streams(backend: &RedisBackend) -> &dyn Streams {
    backend.streams().expect("redis has streams")
}

/// The next event as text: a payload, `gap N`, `gap ?`, `end`.
async fn next(source: &mut dyn LiveSource) -> String {
    let mut events = Vec::new();
    soon(std::future::poll_fn(|cx| source.poll_batch(cx, 1, &mut events))).await;
    shown(events.pop())
}

/// An event as text.
fn shown(event: Option<LiveEvent>) -> String {
    match event {
        Some(LiveEvent::Message { message, .. }) => String::from_utf8_lossy(&message.payload).into_owned(),
        Some(LiveEvent::Gap(Gap { missed: Some(missed) })) => format!("gap {missed}"),
        Some(LiveEvent::Gap(Gap { missed: None })) => "gap ?".to_owned(),
        None => "end".to_owned(),
    }
}

async fn wait_for(backend: &RedisBackend, what: impl Fn(&BackendState) -> bool) {
    let mut status = backend.status();
    soon(status.wait_for(|status| what(&status.state))).await.expect("a backend");
}

async fn wait_for_disconnected(backend: &RedisBackend) {
    wait_for(backend, |state| matches!(state, BackendState::Disconnected { .. })).await;
}

/// Waits until the status says that a server is away: within two seconds, and a little more on a busy machine.
async fn wait_for_outage(backend: &RedisBackend) {
    let since = Instant::now();
    wait_for_disconnected(backend).await;
    assert!(since.elapsed() < Duration::from_millis(2500), "it took {:?}", since.elapsed());
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}
