//! A message in the making: what a builder has been told, until it becomes an envelope.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Map;
use trunkline_core::{HeaderError, Headers, Subject};

use super::context::Context;
use crate::backend::PublishError;
use crate::envelope::{Body, Head, Trace, new_id, now};

/// A payload that is bytes already.
#[derive(Debug)]
pub(crate) enum OwnedBody {
    Json(Vec<u8>),
    Bytes(Bytes),
}

/// All of a message but where it goes.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) kind: Cow<'static, str>,
    pub(crate) source: Option<String>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) trace: Trace,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) dedupe_id: Option<String>,
    headers: Headers,
    /// The first header that was refused; it is reported when the message is sent.
    header_error: Option<HeaderError>,
    body: Result<OwnedBody, String>,
}

impl Draft {
    pub(crate) fn json(kind: Cow<'static, str>, payload: &(impl Serialize + ?Sized)) -> Self {
        Self::new(kind, serde_json::to_vec(payload).map(OwnedBody::Json).map_err(|error| error.to_string()))
    }

    pub(crate) fn bytes(kind: Cow<'static, str>, payload: Bytes) -> Self {
        Self::new(kind, Ok(OwnedBody::Bytes(payload)))
    }

    fn new(kind: Cow<'static, str>, body: Result<OwnedBody, String>) -> Self {
        Self {
            kind,
            source: None,
            correlation_id: None,
            trace: Trace::default(),
            deadline: None,
            dedupe_id: None,
            headers: Headers::new(),
            header_error: None,
            body,
        }
    }

    pub(crate) fn header(&mut self, name: &str, value: &str) {
        if let Err(error) = self.headers.append(name, value) {
            self.header_error.get_or_insert(error);
        }
    }

    /// The headers and the envelope. What was not set comes from `context`; the deadline is the caller's affair,
    /// because only requests inherit it.
    pub(crate) fn finish(
        mut self,
        subject: &Subject,
        source: &str,
        context: Option<&Context>,
    ) -> Result<(Headers, Bytes), PublishError> {
        if let Some(error) = self.header_error {
            return Err(error.into());
        }
        let body = self.body.map_err(|reason| PublishError::Encode { subject: subject.clone(), reason })?;
        if let Some(context) = context {
            inherit(&mut self.trace, context.trace());
            for (name, value) in context.trace_headers() {
                if self.headers.get(name).is_none() {
                    self.headers.append(*name, value.as_str())?;
                }
            }
        }
        let id = new_id();
        let inherited = context.and_then(Context::correlation_id);
        let correlation_id = self.correlation_id.as_deref().or(inherited).unwrap_or(&id);
        let head = Head {
            id: &id,
            timestamp: Some(now()),
            source: Some(self.source.as_deref().unwrap_or(source)),
            kind: &self.kind,
            correlation_id: Some(correlation_id),
            trace: &self.trace,
            deadline: self.deadline,
            extra: &Map::new(),
        };
        let bytes = head.encode(match &body {
            OwnedBody::Json(json) => Body::Json(json),
            OwnedBody::Bytes(bytes) => Body::Bytes(bytes),
        });
        Ok((self.headers, bytes))
    }
}

/// Fills in what was not set.
fn inherit(trace: &mut Trace, from: &Trace) {
    let mine = [
        &mut trace.conversation_id,
        &mut trace.persona_id,
        &mut trace.tool_id,
        &mut trace.skill_id,
        &mut trace.causation_id,
    ];
    let theirs = [&from.conversation_id, &from.persona_id, &from.tool_id, &from.skill_id, &from.causation_id];
    for (mine, theirs) in mine.into_iter().zip(theirs) {
        if mine.is_none() {
            mine.clone_from(theirs);
        }
    }
    for (name, value) in &from.extra {
        if !trace.extra.contains_key(name) {
            trace.extra.insert(name.clone(), value.clone());
        }
    }
}

/// The setters that everything with a [`Draft`] shares.
macro_rules! draft_setters {
    () => {
        /// Sets the type of the envelope; the topic has one by itself.
        pub fn kind(mut self, kind: impl Into<std::borrow::Cow<'static, str>>) -> Self {
            self.draft.kind = kind.into();
            self
        }

        /// Sets the component it comes from; the bus has one by itself.
        pub fn source(mut self, source: impl Into<String>) -> Self {
            self.draft.source = Some(source.into());
            self
        }

        /// Sets the conversation it belongs to, instead of the one inherited.
        pub fn conversation(mut self, id: impl Into<String>) -> Self {
            self.draft.trace.conversation_id = Some(id.into());
            self
        }

        /// Sets the persona that speaks, instead of the one inherited.
        pub fn persona(mut self, id: impl Into<String>) -> Self {
            self.draft.trace.persona_id = Some(id.into());
            self
        }

        /// Sets the tool at work, instead of the one inherited.
        pub fn tool(mut self, id: impl Into<String>) -> Self {
            self.draft.trace.tool_id = Some(id.into());
            self
        }

        /// Sets the skill at work, instead of the one inherited.
        pub fn skill(mut self, id: impl Into<String>) -> Self {
            self.draft.trace.skill_id = Some(id.into());
            self
        }

        /// Sets the correlation, instead of the one inherited or a new one.
        pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
            self.draft.correlation_id = Some(id.into());
            self
        }

        /// Adds a header. One that cannot be sent is an error when the message is.
        pub fn header(mut self, name: &str, value: &str) -> Self {
            self.draft.header(name, value);
            self
        }

        /// Sets when nobody will want it, or its answer, any more.
        pub fn deadline(mut self, deadline: jiff::Timestamp) -> Self {
            self.draft.deadline = Some(deadline);
            self
        }
    };
}
pub(crate) use draft_setters;
