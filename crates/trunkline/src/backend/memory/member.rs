//! A member of a consumer in this process.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::consumer::{Consumer, MemberId};
use super::streams::StreamHandle;
use crate::backend::{AckToken, ConsumeError, Fetched, Fut, Lease, Member, Settle, Settled};

/// Longest wait for a time that is not known to come: a fetch always ends.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

pub(super) struct MemoryMember {
    stream: StreamHandle,
    consumer: String,
    id: MemberId,
    name: String,
    left: AtomicBool,
}

impl MemoryMember {
    pub(super) fn new(stream: StreamHandle, consumer: String, id: MemberId) -> Self {
        Self { stream, consumer, id, name: format!("member-{id}"), left: AtomicBool::new(false) }
    }

    /// Looks once: something to give, or since when to look again, registering the task for news.
    fn look(&self, cx: &std::task::Context<'_>, max: usize) -> Result<Look, ConsumeError> {
        if self.left.load(Ordering::Acquire) {
            return Err(ConsumeError::Closed);
        }
        let now = Instant::now();
        let mut state = self.stream.lock();
        let Some((consumer, log)) = state.consumer(&self.consumer) else {
            return Err(self.stream.gone(&self.consumer));
        };
        let fetched = consumer.fetch(log, self.id, max, now);
        if !fetched.deliveries.is_empty() || fetched.missed > 0 {
            return Ok(Look::Found(fetched));
        }
        let due = consumer.next_due().filter(|_| consumer.may_fetch(self.id, now));
        state.wait(cx);
        Ok(Look::Nothing { due })
    }

    async fn fetch_within(&self, max: usize, wait: Duration) -> Result<Fetched, ConsumeError> {
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let timer = tokio::time::sleep_until(deadline);
        tokio::pin!(timer);
        poll_fn(|cx| {
            loop {
                let due = match self.look(cx, max.max(1)) {
                    Err(error) => return Poll::Ready(Err(error)),
                    Ok(Look::Found(fetched)) => return Poll::Ready(Ok(fetched)),
                    Ok(Look::Nothing { due }) => due,
                };
                timer.as_mut().reset(due.map_or(deadline, |due| due.min(deadline)));
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if Instant::now() >= deadline {
                    return Poll::Ready(Ok(Fetched::default()));
                }
            }
        })
        .await
    }

    fn leave_now(&self, hand_back: bool) {
        if !self.left.swap(true, Ordering::AcqRel) {
            self.stream.change(|state| {
                if let Some((consumer, _)) = state.consumer(&self.consumer) {
                    consumer.remove_member(self.id, hand_back, Instant::now());
                }
            });
        }
    }

    /// Acts on the consumer without waking anybody.
    fn act_quietly<T>(&self, act: impl FnOnce(&mut Consumer, Instant) -> T) -> Result<T, ConsumeError> {
        if self.left.load(Ordering::Acquire) {
            return Err(ConsumeError::Closed);
        }
        let mut state = self.stream.lock();
        let (consumer, _) = state.consumer(&self.consumer).ok_or_else(|| self.stream.gone(&self.consumer))?;
        Ok(act(consumer, Instant::now()))
    }

    /// Acts on the consumer, and wakes other members that this may have given something to.
    fn act<T>(&self, act: impl FnOnce(&mut Consumer, Instant) -> T) -> Result<T, ConsumeError> {
        if self.left.load(Ordering::Acquire) {
            return Err(ConsumeError::Closed);
        }
        let done = self.stream.change(|state| {
            state.consumer(&self.consumer).map(|(consumer, _)| act(consumer, Instant::now()))
        });
        done.ok_or_else(|| self.stream.gone(&self.consumer))
    }
}

enum Look {
    Found(Fetched),
    Nothing { due: Option<Instant> },
}

impl Member for MemoryMember {
    fn name(&self) -> &str {
        &self.name
    }

    fn fetch(&self, max: usize, wait: Duration) -> Fut<'_, Result<Fetched, ConsumeError>> {
        Box::pin(self.fetch_within(max, wait))
    }

    fn settle(&self, batch: Vec<(AckToken, Settle)>) -> Fut<'_, Result<Vec<Settled>, ConsumeError>> {
        let settle_all = |consumer: &mut Consumer, now| {
            batch.iter().map(|(token, settle)| consumer.settle(self.id, token, *settle, now)).collect()
        };
        // Only a nak gives other members something to do; waking them for every ack would cost more than the ack.
        let settled = match batch.iter().any(|(_, settle)| matches!(settle, Settle::Nak(_))) {
            true => self.act(settle_all),
            false => self.act_quietly(settle_all),
        };
        Box::pin(std::future::ready(settled))
    }

    fn lease(&self, ttl: Duration) -> Fut<'_, Result<Lease, ConsumeError>> {
        let lease = self.act(|consumer, now| consumer.lease(self.id, ttl, now));
        Box::pin(std::future::ready(lease))
    }

    fn leave(&self) -> Fut<'_, Result<(), ConsumeError>> {
        self.leave_now(true);
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Drop for MemoryMember {
    fn drop(&mut self) {
        self.leave_now(false);
    }
}
