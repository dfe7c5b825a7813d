//! The client library has no room for a message and drops it, as it does without a word: the bus says so.

use std::sync::mpsc;
use std::time::Duration;

use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::{Backend, Gap, LiveEvent, SubscribeOptions};
use trunkline_testkit::NatsServer;

/// Longer than anything here may take; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// A process has no time for its subscription, but its connection reads on: the library's channel runs over. The subscription
/// tells of a gap, the backend counts what was dropped, and both go on.
#[test]
fn what_the_client_library_drops_is_a_gap_and_counted() {
    let server = NatsServer::start::<&str>([]);
    // The connection lives on one runtime. The subscription's task lives where `subscribe` is called: on another one, whose
    // only thread is kept busy.
    let runtime = |threads| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads).enable_all().build().expect("a runtime")
    };
    let (connection, reader) = (runtime(2), runtime(1));
    let options = NatsOptions { max_pending: 10, ..NatsOptions::new([server.url()]) };
    let backend = connection.block_on(NatsBackend::connect(options)).expect("the server is up");
    let mut source = reader.block_on(async {
        let options = SubscribeOptions { max_pending: Some(1_000_000), ..SubscribeOptions::default() };
        let subscribing = backend.subscribe("flood".parse().expect("a pattern"), options);
        soon("a subscription", subscribing).await.expect("a live connection")
    });
    let (go_on, waiting) = mpsc::channel::<()>();
    let (began, busy) = mpsc::channel();
    let blocked = reader.spawn(async move {
        began.send(()).expect("the test waits");
        // Ends with the sender at the latest.
        let _ = waiting.recv();
    });
    busy.recv().expect("the thread is busy");

    let published = connection.block_on(async {
        let raw = async_nats::connect(server.url()).await.expect("the server is up");
        let mut published = 0_u64;
        while backend.dropped_messages() == 0 {
            for _ in 0..1000 {
                raw.publish("flood", "x".into()).await.expect("a live connection");
            }
            published += 1000;
            raw.flush().await.expect("a live connection");
            assert!(published < 10_000_000, "nothing is dropped");
        }
        // What was published has been taken in, or dropped.
        soon("a flush", backend.flush()).await.expect("a live connection");
        published
    });
    drop(go_on);

    connection.block_on(async {
        soon("the busy task", blocked).await.expect("no panic");
        let raw = async_nats::connect(server.url()).await.expect("the server is up");
        raw.publish("flood", "last".into()).await.expect("a live connection");
        raw.flush().await.expect("a live connection");
        let (mut received, mut gaps, mut last) = (0, Vec::new(), false);
        while !last {
            let mut events = Vec::new();
            soon("an event", std::future::poll_fn(|cx| source.poll_batch(cx, 100, &mut events))).await;
            for event in events {
                match event {
                    LiveEvent::Message { message, .. } if &*message.payload == b"last" => last = true,
                    LiveEvent::Message { .. } => received += 1,
                    LiveEvent::Gap(gap) => gaps.push(gap),
                }
            }
        }
        // The library does not say how many it dropped, and the gap does not claim to know.
        assert_eq!(gaps, [Gap { missed: None }]);
        assert!(received < published, "nothing was dropped: {received} of {published}");
        let counted = backend.dropped_messages();
        assert!(counted > 0 && counted <= published - received, "{counted} of {}", published - received);
    });
    connection.shutdown_timeout(Duration::from_secs(1));
    reader.shutdown_timeout(Duration::from_secs(1));
}
