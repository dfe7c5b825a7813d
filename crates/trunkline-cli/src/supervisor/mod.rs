//! Starts the components beside the bus, looks after them, and stops them.
//!
//! What is to happen is decided in `machine`, without processes; here it is done. A component is the child of a guardian
//! (`guardian`), that of an heir (`heir`), and that of `up`, so that somebody ends it with all it started (`orphans`)
//! whichever of them are killed. A run of it from start to end is `run`, and what it writes goes through `lines` to `log`.

mod access;
mod guardian;
mod heir;
mod lines;
mod log;
mod machine;
mod orphans;
mod probe;
mod recipe;
mod run;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use trunkline::Bus;
use trunkline::backend::memory::Hub;
use trunkline::config::{Component, Config, Ready};
use trunkline_server::admin::{ComponentJson, ComponentState, ComponentsJson, ResourcesJson, time_text};

use crate::failure::{Explain, chain};
use crate::interrupt::Interrupts;

pub(crate) use access::{Access, MadeUsers, PasswordError, Place, reporting, reports};
pub(crate) use guardian::dispatch;
use log::Log;
use machine::{Action, Event, Exit, Machine, News, Rules, State, Unit};
use orphans::Children;
pub(crate) use probe::{Responders, until_ready};
use recipe::Recipe;
pub(crate) use recipe::RecipeError;
use run::{Happened, LastLines, Run};
use wire::Order;

/// Events that wait to be looked at; who has more is made to wait.
const EVENTS_MAX: usize = 256;
/// Orders to one component that wait; there are only two kinds.
const ORDERS_MAX: usize = 4;

/// Components that ended for good, so that nothing is left to look after.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SupervisorError {
    #[error("no component runs any more: {}", reasons.join("; "))]
    AllEnded { reasons: Vec<String> },
    #[error("the thread that writes logs cannot be started")]
    Log(#[source] io::Error),
    #[error("the kernel does not give this process what components leave behind (PR_SET_CHILD_SUBREAPER)")]
    Adopt(#[source] io::Error),
}

impl Explain for SupervisorError {
    fn hint(&self) -> Option<std::borrow::Cow<'static, str>> {
        matches!(self, Self::AllEnded { .. })
            .then(|| "see what they said last, above; `restart` and `ready` stand in components.NAME".into())
    }
}

/// Looks whether all components can be run, before anything is started.
///
/// # Errors
/// The first thing that is missing.
pub(crate) fn check(config: &Config) -> Result<(), RecipeError> {
    for (name, component) in &config.components {
        Recipe::prepare(name, component, &[])?;
    }
    Ok(())
}

/// What `/api/v1/components` answers before anything was started.
pub(crate) fn first_status(config: &Config, worker_threads: usize) -> ComponentsJson {
    let resources = &config.runtime.resources;
    let since = time_text(SystemTime::now());
    let waiting = |(name, component): (&String, &Component)| ComponentJson {
        name: name.clone(),
        state: ComponentState::Waiting,
        waiting_for: component.depends_on.clone(),
        pid: None,
        restarts: 0,
        since: since.clone(),
        restart_at: None,
        reason: None,
    };
    ComponentsJson {
        resources: ResourcesJson { worker_threads, cpus: resources.cpus, memory: resources.memory },
        components: config.components.iter().map(waiting).collect(),
    }
}

/// The components of a configuration.
pub(crate) struct Supervisor {
    machine: Machine,
    components: Vec<(String, Component)>,
    access: Access,
    responders: Responders,
    /// To the run of each component that runs.
    orders: BTreeMap<usize, Sender<Order>>,
    /// Ends the question whether a run is ready.
    probes: BTreeMap<usize, DropGuard>,
    last_lines: Vec<LastLines>,
    /// Runs and probes; awaited at the end, and ended by their orders, or with this.
    tasks: JoinSet<()>,
    events: (Sender<Happened>, Receiver<Happened>),
    children: Children,
    log: Log,
    status: watch::Sender<ComponentsJson>,
    /// One moment on both clocks.
    anchor: (Instant, SystemTime),
}

impl Supervisor {
    /// Prepares the components; [`Supervisor::supervise`] starts them.
    ///
    /// # Errors
    /// The system gives no thread, or no orphans.
    pub(crate) fn new(
        config: &Config,
        access: Access,
        bus: Bus,
        hub: Option<Arc<Hub>>,
        status: watch::Sender<ComponentsJson>,
    ) -> Result<Self, SupervisorError> {
        let components: Vec<(String, Component)> =
            config.components.iter().map(|(name, component)| (name.clone(), component.clone())).collect();
        let place = |name: &String| components.iter().position(|(known, _)| known == name);
        let rules = components.iter().map(|(name, component)| Rules {
            name: name.clone(),
            // That they exist was seen when the configuration was read.
            depends_on: component.depends_on.iter().filter_map(place).collect(),
            ready_when_started: component.ready == Ready::Started,
            ready_timeout: component.ready_timeout,
            restart: component.restart,
            stop_timeout: component.stop_timeout,
        });
        let anchor = (Instant::now(), SystemTime::now());
        let names = components.iter().map(|(name, _)| name.clone()).collect();
        Ok(Self {
            machine: Machine::new(rules.collect(), anchor.0),
            last_lines: components.iter().map(|_| LastLines::default()).collect(),
            components,
            access,
            responders: Responders { bus, hub },
            orders: BTreeMap::new(),
            probes: BTreeMap::new(),
            tasks: JoinSet::new(),
            events: channel(EVENTS_MAX),
            children: Children::adopt().map_err(SupervisorError::Adopt)?,
            log: Log::start(names).map_err(SupervisorError::Log)?,
            status,
            anchor,
        })
    }

    /// Starts the components and looks after them until they are asked to stop and have stopped, or none runs any more.
    ///
    /// # Errors
    /// [`SupervisorError::AllEnded`] when the last one has ended and some have failed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves everything as it is; it is to be called again, or dropped with all components.
    pub(crate) async fn supervise(
        &mut self,
        stop: &CancellationToken,
        interrupts: &Interrupts,
    ) -> Result<(), SupervisorError> {
        let actions = self.machine.advance(Instant::now());
        self.act(actions);
        let (mut is_stopping, mut is_killing) = (false, false);
        loop {
            self.publish();
            if self.machine.is_over() {
                let reasons: Vec<String> = self.machine.failed().map(reason).collect();
                match is_stopping {
                    true => return Ok(()),
                    false if !reasons.is_empty() => return Err(SupervisorError::AllEnded { reasons }),
                    // All have done what they were to do. The bus goes on.
                    false => {}
                }
            }
            let deadline = self.machine.next_deadline();
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let actions = tokio::select! {
                Some(Happened { index, run, event }) = self.events.1.recv() => {
                    self.note(index, run, &event);
                    self.machine.on(index, run, event, Instant::now(), fastrand::f64())
                }
                () = due => self.machine.advance(Instant::now()),
                () = stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    self.machine.stop(Instant::now())
                }
                () = interrupts.kill().cancelled(), if !is_killing => {
                    (is_stopping, is_killing) = (true, true);
                    self.machine.kill(Instant::now())
                }
            };
            self.act(actions);
            while self.tasks.try_join_next().is_some() {}
        }
    }

    /// Waits until what components wrote is shown. They must have ended.
    pub(crate) async fn finish(mut self) {
        self.probes.clear();
        self.orders.clear();
        while self.tasks.join_next().await.is_some() {}
        self.log.finish().await;
    }

    /// Keeps what does not matter to the machine.
    fn note(&mut self, index: usize, run: u32, event: &Event) {
        if self.machine.units().get(index).is_none_or(|unit| unit.runs != run) {
            return;
        }
        match event {
            Event::Started { .. } => self.probe(index, run),
            Event::Ready => drop(self.probes.remove(&index)),
            Event::Ended(_) => {
                self.probes.remove(&index);
                self.orders.remove(&index);
            }
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Launch { index, run } => self.launch(index, run),
                Action::Terminate { index } => self.order(index, Order::Terminate),
                Action::Kill { index } => self.order(index, Order::Kill),
                Action::Tell { index, news } => self.tell(index, news),
            }
        }
    }

    fn order(&self, index: usize, order: Order) {
        if let Some(orders) = self.orders.get(&index) {
            // There is room for all kinds of orders, and one that has ended needs none.
            let _ = orders.try_send(order);
        }
    }

    fn launch(&mut self, index: usize, run: u32) {
        let (name, component) = &self.components[index];
        let (sender, orders) = channel(ORDERS_MAX);
        let events = self.events.0.clone();
        // The files are looked at anew: they may have been what was wrong.
        let recipe = match Recipe::prepare(name, component, &self.access.variables(name)) {
            Ok(recipe) => recipe,
            Err(error) => {
                let event = Event::Ended(Exit::NotStarted(chain(&error)));
                self.tasks.spawn(async move {
                    // Nobody listens any more when everything is being given up.
                    let _ = events.send(Happened { index, run, event }).await;
                });
                return;
            }
        };
        let ready_text = match &component.ready {
            Ready::Log(text) => Some(text.clone()),
            _ => None,
        };
        self.orders.insert(index, sender);
        let (log, last_lines) = (self.log.lines(), self.last_lines[index].clone());
        let (name, children) = (name.clone(), self.children.clone());
        let run = Run { index, run, name, recipe, children, ready_text, orders, events, log, last_lines };
        self.tasks.spawn(run.carry_out());
    }

    /// Asks until the component is ready, or its run has ended.
    fn probe(&mut self, index: usize, run: u32) {
        let ready = self.components[index].1.ready.clone();
        if matches!(ready, Ready::Started | Ready::Log(_)) {
            return;
        }
        let ended = CancellationToken::new();
        self.probes.insert(index, ended.clone().drop_guard());
        let (responders, events) = (self.responders.clone(), self.events.0.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = probe::until_ready(&ready, Some(&responders)) => {
                    // As above.
                    let _ = events.send(Happened { index, run, event: Event::Ready }).await;
                }
            }
        });
    }

    fn tell(&self, index: usize, news: News) {
        let component = self.components[index].0.as_str();
        match news {
            News::Ready => tracing::info!(component, "ready"),
            News::Done => tracing::info!(component, "done"),
            News::Restarting { reason, pause } => {
                tracing::warn!(component, reason, "ended, is started again in {pause:.1?}");
            }
            News::Late { waited } => {
                tracing::warn!(component, "not ready within {waited:?}, is stopped (ready_timeout)")
            }
            News::Killed { waited } => {
                tracing::warn!(component, "did not end within {waited:?}, is killed (stop_timeout)");
            }
            News::Failed { reason } => {
                tracing::error!(
                    component,
                    reason,
                    last = self.last_words(index),
                    "failed, is not started again"
                );
            }
            News::GivenUp { reason, times } => tracing::error!(
                component,
                reason,
                last = self.last_words(index),
                "given up: it ended {times} times in a row soon after its start; put right what is wrong with it and start `up` again"
            ),
        }
    }

    /// The last lines of a component, as one text.
    fn last_words(&self, index: usize) -> Option<String> {
        let lines = self.last_lines[index].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        (!lines.is_empty()).then(|| lines.join(" / "))
    }

    /// Puts out how everything is.
    fn publish(&self) {
        let units = self.machine.units().iter().enumerate();
        let components: Vec<ComponentJson> = units.map(|(index, unit)| self.shown(index, unit)).collect();
        self.status.send_if_modified(|status| {
            let is_new = status.components != components;
            status.components = components;
            is_new
        });
    }

    fn shown(&self, index: usize, unit: &Unit) -> ComponentJson {
        let time = |at: Instant| time_text(self.anchor.1 + at.duration_since(self.anchor.0));
        let (state, restart_at) = match unit.state {
            State::Waiting => (ComponentState::Waiting, None),
            State::Starting { .. } => (ComponentState::Starting, None),
            State::Ready => (ComponentState::Ready, None),
            State::Restarting { at } => (ComponentState::Restarting, Some(time(at))),
            State::Stopping { .. } => (ComponentState::Stopping, None),
            State::Done => (ComponentState::Done, None),
            State::Failed => (ComponentState::Failed, None),
            State::Stopped => (ComponentState::Stopped, None),
        };
        let waiting_for = match state {
            ComponentState::Waiting => self.machine.waits_for(index).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        ComponentJson {
            name: unit.rules.name.clone(),
            state,
            waiting_for,
            pid: unit.pid,
            restarts: unit.runs.saturating_sub(1),
            since: time(unit.since),
            restart_at,
            reason: unit.reason.clone(),
        }
    }
}

fn reason(unit: &Unit) -> String {
    let reason = unit.reason.as_deref().unwrap_or("failed");
    format!("{}: {reason}", unit.rules.name)
}
