//! Commands with backend nats: who they are to the server, and what they say when it has no JetStream or does not let them in.

use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use trunkline_testkit::nats_operator::seed_of;
use trunkline_testkit::servers::NatsServer;
use trunkline_testkit::{Authority, NatsOperator};

use crate::command::{Ended, command, run, start, text};

const WRONG: &str = "not-it-93e1";

/// A configuration with these lines in its section `messaging`.
struct Configured(TempDir);

impl Configured {
    fn new(messaging: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let content = format!("messaging: {{backend: nats, {messaging}}}\n");
        std::fs::write(directory.path().join("config.yaml"), content).unwrap();
        Self(directory)
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let file = self.0.path().join("config.yaml");
        start(command(&[arguments, &["--config", text(&file)]].concat()), b"").end()
    }
}

#[test]
fn streams_on_a_server_without_jetstream_are_refused_with_what_to_do() {
    let server = NatsServer::start::<&str>([]);
    let url = server.url();
    let configured = Configured::new(&format!("nats_url: '{url}'"));
    for arguments in [
        &["stream", "ls"][..],
        &["stream", "info", "tasks"],
        &["consumer", "ls", "tasks"],
        &["consume", "tasks", "workers", "--exec", "cat"],
        &["dlq", "ls"],
        &["replay", "tasks", "--all"],
    ] {
        for ended in [configured.run(arguments), run(&[arguments, &["--url", url]].concat())] {
            assert_eq!(ended.code(), 1, "{arguments:?}: {ended:?}");
            assert!(ended.stdout.is_empty(), "{arguments:?}: {ended:?}");
            for says in ["streams is not supported by backend nats", "hint: ", "with JetStream"] {
                assert!(ended.stderr.contains(says), "{arguments:?}: {says:?} is missing in {ended:?}");
            }
        }
    }
    // What needs no streams works there.
    let listening = command(&["sub", "a.b", "--count", "1", "--raw", "--url", url]);
    let mut listening = start(listening, b"");
    listening.until_it_says("listening on");
    configured.run(&["pub", "a.b", "hello"]).ok();
    assert!(String::from_utf8_lossy(&listening.end().ok()).contains("hello"));
    // Nor does a bus start that would have to store something.
    let storing = format!("nats_url: '{url}', streams: [{{name: tasks, subjects: ['tasks.>']}}]");
    let ended = Configured::new(&storing).run(&["up"]);
    assert_eq!(ended.code(), 1, "{ended:?}");
    for says in ["messaging.streams", "not supported by backend nats", "hint: ", "with JetStream"] {
        assert!(ended.stderr.contains(says), "{says:?} is missing in {ended:?}");
    }
}

#[test]
fn commands_are_who_the_configuration_says_they_are() {
    let (operator, authority) = (NatsOperator::make(), Authority::make());
    let certificate = authority.sign(&["127.0.0.1"]);
    let server = NatsServer::start_with_config(&format!(
        "{}tls {{ cert_file: \"{}\", key_file: \"{}\", timeout: 5 }}\n",
        operator.server_config(),
        certificate.cert_file.display(),
        certificate.key_file.display()
    ));
    let with = |credentials: &std::path::Path| {
        Configured::new(&format!(
            "nats_url: '{}', nats_auth: {{credentials_file: '{}'}}, nats_tls: {{ca_file: '{}'}}",
            server.url(),
            credentials.display(),
            authority.ca_file().display()
        ))
    };
    let good = with(&operator.credentials_file("bus"));
    good.run(&["pub", "a.b", "hello"]).ok();
    let status = good.run(&["status", "--json"]).ok();
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(
        (&status["ready"], &status["server"]["tls_required"]),
        (&true.into(), &true.into()),
        "{status}"
    );

    let strange = NatsOperator::make().credentials_file("bus");
    assert!(!strange.exists(), "the operator took its files along");
    let stranger = NatsOperator::make();
    let strange = stranger.credentials_file("bus");
    let bad = with(&strange);
    for arguments in [&["pub", "a.b", "x"][..], &["status"], &["stream", "ls"], &["up"]] {
        let ended = bad.run(arguments);
        assert_eq!(ended.code(), 1, "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains("refused the credentials"), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains("messaging.nats_auth"), "{arguments:?}: {ended:?}");
        assert!(!format!("{ended:?}").contains(&seed_of(&strange)), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn what_the_banner_proposes_is_let_in() {
    let server = NatsServer::start_with_config("authorization { user: ann, password: s3cr3t-7a }\n");
    let with_url = format!("nats_url: 'nats://ann:s3cr3t-7a@127.0.0.1:{}'", server.port());
    let beside = format!("nats_url: '{}', nats_auth: {{username: ann, password: s3cr3t-7a}}", server.url());
    for settings in [with_url, beside] {
        let configured = Configured::new(&settings);
        let file = configured.0.path().join("config.yaml");
        let mut up = start(command(&["up", "--config", text(&file)]), b"");
        let mut propose = |what: &str| -> Vec<String> {
            let line = up.until_it_says(what);
            let proposed = &line[line.find("trunkline ").expect("a command")..];
            proposed.split_whitespace().skip(1).map(|word| word.trim_matches('\'').to_owned()).collect()
        };
        let mut subscribe = propose("trunkline sub");
        let (publish, demo) = (propose("trunkline pub"), propose("up --demo"));
        subscribe.extend(["--count", "1", "--raw"].map(str::to_owned));
        let words = |words: &[String]| command(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let mut heard = start(words(&subscribe), b"");
        heard.until_it_says("listening on");
        start(words(&publish), b"").end().ok();
        assert!(String::from_utf8_lossy(&heard.end().ok()).contains("hello"));
        let mut demo = words(&demo);
        demo.args(["--demo-conversations", "1"]);
        assert!(String::from_utf8_lossy(&start(demo, b"").end().ok()).contains("answered in"));
        up.signal(Signal::SIGINT);
        let ended = up.end();
        assert!(ended.status.success() && !ended.stderr.contains("s3cr3t-7a"), "{ended:?}");
    }
}

#[test]
fn up_with_a_wrong_password_fails_in_time_and_shows_no_secret() {
    let server = NatsServer::start_with_config("authorization { user: ann, password: right }\n");
    for settings in [
        format!("nats_url: 'nats://ann:{WRONG}@127.0.0.1:{}'", server.port()),
        format!("nats_url: '{}', nats_auth: {{username: ann, password: {WRONG}}}", server.url()),
    ] {
        let configured = Configured::new(&settings);
        let ended = configured.run(&["up"]);
        assert_eq!(ended.code(), 1, "{ended:?}");
        // At once, and not when `connect_timeout` is over; a busy machine adds its part.
        assert!(ended.took < Duration::from_secs(3 + 5), "{ended:?}");
        for says in [server.url(), "refused the credentials", "messaging.fallback is fail", "hint: "] {
            assert!(ended.stderr.contains(says), "{says:?} is missing in {ended:?}");
        }
        assert_eq!(ended.stderr.matches("authorization violation").count(), 1, "told once: {ended:?}");
        let shown = configured.run(&["config", "show"]);
        assert!(shown.status.success(), "{shown:?}");
        assert!(
            ![&ended, &shown].iter().any(|said| format!("{said:?}").contains(WRONG)),
            "{ended:?} {shown:?}"
        );
    }
}

#[test]
fn contradictions_between_ways_to_be_let_in_are_told() {
    for (settings, says) in [
        ("nats_auth: {username: ann}", "messaging.nats_auth.username needs messaging.nats_auth.password"),
        ("nats_auth: {password: pw}", "messaging.nats_auth.password needs messaging.nats_auth.username"),
        (
            "nats_auth: {token: t, nkey_file: f}",
            "messaging.nats_auth.nkey_file excludes messaging.nats_auth.token",
        ),
        ("nats_tls: {cert_file: c}", "messaging.nats_tls.cert_file needs messaging.nats_tls.key_file"),
        ("nats_tls: {key_file: k}", "messaging.nats_tls.key_file needs messaging.nats_tls.cert_file"),
    ] {
        let ended = Configured::new(settings).run(&["config", "show"]);
        assert_eq!(ended.code(), 1, "{settings}: {ended:?}");
        assert!(ended.stderr.contains(says), "{settings}: {ended:?}");
    }
}
