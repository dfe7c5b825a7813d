//! Settlements on their way: collected while one batch is under way, sent together as the next.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::Instant;

use super::backoff::Backoff;
use crate::backend::{AckToken, ConsumeError, Member, Settle, Settled};
use crate::bus::spans::Hop;

/// Most settlements of one batch.
const BATCH_MAX: usize = 512;

/// A settlement, and the key that waits for it.
#[derive(Debug, Clone)]
pub(super) struct Settling {
    pub(super) token: AckToken,
    pub(super) settle: Settle,
    pub(super) key: Option<String>,
    /// Its span, where spans are made.
    pub(super) span: Option<Hop>,
}

type UnderWay = Pin<Box<dyn Future<Output = Result<Vec<Settled>, ConsumeError>> + Send>>;

/// One batch is under way at a time, so that settlements arrive in the order they were made.
pub(super) struct Settlements {
    member: Arc<dyn Member>,
    waiting: Vec<Settling>,
    under_way: Option<(Vec<Settling>, UnderWay)>,
    backoff: Backoff,
}

impl Settlements {
    pub(super) fn new(member: Arc<dyn Member>) -> Self {
        Self { member, waiting: Vec::new(), under_way: None, backoff: Backoff::default() }
    }

    /// Settlements whose outcome is not known.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.under_way.as_ref().map_or(0, |(batch, _)| batch.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push(&mut self, settling: Settling) {
        self.waiting.push(settling);
    }

    /// Whether more time is being asked for, for whatever delivery.
    pub(super) fn is_renewing(&self) -> bool {
        let under_way = self.under_way.iter().flat_map(|(batch, _)| batch);
        under_way.chain(&self.waiting).any(|settling| settling.settle == Settle::Progress)
    }

    /// Sends the next batch, when none is under way and there is one; returns whether one is under way now.
    pub(super) fn start(&mut self) -> bool {
        if self.under_way.is_none() && !self.waiting.is_empty() && self.backoff.until().is_none() {
            let rest = self.waiting.split_off(self.waiting.len().min(BATCH_MAX));
            let batch = std::mem::replace(&mut self.waiting, rest);
            let wire = batch.iter().map(|settling| (settling.token.clone(), settling.settle)).collect();
            let member = self.member.clone();
            self.under_way = Some((batch, Box::pin(async move { member.settle(wire).await })));
        }
        self.under_way.is_some()
    }

    /// The batch under way and its outcome; waits for ever when there is none.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> (Vec<Settling>, Result<Vec<Settled>, ConsumeError>) {
        let result = match &mut self.under_way {
            Some((_, under_way)) => under_way.await,
            None => pending().await,
        };
        if result.is_ok() {
            self.backoff.reset();
        }
        let batch = self.under_way.take().map(|(batch, _)| batch).unwrap_or_default();
        (batch, result)
    }

    /// Takes a batch back whose outcome nobody knows, to send it again after a pause. Renewals are asked for anew by
    /// who needs them then.
    pub(super) fn put_back(&mut self, mut batch: Vec<Settling>) {
        batch.retain(|settling| settling.settle != Settle::Progress);
        batch.append(&mut self.waiting);
        self.waiting = batch;
        self.backoff.pause();
    }

    /// Until when nothing is sent.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.backoff.until()
    }

    pub(super) fn resume(&mut self) {
        self.backoff.resume();
    }
}
