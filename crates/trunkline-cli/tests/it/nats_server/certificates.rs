//! `verify_and_map` beside nats-server's own: the same certificates, the same users, the same answers.

use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use trunkline_testkit::certificates::{Certificate, CertificateParams, DnType, SanType};
use trunkline_testkit::{Authority, environment};

use crate::command::{start, text};

use super::running::wait_for;
use super::{Place, theirs};

/// Users by what their certificates say. None of them has a password.
const USERS: &str = "authorization { users: [
    {user: \"ann@example.org\"}
    {user: \"search.tools\"}
    {user: \"spiffe://example.org/worker\"}
    {user: \"CN=Bob,OU=Tools,O=Example\"}
    {user: \"O=Ordered,CN=Eve\"}
    {user: \"CN=Smith\\\\, Jane,O=Example\"}
    {user: \"CN=only\"}
    {user: carl, password: secret}
] }
";

/// Connects with each certificate in turn; prints what PING brings, and who monitoring says that it is.
const SCRIPT: &str = r#"
import json, socket, ssl, sys, urllib.request
nats, http, ca = sys.argv[1:4]
host, port = nats.split("://")[1].split(":")
for certificate in sys.argv[4:]:
    cert, key, said = certificate.split("|")
    s = socket.create_connection((host, int(port)), timeout=20)
    info = b""
    while not info.endswith(b"\r\n"):
        info += s.recv(1)
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(cert, key)
    s = context.wrap_socket(s, server_hostname="localhost")
    connect = {"verbose": False, "pedantic": False}
    if said:
        connect["user"], connect["pass"] = said.split(":")
    s.sendall(("CONNECT %s\r\nPING\r\n" % json.dumps(connect)).encode())
    line = s.makefile("rb").readline().decode().strip()
    who = ""
    if line == "PONG":
        connz = json.load(urllib.request.urlopen(http + "/connz?auth=1", timeout=20))
        own = s.getsockname()[1]
        who = [c.get("authorized_user") for c in connz["connections"] if c["port"] == own][0]
    print(line, who)
    s.close()
"#;

/// A certificate whose subject is these parts, in this order.
fn subject(params: &mut CertificateParams, parts: &[(DnType, &str)]) {
    params.distinguished_name = Default::default();
    for (kind, value) in parts {
        params.distinguished_name.push(kind.clone(), *value);
    }
}

/// What one server makes of all certificates.
fn answers(place: &Place, program: &std::path::Path, name: &str, certificates: &[String]) -> Vec<String> {
    let arguments = ["-c", "server.conf", "-a", "127.0.0.1", "-p", "-1", "-m", "-1", "-P", name];
    let mut command = place.command(program, &arguments);
    command.arg("--ports_file_dir").arg(place.path());
    let mut running = start(command, b"");
    running.until_it_says("Server is ready");
    let ports: Value = wait_for(|| {
        let pid = std::fs::read_to_string(place.path().join(name)).ok()?;
        let ports = std::fs::read_to_string(place.path().join(format!("nats-server_{pid}.ports"))).ok()?;
        serde_json::from_str(&ports).ok()
    });
    let url = |list: &str| ports[list][0].as_str().expect("a URL").to_owned();
    let mut client = Command::new(environment::python());
    client.args(["-c", SCRIPT, &url("nats"), &url("monitoring"), "ca.pem"]).args(certificates);
    client.current_dir(place.path());
    let ended = start(client, b"").end();
    assert_eq!(ended.code(), 0, "{name}: {}", ended.stderr);
    running.signal(Signal::SIGTERM);
    running.end();
    ended.lines()
}

#[test]
fn certificates_say_the_same_user_as_on_nats_server() {
    let place = Place::new();
    let authority = Authority::make();
    let server = authority.sign(&["localhost", "127.0.0.1"]);
    std::fs::copy(authority.ca_file(), place.path().join("ca.pem")).expect("a copy");
    let tls = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: ca.pem, verify_and_map: true }}\n",
        text(&server.cert_file),
        text(&server.key_file)
    );
    place.write("server.conf", &format!("{tls}{USERS}"));
    let mut certificates = Vec::new();
    let mut add = |certificate: &Certificate, said: &str| {
        certificates.push(format!("{}|{}|{said}", text(&certificate.cert_file), text(&certificate.key_file)));
    };
    let spiffe = "spiffe://example.org/worker";
    let with_uri = |params: &mut CertificateParams| {
        params.subject_alt_names.push(SanType::URI(spiffe.try_into().expect("a URI")));
    };
    let with_mail = |params: &mut CertificateParams| {
        let mail = "ann@example.org".try_into().expect("an address");
        params.subject_alt_names.push(SanType::Rfc822Name(mail));
    };
    let (cn, ou, o) = (DnType::CommonName, DnType::OrganizationalUnitName, DnType::OrganizationName);
    add(&authority.sign_with(&["m0"], with_mail), "");
    add(&authority.sign(&["search.tools"]), "");
    // Which of several names counts.
    add(&authority.sign_with(&["m1", "search.tools"], with_mail), "");
    add(&authority.sign(&["m2", "other.tools", "search.tools"]), "");
    add(&authority.sign_with(&["u1"], with_uri), "");
    let uri_and_mail = |params: &mut CertificateParams| {
        with_uri(params);
        with_mail(params);
    };
    add(&authority.sign_with(&["u2"], uri_and_mail), "");
    for (name, parts) in [
        ("s1", &[(cn.clone(), "Bob"), (ou.clone(), "Tools"), (o.clone(), "Example")][..]),
        ("s2", &[(o.clone(), "Example"), (ou.clone(), "Tools"), (cn.clone(), "Bob")]),
        ("s3", &[(cn.clone(), "Bob"), (o.clone(), "Example")]),
        ("s4", &[(cn.clone(), "bob"), (ou.clone(), "Tools"), (o.clone(), "Example")]),
        ("s5", &[(cn.clone(), "Eve"), (o.clone(), "Ordered")]),
        ("s6", &[(cn.clone(), "Smith, Jane"), (o.clone(), "Example")]),
        ("s7", &[(cn.clone(), "only")]),
        ("s8", &[(cn.clone(), "only"), (DnType::CountryName, "NO")]),
    ] {
        add(&authority.sign_with(&[name], |params| subject(params, parts)), "");
    }
    // A name that is known counts before the subject.
    let both = [(cn.clone(), "Bob"), (ou, "Tools"), (o, "Example")];
    add(&authority.sign_with(&["b1", "search.tools"], |params| subject(params, &both)), "");
    let nobody = authority.sign(&["nobody.tools"]);
    add(&nobody, "");
    // What a client says of itself counts for nothing.
    add(&nobody, "carl:secret");
    add(&authority.sign(&["192.0.2.7"]), "");
    let ours = answers(&place, &place.ours(), "ours.pid", &certificates);
    let theirs = answers(&place, &theirs(), "theirs.pid", &certificates);
    let shown = |answers: &[String]| {
        let of = certificates.iter().zip(answers);
        let short = |certificate: &str| {
            let file = certificate.split('|').next().unwrap_or_default().to_owned();
            file.rsplit('/').next().unwrap_or_default().to_owned()
        };
        of.map(|(certificate, answer)| format!("{}: {answer}", short(certificate))).collect::<Vec<_>>()
    };
    assert_eq!(ours.len(), certificates.len(), "{ours:#?}");
    assert!(ours.iter().filter(|answer| answer.starts_with("PONG")).count() >= 10, "{:#?}", shown(&ours));
    assert_eq!(shown(&ours), shown(&theirs));
}
