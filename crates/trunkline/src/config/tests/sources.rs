//! Which source wins, and that each of them reaches every key.

use super::*;

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
fn credentials_of_the_file_go_to_no_other_host() {
    let at = |url: &str| format!("messaging: {{nats_url: '{url}', nats_auth: {{token: secret}}}}");
    let file = at("nats://home:4222,nats://home-2");
    let user = ("TRUNKLINE_NATS_AUTH_TOKEN", "of-the-environment");
    let url = |url| ("TRUNKLINE_URL", url);
    for (yaml, env, token) in [
        // Where the file, or what beats it, says that they belong.
        (&file, &[][..], Some("secret")),
        (&file, &[url("nats://home")], Some("secret")),
        (&file, &[url("tls://home-2:5222,nats://home")], Some("secret")),
        (&file, &[url("nats://moved"), ("TRUNKLINE_NATS_URL", "nats://moved")], Some("secret")),
        // Elsewhere.
        (&file, &[url("nats://other")], None),
        (&file, &[url("nats://home,nats://other")], None),
        (&file, &[url("nats://u:p@other")], None),
        (&file, &[url("nats://home"), ("TRUNKLINE_NATS_URL", "nats://moved")], None),
        // Those of the environment are for the URL of the environment.
        (&file, &[url("nats://other"), user], Some("of-the-environment")),
        // Where nobody has named a server, they are for whichever one is named.
        (&"messaging: {nats_auth: {token: secret}}".to_owned(), &[url("nats://other")], Some("secret")),
        (
            &"messaging: {nats_auth: {token: secret}}".to_owned(),
            &[url("nats://other"), ("NATS_URL", "home")],
            None,
        ),
    ] {
        let loaded = load_all("config.yaml", yaml, env, &[]).expect("valid");
        let found = loaded.config.messaging.nats_auth.token.as_ref().map(|token| token.expose());
        assert_eq!(found, token, "{yaml} with {env:?}");
        let told: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        let expected = "messaging.nats_auth is not used, TRUNKLINE_URL names another server";
        assert_eq!(told.iter().any(|text| text.contains(expected)), token.is_none(), "{told:?}");
        assert!(told.iter().all(|text| !text.contains("secret")), "{told:?}");
    }
    // Half of them from the file and half from elsewhere are of the file.
    let yaml = "messaging: {nats_url: home, nats_auth: {username: bus}}";
    let env = [url("nats://other"), ("TRUNKLINE_NATS_AUTH_PASSWORD", "secret")];
    let loaded = load_all("config.yaml", yaml, &env, &[]).expect("valid");
    let auth = &loaded.config.messaging.nats_auth;
    assert!(auth.username.is_none() && auth.password.is_none());
}

#[test]
fn credentials_of_sentinels_in_the_file_go_to_no_other_host() {
    let file =
        "messaging: {redis_url: 'redis-sentinel://home,home-2:1/main', redis_sentinel: {password: secret}}";
    let unnamed = "messaging: {redis_sentinel: {password: secret}}";
    let single = "messaging: {redis_url: 'redis://home', redis_sentinel: {password: secret}}";
    let own = ("TRUNKLINE_REDIS_SENTINEL_PASSWORD", "of-the-environment");
    let url = |url| ("TRUNKLINE_URL", url);
    for (yaml, env, password) in [
        (file, &[][..], Some("secret")),
        (file, &[url("redis-sentinel://home-2:5/main")], Some("secret")),
        (file, &[url("redis-sentinel://other/main")], None),
        (file, &[url("rediss-sentinel://home,other/main")], None),
        (file, &[url("redis-sentinel://u:p@other/main"), own], Some("of-the-environment")),
        (file, &[url("redis-sentinel://home/main"), ("TRUNKLINE_REDIS_URL", "redis://moved")], None),
        // These are asked by nobody who would have to say who it is.
        (file, &[url("redis://other")], Some("secret")),
        (file, &[url("nats://other")], Some("secret")),
        // Those of the file are for sentinels, and this is none.
        (single, &[url("redis-sentinel://home/main")], None),
        (unnamed, &[url("redis-sentinel://other/main")], Some("secret")),
        (unnamed, &[url("redis-sentinel://other/main"), ("REDIS_URL", "redis-sentinel://home/main")], None),
    ] {
        let loaded = load_all("config.yaml", yaml, env, &[]).expect("valid");
        let found = loaded.config.messaging.redis_sentinel.password.as_ref().map(|secret| secret.expose());
        assert_eq!(found, password, "{yaml} with {env:?}");
        let told: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        let expected = "messaging.redis_sentinel is not used, TRUNKLINE_URL names another server";
        let stays = password.is_none();
        assert_eq!(told.iter().any(|text| text.contains(expected)), stays, "{yaml} with {env:?}: {told:?}");
        assert!(told.iter().all(|text| !text.contains("secret:")), "{told:?}");
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
fn a_variable_with_file_behind_it_names_the_file_with_its_value() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("the file is written");
        path.to_str().expect("a path of text").to_owned()
    };
    let token = file("token", "t0p: {secret}\n");
    let users = file("users", r#"[{"user": "ann", "password": "x"}]"#);
    let url = file("url", "nats://ann:x@bus:4222\r\n");
    let env = [
        ("TRUNKLINE_SERVER_AUTH_ADMIN_TOKEN_FILE", token.as_str()),
        ("TRUNKLINE_SERVER_USERS_FILE", &users),
        ("TRUNKLINE_URL_FILE", &url),
        // A key of its own, which is a path.
        ("TRUNKLINE_SERVER_TLS_CERT_FILE", "cert.pem"),
        ("TRUNKLINE_SERVER_TLS_KEY_FILE", "key.pem"),
        // An empty one is not set.
        ("TRUNKLINE_REDIS_URL_FILE", ""),
    ];
    let loaded = load_env(&env).expect("valid");
    let server = &loaded.config.server;
    assert_eq!(server.auth.admin_token.as_ref().map(|token| token.expose()), Some("t0p: {secret}"));
    assert_eq!(server.users[0].user.as_deref(), Some("ann"));
    assert_eq!(server.tls.cert_file.as_deref(), Some(std::path::Path::new("cert.pem")));
    assert_eq!(loaded.config.messaging.backend, Backend::Nats);
    assert_eq!(loaded.config.messaging.nats_url.expose(), "nats://ann:x@bus:4222");
    let shown = entry(&loaded, "server.auth.admin_token");
    assert_eq!((shown.value, shown.origin.to_string().as_str()), ("***".into(), env[0].0));
    assert_eq!(loaded.warnings, []);
    let loaded = load_env(&[env[2], ("TRUNKLINE_URL", "nats://started-by:1")]).expect("valid");
    assert_eq!(loaded.config.messaging.nats_url.expose(), "nats://started-by:1");
    assert!(load_env(&[("TRUNKLINE_SERVER_AUTH_ADMIN_TOKEN_FILE", &file("empty", "\n"))]).is_ok());
}

#[test]
fn mistakes_about_a_file_with_a_value_name_the_variable() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("large");
    std::fs::write(&path, vec![b'x'; (1 << 20) + 1]).expect("the file is written");
    let large = path.to_str().expect("a path of text").to_owned();
    let url = directory.path().join("url");
    std::fs::write(&url, "http://u:pass@x").expect("the file is written");
    for (env, expected) in [
        (
            &[("TRUNKLINE_REDIS_URL_FILE", "/nonexistent/url")][..],
            "TRUNKLINE_REDIS_URL_FILE: /nonexistent/url cannot be read".to_owned(),
        ),
        (
            &[("TRUNKLINE_REDIS_URL_FILE", &large)],
            format!("TRUNKLINE_REDIS_URL_FILE: {large} cannot be read"),
        ),
        (
            &[("TRUNKLINE_URL_FILE", url.to_str().expect("a path of text"))],
            "TRUNKLINE_URL_FILE: the URL of the bus is \"http://***@x\": expected nats://… or redis://…".to_owned(),
        ),
        (
            &[("TRUNKLINE_SERVER_USRES_FILE", "x")],
            "TRUNKLINE_SERVER_USRES_FILE: unknown variable; did you mean \"TRUNKLINE_SERVER_USERS_FILE\"?".to_owned(),
        ),
        (
            &[("TRUNKLINE_SERVER_AUTH_TOKEN", "a"), ("TRUNKLINE_SERVER_AUTH_TOKEN_FILE", url.to_str().expect("a path of text"))],
            "TRUNKLINE_SERVER_AUTH_TOKEN_FILE: server.auth.token is already given at TRUNKLINE_SERVER_AUTH_TOKEN".to_owned(),
        ),
    ] {
        assert_eq!(load_env(env).expect_err("refused").to_string(), expected);
    }
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
        "messaging.redis_tls" => "{ca_file: some.pem}",
        "messaging.redis_tls.ca_file" | "messaging.redis_tls.cert_file" | "messaging.redis_tls.key_file" => {
            "some.pem"
        }
        "messaging.nats_auth" => "{token: abcdef}",
        "messaging.nats_auth.username" | "messaging.nats_auth.password" | "messaging.nats_auth.token" => {
            "ann"
        }
        "messaging.nats_auth.nkey_file" | "messaging.nats_auth.credentials_file" => "some.file",
        "messaging.nats_tls" => "{ca_file: some.pem}",
        "messaging.nats_tls.ca_file" | "messaging.nats_tls.cert_file" | "messaging.nats_tls.key_file" => {
            "some.pem"
        }
        "messaging.nats_tls.handshake_first" => "true",
        "messaging.redis_sentinel" => "{password: pw}",
        "messaging.redis_sentinel.username" | "messaging.redis_sentinel.password" => "ann",
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
        "messaging.max_pending" | "messaging.outbox_max_messages" => "10",
        "messaging.outbox_max_bytes" => "1MB",
        "messaging.wait_replicas" => "2",
        "server" => "{plaintext: true}",
        "server.listen" | "server.http" | "server.metrics_listen" | "server.websocket.listen" => {
            "127.0.0.2:0"
        }
        "server.auth" => "{token: abcdef}",
        "server.auth.user" | "server.auth.password" | "server.auth.no_auth_user" => "ann",
        "server.auth.token" | "server.auth.admin_token" => "abcdef",
        "server.users" => "[{user: ann, password: pw}]",
        "server.permissions" => "{publish: a.>}",
        "server.accounts" => "{east: {users: [{user: ann, password: pw}]}}",
        "server.permissions.publish" | "server.permissions.subscribe" => "{allow: [a.>]}",
        "server.permissions.publish.allow" | "server.permissions.publish.deny" => "[a.>, b]",
        "server.permissions.subscribe.allow" | "server.permissions.subscribe.deny" => "[a.> q.*, b]",
        "server.permissions.allow_responses" => "{max: 3}",
        "server.permissions.allow_responses.max" => "3",
        "server.tls" => "{timeout: 7s}",
        "server.tls.cert_file" | "server.tls.key_file" | "server.tls.ca_file" => "some.pem",
        "server.tls.verify"
        | "server.tls.verify_and_map"
        | "server.tls.allow_non_tls"
        | "server.tls.http" => "true",
        "server.tls.min_version" => "1.3",
        "server.tls.handshake_first" => "300ms",
        "server.limits" => "{ping_max: 5}",
        "server.limits.max_payload" | "server.limits.max_control_line" => "64KiB",
        "server.limits.max_pending" => "128MiB",
        "server.limits.max_connections"
        | "server.limits.connection_rate"
        | "server.limits.max_subscriptions"
        | "server.limits.auth_failures" => "77",
        "server.limits.ping_max" => "5",
        "server.websocket" => "{listen: '127.0.0.2:0'}",
        "server.websocket.allowed_origins" => "[https://a.example]",
        "server.websocket.same_origin" => "false",
        "server.websocket.no_tls" => "true",
        "observe" => "{rate_max: 77}",
        "observe.enabled" => "true",
        "observe.redact" => "[pin, password]",
        "observe.memory" => "64MB",
        "observe.payload_max" => "1KB",
        "observe.rate_max" => "77",
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
            "messaging.nats_auth.username" => &[("messaging.nats_auth.password", "x", "-")],
            "messaging.nats_auth.password" => &[("messaging.nats_auth.username", "x", "-")],
            "messaging.nats_tls.cert_file" => &[("messaging.nats_tls.key_file", "x", "-")],
            "messaging.nats_tls.key_file" => &[("messaging.nats_tls.cert_file", "x", "-")],
            "server.auth.user" => &[("server.auth.password", "x", "-")],
            "server.auth.password" => &[("server.auth.user", "x", "-")],
            "server.auth.no_auth_user" => &[("server.users", "[{user: ann, password: pw}]", "-")],
            "server.tls.cert_file" => &[("server.tls.key_file", "x", "-")],
            "server.tls.key_file" => &[("server.tls.cert_file", "x", "-")],
            "server.websocket.no_tls" => &[("server.websocket.listen", "127.0.0.2:0", "-")],
            "server.tls.verify" | "server.tls.verify_and_map" | "server.tls.http" => {
                &[("server.tls", "{cert_file: c, key_file: k, ca_file: a}", "-")]
            }
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
fn a_variable_adds_to_a_section_in_short_form_and_hides_no_mistake() {
    let deny = [("TRUNKLINE_SERVER_PERMISSIONS_PUBLISH_DENY", "[a.secret]")];
    let loaded = load_all("config.yaml", "server: {permissions: {publish: a.>}}", &deny, &[]).expect("valid");
    let publish = &loaded.config.server.permissions.publish;
    assert_eq!(publish.allow.as_ref().map(Vec::len), Some(1));
    assert_eq!(publish.deny[0].pattern.as_str(), "a.secret");

    let error = load_all("config.yaml", "messaging: 5", &[("TRUNKLINE_BACKEND", "redis")], &[]);
    let error = error.expect_err("refused").to_string();
    assert!(error.starts_with("config.yaml:1:12: messaging is \"5\", expected a section"), "{error}");
}

#[test]
fn lists_are_taken_from_one_source_as_a_whole() {
    let yaml = "messaging: {streams: [{name: a, subjects: [a]}, {name: b, subjects: [b]}]}";
    let env = [("TRUNKLINE_STREAMS", r#"[{"name": "c", "subjects": ["c"]}]"#)];
    let loaded = load_all("config.yaml", yaml, &env, &[]).expect("valid");
    let names: Vec<&str> =
        loaded.config.messaging.streams.iter().map(|stream| stream.name.as_str()).collect();
    assert_eq!(names, ["c"]);
}

#[test]
fn an_empty_value_is_the_same_as_none() {
    let yaml = "messaging:\n  backend:\n  consumer: ~\nserver:\n";
    let loaded = load_all("config.yaml", yaml, &[("TRUNKLINE_BACKEND", "")], &[]).expect("valid");
    assert_eq!(loaded.config, Config::default());
}
