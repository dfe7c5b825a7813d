//! Members of a plain consumer that acknowledge, give back, forget, leave and join again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use trunkline::backend::nats::NatsBackend;
use trunkline::backend::{Delivery, Member, Settle};
use trunkline_testkit::history::{Answer, Event};

use super::load::{Load, id_of};
use super::{STREAM, consumer, soon, streams, unless_leaderless};

/// The lease of the consumer. Members let go a tenth earlier, and servers that take over know only the seconds of when
/// it began.
pub(super) const ACK_WAIT: Duration = Duration::from_secs(10);
/// How long a member may hold a delivery.
pub(super) const LEASE: Duration = Duration::from_secs(9);
/// Longest fetch.
const FETCH: Duration = Duration::from_millis(500);

pub(super) async fn join(backend: &NatsBackend) -> Arc<dyn Member> {
    let joining = async {
        loop {
            let joined = streams(backend).join(STREAM, consumer("plain", ACK_WAIT)).await;
            if let Some(member) = unless_leaderless(joined).await {
                return member;
            }
        }
    };
    soon("joining", joining).await
}

/// Works until everything is settled. Each time it joins again it is another member.
pub(super) async fn work(load: &Load, backend: &NatsBackend, number: u32, mut rng: Rng) {
    let mut generation = 0;
    while !load.settled.load(Ordering::Acquire) {
        let me = number * 1000 + generation;
        generation += 1;
        let member = join(backend).await;
        for _ in 0..rng.u32(20..200) {
            if load.settled.load(Ordering::Acquire) {
                break;
            }
            let deliveries = fetch(load, &*member, me, &mut rng).await;
            settle(load, &*member, me, deliveries, &mut rng).await;
        }
        load.history.record(Event::Departing { member: me });
        if let Err(error) = soon("leaving", member.leave()).await {
            assert!(error.is_retryable(), "leaving failed in a way nobody provoked: {error:?}");
        }
    }
}

async fn fetch(load: &Load, member: &dyn Member, me: u32, rng: &mut Rng) -> Vec<Delivery> {
    load.history.record(Event::Fetching { member: me });
    let fetched = match soon("a fetch", member.fetch(rng.usize(1..16), FETCH)).await {
        Ok(fetched) => fetched,
        Err(error) => {
            assert!(error.is_retryable(), "fetching failed in a way nobody provoked: {error:?}");
            load.history.record(Event::FetchAbandoned { member: me });
            tokio::time::sleep(Duration::from_millis(20)).await;
            return Vec::new();
        }
    };
    assert_eq!(fetched.missed, 0, "the stream keeps everything");
    for delivery in &fetched.deliveries {
        let (offset, attempt) = (delivery.offset, delivery.attempt);
        let id = id_of(&delivery.message);
        load.history.record(Event::Delivered { member: me, id, offset, attempt });
    }
    fetched.deliveries
}

/// Acknowledges most, and the others come again: forgotten ones after the lease, so that some of these are out while
/// servers break.
async fn settle(load: &Load, member: &dyn Member, me: u32, deliveries: Vec<Delivery>, rng: &mut Rng) {
    let mut batch = Vec::new();
    for delivery in deliveries {
        let how = match rng.u8(0..100) {
            0..4 if !load.is_over() => continue,
            4..10 => Settle::Nak(Duration::ZERO),
            _ => Settle::Ack,
        };
        batch.push((delivery, how));
    }
    if batch.is_empty() {
        return;
    }
    for (delivery, how) in &batch {
        let (offset, attempt) = (delivery.offset, delivery.attempt);
        load.history.record(Event::Settling { member: me, offset, attempt, how: *how });
    }
    let tokens = batch.iter().map(|(delivery, how)| (delivery.token.clone(), *how)).collect();
    let answers = match soon("a settlement", member.settle(tokens)).await {
        Ok(answers) => answers.into_iter().map(Answer::Known).collect(),
        Err(error) => {
            assert!(error.is_retryable(), "settling failed in a way nobody provoked: {error:?}");
            vec![Answer::Unknown; batch.len()]
        }
    };
    for ((delivery, how), answer) in batch.into_iter().zip(answers) {
        let (offset, attempt) = (delivery.offset, delivery.attempt);
        load.history.record(Event::Settled { member: me, offset, attempt, how, answer });
    }
}
