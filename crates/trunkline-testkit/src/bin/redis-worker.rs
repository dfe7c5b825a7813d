//! A worker to be killed: `redis-worker URL ACK_WAIT_MS CONCURRENCY` is a member of the consumer `c` of the stream
//! `work` on a Redis server, in a process of its own.
//!
//! It prints a line `begin PAYLOAD ATTEMPT OFFSET` for each delivery, and `end PAYLOAD ATTEMPT OFFSET` when the handler
//! ends well. What the handler does is in the payload: `hang` never ends, `wait` ends with the next line of stdin,
//! `slow-MS` takes so long, `dice…` takes up to 20 ms and fails one time in ten, any other ends at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio::sync::Mutex;
use trunkline::backend::Start;
use trunkline::backend::redis::{RedisBackend, RedisOptions};
use trunkline::config::RedisUrl;
use trunkline::{Bus, BusOptions, Delivered, HandlerError};

/// Longest wait for the server, which may be away when a worker starts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What the handlers share: one waits for a line at a time.
type Input = Arc<Mutex<Lines<BufReader<Stdin>>>>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, ack_wait, concurrency] = arguments.as_slice() else {
        panic!("usage: redis-worker URL ACK_WAIT_MS CONCURRENCY");
    };
    let mut options = RedisOptions::new(RedisUrl::parse(url).expect("a URL"));
    options.connect_timeout = CONNECT_TIMEOUT;
    let backend = RedisBackend::connect(options).await.expect("the server is up or comes back");
    let bus = Bus::with_backend(Arc::new(backend), BusOptions::default());
    let input: Input = Arc::new(Mutex::new(BufReader::new(tokio::io::stdin()).lines()));
    let ack_wait = Duration::from_millis(ack_wait.parse().expect("milliseconds"));
    loop {
        let input = input.clone();
        let consumer = bus.stream("work").expect("redis has streams").consumer("c").expect("a name");
        let consumer = consumer
            .start(Start::Beginning)
            .ack_wait(ack_wait)
            .concurrency(concurrency.parse().expect("a number"))
            .max_deliver(10_000)
            .backoff([Duration::from_millis(20)])
            .spawn(move |delivered| handle(delivered, input.clone()));
        match consumer.await {
            Ok(consumer) => {
                println!("ready");
                panic!("the consumer ended: {:?}", consumer.wait().await);
            }
            // The server may be away while a worker joins.
            Err(error) if error.is_retryable() => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn handle(delivered: Delivered, input: Input) -> Result<(), HandlerError> {
    let payload = String::from_utf8_lossy(&delivered.received().message().payload).into_owned();
    let offset = delivered.offset().expect("a stored message");
    let told = format!("{payload} {} {offset}", delivered.attempt());
    println!("begin {told}");
    match payload.split_once('-').unwrap_or((&payload, "")) {
        ("hang", _) => std::future::pending().await,
        ("wait", _) => {
            let _ = input.lock().await.next_line().await;
        }
        ("slow", ms) => tokio::time::sleep(Duration::from_millis(ms.parse().expect("a number"))).await,
        ("dice", _) => {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..20))).await;
            if fastrand::u8(..10) == 0 {
                return Err(HandlerError::new("bad luck"));
            }
        }
        _ => {}
    }
    println!("end {told}");
    Ok(())
}
