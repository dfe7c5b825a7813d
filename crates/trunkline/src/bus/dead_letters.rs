//! Dead letters as operators meet them: listed, shown, sent back to work, thrown away.
//!
//! How a dead letter comes to be stands in [`consume`](super::consume). What is here works over any backend with streams.

use std::sync::Arc;
use std::time::SystemTime;

use trunkline_core::{HeaderError, Headers, Message, Pattern, StreamOffset, Subject};

use super::Bus;
use super::spans::{self, Operation};
use crate::backend::{
    PublishError, PublishOptions, ReadRequest, Receipt, Start, StoredMessage, StreamError, StreamInfo,
};
use crate::envelope::Envelope;

/// What every header of a dead letter's own begins with.
const HEADER_PREFIX: &str = "Trunkline-Dead-";

/// Why a dead letter was not sent back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedriveError {
    /// The stream it came from cannot be asked.
    #[error("the stream of the dead letter cannot be used")]
    Stream(#[from] StreamError),
    /// The stream that it came from does not store this subject, so its consumers would never see it.
    #[error("subject {subject} is not stored by stream {stream:?}, where the dead letter came from")]
    NotOfItsStream {
        /// Where it was to be sent.
        subject: Subject,
        /// Its stream.
        stream: String,
    },
    /// It could not be published.
    #[error("not published")]
    Publish(#[from] PublishError),
    /// A header of it cannot be sent again.
    #[error("a header of the dead letter cannot be sent again")]
    Header(#[from] HeaderError),
    /// It is back at work, and still among the dead letters. Sending it again within `messaging.dedupe_window` does no harm.
    #[error("sent back, but not removed from the dead letters")]
    NotRemoved(#[source] StreamError),
}

/// A message whose deliveries failed for good.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Where it stands in the stream of dead letters.
    pub offset: StreamOffset,
    /// When it was written.
    pub time: SystemTime,
    /// Why: `max_deliver`, `rejected` or `expired`.
    pub reason: String,
    /// Deliveries until then.
    pub attempts: u32,
    /// The stream it came from.
    pub stream: String,
    /// The consumer that could not handle it.
    pub consumer: String,
    /// Where it stood in its stream.
    pub original: Option<StreamOffset>,
    /// Where it had been published.
    pub subject: Subject,
    /// The dead letter as it is stored: body and headers of the original, and why it is dead.
    pub message: Arc<Message>,
}

impl DeadLetter {
    /// Reads a message of the stream of dead letters; `None` for one that was not written by the bus.
    pub fn read(stored: &StoredMessage) -> Option<Self> {
        let header = |name: &str| stored.message.headers.get(&format!("{HEADER_PREFIX}{name}"));
        Some(Self {
            offset: stored.offset,
            time: stored.time,
            reason: header("Reason")?.to_owned(),
            attempts: header("Attempts")?.parse().ok()?,
            stream: header("Stream")?.to_owned(),
            consumer: header("Consumer")?.to_owned(),
            original: header("Offset").and_then(|offset| offset.parse().ok()),
            subject: header("Subject")?.parse().ok()?,
            message: stored.message.clone(),
        })
    }

    /// The message as it goes back to work: the original, with its id, correlation and trace. A deadline that has passed
    /// is taken off, or it would be dead again at once.
    fn revived(&self, to: Subject) -> Result<Message, HeaderError> {
        let mut headers = Headers::new();
        for (name, value) in self.message.headers.iter() {
            let own = name.get(..HEADER_PREFIX.len()).is_some_and(|p| p.eq_ignore_ascii_case(HEADER_PREFIX));
            if !own && !name.eq_ignore_ascii_case("Nats-Msg-Id") {
                headers.append(name.to_owned(), value.to_owned())?;
            }
        }
        let mut payload = self.message.payload.clone();
        if let Some(mut envelope) = Envelope::from_bytes(&payload)
            && envelope.deadline.is_some_and(|deadline| deadline <= jiff::Timestamp::now())
        {
            envelope.deadline = None;
            payload = envelope.to_bytes();
        }
        Ok(Message { subject: to, reply: None, headers, payload })
    }

    /// Another id than the original's and the dead letter's, which the server has seen; the same for every try to redrive
    /// this dead letter, so that a try whose outcome is unknown can be repeated.
    fn redrive_id(&self) -> String {
        let original = self.original.map(|offset| offset.to_string()).unwrap_or_default();
        format!("rd:{}:{}:{original}:{}", self.stream, self.consumer, self.offset)
    }
}

/// Which dead letters.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    /// Only those of this stream.
    pub stream: Option<String>,
    /// Only those of consumers with this name.
    pub consumer: Option<String>,
}

/// A page of dead letters.
#[derive(Debug, Clone)]
pub struct DeadLetterPage {
    /// The dead letters, oldest first.
    pub letters: Vec<DeadLetter>,
    /// Where the next page starts.
    pub next: Start,
    /// Nothing more was there when the page was read.
    pub end: bool,
}

/// The dead letters of a bus.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    bus: Bus,
}

impl Bus {
    /// The dead letters of all streams and consumers.
    ///
    /// # Errors
    /// A backend without streams.
    pub fn dead_letters(&self) -> Result<DeadLetters, StreamError> {
        self.inner().backend.streams()?;
        Ok(DeadLetters { bus: self.clone() })
    }
}

impl DeadLetters {
    /// The stream that keeps them: the operator's own that covers their subjects, else the built-in one; `None` before the
    /// first consumer has run.
    ///
    /// # Errors
    /// No connection.
    pub async fn stream(&self) -> Result<Option<StreamInfo>, StreamError> {
        let pattern = self.bus.topics().dead_letters();
        let streams = self.bus.streams().await?;
        let keeps = |stream: &&StreamInfo| stream.config.subjects.iter().any(|s| s.overlaps(&pattern));
        let covers = |stream: &&StreamInfo| stream.config.subjects.iter().any(|s| s.covers(&pattern));
        Ok(streams.iter().find(covers).or_else(|| streams.iter().find(keeps)).cloned())
    }

    /// One page, oldest first, of at most `max` dead letters.
    ///
    /// # Errors
    /// Names that are none, an offset of another backend, no connection.
    pub async fn page(
        &self,
        filter: &DeadLetterFilter,
        from: Start,
        max: usize,
    ) -> Result<DeadLetterPage, StreamError> {
        let Some(stream) = self.stream().await? else {
            return Ok(DeadLetterPage { letters: Vec::new(), next: from, end: true });
        };
        let request = ReadRequest { from, filter: Some(self.pattern(filter)?), max: max.max(1) };
        let page = self.bus.stream(&stream.config.name)?.read(request).await?;
        let letters = page.messages.iter().filter_map(DeadLetter::read).collect();
        Ok(DeadLetterPage { letters, next: page.next, end: page.end })
    }

    /// The dead letter at `offset`, if there is one.
    ///
    /// # Errors
    /// An offset of another backend, no connection.
    pub async fn get(&self, offset: StreamOffset) -> Result<Option<DeadLetter>, StreamError> {
        let page = match self.page(&DeadLetterFilter::default(), before(offset), 1).await {
            // Past the newest one there is nothing to be found.
            Err(StreamError::OffsetAhead { .. }) => return Ok(None),
            page => page?,
        };
        Ok(page.letters.into_iter().next().filter(|letter| letter.offset == offset))
    }

    /// Sends a dead letter back to its stream, where its subject's consumers find it as a new message, and removes it here
    /// once it is stored there. It goes to the subject it was published on, or to `to`, which its stream must store.
    ///
    /// It keeps id, correlation, trace and headers, and gets a deduplication id of its own.
    ///
    /// # Errors
    /// See [`RedriveError`]; but for [`RedriveError::NotRemoved`] it stays where it is.
    pub async fn redrive(&self, letter: &DeadLetter, to: Option<Subject>) -> Result<Receipt, RedriveError> {
        let subject = to.unwrap_or_else(|| letter.subject.clone());
        let stream = self.bus.stream(&letter.stream)?.info().await?;
        let foreign =
            || RedriveError::NotOfItsStream { subject: subject.clone(), stream: letter.stream.clone() };
        if !stream.config.subjects.iter().any(|pattern| pattern.matches(&subject)) {
            return Err(foreign());
        }
        let message = letter.revived(subject.clone())?;
        let options = PublishOptions { dedupe_id: Some(letter.redrive_id()), ..PublishOptions::default() };
        // Past the outbox: only what is stored is taken from the dead letters.
        let inner = self.bus.inner();
        let redriving = spans::publishing(inner, Operation::Redrive, message, |message| {
            inner.publish_past_outbox(message, options)
        });
        let receipt = redriving.outcome().await?;
        match &receipt {
            Receipt::Stored { stream, .. } if *stream == letter.stream => {}
            // The stream was removed or changed in this moment.
            _ => return Err(foreign()),
        }
        self.delete(vec![letter.offset]).await.map_err(RedriveError::NotRemoved)?;
        Ok(receipt)
    }

    /// Throws dead letters away, and returns how many there were.
    ///
    /// # Errors
    /// An offset of another backend, no connection, or a backend that cannot remove single messages.
    pub async fn delete(&self, offsets: Vec<StreamOffset>) -> Result<u64, StreamError> {
        let Some(stream) = self.stream().await? else { return Ok(0) };
        self.bus.inner().backend.streams()?.delete(&stream.config.name, offsets).await
    }

    fn pattern(&self, filter: &DeadLetterFilter) -> Result<Pattern, StreamError> {
        let token = |name: &Option<String>| match name {
            None => Ok("*".to_owned()),
            Some(name) => self.bus.stream(name).map(|checked| checked.name().to_owned()),
        };
        let (stream, consumer) = (token(&filter.stream)?, token(&filter.consumer)?);
        let pattern = self.bus.topics().pattern(&format!("dead.{stream}.{consumer}"));
        // Names of streams and consumers are tokens, so this cannot fail but by the length.
        pattern.map_err(|_| StreamError::BadName(format!("{stream}.{consumer}")))
    }
}

/// The start whose first message is the one at `offset`.
fn before(offset: StreamOffset) -> Start {
    match offset {
        StreamOffset::Sequence(0) | StreamOffset::Entry(0, 0) => Start::Beginning,
        StreamOffset::Sequence(n) => Start::After(StreamOffset::Sequence(n - 1)),
        StreamOffset::Entry(ms, 0) => Start::After(StreamOffset::Entry(ms - 1, u64::MAX)),
        StreamOffset::Entry(ms, seq) => Start::After(StreamOffset::Entry(ms, seq - 1)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Delivered, HandlerError};

    /// A bus with one message of stream `work` among the dead letters.
    async fn with_dead_letter(body: &str) -> (Bus, DeadLetters) {
        let bus = Bus::in_memory();
        let stream = bus.stream("work").unwrap();
        stream.ensure(vec!["work.>".parse().unwrap()]).await.unwrap();
        let mut message = Message::new("work.a".parse().unwrap(), body.to_owned());
        message.headers.append("X-One", "1").unwrap();
        message.headers.append("Nats-Msg-Id", "original").unwrap();
        bus.publish_message(message).await.unwrap();
        // An expired message never reaches the handler, so it is the dead letter itself that is waited for.
        let mut written = bus.subscribe(bus.topics().dead_letters()).await.unwrap();
        let reject = async |_: Delivered| Err(HandlerError::reject("never"));
        let consumer = stream.consumer("c").unwrap().start(Start::Beginning).spawn(reject).await.unwrap();
        written.next().await.unwrap();
        consumer.drain(Duration::from_secs(5)).await.unwrap();
        let dead = bus.dead_letters().unwrap();
        (bus, dead)
    }

    async fn all(dead: &DeadLetters, filter: DeadLetterFilter) -> Vec<DeadLetter> {
        dead.page(&filter, Start::Beginning, 100).await.unwrap().letters
    }

    #[tokio::test]
    async fn a_dead_letter_tells_where_it_came_from_and_is_found_by_it() {
        let (_bus, dead) = with_dead_letter("body").await;
        let letters = all(&dead, DeadLetterFilter::default()).await;
        assert_eq!(letters.len(), 1);
        let letter = &letters[0];
        assert_eq!((letter.reason.as_str(), letter.attempts), ("rejected", 1));
        assert_eq!((letter.stream.as_str(), letter.consumer.as_str()), ("work", "c"));
        assert_eq!((letter.subject.as_str(), letter.original), ("work.a", Some(StreamOffset::Sequence(1))));
        assert!(dead.get(letter.offset).await.unwrap().is_some());
        assert!(dead.get(StreamOffset::Sequence(99)).await.unwrap().is_none());
        for (stream, consumer, found) in
            [(Some("work"), None, 1), (None, Some("c"), 1), (Some("else"), None, 0), (None, Some("d"), 0)]
        {
            let name = |name: Option<&str>| name.map(str::to_owned);
            let filter = DeadLetterFilter { stream: name(stream), consumer: name(consumer) };
            assert_eq!(all(&dead, filter).await.len(), found, "{stream:?} {consumer:?}");
        }
        let bad = DeadLetterFilter { stream: Some(">".to_owned()), consumer: None };
        assert!(matches!(dead.page(&bad, Start::Beginning, 1).await, Err(StreamError::BadName(_))));
    }

    #[tokio::test]
    async fn a_redrive_is_a_new_message_with_the_old_trace() {
        let body =
            r#"{"id":"1","type":"t","correlationId":"k","payload":1,"deadline":"2020-01-01T00:00:00.000Z"}"#;
        let (bus, dead) = with_dead_letter(body).await;
        let letter = all(&dead, DeadLetterFilter::default()).await.remove(0);
        let elsewhere = dead.redrive(&letter, Some("other.b".parse().unwrap())).await;
        assert!(matches!(elsewhere, Err(RedriveError::NotOfItsStream { .. })), "{elsewhere:?}");
        let receipt = dead.redrive(&letter, Some("work.b".parse().unwrap())).await.unwrap();
        let Receipt::Stored { stream, offset, duplicate: false } = receipt else { panic!("{receipt:?}") };
        assert_eq!((stream.as_str(), offset), ("work", StreamOffset::Sequence(2)));
        let request = ReadRequest { from: before(offset), filter: None, max: 1 };
        let page = bus.stream("work").unwrap().read(request).await.unwrap();
        let message = &page.messages[0].message;
        assert_eq!(message.headers.iter().collect::<Vec<_>>(), [("X-One", "1")]);
        let envelope = Envelope::from_bytes(&message.payload).unwrap();
        assert_eq!((envelope.id.as_str(), envelope.correlation_id.as_deref()), ("1", Some("k")));
        assert_eq!(envelope.deadline, None, "it would be dead again at once");
        assert!(all(&dead, DeadLetterFilter::default()).await.is_empty());
        // A try whose outcome was unknown may be repeated.
        let again = dead.redrive(&letter, Some("work.b".parse().unwrap())).await.unwrap();
        assert!(matches!(again, Receipt::Stored { duplicate: true, .. }), "{again:?}");
    }

    #[tokio::test]
    async fn a_redrive_without_its_stream_leaves_the_dead_letter() {
        let (bus, dead) = with_dead_letter("body").await;
        let letter = all(&dead, DeadLetterFilter::default()).await.remove(0);
        bus.stream("work").unwrap().remove().await.unwrap();
        let lost = dead.redrive(&letter, None).await;
        assert!(matches!(lost, Err(RedriveError::Stream(StreamError::NoStream(_)))), "{lost:?}");
        assert_eq!(all(&dead, DeadLetterFilter::default()).await.len(), 1);
        assert_eq!(dead.delete(vec![letter.offset, letter.offset]).await.unwrap(), 1);
        assert!(all(&dead, DeadLetterFilter::default()).await.is_empty());
    }

    #[tokio::test]
    async fn two_roots_on_one_hub_have_a_stream_each() {
        let hub = std::sync::Arc::new(crate::backend::memory::Hub::new(Default::default()));
        for root in ["one", "two"] {
            let options = crate::BusOptions { subject_root: root.parse().unwrap(), ..Default::default() };
            let bus = Bus::on_hub(&hub, options);
            let stream = bus.stream(root).unwrap();
            stream.ensure(vec![format!("{root}.work").parse().unwrap()]).await.unwrap();
            let handler = async |_: Delivered| Ok::<_, HandlerError>(());
            let consumer = stream.consumer("c").unwrap().spawn(handler).await.unwrap();
            let dead = bus.dead_letters().unwrap().stream().await.unwrap().unwrap();
            assert_eq!(dead.config.name, format!("dead-{root}"));
            consumer.drain(Duration::from_secs(5)).await.unwrap();
        }
    }
}
