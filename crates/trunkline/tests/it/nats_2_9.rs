//! What the bus does in another way on the nats-server 2.9 of Debian 12, beside what the conformance suite holds it to there.

use std::time::{Duration, SystemTime};

use trunkline::Message;
use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::{
    Backend, ConsumerConfig, PublishOptions, ReadRequest, Receipt, Start, StreamConfig, StreamError, Streams,
};
use trunkline_testkit::NatsServer;

async fn connect(server: &NatsServer, prefix: &str) -> NatsBackend {
    let options = NatsOptions { stream_prefix: prefix.to_owned(), ..NatsOptions::new([server.url()]) };
    NatsBackend::connect(options).await.expect("the server is up")
}

fn streams(backend: &NatsBackend) -> &dyn Streams {
    backend.streams().expect("the server has JetStream")
}

async fn ensure(backend: &NatsBackend, name: &str, pattern: &str) {
    let config = StreamConfig::new(name, vec![pattern.parse().expect("a pattern")]);
    streams(backend).ensure(config).await.expect("the stream is made");
}

async fn publish(backend: &NatsBackend, subject: &str) {
    let message = Message::new(subject.parse().expect("a subject"), "x");
    let receipt = backend.publish(message, PublishOptions::default()).outcome().await;
    assert!(matches!(receipt, Ok(Receipt::Stored { .. })), "{receipt:?}");
}

/// One prefix may begin with another: whose a stream is stands in its description, where there is no metadata.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_another_prefix_are_not_taken_for_its_own() {
    let server = NatsServer::start_2_9(["-js"]);
    let (mine, other) = (connect(&server, "bus").await, connect(&server, "bus_two").await);
    ensure(&mine, "work", "one.>").await;
    ensure(&other, "work", "two.>").await;
    for backend in [&mine, &other] {
        let all = streams(backend).list().await.unwrap();
        let names: Vec<_> = all.iter().map(|info| info.config.name.as_str()).collect();
        assert_eq!(names, ["work"], "bus_two_work is not two_work of bus");
    }
    // Making it once more changes nothing.
    ensure(&mine, "work", "one.>").await;
    assert!(matches!(
        streams(&mine).ensure(StreamConfig::new("two_work", vec!["three".parse().unwrap()])).await,
        Err(StreamError::Conflict { .. })
    ));
}

/// Order by key cannot be kept there, and is refused with what to do; who wants none is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_by_key_is_refused_with_what_to_do() {
    let server = NatsServer::start_2_9(["-js"]);
    let backend = connect(&server, "bus").await;
    ensure(&backend, "work", "one.>").await;
    let config = |keyed| ConsumerConfig { keyed, ..ConsumerConfig::new("workers") };
    match streams(&backend).join("work", config(true)).await.err() {
        Some(StreamError::Unsupported(refused)) => {
            assert!(refused.to_string().contains("order by key"), "{refused}");
            assert!(refused.hint().contains("2.10.15"), "{}", refused.hint());
        }
        other => panic!("{other:?}"),
    }
    streams(&backend).join("work", config(false)).await.unwrap();
    // What may change can be changed.
    let longer = ConsumerConfig { ack_wait: Duration::from_secs(7), ..config(false) };
    streams(&backend).join("work", longer).await.unwrap();
    let info = streams(&backend).consumer_info("work", "workers").await.unwrap().unwrap();
    assert!(!info.config.keyed && info.config.ack_wait == Duration::from_secs(7), "{info:?}");
}

/// Direct get cannot be asked for a time there: it is looked up, and nothing of that is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_from_a_time_leaves_no_consumer_behind() {
    let server = NatsServer::start_2_9(["-js"]);
    let backend = connect(&server, "bus").await;
    ensure(&backend, "work", "one.>").await;
    let read = async |at: SystemTime| {
        let request = ReadRequest { from: Start::At(at), max: 10, filter: None };
        let page = streams(&backend).read("work", request).await.unwrap();
        assert!(page.end);
        page.messages.len()
    };
    assert_eq!(read(SystemTime::UNIX_EPOCH).await, 0, "nothing is stored yet");
    for subject in ["one.a", "one.b", "one.c"] {
        publish(&backend, subject).await;
    }
    assert_eq!(read(SystemTime::UNIX_EPOCH).await, 3);
    assert_eq!(read(SystemTime::now() + Duration::from_secs(3600)).await, 0);
    let raw = async_nats::connect(server.url()).await.unwrap();
    let answer = raw.request("$JS.API.CONSUMER.LIST.bus_work", "{}".into()).await.unwrap();
    let answer = String::from_utf8_lossy(&answer.payload).into_owned();
    assert!(answer.contains("\"total\":0"), "{answer}");
}
