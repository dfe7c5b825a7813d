//! The raw side: what the client library does, as one would write it for speed.

use std::sync::Arc;
use std::time::Instant;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream::Config as StreamConfig;
use async_nats::jetstream::{Context, Message};
use async_nats::{Client, ConnectOptions, Subject};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _, TryStreamExt as _};

use super::super::beside::{Load, Meter, Stamp, check_order, histogram, record, soon};
use super::super::error::BenchError;
use super::super::measure::Flow;
use super::super::stamp;
use super::super::tally::Expect;
use super::super::window::Window;
use super::nats_failed;
use super::peer::{Peer, WINDOW_MESSAGES};
use super::server::Server;

/// Messages published before a run that are under way at once.
const FILL: usize = 512;
/// A subscriber tells the publisher how far it is after so many messages.
pub(super) const TELL_EVERY: u64 = 256;
/// As the backend has it.
const ACK_PENDING_MAX: i64 = 1_000_000;

/// How the messages of a batch are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acks {
    /// Each by `double_ack`, all of a batch at once.
    Double,
    /// Each by a request, all of a batch at once.
    Request,
    /// Each by `ack`, without an answer.
    Plain,
}

async fn connect(url: &str) -> Result<Client, BenchError> {
    ConnectOptions::new().connect(url).await.map_err(nats_failed("connect to the server"))
}

fn jetstream(client: &Client, acks: usize) -> Context {
    ContextBuilder::new().max_ack_inflight(acks.max(1)).backpressure_on_inflight(true).build(client.clone())
}

/// What is published where nobody looks at it.
pub(super) fn payload(load: &Load) -> Bytes {
    vec![b'x'; load.payload_bytes].into()
}

/// Waits until the server has handled everything that was published: until a message comes back.
async fn round_trip(load: &Load, client: &Client) -> Result<(), BenchError> {
    let inbox = Subject::from(client.new_inbox());
    let doing = "send a message to ourselves";
    let mut echo = client.subscribe(inbox.clone()).await.map_err(nats_failed(doing))?;
    client.publish(inbox, Bytes::new()).await.map_err(nats_failed(doing))?;
    let echoed: Option<async_nats::Message> = soon(load, "the server", echo.next()).await?;
    echoed.map(drop).ok_or(BenchError::Closed)
}

/// `Client::publish`, one after another, and then a message to ourselves.
pub(super) async fn publish(load: &Arc<Load>, server: &Server) -> Result<Flow, BenchError> {
    let client = connect(&load.url).await?;
    let (subject, payload) = (Subject::from(format!("{}.publish", load.prefix)), payload(load));
    let failed = nats_failed("publish");
    let meter = Meter::start(server).await?;
    for _ in 0..load.messages {
        client.publish(subject.clone(), payload.clone()).await.map_err(&failed)?;
    }
    round_trip(load, &client).await?;
    meter.stop(server, load.messages).await
}

/// `Client::subscribe`.
pub(super) async fn subscribe(load: &Arc<Load>, server: &Server) -> Result<Flow, BenchError> {
    let client = connect(&load.url).await?;
    let subject = format!("{}.subscribe", load.prefix);
    let mut subscription = client.subscribe(subject.clone()).await.map_err(nats_failed("subscribe"))?;
    round_trip(load, &client).await?;
    let window = Arc::new(Window::new(WINDOW_MESSAGES, 1, Expect::Every));
    let publisher = Peer::publisher(load, server.endpoint(), &subject, &window).await?;
    let meter = Meter::start(server).await?;
    publisher.begin();
    let mut received = 0;
    while received < load.messages {
        // One timer for many messages, or it would cost more than they do.
        let until = load.messages.min(received + TELL_EVERY);
        soon(load, "subscriber", async {
            while received < until {
                let message = subscription.next().await.ok_or(BenchError::Closed)?;
                check_number(received, &message.payload)?;
                received += 1;
            }
            Ok::<(), BenchError>(())
        })
        .await??;
        window.deliver(0, received);
    }
    let flow = meter.stop(server, received).await?;
    without(flow, publisher).await
}

/// A publisher's number in a payload must be the next.
pub(super) fn check_number(expected: u64, payload: &[u8]) -> Result<(), BenchError> {
    stamp::decode(payload).map_or(Ok(()), |(_, number)| check_order(expected, number))
}

/// What the run cost without its other end.
pub(super) async fn without(flow: Flow, peer: Peer) -> Result<Flow, BenchError> {
    let cpu = peer.end().await?;
    Ok(Flow { load_cpu: flow.load_cpu.saturating_sub(cpu), ..flow })
}

/// `Client::request`, with so many in flight.
pub(super) async fn request(load: &Arc<Load>, server: &Server) -> Result<Flow, BenchError> {
    let client = connect(&load.url).await?;
    let (subject, payload) = (Subject::from(format!("{}.request", load.prefix)), payload(load));
    let responder = Peer::responder(load, server.endpoint(), &subject).await?;
    responder.begin();
    let mut times = histogram();
    let (mut sent, mut answered) = (0, 0);
    let mut under_way = FuturesUnordered::new();
    let meter = Meter::start(server).await?;
    while answered < load.messages {
        while under_way.len() < load.in_flight && sent < load.messages {
            sent += 1;
            under_way.push(async {
                let since = Instant::now();
                let reply = client.request(subject.clone(), payload.clone()).await;
                (since.elapsed(), reply)
            });
        }
        if let Some((time, reply)) = under_way.next().await {
            let reply = reply.map_err(nats_failed("request"))?;
            check_reply(load, &reply.payload)?;
            record(&mut times, time);
            answered += 1;
        }
    }
    drop(under_way);
    let flow = meter.stop(server, answered).await?;
    without(Flow { latency: Some(times), ..flow }, responder).await
}

/// A responder sends back what it was sent.
pub(super) fn check_reply(load: &Load, reply: &[u8]) -> Result<(), BenchError> {
    match reply.len() == load.payload_bytes {
        true => Ok(()),
        false => Err(BenchError::Foreign {
            role: "a requester".to_owned(),
            line: String::from_utf8_lossy(&reply[..reply.len().min(80)]).into_owned(),
        }),
    }
}

async fn create_stream(load: &Load, context: &Context, subject: &str) -> Result<(), BenchError> {
    let config = StreamConfig {
        name: format!("{}_raw", load.prefix),
        subjects: vec![subject.to_owned()],
        allow_direct: true,
        ..Default::default()
    };
    let context = context.clone();
    let creating =
        async move { context.create_stream(config).await.map(drop).map_err(nats_failed("create a stream")) };
    load.whole(creating).await
}

/// `Context::publish`, with so many confirmations outstanding.
pub(super) async fn js_publish(load: &Arc<Load>, server: &Server) -> Result<Flow, BenchError> {
    let client = connect(&load.url).await?;
    let context = jetstream(&client, load.in_flight);
    let subject = Subject::from(format!("{}.stored", load.prefix));
    create_stream(load, &context, &subject).await?;
    let payload = payload(load);
    let meter = Meter::start(server).await?;
    publish_all(load, &context, &subject, load.in_flight, |_| payload.clone()).await?;
    meter.stop(server, load.messages).await
}

async fn publish_all(
    load: &Load,
    context: &Context,
    subject: &Subject,
    in_flight: usize,
    payload: impl Fn(u64) -> Bytes,
) -> Result<(), BenchError> {
    let failed = nats_failed("publish to a stream");
    let (mut sent, mut stored) = (0, 0);
    let mut under_way = FuturesUnordered::new();
    while stored < load.messages {
        while under_way.len() < in_flight && sent < load.messages {
            let publishing = context.publish(subject.clone(), payload(sent));
            let confirming = publishing.await.map_err(&failed)?;
            under_way.push(confirming.into_future());
            sent += 1;
        }
        if let Some(confirmed) = under_way.next().await {
            confirmed.map_err(&failed)?;
            stored += 1;
        }
    }
    Ok(())
}

/// `Consumer::fetch`, while the batch before is acknowledged.
pub(super) async fn pull(load: &Arc<Load>, server: &Server, acks: Acks) -> Result<Flow, BenchError> {
    let client = connect(&load.url).await?;
    let context = jetstream(&client, FILL);
    let subject = Subject::from(format!("{}.stored", load.prefix));
    create_stream(load, &context, &subject).await?;
    let stamp = Stamp::new();
    publish_all(load, &context, &subject, FILL, |number| stamp.payload(number, load.payload_bytes)).await?;
    let config = pull::Config {
        durable_name: Some("c".to_owned()),
        ack_policy: AckPolicy::Explicit,
        deliver_policy: DeliverPolicy::All,
        max_ack_pending: ACK_PENDING_MAX,
        ..Default::default()
    };
    let consumer = context
        .create_consumer_on_stream(config, format!("{}_raw", load.prefix))
        .await
        .map_err(nats_failed("create a consumer"))?;
    let meter = Meter::start(server).await?;
    let (mut received, mut settled) = (0, 0);
    let mut done: Vec<Message> = Vec::new();
    while settled < load.messages {
        let batch = std::mem::take(&mut done);
        let acknowledging = acknowledge(&client, &batch, acks);
        let fetching = async {
            let mut fetched = Vec::new();
            if received < load.messages {
                let fetch = consumer.fetch().max_messages(load.batch).expires(load.halt.timeout);
                let mut messages = fetch.messages().await.map_err(nats_failed("fetch"))?;
                while let Some(message) = messages.next().await {
                    fetched.push(message.map_err(nats_failed("fetch"))?);
                }
            }
            Ok(fetched)
        };
        let (acknowledged, fetched): (_, Result<Vec<Message>, BenchError>) =
            soon(load, "consumer", async { tokio::join!(acknowledging, fetching) }).await?;
        acknowledged?;
        settled += batch.len() as u64;
        done = fetched?;
        for message in &done {
            if let Some((number, _)) = stamp.read(&message.payload) {
                check_order(received, number)?;
            }
            received += 1;
        }
    }
    if acks == Acks::Plain {
        round_trip(load, &client).await?;
    }
    meter.stop(server, settled).await
}

async fn acknowledge(client: &Client, batch: &[Message], acks: Acks) -> Result<(), BenchError> {
    match acks {
        Acks::Double => {
            try_join_all(batch.iter().map(Message::double_ack)).await.map_err(nats_failed("double ack"))?;
        }
        Acks::Request => {
            let asking = batch.iter().filter_map(|message| {
                let request = async_nats::Request::new().payload(Bytes::from_static(b"+ACK"));
                Some(client.send_request(message.reply.clone()?, request))
            });
            try_join_all(asking).await.map_err(nats_failed("acknowledge by a request"))?;
        }
        Acks::Plain => {
            for message in batch {
                message.ack().await.map_err(nats_failed("acknowledge"))?;
            }
        }
    }
    Ok(())
}

/// Removes every stream that a run has made, the buckets of the backend included.
pub(super) async fn remove_streams(url: &str, prefix: &str) -> Result<(), BenchError> {
    let client = connect(url).await?;
    if !client.server_info().jetstream {
        return Ok(());
    }
    let context = jetstream(&client, 1);
    let doing = "remove the streams of the run";
    let names: Vec<String> = context.stream_names().try_collect().await.map_err(nats_failed(doing))?;
    for name in names.iter().filter(|name| name.contains(prefix)) {
        context.delete_stream(name).await.map_err(nats_failed(doing))?;
    }
    Ok(())
}
