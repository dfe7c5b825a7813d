//! What the dashboard shows beside streams and conversations: the bus at a glance, who is connected, who is at which subject,
//! consumers, dead letters. The same with a server in front of the bus and without one.
//!
//! Everything is read when somebody asks. Nothing here changes anything but a redrive, which is the library's.

mod census;
mod connections;
mod consumers;
mod dead_letters;
mod overview;
mod subjects;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::{get, post};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;
use trunkline::backend::StreamError;
use trunkline::observe::{Followed, Follower, Observation, Observer};
use trunkline::status::BackendStatus;
use trunkline::{Bus, Telemetry};

use self::census::Census;
use super::answer::ApiError;
use crate::admin::Problem;
use crate::process::CpuShare;
use crate::shared::Shared;

/// Longest wait for what a backend says of its streams. A page that asks again soon must not pile up questions.
const ASKING_MAX: Duration = Duration::from_secs(5);

/// What the handlers know.
pub(crate) struct Views {
    /// The bus that is looked at; with it dead letters are sent back.
    bus: Bus,
    status: watch::Receiver<BackendStatus>,
    /// Of the bus of this process.
    telemetry: Option<Telemetry>,
    /// The server; `None` where clients are with the NATS servers.
    server: Option<Arc<Shared>>,
    /// Tells runs of the process apart.
    run: String,
    /// What the record tells of subjects and requests; `None` where nothing is recorded. Held while the record is read on,
    /// which one of those who ask at a time has to do.
    census: Option<Mutex<Reading>>,
    started: Instant,
    cpu: CpuShare,
}

impl Views {
    pub(crate) fn new(
        bus: Bus,
        status: watch::Receiver<BackendStatus>,
        telemetry: Option<Telemetry>,
        (server, observer): (Option<Arc<Shared>>, Option<Arc<Observer>>),
    ) -> Self {
        // A new inbox has a name that nobody else has, in no other run either.
        let run = match &server {
            Some(shared) => shared.id.clone(),
            None => bus.backend().new_inbox().to_string(),
        };
        let census = observer
            .map(|observer| Mutex::new(Reading { observer, follower: None, census: Census::default() }));
        Self { bus, status, telemetry, server, run, census, started: Instant::now(), cpu: CpuShare::new() }
    }

    /// Messages that the record has seen, those included that were too many to be kept; `None` where nothing is recorded.
    fn recorded(&self) -> Option<u64> {
        let messages = self.seen(Census::messages)?;
        let too_many = self.census.as_ref().map_or(0, |reading| reading.lock().observer.not_recorded());
        Some(messages + too_many)
    }

    /// What sees the messages; `None` where nothing is recorded.
    fn observer(&self) -> Option<Arc<Observer>> {
        self.census.as_ref().map(|reading| reading.lock().observer.clone())
    }

    /// Reads on in the record, and looks at what it says by now.
    fn seen<T>(&self, look: impl FnOnce(&Census, Timestamp) -> T) -> Option<T> {
        let mut reading = self.census.as_ref()?.lock();
        reading.read_on();
        Some(look(&reading.census, Timestamp::now()))
    }
}

/// Reads the record as far as it goes.
struct Reading {
    observer: Arc<Observer>,
    /// From the first who asks on.
    follower: Option<Follower>,
    census: Census,
}

impl Reading {
    fn read_on(&mut self) {
        let follower = self.follower.get_or_insert_with(|| self.observer.follow(Some(0)));
        loop {
            let census = RefCell::new(&mut self.census);
            let look = |seen: &Observation| {
                census.borrow_mut().note(seen);
                // It is looked at where it lies, and never copied.
                false
            };
            match follower.next(look).now_or_never() {
                // What was let go of before it was read is missing in the counts.
                Some(Some(Followed::Missed(_) | Followed::Observation(_))) => {}
                Some(_) | None => return,
            }
        }
    }
}

/// The routes of the views, which have to be put behind a guard.
pub(crate) fn router(views: Arc<Views>) -> Router {
    Router::new()
        .route("/overview", get(overview::overview))
        .route("/connections", get(connections::connections))
        .route("/subjects", get(subjects::subjects))
        .route("/consumers", get(consumers::consumers))
        .route("/dead-letters", get(dead_letters::list))
        .route("/dead-letters/redrive", post(dead_letters::redrive))
        .route("/dead-letters/{offset}", get(dead_letters::show))
        .with_state(views)
}

/// Waits for a backend that may be away, for so long that a page may still want the answer.
async fn patiently<T>(asking: impl Future<Output = Result<T, StreamError>>) -> Result<T, ApiError> {
    match tokio::time::timeout(ASKING_MAX, asking).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            let reason = format!("no answer within {ASKING_MAX:?}");
            let problem = Problem::NotConnected { server: "the backend".to_owned(), reason: reason.clone() };
            Err(ApiError::new(problem, format!("the backend gives {reason}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::State;
    use axum::http::StatusCode;

    use super::*;
    use crate::http::aside::{FACTS, LISTS};
    use crate::http::params::Params;

    #[tokio::test]
    async fn lists_and_quick_answers_do_not_wait_for_each_other() {
        let bus = Bus::in_memory();
        let status = bus.backend().status();
        let views = Arc::new(Views::new(bus, status, None, (None, None)));
        let state = || State(views.clone());
        let soon = Duration::from_secs(30);
        {
            let _taken = FACTS.take(2).await;
            let subjects = tokio::time::timeout(soon, subjects::subjects(state())).await;
            assert_eq!(subjects.expect("a list has a place").status(), StatusCode::OK);
            let connections =
                tokio::time::timeout(soon, connections::connections(state(), Params::default())).await;
            let connections = connections.expect("a list has a place").expect("it asks for nothing special");
            assert_eq!(connections.status(), StatusCode::OK);
        }
        let _taken = LISTS.take(1).await;
        let overview = tokio::time::timeout(soon, overview::overview(state())).await;
        assert_eq!(overview.expect("it is no list").status(), StatusCode::OK);
    }
}
