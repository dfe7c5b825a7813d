//! The observer of a process: takes what taps and buses have seen, off their hot path, and answers who looks.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use trunkline_core::{Headers, Message, Pattern, StreamOffset, Subject};

use super::batch::{Entry, Raw, Receiver};
use super::conversation::Aside;
use super::cut_off::CutOff;
use super::filter::ConversationFilter;
use super::kept::Kept;
use super::record::Record;
use super::redact::Redaction;
use super::sighting::{Sighting, Sightings, look_at};
use super::{ConversationList, ConversationRecord, Observation, ObserveOptions, What};
use crate::envelope::Envelope;

/// How often what was seen is read while something is seen.
const PERIOD: Duration = Duration::from_millis(20);
/// After so many periods in which nothing was seen it waits to be woken.
const QUIET_PERIODS: u32 = 50;
/// Most bytes that wait to be read; past it nothing is recorded.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// What an observation that waits takes beside its texts.
const WAITING_BYTES: usize = 1024;
/// Bytes of messages a second that are recorded, for each message that may be.
const BYTES_EACH: i64 = 1024;
/// Observations taken over under one lock of the record.
const STEP: usize = 64;
/// Where answers go that are expected, by their hash: so many rows, each of which remembers its latest eight. Fewer places
/// for each would lose some of a few hundred requests that wait at once, by chance.
const REPLY_ROWS: usize = 2 << 10;
const REPLY_ROW: usize = 8;
/// Most observations that a follower is given at a time.
const PAGE: usize = 256;

/// What waits to be read.
#[derive(Debug)]
enum Waiting {
    /// A message that was published in this process.
    Message(Box<Published>),
    /// An observation that is one already.
    Observation(Box<Observation>),
    /// The payload of a report.
    Report(Bytes),
    /// A request that is being handled.
    Asked(Box<Observation>),
    /// A client was cut off.
    CutOff(Box<CutOff>),
}

/// A message that was published in this process.
#[derive(Debug)]
pub struct Published {
    /// The message.
    pub message: Arc<Message>,
    /// When.
    pub time: Timestamp,
    /// By whom, where its envelope does not say it.
    pub from: Option<Arc<str>>,
    /// Who was given it.
    pub to: Vec<Receiver>,
    /// Who listens and had no room for it.
    pub missed: Vec<Receiver>,
    /// The stream that has stored it, and its place there.
    pub stored: Option<(String, StreamOffset)>,
    /// It was a request that nobody was there for.
    pub nobody: bool,
    /// It is a dead letter that is sent back to work.
    pub redriven: bool,
}

#[derive(Debug, Default)]
struct Queue {
    raw: Raw,
    others: Vec<Waiting>,
    others_bytes: usize,
    /// The task waits to be woken.
    asleep: bool,
}

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

/// What a follower gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Followed {
    /// The next observation.
    Observation(Box<Observation>),
    /// So many were gone before the follower came to them.
    Missed(u64),
}

/// See the module's text.
///
/// Locks: `sightings` before `names`, `queue` and `record`, of which no two are held together; none is held across an await.
pub struct Observer {
    options: ObserveOptions,
    /// The root with a dot behind it.
    prefix: Box<str>,
    trace_subject: Box<str>,
    /// Messages, and their bytes, that may still be recorded now; refilled by time.
    messages_left: AtomicI64,
    bytes_left: AtomicI64,
    refilled: Mutex<Instant>,
    pub(super) not_recorded: AtomicU64,
    /// Hashes of the subjects on which answers are expected; 0 is none.
    replies: Box<[[AtomicU64; REPLY_ROW]]>,
    /// A bit for each first byte that such a subject has: most subjects are told apart by it, without a hash.
    reply_starts: AtomicU64,
    random: foldhash::fast::FixedState,
    /// Guards what waits; held for a push or a swap.
    queue: Mutex<Queue>,
    woken: Notify,
    /// Guards what is remembered to read what was seen; held by whoever reads it.
    sightings: Mutex<Sightings>,
    /// Names of the server's clients by number. Guards the map alone.
    names: Mutex<Names>,
    /// Guards the record; held for a step of either side.
    record: Mutex<Record>,
    /// The number of the latest observation; wakes followers.
    latest: watch::Sender<u64>,
    /// Reports of published messages are passed over: of all, and of those under the root.
    sees_messages: AtomicBool,
    sees_root: AtomicBool,
    /// What was seen and could not be reported.
    not_reported: AtomicU64,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct Names {
    here: HashMap<u64, Arc<str>, foldhash::fast::RandomState>,
    /// Clients that left; forgotten when what they have sent was read.
    left: Vec<u64>,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Observer {
    /// One that has seen nothing. Somebody has to run [`Observer::run`].
    pub fn new(options: ObserveOptions) -> Arc<Self> {
        let (messages, bytes) = (i64::from(options.rate_max), i64::from(options.rate_max) * BYTES_EACH);
        // Above all numbers of a record that was made before: nobody sees a million things a second.
        let base = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0);
        Arc::new(Self {
            prefix: format!("{}.", options.root).into(),
            trace_subject: format!("{}.system.trace", options.root).into(),
            messages_left: AtomicI64::new(messages),
            bytes_left: AtomicI64::new(bytes),
            refilled: Mutex::new(Instant::now()),
            not_recorded: AtomicU64::new(0),
            replies: (0..REPLY_ROWS).map(|_| Default::default()).collect(),
            reply_starts: AtomicU64::new(0),
            random: foldhash::fast::FixedState::with_seed(0x0b5e_7e55),
            queue: Mutex::default(),
            woken: Notify::new(),
            sightings: Mutex::new(Sightings::new(
                &options.redact,
                options.payload_max,
                options.root.as_str(),
            )),
            names: Mutex::default(),
            record: Mutex::new(Record::new(&options, base)),
            latest: watch::Sender::new(0),
            sees_messages: AtomicBool::new(false),
            sees_root: AtomicBool::new(false),
            not_reported: AtomicU64::new(0),
            closed: CancellationToken::new(),
            options,
        })
    }

    /// One with a record of its own, for messages that who reads this one is not to see. Both, and all others that come of
    /// them, have an equal part of the memory from now on, and each records as many messages a second as the settings say.
    pub fn beside(&self) -> Arc<Self> {
        self.options.records.fetch_add(1, Ordering::Relaxed);
        Self::new(self.options.clone())
    }

    /// Lets go of what is more than its part of the memory, as after [`Observer::beside`].
    pub fn make_room(&self) {
        self.record.lock().shrink(self.options.bytes_max());
    }

    /// Its settings.
    pub fn options(&self) -> &ObserveOptions {
        &self.options
    }

    /// The subjects that are recorded: everything under the root. Answers to requests there are, too, wherever they go.
    pub fn pattern(&self) -> Pattern {
        Pattern::new(format!("{}>", self.prefix)).expect("a token and a wildcard")
    }

    /// Where libraries report: `{root}.system.trace`. What is published there is read, and not recorded itself.
    pub fn trace_subject(&self) -> &str {
        &self.trace_subject
    }

    /// From now on reports of published messages are passed over: a tap of this process sees them all.
    pub fn sees_messages_itself(&self) {
        self.sees_messages.store(true, Ordering::Relaxed);
    }

    /// From now on reports of what was published under the root are passed over: it is read from the streams.
    pub(super) fn sees_streams(&self) {
        self.sees_root.store(true, Ordering::Relaxed);
        self.sightings.lock().guess_redrives();
    }

    /// Whether what is published on this subject is recorded.
    pub fn is_recorded(&self, subject: &[u8]) -> bool {
        subject.starts_with(self.prefix.as_bytes())
    }

    pub(super) fn is_under_root(&self, subject: &Subject) -> bool {
        self.is_recorded(subject.as_bytes())
    }

    /// Whether it is one that the bus talks to itself on: of those no library reports.
    pub(super) fn is_of_the_system(&self, subject: &Subject) -> bool {
        subject.as_str().strip_prefix(&*self.prefix).is_some_and(|rest| rest.starts_with("system."))
    }

    /// Whether it is to be told how a message of this subject was handled.
    pub(super) fn is_shown(&self, subject: &Subject) -> bool {
        self.is_under_root(subject) && !self.is_of_the_system(subject)
    }

    /// What a message says of itself.
    pub(super) fn observation_of(&self, message: &Message, with_body: bool) -> Observation {
        look_at(message, with_body.then_some(self.options.payload_max))
    }

    /// Messages that were not recorded because there were more than the record takes.
    pub fn not_recorded(&self) -> u64 {
        self.not_recorded.load(Ordering::Relaxed)
    }

    /// A message's body without the values of the fields that [`ObserveOptions::redact`] names, for who is shown the message
    /// itself; one that names such a field and cannot be read is `***` as a whole.
    pub fn without_hidden(&self, body: &Bytes) -> Bytes {
        Redaction::new(&self.options.redact).of_body(body)
    }

    /// What the record takes now, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.record.lock().bytes()
    }

    // What taps call.

    /// Whether a message of so many bytes may still be recorded; if so it counts.
    #[inline]
    pub(super) fn may_record(&self, bytes: usize) -> bool {
        if self.messages_left.load(Ordering::Relaxed) <= 0 || self.bytes_left.load(Ordering::Relaxed) <= 0 {
            return false;
        }
        self.messages_left.fetch_sub(1, Ordering::Relaxed);
        self.bytes_left.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
        true
    }

    /// Whether messages on `subject` are not recorded at the moment, as there are too many.
    #[inline]
    pub fn is_passing(&self, subject: &[u8]) -> bool {
        let is_spent =
            self.messages_left.load(Ordering::Relaxed) <= 0 || self.bytes_left.load(Ordering::Relaxed) <= 0;
        is_spent && !self.is_report(subject)
    }

    /// Reports of others do not count: they tell of messages that were counted.
    #[inline]
    pub(super) fn is_report(&self, subject: &[u8]) -> bool {
        subject == self.trace_subject().as_bytes()
    }

    fn place_of_reply(&self, subject: &[u8]) -> (&[AtomicU64; REPLY_ROW], u64) {
        let hash = self.random.hash_one(subject) | 1;
        (&self.replies[(hash >> 40) as usize % REPLY_ROWS], hash)
    }

    /// An answer to something that is recorded will come on this subject.
    pub fn expect_reply(&self, subject: &[u8]) {
        let start = start_of(subject);
        if self.reply_starts.load(Ordering::Relaxed) & start == 0 {
            self.reply_starts.fetch_or(start, Ordering::Relaxed);
        }
        let (row, mut hash) = self.place_of_reply(subject);
        if row.iter().any(|place| place.load(Ordering::Relaxed) == hash) {
            return;
        }
        // The oldest leaves at the end. Two threads that meet here may lose one between them, which is then not recorded.
        for place in row {
            hash = place.swap(hash, Ordering::Relaxed);
        }
    }

    /// Whether an answer to something that was recorded comes on this subject.
    #[inline]
    pub fn expects(&self, subject: &[u8]) -> bool {
        if self.reply_starts.load(Ordering::Relaxed) & start_of(subject) == 0 {
            return false;
        }
        let (row, hash) = self.place_of_reply(subject);
        row.iter().any(|place| place.load(Ordering::Relaxed) == hash)
    }

    /// The name that a client of the server goes by.
    pub fn client_came(&self, client: u64, name: &str) {
        self.names.lock().here.insert(client, name.into());
    }

    /// A client of the server has left.
    pub fn client_left(&self, client: u64) {
        self.names.lock().left.push(client);
    }

    pub(super) fn take_raw(&self, raw: &mut Raw) {
        let mut queue = self.queue.lock();
        if queue.bytes() + raw.bytes.len() > WAITING_BYTES_MAX {
            self.not_recorded.fetch_add(raw.entries.len() as u64, Ordering::Relaxed);
            *raw = Raw::default();
            return;
        }
        queue.raw.append(raw);
        self.wake(queue);
    }

    /// Begins to take note of a message that a component of this process publishes: `false` where it is none that is
    /// recorded, or there are too many. What becomes of it is told by [`Observer::published`].
    pub fn begins(&self, is_tapped: bool, message: &Message) -> bool {
        let subject = message.subject.as_bytes();
        if !is_tapped && !self.expects(subject) {
            return false;
        }
        // Reports do not count: they are few, and tell of messages that were counted.
        if subject != self.trace_subject.as_bytes() && !self.may_record(message.size_bytes()) {
            self.not_recorded.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if let Some(reply) = &message.reply {
            self.expect_reply(reply.as_bytes());
        }
        true
    }

    /// Takes note of a message that was published in this process.
    pub fn published(&self, published: Published) {
        let bytes = published.message.size_bytes() + WAITING_BYTES;
        match published.message.subject.as_str() == &*self.trace_subject {
            true => self.report(published.message.payload.clone()),
            false => self.push(Waiting::Message(Box::new(published)), bytes),
        }
    }

    /// Takes note of an observation that somebody has made.
    pub fn observed(&self, seen: Observation) {
        self.push(Waiting::Observation(Box::new(seen)), WAITING_BYTES);
    }

    /// A request is being handled, which may have been published where nobody saw it.
    pub(super) fn asked(&self, seen: Observation) {
        self.push(Waiting::Asked(Box::new(seen)), WAITING_BYTES);
    }

    /// A client was cut off because it did not read.
    pub fn cut_off(&self, client: CutOff) {
        let bytes = client.bytes() + WAITING_BYTES;
        self.push(Waiting::CutOff(Box::new(client)), bytes);
    }

    /// So much could not be reported.
    pub(super) fn not_reported(&self, observations: u64) {
        self.not_reported.fetch_add(observations, Ordering::Relaxed);
    }

    /// Reads what waits now.
    pub(super) fn read_now(&self) {
        self.read(false);
    }

    /// Takes the payload of a message on `{root}.system.trace`.
    pub fn report(&self, payload: Bytes) {
        let bytes = payload.len() + WAITING_BYTES;
        self.push(Waiting::Report(payload), bytes);
    }

    fn push(&self, waiting: Waiting, bytes: usize) {
        let mut queue = self.queue.lock();
        if queue.bytes() + bytes > WAITING_BYTES_MAX {
            self.not_recorded.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.others.push(waiting);
        queue.others_bytes += bytes;
        self.wake(queue);
    }

    /// Only from sleep: while it is at work it looks by itself, so that nobody who publishes pays for waking it.
    fn wake(&self, mut queue: parking_lot::MutexGuard<'_, Queue>) {
        if std::mem::take(&mut queue.asleep) {
            drop(queue);
            self.woken.notify_one();
        }
    }

    // What reads it.

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
    fn read(&self, recycle: bool) -> bool {
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

    // What looks.

    /// A page of the conversations that are wanted, the one seen last first. What was published before is in it.
    pub fn conversations(
        &self,
        filter: &ConversationFilter,
        offset: usize,
        limit: usize,
    ) -> ConversationList {
        self.read(false);
        let (conversations, total) = self.record.lock().list(filter, offset, limit);
        ConversationList { enabled: true, conversations, total, not_recorded: self.not_recorded() }
    }

    /// A conversation whole, by its id, or by the correlation id of messages without one.
    pub fn conversation(&self, id: &str) -> Option<ConversationRecord> {
        self.read(false);
        let (summary, observations) = self.record.lock().conversation(id)?;
        Some(ConversationRecord {
            summary,
            observations: observations.iter().map(|kept| kept.show()).collect(),
        })
    }

    /// Follows live, from now on or behind the observation with this number.
    pub fn follow(self: &Arc<Self>, after: Option<u64>) -> Follower {
        self.read(false);
        let record = self.record.lock();
        // A number that is none of this record is from another life of the server: all that this one has is new.
        let at = after.map_or(record.last(), |after| record.resume(after));
        drop(record);
        Follower { observer: self.clone(), at, latest: self.latest.subscribe(), page: Vec::new().into_iter() }
    }
}

/// The bit of a subject's first byte.
#[inline]
fn start_of(subject: &[u8]) -> u64 {
    1 << (subject.first().copied().unwrap_or(0) & 63)
}

impl Queue {
    fn bytes(&self) -> usize {
        self.raw.bytes.len() + self.raw.entries.len() * size_of::<Entry>() + self.others_bytes
    }

    fn is_empty(&self) -> bool {
        self.raw.entries.is_empty() && self.others.is_empty()
    }
}

/// Reads on in the record as it grows. Nothing is kept for it: one that is too slow misses what the record lets go of, and
/// is told how much.
#[derive(Debug)]
pub struct Follower {
    observer: Arc<Observer>,
    /// The number of the observation it was given last.
    at: u64,
    latest: watch::Receiver<u64>,
    page: std::vec::IntoIter<Arc<Kept>>,
}

impl Follower {
    /// The next observation that `wanted` says yes to; `None` once the observer has stopped.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self, wanted: impl Fn(&Observation) -> bool) -> Option<Followed> {
        loop {
            self.latest.borrow_and_update();
            match self.read_on(&wanted) {
                Some(followed) => return Some(followed),
                None => tokio::select! {
                    biased;
                    changed = self.latest.changed() => changed.ok()?,
                    () = self.observer.closed.cancelled() => return None,
                },
            }
        }
    }

    /// The number up to which everything was given out or not wanted; to follow again after it misses nothing.
    pub fn position(&self) -> u64 {
        self.page.as_slice().first().map_or(self.at, |next| next.seen.seq - 1)
    }

    /// The next observation, if there is one by now.
    pub(super) fn next_now(&mut self) -> Option<Followed> {
        self.read_on(&|_| true)
    }

    /// What could not be reported; it counts from there anew.
    pub(super) fn take_not_reported(&self) -> u64 {
        self.observer.not_reported.swap(0, Ordering::Relaxed)
    }

    fn read_on(&mut self, wanted: &impl Fn(&Observation) -> bool) -> Option<Followed> {
        loop {
            for kept in self.page.by_ref() {
                if wanted(&kept.seen) {
                    return Some(Followed::Observation(Box::new(kept.show())));
                }
            }
            let (page, missed) = self.observer.record.lock().after(self.at, PAGE);
            self.at = page.last().map_or(self.at + missed, |kept| kept.seen.seq);
            self.page = page.into_iter();
            if missed > 0 {
                return Some(Followed::Missed(missed));
            }
            if self.page.len() == 0 {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hundreds_of_requests_wait_at_once_and_none_is_forgotten() {
        let observer = Observer::new(ObserveOptions::default());
        assert!(!observer.expects(b"_INBOX.a.0"));
        let inbox = |n: u32| format!("_INBOX.a.{n}");
        for n in 0..100_000_u32 {
            observer.expect_reply(inbox(n).as_bytes());
            if n % 10_000 == 9_999 {
                assert!((n - 1000..=n).all(|n| observer.expects(inbox(n).as_bytes())), "{n}");
            }
        }
        assert!(!observer.expects(b"_INBOX.b.1") && !observer.expects(b"other"));
    }
}
