//! Fetches that are dropped before they return: what the server has sent to them, or will, goes back to it at once, so that
//! others get it now and not after `ack_wait`.
//!
//! Of a keyed consumer nothing goes back by itself: everything is called back, in order, by who has the lease next.

use std::sync::atomic::Ordering;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::JetStream;
use super::member::NatsMember;
use crate::backend::{Delivery, Fetched};

/// Gives a delivery back.
const NAK: &[u8] = b"-NAK";

/// What a request has brought so far. Dropped before it was returned, it hands that back.
pub(super) struct Brought<'a> {
    member: &'a NatsMember,
    fetched: Fetched,
    /// As much as was asked for.
    pub(super) full: bool,
    /// A delivery of a keyed consumer does not follow the one before.
    pub(super) out_of_order: bool,
}

impl<'a> Brought<'a> {
    pub(super) fn nothing(member: &'a NatsMember) -> Self {
        Self { member, fetched: Fetched::default(), full: false, out_of_order: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fetched.deliveries.is_empty()
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        self.fetched.deliveries.push(delivery);
    }

    /// Forgets the deliveries: they will be called back.
    pub(super) fn clear(&mut self) {
        self.fetched.deliveries.clear();
    }

    /// Returns it to who fetches, with the number of messages that were missed before.
    pub(super) fn returned(mut self, missed: u64) -> Fetched {
        Fetched { missed, ..std::mem::take(&mut self.fetched) }
    }
}

impl Drop for Brought<'_> {
    fn drop(&mut self) {
        let deliveries = std::mem::take(&mut self.fetched.deliveries);
        if deliveries.is_empty() || self.member.config.keyed {
            return;
        }
        let mut until = Instant::now();
        let mut acks = Vec::with_capacity(deliveries.len());
        let mut held = self.member.held.lock();
        for delivery in deliveries {
            // What is not held any more was handed back by a member that leaves, or its lease is over.
            let Some(sequence) = delivery.offset.sequence() else { continue };
            if held.get(&sequence).is_some_and(|held| held.attempt == delivery.attempt)
                && let Some(held) = held.remove(&sequence)
            {
                // All of one request have one lease.
                until = held.until;
                acks.push(held.ack);
            }
        }
        drop(held);
        let jetstream = self.member.jetstream.clone();
        let handing_back = async move { hand_back(&jetstream, acks, until).await };
        self.member.handing_back.spawn_on(handing_back, &self.member.jetstream.runtime);
    }
}

/// Where the deliveries of a request come in. Dropped before the request is over, it hands back what the server has sent by
/// then. What the server sends until it reads the UNSUB nobody hears of.
pub(super) struct Incoming<'a> {
    member: &'a NatsMember,
    /// Taken when the request is over, or handed back.
    pub(super) answers: Option<Subscriber>,
    /// Until when this member may settle what comes.
    until: Instant,
}

impl<'a> Incoming<'a> {
    pub(super) fn new(member: &'a NatsMember, answers: Subscriber, until: Instant) -> Self {
        Self { member, answers: Some(answers), until }
    }

    pub(super) fn over(mut self) {
        self.answers.take();
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        let Some(mut answers) = self.answers.take() else { return };
        if self.member.config.keyed {
            return;
        }
        let (jetstream, until) = (self.member.jetstream.clone(), self.until);
        let handing_back = async move {
            let link = &jetstream.api.link;
            // Brings in what the server had sent: the library forgets a subscription with its UNSUB.
            if link.prove(link.publish_timeout).await.is_err() || answers.drain().await.is_err() {
                return;
            }
            let mut acks = Vec::new();
            while let Some(answer) = answers.next().await {
                acks.extend(answer.reply.filter(|_| answer.status.is_none()));
            }
            hand_back(&jetstream, acks, until).await;
        };
        self.member.handing_back.spawn_on(handing_back, &self.member.jetstream.runtime);
    }
}

/// Gives deliveries back in their order, and waits until the server says that it has them. One that is lost comes again
/// after `ack_wait`. After `until` they may be somebody else's, and the server would take them away from there.
async fn hand_back(jetstream: &JetStream, acks: Vec<async_nats::Subject>, until: Instant) {
    let by = until.min(Instant::now() + jetstream.api.link.publish_timeout);
    let mut under_way = Vec::with_capacity(acks.len());
    for ack in acks {
        if Instant::now() >= until {
            break;
        }
        under_way.push(jetstream.api.send(ack, None, Bytes::from_static(NAK), by).await);
    }
    for sent in under_way.into_iter().flatten() {
        let _ = jetstream.api.answer(sent).await;
    }
}

/// A request of a keyed consumer that is under way.
pub(super) struct UnderWay<'a> {
    member: &'a NatsMember,
    returned: bool,
}

impl<'a> UnderWay<'a> {
    pub(super) fn new(member: &'a NatsMember) -> Self {
        Self { member, returned: false }
    }

    pub(super) fn returned(mut self) {
        self.returned = true;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.returned && self.member.config.keyed {
            // What is at work may still be settled: a member that drains gives its fetch up, and lets handlers finish.
            self.member.dropped_fetch.store(true, Ordering::SeqCst);
        }
    }
}
