//! The session's publish path: who may, who gets it, and what the publisher is told.

use std::sync::Arc;

use trunkline::Subject;
use trunkline::observe::{Observer, RawMessage};
use trunkline_protocol::{ServerError, encode};

use super::delivery::{Delivery, Stored, subscription_of};
use super::run::{self, Run};
use super::{Session, Stop, Turn, Violation, user_info};
use crate::bridge::front::Unpublishable;
use crate::staging::{Outgoing, Staging};
use crate::subscription::Subscription;

impl Session {
    #[inline]
    pub(super) fn publish(
        &mut self,
        m: &Outgoing<'_>,
        turn: &mut Turn<'_>,
        staging: &mut Staging,
    ) -> Result<(), Stop> {
        // Also where it has none: HPUB itself was not asked for.
        if !self.options.headers && (m.header.is_some() || matches!(turn.input[turn.start], b'H' | b'h')) {
            return self.refuse(ServerError::HeadersNotSupported, staging);
        }
        if self.options.pedantic && Subject::from_bytes(m.subject).is_err() {
            return self.publish_nowhere(m, staging);
        }
        let router = self.hub.router();
        let (targets, allowed) = match self.access.permissions() {
            // A bridge routes nothing, and with nothing to decide there is nothing to look for.
            None if self.bridge.is_some() => {
                self.hand_over(m, staging)?;
                self.say_ok(staging);
                return Ok(());
            }
            None => (router.lookup(&mut self.cache, m.subject), true),
            Some(permissions) => {
                router.lookup_judged(&mut self.cache, m.subject, || permissions.may_publish(m.subject))
            }
        };
        if !allowed && !self.access.may_answer(m.subject) {
            return self.deny(m, staging);
        }
        if let Some(reply) = m.reply.filter(|reply| self.server.asks_for_reload(reply))
            && self.access.permissions().is_some_and(|permissions| !permissions.may_publish(reply))
        {
            return self.deny_reply(reply, staging);
        }
        if self.bridge.is_some() {
            self.hand_over(m, staging)?;
            self.say_ok(staging);
            return Ok(());
        }
        let mut delivery = Delivery::new(&self.hub, m, turn.input, self.client.id, self.options.echo);
        if allowed
            && !self.options.verbose
            && let Some(second) = run::second(m, targets, turn)
            && let seen = self.observer.as_ref().filter(|observer| delivery.is_seen(observer, targets))
            && seen.is_none_or(|observer| observer.is_passing(m.subject))
            && run::is_simple(targets, staging)
        {
            let run = Run::gather(second, targets, turn);
            seen.iter().for_each(|observer| staging.seen.passed(observer, run.len()));
            run.deliver(targets, &delivery, &mut self.random, staging);
            return Ok(());
        }
        staging.looked_at(targets.subscribers.len() + targets.queues.len());
        if !(targets.stores.is_empty() && targets.taps.is_empty()) {
            match delivery.store(targets) {
                Stored::Go => {}
                Stored::Duplicate => {
                    self.say_ok(staging);
                    return Ok(());
                }
                Stored::Reserved => return self.deny(m, staging),
            }
        }
        if let Some(observer) = &self.observer {
            delivery.look(observer, targets, staging);
        }
        // As on nats-server before the client's own subscriptions get the message.
        if self.options.verbose {
            encode::ok(staging.line(&self.client));
        }
        for target in &targets.subscribers {
            delivery.give(target, staging);
        }
        for queue in &targets.queues {
            delivery.give_one(&queue.members, self.random.usize(..queue.members.len()), staging);
        }
        if delivery.seen {
            staging.seen.end(!delivery.somebody && m.reply.is_some());
        }
        if let Some(reply) = m.reply
            && user_info::is_asked_for(m.subject)
        {
            self.answer_user_info(reply, staging);
            return Ok(());
        }
        if !delivery.somebody
            && self.options.no_responders
            && let Some(reply) = m.reply
        {
            self.answer_no_responders(reply, m.subject, staging);
        }
        Ok(())
    }

    /// A pedantic client is told that this is no subject, on nats-server as soon as the line is read. What there is to say of
    /// the message comes all the same: who counts answers gets as many.
    #[cold]
    fn publish_nowhere(&mut self, m: &Outgoing<'_>, staging: &mut Staging) -> Result<(), Stop> {
        let permissions = self.access.permissions();
        let is_denied = permissions.is_some_and(|permissions| !permissions.may_publish(m.subject));
        // Of what is a subject on nats-server, it tells only that it is denied.
        if !(is_denied && is_literal(m.subject)) {
            ServerError::InvalidPublishSubject.write(self.line(staging));
        }
        if is_denied {
            return self.deny(m, staging);
        }
        self.say_ok(staging);
        if let Some(reply) = m.reply.filter(|_| self.options.no_responders && self.bridge.is_none()) {
            self.answer_no_responders(reply, m.subject, staging);
        }
        Ok(())
    }

    #[cold]
    fn deny(&mut self, m: &Outgoing<'_>, staging: &mut Staging) -> Result<(), Stop> {
        self.server.count_denied(&self.client);
        self.note_violation(Violation::Publish, m.subject);
        self.refuse(ServerError::PublishPermission { subject: m.subject }, staging)
    }

    /// The client would have somebody else say what it may not say itself.
    #[cold]
    fn deny_reply(&mut self, reply: &[u8], staging: &mut Staging) -> Result<(), Stop> {
        self.server.count_denied(&self.client);
        self.note_violation(Violation::Reply, reply);
        self.refuse(ServerError::ReplyPermission { reply }, staging)
    }

    /// Publishes to the backend of a bridge. What it cannot carry is refused: nothing is dropped without a word.
    fn hand_over(&mut self, m: &Outgoing<'_>, staging: &mut Staging) -> Result<(), Stop> {
        let Some(bridge) = &mut self.bridge else { return Ok(()) };
        let published = match self.server.is_reserved(m.subject) {
            true => Err(Unpublishable::Message),
            false => bridge.publish(m),
        };
        let refused = match published {
            Ok(()) => {
                if let Some(observer) = &self.observer {
                    look_at_answer(observer, m, self.client.id, staging);
                }
                return Ok(());
            }
            Err(Unpublishable::Message) => ServerError::PublishPermission { subject: m.subject },
            Err(Unpublishable::Reply) => ServerError::ReplyPermission { reply: m.reply.unwrap_or_default() },
        };
        self.server.count_denied(&self.client);
        self.refuse(refused, staging)
    }

    /// Tells the client itself, where it listens on `reply`, that nobody listens for its request: once, and beside the
    /// deliveries that a limit counts, as nats-server does.
    fn answer_no_responders(&self, reply: &[u8], subject: &[u8], staging: &mut Staging) {
        self.server.count_no_responders();
        let targets = self.hub.router().matches(reply);
        let own = |subscription: &&Subscription| {
            subscription.client.id == self.client.id && !subscription.has_ended()
        };
        if let Some(subscription) = targets.subscribers.iter().filter_map(subscription_of).find(own) {
            encode::no_responders(staging.line(&self.client), reply, &subscription.sid, subject);
        }
    }
}

/// Whether no token is empty or a wildcard.
fn is_literal(subject: &[u8]) -> bool {
    subject.split(|byte| *byte == b'.').all(|token| !matches!(token, b"" | b"*" | b">"))
}

/// Shows to who looks on what a client of a bridge answers: the streams have everything else, and of inboxes nobody can read
/// but who made them.
fn look_at_answer(observer: &Arc<Observer>, m: &Outgoing<'_>, from: u64, staging: &mut Staging) {
    if observer.is_recorded(m.subject) {
        if let Some(reply) = m.reply {
            observer.expect_reply(reply);
        }
    } else if observer.expects(m.subject) {
        let (subject, reply, header, payload) = (m.subject, m.reply, m.header, m.payload);
        if staging.seen.begin(observer, &RawMessage { subject, reply, header, payload, from }) {
            staging.seen.end(false);
        }
    }
}
