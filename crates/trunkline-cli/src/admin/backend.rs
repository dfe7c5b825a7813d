//! An admin API as a backend: streams and publishing over HTTP, so that the bus and its retry engine run here unchanged.

use std::sync::Arc;
use std::time::Instant;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use trunkline::backend::{
    Backend, BackendKind, Capabilities, ConsumerConfig, ConsumerInfo, DrainError, Fut, LiveSource, Member,
    NoResponders, PublishError, PublishOptions, Publishing, ReadPage, ReadRequest, Receipt, StreamConfig,
    StreamError, StreamInfo, Streams, SubscribeError, SubscribeOptions, Unsupported,
};
use trunkline::status::{BackendState, BackendStatus};
use trunkline::{Message, Pattern, StreamOffset, Subject};
use trunkline_server::admin::{
    ConsumerJson, DELETE_MAX, DeleteMessages, Deleted, LIST_MAX, MessageJson, PAGE_MAX, PageJson, Problem,
    Publish, ReceiptJson, ServerJson, StreamConfigJson, StreamJson, StreamsJson, show_start,
};
use url::form_urlencoded;

use super::link::{CallError, Link};
use super::member::AdminMember;

pub(super) struct AdminBackend {
    link: Arc<Link>,
    kind: BackendKind,
    status: watch::Sender<BackendStatus>,
}

impl AdminBackend {
    pub(super) fn new(link: Arc<Link>, server: &ServerJson) -> Self {
        let kind = match server.backend.as_str() {
            "redis" => BackendKind::Redis,
            "nats" => BackendKind::Nats,
            _ => BackendKind::InMemory,
        };
        let status = BackendStatus::new(kind, link.server(), BackendState::Connected);
        Self { link, kind, status: watch::Sender::new(status) }
    }

    fn unsupported(&self, operation: &'static str) -> Unsupported {
        Unsupported { operation, backend: self.kind }
    }

    async fn ask<B: Serialize, J, T>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, StreamError>
    where
        J: DeserializeOwned,
        T: TryFrom<J>,
        T::Error: std::fmt::Display,
    {
        let json: J = self.call(method, path, body).await?;
        T::try_from(json).map_err(|error| StreamError::NotConnected {
            server: self.link.server(),
            reason: format!("unexpected answer: {error}"),
        })
    }

    async fn call<B: Serialize, J: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<J, StreamError> {
        let limit = self.link.limit();
        self.link.call(method, path, body, limit).await.map_err(|error| stream_error(&self.link, error))
    }
}

pub(super) fn stream_error(link: &Link, error: CallError) -> StreamError {
    match error {
        CallError::Said(_, said) => said.into_stream_error(&link.server()),
        CallError::Lost { reason, .. } | CallError::Untrusted { reason } => {
            StreamError::NotConnected { server: link.server(), reason }
        }
    }
}

/// No body.
const NOTHING: Option<&()> = None;

async fn publish(
    link: Arc<Link>,
    message: Message,
    options: PublishOptions,
) -> Result<Receipt, PublishError> {
    let timeout = options.timeout.unwrap_or(link.limit());
    let body = Publish {
        message: MessageJson::from(&message),
        dedupe_id: options.dedupe_id,
        timeout_ms: Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
    };
    let answer: Result<ReceiptJson, _> = link.call(Method::POST, "/publish", Some(&body), timeout).await;
    let server = link.server();
    match answer {
        Ok(receipt) => {
            Receipt::try_from(receipt).map_err(|_| PublishError::OutcomeUnknown { server, waited: timeout })
        }
        Err(CallError::Said(_, said)) => Err(said.into_publish_error(&server)),
        Err(CallError::Lost { sent: true, .. }) => {
            Err(PublishError::OutcomeUnknown { server, waited: timeout })
        }
        Err(CallError::Lost { reason, .. } | CallError::Untrusted { reason }) => {
            Err(PublishError::NotConnected { server, reason })
        }
    }
}

impl Backend for AdminBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: self.kind,
            streams: true,
            subscribe_from_offset: false,
            durable: self.kind != BackendKind::InMemory,
            resumes_after_reconnect: true,
            fenced_acks: true,
            dedupe: true,
            no_responders: NoResponders::AtOnce,
        }
    }

    fn status(&self) -> watch::Receiver<BackendStatus> {
        self.status.subscribe()
    }

    fn new_inbox(&self) -> Subject {
        let id = uuid::Uuid::now_v7().simple();
        Subject::new(format!("_INBOX.{id}")).expect("made of letters, digits and a dot")
    }

    fn publish(&self, m: Message, o: PublishOptions) -> Publishing {
        Publishing::Pending(Box::pin(publish(self.link.clone(), m, o)))
    }

    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        // Every publish is answered before its outcome is known here.
        Box::pin(std::future::ready(Ok(())))
    }

    fn subscribe(
        &self,
        _: Pattern,
        _: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        let error = self.unsupported("a live subscription over the admin API");
        Box::pin(std::future::ready(Err(error.into())))
    }

    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        Ok(self)
    }

    fn drain(&self, _: Instant) -> Fut<'_, Result<(), DrainError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Streams for AdminBackend {
    fn ensure(&self, config: StreamConfig) -> Fut<'_, Result<StreamInfo, StreamError>> {
        Box::pin(async move {
            let body = StreamConfigJson::from(&config);
            self.ask::<_, StreamJson, _>(Method::POST, "/streams", Some(&body)).await
        })
    }

    fn list(&self) -> Fut<'_, Result<Vec<StreamInfo>, StreamError>> {
        Box::pin(async move {
            let mut all = Vec::new();
            loop {
                let path = format!("/streams?limit={LIST_MAX}&offset={}", all.len());
                let page: StreamsJson = self.call(Method::GET, &path, NOTHING).await?;
                let is_last = page.streams.is_empty() || all.len() + page.streams.len() >= page.total;
                for stream in page.streams {
                    all.push(StreamInfo::try_from(stream).map_err(|error| StreamError::NotConnected {
                        server: self.link.server(),
                        reason: format!("unexpected answer: {error}"),
                    })?);
                }
                if is_last {
                    return Ok(all);
                }
            }
        })
    }

    fn remove(&self, stream: &str) -> Fut<'_, Result<bool, StreamError>> {
        let path = format!("/streams/{stream}");
        Box::pin(async move {
            match self.call::<_, Deleted>(Method::DELETE, &path, NOTHING).await {
                Ok(_) => Ok(true),
                Err(StreamError::NoStream(_)) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn read(&self, stream: &str, request: ReadRequest) -> Fut<'_, Result<ReadPage, StreamError>> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("from", &show_start(request.from));
        query.append_pair("limit", &request.max.clamp(1, PAGE_MAX).to_string());
        if let Some(filter) = &request.filter {
            query.append_pair("filter", filter.as_str());
        }
        let path = format!("/streams/{stream}/messages?{}", query.finish());
        Box::pin(async move { self.ask::<(), PageJson, _>(Method::GET, &path, None).await })
    }

    fn delete(&self, stream: &str, offsets: Vec<StreamOffset>) -> Fut<'_, Result<u64, StreamError>> {
        let path = format!("/streams/{stream}/messages/delete");
        Box::pin(async move {
            let mut deleted = 0;
            for some in offsets.chunks(DELETE_MAX) {
                let body = DeleteMessages { offsets: some.iter().map(ToString::to_string).collect() };
                deleted += self.call::<_, Deleted>(Method::POST, &path, Some(&body)).await?.deleted;
            }
            Ok(deleted)
        })
    }

    fn join(&self, stream: &str, config: ConsumerConfig) -> Fut<'_, Result<Arc<dyn Member>, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move {
            let member = AdminMember::join(self.link.clone(), stream, config).await?;
            Ok(Arc::new(member) as Arc<dyn Member>)
        })
    }

    fn consumer_info(
        &self,
        stream: &str,
        consumer: &str,
    ) -> Fut<'_, Result<Option<ConsumerInfo>, StreamError>> {
        let path = format!("/streams/{stream}/consumers/{consumer}");
        Box::pin(async move {
            let limit = self.link.limit();
            match self.link.call::<(), ConsumerJson>(Method::GET, &path, None, limit).await {
                Ok(json) => json.try_into().map(Some).map_err(|error| StreamError::NotConnected {
                    server: self.link.server(),
                    reason: format!("unexpected answer: {error}"),
                }),
                Err(CallError::Said(_, said)) if matches!(said.problem, Problem::NoConsumer { .. }) => {
                    Ok(None)
                }
                Err(error) => Err(stream_error(&self.link, error)),
            }
        })
    }

    fn remove_consumer(&self, stream: &str, consumer: &str) -> Fut<'_, Result<bool, StreamError>> {
        let path = format!("/streams/{stream}/consumers/{consumer}");
        Box::pin(async move {
            match self.link.call::<(), Deleted>(Method::DELETE, &path, None, self.link.limit()).await {
                Ok(_) => Ok(true),
                Err(CallError::Said(_, said)) if matches!(said.problem, Problem::NoConsumer { .. }) => {
                    Ok(false)
                }
                Err(error) => Err(stream_error(&self.link, error)),
            }
        })
    }
}
