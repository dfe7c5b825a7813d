//! Publishing on a live connection, and never claiming more than is known.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_nats::PublishErrorKind;
use async_nats::client::traits::Publisher as _;
use tokio::runtime::Handle;
use trunkline_core::{Message, Subject};

use super::link::{Link, NoProof};
use super::message;
use crate::backend::{PublishError, Publishing, Receipt};

/// Publishes a message, if there is a connection to take it.
///
/// The library would take messages while it is disconnected and send them whenever it comes back; that would be a
/// success for a message that may be lost, so the connection is looked at first.
pub(super) fn publish(link: &Arc<Link>, runtime: &Handle, message: Message, timeout: Duration) -> Publishing {
    let (size, limit) = (message::payload_bytes(&message), link.client.max_payload());
    if size > limit {
        return Publishing::Ready(Err(PublishError::TooLarge { size, limit }));
    }
    match link.connection() {
        Some(connection) => publish_on(link, runtime, connection, message, timeout),
        None => Publishing::Ready(Err(link.not_connected())),
    }
}

/// Hands a message, which is not too large, to the client library for this connection: at once where the library has room,
/// else as soon as it has.
pub(super) fn publish_on(
    link: &Arc<Link>,
    runtime: &Handle,
    connection: u64,
    message: Message,
    timeout: Duration,
) -> Publishing {
    let attempt = Attempt { connection, size: message::payload_bytes(&message) };
    let outbound = match message::encode_owned(message) {
        Ok(outbound) => outbound,
        Err((subject, header)) => return Publishing::Ready(Err(not_ascii(subject, &header))),
    };
    // In a box from the start: a future that has been polled cannot be moved, and an allocation is cheaper than to
    // keep a second copy of the message for the rare case.
    let mut sending: Sending = Box::pin({
        let link = Arc::clone(link);
        async move { link.client.publish_message(outbound).await }
    });
    let mut cx = Context::from_waker(Waker::noop());
    // Outside of the task's budget: a publisher that never yields is held up by the full channel, not before. And where
    // the channel is full, this takes a place in its queue: what is published next stays behind it.
    match pin!(tokio::task::unconstrained(&mut sending)).poll(&mut cx) {
        Poll::Ready(result) => Publishing::Ready(attempt.finish(link, result)),
        Poll::Pending => publish_later(Arc::clone(link), runtime, attempt, sending, timeout),
    }
}

/// A message on its way into the library.
type Sending = Pin<Box<dyn Future<Output = Result<(), async_nats::PublishError>> + Send>>;

/// The library's channel is full. As long as it is, nothing has left, so giving up is a certain failure.
fn publish_later(
    link: Arc<Link>,
    runtime: &Handle,
    attempt: Attempt,
    mut sending: Sending,
    timeout: Duration,
) -> Publishing {
    let deadline = {
        // The caller may be outside of the runtime; the timer must not be.
        let _runtime = runtime.enter();
        tokio::time::sleep(timeout)
    };
    Publishing::Pending(Box::pin(async move {
        tokio::select! {
            biased;
            result = &mut sending => attempt.finish(&link, result),
            () = link.disconnected() => Err(link.not_connected()),
            () = deadline => Err(PublishError::NotConnected {
                server: link.server.clone(),
                reason: format!("the connection took no message for {timeout:?}, this one has not left"),
            }),
        }
    }))
}

pub(super) fn not_ascii(subject: Subject, header: &str) -> PublishError {
    let reason = format!("header name {header:?} is not ASCII, which NATS requires");
    PublishError::Denied { subject, reason }
}

/// What must be known of a message after it was given away.
struct Attempt {
    connection: u64,
    size: usize,
}

impl Attempt {
    fn finish(
        self,
        link: &Link,
        result: Result<(), async_nats::PublishError>,
    ) -> Result<Receipt, PublishError> {
        let Err(error) = result else {
            link.handed(self.connection);
            return Ok(Receipt::Accepted);
        };
        Err(match error.kind() {
            PublishErrorKind::Send => PublishError::Closed,
            // The limit has changed since it was looked at.
            PublishErrorKind::MaxPayloadExceeded => {
                PublishError::TooLarge { size: self.size, limit: link.client.max_payload() }
            }
            PublishErrorKind::InvalidSubject => {
                unreachable!("the library refuses empty subjects only, and a `Subject` is none")
            }
        })
    }
}

/// Proves that the server has received everything handed over before.
pub(super) async fn flush(link: &Link, wait: Duration) -> Result<(), PublishError> {
    if link.take_lost() {
        return Err(link.outcome_unknown(Duration::ZERO));
    }
    match link.prove(wait).await {
        // A connection may have broken and come back between two looks: then only the loss is left to tell.
        Ok(()) if link.take_lost() => Err(link.outcome_unknown(Duration::ZERO)),
        Ok(()) => match link.events.take_refused_publish() {
            Some((subject, reason)) => Err(PublishError::Denied { subject, reason }),
            None => Ok(()),
        },
        Err(NoProof::Closed) => Err(PublishError::Closed),
        Err(NoProof::Silent(waited)) => Err(link.outcome_unknown(waited)),
        Err(NoProof::NotConnected | NoProof::Broken) if link.take_lost() => {
            Err(link.outcome_unknown(Duration::ZERO))
        }
        Err(NoProof::NotConnected | NoProof::Broken) => Err(link.not_connected()),
    }
}
