//! The rules of starting, restarting and stopping, on a clock of their own.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rules(name: &str, depends_on: &[usize]) -> Rules {
    Rules {
        name: name.to_owned(),
        depends_on: depends_on.to_vec(),
        ready_when_started: true,
        ready_timeout: 60 * SECOND,
        restart: Restart::OnFailure,
        stop_timeout: 10 * SECOND,
    }
}

/// Components on a clock; what they do is noted as text.
struct Play {
    machine: Machine,
    now: Instant,
}

impl Play {
    fn new(rules: Vec<Rules>) -> Self {
        let now = Instant::now();
        Self { machine: Machine::new(rules, now), now }
    }

    fn text(&self, actions: Vec<Action>) -> Vec<String> {
        let name = |index: usize| self.machine.units()[index].rules.name.clone();
        actions
            .into_iter()
            .filter_map(|action| match action {
                Action::Launch { index, run } => Some(format!("launch {} {run}", name(index))),
                Action::Terminate { index } => Some(format!("terminate {}", name(index))),
                Action::Kill { index } => Some(format!("kill {}", name(index))),
                Action::Tell { index, news: News::GivenUp { .. } } => {
                    Some(format!("give up {}", name(index)))
                }
                Action::Tell { index, news: News::Failed { reason } } => {
                    Some(format!("fail {}: {reason}", name(index)))
                }
                Action::Tell { .. } => None,
            })
            .collect()
    }

    fn begin(&mut self) -> Vec<String> {
        let actions = self.machine.advance(self.now);
        self.text(actions)
    }

    fn after(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.begin()
    }

    fn on(&mut self, index: usize, event: Event) -> Vec<String> {
        let run = self.machine.units()[index].runs;
        let actions = self.machine.on(index, run, event, self.now, 0.5);
        self.text(actions)
    }

    fn started(&mut self, index: usize) -> Vec<String> {
        self.on(index, Event::Started { pid: 7 })
    }

    fn ended(&mut self, index: usize, code: i32) -> Vec<String> {
        self.on(index, Event::Ended(Exit::Code(code)))
    }

    fn stop(&mut self) -> Vec<String> {
        let actions = self.machine.stop(self.now);
        self.text(actions)
    }

    fn state(&self, index: usize) -> &State {
        &self.machine.units()[index].state
    }
}

#[test]
fn components_start_when_those_they_depend_on_are_ready_and_others_at_once() {
    let slow = Rules { ready_when_started: false, ..rules("tools", &[]) };
    let mut play = Play::new(vec![rules("gateway", &[1, 2]), slow, rules("store", &[])]);
    assert_eq!(play.begin(), ["launch tools 1", "launch store 1"]);
    assert!(play.started(2).is_empty());
    assert!(play.started(1).is_empty(), "it runs and is not ready");
    assert_eq!(play.machine.waits_for(0).collect::<Vec<_>>(), ["tools"]);
    assert_eq!(play.on(1, Event::Ready), ["launch gateway 1"]);
}

#[test]
fn a_failure_is_followed_by_longer_and_longer_pauses_and_then_by_a_verdict() {
    let mut play = Play::new(vec![rules("a", &[]), rules("b", &[0])]);
    assert_eq!(play.begin(), ["launch a 1"]);
    for (run, millis) in [(1, 500), (2, 1000), (3, 2000), (4, 4000)] {
        let pause = Duration::from_millis(millis);
        assert!(play.ended(0, 3).is_empty());
        assert_eq!(play.machine.next_deadline(), Some(play.now + pause));
        assert!(play.after(pause - Duration::from_millis(1)).is_empty());
        assert_eq!(play.after(Duration::from_millis(1)), [format!("launch a {}", run + 1)]);
    }
    assert_eq!(play.ended(0, 3), ["give up a", "fail b: it depends on a, which has failed"]);
    assert!(play.machine.is_over());
    let reason = play.machine.units()[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("5 quick ends") && reason.contains("exit status 3"), "{reason}");
}

#[test]
fn a_run_that_lasted_is_no_part_of_a_loop() {
    let mut play = Play::new(vec![rules("a", &[])]);
    play.begin();
    for _ in 0..3 * QUICK_ENDS_MAX {
        play.started(0);
        play.after(QUICK);
        assert!(play.ended(0, 1).is_empty());
        assert_eq!(play.after(SECOND).len(), 1, "it is started again after the shortest pause");
    }
}

#[test]
fn one_that_never_becomes_ready_is_stopped_then_killed_and_that_is_a_failure() {
    let never = Rules { ready_when_started: false, restart: Restart::No, ..rules("a", &[]) };
    let mut play = Play::new(vec![never]);
    play.begin();
    play.started(0);
    assert!(play.after(59 * SECOND).is_empty());
    assert_eq!(play.after(SECOND), ["terminate a"]);
    assert_eq!(play.after(10 * SECOND), ["kill a"]);
    assert!(play.after(10 * SECOND).is_empty(), "it is killed once");
    assert_eq!(play.on(0, Event::Ended(Exit::Signal(9))), ["fail a: not ready within 60s"]);
}

#[test]
fn what_success_and_failure_lead_to_is_the_rule_of_restart() {
    use Restart::{Always, No, OnFailure};
    for (restart, code, expected) in [
        (No, 0, "done"),
        (No, 1, "failed"),
        (OnFailure, 0, "done"),
        (OnFailure, 1, "restarting"),
        (Always, 0, "restarting"),
        (Always, 1, "restarting"),
    ] {
        let mut play = Play::new(vec![Rules { restart, ..rules("a", &[]) }]);
        play.begin();
        play.started(0);
        play.ended(0, code);
        let state = match play.state(0) {
            State::Done => "done",
            State::Failed => "failed",
            State::Restarting { .. } => "restarting",
            state => panic!("{state:?}"),
        };
        assert_eq!(state, expected, "{restart:?} after exit status {code}");
    }
}

#[test]
fn success_before_it_was_ready_lets_nobody_start() {
    let job = Rules { ready_when_started: false, restart: Restart::No, ..rules("a", &[]) };
    let mut play = Play::new(vec![job, rules("b", &[0])]);
    play.begin();
    play.started(0);
    assert_eq!(
        play.ended(0, 0),
        ["fail a: exit status 0, before it was ready", "fail b: it depends on a, which has failed"]
    );
}

#[test]
fn a_stop_goes_in_reverse_order_and_waits_for_each() {
    let mut play = Play::new(vec![rules("a", &[]), rules("b", &[0]), rules("c", &[1]), rules("d", &[])]);
    play.begin();
    for index in [0, 1, 2, 3] {
        play.started(index);
    }
    assert_eq!(play.stop(), ["terminate c", "terminate d"]);
    assert!(play.ended(3, 0).is_empty());
    assert_eq!(play.ended(2, 1), ["terminate b"], "how it ends does not matter any more");
    assert_eq!(play.after(10 * SECOND), ["kill b"]);
    assert_eq!(play.on(1, Event::Ended(Exit::Signal(9))), ["terminate a"]);
    assert!(!play.machine.is_over());
    play.ended(0, 0);
    assert!(play.machine.is_over());
    assert_eq!(play.machine.failed().count(), 0);
}

#[test]
fn a_stop_ends_what_waits_and_nothing_is_launched_after_it() {
    let mut play = Play::new(vec![rules("a", &[]), rules("b", &[0])]);
    play.begin();
    play.ended(0, 1);
    assert!(matches!(play.state(0), State::Restarting { .. }));
    assert!(play.stop().is_empty());
    assert!(play.machine.is_over());
    assert!(play.after(60 * SECOND).is_empty());
}

#[test]
fn one_that_is_late_while_everything_stops_waits_for_its_turn() {
    let slow = Rules { ready_when_started: false, restart: Restart::Always, ..rules("a", &[]) };
    let mut play = Play::new(vec![slow, rules("b", &[0])]);
    play.begin();
    play.on(0, Event::Ready);
    play.started(1);
    play.ended(0, 1);
    play.after(SECOND);
    assert_eq!(play.stop(), ["terminate b"], "a has begun again and is not ready");
    assert_eq!(play.after(play.machine.units()[0].rules.ready_timeout), ["kill b"]);
    assert_eq!(play.machine.next_deadline(), None);
    assert_eq!(play.on(1, Event::Ended(Exit::Signal(9))), ["terminate a"]);
}

#[test]
fn a_kill_ends_everything_at_once() {
    let mut play = Play::new(vec![rules("a", &[]), rules("b", &[0])]);
    play.begin();
    play.started(0);
    play.started(1);
    play.stop();
    let actions = play.machine.kill(play.now);
    assert_eq!(play.text(actions), ["kill a", "kill b"]);
}

#[test]
fn what_an_earlier_run_did_counts_for_nothing() {
    let slow = Rules { ready_when_started: false, ..rules("a", &[]) };
    let mut play = Play::new(vec![slow]);
    play.begin();
    play.ended(0, 1);
    play.after(SECOND);
    assert_eq!(play.machine.units()[0].runs, 2);
    play.machine.on(0, 1, Event::Ready, play.now, 0.5);
    assert!(matches!(play.state(0), State::Starting { .. }));
}

#[test]
fn pauses_are_bounded_and_spread() {
    assert_eq!(pause(1, 0.0), Duration::from_millis(400));
    assert_eq!(pause(1, 1.0), Duration::from_millis(600));
    assert_eq!(pause(u32::MAX, 0.5), PAUSE_MAX);
}

/// A step of a random play: what happens to which component, or how much time passes.
#[derive(Debug, Clone)]
enum Step {
    Started(usize),
    Ready(usize),
    Ended(usize, i32),
    Time(u64),
    Stop,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = 0..4_usize;
    let step = prop_oneof![
        4 => index.clone().prop_map(Step::Started),
        3 => index.clone().prop_map(Step::Ready),
        3 => (index, 0..2).prop_map(|(index, code)| Step::Ended(index, code)),
        3 => (1..20_000_u64).prop_map(Step::Time),
        1 => Just(Step::Stop),
    ];
    prop::collection::vec(step, 0..60)
}

/// What must hold for every action at the moment at which it is given.
fn check(machine: &Machine, actions: &[Action], is_stopping: bool) {
    let units = machine.units();
    for action in actions {
        match action {
            Action::Launch { index, .. } => {
                assert!(!is_stopping, "nothing starts while everything stops");
                let unit = &units[*index];
                // One that was ready once may run on without the others.
                let is_first = unit.runs == 1;
                let ready = |at: &usize| matches!(units[*at].state, State::Ready | State::Done);
                assert!(
                    !is_first || unit.rules.depends_on.iter().all(ready),
                    "{} is too early",
                    unit.rules.name
                );
            }
            Action::Terminate { index } if is_stopping => {
                let needs = |unit: &Unit| unit.state.is_alive() && unit.rules.depends_on.contains(index);
                assert!(!units.iter().any(needs), "{} is still needed", units[*index].rules.name);
            }
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_order_is_kept_and_a_stop_comes_to_its_end(
        steps in steps(),
        edges in prop::collection::vec(any::<bool>(), 6),
        at_once in prop::collection::vec(any::<bool>(), 4),
        restarts in prop::collection::vec(0..3_usize, 4),
    ) {
        // Each may depend on those before it only, so that there is no circle.
        let pairs = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)];
        let rules = (0..4).map(|index| {
            let depends_on = pairs.iter().zip(&edges).filter(|((from, _), on)| *from == index && **on);
            Rules {
                depends_on: depends_on.map(|((_, to), _)| *to).collect(),
                ready_when_started: at_once[index],
                restart: [Restart::No, Restart::OnFailure, Restart::Always][restarts[index]],
                ..rules(["a", "b", "c", "d"][index], &[])
            }
        });
        let mut play = Play::new(rules.collect());
        let mut is_stopping = false;
        let actions = play.machine.advance(play.now);
        check(&play.machine, &actions, is_stopping);
        for step in steps {
            let (index, event) = match step {
                Step::Started(index) => (index, Some(Event::Started { pid: 1 })),
                Step::Ready(index) => (index, Some(Event::Ready)),
                Step::Ended(index, code) => (index, Some(Event::Ended(Exit::Code(code)))),
                Step::Time(millis) => {
                    play.now += Duration::from_millis(millis);
                    (0, None)
                }
                Step::Stop => {
                    is_stopping = true;
                    (0, None)
                }
            };
            let run = play.machine.units()[index].runs;
            let actions = match event {
                Some(event) => play.machine.on(index, run, event, play.now, 0.5),
                None if is_stopping => play.machine.stop(play.now),
                None => play.machine.advance(play.now),
            };
            check(&play.machine, &actions, is_stopping);
        }
        // From here on everything ends when it is asked to, or killed.
        play.machine.stop(play.now);
        for _ in 0..4 {
            for index in 0..4 {
                let run = play.machine.units()[index].runs;
                if matches!(play.machine.units()[index].state, State::Stopping { .. }) {
                    play.machine.on(index, run, Event::Ended(Exit::Signal(15)), play.now, 0.5);
                }
            }
        }
        prop_assert!(play.machine.is_over(), "{:?}", play.machine);
    }
}
