//! The `nats` backend on a real cluster of three servers with three copies of everything: what was reported as stored is
//! there and is delivered, whatever happens to the servers and between them.
//!
//! `campaign` strikes the cluster while `load` keeps it busy and `verdict` says whether every rule was kept; `core` is
//! about what is not stored, `takeover` about order by key, `election` about what goes on while nobody leads the cluster.

mod campaign;
mod core;
mod election;
mod load;
mod members;
mod takeover;
mod verdict;

use std::time::Duration;

use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::{Backend, ConsumerConfig, ConsumerInfo, Start, StreamConfig, StreamError, Streams};
use trunkline_testkit::NatsCluster;

/// Longer than anything here may take, elections one after the other included; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for the outcome of a publish.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);
/// The stream under test, and its name on the servers.
const STREAM: &str = "work";
const ON_SERVERS: &str = "atlas_bus_work";

/// Options of a client that is at home on all servers.
fn options(cluster: &NatsCluster) -> NatsOptions {
    NatsOptions {
        connect_timeout: PATIENCE,
        publish_timeout: PUBLISH_TIMEOUT,
        ..NatsOptions::new(cluster.urls())
    }
}

/// Options of a client that knows one server only.
fn options_of(cluster: &NatsCluster, node: usize) -> NatsOptions {
    NatsOptions { servers: vec![cluster.url(node).to_owned()], ..options(cluster) }
}

async fn connect(options: NatsOptions) -> NatsBackend {
    NatsBackend::connect(options).await.expect("a server is up")
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: did not happen within {PATIENCE:?}"),
    }
}

fn streams(backend: &NatsBackend) -> &dyn Streams {
    backend.streams().expect("JetStream is on")
}

/// Makes the stream under test, with a copy on every server.
async fn ensure(backend: &NatsBackend) {
    let mut config = StreamConfig::new(STREAM, vec!["work.>".parse().expect("a pattern")]);
    config.replicas = 3;
    again("a stream", async || streams(backend).ensure(config.clone()).await).await;
}

fn consumer(name: &str, ack_wait: Duration) -> ConsumerConfig {
    ConsumerConfig { start: Start::Beginning, ack_wait, ..ConsumerConfig::new(name) }
}

async fn info(backend: &NatsBackend, name: &str) -> ConsumerInfo {
    let info = again("how a consumer stands", async || streams(backend).consumer_info(STREAM, name).await);
    info.await.expect("the consumer is there")
}

/// Does again what servers that have no leader at the moment cannot do.
async fn again<T>(what: &str, attempt: impl AsyncFn() -> Result<T, StreamError>) -> T {
    let trying = async {
        loop {
            if let Some(value) = unless_leaderless(attempt().await).await {
                return value;
            }
        }
    };
    soon(what, trying).await
}

/// `None`, after a moment, for what servers that have no leader cannot do; everything else that fails is a defect.
async fn unless_leaderless<T>(outcome: Result<T, StreamError>) -> Option<T> {
    match outcome {
        Ok(value) => return Some(value),
        Err(StreamError::NotConnected { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
        Err(error) => panic!("nobody provoked {error:?}"),
    }
    None
}
