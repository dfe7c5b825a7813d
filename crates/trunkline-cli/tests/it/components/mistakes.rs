//! What a newcomer gets wrong is told before anything runs, with a way out.

use std::net::TcpListener;
use std::process::Command;

use nix::sys::signal::Signal;
use trunkline_testkit::RedisServer;

use super::Platform;
use crate::command::{start, text};

#[track_caller]
fn check(yaml: &str, expected: &[&str]) {
    let platform = Platform::new(yaml);
    let ended = platform.up(&[]).end();
    assert_eq!(ended.code(), 1, "{ended:?}");
    for text in expected {
        assert!(ended.stderr.contains(text), "{text:?} is missing: {}", ended.stderr);
    }
    assert!(ended.stderr.contains("hint: "), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

const FREE: &str = "server: {listen: '127.0.0.1:0', http: '127.0.0.1:0'}\n";

#[test]
fn mistakes_of_a_newcomer_have_good_messages() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let with = |component: &str| format!("{FREE}components:\n  web: {{{component}}}\n");
    for (yaml, expected) in [
        (
            format!(
                "server: {{listen: '{address}', http: '127.0.0.1:0'}}\ncomponents: {{a: {{command: [sleep, '9']}}}}"
            ),
            &["cannot listen on", "server.listen", "another `trunkline up` may be running"][..],
        ),
        (
            with("command: nde gateway.mjs, env: {PATH: /usr/bin:/bin}"),
            &["component \"web\"", "no program \"nde\"", "/usr/bin:/bin"],
        ),
        (with("command: ./gateway"), &["there is no file /", "/gateway", "cwd"]),
        (with("command: sh, cwd: nowhere"), &["its directory nowhere cannot be entered"]),
        (
            with("command: sh, env_file: secrets.env"),
            &["its env_file secrets.env cannot be read", "No such file"],
        ),
        (
            with("command: sh, depends_on: [tols]}\n  tools: {command: sh"),
            &["config.yaml:3:", "unknown component \"tols\"; did you mean \"tools\"?"],
        ),
        (
            with("command: sh, depends_on: [tools]}\n  tools: {command: sh, depends_on: [web]"),
            &[
                "depend on each other in a circle: tools -> web -> tools",
                "take one of these out of depends_on",
            ],
        ),
        (
            with("comand: sh"),
            &["unknown key \"components.web.comand\"; did you mean \"components.web.command\"?"],
        ),
        (
            with("command: sh, ready: 'tpc://127.0.0.1:1'"),
            &["expected started, responder:SUBJECT", "or log:TEXT"],
        ),
        ("components:\n  web: {command: sh\n".to_owned(), &["config.yaml:", "in the same column"]),
        ("components:\n\tweb: {command: sh}\n".to_owned(), &["config.yaml:2:", "indent with spaces"]),
    ] {
        check(&yaml, expected);
    }
}

#[test]
fn a_backend_that_cannot_be_used_is_told_and_no_component_starts() {
    let locked = RedisServer::start_with(["--appendonly", "no", "--requirepass", "s3cret"]);
    for (url, expected) in [
        ("redis://127.0.0.1:1".to_owned(), "refused"),
        (format!("redis://:wr0ng@127.0.0.1:{}", locked.port()), "refused the credentials"),
    ] {
        let platform = Platform::new(&format!(
            "{FREE}messaging: {{backend: redis, redis_url: '{url}', fallback: fail}}\n\
             components: {{a: {{command: [sh, -c, 'touch started']}}}}\n"
        ));
        let ended = platform.up(&[]).end();
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains(expected) && ended.stderr.contains("hint: "), "{}", ended.stderr);
        assert!(!ended.stderr.contains("wr0ng"), "{}", ended.stderr);
        assert!(!platform.path().join("started").exists());
    }
}

#[test]
fn on_the_fallback_components_run_and_it_is_said_loudly_first() {
    let platform = Platform::new(&format!(
        "{FREE}messaging: {{backend: redis, redis_url: 'redis://127.0.0.1:1'}}\n\
         components: {{a: {{command: [sh, -c, 'echo \"at $NATS_URL\"; exec sleep 1000']}}}}\n"
    ));
    let mut up = platform.up(&[]);
    up.until_it_says("FALLBACK");
    up.until_it_says("a | at nats://127.0.0.1:");
    up.signal(Signal::SIGTERM);
    assert!(up.end().status.success());
}

#[test]
fn an_address_that_may_not_be_bound_is_told_with_the_right_that_is_missing() {
    // Whoever runs this: without the right to ports below 1024, in a network of its own, in which they are reserved.
    let platform = Platform::new("server: {listen: '127.0.0.1:422', http: '127.0.0.1:0'}\n");
    let config = platform.path().join("config.yaml");
    let confined = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "setpriv", "--bounding-set=-net_bind_service"]);
        command.args(["--inh-caps=-net_bind_service"]).args(arguments);
        start(command, b"").end()
    };
    let able = confined(&["true"]);
    if able.code() != 0 {
        eprintln!("not tried: this machine lets nobody give up the right to bind: {}", able.stderr.trim());
        return;
    }
    let trunkline = env!("CARGO_BIN_EXE_trunkline");
    let ended = confined(&[trunkline, "--config", text(&config), "up"]);
    assert_eq!(ended.code(), 1, "{ended:?}");
    for text in
        ["127.0.0.1:422 (server.listen)", "Permission denied", "hint: ", "--listen", "CAP_NET_BIND_SERVICE"]
    {
        assert!(ended.stderr.contains(text), "{text:?} is missing: {}", ended.stderr);
    }
    let diagnosed = confined(&[trunkline, "--config", text(&config), "doctor"]);
    assert_eq!(diagnosed.code(), 1, "{diagnosed:?}");
    let said = String::from_utf8_lossy(&diagnosed.stdout);
    assert!(said.contains("fail  ports") && said.contains("set server.listen to a higher one"), "{said}");
}
