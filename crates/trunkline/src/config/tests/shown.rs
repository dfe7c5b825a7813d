//! What a configuration file yields, and what `config show` makes of it.

use super::*;

const YAML: &str = r#"
messaging:
  backend: redis
  redis_url: redis://bus:s3cret@redis.example:6380/2
  stream_prefix: atlas-dev
  initial_stream_id: 0-0
  streams:
    - {name: audit, subjects: [nachos.audit.log], max_age: 30d, max_bytes: 1.5GB}
    - name: tasks
      subjects: ["nachos.tool.*.task", other.>]
      max_messages: 1000
  consumer:
    ack_wait: 1m30s
    backoff: [100ms, 2]
server:
  listen: ":0"
  http: off
  users:
    - {user: ann, password: hunter2, admin: yes, permissions: {publish: "a.>", subscribe: {allow: [b, "c.* q"], deny: [b.x]}, allow_responses: true}}
  limits: {max_payload: 2MiB}
runtime:
  resources: {memory: 512MB, cpus: 0.5}
components:
  gateway:
    command: [./gateway, --port, "1"]
    env: {API_KEY: k3y, COUNTRY: no}
    ready: http://127.0.0.1:9000/healthz
    env_file: gateway.env
    cwd: gateway
    image: example/gateway:3
    ready_timeout: 90s
    stop_timeout: 500ms
  web: {command: "./web --fast", depends_on: [gateway], restart: always, ready: "responder:nachos.gateway.request"}
"#;

const TOML: &str = r#"
[messaging]
backend = "redis"
redis_url = "redis://bus:s3cret@redis.example:6380/2"
stream_prefix = "atlas-dev"
initial_stream_id = "0-0"
consumer = { ack_wait = 90, backoff = ["100ms", 2] }

[[messaging.streams]]
name = "audit"
subjects = ["nachos.audit.log"]
max_age = "30d"
max_bytes = 1_500_000_000

[[messaging.streams]]
name = "tasks"
subjects = ["nachos.tool.*.task", "other.>"]
max_messages = 1000

[server]
listen = ":0"
http = false
limits.max_payload = "2MiB"

[[server.users]]
user = "ann"
password = "hunter2"
admin = true
permissions.publish = "a.>"
permissions.subscribe = { allow = ["b", "c.* q"], deny = ["b.x"] }
permissions.allow_responses = true

[runtime.resources]
memory = "512MB"
cpus = 0.5

[components.gateway]
command = ["./gateway", "--port", "1"]
env = { API_KEY = "k3y", COUNTRY = "no" }
ready = "http://127.0.0.1:9000/healthz"
env_file = "gateway.env"
cwd = "gateway"
image = "example/gateway:3"
ready_timeout = 90
stop_timeout = "500ms"

[components.web]
command = "./web --fast"
depends_on = ["gateway"]
restart = "always"
ready = "responder:nachos.gateway.request"
"#;

#[test]
fn yaml_and_toml_say_the_same() {
    let yaml = load_file("config.yaml", YAML).expect("valid");
    let toml = load_file("config.toml", TOML).expect("valid");
    assert_eq!(yaml.config, toml.config);
    assert_ne!(yaml.config, Config::default());
    let messaging = &yaml.config.messaging;
    assert_eq!(messaging.streams[0].max_bytes, Some(1_500_000_000));
    assert_eq!(messaging.consumer.backoff.len(), 2);
    assert_eq!(yaml.config.server.http, None);
    assert_eq!(yaml.config.components["gateway"].env["COUNTRY"], "no");
    assert_eq!(yaml.config.components["web"].command, Command::Line("./web --fast".to_owned()));
}

#[test]
fn show_lists_every_value_with_its_origin_and_hides_secrets() {
    for (name, text) in [("config.yaml", YAML), ("config.toml", TOML)] {
        let env = [("NATS_URL", "nats://u:n4ts@a:1,tls://t0ken@b"), ("TRUNKLINE_SERVER_AUTH_TOKEN", "t0p")];
        let loaded = load_all(name, text, &env, &[]).expect("valid");
        let shown = serde_json::to_string(&loaded.entries()).expect("entries are plain data");
        let debugged = format!("{loaded:?}");
        for secret in ["s3cret", "hunter2", "n4ts", "t0ken", "t0p"] {
            assert!(!shown.contains(secret), "{secret} is shown");
            assert!(!debugged.contains(secret), "{secret} is in Debug");
        }
        assert!(!shown.contains("k3y"));
        for (key, value) in [
            ("messaging.redis_url", "\"redis://***@redis.example:6380/2\""),
            ("messaging.nats_url", "\"nats://***@a:1,tls://***@b:4222\""),
            ("messaging.consumer.ack_wait", "\"1m30s\""),
            ("messaging.consumer.backoff", "[\"100ms\",\"2s\"]"),
            ("messaging.streams[0].max_bytes", "\"1500MB\""),
            ("messaging.streams[1].max_age", "null"),
            ("messaging.wait_replicas", "0"),
            ("messaging.max_pending", "65536"),
            ("server.listen", "\"0.0.0.0:0\""),
            ("server.http", "null"),
            ("server.users[0].password", "\"***\""),
            ("server.users[0].permissions.publish.allow", "[\"a.>\"]"),
            ("server.users[0].permissions.subscribe.allow", "[\"b\",\"c.* q\"]"),
            ("server.users[0].permissions.allow_responses.expires", "\"2m\""),
            ("server.auth.token", "\"***\""),
            ("server.tls.cert_file", "null"),
            ("runtime.resources.memory", "\"512MB\""),
            ("components.gateway.command", "[\"./gateway\",\"--port\",\"1\"]"),
            ("components.gateway.env.API_KEY", "\"***\""),
            ("components.web.restart", "\"always\""),
            ("components.web.ready", "\"responder:nachos.gateway.request\""),
            ("components.web.ready_timeout", "\"1m\""),
            ("components.web.stop_timeout", "\"10s\""),
            ("components.web.env_file", "null"),
            ("components.web.image", "null"),
            ("components.gateway.env_file", "\"gateway.env\""),
            ("components.gateway.cwd", "\"gateway\""),
            ("components.gateway.image", "\"example/gateway:3\""),
            ("components.gateway.ready_timeout", "\"1m30s\""),
            ("components.gateway.stop_timeout", "\"500ms\""),
        ] {
            assert_eq!(entry(&loaded, key).value.to_string(), value, "{key}");
        }
    }
    let loaded = load_file("config.yaml", YAML).expect("valid");
    for (key, origin) in [
        ("messaging.backend", "config.yaml:3:12"),
        ("messaging.streams[1].name", "config.yaml:9:13"),
        ("messaging.publish_timeout", "default"),
        ("server.users[0].permissions.publish.allow", "config.yaml:19:73"),
    ] {
        assert_eq!(entry(&loaded, key).origin.to_string(), origin, "{key}");
    }
}

#[test]
fn readiness_is_shown_as_it_can_be_written() {
    for ready in [
        "started",
        "responder:a.b",
        "http://h/x",
        "https://h:1/x?y",
        "tcp://h:1",
        "tcp://[::1]:1",
        "log:listening on",
    ] {
        let yaml = format!("components: {{a: {{command: x, ready: '{ready}'}}}}");
        let loaded = load_file("config.yaml", &yaml).expect("valid");
        assert_eq!(entry(&loaded, "components.a.ready").value, ready);
    }
    // What is asked for may not exist yet when the configuration is looked at.
    let yaml = "components: {a: {command: x, env_file: /nonexistent/a.env, cwd: /nonexistent}}";
    assert!(load_file("config.yaml", yaml).is_ok());
}

#[test]
fn defaults_are_the_documented_ones() {
    let loaded = load_file("config.yaml", "# nothing\n").expect("valid");
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.config.messaging, Messaging::default());
    assert_eq!(loaded.config.server, Server::default());
    for (key, value) in [
        ("messaging.backend", "\"in_memory\""),
        ("messaging.redis_url", "\"redis://localhost:6379/0\""),
        ("messaging.stream_prefix", "\"atlas_bus\""),
        ("messaging.initial_stream_id", "\"$\""),
        ("messaging.connect_timeout", "\"3s\""),
        ("messaging.nats_url", "\"nats://127.0.0.1:4222\""),
        ("messaging.subject_root", "\"nachos\""),
        ("messaging.streams", "[]"),
        ("messaging.consumer.ack_wait", "\"30s\""),
        ("messaging.consumer.max_deliver", "5"),
        ("messaging.consumer.backoff", "[\"1s\",\"5s\",\"30s\"]"),
        ("messaging.publish_timeout", "\"5s\""),
        ("messaging.outbox", "false"),
        ("messaging.outbox_max_messages", "10000"),
        ("messaging.outbox_max_bytes", "\"64MB\""),
        ("messaging.dedupe_window", "\"2m\""),
        ("messaging.max_pending", "65536"),
        ("server.listen", "\"127.0.0.1:4222\""),
        ("server.http", "\"127.0.0.1:8222\""),
        ("server.limits.max_payload", "\"1MiB\""),
        ("server.limits.max_control_line", "\"4KiB\""),
        ("server.limits.max_pending", "\"64MiB\""),
        ("runtime.resources.memory", "null"),
        ("components", "{}"),
    ] {
        let entry = entry(&loaded, key);
        assert_eq!((entry.value.to_string().as_str(), entry.origin), (value, Origin::Default), "{key}");
    }
}

#[test]
fn every_key_is_documented() {
    for key in keys() {
        assert!(key.doc.ends_with('.') && !key.doc.contains("  "), "{}: {:?}", key.path, key.doc);
    }
}
