//! Nothing is left behind, and what crashes is started again, up to a point.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Platform, eventually, runs};
use crate::command::{command, start, text};

/// A child in the background, a grandchild whose parent has ended, one in a session of its own, and one in yet another
/// session, whose parents have all ended, and which does not end when it is asked to.
const FAMILY: &str = "echo $$ >self; sleep 1000 & echo $! >child; (sleep 1000 & echo $! >grandchild); \
                      setsid sh -c 'echo $$ >daemon; exec sleep 1000' & \
                      setsid sh -c 'trap \"\" TERM HUP INT; setsid sh -c \"echo \\$\\$ >deaf; sleep 1000 & wait\" & exit' & \
                      for member in child grandchild daemon deaf; do until [ -s $member ]; do sleep 0.01; done; done; \
                      echo settled; wait";

fn send(pid: &str, signal: Signal) {
    kill(Pid::from_raw(pid.parse().unwrap()), signal).unwrap();
}

fn family(platform: &Platform) -> [String; 5] {
    ["self", "child", "grandchild", "daemon", "deaf"].map(|file| platform.read(file))
}

fn with_family() -> Platform {
    let platform = Platform::of("  family: {command: [sh, ./family.sh], stop_timeout: 500ms}\n");
    platform.write("family.sh", FAMILY);
    platform
}

fn parent(pid: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("it has a parent").trim().to_owned()
}

fn command_line(pid: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap()).replace('\0', " ")
}

/// Kills some of the processes that stand above a component, in one moment: they are halted before the first one dies.
#[track_caller]
fn check_killed(killed: &[&str]) {
    let platform = with_family();
    let mut up = platform.up(&[]);
    up.until_it_says("| settled");
    let family = family(&platform);
    assert!(family.iter().all(|pid| runs(pid)), "{family:?}");
    let guardian = parent(&family[0]);
    let heir = parent(&guardian);
    assert_eq!(parent(&heir), up.pid().to_string(), "between `up` and a component are two processes");
    let pid = |name: &str| match name {
        "up" => up.pid().to_string(),
        "heir" => heir.clone(),
        _ => guardian.clone(),
    };
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        killed.iter().for_each(|name| send(&pid(name), signal));
    }
    eventually(&format!("nothing is left when {killed:?} is killed"), || family.iter().all(|pid| !runs(pid)));
    eventually("those who guard it end, too", || !runs(&guardian) && !runs(&heir));
    if killed.contains(&"up") {
        return;
    }
    up.until_it_says("its guardian was killed");
    up.until_it_says("| settled");
    up.signal(Signal::SIGTERM);
    assert!(up.end().status.success(), "{killed:?}");
}

#[test]
fn no_orphan_is_left_whichever_of_those_above_it_are_killed() {
    std::thread::scope(|scope| {
        for killed in [
            &["up"][..],
            &["guardian"],
            &["heir"],
            &["up", "guardian"],
            &["up", "heir"],
            &["guardian", "heir"],
        ] {
            scope.spawn(move || check_killed(killed));
        }
    });
}

#[test]
fn who_kills_all_that_is_called_trunkline_leaves_one_that_cleans_up() {
    let platform = with_family();
    let mut up = platform.up(&[]);
    up.until_it_says("| settled");
    let family = family(&platform);
    let guardian = parent(&family[0]);
    let heir = parent(&guardian);
    // As `pkill -f` looks for them. Components are found by what they run, and only they.
    assert!(command_line(&guardian).contains("trunkline"), "{}", command_line(&guardian));
    assert!(!command_line(&heir).contains("trunkline"), "{}", command_line(&heir));
    for guard in [&guardian, &heir] {
        assert!(!command_line(guard).contains("family.sh"), "{}", command_line(guard));
    }
}

#[test]
fn no_signal_is_kept_from_a_component() {
    let platform =
        Platform::of("  a: {command: [sh, -c, 'cp /proc/self/status signals; echo; echo copied']}\n");
    let mut up = platform.up(&[]);
    up.until_it_says("| copied");
    let status = std::fs::read_to_string(platform.path().join("signals")).unwrap();
    let blocked = status.lines().find(|line| line.starts_with("SigBlk:")).expect("the kernel tells of it");
    assert!(blocked.ends_with("\t0000000000000000"), "{blocked}");
    up.signal(Signal::SIGTERM);
    up.end();
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
fn what_was_started_before_up_in_its_place_is_no_orphan() {
    let platform = Platform::of("  a: {command: [sh, -c, 'echo $$ >self; echo settled; exec sleep 1000']}\n");
    let (up, ports) = (command(&["up", "--ports-file"]), platform.path().join("ports.json"));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "sleep 1000 >/dev/null 2>&1 & echo $! >before; exec \"$@\"", "sh"]);
    shell.arg(up.get_program()).args(up.get_args()).arg(text(&ports));
    shell.current_dir(platform.path()).env("NO_COLOR", "1");
    let mut up = start(shell, b"");
    up.until_it_says("| settled");
    let (before, guardian) = (platform.read("before"), parent(&platform.read("self")));
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        [&parent(&guardian), &guardian].into_iter().for_each(|pid| send(pid, signal));
    }
    up.until_it_says("its guardian was killed");
    assert!(runs(&before), "it does not belong to a component");
    send(&before, Signal::SIGKILL);
    up.signal(Signal::SIGTERM);
    assert!(up.end().status.success());
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
    send(&guardian, Signal::SIGKILL);
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
