//! Publishers under load while everything breaks: what they are told is true, and told in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use trunkline::backend::redis::RedisBackend;
use trunkline::backend::{Backend, PublishOptions};
use trunkline_testkit::{RedisServer, RedisVersion};

use super::{
    Ledger, Told, back, connect, connect_through, ensure, message, next, noticed, on_every_version, proxy,
    publish_again, raw, run, soon, stored, subscribe,
};

/// How long a publish may wait for its outcome here, and what a busy machine may add.
const TIMEOUT: Duration = Duration::from_millis(500);
const SLACK: Duration = Duration::from_millis(1500);
/// Publishes under way at once.
const PUBLISHERS: usize = 8;

/// Publishers that go on until they are told to stop, and what each message became.
struct Load {
    stop: Arc<AtomicBool>,
    /// Messages that were stored, and that were not.
    stored: watch::Sender<u64>,
    failed: watch::Sender<u64>,
    tasks: JoinSet<Ledger>,
}

impl Load {
    fn start(backend: &Arc<RedisBackend>) -> Self {
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        let (stored, failed) = (watch::Sender::new(0), watch::Sender::new(0));
        for publisher in 0..PUBLISHERS {
            let (backend, stop) = (backend.clone(), stop.clone());
            let (stored, failed) = (stored.clone(), failed.clone());
            tasks.spawn(async move {
                let mut ledger = Ledger::default();
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let payload = format!("{publisher}:{n}");
                    let options = PublishOptions { timeout: Some(TIMEOUT), ..PublishOptions::default() };
                    let since = Instant::now();
                    let outcome = backend.publish(message(&payload), options).outcome().await;
                    assert!(since.elapsed() < TIMEOUT + SLACK, "{outcome:?} took {:?}", since.elapsed());
                    let counter = if outcome.is_ok() { &stored } else { &failed };
                    counter.send_modify(|count| *count += 1);
                    // Without a pause the outage, in which a refusal is immediate, would fill the ledger.
                    tokio::time::sleep(Duration::from_millis(if outcome.is_ok() { 1 } else { 5 })).await;
                    ledger.enter(payload, &outcome);
                }
                ledger
            });
        }
        Self { stop, stored, failed, tasks }
    }

    /// Waits until some more were stored.
    async fn works(&self) {
        more(&self.stored).await;
    }

    /// Waits until some more were not.
    async fn fails(&self) {
        more(&self.failed).await;
    }

    async fn end(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        for ledger in self.tasks.join_all().await {
            all.0.extend(ledger.0);
        }
        all
    }
}

/// Waits until a counter has grown by twenty.
async fn more(counter: &watch::Sender<u64>) {
    let mut counter = counter.subscribe();
    let before = *counter.borrow();
    soon(counter.wait_for(|count| *count >= before + 20)).await.expect("the load keeps the sender");
}

on_every_version! {
    publishers_are_told_the_truth_by_a_breaking_network;
    publishers_are_told_the_truth_by_a_server_that_dies;
}

/// Cut, delayed, silent: every `Stored` is in the stream exactly once, what was refused is not, and a subscription
/// through the same proxy gets exactly what is there, in order.
async fn publishers_are_told_the_truth_by_a_breaking_network(version: RedisVersion) {
    let server = RedisServer::start_durable(version);
    let proxy = proxy(&server).await;
    let (direct, through) = (connect(&server).await, Arc::new(connect_through(&proxy).await));
    ensure(&direct, None).await;
    let mut source = subscribe(&through, None).await;
    let mut killer = raw(&server).await;
    let load = Load::start(&through);
    for _ in 0..2 {
        load.works().await;
        proxy.cut_once();
        noticed(&through).await;
        back(&through).await;
        proxy.delay(Duration::from_millis(20));
        load.works().await;
        let _: i64 = run(&mut killer, "CLIENT KILL TYPE normal SKIPME yes").await;
        noticed(&through).await;
        back(&through).await;
        load.works().await;
        proxy.half_open();
        assert!(noticed(&through).await < super::NOTICED);
        load.fails().await;
        proxy.heal();
        back(&through).await;
        let _: String = run(&mut killer, "SCRIPT FLUSH").await;
        load.works().await;
        proxy.cut();
        assert!(noticed(&through).await < super::NOTICED);
        load.fails().await;
        proxy.heal();
        back(&through).await;
        load.works().await;
        server.pause();
        assert!(noticed(&through).await < super::NOTICED);
        server.resume();
        back(&through).await;
    }
    let ledger = load.end().await;
    back(&direct).await;
    let there = stored(&direct).await;
    ledger.is_true_of(&there);
    let (good, refused) = (
        ledger.count(|told| matches!(told, Told::Stored(_))),
        ledger.count(|told| *told == Told::NotConnected),
    );
    assert!(good >= 100 && refused > 0, "{good} stored, {refused} refused: this was no test");
    for (payload, _) in &there {
        assert_eq!(next(&mut *source).await, *payload, "the subscription goes on where it was");
    }
}

/// kill -9 under load with a log that is synced with each write: everything `Stored` is there afterwards.
async fn publishers_are_told_the_truth_by_a_server_that_dies(version: RedisVersion) {
    let mut server = RedisServer::start_durable(version);
    let backend = Arc::new(connect(&server).await);
    ensure(&backend, None).await;
    let mut source = subscribe(&backend, None).await;
    let load = Load::start(&backend);
    for round in 0..3 {
        // Something of this life is stored before it ends.
        publish_again(&backend, format!("mark {round}")).await;
        load.works().await;
        server.kill();
        noticed(&backend).await;
        load.fails().await;
        server.restart();
        back(&backend).await;
    }
    let ledger = load.end().await;
    let there = stored(&backend).await;
    let marks = there.iter().filter(|(payload, _)| payload.starts_with("mark"));
    assert!(marks.count() >= 3, "what was stored survives");
    let there: Vec<_> = there.into_iter().filter(|(payload, _)| !payload.starts_with("mark")).collect();
    ledger.is_true_of(&there);
    assert!(ledger.count(|told| matches!(told, Told::Stored(_))) > 50, "this was no test");
    for (payload, _) in &there {
        let mut seen = next(&mut *source).await;
        while seen.starts_with("mark") {
            seen = next(&mut *source).await;
        }
        assert_eq!(seen, *payload, "the subscription goes on where it was");
    }
}
