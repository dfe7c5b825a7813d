//! The observer of a process: takes what taps and buses have seen, off their hot path, and answers who looks.

mod follower;
mod reading;
mod replies;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use hashbrown::HashMap;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use trunkline_core::{Message, Pattern, Subject};

use self::replies::{REPLY_ROW, REPLY_ROWS};
use self::waiting::Queue;
use super::filter::ConversationFilter;
use super::record::Record;
use super::redact::Redaction;
use super::sighting::{Sightings, look_at};
use super::{ConversationList, ConversationRecord, Observation, ObserveOptions};

pub use self::follower::{Followed, Follower};
pub use self::reading::Report;
pub use self::waiting::Published;

/// Bytes of messages a second that are recorded, for each message that may be.
const BYTES_EACH: i64 = 1024;

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

    /// The name that a client of the server goes by.
    pub fn client_came(&self, client: u64, name: &str) {
        self.names.lock().here.insert(client, name.into());
    }

    /// A client of the server has left.
    pub fn client_left(&self, client: u64) {
        self.names.lock().left.push(client);
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
}
