//! Monitoring beside nats-server's own, with everything on: TLS, WebSocket, accounts, permissions. What it has and is known
//! here has the same name, the same kind of value, and in lists the same number of entries.

use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Map, Value};
use trunkline_testkit::certificates::DnType;
use trunkline_testkit::{Authority, environment};

use crate::command::{Running, start, text};

use super::running::wait_for;
use super::{Place, theirs};

/// Fields for which there is nothing here: how the server was built, its system account, JetStream's disk, what accounts
/// import.
const NOT_HERE: [&str; 9] = [
    "/varz/git_commit",
    "/varz/go",
    "/varz/config_digest",
    "/varz/feature_flags",
    "/varz/system_account",
    "/varz/disk_io_wait_stats",
    "/accountz/system_account",
    "/accountz/accounts",
    "/accountz/account_detail/imports",
];

/// Fields whose values do not depend on when and where: they are the same, too.
const SAME: [&str; 31] = [
    "/varz/auth_required",
    "/varz/tags",
    "/varz/max_connections",
    "/varz/max_payload",
    "/varz/max_pending",
    "/varz/max_control_line",
    "/varz/ping_interval",
    "/varz/ping_max",
    "/varz/write_deadline",
    "/varz/connections",
    "/varz/in_msgs",
    "/varz/out_msgs",
    "/varz/in_bytes",
    "/varz/out_bytes",
    "/connz/total",
    "/connz/num_connections",
    "/connz/offset",
    "/connz/limit",
    "/connz/connections/kind",
    "/connz/connections/type",
    "/connz/connections/name",
    "/connz/connections/lang",
    "/connz/connections/version",
    "/connz/connections/reason",
    "/connz/connections/authorized_user",
    "/connz/connections/account",
    "/connz/connections/in_msgs",
    "/connz/connections/out_bytes",
    "/connz/connections/subscriptions",
    "/connz/connections/subscriptions_list",
    "/connz/connections/tls_peer_certs",
];

/// What is asked for. Paths whose answers count the system's own subscriptions there are asked for by account.
const PATHS: [&str; 65] = [
    "/varz",
    "/connz",
    "/connz?auth=1",
    "/connz?subs=1",
    "/connz?subs=detail&auth=1",
    "/connz?state=closed&auth=1",
    "/connz?state=any",
    "/connz?state=all",
    "/connz?sort=bytes_to&limit=1",
    "/connz?sort=stop&state=closed",
    "/connz?sort=reason&state=closed",
    "/connz?offset=1&limit=1",
    "/connz?offset=5",
    "/connz?acc=A&auth=1",
    "/connz?user=ann&auth=1",
    "/connz?user=ann",
    "/connz?user=nobody",
    "/connz?subs=DETAIL",
    "/connz?mqtt_client=x",
    "/connz?filter_subject=a.b&subs=1",
    "/connz?sort=",
    "/connz?limit=-1",
    "/connz?cid=99999",
    "/subsz",
    "/subsz?subs=1&test=a.b",
    "/subsz?test=a.b",
    "/subsz?acc=nobody&subs=1&test=a.b",
    "/subsz?subs=1&limit=1&offset=1",
    "/accountz",
    "/accountz?acc=A",
    "/accstatz",
    "/accstatz?unused=0",
    "/jsz",
    "/jsz?accounts=1&streams=1&consumers=1&config=1",
    "/healthz",
    "/healthz?js-enabled-only=true",
    "/healthz?js-server-only=true",
    "/routez",
    "/gatewayz",
    "/leafz",
    "/accountz?acc=nobody",
    "/connz?limit=x",
    "/connz?offset=x",
    "/connz?sort=x",
    "/connz?sort=stop",
    "/connz?state=x",
    "/connz?subs=x",
    "/connz?cid=x",
    "/connz?auth=x",
    "/subsz?limit=x",
    "/subsz?subs=x",
    "/subsz?test=a..b",
    "/subsz?test=a.*",
    "/connz?sort=CID",
    "/accstatz?unused=x",
    "/jsz?accounts=x",
    "/healthz?js-enabled-only=x",
    "/healthz?js-server-only=x",
    "/healthz?details=x",
    "/routez?subs=x",
    "/gatewayz?accs=x",
    "/leafz?subs=x",
    "/raftz",
    "/varz/",
    "/nonsense",
];

const CONFIG: &str = "
https: \"127.0.0.1:-1\"
websocket { listen: \"127.0.0.1:-1\", no_tls: true, same_origin: true, handshake_timeout: \"3s\" }
accounts {
  A { users: [ {user: ann, password: pw, permissions: {publish: \"a.>\", subscribe: \"a.>\"}} ] }
  B { users: [ {user: bob, password: pw} ] }
}
no_auth_user: bob
max_connections: 100
max_pending: 1MB
server_tags: [first, second]
";

/// A client over TLS, one over WebSocket, and one that is not let in; then the answers to all paths, as JSON.
const SCRIPT: &str = r#"
import json, socket, ssl, sys, urllib.request, urllib.error
nats, http, web, ca = sys.argv[1:5]
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain("client.pem", "client.key")
def port(url):
    return int(url.rsplit(":", 1)[1])
def until(s, end):
    got = b""
    while end not in got:
        part = s.recv(4096)
        if not part:
            break
        got += part
    return got
def tls():
    s = socket.create_connection(("127.0.0.1", port(nats)), timeout=20)
    info = b""
    while not info.endswith(b"\r\n"):
        info += s.recv(1)
    return context.wrap_socket(s, server_hostname="localhost")
def ask(path):
    try:
        with urllib.request.urlopen(http + path, timeout=20, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()

ann = tls()
ann.sendall(b'CONNECT {"verbose":false,"user":"ann","pass":"pw","name":"n","lang":"l","version":"1","headers":true}\r\n')
ann.sendall(b"SUB a.b q 1\r\nSUB a.* 2\r\nUNSUB 2 7\r\nPUB a.b 2\r\nhi\r\nPING\r\n")
assert b"PONG" in until(ann, b"PONG")
ann.sendall(b"PING\r\n")
assert b"PONG" in until(ann, b"PONG")
browser = socket.create_connection(("127.0.0.1", port(web)), timeout=20)
browser.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
until(browser, b"INFO")
hello = b'CONNECT {"verbose":false,"name":"browser"}\r\nSUB x.y 9\r\nPING\r\n'
browser.sendall(bytes([0x82, 0x80 | len(hello)]) + bytes(4) + hello)
assert b"PONG" in until(browser, b"PONG")
bad = tls()
bad.sendall(b'CONNECT {"verbose":false,"user":"ann","pass":"no"}\r\nPING\r\n')
assert b"Authorization Violation" in until(bad, b"Violation")
bad.close()
# Both have counted it once it is among the closed ones.
while not json.loads(ask("/connz?state=closed")[1])["connections"]:
    pass
print(json.dumps({path: ask(path) for path in sys.argv[5:]}))
"#;

/// A server that is ready, and where it listens.
fn started(place: &Place, program: &std::path::Path, name: &str) -> (Running, Value) {
    let arguments = ["-c", "server.conf", "-a", "127.0.0.1", "-p", "-1", "-P", name, "--ports_file_dir", "."];
    let mut running = start(place.command(program, &arguments), b"");
    running.until_it_says("Server is ready");
    let ports = wait_for(|| {
        let pid = std::fs::read_to_string(place.path().join(name)).ok()?;
        let ports = std::fs::read_to_string(place.path().join(format!("nats-server_{pid}.ports"))).ok()?;
        serde_json::from_str(&ports).ok()
    });
    (running, ports)
}

/// The answers of one server: status and text.
fn answers(place: &Place, program: &std::path::Path, name: &str) -> Map<String, Value> {
    let (running, ports) = started(place, program, name);
    let urls =
        ["nats", "monitoring", "websocket"].map(|list| ports[list][0].as_str().expect("a URL").to_owned());
    let mut client = Command::new(environment::python());
    client.args(["-c", SCRIPT]).args(urls).arg("ca.pem").args(PATHS).current_dir(place.path());
    let ended = start(client, b"").end();
    assert_eq!(ended.code(), 0, "{name}: {}", ended.stderr);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().code(), 0, "{name}");
    serde_json::from_str(&ended.lines().join("\n")).expect("JSON")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// One entry with the fields of all: entries leave out what they do not have.
fn united(entries: &[Value]) -> Value {
    Value::Object(entries.iter().filter_map(Value::as_object).flat_map(Map::clone).collect())
}

fn compare(path: &str, theirs: &Value, ours: &Value, differences: &mut Vec<String>) {
    if NOT_HERE.contains(&path) {
        return;
    }
    if SAME.contains(&path) && theirs != ours {
        return differences.push(format!("{path}: {theirs} there, {ours} here"));
    }
    if kind(theirs) != kind(ours) {
        return differences.push(format!("{path}: {theirs} there, {ours} here"));
    }
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (name, value) in theirs {
                let path = format!("{path}/{name}");
                match ours.get(name) {
                    Some(own) => compare(&path, value, own, differences),
                    None if NOT_HERE.contains(&path.as_str()) => {}
                    None => differences.push(format!("{path} is not here: {value}")),
                }
            }
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            if theirs.len() != ours.len() {
                differences.push(format!("{path}: {} there, {} here", theirs.len(), ours.len()));
            }
            compare(path, &united(theirs), &united(ours), differences);
        }
        _ => {}
    }
}

#[test]
fn answers_are_those_of_nats_server_with_everything_on() {
    let place = Place::new();
    let authority = Authority::make();
    let certificate = authority.sign(&["localhost", "127.0.0.1"]);
    std::fs::copy(authority.ca_file(), place.path().join("ca.pem")).expect("a copy");
    let (cert, key) = (text(&certificate.cert_file), text(&certificate.key_file));
    let shown = authority.sign_with(&["ann.test"], |params| {
        params.distinguished_name.push(DnType::OrganizationName, "Some, of <Example>");
        params.distinguished_name.push(DnType::CommonName, "ann");
        params.distinguished_name.push(DnType::CountryName, "NO");
    });
    for (from, name) in [(&shown.cert_file, "client.pem"), (&shown.key_file, "client.key")] {
        std::fs::copy(from, place.path().join(name)).expect("a copy");
    }
    let tls = format!("cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"ca.pem\", verify: true");
    place.write("server.conf", &format!("tls {{ {tls} }}\n{CONFIG}"));
    let ours = answers(&place, &place.ours(), "ours.pid");
    let theirs = answers(&place, &theirs(), "theirs.pid");
    let mut differences = Vec::new();
    for (path, there) in &theirs {
        let here = &ours[path];
        let (root, _) = path.split_once('?').unwrap_or((path, ""));
        if there[0] != here[0] {
            differences.push(format!("{path}: {there} there, {here} here"));
        } else if there[0] == 200 {
            let read = |answer: &Value| {
                let body = answer[1].as_str().expect("text");
                serde_json::from_str::<Value>(body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
            };
            let (there, here) = (read(there), read(here));
            let before = differences.len();
            compare(root, &there, &here, &mut differences);
            for difference in &mut differences[before..] {
                difference.insert_str(0, &format!("{path}: "));
            }
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
}

/// Connections that end in every way that the server has a name for; then what is shown of them, by their names.
const ENDINGS: &str = r#"
import json, socket, struct, sys, threading, time, urllib.request
nats, http = sys.argv[1:3]
def connect(name, fields='"user":"ann","pass":"pw"'):
    s = socket.create_connection(("127.0.0.1", int(nats.rsplit(":", 1)[1])), timeout=60)
    s.sendall(('CONNECT {"verbose":false,"name":"%s",%s}\r\nPING\r\n' % (name, fields)).encode())
    return s
def until(s, end):
    got = b""
    while end not in got:
        part = s.recv(65536)
        if not part:
            break
        got += part
    return got
def ended(s):
    try:
        until(s, b"\0")
    except ConnectionError:
        pass
    s.close()
def open_(name):
    s = connect(name)
    until(s, b"PONG\r\n")
    return s
def connz(query):
    with urllib.request.urlopen(http + "/connz?" + query, timeout=60) as answer:
        return json.load(answer)
closed = open_("closed")
closed.sendall(b"SUB a 1\r\nSUB b q 2\r\nPUB a 3\r\nabc\r\nPING\r\n")
until(closed, b"PONG\r\n")
closed.close()
reset = open_("reset")
reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
reset.close()
for name, bytes_ in [("unknown", b"NOPE\r\n"), ("arguments", b"PUB a -1\r\n"), ("error", b"-ERR 'x'\r\n"),
        ("payload", b"PUB a 99999999\r\n"), ("line", b"PUB " + b"a" * 9000 + b" 1\r\n")]:
    s = open_(name)
    s.sendall(bytes_)
    ended(s)
ended(connect("stranger", '"user":"ann","pass":"no"'))
silent = socket.create_connection(("127.0.0.1", int(nats.rsplit(":", 1)[1])), timeout=60)
stale = open_("stale")
slow = open_("slow")
slow.sendall(b"SUB flood 1\r\nPING\r\n")
until(slow, b"PONG\r\n")
flood = open_("flood")
# It answers PINGs, as nobody else does.
def answer():
    while flood.recv(65536):
        flood.sendall(b"PONG\r\n")
threading.Thread(target=answer, daemon=True).start()
while not any(c.get("name") == "slow" for c in connz("state=closed")["connections"]):
    flood.sendall((b"PUB flood 65536\r\n" + b"x" * 65536 + b"\r\n") * 16)
ended(silent)
ended(stale)
names = ["closed", "reset", "unknown", "arguments", "error", "payload", "line", "stranger", "stale", "slow", None]
# All of them are there at last: the server notices in its own time.
while True:
    gone = {c.get("name"): c for c in connz("state=closed&auth=1")["connections"]}
    if all(name in gone for name in names):
        break
    time.sleep(0.02)
fields = ["reason", "authorized_user", "lang", "subscriptions", "in_msgs", "in_bytes", "kind", "type"]
print(json.dumps({str(name): {field: gone[name].get(field) for field in fields} for name in names}))
"#;

#[test]
fn connections_end_for_the_reasons_that_nats_server_names() {
    let place = Place::new();
    let user = "{user: ann, password: pw}";
    let config = format!(
        "http: \"127.0.0.1:-1\"\nmax_pending: 4MB\nwrite_deadline: \"60s\"\nping_interval: \"1500ms\"\nping_max: 1\n\
         authorization {{ timeout: 1, users: [{user}] }}\n"
    );
    place.write("server.conf", &config);
    let ended = |program: &std::path::Path, name: &str| -> Value {
        let (running, ports) = started(&place, program, name);
        let urls = ["nats", "monitoring"].map(|list| ports[list][0].as_str().expect("a URL").to_owned());
        let mut client = Command::new(environment::python());
        client.args(["-c", ENDINGS]).args(urls);
        let ended = start(client, b"").end();
        assert_eq!(ended.code(), 0, "{name}: {}", ended.stderr);
        running.signal(Signal::SIGTERM);
        assert_eq!(running.end().code(), 0, "{name}");
        serde_json::from_str(&ended.lines().join("\n")).expect("JSON")
    };
    let (ours, theirs) = (ended(&place.ours(), "ours.pid"), ended(&theirs(), "theirs.pid"));
    assert_eq!(ours, theirs);
    assert_eq!(ours["slow"]["reason"], "Slow Consumer (Pending Bytes)", "{ours}");
}
