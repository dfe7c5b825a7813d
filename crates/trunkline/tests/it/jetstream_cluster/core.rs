//! What is not stored: subscriptions and publishers whose servers die under them.

use std::time::{Duration, Instant};

use tokio::task::block_in_place as here;
use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::{
    Backend, Gap, LiveEvent, LiveSource, PublishError, PublishOptions, Receipt, SubscribeOptions,
};
use trunkline::status::BackendState;
use trunkline::{Message, Subject};
use trunkline_testkit::NatsCluster;
use trunkline_testkit::history::{Event, Expectations, History, MessageId, Told, check};

use super::load::id_of;
use super::{PATIENCE, connect, options, options_of, soon};

fn named(cluster: &NatsCluster, nodes: [usize; 2], name: &str) -> NatsOptions {
    let servers = nodes.map(|node| cluster.url(node).to_owned()).to_vec();
    NatsOptions { servers, name: Some(name.to_owned()), ..options(cluster) }
}

async fn subscribe(backend: &NatsBackend, max_pending: Option<usize>) -> Box<dyn LiveSource> {
    let options = SubscribeOptions { max_pending, ..SubscribeOptions::default() };
    let subscribing = backend.subscribe("live.>".parse().expect("a pattern"), options);
    soon("a subscription", subscribing).await.expect("a live connection")
}

async fn next(source: &mut dyn LiveSource) -> LiveEvent {
    let mut events = Vec::new();
    soon("an event", std::future::poll_fn(|cx| source.poll_batch(cx, 1, &mut events))).await;
    events.pop().expect("the subscription goes on")
}

async fn wait_for(backend: &NatsBackend, what: impl Fn(&BackendState) -> bool) {
    let mut status = backend.status();
    soon("the state", status.wait_for(|status| what(&status.state))).await.expect("a backend");
}

/// Publishes one message and says what is known of it once it was flushed.
async fn publish(backend: &NatsBackend, id: MessageId) -> Told {
    let subject: Subject = "live.x".parse().expect("a subject");
    let publishing = backend.publish(Message::new(subject, id.to_payload()), PublishOptions::default());
    match soon("a publish", publishing.outcome()).await {
        Ok(Receipt::Accepted) => match soon("a flush", backend.flush()).await {
            Ok(()) => Told::Received,
            Err(PublishError::OutcomeUnknown { .. } | PublishError::NotConnected { .. }) => Told::Unknown,
            Err(error) => panic!("nobody provoked {error:?}"),
        },
        Err(PublishError::NotConnected { .. }) => Told::Refused,
        Err(PublishError::OutcomeUnknown { .. }) => Told::Unknown,
        other => panic!("nobody provoked {other:?}"),
    }
}

/// What a subscription is given until this message comes.
async fn read_until(history: &History, source: &mut dyn LiveSource, last: MessageId) {
    loop {
        match next(source).await {
            LiveEvent::Message { message, .. } => {
                history.record(Event::Received { reader: 0, id: id_of(&message) });
                if id_of(&message) == last {
                    return;
                }
            }
            LiveEvent::Gap(gap) => panic!("the reader's server was there all the time, yet there is {gap:?}"),
        }
    }
}

/// A publisher whose server dies goes to another one. What it was told was received is, by a reader elsewhere; while it is
/// disconnected nothing is a success, and what was refused never comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publisher_goes_to_another_server_and_claims_nothing_meanwhile() {
    let mut cluster = here(NatsCluster::start);
    let reader = connect(options_of(&cluster, 0)).await;
    let writer = connect(named(&cluster, [1, 2], "writer")).await;
    let history = History::new();
    let mut source = subscribe(&reader, None).await;
    // The other servers learn of a subscription a moment after it was made: nothing counts before the first message.
    let mut number = 0;
    let mut id = || {
        number += 1;
        MessageId { publisher: 0, number }
    };
    loop {
        let first = id();
        publish(&writer, first).await;
        let mut events = Vec::new();
        let polling = std::future::poll_fn(|cx| source.poll_batch(cx, 1000, &mut events));
        if tokio::time::timeout(Duration::from_millis(100), polling).await.is_ok() {
            break;
        }
    }
    let pattern = "live.>".parse().expect("a pattern");
    history.record(Event::Subscribed { reader: 0, pattern, group: None });
    let say = async |id: MessageId| {
        history.record(Event::Publishing { id, subject: "live.x".parse().expect("a subject") });
        let told = publish(&writer, id).await;
        history.record(Event::Published { id, told });
        told
    };
    for _ in 0..3 {
        let mut last = id();
        for _ in 0..20 {
            last = id();
            assert_eq!(say(last).await, Told::Received);
        }
        // What a server has received it may take along when it dies before it has passed it on, so that is awaited.
        read_until(&history, &mut *source, last).await;
        let node = here(|| cluster.node_of_client("writer")).expect("it is connected");
        here(|| cluster.kill(node));
        let (mut refused, since) = (0, Instant::now());
        loop {
            last = id();
            match say(last).await {
                Told::Received if refused > 0 => break,
                Told::Refused => refused += 1,
                _ => {}
            }
            assert!(since.elapsed() < PATIENCE, "it finds no other server");
        }
        read_until(&history, &mut *source, last).await;
        here(|| cluster.restart(node));
        here(|| cluster.wait_until_ready());
    }
    assert_eq!(check(&history.entries(), &Expectations::default()), []);
}

/// A reader whose server dies goes to another one, and is told that something may be missing before anything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reader_goes_to_another_server_and_is_told_of_a_gap() {
    let mut cluster = here(NatsCluster::start);
    let reader = connect(named(&cluster, [0, 1], "reader")).await;
    let writer = connect(options_of(&cluster, 2)).await;
    let mut source = subscribe(&reader, None).await;
    let mut number = 0;
    for _ in 0..2 {
        // Until one arrives: the servers tell each other of subscriptions a moment later.
        let arrived = async {
            let event = next(&mut *source).await;
            assert!(matches!(event, LiveEvent::Message { .. }), "nothing was lost, yet there is {event:?}");
        };
        let publishing = async {
            loop {
                number += 1;
                assert_eq!(publish(&writer, MessageId { publisher: 0, number }).await, Told::Received);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = arrived => {}
            () = publishing => {}
        }
        let node = here(|| cluster.node_of_client("reader")).expect("it is connected");
        here(|| cluster.kill(node));
        wait_for(&reader, |state| !state.is_ready()).await;
        wait_for(&reader, BackendState::is_ready).await;
        // What had come before may still be in its hands.
        let gap = loop {
            if let LiveEvent::Gap(gap) = next(&mut *source).await {
                break gap;
            }
        };
        assert_eq!(gap, Gap { missed: None });
        here(|| cluster.restart(node));
        here(|| cluster.wait_until_ready());
    }
}

/// A reader that is too slow for what comes over from another server is told how much it missed, and it is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_slow_reader_misses_is_a_gap_and_counted() {
    const COUNT: u32 = 2000;
    let cluster = here(NatsCluster::start);
    let (reader, writer) = (connect(options_of(&cluster, 0)).await, connect(options_of(&cluster, 1)).await);
    let (mut all, mut slow) = (subscribe(&reader, None).await, subscribe(&reader, Some(10)).await);
    // The server of the reader passes on to both what reaches it, which is so as soon as one message has.
    let mut number = 0;
    let mut arrived = false;
    while !arrived {
        number += 1;
        publish(&writer, MessageId { publisher: 0, number }).await;
        arrived = tokio::time::timeout(Duration::from_millis(100), next(&mut *all)).await.is_ok();
    }
    for number in 0..COUNT {
        let id = MessageId { publisher: 1, number };
        let publishing = writer.publish(
            Message::new("live.x".parse::<Subject>().expect("a subject"), id.to_payload()),
            PublishOptions::default(),
        );
        assert_eq!(soon("a publish", publishing.outcome()).await, Ok(Receipt::Accepted));
    }
    // The one that keeps up has them all; then the slow one was offered them all, too.
    let mut seen = 0;
    while seen < COUNT {
        match next(&mut *all).await {
            LiveEvent::Message { message, .. } => seen += u32::from(id_of(&message).publisher == 1),
            LiveEvent::Gap(gap) => panic!("it kept up, yet there is {gap:?}"),
        }
    }
    soon("a flush", reader.flush()).await.expect("a live connection");
    let (mut got, mut missed) = (0, 0);
    while got + missed < u64::from(COUNT) {
        match next(&mut *slow).await {
            LiveEvent::Message { .. } => got += 1,
            LiveEvent::Gap(gap) => missed += gap.missed.expect("the number is known"),
        }
    }
    assert!(missed > 0, "it was slow, and {got} came");
    assert_eq!(reader.dropped_messages(), missed);
}
