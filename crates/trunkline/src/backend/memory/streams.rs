//! Streams of a hub: their table, their locks, and who waits on them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use trunkline_core::{Message, Pattern, Role, StreamOffset, SubscriptionId, Token};

use super::consumer::{Consumer, MemberId};
use super::hub::{Hub, Target};
use super::log::{Log, Removed};
use super::member::MemoryMember;
use super::wakers::{Wakers, wake_all};
use crate::backend::{
    BackendKind, ConsumeError, ConsumerConfig, ConsumerInfo, Fut, Gap, LiveEvent, LiveSource, Member,
    ReadPage, ReadRequest, Receipt, Start, StreamConfig, StreamError, StreamInfo, Streams, SubscribeError,
    Unsupported,
};
use crate::memory::{Charge, Holding, MemoryBudget};

/// Longest name of a stream or consumer, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The streams of a hub by name. Lock order: the table, then one stream; wakers are woken with neither held.
#[derive(Default)]
pub(super) struct StreamTable {
    /// Guards which streams there are.
    streams: Mutex<BTreeMap<String, Registered>>,
}

struct Registered {
    handle: StreamHandle,
    /// Its places in the routing table.
    routes: Vec<(Pattern, SubscriptionId)>,
}

/// One stream. Clones share it.
#[derive(Clone)]
pub struct StreamHandle(Arc<Stream>);

struct Stream {
    name: String,
    dedupe_window: Duration,
    /// Guards log and consumers; held for one step of either, never across a wait.
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) log: Log,
    /// For what the log takes.
    charge: Charge,
    consumers: BTreeMap<String, Consumer>,
    next_member: MemberId,
    /// Readers and members that wait for something to read.
    waiting: Wakers,
    removed: bool,
}

impl StreamTable {
    /// Removes the oldest messages of the largest streams until all of them have a little less than their share of the
    /// memory: a little, so that not every message that is stored from then on has to look again. Returns how many.
    pub(super) fn give_way(&self, memory: &MemoryBudget) -> u64 {
        let wanted = memory.share(Holding::Streams) / 16 * 15;
        let handles: Vec<_> = self.streams.lock().values().map(|known| known.handle.clone()).collect();
        let mut discarded = 0;
        loop {
            let excess = memory.held(Holding::Streams).saturating_sub(wanted);
            let sizes = handles.iter().map(|handle| (handle.0.state.lock().charge.bytes(), handle));
            let Some((_, largest)) = sizes.max_by_key(|(bytes, _)| *bytes) else { return discarded };
            let removed = if excess > 0 { largest.free(excess) } else { 0 };
            discarded += removed;
            if removed == 0 {
                return discarded;
            }
        }
    }
}

impl State {
    fn charge_log(&mut self) {
        let held = self.log.held_bytes();
        self.charge.set(held);
    }

    fn note_removed(&mut self, removed: &Removed) {
        if !removed.is_empty() {
            self.consumers.values_mut().for_each(|consumer| consumer.forget(removed));
        }
    }

    fn note_deleted(&mut self, removed: &Removed) {
        self.consumers.values_mut().for_each(|consumer| consumer.forget_deleted(removed));
    }

    /// Registers a waiting task; it is woken by the next message, settlement or removal.
    pub(super) fn wait(&mut self, cx: &Context<'_>) {
        self.waiting.register(cx.waker());
    }

    pub(super) fn consumer(&mut self, name: &str) -> Option<(&mut Consumer, &Log)> {
        if self.removed {
            return None;
        }
        Some((self.consumers.get_mut(name)?, &self.log))
    }
}

impl StreamHandle {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Stores a message; `None` when the stream was removed in the meantime.
    pub(super) fn append(&self, message: &Arc<Message>, dedupe_id: Option<&str>) -> Option<Receipt> {
        let now = Instant::now();
        let mut state = self.0.state.lock();
        if state.removed {
            return None;
        }
        let seen = dedupe_id.and_then(|id| state.log.seen(id, self.0.dedupe_window, now));
        let (sequence, duplicate, wakers) = match seen {
            Some(sequence) => (sequence, true, Vec::new()),
            None => {
                let (sequence, removed) = state.log.append(message, dedupe_id, SystemTime::now(), now);
                state.note_removed(&removed);
                state.charge_log();
                (sequence, false, state.waiting.take())
            }
        };
        drop(state);
        wake_all(wakers);
        let offset = StreamOffset::Sequence(sequence);
        Some(Receipt::Stored { stream: self.0.name.clone(), offset, duplicate })
    }

    /// Removes the oldest messages until so many bytes are free; returns how many went.
    fn free(&self, bytes: usize) -> u64 {
        self.change(|state| {
            let removed = state.log.free(bytes);
            state.note_removed(&removed);
            removed.len() as u64
        })
    }

    /// The state, with what has become too old removed from it.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock();
        let removed = state.log.apply_limits(SystemTime::now());
        state.note_removed(&removed);
        state.charge_log();
        state
    }

    /// Changes the state and wakes everybody who waits, once the lock is released.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        state.charge_log();
        let wakers = state.waiting.take();
        drop(state);
        wake_all(wakers);
        result
    }

    pub(super) fn gone(&self, consumer: &str) -> ConsumeError {
        ConsumeError::Gone { stream: self.0.name.clone(), consumer: consumer.to_owned() }
    }

    fn info(&self) -> StreamInfo {
        let state = self.lock();
        let log = &state.log;
        StreamInfo {
            config: log.config.clone(),
            messages: log.messages(),
            bytes: log.bytes(),
            first: (log.messages() > 0).then_some(StreamOffset::Sequence(log.first())),
            last: (log.last() > 0).then_some(StreamOffset::Sequence(log.last())),
            consumers: state.consumers.keys().cloned().collect(),
        }
    }

    fn join(&self, config: ConsumerConfig) -> Result<MemoryMember, StreamError> {
        check_name(&config.name)?;
        let mut state = self.lock();
        if state.removed {
            return Err(StreamError::NoStream(self.0.name.clone()));
        }
        let name = config.name.clone();
        if let Some(existing) = state.consumers.get_mut(&name) {
            let same = existing.config.filter == config.filter && existing.config.keyed == config.keyed;
            if !same {
                let show = |c: &ConsumerConfig| match &c.filter {
                    Some(filter) => format!("filter {filter}, keyed {}", c.keyed),
                    None => format!("no filter, keyed {}", c.keyed),
                };
                let (found, wanted) = (show(&existing.config), show(&config));
                return Err(StreamError::Conflict { what: format!("consumer {name:?}"), found, wanted });
            }
            existing.config.ack_wait = config.ack_wait;
        } else {
            let cursor = state.log.resolve(config.start)?;
            state.consumers.insert(name.clone(), Consumer::new(config, cursor));
        }
        state.next_member += 1;
        let member = state.next_member;
        if let Some(consumer) = state.consumers.get_mut(&name) {
            consumer.add_member(member);
        }
        Ok(MemoryMember::new(self.clone(), name, member))
    }

    fn remove(&self) {
        self.change(|state| {
            state.removed = true;
            state.consumers.clear();
        });
    }
}

impl Hub {
    /// A live source that reads the stream which covers `pattern` from `start` on, and goes on with what is stored.
    pub(super) fn follow(
        &self,
        pattern: Pattern,
        queue: Option<Token>,
        start: Start,
    ) -> Result<Follower, SubscribeError> {
        if queue.is_some() {
            let operation = "a queue group that starts in the past; a consumer can";
            return Err(Unsupported { operation, backend: BackendKind::InMemory }.into());
        }
        let covering = {
            let table = self.streams.streams.lock();
            let covers = |registered: &&Registered| registered.routes.iter().any(|(p, _)| p.covers(&pattern));
            table.values().find(covers).map(|registered| registered.handle.clone())
        };
        let stream = covering.ok_or_else(|| SubscribeError::NotStored(pattern.clone()))?;
        let cursor = stream.lock().log.resolve(start).map_err(|error| match error {
            StreamError::OffsetAhead { stream, offset, last } => {
                SubscribeError::OffsetAhead { stream, offset, last }
            }
            StreamError::ForeignOffset(offset) => SubscribeError::ForeignOffset(offset),
            _ => SubscribeError::NotStored(pattern.clone()),
        })?;
        Ok(Follower { stream, pattern, cursor, end: None })
    }

    fn stream(&self, name: &str) -> Result<StreamHandle, StreamError> {
        let table = self.streams.streams.lock();
        let found = table.get(name).map(|registered| registered.handle.clone());
        found.ok_or_else(|| StreamError::NoStream(name.to_owned()))
    }

    fn ensure_now(&self, mut config: StreamConfig) -> Result<StreamInfo, StreamError> {
        check_name(&config.name)?;
        if config.subjects.is_empty() {
            return Err(StreamError::NoSubjects(config.name));
        }
        config.max_bytes.get_or_insert(self.options().stream_bytes_max);
        let mut table = self.streams.streams.lock();
        for (other, registered) in table.iter().filter(|(name, _)| **name != config.name) {
            for (theirs, _) in &registered.routes {
                if let Some(mine) = config.subjects.iter().find(|mine| mine.overlaps(theirs)) {
                    return Err(StreamError::Overlap {
                        stream: config.name.clone(),
                        pattern: mine.clone(),
                        other: other.clone(),
                        other_pattern: theirs.clone(),
                    });
                }
            }
        }
        let registered = table.entry(config.name.clone()).or_insert_with(|| Registered {
            handle: StreamHandle(Arc::new(Stream {
                name: config.name.clone(),
                dedupe_window: self.options().dedupe_window,
                state: Mutex::new(State {
                    log: Log::new(config.clone()),
                    charge: Charge::new(self.memory(), Holding::Streams),
                    consumers: BTreeMap::new(),
                    next_member: 0,
                    waiting: Wakers::default(),
                    removed: false,
                }),
            })),
            routes: Vec::new(),
        });
        // New places before old ones go, so that no message of a subject that stays passes unstored.
        let target = || Target::Stream(registered.handle.clone());
        for pattern in minimal(&config.subjects) {
            if !registered.routes.iter().any(|(known, _)| *known == pattern) {
                let id = self.router().insert(&pattern, Role::Store, target());
                registered.routes.push((pattern, id));
            }
        }
        let keep = minimal(&config.subjects);
        registered.routes.retain(|(pattern, id)| {
            keep.contains(pattern) || {
                self.router().remove(pattern, *id);
                false
            }
        });
        registered.handle.change(|state| state.log.config = config);
        Ok(registered.handle.info())
    }
}

/// The patterns without those that others of them cover: a message is stored once, also where a stream's own patterns
/// overlap.
fn minimal(subjects: &[Pattern]) -> Vec<Pattern> {
    let mut minimal: Vec<Pattern> = Vec::new();
    for pattern in subjects {
        if !minimal.iter().any(|known| known.covers(pattern)) {
            minimal.retain(|known| !pattern.covers(known));
            minimal.push(pattern.clone());
        }
    }
    minimal
}

fn check_name(name: &str) -> Result<(), StreamError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    match !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(good) {
        true => Ok(()),
        false => Err(StreamError::BadName(name.to_owned())),
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> Fut<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Streams for Hub {
    fn ensure(&self, config: StreamConfig) -> Fut<'_, Result<StreamInfo, StreamError>> {
        ready(self.ensure_now(config))
    }

    fn list(&self) -> Fut<'_, Result<Vec<StreamInfo>, StreamError>> {
        let handles: Vec<_> = self.streams.streams.lock().values().map(|r| r.handle.clone()).collect();
        ready(Ok(handles.iter().map(StreamHandle::info).collect()))
    }

    fn remove(&self, stream: &str) -> Fut<'_, Result<bool, StreamError>> {
        let removed = self.streams.streams.lock().remove(stream);
        if let Some(registered) = &removed {
            for (pattern, id) in &registered.routes {
                self.router().remove(pattern, *id);
            }
            registered.handle.remove();
        }
        ready(Ok(removed.is_some()))
    }

    fn read(&self, stream: &str, request: ReadRequest) -> Fut<'_, Result<ReadPage, StreamError>> {
        ready(self.stream(stream).and_then(|stream| stream.lock().log.page(&request)))
    }

    fn delete(&self, stream: &str, offsets: Vec<StreamOffset>) -> Fut<'_, Result<u64, StreamError>> {
        let delete = |stream: StreamHandle| {
            let number = |offset: StreamOffset| offset.sequence().ok_or(StreamError::ForeignOffset(offset));
            let numbers = offsets.into_iter().map(number).collect::<Result<Vec<_>, _>>()?;
            Ok(stream.change(|state| {
                let removed = state.log.delete(numbers);
                state.note_deleted(&removed);
                removed.len() as u64
            }))
        };
        ready(self.stream(stream).and_then(delete))
    }

    fn join(&self, stream: &str, config: ConsumerConfig) -> Fut<'_, Result<Arc<dyn Member>, StreamError>> {
        let member = self.stream(stream).and_then(|stream| stream.join(config));
        ready(member.map(|member| Arc::new(member) as Arc<dyn Member>))
    }

    fn consumer_info(
        &self,
        stream: &str,
        consumer: &str,
    ) -> Fut<'_, Result<Option<ConsumerInfo>, StreamError>> {
        let info = |stream: StreamHandle| {
            let mut state = stream.lock();
            state.consumer(consumer).map(|(consumer, log)| consumer.info(log, Instant::now()))
        };
        ready(self.stream(stream).map(info))
    }

    fn remove_consumer(&self, stream: &str, consumer: &str) -> Fut<'_, Result<bool, StreamError>> {
        let remove = |stream: StreamHandle| stream.change(|state| state.consumers.remove(consumer).is_some());
        ready(self.stream(stream).map(remove))
    }
}

/// A live source on a stream: reads the log itself, so that it needs no buffer and loses nothing but what limits
/// remove before it gets there, which it reports.
pub(super) struct Follower {
    stream: StreamHandle,
    pattern: Pattern,
    cursor: u64,
    /// Set by `stop`: the last sequence that is still given out.
    end: Option<u64>,
}

impl LiveSource for Follower {
    fn poll_batch(&mut self, cx: &mut Context<'_>, max: usize, out: &mut Vec<LiveEvent>) -> Poll<usize> {
        let before = out.len();
        let mut state = self.stream.lock();
        let missed = state.log.first().saturating_sub(self.cursor);
        if missed > 0 {
            self.cursor = state.log.first();
            out.push(LiveEvent::Gap(Gap { missed: Some(missed) }));
        }
        while out.len() - before < max.max(1) {
            let Some((sequence, stored)) = state.log.next_match(self.cursor, Some(&self.pattern)) else {
                self.cursor = state.log.last() + 1;
                break;
            };
            if self.end.is_some_and(|end| sequence > end) {
                break;
            }
            self.cursor = sequence + 1;
            out.push(LiveEvent::Message { message: stored.message, offset: Some(stored.offset) });
        }
        if out.len() == before && self.end.is_none() && !state.removed {
            state.wait(cx);
            return Poll::Pending;
        }
        Poll::Ready(out.len() - before)
    }

    fn stop(&mut self) -> Fut<'_, Result<(), SubscribeError>> {
        let last = self.stream.lock().log.last();
        self.end.get_or_insert(last);
        ready(Ok(()))
    }
}
