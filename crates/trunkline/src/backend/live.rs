//! Live subscriptions.

use std::sync::Arc;
use std::task::{Context, Poll};

use trunkline_core::{Message, StreamOffset};

use super::Fut;
use super::error::SubscribeError;
use super::stream::Start;

/// How to subscribe.
#[derive(Debug, Clone, Default)]
pub struct SubscribeOptions {
    /// Share the messages with the other members of this queue group. A single token.
    pub queue: Option<trunkline_core::Token>,
    /// Where to start on stored subjects; `None` is what is published from now on.
    pub start: Option<Start>,
    /// This subscription answers requests: a backend with a registry of responders lists it.
    pub responder: bool,
    /// Most messages that wait for the reader; past it they are dropped, counted and reported as a gap.
    /// `None` is `messaging.max_pending`.
    pub max_pending: Option<usize>,
    /// The component that subscribes, as it is shown to who looks at conversations.
    pub name: Option<Arc<str>>,
}

/// Messages the subscription could not be given: `missed` of them where the number is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// How many; `None` when a connection was away and nobody knows.
    pub missed: Option<u64>,
}

/// What a live subscription yields, in order.
#[derive(Debug, Clone)]
pub enum LiveEvent {
    /// A message.
    Message {
        /// The message, shared by all its receivers in this process.
        message: Arc<Message>,
        /// Where it is stored, when the subscription reads a stream.
        offset: Option<StreamOffset>,
    },
    /// Here messages are missing.
    Gap(Gap),
}

/// The receiving end of a live subscription. Dropping it ends the subscription.
pub trait LiveSource: Send {
    /// Appends between 1 and `max` events to `out` and returns how many, or registers the waker.
    /// `Ready(0)` means that the subscription has ended and everything was given out.
    ///
    /// *Redis*: swaps out what the shared reader put into this subscription's inbox. *NATS*: drains the client's channel.
    fn poll_batch(&mut self, cx: &mut Context<'_>, max: usize, out: &mut Vec<LiveEvent>) -> Poll<usize>;

    /// Ends the subscription on the server; what has arrived by then is still given out, then comes the end.
    ///
    /// *Redis*: leaves the shared reader and the registry. *NATS*: the client's drain of one subscription: UNSUB, then a flush.
    ///
    /// # Errors
    /// [`SubscribeError::NotConnected`] when the server could not be told.
    fn stop(&mut self) -> Fut<'_, Result<(), SubscribeError>>;
}
