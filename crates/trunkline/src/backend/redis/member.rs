//! Members of durable consumers.
//!
//! A consumer is a consumer group, a hash with what it is and how far it has come, and a sorted set that says when each
//! pending message is due again: at the end of its lease, or of the delay of a nak. Handing out, settling, leasing and
//! leaving are one script each, so that owner, attempt and time are looked at and changed in one step. A fetch that
//! finds nothing waits with a blocking read on a connection of its own for the stream's next message, or for its wake
//! stream, on which the scripts tell what else may have given a member something to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::time::Instant;
use trunkline_core::StreamOffset;

use super::entry::{array, entry, list, number, parse_id, print_id, text, time_of, unexpected};
use super::link::{Blocking, Failure};
use super::routes::{Home, millis};
use super::scripts::{CONSUMER, FETCH, JOIN, LEASE, LEAVE, REMOVE_CONSUMER, SETTLE, Script};
use super::shared::{STALE_RETRIES, Shared, is_stale};
use super::streams::{StartAfter, start_after};
use crate::backend::{
    AckToken, ConsumeError, ConsumerConfig, ConsumerInfo, Delivery, Fetched, Fut, Lease, Member, Settle,
    Settled, Start, StreamError,
};

/// Most deliveries of one script: while it runs the server does nothing else.
const FETCH_MAX: usize = 512;
/// Longest time one read blocks. What may happen without a word (a lease that ends) is looked at again after it.
const BLOCK_MAX: Duration = Duration::from_secs(2);
/// How much longer than it may block a read may take before its connection counts as broken.
const BLOCK_GRACE: Duration = Duration::from_secs(2);
/// How long the next look waits after a read that was refused.
const REFUSED_DELAY: Duration = Duration::from_millis(20);
/// What the scripts of a consumer touch: keys of its stream, and its own.
const STREAM_KEYS: &[&str] = &["added", "consumers", "wake"];
const CONSUMER_KEYS: &[&str] = &["consumer", "due", "members", "lease", "gone"];
/// A member that was not seen for so long is dead. Members that live are seen with each fetch.
const FORGET_AFTER: Duration = Duration::from_secs(600);

pub(super) struct RedisMember {
    shared: Arc<Shared>,
    home: Arc<Home>,
    config: ConsumerConfig,
    filter: String,
    name: String,
    /// Tells this consumer from a later one of the same name.
    identity: String,
    left: AtomicBool,
    /// The connection for reads that block, when none is under way. Held to take it or put it back.
    blocking: Mutex<Option<Blocking>>,
}

/// What one look brought.
enum Look {
    Found(Fetched),
    Nothing { due: Option<Duration>, stream: String, wake: String },
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
        let identity = match words.as_slice() {
            ["OK", identity] => (*identity).to_owned(),
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
        Ok(Self {
            shared: shared.clone(),
            home,
            filter,
            config,
            name,
            identity,
            left: AtomicBool::new(false),
            blocking: Mutex::new(None),
        })
    }

    /// Runs a script of this consumer; its first arguments are always the same.
    async fn run(&self, script: &Script, arguments: impl FnOnce(&mut Cmd)) -> Result<Value, ConsumeError> {
        if self.left.load(Ordering::Acquire) || self.shared.link.refusing.load(Ordering::SeqCst) {
            return Err(ConsumeError::Closed);
        }
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

    async fn look(&self, max: usize) -> Result<Look, ConsumeError> {
        let answer = self
            .run(&FETCH, |command| {
                command
                    .arg(max.clamp(1, FETCH_MAX))
                    .arg(&self.filter)
                    .arg(u8::from(self.config.keyed))
                    .arg(millis(self.config.ack_wait));
            })
            .await?;
        self.read_look(answer).map_err(|failure| self.failed(failure))?.ok_or_else(|| self.gone())
    }

    fn read_look(&self, answer: Value) -> Result<Option<Look>, Failure> {
        let parts = list(answer)?;
        if parts.len() == 1 {
            return Ok(None);
        }
        let [_, deliveries, missed, due, stream, wake, made] = array::<7>(Value::Array(parts))?;
        let mut fetched = Fetched { deliveries: Vec::new(), missed: number(&missed)? };
        if number(&made)? == 1 {
            tracing::warn!(
                stream = self.home.name,
                consumer = self.config.name,
                "the server has lost the consumer; it is made again and reads what there is"
            );
        }
        for delivery in list(deliveries)? {
            let [id, fields, attempt] = array::<3>(delivery)?;
            let attempt = u32::try_from(number(&attempt)?).unwrap_or(u32::MAX);
            let entry = entry(Value::Array(vec![id, fields]))?;
            let offset = entry.offset();
            match entry.message {
                Ok(message) => fetched.deliveries.push(Delivery {
                    message,
                    offset,
                    time: time_of(entry.id),
                    attempt,
                    token: AckToken { offset, attempt, ack_subject: None },
                }),
                Err(error) => {
                    // It comes again after `ack_wait`, to members that may be able to read it.
                    tracing::warn!(stream = self.home.name, %offset, %error, "an entry is no message of the bus");
                }
            }
        }
        if !fetched.deliveries.is_empty() || fetched.missed > 0 {
            return Ok(Some(Look::Found(fetched)));
        }
        let due = match due {
            Value::Int(ms) => u64::try_from(ms).ok().map(Duration::from_millis),
            _ => None,
        };
        Ok(Some(Look::Nothing { due, stream: text(&stream)?, wake: text(&wake)? }))
    }

    async fn fetch_within(&self, max: usize, wait: Duration) -> Result<Fetched, ConsumeError> {
        let started = Instant::now();
        loop {
            let (due, stream, wake) = match self.look(max).await? {
                Look::Found(fetched) => return Ok(fetched),
                Look::Nothing { due, stream, wake } => (due, stream, wake),
            };
            let left = wait.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(Fetched::default());
            }
            let block = left.min(BLOCK_MAX).min(due.unwrap_or(BLOCK_MAX));
            if !block.is_zero() {
                self.block(block, &stream, &wake).await?;
            }
        }
    }

    /// Waits until something is stored after `stream`, or told after `wake`, or the time has passed.
    async fn block(&self, time: Duration, stream: &str, wake: &str) -> Result<(), ConsumeError> {
        // Taken for the time of the read: one that is dropped half way takes the connection along, since the next read
        // on it would wait for this one to end.
        let taken = self.blocking.lock().take();
        let mut connection = match taken {
            Some(connection) => connection,
            None => self.shared.link.open(&self.home.key).await.map_err(|failure| {
                self.shared.link.suspect();
                self.failed(failure)
            })?,
        };
        let Some(current) = self.shared.link.current(&self.home.key) else {
            return Err(self.failed(Failure::NotConnected(self.shared.link.reason())));
        };
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(millis(time).max(1)).arg("STREAMS");
        command.arg(&self.home.key).arg(self.home.beside("wake")).arg(stream).arg(wake);
        let reading = tokio::time::timeout(time + BLOCK_GRACE, connection.read(&self.shared.link, &command));
        let answer = tokio::select! {
            answer = reading => answer,
            () = current.lost.cancelled() => {
                return Err(self.failed(Failure::NotConnected(self.shared.link.reason())));
            }
        };
        match answer {
            // Another server has the stream now, or will: the next read is to find it.
            Ok(Ok(Value::ServerError(error))) if self.shared.link.topology.redirects() => {
                tracing::debug!(stream = self.home.name, %error, "a read is refused");
                tokio::time::sleep(REFUSED_DELAY).await;
            }
            // A refusal, as of a key of another type, is for the next look to report.
            Ok(Ok(_)) => *self.blocking.lock() = Some(connection),
            // What broke this connection need not have broken the link: the next read makes another.
            Ok(Err(_)) | Err(_) => self.shared.link.suspect(),
        }
        Ok(())
    }

    async fn settle_batch(&self, batch: Vec<(AckToken, Settle)>) -> Result<Vec<Settled>, ConsumeError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self
            .run(&SETTLE, |command| {
                for (token, settle) in &batch {
                    let id = match token.offset {
                        StreamOffset::Entry(ms, seq) => print_id((ms, seq)),
                        // No delivery of this backend has such a token: nothing is pending under it.
                        StreamOffset::Sequence(_) => "0-0".to_owned(),
                    };
                    let (what, delay) = match settle {
                        Settle::Ack | Settle::Term => ("ack", 0),
                        Settle::Nak(delay) => ("nak", millis(*delay)),
                        Settle::Progress => ("progress", 0),
                    };
                    command.arg(id).arg(token.attempt).arg(what).arg(delay);
                }
            })
            .await?;
        let answers = list(answer).map_err(|failure| self.failed(failure))?;
        let settled = answers.iter().map(|answer| match number(answer)? {
            1 => Ok(Settled::Done),
            _ => Ok(Settled::LeaseLost),
        });
        settled.collect::<Result<Vec<_>, Failure>>().map_err(|failure| self.failed(failure))
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

/// How a consumer stands.
pub(super) async fn info(shared: &Shared, home: &Home, name: &str) -> Result<Option<ConsumerInfo>, Failure> {
    let keys = shared.keys_of(home, STREAM_KEYS, CONSUMER_KEYS, name);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let asking = shared.link.run_script(&CONSUMER, &keys, |command| {
        command.arg(name).arg(millis(FORGET_AFTER));
    });
    let answer = asking.await?;
    if answer == Value::Nil {
        return Ok(None);
    }
    let [
        ack_wait,
        filter,
        keyed,
        start,
        delivered,
        floor,
        pending,
        lag,
        redelivered,
        missed,
        members,
        oldest,
    ] = array::<12>(answer)?;
    let offset = |value: &Value| -> Result<Option<StreamOffset>, Failure> {
        Ok(parse_id(&text(value)?).map(|(ms, seq)| StreamOffset::Entry(ms, seq)))
    };
    let filter = text(&filter)?;
    let config = ConsumerConfig {
        start: match offset(&start)? {
            None | Some(StreamOffset::Entry(0, 0)) => Start::Beginning,
            Some(offset) => Start::After(offset),
        },
        ack_wait: Duration::from_millis(number(&ack_wait)?),
        filter: match filter.as_str() {
            "" => None,
            filter => Some(filter.parse().map_err(|_| Failure::Unexpected(format!("filter {filter:?}")))?),
        },
        keyed: text(&keyed)? == "1",
        ..ConsumerConfig::new(name)
    };
    Ok(Some(ConsumerInfo {
        config,
        delivered: offset(&delivered)?,
        ack_floor: offset(&floor)?,
        pending: number(&pending)?,
        lag: number(&lag)?,
        redelivered: number(&redelivered)?,
        missed: number(&missed)?,
        members: number(&members)?,
        oldest_pending: match oldest {
            Value::Int(ms) => u64::try_from(ms).ok().map(Duration::from_millis),
            _ => None,
        },
    }))
}

/// Removes a consumer; `false` when there was none.
pub(super) async fn remove(shared: &Shared, home: &Home, name: &str) -> Result<bool, Failure> {
    let keys = shared.keys_of(home, STREAM_KEYS, CONSUMER_KEYS, name);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let removing = shared.link.run_script(&REMOVE_CONSUMER, &keys, |command| {
        command.arg(name);
    });
    Ok(number(&removing.await?)? == 1)
}
