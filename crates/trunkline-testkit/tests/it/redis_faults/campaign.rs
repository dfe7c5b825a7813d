//! Random campaigns: several workers and publishers, kills, pauses and outages by seed. Everything that was stored is
//! handled at least once, nothing is invented, nothing is handed out twice under one number, nothing new out of order.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fastrand::Rng;
use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use trunkline::backend::redis::RedisBackend;
use trunkline::backend::{Backend, PublishError, PublishOptions, Receipt};
use trunkline::{Message, StreamOffset, Subject};
use trunkline_testkit::history::{Event, Expectations, History, MessageId, Told, check};
use trunkline_testkit::seeds::seeds;
use trunkline_testkit::tcp_proxy::Lost;
use trunkline_testkit::{RedisServer, RedisVersion, TcpProxy};

use super::worker::Worker;
use super::{
    PATIENCE, STREAM, back, connect, connect_through, ensure, join, on_every_version, proxy, raw, run, soon,
    streams,
};

const ACK_WAIT: Duration = Duration::from_millis(400);
const PUBLISHERS: u32 = 2;
const WORKERS: usize = 3;
/// Messages of each publisher, and faults while they publish.
const MESSAGES: u32 = 80;
const FAULTS: usize = 12;

on_every_version! {
    random_kills_and_outages_lose_nothing;
}

/// The seeds of one version; a soak goes on with more.
async fn random_kills_and_outages_lose_nothing(version: RedisVersion) {
    for seed in seeds(1) {
        campaign(version, seed).await;
    }
}

async fn campaign(version: RedisVersion, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut server = RedisServer::start_durable(version);
    let proxy = Arc::new(proxy(&server).await);
    let direct = connect(&server).await;
    ensure(&direct, None).await;
    soon(join(&direct, ACK_WAIT).await.leave()).await.expect("a live connection");

    let history = Arc::new(History::new());
    let publishing = Arc::new(AtomicU32::new(PUBLISHERS));
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let backend = connect_through(&proxy).await;
        let (history, publishing, rng) = (history.clone(), publishing.clone(), rng.fork());
        publishers.spawn(async move {
            publish_all(&backend, publisher, &history, rng).await;
            publishing.fetch_sub(1, Ordering::Release);
        });
    }
    let mut crew = Crew::new(&proxy, history.clone(), rng.fork());
    for _ in 0..FAULTS {
        tokio::time::sleep(Duration::from_millis(rng.u64(50..250))).await;
        break_something(&mut server, &proxy, &mut crew, &mut rng).await;
    }
    proxy.heal();
    soon(publishers.join_all()).await;
    assert_eq!(publishing.load(Ordering::Acquire), 0);
    back(&direct).await;
    let finished = async {
        loop {
            let info = streams(&direct).consumer_info(STREAM, "c").await;
            if let Ok(Some(info)) = info
                && (info.pending, info.lag) == (0, 0)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let finished = tokio::time::timeout(PATIENCE * 2, finished).await;
    let info = streams(&direct).consumer_info(STREAM, "c").await;
    assert!(finished.is_ok(), "seed {seed}: work is left that nobody finishes: {info:?}");
    crew.stop(seed).await;

    let entries = history.entries();
    let expected = Expectations { doomed: Some(BTreeMap::new()), ..Expectations::default() };
    let violations = check(&entries, &expected);
    assert!(violations.is_empty(), "seed {seed}: {violations:?}");
    let handled = entries.iter().filter(|entry| matches!(entry.event, Event::Succeeded { .. })).count();
    assert!(handled > 0, "seed {seed}: this was no test");
}

/// Publishes one after the other, and records what was told. What is not connected waits until it is.
async fn publish_all(backend: &RedisBackend, publisher: u32, history: &History, mut rng: Rng) {
    for number in 0..MESSAGES {
        let id = MessageId { publisher, number };
        let subject: Subject = format!("work.{}", rng.u8(0..3)).parse().expect("a subject");
        history.record(Event::Publishing { id, subject: subject.clone() });
        let options =
            PublishOptions { timeout: Some(Duration::from_millis(400)), ..PublishOptions::default() };
        let message = Message::new(subject, format!("dice-{}", id.to_payload()));
        let told = match backend.publish(message, options).outcome().await {
            Ok(Receipt::Stored { offset, .. }) => Told::Stored(offset),
            Err(PublishError::NotConnected { .. }) => Told::Refused,
            Err(PublishError::OutcomeUnknown { .. }) => Told::Unknown,
            other => panic!("nobody provoked {other:?}"),
        };
        history.record(Event::Published { id, told });
        if matches!(told, Told::Stored(_)) {
            tokio::time::sleep(Duration::from_millis(rng.u64(0..30))).await;
        } else {
            back(backend).await;
        }
    }
}

async fn break_something(server: &mut RedisServer, proxy: &TcpProxy, crew: &mut Crew, rng: &mut Rng) {
    let pause = Duration::from_millis(rng.u64(10..1200));
    match rng.u8(0..16) {
        0..5 => crew.replace(rng),
        5 | 6 => {
            let worker = rng.usize(..WORKERS);
            crew.workers[worker].worker.signal(Signal::SIGSTOP);
            tokio::time::sleep(pause).await;
            crew.workers[worker].worker.signal(Signal::SIGCONT);
        }
        7 => proxy.cut_once(),
        8 => {
            proxy.half_open();
            tokio::time::sleep(pause).await;
            proxy.heal();
        }
        9 => {
            proxy.delay(Duration::from_millis(rng.u64(1..80)));
            tokio::time::sleep(pause).await;
            proxy.heal();
        }
        10 => {
            server.kill();
            tokio::time::sleep(pause).await;
            server.restart();
        }
        11 => {
            server.pause();
            tokio::time::sleep(pause).await;
            server.resume();
        }
        12 => {
            let _: i64 = run(&mut raw(server).await, "CLIENT KILL TYPE normal SKIPME yes").await;
        }
        13 => {
            let _: String = run(&mut raw(server).await, "SCRIPT FLUSH").await;
        }
        14 => proxy.lose_next("$3\r\nack\r\n", Lost::Answer),
        _ => proxy.lose_next("$3\r\nack\r\n", Lost::Request),
    }
}

/// The workers, and what they have printed.
struct Crew {
    url: String,
    history: Arc<History>,
    workers: Vec<Hand>,
    /// Those that were killed: their last lines are read at the end.
    dead: Vec<tokio::task::JoinHandle<Printed>>,
}

struct Hand {
    worker: Worker,
    reading: tokio::task::JoinHandle<Printed>,
}

/// Deliveries of one worker, in the order they began: offset and attempt.
type Printed = (usize, Vec<(StreamOffset, u32)>);

impl Crew {
    fn new(proxy: &TcpProxy, history: Arc<History>, mut rng: Rng) -> Self {
        let mut crew = Self {
            url: format!("redis://{}", proxy.address()),
            history,
            workers: Vec::new(),
            dead: Vec::new(),
        };
        for _ in 0..WORKERS {
            let hand = crew.hire(&mut rng);
            crew.workers.push(hand);
        }
        crew
    }

    fn hire(&self, rng: &mut Rng) -> Hand {
        let concurrency = [1, 1, 4][rng.usize(..3)];
        let mut worker = Worker::start(&self.url, ACK_WAIT, concurrency);
        let (history, mut lines) = (self.history.clone(), worker.take_lines());
        let reading = tokio::spawn(async move {
            let mut begun = Vec::new();
            while let Some(line) = lines.recv().await {
                let words: Vec<&str> = line.split(' ').collect();
                let [what, payload, attempt, offset] = words.as_slice() else { continue };
                let id = payload.strip_prefix("dice-").and_then(|id| MessageId::from_payload(id.as_bytes()));
                let id = id.unwrap_or_else(|| panic!("nobody published {line:?}"));
                match *what {
                    "begin" => {
                        begun.push((offset.parse().expect("an offset"), attempt.parse().expect("a number")))
                    }
                    _ => history.record(Event::Succeeded { id }),
                }
            }
            (concurrency, begun)
        });
        Hand { worker, reading }
    }

    /// Kills one, and another takes its place.
    fn replace(&mut self, rng: &mut Rng) {
        let hand = self.hire(rng);
        let at = rng.usize(..self.workers.len());
        let mut killed = std::mem::replace(&mut self.workers[at], hand);
        killed.worker.kill();
        self.dead.push(killed.reading);
    }

    /// Kills all and looks at what they were given.
    async fn stop(mut self, seed: u64) {
        for hand in &mut self.workers {
            hand.worker.kill();
        }
        let all = self.dead.drain(..).chain(self.workers.drain(..).map(|hand| hand.reading));
        let mut given = HashSet::new();
        for reading in all {
            let (concurrency, begun) = soon(reading).await.expect("the reader of a worker");
            for delivery in &begun {
                assert!(given.insert(*delivery), "seed {seed}: {delivery:?} was handed out twice");
            }
            let first = begun.iter().filter(|(_, attempt)| *attempt == 1).map(|(offset, _)| *offset);
            if concurrency == 1 {
                assert!(first.is_sorted(), "seed {seed}: new messages came out of order: {begun:?}");
            }
        }
    }
}
