//! What a deployment says is run, process by process: its users get in, and nobody else does.

use nix::sys::signal::Signal;
use trunkline_testkit::servers::NatsServer;

use super::machine::{Machine, eventually, is_open};
use super::{PLATFORM, composed, export};
use crate::command::{Ended, command, run, start, text};

/// The platform, without the component that runs once.
fn machine(backend: &str, ports: &[u16]) -> Machine {
    Machine::new(export(PLATFORM, backend, "systemd", &[]), ports)
}

fn publish(url: &str, subject: &str) -> Ended {
    run(&["pub", subject, "hello", "--url", url])
}

/// The search tool may do what it is for, and nothing else; strangers nothing at all.
fn check_users(machine: &Machine, nobody: &str) {
    for variable in ["NATS_URL", "TRUNKLINE_URL"] {
        let search = machine.variable("search", variable);
        publish(&search, "nachos.tool.search.result").ok();
        let denied = publish(&search, "nachos.audit.log");
        assert!(denied.code() == 1 && denied.stderr.to_lowercase().contains("permission"), "{denied:?}");
        publish(&machine.variable("gateway", variable), "nachos.gateway.note").ok();
    }
    let operator = machine.read("etc/trunkline/secrets/operator_url");
    publish(operator.trim(), "nachos.audit.log").ok();
    let wrong = nobody.replacen("://", "://operator:wrong@", 1);
    for url in [nobody, &wrong] {
        let refused = publish(url, "nachos.audit.log");
        assert!(refused.code() == 1 && refused.stderr.contains("credentials"), "{refused:?}");
    }
}

#[test]
fn an_exported_bus_in_memory_runs_and_asks_everybody_who_they_are() {
    let machine = machine("in_memory", &[4222, 8222]);
    let mut bus = machine.start_and_wait("trunkline");
    machine.on_the_machine(&["status"]).ok();
    check_users(&machine, &format!("nats://127.0.0.1:{}", machine.port(4222)));
    // A user of the configuration keeps its password.
    publish(&format!("nats://ann:configured-password-of-ann@127.0.0.1:{}", machine.port(4222)), "nachos.x")
        .ok();
    let streams = run(&[
        "stream",
        "ls",
        "--json",
        "--http",
        &format!("http://127.0.0.1:{}", machine.port(8222)),
        "--token",
        "configured-admin-token",
    ]);
    let streams = String::from_utf8(streams.ok()).expect("text");
    assert!(streams.contains("tasks") && streams.contains("audit"), "{streams}");
    bus.running.signal(Signal::SIGTERM);
    bus.until_it_notifies("STOPPING=1");
    assert!(bus.running.end().status.success());
    assert_ne!(machine.on_the_machine(&["status"]).code(), 0, "the health check sees that it is gone");
}

#[test]
fn exported_components_run_by_their_units_and_wait_for_each_other() {
    let machine = Machine::new(export(composed::PLATFORM, "in_memory", "systemd", &[]), &[4222, 8222]);
    let bus = machine.start_and_wait("trunkline");
    // Who waits is started first: it goes on when the other one is there.
    let waiting = machine.start_component("trunkline-asker", "ExecStartPre");
    let mut search = machine.start_component("trunkline-search", "ExecStart");
    search.until_it_says("answering on nachos.tool.search.call");
    waiting.end().ok();
    let asked = machine.start_component("trunkline-asker", "ExecStart").end();
    assert_eq!(String::from_utf8_lossy(&asked.ok()).trim_end(), "what is $5 in 'euros'?");
    for service in [search, bus.running] {
        service.signal(Signal::SIGTERM);
        assert!(service.end().status.success());
    }
}

#[test]
fn an_exported_bus_runs_on_its_redis_which_lets_nobody_else_in() {
    let machine = machine("redis", &[4222, 8222, 6380]);
    // As systemd starts them: both at once, and the bus waits.
    let redis = machine.start("trunkline-redis");
    let bus = machine.start_and_wait("trunkline");
    machine.on_the_machine(&["status"]).ok();
    check_users(&machine, &format!("nats://127.0.0.1:{}", machine.port(4222)));

    let client = |url: &str| {
        let client = redis::Client::open(url).expect("a URL");
        client.get_connection_with_timeout(std::time::Duration::from_secs(10))
    };
    let url = machine.read("etc/trunkline/secrets/redis_url");
    let mut connection = client(url.trim()).expect("the bus's own user gets in");
    let length: u64 = redis::cmd("XLEN").arg("atlas_bus:{audit}").query(&mut connection).expect("allowed");
    assert!(length >= 1, "what was published is in Redis");
    let config = redis::cmd("CONFIG").arg("GET").arg("*").query::<redis::Value>(&mut connection);
    assert!(config.is_err(), "and may do nothing but what the bus does");
    let port = machine.port(6380);
    let mut stranger = match client(&format!("redis://127.0.0.1:{port}/")) {
        Ok(stranger) => stranger,
        Err(error) => return assert!(error.to_string().contains("NOAUTH"), "{error}"),
    };
    let refused = redis::cmd("PING").query::<String>(&mut stranger).expect_err("nobody");
    assert!(
        refused.to_string().contains("Authentication") || refused.to_string().contains("NOAUTH"),
        "{refused}"
    );
    let probe = machine.read("etc/trunkline/secrets/redis_probe");
    let mut probe = client(&format!("redis://probe:{}@127.0.0.1:{port}/", probe.trim())).expect("it gets in");
    assert_eq!(redis::cmd("PING").query::<String>(&mut probe).expect("allowed"), "PONG");
    assert!(redis::cmd("XLEN").arg("atlas_bus:{audit}").query::<u64>(&mut probe).is_err());
    let dump = machine.root().join("var/lib/trunkline-redis/appendonlydir");
    assert!(dump.is_dir(), "what is stored is on the disk");
    for service in [bus.running, redis] {
        service.signal(Signal::SIGTERM);
        assert!(service.end().status.success());
    }
}

#[test]
fn an_exported_nats_cluster_runs_and_keeps_three_copies() {
    let ports = [4222, 4223, 4224, 6222, 6223, 6224, 8222, 8223, 8224];
    let machine = machine("nats", &ports);
    let nodes = [1, 2, 3].map(|node| machine.start(&format!("trunkline-nats-{node}")));
    let bus = machine.start_and_wait("trunkline");
    check_users(&machine, &format!("nats://127.0.0.1:{}", machine.port(4223)));
    // The health check of the bus: its last stream is there; one copy where the configuration says so, else three.
    machine.on_the_machine(&["stream", "info", "audit"]).ok();
    let info = machine.on_the_machine(&["stream", "info", "tasks", "--json"]);
    let info: serde_json::Value = serde_json::from_slice(&info.ok()).expect("JSON");
    let text = info.to_string();
    assert!(text.contains("\"replicas\":3"), "{info:#}");
    // A server without the password of the routes is none of the cluster, and a client of the routes' user gets nowhere.
    let route = run(&[
        "pub",
        "nachos.x",
        "y",
        "--url",
        &format!("nats://route:wrong@127.0.0.1:{}", machine.port(4222)),
    ]);
    assert!(route.code() == 1 && route.stderr.contains("credentials"), "{route:?}");
    // One of three may go.
    nodes[2].signal(Signal::SIGKILL);
    eventually("the end of a server", || !is_open(machine.port(4224)));
    let operator = machine.read("etc/trunkline/secrets/operator_url");
    eventually("a publish with two servers of three", || {
        publish(operator.trim(), "nachos.tool.search.task").status.success()
    });
    bus.running.signal(Signal::SIGTERM);
    assert!(bus.running.end().status.success());
}

#[test]
fn who_waits_for_streams_may_see_them_and_nothing_else() {
    let exported = export(PLATFORM, "nats", "kubernetes", &[]);
    // The accounts of the cluster, on a server of its own: what stands before them is for routes.
    let auth = exported.read("secrets/nats_auth.conf");
    let accounts = &auth[auth.find("accounts {").expect("there are accounts")..];
    let server = NatsServer::start_with_config(&format!("{accounts}\njetstream: enabled\n"));
    let at_server = |url: &str| {
        let credentials =
            url.split("://").nth(1).and_then(|rest| rest.split('@').next()).expect("credentials");
        server.url().replacen("://", &format!("://{credentials}@"), 1)
    };
    let environment = exported.read("secrets/probe.env");
    let probe = environment.lines().find_map(|line| line.strip_prefix("TRUNKLINE_URL=")).expect("a URL");
    let probe = at_server(probe);
    let as_probe = |arguments: &[&str]| {
        let mut waiting = command(arguments);
        waiting.env("TRUNKLINE_URL", &probe);
        start(waiting, b"").end()
    };
    as_probe(&["status", "--timeout", "30s"]).ok();
    assert_eq!(as_probe(&["stream", "info", "audit"]).code(), 1, "the stream is not there yet");

    // The bus with the configuration of the deployment, which makes the streams; here is one server, for one copy of each.
    let file = exported.directory.path().join("bus.yaml");
    let bus = exported.read("config.yaml").replace("replicas: 3", "replicas: 1");
    std::fs::write(&file, bus).expect("written");
    let mut bus = command(&["up", "--config", text(&file)]);
    bus.env("TRUNKLINE_NATS_URL", server.url());
    bus.env("TRUNKLINE_NATS_AUTH_PASSWORD_FILE", exported.out().join("secrets/nats_auth_password"));
    let mut bus = start(bus, b"");
    bus.until_it_says("is ready");
    as_probe(&["stream", "info", "audit"]).ok();
    let denied = as_probe(&["pub", "nachos.audit.log", "x"]);
    assert_eq!(denied.code(), 1, "{denied:?}");
    bus.signal(Signal::SIGTERM);
    assert!(bus.end().status.success());
}
