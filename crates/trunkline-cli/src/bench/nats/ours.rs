//! Our side: the same work through the bus and its `nats` backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Notify;
use trunkline::backend::nats::{NatsBackend, NatsOptions};
use trunkline::backend::{
    AckToken, Backend as _, ConsumerConfig, Receipt, Settle, Settled, Start, StreamConfig,
};
use trunkline::{Bus, BusOptions, Delivered, Event, HandlerError, Message, Pattern, Subject};

use super::super::beside::{Load, Meter, Stamp, bus_failed, check_order, histogram, record, soon};
use super::super::error::BenchError;
use super::super::measure::Flow;
use super::super::tally::Expect;
use super::super::window::Window;
use super::peer::{Peer, WINDOW_MESSAGES};
use super::raw::{TELL_EVERY, check_number, check_reply, payload, without};
use super::server::Server;

const STREAM: &str = "bench";
/// Messages published before a run that are under way at once.
const FILL: usize = 512;

async fn connect(load: &Load) -> Result<(Arc<NatsBackend>, Bus), BenchError> {
    let mut options = NatsOptions::new([load.url.as_str()]);
    options.stream_prefix.clone_from(&load.prefix);
    let backend = Arc::new(NatsBackend::connect(options).await.map_err(bus_failed)?);
    let bus = Bus::with_backend(backend.clone(), BusOptions::default());
    Ok((backend, bus))
}

fn subject(load: &Load, name: &str) -> Result<Subject, BenchError> {
    Subject::new(format!("{}.{name}", load.prefix)).map_err(bus_failed)
}

/// `Bus::publish_message`, one after another, and then `Bus::flush`.
pub(super) async fn publish(load: &Arc<Load>, server: &Server) -> Result<Flow, BenchError> {
    let (_backend, bus) = connect(load).await?;
    let (subject, payload) = (subject(load, "publish")?, payload(load));
    let meter = Meter::start(server).await?;
    for _ in 0..load.messages {
        bus.publish_message(Message::new(subject.clone(), payload.clone())).await.map_err(bus_failed)?;
    }
    bus.flush().await.map_err(bus_failed)?;
    meter.stop(server, load.messages).await
}

/// `Bus::subscribe`.
pub(super) async fn subscribe(load: &Arc<Load>, server: &Server) -> Result<Flow, BenchError> {
    let (_backend, bus) = connect(load).await?;
    let subject = subject(load, "subscribe")?;
    let mut subscription = bus.subscribe(Pattern::from(&subject)).await.map_err(bus_failed)?;
    let window = Arc::new(Window::new(WINDOW_MESSAGES, 1, Expect::Every));
    let publisher = Peer::publisher(load, server.endpoint(), subject.as_str(), &window).await?;
    let meter = Meter::start(server).await?;
    publisher.begin();
    let mut received = 0;
    while received < load.messages {
        let until = load.messages.min(received + TELL_EVERY);
        soon(load, "subscriber", async {
            while received < until {
                let event = subscription.next().await.ok_or(BenchError::Closed)?;
                let Event::Message(message) = event else { return Err(lost(load, received)) };
                check_number(received, message.payload())?;
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

/// The subscription reports a gap.
fn lost(load: &Load, received: u64) -> BenchError {
    let (role, waited) = ("subscriber".to_owned(), std::time::Duration::ZERO);
    BenchError::Lost { role, received, expected: load.messages, waited }
}

/// `Bus::request_message`, with so many in flight.
pub(super) async fn request(load: &Arc<Load>, server: &Server) -> Result<Flow, BenchError> {
    let (_backend, bus) = connect(load).await?;
    let (subject, payload) = (subject(load, "request")?, payload(load));
    let responder = Peer::responder(load, server.endpoint(), subject.as_str()).await?;
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
                let request = Message::new(subject.clone(), payload.clone());
                let reply = bus.request_message(request, load.halt.timeout).await;
                (since.elapsed(), reply)
            });
        }
        if let Some((time, reply)) = under_way.next().await {
            check_reply(load, reply.map_err(bus_failed)?.payload())?;
            record(&mut times, time);
            answered += 1;
        }
    }
    drop(under_way);
    let flow = meter.stop(server, answered).await?;
    without(Flow { latency: Some(times), ..flow }, responder).await
}

/// A stream that keeps all the messages of the run.
async fn create_stream(load: &Load, backend: &Arc<NatsBackend>, subject: &Subject) -> Result<(), BenchError> {
    let config = StreamConfig::new(STREAM, vec![Pattern::from(subject)]);
    let backend = backend.clone();
    load.whole(async move {
        backend.streams().map_err(bus_failed)?.ensure(config).await.map(drop).map_err(bus_failed)
    })
    .await
}

/// `Bus::publish_message`, with so many confirmations outstanding.
pub(super) async fn js_publish(load: &Arc<Load>, server: &Server) -> Result<Flow, BenchError> {
    let (backend, bus) = connect(load).await?;
    let (subject, payload) = (subject(load, "stored")?, payload(load));
    create_stream(load, &backend, &subject).await?;
    let meter = Meter::start(server).await?;
    publish_all(load, &bus, &subject, load.in_flight, |_| payload.clone()).await?;
    meter.stop(server, load.messages).await
}

/// Publishes all messages with so many in flight; every one must be stored.
async fn publish_all(
    load: &Load,
    bus: &Bus,
    subject: &Subject,
    in_flight: usize,
    payload: impl Fn(u64) -> Bytes,
) -> Result<(), BenchError> {
    let (mut sent, mut stored) = (0, 0);
    let mut under_way = FuturesUnordered::new();
    while stored < load.messages {
        while under_way.len() < in_flight && sent < load.messages {
            under_way.push(bus.publish_message(Message::new(subject.clone(), payload(sent))));
            sent += 1;
        }
        match under_way.next().await {
            Some(Ok(Receipt::Stored { .. })) => stored += 1,
            Some(Ok(_)) => return Err(BenchError::Closed),
            Some(Err(error)) => return Err(bus_failed(error)),
            None => {}
        }
    }
    Ok(())
}

async fn fill(load: &Load, backend: &Arc<NatsBackend>, bus: &Bus, stamp: &Stamp) -> Result<(), BenchError> {
    let subject = subject(load, "stored")?;
    create_stream(load, backend, &subject).await?;
    publish_all(load, bus, &subject, FILL, |number| stamp.payload(number, load.payload_bytes)).await
}

/// `Member::fetch`, and `Member::settle` of the batch before at the same time.
pub(super) async fn pull(load: &Arc<Load>, server: &Server) -> Result<Flow, BenchError> {
    let (backend, bus) = connect(load).await?;
    let stamp = Stamp::new();
    fill(load, &backend, &bus, &stamp).await?;
    let config = ConsumerConfig { start: Start::Beginning, ..ConsumerConfig::new("c") };
    // It makes what members share, too.
    let joining = {
        let backend = backend.clone();
        async move { backend.streams().map_err(bus_failed)?.join(STREAM, config).await.map_err(bus_failed) }
    };
    let member = load.whole(joining).await?;
    let meter = Meter::start(server).await?;
    let (mut received, mut settled) = (0, 0);
    let mut done: Vec<(AckToken, Settle)> = Vec::new();
    while settled < load.messages {
        let settling = member.settle(std::mem::take(&mut done));
        let fetching = async {
            match received < load.messages {
                false => None,
                true => Some(member.fetch(load.batch, load.halt.timeout).await),
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
pub(super) async fn handle(load: &Arc<Load>, server: &Server) -> Result<Flow, BenchError> {
    let (backend, bus) = connect(load).await?;
    let stamp = Stamp::new();
    fill(load, &backend, &bus, &stamp).await?;
    let meter = Meter::start(server).await?;
    let (handled, all) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let messages = load.messages;
    let starting = bus
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
        });
    let consumer = load.whole(async move { starting.await.map_err(bus_failed) }).await?;
    // All together may take longer than nothing may move.
    let finished = async {
        let mut before = None;
        loop {
            let now = handled.load(Ordering::Relaxed);
            tokio::select! {
                biased;
                () = all.notified() => return Ok(()),
                () = tokio::time::sleep(load.halt.timeout) => {
                    if before.replace(now) == Some(handled.load(Ordering::Relaxed)) {
                        return Err(lost(load, now));
                    }
                }
            }
        }
    };
    finished.await?;
    consumer.stop().await.map_err(bus_failed)?;
    meter.stop(server, messages).await
}
