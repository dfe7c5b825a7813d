//! One message's outcome, from the writer to whoever published it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::backend::{PublishError, Receipt};

type Outcome = Result<Receipt, PublishError>;

/// Where the outcome lies until it is fetched. Held for a few instructions; wakers are called outside of it.
struct Slot(Mutex<State>);

enum State {
    /// Not known; who is to be woken when it is.
    Open(Option<Waker>),
    Known(Outcome),
    Fetched,
}

/// The writer's end. Dropped without an outcome it says that the backend is closed.
pub(super) struct Ticket(Option<Arc<Slot>>);

/// The publisher's end; dropping it takes nothing back.
pub(super) struct Waiting(Arc<Slot>);

/// Both ends.
pub(super) fn ticket() -> (Ticket, Waiting) {
    let slot = Arc::new(Slot(Mutex::new(State::Open(None))));
    (Ticket(Some(slot.clone())), Waiting(slot))
}

impl Ticket {
    /// Tells the outcome, unless one was told before. `false` when nobody waits for it.
    pub(super) fn tell(&mut self, outcome: Outcome) -> bool {
        let Some(slot) = self.0.take() else { return true };
        if Arc::strong_count(&slot) == 1 {
            return false;
        }
        let before = std::mem::replace(&mut *slot.0.lock(), State::Known(outcome));
        if let State::Open(Some(waker)) = before {
            waker.wake();
        }
        true
    }

    /// Whether the outcome was told.
    pub(super) fn is_told(&self) -> bool {
        self.0.is_none()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_told() {
            self.tell(Err(PublishError::Closed));
        }
    }
}

impl Future for Waiting {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.0.0.lock();
        match &mut *state {
            State::Open(Some(waker)) if waker.will_wake(cx.waker()) => Poll::Pending,
            State::Open(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            State::Known(_) => match std::mem::replace(&mut *state, State::Fetched) {
                State::Known(outcome) => Poll::Ready(outcome),
                State::Open(_) | State::Fetched => Poll::Ready(Err(PublishError::Closed)),
            },
            State::Fetched => Poll::Ready(Err(PublishError::Closed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_first_outcome_is_the_one_that_counts() {
        let (mut ticket, mut waiting) = ticket();
        assert!((&mut waiting).now_or_never().is_none());
        assert!(ticket.tell(Ok(Receipt::Accepted)));
        assert!(ticket.tell(Err(PublishError::Closed)), "told before");
        drop(ticket);
        assert_eq!(waiting.now_or_never(), Some(Ok(Receipt::Accepted)));
    }

    #[test]
    fn a_ticket_that_is_dropped_says_that_the_backend_is_closed() {
        let (dropped, waiting) = ticket();
        drop(dropped);
        assert_eq!(waiting.now_or_never(), Some(Err(PublishError::Closed)));
    }

    #[test]
    fn nobody_is_told_where_nobody_waits() {
        let (mut ticket, waiting) = ticket();
        drop(waiting);
        assert!(!ticket.tell(Ok(Receipt::Accepted)));
    }
}
