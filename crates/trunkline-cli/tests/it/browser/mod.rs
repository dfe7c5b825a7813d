//! A real browser: a page with the clients that browsers use, over `ws://` and `wss://`, on our server and on the real one, from
//! an origin that may connect and from one that may not. One browser for all of it, since its start takes longest.

mod pages;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use ring::digest;
use serde_json::{Value, json};
use tempfile::TempDir;
use trunkline_testkit::certificates::Certificate;
use trunkline_testkit::servers::{NatsServer, TrunklineServer};
use trunkline_testkit::{Authority, environment};

use self::pages::Pages;
use crate::command::start;

/// Both servers, each with plain and with encrypted WebSockets.
struct Servers {
    ours: [TrunklineServer; 2],
    theirs: [NatsServer; 2],
}

impl Servers {
    /// Pages of this origin may connect.
    fn start(origin: &str, certificate: &Certificate, directory: &Path) -> Self {
        let (cert, key) = (certificate.cert_file.display(), certificate.key_file.display());
        let tls = format!("{{cert_file: \"{cert}\", key_file: \"{key}\"}}");
        let write = |name: &str, content: String| {
            let path = directory.join(name);
            std::fs::write(&path, content).expect("a temporary directory takes a file");
            path.into_os_string()
        };
        let ours = |name: &str, tls: String| {
            let websocket =
                format!("  websocket: {{listen: '127.0.0.1:0', allowed_origins: ['{origin}']}}\n");
            let config = write(name, format!("server:\n{websocket}{tls}"));
            TrunklineServer::start(Path::new(env!("CARGO_BIN_EXE_trunkline")), ["--config".into(), config])
        };
        let theirs = |name: &str, tls: String| {
            let websocket = format!(
                "websocket {{host: 127.0.0.1, port: -1, {tls}, same_origin: false, allowed_origins: [\"{origin}\"]}}\n"
            );
            NatsServer::start_program(&environment::nats_server(), ["-c".into(), write(name, websocket)])
        };
        Self {
            // Tools stay plain beside the pages.
            ours: [
                ours("ws.yaml", String::new()),
                ours("wss.yaml", format!("  tls: {tls}\n").replace('}', ", allow_non_tls: true}")),
            ],
            theirs: [theirs("ws.conf", "no_tls: true".to_owned()), theirs("wss.conf", format!("tls {tls}"))],
        }
    }

    fn websockets(&self) -> Value {
        let [ws, wss] = self.ours.each_ref().map(|server| {
            let ports = ports(server.directory().join("trunkline.ports"));
            local(ports["websocket"].as_str().expect("a URL"))
        });
        let [their_ws, their_wss] = self.theirs.each_ref().map(|server| {
            let file = format!("nats-server_{}.ports", server.pid());
            local(ports(server.directory().join(file))["websocket"][0].as_str().expect("a URL"))
        });
        json!({"ours ws": ws, "ours wss": wss, "theirs ws": their_ws, "theirs wss": their_wss})
    }

    fn urls(&self) -> Vec<String> {
        let ours = self.ours.iter().map(|server| server.url().to_owned());
        ours.chain(self.theirs.iter().map(|server| server.url().to_owned())).collect()
    }
}

fn ports(file: PathBuf) -> Value {
    let content = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_slice(&content).expect("a file of JSON")
}

/// The same address by the name that certificates are made for.
fn local(url: &str) -> String {
    url.replace("127.0.0.1", "localhost")
}

/// A browser without a window, and where it keeps its things. Dropping it ends it with all of its processes.
struct Browser {
    child: Child,
    directory: TempDir,
}

impl Browser {
    /// Opens a page, and trusts this certificate.
    fn open(page: &str, certificate: &Certificate) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let key = BASE64_STANDARD.encode(digest::digest(&digest::SHA256, &certificate.public_key));
        let log = std::fs::File::create(directory.path().join("log")).expect("a new directory takes a file");
        let mut command = Command::new("chromium");
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-extensions", "--disable-dev-shm-usage", "--disable-breakpad"])
            .arg(format!("--user-data-dir={}", directory.path().join("profile").display()))
            .arg(format!("--ignore-certificate-errors-spki-list={key}"))
            .arg(page)
            // A group of its own, so that all of its processes can be ended together.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo xtask setup` says what is missing"));
        Self { child, directory }
    }

    fn log(&self) -> String {
        let log = std::fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // An error says that they are gone already.
        let group = Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are below 2^22"));
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

#[test]
fn pages_connect_from_origins_that_may() {
    let authority = Authority::make();
    let certificate = authority.sign(&["localhost", "127.0.0.1"]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (own, foreign) = (Pages::serve(), Pages::serve());
    let servers = Servers::start(&own.origin(), &certificate, directory.path());

    let mut command = Command::new(environment::python());
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(environment::clients().join("python/tools.py"));
    command.args(servers.urls());
    let mut tools = start(command, b"");
    tools.until_it_says("ready");

    own.plan(json!({"allowed": true, "servers": servers.websockets(), "frame": foreign.origin()}));
    foreign.plan(json!({"allowed": false, "servers": servers.websockets()}));
    let browser = Browser::open(&own.origin(), &certificate);

    let report = |pages: &Pages| {
        let report = pages.report();
        report.unwrap_or_else(|| {
            panic!("{} did not report; the browser said:\n{}", pages.origin(), browser.log())
        })
    };
    let works = json!({
        "server": true,
        "own": ["ålso from a page", "c-42"],
        "answer": "HELLO",
        "told": "asked: hello",
        "large": true,
        "nobody": "no responders",
        "closed": true,
    });
    let all = |of: Value| json!({"ours ws": of, "ours wss": of, "theirs ws": of, "theirs wss": of});
    assert_eq!(report(&own), all(json!({"nats.ws": works, "nats-core": works})));
    assert_eq!(report(&foreign), all(json!({"nats.ws": "refused", "nats-core": "refused"})));
}
