//! When a member asks for more, for how much, and what it does with what comes.

use std::time::Duration;

use tokio::time::Instant;
use tower::Service;

use super::Engine;
use crate::backend::{ConsumeError, Fetched};
use crate::bus::consume::delivered::Delivered;
use crate::bus::consume::lease::KeyLease;
use crate::bus::handler::BoxError;

/// Longest wait of one fetch; the next one follows at once.
const FETCH_WAIT: Duration = Duration::from_secs(5);
/// Most deliveries of one fetch.
const FETCH_MAX: usize = 256;
/// With so many handlers or more a fetch waits until there is room for half as many deliveries, while more of them are
/// stored than are wanted: the cost of a fetch is shared by what it brings.
const GATHER_FROM: usize = 32;
/// Longest such wait.
const GATHER: Duration = Duration::from_millis(1);
/// Settlements that may wait for the backend beside one for each handler; past it nothing more is fetched.
const UNSETTLED_SLACK: usize = 1024;

impl<S> Engine<S>
where
    S: Service<Delivered, Response = ()> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    fn may_fetch(&self) -> usize {
        let unsettled = self.settlements.len();
        if self.stopping
            || self.fetch_backoff.until().is_some()
            || unsettled > self.bounds.concurrency + UNSETTLED_SLACK
        {
            return 0;
        }
        if self.lease.as_ref().is_some_and(|lease| !lease.is_held()) {
            return 0;
        }
        match self.room() {
            0 => self.awaited_now(),
            room => room.min(FETCH_MAX),
        }
    }

    /// How many deliveries there is room for.
    fn room(&self) -> usize {
        let taken = self.running.len() + self.keyed.parked();
        match &self.lease {
            None => self.bounds.concurrency.saturating_sub(taken),
            // More than can be worked on: messages of busy keys must not hide those of free ones, or of no key.
            Some(_) => (self.bounds.concurrency + self.bounds.max_parked).saturating_sub(taken),
        }
    }

    /// How many keys wait for a message that may come again by now. There is always room for those: what is parked
    /// behind them would wait for ever.
    fn awaited_now(&self) -> usize {
        let now = Instant::now();
        if self.crowded_until.is_some_and(|until| now < until) {
            return 0;
        }
        self.keyed.waits().filter(|until| *until <= now + self.bounds.ack_wait).count().min(FETCH_MAX)
    }

    /// When a fetch will be due that brings back what a key waits for, although there is no room for anything else.
    pub(super) fn redelivery_due(&self) -> Option<Instant> {
        let active = self.lease.as_ref().is_some_and(KeyLease::is_held) && !self.stopping;
        let fetches = self.fetching.is_some() || self.fetch_backoff.until().is_some();
        if !active || fetches || self.room() > 0 {
            return None;
        }
        let due = self.keyed.waits().min()?.checked_sub(self.bounds.ack_wait)?;
        Some(self.crowded_until.map_or(due, |until| until.max(due)))
    }

    pub(super) fn start_fetch(&mut self) {
        let max = if self.fetching.is_some() { 0 } else { self.may_fetch() };
        if max > 0 && self.gathers(max) {
            return;
        }
        self.gathers_until = None;
        if max > 0 {
            let (member, began) = (self.member.clone(), Instant::now());
            // A key that waits for a message which does not come again is freed by a fetch that began after `ack_wait`
            // and brought nothing, so with keys no fetch may take much longer than that.
            let wait = if self.key.is_some() { FETCH_WAIT.min(self.bounds.ack_wait) } else { FETCH_WAIT };
            self.fetching = Some(Box::pin(async move { (began, max, member.fetch(max, wait).await) }));
        }
    }

    /// Whether a fetch of so many waits for more room, because some is about to be free.
    fn gathers(&mut self, room: usize) -> bool {
        let enough = self.bounds.concurrency.min(FETCH_MAX) / 2;
        if self.key.is_some() || self.bounds.concurrency < GATHER_FROM || !self.backlog || room >= enough {
            return false;
        }
        let now = Instant::now();
        *self.gathers_until.get_or_insert(now + GATHER) > now
    }

    /// What a fetch that failed or was dropped had been given is out until its leases end. With keys nothing later may be
    /// asked for before: it would overtake what is out.
    pub(super) fn let_lost_fetch_return(&mut self) {
        if self.key.is_some() {
            self.fetch_backoff.pause_until(Instant::now() + self.bounds.ack_wait);
        }
    }

    pub(super) fn fetched(
        &mut self,
        began: Instant,
        asked: usize,
        fetched: Result<Fetched, ConsumeError>,
    ) -> Result<(), ConsumeError> {
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                self.fetch_backoff.pause();
                self.let_lost_fetch_return();
                return self.retryable(error);
            }
        };
        self.fetch_backoff.reset();
        if fetched.missed > 0 {
            self.telemetry.missed.inc_by(fetched.missed);
            self.rules.show_removed(fetched.missed);
            tracing::warn!(
                stream = self.rules.stream,
                consumer = self.rules.consumer,
                missed = fetched.missed,
                "limits of the stream removed messages before they were handled"
            );
        }
        self.telemetry.delivered.inc_by(fetched.deliveries.len() as u64);
        // Redeliveries come first: what was due when a fetch began and is not in it is not coming any more.
        let first_ones = fetched.deliveries.iter().any(|delivery| delivery.attempt == 1);
        self.backlog = fetched.deliveries.len() >= asked;
        let exhausted = first_ones || !self.backlog;
        let now = Instant::now();
        for delivery in fetched.deliveries {
            self.take(delivery, now);
        }
        let bound = self.bounds.concurrency + self.bounds.max_parked;
        if first_ones && self.running.len() + self.keyed.parked() > bound {
            self.crowded_until = Some(Instant::now() + self.bounds.ack_wait / 4);
        }
        if exhausted && self.keyed.give_up_waiting(began) > 0 {
            tracing::warn!(
                consumer = self.rules.consumer,
                "a failed message was removed before its redelivery"
            );
        }
        Ok(())
    }
}
