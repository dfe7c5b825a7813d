//! Leases of what is at work or parked: how they are kept, and what becomes of those that are lost.

use tokio::time::Instant;
use tower::Service;

use super::{Engine, Running};
use crate::backend::{AckToken, Settle, Settled};
use crate::bus::consume::delivered::Delivered;
use crate::bus::consume::settle::Settling;
use crate::bus::handler::BoxError;
use crate::telemetry::Telemetry;

impl<S> Engine<S>
where
    S: Service<Delivered, Response = ()> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    /// Renews the leases of what is at work or parked, well before `ack_wait` is over, and gives up on those that could
    /// not be renewed.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        let ack_wait = self.bounds.ack_wait;
        for running in self.running.values_mut().filter(|running| now - running.renewed >= ack_wait) {
            lose(running, &self.telemetry);
        }
        if self.settlements.is_renewing() {
            return;
        }
        let due = |renewed: Instant| now - renewed >= ack_wait / 4;
        let running = self.running.values().filter(|running| !running.lost && due(running.renewed));
        let running = running.map(|running| (running.token.clone(), running.key.clone()));
        let parked = self.keyed.iter().filter(|(_, parked)| !parked.lost && due(parked.renewed));
        let parked = parked.map(|(key, parked)| (parked.delivery.token.clone(), Some(key.to_owned())));
        for (token, key) in running.chain(parked) {
            self.settlements.push(Settling { token, settle: Settle::Progress, key, span: None });
        }
    }

    /// What became of a renewal.
    pub(super) fn renewed(&mut self, token: &AckToken, key: Option<&str>, outcome: Settled) {
        let now = Instant::now();
        let parked = key.and_then(|key| self.keyed.get_mut(key, token.offset));
        if let Some(running) = self.running.values_mut().find(|running| running.token == *token) {
            match outcome {
                Settled::Done => running.renewed = now,
                Settled::LeaseLost => lose(running, &self.telemetry),
            }
        } else if let Some(parked) = parked.filter(|parked| parked.delivery.token == *token) {
            match outcome {
                Settled::Done => parked.renewed = now,
                Settled::LeaseLost => {
                    parked.lost = true;
                    self.telemetry.leases_lost.inc();
                }
            }
        }
    }

    /// Another member has the lease of the key order: all that this one holds is that one's now.
    pub(super) fn lose_everything(&mut self) {
        tracing::info!(stream = self.rules.stream, consumer = self.rules.consumer, "standing by");
        if self.fetching.take().is_some() {
            self.let_lost_fetch_return();
        }
        // Should the lease come back to this very member, their keys must still wait for them.
        for parked in self.keyed.values_mut() {
            parked.lost = true;
        }
        for running in self.running.values_mut() {
            lose(running, &self.telemetry);
        }
    }
}

/// Cancels a delivery at work whose lease is lost.
pub(super) fn lose(running: &mut Running, telemetry: &Telemetry) {
    if !running.lost {
        running.lost = true;
        telemetry.leases_lost.inc();
        running.cancel.abort();
    }
}
