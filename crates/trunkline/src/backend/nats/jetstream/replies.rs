//! What the server answers: confirmations of stored messages and of settlements, and the API's answers.
//!
//! One subscription takes them all; the last token of the reply subject tells whose answer it is. The token before
//! marks such a reply subject for other members of the bus: a stored message is seen live with it, and nobody but
//! the server may answer there.

use std::fmt::Write as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::Stream as _;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::backend::nats::link::Link;
use crate::backend::nats::message::CONFIRMATION;

/// How often what is overdue is looked for: an answer that does not come is given up at most so much too late.
const SWEEP_INTERVAL: Duration = Duration::from_millis(50);

/// Most subjects of which refusals are still expected.
const TOLD_MAX: usize = 1024;
/// Most answers that are handed out at once.
const BATCH: usize = 128;
/// Room for the number of an answer in its subject, with the dot before it.
const NUMBER_BYTES: usize = 21;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoReply {
    /// The server's permissions do not allow what was sent; this is what it said.
    Denied(String),
    /// The connection broke, so none will come.
    Broken,
    /// None came in time.
    Silent,
}

/// Who waits for which answer.
pub(super) struct Replies {
    /// All subjects of answers, up to and with the last dot.
    prefix: String,
    next: AtomicU64,
    /// Held for one map operation, or for one pass over the map by the task; no other lock is taken inside.
    waiting: Mutex<HashMap<u64, Waiting, foldhash::fast::RandomState>>,
    /// Refusals of this connection that will still come for what has been told of an earlier one, by subject. Held as
    /// `waiting` is.
    told: Mutex<HashMap<String, usize, foldhash::fast::RandomState>>,
    /// The time of the latest sweep, in nanoseconds after `began`.
    swept: AtomicU64,
    began: Instant,
}

struct Waiting {
    answer: oneshot::Sender<Result<async_nats::Message, NoReply>>,
    /// Where that went which is to be answered.
    asked: async_nats::Subject,
    connection: u64,
    deadline: Instant,
    /// Its place among the publishes under way: free again as soon as the answer is there, looked at or not.
    _place: Option<OwnedSemaphorePermit>,
}

/// Answers that came together, and who asked for each.
#[derive(Default)]
struct Batch {
    answers: Vec<async_nats::Message>,
    asked: Vec<Option<Waiting>>,
}

/// One answer that is waited for; forgotten when dropped.
pub(super) struct Awaited {
    replies: Arc<Replies>,
    id: u64,
    answer: oneshot::Receiver<Result<async_nats::Message, NoReply>>,
}

impl Replies {
    pub(super) fn new(inbox: &str) -> Self {
        Self {
            prefix: format!("{inbox}.{CONFIRMATION}."),
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
            told: Mutex::default(),
            swept: AtomicU64::new(0),
            began: Instant::now(),
        }
    }

    /// A time not long ago, at most that between two sweeps unless the machine is overloaded: for where looking at the
    /// clock would cost more than the rest.
    pub(super) fn recently(&self) -> Instant {
        self.began + Duration::from_nanos(self.swept.load(Ordering::Relaxed))
    }

    /// What to subscribe to.
    pub(super) fn pattern(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// Expects an answer, on this connection until the deadline, to what is sent to `asked`.
    pub(super) fn expect(
        self: &Arc<Self>,
        asked: async_nats::Subject,
        connection: u64,
        deadline: Instant,
        place: Option<OwnedSemaphorePermit>,
    ) -> Awaited {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let waiting = Waiting { answer: sender, asked, connection, deadline, _place: place };
        self.waiting.lock().insert(id, waiting);
        Awaited { replies: self.clone(), id, answer }
    }

    /// The task that takes the answers. Ends with `stop`, or when the library has closed the connection for good.
    pub(super) async fn run(
        self: Arc<Self>,
        link: Arc<Link>,
        mut answers: Subscriber,
        stop: CancellationToken,
    ) {
        let mut stopped = pin!(stop.cancelled());
        let (mut status, mut announced) = (link.status(), link.announced());
        let mut batch = Batch::default();
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => break,
                // Before the answers, of which there may be some at every turn.
                now = sweep.tick() => {
                    let after = u64::try_from((now - self.began).as_nanos()).unwrap_or(u64::MAX);
                    self.swept.store(after, Ordering::Relaxed);
                    self.give_up(&NoReply::Silent, |waiting| waiting.deadline <= now);
                }
                more = std::future::poll_fn(|cx| self.poll_answers(cx, &mut answers, &mut batch)) => {
                    if !more {
                        break;
                    }
                }
                _ = status.changed() => {
                    if !status.borrow_and_update().state.is_ready() {
                        self.give_up(&NoReply::Broken, |_| true);
                    }
                }
                _ = announced.changed() => {
                    // The loss before may have come and gone between two looks.
                    let connection = *announced.borrow_and_update();
                    self.told.lock().clear();
                    self.give_up(&NoReply::Broken, |waiting| waiting.connection != connection);
                }
            }
        }
        self.give_up(&NoReply::Broken, |_| true);
    }

    /// The server refused what was sent to this subject. `false` when nobody waits for an answer to it.
    ///
    /// The server names the subject and not the message, so all that is under way to it counts as refused. That is
    /// wrong only for what it took before its permissions changed and has not confirmed yet.
    pub(super) fn refuse(&self, subject: &str, reason: &str) -> bool {
        let denied = NoReply::Denied(reason.to_owned());
        let refused = self.give_up(&denied, |waiting| waiting.asked.as_str() == subject);
        let mut told = self.told.lock();
        if refused == 0 {
            // Each message has a refusal of its own.
            let Some(left) = told.get_mut(subject) else { return false };
            *left -= 1;
            if *left == 0 {
                told.remove(subject);
            }
        } else if refused > 1 {
            // The library drops reports when there are too many: then some of these never come.
            if told.len() >= TOLD_MAX {
                told.clear();
            }
            *told.entry(subject.to_owned()).or_default() += refused - 1;
        }
        true
    }

    /// Hands out what is there; `false` at the end.
    fn poll_answers(&self, cx: &mut Context<'_>, answers: &mut Subscriber, batch: &mut Batch) -> Poll<bool> {
        let mut ended = false;
        while batch.answers.len() < BATCH {
            match Pin::new(&mut *answers).poll_next(cx) {
                Poll::Ready(Some(answer)) => batch.answers.push(answer),
                Poll::Ready(None) => {
                    ended = true;
                    break;
                }
                Poll::Pending if batch.answers.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        self.hand_out(batch);
        Poll::Ready(!ended)
    }

    fn hand_out(&self, batch: &mut Batch) {
        {
            let mut waiting = self.waiting.lock();
            for answer in &batch.answers {
                let id = answer.subject.strip_prefix(&*self.prefix).and_then(|id| id.parse().ok());
                batch.asked.push(id.and_then(|id: u64| waiting.remove(&id)));
            }
        }
        for (answer, asked) in batch.answers.drain(..).zip(batch.asked.drain(..)) {
            if let Some(asked) = asked {
                // Who asked may have gone meanwhile.
                let _ = asked.answer.send(Ok(answer));
            }
        }
    }

    /// Tells those who wait for such answers that none will come, and returns how many they were.
    fn give_up(&self, why: &NoReply, which: impl Fn(&Waiting) -> bool) -> usize {
        let overdue: Vec<Waiting> = {
            let mut waiting = self.waiting.lock();
            waiting.extract_if(|_, waiting| which(waiting)).map(|(_, waiting)| waiting).collect()
        };
        let count = overdue.len();
        for waiting in overdue {
            let _ = waiting.answer.send(Err(why.clone()));
        }
        count
    }
}

impl Awaited {
    /// The subject that the answer must go to.
    pub(super) fn reply(&self) -> async_nats::Subject {
        let mut reply = String::with_capacity(self.replies.prefix.len() + NUMBER_BYTES);
        reply.push_str(&self.replies.prefix);
        // Writing to a `String` cannot fail.
        let _ = write!(reply, "{}", self.id);
        reply.into()
    }

    /// The answer. Ends by itself at the deadline, so it needs no timer where it is awaited.
    pub(super) async fn answer(mut self) -> Result<async_nats::Message, NoReply> {
        (&mut self.answer).await.unwrap_or(Err(NoReply::Broken))
    }

    /// What the server says when it refuses what was asked. Never ends otherwise: the answer, if there is one, goes
    /// elsewhere.
    pub(super) async fn denial(self) -> String {
        match self.answer().await {
            Err(NoReply::Denied(reason)) => reason,
            Ok(_) | Err(NoReply::Broken | NoReply::Silent) => std::future::pending().await,
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.replies.waiting.lock().remove(&self.id);
    }
}
