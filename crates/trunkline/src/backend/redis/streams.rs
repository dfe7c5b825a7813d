//! Streams: entering, listing, removing and reading them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use trunkline_core::StreamOffset;

use super::deleted::Deleted;
use super::entry::{EntryId, array, entries, entry_id, list, number, parse_id, print_id, text};
use super::link::Failure;
use super::member::{self, RedisMember};
use super::routes::{Home, millis};
use super::scripts::STREAM;
use super::shared::{STALE_RETRIES, Shared, is_stale};
use crate::backend::{
    ConsumerConfig, ConsumerInfo, Fut, Member, ReadPage, ReadRequest, Start, StreamConfig, StreamError,
    StreamInfo, Streams,
};

/// Longest name of a stream or consumer, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Entries asked for at a time while a page is filled.
const READ_ENTRIES: usize = 256;

/// The streams of one server.
pub(super) struct RedisStreams(pub(super) Arc<Shared>);

impl Shared {
    fn refuse_when_closed(&self) -> Result<(), StreamError> {
        match self.link.refusing.load(Ordering::SeqCst) {
            true => Err(StreamError::Closed),
            false => Ok(()),
        }
    }

    /// A stream by name, asking the server where the copy of the routes does not know it.
    async fn find(&self, name: &str) -> Result<Arc<Home>, StreamError> {
        self.refuse_when_closed()?;
        let routes = self.refresh().await.map_err(|failure| self.link.stream_error(failure))?;
        routes.stream(name).ok_or_else(|| StreamError::NoStream(name.to_owned()))
    }

    async fn stream_info(&self, home: &Home, config: StreamConfig) -> Result<StreamInfo, Failure> {
        let limits = home.limits;
        let keys = self.keys_of(home, &["consumers"], &[], "");
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let asking = self.link.run_script(&STREAM, &keys, |command| {
            command
                .arg(limits.max_messages.unwrap_or(0))
                .arg(limits.max_age.map_or(0, millis))
                .arg(limits.max_bytes.unwrap_or(0));
        });
        let [messages, bytes, first, last, consumers] = array::<5>(asking.await?)?;
        let mut consumers = list(consumers)?.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        consumers.sort_unstable();
        let last = entry_id(&last)?;
        Ok(StreamInfo {
            config,
            messages: number(&messages)?,
            bytes: number(&bytes)?,
            first: parse_id(&text(&first)?).map(offset),
            last: (last != (0, 0)).then(|| offset(last)),
            consumers,
        })
    }

    async fn ensure_stream(&self, config: StreamConfig) -> Result<StreamInfo, StreamError> {
        self.refuse_when_closed()?;
        check_name(&config.name)?;
        if config.subjects.is_empty() {
            return Err(StreamError::NoSubjects(config.name));
        }
        let home = self.enter(&config).await?;
        self.ensured.lock().insert(config.name.clone(), config.clone());
        self.stream_info(&home, config).await.map_err(|failure| self.link.stream_error(failure))
    }

    async fn list_streams(&self) -> Result<Vec<StreamInfo>, StreamError> {
        self.refuse_when_closed()?;
        let failed = |failure| self.link.stream_error(failure);
        let routes = self.refresh().await.map_err(failed)?;
        let mut infos = Vec::new();
        for home in routes.streams.values() {
            if let Some(config) = &home.config {
                infos.push(self.stream_info(home, config.clone()).await.map_err(failed)?);
            }
        }
        Ok(infos)
    }

    async fn remove_stream(&self, name: &str) -> Result<bool, StreamError> {
        self.refuse_when_closed()?;
        let failed = |failure| self.link.stream_error(failure);
        self.ensured.lock().remove(name);
        let mut last = Failure::Unexpected("the streams keep changing".to_owned());
        for _ in 0..STALE_RETRIES {
            let routes = self.refresh().await.map_err(failed)?;
            if !routes.streams.contains_key(name) {
                // What it kept may still be there, if whoever removed it has not come to an end. Names that no stream
                // can have are those of built-in ones, among others.
                let config = StreamConfig::new(name, Vec::new());
                if check_name(name).is_ok()
                    && let Some(home) = routes.after(name, Some(config)).stream(name)
                {
                    self.drop_stream(&home, routes.version).await.map_err(failed)?;
                }
                return Ok(false);
            }
            match self.change_routes(&routes, name, None).await {
                Ok(()) => return Ok(true),
                Err(failure) if is_stale(&failure) => last = failure,
                Err(failure) => return Err(failed(failure)),
            }
        }
        Err(failed(last))
    }

    async fn read_page(&self, name: &str, request: ReadRequest) -> Result<ReadPage, StreamError> {
        let home = self.find(name).await?;
        let failed = |failure| self.link.stream_error(failure);
        // Limits by age hold for readers, too, not only when somebody publishes.
        let config = StreamConfig::new(name, Vec::new());
        let info = self.stream_info(&home, config).await.map_err(failed)?;
        let last = match info.last {
            Some(StreamOffset::Entry(ms, seq)) => (ms, seq),
            _ => (0, 0),
        };
        let mut page = ReadPage { messages: Vec::new(), next: request.from, end: false, missed: 0 };
        let mut after = match start_after(request.from)? {
            StartAfter::New => {
                page.next = Start::After(offset(last));
                page.end = true;
                return Ok(page);
            }
            StartAfter::Id { id, saved: true } if id > last => {
                return Err(StreamError::OffsetAhead {
                    stream: name.to_owned(),
                    offset: offset(id),
                    last: offset(last),
                });
            }
            StartAfter::Id { id, .. } => id,
        };
        let max = request.max.max(1);
        // The running numbers tell how many messages are missing between the one asked for and the first one kept.
        let mut expected = match request.from {
            Start::After(_) => self.index_of(&home, after).await.map_err(failed)?.map(|index| index + 1),
            _ => None,
        };
        loop {
            let want = READ_ENTRIES.min(if request.filter.is_none() {
                max - page.messages.len()
            } else {
                READ_ENTRIES
            });
            let mut command = redis::cmd("XRANGE");
            command.arg(&home.key).arg(print_id(next_id(after))).arg("+").arg("COUNT").arg(want);
            let found = self.link.query(&home.key, &command).await.and_then(entries).map_err(failed)?;
            let count = found.len();
            for entry in found {
                if let (Some(expected), Some(index)) = (expected.take(), entry.index) {
                    page.missed = index.saturating_sub(expected);
                    if page.missed > 0 {
                        let deleted = Deleted::from(&self.link, &home, expected).await.map_err(failed)?;
                        page.missed -= deleted.between(expected.saturating_sub(1), index).min(page.missed);
                    }
                }
                after = entry.id;
                page.next = Start::After(entry.offset());
                if let Some(stored) = entry.stored()
                    && request.filter.as_ref().is_none_or(|filter| filter.matches(&stored.message.subject))
                {
                    page.messages.push(stored);
                    if page.messages.len() == max {
                        page.end = after >= last;
                        return Ok(page);
                    }
                }
            }
            if count < want {
                page.end = true;
                return Ok(page);
            }
        }
    }

    /// Running number of a message that is still kept.
    pub(super) async fn index_of(&self, home: &Home, id: EntryId) -> Result<Option<u64>, Failure> {
        let id = print_id(id);
        let answer =
            self.link.query(&home.key, redis::cmd("XRANGE").arg(&home.key).arg(&id).arg(&id)).await?;
        Ok(entries(answer)?.first().and_then(|entry| entry.index))
    }
}

/// Where a reader starts, in terms of Redis.
pub(super) enum StartAfter {
    /// With what is stored from now on.
    New,
    /// With the first entry after this id.
    Id {
        id: EntryId,
        /// It is an offset that somebody saved, so it cannot lie ahead of the stream.
        saved: bool,
    },
}

pub(super) fn start_after(start: Start) -> Result<StartAfter, StreamError> {
    Ok(match start {
        Start::New => StartAfter::New,
        Start::Beginning => StartAfter::Id { id: (0, 0), saved: false },
        Start::After(StreamOffset::Entry(ms, seq)) => StartAfter::Id { id: (ms, seq), saved: true },
        Start::After(foreign) => return Err(StreamError::ForeignOffset(foreign)),
        Start::At(time) => StartAfter::Id { id: before(time), saved: false },
    })
}

/// The last id that no message of this time or later can have.
fn before(time: SystemTime) -> EntryId {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let whole = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    // Entries know their time in whole milliseconds: one stored within the millisecond asked for may be earlier.
    let ms = if u128::from(whole) * 1_000_000 < since.as_nanos() { whole + 1 } else { whole };
    ms.checked_sub(1).map_or((0, 0), |ms| (ms, u64::MAX))
}

fn next_id(id: EntryId) -> EntryId {
    match id.1.checked_add(1) {
        Some(seq) => (id.0, seq),
        None => (id.0.saturating_add(1), 0),
    }
}

fn offset(id: EntryId) -> StreamOffset {
    StreamOffset::Entry(id.0, id.1)
}

pub(super) fn check_name(name: &str) -> Result<(), StreamError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    match !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(good) {
        true => Ok(()),
        false => Err(StreamError::BadName(name.to_owned())),
    }
}

impl Streams for RedisStreams {
    fn ensure(&self, config: StreamConfig) -> Fut<'_, Result<StreamInfo, StreamError>> {
        Box::pin(self.0.ensure_stream(config))
    }

    fn list(&self) -> Fut<'_, Result<Vec<StreamInfo>, StreamError>> {
        Box::pin(self.0.list_streams())
    }

    fn remove(&self, stream: &str) -> Fut<'_, Result<bool, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.0.remove_stream(&stream).await })
    }

    fn read(&self, stream: &str, request: ReadRequest) -> Fut<'_, Result<ReadPage, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.0.read_page(&stream, request).await })
    }

    fn delete(&self, stream: &str, offsets: Vec<StreamOffset>) -> Fut<'_, Result<u64, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move {
            let home = self.0.find(&stream).await?;
            self.0.delete(&home, &offsets).await
        })
    }

    fn join(&self, stream: &str, config: ConsumerConfig) -> Fut<'_, Result<Arc<dyn Member>, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move {
            check_name(&config.name)?;
            let home = self.0.find(&stream).await?;
            let member = RedisMember::join(&self.0, home, config).await?;
            Ok(Arc::new(member) as Arc<dyn Member>)
        })
    }

    fn consumer_info(
        &self,
        stream: &str,
        consumer: &str,
    ) -> Fut<'_, Result<Option<ConsumerInfo>, StreamError>> {
        let (stream, consumer) = (stream.to_owned(), consumer.to_owned());
        Box::pin(async move {
            let home = self.0.find(&stream).await?;
            member::info(&self.0, &home, &consumer).await.map_err(|failure| self.0.link.stream_error(failure))
        })
    }

    fn remove_consumer(&self, stream: &str, consumer: &str) -> Fut<'_, Result<bool, StreamError>> {
        let (stream, consumer) = (stream.to_owned(), consumer.to_owned());
        Box::pin(async move {
            let home = self.0.find(&stream).await?;
            member::remove(&self.0, &home, &consumer)
                .await
                .map_err(|failure| self.0.link.stream_error(failure))
        })
    }
}
