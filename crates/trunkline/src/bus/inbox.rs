//! Where replies come in: one subscription for a whole bus, told apart by the last token of the subject.
//!
//! A waiter registers, sends the token's subject along as `reply`, and is handed every message that comes to it.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{OnceCell, mpsc, oneshot};
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
    waiting: Mutex<HashMap<u64, Asked, foldhash::fast::RandomState>>,
    tokens: AtomicU64,
    waiting_max: usize,
    /// Set when the reader has ended: no reply comes any more.
    ended: AtomicBool,
    telemetry: Telemetry,
    /// Whoever waits holds the bus; the reader does not, or it would never go.
    bus: Weak<Inner>,
}

/// Where the replies to one token go.
enum Asked {
    /// To who wants the first, and no other: this is the cheaper way, and the one of almost all requests.
    One(oneshot::Sender<Arc<Message>>),
    /// To who wants several.
    Many(mpsc::Sender<Arc<Message>>),
}

/// Why nobody can wait for a reply.
#[derive(Debug)]
pub(crate) enum InboxError {
    Subscribe(SubscribeError),
    /// As many wait as may.
    Full(usize),
}

/// Somebody who waits for replies, or for one; dropping it ends the wait.
pub(crate) struct Waiter<M: TakeLeft = mpsc::Receiver<Arc<Message>>> {
    pub(crate) reply: Subject,
    pub(crate) messages: M,
    token: u64,
    shared: Arc<Shared>,
    _in_flight: Counted,
}

/// The receiving end of an [`Asked`].
pub(crate) trait TakeLeft {
    /// What came and nobody has looked at.
    fn take_left(&mut self) -> Option<Arc<Message>>;
}

impl TakeLeft for mpsc::Receiver<Arc<Message>> {
    fn take_left(&mut self) -> Option<Arc<Message>> {
        self.try_recv().ok()
    }
}

impl TakeLeft for oneshot::Receiver<Arc<Message>> {
    fn take_left(&mut self) -> Option<Arc<Message>> {
        self.try_recv().ok()
    }
}

impl InboxSlot {
    /// Registers a waiter with room for `capacity` replies that nobody has looked at yet.
    pub(crate) async fn register(&self, inner: &Arc<Inner>, capacity: usize) -> Result<Waiter, InboxError> {
        let inbox = self.inbox(inner).await?;
        let (sender, messages) = mpsc::channel(capacity);
        inbox.register(Asked::Many(sender), messages)
    }

    /// Registers a waiter for the first reply.
    pub(crate) async fn register_one(
        &self,
        inner: &Arc<Inner>,
    ) -> Result<Waiter<oneshot::Receiver<Arc<Message>>>, InboxError> {
        let inbox = self.inbox(inner).await?;
        let (sender, message) = oneshot::channel();
        inbox.register(Asked::One(sender), message)
    }

    async fn inbox(&self, inner: &Arc<Inner>) -> Result<Inbox, InboxError> {
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
            return Ok(inbox.clone());
        }
    }
}

impl Inbox {
    async fn open(inner: &Arc<Inner>) -> Result<Self, SubscribeError> {
        let prefix = inner.backend.new_inbox();
        let pattern =
            Pattern::new(format!("{prefix}.*")).expect("a subject and one more token make a pattern");
        let options = SubscribeOptions {
            max_pending: inner.options.max_pending,
            name: Some(inner.name.clone()),
            ..Default::default()
        };
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

    fn register<M: TakeLeft>(self, asked: Asked, messages: M) -> Result<Waiter<M>, InboxError> {
        let shared = self.shared;
        let token = shared.tokens.fetch_add(1, Ordering::Relaxed);
        let reply =
            Subject::new(format!("{}.{token}", shared.prefix)).expect("an inbox and a number make a subject");
        let mut waiting = shared.waiting.lock();
        if waiting.len() >= shared.waiting_max {
            return Err(InboxError::Full(shared.waiting_max));
        }
        waiting.insert(token, asked);
        drop(waiting);
        let in_flight = Counted::one(&shared.telemetry.requests_in_flight);
        Ok(Waiter { reply, messages, token, shared, _in_flight: in_flight })
    }
}

impl<M: TakeLeft> Waiter<M> {
    /// Ends the wait. A reply stream that has begun and that nobody has looked at is cancelled; so is one that begins
    /// later, by the reader.
    pub(crate) fn close(&mut self) {
        self.shared.waiting.lock().remove(&self.token);
        while let Some(message) = self.messages.take_left() {
            self.shared.cancel_stream_of(&message);
        }
    }
}

impl<M: TakeLeft> Drop for Waiter<M> {
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
        let mut message = message;
        if let Some(token) = token {
            let mut waiting = shared.waiting.lock();
            match waiting.get(&token) {
                Some(Asked::Many(sender)) => {
                    // A full channel belongs to a reply stream whose responder ignores the window: the number of the
                    // lost frame will be missed.
                    if sender.try_send(message).is_err() {
                        shared.telemetry.late_replies.inc();
                    }
                    return;
                }
                Some(Asked::One(_)) => {
                    if let Some(Asked::One(sender)) = waiting.remove(&token) {
                        match sender.send(message) {
                            Ok(()) => return,
                            // Who asked has just gone.
                            Err(unwanted) => message = unwanted,
                        }
                    }
                }
                None => {}
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
