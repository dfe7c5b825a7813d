//! How the configuration says where NATS is, who the bus is to it and whom it trusts; and what it says when that is wrong.

use std::error::Error as _;
use std::path::Path;
use std::time::{Duration, Instant};

use trunkline::config::{Config, Loader};
use trunkline::status::BackendState;
use trunkline::{Bus, ConnectError, Event};
use trunkline_testkit::nats_operator::{seed_of, user_nkey};
use trunkline_testkit::{Authority, NatsOperator, NatsServer};

/// Longer than anything here may take; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(20);
/// A password that cannot stand in any text by chance, and one that has to be escaped in a URL.
const PASSWORD: &str = "p@ss:w/rd-41c9";
const ESCAPED: &str = "p%40ss%3Aw%2Frd-41c9";
const WRONG: &str = "not-it-93e1";

/// A configuration with these lines in its section `messaging`, and these variables.
fn config_with(messaging: &str, variables: &[(&str, &str)]) -> Config {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, format!("messaging: {{backend: nats, {messaging}}}\n")).expect("it takes a file");
    let loaded = Loader::new().file(&file).env(variables.iter().copied()).load();
    loaded.unwrap_or_else(|error| panic!("{messaging}: {error}")).config
}

fn config(messaging: &str) -> Config {
    config_with(messaging, &[])
}

/// Connects, and sends a message to itself.
async fn works(config: Config) -> Bus {
    let connecting = tokio::time::timeout(PATIENCE, Bus::connect(config)).await.expect("in time");
    let bus = connecting.unwrap_or_else(|error| panic!("{error}: {:?}", error.source()));
    let mut own = bus.subscribe("a.b".parse().unwrap()).await.unwrap();
    bus.publish_bytes("a.b".parse().unwrap(), "x").await.unwrap();
    let event = tokio::time::timeout(PATIENCE, own.next()).await.expect("in time");
    assert!(matches!(event, Some(Event::Message(_))), "{event:?}");
    bus
}

/// What an operator reads of a connection that is refused: the error, its causes and the hint. It has no secrets in it.
async fn refused(config: Config) -> String {
    let started = Instant::now();
    let error = tokio::time::timeout(PATIENCE, Bus::connect(config)).await.expect("in time");
    let error = error.expect_err("nobody may be let in");
    assert!(matches!(error, ConnectError::Nats(_)) && !error.is_retryable(), "{error:?}");
    // Trying again would change nothing, so that it is told at once and not when the time is over.
    assert!(started.elapsed() < CONNECT_TIMEOUT, "{error:?} took {:?}", started.elapsed());
    let mut text = format!("{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text.push_str(&format!("\nhint: {}", error.hint().expect("there is something to do")));
    let all = format!("{text} {error:?}");
    assert!(![PASSWORD, ESCAPED, WRONG].iter().any(|secret| all.contains(secret)), "{all}");
    text
}

/// Generous, so that what is told before it was told at once also on a busy machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const PATIENT: &str = "connect_timeout: 15s";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_servers_some_may_be_dead_or_silent() {
    let (live, silent, mut dead) =
        (NatsServer::start::<&str>([]), NatsServer::start::<&str>([]), NatsServer::start::<&str>([]));
    dead.kill();
    silent.pause();
    for first in [&dead, &silent] {
        for servers in [[first, &live], [&live, first]] {
            let url = servers.map(|server| server.url()).join(",");
            let bus = works(config(&format!("nats_url: '{url}', connect_timeout: 4s"))).await;
            assert_eq!(bus.status().backend.server, url, "it is shown what was asked for");
        }
    }
    let url = dead.url();
    let started = Instant::now();
    let error =
        Bus::connect(config(&format!("nats_url: '{url}', connect_timeout: 300ms"))).await.unwrap_err();
    assert!(error.is_retryable() && started.elapsed() < PATIENCE, "{error:?}");
    assert!(error.source().is_some_and(|cause| cause.to_string().contains(url)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_and_password_stand_in_the_address_the_file_or_the_environment() {
    let server =
        NatsServer::start_with_config(&format!("authorization {{ user: ann, password: \"{PASSWORD}\" }}\n"));
    let (plain, port) = (server.url(), server.port());
    let with = format!("nats://ann:{ESCAPED}@127.0.0.1:{port}");
    works(config(&format!("nats_url: '{with}'"))).await;
    works(config(&format!("nats_url: '{plain}', nats_auth: {{username: ann, password: '{PASSWORD}'}}")))
        .await;
    works(config_with("", &[("NATS_URL", &with)])).await;
    works(config_with("", &[("TRUNKLINE_URL", &with)])).await;
    let variables = [
        ("NATS_URL", plain),
        ("TRUNKLINE_NATS_AUTH_USERNAME", "ann"),
        ("TRUNKLINE_NATS_AUTH_PASSWORD", PASSWORD),
    ];
    works(config_with("", &variables)).await;
    // An address with credentials stands for itself, as the one by which a component joins a running bus.
    let file = format!("nats_url: '{plain}', nats_auth: {{username: ann, password: {WRONG}}}");
    works(config_with(&file, &[("TRUNKLINE_URL", &with)])).await;

    for wrong in [
        format!("nats_url: 'nats://ann:{WRONG}@127.0.0.1:{port}', {PATIENT}"),
        format!("nats_url: '{plain}', nats_auth: {{username: ann, password: {WRONG}}}, {PATIENT}"),
        format!("nats_url: '{plain}', {PATIENT}"),
        format!("nats_url: '{plain}', nats_auth: {{token: {WRONG}}}, {PATIENT}"),
    ] {
        let text = refused(config(&wrong)).await;
        assert!(text.contains(plain) && text.contains("messaging.nats_auth"), "{text}");
        assert!(
            text.contains("refused the credentials") && text.contains("messaging.fallback is fail"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_replaces_a_server_that_refuses_shows_no_secret() {
    let server = NatsServer::start_with_config("authorization { token: right }\n");
    let text = format!("nats_url: 'nats://{WRONG}@127.0.0.1:{}', fallback: in_memory", server.port());
    let bus = works(config(&text)).await;
    let state = bus.status().backend.state;
    assert!(matches!(&state, BackendState::Degraded { .. }), "{state:?}");
    let reason = state.reason().unwrap_or_default();
    assert!(reason.contains("refused the credentials") && !reason.contains(WRONG), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_stands_in_the_address_or_the_file() {
    let server = NatsServer::start_with_config(&format!("authorization {{ token: \"{PASSWORD}\" }}\n"));
    let (plain, port) = (server.url(), server.port());
    works(config(&format!("nats_url: 'nats://{ESCAPED}@127.0.0.1:{port}'"))).await;
    works(config(&format!("nats_url: '{plain}', nats_auth: {{token: '{PASSWORD}'}}"))).await;
    let text =
        refused(config(&format!("nats_url: '{plain}', nats_auth: {{token: {WRONG}}}, {PATIENT}"))).await;
    assert!(text.contains("refused the credentials"), "{text}");
}

/// Writes a file and gives its path as text.
fn written(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, content).expect("it takes a file");
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nkey_stands_in_a_file() {
    let ((seed, public), (other, _)) = (user_nkey(), user_nkey());
    let server =
        NatsServer::start_with_config(&format!("authorization {{ users: [ {{ nkey: {public} }} ] }}\n"));
    let directory = tempfile::tempdir().unwrap();
    let with = |path: &str| {
        config(&format!("nats_url: '{}', nats_auth: {{nkey_file: '{path}'}}, {PATIENT}", server.url()))
    };
    works(with(&written(directory.path(), "bare.nk", &seed))).await;
    works(with(&written(directory.path(), "noted.nk", &format!("# of the bus\n{seed}\n")))).await;

    let text = refused(with(&written(directory.path(), "other.nk", &other))).await;
    assert!(text.contains("refused the credentials") && !text.contains(&other), "{text}");
    let path = written(directory.path(), "public.nk", &public);
    let text = refused(with(&path)).await;
    assert!(text.contains(&path) && text.contains("messaging.nats_auth.nkey_file"), "{text}");
    assert!(text.contains("no line with the seed of a user"), "{text}");
    // It has the form of a seed, and a wrong checksum.
    let broken = format!("{}{}", &seed[..seed.len() - 2], if seed.ends_with("AA") { "BB" } else { "AA" });
    let text = refused(with(&written(directory.path(), "broken.nk", &broken))).await;
    assert!(!text.contains(&broken[..20]), "{text}");
    let text = refused(with("/nowhere/user.nk")).await;
    assert!(text.contains("/nowhere/user.nk") && text.contains("messaging.nats_auth.nkey_file"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credentials_file_lets_in_who_its_operator_knows() {
    let (operator, stranger) = (NatsOperator::make(), NatsOperator::make());
    let server = NatsServer::start_with_config(&operator.server_config());
    let with = |path: &Path| {
        let path = path.display();
        config(&format!("nats_url: '{}', nats_auth: {{credentials_file: '{path}'}}, {PATIENT}", server.url()))
    };
    works(with(&operator.credentials_file("bus"))).await;
    for wrong in [stranger.credentials_file("bus"), operator.expired_credentials_file("late")] {
        let text = refused(with(&wrong)).await;
        assert!(text.contains("refused the credentials") && !text.contains(&seed_of(&wrong)), "{text}");
    }
    let directory = tempfile::tempdir().unwrap();
    for (name, content, why) in [
        ("empty.creds", "", "cannot parse user JWT"),
        ("half.creds", "---a---\nx.y.z\n---b---\n", "cannot parse nkey"),
    ] {
        let path = written(directory.path(), name, content);
        let text = refused(with(Path::new(&path))).await;
        assert!(text.contains(&path) && text.contains("messaging.nats_auth.credentials_file"), "{text}");
        assert!(text.contains(why) && text.contains("nsc generate creds"), "{text}");
    }
    let text = refused(with(Path::new("/nowhere/user.creds"))).await;
    assert!(text.contains("/nowhere/user.creds") && text.contains("No such file"), "{text}");
}

/// The lines of a server's configuration that make it speak TLS.
fn tls(authority: &Authority, names: &[&str], more: &str) -> String {
    let certificate = authority.sign(names);
    format!(
        "tls {{\n cert_file: \"{}\"\n key_file: \"{}\"\n ca_file: \"{}\"\n timeout: 5\n {more}\n}}\n",
        certificate.cert_file.display(),
        certificate.key_file.display(),
        authority.ca_file().display()
    )
}

fn tls_url(server: &NatsServer) -> String {
    format!("tls://127.0.0.1:{}", server.port())
}

fn trusting(authority: &Authority) -> String {
    format!("ca_file: '{}'", authority.ca_file().display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_certificate_of_a_named_authority_is_trusted() {
    let authority = Authority::make();
    let server = NatsServer::start_with_config(&tls(&authority, &["127.0.0.1", "localhost"], ""));
    let trusting = trusting(&authority);
    let port = server.port();
    for url in [&tls_url(&server), &format!("nats://127.0.0.1:{port}"), &format!("tls://localhost:{port}")] {
        works(config(&format!("nats_url: '{url}', nats_tls: {{{trusting}}}"))).await;
    }
    for url in [tls_url(&server), format!("nats://127.0.0.1:{port}")] {
        let text = refused(config(&format!("nats_url: '{url}', {PATIENT}"))).await;
        assert!(text.contains("UnknownIssuer") && text.contains("messaging.nats_tls.ca_file"), "{text}");
    }
    let stranger = Authority::make();
    let stranger = format!("ca_file: '{}'", stranger.ca_file().display());
    let text =
        refused(config(&format!("nats_url: '{}', nats_tls: {{{stranger}}}, {PATIENT}", tls_url(&server))))
            .await;
    assert!(text.contains("no TLS with tls://127.0.0.1"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::make();
    let server = NatsServer::start_with_config(&tls(&authority, &["nats.example"], ""));
    let trusting = trusting(&authority);
    let text =
        refused(config(&format!("nats_url: '{}', nats_tls: {{{trusting}}}, {PATIENT}", tls_url(&server))))
            .await;
    assert!(text.contains("not valid for name"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_shown_to_a_server_that_wants_one() {
    let authority = Authority::make();
    let server = NatsServer::start_with_config(&tls(&authority, &["127.0.0.1"], "verify: true"));
    let trusting = trusting(&authority);
    let with = |own: &str| {
        config(&format!("nats_url: '{}', nats_tls: {{{trusting}{own}}}, {PATIENT}", tls_url(&server)))
    };
    let signed_by = |signer: &Authority| {
        let own = signer.sign(&["component"]);
        format!(", cert_file: '{}', key_file: '{}'", own.cert_file.display(), own.key_file.display())
    };
    works(with(&signed_by(&authority))).await;
    // The authority goes with its files.
    let stranger = Authority::make();
    for own in [String::new(), signed_by(&stranger)] {
        let text = refused(with(&own)).await;
        assert!(text.contains("no TLS with") && text.contains("the certificate it asks for"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_waits_for_the_handshake_gets_it_first() {
    let authority = Authority::make();
    let server = NatsServer::start_with_config(&tls(&authority, &["127.0.0.1"], "handshake_first: true"));
    let trusting = trusting(&authority);
    works(config(&format!(
        "nats_url: '{}', nats_tls: {{{trusting}, handshake_first: true}}",
        tls_url(&server)
    )))
    .await;
}

/// Whoever asks for TLS never goes on without it, whatever a server, or somebody in its place, says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_refused_where_tls_was_asked_for() {
    let (server, authority) = (NatsServer::start::<&str>([]), Authority::make());
    let trusting = trusting(&authority);
    for settings in [
        format!("nats_url: '{}'", tls_url(&server)),
        format!("nats_url: '{}', nats_tls: {{{trusting}}}", server.url()),
    ] {
        let connecting = Bus::connect(config(&format!("{settings}, connect_timeout: 500ms")));
        let error = tokio::time::timeout(PATIENCE, connecting).await.expect("in time").unwrap_err();
        assert!(matches!(&error, ConnectError::Nats(_)), "{error:?}");
        let text = format!("{}", error.source().expect("there is a cause"));
        assert!(text.contains("TLS"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_used_are_named_with_their_setting() {
    let authority = Authority::make();
    let own = authority.sign(&["component"]);
    let directory = tempfile::tempdir().unwrap();
    let empty = written(directory.path(), "empty.pem", "");
    let (cert, key) = (own.cert_file.display(), own.key_file.display());
    for (files, path, setting, why) in [
        ("ca_file: '/nowhere/ca.pem'".to_owned(), "/nowhere/ca.pem", "ca_file", "No such file"),
        (format!("ca_file: '{empty}'"), &empty, "ca_file", "not PEM with certificates"),
        (
            format!("cert_file: '{empty}', key_file: '{key}'"),
            &empty,
            "cert_file",
            "not PEM with certificates",
        ),
        (
            format!("cert_file: '{cert}', key_file: '{empty}'"),
            &empty,
            "key_file",
            "not PEM with a private key",
        ),
    ] {
        let text =
            refused(config(&format!("nats_url: 'tls://127.0.0.1:1', nats_tls: {{{files}}}, {PATIENT}")))
                .await;
        assert!(text.contains(path) && text.contains(&format!("messaging.nats_tls.{setting}")), "{text}");
        assert!(text.contains(why) && text.contains("correct the section"), "{text}");
    }
}
