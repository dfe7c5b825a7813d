//! `trunkline status` about components.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::Platform;
use crate::command::run;

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
