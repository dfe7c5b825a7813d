//! Streams, and durable consumers on them.
//!
//! The terms are JetStream's: a consumer has a cursor, pending deliveries with a lease of `ack_wait`, and an ack
//! floor. Retry delays and dead letters are decided by the bus; a backend only keeps, hands out and settles.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use trunkline_core::{Message, Pattern, StreamOffset, Subject};

use super::Fut;
use super::error::{ConsumeError, StreamError};

/// Where a reader starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Start {
    /// Only what is stored from now on (`$`).
    #[default]
    New,
    /// Everything that is kept (`0-0`).
    Beginning,
    /// The first message *after* this offset: a saved offset is that of the last message handled.
    After(StreamOffset),
    /// The first message stored at or after this time.
    At(SystemTime),
}

/// A stream as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamConfig {
    /// `[A-Za-z0-9_-]+`.
    pub name: String,
    /// What it stores; at least one, and none may overlap a pattern of another stream.
    pub subjects: Vec<Pattern>,
    /// Older messages are removed.
    pub max_age: Option<Duration>,
    /// Past it the oldest messages are removed, read or not.
    pub max_messages: Option<u64>,
    /// Past it the oldest messages are removed; approximate on redis.
    pub max_bytes: Option<u64>,
    /// Copies kept, where the backend replicates. 1 elsewhere.
    pub replicas: u8,
}

impl StreamConfig {
    /// A stream without limits.
    pub fn new(name: impl Into<String>, subjects: Vec<Pattern>) -> Self {
        Self { name: name.into(), subjects, max_age: None, max_messages: None, max_bytes: None, replicas: 1 }
    }
}

/// A stream as it is.
#[derive(Debug, Clone)]
pub struct StreamInfo {
    /// Its configuration.
    pub config: StreamConfig,
    /// Messages kept now.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Offset of the oldest one kept.
    pub first: Option<StreamOffset>,
    /// Offset of the newest one ever stored.
    pub last: Option<StreamOffset>,
    /// Names of its consumers.
    pub consumers: Vec<String>,
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// Where it stands.
    pub offset: StreamOffset,
    /// When it was stored, by the clock of who stores.
    pub time: SystemTime,
    /// The message.
    pub message: Arc<Message>,
}

/// Which page of a stream to read.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// From where. `Start::New` gives an empty page whose `next` stays behind the newest message.
    pub from: Start,
    /// Only messages whose subject matches.
    pub filter: Option<Pattern>,
    /// At most so many messages. At least 1.
    pub max: usize,
}

/// A page of a stream.
#[derive(Debug, Clone)]
pub struct ReadPage {
    /// The messages in order.
    pub messages: Vec<StoredMessage>,
    /// Where the next page starts.
    pub next: Start,
    /// Nothing more was there when the page was read.
    pub end: bool,
    /// Messages between the start and the first one kept that limits had already removed, where known.
    pub missed: u64,
}

/// A durable consumer as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// `[A-Za-z0-9_-]+`, unique in its stream.
    pub name: String,
    /// Where it starts when it is created; ignored when it exists.
    pub start: Start,
    /// Longest time a delivery may stay unsettled before it is given to a member again.
    pub ack_wait: Duration,
    /// Only messages whose subject matches.
    pub filter: Option<Pattern>,
    /// Order by key is wanted: only the member that holds the lease is given messages.
    pub keyed: bool,
}

impl ConsumerConfig {
    /// A consumer from now on, with the default `ack_wait` of 30 s.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            start: Start::New,
            ack_wait: Duration::from_secs(30),
            filter: None,
            keyed: false,
        }
    }
}

/// A durable consumer as it is.
#[derive(Debug, Clone)]
pub struct ConsumerInfo {
    /// Its configuration.
    pub config: ConsumerConfig,
    /// The newest message ever handed out.
    pub delivered: Option<StreamOffset>,
    /// Everything up to here is settled.
    pub ack_floor: Option<StreamOffset>,
    /// Messages handed out and not settled, those that wait for redelivery included.
    pub pending: u64,
    /// Messages never handed out.
    pub lag: u64,
    /// Deliveries that were repeats. *JetStream* does not count them: there it is how many of the messages pending now were
    /// delivered more than once.
    pub redelivered: u64,
    /// Messages that limits removed before they were settled. *JetStream*: those that were never handed out, of consumers
    /// without a filter; what lies between deliveries to two members neither can tell, and is left out.
    pub missed: u64,
    /// Members now. *JetStream*: those heard of within 15 s.
    pub members: u64,
    /// For how long the oldest pending delivery has been pending. *JetStream* does not tell since when each is: there it is
    /// how long ago the newest delivery was made, which is the least that it can be.
    pub oldest_pending: Option<Duration>,
}

/// Streams of a backend.
pub trait Streams: Send + Sync {
    /// Creates the stream or updates its limits. Idempotent.
    ///
    /// *Redis*: writes the config beside the key `PREFIX:{NAME}`. *JetStream*: create or update; a difference that cannot be
    /// updated is a [`StreamError::Conflict`] showing both sides.
    ///
    /// # Errors
    /// Bad names, patterns that overlap another stream, a conflict, no connection.
    fn ensure(&self, config: StreamConfig) -> Fut<'_, Result<StreamInfo, StreamError>>;

    /// All streams, by name.
    ///
    /// # Errors
    /// No connection.
    fn list(&self) -> Fut<'_, Result<Vec<StreamInfo>, StreamError>>;

    /// Removes a stream with its messages and consumers; `false` when there is none.
    ///
    /// # Errors
    /// No connection.
    fn remove(&self, stream: &str) -> Fut<'_, Result<bool, StreamError>>;

    /// Reads a page, without a consumer.
    ///
    /// *Redis*: XRANGE. *JetStream*: direct get, or an ephemeral ordered consumer.
    ///
    /// # Errors
    /// No such stream, an offset of another backend, no connection.
    fn read(&self, stream: &str, request: ReadRequest) -> Fut<'_, Result<ReadPage, StreamError>>;

    /// Removes single messages, and returns how many there were. Other offsets stay as they are. What is deleted is given to
    /// nobody any more and missed by nobody: somebody wanted it gone. A delivery under way can no longer be settled.
    ///
    /// *Redis*: XDEL, with the running numbers kept so that readers know the gap. *JetStream*: a message delete for each. The default refuses.
    ///
    /// # Errors
    /// No such stream, an offset of another backend, no connection, or a backend that removes whole streams only.
    fn delete(&self, stream: &str, offsets: Vec<StreamOffset>) -> Fut<'_, Result<u64, StreamError>> {
        let _ = offsets;
        Box::pin(std::future::ready(Err(StreamError::NotDeletable(stream.to_owned()))))
    }

    /// Joins a durable consumer as a new member, creating the consumer when it is not there.
    ///
    /// *Redis*: XGROUP CREATE at a concrete id; the member is a consumer of the group. *JetStream*: a pull consumer with
    /// `backoff` and `max_deliver` unset.
    ///
    /// # Errors
    /// No such stream, bad names, an existing consumer with another filter or key mode, no connection.
    fn join(&self, stream: &str, config: ConsumerConfig) -> Fut<'_, Result<Arc<dyn Member>, StreamError>>;

    /// How a consumer stands; `None` when there is none.
    ///
    /// *Redis*: XINFO GROUPS and XPENDING. *JetStream*: consumer info.
    ///
    /// # Errors
    /// No such stream, no connection.
    fn consumer_info(
        &self,
        stream: &str,
        consumer: &str,
    ) -> Fut<'_, Result<Option<ConsumerInfo>, StreamError>>;

    /// Removes a consumer and all it remembers; `false` when there is none.
    ///
    /// # Errors
    /// No such stream, no connection.
    fn remove_consumer(&self, stream: &str, consumer: &str) -> Fut<'_, Result<bool, StreamError>>;
}

/// Names one delivery of one message to one member; what it settles is refused once another delivery exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckToken {
    /// The message.
    pub offset: StreamOffset,
    /// Which delivery of it: the fence.
    pub attempt: u32,
    /// JetStream's ack subject.
    pub ack_subject: Option<Subject>,
}

/// One delivery of a stored message.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The message.
    pub message: Arc<Message>,
    /// Where it stands in the stream.
    pub offset: StreamOffset,
    /// When it was stored.
    pub time: SystemTime,
    /// Which delivery this is, from 1.
    pub attempt: u32,
    /// What to settle it with.
    pub token: AckToken,
}

/// What a fetch brought.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// The deliveries, redeliveries first.
    pub deliveries: Vec<Delivery>,
    /// Messages that limits removed since the last fetch before they could be settled.
    pub missed: u64,
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// Done.
    Ack,
    /// Deliver again, not before the delay has passed.
    Nak(Duration),
    /// Never deliver again.
    Term,
    /// Still at work: the lease starts anew.
    Progress,
}

/// Whether a settlement counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It did.
    Done,
    /// The lease was lost: the message belongs to another delivery, or is settled or removed already.
    LeaseLost,
}

/// Whether this member is the active one of a keyed consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It is, for the time asked for.
    Held {
        /// It was not before: unsettled deliveries of the one before come to it first, in order of their offsets.
        new: bool,
    },
    /// Another member is; ask again.
    Standby,
}

/// A member of a durable consumer. Dropping it without [`Member::leave`] leaves its deliveries to their leases.
pub trait Member: Send + Sync {
    /// Name of this member, unique in its consumer.
    fn name(&self) -> &str;

    /// Waits up to `wait` for between 1 and `max` deliveries; an empty answer after `wait` is normal. A keyed
    /// consumer gives only to the member that holds the lease.
    ///
    /// *Redis*: what comes again first, by one script (leases that ended by the idle time of pending entries, delayed naks by
    /// a sorted set), then XREADGROUP in a transaction; a member with nothing to do waits in an XREAD on a connection of
    /// its own. *JetStream*: a pull request with `expires`.
    ///
    /// # Errors
    /// No connection, or the consumer is gone.
    ///
    /// # Cancel safety
    /// A delivery that was under way when the future was dropped comes again after `ack_wait`.
    fn fetch(&self, max: usize, wait: Duration) -> Fut<'_, Result<Fetched, ConsumeError>>;

    /// Settles deliveries; one answer for each, in order.
    ///
    /// *Redis*: one Lua script a batch, fenced by owner and delivery count, or for acks by the count of deliveries that the
    /// consumer's members have lost; a delayed nak goes to the sorted set of delays.
    /// *JetStream*: double acks, the lease checked by the library's own clock first.
    ///
    /// # Errors
    /// No connection: nothing is known about any of them.
    fn settle(&self, batch: Vec<(AckToken, Settle)>) -> Fut<'_, Result<Vec<Settled>, ConsumeError>>;

    /// Takes or renews the lease of a keyed consumer for `ttl`.
    ///
    /// *Redis*: SET NX PX, renewed in Lua by owner. *JetStream*: a KV key, created or updated by revision.
    ///
    /// # Errors
    /// No connection, or the consumer is gone.
    fn lease(&self, ttl: Duration) -> Fut<'_, Result<Lease, ConsumeError>>;

    /// Leaves: unsettled deliveries go to the other members at once, the lease is free.
    ///
    /// *Redis*: pending entries made claimable, then XGROUP DELCONSUMER only with nothing pending, in Lua.
    /// *JetStream*: naks them.
    ///
    /// # Errors
    /// No connection: the deliveries come again after `ack_wait`.
    fn leave(&self) -> Fut<'_, Result<(), ConsumeError>>;
}
