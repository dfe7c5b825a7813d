//! Publishes on one subject that follow one another: looked up, counted and written together.
//!
//! Each receiver gets them in order, one receiver after the other. Where a receiver would see the difference, because it has
//! two subscriptions that match, or where more is to be done with a message than to give it to clients, there is no run: a
//! message that is stored or recorded, or is for this process, goes its own way.

use fastrand::Rng;
use smallvec::SmallVec;
use trunkline::backend::memory::Target;
use trunkline_core::MatchSet;
use trunkline_protocol::PlainPub;

use super::Turn;
use super::delivery::{Delivery, subscription_of};
use crate::staging::{self, Outgoing, Receiver, Staging, Template};
use crate::subscription::Subscription;

/// Most messages of a run.
const MESSAGES_MAX: usize = 64;
/// Most bytes of a run, as far as it has more than two messages.
const BYTES_MAX: usize = 32 << 10;
/// Most deliveries of a run, as far as it has more than two messages: a turn is over as soon as it can be.
const DELIVERIES_MAX: usize = 4096;

/// Members of a larger group get one message at a time: hardly one of them gets two.
const MEMBERS_MAX: usize = 16;

type Messages<'a> = SmallVec<[PlainPub<'a>; MESSAGES_MAX]>;

/// Which member of each group has drawn each message, message by message.
type Draws = SmallVec<[usize; MESSAGES_MAX]>;

/// The publish at hand and those behind it.
pub(super) struct Run<'a> {
    messages: Messages<'a>,
}

/// The publish at hand and the one behind it, where that goes to the same targets and clients are all there is to serve.
#[inline]
pub(super) fn second<'a>(
    m: &Outgoing<'_>,
    targets: &MatchSet<Target>,
    turn: &Turn<'a>,
) -> Option<[PlainPub<'a>; 2]> {
    let is_plain = m.reply.is_none()
        && m.header.is_none()
        && m.payload.len() < staging::VECTORED_BYTES
        && targets.stores.is_empty()
        && targets.taps.iter().all(|tap| matches!(tap, Target::Observed))
        && !turn.is_traced;
    if !is_plain {
        return None;
    }
    let first = PlainPub::new(&turn.input[turn.start..turn.consumed], m.payload.len())?;
    Some([first, next(&first, turn, turn.consumed)?])
}

#[inline]
fn next<'a>(last: &PlainPub<'a>, turn: &Turn<'a>, at: usize) -> Option<PlainPub<'a>> {
    let next = last.next(&turn.input[at..], &turn.limits)?;
    (next.payload_len < staging::VECTORED_BYTES).then_some(next)
}

/// Whether all targets are clients, each of them once.
pub(super) fn is_simple(targets: &MatchSet<Target>, staging: &mut Staging) -> bool {
    let members = targets.queues.iter().flat_map(|queue| &queue.members);
    staging.begin_run();
    targets.subscribers.iter().chain(members).all(|target| {
        subscription_of(target).is_some_and(|subscription| staging.is_new_in_run(&subscription.client))
    })
}

impl<'a> Run<'a> {
    /// Takes all that belongs to it, and counts what is taken.
    pub(super) fn gather(
        [first, second]: [PlainPub<'a>; 2],
        targets: &MatchSet<Target>,
        turn: &mut Turn<'a>,
    ) -> Self {
        let mut messages = Messages::new();
        messages.push(first);
        let most = (DELIVERIES_MAX / targets.targets().max(1)).min(MESSAGES_MAX);
        let mut bytes = first.tail.len();
        let (mut found, mut payloads) = (Some(second), 0);
        while let Some(one) = found {
            turn.consumed += one.len();
            payloads += one.payload_len;
            bytes += one.tail.len();
            messages.push(one);
            let has_room = messages.len() < most && bytes < BYTES_MAX;
            found = if has_room { next(&one, turn, turn.consumed) } else { None };
        }
        turn.count(messages.len() - 1, payloads);
        Self { messages }
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Gives each message to every subscriber and to one member of each group. `delivery` is that of the first of them.
    pub(super) fn deliver(
        &self,
        targets: &MatchSet<Target>,
        delivery: &Delivery<'_>,
        random: &mut Rng,
        staging: &mut Staging,
    ) {
        staging.looked_at(self.messages.len() * (targets.subscribers.len() + targets.queues.len()));
        let mut template = None;
        for target in &targets.subscribers {
            give(target, &self.messages, delivery, &mut template, staging);
        }
        // Message by message, as they would be drawn if each came alone.
        let draws: Draws = self
            .messages
            .iter()
            .flat_map(|_| &targets.queues)
            .map(|queue| random.usize(..queue.members.len()))
            .collect();
        for (n, queue) in targets.queues.iter().enumerate() {
            let draws = draws[n..].iter().step_by(targets.queues.len()).copied();
            self.share(&queue.members, draws, delivery, staging);
        }
    }

    /// Gives each message to the member of a group that has drawn it, or to the next that can take it.
    fn share(
        &self,
        members: &[Target],
        draws: impl Iterator<Item = usize> + Clone,
        delivery: &Delivery<'_>,
        staging: &mut Staging,
    ) {
        let mut receivers: SmallVec<[Option<Receiver<'_>>; MEMBERS_MAX]> = SmallVec::new();
        if members.len() <= MEMBERS_MAX {
            let mut drawn = [0; MEMBERS_MAX];
            draws.clone().for_each(|member| drawn[member] += 1);
            for (member, drawn) in members.iter().zip(drawn) {
                let taken = take(member, drawn, delivery);
                receivers.push(taken.map(|(subscription, places)| {
                    staging.receiver((&subscription.client, &subscription.sid), places)
                }));
            }
        }
        let subject = delivery.m.subject;
        for (message, member) in self.messages.iter().zip(draws) {
            match receivers.get_mut(member) {
                Some(Some(receiver)) if receiver.takes() => staging.receive(receiver, subject, message),
                _ => {
                    let payload = message.payload();
                    let at = staging::place_of(payload, delivery.input);
                    let m = Outgoing { payload, at, ..*delivery.m };
                    delivery.again(&m).give_one(members, member, staging);
                }
            }
        }
        staging.end_receiving(receivers.iter().flatten(), delivery.input);
    }
}

/// Gives messages to a client.
#[inline]
fn give<'t>(
    target: &'t Target,
    messages: &[PlainPub<'_>],
    delivery: &Delivery<'_>,
    template: &mut Option<Template<'t>>,
    staging: &mut Staging,
) {
    if let Some((subscription, places)) = take(target, messages.len(), delivery) {
        let receiver = (&subscription.client, &subscription.sid[..]);
        staging.run(receiver, delivery.m.subject, &messages[..places], template, delivery.input);
    }
}

/// Takes the places of up to `n` messages at a client; `None` where it gets none of them.
#[inline]
fn take<'t>(target: &'t Target, n: usize, delivery: &Delivery<'_>) -> Option<(&'t Subscription, usize)> {
    let subscription = subscription_of(target).filter(|_| n > 0)?;
    if !delivery.is_for(subscription.client.id) || !subscription.admits(delivery.m.subject, None) {
        return None;
    }
    let places = subscription.take_deliveries(n);
    (places > 0).then_some((subscription, places))
}
