//! Our side: the same work through the bus and its `redis` backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Notify, mpsc};
use trunkline::backend::redis::{RedisBackend, RedisOptions};
use trunkline::backend::{
    AckToken, Backend as _, ConsumerConfig, Receipt, Settle, Settled, Start, StreamConfig,
};
use trunkline::config::RedisUrl;
use trunkline::{Bus, BusOptions, Delivered, Event, HandlerError, Message, Subject};

use super::super::beside::{Load, Meter, Stamp, bus_failed, check_order, histogram, record, soon};
use super::super::error::BenchError;
use super::super::measure::Flow;
use super::raw::heard;
use super::server::Server;

const STREAM: &str = "bench";
/// Messages published before a run that are under way at once.
const FILL: usize = 512;

async fn connect(load: &Load) -> Result<(Arc<RedisBackend>, Bus), BenchError> {
    let mut options = RedisOptions::new(
        RedisUrl::parse(&load.url).map_err(|reason| BenchError::Bus { source: reason.into() })?,
    );
    options.prefix.clone_from(&load.prefix);
    let backend = Arc::new(RedisBackend::connect(options).await.map_err(bus_failed)?);
    let bus = Bus::with_backend(backend.clone(), BusOptions::default());
    Ok((backend, bus))
}

/// A subject that no configured stream matches, and one that the stream of the run keeps.
fn subject(name: &str) -> Result<Subject, BenchError> {
    Subject::new(format!("nachos.tool.{name}")).map_err(bus_failed)
}

/// Publishes `messages` with so many in flight; every one must be stored.
async fn publish_all(
    load: &Load,
    bus: &Bus,
    subject: &Subject,
    stamp: &Stamp,
    in_flight: usize,
) -> Result<(), BenchError> {
    let (mut sent, mut stored) = (0, 0);
    let mut under_way = FuturesUnordered::new();
    while stored < load.messages {
        while under_way.len() < in_flight && sent < load.messages {
            let payload = stamp.payload(sent, load.payload_bytes);
            under_way.push(bus.publish_message(Message::new(subject.clone(), payload)));
            sent += 1;
        }
        // One wait for all that are answered together, as the other side has one for a pipeline.
        let mut answered = soon(load, "publisher", under_way.next()).await?;
        while let Some(outcome) = answered {
            match outcome {
                Ok(Receipt::Stored { .. }) => stored += 1,
                Ok(_) => return Err(BenchError::Closed),
                Err(error) => return Err(bus_failed(error)),
            }
            answered = under_way.next().now_or_never().flatten();
        }
    }
    Ok(())
}

/// `Bus::publish_message` with so many in flight.
pub(super) async fn publish(load: &Load, server: &Server) -> Result<Flow, BenchError> {
    let (_backend, bus) = connect(load).await?;
    let (subject, stamp) = (subject("publish")?, Stamp::new());
    let meter = Meter::start(server).await?;
    publish_all(load, &bus, &subject, &stamp, load.in_flight).await?;
    meter.stop(server, load.messages).await
}

/// A stream that keeps all the messages of the run.
async fn fill(load: &Load, backend: &RedisBackend, bus: &Bus, stamp: &Stamp) -> Result<(), BenchError> {
    let subject = subject("consume")?;
    let config = StreamConfig::new(STREAM, vec![trunkline::Pattern::from(&subject)]);
    backend.streams().map_err(bus_failed)?.ensure(config).await.map_err(bus_failed)?;
    publish_all(load, bus, &subject, stamp, FILL).await
}

/// `Member::fetch`, and `Member::settle` of the batch before at the same time.
pub(super) async fn consume(load: &Load, server: &Server) -> Result<Flow, BenchError> {
    let (backend, bus) = connect(load).await?;
    let stamp = Stamp::new();
    fill(load, &backend, &bus, &stamp).await?;
    let config = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("c") };
    let member = backend.streams().map_err(bus_failed)?.join(STREAM, config).await.map_err(bus_failed)?;
    let meter = Meter::start(server).await?;
    let (mut received, mut settled) = (0, 0);
    let mut done: Vec<(AckToken, Settle)> = Vec::new();
    while settled < load.messages {
        let wanted = if received < load.messages { load.batch } else { 0 };
        let settling = member.settle(std::mem::take(&mut done));
        let fetching = async {
            match wanted {
                0 => None,
                wanted => Some(member.fetch(wanted, load.halt.timeout).await),
            }
        };
        let (answers, fetched) = soon(load, "consumer", async { tokio::join!(settling, fetching) }).await?;
        for answer in answers.map_err(bus_failed)? {
            if answer != Settled::Done {
                return Err(BenchError::Closed);
            }
            settled += 1;
        }
        for delivery in fetched.transpose().map_err(bus_failed)?.into_iter().flat_map(|f| f.deliveries) {
            if let Some((number, _)) = stamp.read(&delivery.message.payload) {
                check_order(received, number)?;
            }
            received += 1;
            done.push((delivery.token, Settle::Ack));
        }
    }
    meter.stop(server, settled).await
}

/// A consumer of the bus whose handlers do nothing.
pub(super) async fn handle(load: &Load, server: &Server) -> Result<Flow, BenchError> {
    let (backend, bus) = connect(load).await?;
    let stamp = Stamp::new();
    fill(load, &backend, &bus, &stamp).await?;
    let meter = Meter::start(server).await?;
    let (handled, all) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let messages = load.messages;
    let consumer = bus
        .stream(STREAM)
        .map_err(bus_failed)?
        .consumer("c")
        .map_err(bus_failed)?
        .start(Start::Beginning)
        .concurrency(load.in_flight)
        .spawn({
            let (handled, all) = (handled.clone(), all.clone());
            move |_: Delivered| {
                let last = handled.fetch_add(1, Ordering::Relaxed) + 1 == messages;
                if last {
                    all.notify_one();
                }
                async { Ok::<(), HandlerError>(()) }
            }
        })
        .await
        .map_err(bus_failed)?;
    soon(load, "consumer", all.notified()).await?;
    consumer.stop().await.map_err(bus_failed)?;
    meter.stop(server, messages).await
}

/// `Bus::publish_message` to a live subscription, one message at a time.
pub(super) async fn latency(load: &Load, server: &Server) -> Result<Flow, BenchError> {
    let (_backend, bus) = connect(load).await?;
    let (subject, stamp) = (subject("latency")?, Arc::new(Stamp::new()));
    let pattern = trunkline::Pattern::from(&subject);
    let mut subscription = bus.subscribe(pattern).await.map_err(bus_failed)?;
    let (hear, mut hears) = mpsc::channel(1);
    let reading = tokio::spawn({
        let stamp = stamp.clone();
        async move {
            while let Some(event) = subscription.next().await {
                let Event::Message(received) = event else { return };
                let Some(heard_of) = stamp.read(received.payload()) else { return };
                if hear.send(heard_of).await.is_err() {
                    return;
                }
            }
        }
    });
    let mut histogram = histogram();
    let meter = Meter::start(server).await?;
    for number in 0..load.messages {
        let payload = stamp.payload(number, load.payload_bytes);
        let publishing = bus.publish_message(Message::new(subject.clone(), payload));
        soon(load, "publisher", publishing).await?.map_err(bus_failed)?;
        record(&mut histogram, heard(number, soon(load, "subscriber", hears.recv()).await?)?);
    }
    let flow = meter.stop(server, load.messages).await?;
    reading.abort();
    Ok(Flow { latency: Some(histogram), ..flow })
}
