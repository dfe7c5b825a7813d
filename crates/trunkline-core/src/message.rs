//! The message as the bus carries it.

use bytes::Bytes;

use crate::headers::Headers;
use crate::subject::Subject;

/// What travels on the bus: a subject, where to reply, headers and bytes. Clones share the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it is published.
    pub subject: Subject,
    /// Where an answer goes, when one is wanted.
    pub reply: Option<Subject>,
    /// Headers in the order they were added.
    pub headers: Headers,
    /// The body, opaque to the bus.
    pub payload: Bytes,
}

impl Message {
    /// A message without reply subject and headers.
    pub fn new(subject: Subject, payload: impl Into<Bytes>) -> Self {
        Self { subject, reply: None, headers: Headers::new(), payload: payload.into() }
    }

    /// Bytes it is counted with against limits: subject, reply, headers and payload.
    pub fn size_bytes(&self) -> usize {
        self.subject.as_bytes().len()
            + self.reply.as_ref().map_or(0, |reply| reply.as_bytes().len())
            + self.headers.size_bytes()
            + self.payload.len()
    }
}
