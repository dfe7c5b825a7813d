//! `trunkline status` about components.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::Platform;
use crate::command::{command, run, start};

#[test]
fn status_waits_until_everything_is_ready_and_tells_of_each() {
    let platform = Platform::new(
        "server: {listen: '127.0.0.1:0', http: '127.0.0.1:0'}\n\
         runtime: {resources: {cpus: 1.5, memory: 256MiB}}\n\
         components:\n  \
         slow: {command: [sh, -c, 'while [ ! -e go ]; do sleep 0.05; done; echo went; exec sleep 1000'], ready: 'log:went'}\n  \
         next: {command: [sleep, '1000'], depends_on: [slow]}\n",
    );
    let mut up = platform.up(&[]);
    up.until_it_says("Ctrl-C stops it");
    let (_, http) = platform.ports();
    let early = run(&["status", "--http", &http, "--wait", "--timeout", "500ms"]);
    assert_eq!(early.code(), 1, "{early:?}");
    assert!(early.stderr.contains("next is waiting for slow"), "{early:?}");
    platform.write("go", "");
    let report: Value =
        serde_json::from_slice(&run(&["status", "--http", &http, "--wait", "--json"]).ok()).unwrap();
    assert_eq!(report["ready"], true);
    assert_eq!(report["resources"]["workerThreads"], 2);
    assert_eq!(report["resources"]["memory"], 256 << 20);
    for (index, name) in ["next", "slow"].into_iter().enumerate() {
        let component = &report["components"][index];
        assert_eq!((&component["name"], &component["state"]), (&name.into(), &"ready".into()), "{report}");
        assert_eq!(component["restarts"], 0);
        let pid = component["pid"].as_u64().expect("it runs");
        assert!(super::runs(&pid.to_string()));
    }
    let table = String::from_utf8(run(&["status", "--http", &http]).ok()).unwrap();
    assert!(table.contains("worker threads") && table.contains("ready, pid"), "{table}");
    up.signal(Signal::SIGTERM);
    assert!(up.end().status.success());
}

#[test]
fn waiting_ends_as_soon_as_something_has_failed_for_good() {
    let platform = Platform::of(
        "  job: {command: [sh, -c, 'exit 7'], restart: 'no', ready: 'log:x'}\n  other: {command: [sleep, '1000']}\n",
    );
    let mut up = platform.up(&[]);
    up.until_it_says("Ctrl-C stops it");
    let (_, http) = platform.ports();
    let failed = run(&["status", "--http", &http, "--wait", "--timeout", "10m"]);
    assert_eq!(failed.code(), 1, "{failed:?}");
    assert!(failed.stderr.contains("job is failed (exit status 7)"), "{failed:?}");
    up.signal(Signal::SIGTERM);
    up.end();
}

#[test]
fn components_are_told_of_to_whoever_has_the_token_only() {
    let platform = Platform::of("  a: {command: [sleep, '1000']}\n");
    let mut up = platform.up(&[]);
    up.until_it_says("Ctrl-C stops it");
    let (_, http) = platform.ports();
    let refused = run(&["status", "--http", &http, "--token", "wrong"]);
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("refuses the admin token"), "{refused:?}");
    up.signal(Signal::SIGTERM);
    up.end();
}

#[test]
fn whoever_waits_for_one_goes_on_when_it_answers_and_is_told_when_it_does_not() {
    // Known beforehand, so that the wait begins before there is a bus.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("nats://{address}");
    let platform = Platform::new(&format!(
        "server: {{listen: '{address}', http: '127.0.0.1:0'}}\ncomponents:\n  \
         echo: {{command: [{}, reply, test.echo, --echo]}}\n",
        env!("CARGO_BIN_EXE_trunkline")
    ));
    let tcp = format!("tcp://{address}");
    let waiting = start(command(&["wait", "--url", &url, "responder:test.echo", &tcp]), b"");
    let away = run(&["wait", "--url", &url, "responder:test.echo", "--timeout", "250ms"]);
    assert_eq!(away.code(), 1, "{away:?}");
    for text in ["responder:test.echo does not answer after 250ms (--timeout): ", "hint: start a bus"] {
        assert!(away.stderr.contains(text), "{away:?}");
    }
    let up = platform.up(&[]);
    let waited = waiting.end();
    assert!(waited.status.success(), "{waited:?}");
    let health = format!("{}/healthz", platform.ports().1);
    run(&["wait", &health]).ok();
    let nobody = run(&["wait", "--url", &url, &health, "responder:test.nobody", "--timeout", "1s"]);
    assert_eq!(nobody.code(), 1, "{nobody:?}");
    assert!(nobody.stderr.contains("responder:test.nobody does not answer after 1s"), "{nobody:?}");
    assert_eq!(run(&["wait", "log:ready"]).code(), 2);
    up.signal(Signal::SIGTERM);
    assert!(up.end().status.success());
}
