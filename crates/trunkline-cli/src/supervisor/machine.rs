//! What happens to components, decided without processes, clocks or randomness: events and times go in, actions come out.
//!
//! A component waits for those it depends on, starts, becomes ready, and when it ends it is started again, done, or given
//! up. A stop goes in the reverse order: a component is asked to end once nobody who depends on it runs any more.

use std::fmt;
use std::time::{Duration, Instant};

use trunkline::config::Restart;

/// A run that lasts shorter than this, once it was ready, is a quick end.
pub(super) const QUICK: Duration = Duration::from_secs(10);
/// So many quick ends in a row are a loop of crashes, and the component is given up.
pub(super) const QUICK_ENDS_MAX: u32 = 5;
/// The pause after the first quick end; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What the configuration says of a component, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) name: String,
    /// Places of those that it depends on.
    pub(super) depends_on: Vec<usize>,
    /// Whether it is ready as soon as it runs.
    pub(super) ready_when_started: bool,
    pub(super) ready_timeout: Duration,
    pub(super) restart: Restart,
    pub(super) stop_timeout: Duration,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
    /// Nobody knows: what watched over it was killed.
    Lost,
    /// It was never begun.
    NotStarted(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(signal) => write!(f, "signal {}", signal.as_str()),
                Err(_) => write!(f, "signal {signal}"),
            },
            Self::Lost => f.write_str("its guardian was killed"),
            Self::NotStarted(reason) => f.write_str(reason),
        }
    }
}

/// What happened to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Started { pid: u32 },
    Ready,
    Ended(Exit),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Begin this run of the component.
    Launch { index: usize, run: u32 },
    /// Ask it to end.
    Terminate { index: usize },
    /// End it.
    Kill { index: usize },
    /// Tell people.
    Tell { index: usize, news: News },
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    Ready,
    Restarting {
        reason: String,
        pause: Duration,
    },
    Late {
        waited: Duration,
    },
    Killed {
        waited: Duration,
    },
    Failed {
        reason: String,
    },
    /// A loop of crashes.
    GivenUp {
        reason: String,
        times: u32,
    },
    Done,
}

/// Where a component is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Starting {
        ready_by: Instant,
    },
    Ready,
    Restarting {
        at: Instant,
    },
    /// Asked to end; `kill_at` is `None` once it was killed, `late` when that was because it did not become ready.
    Stopping {
        kill_at: Option<Instant>,
        late: bool,
    },
    Done,
    Failed,
    Stopped,
}

impl State {
    fn is_alive(&self) -> bool {
        matches!(self, Self::Starting { .. } | Self::Ready | Self::Stopping { .. })
    }

    fn is_final(&self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Stopped)
    }
}

/// A component.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) rules: Rules,
    pub(super) state: State,
    pub(super) since: Instant,
    pub(super) reason: Option<String>,
    pub(super) pid: Option<u32>,
    /// Runs so far.
    pub(super) runs: u32,
    /// When the present run became ready.
    ready_at: Option<Instant>,
    quick_ends: u32,
}

impl Unit {
    fn enter(&mut self, state: State, now: Instant) {
        (self.state, self.since) = (state, now);
    }
}

/// All components together.
#[derive(Debug)]
pub(super) struct Machine {
    units: Vec<Unit>,
    is_stopping: bool,
}

impl Machine {
    /// Everything waits until [`Machine::advance`] is called first.
    pub(super) fn new(rules: Vec<Rules>, now: Instant) -> Self {
        let unit = |rules| Unit {
            rules,
            state: State::Waiting,
            since: now,
            reason: None,
            pid: None,
            runs: 0,
            ready_at: None,
            quick_ends: 0,
        };
        Self { units: rules.into_iter().map(unit).collect(), is_stopping: false }
    }

    pub(super) fn units(&self) -> &[Unit] {
        &self.units
    }

    /// Those that a waiting component waits for.
    pub(super) fn waits_for(&self, index: usize) -> impl Iterator<Item = &str> {
        let of = self.units[index].rules.depends_on.iter().map(|&at| &self.units[at]);
        of.filter(|unit| !matches!(unit.state, State::Ready | State::Done))
            .map(|unit| unit.rules.name.as_str())
    }

    /// Whether nothing runs and nothing will.
    pub(super) fn is_over(&self) -> bool {
        self.units.iter().all(|unit| unit.state.is_final())
    }

    /// Components that failed for good.
    pub(super) fn failed(&self) -> impl Iterator<Item = &Unit> {
        self.units.iter().filter(|unit| unit.state == State::Failed)
    }

    /// When [`Machine::advance`] has something to do even if nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let of = |unit: &Unit| match unit.state {
            State::Starting { ready_by } if !self.is_stopping => Some(ready_by),
            State::Restarting { at } => Some(at),
            State::Stopping { kill_at, .. } => kill_at,
            _ => None,
        };
        self.units.iter().filter_map(of).min()
    }

    /// From now on everything ends, those first on whom nobody depends.
    pub(super) fn stop(&mut self, now: Instant) -> Vec<Action> {
        self.is_stopping = true;
        self.advance(now)
    }

    /// Ends everything at once.
    pub(super) fn kill(&mut self, now: Instant) -> Vec<Action> {
        self.is_stopping = true;
        let mut actions = Vec::new();
        for (index, unit) in self.units.iter_mut().enumerate() {
            if unit.state.is_alive() {
                unit.enter(State::Stopping { kill_at: None, late: false }, now);
                actions.push(Action::Kill { index });
            }
        }
        actions.extend(self.advance(now));
        actions
    }

    /// Something happened to a run. What is told of an earlier run than the present one is out of date and counts for
    /// nothing. `jitter` is anything from 0 to 1.
    pub(super) fn on(
        &mut self,
        index: usize,
        run: u32,
        event: Event,
        now: Instant,
        jitter: f64,
    ) -> Vec<Action> {
        let unit = &mut self.units[index];
        if unit.runs != run || !unit.state.is_alive() {
            return Vec::new();
        }
        let mut actions = Vec::new();
        match event {
            Event::Started { pid } => {
                unit.pid = Some(pid);
                if unit.rules.ready_when_started {
                    self.ready(index, now, &mut actions);
                }
            }
            Event::Ready => self.ready(index, now, &mut actions),
            Event::Ended(exit) => self.ended(index, &exit, now, jitter, &mut actions),
        }
        actions.extend(self.advance(now));
        actions
    }

    fn ready(&mut self, index: usize, now: Instant, actions: &mut Vec<Action>) {
        let unit = &mut self.units[index];
        if let State::Starting { .. } = unit.state {
            unit.enter(State::Ready, now);
            (unit.ready_at, unit.reason) = (Some(now), None);
            actions.push(Action::Tell { index, news: News::Ready });
        }
    }

    fn ended(&mut self, index: usize, exit: &Exit, now: Instant, jitter: f64, actions: &mut Vec<Action>) {
        let is_stopping = self.is_stopping;
        let unit = &mut self.units[index];
        unit.pid = None;
        let was_ready = unit.ready_at.is_some();
        let mut reason = exit.to_string();
        let is_success = match unit.state {
            State::Stopping { late: false, .. } => {
                unit.enter(State::Stopped, now);
                unit.reason = None;
                return;
            }
            State::Stopping { late: true, .. } => {
                reason = format!("not ready within {:?}", unit.rules.ready_timeout);
                false
            }
            _ => *exit == Exit::Code(0),
        };
        // Whoever depends on it waits for it to be ready, which it will never be.
        let is_done = is_success && was_ready;
        if is_success && !was_ready {
            reason.push_str(", before it was ready");
        }
        unit.reason = Some(reason.clone());
        let again = match unit.rules.restart {
            _ if is_stopping => false,
            Restart::Always => true,
            Restart::OnFailure => !is_done,
            Restart::No => false,
        };
        if !again {
            let (state, news) = match is_done {
                true => (State::Done, News::Done),
                false => (State::Failed, News::Failed { reason }),
            };
            unit.enter(state, now);
            actions.push(Action::Tell { index, news });
            return;
        }
        let lasted = unit.ready_at.is_some_and(|ready_at| now.duration_since(ready_at) >= QUICK);
        unit.quick_ends = if lasted { 1 } else { unit.quick_ends + 1 };
        if unit.quick_ends >= QUICK_ENDS_MAX {
            unit.enter(State::Failed, now);
            unit.reason =
                Some(format!("given up: {QUICK_ENDS_MAX} quick ends in a row, the last with {reason}"));
            let news = News::GivenUp { reason, times: QUICK_ENDS_MAX };
            actions.push(Action::Tell { index, news });
            return;
        }
        let pause = pause(unit.quick_ends, jitter);
        unit.enter(State::Restarting { at: now + pause }, now);
        actions.push(Action::Tell { index, news: News::Restarting { reason, pause } });
    }

    /// Does what the time, or the state of others, makes due.
    pub(super) fn advance(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        // One that fails or stops may be what another waits for, wherever that stands.
        loop {
            let before = actions.len();
            let mut changed = false;
            for index in 0..self.units.len() {
                changed |= self.advance_one(index, now, &mut actions);
            }
            if !changed && actions.len() == before {
                return actions;
            }
        }
    }

    /// Returns whether its state changed.
    fn advance_one(&mut self, index: usize, now: Instant, actions: &mut Vec<Action>) -> bool {
        let state = self.units[index].state.clone();
        match state {
            State::Waiting | State::Restarting { .. } if self.is_stopping => {
                self.units[index].enter(State::Stopped, now);
                true
            }
            State::Waiting => self.begin(index, now, actions),
            State::Restarting { at } if now >= at => {
                self.launch(index, now, actions);
                true
            }
            State::Starting { .. } | State::Ready if self.is_stopping && !self.is_needed(index) => {
                self.terminate(index, false, now, actions);
                true
            }
            // Nobody waits any more for what is still needed while all ends: its turn comes after those who need it.
            State::Starting { ready_by } if now >= ready_by && !self.is_stopping => {
                let waited = self.units[index].rules.ready_timeout;
                actions.push(Action::Tell { index, news: News::Late { waited } });
                self.terminate(index, true, now, actions);
                true
            }
            State::Stopping { kill_at: Some(at), late } if now >= at => {
                let waited = self.units[index].rules.stop_timeout;
                self.units[index].state = State::Stopping { kill_at: None, late };
                actions.push(Action::Tell { index, news: News::Killed { waited } });
                actions.push(Action::Kill { index });
                true
            }
            // A stop that comes while one that was late is ending is the end of it.
            State::Stopping { kill_at, late: true } if self.is_stopping => {
                self.units[index].state = State::Stopping { kill_at, late: false };
                true
            }
            _ => false,
        }
    }

    /// Whether somebody who depends on it still runs.
    fn is_needed(&self, index: usize) -> bool {
        self.units.iter().any(|unit| unit.state.is_alive() && unit.rules.depends_on.contains(&index))
    }

    fn begin(&mut self, index: usize, now: Instant, actions: &mut Vec<Action>) -> bool {
        let of = |at: &usize| &self.units[*at];
        let depends_on = &self.units[index].rules.depends_on;
        if let Some(lost) = depends_on.iter().map(of).find(|unit| unit.state == State::Failed) {
            let reason = format!("it depends on {}, which has failed", lost.rules.name);
            let unit = &mut self.units[index];
            unit.reason = Some(reason.clone());
            unit.enter(State::Failed, now);
            actions.push(Action::Tell { index, news: News::Failed { reason } });
            return true;
        }
        let may = depends_on.iter().map(of).all(|unit| matches!(unit.state, State::Ready | State::Done));
        if may {
            self.launch(index, now, actions);
        }
        may
    }

    fn launch(&mut self, index: usize, now: Instant, actions: &mut Vec<Action>) {
        let unit = &mut self.units[index];
        unit.enter(State::Starting { ready_by: now + unit.rules.ready_timeout }, now);
        unit.runs += 1;
        (unit.pid, unit.ready_at) = (None, None);
        actions.push(Action::Launch { index, run: unit.runs });
    }

    fn terminate(&mut self, index: usize, late: bool, now: Instant, actions: &mut Vec<Action>) {
        let unit = &mut self.units[index];
        let kill_at = Some(now + unit.rules.stop_timeout);
        unit.enter(State::Stopping { kill_at, late }, now);
        actions.push(Action::Terminate { index });
    }
}

/// The pause before a component is started again, a fifth shorter or longer by chance, so that what fell together does
/// not come back together.
fn pause(quick_ends: u32, jitter: f64) -> Duration {
    let doublings = quick_ends.saturating_sub(1).min(16);
    let pause = PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX);
    pause.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
