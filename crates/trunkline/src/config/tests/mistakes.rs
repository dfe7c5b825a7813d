//! What is refused, with the whole text of each error.

use std::path::Path;

use super::*;

#[track_caller]
fn check_error(name: &str, text: &str, expected: &str) {
    let error = load_file(name, text).expect_err("a mistake must be refused").to_string();
    assert_eq!(error, expected, "for {text:?}");
}

#[test]
fn yaml_mistakes_name_place_value_and_what_is_allowed() {
    for (text, expected) in [
        (
            "\n\n    \nmessaging:\n  bakend: redis\n",
            "config.yaml:5:3: unknown key \"messaging.bakend\"; did you mean \"messaging.backend\"?",
        ),
        ("mesaging: {}", "config.yaml:1:1: unknown key \"mesaging\"; did you mean \"messaging\"?"),
        (
            "messaging: {listen: ':1'}",
            "config.yaml:1:13: unknown key \"messaging.listen\"; did you mean \"server.listen\"?",
        ),
        ("messaging: {frobnicate: 1}", "config.yaml:1:13: unknown key \"messaging.frobnicate\""),
        (
            "messaging:\n  publish_timeout: soon\n",
            "config.yaml:2:20: messaging.publish_timeout is \"soon\", expected a duration such as 5s",
        ),
        (
            "messaging:\n  publish_timeout: [1s]\n",
            "config.yaml:2:20: messaging.publish_timeout is a list, expected a duration such as 5s",
        ),
        (
            "messaging:\n  consumer:\n    ack_wait: 13h\n",
            "config.yaml:3:15: messaging.consumer.ack_wait is \"13h\", allowed is 100ms to 12h",
        ),
        (
            "messaging: {consumer: {max_deliver: 0}}",
            "config.yaml:1:37: messaging.consumer.max_deliver is \"0\", allowed is 1 to 1000",
        ),
        (
            "messaging: {consumer: {backoff: [1s, x]}}",
            "config.yaml:1:38: messaging.consumer.backoff[1] is \"x\", expected a duration such as 5s",
        ),
        (
            "messaging: {consumer: {backoff: 1s}}",
            "config.yaml:1:33: messaging.consumer.backoff is \"1s\", expected a list such as [a, b]",
        ),
        (
            "messaging: {consumer: fast}",
            "config.yaml:1:23: messaging.consumer is \"fast\", expected a section with the keys ack_wait, max_deliver, backoff",
        ),
        (
            "messaging: {backend: kafka}",
            "config.yaml:1:22: messaging.backend is \"kafka\", expected in_memory or redis or nats",
        ),
        (
            "messaging: {outbox: maybe}",
            "config.yaml:1:21: messaging.outbox is \"maybe\", expected true or false",
        ),
        (
            "messaging: {subject_root: a.b}",
            "config.yaml:1:27: messaging.subject_root is \"a.b\", expected one token of a subject, without . * > or white space",
        ),
        (
            "messaging: {stream_prefix: 'a{b}'}",
            "config.yaml:1:28: messaging.stream_prefix is \"a{b}\", expected letters, digits, _, - or : and at most 64 of them",
        ),
        (
            "messaging: {redis_url: 'http://x'}",
            "config.yaml:1:24: messaging.redis_url is \"http://x\": the scheme is not redis, rediss, redis-sentinel, rediss-sentinel, redis-cluster or rediss-cluster",
        ),
        (
            "messaging: {nats_url: 'nats://a:b@h:99999'}",
            "config.yaml:1:23: messaging.nats_url is \"nats://***@h:99999\": invalid port number",
        ),
        (
            "server: {listen: example.org:4222}",
            "config.yaml:1:18: server.listen is \"example.org:4222\", expected an address such as 127.0.0.1:4222, localhost:4222 or :4222",
        ),
        (
            "server: {limits: {max_payload: 1GB}}",
            "config.yaml:1:32: server.limits.max_payload is \"1GB\", allowed is 1 to 64MiB",
        ),
        (
            "runtime: {resources: {cpus: nan}}",
            "config.yaml:1:29: runtime.resources.cpus is \"nan\", expected a number such as 0.5",
        ),
        ("messaging: {streams: [{subjects: [a]}]}", "config.yaml:1:23: messaging.streams[0].name is missing"),
        (
            "messaging: {streams: [{name: 'a b', subjects: [a]}]}",
            "config.yaml:1:30: messaging.streams[0].name is \"a b\", expected letters, digits, _ or - and at most 64 of them",
        ),
        (
            "messaging: {streams: [{name: a}]}",
            "config.yaml:1:23: messaging.streams[0].subjects must name at least one subject",
        ),
        (
            "messaging: {streams: [{name: a, subjects: ['a..b']}]}",
            "config.yaml:1:44: messaging.streams[0].subjects[0] is \"a..b\": subject \"a..b\" has an empty token",
        ),
        (
            "messaging: {streams: [{name: a, subjects: ['a.>.b']}]}",
            "config.yaml:1:44: messaging.streams[0].subjects[0] is \"a.>.b\": pattern \"a.>.b\" has '>' before its last token",
        ),
        (
            "messaging:\n  streams:\n  - {name: a, subjects: [x]}\n  - {name: a, subjects: [y]}\n",
            "config.yaml:4:12: stream \"a\" is already defined at config.yaml:3:12",
        ),
        (
            "messaging:\n  streams:\n  - {name: a, subjects: [q, x.*]}\n  - {name: b, subjects: ['*.y.>', x.y]}\n",
            "config.yaml:4:35: pattern \"x.y\" of stream \"b\" overlaps \"x.*\" of stream \"a\" at config.yaml:3:29",
        ),
        (
            "components:\n  web: {command: web, depends_on: [tols]}\n  tools: {command: tools}\n",
            "config.yaml:2:36: component \"web\" depends on unknown component \"tols\"; did you mean \"tools\"?",
        ),
        (
            "components:\n  a: {command: x, depends_on: [b]}\n  b: {command: x, depends_on: [c]}\n  c: {command: x, depends_on: [b]}\n",
            "config.yaml:4:32: components depend on each other in a circle: b -> c -> b",
        ),
        (
            "components:\n  a: {command: x, depends_on: [a]}\n",
            "config.yaml:2:32: components depend on each other in a circle: a -> a",
        ),
        ("components:\n  web: {env: {A: b}}\n", "config.yaml:2:8: components.web.command is missing"),
        (
            "components: {web: {command: []}}",
            "config.yaml:1:29: components.web.command is a list, expected a program with its arguments",
        ),
        (
            "components: {'a.b': {command: x}}",
            "config.yaml:1:14: components is a map with the name \"a.b\", expected names of letters, digits, _ and -",
        ),
        (
            "components: {a: {command: x, env: {'A=B': c}}}",
            "config.yaml:1:35: components.a.env has \"A=B\", which cannot name a variable",
        ),
        (
            "components: {a: {command: x, ready: 'ftp://h'}}",
            "config.yaml:1:37: components.a.ready is \"ftp://h\", expected started, responder:SUBJECT, http://HOST:PORT/PATH, https://HOST:PORT/PATH, tcp://HOST:PORT or log:TEXT",
        ),
        (
            "components: {a: {command: x, ready: 'log:'}}",
            "config.yaml:1:37: components.a.ready is \"log:\", expected started, responder:SUBJECT, http://HOST:PORT/PATH, https://HOST:PORT/PATH, tcp://HOST:PORT or log:TEXT",
        ),
        (
            "components: {a: {command: x, ready: 'tcp://h'}}",
            "config.yaml:1:37: components.a.ready is \"tcp://h\": expected tcp://HOST:PORT",
        ),
        (
            "components: {a: {command: x, ready: 'responder:a b'}}",
            "config.yaml:1:37: components.a.ready is \"responder:a b\": subject \"a b\" contains ' ', which no subject may contain",
        ),
        (
            "components: {a: {command: x, stop_timeout: 2h}}",
            "config.yaml:1:44: components.a.stop_timeout is \"2h\", allowed is 0s to 1h",
        ),
        (
            "components: {a: {command: x, env_fil: x}}",
            "config.yaml:1:30: unknown key \"components.a.env_fil\"; did you mean \"components.a.env_file\"?",
        ),
        ("server: {users: [{user: ann}]}", "config.yaml:1:18: server.users[0] has no password"),
        (
            "server: {users: [{user: ann, password: x}, {user: ann, password: y}]}",
            "config.yaml:1:51: user \"ann\" is already defined at config.yaml:1:25",
        ),
        (
            "server: {users: [{nkey: UABC}]}",
            "config.yaml:1:25: server.users[0].nkey is \"UABC\", expected a public user nkey: U and 55 more of A-Z and 2-7; S begins a seed, which its owner keeps",
        ),
        (
            "server: {auth: {no_auth_user: bob}}",
            "config.yaml:1:31: server.auth.no_auth_user is \"bob\", which is no user",
        ),
        (
            "server: {accounts: {east: {user: [{user: ann, password: x}]}}}",
            "config.yaml:1:28: unknown key \"server.accounts.east.user\"; did you mean \"server.accounts.east.users\"?",
        ),
        (
            "server: {accounts: {east: {users: [{user: ann}]}}}",
            "config.yaml:1:36: server.accounts.east.users[0] has no password",
        ),
        (
            "server: {accounts: {$SYS: {users: []}}}",
            "config.yaml:1:27: server.accounts.$SYS is no name for an account: letters, digits, _ or - and at most 64 of them",
        ),
        (
            "server: {accounts: {a.b: {users: [{user: ann}]}}}",
            "config.yaml:1:26: server.accounts.a.b is no name for an account: letters, digits, _ or - and at most 64 of them",
        ),
        (
            "server: {users: [{user: ann, password: x}], accounts: {east: {users: [{user: ann, password: y}]}}}",
            "config.yaml:1:78: user \"ann\" is already defined at config.yaml:1:25",
        ),
        (
            "server: {auth: {user: ann, password: x}, users: [{user: ann, password: y}]}",
            "config.yaml:1:23: server.auth.user is a user of server.users or server.accounts too",
        ),
        (
            "server: {users: [{user: ann, password: x, permissions: {subscibe: a}}]}",
            "config.yaml:1:57: unknown key \"server.users[0].permissions.subscibe\"; did you mean \"server.users[0].permissions.subscribe\"?",
        ),
        (
            "server: {accounts: {east: {users: [{user: ann, password: x, admin: true}]}}}",
            "config.yaml:1:68: server.accounts.east.users[0].admin cannot be: the admin API is about the users of server.users",
        ),
        (
            "server: {limits: {auth_failures: 0}}",
            "config.yaml:1:34: server.limits.auth_failures is \"0\", allowed is 1 to 1000000",
        ),
        (
            "server: {permissions: {publish: 'a.> workers'}}",
            "config.yaml:1:33: server.permissions.publish cannot be restricted to a queue group",
        ),
        (
            "server: {tls: {cert_file: c.pem}}",
            "config.yaml:1:27: server.tls.cert_file needs server.tls.key_file",
        ),
        (
            "server: {tls: {cert_file: c.pem, key_file: k.pem, verify_and_map: true}}",
            "config.yaml:1:67: server.tls.verify_and_map needs server.tls.ca_file",
        ),
        (
            "server: {tls: {cert_file: c.pem, key_file: k.pem, handshake_first: true, allow_non_tls: true}}",
            "config.yaml:1:89: server.tls.allow_non_tls excludes server.tls.handshake_first: true",
        ),
        (
            "server: {websocket: {no_tls: true}}",
            "config.yaml:1:30: server.websocket.no_tls needs server.websocket.listen",
        ),
        (
            "server: {limits: {max_payload: 2MiB, max_pending: 1MiB}}",
            "config.yaml:1:32: server.limits.max_payload is larger than server.limits.max_pending, so such a message would reach nobody",
        ),
    ] {
        check_error("config.yaml", text, expected);
    }
}

#[test]
fn yaml_that_is_no_configuration_is_refused_with_its_place() {
    for (text, expected) in [
        ("messaging: {backend: redis\n", "config.yaml:2:1: not valid YAML: "),
        ("a: &x 1\nb: *x\n", "config.yaml:2:4: an alias is not supported in a configuration"),
        ("messaging: {backend: !env X}", "config.yaml:1:22: a tag is not supported in a configuration"),
        (
            "server: {}\n---\nserver: {}\n",
            "config.yaml:2:1: a second document is not supported in a configuration",
        ),
        (
            "? [a]\n: b\n",
            "config.yaml:1:3: a key that is a list or a map is not supported in a configuration",
        ),
        (
            "messaging:\n  backend: redis\nmessaging:\n  outbox: on\n",
            "config.yaml:3:1: \"messaging\" is already given at config.yaml:1:1",
        ),
        (
            "- a\n",
            "config.yaml:1:1: the configuration is a list, expected a section with the keys messaging, server, observe, runtime, components",
        ),
    ] {
        let error = load_file("config.yaml", text).expect_err("must be refused").to_string();
        assert!(error.starts_with(expected), "for {text:?}: {error}");
    }
    let deep = "[".repeat(40);
    let error = load_file("config.yaml", &deep).expect_err("must be refused").to_string();
    assert_eq!(error, "config.yaml:1:33: nested deeper than 32 levels");
}

#[test]
fn toml_mistakes_name_their_place() {
    for (text, expected) in [
        (
            "[messaging]\nbakend = \"redis\"\n",
            "config.toml:2:1: unknown key \"messaging.bakend\"; did you mean \"messaging.backend\"?",
        ),
        (
            "[messaging]\npublish_timeout = \"soon\"\n",
            "config.toml:2:19: messaging.publish_timeout is \"soon\", expected a duration such as 5s",
        ),
        (
            "[messaging.consumer]\nmax_deliver = 1001\n",
            "config.toml:2:15: messaging.consumer.max_deliver is \"1001\", allowed is 1 to 1000",
        ),
        (
            "[[messaging.streams]]\nname = \"a\"\nsubjects = [\"x\"]\n\n[[messaging.streams]]\nsubjects = [\"y\"]\n",
            "config.toml:5:1: messaging.streams[1].name is missing",
        ),
        (
            "messaging.consumer.ack_wat = 1",
            "config.toml:1:20: unknown key \"messaging.consumer.ack_wat\"; did you mean \"messaging.consumer.ack_wait\"?",
        ),
        ("a = 1\na = 2\n", "config.toml:2:1: not valid TOML: duplicate key"),
    ] {
        check_error("config.toml", text, expected);
    }
}

#[test]
fn every_mistake_is_reported_at_once() {
    let text = "messaging:\n  backend: kafka\n  outbox: 3\nserver:\n  lisen: ':0'\n";
    let error =
        load_all("config.yaml", text, &[("TRUNKLINE_MAX_PENDING", "0")], &[("server.http", "x", "--http")])
            .expect_err("must be refused");
    let lines: Vec<String> = error.errors().iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "config.yaml:2:12: messaging.backend is \"kafka\", expected in_memory or redis or nats",
            "config.yaml:3:11: messaging.outbox is \"3\", expected true or false",
            "TRUNKLINE_MAX_PENDING: messaging.max_pending is \"0\", allowed is 1 to 16777216",
            "config.yaml:5:3: unknown key \"server.lisen\"; did you mean \"server.listen\"?",
            "--http: server.http is \"x\", expected an address such as 127.0.0.1:4222, localhost:4222 or :4222",
        ]
    );
    assert_eq!(error.to_string(), lines.join("\n"));
}

#[test]
fn errors_never_show_secrets() {
    for text in [
        "server: {auth: {token: [t0p]}}",
        "server: {auth: {token: t0p, user: t0p}}",
        "server: {users: [{password: t0p}]}",
        "server: {accounts: {east: {users: [{password: t0p}]}}}",
        "messaging: {redis_url: 'redis://u:t0p@h:x'}",
        "messaging: {redis_url: 'redis://u:t0p,x@h:x'}",
        "messaging: {redis_url: 'redis:u:t0p@h'}",
        "messaging: {nats_url: 'nats://u:t0p,@h'}",
        "messaging: {backend: 'redis://u:t0p@h'}",
        "server: {tokn: t0p}",
        "components: {a: {command: x, env: {A: [t0p]}}}",
        // Where a section or a list is expected that has a secret in it, the text may be that secret.
        "server: {auth: t0p}",
        "server: {users: t0p}",
        "server: {users: ['ann:t0p']}",
        "server: {accounts: t0p}",
        "server: {accounts: {east: t0p}}",
        "server: {accounts: {east: {users: 'ann:t0p'}}}",
        "messaging: {nats_auth: t0p}",
        "messaging: {redis_sentinel: t0p}",
        // The secret half of an nkey, whole or not.
        "server: {users: [{nkey: SUAt0p}]}",
        "server: {accounts: {east: {users: [{nkey: ' SUAt0p'}]}}}",
    ] {
        let error = load_file("config.yaml", text).expect_err("must be refused").to_string();
        let shown = error.replace("server.auth.token", "").replace("is \"t0p\", which is no user", "");
        assert!(!shown.contains("t0p"), "for {text:?}: {error}");
    }
}

#[test]
fn a_file_beyond_the_limit_is_refused() {
    let text = format!("# {}", "x".repeat(1 << 20));
    let error = load_file("config.yaml", &text).expect_err("must be refused");
    assert_eq!(
        error.to_string(),
        "config.yaml is larger than 1048576 bytes, the limit for a configuration file"
    );
}

#[test]
fn paths_in_errors_are_those_that_were_given() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(directory.path().join("etc")).expect("a directory");
    std::fs::write(directory.path().join("etc/bus.yaml"), "x: 1").expect("the file is written");
    let loader = Loader::new().env([("", "")]).working_dir(directory.path());
    let error = loader.file(Path::new("etc/bus.yaml")).load().expect_err("refused");
    assert_eq!(error.to_string(), "etc/bus.yaml:1:1: unknown key \"x\"");
}
