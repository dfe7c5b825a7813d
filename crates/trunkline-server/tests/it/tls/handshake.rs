//! When the handshake comes, and what becomes of those who do not do it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;
use trunkline::config::{HandshakeFirst, TlsVersion};
use trunkline_server::ClientCertificates;
use trunkline_testkit::NatsServer;

use super::super::client::{self, Raw};
use super::{Sealed, Trust, info, server};

const REFUSAL: &str = "-ERR 'Secure Connection - TLS Required'\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn info_says_what_is_asked_for() {
    let trust = Trust::make();
    let mut verified = trust.options();
    verified.clients = ClientCertificates::Required;
    verified.ca_file = Some(trust.authority.ca_file());
    let mut optional = trust.options();
    optional.allow_non_tls = true;
    let cases = [
        (trust.options(), json!([true, null, null])),
        (verified, json!([true, true, null])),
        (optional, json!([null, null, true])),
    ];
    for (tls, expected) in cases {
        let server = server(tls, |_| {}).await;
        let info = info(server.nats_addr()).await;
        assert_eq!(
            json!([info["tls_required"], info["tls_verify"], info["tls_available"]]),
            expected,
            "{info}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_tls_is_told_why_it_is_refused() {
    let trust = Trust::make();
    let server = server(trust.options(), |_| {}).await;
    let mut raw = Raw::connect(server.nats_addr()).await;
    raw.send("CONNECT {\"verbose\":false}\r\nPING\r\n").await;
    assert_eq!(raw.until_closed().await, REFUSAL);
    let http = server.http_addr().expect("served by default");
    drop(raw);
    let seen = async {
        loop {
            // Every look is a round trip; the connection is over a moment after its client is.
            let closed = client::json(http, "/connz?state=closed").await;
            if let Some(connection) = closed["connections"].get(0) {
                return connection.clone();
            }
        }
    };
    let connection = client::within("the end of the connection", seen).await;
    assert_eq!(connection["reason"], "TLS Handshake Failure", "{connection}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_tls_is_optional_both_are_served_and_hear_each_other() {
    let trust = Trust::make();
    let mut tls = trust.options();
    tls.allow_non_tls = true;
    let server = server(tls, |_| {}).await;
    let mut plain = Raw::ready(server.nats_addr(), "").await;
    plain.send("SUB a 1\r\nPING\r\n").await;
    plain.expect("PONG\r\n").await;
    let mut sealed = Sealed::connect(server.nats_addr(), trust.client(None)).await.expect("a handshake");
    assert_eq!(sealed.hello("").await.as_deref(), Some("PONG"));
    sealed.send("PUB a 2\r\nhi\r\n").await;
    plain.expect("MSG a 1 2\r\nhi\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_its_own_connection_alone() {
    let trust = Trust::make();
    let mut first = trust.options();
    first.handshake_first = HandshakeFirst::Always;
    for tls in [trust.options(), first.clone()] {
        let always = tls == first;
        let server = server(tls, |_| {}).await;
        for garbage in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x16GET / HTTP/1.1\r\n\r\n", &[0x16; 4096]] {
            let mut raw = Raw::without_info(server.nats_addr()).await;
            let _ = raw.try_send(garbage).await;
            // At most an alert comes back, behind INFO where that is first.
            let told = raw.until_closed().await;
            assert_eq!(told.contains("INFO"), !always, "{told:?}");
        }
        let mut good = match always {
            true => {
                let socket = TcpStream::connect(server.nats_addr()).await.expect("the server listens");
                let mut good = Sealed::first(socket, trust.client(None)).await.expect("a handshake");
                let line = good.line().await.expect("INFO");
                assert!(line.starts_with("INFO {"), "{line}");
                good
            }
            false => Sealed::connect(server.nats_addr(), trust.client(None)).await.expect("a handshake"),
        };
        assert_eq!(good.hello("").await.as_deref(), Some("PONG"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_cut_off() {
    let trust = Trust::make();
    let within = Duration::from_millis(300);
    for begins in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"] {
        let mut tls = trust.options();
        tls.timeout = within;
        let server = server(tls, |_| {}).await;
        let started = Instant::now();
        let mut raw = Raw::connect(server.nats_addr()).await;
        raw.send(begins).await;
        raw.until_closed().await;
        assert!(started.elapsed() >= within, "{:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_delay_the_first_byte_decides_what_is_first() {
    let trust = Trust::make();
    let mut tls = trust.options();
    tls.handshake_first = HandshakeFirst::Within(Duration::from_millis(200));
    let server = server(tls, |_| {}).await;
    let socket = TcpStream::connect(server.nats_addr()).await.expect("the server listens");
    let mut first = Sealed::first(socket, trust.client(None)).await.expect("a handshake");
    assert!(first.line().await.expect("INFO").starts_with("INFO {"));
    assert_eq!(first.hello("").await.as_deref(), Some("PONG"));
    let mut later = Sealed::connect(server.nats_addr(), trust.client(None)).await.expect("a handshake");
    assert_eq!(later.hello("").await.as_deref(), Some("PONG"));
    let http = server.http_addr().expect("served by default");
    let connz = client::json(http, "/connz").await;
    let firsts: Vec<_> =
        connz["connections"].as_array().expect("a list").iter().map(|c| c["tls_first"] == true).collect();
    assert_eq!(firsts, [true, false], "{connz}");
    assert_eq!(connz["connections"][0]["tls_version"], "1.3", "{connz}");
}

/// `auto` waits for 50 ms, as nats-server does: long enough for who begins with the handshake, and who waits for INFO is not
/// kept waiting.
#[tokio::test(flavor = "multi_thread")]
async fn auto_is_the_time_that_nats_server_waits_for() {
    const WAIT: Duration = Duration::from_millis(50);
    let trust = Trust::make();
    let mut tls = trust.options();
    tls.handshake_first = HandshakeFirst::AUTO;
    let ours = server(tls, |_| {}).await;
    let (cert, key) = (trust.options().cert_file, trust.options().key_file);
    let section = format!("tls {{ cert_file: {cert:?}, key_file: {key:?}, handshake_first: auto }}\n");
    let theirs = NatsServer::start_with_config(&section);
    for address in [ours.nats_addr(), SocketAddr::from(([127, 0, 0, 1], theirs.port()))] {
        let started = Instant::now();
        let silent = Raw::connect(address).await;
        assert!(started.elapsed() >= WAIT, "{:?}", started.elapsed());
        drop(silent);
        // On a machine that is busy a client may be late.
        let mut first = None;
        while first.is_none() {
            let socket = TcpStream::connect(address).await.expect("the server listens");
            first = Sealed::first(socket, trust.client(None)).await.ok();
        }
        let mut first = first.expect("a handshake");
        assert!(first.line().await.expect("INFO").starts_with("INFO {"));
        assert_eq!(first.hello("").await.as_deref(), Some("PONG"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_older_than_the_oldest_are_refused() {
    let trust = Trust::make();
    let mut tls = trust.options();
    tls.min_version = TlsVersion::V13;
    let server = server(tls, |_| {}).await;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("a version")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    assert!(Sealed::connect(server.nats_addr(), std::sync::Arc::new(old)).await.is_err());
    assert!(Sealed::connect(server.nats_addr(), trust.client(None)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_slow_reader_has_not_taken_comes_in_order_and_whole() {
    const MESSAGES: usize = 48;
    const BYTES: usize = 256 << 10;
    let trust = Trust::make();
    let server = server(trust.options(), |_| {}).await;
    let mut reader = Sealed::connect(server.nats_addr(), trust.client(None)).await.expect("a handshake");
    assert_eq!(reader.hello("").await.as_deref(), Some("PONG"));
    reader.send("SUB big 1\r\nPING\r\n").await;
    assert_eq!(reader.line().await.as_deref(), Some("PONG"));
    let mut writer = Sealed::connect(server.nats_addr(), trust.client(None)).await.expect("a handshake");
    assert_eq!(writer.hello("").await.as_deref(), Some("PONG"));
    let payload = |n: usize| -> Vec<u8> { (0..BYTES).map(|i| (i * 31 + n) as u8).collect() };
    for n in 0..MESSAGES {
        writer.send(format!("PUB big {BYTES}\r\n")).await;
        writer.send(payload(n)).await;
        writer.send("\r\n").await;
    }
    writer.send("PING\r\n").await;
    // Nothing has been read by now, and sockets do not hold twelve megabytes.
    assert_eq!(writer.line().await.as_deref(), Some("PONG"));
    for n in 0..MESSAGES {
        assert_eq!(reader.line().await, Some(format!("MSG big 1 {BYTES}")));
        assert!(reader.take(BYTES).await == payload(n), "message {n} is not what was sent");
        assert_eq!(reader.take(2).await, b"\r\n");
    }
    reader.send("PING\r\n").await;
    assert_eq!(reader.line().await.as_deref(), Some("PONG"));
}
