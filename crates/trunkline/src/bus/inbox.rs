//! Where replies come in: one subscription for a whole bus, told apart by the last token of the subject.
//!
//! A waiter registers, sends the token's subject along as `reply`, and is handed every message that comes to it.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{OnceCell, mpsc};
use trunkline_core::{Message, Pattern, Subject};

use super::Inner;
use super::frame;
use crate::backend::{LiveEvent, LiveSource, SubscribeError, SubscribeOptions};
use crate::telemetry::{Counted, Telemetry};

/// Most replies read at a time.
const BATCH: usize = 256;

/// The bus's inbox, made when it is first needed and anew when its reader has ended with the runtime it ran on.
#[derive(Default)]
pub(crate) struct InboxSlot {
    /// Guards which cell is in use; held to copy or replace it.
    cell: Mutex<Arc<OnceCell<Inbox>>>,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inbox {
    shared: Arc<Shared>,
}

struct Shared {
    prefix: Subject,
    /// Guards who waits for which token; held for one look-up.
    waiting: Mutex<HashMap<u64, mpsc::Sender<Arc<Message>>, foldhash::fast::RandomState>>,
    tokens: AtomicU64,
    waiting_max: usize,
    /// Set when the reader has ended: no reply comes any more.
    ended: AtomicBool,
    telemetry: Telemetry,
    /// Whoever waits holds the bus; the reader does not, or it would never go.
    bus: Weak<Inner>,
}

/// Why nobody can wait for a reply.
#[derive(Debug)]
pub(crate) enum InboxError {
    Subscribe(SubscribeError),
    /// As many wait as may.
    Full(usize),
}

/// Somebody who waits for replies; dropping it ends the wait.
pub(crate) struct Waiter {
    pub(crate) reply: Subject,
    pub(crate) messages: mpsc::Receiver<Arc<Message>>,
    token: u64,
    shared: Arc<Shared>,
    _in_flight: Counted,
}

impl InboxSlot {
    /// Registers a waiter with room for `capacity` replies that nobody has looked at yet.
    pub(crate) async fn register(&self, inner: &Arc<Inner>, capacity: usize) -> Result<Waiter, InboxError> {
        loop {
            let cell = self.cell.lock().clone();
            let inbox = cell.get_or_try_init(|| Inbox::open(inner)).await.map_err(InboxError::Subscribe)?;
            if inbox.shared.ended.load(Ordering::Acquire) {
                if inner.killed.is_cancelled() {
                    return Err(InboxError::Subscribe(SubscribeError::Closed));
                }
                let mut current = self.cell.lock();
                if Arc::ptr_eq(&current, &cell) {
                    *current = Arc::default();
                }
                continue;
            }
            return inbox.register(capacity);
        }
    }
}

impl Inbox {
    async fn open(inner: &Arc<Inner>) -> Result<Self, SubscribeError> {
        let prefix = inner.backend.new_inbox();
        let pattern =
            Pattern::new(format!("{prefix}.*")).expect("a subject and one more token make a pattern");
        let options = SubscribeOptions { max_pending: inner.options.max_pending, ..Default::default() };
        let source = inner.backend.subscribe(pattern, options).await?;
        let shared = Arc::new(Shared {
            prefix,
            waiting: Mutex::default(),
            // A late reply to a request of an earlier inbox of the same name must not meet a new one.
            tokens: AtomicU64::new(fastrand::u64(..1 << 48)),
            waiting_max: inner.options.requests_max,
            ended: AtomicBool::new(false),
            telemetry: inner.telemetry.clone(),
            bus: Arc::downgrade(inner),
        });
        // It ends by `killed`.
        let killed = inner.killed.clone();
        let reader = Reader { shared: shared.clone() };
        inner.services.spawn(async move {
            killed.run_until_cancelled(reader.run(source)).await;
        });
        Ok(Self { shared })
    }

    fn register(&self, capacity: usize) -> Result<Waiter, InboxError> {
        let shared = &self.shared;
        let token = shared.tokens.fetch_add(1, Ordering::Relaxed);
        let reply =
            Subject::new(format!("{}.{token}", shared.prefix)).expect("an inbox and a number make a subject");
        let (sender, messages) = mpsc::channel(capacity);
        let mut waiting = shared.waiting.lock();
        if waiting.len() >= shared.waiting_max {
            return Err(InboxError::Full(shared.waiting_max));
        }
        waiting.insert(token, sender);
        drop(waiting);
        let in_flight = Counted::one(&shared.telemetry.requests_in_flight);
        Ok(Waiter { reply, messages, token, shared: shared.clone(), _in_flight: in_flight })
    }
}

impl Waiter {
    /// Ends the wait. A reply stream that has begun and that nobody has looked at is cancelled; so is one that begins
    /// later, by the reader.
    pub(crate) fn close(&mut self) {
        self.shared.waiting.lock().remove(&self.token);
        while let Ok(message) = self.messages.try_recv() {
            self.shared.cancel_stream_of(&message);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Cancels the reply stream that this is the first frame of; `false` when it is none.
    fn cancel_stream_of(&self, message: &Message) -> bool {
        let Some(control) = frame::control_of(message) else { return false };
        if let Some(inner) = self.bus.upgrade() {
            inner.publish_aside(frame::cancel(control));
        }
        true
    }
}

/// The task that hands replies out.
struct Reader {
    shared: Arc<Shared>,
}

impl Reader {
    async fn run(&self, mut source: Box<dyn LiveSource>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let taken = poll_fn(|cx| source.poll_batch(cx, BATCH, &mut batch)).await;
            if taken == 0 {
                return;
            }
            for event in batch.drain(..) {
                match event {
                    LiveEvent::Message { message, .. } => self.hand_out(message),
                    LiveEvent::Gap(gap) => {
                        // Whoever misses a reply runs into its timeout; a reply stream sees the missing number.
                        tracing::warn!(missed = gap.missed, "replies were lost");
                        self.shared.telemetry.gaps.inc();
                        self.shared.telemetry.missed.inc_by(gap.missed.unwrap_or(0));
                    }
                }
            }
        }
    }

    fn hand_out(&self, message: Arc<Message>) {
        let shared = &self.shared;
        shared.telemetry.received.inc();
        let token = message.subject.as_str().rsplit('.').next().and_then(|token| token.parse::<u64>().ok());
        {
            let waiting = shared.waiting.lock();
            if let Some(sender) = token.and_then(|token| waiting.get(&token)) {
                // A full channel belongs to a reply stream whose responder ignores the window: the number of the
                // lost frame will be missed.
                if sender.try_send(message).is_err() {
                    shared.telemetry.late_replies.inc();
                }
                return;
            }
        }
        // A reply stream that begins when nobody wants it any more would go on until its responder stalls.
        if !shared.cancel_stream_of(&message) {
            shared.telemetry.late_replies.inc();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // Every sender goes, so that whoever waits learns that nothing will come.
        self.shared.waiting.lock().clear();
    }
}
