//! `trunkline up` with TLS and WebSocket from a configuration file, met by stock clients.

use std::path::Path;

use serde_json::Value;
use trunkline_testkit::Authority;
use trunkline_testkit::clients::{ClientLibrary, ScenarioRun};
use trunkline_testkit::servers::TrunklineServer;

use crate::command::start;

const SCENARIO: &str = "request_gets_its_own_reply";

#[test]
fn up_serves_tls_and_websocket_as_configured() {
    let authority = Authority::make();
    let certificate = authority.sign(&["localhost", "127.0.0.1"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    let content = format!(
        "server:\n  tls: {{cert_file: {}, key_file: {}, http: true}}\n  websocket: {{listen: '127.0.0.1:0'}}\n",
        certificate.cert_file.display(),
        certificate.key_file.display()
    );
    std::fs::write(&file, content).unwrap();
    let config = file.to_str().unwrap();
    let server = TrunklineServer::start(Path::new(env!("CARGO_BIN_EXE_trunkline")), ["--config", config]);
    let ca = authority.ca_file();
    let ca = ca.to_str().unwrap();

    let nats = format!("nats://localhost:{}", server.port());
    ScenarioRun::start_with(ClientLibrary::NatsPy, SCENARIO, &nats, &[("SCENARIO_TLS_CA", ca)]).finish();

    let ports = std::fs::read(server.directory().join("trunkline.ports")).unwrap();
    let ports: Value = serde_json::from_slice(&ports).unwrap();
    let websocket = ports["websocket"].as_str().expect("a websocket URL");
    assert!(websocket.starts_with("wss://127.0.0.1:"), "{ports}");
    ScenarioRun::start_with(ClientLibrary::WebSocket, SCENARIO, websocket, &[("NODE_EXTRA_CA_CERTS", ca)])
        .finish();

    let http = ports["http"].as_str().expect("a URL");
    assert!(http.starts_with("https://127.0.0.1:"), "{ports}");
    let script = "import ssl, sys, urllib.request\n\
                  context = ssl.create_default_context(cafile=sys.argv[2])\n\
                  print(urllib.request.urlopen(sys.argv[1], timeout=20, context=context).read().decode())";
    let mut https = std::process::Command::new(trunkline_testkit::environment::python());
    https.args(["-c", script, &format!("{http}/healthz"), ca]);
    assert_eq!(start(https, b"").end().json()[0]["status"], "ok");

    let key = std::fs::read_to_string(&certificate.key_file).unwrap();
    let secret = key.lines().nth(1).expect("a line of the key");
    assert!(!server.log().contains(secret));
}
