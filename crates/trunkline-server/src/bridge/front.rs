//! The session's end of the bridge: turns operations into orders and hands them over a batch at a time.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use trunkline::{Headers, Message, Subject};
use trunkline_core::HeaderError;

use super::ORIGIN_HEADER;
use super::orders::{Order, Orders, Outbound};
use crate::staging::Outgoing;
use crate::subscription::Subscription;
use crate::wire;

/// Why a message cannot be published.
#[derive(Debug)]
pub(crate) enum Unpublishable {
    /// Its subject or header block is none that the bus could carry.
    Message,
    /// Its reply subject is none.
    Reply,
}

impl From<HeaderError> for Unpublishable {
    fn from(_: HeaderError) -> Self {
        Self::Message
    }
}

/// See the module's text.
pub(crate) struct Front {
    orders: Arc<Orders>,
    /// Orders of this batch, handed over at its end.
    batch: Vec<Order>,
    /// Marks what this client publishes; `None` while it wants its own messages.
    origin: Option<ByteString>,
    /// The subject before: most publishers use the same one again and again, and a clone costs neither a check nor a copy.
    subject: Option<Subject>,
}

impl Front {
    pub(crate) fn new(orders: Arc<Orders>) -> Self {
        Self { orders, batch: Vec::new(), origin: None, subject: None }
    }

    /// What is ordered from here on bears this mark.
    pub(crate) fn set_origin(&mut self, origin: Option<ByteString>) {
        self.origin = origin;
    }

    pub(crate) fn publish(&mut self, m: &Outgoing<'_>) -> Result<(), Unpublishable> {
        let subject = match &self.subject {
            Some(subject) if subject.as_bytes() == m.subject => subject.clone(),
            _ => {
                let subject = Subject::from_bytes(m.subject).map_err(|_| Unpublishable::Message)?;
                self.subject.insert(subject).clone()
            }
        };
        let reply = m.reply.map(Subject::from_bytes).transpose().map_err(|_| Unpublishable::Reply)?;
        let mut headers = match m.header {
            Some(block) => wire::read_block(block)?,
            None => Headers::new(),
        };
        if let Some(origin) = &self.origin {
            headers.append(ORIGIN_HEADER, origin.clone())?;
        }
        let message = Message { subject, reply, headers, payload: Bytes::copy_from_slice(m.payload) };
        let size_bytes = m.subject.len() + m.header.map_or(0, <[u8]>::len) + m.payload.len();
        self.batch.push(Order::Publish(Outbound { message, size_bytes }));
        Ok(())
    }

    pub(crate) fn subscribe(&mut self, subscription: Arc<Subscription>) {
        self.batch.push(Order::Subscribe(subscription));
    }

    pub(crate) fn unsubscribe(&mut self, subscription: Arc<Subscription>) {
        self.batch.push(Order::Unsubscribe(subscription));
    }

    /// Where to write what is to be said behind everything that was ordered.
    pub(crate) fn line(&mut self) -> &mut Vec<u8> {
        if !matches!(self.batch.last(), Some(Order::Say(_))) {
            self.batch.push(Order::Say(Vec::new()));
        }
        match self.batch.last_mut() {
            Some(Order::Say(bytes)) => bytes,
            _ => unreachable!("it was pushed if it was not there"),
        }
    }

    /// Hands the batch over.
    pub(crate) fn finish(&mut self) {
        if !self.batch.is_empty() {
            self.orders.push(&mut self.batch);
        }
    }
}
