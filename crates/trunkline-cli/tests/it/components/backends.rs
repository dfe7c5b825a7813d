//! The backend is one word in one file: everything else stays as it is, and works.

use std::ffi::OsString;

use nix::sys::signal::Signal;
use trunkline_testkit::{NatsServer, RedisServer, environment};

use super::{Platform, eventually};
use crate::command::{command, start};
use crate::fallback::get;
use crate::readme::{repository, text_of};

/// A platform of stock clients as the examples have it: a tool in Python, and a gateway for Node that asks it.
fn example() -> Platform {
    let platform = Platform::new("");
    for file in ["python/weather.py", "node/gateway.mjs"] {
        let path = platform.path().join("examples").join(file);
        std::fs::create_dir_all(path.parent().expect("a directory")).unwrap();
        std::fs::copy(repository().join("examples").join(file), path).unwrap();
    }
    // Modules are looked up beside the script and above it.
    let modules = environment::node_path().join("node_modules");
    std::os::unix::fs::symlink(modules, platform.path().join("node_modules")).unwrap();
    platform
}

/// Where the Python is that has the client, before everything else.
fn path() -> OsString {
    let python = environment::python();
    let mut path = python.parent().expect("a directory").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

#[test]
fn changing_the_backend_moves_the_demo_and_a_platform_of_stock_clients_across() {
    let (redis, nats) = (RedisServer::start(), NatsServer::start(["-js"]));
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (http, gateway) = (free(), free());
    let [http, gateway] = [http, gateway].map(|listener| listener.local_addr().unwrap());
    let platform = example();
    // What this machine has for all three; the word behind `backend` is all that changes.
    let mut yaml = text_of("examples/platform.yaml");
    let servers = format!(
        "messaging:\n  fallback: fail\n  redis_url: redis://127.0.0.1:{}\n  nats_url: {}\n",
        redis.port(),
        nats.url()
    );
    for (from, to) in [
        ("messaging:\n", servers.as_str()),
        ("components:\n", &format!("server: {{listen: '127.0.0.1:0', http: '{http}'}}\ncomponents:\n")),
        ("  gateway:\n", &format!("  gateway:\n    env: {{PORT: '{}'}}\n", gateway.port())),
        ("127.0.0.1:9000", &gateway.to_string()),
    ] {
        assert_eq!(yaml.matches(from).count(), 1, "{from}");
        yaml = yaml.replace(from, to);
    }
    for backend in ["in_memory", "redis", "nats"] {
        platform.write("config.yaml", &yaml.replace("backend: in_memory ", &format!("backend: {backend} ")));
        let ports = platform.path().join("ports.json");
        let mut up = command(&["up", "--demo", "--ports-file", crate::command::text(&ports)]);
        up.current_dir(platform.path()).env("PATH", path());
        let mut up = start(up, b"");
        up.until_it_says("Ctrl-C stops it");
        let mut waiting = command(&["status", "--wait"]);
        waiting.current_dir(platform.path());
        let waited = start(waiting, b"").end();
        assert!(waited.status.success(), "{backend}: {waited:?}");
        // The demo beside it has a weather tool of its own, in the same queue group: either is drawn.
        eventually("the tool in Python has answered", || {
            let answer = get(&format!("http://{gateway}"), "/?city=Oslo");
            assert!(answer.starts_with("HTTP/1.1 200"), "{backend}: {answer}");
            answer.contains(r#"{"output": "sunny in Oslo"}"#)
        });
        // Two conversations at least.
        up.until_it_has_printed(20);
        up.signal(Signal::SIGTERM);
        let ended = up.end();
        assert!(ended.status.success(), "{backend}: {ended:?}");
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(said.contains("answered in"), "{backend}: the demo runs beside it: {said}");
        assert!(!ended.stderr.contains("Traceback"), "{backend}: {ended:?}");
    }
}
