//! Users of `trunkline up`: stock clients with credentials, the command that makes hashes, and what a SIGHUP changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use nix::sys::signal::Signal;
use nkeys::KeyPair;
use tempfile::TempDir;
use tokio::sync::mpsc;
use trunkline_testkit::clients::{ClientLibrary, ScenarioRun};
use trunkline_testkit::servers::TrunklineServer;

use crate::command::{Running, command, run, run_with_input, start, text};

/// A configuration that a test changes while a bus runs with it.
struct Config {
    directory: TempDir,
}

impl Config {
    fn new(server: &str) -> Self {
        let config = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        config.write(server);
        config
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("config.yaml")
    }

    /// `server` is the section `server`, as inline YAML.
    fn write(&self, server: &str) {
        std::fs::write(self.path(), format!("server: {server}\n")).expect("writable");
    }

    fn server(&self) -> TrunklineServer {
        let path = self.path();
        TrunklineServer::start(Path::new(env!("CARGO_BIN_EXE_trunkline")), ["--config", text(&path)])
    }
}

/// Who the scenario `authorization` expects, before and after the reload it asks for.
fn platform(nkey: &str, reloaded: bool) -> String {
    let (search, leaver) = match reloaded {
        false => (
            "[nachos.tool.search.call, nachos.tool.search.task workers]",
            ", {user: leaver, password: leaver-pass}",
        ),
        true => ("[nachos.tool.search.call]", ""),
    };
    format!(
        "{{auth: {{token: t0ken-for-all}}, users: [{{user: gateway, password: gate-pass}}, {{nkey: {nkey}}}, \
         {{user: search, password: search-pass, permissions: {{subscribe: {search}, allow_responses: true}}}}{leaver}]}}"
    )
}

fn check_stock_client(library: ClientLibrary) {
    let pair = KeyPair::new_user();
    let config = Config::new(&platform(&pair.public_key(), false));
    let server = config.server();
    let seed = pair.seed().expect("it was just made");
    let mut scenario =
        ScenarioRun::start_with(library, "authorization", server.url(), &[("SCENARIO_NKEY_SEED", &seed)]);
    scenario.wait_for_line("ready-for-reload");
    config.write(&platform(&pair.public_key(), true));
    server.signal(Signal::SIGHUP);
    scenario.finish();
    for secret in ["gate-pass", "search-pass", "leaver-pass", "t0ken-for-all", &seed] {
        assert!(!server.log().contains(secret), "the log has a secret: {}", server.log());
    }
}

#[test]
fn nats_py_knows_users_and_permissions() {
    check_stock_client(ClientLibrary::NatsPy);
}

#[test]
fn nats_js_knows_users_and_permissions() {
    check_stock_client(ClientLibrary::NatsJs);
}

#[test]
fn transport_node_knows_users_and_permissions() {
    check_stock_client(ClientLibrary::TransportNode);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_nats_knows_users_and_permissions() {
    let pair = KeyPair::new_user();
    let config = Config::new(&platform(&pair.public_key(), false));
    let server = config.server();
    let options = async_nats::ConnectOptions::new;
    for wrong in [
        options(),
        options().user_and_password("gateway".into(), "wrong".into()),
        options().token("wrong".into()),
        options().nkey(KeyPair::new_user().seed().expect("just made")),
    ] {
        let error = wrong.connect(server.url()).await.expect_err("not let in");
        assert_eq!(error.kind(), async_nats::ConnectErrorKind::AuthorizationViolation, "{error}");
    }
    let (sender, mut events) = mpsc::unbounded_channel();
    let search = options()
        .user_and_password("search".into(), "search-pass".into())
        .event_callback(move |event| {
            let _ = sender.send(event.to_string());
            async {}
        })
        .connect(server.url())
        .await
        .expect("let in");
    let mut calls = search.subscribe("nachos.tool.search.call").await.expect("allowed");
    search.flush().await.expect("connected");
    let answering = {
        let search = search.clone();
        tokio::spawn(async move {
            while let Some(call) = calls.next().await {
                let reply = call.reply.expect("a request");
                search.publish(reply, "found".into()).await.expect("connected");
            }
        })
    };
    for credentials in [
        options().user_and_password("gateway".into(), "gate-pass".into()),
        options().token("t0ken-for-all".into()),
        options().nkey(pair.seed().expect("just made")),
    ] {
        let client = credentials.connect(server.url()).await.expect("let in");
        let reply = client.request("nachos.tool.search.call", "?".into()).await.expect("an answer");
        assert_eq!(&reply.payload[..], b"found");
    }
    search.publish("nachos.other", "x".into()).await.expect("connected");
    let heard = async {
        while let Some(event) = events.recv().await {
            if event.to_lowercase().contains("permissions violation for publish to \"nachos.other\"") {
                return;
            }
        }
        panic!("the events ended");
    };
    tokio::time::timeout(Duration::from_secs(30), heard).await.expect("the violation is told");
    answering.abort();
}

/// A bus in the foreground, and its URL for clients.
fn up(config: &Config) -> (Running, String) {
    let path = config.path();
    let arguments = ["up", "--config", text(&path), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let mut running = start(command(&arguments), b"");
    let line = running.until_it_says("clients ");
    let url = line.split_whitespace().nth(1).expect("a label and a URL").to_owned();
    running.until_it_says("Ctrl-C stops it");
    (running, url)
}

fn with_user(url: &str, user: &str) -> String {
    url.replace("nats://", &format!("nats://{user}@"))
}

#[test]
fn a_hash_from_passwd_lets_its_user_in() {
    for (scheme, prefix) in [("bcrypt", "$2b$04$"), ("argon2", "$argon2id$")] {
        let made = run_with_input(&["passwd", "--scheme", scheme, "--cost", "4"], b"hunter2\n").lines();
        assert!(made.len() == 1 && made[0].starts_with(prefix), "{made:?}");
        let config = Config::new(&format!("{{users: [{{user: ann, password: '{}'}}]}}", made[0]));
        let (running, url) = up(&config);
        run(&["pub", "--url", &with_user(&url, "ann:hunter2"), "a", "x"]).ok();
        let refused = run(&["pub", "--url", &with_user(&url, "ann:hunter3"), "a", "x"]);
        assert_eq!(refused.code(), 1, "{refused:?}");
        running.signal(Signal::SIGTERM);
        let ended = running.end();
        assert!(!ended.stderr.contains("plain text"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("hunter"), "{}", ended.stderr);
    }
    let made = run(&["passwd", "--generate", "--cost", "4", "--json"]).ok();
    let made: serde_json::Value = serde_json::from_slice(&made).expect("one document");
    let (password, hash) = (made["password"].as_str().unwrap(), made["hash"].as_str().unwrap());
    assert!(password.len() >= 24 && bcrypt::verify(password, hash).unwrap(), "{made:?}");
}

#[test]
fn passwd_refuses_what_would_be_no_password() {
    let long = "x".repeat(80);
    for (arguments, input, told) in [
        (&["passwd"][..], "\n", "there is no password on stdin"),
        (&["passwd"], "", "there is no password on stdin"),
        (&["passwd", "--cost", "4"], &long, "bcrypt looks at"),
        (&["passwd", "--cost", "99"], "x", "99"),
    ] {
        let ended = run_with_input(arguments, input.as_bytes());
        assert_eq!(ended.code(), 2, "{ended:?}");
        assert!(ended.stderr.contains(told), "{told}: {}", ended.stderr);
    }
}

#[test]
fn a_configuration_that_is_wrong_at_a_sighup_changes_nothing() {
    // Whoever asks for a reload stays: a command that is sent away is not told that its message arrived.
    let users = |password: &str| {
        format!("{{users: [{{user: ann, password: {password}}}, {{user: owner, password: k33per}}]}}")
    };
    let config = Config::new(&users("first"));
    let (mut running, url) = up(&config);
    config.write("{users: [{user: ann, pasword: s3cret}]}");
    running.signal(Signal::SIGHUP);
    let line = running.until_it_says("stay as they are");
    assert!(line.contains("config.yaml:1:30"), "{line}");
    run(&["pub", "--url", &with_user(&url, "ann:first"), "a", "x"]).ok();
    config.write(&users("second"));
    running.signal(Signal::SIGHUP);
    running.until_it_says("in force as configured now");
    run(&["pub", "--url", &with_user(&url, "ann:second"), "a", "x"]).ok();
    assert_eq!(run(&["pub", "--url", &with_user(&url, "ann:first"), "a", "x"]).code(), 1);
    // Whoever may publish there can ask for it, too.
    config.write(&users("third"));
    run(&["pub", "--url", &with_user(&url, "owner:k33per"), "nachos.system.policy.reload", "{}"]).ok();
    running.until_it_says("in force as configured now");
    run(&["pub", "--url", &with_user(&url, "ann:third"), "a", "x"]).ok();
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stderr.contains("--url nats://USER:PASSWORD@"), "the banner: {}", ended.stderr);
    assert!(ended.stderr.contains("plain text"), "it warns of the password: {}", ended.stderr);
    for secret in ["first", "second", "third", "s3cret", "k33per"] {
        assert!(!ended.stderr.contains(secret), "{secret} is in the log: {}", ended.stderr);
    }
}

#[test]
fn an_address_for_everybody_is_refused_with_setting_and_value() {
    let config = Config::new("{}");
    let path = config.path();
    let up = ["up", "--config", text(&path), "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0"];
    let ended = run(&up);
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stderr.contains("server.listen is 0.0.0.0:0"), "{}", ended.stderr);
    assert!(ended.stderr.contains("no authentication"), "{}", ended.stderr);
    config.write("{users: [{user: ann, password: a}]}");
    let ended = run(&up);
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stderr.contains("no TLS") && ended.stderr.contains("server.plaintext"), "{}", ended.stderr);
    config.write("{plaintext: true, users: [{user: ann, password: a}]}");
    let mut running = start(command(&up), b"");
    running.until_it_says("Ctrl-C stops it");
    running.signal(Signal::SIGTERM);
    running.end().ok();
}
