//! A live subscription in this process.

use std::sync::Arc;
use std::task::{Context, Poll};

use trunkline_core::{Pattern, Role, SubscriptionId};

use super::hub::{Hub, Target};
use super::inbox::Inbox;
use crate::backend::{Fut, LiveEvent, LiveSource, SubscribeError};

/// A place in the routing table and the inbox it fills.
pub(super) struct Subscribed {
    hub: Arc<Hub>,
    pattern: Pattern,
    inbox: Arc<Inbox>,
    /// `None` once stopped.
    id: Option<SubscriptionId>,
}

impl Subscribed {
    pub(super) fn start(
        hub: Arc<Hub>,
        pattern: Pattern,
        role: Role,
        max_pending: usize,
        owner: Option<Arc<str>>,
    ) -> Self {
        let inbox = Arc::new(Inbox::within(max_pending, hub.memory()).owned_by(owner));
        let id = hub.router().insert(&pattern, role, Target::Inbox(inbox.clone()));
        hub.charge_routes();
        Self { hub, pattern, inbox, id: Some(id) }
    }

    fn end(&mut self) {
        if let Some(id) = self.id.take() {
            self.hub.router().remove(&self.pattern, id);
            self.hub.charge_routes();
            self.inbox.close();
        }
    }
}

impl LiveSource for Subscribed {
    fn poll_batch(&mut self, cx: &mut Context<'_>, max: usize, out: &mut Vec<LiveEvent>) -> Poll<usize> {
        self.inbox.poll_batch(cx, max, out)
    }

    fn stop(&mut self) -> Fut<'_, Result<(), SubscribeError>> {
        self.end();
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        self.end();
    }
}
