//! TLS, WebSocket and HTTPS under the name nats-server, beside the real one: the same flags, files and lines.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use trunkline_testkit::Authority;
use trunkline_testkit::certificates::Certificate;
use trunkline_testkit::clients::{ClientLibrary, ScenarioRun};

use crate::command::{Running, start};

use super::running::{told, wait_for};
use super::{Place, theirs};

const SCENARIO: &str = "request_gets_its_own_reply";

/// Certificates in the directory of the servers, by short names.
pub(super) fn certified(place: &Place) -> (Authority, Certificate) {
    let authority = Authority::make();
    let server = authority.sign(&["localhost", "127.0.0.1"]);
    for (from, to) in
        [(&server.cert_file, "server.pem"), (&server.key_file, "key.pem"), (&authority.ca_file(), "ca.pem")]
    {
        std::fs::copy(from, place.path().join(to)).expect("a copy");
    }
    (authority, server)
}

/// Starts a server with a log in a file, and waits until it is ready. Also what its ports file says.
pub(super) fn run(place: &Place, program: &Path, name: &str, arguments: &[&str]) -> (Running, Value) {
    let (log, pid) = (format!("{name}.log"), format!("{name}.pid"));
    let mut command: Command = place.command(program, arguments);
    command.args(["-a", "127.0.0.1", "-p", "-1", "-l", &log, "-P", &pid, "--ports_file_dir", "."]);
    let running = start(command, b"");
    let file = wait_for(|| {
        let log = std::fs::read_to_string(place.path().join(&log)).ok()?;
        log.contains("Server is ready").then_some(())?;
        let pid = std::fs::read_to_string(place.path().join(&pid)).ok()?;
        let ports = std::fs::read_to_string(place.path().join(format!("nats-server_{pid}.ports"))).ok()?;
        serde_json::from_str::<Value>(&ports).ok()
    });
    (running, file)
}

/// A ports file with the numbers of ports left out.
fn without_ports(file: &Value) -> String {
    file.to_string().chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// What a log says of addresses and TLS, in its order.
fn addresses(log: &str) -> Vec<String> {
    let is_about = |line: &String| {
        ["Listening", "Starting http", "TLS ", "Websocket ", "Server is ready"]
            .iter()
            .any(|text| line.contains(text))
    };
    told(log).into_iter().filter(is_about).collect()
}

#[test]
fn lines_and_ports_files_are_those_of_nats_server() {
    let place = Place::new();
    let (_authority, _) = certified(&place);
    let tls = "tls { cert_file: server.pem, key_file: key.pem }\n";
    let flags = ["--tlscert", "server.pem", "--tlskey", "key.pem"];
    let cases: [(&str, &[&str]); 7] = [
        ("", &["--tls", "--tlscert", "server.pem", "--tlskey", "key.pem", "-m", "-1"]),
        ("", &["--tlsverify", "--tlscert=server.pem", "--tlskey=key.pem", "--tlscacert=ca.pem"]),
        ("https: \"127.0.0.1:-1\"\nwebsocket { listen: \"127.0.0.1:-1\", TLS }\n", &flags),
        ("allow_non_tls: true\nhttp: \"127.0.0.1:-1\"\nTLS", &[]),
        (
            "tls { cert_file: server.pem, key_file: key.pem, handshake_first: true }\nhttps: \"127.0.0.1:-1\"",
            &[],
        ),
        ("tls { cert_file: server.pem, key_file: key.pem, handshake_first: \"300ms\", timeout: 3 }", &[]),
        ("websocket { host: 127.0.0.1, port: -1, no_tls: true, same_origin: true }", &["-m", "-1"]),
    ];
    for (config, arguments) in cases {
        place.write("server.conf", &config.replace("TLS", tls));
        let arguments = [&["-c", "server.conf"], arguments].concat();
        let [ours, theirs] = [("ours", place.ours()), ("theirs", theirs())].map(|(name, program)| {
            let _ = std::fs::remove_file(place.path().join(format!("{name}.log")));
            let (running, ports) = run(&place, &program, name, &arguments);
            running.signal(Signal::SIGTERM);
            assert_eq!(running.end().code(), 0, "{name}");
            (without_ports(&ports), addresses(&place.read(&format!("{name}.log"))))
        });
        assert_eq!(ours, theirs, "{config} {arguments:?}");
    }
}

#[test]
fn mistakes_are_told_in_the_words_of_nats_server() {
    let place = Place::new();
    let _authority = certified(&place);
    let both = |arguments: &[&str]| {
        [place.ours(), theirs()].map(|program| {
            let ended = start(place.command(&program, arguments), b"").end();
            assert_eq!(ended.code(), 1, "{arguments:?}");
            ended
                .stderr
                .lines()
                .rfind(|line| !line.is_empty())
                .unwrap_or_default()
                .split("[FTL] ")
                .last()
                .unwrap_or_default()
                .to_owned()
        })
    };
    let pair = "--tlscert=server.pem";
    for arguments in [
        &["--tls"][..],
        &["--tls", pair],
        &["--tls", "--tlscert=missing.pem", "--tlskey=key.pem"],
        &["-ms", "8443"],
        &["-ms", "8443", "-m", "8222", pair, "--tlskey=key.pem"],
    ] {
        let [ours, theirs] = both(&[&["-p", "-1", "-a", "127.0.0.1"], arguments].concat());
        assert_eq!(ours, theirs, "{arguments:?}");
    }
    for content in [
        "tls { cert_file: server.pem }",
        "tls { key_file: key.pem }",
        "tls { cert_file: missing.pem, key_file: key.pem }",
        "tls { cert_file: server.pem, key_file: key.pem, bogus: 1 }",
        "tls { cert_file: server.pem, key_file: key.pem, ca_file: key.pem, verify: true }",
        "tls { cert_file: server.pem, key_file: key.pem, ca_file: missing.pem, verify: true }",
        "tls { cert_file: server.pem, key_file: key.pem, handshake_first: \"xyz\" }",
        "tls { cert_file: server.pem, key_file: key.pem, handshake_first: 300 }",
        "tls { cert_file: server.pem, key_file: key.pem, min_version: \"1.1\" }",
        "websocket: true",
        "authorization { users: [{user: a, password: b, allowed_connection_types: [standard, bogus, x]}] }",
        "websocket { listen: \"127.0.0.1:8080\", no_tls: true, bogus: 1 }",
    ] {
        place.write("t.conf", &format!("port: 4222\n{content}\n"));
        let both = [place.ours(), theirs()].map(|program| {
            let ended = start(place.command(&program, &["-t", "-c", "t.conf"]), b"").end();
            assert_eq!(ended.code(), 1, "{content}");
            ended.stderr
        });
        assert_eq!(both[0], both[1], "{content}");
    }
    place.write("t.conf", "websocket { port: 8080 }\n");
    let [ours, theirs] = both(&["-c", "t.conf", "-p", "-1", "-a", "127.0.0.1"]);
    assert!(ours.ends_with(theirs.trim_start_matches("nats-server: ")), "{ours} / {theirs}");
    for (content, key) in [
        ("websocket { port: 1, no_tls: true, no_auth_user: a }", "no_auth_user"),
        ("websocket { port: 1, no_tls: true, jwt_cookie: a }", "jwt_cookie"),
        ("websocket { port: 1, no_tls: true, authorization { token: a } }", "authorization"),
        ("tls { cert_file: server.pem, key_file: key.pem, ocsp_peer: true }", "ocsp_peer"),
        (
            "authorization { users: [{user: a, password: b, allowed_connection_types: [MQTT, LEAFNODE]}] }",
            "allowed_connection_types",
        ),
    ] {
        place.write("t.conf", content);
        let ended = start(place.command(&place.ours(), &["-t", "-c", "t.conf"]), b"").end();
        let text = format!("{key:?} is not supported by this server: ");
        assert!(ended.code() == 1 && ended.stderr.contains(&text), "{}", ended.stderr);
    }
    place.write("t.conf", "tls { cert_file: server.pem, key_file: key.pem, verify: true }");
    let ended = start(place.command(&place.ours(), &["-t", "-c", "t.conf"]), b"").end();
    assert!(
        ended.code() == 1 && ended.stderr.contains("need 'ca_file'"),
        "nobody is let in: {}",
        ended.stderr
    );
}

fn url(ports: &Value, list: &str) -> String {
    ports[list][0].as_str().unwrap_or_else(|| panic!("no {list} in {ports}")).to_owned()
}

/// The answer to a GET, over TLS if the URL says so.
fn get(url: &str, authority: &Authority) -> Value {
    let script = "import sys, ssl, json, urllib.request\n\
                  context = ssl.create_default_context(cafile=sys.argv[2])\n\
                  print(urllib.request.urlopen(sys.argv[1], timeout=20, context=context).read().decode())";
    let ca = authority.ca_file();
    let mut command = Command::new(trunkline_testkit::environment::python());
    command.args(["-c", script, url]).arg(ca);
    let ended = start(command, b"").end();
    assert_eq!(ended.code(), 0, "{url}: {ended:?}");
    serde_json::from_str(&ended.lines().join("\n")).expect("JSON")
}

#[test]
fn stock_clients_come_by_tls_and_websocket_and_monitoring_is_read_over_https() {
    let place = Place::new();
    let (authority, _) = certified(&place);
    let tls = "tls { cert_file: server.pem, key_file: key.pem }";
    place.write(
        "server.conf",
        &format!("{tls}\nhttps: \"127.0.0.1:-1\"\nwebsocket {{ listen: \"127.0.0.1:-1\", {tls} }}\n"),
    );
    let (running, ports) = run(&place, &place.ours(), "ours", &["-c", "server.conf"]);
    let ca = authority.ca_file();
    let ca = ca.to_str().expect("a path that is text");
    let nats = url(&ports, "nats").replace("tls://127.0.0.1", "nats://localhost");
    ScenarioRun::start_with(ClientLibrary::NatsPy, SCENARIO, &nats, &[("SCENARIO_TLS_CA", ca)]).finish();
    let web = url(&ports, "websocket");
    assert!(web.starts_with("wss://"), "{ports}");
    ScenarioRun::start_with(ClientLibrary::WebSocket, SCENARIO, &web, &[("NODE_EXTRA_CA_CERTS", ca)])
        .finish();
    let http = url(&ports, "monitoring");
    assert!(http.starts_with("https://"), "{ports}");
    let varz = get(&format!("{http}/varz"), &authority);
    assert_eq!((&varz["tls_required"], &varz["http_port"]), (&Value::Bool(true), &0.into()), "{varz}");
    assert_eq!(varz["https_port"].to_string(), http.rsplit(':').next().expect("a port"));
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().code(), 0);
}

/// Sends CONNECT with this name and password to a port, over WebSocket where `web`, and says what comes back.
const LOG_IN: &str = "import sys, json, socket\n\
    port, web, user, password = int(sys.argv[1]), sys.argv[2] == 'web', sys.argv[3], sys.argv[4]\n\
    s = socket.create_connection(('127.0.0.1', port), timeout=20)\n\
    connect = {'verbose': False, 'user': user, 'pass': password} if user else {'verbose': False}\n\
    text = ('CONNECT %s\\r\\nPING\\r\\n' % json.dumps(connect)).encode()\n\
    if web:\n\
    \x20   s.sendall(b'GET / HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n'\n\
    \x20       b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n')\n\
    \x20   while b'\\r\\n\\r\\n' not in s.recv(4096, socket.MSG_PEEK): pass\n\
    \x20   text = bytes([0x82, 0x80 | len(text)]) + bytes(4) + text\n\
    s.sendall(text)\n\
    got = b''\n\
    while b'-ERR' not in got and b'PONG' not in got:\n\
    \x20   part = s.recv(4096)\n\
    \x20   if not part: break\n\
    \x20   got += part\n\
    print('PONG' if b'PONG' in got else got[got.find(b'-ERR'):].split(b'\\r')[0].decode())";

fn log_in(port: &str, way: &str, user: &str, password: &str) -> String {
    let mut command = Command::new(trunkline_testkit::environment::python());
    command.args(["-c", LOG_IN, port, way, user, password]);
    start(command, b"").end().lines().concat()
}

#[test]
fn users_come_by_the_connections_that_they_may() {
    let place = Place::new();
    let refused = "-ERR 'Authorization Violation'";
    place.write(
        "server.conf",
        "websocket { listen: \"127.0.0.1:-1\", no_tls: true, same_origin: true }\n\
         authorization { users: [\n\
           {user: standard, password: pw, allowed_connection_types: [STANDARD]}\n\
           {user: web, password: pw, allowed_connection_types: \"websocket\"}\n\
           {user: both, password: pw, allowed_connection_types: [\"STANDARD\", \"Websocket\", \"MQTT\"]}\n\
           {user: any, password: pw, allowed_connection_types: []}\n\
         ] }\n\
         no_auth_user: web\n",
    );
    for (name, program) in [("theirs", theirs()), ("ours", place.ours())] {
        let (running, ports) = run(&place, &program, name, &["-c", "server.conf"]);
        let port = |list| url(&ports, list).rsplit(':').next().expect("a port").to_owned();
        for (user, password, standard, web) in [
            ("standard", "pw", "PONG", refused),
            ("standard", "wrong", refused, refused),
            ("web", "pw", refused, "PONG"),
            ("both", "pw", "PONG", "PONG"),
            ("any", "pw", "PONG", "PONG"),
            ("", "", refused, "PONG"),
        ] {
            assert_eq!(log_in(&port("nats"), "tcp", user, password), standard, "{name}: {user}");
            assert_eq!(log_in(&port("websocket"), "web", user, password), web, "{name}: {user}");
        }
        running.signal(Signal::SIGTERM);
        running.end();
    }
}

/// A certificate that says who a client is goes for the listener that asks for one, and for no other.
#[test]
fn each_listener_asks_for_what_its_own_section_says() {
    let place = Place::new();
    let (authority, _) = certified(&place);
    authority.sign(&["ann.tools"]);
    place.write(
        "server.conf",
        "tls { cert_file: server.pem, key_file: key.pem, ca_file: ca.pem, verify_and_map: true }\n\
         websocket { listen: \"127.0.0.1:-1\", no_tls: true }\n\
         authorization { users: [ {user: ann.tools}, {user: bob, password: pw} ] }\n",
    );
    let (running, ports) = run(&place, &place.ours(), "ours", &["-c", "server.conf"]);
    // Who has no password is let in by a certificate alone.
    let script = "import sys, json, socket\n\
                  s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=20)\n\
                  s.sendall(b'GET / HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n'\n\
                  b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n')\n\
                  connect = {'verbose': False, 'user': sys.argv[2], 'pass': sys.argv[3]}\n\
                  text = ('CONNECT %s\\r\\nPING\\r\\n' % json.dumps(connect)).encode()\n\
                  s.sendall(bytes([0x82, 0x80 | len(text), 0, 0, 0, 0]) + text)\n\
                  got = b''\n\
                  while b'Violation' not in got and b'PONG' not in got:\n\
                  \x20   part = s.recv(4096)\n\
                  \x20   if not part: break\n\
                  \x20   got += part\n\
                  print('PONG' if b'PONG' in got else 'refused' if b'Authorization Violation' in got else got)";
    let port = url(&ports, "websocket").rsplit(':').next().expect("a port").to_owned();
    for (user, password, answer) in [
        ("bob", "pw", "PONG"),
        ("bob", "", "refused"),
        ("ann.tools", "", "refused"),
        ("ann.tools", "x", "refused"),
    ] {
        let mut command = Command::new(trunkline_testkit::environment::python());
        command.args(["-c", script, &port, user, password]);
        assert_eq!(start(command, b"").end().lines(), [answer], "{user} {password:?}");
    }
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().code(), 0);
}
