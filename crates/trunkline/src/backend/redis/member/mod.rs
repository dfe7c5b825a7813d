//! Members of durable consumers.
//!
//! A consumer is a consumer group, a hash with what it is, and a sorted set of the messages that were given back, by the
//! time they are due again. The group itself knows who has which message, in which attempt and since when: a lease is
//! over when a message was not touched for `ack_wait`. New messages are read with plain commands in one transaction, so
//! that payloads never pass through a script; what must look and act in one step is a script.
//!
//! | part | what it does |
//! |---|---|
//! | `fetch` | hands out deliveries, and waits for some |
//! | `settle` | settles them, fenced by member and attempt |
//! | `held` | which deliveries are surely still this member's |
//! | `info` | how a consumer stands, and its end |

mod fetch;
mod held;
mod info;
mod settle;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::time::Instant;
use trunkline_core::StreamOffset;

use super::entry::{EntryId, list, parse_id, print_id, text, unexpected};
use super::link::{Blocking, Failure};
use super::routes::{Home, millis};
use super::scripts::{JOIN, LEASE, LEAVE, Script};
use super::shared::{STALE_RETRIES, Shared, is_stale};
use super::streams::{StartAfter, start_after};
use crate::backend::{
    AckToken, ConsumeError, ConsumerConfig, Fetched, Fut, Lease, Member, Settle, Settled, Start, StreamError,
};
use held::Held;
pub(super) use info::{info, remove};

/// What the scripts of a consumer touch: keys of its stream, and its own.
const STREAM_KEYS: &[&str] = &["added", "consumers", "deleted", "wake"];
const CONSUMER_KEYS: &[&str] = &["consumer", "due", "members", "lease", "gone"];
/// A member that was not seen for so long is dead. Members that live are seen with each look.
const FORGET_AFTER: Duration = Duration::from_secs(600);

pub(super) struct RedisMember {
    shared: Arc<Shared>,
    home: Arc<Home>,
    config: ConsumerConfig,
    name: String,
    /// Tells this consumer from a later one of the same name.
    identity: String,
    /// Name of the consumer group; a later consumer of the same name has another.
    group: String,
    left: AtomicBool,
    /// The connection for reads that block, when none is under way. Held to take it or put it back.
    blocking: Mutex<Option<Blocking>>,
    /// Held for a few instructions, never while another lock is.
    state: Mutex<State>,
    /// Held likewise.
    held: Mutex<Held>,
}

/// What a member knows about its consumer.
struct State {
    /// When is to be looked for messages that come again.
    look_at: Instant,
    /// Where the consumer started, and the running number of the message there.
    start: (EntryId, Option<u64>),
    /// Messages that did not match the filter, to be acknowledged with the next command.
    skipped: Vec<EntryId>,
}

impl RedisMember {
    pub(super) async fn join(
        shared: &Arc<Shared>,
        home: Arc<Home>,
        config: ConsumerConfig,
    ) -> Result<Self, StreamError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}-{}", shared.process, NEXT.fetch_add(1, Ordering::Relaxed));
        let (how, id) = match (config.start, start_after(config.start)?) {
            (_, StartAfter::New) => ("new", (0, 0)),
            (Start::Beginning, StartAfter::Id { id, .. }) => ("beginning", id),
            (_, StartAfter::Id { id, saved: true }) => ("after", id),
            (_, StartAfter::Id { id, saved: false }) => ("at", id),
        };
        let filter = config.filter.as_ref().map_or_else(String::new, ToString::to_string);
        let failed = |failure| shared.link.stream_error(failure);
        let identity = format!("{:016x}", fastrand::u64(..));
        let mut keys = shared.keys_of(&home, STREAM_KEYS, CONSUMER_KEYS, &config.name);
        keys.insert(1, home.version_key());
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let join = async |version: &str| {
            let joining = shared.link.run_script(&JOIN, &keys, |command| {
                command
                    .arg(version)
                    .arg(&config.name)
                    .arg(&name)
                    .arg(&identity)
                    .arg(how)
                    .arg(print_id(id))
                    .arg(millis(config.ack_wait))
                    .arg(&filter)
                    .arg(u8::from(config.keyed))
                    .arg(millis(FORGET_AFTER));
            });
            joining.await
        };
        let mut tries = 0;
        let answer = loop {
            let routes = shared.routes();
            if routes.stream(&home.name).is_none() {
                return Err(StreamError::NoStream(home.name.clone()));
            }
            let version = home.config.as_ref().map_or_else(String::new, |_| routes.version.to_string());
            match join(&version).await {
                Err(failure) if is_stale(&failure) && tries < STALE_RETRIES => {
                    tries += 1;
                    shared.refresh().await.map_err(failed)?;
                }
                answer => break answer.and_then(list).map_err(failed)?,
            }
        };
        let words = answer.iter().map(text).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (identity, start) = match words.as_slice() {
            ["OK", identity, start, index] => {
                let start = (parse_id(start).unwrap_or_default(), index.parse().ok());
                ((*identity).to_owned(), start)
            }
            ["AHEAD", last] => {
                let last = parse_id(last).unwrap_or_default();
                return Err(StreamError::OffsetAhead {
                    stream: home.name.clone(),
                    offset: StreamOffset::Entry(id.0, id.1),
                    last: StreamOffset::Entry(last.0, last.1),
                });
            }
            ["CONFLICT", found, keyed] => {
                let show = |filter: &str, keyed: bool| match filter {
                    "" => format!("no filter, keyed {keyed}"),
                    filter => format!("filter {filter}, keyed {keyed}"),
                };
                return Err(StreamError::Conflict {
                    what: format!("consumer {:?}", config.name),
                    found: show(found, *keyed == "1"),
                    wanted: show(&filter, config.keyed),
                });
            }
            _ => return Err(failed(unexpected(&Value::Array(answer.clone())))),
        };
        let group = format!("c:{}:{identity}", config.name);
        Ok(Self {
            shared: shared.clone(),
            home,
            config,
            name,
            identity,
            group,
            left: AtomicBool::new(false),
            blocking: Mutex::new(None),
            state: Mutex::new(State { look_at: Instant::now(), start, skipped: Vec::new() }),
            held: Mutex::default(),
        })
    }

    fn refuse_when_closed(&self) -> Result<(), ConsumeError> {
        match self.left.load(Ordering::Acquire) || self.shared.link.refusing.load(Ordering::SeqCst) {
            true => Err(ConsumeError::Closed),
            false => Ok(()),
        }
    }

    /// Runs a script of this consumer; its first arguments are always the same.
    async fn run(&self, script: &Script, arguments: impl FnOnce(&mut Cmd)) -> Result<Value, ConsumeError> {
        self.refuse_when_closed()?;
        self.run_even_when_closed(script, arguments).await.map_err(|failure| self.failed(failure))
    }

    async fn run_even_when_closed(
        &self,
        script: &Script,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<Value, Failure> {
        let keys = self.shared.keys_of(&self.home, STREAM_KEYS, CONSUMER_KEYS, &self.config.name);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let running = self.shared.link.run_script(script, &keys, |command| {
            command.arg(&self.config.name).arg(&self.name).arg(&self.identity);
            arguments(command);
        });
        running.await
    }

    fn failed(&self, failure: Failure) -> ConsumeError {
        self.shared.link.consume_error(failure)
    }

    fn gone(&self) -> ConsumeError {
        ConsumeError::Gone { stream: self.home.name.clone(), consumer: self.config.name.clone() }
    }

    async fn take_lease(&self, ttl: Duration) -> Result<Lease, ConsumeError> {
        let answer = self
            .run(&LEASE, |command| {
                command.arg(millis(ttl).max(1));
            })
            .await?;
        match text(&answer).map_err(|failure| self.failed(failure))?.as_str() {
            "GONE" => Err(self.gone()),
            "HELD" => Ok(Lease::Held { new: false }),
            "NEW" => Ok(Lease::Held { new: true }),
            _ => Ok(Lease::Standby),
        }
    }

    async fn leave_now(&self) -> Result<(), ConsumeError> {
        if self.left.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        // What fails here comes again to others, who acknowledge it.
        let _ = self.acknowledge_skipped().await;
        let left = self.run_even_when_closed(&LEAVE, |_| {}).await;
        self.blocking.lock().take();
        left.map(|_| ()).map_err(|failure| self.failed(failure))
    }
}

impl Member for RedisMember {
    fn name(&self) -> &str {
        &self.name
    }

    fn fetch(&self, max: usize, wait: Duration) -> Fut<'_, Result<Fetched, ConsumeError>> {
        Box::pin(self.fetch_within(max, wait))
    }

    fn settle(&self, batch: Vec<(AckToken, Settle)>) -> Fut<'_, Result<Vec<Settled>, ConsumeError>> {
        Box::pin(self.settle_batch(batch))
    }

    fn lease(&self, ttl: Duration) -> Fut<'_, Result<Lease, ConsumeError>> {
        Box::pin(self.take_lease(ttl))
    }

    fn leave(&self) -> Fut<'_, Result<(), ConsumeError>> {
        Box::pin(self.leave_now())
    }
}
