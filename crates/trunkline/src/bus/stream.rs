//! Streams: stored messages, read without a consumer or with one.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use futures_util::stream::unfold;
use trunkline_core::Pattern;

use super::Bus;
use super::consume::ConsumerBuilder;
use super::received::Received;
use crate::backend::{
    ConsumerInfo, Gap, ReadPage, ReadRequest, Start, StoredMessage, StreamConfig, StreamError, StreamInfo,
    Streams,
};

/// Messages of one page of a replay.
const PAGE: usize = 256;
/// First and longest pause of a replay that follows, while nothing new is stored.
const POLL: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));

/// Longest name of a stream or consumer, in bytes.
const NAME_BYTES_MAX: usize = 64;

fn check_name(name: &str) -> Result<(), StreamError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(good) {
        true => Ok(()),
        false => Err(StreamError::BadName(name.to_owned())),
    }
}

impl Bus {
    /// A stream by name; it need not exist yet.
    ///
    /// # Errors
    /// A bad name, or a backend without streams.
    pub fn stream(&self, name: &str) -> Result<StreamHandle, StreamError> {
        check_name(name)?;
        self.streams_backend()?;
        Ok(StreamHandle { bus: self.clone(), name: name.to_owned() })
    }

    /// All streams, by name.
    ///
    /// # Errors
    /// No connection, or a backend without streams.
    pub async fn streams(&self) -> Result<Vec<StreamInfo>, StreamError> {
        self.streams_backend()?.list().await
    }

    /// Creates a stream or updates its limits. Idempotent.
    ///
    /// # Errors
    /// Bad names, patterns that overlap another stream, a conflict, no connection, or a backend without streams.
    pub async fn ensure_stream(&self, config: StreamConfig) -> Result<StreamInfo, StreamError> {
        check_name(&config.name)?;
        self.streams_backend()?.ensure(config).await
    }

    fn streams_backend(&self) -> Result<&dyn Streams, StreamError> {
        Ok(self.inner().backend.streams()?)
    }
}

/// A stream of the bus, by name. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StreamHandle {
    bus: Bus,
    name: String,
}

impl StreamHandle {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Creates it to store what matches `subjects`, or leaves it as it is. For limits, see [`Bus::ensure_stream`].
    ///
    /// # Errors
    /// As [`Bus::ensure_stream`].
    pub async fn ensure(&self, subjects: Vec<Pattern>) -> Result<StreamInfo, StreamError> {
        self.bus.ensure_stream(StreamConfig::new(self.name.clone(), subjects)).await
    }

    /// How it stands.
    ///
    /// # Errors
    /// No such stream, or no connection.
    pub async fn info(&self) -> Result<StreamInfo, StreamError> {
        let streams = self.bus.streams().await?;
        let found = streams.into_iter().find(|stream| stream.config.name == self.name);
        found.ok_or_else(|| StreamError::NoStream(self.name.clone()))
    }

    /// Removes it with its messages and consumers; `false` when there is none.
    ///
    /// # Errors
    /// No connection.
    pub async fn remove(&self) -> Result<bool, StreamError> {
        self.bus.streams_backend()?.remove(&self.name).await
    }

    /// Reads one page.
    ///
    /// # Errors
    /// No such stream, an offset of another backend, no connection.
    pub async fn read(&self, request: ReadRequest) -> Result<ReadPage, StreamError> {
        self.bus.streams_backend()?.read(&self.name, request).await
    }

    /// Reads everything from `from` to the end, or further.
    pub fn replay(&self, from: Start) -> ReplayBuilder {
        ReplayBuilder { stream: self.clone(), from, filter: None, follow: false }
    }

    /// A durable consumer of this stream, made when it first runs.
    ///
    /// # Errors
    /// A bad name.
    pub fn consumer(&self, name: &str) -> Result<ConsumerBuilder, StreamError> {
        check_name(name)?;
        Ok(ConsumerBuilder::new(self.bus.clone(), self.name.clone(), name.to_owned()))
    }

    /// How a consumer stands; `None` when there is none.
    ///
    /// # Errors
    /// No such stream, or no connection.
    pub async fn consumer_info(&self, consumer: &str) -> Result<Option<ConsumerInfo>, StreamError> {
        self.bus.streams_backend()?.consumer_info(&self.name, consumer).await
    }

    /// Removes a consumer and all it remembers; `false` when there is none.
    ///
    /// # Errors
    /// No such stream, or no connection.
    pub async fn remove_consumer(&self, consumer: &str) -> Result<bool, StreamError> {
        self.bus.streams_backend()?.remove_consumer(&self.name, consumer).await
    }
}

/// What a replay yields, in order.
#[derive(Debug, Clone)]
pub enum Replayed {
    /// A stored message.
    Message {
        /// The message; it has an offset.
        received: Received,
        /// When it was stored.
        time: SystemTime,
    },
    /// Here limits had already removed messages.
    Gap(Gap),
}

/// A replay in the making.
#[derive(Debug, Clone)]
#[must_use = "nothing is read until it is opened"]
pub struct ReplayBuilder {
    stream: StreamHandle,
    from: Start,
    filter: Option<Pattern>,
    follow: bool,
}

/// The messages of a replay. An error that is retryable does not end it: what comes next is read where it stood.
pub type Replay = Pin<Box<dyn Stream<Item = Result<Replayed, StreamError>> + Send>>;

impl ReplayBuilder {
    /// Reads only messages whose subject matches.
    pub fn filter(mut self, pattern: Pattern) -> Self {
        self.filter = Some(pattern);
        self
    }

    /// Goes on at the end with what is stored then, until the bus drains.
    pub fn follow(mut self) -> Self {
        self.follow = true;
        self
    }

    /// Opens it. Nothing is read before it is polled.
    pub fn open(self) -> Replay {
        let reading = Reading {
            builder: self,
            page: Vec::new().into_iter(),
            pause: POLL.0,
            at_end: false,
            failed: false,
        };
        Box::pin(unfold(reading, |mut reading| async move {
            let item = reading.next().await?;
            Some((item, reading))
        }))
    }
}

/// Where a replay stands.
struct Reading {
    builder: ReplayBuilder,
    page: std::vec::IntoIter<StoredMessage>,
    /// How long to wait at the end before the next look.
    pause: Duration,
    /// The page in hand reaches to the end.
    at_end: bool,
    /// The last read failed.
    failed: bool,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<Replayed, StreamError>> {
        loop {
            if let Some(stored) = self.page.next() {
                let received = Received::new(stored.message, Some(stored.offset));
                return Some(Ok(Replayed::Message { received, time: stored.time }));
            }
            if self.at_end && !self.builder.follow {
                return None;
            }
            if self.at_end || self.failed {
                let draining = &self.builder.stream.bus.inner().draining;
                draining.run_until_cancelled(tokio::time::sleep(self.pause)).await?;
                self.pause = (self.pause * 2).min(POLL.1);
            }
            let request =
                ReadRequest { from: self.builder.from, filter: self.builder.filter.clone(), max: PAGE };
            let page = match self.builder.stream.read(request).await {
                Ok(page) => page,
                Err(error) => {
                    self.failed = true;
                    // An error that will not go away ends the replay after it was reported.
                    self.at_end = !error.is_retryable();
                    self.builder.follow &= error.is_retryable();
                    return Some(Err(error));
                }
            };
            self.failed = false;
            self.at_end = page.end;
            self.builder.from = page.next;
            if !page.messages.is_empty() {
                self.pause = POLL.0;
            }
            self.page = page.messages.into_iter();
            if page.missed > 0 {
                self.builder.stream.bus.telemetry().missed.inc_by(page.missed);
                return Some(Ok(Replayed::Gap(Gap { missed: Some(page.missed) })));
            }
        }
    }
}
