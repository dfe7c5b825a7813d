//! A message as its receiver sees it.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use trunkline_core::{Headers, Message, StreamOffset, Subject};

use super::context::Context;
use super::spans::{self, Call, Hop};
use crate::envelope::{DecodeError, Envelope, decode_body};

/// A message that came. Its envelope is read when it is first asked for, and once. Cheap to clone before that.
#[derive(Debug, Clone)]
pub struct Received {
    message: Arc<Message>,
    offset: Option<StreamOffset>,
    envelope: OnceLock<Option<Arc<Envelope>>>,
    /// The span in which it came, where spans are made.
    hop: Option<Hop>,
}

impl Received {
    pub(crate) fn new(message: Arc<Message>, offset: Option<StreamOffset>) -> Self {
        Self { message, offset, envelope: OnceLock::new(), hop: None }
    }

    /// The same message, in whose context this span is the parent.
    pub(super) fn on(self, hop: Hop) -> Self {
        Self { hop: Some(hop), ..self }
    }

    pub(super) fn hop(&self) -> Option<&Hop> {
        self.hop.as_ref()
    }

    /// Where it was published.
    pub fn subject(&self) -> &Subject {
        &self.message.subject
    }

    /// Where an answer goes, when one is wanted.
    pub fn reply(&self) -> Option<&Subject> {
        self.message.reply.as_ref()
    }

    /// Its headers.
    pub fn headers(&self) -> &Headers {
        &self.message.headers
    }

    /// Its body as it came, the whole envelope where there is one.
    pub fn payload(&self) -> &Bytes {
        &self.message.payload
    }

    /// The message itself.
    pub fn message(&self) -> &Arc<Message> {
        &self.message
    }

    /// Where it is stored, when it was read from a stream.
    pub fn offset(&self) -> Option<StreamOffset> {
        self.offset
    }

    /// Its envelope, when the body is one.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.envelope.get_or_init(|| Envelope::from_bytes(&self.message.payload).map(Arc::new)).as_deref()
    }

    /// The envelope's payload, or the whole body where there is no envelope, as `T`.
    ///
    /// # Errors
    /// A payload of another shape; it concerns this message alone.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        match self.envelope() {
            Some(envelope) => envelope.decode(),
            None => decode_body(&self.message.payload),
        }
    }

    /// What it passes on to the messages that it causes.
    pub fn context(&self) -> Context {
        Context::of(self.envelope(), self.headers(), self.hop())
    }

    /// Handles it: runs `handling` in its context, as the handlers of responders and consumers are run by themselves. What
    /// is published there inherits from it, log lines tell its conversation, and where spans are made it is one.
    pub fn process<F: Future>(&self, handling: F) -> impl Future<Output = F::Output> + use<F> {
        let handled = match spans::process(self) {
            Some(hop) => self.clone().on(hop),
            None => self.clone(),
        };
        let context = handled.context();
        let call = Call::of(handled.hop.clone());
        spans::within(&handled, &context, None, async move {
            let result = handling.await;
            call.succeed();
            result
        })
    }

    /// Whether its deadline has passed.
    pub(crate) fn is_expired(&self) -> bool {
        let deadline = self.envelope().and_then(|envelope| envelope.deadline);
        deadline.is_some_and(|deadline| deadline <= jiff::Timestamp::now())
    }
}
