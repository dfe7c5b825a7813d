//! A server in this process, and a client on it that must not notice anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use trunkline::backend::memory::Hub;
use trunkline_server::{Server, ServerOptions};

use super::client::{PATIENCE, Raw, json, within};

/// How often the bystander does its round, so that it leaves the machine to the test.
const PACE: Duration = Duration::from_millis(5);

/// How often a server says by itself how it is, which everybody is told who listens to everything: once, as it starts, on
/// however slow a machine.
const RARELY: Duration = Duration::from_secs(60 * 60);

pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) hub: Arc<Hub>,
    bystander: Option<Bystander>,
}

impl Fixture {
    /// Starts with defaults, on free ports.
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts with what `change` makes of the defaults.
    pub(crate) async fn with(change: impl FnOnce(&mut ServerOptions)) -> Self {
        let hub = Arc::new(Hub::default());
        let server = Server::start(options(hub.clone(), change)).await.expect("free ports");
        let bystander = Some(Bystander::start(server.nats_addr()).await);
        Self { server, hub, bystander }
    }

    pub(crate) fn nats(&self) -> SocketAddr {
        self.server.nats_addr()
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.server.http_addr().expect("served by default")
    }

    pub(crate) async fn client(&self) -> Raw {
        Raw::ready(self.nats(), "").await
    }

    pub(crate) async fn varz(&self) -> Value {
        json(self.http(), "/varz").await
    }

    /// Waits until a number in `/varz` is what it should be. Every look is a round trip.
    pub(crate) async fn varz_becomes(&self, field: &str, expected: u64) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let found = self.varz().await[field].clone();
            if found == expected {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{field} stays {found}, expected {expected}");
        }
    }

    /// The bystander still works, and always did.
    pub(crate) async fn bystander_is_fine(&mut self) {
        self.bystander.as_mut().expect("a bystander is there").is_fine().await;
    }

    /// Ends the bystander: the test is about to end the server under it.
    pub(crate) fn without_bystander(&mut self) {
        if let Some(bystander) = self.bystander.take() {
            bystander.task.abort();
        }
    }
}

/// Options for free ports.
pub(crate) fn options(hub: Arc<Hub>, change: impl FnOnce(&mut ServerOptions)) -> ServerOptions {
    let mut options = ServerOptions::new(hub);
    options.listen.set_port(0);
    options.threads = 2;
    options.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    options.health_interval = RARELY;
    change(&mut options);
    options
}

/// A well-behaved client that sends itself messages all the time.
struct Bystander {
    rounds: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Bystander {
    async fn start(address: SocketAddr) -> Self {
        let mut raw = Raw::ready(address, "").await;
        raw.send("SUB bystander.* 1\r\n").await;
        let (counter, rounds) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut pace = tokio::time::interval(PACE);
            for round in 1.. {
                pace.tick().await;
                let text = format!("round {round}");
                raw.send(format!("PUB bystander.a {}\r\n{text}\r\nPING\r\n", text.len())).await;
                let mut got = Vec::new();
                loop {
                    match raw.line().await.as_str() {
                        "PING" => raw.send("PONG\r\n").await,
                        "PONG" => break,
                        line => got.push(line.to_owned()),
                    }
                }
                assert_eq!(got, [format!("MSG bystander.a 1 {}", text.len()), text]);
                counter.send_replace(round);
            }
        });
        Self { rounds, task }
    }

    async fn is_fine(&mut self) {
        let seen = *self.rounds.borrow();
        let next = self.rounds.wait_for(|rounds| *rounds >= seen + 2);
        assert!(within("the bystander's next rounds", next).await.is_ok(), "the bystander failed");
    }
}
