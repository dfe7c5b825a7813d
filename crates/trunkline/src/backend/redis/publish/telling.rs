//! What is told to publishers, when an answer has come and when their time is over; and what has to be sent again.
//!
//! Whatever is given back to its publisher is noted with the queue first, so that nothing overtakes it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::ServerError;
use trunkline_core::{Headers, Message, StreamOffset, Subject};

use super::super::acl::{denied, is_denied};
use super::super::entry;
use super::super::refusal;
use super::super::routes::Home;
use super::super::shared::{STALE_RETRIES, Shared};
use super::batch::{Batch, Broken, Stored};
use super::doubts::Doubt;
use super::queue::{Item, Order};
use super::sending::{Answer, Answers};
use super::writer::Writer;
use super::{not_left, ticket};
use crate::backend::{PublishError, Receipt};

impl Writer {
    /// Tells the publishers, and gives back what is to be sent again. `stale` becomes the newest version of the routes
    /// that a stream has been heard to know.
    pub(super) fn tell(&mut self, answers: Answers, stale: &mut Option<u64>) -> Vec<Item> {
        let wanted = u64::from(self.shared.options.wait_replicas);
        let batches = self.flights.pop_front().map(|flight| flight.batches).unwrap_or_default();
        let mut again = Vec::new();
        for (batch, Answer { answer, replicas }) in batches.into_iter().zip(answers) {
            let missing = replicas.filter(|replicas| *replicas < wanted);
            let read = answer.and_then(|answer| batch.read(answer));
            let error = match read {
                Ok(stored) => {
                    self.tell_stored(batch, stored, missing);
                    continue;
                }
                Err(Broken::Refused(error)) => error,
                Err(broken) => {
                    self.standings.failed(&batch.home, &batch.way, false);
                    match broken {
                        Broken::Redirected(error) => {
                            self.careful = true;
                            again.extend(self.resend(batch.items, &error));
                        }
                        Broken::NotSent => {
                            self.tell_not_sent(&batch.home, batch.items, |shared| shared.link.not_connected())
                        }
                        Broken::Refused(_) | Broken::Unknown => self.tell_unknown(batch.items),
                    }
                    continue;
                }
            };
            let outrun = matches!(error.code(), "OUTRUN" | "EXECABORT");
            self.standings.failed(&batch.home, &batch.way, outrun);
            if error.code() == "STALE" {
                let known = error.details().and_then(|known| known.parse().ok()).unwrap_or(0);
                *stale = (*stale).max(Some(known));
            }
            if outrun || error.code() == "STALE" {
                again.extend(self.resend(batch.items, &error));
            } else {
                self.tell_refused(batch, &error);
            }
        }
        again
    }

    /// Tells what was stored; `replicas` have it, where that is too few.
    fn tell_stored(&mut self, batch: Batch, stored: Stored, replicas: Option<u64>) {
        if batch.home.stores && !self.known.contains(&batch.home.key) {
            self.known.insert(batch.home.key.clone());
        }
        let newest = stored.outcomes.last().filter(|last| !last.duplicate).map(|last| last.id);
        self.standings.stored(&batch.home, &batch.way, newest, stored.clock);
        for (mut item, outcome) in batch.items.into_iter().zip(stored.outcomes) {
            if outcome.nobody
                && let Some(reply) = &item.reply
            {
                self.note_nobody(&batch.home, &item, reply);
            }
            if let (Some(replicas), true) = (replicas, batch.home.stores) {
                let server = self.shared.link.server.clone();
                let wanted = u64::from(self.shared.options.wait_replicas);
                self.lost |= !item.ticket.tell(Err(PublishError::NotReplicated { server, replicas, wanted }));
                continue;
            }
            let receipt = match batch.home.stores {
                true => Receipt::Stored {
                    stream: batch.home.name.clone(),
                    offset: StreamOffset::Entry(outcome.id.0, outcome.id.1),
                    duplicate: outcome.duplicate,
                },
                false => Receipt::Accepted,
            };
            item.ticket.tell(Ok(receipt));
        }
    }

    /// Nobody is listed who answers this request.
    fn note_nobody(&mut self, home: &Arc<Home>, item: &Item, reply: &Subject) {
        if self.shared.link.settling().is_none() {
            return self.queue.put_first(Order::Publish(no_responders(reply, item.timeout)));
        }
        self.doubts.add(Doubt {
            home: home.clone(),
            subject: item.subject.clone(),
            reply: reply.clone(),
            timeout: item.timeout,
            deadline: item.deadline,
        });
    }

    fn tell_unknown(&mut self, items: Vec<Item>) {
        self.note_break(&items);
        for mut item in items {
            let server = self.shared.link.server.clone();
            let unknown = PublishError::OutcomeUnknown { server, waited: Duration::ZERO };
            self.lost |= !item.ticket.tell(Err(unknown));
        }
    }

    /// Tells that messages were not sent, or not taken, and takes back those for the same stream that wait behind them:
    /// they would overtake what is published again.
    fn tell_not_sent(&mut self, home: &Home, items: Vec<Item>, error: impl Fn(&Shared) -> PublishError) {
        self.note_break(&items);
        let routes = self.shared.routes();
        let same_stream = |subject: &Subject| match self.homes.get(subject) {
            Some(known) => known.key == home.key,
            None => routes.home(subject).key == home.key,
        };
        // Of the others each says itself whether it may be sent, when its turn comes.
        let behind = self.queue.take_out(|item| item.unbroken_since.is_none() && same_stream(&item.subject));
        for mut item in items.into_iter().chain(behind) {
            item.ticket.tell(Err(error(&self.shared)));
        }
    }

    pub(super) fn tell_not_left(&self, items: Vec<Item>) {
        self.note_break(&items);
        for mut item in items {
            item.ticket.tell(Err(not_left(&self.shared, item.timeout)));
        }
    }

    pub(super) fn tell_behind(&self, mut item: Item) {
        let server = self.shared.link.server.clone();
        let reason = "a message before it was not sent, or not surely; this one has not left".to_owned();
        item.ticket.tell(Err(PublishError::NotConnected { server, reason }));
    }

    /// These are about to be given back: what is not to overtake them must not be sent. Once for all of them, since who
    /// publishes meanwhile goes by the new number.
    fn note_break(&self, items: &[Item]) {
        if items.iter().any(|item| item.unbroken_since.is_some()) {
            self.queue.note_break();
        }
    }

    fn tell_refused(&mut self, batch: Batch, error: &ServerError) {
        let reason = error.to_string();
        match refusal::code(error) {
            _ if is_denied(error) => {
                for mut item in batch.items {
                    let (subject, reason) = (item.subject.clone(), denied(error));
                    item.ticket.tell(Err(PublishError::Denied { subject, reason }));
                }
            }
            // These come before anything of the script was done.
            "LOADING" | "READONLY" | "MASTERDOWN" | "BUSY" | "MISCONF" | "OOM" | "MOVED" | "ASK"
            | "TRYAGAIN" | "CLUSTERDOWN" => self.tell_not_sent(&batch.home, batch.items, |shared| {
                PublishError::NotConnected { server: shared.link.server.clone(), reason: reason.clone() }
            }),
            _ => {
                tracing::warn!(stream = batch.home.name, %reason, "a publish failed half way");
                self.tell_unknown(batch.items);
            }
        }
    }

    /// Of messages that were refused for a way that is not the right one any more, those to be sent once more: unless that
    /// leads nowhere, or nobody waits.
    fn resend(&self, items: Vec<Item>, error: &ServerError) -> Vec<Item> {
        // Those whose time was over while they were under way have been given back by that.
        let (given_back, items): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.ticket.is_told());
        self.note_break(&given_back);
        let mut again = Vec::with_capacity(items.len());
        for mut item in items {
            item.refused += 1;
            if item.refused <= STALE_RETRIES {
                again.push(item);
                continue;
            }
            let reason = format!("the streams keep changing: {error}");
            // A slot that is on its way for so long is an outage: the message can be published once it is there.
            let told = match refusal::code(error) {
                "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" => {
                    self.queue.note_break();
                    PublishError::NotConnected { server: self.shared.link.server.clone(), reason }
                }
                _ => PublishError::Denied { subject: item.subject.clone(), reason },
            };
            item.ticket.tell(Err(told));
        }
        again
    }

    /// Tells those whose time is over: what has not left is taken back, what has left may still be stored.
    pub(super) fn tell_late(&mut self) {
        let now = Instant::now();
        self.tell_not_left(self.queue.expired(now));
        for flight in self.flights.iter_mut().filter(|flight| flight.soonest <= now) {
            let mut soonest: Option<Instant> = None;
            for item in flight.batches.iter_mut().flat_map(|batch| &mut batch.items) {
                if item.deadline <= now {
                    let (server, waited) = (self.shared.link.server.clone(), item.timeout);
                    self.lost |= !item.ticket.tell(Err(PublishError::OutcomeUnknown { server, waited }));
                } else {
                    soonest = Some(soonest.map_or(item.deadline, |soonest| soonest.min(item.deadline)));
                }
            }
            flight.soonest = soonest.unwrap_or_else(|| now + Duration::from_secs(3600));
        }
    }

    pub(super) fn flushed(&mut self) -> Result<(), PublishError> {
        let link = &self.shared.link;
        if std::mem::take(&mut self.lost) {
            return Err(PublishError::OutcomeUnknown { server: link.server.clone(), waited: Duration::ZERO });
        }
        match link.is_connected() {
            true => Ok(()),
            false => Err(link.not_connected()),
        }
    }
}

/// The answer to a request that nobody answers.
pub(super) fn no_responders(reply: &Subject, timeout: Duration) -> Item {
    let mut headers = Headers::new();
    headers.append("Status", "503").expect("a valid header");
    let answer = Message { subject: reply.clone(), reply: None, headers, payload: Bytes::new() };
    let (ticket, _) = ticket::ticket();
    Item {
        entry: entry::encode(&answer),
        subject: answer.subject,
        reply: None,
        dedupe_id: None,
        unbroken_since: None,
        refused: 0,
        timeout,
        deadline: Instant::now() + timeout,
        ticket,
    }
}
