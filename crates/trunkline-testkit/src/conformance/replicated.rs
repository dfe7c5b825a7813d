//! A backend whose streams all have copies, whatever their configuration says: so that properties which know nothing of
//! copies hold with them.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use trunkline::backend::{
    Backend, Capabilities, ConsumerConfig, ConsumerInfo, DrainError, Fut, LiveSource, Member, PublishError,
    PublishOptions, Publishing, ReadPage, ReadRequest, StreamConfig, StreamError, StreamInfo, Streams,
    SubscribeError, SubscribeOptions, Unsupported,
};
use trunkline::status::BackendStatus;
use trunkline::{Message, Pattern, StreamOffset, Subject};

/// See the module's text.
pub(super) struct Replicated {
    inner: Arc<dyn Backend>,
    replicas: u8,
}

impl Replicated {
    /// A backend over another one.
    pub(super) fn new(inner: Arc<dyn Backend>, replicas: u8) -> Self {
        Self { inner, replicas }
    }

    fn inner_streams(&self) -> Result<&dyn Streams, StreamError> {
        self.inner.streams().map_err(StreamError::Unsupported)
    }

    /// Whoever asked for one copy is told of one.
    fn shown(&self, mut info: StreamInfo) -> StreamInfo {
        assert_eq!(info.config.replicas, self.replicas, "every stream has its copies");
        info.config.replicas = 1;
        info
    }
}

impl Backend for Replicated {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn status(&self) -> watch::Receiver<BackendStatus> {
        self.inner.status()
    }

    fn new_inbox(&self) -> Subject {
        self.inner.new_inbox()
    }

    fn publish(&self, m: Message, o: PublishOptions) -> Publishing {
        self.inner.publish(m, o)
    }

    fn flush(&self) -> Fut<'_, Result<(), PublishError>> {
        self.inner.flush()
    }

    fn subscribe(
        &self,
        p: Pattern,
        o: SubscribeOptions,
    ) -> Fut<'_, Result<Box<dyn LiveSource>, SubscribeError>> {
        self.inner.subscribe(p, o)
    }

    fn streams(&self) -> Result<&dyn Streams, Unsupported> {
        self.inner.streams().map(|_| self as &dyn Streams)
    }

    fn drain(&self, by: Instant) -> Fut<'_, Result<(), DrainError>> {
        self.inner.drain(by)
    }
}

impl Streams for Replicated {
    fn ensure(&self, mut config: StreamConfig) -> Fut<'_, Result<StreamInfo, StreamError>> {
        config.replicas = self.replicas;
        Box::pin(async move { Ok(self.shown(self.inner_streams()?.ensure(config).await?)) })
    }

    fn list(&self) -> Fut<'_, Result<Vec<StreamInfo>, StreamError>> {
        Box::pin(async move {
            let all = self.inner_streams()?.list().await?;
            Ok(all.into_iter().map(|info| self.shown(info)).collect())
        })
    }

    fn remove(&self, stream: &str) -> Fut<'_, Result<bool, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.inner_streams()?.remove(&stream).await })
    }

    fn read(&self, stream: &str, request: ReadRequest) -> Fut<'_, Result<ReadPage, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.inner_streams()?.read(&stream, request).await })
    }

    fn delete(&self, stream: &str, offsets: Vec<StreamOffset>) -> Fut<'_, Result<u64, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.inner_streams()?.delete(&stream, offsets).await })
    }

    fn join(&self, stream: &str, config: ConsumerConfig) -> Fut<'_, Result<Arc<dyn Member>, StreamError>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.inner_streams()?.join(&stream, config).await })
    }

    fn consumer_info(
        &self,
        stream: &str,
        consumer: &str,
    ) -> Fut<'_, Result<Option<ConsumerInfo>, StreamError>> {
        let (stream, consumer) = (stream.to_owned(), consumer.to_owned());
        Box::pin(async move { self.inner_streams()?.consumer_info(&stream, &consumer).await })
    }

    fn remove_consumer(&self, stream: &str, consumer: &str) -> Fut<'_, Result<bool, StreamError>> {
        let (stream, consumer) = (stream.to_owned(), consumer.to_owned());
        Box::pin(async move { self.inner_streams()?.remove_consumer(&stream, &consumer).await })
    }
}
