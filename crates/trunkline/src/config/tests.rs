//! The rules of configuration, each boundary through one `check`.

use std::path::Path;

use super::*;

/// Loads `text` as `config.yaml` or `.toml` with nothing else set.
fn load_file(name: &str, text: &str) -> Result<Loaded, ConfigError> {
    load_all(name, text, &[], &[])
}

fn load_all(
    name: &str,
    text: &str,
    env: &[(&str, &str)],
    flags: &[(&str, &str, &str)],
) -> Result<Loaded, ConfigError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    if !name.is_empty() {
        std::fs::write(directory.path().join(name), text).expect("the file is written");
    }
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let loader = Loader::new().env(env).working_dir(directory.path());
    flags.iter().fold(loader, |loader, (key, value, flag)| loader.flag(*key, *value, *flag)).load()
}

fn load_env(env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load_all("", "", env, &[])
}

fn entry(loaded: &Loaded, key: &str) -> Entry {
    let found = loaded.entries().into_iter().find(|entry| entry.key == key);
    found.unwrap_or_else(|| panic!("no entry {key}"))
}

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
            "config.yaml:1:44: messaging.streams[0].subjects[0] is \"a..b\": a token between two dots cannot be empty",
        ),
        (
            "messaging: {streams: [{name: a, subjects: ['a.>.b']}]}",
            "config.yaml:1:44: messaging.streams[0].subjects[0] is \"a.>.b\": > stands only at the end",
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
            "config.yaml:1:37: components.a.ready is \"ftp://h\": the scheme is not http or tcp",
        ),
        ("server: {users: [{user: ann}]}", "config.yaml:1:18: server.users[0] has no password"),
        (
            "server: {users: [{user: ann, password: x}, {user: ann, password: y}]}",
            "config.yaml:1:51: user \"ann\" is already defined at config.yaml:1:25",
        ),
        (
            "server: {users: [{nkey: UABC}]}",
            "config.yaml:1:25: server.users[0].nkey is \"UABC\", expected a public user nkey: U and 55 more of A-Z and 2-7",
        ),
        (
            "server: {auth: {no_auth_user: bob}}",
            "config.yaml:1:31: server.auth.no_auth_user is \"bob\", which is no user",
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
            "config.yaml:1:1: the configuration is a list, expected a section with the keys messaging, server, runtime, components",
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
fn initial_stream_id_takes_offsets_and_nothing_else() {
    use InitialStreamId::{At, Beginning, New};
    for (text, expected) in [
        ("$", Some(New)),
        ("0-0", Some(Beginning)),
        ("0", Some(Beginning)),
        ("1042", Some(At("1042".to_owned()))),
        ("1526919030474-55", Some(At("1526919030474-55".to_owned()))),
        (">", None),
        ("-", None),
        ("1-", None),
        ("-1", None),
        ("1-2-3", None),
        ("+1", None),
        ("1.5", None),
        ("latest", None),
        ("18446744073709551616", None),
    ] {
        let loaded = load_env(&[("TRUNKLINE_INITIAL_STREAM_ID", text)]);
        match expected {
            Some(expected) => {
                let config = loaded.expect("valid").config;
                assert_eq!(config.messaging.initial_stream_id, expected, "for {text}");
            }
            None => assert_eq!(
                loaded.expect_err("must be refused").to_string(),
                format!(
                    "TRUNKLINE_INITIAL_STREAM_ID: messaging.initial_stream_id is \"{text}\", expected \
                     $ for new messages, 0-0 for all, or a saved offset such as 1526919030474-55 or 1042"
                )
            ),
        }
    }
}

/// From the weakest source to the strongest, each added to those before it.
#[test]
fn the_stronger_source_wins() {
    let yaml = "messaging: {redis_url: 'redis://file'}";
    let redis_url = ("REDIS_URL", "redis://well-known");
    let variable = ("TRUNKLINE_REDIS_URL", "redis://variable");
    let flag = ("messaging.redis_url", "redis://flag", "--redis-url");
    let url = ("TRUNKLINE_URL", "redis://joined");
    for (name, env, flags, host, origin) in [
        ("", &[][..], &[][..], "localhost", "default"),
        ("", &[redis_url], &[], "well-known", "REDIS_URL"),
        ("config.yaml", &[redis_url], &[], "file", "config.yaml:1:24"),
        ("config.yaml", &[redis_url, variable], &[], "variable", "TRUNKLINE_REDIS_URL"),
        ("config.yaml", &[redis_url, variable], &[flag], "flag", "--redis-url"),
        ("config.yaml", &[redis_url, variable, url], &[flag], "joined", "TRUNKLINE_URL"),
    ] {
        let loaded = load_all(name, yaml, env, flags).expect("valid");
        assert_eq!(loaded.config.messaging.redis_url.hosts[0].0, host);
        assert_eq!(
            loaded.origin("messaging.redis_url").to_string(),
            if origin == "default" { "default" } else { origin }
        );
        assert_eq!(entry(&loaded, "messaging.redis_url").origin.to_string(), origin);
    }
}

#[test]
fn trunkline_url_sets_backend_and_url_over_everything() {
    let yaml = "messaging: {backend: redis, fallback: fail}";
    let flags = [("messaging.backend", "in_memory", "--backend")];
    let env = [("TRUNKLINE_URL", "nats://a:1, nats://b")];
    let loaded = load_all("config.yaml", yaml, &env, &flags).expect("valid");
    let messaging = &loaded.config.messaging;
    assert_eq!(messaging.backend, Backend::Nats);
    assert_eq!(messaging.nats_url.expose(), "nats://a:1,nats://b:4222");
    assert_eq!(messaging.fallback(), Fallback::Fail);
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["--backend: messaging.backend is overridden by TRUNKLINE_URL"]);

    let loaded = load_env(&[("TRUNKLINE_URL", "rediss-sentinel://u:p@s1,s2:1/main/3")]).expect("valid");
    assert_eq!(loaded.config.messaging.backend, Backend::Redis);

    for (url, expected) in [
        (
            "http://u:pass@x",
            "TRUNKLINE_URL: the URL of the bus is \"http://***@x\": expected nats://… or redis://…",
        ),
        ("nats://", "TRUNKLINE_URL: the URL of the bus is \"nats://\": the host is missing"),
    ] {
        assert_eq!(load_env(&[("TRUNKLINE_URL", url)]).expect_err("refused").to_string(), expected);
    }
}

#[test]
fn a_well_known_url_is_a_mistake_only_where_it_is_needed() {
    let env = [("REDIS_URL", "http://u:pass@x")];
    let loaded = load_env(&env).expect("the in-memory backend needs no Redis");
    assert_eq!(loaded.warnings.len(), 1);
    assert_eq!(loaded.config.messaging.redis_url, Config::default().messaging.redis_url);
    let error = load_all("", "", &env, &[("messaging.backend", "redis", "-b")]).expect_err("refused");
    assert!(error.to_string().starts_with("REDIS_URL: messaging.redis_url is \"http://***@x\": the scheme"));
}

#[test]
fn fallback_depends_on_the_backend_unless_set() {
    for (backend, set, expected) in [
        ("in_memory", "", Fallback::InMemory),
        ("redis", "", Fallback::InMemory),
        ("nats", "", Fallback::Fail),
        ("redis", "fail", Fallback::Fail),
        ("nats", "in_memory", Fallback::InMemory),
    ] {
        let loaded = load_env(&[("TRUNKLINE_BACKEND", backend), ("TRUNKLINE_FALLBACK", set)]).expect("valid");
        assert_eq!(loaded.config.messaging.fallback(), expected);
        assert_eq!(entry(&loaded, "messaging.fallback").value, expected.as_str());
    }
}

#[test]
fn unknown_variables_close_to_a_key_are_mistakes_and_others_warnings() {
    let error = load_env(&[("TRUNKLINE_CONSUMER_ACK_WIAT", "1s")]).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "TRUNKLINE_CONSUMER_ACK_WIAT: unknown variable; did you mean \"TRUNKLINE_CONSUMER_ACK_WAIT\"?"
    );
    let loaded = load_env(&[
        ("TRUNKLINE_MY_COMPONENT_COLOUR", "red"),
        ("TRUNKLINE_LOG", "debug"),
        ("TRUNKLINE_TEST_REDIS", "x"),
        ("OTHER", "x"),
    ])
    .expect("valid");
    assert_eq!(
        loaded.warnings,
        [ConfigWarning::UnknownVariable { name: "TRUNKLINE_MY_COMPONENT_COLOUR".to_owned() }]
    );
}

#[test]
fn both_names_of_one_key_are_a_duplicate() {
    let error = load_env(&[("TRUNKLINE_BACKEND", "redis"), ("TRUNKLINE_MESSAGING_BACKEND", "nats")])
        .expect_err("refused");
    assert_eq!(
        error.to_string(),
        "TRUNKLINE_MESSAGING_BACKEND: messaging.backend is already given at TRUNKLINE_BACKEND"
    );
}

#[test]
fn unknown_flags_are_refused_with_the_nearest_key() {
    let error = load_all("", "", &[], &[("messaging.bakend", "redis", "--set")]).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "--set: unknown key \"messaging.bakend\"; did you mean \"messaging.backend\"?"
    );
}

/// A valid value for every key that has a variable; the test below fails for a key that is missing here.
fn sample(path: &str) -> &'static str {
    match path {
        "messaging" => "{backend: redis}",
        "messaging.backend" => "redis",
        "messaging.redis_url" => "redis://h:1/2",
        "messaging.stream_prefix" => "atlas-dev",
        "messaging.initial_stream_id" => "0-0",
        "messaging.fallback" => "fail",
        "messaging.nats_url" => "nats://h:1",
        "messaging.subject_root" => "acme",
        "messaging.streams" => "[{name: a, subjects: [a.>], max_age: 1d}]",
        "messaging.consumer" => "{max_deliver: 7}",
        "messaging.consumer.max_deliver" => "9",
        "messaging.consumer.backoff" => "[1s, 2s]",
        "messaging.outbox" | "server.plaintext" => "true",
        "messaging.max_pending" => "10",
        "server" => "{plaintext: true}",
        "server.listen" | "server.http" | "server.metrics_listen" | "server.websocket.listen" => {
            "127.0.0.2:0"
        }
        "server.auth" => "{token: abcdef}",
        "server.auth.user" | "server.auth.password" | "server.auth.no_auth_user" => "ann",
        "server.auth.token" | "server.auth.admin_token" => "abcdef",
        "server.users" => "[{user: ann, password: pw}]",
        "server.permissions" => "{publish: a.>}",
        "server.permissions.publish" | "server.permissions.subscribe" => "{allow: [a.>]}",
        "server.permissions.publish.allow" | "server.permissions.publish.deny" => "[a.>, b]",
        "server.permissions.subscribe.allow" | "server.permissions.subscribe.deny" => "[a.> q.*, b]",
        "server.permissions.allow_responses" => "{max: 3}",
        "server.permissions.allow_responses.max" => "3",
        "server.tls" => "{timeout: 7s}",
        "server.tls.cert_file" | "server.tls.key_file" | "server.tls.ca_file" => "some.pem",
        "server.tls.verify" => "true",
        "server.tls.handshake_first" => "300ms",
        "server.limits" => "{ping_max: 5}",
        "server.limits.max_payload" | "server.limits.max_control_line" => "64KiB",
        "server.limits.max_pending" => "128MiB",
        "server.limits.max_connections" | "server.limits.max_subscriptions" => "77",
        "server.limits.ping_max" => "5",
        "server.websocket" => "{listen: '127.0.0.2:0'}",
        "server.websocket.allowed_origins" => "[https://a.example]",
        "runtime" => "{resources: {cpus: 2}}",
        "runtime.resources" => "{cpus: 2}",
        "runtime.resources.memory" => "512MB",
        "runtime.resources.cpus" => "0.25",
        "components" => "{a: {command: x}}",
        // The durations, all of which allow this one.
        _ => "7s",
    }
}

#[test]
fn every_key_is_read_from_its_variables_and_as_a_flag() {
    for key in keys() {
        let Some(env) = &key.env else {
            continue;
        };
        let value = sample(&key.path);
        // What one key needs from another is given along with it.
        let needs: &[(&str, &str, &str)] = match key.path.as_str() {
            "server.auth.user" => &[("server.auth.password", "x", "-")],
            "server.auth.password" => &[("server.auth.user", "x", "-")],
            "server.auth.no_auth_user" => &[("server.users", "[{user: ann, password: pw}]", "-")],
            "server.tls.cert_file" => &[("server.tls.key_file", "x", "-")],
            "server.tls.key_file" => &[("server.tls.cert_file", "x", "-")],
            "server.tls.verify" => &[("server.tls", "{cert_file: c, key_file: k, ca_file: a}", "-")],
            _ => &[],
        };
        let long = format!("TRUNKLINE_{}", key.path.replace('.', "_").to_uppercase());
        for name in [env.as_str(), long.as_str()] {
            let loaded = load_all("", "", &[(name, value)], needs)
                .unwrap_or_else(|error| panic!("{name}={value}: {error}"));
            assert_eq!(loaded.origin(&key.path), Origin::Env(name.into()), "{name}");
            let touched = loaded.entries().into_iter().any(|entry| entry.origin == Origin::Env(name.into()));
            assert!(touched, "{name} shows nowhere");
            assert_ne!(
                loaded.config,
                load_all("", "", &[], needs).map_or(Config::default(), |it| it.config),
                "{name}={value}"
            );
        }
        let mut flags = needs.to_vec();
        flags.push((&key.path, value, "--set"));
        let by_flag = load_all("", "", &[], &flags).unwrap_or_else(|error| panic!("{}: {error}", key.path));
        let by_env = load_all("", "", &[(env, value)], needs).expect("read above");
        assert_eq!(by_flag.config, by_env.config, "{}", key.path);
    }
}

#[test]
fn names_of_variables_are_unique_and_not_reserved() {
    let mut names: Vec<&str> = keys().iter().filter_map(|key| key.env.as_deref()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    for reserved in ["TRUNKLINE_URL", "TRUNKLINE_CONFIG", "TRUNKLINE_LOG"] {
        assert!(!names.contains(&reserved));
    }
    assert_eq!(env_name("messaging.consumer.ack_wait"), "TRUNKLINE_CONSUMER_ACK_WAIT");
    assert_eq!(env_name("server.limits.max_payload"), "TRUNKLINE_SERVER_LIMITS_MAX_PAYLOAD");
}

#[test]
fn a_key_by_variable_beats_its_section_by_variable() {
    let loaded = load_env(&[
        ("TRUNKLINE_CONSUMER_MAX_DELIVER", "9"),
        ("TRUNKLINE_CONSUMER", r#"{"max_deliver": 3, "ack_wait": "1s"}"#),
    ])
    .expect("valid");
    assert_eq!(loaded.config.messaging.consumer.max_deliver, 9);
    assert_eq!(loaded.config.messaging.consumer.ack_wait.as_secs(), 1);
}

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
fn errors_never_show_secrets() {
    for text in [
        "server: {auth: {token: [t0p]}}",
        "server: {auth: {token: t0p, user: t0p}}",
        "server: {users: [{password: t0p}]}",
        "messaging: {redis_url: 'redis://u:t0p@h:x'}",
        "messaging: {redis_url: 'redis://u:t0p,x@h:x'}",
        "messaging: {redis_url: 'redis:u:t0p@h'}",
        "messaging: {nats_url: 'nats://u:t0p,@h'}",
        "messaging: {backend: 'redis://u:t0p@h'}",
        "server: {tokn: t0p}",
        "components: {a: {command: x, env: {A: [t0p]}}}",
    ] {
        let error = load_file("config.yaml", text).expect_err("must be refused").to_string();
        let shown = error.replace("server.auth.token", "").replace("is \"t0p\", which is no user", "");
        assert!(!shown.contains("t0p"), "for {text:?}: {error}");
    }
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

#[test]
fn the_file_is_found_by_path_then_variable_then_directory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, root: &str| {
        let text = match name.ends_with(".toml") {
            true => format!("messaging.subject_root = \"{root}\""),
            false => format!("messaging: {{subject_root: {root}}}"),
        };
        std::fs::write(directory.path().join(name), text).expect("the file is written");
    };
    let load = |file: Option<&str>, variable: &str| {
        let loader = Loader::new().env([("TRUNKLINE_CONFIG", variable)]).working_dir(directory.path());
        let loaded = file.into_iter().fold(loader, Loader::file).load().expect("valid");
        (loaded.config.messaging.subject_root, loaded.warnings.len())
    };
    assert_eq!(load(None, ""), ("nachos".to_owned(), 0));
    write("config.toml", "third");
    assert_eq!(load(None, ""), ("third".to_owned(), 0));
    write("config.yml", "second");
    assert_eq!(load(None, ""), ("second".to_owned(), 1));
    write("config.yaml", "first");
    assert_eq!(load(None, ""), ("first".to_owned(), 2));
    write("other.toml", "other");
    assert_eq!(load(None, "other.toml"), ("other".to_owned(), 0));
    assert_eq!(load(Some("config.yml"), "other.toml"), ("second".to_owned(), 0));

    let error = Loader::new().env([("", "")]).working_dir(directory.path()).file("gone.yaml").load();
    let error = error.expect_err("a file that was asked for must exist");
    assert_eq!(error.to_string(), "gone.yaml cannot be read");
    assert!(std::error::Error::source(&error).is_some());
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
