//! Stock clients over TLS, unmodified.

use std::net::SocketAddr;

use futures_util::StreamExt as _;
use trunkline::config::HandshakeFirst;
use trunkline_server::{ClientCertificates, Server};
use trunkline_testkit::clients::{ClientLibrary, ScenarioRun};

use super::super::client::within;
use super::{Trust, path, server};

/// Scenarios in which bytes could get lost, mixed up or stuck.
pub(crate) const SCENARIOS: [&str; 6] = [
    "headers_arrive_as_they_were_sent",
    "messages_of_one_publisher_keep_their_order",
    "request_gets_its_own_reply",
    "drained_connection_handles_and_sends_everything",
    "binary_payload_is_not_touched",
    "payload_of_exactly_one_mebibyte_passes",
];

/// Runs the scenarios with one client.
pub(crate) async fn run(library: ClientLibrary, url: String, variables: Vec<(&'static str, String)>) {
    let running = tokio::task::spawn_blocking(move || {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for scenario in SCENARIOS {
            ScenarioRun::start_with(library, scenario, &url, &variables).finish();
        }
    });
    running.await.expect("the scenarios hold");
}

fn url(server: &Server) -> String {
    named(server.nats_addr())
}

fn named(address: SocketAddr) -> String {
    format!("nats://localhost:{}", address.port())
}

fn ca(trust: &Trust) -> (&'static str, String) {
    ("SCENARIO_TLS_CA", path(&trust.authority.ca_file()).to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_clients_upgrade_after_info() {
    let trust = Trust::make();
    let server = server(trust.options(), |_| {}).await;
    for library in ClientLibrary::ALL {
        run(library, url(&server), vec![ca(&trust)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_clients_show_certificates() {
    let trust = Trust::make();
    let mut tls = trust.options();
    tls.clients = ClientCertificates::Required;
    tls.ca_file = Some(trust.authority.ca_file());
    let server = server(tls, |_| {}).await;
    let own = trust.authority.sign(&["client"]);
    let files = vec![
        ca(&trust),
        ("SCENARIO_TLS_CERT", path(&own.cert_file).to_owned()),
        ("SCENARIO_TLS_KEY", path(&own.key_file).to_owned()),
    ];
    for library in [ClientLibrary::NatsPy, ClientLibrary::TransportNode] {
        run(library, url(&server), files.clone()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_clients_do_the_handshake_first() {
    let trust = Trust::make();
    let mut tls = trust.options();
    tls.handshake_first = HandshakeFirst::Always;
    let server = server(tls, |_| {}).await;
    let first = ("SCENARIO_TLS_FIRST", "1".to_owned());
    for library in [ClientLibrary::NatsPy, ClientLibrary::TransportNode] {
        run(library, url(&server), vec![ca(&trust), first.clone()]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn async_nats_speaks_tls_in_either_order() {
    let trust = Trust::make();
    for first in [HandshakeFirst::Off, HandshakeFirst::Always] {
        let mut tls = trust.options();
        tls.handshake_first = first;
        let server = server(tls, |_| {}).await;
        let mut options = async_nats::ConnectOptions::new()
            .require_tls(true)
            .add_root_certificates(trust.authority.ca_file());
        if first == HandshakeFirst::Always {
            options = options.tls_first();
        }
        let connect = options.connect(format!("tls://localhost:{}", server.nats_addr().port()));
        let client = within("connect", connect).await.expect("a trusted server");
        let mut inbox = client.subscribe("a").await.expect("a subscription");
        client.publish("a", "hello".into()).await.expect("a connection");
        let message = within("the message", inbox.next()).await.expect("a message");
        assert_eq!(&message.payload[..], b"hello");
    }
}
