//! Certificates: what is wrong with them is told at the start, they change while the server runs, and clients' say who
//! they are.

use std::path::Path;
use std::sync::Arc;

use trunkline::backend::memory::Hub;
use trunkline_server::{ClientCertificates, ReloadError, Server, StartError, TlsError, TlsOptions};
use trunkline_testkit::Authority;

use super::super::auth::auth;
use super::super::client;
use super::super::fixture::options;
use super::{Sealed, Trust, path, server};

async fn refusal(tls: TlsOptions) -> StartError {
    let started = Server::start(options(Arc::new(Hub::default()), |options| options.tls = Some(tls))).await;
    started.expect_err("a server without a certificate")
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_fails_the_start_and_is_named() {
    let (trust, other) = (Trust::make(), Trust::make());
    let missing = Path::new("/nonexistent/cert.pem");
    let (cert, key) = (&trust.server.cert_file, &trust.server.key_file);
    let mut stranger = trust.options();
    stranger.clients = ClientCertificates::Required;
    stranger.ca_file = Some(key.clone());
    let cases = [
        (TlsOptions::new(missing, key), "server.tls.cert_file", path(missing).to_owned()),
        (TlsOptions::new(cert, missing), "server.tls.key_file", path(missing).to_owned()),
        (TlsOptions::new(key, key), "server.tls.cert_file", path(key).to_owned()),
        (TlsOptions::new(cert, cert), "server.tls.key_file", path(cert).to_owned()),
        (
            TlsOptions::new(cert, &other.server.key_file),
            "server.tls",
            path(&other.server.key_file).to_owned(),
        ),
        (stranger, "server.tls.ca_file", path(key).to_owned()),
    ];
    for (tls, setting, file) in cases {
        let error = refusal(tls).await;
        let StartError::Tls(source) = &error else { panic!("{error:?}") };
        let text = source.to_string();
        assert!(text.contains(setting) && text.contains(&file), "{text}");
        assert!(std::error::Error::source(source).is_some(), "{text} has no reason");
        assert!(!error.hint().is_empty());
    }
}

#[tokio::test]
async fn other_addresses_are_served_with_users_and_tls() {
    let trust = Trust::make();
    let users = "{users: [{user: ann, password: pw}]}";
    let start = async |tls: Option<TlsOptions>| {
        Server::start(options(Arc::new(Hub::default()), |options| {
            options.listen.set_ip([0, 0, 0, 0].into());
            options.tls = tls;
            options.auth = auth(users);
        }))
        .await
    };
    assert!(matches!(start(None).await, Err(StartError::Plaintext { .. })));
    let mut optional = trust.options();
    optional.allow_non_tls = true;
    assert!(matches!(start(Some(optional)).await, Err(StartError::Plaintext { .. })));
    let server = start(Some(trust.options())).await.expect("users and TLS");
    assert!(!server.nats_addr().ip().is_loopback());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_read_again_and_a_bad_one_changes_nothing() {
    let (former, later) = (Trust::make(), Trust::make());
    let source = |options: &mut trunkline_server::ServerOptions| {
        options.auth_source = Some(Arc::new(|| Ok(trunkline_server::AuthOptions::default())));
    };
    let server = server(former.options(), source).await;
    let mut before = Sealed::connect(server.nats_addr(), former.client(None)).await.expect("a handshake");
    assert_eq!(before.hello("").await.as_deref(), Some("PONG"));

    std::fs::write(&former.server.cert_file, "no certificate").expect("a file");
    let error = server.reload_from_source().await.expect_err("no certificate");
    assert!(matches!(error, ReloadError::Tls(TlsError::File { .. })), "{error:?}");
    assert!(Sealed::connect(server.nats_addr(), former.client(None)).await.is_ok());

    std::fs::copy(&later.server.cert_file, &former.server.cert_file).expect("a file");
    std::fs::copy(&later.server.key_file, &former.server.key_file).expect("a file");
    server.reload_from_source().await.expect("a certificate and its key");
    assert!(Sealed::connect(server.nats_addr(), former.client(None)).await.is_err());
    assert!(Sealed::connect(server.nats_addr(), later.client(None)).await.is_ok());
    before.send("PING\r\n").await;
    assert_eq!(before.line().await.as_deref(), Some("PONG"), "who is connected stays so");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_a_certificate_of_the_authority_are_refused() {
    let trust = Trust::make();
    let mut tls = trust.options();
    tls.clients = ClientCertificates::Required;
    tls.ca_file = Some(trust.authority.ca_file());
    let server = server(tls, |_| {}).await;
    let another = Authority::make();
    let stranger = another.sign(&["search"]);
    let own = trust.authority.sign(&["search"]);
    for (certificate, expected) in [(None, None), (Some(&stranger), None), (Some(&own), Some("PONG"))] {
        // In TLS 1.3 the refusal comes when the client takes the handshake for done.
        let answer = match Sealed::connect(server.nats_addr(), trust.client(certificate)).await {
            Ok(mut sealed) => answer(&mut sealed, "").await,
            Err(_) => None,
        };
        assert_eq!(answer.as_deref(), expected, "{certificate:?}");
    }
}

async fn answer(sealed: &mut Sealed, fields: &str) -> Option<String> {
    use tokio::io::AsyncWriteExt as _;
    let comma = if fields.is_empty() { "" } else { "," };
    let hello = format!("CONNECT {{\"verbose\":false{comma}{fields}}}\r\nPING\r\n");
    let _ = sealed.stream.write_all(hello.as_bytes()).await;
    let _ = sealed.stream.flush().await;
    sealed.line().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_says_which_user_a_client_is() {
    let trust = Trust::make();
    let mut tls = trust.options();
    tls.clients = ClientCertificates::Mapped;
    tls.ca_file = Some(trust.authority.ca_file());
    let yaml = format!(
        "{{tls: {{cert_file: {}, key_file: {}, ca_file: {}, verify_and_map: true}}, \
         auth: {{no_auth_user: bob}}, users: [{{user: search.tools, permissions: {{publish: [a]}}}}, {{user: 'O=Example, CN=Ann'}}, {{user: bob, password: pw}}]}}",
        path(&trust.server.cert_file),
        path(&trust.server.key_file),
        path(&trust.authority.ca_file()),
    );
    let server = server(tls, |options| options.auth = auth(&yaml)).await;
    let host = trust.authority.sign(&["search.tools"]);
    let subject = trust.authority.sign_with(&["nobody.here"], |params| {
        params.distinguished_name = Default::default();
        params.distinguished_name.push(trunkline_testkit::certificates::DnType::CommonName, "Ann");
        params.distinguished_name.push(trunkline_testkit::certificates::DnType::OrganizationName, "Example");
    });
    let nobody = trust.authority.sign(&["elsewhere.tools"]);
    // Without a word, too: before CONNECT as well as with an empty one.
    let mut silent =
        Sealed::connect(server.nats_addr(), trust.client(Some(&nobody))).await.expect("a handshake");
    silent.send("PING\r\n").await;
    assert_eq!(silent.line().await.as_deref(), Some("-ERR 'Authorization Violation'"));
    let violation = "-ERR 'Authorization Violation'";
    let password = "\"user\":\"bob\",\"pass\":\"pw\"";
    let cases = [
        (&host, "", "PONG"),
        (&subject, "", "PONG"),
        (&nobody, "", violation),
        (&nobody, password, violation),
        // What it says of itself does not matter.
        (&host, "\"user\":\"bob\",\"pass\":\"wrong\"", "PONG"),
    ];
    let mut connected = Vec::new();
    for (certificate, fields, expected) in cases {
        let mut sealed =
            Sealed::connect(server.nats_addr(), trust.client(Some(certificate))).await.expect("a handshake");
        assert_eq!(answer(&mut sealed, fields).await.as_deref(), Some(expected), "{certificate:?} {fields}");
        connected.push(sealed);
    }
    connected[0].send("PUB b 0\r\n\r\n").await;
    assert_eq!(
        connected[0].line().await.as_deref(),
        Some("-ERR 'Permissions Violation for Publish to \"b\"'")
    );
    let http = server.http_addr().expect("served by default");
    let connz = client::json(http, "/connz?auth=1").await;
    // Those that were refused may not have noticed yet.
    let all = connz["connections"].as_array().expect("a list");
    let admitted = all.iter().filter(|connection| connection.get("name_tag").is_some());
    let users: Vec<_> = admitted.map(|connection| connection["authorized_user"].clone()).collect();
    assert_eq!(users, ["search.tools", "O=Example, CN=Ann", "search.tools"], "{connz}");
}
