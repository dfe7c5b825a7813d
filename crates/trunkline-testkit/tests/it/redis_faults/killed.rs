//! Workers that are killed with `kill -9` at every step between read and settle: the message comes again exactly when
//! and as often as the table of guarantees says.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use trunkline::backend::Member;
use trunkline::backend::redis::RedisBackend;
use trunkline_testkit::tcp_proxy::Lost;
use trunkline_testkit::{RedisServer, RedisVersion};

use super::worker::Worker;
use super::{
    STREAM, ack, connect, ensure, fetch, join, on_every_version, payloads, proxy, publish, soon, streams,
};

/// The lease of the consumer.
const ACK_WAIT: Duration = Duration::from_millis(1234);
/// The command that reads new deliveries.
const FETCH: &str = "$10\r\nXREADGROUP\r\n";
/// Arguments of the command that acknowledges: no delivery was lost so far, and an offset.
const ACK: &str = "$1\r\n0\r\n$15\r\n";
/// What a busy machine may take longer.
const SLACK: Duration = Duration::from_secs(2);

/// Where the worker is when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Its fetch has left, and never came to the server.
    FetchNotSent,
    /// The server gave it the message, and it has not heard of it.
    FetchedNotHeard,
    /// Its handler is at work.
    InHandler,
    /// Its handler is done, and the ack never came to the server.
    AckNotSent,
    /// The server has the ack, and the worker has not heard.
    AckNotHeard,
}

on_every_version! {
    killed_worker_leaves_its_message_to_another_at_every_step;
}

async fn killed_worker_leaves_its_message_to_another_at_every_step(version: RedisVersion) {
    for step in
        [Step::FetchNotSent, Step::FetchedNotHeard, Step::InHandler, Step::AckNotSent, Step::AckNotHeard]
    {
        kill_at(version, step).await;
    }
}

async fn kill_at(version: RedisVersion, step: Step) {
    let server = RedisServer::start_durable(version);
    let proxy = proxy(&server).await;
    let direct = connect(&server).await;
    ensure(&direct, None).await;
    // Another member has been here, so that the server knows the scripts and the worker sends each once.
    let other = join(&direct, ACK_WAIT).await;
    publish(&direct, "before").await.expect("stored");
    let got = fetch(&*other, 1).await;
    ack(&*other, &got).await;
    publish(&direct, if step == Step::InHandler { "hang" } else { "message" }).await.expect("stored");

    match step {
        Step::FetchNotSent => proxy.lose_next(FETCH, Lost::Request),
        Step::FetchedNotHeard => proxy.lose_next(FETCH, Lost::Answer),
        Step::InHandler => {}
        Step::AckNotSent => proxy.lose_next(ACK, Lost::Request),
        Step::AckNotHeard => proxy.lose_next(ACK, Lost::Answer),
    }
    let mut worker = Worker::start(&format!("redis://{}", proxy.address()), ACK_WAIT, 1);
    let started = Instant::now();
    match step {
        Step::InHandler => worker.prints("begin hang 1 ").await,
        _ => soon(proxy.wait_for_lost(1)).await,
    }
    let fetched = started.elapsed();
    worker.kill();

    let pending = standing(&direct).await;
    let (expected, attempt) = match step {
        Step::FetchNotSent => ((0, 1), Some(1)),
        Step::FetchedNotHeard | Step::InHandler | Step::AckNotSent => ((1, 0), Some(2)),
        Step::AckNotHeard => ((0, 0), None),
    };
    assert_eq!(pending, expected, "{step:?}: pending and lag when it died");
    match attempt {
        Some(attempt) => {
            let got = fetch(&*other, 10).await;
            let waited = started.elapsed();
            assert_eq!((got.len(), got[0].attempt), (1, attempt), "{step:?}: {got:?}");
            if attempt == 2 {
                assert!(waited >= ACK_WAIT, "{step:?}: it came {waited:?} after the worker had begun");
            }
            let limit = fetched + ACK_WAIT + SLACK;
            assert!(
                waited < limit,
                "{step:?}: it came {waited:?} after the worker had begun, not within {limit:?}"
            );
            ack(&*other, &got).await;
        }
        None => assert_eq!(payloads(&nothing_for(&*other, ACK_WAIT * 2).await), [""; 0], "{step:?}"),
    }
    assert_eq!(standing(&direct).await, (0, 0), "{step:?}: in the end all is settled");
}

/// Messages that are at work, and that wait for the consumer.
async fn standing(backend: &RedisBackend) -> (u64, u64) {
    let info =
        soon(streams(backend).consumer_info(STREAM, "c")).await.expect("a stream").expect("a consumer");
    (info.pending, info.lag)
}

/// Whatever comes within this time.
async fn nothing_for(member: &dyn Member, time: Duration) -> Vec<trunkline::backend::Delivery> {
    soon(member.fetch(10, time)).await.expect("a fetch on a live connection").deliveries
}

/// A handler that takes several leases keeps its message: nobody else gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_handler_keeps_its_message() {
    let server = RedisServer::start();
    let direct = connect(&server).await;
    ensure(&direct, None).await;
    let mut worker = Worker::start(server.url(), Duration::from_millis(600), 1);
    worker.prints("ready").await;
    publish(&direct, "slow-3000").await.expect("stored");
    worker.prints("begin slow-3000 ").await;
    let other = join(&direct, Duration::from_millis(600)).await;
    let stolen = tokio::select! {
        () = worker.prints("end slow-3000 ") => Vec::new(),
        stolen = fetch(&*other, 1) => payloads(&stolen),
    };
    assert_eq!(stolen, [""; 0], "the lease was renewed");
    let settled = async {
        while standing(&direct).await != (0, 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(settled).await;
}

/// A worker that stands still for longer than its lease: its message goes to another, and what it says when it wakes up
/// does not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_ack_of_a_worker_that_stood_still_is_refused() {
    let server = RedisServer::start();
    let direct = connect(&server).await;
    ensure(&direct, None).await;
    let mut worker = Worker::start(server.url(), ACK_WAIT, 1);
    worker.prints("ready").await;
    publish(&direct, "wait").await.expect("stored");
    worker.prints("begin wait 1 ").await;
    worker.signal(Signal::SIGSTOP);
    let other = join(&direct, ACK_WAIT * 10).await;
    let got = fetch(&*other, 1).await;
    assert_eq!((payloads(&got), got[0].attempt), (vec!["wait".to_owned()], 2));
    worker.go_on();
    worker.signal(Signal::SIGCONT);
    // The next one it handles shows that it has settled whatever it thought it had.
    publish(&direct, "next").await.expect("stored");
    worker.prints("end next ").await;
    let next_settled = async {
        while standing(&direct).await != (1, 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(next_settled).await;
    ack(&*other, &got).await;
    assert_eq!(standing(&direct).await, (0, 0));
}
