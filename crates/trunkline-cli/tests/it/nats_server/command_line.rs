//! Command lines and configuration files that end at once: both servers say the same, and end the same.

use crate::command::start;

use super::{Place, theirs};

/// Exit code and stderr of both.
fn both(place: &Place, arguments: &[&str]) -> [(i32, String); 2] {
    [place.ours(), theirs()].map(|program| {
        let ended = start(place.command(&program, arguments), b"").end();
        (ended.code(), ended.stderr)
    })
}

#[track_caller]
fn check_same(place: &Place, arguments: &[&str]) {
    let [ours, theirs] = both(place, arguments);
    assert_eq!(ours, theirs, "{arguments:?}");
}

#[test]
fn command_lines_end_as_those_of_nats_server() {
    let place = Place::new();
    place.write("empty.conf", "# nothing\n");
    for arguments in [
        &["extra"][..],
        &["-t"],
        &["-c", "missing.conf"],
        &["-t", "--config=missing.conf"],
        &["--signal", "bogus=1"],
        &["-sl", "quit=missing.pid"],
        &["--signal=ldm=99999999"],
        &["-sl", "quit=*x"],
        &["-"],
        &["--", "extra"],
        &["-p", "1", "extra"],
        &["-t", "-c", "empty.conf"],
        &["-t", "-c", "."],
        &["-n", "a b"],
        &["--tls"],
        &["-sl", "ldm=99999999", "-t", "-c", "missing.conf"],
    ] {
        check_same(&place, arguments);
    }
}

#[test]
fn a_wrong_flag_is_told_as_by_nats_server_and_is_a_failure() {
    let place = Place::new();
    for arguments in [
        &["-p", "abc"][..],
        &["--bogus"],
        &["-p"],
        &["-D=maybe"],
        &["---p", "1"],
        &["-=1"],
        &["-p", "99999999999999999999"],
        &["--profile", "x"],
        &["-v", "-p", "abc"],
    ] {
        let [(code, ours), (_, theirs)] = both(&place, arguments);
        assert_eq!(ours.lines().next(), theirs.lines().next(), "{arguments:?}");
        assert_eq!(code, 1, "{arguments:?}");
    }
}

#[test]
fn version_and_help_are_printed_on_stdout() {
    let place = Place::new();
    let version = |program| start(place.command(program, &["-v"]), b"").end().lines().join("\n");
    let (ours, theirs) = (version(&place.ours()), version(&theirs()));
    assert_eq!(ours, theirs, "for who takes everything behind the `v` for the version");
    for arguments in [&["-h", "-v"][..], &["version"], &["-D", "VERSION"], &["-c", "missing.conf", "-v"]] {
        let said = start(place.command(&place.ours(), arguments), b"").end();
        assert_eq!((said.code(), said.lines().join("\n")), (0, theirs.clone()), "{arguments:?}");
    }
    let help = start(place.command(&place.ours(), &["--help"]), b"").end().lines();
    assert!(help.iter().any(|line| line == "Usage: nats-server [options]"), "{help:?}");
    let by_command = crate::command::run(&["nats-server", "-h"]).lines();
    assert_eq!(by_command, help, "trunkline nats-server is the same");
}

#[test]
fn files_with_mistakes_are_refused_in_the_words_of_nats_server() {
    let place = Place::new();
    place.write("inner.conf", "port: 4222\nbogus_inside: 1\n");
    for content in [
        "port: 4222\nbogus: 1\nother: 2\n",
        "authorization { users: [ {user: a, password: b, bogus: 1} ] }\n",
        "accounts { A { users: [{user: a, password: b}], bogus: 1 } }\n",
        "port: 4222\nauthorization {\n user: a\n",
        "port: $NO_SUCH_VARIABLE\n",
        "a: $b\nb: 3\n",
        "include \"missing.conf\"\n",
        "port: 4222 4223\n",
        "a { b: 1 x\n",
        "port: \"abc\n",
        "port: [1,2\n",
        "listen: foo:bar\n",
        "authorization { user: a, password: b, token: c }\n",
        "authorization: {user: a, password: b, users: [{user: c, password: d}]}\n",
        "authorization: {users: [{password: a}]}\n",
        "\n\nmax_payload: 1MB\n   nonsense: {}\n",
        "authorization { users: [{nkey: foo}] }\n",
        "authorization { users: [{nkey: \"\"}] }\n",
        "authorization { users: [{user: \"\"}] }\n",
        "accounts { A { users: [{nkey: AB5D6N7TTAJ7GQ2NRHQ2ZVRVDXTEHJO3LQBLRAUXGX2FJBSGCFJ3UZGH}] } }\n",
        "server_name: \"a b\"\n",
        "",
    ] {
        place.write("t.conf", content);
        let [(code, ours), (their_code, theirs)] = both(&place, &["-t", "-c", "t.conf"]);
        assert_eq!((code, their_code), (1, 1), "{content}: {ours} / {theirs}");
        // nats-server tells several mistakes in any order.
        let sorted = |text: &str| {
            let mut lines: Vec<_> =
                text.trim_start_matches("nats-server: ").lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&ours), sorted(&theirs), "{content}");
    }
}

#[test]
fn typical_mistakes_are_refused_as_by_nats_server() {
    let place = Place::new();
    let authority = trunkline_testkit::Authority::make();
    let (one, other) = (authority.sign(&["localhost"]), authority.sign(&["other"]));
    for (from, to) in [(&one.cert_file, "a.pem"), (&one.key_file, "a.key"), (&other.key_file, "b.key")] {
        std::fs::copy(from, place.path().join(to)).expect("a copy");
    }
    let tls = "cert_file: a.pem, key_file: a.key";
    for content in [
        // Numbers where text belongs: `007` would be another password than the one that is meant.
        "authorization { user: a, password: 007 }",
        "authorization { user: a, password: 10k }",
        "authorization { token: 5 }",
        "authorization { users: [{user: 5, password: b}] }",
        "server_name: 5",
        "server_metadata { a: 5 }",
        "pid_file: 5",
        // Numbers where a unit belongs.
        "ping_interval: 5",
        "write_deadline: 2",
        "lame_duck_duration: 60",
        "websocket { port: 1, no_tls: true, ping_interval: 5 }",
        "websocket { port: 1, no_tls: true, ping_interval: x }",
        "authorization { user: a, password: b, timeout: 100 }",
        "authorization { users: [{user: a, password: b, permissions: {allow_responses: {expires: 60}}}] }",
        "authorization { users: [{user: a, password: b, permissions: {publish: \" a\"}}] }",
        // Keys that change nothing here have the values that they have there.
        "no_sys_acc: 1",
        "no_fast_producer_stall: x",
        "disable_sublist_cache: 1",
        "connect_error_reports: x",
        "prof_port: x",
        "store_dir: 5",
        "system_account: 5",
        "feature_flags: x",
        "feature_flags { a: x }",
        "ocsp_cache: 5",
        "write_timeout: bogus",
        "no_auth_warning: true",
        "websocket { port: 1, no_tls: true, advertise: 5 }",
        "leafnodes { bogus: 5 }",
        "leafnodes { listen: x }",
        "leafnodes { tls: 5 }",
        // Limits.
        "max_sub_tokens: -1",
        "max_sub_tokens: 0",
        "max_sub_tokens: 256",
        "max_sub_tokens: x",
        "max_closed_clients: x",
        "no_header_support: 1",
        "http_base_path: true",
        // Certificates.
        "tls { cert_file: a.pem, key_file: b.key }",
        "tls { TLS, ca_file: missing.pem }",
        "tls { TLS, ca_file: a.key }",
        "tls { TLS, insecure: x }",
        "tls { TLS, cipher_suites: [] }",
        "tls { TLS, cipher_suites: [BOGUS] }",
        "tls { TLS, cipher_suites: TLS_AES_128_GCM_SHA256 }",
        "tls { TLS, cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA] }",
        "tls { TLS, curve_preferences: [] }",
        "tls { TLS, curve_preferences: [P256] }",
        "tls { TLS, pinned_certs: [a] }",
        "tls { TLS, pinned_certs: a }",
        "tls { TLS, connection_rate_limit: \"5\" }",
        "tls { TLS, certs: [{TLS}] }",
        "tls { certs: [{cert_file: a.pem}] }",
        "tls { certs: [{}] }",
        "tls { certs: [a] }",
        "tls { certs: {} }",
        "tls { certs: [{cert_file: a.pem, key_file: b.key}] }",
        "tls { certs: [{TLS, ca_file: a.pem}] }",
    ] {
        place.write(
            "t.conf",
            &format!(
                "{}\n",
                content.replace("TLS,", &format!("{tls},")).replace("{TLS}", &format!("{{{tls}}}"))
            ),
        );
        let [(code, ours), (their_code, theirs)] = both(&place, &["-t", "-c", "t.conf"]);
        assert_eq!((code, their_code), (1, 1), "{content}: {ours} / {theirs}");
    }
}

#[test]
fn what_may_be_meant_otherwise_is_told_and_taken_unless_the_file_is_only_tested() {
    let place = Place::new();
    let running = place.start("write_deadline: 3\n");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    let said = running.end().stderr;
    let line = "server.conf:1:0: invalid use of field \"write_deadline\": write_deadline should be converted to a duration";
    assert_eq!(said.lines().next(), Some(line), "{said}");
    let [ours, theirs] = both(&place, &["-t", "-c", "server.conf"]);
    assert_eq!(ours, theirs);
}

#[test]
fn files_that_nats_server_takes_are_taken() {
    let place = Place::new();
    place.write("users.conf", "users = [{user: included, password: b}]\n");
    for content in [
        "port: 4222\n",
        "port = 4222; host = 1.2.3.4\n",
        "{\"port\": 4222, \"authorization\": {\"token\": \"x\"}}",
        "port 4222\nhost 127.0.0.1 # here\n// there\n",
        "listen: 127.0.0.1:-1\nhttp: \"127.0.0.1:-1\"\n",
        "http_port: 8222\nmonitor_port: 8223\n",
        "port: $TEST_PORT\n",
        "PASS: s3cret\nauthorization { user: a, password: $PASS, timeout: 0.5 }\n",
        "authorization { include \"users.conf\" }\n",
        "authorization { include users.conf\n timeout: \"2s\" }\n",
        "authorization: {users: [{user: a, password: $2a$11$Q9mWyhDMcPPvRHz4mEVzYuKDnJu8d3GEYsoyp2ISrmFfHVVQkcYDS}]}\n",
        "authorization { users = [ {user: a, pass: b, permissions: {publish: foo, subscribe: {allow: [\"a.>\", \"b q\"], deny: c}, \
         allow_responses: {max: 2, expires: \"1m\"}}}\n {user: c, password: d, permission: {pub: [x, y], allow_responses: true}} ] }\n",
        "accounts: { A: { users: [{user: a, password: b}] }, B { users = [ {user: c, password: d} ] } }\nno_auth_user: a\n",
        "max_payload: 64KB\nmax_control_line: 4kb\nmax_pending: 10MiB\nmax_connections: 10\nmax_subscriptions: 0\n",
        "ping_interval: \"100ms\"\nping_max: 3\nwrite_deadline: \"2s\"\n",
        "lame_duck_duration: \"1m\"\nlame_duck_grace_period: \"5s\"\n",
        "debug: true\ntrace: off\nlogtime: yes\nlog_file: \"x.log\"\npid_file: \"x.pid\"\nports_file_dir: \"/tmp\"\n",
        "server_name: bus\nserver_tags: [\"a\", \"b\"]\nleafnodes { listen: 127.0.0.1:7422 }\nno_sys_acc: true\n",
        "websocket {}\n",
        "authorization { users: [{user: a, password: b, allowed_connection_types: [STANDARD]}] }\n",
        "websocket { port: 8080, no_tls: true }\n\
         authorization { users: [{user: a, password: b, allowed_connection_types: [STANDARD, WEBSOCKET]}] }\n",
        "websocket { no_tls: true }\n",
        "websocket { listen: \"127.0.0.1:8080\", no_tls: true, compression: true, same_origin: true, \
         allowed_origins: [\"http://a.b\"], handshake_timeout: \"2s\" }\n",
        "websocket { host: 127.0.0.1, port: 8080, no_tls: true, allowed_origins: \"http://a.b\", advertise: \"a:1\" }\n",
        "https: \"127.0.0.1:8443\"\ntls {}\n",
        "logfile_size_limit: 1MB\nlogfile_max_num: 3\nmax_traced_msg_len: 100\ntrace_headers: true\n",
        "max_payload: 0\nmax_control_line: 0\nmax_pending: 0\nping_max: 0\n",
        "server_metadata { region: eu }\nwrite_timeout: close\nno_fast_producer_stall: true\n",
        "syslog: false\nproxy_protocol: false\nocsp: false\njetstream { enabled: false }\nmappings {}\n",
        "accounts { A { users: [{user: a, password: b}], exports: [], imports: [], jetstream: disabled } }\n",
        "pid_file: \"\"\nlog_file: \"\"\nserver_name: \"\"\nhost: \"\"\n",
        "max_sub_tokens: 16\nmax_closed_clients: 10\nno_header_support: true\nhttp_base_path: \"/nats/a\"\n",
        "store_dir: \"x\"\nsystem_account: \"$SYS\"\nprof_port: 0\nfeature_flags { a: true }\nocsp_cache: false\n",
        "leafnodes { port: 7422, reconnect: \"2s\", authorization { user: a, password: b }, isolate_leafnode_interest: true }\n",
        "websocket { port: 8080, no_tls: true, ping_interval: \"30s\" }\n",
        "client_advertise: \"a:1\"\nsystem_account: SYS\naccounts: { SYS: { users: [{user: s, password: s}] } }\n",
    ] {
        place.write("t.conf", content);
        let [(code, ours), (their_code, theirs)] = both(&place, &["-t", "-c", "t.conf"]);
        assert_eq!((code, their_code), (0, 0), "{content}: {ours} / {theirs}");
        assert!(ours.starts_with("nats-server: configuration file t.conf is valid (sha256:"), "{ours}");
    }
}

#[test]
fn what_this_server_is_not_is_refused_with_the_key_and_its_place() {
    let place = Place::new();
    for (content, key) in [
        ("cluster { port: -1 }", "cluster"),
        ("gateway {}", "gateway"),
        ("jetstream: true", "jetstream"),
        ("mqtt { port: 1883 }", "mqtt"),
        ("operator: \"x\"", "operator"),
        ("leafnodes { remotes: [{url: \"nats://a\"}] }", "leafnodes"),
    ] {
        place.write("t.conf", &format!("port: 4222\n{content}\n"));
        let ended = start(place.command(&place.ours(), &["-t", "-c", "t.conf"]), b"").end();
        assert_eq!(ended.code(), 1, "{content}");
        let expected = format!("nats-server: t.conf:2:1: {key:?} is not supported by this server: ");
        assert!(ended.stderr.starts_with(&expected), "{content}: {}", ended.stderr);
    }
    for content in [
        "authorization { token: \"\" }",
        "authorization { token: $2a$10$abc }",
        "authorization { users: [{user: a, password: $2a$10$abc}] }",
    ] {
        place.write("t.conf", &format!("port: 4222\n{content}\n"));
        let ended = start(place.command(&place.ours(), &["-t", "-c", "t.conf"]), b"").end();
        assert_eq!(ended.code(), 1, "{content}: nobody would be let in by it");
        assert!(ended.stderr.starts_with("nats-server: t.conf:2:"), "{}", ended.stderr);
    }
    for flag in ["-js", "--cluster=nats://a:1", "--routes=nats://a:1"] {
        let ended = start(place.command(&place.ours(), &[flag]), b"").end();
        assert_eq!(ended.code(), 1, "{flag}");
        assert!(ended.stderr.contains("is not supported by this server: "), "{}", ended.stderr);
    }
}
