//! What a compose file says is done, container by container: the platform comes up in its order and works.

use super::containers::{self, Containers};
use super::export;
use super::formats::compose;

/// A tool, somebody who asks it once, and a stream of work.
pub(super) const PLATFORM: &str = r#"
messaging:
  streams:
    - { name: tasks, subjects: ["nachos.tool.*.task"], max_age: 7d }
components:
  search:
    command: [trunkline, reply, nachos.tool.search.call, --echo]
    ready: responder:nachos.tool.search.call
    image: registry.example/search:1
  asker:
    command: [trunkline, request, nachos.tool.search.call, "what is $5 in 'euros'?"]
    depends_on: [search]
    restart: "no"
    image: registry.example/asker:1
"#;

#[track_caller]
fn check(backend: &str) {
    if !containers::can_be_made() {
        return;
    }
    let exported = export(PLATFORM, backend, "compose", &["--commands"]);
    let mut containers = Containers::up(&exported, compose(&exported));
    // Whoever depends on others started when they were ready, so that it was answered at its first and only question.
    containers.end("asker.wait").ok();
    let asked = containers.end("asker");
    assert_eq!(String::from_utf8_lossy(&asked.ok()).trim_end(), "what is $5 in 'euros'?");
    let exec = |name: &str, variables: &[(&str, &str)], command: &[&str]| {
        let command: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        containers.exec(name, variables, &command)
    };
    // As docs/deploy.md has it for the operator.
    let operator = exported.read("secrets/operator_url");
    let operator = [("TRUNKLINE_URL", operator.trim())];
    exec("trunkline", &operator, &["/usr/local/bin/trunkline", "pub", "nachos.tool.search.task", "x"]).ok();
    // The health check of the bus tells the truth, and who is no user gets nowhere.
    let service = if backend == "nats" { "nats://nats:4222" } else { "nats://trunkline:4222" };
    let nobody = [("TRUNKLINE_URL", service), ("NATS_URL", service)];
    let refused = exec("search", &nobody, &["trunkline", "pub", "nachos.x", "x"]);
    assert!(refused.code() == 1 && refused.stderr.contains("credentials"), "{refused:?}");
    // Nothing can be written but where the file says.
    exec("search", &[], &["touch", "/tmp/here"]).ok();
    for place in ["/here", "/etc/here", "/usr/local/bin/here"] {
        let refused = exec("search", &[], &["touch", place]);
        assert!(refused.stderr.contains("Read-only file system"), "{refused:?}");
    }
    let outside = exec("search", &[], &["wget", "-q", "-T", "3", "-t", "1", "-O", "-", "http://192.0.2.1/"]);
    assert_ne!(outside.code(), 0, "nothing leads out");
    for name in ["search", "trunkline"] {
        let ended = containers.stop(name);
        assert!(ended.status.success(), "{name}: {ended:?}");
    }
}

#[test]
fn a_composed_platform_in_memory_comes_up_in_order_and_works() {
    check("in_memory");
}

#[test]
fn a_composed_platform_on_redis_comes_up_in_order_and_works() {
    check("redis");
}

#[test]
fn a_composed_platform_on_three_nats_servers_comes_up_in_order_and_works() {
    check("nats");
}
