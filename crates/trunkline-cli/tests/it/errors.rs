//! What people read when something is wrong, and the exit code that scripts see.

use crate::command::{Ended, command, run, start, text};
use crate::server;

/// A port on which nobody listens, as far as anybody can know.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[track_caller]
fn check(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!(ended.code(), code, "{ended:?}");
    assert!(ended.stdout.is_empty(), "errors do not belong on stdout: {ended:?}");
    assert!(ended.stderr.contains("\nhint: "), "there is no hint: {}", ended.stderr);
    for text in says {
        assert!(ended.stderr.contains(text), "{text:?} is missing: {}", ended.stderr);
    }
}

#[test]
fn wrong_usage_exits_with_2_and_a_hint() {
    let cases: &[(&[&str], &str)] = &[
        (&["sub", "--bogus", "a"], "--bogus"),
        (&["pub"], "<SUBJECT>"),
        (&["pub", "a b", "x"], "a b"),
        (&["sub", "a.>.b"], "a.>.b"),
        (&["request", "a", "x", "--timeout", "soon"], "soon"),
        (&["pub", "a", "x", "--header", "novalue"], "NAME:VALUE"),
        (&["pub", "a", "x", "--count", "0"], "0"),
        (&["reply", "a"], "what to answer"),
        (&["reply", "a", "--echo", "--exec", "cat"], "--exec"),
        (&["up", "--listen", "nowhere"], "server.listen"),
        (&["up", "--backend", "carrier-pigeon"], "carrier-pigeon"),
        (&["up", "--demo-conversations", "1"], "--demo"),
        (&["config", "show", "--log-level", "a=b=c"], "--log-level"),
        (&["nonsense"], "nonsense"),
    ];
    for (arguments, says) in cases {
        check(&run(arguments), 2, &["error: ", says]);
    }
}

#[test]
fn help_shows_an_example_for_every_command() {
    for name in ["up", "pub", "sub", "request", "reply", "trace", "tail", "status", "bench", "completions"] {
        let help = run(&[name, "--help"]).lines().join("\n");
        assert!(
            help.contains(&format!("Examples:\n  trunkline {name}")) || help.contains("| trunkline"),
            "{help}"
        );
    }
    let help = run(&["config", "show", "--help"]).lines().join("\n");
    assert!(help.contains("trunkline config show --json"), "{help}");
}

#[test]
fn a_bus_that_is_not_there_is_named_with_what_to_do() {
    let url = format!("nats://127.0.0.1:{}", free_port());
    for arguments in
        [&["pub", "a", "x"][..], &["sub", "a"], &["request", "a", "x"], &["reply", "a", "--echo"]]
    {
        let ended = run(&[arguments, &["--url", &url, "--connect-timeout", "200ms"]].concat());
        check(&ended, 1, &[&url, "trunkline up"]);
    }
    check(&run(&["status", "--url", &url, "--timeout", "300ms"]), 1, &[&url, "trunkline up"]);
    let http = format!("http://127.0.0.1:{}", free_port());
    check(&run(&["status", "--http", &http]), 1, &[&http, "trunkline up"]);
}

#[test]
fn nobody_answering_and_nobody_in_time_are_told_apart() {
    let server = server();
    let ended = run(&["request", "--url", server.url(), "nobody", "x", "--timeout", "20s"]);
    check(&ended, 1, &["nobody", "trunkline reply nobody"]);
    assert!(ended.took.as_secs() < 5, "it must not wait for the timeout: {:?}", ended.took);

    let mut silent = start(command(&["sub", "--url", server.url(), "silent"]), b"");
    silent.until_it_says("listening on");
    let ended = run(&["request", "--url", server.url(), "silent", "x", "--timeout", "300ms"]);
    check(&ended, 1, &["300ms", "--timeout"]);
}

#[test]
fn a_payload_over_the_limit_names_limit_and_setting() {
    let server = server();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("large");
    std::fs::write(&file, vec![0; (1 << 20) + 1]).unwrap();
    let ended = run(&["pub", "--url", server.url(), "a", "--file", text(&file)]);
    check(&ended, 1, &["1048577", "1048576", "server.limits.max_payload"]);
    check(&run(&["pub", "--url", server.url(), "a", "--file", "/nonexistent/x"]), 1, &["/nonexistent/x"]);
}

#[test]
fn mistakes_in_the_configuration_stop_every_command_that_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, "messaging:\n  bakend: redis\n").unwrap();
    for arguments in [&["up"][..], &["config", "show"], &["pub", "a", "x"]] {
        let ended = run(&[&["--config", text(&file)], arguments].concat());
        check(&ended, 1, &["config.yaml:2:3", "messaging.bakend", "messaging.backend"]);
    }
    let missing = directory.path().join("missing.yaml");
    check(&run(&["--config", text(&missing), "up"]), 1, &["missing.yaml", "--config"]);
}

#[test]
fn config_show_prints_values_with_origins_and_hides_secrets() {
    let mut show = command(&["config", "show", "--json"]);
    show.env("TRUNKLINE_BACKEND", "nats").env("NATS_URL", "nats://user:hunter2@bus.example:4222");
    let text = start(show, b"").end().ok();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
    let entries: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let find = |key: &str| entries.iter().find(|entry| entry["key"] == key).unwrap();
    assert_eq!(find("messaging.backend")["value"], "nats");
    assert_eq!(find("messaging.backend")["origin"], "TRUNKLINE_BACKEND");
    assert_eq!(find("server.listen")["origin"], "default");
    let table = run(&["config", "show"]).lines();
    assert!(
        table.iter().any(|line| line.contains("messaging.backend") && line.contains("in_memory")),
        "{table:?}"
    );
    let keys = run(&["config", "keys", "--json"]).lines().join("\n");
    assert!(keys.contains("TRUNKLINE_CONSUMER_ACK_WAIT"), "{keys}");
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]).lines().join("\n");
        assert!(script.contains("demo-conversations"), "{shell}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let server = server();
    let mut line = std::process::Command::new("sh");
    let binary = env!("CARGO_BIN_EXE_trunkline");
    // `head` leaves after one line while thousands are still to be printed.
    line.args(["-c", "\"$0\" pub --url \"$1\" a x --count 20000 --json | head -n 1"]);
    line.args([binary, server.url()]);
    let ended = start(line, b"").end();
    assert!(!ended.stderr.contains("error"), "{}", ended.stderr);
    assert!(ended.stdout.starts_with(b"{\"subject\":\"a\""));
}
