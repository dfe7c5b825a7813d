//! The bounded inbox of a live subscription in this process.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use trunkline_core::{Message, StreamOffset};

use super::hub::Delivered;
use crate::backend::{Gap, LiveEvent};
use crate::memory::{Charge, Holding, MemoryBudget};

/// What may wait in an inbox without being charged, and the steps in which more is: so an inbox that is read touches the
/// account of the process never, and one that is not, once in so many bytes.
const STEP_BYTES: usize = 64 << 10;
/// What a message takes beside what it is counted with.
const MESSAGE_BYTES: usize = 128;

/// Messages that wait for their reader: at most `max`, and beyond the first 64 KiB only as long as the process has memory
/// for them. Past either they are dropped, counted, and reported to the reader as a gap at the place where they are missing.
#[derive(Debug)]
pub struct Inbox {
    /// Guards the queue; held for a push or a batch pop, never while waking.
    state: Mutex<State>,
    max: usize,
    /// Whose it is, for who looks on.
    owner: Option<Arc<str>>,
}

#[derive(Debug)]
struct State {
    events: VecDeque<LiveEvent>,
    /// Of the messages in `events`.
    bytes: usize,
    charge: Charge,
    /// Dropped since the last event was queued; becomes a gap before the next one.
    dropped: u64,
    closed: bool,
    reader: Option<Waker>,
}

impl Inbox {
    /// An inbox for `max` messages, at least 1, without a bound of their bytes.
    pub fn new(max: usize) -> Self {
        Self::within(max, &Arc::default())
    }

    /// An inbox for `max` messages, at least 1, as far as there is memory for them.
    pub fn within(max: usize, memory: &Arc<MemoryBudget>) -> Self {
        let state = State {
            events: VecDeque::new(),
            bytes: 0,
            charge: Charge::new(memory, Holding::Inboxes),
            dropped: 0,
            closed: false,
            reader: None,
        };
        Self { state: Mutex::new(state), max: max.max(1), owner: None }
    }

    /// Says whose it is.
    #[must_use]
    pub(super) fn owned_by(mut self, owner: Option<Arc<str>>) -> Self {
        self.owner = owner;
        self
    }

    /// The name of the component whose it is.
    pub fn owner(&self) -> Option<&Arc<str>> {
        self.owner.as_ref()
    }

    /// Queues a message, or counts it as dropped.
    pub fn push(&self, message: Arc<Message>, offset: Option<StreamOffset>) -> Delivered {
        self.queue(message, offset, true)
    }

    /// Queues a message if there is room; another reader may get it otherwise, so nothing counts as dropped.
    pub fn offer(&self, message: Arc<Message>, offset: Option<StreamOffset>) -> Delivered {
        self.queue(message, offset, false)
    }

    fn queue(&self, message: Arc<Message>, offset: Option<StreamOffset>, count: bool) -> Delivered {
        let reader = {
            let mut state = self.state.lock();
            if state.closed {
                return Delivered::Gone;
            }
            let size = size_of_message(&message);
            // A gap takes a place too, so that the bound holds whatever happens.
            if state.events.len() + usize::from(state.dropped > 0) >= self.max || !state.has_memory(size) {
                state.dropped += u64::from(count);
                return Delivered::Full;
            }
            state.queue_gap();
            state.bytes += size;
            state.events.push_back(LiveEvent::Message { message, offset });
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        Delivered::Done
    }

    /// Takes no more messages; what is queued can still be read.
    pub fn close(&self) {
        let reader = {
            let mut state = self.state.lock();
            state.closed = true;
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Moves up to `max` events to `out`; `Ready(0)` when it is closed and empty.
    pub fn poll_batch(&self, cx: &mut Context<'_>, max: usize, out: &mut Vec<LiveEvent>) -> Poll<usize> {
        let mut state = self.state.lock();
        if state.events.is_empty() {
            // Everything queued has been read, so what was dropped since is reported now and not with the next message.
            state.queue_gap();
        }
        let n = state.events.len().min(max);
        if n == 0 && !state.closed {
            match &mut state.reader {
                Some(known) if known.will_wake(cx.waker()) => {}
                reader => *reader = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let before = out.len();
        out.extend(state.events.drain(..n));
        let taken = |event: &LiveEvent| match event {
            LiveEvent::Message { message, .. } => size_of_message(message),
            LiveEvent::Gap(_) => 0,
        };
        state.bytes -= out[before..].iter().map(taken).sum::<usize>();
        state.give_back();
        Poll::Ready(n)
    }
}

fn size_of_message(message: &Message) -> usize {
    message.size_bytes() + MESSAGE_BYTES
}

impl State {
    /// Charges what `more` bytes take beyond what is charged; `false` when the process has no memory for them.
    fn has_memory(&mut self, more: usize) -> bool {
        let (wanted, charged) = (self.bytes + more, self.charge.bytes());
        if wanted <= charged + STEP_BYTES {
            return true;
        }
        if self.charge.budget().is_exceeded() {
            return false;
        }
        self.charge.set(wanted.next_multiple_of(STEP_BYTES));
        true
    }

    fn give_back(&mut self) {
        if self.charge.bytes() > self.bytes + 2 * STEP_BYTES {
            self.charge.set(self.bytes / STEP_BYTES * STEP_BYTES);
            if self.events.is_empty() {
                self.events = VecDeque::new();
            }
        }
    }

    fn queue_gap(&mut self) {
        if self.dropped > 0 {
            let missed = Some(std::mem::take(&mut self.dropped));
            self.events.push_back(LiveEvent::Gap(Gap { missed }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_core::Subject;

    fn message(n: usize) -> Arc<Message> {
        Arc::new(Message::new(Subject::new("a").unwrap(), n.to_string()))
    }

    fn read(inbox: &Inbox, max: usize) -> Vec<String> {
        let mut out = Vec::new();
        let _ = inbox.poll_batch(&mut Context::from_waker(Waker::noop()), max, &mut out);
        out.iter()
            .map(|event| match event {
                LiveEvent::Message { message, .. } => String::from_utf8_lossy(&message.payload).into_owned(),
                LiveEvent::Gap(gap) => format!("gap {:?}", gap.missed),
            })
            .collect()
    }

    #[test]
    fn what_does_not_fit_becomes_a_gap_where_it_is_missing() {
        let inbox = Inbox::new(2);
        for n in 0..5 {
            let expected = if n < 2 { Delivered::Done } else { Delivered::Full };
            assert_eq!(inbox.push(message(n), None), expected);
        }
        assert_eq!(read(&inbox, 10), ["0", "1"]);
        assert_eq!(inbox.push(message(5), None), Delivered::Done);
        assert_eq!(read(&inbox, 10), ["gap Some(3)", "5"]);
        assert!(read(&inbox, 10).is_empty());
    }

    #[test]
    fn a_trailing_gap_is_reported_without_another_message() {
        let inbox = Inbox::new(1);
        inbox.push(message(0), None);
        inbox.push(message(1), None);
        assert_eq!(read(&inbox, 10), ["0"]);
        assert_eq!(read(&inbox, 10), ["gap Some(1)"]);
    }

    #[test]
    fn what_there_is_no_memory_for_becomes_a_gap_and_what_is_read_is_given_back() {
        let memory = Arc::new(MemoryBudget::new(8 << 20));
        let (inbox, small) = (Inbox::within(1000, &memory), Inbox::within(1000, &memory));
        let large = Arc::new(Message::new(Subject::new("a").unwrap(), vec![0; 1 << 20]));
        let outcomes: Vec<_> = (0..6).map(|_| inbox.push(large.clone(), None)).collect();
        // The one that goes beyond the limit of 4 MiB is taken; from then on none is.
        assert_eq!(outcomes.iter().filter(|outcome| **outcome == Delivered::Done).count(), 4, "{outcomes:?}");
        assert!(memory.is_exceeded() && memory.held(Holding::Inboxes) == memory.used());
        assert_eq!(small.push(message(1), None), Delivered::Done, "a little is always taken");
        assert_eq!(read(&inbox, 4).len(), 4);
        assert!(memory.used() <= 2 * STEP_BYTES, "{}", memory.used());
        assert_eq!(inbox.push(message(7), None), Delivered::Done);
        assert_eq!(read(&inbox, 10), ["gap Some(2)", "7"]);
        drop((inbox, small));
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn a_closed_inbox_gives_out_the_rest_and_then_ends() {
        let inbox = Inbox::new(10);
        inbox.push(message(0), None);
        inbox.close();
        assert_eq!(inbox.push(message(1), None), Delivered::Gone);
        assert_eq!(read(&inbox, 10), ["0"]);
        let mut out = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(inbox.poll_batch(&mut cx, 10, &mut out), Poll::Ready(0));
    }
}
