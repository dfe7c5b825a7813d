//! Publishing: one queue, one task that sends it in batches, the outcome for each message.
//!
//! | part | what it does |
//! |---|---|
//! | `queue` | what waits to be sent, bounded, in order |
//! | `ticket` | the outcome of one message |
//! | `batch` | messages of one stream as commands, and the answer to them |
//! | `standing` | what is known of a stream, and by which way the next batch goes |
//! | `doubts` | requests of which it is not known yet whether anybody answers them |
//! | `sending` | batches on their way, and the answers to them |
//! | `telling` | what publishers are told, and what is sent again |
//! | `writer` | the task: sends batches in order, tries again by new routes |

mod batch;
mod doubts;
mod queue;
mod sending;
mod standing;
mod telling;
mod ticket;
mod writer;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use trunkline_core::Message;

use super::entry;
use super::pushed::Pushed;
use super::shared::Shared;
use crate::backend::{PublishError, PublishOptions, Publishing};
use queue::{Item, Order, Queue};
use writer::Writer;

/// The publishers' end of the queue.
pub(super) struct Publisher {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    writer: Arc<Pushed>,
    /// Where timers live, for callers outside of it.
    runtime: Handle,
}

impl Publisher {
    /// The queue and the task that empties it until `stop`, to be spawned.
    pub(super) fn new(
        shared: &Arc<Shared>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let queue = Arc::new(Queue::new(shared.options.max_pending));
        let writer = Pushed::new(Writer::new(queue.clone(), shared.clone()).run(stop));
        let task = writer.task();
        (Self { queue, shared: shared.clone(), writer, runtime: Handle::current() }, task)
    }

    pub(super) fn publish(&self, message: Message, options: PublishOptions, timeout: Duration) -> Publishing {
        let link = &self.shared.link;
        if link.refusing.load(Ordering::SeqCst) {
            return Publishing::Ready(Err(PublishError::Closed));
        }
        let (size, limit) =
            (message.headers.size_bytes() + message.payload.len(), self.shared.options.max_payload);
        if size > limit {
            return Publishing::Ready(Err(PublishError::TooLarge { size, limit }));
        }
        if !link.is_connected() {
            return Publishing::Ready(Err(link.not_connected()));
        }
        let (ticket, waiting) = ticket::ticket();
        let item = Item {
            entry: entry::encode(&message),
            subject: message.subject,
            reply: message.reply,
            dedupe_id: options.dedupe_id,
            unbroken_since: options.unbroken_since,
            refused: 0,
            timeout,
            deadline: Instant::now() + timeout,
            ticket,
        };
        // It has its place from here on: what is published next stays behind it.
        let add = || self.queue.add(Order::Publish(item));
        let outside = match self.queue.is_idle() {
            true => {
                let _runtime = self.runtime.enter();
                self.writer.push(add)
            }
            false => add(),
        };
        let Some(mut outside) = outside else {
            // The writer keeps the time, too: nothing here needs a timer.
            return Publishing::Pending(Box::pin(waiting));
        };
        let shared = self.shared.clone();
        let deadline = {
            // The caller may be outside of the runtime; the timer must not be.
            let _runtime = self.runtime.enter();
            tokio::time::sleep(timeout)
        };
        Publishing::Pending(Box::pin(async move {
            tokio::select! {
                biased;
                () = outside.inside() => {}
                () = deadline => {
                    if outside.withdraw() {
                        return Err(not_left(&shared, timeout));
                    }
                }
            }
            waiting.await
        }))
    }

    /// See [`Backend::breaks`](crate::backend::Backend::breaks).
    pub(super) fn breaks(&self) -> u64 {
        self.queue.breaks()
    }

    /// Waits until everything queued before has an outcome.
    pub(super) async fn flush(&self, wait: Duration) -> Result<(), PublishError> {
        let link = &self.shared.link;
        let unknown = || PublishError::OutcomeUnknown { server: link.server.clone(), waited: wait };
        let (done, answer) = oneshot::channel();
        let flushing = async {
            let outside = self.queue.add(Order::Flush(done));
            let answer = answer.await;
            drop(outside);
            answer.map_err(|_| PublishError::Closed)?
        };
        tokio::time::timeout(wait, flushing).await.unwrap_or_else(|_| Err(unknown()))
    }
}

/// What becomes of a message that waited for its turn for too long.
fn not_left(shared: &Shared, waited: Duration) -> PublishError {
    PublishError::NotConnected {
        server: shared.link.server.clone(),
        reason: format!("others were sent first for {waited:?}, this message has not left"),
    }
}
