//! Keys of the configuration file that clients and scripts see something of: the same file, the same conversation, and both
//! servers say the same.

use std::process::Command;

use nix::sys::signal::Signal;
use trunkline_testkit::environment;

use crate::command::{start, text};

use super::tls::{certified, run};
use super::{Place, theirs};

/// What the conversations are made of. `nats`, `http` and `web` are the addresses of the server, `more` is what else a
/// conversation is told.
const PRELUDE: &str = r#"
import hashlib, json, os, socket, ssl, struct, sys, urllib.error, urllib.request
nats, http, web, *more = sys.argv[1:]

def dial(url=nats):
    host, port = url.split("://")[1].split(":")
    return socket.create_connection((host, int(port)), timeout=20)

def line(s):
    read = b""
    while not read.endswith(b"\r\n"):
        byte = s.recv(1)
        if not byte:
            return None
        read += byte
    return read.decode().strip()

def rest(s):
    lines = []
    try:
        while (said := line(s)) is not None:
            lines.append(said)
            if said == "PONG":
                break
    except ConnectionResetError:
        pass
    return lines

def connect(s, **options):
    s.sendall(("CONNECT %s\r\n" % json.dumps({"verbose": False, "pedantic": False, **options})).encode())

def get(path):
    try:
        answer = urllib.request.urlopen(http + path, timeout=20)
        return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""

def secured(s, version=None, ciphers=None, curve=None, name=None, certificate=None):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version:
        context.minimum_version = context.maximum_version = version
    if ciphers:
        context.set_ciphers(ciphers)
    if curve:
        context.set_ecdh_curve(curve)
    if certificate:
        context.load_cert_chain(*certificate.split("|"))
    return context.wrap_socket(s, server_hostname=name)
"#;

/// What a conversation prints with our server, which is what it prints with theirs.
#[track_caller]
fn check(place: &Place, config: &str, conversation: &str, more: &[&str]) -> Vec<String> {
    place.write("server.conf", config);
    let [ours, theirs] = [("ours", place.ours()), ("theirs", theirs())].map(|(name, program)| {
        let _ = std::fs::remove_file(place.path().join(format!("{name}.log")));
        let (running, ports) = run(place, &program, name, &["-c", "server.conf", "-m", "-1"]);
        let url = |list: &str| ports[list][0].as_str().unwrap_or_default().to_owned();
        let mut client = Command::new(environment::python());
        client.args(["-c", &format!("{PRELUDE}\n{conversation}")]).current_dir(place.path());
        client.args([&url("nats"), &url("monitoring"), &url("websocket")]).args(more);
        let ended = start(client, b"").end();
        assert_eq!(ended.code(), 0, "{name}, {config}: {}", ended.stderr);
        running.signal(Signal::SIGTERM);
        running.end();
        ended.lines()
    });
    assert!(!ours.is_empty(), "{config}");
    assert_eq!(ours, theirs, "{config}");
    ours
}

#[test]
fn a_subscription_of_too_many_tokens_is_refused() {
    let said = check(
        &Place::new(),
        "max_sub_tokens: 2",
        r#"
s = dial(); line(s); connect(s)
s.sendall(b"SUB a.b 1\r\nSUB a.b.c 2\r\nSUB a.b.> 3\r\nSUB a.> 4\r\nSUB *.*.* q 5\r\nPING\r\n")
print(*rest(s), sep="\n")
print(*sorted(json.loads(get("/connz?subs=1")[1])["connections"][0]["subscriptions_list"]))
"#,
        &[],
    );
    assert_eq!(said[0], "-ERR 'Permissions Violation for Subscription to \"a.b.c\", too many tokens'");
    assert_eq!(said.last().expect("lines"), "a.> a.b");
}

#[test]
fn without_headers_nobody_may_use_them() {
    let said = check(
        &Place::new(),
        "no_header_support: true",
        r#"
s = dial()
print(json.loads(line(s)[5:])["headers"])
connect(s, headers=True, no_responders=True)
print(*rest(s))
s = dial(); line(s); connect(s, headers=True)
s.sendall(b"SUB a 1\r\nPUB a 2\r\nhi\r\nPING\r\n")
print(*rest(s))
s.sendall(b"HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPING\r\n")
print("served" if "PONG" in rest(s) else "closed")
"#,
        &[],
    );
    assert_eq!(
        said,
        ["False", "-ERR 'no responders requires headers support'", "MSG a 1 2 hi PONG", "closed"]
    );
}

#[test]
fn monitoring_is_served_under_its_base_path() {
    let said = check(
        &Place::new(),
        "http_base_path: /nats",
        r#"
for path in ["/nats", "/nats/varz", "/nats/connz?limit=1", "/nats/healthz", "/nats/jsz", "/varz", "/healthz", "/", "/natsvarz",
             "/nats/nope", "//nats//varz", "/nats/varz/"]:
    print(path, get(path)[0])
print(*[path for path in json.loads(get("/nats/varz")[1])["http_req_stats"] if "varz" in path])
"#,
        &[],
    );
    assert_eq!(said[..2], ["/nats 200", "/nats/varz 200"]);
    assert!(
        said.contains(&"/varz 404".to_owned()) && said.contains(&"//nats//varz 200".to_owned()),
        "{said:?}"
    );
}

#[test]
fn so_many_clients_that_left_are_remembered() {
    let said = check(
        &Place::new(),
        "max_closed_clients: 2",
        r#"
closed = []
for name in "abcd":
    s = dial(); line(s); connect(s, name=name)
    s.sendall(b"PING\r\n"); rest(s); s.close()
    while name not in closed:
        closed = [c["name"] for c in json.loads(get("/connz?state=closed")[1])["connections"]]
print(*closed)
"#,
        &[],
    );
    assert_eq!(said, ["c d"]);
}

#[test]
fn clients_over_websocket_may_be_pinged_at_a_pace_of_their_own() {
    check(
        &Place::new(),
        "ping_interval: \"1h\"\nwebsocket { listen: \"127.0.0.1:-1\", no_tls: true, ping_interval: \"200ms\" }",
        r#"
s = dial(web)
s.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
          b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
while line(s):
    pass
said = b'CONNECT {"verbose":false}\r\nPING\r\n'
s.sendall(bytes([0x82, 0x80 | len(said)]) + bytes(4) + said)
read = b""
while b"PING\r\n" not in read:
    got = s.recv(4096)
    assert got, read
    read += got
print("PING")
"#,
        &[],
    );
}

#[test]
fn each_client_is_shown_the_certificate_for_its_name() {
    let place = Place::new();
    let (authority, first) = certified(&place);
    let second = authority.sign(&["two.example"]);
    let said = check(
        &place,
        &format!(
            "tls {{ certs: [{{cert_file: \"{}\", key_file: \"{}\"}}, {{cert_file: \"{}\", key_file: \"{}\"}}] }}",
            text(&first.cert_file),
            text(&first.key_file),
            text(&second.cert_file),
            text(&second.key_file)
        ),
        r#"
files = [hashlib.sha256(ssl.PEM_cert_to_DER_cert(open(file).read().split("-----END")[0] + "-----END CERTIFICATE-----\n")).hexdigest()
         for file in more]
for name in [None, "localhost", "two.example", "other.example"]:
    s = dial(); line(s)
    print(name, files.index(hashlib.sha256(secured(s, name=name).getpeercert(True)).hexdigest()))
"#,
        &[text(&first.cert_file), text(&second.cert_file)],
    );
    assert_eq!(said, ["None 0", "localhost 0", "two.example 1", "other.example 0"]);
}

#[test]
fn ciphers_and_groups_are_those_that_are_named() {
    let place = Place::new();
    let _authority = certified(&place);
    let said = check(
        &place,
        "tls { cert_file: server.pem, key_file: key.pem, curve_preferences: [CurveP384, CurveP521],
               cipher_suites: [\"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\", \"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384\"] }",
        r#"
for version, ciphers, curve in [
    (ssl.TLSVersion.TLSv1_2, "ECDHE+AES128+AESGCM", None), (ssl.TLSVersion.TLSv1_2, "ECDHE+AES256+AESGCM", None),
    (ssl.TLSVersion.TLSv1_2, "ECDHE+AES256+AESGCM", "prime256v1"), (ssl.TLSVersion.TLSv1_3, None, "secp384r1"),
    (ssl.TLSVersion.TLSv1_3, None, None), (ssl.TLSVersion.TLSv1_3, None, "prime256v1"),
]:
    s = dial(); line(s)
    try:
        print(secured(s, version, ciphers, curve).version())
    except (ssl.SSLError, ConnectionResetError):
        print("refused")
"#,
        &[],
    );
    assert_eq!(said, ["refused", "TLSv1.2", "refused", "TLSv1.3", "TLSv1.3", "refused"]);
}

#[test]
fn of_the_certificates_that_are_signed_those_that_are_pinned_count() {
    let place = Place::new();
    let (authority, _) = certified(&place);
    let (ann, bob) = (authority.sign(&["ann"]), authority.sign(&["bob"]));
    let pair = |certificate: &trunkline_testkit::certificates::Certificate| {
        format!("{}|{}", text(&certificate.cert_file), text(&certificate.key_file))
    };
    let (ann, bob) = (pair(&ann), pair(&bob));
    let tls = "cert_file: server.pem, key_file: key.pem, ca_file: ca.pem, verify: true";
    let key = check(
        &place,
        &format!("tls {{ {tls} }}"),
        r#"
s = dial(); line(s)
s = secured(s, certificate=more[0]); connect(s); s.sendall(b"PING\r\n"); rest(s)
print(json.loads(get("/connz?auth=1")[1])["connections"][0]["tls_peer_certs"][0]["spki_sha256"])
"#,
        &[&ann],
    );
    let said = check(
        &place,
        // Digits are read in either case.
        &format!("tls {{ {tls}, pinned_certs: [\"{}\"] }}", key[0].to_uppercase()),
        r#"
for certificate in more:
    s = dial(); line(s)
    s = secured(s, certificate=certificate)
    try:
        connect(s); s.sendall(b"PING\r\n")
        said = rest(s)
    except (ssl.SSLError, ConnectionError):
        said = []
    print(said)
while "TLS Handshake Failure" not in [c["reason"] for c in json.loads(get("/connz?state=closed")[1])["connections"]]:
    pass
"#,
        &[&ann, &bob],
    );
    assert_eq!(said, ["['PONG']", "[]"]);
    let log = place.read("ours.log");
    assert!(log.contains("TLS handshake error: certificate not pinned"), "{log}");
}

#[test]
fn no_more_handshakes_begin_within_a_second_than_may() {
    let place = Place::new();
    let _authority = certified(&place);
    let said = check(
        &place,
        "tls { cert_file: server.pem, key_file: key.pem, connection_rate_limit: 1 }",
        r#"
sockets = [dial() for _ in range(6)]
print(*{said for s in sockets for said in rest(s) if "throttling" in said})
"#,
        &[],
    );
    assert_eq!(said, ["-ERR 'Connection throttling is active. Please try again later.'"]);
    let log = place.read("ours.log");
    assert!(log.contains(" connections due to TLS rate limiting"), "{log}");
}
