//! What the keys of a file come to.

use trunkline::config::SubjectRules;

use super::*;
use crate::nats_server::flags::{Request, parse};

/// What a text says, or the mistakes in it.
fn read(text: &str) -> Result<Settings, String> {
    Settings::from_text("t.conf", text, &Outside).map_err(|error| error.to_string())
}

#[track_caller]
fn settings(text: &str) -> Settings {
    read(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn shown(rules: &SubjectRules) -> String {
    let list = |rules: &[trunkline::config::SubjectRule]| {
        let one = |rule: &trunkline::config::SubjectRule| match &rule.queue {
            Some(queue) => format!("{} {queue}", rule.pattern),
            None => rule.pattern.to_string(),
        };
        rules.iter().map(one).collect::<Vec<_>>().join(",")
    };
    format!("{:?} -{}", rules.allow.as_deref().map(list), list(&rules.deny))
}

#[track_caller]
fn check_permissions(written: &str, publish: &str, subscribe: &str) {
    let text = format!("authorization {{ users: [ {{user: a, password: b, permissions: {written} }} ] }}");
    let settings = settings(&text);
    let permissions = settings.auth.users[0].permissions.as_ref().expect("it has some");
    assert_eq!(
        (shown(&permissions.publish), shown(&permissions.subscribe)),
        (publish.into(), subscribe.into())
    );
}

#[test]
fn permissions_are_read_in_all_their_forms() {
    check_permissions("{publish: foo}", "Some(\"foo\") -", "None -");
    check_permissions("{pub: [a, \"b.>\"], sub: {deny: c}}", "Some(\"a,b.>\") -", "None -c");
    check_permissions("{subscribe: {allow: [\"x q\", y], deny: []}}", "None -", "Some(\"x q,y\") -");
    check_permissions("{allow_responses: true}", "Some(\"\") -", "None -");
    check_permissions("{publish: {deny: z}, allow_responses: {max: -1}}", "Some(\"\") -z", "None -");
    let wrong = read("authorization { users: [ {user: a, permissions: {publish: [\"a..b\"]} } ] }");
    assert!(wrong.is_err_and(|text| text.contains("subject \"a..b\" is not a valid subject")));
}

#[test]
fn accounts_have_their_users_and_defaults() {
    let text = "accounts { A { users: [{user: a, password: b}, {user: c, password: d, permissions: {publish: x}}], \
                default_permissions: {subscribe: y} } }\nno_auth_user: a";
    let settings = settings(text);
    let users = &settings.auth.accounts["A"];
    assert_eq!(users.len(), 2);
    let subscribe = |n: usize| users[n].permissions.as_ref().map(|own| shown(&own.subscribe));
    assert_eq!((subscribe(0), subscribe(1)), (Some("Some(\"y\") -".into()), Some("None -".into())));
    assert_eq!(settings.auth.no_auth_user.as_deref(), Some("a"));
    let nobody = read("no_auth_user: z\nauthorization { users: [{user: a, password: b}] }");
    assert!(nobody.is_err_and(|text| text.contains("no_auth_user: \"z\" not present")));
    let twice =
        read("accounts: { A: { users: [{user: a, password: b}] }, B: {users: [{user: a, password: c}]} }");
    assert!(twice.is_err_and(|text| text.contains("Duplicate user \"a\" detected")));
}

#[test]
fn limits_and_times_are_read_with_their_units() {
    let settings = settings(
        "max_payload: 64KB\nmax_pending: 10MiB\nmax_connections: -1\nmax_subscriptions: 0\nping_interval: 5\n\
         write_deadline: \"100ms\"\nlame_duck_duration: \"1m\"\nlame_duck_grace_period: 3",
    );
    assert_eq!(settings.limits.max_payload, 64 << 10);
    assert_eq!(settings.limits.max_pending, 10 << 20);
    assert_eq!(settings.limits.max_connections, usize::MAX);
    assert_eq!(settings.limits.max_subscriptions, usize::MAX);
    assert_eq!(settings.limits.ping_interval, Duration::from_secs(5));
    assert_eq!(settings.limits.write_deadline, Duration::from_millis(100));
    let expected = LameDuck { duration: Duration::from_secs(60), grace_period: Duration::from_secs(3) };
    assert_eq!(settings.lame_duck, expected);
    let longer = read("lame_duck_duration: \"5s\"\nlame_duck_grace_period: \"5s\"");
    assert!(longer.is_err_and(|text| text.contains("should be strictly lower than lame duck duration")));
}

#[test]
fn numbers_are_no_text_and_numbers_without_a_unit_are_doubtful() {
    let wrong = read("authorization { user: a, password: 007 }").unwrap_err();
    assert_eq!(wrong, "t.conf:1:25: password is an integer, and must be a string: put it in quotes\n");
    let settings = settings("ping_interval: 5\nwebsocket { port: 1, no_tls: true, ping_interval: 2 }");
    let doubts: Vec<_> = settings.doubts.iter().map(ToString::to_string).collect();
    let expected = "invalid use of field \"ping_interval\": ping_interval should be converted to a duration";
    assert_eq!(doubts, [format!("t.conf:1:0: {expected}"), format!("t.conf:2:36: {expected}")]);
    assert_eq!(settings.limits.ping_interval, Duration::from_secs(5));
    assert_eq!(settings.limits.websocket_ping_interval, Some(Duration::from_secs(2)));
}

#[test]
fn a_base_path_has_one_slash_before_each_part() {
    for (written, path) in [("/nats", "/nats"), ("nats/", "/nats"), ("/a//b/", "/a/b"), ("", ""), ("/", "")] {
        assert_eq!(settings(&format!("http_base_path: \"{written}\"")).http_base_path, path, "{written}");
    }
    for written in ["/a b", "/{x}", "/a/../b", "/a?b"] {
        let wrong = read(&format!("http_base_path: \"{written}\"")).unwrap_err();
        assert!(wrong.contains("http_base_path is no path for URLs"), "{wrong}");
    }
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let text = read("port: abc\nmax_payload: -1\nnonsense: 1\ndebug: 1").unwrap_err();
    let expected = "t.conf:1:0: port is a string, and must be an integer\n\
                    t.conf:2:1: max_payload is -1, and must be from 1 to 67108864\n\
                    t.conf:3:1: unknown field \"nonsense\"\n\
                    t.conf:4:1: debug is a integer, and must be true or false\n";
    assert_eq!(text, expected.replace("a integer", "an integer"));
}

#[test]
fn accounts_that_cannot_be_are_refused_in_the_words_of_nats_server() {
    for (text, said) in [
        ("accounts { $G: { users: [{user: a, password: b}] } }", "\"$G\" is a Reserved Account"),
        ("accounts = [\"$G\"]", "\"$G\" is a Reserved Account"),
        ("accounts = [A, B, A]", "Duplicate Account Entry: A"),
        (
            "authorization { user: a, password: b }\naccounts { A { users: [{user: c, password: d}] } }",
            "Can not have a single user/pass and accounts",
        ),
        (
            "authorization { token: t }\naccounts { A { users: [{user: c, password: d}] } }",
            "Can not have a token and accounts",
        ),
    ] {
        let wrong = read(text).expect_err(text);
        assert!(wrong.contains(said), "{text}: {wrong}");
    }
    settings("authorization { timeout: 3 }\naccounts { A { users: [{user: c, password: d}] } }");
}

#[test]
fn the_address_for_clients_has_a_host_and_perhaps_a_port() {
    for (text, host, port) in [
        ("bus.example.org:4333", "bus.example.org", Some(4333)),
        ("bus.example.org", "bus.example.org", None),
        ("10.0.0.1:-1", "10.0.0.1", None),
        ("[fd00::1]:4333", "fd00::1", Some(4333)),
        ("fd00::1", "fd00::1", None),
    ] {
        let expected = Some(Advertised { host: host.to_owned(), port });
        assert_eq!(settings(&format!("client_advertise: \"{text}\"")).advertise, expected, "{text}");
    }
    assert_eq!(settings("client_advertise: \"\"").advertise, None);
    for text in ["bus:x", ":4222", "bus:70000"] {
        let wrong = read(&format!("client_advertise: \"{text}\"")).expect_err(text);
        assert!(wrong.contains("Error setting server INFO with ClientAdvertise value of"), "{wrong}");
    }
}

#[test]
fn flags_win_over_the_file() {
    let line = "-p -1 -m 8222 -a 127.0.0.1 --user a --pass new -D";
    let flags = parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let Ok(Request::Serve(flags)) = flags else { panic!("{flags:?}") };
    let mut settings = settings("port: 4333\nhttp: 1.2.3.4:1\nauthorization {user: a, password: old}");
    settings.apply(&flags).expect("they go together");
    assert_eq!((settings.port, settings.host.as_deref()), (0, Some("127.0.0.1")));
    assert_eq!(settings.http, Some(Listen { host: Some("1.2.3.4".to_owned()), port: 8222 }));
    let passwords: Vec<_> =
        settings.auth.users.iter().map(|user| user.password.as_ref().map(Secret::expose)).collect();
    assert_eq!(passwords, [Some("new")]);
    assert!(settings.log.debug);
}
