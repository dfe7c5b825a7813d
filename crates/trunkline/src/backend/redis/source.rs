//! The reader's end of a live subscription.

use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use super::live::{Live, Subscription};
use crate::backend::{Fut, LiveEvent, LiveSource, SubscribeError};

/// See the module's text.
pub(super) struct RedisSource {
    subscription: Arc<Subscription>,
    /// Weak, so that a source alone does not keep a dropped backend alive.
    live: Weak<Live>,
}

impl RedisSource {
    pub(super) fn new(subscription: &Arc<Subscription>, live: &Arc<Live>) -> Self {
        Self { subscription: subscription.clone(), live: Arc::downgrade(live) }
    }
}

impl LiveSource for RedisSource {
    fn poll_batch(&mut self, cx: &mut Context<'_>, max: usize, out: &mut Vec<LiveEvent>) -> Poll<usize> {
        self.subscription.inbox.poll_take(cx, max, out)
    }

    fn stop(&mut self) -> Fut<'_, Result<(), SubscribeError>> {
        Box::pin(async move {
            match self.live.upgrade() {
                // A task, because a group that is left half way would hold its place: it ends also when nobody waits.
                Some(live) => {
                    let (tasks, runtime) = (live.tasks.clone(), live.runtime.clone());
                    let subscription = self.subscription.clone();
                    let ending = async move { live.finish(&subscription).await };
                    tasks.spawn_on(ending, &runtime).await.unwrap_or(Err(SubscribeError::Closed))
                }
                None => Ok(()),
            }
        })
    }
}

impl Drop for RedisSource {
    fn drop(&mut self) {
        if let Some(live) = self.live.upgrade()
            && !Live::has_ended(&self.subscription)
        {
            live.abandon(&self.subscription);
        }
    }
}
