//! What components write.

use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::Platform;
use crate::command::start;

#[test]
fn json_is_one_object_a_line_for_components_and_for_the_bus_itself() {
    let platform = Platform::of(
        "  talker: {command: [sh, ./talker.sh], restart: 'no'}\n  other: {command: [sleep, '1000']}\n",
    );
    platform.write(
        "talker.sh",
        "echo 'a \"quoted\" word'; printf 'bad \\377 bytes\\n' >&2; printf 'the end'; exit 0",
    );
    let mut up = platform.up(&["--log-format", "json"]);
    up.until_it_says("the end");
    up.until_it_says("\"done\"");
    up.signal(Signal::SIGTERM);
    let ended = up.end();
    let records: Vec<Value> = ended
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    let of = |component: &str, stream: &str| -> Vec<&str> {
        let of = |record: &&Value| record["component"] == component && record["stream"] == stream;
        records.iter().filter(of).filter_map(|record| record["message"].as_str()).collect()
    };
    assert_eq!(of("talker", "stdout"), ["a \"quoted\" word", "the end"]);
    assert_eq!(of("talker", "stderr"), ["bad \u{fffd} bytes"]);
    assert!(records.iter().all(|record| record["timestamp"].is_string() && record["level"].is_string()));
}

#[test]
fn a_component_that_never_ends_its_line_is_shown_in_pieces_of_bounded_memory() {
    let platform = Platform::of(
        "  endless: {command: [sh, -c, \"head -c 20000000 /dev/zero | tr '\\\\0' x; echo; echo whole\"], restart: 'no'}\n  other: {command: [sleep, '1000']}\n",
    );
    let mut up = platform.up(&[]);
    up.until_it_says("| whole");
    up.signal(Signal::SIGTERM);
    let ended = up.end();
    let pieces = ended.stderr.lines().filter_map(|line| line.strip_prefix("endless | x"));
    let bytes: usize = pieces
        .map(|piece| {
            assert!(piece.len() < 16 << 10);
            piece.len() + 1
        })
        .sum();
    assert_eq!(bytes, 20_000_000, "nothing is lost");
}

#[test]
fn names_are_coloured_at_a_terminal_and_plain_where_there_is_none() {
    let platform =
        Platform::of("  a: {command: [sh, -c, 'echo hi; exit 4'], restart: 'no', ready: 'log:never'}\n");
    let ended = platform.up(&[]).end();
    assert!(ended.stderr.contains("\na | hi\n") && !ended.stderr.contains('\u{1b}'), "{}", ended.stderr);
    let mut terminal = Command::new(trunkline_testkit::environment::python());
    let script = "import pty, sys; pty.spawn(sys.argv[1:])";
    terminal.args(["-c", script, env!("CARGO_BIN_EXE_trunkline"), "up"]);
    terminal.current_dir(platform.path()).env("TERM", "xterm").env_remove("NO_COLOR");
    let ended = start(terminal, b"").end();
    let shown = String::from_utf8_lossy(&ended.stdout);
    assert!(shown.contains("\u{1b}[36ma |\u{1b}[0m hi"), "{shown}");
}

#[test]
fn the_last_word_of_up_is_json_too() {
    let platform = Platform::of("  a: {command: [sh, -c, 'exit 4'], restart: 'no', ready: 'log:never'}\n");
    let ended = platform.up(&["--log-format", "json"]).end();
    assert_eq!(ended.code(), 1, "{ended:?}");
    let last: Value =
        serde_json::from_str(ended.stderr.trim_end().lines().last().unwrap_or_default()).unwrap();
    assert_eq!(last["level"], "ERROR");
    assert_eq!(last["message"], "no component runs any more: a: exit status 4");
    assert!(last["hint"].is_string(), "{last}");
}
