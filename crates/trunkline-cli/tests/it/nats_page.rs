//! The operator's page for NATS: the server takes its settings, and every command on it works, on a server that a bus
//! has used. Its permissions are tested with the library.

use std::process::Command;

use nix::sys::signal::Signal;
use trunkline_testkit::NatsServer;

use crate::command::{command, start, text};

const PAGE: &str = include_str!("../../../../docs/nats.md");

/// What stands in all blocks of this kind.
fn blocks(kind: &str) -> Vec<&'static str> {
    let begin = format!("```{kind}\n");
    PAGE.split(begin.as_str()).skip(1).map(|rest| rest.split("```").next().expect("a block ends")).collect()
}

#[test]
fn every_command_of_the_page_works() {
    let server = NatsServer::start(["-js"]);
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.yaml");
    let [settings] = blocks("yaml")[..] else { panic!("there is one configuration") };
    let written = settings.replace("nats://operator:secret-6@nats.internal:4222", server.url());
    assert_ne!(written, settings, "it names the server");
    std::fs::write(&config, written).unwrap();
    let begin = |arguments: &[&str]| start(command(&[arguments, &["--config", text(&config)]].concat()), b"");
    let run = |arguments: &[&str]| begin(arguments).end();
    let mut up = begin(&["up"]);
    up.until_it_says("Ctrl-C stops it");
    up.signal(Signal::SIGTERM);
    up.end().ok();
    // A bus that has left its traces: streams, a consumer, a dead letter.
    for payload in ["good", "bad"] {
        run(&["pub", "nachos.tool.search.task", payload]).ok();
    }
    let line = "sh -c 'grep -q good || exit 65'";
    let worker = ["consume", "tasks", "workers", "--start", "all", "--exec", line, "--json", "--count", "1"];
    run(&worker).ok();

    let commands: Vec<&str> = blocks("sh").into_iter().flat_map(str::lines).collect();
    assert!(commands.len() > 10, "{commands:?}");
    for line in commands {
        match line.strip_prefix("trunkline ") {
            Some(arguments) => drop(run(&arguments.split(' ').collect::<Vec<_>>()).ok()),
            None => {
                let line = line.replace("http://nats.internal:8222", server.http());
                let ran = Command::new("sh").arg("-c").arg(&line).output().expect("there is a shell");
                assert!(ran.status.success() && ran.stdout.starts_with(b"{"), "{line}: {ran:?}");
            }
        }
    }
}

#[test]
fn server_takes_the_settings_of_the_page() {
    let settings = blocks("conf");
    assert_eq!(settings.len(), 3);
    for (n, settings) in settings.into_iter().enumerate() {
        // Where the server of a test listens and stores is said on its command line.
        let ours = |line: &&str| !line.trim_start().starts_with("store_dir") && !line.starts_with("http:");
        let settings = settings.lines().filter(ours).collect::<Vec<_>>().join("\n");
        let server = match settings.contains("jetstream:") || settings.contains("jetstream {\n") {
            true => settings,
            false => format!("jetstream: enabled\n{settings}"),
        };
        let server = NatsServer::start_with_config(&server);
        assert!(server.log().contains("Server is ready"), "block {n}");
    }
}
