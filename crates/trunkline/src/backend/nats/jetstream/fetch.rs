//! Fetching: pull requests, and what they bring.
//!
//! A request asks for what is there now; where there is nothing, it waits for the first message. Each has an inbox of
//! its own, so that a fetch which is dropped takes its request along: the server gives nothing to who does not listen.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{StatusCode, Subscriber};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::time::Instant;
use trunkline_core::{StreamOffset, Subject};

use super::ack_subject::AckSubject;
use super::api::Failure;
use super::given_up::{Brought, Incoming, UnderWay};
use super::member::{Held, NatsMember};
use super::names::nanos;
use crate::backend::nats::message::Decoder;
use crate::backend::{AckToken, ConsumeError, Delivery, Fetched};

/// Longest wait of a single request: one that got lost with a server is made anew after it.
const PULL_MAX: Duration = Duration::from_secs(5);
/// Such a part of `ack_wait` is the longest wait, too: leases count from the request.
const PULL_PART: u32 = 5;
/// How much longer than it may wait an answer may take.
const PULL_GRACE: Duration = Duration::from_secs(1);
/// Most messages of one request.
const BATCH_MESSAGES: usize = 1024;
/// Longest fetch, so that the time it ends can be told.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Delay before a request that was refused is made again.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// How a request ended.
enum End {
    /// It brought what there was, or its time is over.
    Over,
    /// Others wait for more than there is.
    Contended,
    /// The server ended it: the consumer may be gone, or served by another server.
    Ended,
}

impl NatsMember {
    pub(super) async fn fetch_within(&self, max: usize, wait: Duration) -> Result<Fetched, ConsumeError> {
        tokio::select! {
            biased;
            () = self.left.cancelled() => Err(ConsumeError::Closed),
            fetched = self.fetch_until(max.clamp(1, BATCH_MESSAGES), Instant::now() + wait.min(WAIT_MAX)) => fetched,
        }
    }

    async fn fetch_until(&self, max: usize, deadline: Instant) -> Result<Fetched, ConsumeError> {
        let mut contended = false;
        loop {
            self.check_open()?;
            if self.dropped_fetch.swap(false, Ordering::SeqCst) {
                self.lose_track();
            }
            let now = Instant::now();
            let longest = PULL_MAX.min(self.config.ack_wait / PULL_PART);
            let mut time = deadline.saturating_duration_since(now).min(longest);
            if self.config.keyed {
                match self.leased_until() {
                    Some(until) => time = time.min(until.saturating_duration_since(now)),
                    None if now >= deadline => return Ok(Fetched::default()),
                    None => {
                        self.wait_for_lease(deadline).await;
                        continue;
                    }
                }
            }
            let mut brought = Brought::nothing(self);
            // A fetch that is dropped half way loses what was on its way.
            let under_way = UnderWay::new(self);
            let round = self.watch.lock().round;
            let ended = self.pull(max, time, contended, &mut brought).await;
            under_way.returned();
            contended = matches!(ended, Ok(End::Contended));
            let passed_over = self.config.keyed && self.has_passed_over(&brought, &ended, round);
            if passed_over || !matches!(ended, Ok(End::Over | End::Contended)) {
                self.lose_track();
            }
            if self.config.keyed && self.leased_until().is_none() {
                // They came too late, or others before them got lost: all are called back together.
                self.lose_track();
                self.held.lock().clear();
                brought.clear();
            }
            match ended {
                Ok(End::Over | End::Contended) => {}
                // What has come by then is given out first.
                _ if !brought.is_empty() => {}
                Ok(End::Ended) => {
                    self.check_there().await?;
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                Err(failure) => return Err(self.failed(failure)),
            }
            let missed = self.removed_by_limits().await;
            if missed > 0 {
                self.count_missed(missed).await;
            }
            if !brought.is_empty() || missed > 0 || Instant::now() >= deadline {
                return Ok(brought.returned(missed));
            }
        }
    }

    /// Whether something of a keyed consumer may have been passed over by what a request brought.
    fn has_passed_over(&self, brought: &Brought<'_>, ended: &Result<End, Failure>, round: u64) -> bool {
        let mut watch = self.watch.lock();
        // Asked before everything was called back, or while it was.
        watch.round != round
            || brought.out_of_order
            || (matches!(ended, Ok(End::Over)) && !brought.full && !watch.may_end())
    }

    async fn wait_for_lease(&self, deadline: Instant) {
        let mut leased = self.leased.subscribe();
        let held = leased.wait_for(|until| until.is_some_and(|until| Instant::now() < until));
        // The sender lives as long as this member.
        let _ = tokio::time::timeout_at(deadline, held).await;
    }

    /// How many of the messages that were found missing limits have removed. They remove the oldest; what is missing behind
    /// the first message that is kept was deleted, and nobody misses it.
    async fn removed_by_limits(&self) -> u64 {
        let gaps = std::mem::take(&mut self.progress.lock().gaps);
        if gaps.is_empty() {
            return 0;
        }
        let kept_from = match self.jetstream.find(&self.stream).await {
            Ok(found) => found.state.first_seq,
            Err(error) => {
                tracing::debug!(stream = self.stream, %error, "what was deleted is counted as missed");
                u64::MAX
            }
        };
        gaps.into_iter().map(|(from, to)| to.min(kept_from).saturating_sub(from)).sum()
    }

    async fn count_missed(&self, missed: u64) {
        tracing::warn!(
            stream = self.stream,
            consumer = self.config.name,
            missed,
            "messages were removed unread"
        );
        let counting = self.jetstream.bucket.add_missed(&self.stream, &self.config.name, missed);
        if let Err(failure) = counting.await {
            tracing::warn!(stream = self.stream, consumer = self.config.name, %failure, "they are not counted");
        }
    }

    /// Makes one request and takes what it brings.
    async fn pull(
        &self,
        max: usize,
        time: Duration,
        contended: bool,
        brought: &mut Brought<'_>,
    ) -> Result<End, Failure> {
        let link = &self.jetstream.api.link;
        let broken = || Failure::NotConnected(link.events.reason());
        let connection = link.connection().ok_or_else(broken)?;
        // Nobody will settle what could not be settled any more.
        let now = Instant::now();
        self.held.lock().retain(|_, held| held.until > now);
        // One message is given to who waits for it, whatever others wait for.
        let mut request = match contended && !time.is_zero() {
            true => json!({ "batch": 1 }),
            false => json!({ "batch": max, "no_wait": true }),
        };
        if !time.is_zero() {
            request["expires"] = json!(nanos(time));
        }
        let max = request["batch"].as_u64().unwrap_or(1);
        let inbox = link.client.new_inbox();
        let answers = link.client.subscribe(inbox.clone()).await.map_err(|_| broken())?;
        let until = Instant::now() + self.lease_time();
        let mut incoming = Incoming::new(self, answers, until);
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.on_server, self.config.name);
        let denied = self.jetstream.api.denied(&subject, connection, time + PULL_GRACE);
        let outbound = OutboundMessage {
            subject: subject.into(),
            reply: Some(inbox.into()),
            payload: request.to_string().into(),
            headers: None,
        };
        link.client.publish_message(outbound).await.map_err(|_| broken())?;
        let Some(answers) = &mut incoming.answers else { return Ok(End::Ended) };
        let taking = self.take_answers(answers, max, until, brought);
        let ended = tokio::select! {
            biased;
            ended = tokio::time::timeout(time + PULL_GRACE, taking) => ended.unwrap_or(Ok(End::Ended)),
            failure = denied => Err(failure),
            () = link.disconnected() => Err(broken()),
        };
        incoming.over();
        ended
    }

    async fn take_answers(
        &self,
        answers: &mut Subscriber,
        max: u64,
        until: Instant,
        brought: &mut Brought<'_>,
    ) -> Result<End, Failure> {
        let mut decoder = Decoder::default();
        let mut count = 0;
        while let Some(answer) = answers.next().await {
            let Some(status) = answer.status else {
                self.take_delivery(&mut decoder, answer, until, brought);
                count += 1;
                if count == max {
                    brought.full = true;
                    return Ok(End::Over);
                }
                continue;
            };
            let description = answer.description.as_deref().unwrap_or_default();
            match status {
                StatusCode::NOT_FOUND => return Ok(End::Over),
                StatusCode::TIMEOUT if description == "Requests Pending" => return Ok(End::Contended),
                StatusCode::TIMEOUT => return Ok(End::Over),
                StatusCode::IDLE_HEARTBEAT => {}
                StatusCode::NO_RESPONDERS => return Ok(End::Ended),
                _ => {
                    tracing::debug!(stream = self.stream, %status, description, "a fetch was ended");
                    return Ok(End::Ended);
                }
            }
        }
        Err(Failure::NotConnected("the connection was closed".to_owned()))
    }

    fn take_delivery(
        &self,
        decoder: &mut Decoder,
        answer: async_nats::Message,
        until: Instant,
        brought: &mut Brought<'_>,
    ) {
        let about = |ack: async_nats::Subject| AckSubject::parse(&ack).map(|about| (ack, about));
        let Some((ack, about)) = answer.reply.and_then(about) else {
            tracing::warn!(stream = self.stream, subject = %answer.subject, "a delivery cannot be acknowledged");
            return;
        };
        self.note_progress(&about);
        if self.config.keyed {
            brought.out_of_order |= !self.watch.lock().follows(&about);
        }
        let message = match decoder.decode_stored(answer.subject, answer.headers.as_ref(), answer.payload) {
            Ok(message) => message,
            Err(error) => {
                // It comes again after `ack_wait`, to members that may be able to read it.
                tracing::warn!(stream = self.stream, offset = about.stream_seq, %error, "a message cannot be read");
                return;
            }
        };
        let offset = StreamOffset::Sequence(about.stream_seq);
        let ack_subject = Subject::new(ack.as_str()).ok();
        let held = Held { attempt: about.attempt, until, ack };
        self.held.lock().insert(about.stream_seq, held);
        brought.push(Delivery {
            message: Arc::new(message),
            offset,
            time: about.time,
            attempt: about.attempt,
            token: AckToken { offset, attempt: about.attempt, ack_subject },
        });
    }

    /// Takes note of messages that are missing before this delivery. That they are is known only from one delivery of the consumer to the
    /// next, and without a filter, which leaves out others: of what lies between deliveries to two members neither can
    /// tell.
    fn note_progress(&self, about: &AckSubject) {
        let mut progress = self.progress.lock();
        let follows = about.consumer_seq == progress.consumer_seq + 1;
        let frontier = progress.frontier.filter(|_| follows);
        progress.consumer_seq = about.consumer_seq;
        if about.attempt > 1 {
            progress.frontier = frontier;
            return;
        }
        progress.frontier = Some(about.stream_seq);
        if let Some(frontier) = frontier
            && self.config.filter.is_none()
            && about.stream_seq > frontier + 1
        {
            progress.gaps.push((frontier + 1, about.stream_seq));
        }
    }
}
