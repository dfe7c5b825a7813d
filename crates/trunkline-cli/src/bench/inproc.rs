//! One run without a server: publishers and subscribers of one [`Bus`] in this process, all on one thread.
//!
//! Every message takes the way that any component's takes: `Bus::publish_message`, the routing table, the inbox of each
//! subscription, `Subscription::recv_many`. The payload carries a running number, which every subscriber checks.

use std::time::Instant;

use bytes::Bytes;
use trunkline::backend::PublishError;
use trunkline::{Bus, Event, Message, Pattern, Subject, Subscription};

use super::error::BenchError;
use super::halt::Halt;
use super::measure::Flow;
use super::plan::{Amount, Scenario, Workload};
use super::process;

/// How a report calls the library.
pub(super) const NAME: &str = "in process";

/// Messages published before the publisher lets the subscribers run.
const BURST: u64 = 256;

/// Runs the workload on a current-thread runtime of its own.
pub(super) fn run(workload: &Workload, halt: &Halt) -> Result<Flow, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|source| BenchError::Socket { doing: "start a runtime", source })?;
    runtime.block_on(async {
        let warm_up = Workload { amount: Amount::For(workload.warm_up), ..workload.clone() };
        if !workload.warm_up.is_zero() {
            measure(&warm_up, halt).await?;
        }
        measure(workload, halt).await
    })
}

async fn measure(workload: &Workload, halt: &Halt) -> Result<Flow, BenchError> {
    let bus = Bus::in_memory();
    let subject = Subject::new(workload.subject.clone())
        .map_err(|_| BenchError::Subject { subject: workload.subject.clone() })?;
    let subscribers = if workload.scenario == Scenario::Fanout { workload.subscribers } else { 1 };
    let mut subscriptions = Vec::new();
    for _ in 0..subscribers {
        let subscription = bus.subscribe(Pattern::from(&subject)).await;
        subscriptions.push(subscription.map_err(|error| BenchError::Bus { source: error.into() })?);
    }
    let cpu_before = process::own_cpu()?;
    let started = Instant::now();
    let readers: Vec<_> =
        subscriptions.into_iter().enumerate().map(|(n, s)| tokio::spawn(read(s, n))).collect();
    let published = publish(&bus, &subject, workload, halt, started).await?;
    // The end of the bus ends the subscriptions, after what they had.
    bus.drain(halt.timeout).await.map_err(|error| BenchError::Bus { source: error.into() })?;
    for (n, reader) in readers.into_iter().enumerate() {
        let received = reader.await.map_err(|error| BenchError::Bus { source: error.into() })??;
        if received != published {
            let (role, waited) = (role(n), started.elapsed());
            return Err(BenchError::Lost { role, received, expected: published, waited });
        }
    }
    Ok(Flow {
        published,
        messages: published * subscribers as u64,
        elapsed: started.elapsed(),
        load_cpu: process::own_cpu()?.saturating_sub(cpu_before),
        server: None,
        latency: None,
    })
}

async fn publish(
    bus: &Bus,
    subject: &Subject,
    workload: &Workload,
    halt: &Halt,
    started: Instant,
) -> Result<u64, BenchError> {
    let refused = |error: PublishError| BenchError::Bus { source: error.into() };
    let mut payload = vec![b'x'; workload.payload_bytes.max(size_of::<u64>())];
    let mut n = 0;
    loop {
        let burst = match workload.amount {
            Amount::Messages(total) => BURST.min(total - n),
            Amount::For(duration) if started.elapsed() >= duration => 0,
            Amount::For(_) => BURST,
        };
        if burst == 0 {
            return Ok(n);
        }
        for _ in 0..burst {
            payload[..size_of::<u64>()].copy_from_slice(&n.to_be_bytes());
            let message = Message::new(subject.clone(), Bytes::copy_from_slice(&payload));
            bus.publish_message(message).await.map_err(refused)?;
            n += 1;
        }
        halt.check()?;
        tokio::task::yield_now().await;
    }
}

async fn read(mut subscription: Subscription, n: usize) -> Result<u64, BenchError> {
    let (mut received, mut batch) = (0, Vec::new());
    while subscription.recv_many(&mut batch, BURST as usize).await > 0 {
        for event in batch.drain(..) {
            let Event::Message(message) = event else {
                return Err(BenchError::Lost {
                    role: role(n),
                    received,
                    expected: received + 1,
                    waited: std::time::Duration::ZERO,
                });
            };
            let stamp = message.payload().first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            if stamp != Some(received) {
                let (expected, received) = (received, stamp.unwrap_or(u64::MAX));
                return Err(BenchError::Order { role: role(n), publisher: 0, expected, received });
            }
            received += 1;
        }
    }
    Ok(received)
}

fn role(n: usize) -> String {
    format!("subscriber {n}")
}
