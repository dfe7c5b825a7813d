//! Nothing is left behind, and what crashes is started again, up to a point.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Platform, eventually, runs};

/// A child in the background, a grandchild whose parent has ended, and one in a session of its own.
const FAMILY: &str = "echo $$ >self; sleep 1000 & echo $! >child; (sleep 1000 & echo $! >grandchild); \
                      setsid sh -c 'echo $$ >daemon; exec sleep 1000' & echo settled; wait";

fn kill_nine(pid: &str) {
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
}

fn family(platform: &Platform) -> [String; 4] {
    ["self", "child", "grandchild", "daemon"].map(|file| platform.read(file))
}

fn with_family() -> Platform {
    let platform = Platform::of("  family: {command: [sh, ./family.sh]}\n");
    platform.write("family.sh", FAMILY);
    platform
}

#[test]
fn no_orphan_is_left_when_up_itself_is_killed() {
    let platform = with_family();
    let mut up = platform.up(&[]);
    up.until_it_says("| settled");
    let family = family(&platform);
    assert!(family.iter().all(|pid| runs(pid)), "{family:?}");
    up.signal(Signal::SIGKILL);
    eventually("the whole family is gone", || family.iter().all(|pid| !runs(pid)));
}

#[test]
fn no_orphan_is_left_after_a_stop() {
    let platform = with_family();
    let mut up = platform.up(&[]);
    up.until_it_says("| settled");
    let family = family(&platform);
    up.signal(Signal::SIGTERM);
    assert!(up.end().status.success());
    assert!(family.iter().all(|pid| !runs(pid)), "it is over when `up` is");
}

#[test]
fn what_a_component_leaves_behind_when_it_crashes_is_ended_before_it_starts_again() {
    let platform = Platform::of("  a: {command: [sh, ./a.sh]}\n");
    platform.write("a.sh", "if [ -e second ]; then echo again; exec sleep 1000; fi; touch second; sleep 1000 & echo $! >left; exit 3");
    let mut up = platform.up(&[]);
    up.until_it_says("ended, is started again");
    let left = platform.read("left");
    assert!(!runs(&left));
    up.until_it_says("| again");
    up.signal(Signal::SIGTERM);
    up.end();
}

#[test]
fn a_guardian_that_is_killed_takes_its_component_along_and_another_is_started() {
    let platform = Platform::of(
        "  a: {command: [sh, -c, 'echo $PPID >guardian; echo $$ >self; echo up; exec sleep 1000']}\n",
    );
    let mut up = platform.up(&[]);
    up.until_it_says("| up");
    let (guardian, component) = (platform.read("guardian"), platform.read("self"));
    kill_nine(&guardian);
    up.until_it_says("its guardian was killed");
    eventually("the component is gone", || !runs(&component));
    up.until_it_says("| up");
    up.signal(Signal::SIGTERM);
    assert!(up.end().status.success());
}

#[test]
fn a_loop_of_crashes_is_given_up_and_up_ends_when_nothing_runs_any_more() {
    let platform = Platform::of(
        "  broken: {command: [sh, -c, 'echo no key configured >&2; exit 3'], ready: 'log:never'}\n  \
         next: {command: [sleep, '1000'], depends_on: [broken]}\n",
    );
    let ended = platform.up(&[]).end();
    assert_eq!(ended.code(), 1, "{ended:?}");
    for expected in [
        "given up: it ended 5 times in a row soon after its start",
        "reason=\"exit status 3\"",
        "last=\"no key configured",
        "it depends on broken, which has failed",
        "error: no component runs any more: broken: given up: 5 quick ends in a row, the last with exit status 3",
        "hint: ",
    ] {
        assert!(ended.stderr.contains(expected), "{expected} is missing: {}", ended.stderr);
    }
    assert_eq!(ended.stderr.matches("| no key configured").count(), 5, "nothing it said is lost");
}
