//! `trunkline up --demo`: a small agent platform on the bus, to see what a bus is for.
//!
//! Two channels, a gateway, a stand-in for an LLM that streams its words, and two tools, one of which fails now and then.
//! They know each other by subjects alone and could as well be six processes in six languages; every one has a bus
//! handle of its own, as a process would. Whatever is published is printed by a watcher that takes no part.

mod calculator;
mod channel;
mod gateway;
mod input;
mod llm;
mod tools;
mod watcher;

use std::borrow::Cow;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::backend::{PublishError, SubscribeError};
use trunkline::{Bus, BusOptions, RespondError, SubjectError};

use crate::failure::{Explain, Kind};
use crate::output::OutputError;

/// Random choices of the demo; always the same, so that everybody sees the same conversations.
const SEED: u64 = 7;

/// How long the components may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// How to run the demo.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DemoOptions {
    /// End after so many conversations; until told to stop unless set.
    pub(crate) conversations: Option<u64>,
}

/// Why the demo broke off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DemoError {
    #[error("the demo cannot name its subjects (messaging.subject_root)")]
    Subject(#[from] SubjectError),
    #[error("the demo cannot subscribe")]
    Subscribe(#[from] SubscribeError),
    #[error("the demo cannot answer requests")]
    Respond(#[from] RespondError),
    #[error("the demo cannot publish")]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("cannot read what is typed")]
    Input(#[from] std::io::Error),
    #[error("the bus ended under the demo")]
    Ended,
}

impl Explain for DemoError {
    fn kind(&self) -> Kind {
        match self {
            Self::Output(error) => error.kind(),
            _ => Kind::Failed,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Output(error) => error.hint(),
            _ => None,
        }
    }
}

/// Runs the platform until `stop`, or until enough conversations have come to their end.
pub(crate) async fn run(bus: &Bus, options: DemoOptions, stop: &CancellationToken) -> Result<(), DemoError> {
    // The watcher comes first: it shall see the first message of the first component.
    let watcher = watcher::Watcher::start(component(bus, "watcher")).await?;
    // Ends the components below, whichever way this function is left.
    let platform = stop.child_token();
    let _end = platform.clone().drop_guard();
    // Tasks of the components; they end by `platform`, and are waited for below.
    let tasks = TaskTracker::new();

    let _llm = llm::start(&component(bus, "llm")).await?;
    let _weather = tools::start_weather(&component(bus, "weather")).await?;
    let _calculator = tools::start_calculator(&component(bus, "calculator")).await?;
    gateway::start(&component(bus, "gateway"), &tasks, &platform).await?;
    let web = channel::Channel::start(component(bus, "web"), "web", &tasks, &platform).await?;
    let slack = channel::Channel::start(component(bus, "slack"), "slack", &tasks, &platform).await?;

    let talking = input::talk(web, slack, options.conversations);
    let watching = watcher.watch(options.conversations);
    let result = tokio::select! {
        () = stop.cancelled() => Ok(()),
        result = watching => result,
        Err(error) = talking => Err(error),
    };
    platform.cancel();
    tasks.close();
    if tokio::time::timeout(STOP_WITHIN, tasks.wait()).await.is_err() {
        tracing::warn!("components of the demo were still at work and are dropped");
    }
    result
}

/// A bus handle for one component, which names itself in every envelope.
fn component(bus: &Bus, name: &str) -> Bus {
    // Counted with the bus of the process, so that its metrics tell of all that goes on in it.
    let telemetry = Some(bus.telemetry().clone());
    let options = BusOptions { source: name.to_owned(), telemetry, ..bus.options().clone() };
    Bus::with_backend(bus.backend().clone(), options)
}
