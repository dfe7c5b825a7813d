//! Learning which subjects are stored: by the list of all streams, by one question for one subject, and by what was known
//! before while nobody answers.

use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;
use trunkline_core::Subject;

use super::super::api::Failure;
use super::super::routes::{Route, Routes};
use super::super::streams;
use super::{Job, Outgoing, RETRY_DELAY};
use crate::backend::PublishError;

/// Longest wait of a message for what is asked about its subject. Answers come within milliseconds, unless nobody leads
/// JetStream.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// So much later than for the list of all streams it is asked for one subject alone. The list comes late when some stream of
/// a cluster has no leader, as one that somebody makes in this moment; that must not hold up those who have nothing to do
/// with it.
const LIST_HEAD_START: Duration = Duration::from_millis(20);
/// Delay before the list is asked for again after it could not be had.
const LIST_RETRY_DELAY: Duration = Duration::from_secs(2);

/// What is known about streams, and how much there is to hope for from asking.
#[derive(Default)]
pub(super) struct Known {
    pub(super) routes: Routes,
    /// The list of all streams could not be had the last time.
    listless: bool,
    /// This user may not ask for one subject alone, as the server has said. Asking again would fill its log.
    only_list: bool,
    /// Until when nobody is asked: JetStream does not answer, as while it elects who leads it.
    mute_until: Option<Instant>,
}

impl Known {
    /// Whether the subject is stored, for a publish that begins now.
    pub(super) fn route(&self, subject: &Subject, now: Instant) -> Route {
        match self.routes.route(subject, now) {
            // JetStream gave no answer a moment ago.
            Route::Old { stored } if self.mute_until.is_some_and(|until| now < until) => {
                Route::Known { stored }
            }
            route => route,
        }
    }
}

impl Outgoing {
    /// This process has changed a stream.
    pub(in super::super) fn forget_routes(&self) {
        self.state.lock().known.routes.forget();
    }

    /// Fetches a new copy of the streams before the last one is too old, as long as anything is published.
    pub(super) async fn keep_routes_fresh(&self) {
        loop {
            self.stale.notified().await;
            let stale = self.state.lock().known.routes.is_stale(Instant::now());
            if !stale || self.link().connection().is_none() {
                continue;
            }
            // What cannot be learned now is asked for by the publish that needs it.
            if self.refresh().await.is_err() {
                tokio::time::sleep(LIST_RETRY_DELAY).await;
            }
        }
    }

    /// Learns whether the subject is stored.
    pub(super) async fn learn(&self, job: &Job) -> Result<bool, PublishError> {
        let subject = &job.message.subject;
        loop {
            let now = Instant::now();
            let listless = {
                let mut state = self.state.lock();
                if let Some(stored) = state.known.routes.learn(subject, job.since, now) {
                    return Ok(stored);
                }
                // Others have asked in vain a moment ago, and waited for it.
                if let Route::Known { stored } = state.known.route(subject, now) {
                    return Ok(stored);
                }
                state.known.listless && !state.known.only_list
            };
            let asking = async {
                match listless {
                    false => self.ask_for_all_or(subject).await,
                    true => self.ask_for(subject).await.map(Some),
                }
            };
            let failure = match tokio::time::timeout(ANSWER_WAIT, asking).await {
                Ok(Ok(Some(stored))) => return Ok(stored),
                Ok(Ok(None)) => continue,
                Ok(Err(failure)) => failure,
                Err(_) => {
                    let mut state = self.state.lock();
                    state.known.listless = true;
                    state.known.mute_until = Some(Instant::now() + LIST_RETRY_DELAY);
                    Failure::NotConnected("JetStream gives no answer".to_owned())
                }
            };
            // JetStream does not answer. Where a stream kept the subject, the missing confirmation says so; where none
            // did, `Accepted` promises nothing that could be wrong.
            if let Route::Old { stored } = self.state.lock().known.routes.route(subject, Instant::now()) {
                return Ok(stored);
            }
            if let Failure::Denied { .. } = failure {
                let reason = format!("nobody may tell whether a stream stores it: {failure}");
                return Err(PublishError::Denied { subject: subject.clone(), reason });
            }
            if Instant::now() + RETRY_DELAY >= job.deadline {
                return Err(self.not_sent(format!("nobody knows whether a stream stores it: {failure}")));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Asks for all streams; where the list does not come at once, for the one subject, too. `None` when the list is there.
    async fn ask_for_all_or(&self, subject: &Subject) -> Result<Option<bool>, Failure> {
        if self.state.lock().known.only_list {
            return self.refresh().await.map(|()| None);
        }
        let mut listing = pin!(self.refresh());
        let mut asking = pin!(async {
            tokio::time::sleep(LIST_HEAD_START).await;
            self.ask_for(subject).await
        });
        tokio::select! {
            biased;
            listed = &mut listing => match listed {
                Ok(()) => Ok(None),
                Err(failure @ Failure::Denied { .. }) => Err(failure),
                Err(_) => asking.await.map(Some),
            },
            asked = &mut asking => match asked {
                Ok(stored) => {
                    self.state.lock().known.listless = true;
                    Ok(Some(stored))
                }
                // Who may see the list need not be allowed to ask for names.
                Err(_) => listing.await.map(|()| None),
            },
        }
    }

    /// Asks for all streams, which decides for all subjects.
    async fn refresh(&self) -> Result<(), Failure> {
        let asked = Instant::now();
        let all = streams::all(&self.api).await;
        let mut state = self.state.lock();
        state.known.listless = all.is_err();
        let patterns = all?.into_iter().flat_map(|found| found.patterns).collect();
        state.known.routes.replace(patterns, asked);
        Ok(())
    }

    /// Asks for one subject.
    async fn ask_for(&self, subject: &Subject) -> Result<bool, Failure> {
        let asked = Instant::now();
        let names = streams::names_of(&self.api, subject.as_str()).await;
        let mut state = self.state.lock();
        state.known.only_list |= matches!(names, Err(Failure::Denied { .. }));
        let stored = !names?.is_empty();
        // A copy that has come meanwhile is older than this.
        state.known.routes.note(subject, stored, asked);
        state.known.routes.is_stale(Instant::now()).then(|| self.stale.notify_one());
        Ok(stored)
    }
}
