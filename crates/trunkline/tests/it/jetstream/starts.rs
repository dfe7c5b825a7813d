//! Where new readers start, as `messaging.initial_stream_id` says.

use trunkline::backend::BackendKind;
use trunkline::config::{Config, ConfigError, Loader};
use trunkline::{Bus, ConnectError, Event, StreamOffset, Subscription};
use trunkline_testkit::NatsServer;

use super::{connect, ensure, message, publish, server, soon};

/// A configuration with this start.
fn config(server: &NatsServer, start: &str) -> Result<Config, Box<ConfigError>> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("config.yaml");
    let text =
        format!("messaging: {{backend: nats, nats_url: '{}', initial_stream_id: '{start}'}}\n", server.url());
    std::fs::write(&file, text).expect("it takes a file");
    let none: [(&str, &str); 0] = [];
    Loader::new().file(&file).env(none).load().map(|loaded| loaded.config).map_err(Box::new)
}

async fn bus(server: &NatsServer, start: &str) -> Bus {
    soon(Bus::connect(config(server, start).expect("a valid start"))).await.expect("the server is up")
}

/// What a consumer that is made now is given first.
async fn first_consumed(bus: &Bus, name: &str) -> (trunkline::Consumer, FirstOffset) {
    let (given, first) = tokio::sync::mpsc::unbounded_channel();
    let builder = bus.stream("work").expect("streams").consumer(name).expect("a name").concurrency(1);
    let spawned = builder.spawn(move |delivered| {
        // After the first one nobody listens any more.
        let _ = given.send(delivered.offset());
        async { Ok(()) }
    });
    (soon(spawned).await.expect("a consumer"), first)
}

type FirstOffset = tokio::sync::mpsc::UnboundedReceiver<Option<StreamOffset>>;

async fn first_received(subscription: &mut Subscription) -> Option<StreamOffset> {
    match soon(subscription.next()).await {
        Some(Event::Message(received)) => received.offset(),
        other => panic!("expected a message, got {other:?}"),
    }
}

/// Five messages are stored before the readers come, and one after: `$` starts with the latter, `0-0` with the oldest, a saved
/// offset behind it. Consumers and subscriptions on stored subjects do the same; what no stream stores is live. A start holds
/// for a consumer when it is made, and not when somebody joins it later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_readers_start_where_the_configuration_says() {
    let server = server();
    let backend = connect(&server).await;
    ensure(&backend, "work", "work.>").await;
    for n in 1..=5 {
        publish(&backend, message("work.x", n)).await.unwrap();
    }
    let mut readers = Vec::new();
    for (name, start, consumed, received) in [
        // On core NATS there are no offsets.
        ("new", "$", 6, None),
        ("all", "0-0", 1, Some(1)),
        ("zero", "0", 1, Some(1)),
        ("saved", "3", 4, Some(4)),
        ("newest", "5", 6, Some(6)),
    ] {
        let bus = bus(&server, start).await;
        let consumer = first_consumed(&bus, name).await;
        let stored = soon(bus.subscribe("work.>".parse().unwrap()).into_future()).await.unwrap();
        let live = soon(bus.subscribe("live.>".parse().unwrap()).into_future()).await.unwrap();
        readers.push((start, bus, consumer, stored, live, consumed, received));
    }
    publish(&backend, message("work.x", 6)).await.unwrap();
    publish(&backend, message("live.x", 7)).await.unwrap();
    for (start, _bus, (consumer, mut first), mut stored, mut live, consumed, received) in readers {
        let offset = soon(first.recv()).await.flatten();
        assert_eq!(offset, Some(StreamOffset::Sequence(consumed)), "a consumer from {start}");
        let offset = first_received(&mut stored).await;
        assert_eq!(offset, received.map(StreamOffset::Sequence), "a subscription from {start}");
        assert_eq!(first_received(&mut live).await, None, "a live subscription from {start}");
        soon(consumer.stop()).await.unwrap();
    }
    // It goes on where it is, whatever the configuration of who joins says.
    let (consumer, mut first) = first_consumed(&bus(&server, "0-0").await, "saved").await;
    publish(&backend, message("work.x", 8)).await.unwrap();
    assert_eq!(soon(first.recv()).await.flatten(), Some(StreamOffset::Sequence(7)));
    soon(consumer.stop()).await.unwrap();
}

/// What is no start of this backend is refused, and never taken for `$`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_that_are_none_are_refused() {
    let server = server();
    let backend = connect(&server).await;
    ensure(&backend, "work", "work.>").await;
    for garbage in ["latest", ">", "-1", "1.5", "0x1", "3 ", ""] {
        let error = config(&server, garbage).expect_err("it is no start").to_string();
        assert!(error.contains("messaging.initial_stream_id") && error.contains("$ for new"), "{error}");
    }
    // An offset of Redis.
    let config = config(&server, "1692632086370-0").expect("it is an offset");
    let error = soon(Bus::connect(config)).await.expect_err("it is none of JetStream");
    let offset = StreamOffset::Entry(1_692_632_086_370, 0);
    assert!(
        matches!(error, ConnectError::ForeignStart { backend: BackendKind::Nats, offset: o } if o == offset),
        "{error:?}"
    );
    // One that the stream has not reached yet may be of another stream: nothing may be passed over for it.
    let bus = bus(&server, "99").await;
    let ahead = soon(bus.subscribe("work.>".parse().unwrap()).into_future()).await.map(drop);
    assert!(format!("{ahead:?}").contains("OffsetAhead"), "{ahead:?}");
    let builder = bus.stream("work").unwrap().consumer("ahead").unwrap();
    let ahead = soon(builder.spawn(|_| async { Ok(()) })).await.map(drop);
    assert!(format!("{ahead:?}").contains("OffsetAhead"), "{ahead:?}");
}
