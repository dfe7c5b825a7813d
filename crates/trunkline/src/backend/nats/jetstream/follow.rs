//! Live subscriptions that start in the stored past: a task reads the stream and goes on with what is stored.
//!
//! It reads through a consumer of its own that remembers nothing, and knows by itself how far it has come: whenever
//! anything is unclear — the connection broke, a server ended the consumer, a delivery is missing — it makes another one
//! from there. It asks for no more than its inbox takes, so nothing is lost to a slow reader but what limits remove.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{StatusCode, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use trunkline_core::{Pattern, StreamOffset};

use super::JetStream;
use super::ack_subject::AckSubject;
use super::api::{Failure, codes};
use super::consumers::State;
use super::names::{StartAt, nanos, print_time, start_at};
use super::streams::{Found, named, names_of};
use crate::backend::inbox::Inbox;
use crate::backend::live::{Gap, LiveEvent, LiveSource};
use crate::backend::nats::message::Decoder;
use crate::backend::nats::unsupported;
use crate::backend::{Fut, Start, StreamError, SubscribeError, SubscribeOptions};

/// Most messages asked for at a time.
const BATCH_MESSAGES: usize = 512;
/// Where memory is bounded, most bytes asked for at a time are such a part of it, or one message.
const BATCH_PART: usize = 16;
/// Room for what is set on a message beside its payload and headers.
const MESSAGE_ROOM: usize = 64 << 10;
/// What the server says when the next message would be beyond those bytes.
const ENOUGH_BYTES: &str = "Message Size Exceeds MaxBytes";
/// Longest wait of one request.
const PULL_TIME: Duration = Duration::from_secs(5);
/// How much longer than it may wait an answer may take.
const PULL_GRACE: Duration = Duration::from_secs(1);
/// The server removes a consumer that nobody has used for so long.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Delay before what failed is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// The reader's end.
pub(super) struct Follower {
    inbox: Arc<Inbox>,
    ending: CancellationToken,
    /// Reads the stream; ends when this is dropped.
    _task: AbortOnDropHandle<()>,
}

impl LiveSource for Follower {
    fn poll_batch(&mut self, cx: &mut Context<'_>, max: usize, out: &mut Vec<LiveEvent>) -> Poll<usize> {
        self.inbox.poll_take(cx, max, out)
    }

    fn stop(&mut self) -> Fut<'_, Result<(), SubscribeError>> {
        // What is stored by now must first find room, which only the reader can make: it is not waited for.
        self.ending.cancel();
        Box::pin(std::future::ready(Ok(())))
    }
}

/// What the task works with.
struct Reading {
    jetstream: Arc<JetStream>,
    /// The stream's name on the server.
    on_server: String,
    pattern: Pattern,
    /// Everything that the stream keeps matches.
    whole: bool,
    /// When the stream was made: another one of its name is another stream.
    created: String,
    /// The next message that was not given out has this number, or a higher one.
    next: u64,
    batch_messages: usize,
    inbox: Arc<Inbox>,
    ending: CancellationToken,
    /// What to read through first: made before the subscription is, so that its refusal is known.
    first: Option<Consumer>,
}

/// The consumer that a task reads through.
struct Consumer {
    name: String,
    /// Number of its last delivery.
    delivered: u64,
}

/// Why reading through a consumer has ended.
enum Broken {
    /// Another one goes on from here.
    Again,
    /// There is nothing more to read: the stream is gone, or the subscription stopped and everything was given out.
    Over,
}

impl JetStream {
    /// Subscribes to the stream that stores everything which can match, from a place on.
    pub(super) async fn follow(
        self: &Arc<Self>,
        pattern: Pattern,
        start: Start,
        options: SubscribeOptions,
        max_pending: usize,
    ) -> Result<Follower, SubscribeError> {
        if options.queue.is_some() {
            return Err(unsupported("a queue group that starts in the past; a consumer can").into());
        }
        let failed = |failure| self.subscribe_error(&pattern, failure);
        let covers = |found: &Found| found.patterns.iter().any(|stored| stored.covers(&pattern));
        let mut found = None;
        for name in names_of(&self.api, pattern.as_str()).await.map_err(failed)? {
            found = named(&self.api, &name).await.map_err(failed)?.filter(covers);
            if found.is_some() {
                break;
            }
        }
        let found = found.ok_or_else(|| SubscribeError::NotStored(pattern.clone()))?;
        let stream = self.names.shown(&found.name).to_owned();
        let at = start_at(&stream, start, found.state.last_seq).map_err(|error| match error {
            StreamError::OffsetAhead { stream, offset, last } => {
                SubscribeError::OffsetAhead { stream, offset, last }
            }
            StreamError::ForeignOffset(offset) => SubscribeError::ForeignOffset(offset),
            _ => SubscribeError::NotStored(pattern.clone()),
        })?;
        let max_pending = options.max_pending.unwrap_or(max_pending).max(1);
        let mut reading = Reading {
            jetstream: self.clone(),
            on_server: found.name,
            created: found.created,
            whole: found.patterns.iter().all(|stored| pattern.covers(stored)),
            pattern: pattern.clone(),
            next: match at {
                StartAt::Sequence(n) => n,
                StartAt::New | StartAt::Time(_) => found.state.last_seq + 1,
            },
            batch_messages: BATCH_MESSAGES.min(max_pending.div_ceil(2)),
            inbox: Arc::new(Inbox::for_asked(max_pending, &self.memory)),
            ending: CancellationToken::new(),
            first: None,
        };
        let first = match at {
            StartAt::Time(_) => {
                let (first, state) = reading.make_consumer(at).await.map_err(failed)?;
                reading.next = state.delivered.stream_seq + 1;
                first
            }
            StartAt::Sequence(_) | StartAt::New => reading.go_on().await.map_err(failed)?,
        };
        reading.first = Some(first);
        let (inbox, ending) = (reading.inbox.clone(), reading.ending.clone());
        let end = End(inbox.clone());
        let stop = self.stop.clone();
        let task = self.runtime.spawn(async move {
            let _end = end;
            tokio::select! {
                () = stop.cancelled() => {}
                () = reading.run() => {}
            }
        });
        Ok(Follower { inbox, ending, _task: AbortOnDropHandle::new(task) })
    }

    fn subscribe_error(&self, pattern: &Pattern, failure: Failure) -> SubscribeError {
        match failure {
            Failure::Closed => SubscribeError::Closed,
            failure if failure.is(&[codes::STREAM_NOT_FOUND]) => SubscribeError::NotStored(pattern.clone()),
            failure @ Failure::Denied { .. } => {
                SubscribeError::Denied { pattern: pattern.clone(), reason: failure.to_string() }
            }
            failure => SubscribeError::NotConnected {
                server: self.api.link.server.clone(),
                reason: failure.to_string(),
            },
        }
    }
}

/// Tells the reader of the end, however the task ends.
struct End(Arc<Inbox>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Reading {
    async fn run(mut self) {
        loop {
            match self.read().await {
                Ok(Broken::Over) => return,
                Ok(Broken::Again) => {}
                Err(failure) if failure.is(&[codes::STREAM_NOT_FOUND]) => return,
                Err(Failure::Closed) => return,
                Err(failure @ Failure::Denied { .. }) => {
                    tracing::warn!(stream = self.on_server, pattern = %self.pattern, %failure, "a subscription ends");
                    return;
                }
                Err(failure) => {
                    tracing::debug!(stream = self.on_server, %failure, "reading goes on in a moment");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    /// Reads through one consumer until something is unclear.
    async fn read(&mut self) -> Result<Broken, Failure> {
        let mut consumer = match self.first.take() {
            Some(first) => first,
            None => self.go_on().await?,
        };
        loop {
            let last = self.ending.is_cancelled();
            let ending = self.ending.clone();
            tokio::select! {
                biased;
                () = self.inbox.room() => {}
                () = ending.cancelled(), if !last => {}
            }
            let before = self.next;
            let pulled = tokio::select! {
                biased;
                pulled = self.pull(&mut consumer, last) => pulled,
                // What was on its way is read again, by another consumer that does not wait.
                () = ending.cancelled(), if !last => Ok(false),
            };
            match pulled {
                Ok(true) if last && self.next == before => {
                    let what = format!("CONSUMER.DELETE.{}.{}", self.on_server, consumer.name);
                    // The server forgets it by itself, only later.
                    let _ = self.jetstream.api.call(&what, &json!({})).await;
                    return Ok(Broken::Over);
                }
                Ok(true) => {}
                Ok(false) => return Ok(Broken::Again),
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Makes a consumer that goes on from where this has come to.
    async fn go_on(&mut self) -> Result<Consumer, Failure> {
        self.note_removed().await?;
        Ok(self.make_consumer(StartAt::Sequence(self.next)).await?.0)
    }

    /// Reports what limits have removed before it was read.
    async fn note_removed(&mut self) -> Result<(), Failure> {
        let what = format!("STREAM.INFO.{}", self.on_server);
        let mut answer = self.jetstream.api.call(&what, &json!({})).await?;
        let Found { state, created, .. } = Found::read(&mut answer)?;
        if created != self.created {
            // Another stream of the same name: nobody knows what the other one had.
            self.inbox.push_unknown_gap();
            self.next = 1;
            self.created = created;
        } else if state.last_seq + 1 < self.next {
            // A server that was cut off from the others, and still believes that it leads, knows less than was read.
            return Err(Failure::NotConnected("the server that answers lags behind".to_owned()));
        }
        if state.first_seq > self.next {
            self.gap(state.first_seq - self.next);
            self.next = state.first_seq;
        }
        Ok(())
    }

    fn gap(&self, missed: u64) {
        let mut gap = vec![LiveEvent::Gap(Gap { missed: Some(missed) })];
        self.inbox.push(&mut gap, &self.jetstream.api.link.events.dropped);
    }

    async fn make_consumer(&self, at: StartAt) -> Result<(Consumer, State), Failure> {
        let name = format!("follow-{:016x}", fastrand::u64(..));
        let mut config = json!({
            "name": name, "ack_policy": "none", "replay_policy": "instant",
            "inactive_threshold": nanos(FORGET_AFTER), "mem_storage": true, "num_replicas": 1,
            "filter_subject": self.pattern.as_str(),
        });
        match at {
            StartAt::Time(time) => {
                config["deliver_policy"] = json!("by_start_time");
                config["opt_start_time"] = json!(print_time(time));
            }
            StartAt::Sequence(n) => {
                config["deliver_policy"] = json!("by_start_sequence");
                config["opt_start_seq"] = json!(n);
            }
            StartAt::New => config["deliver_policy"] = json!("new"),
        }
        let what = format!("CONSUMER.CREATE.{}.{name}", self.on_server);
        let request: Value = json!({ "stream_name": self.on_server, "action": "create", "config": config });
        let state = State::read(self.jetstream.api.call(&what, &request).await?)?;
        Ok((Consumer { name, delivered: 0 }, state))
    }

    /// Makes one request and gives out what it brings; `false` when it is unclear what it should have brought.
    async fn pull(&mut self, consumer: &mut Consumer, last: bool) -> Result<bool, Failure> {
        let link = self.jetstream.api.link.clone();
        let broken = || Failure::NotConnected(link.events.reason());
        let connection = link.connection().ok_or_else(broken)?;
        let mut request = json!({ "batch": self.batch_messages, "no_wait": true });
        let wait = if last { Duration::ZERO } else { PULL_TIME };
        if !last {
            request["expires"] = json!(nanos(wait));
        }
        if let Some(limit) = self.jetstream.memory.limit() {
            let one = link.client.max_payload().saturating_add(MESSAGE_ROOM);
            request["max_bytes"] = json!(one.max(limit / BATCH_PART));
        }
        let inbox = link.client.new_inbox();
        let mut answers = link.client.subscribe(inbox.clone()).await.map_err(|_| broken())?;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.on_server, consumer.name);
        let denied = self.jetstream.api.denied(&subject, connection, wait + PULL_GRACE);
        let outbound = OutboundMessage {
            subject: subject.into(),
            reply: Some(inbox.into()),
            payload: request.to_string().into(),
            headers: None,
        };
        link.client.publish_message(outbound).await.map_err(|_| broken())?;
        tokio::select! {
            biased;
            taken = tokio::time::timeout(wait + PULL_GRACE, self.take(consumer, &mut answers)) => {
                taken.unwrap_or(Ok(false))
            }
            failure = denied => Err(failure),
            () = link.disconnected() => Err(broken()),
        }
    }

    async fn take(&mut self, consumer: &mut Consumer, answers: &mut Subscriber) -> Result<bool, Failure> {
        let (mut decoder, mut count) = (Decoder::default(), 0);
        let mut batch = Vec::new();
        while let Some(answer) = answers.next().await {
            let mut next = Some(answer);
            while let Some(answer) = next.take() {
                match answer.status {
                    Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => {
                        self.deliver(&mut batch);
                        return Ok(true);
                    }
                    Some(_) if answer.description.as_deref() == Some(ENOUGH_BYTES) => {
                        self.deliver(&mut batch);
                        return Ok(true);
                    }
                    Some(StatusCode::IDLE_HEARTBEAT) => {}
                    Some(_) => {
                        self.deliver(&mut batch);
                        return Ok(false);
                    }
                    None => {
                        let about = answer.reply.as_deref().and_then(AckSubject::parse);
                        let Some(about) = about.filter(|about| about.consumer_seq == consumer.delivered + 1)
                        else {
                            self.deliver(&mut batch);
                            return Ok(false);
                        };
                        consumer.delivered = about.consumer_seq;
                        if self.whole && about.stream_seq > self.next {
                            self.deliver(&mut batch);
                            self.note_removed_before(about.stream_seq).await?;
                        }
                        self.next = about.stream_seq + 1;
                        batch.push(self.event(&mut decoder, about.stream_seq, answer));
                        count += 1;
                    }
                }
                if count < self.batch_messages {
                    next = answers.next().now_or_never().flatten();
                }
            }
            self.deliver(&mut batch);
            if count >= self.batch_messages {
                return Ok(true);
            }
        }
        Err(Failure::NotConnected("the connection was closed".to_owned()))
    }

    /// Limits may have removed messages while this waited for its reader. Single messages that somebody deleted leave a
    /// hole that is none of it.
    async fn note_removed_before(&mut self, sequence: u64) -> Result<(), Failure> {
        let what = format!("STREAM.INFO.{}", self.on_server);
        let mut answer = self.jetstream.api.call(&what, &json!({})).await?;
        let first = Found::read(&mut answer)?.state.first_seq.min(sequence);
        if first > self.next {
            self.gap(first - self.next);
            self.next = first;
        }
        Ok(())
    }

    fn event(&self, decoder: &mut Decoder, sequence: u64, answer: async_nats::Message) -> LiveEvent {
        match decoder.decode_stored(answer.subject, answer.headers.as_ref(), answer.payload) {
            Ok(message) => LiveEvent::Message {
                message: Arc::new(message),
                offset: Some(StreamOffset::Sequence(sequence)),
            },
            Err(error) => {
                tracing::warn!(stream = self.on_server, sequence, %error, "a message cannot be delivered");
                LiveEvent::Gap(Gap { missed: Some(1) })
            }
        }
    }

    fn deliver(&self, batch: &mut Vec<LiveEvent>) {
        if !batch.is_empty() {
            self.inbox.push(batch, &self.jetstream.api.link.events.dropped);
        }
    }
}
