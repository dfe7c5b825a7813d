//! Handing out deliveries.
//!
//! New messages are read in a transaction that also tells where the consumer stood before, so that missing numbers are
//! counted although several members read. Messages that come again are handed out by a script, in front of new ones,
//! when something is known to be due and at least once a second. A fetch that finds nothing waits with a blocking read on
//! a connection of its own for the stream's next message, or for its wake stream, on which the scripts tell what else
//! may have given a member something to do.

use std::time::Duration;

use redis::{ServerError, Value};
use tokio::time::Instant;
use trunkline_core::StreamOffset;

use super::super::deleted::Deleted;
use super::super::entry::{
    Entry, EntryId, array, entries, entry, list, number, parse_id, print_id, push_id, text, time_of,
};
use super::super::link::Failure;
use super::super::refusal;
use super::super::routes::millis;
use super::super::scripts::LOOK;
use super::RedisMember;
use crate::backend::{AckToken, ConsumeError, Delivery, Fetched};

/// Most deliveries of one fetch: while it is carried out the server does nothing else.
const FETCH_MAX: usize = 512;
/// Longest time one read blocks. What may happen without a word (a lease that ends) is looked at again after it.
const BLOCK_MAX: Duration = Duration::from_secs(2);
/// How much longer than it may block a read may take before its connection counts as broken.
const BLOCK_GRACE: Duration = Duration::from_secs(2);
/// How long the next look waits after a read that was refused.
const REFUSED_DELAY: Duration = Duration::from_millis(20);
/// Longest time without a look for messages that come again.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a message that cannot be read is given out, before it is given up: in between members of another version may
/// be able to read it.
const UNREADABLE_ATTEMPTS_MAX: u32 = 5;

/// What a look for messages that come again brought.
struct Look {
    fetched: Fetched,
    /// Until when nothing more comes again.
    wait: Duration,
    /// Id of the message read last, and of the last word on the wake stream.
    position: String,
    wake: String,
}

/// What a read of new messages brought.
enum Read {
    Found(Fetched),
    /// There was something, and all of it was filtered out.
    Skipped,
    Nothing,
    /// The consumer has to be looked at first.
    NoGroup,
    /// The server has no memory for a transaction.
    NoMemory,
}

impl RedisMember {
    pub(super) async fn fetch_within(&self, max: usize, wait: Duration) -> Result<Fetched, ConsumeError> {
        let (started, max) = (Instant::now(), max.clamp(1, FETCH_MAX));
        loop {
            self.refuse_when_closed()?;
            if self.config.keyed || Instant::now() >= self.state.lock().look_at {
                let look = self.look(max, false).await?;
                if !look.fetched.is_empty() {
                    return Ok(look.fetched);
                }
            }
            let mut by_script = false;
            // Of a keyed consumer the script reads new messages, too: only there can it see that the lease is held.
            if !self.config.keyed {
                match self.read_new(max).await? {
                    Read::Found(fetched) => return Ok(fetched),
                    Read::Skipped => continue,
                    Read::NoGroup => {
                        self.state.lock().look_at = Instant::now();
                        continue;
                    }
                    Read::Nothing => {}
                    // Up to Redis 7 nothing can be queued then; a script can still read.
                    Read::NoMemory => by_script = true,
                }
            }
            self.acknowledge_skipped().await?;
            // Once more, because only the script tells from where to wait so that nothing is overlooked.
            let look = self.look(max, by_script).await?;
            if !look.fetched.is_empty() {
                return Ok(look.fetched);
            }
            let left = wait.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(Fetched::default());
            }
            let block = left.min(BLOCK_MAX).min(look.wait);
            if !block.is_zero() {
                self.block(block, &look.position, &look.wake).await?;
            }
        }
    }

    /// Hands out what comes again, and with `new`, as always of a keyed consumer, what is new.
    async fn look(&self, max: usize, new: bool) -> Result<Look, ConsumeError> {
        let fence = self.held.lock().fence();
        let filter = self.config.filter.as_ref().map_or("", |filter| filter.as_str());
        let answer = self
            .run(&LOOK, |command| {
                command
                    .arg(max)
                    .arg(filter)
                    .arg(if self.config.keyed { 1 } else { 2 * u8::from(new) })
                    .arg(millis(self.config.ack_wait));
            })
            .await?;
        self.read_look(answer, fence).await?.ok_or_else(|| self.gone())
    }

    async fn read_look(&self, answer: Value, fence: u64) -> Result<Option<Look>, ConsumeError> {
        let failed = |failure| self.failed(failure);
        let parts = list(answer).map_err(failed)?;
        if let [only] = parts.as_slice()
            && text(only).map_err(failed)? == "GONE"
        {
            return Ok(None);
        }
        let [_, again, missed, wait, position, new, wake, made, fence_now] =
            array::<9>(Value::Array(parts)).map_err(failed)?;
        self.held.lock().see_fence(number(&fence_now).map_err(failed)?);
        if let Value::Array(start) = made {
            tracing::warn!(
                stream = self.home.name,
                consumer = self.config.name,
                "the server has lost the consumer; it is made again and reads what there is"
            );
            let [id, index] = array::<2>(Value::Array(start)).map_err(failed)?;
            let id = text(&id).ok().and_then(|id| parse_id(&id)).unwrap_or_default();
            self.state.lock().start = (id, number(&index).ok());
        }
        let position = text(&position).map_err(failed)?;
        let mut fetched = Fetched { deliveries: Vec::new(), missed: number(&missed).map_err(failed)? };
        let mut again_entries = Vec::new();
        for delivery in list(again).map_err(failed)? {
            let [id, fields, attempt] = array::<3>(delivery).map_err(failed)?;
            let attempt = u32::try_from(number(&attempt).map_err(failed)?).unwrap_or(u32::MAX);
            again_entries.push((entry(Value::Array(vec![id, fields])).map_err(failed)?, attempt));
        }
        let mut given_up = self.hand_out(again_entries, fence, &mut fetched);
        let new = list(new).and_then(|new| new.into_iter().map(entry).collect::<Result<Vec<_>, _>>());
        let new = new.map_err(failed)?;
        fetched.missed += self.count_missed(parse_id(&position).unwrap_or_default(), &new).await?;
        let last = new.last().map(|entry| print_id(entry.id));
        given_up += self.hand_out(new.into_iter().map(|entry| (entry, 1)).collect(), fence, &mut fetched);
        self.note_missed(given_up).await?;
        let wait = match wait {
            Value::Int(ms) => Duration::from_millis(u64::try_from(ms).unwrap_or(0)),
            _ => LOOK_INTERVAL,
        };
        self.state.lock().look_at = Instant::now() + wait.min(LOOK_INTERVAL);
        let wake = text(&wake).map_err(failed)?;
        Ok(Some(Look { fetched, wait, position: last.unwrap_or(position), wake }))
    }

    /// Reads messages that nobody has had.
    async fn read_new(&self, max: usize) -> Result<Read, ConsumeError> {
        let fence = self.held.lock().fence();
        let skipped = std::mem::take(&mut self.state.lock().skipped);
        let mut pipeline = redis::Pipeline::with_capacity(5);
        pipeline.atomic();
        pipeline.cmd("XINFO").arg("GROUPS").arg(&self.home.key);
        pipeline.cmd("ZRANGE").arg(self.home.of_consumer("due", &self.config.name));
        pipeline.arg(0).arg(0).arg("WITHSCORES");
        pipeline.cmd("TIME");
        pipeline.cmd("XREADGROUP").arg("GROUP").arg(&self.group).arg(&self.name).arg("COUNT").arg(max);
        pipeline.arg("STREAMS").arg(&self.home.key).arg(">");
        if !skipped.is_empty() {
            pipeline.add_command(self.xack(&skipped));
        }
        let failed = |failure| self.failed(failure);
        let answers = match self.shared.link.transaction(&self.home.key, &pipeline).await {
            Ok(answers) => answers,
            Err(failure) => {
                self.state.lock().skipped.extend(skipped);
                return match &failure {
                    Failure::Refused(error) if refusal::code(error) == "OOM" => Ok(Read::NoMemory),
                    _ => Err(failed(failure)),
                };
            }
        };
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or(Value::Nil);
        let (groups, due, time, read) = (next(), next(), next(), next());
        // Where the stream is gone, so is its group.
        match (&groups, &read) {
            (_, Value::ServerError(error)) | (Value::ServerError(error), _) => {
                return match is_no_group(error) {
                    true => Ok(Read::NoGroup),
                    false => Err(failed(Failure::Refused(error.clone()))),
                };
            }
            _ => {}
        }
        if is_due(due, time).map_err(failed)? {
            self.state.lock().look_at = Instant::now();
        }
        let entries = read_stream(read).map_err(failed)?;
        if entries.is_empty() {
            return Ok(Read::Nothing);
        }
        let position = self.position(groups).map_err(failed)?;
        let mut fetched = Fetched { deliveries: Vec::with_capacity(entries.len()), missed: 0 };
        fetched.missed = match position {
            Some(position) => self.count_missed(position, &entries).await?,
            None => 0,
        };
        let given_up =
            self.hand_out(entries.into_iter().map(|entry| (entry, 1)).collect(), fence, &mut fetched);
        self.note_missed(given_up).await?;
        match fetched.is_empty() {
            true => Ok(Read::Skipped),
            false => Ok(Read::Found(fetched)),
        }
    }

    /// The id that the group had read up to, in what the server tells of all groups.
    fn position(&self, groups: Value) -> Result<Option<EntryId>, Failure> {
        for group in list(groups)? {
            let mut fields = list(group)?.into_iter();
            let (mut name, mut position) = (None, None);
            while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
                match field {
                    Value::BulkString(field) if field == b"name" => name = Some(value),
                    Value::BulkString(field) if field == b"last-delivered-id" => position = Some(value),
                    _ => {}
                }
            }
            let is_ours = matches!(&name, Some(Value::BulkString(name)) if *name == self.group.as_bytes());
            if let (true, Some(position)) = (is_ours, position) {
                return Ok(parse_id(&text(&position)?));
            }
        }
        Ok(None)
    }

    /// How many messages limits removed before these, and between them, and notes that with the consumer.
    async fn count_missed(&self, position: EntryId, entries: &[Entry]) -> Result<u64, ConsumeError> {
        let start = self.state.lock().start;
        let mut before = match position {
            position if position == start.0 => start.1,
            // The id is nobody's, or that of an entry which the bus did not write.
            (_, 0 | u64::MAX) => None,
            (_, number) => Some(number),
        };
        let failed = |failure| self.failed(failure);
        let deleted = Deleted::among(&self.shared.link, &self.home, before, entries).await.map_err(failed)?;
        let mut missed = 0;
        for entry in entries {
            if let (Some(before), Some(index)) = (before, entry.index) {
                missed += index.saturating_sub(before + 1 + deleted.between(before, index));
            }
            before = entry.index.or(before);
        }
        self.note_missed(missed).await?;
        Ok(missed)
    }

    /// Counts messages with the consumer that none of its members will be given.
    async fn note_missed(&self, missed: u64) -> Result<(), ConsumeError> {
        if missed == 0 {
            return Ok(());
        }
        let consumer = self.home.of_consumer("consumer", &self.config.name);
        let mut command = redis::cmd("HINCRBY");
        command.arg(consumer).arg("missed").arg(missed);
        let counting = self.shared.link.query(&self.home.key, &command).await;
        counting.map(|_| ()).map_err(|failure| self.failed(failure))
    }

    /// Makes deliveries of entries that match the filter. Says how many entries are given up because they cannot be read;
    /// they are missed, and acknowledged with what did not match.
    fn hand_out(&self, entries: Vec<(Entry, u32)>, fence: u64, fetched: &mut Fetched) -> u64 {
        let already = fetched.deliveries.len();
        let missed = fetched.missed;
        let mut skipped = Vec::new();
        for (entry, attempt) in entries {
            let offset = entry.offset();
            match entry.message {
                Ok(message)
                    if self
                        .config
                        .filter
                        .as_ref()
                        .is_some_and(|filter| !filter.matches(&message.subject)) =>
                {
                    skipped.push(entry.id);
                }
                Ok(message) => fetched.deliveries.push(Delivery {
                    message,
                    offset,
                    time: time_of(entry.id),
                    attempt,
                    token: AckToken { offset, attempt, ack_subject: None },
                }),
                // What somebody else wrote is no message to any version of the bus.
                Err(error) if error.is_final() || attempt >= UNREADABLE_ATTEMPTS_MAX => {
                    let (stream, consumer) = (&self.home.name, &self.config.name);
                    tracing::warn!(stream, consumer, %offset, attempt, %error, "an entry is no message of the bus and is given up");
                    fetched.missed += 1;
                    skipped.push(entry.id);
                }
                Err(error) => {
                    let (stream, consumer) = (&self.home.name, &self.config.name);
                    tracing::warn!(stream, consumer, %offset, attempt, %error, "an entry cannot be read and comes again");
                }
            }
        }
        if !skipped.is_empty() {
            self.state.lock().skipped.append(&mut skipped);
        }
        let deliveries = fetched.deliveries[already..].iter().filter_map(|delivery| match delivery.offset {
            StreamOffset::Entry(ms, seq) => Some(((ms, seq), delivery.attempt)),
            StreamOffset::Sequence(_) => None,
        });
        self.held.lock().add(fence, deliveries);
        fetched.missed - missed
    }

    pub(super) fn xack(&self, ids: &[EntryId]) -> redis::Cmd {
        let mut command = redis::cmd("XACK");
        command.arg(&self.home.key).arg(&self.group);
        for id in ids {
            push_id(&mut command, *id);
        }
        command
    }

    /// Acknowledges what did not match the filter.
    pub(super) async fn acknowledge_skipped(&self) -> Result<(), ConsumeError> {
        let skipped = std::mem::take(&mut self.state.lock().skipped);
        if skipped.is_empty() {
            return Ok(());
        }
        let acknowledging = self.shared.link.query(&self.home.key, &self.xack(&skipped)).await;
        acknowledging.map(|_| ()).map_err(|failure| self.failed(failure))
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
}

/// The entries in the answer of a read of one stream; nothing is no entries.
fn read_stream(answer: Value) -> Result<Vec<Entry>, Failure> {
    let Some(stream) = list(answer)?.into_iter().next() else { return Ok(Vec::new()) };
    let [_key, found] = array::<2>(stream)?;
    entries(found)
}

impl Fetched {
    fn is_empty(&self) -> bool {
        self.deliveries.is_empty() && self.missed == 0
    }
}

/// Whether the first of what was given back is due by the clock of the server.
fn is_due(due: Value, time: Value) -> Result<bool, Failure> {
    let Some(score) = list(due)?.into_iter().nth(1) else { return Ok(false) };
    let [seconds, micros] = array::<2>(time)?;
    let now = (number(&seconds)? * 1000 + number(&micros)? / 1000) as f64;
    Ok(text(&score)?.parse::<f64>().is_ok_and(|due| due <= now))
}

/// Whether the group is not there, or the whole stream.
fn is_no_group(error: &ServerError) -> bool {
    error.code() == "NOGROUP" || error.details().is_some_and(|details| details.contains("no such key"))
}
