//! JetStream: streams and durable consumers of the `nats` backend.
//!
//! | part | what it does |
//! |---|---|
//! | `replies`, `api` | requests to the server over one inbox, and why they fail |
//! | `names` | names and starts in JetStream's terms; patterns that no stream may have |
//! | `streams`, `read` | streams; pages of them by direct get |
//! | `routes`, `outgoing` | which subjects are stored, and learning it; publishing with a confirmation |
//! | `consumers`, `member` | durable consumers, their members |
//! | `fetch`, `ack_subject`, `given_up` | pull requests, what tells about a delivery, fetches that are dropped |
//! | `lease`, `recall`, `bucket` | the active member of a keyed consumer; what members share |
//! | `follow` | live subscriptions that start in the past |
//!
//! The API is spoken directly, on the client library's connection: which outcome is unknown, when a lease begins, and
//! what a dropped future leaves behind is for the bus to know.

mod ack_subject;
mod api;
mod bucket;
mod consumers;
mod fetch;
mod follow;
mod given_up;
mod lease;
mod member;
mod names;
mod outgoing;
mod read;
mod recall;
mod replies;
mod routes;
mod streams;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use trunkline_core::{Message, Pattern, StreamOffset};

use super::inspect::NatsAskError;
use super::link::Link;
use super::options::{NatsConnectError, NatsOptions};
use crate::backend::{
    ConsumerConfig, ConsumerInfo, Fut, LiveSource, Member, Publishing, ReadPage, ReadRequest, Start,
    StreamConfig, StreamError, StreamInfo, Streams, SubscribeError, SubscribeOptions,
};
use crate::memory::MemoryBudget;
use api::{Api, Failure, codes, is_at_least};
use bucket::Bucket;
use names::{Names, check_prefix};
use outgoing::Outgoing;
use replies::Replies;

/// Before this version JetStream has no direct get and no consumers that are made by their name.
const SINCE: (u64, u64, u64) = (2, 9, 0);

/// JetStream on one connection.
pub(super) struct JetStream {
    api: Arc<Api>,
    names: Arc<Names>,
    outgoing: Arc<Outgoing>,
    bucket: Bucket,
    dedupe_window: Duration,
    memory: Arc<MemoryBudget>,
    runtime: Handle,
    stop: CancellationToken,
}

impl JetStream {
    /// Sends a request and waits for the answer, whatever it is.
    pub(super) async fn ask(
        &self,
        subject: &str,
        payload: Bytes,
        wait: Duration,
    ) -> Result<Bytes, NatsAskError> {
        match self.api.ask(subject, None, payload, wait).await {
            Ok(answer) => Ok(answer.payload),
            Err(Failure::Denied { subject, reason }) => Err(NatsAskError::Denied { subject, reason }),
            Err(Failure::NotConnected(reason)) => Err(NatsAskError::Silent { reason }),
            Err(_) => Err(NatsAskError::Silent { reason: "the connection is closed".to_owned() }),
        }
    }

    pub(super) fn publish(
        &self,
        message: Message,
        dedupe_id: Option<String>,
        timeout: Duration,
    ) -> Publishing {
        self.outgoing.publish(message, dedupe_id, timeout)
    }

    /// Waits until everything that was published has left, or has an outcome.
    pub(super) async fn all_sent(&self) {
        self.outgoing.emptied().await;
    }

    /// Messages whose outcome is not known yet.
    pub(super) fn unfinished(&self) -> u64 {
        self.outgoing.unfinished() as u64
    }

    /// Waits until everything that was published has an outcome.
    pub(super) async fn all_confirmed(&self) {
        self.outgoing.confirmed_all().await;
    }

    pub(super) async fn subscribe(
        self: &Arc<Self>,
        pattern: Pattern,
        start: Start,
        options: SubscribeOptions,
        max_pending: usize,
    ) -> Result<Box<dyn LiveSource>, SubscribeError> {
        Ok(Box::new(self.follow(pattern, start, options, max_pending).await?))
    }

    fn is_closed(&self) -> bool {
        self.api.link.refusing.load(Ordering::SeqCst)
    }

    fn refuse_when_closed(&self) -> Result<(), StreamError> {
        match self.is_closed() {
            true => Err(StreamError::Closed),
            false => Ok(()),
        }
    }
}

impl Api {
    /// Why this user has no JetStream, if that is so. A server that says nothing is asked again until `wait` is over.
    async fn missing(&self, wait: Duration) -> Option<String> {
        let until = Instant::now() + wait;
        loop {
            match self.call("INFO", &json!({})).await.err() {
                None => return None,
                Some(failure) if failure.is(&[codes::NOT_ENABLED_FOR_ACCOUNT, codes::NOT_ENABLED]) => {
                    return Some(failure.to_string());
                }
                Some(failure @ (Failure::Refused(_) | Failure::Denied { .. } | Failure::Closed)) => {
                    return Some(failure.to_string());
                }
                Some(failure) if Instant::now() >= until => return Some(failure.to_string()),
                Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// JetStream as the backend holds it.
pub(super) struct NatsStreams {
    pub(super) jetstream: Arc<JetStream>,
    /// Take answers and send what waits; they end with the backend, whoever else still holds `jetstream`.
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl NatsStreams {
    /// JetStream, if this server has it and this user's account, too. Its tasks end with `stop`.
    pub(super) async fn start(
        link: &Arc<Link>,
        options: &NatsOptions,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, NatsConnectError> {
        let info = link.client.server_info();
        if !info.jetstream {
            return Ok(None);
        }
        if !is_at_least(&info.version, SINCE) {
            let (server, version) = (&link.server, info.version);
            tracing::warn!(
                server,
                version,
                "streams need NATS 2.9 or later: this server's JetStream is not used"
            );
            return Ok(None);
        }
        check_prefix(&options.stream_prefix).map_err(|reason| NatsConnectError::BadStreamPrefix {
            prefix: options.stream_prefix.clone(),
            reason,
        })?;
        let broken = || NatsConnectError::Unreachable {
            server: link.server.clone(),
            waited: options.connect_timeout,
            reason: link.events.reason(),
        };
        let replies = Arc::new(Replies::new(&link.client.new_inbox()));
        let answers = link.client.subscribe(replies.pattern()).await.map_err(|_| broken())?;
        let told = Arc::downgrade(&replies);
        link.events.tell_refusals(move |subject, reason| {
            told.upgrade().is_some_and(|replies| replies.refuse(subject, reason))
        });
        let ends = stop.child_token();
        let answering = tokio::spawn(replies.clone().run(link.clone(), answers, ends.clone()));
        let answering = AbortOnDropHandle::new(answering);
        let api = Arc::new(Api { link: link.clone(), replies });
        if let Some(why) = api.missing(options.connect_timeout).await {
            tracing::info!(server = link.server, why, "this server has JetStream, but not for this user");
            ends.cancel();
            return Ok(None);
        }
        let names =
            Arc::new(Names::new(&options.stream_prefix, &options.subject_root, &options.inbox_prefix));
        let outgoing = Outgoing::new(&api, &names, options);
        let sending = AbortOnDropHandle::new(tokio::spawn(outgoing.clone().run(ends)));
        let jetstream = Arc::new(JetStream {
            bucket: Bucket::new(&api, &options.stream_prefix),
            names,
            outgoing,
            api,
            dedupe_window: options.dedupe_window,
            memory: options.memory.clone(),
            runtime: Handle::current(),
            stop: stop.clone(),
        });
        Ok(Some(Self { jetstream, _tasks: [answering, sending] }))
    }
}

impl Streams for NatsStreams {
    fn ensure(&self, config: StreamConfig) -> Fut<'_, Result<StreamInfo, StreamError>> {
        Box::pin(self.jetstream.ensure_stream(config))
    }

    fn list(&self) -> Fut<'_, Result<Vec<StreamInfo>, StreamError>> {
        Box::pin(self.jetstream.list_streams())
    }

    fn remove(&self, stream: &str) -> Fut<'_, Result<bool, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.jetstream.remove_stream(&stream).await })
    }

    fn read(&self, stream: &str, request: ReadRequest) -> Fut<'_, Result<ReadPage, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.jetstream.read_page(&stream, request).await })
    }

    fn delete(&self, stream: &str, offsets: Vec<StreamOffset>) -> Fut<'_, Result<u64, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.jetstream.delete_messages(&stream, offsets).await })
    }

    fn join(&self, stream: &str, config: ConsumerConfig) -> Fut<'_, Result<Arc<dyn Member>, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move {
            let member = self.jetstream.join_consumer(&stream, config).await?;
            Ok(Arc::new(member) as Arc<dyn Member>)
        })
    }

    fn consumer_info(
        &self,
        stream: &str,
        consumer: &str,
    ) -> Fut<'_, Result<Option<ConsumerInfo>, StreamError>> {
        let (stream, consumer) = (stream.to_owned(), consumer.to_owned());
        Box::pin(async move { self.jetstream.stand_of_consumer(&stream, &consumer).await })
    }

    fn remove_consumer(&self, stream: &str, consumer: &str) -> Fut<'_, Result<bool, StreamError>> {
        let (stream, consumer) = (stream.to_owned(), consumer.to_owned());
        Box::pin(async move { self.jetstream.remove_consumer_of(&stream, &consumer).await })
    }
}
