//! One message on its way to its targets.

use std::sync::Arc;

use bytes::Bytes;
use trunkline::backend::Receipt;
use trunkline::backend::memory::{Delivered, Hub, Target, is_observed, stream_of};
use trunkline::observe::{Observer, RawMessage, Receiver};
use trunkline::{Headers, Message, Subject};
use trunkline_core::{MatchSet, StreamOffset};

use crate::staging::{Outgoing, Staging};
use crate::subscription::Subscription;

pub(super) fn subscription_of(target: &Target) -> Option<&Subscription> {
    match target {
        Target::Session(sink) => sink.as_any().downcast_ref(),
        _ => None,
    }
}

/// What the streams among the targets said.
pub(super) enum Stored {
    Go,
    Duplicate,
    Reserved,
}

/// One message on its way to its targets.
pub(super) struct Delivery<'a> {
    hub: &'a Hub,
    pub(super) m: &'a Outgoing<'a>,
    pub(super) input: &'a [u8],
    own: u64,
    echo: bool,
    /// For receivers in this process; made once, when the first of them is met.
    message: Option<Arc<Message>>,
    offset: Option<StreamOffset>,
    /// Somebody got it, or a stream keeps it.
    pub(super) somebody: bool,
    /// It is shown to who looks on.
    pub(super) seen: bool,
}

impl<'a> Delivery<'a> {
    #[inline]
    pub(super) fn new(hub: &'a Hub, m: &'a Outgoing<'a>, input: &'a [u8], own: u64, echo: bool) -> Self {
        Self { hub, m, input, own, echo, message: None, offset: None, somebody: false, seen: false }
    }

    /// Whether a client may be given what is published: not its own, if it does not want that back.
    #[inline]
    pub(super) fn is_for(&self, client: u64) -> bool {
        self.echo || client != self.own
    }

    /// Whether it is one of the messages that an observer is to see.
    #[inline]
    pub(super) fn is_seen(&self, observer: &Observer, targets: &MatchSet<Target>) -> bool {
        is_observed(targets) || observer.expects(self.m.subject)
    }

    /// Another message of the same publisher.
    pub(super) fn again(&self, m: &'a Outgoing<'a>) -> Self {
        Self::new(self.hub, m, self.input, self.own, self.echo)
    }

    /// Shows the message to who looks on, where it is one of those that are seen.
    #[inline]
    pub(super) fn look(
        &mut self,
        observer: &Arc<Observer>,
        targets: &MatchSet<Target>,
        staging: &mut Staging,
    ) {
        let m = self.m;
        if !self.is_seen(observer, targets) {
            return;
        }
        let (subject, reply, header, payload) = (m.subject, m.reply, m.header, m.payload);
        let message = RawMessage { subject, reply, header, payload, from: self.own };
        self.seen = staging.seen.begin(observer, &message);
        if self.seen
            && let (Some(stream), Some(offset)) = (stream_of(targets), self.offset)
        {
            staging.seen.stored(stream, offset);
        }
    }

    #[inline]
    pub(super) fn give(&mut self, target: &Target, staging: &mut Staging) -> bool {
        let given = match subscription_of(target) {
            Some(subscription) => {
                let client = &subscription.client;
                let wanted = self.is_for(client.id)
                    && subscription.admits(self.m.subject, self.m.reply)
                    && subscription.take_delivery();
                if wanted {
                    staging.message(client, &subscription.sid, self.m, self.input);
                    if self.seen {
                        staging.seen.given(Receiver::Client(client.id));
                    }
                }
                wanted
            }
            None => self.give_inbox(target, true, staging),
        };
        self.somebody |= given;
        given
    }

    fn give_inbox(&mut self, target: &Target, count: bool, staging: &mut Staging) -> bool {
        let Target::Inbox(inbox) = target else { return false };
        let offset = self.offset;
        let Some(message) = self.message() else { return false };
        let outcome = match count {
            true => inbox.push(message, offset),
            false => inbox.offer(message, offset),
        };
        if count || outcome == Delivered::Done {
            self.hub.count(outcome);
        }
        if self.seen
            && let Some(owner) = inbox.owner()
        {
            match outcome {
                Delivered::Done => staging.seen.given(Receiver::Named(owner.clone())),
                Delivered::Full if count => staging.seen.missed(Receiver::Named(owner.clone())),
                Delivered::Full | Delivered::Gone => {}
            }
        }
        // One that is full listens all the same, and was told what it missed.
        outcome == Delivered::Done || (count && outcome == Delivered::Full)
    }

    /// One member gets it: the drawn one, or the next that can take it.
    #[inline]
    pub(super) fn give_one(&mut self, members: &[Target], first: usize, staging: &mut Staging) {
        for n in 0..members.len() {
            let member = &members[(first + n) % members.len()];
            let given = match member {
                Target::Inbox(_) => self.give_inbox(member, false, staging),
                other => self.give(other, staging),
            };
            if given {
                self.somebody = true;
                return;
            }
        }
        // Dropped at a member that can tell its reader so; sessions that could not take it are gone.
        staging.looked_at(members.len());
        let mut others = (0..members.len()).map(|n| &members[(first + n) % members.len()]);
        self.somebody |= others.any(|member| self.give_inbox(member, true, staging));
    }

    #[cold]
    pub(super) fn store(&mut self, targets: &MatchSet<Target>) -> Stored {
        if targets.taps.iter().any(|tap| matches!(tap, Target::Reserved)) {
            return Stored::Reserved;
        }
        if !targets.stores.is_empty()
            && let Some(message) = self.message()
        {
            match self.hub.store(targets, &message, message.headers.get("Nats-Msg-Id")) {
                Receipt::Stored { duplicate: true, .. } => return Stored::Duplicate,
                Receipt::Stored { offset, .. } => {
                    self.offset = Some(offset);
                    self.somebody = true;
                }
                _ => {}
            }
        }
        for tap in &targets.taps {
            // The message is made for those who take it, and not for a mark in the table.
            if let Target::Inbox(tap) = tap
                && let Some(message) = self.message()
            {
                tap.push(message, self.offset);
            }
        }
        Stored::Go
    }

    /// The message as components of this process see it; `None` when its subject is none that they could have.
    fn message(&mut self) -> Option<Arc<Message>> {
        if self.message.is_none() {
            let reply = match self.m.reply {
                Some(reply) => Some(Subject::from_bytes(reply).ok()?),
                None => None,
            };
            let headers = match self.m.header {
                Some(block) => Headers::decode(block).unwrap_or_default(),
                None => Headers::new(),
            };
            let subject = Subject::from_bytes(self.m.subject).ok()?;
            let payload = Bytes::copy_from_slice(self.m.payload);
            self.message = Some(Arc::new(Message { subject, reply, headers, payload }));
        }
        self.message.clone()
    }
}
