//! How single values are written, and that no text makes a parser panic.

use std::time::Duration;

use proptest::prelude::*;

use super::super::values::{parse_bytes, parse_duration, render_bytes, render_duration};
use super::*;

#[test]
fn durations_are_written_with_units_or_in_seconds() {
    for (text, expected) in [
        ("30s", Some(Duration::from_secs(30))),
        ("2m", Some(Duration::from_secs(120))),
        ("100ms", Some(Duration::from_millis(100))),
        ("1h30m", Some(Duration::from_secs(5400))),
        ("1.5s", Some(Duration::from_millis(1500))),
        ("7d", Some(Duration::from_secs(604_800))),
        ("250us", Some(Duration::from_micros(250))),
        ("5", Some(Duration::from_secs(5))),
        ("0.25", Some(Duration::from_millis(250))),
        (" 5s ", Some(Duration::from_secs(5))),
        ("0", Some(Duration::ZERO)),
        ("", None),
        ("s", None),
        ("-5s", None),
        ("5 s", None),
        ("1h30", None),
        ("1..5s", None),
        (".5s", None),
        ("5.s", None),
        ("5S", None),
        ("5w", None),
        ("1e3s", None),
        ("99999999999999999999d", None),
    ] {
        assert_eq!(parse_duration(text), expected, "{text:?}");
    }
}

#[test]
fn sizes_are_written_with_decimal_or_binary_units() {
    for (text, expected) in [
        ("512MB", Some(512_000_000)),
        ("64MiB", Some(64 << 20)),
        ("1GB", Some(1_000_000_000)),
        ("1.5GiB", Some(3 << 29)),
        ("64 kib", Some(65_536)),
        ("10K", Some(10_000)),
        ("1048576", Some(1_048_576)),
        ("0", Some(0)),
        ("", None),
        ("MB", None),
        ("-1", None),
        ("1XB", None),
        ("1_000", None),
        ("99999999TiB", None),
    ] {
        assert_eq!(parse_bytes(text), expected, "{text:?}");
    }
}

#[test]
fn listen_addresses_are_ip_and_port_or_localhost() {
    for (text, expected) in [
        ("127.0.0.1:4222", Some("127.0.0.1:4222")),
        (":4222", Some("0.0.0.0:4222")),
        ("*:0", Some("0.0.0.0:0")),
        ("localhost:0", Some("127.0.0.1:0")),
        ("[::1]:80", Some("[::1]:80")),
        ("4222", None),
        ("localhost", None),
        ("localhost:65536", None),
        ("localhost:+1", None),
        ("bus.example:1", None),
    ] {
        let listen =
            load_env(&[("TRUNKLINE_SERVER_LISTEN", text)]).map(|it| it.config.server.listen.to_string());
        assert_eq!(listen.ok().as_deref(), expected, "{text:?}");
    }
}

#[test]
fn off_takes_away_what_need_not_be_there() {
    let yaml = "server: {http: off, auth: {user: off, password: off}, limits: {max_subscriptions: off}}";
    let config = load_file("config.yaml", yaml).expect("valid").config;
    assert_eq!(config.server.http, None);
    assert_eq!(config.server.limits.max_subscriptions, None);
    // In a name or a password it is a word like any other.
    assert_eq!(config.server.auth.user.as_deref(), Some("off"));
    assert_eq!(config.server.auth.password, Some(Secret::new("off")));
}

#[test]
fn redis_urls_name_servers_credentials_and_database() {
    for (text, topology, tls, hosts, username, password, db) in [
        ("redis://h", RedisTopology::Single, false, &[("h", 6379)][..], None, None, 0),
        ("rediss://u:p%40ss@h:1/3", RedisTopology::Single, true, &[("h", 1)], Some("u"), Some("p@ss"), 3),
        ("redis://:p@[::1]:1", RedisTopology::Single, false, &[("[::1]", 1)], None, Some("p"), 0),
        (
            "redis-sentinel://:p@s1,s2:7/main/2",
            RedisTopology::Sentinel { master: "main".to_owned() },
            false,
            &[("s1", 26379), ("s2", 7)],
            None,
            Some("p"),
            2,
        ),
        ("rediss+cluster://n1,n2:7", RedisTopology::Cluster, true, &[("n1", 6379), ("n2", 7)], None, None, 0),
    ] {
        let url = RedisUrl::parse(text).expect("valid");
        let hosts: Vec<(String, u16)> = hosts.iter().map(|(host, port)| (host.to_string(), *port)).collect();
        assert_eq!((&url.topology, url.tls, &url.hosts, url.db), (&topology, tls, &hosts, db), "{text}");
        assert_eq!(url.username.as_deref(), username, "{text}");
        assert_eq!(url.password.as_ref().map(Secret::expose), password, "{text}");
        assert_eq!(url.expose(), text);
    }
    for (text, reason) in [
        (
            "localhost:6379",
            "expected a URL with the scheme redis, rediss, redis-sentinel, rediss-sentinel, redis-cluster or rediss-cluster",
        ),
        (
            "redis-cloud://h",
            "the scheme is not redis, rediss, redis-sentinel, rediss-sentinel, redis-cluster or rediss-cluster",
        ),
        ("redis://", "the host is missing"),
        ("redis://h:x", "invalid port number"),
        ("redis://h/x", "the database after the host is not a number"),
        ("redis://h/1/2", "too many parts after the host"),
        ("redis://a,b", "several hosts need the scheme redis-sentinel or redis-cluster"),
        ("redis://h?ssl=none", "parameters after ? or # are not supported"),
        ("redis-sentinel://h", "the name of the master is missing: host:port/master"),
        ("redis-cluster://h/1", "a cluster has only database 0"),
        ("redis://:%zz@h", "a % is not followed by two hexadecimal digits of UTF-8"),
    ] {
        assert_eq!(RedisUrl::parse(text).expect_err(text), reason, "{text}");
    }
}

#[test]
fn nats_urls_name_one_server_or_several() {
    for (text, expected) in [
        ("nats://h", "nats://h:4222"),
        ("h:1", "nats://h:1"),
        ("tls://u:p@h:1/ , nats://t@[::1]", "tls://u:p@h:1,nats://t@[::1]:4222"),
    ] {
        assert_eq!(NatsUrl::parse(text).expect("valid").expose(), expected);
    }
    for (text, reason) in [
        ("", "the host is missing"),
        ("nats://a,", "the host is missing"),
        ("redis://h", "the scheme is not nats or tls"),
        ("nats://h/path", "nothing may follow the port"),
        ("nats://h:x", "invalid port number"),
    ] {
        assert_eq!(NatsUrl::parse(text).expect_err(text), reason, "{text:?}");
    }
}

#[test]
fn patterns_overlap_when_a_subject_matches_both() {
    for (a, b, expected) in [
        ("a.b", "a.b", true),
        ("a.b", "a.c", false),
        ("a.*", "a.b", true),
        ("a.*", "*.b", true),
        ("a.*", "a.b.c", false),
        ("a.>", "a", false),
        ("a.>", "a.b.c", true),
        (">", "x", true),
        ("*.b.>", "a.b", false),
        ("*.b.>", "a.>", true),
        ("a.*.c", "a.b.d", false),
    ] {
        let pattern = |text: &str| {
            let env = format!("[{{name: s, subjects: ['{text}']}}]");
            load_env(&[("TRUNKLINE_STREAMS", &env)]).expect("valid").config.messaging.streams[0].subjects[0]
                .clone()
        };
        assert_eq!(pattern(a).overlaps(&pattern(b)), expected, "{a} and {b}");
        assert_eq!(pattern(b).overlaps(&pattern(a)), expected, "{b} and {a}");
    }
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

proptest! {
    #[test]
    fn a_duration_is_shown_as_it_can_be_written(nanos in any::<u64>()) {
        let duration = Duration::from_nanos(nanos);
        prop_assert_eq!(parse_duration(&render_duration(duration)), Some(duration));
    }

    #[test]
    fn a_size_is_shown_as_it_can_be_written(bytes in any::<u64>(), unit in 0..41_u32) {
        for bytes in [bytes, bytes >> unit << unit] {
            prop_assert_eq!(parse_bytes(&render_bytes(bytes)), Some(bytes));
        }
    }

    #[test]
    fn no_text_makes_reading_panic(
        key in any::<prop::sample::Index>(),
        text in "\\PC{0,80}|[-a-z:\\[\\]{}',.\" \n#&*!|>=]{0,120}") {
        for name in ["config.yaml", "config.toml"] {
            if let Err(error) = load_file(name, &text) {
                prop_assert!(error.to_string().starts_with(name));
            }
        }
        let env = keys()[key.index(keys().len())].env.as_deref().unwrap_or("TRUNKLINE_URL");
        let loader = Loader::new().env([(env, &text)]).working_dir("/nonexistent");
        if let Err(error) = loader.load() {
            prop_assert!(error.to_string().starts_with(env));
        }
    }
}
