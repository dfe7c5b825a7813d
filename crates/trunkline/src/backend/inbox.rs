//! What waits for the reader of one subscription: bounded, and exact about what it could not keep.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::live::{Gap, LiveEvent};
use crate::memory::{Holding, MemoryBudget, QueueBytes};

/// Most bytes that are given out at once, beyond one message: what a reader has taken is charged to nobody any more.
const TAKEN_BYTES_MAX: usize = 4 << 20;
/// What a message takes beside what it is counted with.
const MESSAGE_BYTES: usize = 128;

/// Messages and gaps between the task that receives them and the reader.
pub(super) struct Inbox {
    /// Most messages that wait; gaps do not count, for there is at most one of each kind between two messages.
    max_messages: usize,
    /// What there is no memory for is dropped; where whoever fills it asks only for what there is room for, nothing is.
    bounded: bool,
    /// Held for the time of moving a batch in or out, never across an await; no other lock is taken inside.
    state: Mutex<State>,
    /// The reader has taken something: there is room.
    taken: Notify,
}

struct State {
    events: VecDeque<LiveEvent>,
    messages: usize,
    /// Of those messages.
    bytes: QueueBytes,
    /// Messages dropped since the last event in `events`: reported before whatever comes next.
    dropped: u64,
    /// A connection was away, or the client library dropped messages, since the last event in `events`.
    unknown: bool,
    closed: bool,
    reader: Option<Waker>,
}

impl Inbox {
    /// For so many messages, and beyond the first 64 KiB only as long as the process has memory for them.
    pub(super) fn within(max_messages: usize, memory: &Arc<MemoryBudget>) -> Self {
        Self::new(max_messages, memory, true)
    }

    /// The same for who asks for messages when there is [`Inbox::room`]: what has come is charged, and none of it refused for
    /// want of memory.
    pub(super) fn for_asked(max_messages: usize, memory: &Arc<MemoryBudget>) -> Self {
        Self::new(max_messages, memory, false)
    }

    fn new(max_messages: usize, memory: &Arc<MemoryBudget>, bounded: bool) -> Self {
        let state = State {
            events: VecDeque::new(),
            messages: 0,
            bytes: QueueBytes::new(memory, Holding::Inboxes),
            dropped: 0,
            unknown: false,
            closed: false,
            reader: None,
        };
        Self { max_messages: max_messages.max(1), bounded, state: Mutex::new(state), taken: Notify::new() }
    }

    /// Moves a batch in; what there is no room for is dropped and counted, before any reader can see the gap.
    pub(super) fn push(&self, batch: &mut Vec<LiveEvent>, dropped: &AtomicU64) {
        let waker = {
            let mut state = self.state.lock();
            for event in batch.drain(..) {
                match event {
                    LiveEvent::Gap(Gap { missed: None }) => state.unknown = true,
                    LiveEvent::Gap(Gap { missed: Some(missed) }) => state.dropped += missed,
                    message @ LiveEvent::Message { .. } => {
                        if state.messages >= self.max_messages || !self.takes(&mut state, &message) {
                            state.dropped += 1;
                            dropped.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        state.settle_gaps();
                        state.events.push_back(message);
                        state.messages += 1;
                    }
                }
            }
            state.reader.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves a message in if there is room and somebody to read it; else it is given back, for another reader.
    #[cfg_attr(
        not(feature = "redis"),
        expect(dead_code, reason = "only backend redis shares messages out itself")
    )]
    pub(super) fn offer(&self, message: LiveEvent) -> Result<(), LiveEvent> {
        let waker = {
            let mut state = self.state.lock();
            if state.closed || state.messages >= self.max_messages || !self.takes(&mut state, &message) {
                return Err(message);
            }
            state.settle_gaps();
            state.events.push_back(message);
            state.messages += 1;
            state.reader.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Counts the bytes of a message that is to be queued; `false` when the process has no memory for it.
    fn takes(&self, state: &mut State, message: &LiveEvent) -> bool {
        let bytes = size_of_event(message);
        if self.bounded {
            return state.bytes.take(bytes);
        }
        state.bytes.take_anyway(bytes);
        true
    }

    /// Whether there is room for a message, and somebody to read it.
    #[cfg_attr(
        not(feature = "redis"),
        expect(dead_code, reason = "only backend redis shares messages out itself")
    )]
    pub(super) fn has_room(&self) -> bool {
        let state = self.state.lock();
        !state.closed && state.messages < self.max_messages
    }

    /// Waits until half of the room is free and the process is not short of memory, or nobody reads any more.
    pub(super) async fn room(&self) {
        loop {
            let taken = self.taken.notified();
            {
                let state = self.state.lock();
                // Where memory is short there is room when everything has been read.
                let is_short = state.messages > 0 && state.bytes.is_short();
                if state.closed || (state.messages * 2 <= self.max_messages && !is_short) {
                    return;
                }
            }
            taken.await;
        }
    }

    /// Here messages are missing, nobody knows how many.
    pub(super) fn push_unknown_gap(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.unknown = true;
            state.reader.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Nothing more will come; what is here is still given out.
    pub(super) fn close(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.closed = true;
            state.reader.take()
        };
        self.taken.notify_waiters();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// See [`crate::backend::live::LiveSource::poll_batch`].
    pub(super) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        max: usize,
        out: &mut Vec<LiveEvent>,
    ) -> Poll<usize> {
        let mut state = self.state.lock();
        // A full queue keeps its gap for later: the gap stands behind everything that waits.
        if state.events.len() < max.max(1) {
            state.settle_gaps();
        }
        let count = state.events.len().min(max.max(1));
        if count == 0 && !state.closed {
            if !state.reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.reader = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let (count, bytes) = state.part(count);
        let before = out.len();
        out.extend(state.events.drain(..count));
        let messages =
            out[before..].iter().filter(|event| matches!(event, LiveEvent::Message { .. })).count();
        state.messages -= messages;
        state.bytes.give_back(bytes);
        drop(state);
        self.taken.notify_waiters();
        Poll::Ready(count)
    }
}

fn size_of_event(event: &LiveEvent) -> usize {
    match event {
        LiveEvent::Message { message, .. } => message.size_bytes() + MESSAGE_BYTES,
        LiveEvent::Gap(_) => 0,
    }
}

impl State {
    /// How many of the first `most` events may be taken at once, and their bytes.
    fn part(&self, most: usize) -> (usize, usize) {
        let mut bytes = 0;
        for (count, event) in self.events.iter().take(most).enumerate() {
            let more = size_of_event(event);
            if count > 0 && bytes + more > TAKEN_BYTES_MAX {
                return (count, bytes);
            }
            bytes += more;
        }
        (most, bytes)
    }

    /// Puts what is missing at the end of the queue.
    fn settle_gaps(&mut self) {
        if self.dropped > 0 {
            let missed = Some(std::mem::take(&mut self.dropped));
            self.events.push_back(LiveEvent::Gap(Gap { missed }));
        }
        if std::mem::take(&mut self.unknown) {
            self.events.push_back(LiveEvent::Gap(Gap { missed: None }));
        }
    }
}

#[cfg(test)]
mod tests {
    use trunkline_core::{Message, Subject};

    use super::*;

    fn message(n: usize) -> LiveEvent {
        let message = Message::new(Subject::new("a").unwrap(), n.to_string());
        LiveEvent::Message { message: Arc::new(message), offset: None }
    }

    fn inbox(max_messages: usize) -> Inbox {
        Inbox::within(max_messages, &Arc::default())
    }

    fn push(inbox: &Inbox, numbers: std::ops::Range<usize>) {
        inbox.push(&mut numbers.map(message).collect(), &AtomicU64::new(0));
    }

    /// What a reader gets now, as text: numbers, `gap N`, `gap ?`, `end`.
    fn take(inbox: &Inbox, max: usize) -> String {
        let mut out = Vec::new();
        match inbox.poll_take(&mut Context::from_waker(Waker::noop()), max, &mut out) {
            Poll::Pending => return "pending".to_owned(),
            Poll::Ready(0) => return "end".to_owned(),
            Poll::Ready(count) => assert_eq!(count, out.len()),
        }
        let texts: Vec<String> = out
            .iter()
            .map(|event| match event {
                LiveEvent::Message { message, .. } => String::from_utf8_lossy(&message.payload).into_owned(),
                LiveEvent::Gap(Gap { missed: Some(n) }) => format!("gap {n}"),
                LiveEvent::Gap(Gap { missed: None }) => "gap ?".to_owned(),
            })
            .collect();
        texts.join(", ")
    }

    #[test]
    fn what_there_is_no_room_for_becomes_one_exact_gap_in_its_place() {
        let inbox = inbox(2);
        push(&inbox, 0..5);
        assert_eq!(take(&inbox, 1), "0");
        push(&inbox, 5..7);
        assert_eq!(take(&inbox, 10), "1, gap 3, 5, gap 1");
        assert_eq!(take(&inbox, 10), "pending");
        push(&inbox, 7..8);
        assert_eq!(take(&inbox, 10), "7");
    }

    #[test]
    fn a_broken_connection_shows_even_when_nothing_follows() {
        let inbox = inbox(2);
        push(&inbox, 0..3);
        inbox.push_unknown_gap();
        inbox.push_unknown_gap();
        assert_eq!(take(&inbox, 2), "0, 1");
        assert_eq!(take(&inbox, 10), "gap 1, gap ?");
    }

    #[test]
    fn what_there_is_no_memory_for_becomes_a_gap() {
        let memory = Arc::new(MemoryBudget::new(8 << 20));
        let inbox = Inbox::within(1000, &memory);
        let large = || {
            let message = Message::new(Subject::new("a").unwrap(), vec![b'x'; 1 << 20]);
            LiveEvent::Message { message: Arc::new(message), offset: None }
        };
        let dropped = AtomicU64::new(0);
        inbox.push(&mut (0..6).map(|_| large()).collect(), &dropped);
        assert_eq!(dropped.into_inner(), 2, "beyond the limit of 4 MiB nothing is taken");
        assert!(inbox.offer(large()).is_err() && memory.is_exceeded());
        let mut taken = Vec::new();
        while !taken.last().is_some_and(|last: &String| last.ends_with("gap 2")) {
            taken.push(take(&inbox, 10));
        }
        assert_eq!(taken.len(), 2, "4 MiB at most are given out at once");
        assert!(memory.used() <= 128 << 10, "{}", memory.used());
        drop(inbox);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn after_the_end_what_waits_is_given_out_first() {
        let inbox = inbox(1);
        push(&inbox, 0..2);
        inbox.close();
        assert_eq!(take(&inbox, 1), "0");
        assert_eq!(take(&inbox, 1), "gap 1");
        assert_eq!(take(&inbox, 1), "end");
    }
}
