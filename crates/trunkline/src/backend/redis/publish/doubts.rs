//! Requests of which it is not known yet whether anybody answers them.
//!
//! Right after an outage, or a loss of data, those who answer may not have listed themselves again. Who asks then and finds
//! nobody is not told so at once: the request is stored, and whoever comes back is given it. It is asked again when all who
//! live must be listed; only then who asks is told that there is no one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use trunkline_core::Subject;

use super::super::entry::{list, number};
use super::super::link::Failure;
use super::super::routes::Home;
use super::super::scripts::ANSWERED;
use super::super::shared::Shared;
use crate::backend::Fut;

/// Most requests of which it is asked again. Of those past it nobody is told anything: they end by their time.
const DOUBTS_MAX: usize = 4096;
/// Most subjects of one script: while it runs the server does nothing else.
const SUBJECTS_MAX: usize = 256;
/// Pause before it is asked once more where there was no answer.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// A request that nobody was found to answer.
pub(super) struct Doubt {
    pub(super) home: Arc<Home>,
    pub(super) subject: Subject,
    pub(super) reply: Subject,
    /// How long who asks waits, and until when.
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
}

/// See the module's text.
pub(super) struct Doubts {
    shared: Arc<Shared>,
    waiting: VecDeque<Doubt>,
    /// The answer that is waited for.
    asking: Option<Fut<'static, (Vec<Doubt>, Vec<Doubt>)>>,
}

impl Doubts {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, waiting: VecDeque::new(), asking: None }
    }

    pub(super) fn add(&mut self, doubt: Doubt) {
        if self.waiting.len() < DOUBTS_MAX {
            self.waiting.push_back(doubt);
        }
    }

    /// Waits until it is known of some requests that nobody answers them, and gives those.
    ///
    /// # Cancel safety
    /// Nothing is lost: the next call goes on.
    pub(super) async fn unanswered(&mut self) -> Vec<Doubt> {
        loop {
            if self.asking.is_none() {
                if self.waiting.is_empty() {
                    std::future::pending::<()>().await;
                }
                while let Some(until) = self.shared.link.settling() {
                    tokio::time::sleep_until(until).await;
                }
                let doubts = std::mem::take(&mut self.waiting).into();
                self.asking = Some(Box::pin(ask(self.shared.clone(), doubts)));
            }
            let Some(asking) = &mut self.asking else { continue };
            let (nobody, unknown) = asking.await;
            self.asking = None;
            self.waiting.extend(unknown);
            if !nobody.is_empty() {
                return nobody;
            }
        }
    }
}

/// Those that nobody answers, and those of which there is no knowing yet.
async fn ask(shared: Arc<Shared>, doubts: Vec<Doubt>) -> (Vec<Doubt>, Vec<Doubt>) {
    let now = Instant::now();
    let mut by_home: BTreeMap<String, Vec<Doubt>> = BTreeMap::new();
    for doubt in doubts.into_iter().filter(|doubt| doubt.deadline > now) {
        by_home.entry(doubt.home.key.clone()).or_default().push(doubt);
    }
    let mut asking = Vec::new();
    for mut doubts in by_home.into_values() {
        while !doubts.is_empty() {
            let some = doubts.split_off(doubts.len().saturating_sub(SUBJECTS_MAX));
            asking.push(ask_at_one(&shared, some));
        }
    }
    let (mut nobody, mut unknown) = (Vec::new(), Vec::new());
    for (doubts, answer) in join_all(asking).await {
        match answer {
            Ok(answered) => {
                let pairs = doubts.into_iter().zip(answered);
                nobody.extend(pairs.filter(|(_, answered)| !answered).map(|(doubt, _)| doubt));
            }
            Err(failure) => {
                tracing::debug!(?failure, "it is not known yet who answers requests");
                unknown.extend(doubts);
            }
        }
    }
    if !unknown.is_empty() {
        tokio::time::sleep(RETRY_DELAY).await;
    }
    (nobody, unknown)
}

/// Which of these, all of one stream, somebody answers.
async fn ask_at_one(shared: &Shared, doubts: Vec<Doubt>) -> (Vec<Doubt>, Result<Vec<bool>, Failure>) {
    let Some(home) = doubts.first().map(|doubt| doubt.home.clone()) else { return (doubts, Ok(Vec::new())) };
    let mut keys = shared.keys_of(&home, &[], &[], "");
    if shared.link.topology.redirects() {
        keys.push(home.responders_key(None));
        keys.extend(doubts.iter().map(|doubt| home.responders_key(Some(doubt.subject.as_str()))));
    }
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let asking = shared.link.run_script(&ANSWERED, &keys, |command| {
        for doubt in &doubts {
            command.arg(doubt.subject.as_str());
        }
    });
    let answer = match asking.await {
        Ok(answer) => {
            list(answer).and_then(|answers| answers.iter().map(|answer| Ok(number(answer)? != 0)).collect())
        }
        Err(failure) => Err(failure),
    };
    (doubts, answer)
}
