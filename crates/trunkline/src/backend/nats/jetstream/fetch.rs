//! Fetching: pull requests, and what they bring.
//!
//! A request asks for what is there now; where there is nothing, it waits for the first message. Each has an inbox of
//! its own, so that a fetch which is dropped takes its request along: the server gives nothing to who does not listen.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::time::Instant;
use trunkline_core::{StreamOffset, Subject};

use super::api::Failure;
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

/// What an acknowledgement subject tells about a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AckSubject {
    attempt: u32,
    pub(super) stream_seq: u64,
    pub(super) consumer_seq: u64,
    time: SystemTime,
}

impl AckSubject {
    /// Reads `$JS.ACK.STREAM.CONSUMER.ATTEMPT.SSEQ.CSEQ.TIME.PENDING`, or the longer form with domain and account before
    /// the stream.
    pub(super) fn parse(subject: &str) -> Option<Self> {
        let mut tokens = subject.strip_prefix("$JS.ACK.")?.split('.');
        let skipped = match subject.bytes().filter(|&byte| byte == b'.').count() + 1 {
            9 => 2,
            11.. => 4,
            _ => return None,
        };
        tokens.nth(skipped - 1)?;
        let mut number = || tokens.next()?.parse::<u64>().ok();
        Some(Self {
            attempt: u32::try_from(number()?).unwrap_or(u32::MAX),
            stream_seq: number()?,
            consumer_seq: number()?,
            time: UNIX_EPOCH + Duration::from_nanos(number()?),
        })
    }
}

/// What a request has brought so far.
#[derive(Default)]
struct Brought {
    fetched: Fetched,
    /// As much as was asked for.
    full: bool,
    /// A delivery of a keyed consumer does not follow the one before.
    out_of_order: bool,
}

/// A request that is under way.
struct UnderWay<'a> {
    member: &'a NatsMember,
    returned: bool,
}

/// Where the deliveries of a request come in.
///
/// Dropped before the request is over, it hands back what the server has sent by then, so that others get it at once
/// and not after `ack_wait`. What the server sends until it reads the UNSUB nobody hears of.
struct Incoming<'a> {
    member: &'a NatsMember,
    /// Taken when the request is over, or handed back.
    answers: Option<Subscriber>,
}

impl Incoming<'_> {
    fn over(mut self) {
        self.answers.take();
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        let Some(mut answers) = self.answers.take() else { return };
        // Of a keyed consumer everything is called back by who has the lease next.
        if self.member.config.keyed {
            return;
        }
        let jetstream = self.member.jetstream.clone();
        let handing_back = async move {
            let link = &jetstream.api.link;
            let wait = link.publish_timeout;
            // Brings in what the server had sent: the library forgets a subscription with its UNSUB.
            if link.prove(wait).await.is_err() || answers.drain().await.is_err() {
                return;
            }
            while let Some(answer) = answers.next().await {
                if let (None, Some(ack)) = (answer.status, answer.reply) {
                    // One that is lost comes again after `ack_wait`.
                    let _ = jetstream.api.ask(ack, None, Bytes::from_static(b"-NAK"), wait).await;
                }
            }
        };
        self.member.handing_back.spawn_on(handing_back, &self.member.jetstream.runtime);
    }
}

impl UnderWay<'_> {
    fn returned(mut self) {
        self.returned = true;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.returned && self.member.config.keyed {
            // What is at work may still be settled: a member that drains gives its fetch up, and lets handlers finish.
            self.member.dropped_fetch.store(true, Ordering::SeqCst);
        }
    }
}

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
            let mut brought = Brought::default();
            // A fetch that is dropped half way loses what was on its way.
            let under_way = UnderWay { member: self, returned: false };
            let round = self.watch.lock().round;
            let ended = self.pull(max, time, contended, &mut brought).await;
            under_way.returned();
            contended = matches!(ended, Ok(End::Contended));
            let passed_over = self.config.keyed && self.has_passed_over(&brought, &ended, round);
            let mut fetched = brought.fetched;
            if passed_over || !matches!(ended, Ok(End::Over | End::Contended)) {
                self.lose_track();
            }
            if self.config.keyed && self.leased_until().is_none() {
                // They came too late, or others before them got lost: all are called back together.
                self.lose_track();
                self.held.lock().clear();
                fetched.deliveries.clear();
            }
            match ended {
                Ok(End::Over | End::Contended) => {}
                // What has come by then is given out first.
                _ if !fetched.deliveries.is_empty() => {}
                Ok(End::Ended) => {
                    self.check_there().await?;
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                Err(failure) => return Err(self.failed(failure)),
            }
            fetched.missed = self.removed_by_limits().await;
            if fetched.missed > 0 {
                self.count_missed(fetched.missed).await;
            }
            if !fetched.deliveries.is_empty() || fetched.missed > 0 || Instant::now() >= deadline {
                return Ok(fetched);
            }
        }
    }

    /// Whether something of a keyed consumer may have been passed over by what a request brought.
    fn has_passed_over(&self, brought: &Brought, ended: &Result<End, Failure>, round: u64) -> bool {
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
        brought: &mut Brought,
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
        let mut incoming = Incoming { member: self, answers: Some(answers) };
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.on_server, self.config.name);
        let denied = self.jetstream.api.denied(&subject, connection, time + PULL_GRACE);
        let outbound = OutboundMessage {
            subject: subject.into(),
            reply: Some(inbox.into()),
            payload: request.to_string().into(),
            headers: None,
        };
        let until = Instant::now() + self.lease_time();
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
        brought: &mut Brought,
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
        brought: &mut Brought,
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
        brought.fetched.deliveries.push(Delivery {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_subjects_tell_about_the_delivery_in_both_forms() {
        let expected = AckSubject {
            attempt: 2,
            stream_seq: 7,
            consumer_seq: 9,
            time: UNIX_EPOCH + Duration::from_nanos(1_795_344_761_830_089_140),
        };
        for text in [
            "$JS.ACK.p_s.c.2.7.9.1795344761830089140.3",
            "$JS.ACK._.hash.p_s.c.2.7.9.1795344761830089140.3.x",
        ] {
            assert_eq!(AckSubject::parse(text).as_ref(), Some(&expected), "{text}");
        }
        for text in ["", "$JS.ACK.p_s.c.2.7.9.1", "$JS.ACK.p_s.c.x.7.9.1.3", "a.b.c.d.2.7.9.1.3"] {
            assert_eq!(AckSubject::parse(text), None, "{text}");
        }
    }
}
