//! `trunkline up` with TLS and WebSocket from a configuration file, met by stock clients.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;
use trunkline_testkit::Authority;
use trunkline_testkit::clients::{ClientLibrary, ScenarioRun};
use trunkline_testkit::servers::TrunklineServer;

use crate::command::{Ended, command, start, text};

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

/// A command that finds what servers of this user have left in `runtime`.
fn asking(runtime: &Path, arguments: &[&str]) -> Ended {
    let mut command = command(arguments);
    command.env("XDG_RUNTIME_DIR", runtime);
    start(command, b"").end()
}

#[test]
fn commands_ask_over_https_whom_they_have_a_reason_to_trust() {
    let authority = Authority::make();
    // As clients elsewhere know the server, and not by the loopback.
    let certificate = authority.sign(&["bus.example.org"]);
    let directory = tempfile::tempdir().unwrap();
    let (file, runtime) = (directory.path().join("config.yaml"), tempfile::tempdir().unwrap());
    for (from, to) in [(&certificate.cert_file, "cert.pem"), (&certificate.key_file, "key.pem")] {
        std::fs::copy(from, directory.path().join(to)).unwrap();
    }
    let content = "server:\n  listen: '127.0.0.1:0'\n  http: '127.0.0.1:0'\n  auth: {admin_token: opens}\n  \
                   tls: {cert_file: cert.pem, key_file: key.pem, http: true, allow_non_tls: true}\n";
    std::fs::write(&file, content).unwrap();
    let mut up = command(&["up", "--config", text(&file), "--ports-file", "ports.json"]);
    up.env("XDG_RUNTIME_DIR", runtime.path()).current_dir(directory.path());
    let mut up = start(up, b"");
    up.until_it_says("is ready");
    let ports = std::fs::read(directory.path().join("ports.json")).unwrap();
    let ports: Value = serde_json::from_slice(&ports).unwrap();
    let (http, nats) = (ports["http"].as_str().unwrap(), ports["nats"].as_str().unwrap());
    let by_name = http.replace("127.0.0.1", "localhost");

    // The server's own certificate, whatever it is for, also after it was replaced.
    asking(runtime.path(), &["status", "--http", http]).ok();
    let renewed = authority.sign(&["bus.example.org"]);
    for (from, to) in [(&renewed.cert_file, "cert.pem"), (&renewed.key_file, "key.pem")] {
        std::fs::copy(from, directory.path().join(to)).unwrap();
    }
    up.signal(Signal::SIGHUP);
    up.until_it_says("users and permissions are in force");
    let places = [["--http", http], ["--http", &by_name], ["--url", nats]];
    for place in places {
        for ask in [&["trace", "--list"][..], &["dashboard"], &["stream", "ls"]] {
            asking(runtime.path(), &[ask, &place].concat()).ok();
        }
    }
    let status: Value =
        serde_json::from_slice(&asking(runtime.path(), &["status", "--http", http, "--json"]).ok()).unwrap();
    assert_eq!(status["ready"], true);
    let mut tail = command(&["tail", "--http", http, "--json"]);
    tail.env("XDG_RUNTIME_DIR", runtime.path());
    let mut tail = start(tail, b"");
    tail.until_it_says("following");
    asking(runtime.path(), &["pub", "--url", nats, "nachos.seen", "over TLS"]).ok();
    tail.until_it_has_printed(1);

    // Who knows nothing of this server asks for the authority of its certificate, and for a name that it is for.
    let elsewhere = tempfile::tempdir().unwrap();
    let ca = authority.ca_file();
    for (trusting, reason) in [
        (&[][..], "nobody who is trusted here has signed it"),
        (&["--tls-ca", text(&ca)], "bus.example.org"),
        (&["--tls-ca", text(&renewed.cert_file)], "bus.example.org"),
        (&["--tls-ca", text(&renewed.key_file)], "has no certificate"),
    ] {
        for ask in
            [&["status"][..], &["trace", "--list", "--token", "opens"], &["dlq", "ls", "--token", "opens"]]
        {
            let refused = asking(elsewhere.path(), &[ask, &["--http", http], trusting].concat());
            assert_eq!(refused.code(), 1, "{refused:?}");
            assert!(
                refused.stderr.contains(reason) && refused.stderr.contains("--tls-ca takes"),
                "{refused:?}"
            );
        }
    }
    let there = asking(
        elsewhere.path(),
        &["stream", "ls", "--token", "opens", "--http", &http.replace("https:", "http:")],
    );
    assert!(there.stderr.contains("begins with https://"), "{there:?}");
}

#[test]
fn an_authority_that_is_given_is_trusted_for_the_names_it_has_signed() {
    let authority = Authority::make();
    let certificate = authority.sign(&["localhost", "127.0.0.1"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    let content = format!(
        "server: {{auth: {{admin_token: opens}}, tls: {{cert_file: {}, key_file: {}, http: true}}}}\n",
        certificate.cert_file.display(),
        certificate.key_file.display()
    );
    std::fs::write(&file, content).unwrap();
    let server =
        TrunklineServer::start(Path::new(env!("CARGO_BIN_EXE_trunkline")), ["--config", text(&file)]);
    let elsewhere = tempfile::tempdir().unwrap();
    let ports = std::fs::read(server.directory().join("trunkline.ports")).unwrap();
    let ports: Value = serde_json::from_slice(&ports).unwrap();
    let http = ports["http"].as_str().expect("a URL");
    let ca = authority.ca_file();
    for trusted in [&ca, &certificate.cert_file] {
        for ask in
            [&["status"][..], &["trace", "--list", "--token", "opens"], &["dlq", "ls", "--token", "opens"]]
        {
            asking(elsewhere.path(), &[ask, &["--http", http, "--tls-ca", text(trusted)]].concat()).ok();
        }
    }
}
