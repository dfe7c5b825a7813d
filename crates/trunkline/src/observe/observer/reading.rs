//! The task that reads what was seen, away from whoever publishes, and takes it over into the record.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use trunkline_core::Headers;

use super::waiting::{WAITING_BYTES_MAX, Waiting};
use super::{BYTES_EACH, Observer};
use crate::envelope::Envelope;
use crate::observe::batch::{Entry, Receiver};
use crate::observe::conversation::Aside;
use crate::observe::kept::Kept;
use crate::observe::sighting::{Sighting, Sightings};
use crate::observe::{Observation, What};

/// How often what was seen is read while something is seen.
const PERIOD: Duration = Duration::from_millis(20);
/// After so many periods in which nothing was seen it waits to be woken.
const QUIET_PERIODS: u32 = 50;
/// Observations taken over under one lock of the record.
const STEP: usize = 64;

/// What the library reports on `{root}.system.trace`: the payload of its envelope.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was seen.
    pub observations: Vec<Observation>,
    /// What was seen and could not be reported.
    #[serde(default)]
    pub missed: u64,
}

impl Observer {
    /// Reads what was seen until `stop`. To be run by one task, whose owner joins it.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut quiet = 0;
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            self.refill();
            let seen = self.read(true);
            quiet = if seen { 0 } else { quiet + 1 };
            if quiet > QUIET_PERIODS && self.falls_asleep() {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = self.woken.notified() => {}
                }
                quiet = 0;
                tick.reset();
            }
        }
        self.closed.cancel();
    }

    fn falls_asleep(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.asleep = queue.is_empty();
        queue.asleep
    }

    fn refill(&self) {
        let mut refilled = self.refilled.lock();
        let now = Instant::now();
        let passed = now.duration_since(*refilled);
        *refilled = now;
        let rate = i64::from(self.options.rate_max);
        let passed_us = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX).min(1_000_000);
        for (left, rate) in [(&self.messages_left, rate), (&self.bytes_left, rate * BYTES_EACH)] {
            let gained = rate * passed_us / 1_000_000;
            // At least one, or a small rate would never gain any.
            let full = left.load(Ordering::Relaxed).saturating_add(gained.max(1)).min(rate);
            left.store(full, Ordering::Relaxed);
        }
    }

    /// Reads what waits; returns whether anything did.
    pub(super) fn read(&self, recycle: bool) -> bool {
        let mut sightings = self.sightings.lock();
        // Before what waits is taken: what these have sent is in it.
        let left = std::mem::take(&mut self.names.lock().left);
        let (mut raw, others) = {
            let mut queue = self.queue.lock();
            queue.others_bytes = 0;
            (std::mem::take(&mut queue.raw), std::mem::take(&mut queue.others))
        };
        let something = !raw.entries.is_empty() || !others.is_empty();
        let mut out = Vec::with_capacity(STEP);
        let mut at = 0;
        let mut to = raw.to.drain(..);
        for entry in raw.entries.drain(..) {
            let receivers: Vec<Receiver> = to.by_ref().take(entry.to).collect();
            at += self.read_entry(&entry, receivers, &raw.bytes[at..], &mut sightings, &mut out);
            self.keep_some(&mut out, STEP);
        }
        drop(to);
        for waiting in others {
            self.read_other(waiting, &mut sightings, &mut out);
            self.keep_some(&mut out, STEP);
        }
        self.keep_some(&mut out, 1);
        if !left.is_empty() {
            let mut names = self.names.lock();
            left.iter().for_each(|client| drop(names.here.remove(client)));
        }
        if recycle && something {
            raw.bytes.clear();
            let mut queue = self.queue.lock();
            // Its buffers serve again, unless somebody has begun new ones meanwhile.
            if queue.raw.bytes.capacity() == 0 && raw.bytes.capacity() <= WAITING_BYTES_MAX / 4 {
                queue.raw = raw;
            }
        }
        something
    }

    /// Reads one message of a batch, whose bytes begin with `bytes`; returns how many of them are its own.
    fn read_entry(
        &self,
        entry: &Entry,
        mut to: Vec<Receiver>,
        bytes: &[u8],
        sightings: &mut Sightings,
        out: &mut Vec<(Kept, Aside)>,
    ) -> usize {
        let (subject, rest) = bytes.split_at(entry.subject);
        let (reply, rest) = rest.split_at(entry.reply.unwrap_or(0));
        let (header, rest) = rest.split_at(entry.header.unwrap_or(0));
        let body = &rest[..entry.payload];
        let taken = bytes.len() - rest.len() + entry.payload;
        let missed = to.split_off(to.len().saturating_sub(entry.missed));
        let Ok(subject) = std::str::from_utf8(subject) else { return taken };
        if subject == &*self.trace_subject {
            self.read_report(body, sightings, out);
            return taken;
        }
        let headers = match entry.header {
            Some(_) => Headers::decode(header).unwrap_or_default(),
            None => Headers::new(),
        };
        let sighting = Sighting {
            time: entry.time,
            subject,
            reply: entry.reply.and_then(|_| std::str::from_utf8(reply).ok()),
            headers: &headers,
            body,
            from: Some(self.name(&Receiver::Client(entry.from))),
            to: self.names(&to),
            missed: self.names(&missed),
            stored: entry.stored.as_ref().map(|stored| (stored.0.clone(), stored.1.to_string())),
            nobody: entry.nobody,
            redriven: headers.get("Nats-Msg-Id").is_some_and(|id| id.starts_with("rd:")),
        };
        sightings.read(sighting, out);
        taken
    }

    fn read_other(&self, waiting: Waiting, sightings: &mut Sightings, out: &mut Vec<(Kept, Aside)>) {
        match waiting {
            Waiting::Message(published) => {
                let message = &published.message;
                let sighting = Sighting {
                    time: published.time,
                    subject: message.subject.as_str(),
                    reply: message.reply.as_ref().map(|reply| reply.as_str()),
                    headers: &message.headers,
                    body: &message.payload,
                    from: published.from.as_deref().map(str::to_owned),
                    to: self.names(&published.to),
                    missed: self.names(&published.missed),
                    stored: published.stored.as_ref().map(|(stream, at)| (stream.clone(), at.to_string())),
                    nobody: published.nobody,
                    redriven: published.redriven,
                };
                sightings.read(sighting, out);
            }
            Waiting::Observation(seen) => out.push(sightings.take(*seen)),
            Waiting::Report(payload) => self.read_report(&payload, sightings, out),
            Waiting::Asked(seen) => sightings.ask(&seen),
            // What it was given may come right behind.
            Waiting::CutOff(client) if client.since.elapsed() < 2 * PERIOD => self.cut_off(*client),
            Waiting::CutOff(client) => {
                self.keep_some(out, 1);
                client.tell(&self.record.lock(), out);
            }
        }
    }

    fn read_report(&self, body: &[u8], sightings: &mut Sightings, out: &mut Vec<(Kept, Aside)>) {
        let Some(envelope) = Envelope::from_bytes(body) else { return };
        let Ok(report) = envelope.decode::<Report>() else { return };
        self.not_recorded.fetch_add(report.missed, Ordering::Relaxed);
        let (all, root) =
            (self.sees_messages.load(Ordering::Relaxed), self.sees_root.load(Ordering::Relaxed));
        // Whoever may publish may report: it counts as what is seen here does.
        let bytes_each = body.len() / report.observations.len().max(1);
        for mut seen in report.observations {
            let is_seen = match seen.what {
                What::Published | What::DeadLettered => root && seen.subject.starts_with(&*self.prefix),
                _ => false,
            };
            if is_seen || (all && seen.what.is_of_the_message()) {
                continue;
            }
            if !self.may_record(bytes_each) {
                self.not_recorded.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            seen.from = seen.from.or_else(|| envelope.source.clone());
            out.push(sightings.take(seen));
        }
    }

    fn names(&self, receivers: &[Receiver]) -> Vec<String> {
        let mut names: Vec<String> = Vec::with_capacity(receivers.len());
        for receiver in receivers {
            let name = self.name(receiver);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn name(&self, receiver: &Receiver) -> String {
        match receiver {
            Receiver::Named(name) => name.to_string(),
            Receiver::Client(client) => {
                let known = self.names.lock().here.get(client).cloned();
                known.map_or_else(|| format!("cid:{client}"), |name| name.to_string())
            }
        }
    }

    /// Takes what was read over into the record, where there is so much of it.
    fn keep_some(&self, out: &mut Vec<(Kept, Aside)>, at_least: usize) {
        if out.len() < at_least {
            return;
        }
        let bytes_max = self.options.bytes_max();
        let last = {
            let mut record = self.record.lock();
            for (kept, aside) in out.drain(..) {
                record.insert(kept, &aside, bytes_max);
            }
            record.last()
        };
        self.latest.send_replace(last);
    }
}
