//! The subscriptions of one connection: a pump for each, and which of them are starting or ending.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trunkline::backend::SubscribeError;

use super::Bridge;
use super::pump::{Pump, Report};
use crate::client::Client;
use crate::subscription::Subscription;

/// Most subscriptions of one connection that start or end at a time.
const CHANGES_MAX: usize = 128;

/// See the module's text.
pub(super) struct Feeds {
    bridge: Arc<Bridge>,
    client: Arc<Client>,
    /// By the address of what the client table has, which stays the subscription's as long as it is here.
    by_key: HashMap<usize, Feed>,
    /// How many of them are starting or ending.
    changing: usize,
    /// The pumps. They end by their subscriptions' end, and with this.
    pumps: JoinSet<usize>,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
}

struct Feed {
    subscription: Arc<Subscription>,
    stop: CancellationToken,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Standing,
    Ending,
}

impl Feeds {
    pub(super) fn new(bridge: Arc<Bridge>, client: Arc<Client>) -> Self {
        let (reporter, reports) = mpsc::channel(CHANGES_MAX);
        let (by_key, pumps) = (HashMap::new(), JoinSet::new());
        Self { bridge, client, by_key, changing: 0, pumps, reports, reporter }
    }

    /// Whether every subscription that was started stands, and every one that was stopped is over.
    pub(super) fn are_settled(&self) -> bool {
        self.changing == 0
    }

    /// Whether one more may start or end now.
    pub(super) fn may_change(&self) -> bool {
        self.changing < CHANGES_MAX
    }

    /// Whether all are over.
    pub(super) fn are_over(&self) -> bool {
        self.pumps.is_empty()
    }

    pub(super) fn start(&mut self, subscription: Arc<Subscription>) {
        let (key, stop) = (key_of(&subscription), CancellationToken::new());
        let pump = Pump {
            key,
            subscription: subscription.clone(),
            bridge: self.bridge.clone(),
            own: self.client.origin().cloned(),
            start_by: Instant::now() + self.bridge.publish_timeout,
            stop: stop.clone(),
            reports: self.reporter.clone(),
        };
        self.by_key.insert(key, Feed { subscription, stop, phase: Phase::Starting });
        self.changing += 1;
        self.pumps.spawn(pump.run());
    }

    /// Ends one after it has given out what was published by now. One that has made its last delivery is gone already.
    pub(super) fn stop(&mut self, subscription: &Arc<Subscription>) {
        if let Some(feed) = self.by_key.get_mut(&key_of(subscription)) {
            feed.stop.cancel();
            if feed.phase == Phase::Standing {
                self.changing += 1;
            }
            feed.phase = Phase::Ending;
        }
    }

    /// Ends all after they have given out what was published by now. Nothing waits for that but [`Feeds::are_over`].
    pub(super) fn stop_all(&self) {
        self.by_key.values().for_each(|feed| feed.stop.cancel());
    }

    /// Ends all at once: nobody is there to be given anything, and nothing waits for a subscription any more.
    pub(super) fn abandon(&mut self) {
        self.pumps.abort_all();
        self.by_key.clear();
        self.changing = 0;
    }

    /// As [`Feeds::abandon`], and waits until the pumps are gone.
    pub(super) async fn shut_down(&mut self) {
        self.abandon();
        self.pumps.shutdown().await;
    }

    /// Waits until something has changed; tells which subscription did not start, when that is what has.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn changed(&mut self) -> Option<(Arc<Subscription>, SubscribeError)> {
        tokio::select! {
            biased;
            Some(report) = self.reports.recv() => self.hear(report),
            Some(ended) = self.pumps.join_next(), if !self.pumps.is_empty() => {
                match ended {
                    Ok(key) => self.ended(key),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    // It was abandoned.
                    Err(_) => {}
                }
                None
            }
        }
    }

    fn hear(&mut self, report: Report) -> Option<(Arc<Subscription>, SubscribeError)> {
        match report {
            Report::Stands(key) => {
                if let Some(feed) = self.by_key.get_mut(&key)
                    && feed.phase == Phase::Starting
                {
                    feed.phase = Phase::Standing;
                    self.changing -= 1;
                }
                None
            }
            Report::Failed(key, error) => {
                self.by_key.get(&key).map(|feed| (feed.subscription.clone(), error))
            }
        }
    }

    /// The pump is over: its subscription was stopped, had its last delivery, or never started.
    fn ended(&mut self, key: usize) {
        if let Some(feed) = self.by_key.remove(&key)
            && feed.phase != Phase::Standing
        {
            self.changing -= 1;
        }
    }
}

fn key_of(subscription: &Arc<Subscription>) -> usize {
    Arc::as_ptr(subscription).addr()
}
