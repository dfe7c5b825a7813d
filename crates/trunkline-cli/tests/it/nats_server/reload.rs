//! SIGHUP beside nats-server's own: what each of the two takes of a changed file, and what it says.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::TcpStream;
use std::path::Path;

use nix::sys::signal::Signal;
use trunkline_testkit::Authority;

use crate::command::{Running, start};

use super::{Place, address_in, theirs};

/// What every file begins with.
const BASE: &str = "listen: \"127.0.0.1:-1\"\n";

struct Server {
    running: Running,
    address: String,
}

impl Server {
    fn start(place: &Place, program: &Path, config: &str) -> Self {
        place.write("server.conf", &format!("{BASE}{config}"));
        let mut running = start(place.command(program, &["-c", "server.conf"]), b"");
        let address = address_in(&running.until_it_says("Listening for client connections on "));
        running.until_it_says("Server is ready");
        Self { running, address }
    }

    /// Puts another file in the place of the former, and returns the line that says what came of it.
    fn reload(&mut self, place: &Place, config: &str) -> String {
        place.write("server.conf", &format!("{BASE}{config}"));
        self.running.signal(Signal::SIGHUP);
        self.running.until_it_says("server configuration")
    }
}

/// What a line says behind its level, without the digest of the file.
fn said(line: &str) -> String {
    let text = line.split_once("[ERR] ").or(line.split_once("[INF] ")).map_or(line, |(_, text)| text);
    text.split(" (sha256").next().unwrap_or_default().to_owned()
}

/// Both servers say the same of a change, in a life of its own.
#[track_caller]
fn check_same(config: &str, reloaded: &str) {
    let place = Place::new();
    let both = [place.ours(), theirs()].map(|program| {
        let mut server = Server::start(&place, &program, "");
        if !reloaded.is_empty() {
            place.write("server.conf", &format!("{BASE}{config}"));
            server.running.signal(Signal::SIGHUP);
            server.running.until_it_says(&format!("[INF] Reloaded: {reloaded}"));
            server.running.until_it_says("[INF] Reloaded server configuration (sha256:");
            return String::new();
        }
        said(&server.reload(&place, config))
    });
    assert_eq!(both[0], both[1], "{config}");
}

#[test]
fn limits_change_while_the_server_runs_as_on_nats_server() {
    for (config, reloaded) in [
        ("max_payload: 1000", "max_payload = 1000"),
        ("max_control_line: 2000", "max_control_line = 2000"),
        ("max_connections: 5", "max_connections = 5"),
        ("ping_max: 4", "ping_max = 4"),
        ("write_deadline: \"1500ms\"", "write_deadline = 1.5s"),
        ("debug: true", "debug = true"),
        ("max_traced_msg_len: 5", "max_traced_msg_len = 5"),
        ("server_tags: [\"a:b\"]", "tags"),
        ("server_metadata { a: b }", "metadata"),
        ("authorization { token: x, timeout: 5 }", "authorization timeout = 5"),
    ] {
        check_same(config, reloaded);
    }
}

#[test]
fn what_a_running_server_cannot_change_is_refused_in_the_words_of_nats_server() {
    for config in [
        "server_name: other",
        "max_pending: 10000000",
        "allow_non_tls: true",
        "logfile_size_limit: 1000",
        "logfile_max_num: 3",
        "max_sub_tokens: 4",
        "http_base_path: \"/nats\"",
        "no_header_support: true",
        "max_payload: 2MB\nmax_pending: 1MB",
        "nonsense: 1",
    ] {
        check_same(config, "");
    }
    let place = Place::new();
    let mut server = Server::start(&place, &place.ours(), "");
    let port = format!("Port: old={}, new=4555", server.address.rsplit(':').next().expect("a port"));
    for (config, field) in [
        ("port: 4555", port.as_str()),
        ("http: 8222", "HTTPPort: old=0, new=8222"),
        ("max_subscriptions: 7", "MaxSubs: old="),
        ("max_closed_clients: 7", "MaxClosedClients: old="),
        ("websocket { port: -1, no_tls: true }", "Websocket: old={}, new={"),
    ] {
        let line = server.reload(&place, config);
        assert!(line.contains(&format!("config reload not supported for {field}")), "{line}");
    }
    assert!(server.reload(&place, "max_payload: 99").contains("[INF] Reloaded"), "the rest can still change");
}

/// A client that reads and writes lines.
struct Client {
    lines: std::io::Lines<BufReader<TcpStream>>,
    stream: TcpStream,
}

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(crate::command::PATIENCE)).expect("a time that is some");
        let lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
        let mut client = Self { lines, stream };
        assert!(client.line().is_some_and(|line| line.starts_with("INFO ")));
        client
    }

    fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).expect("it is read");
    }

    fn line(&mut self) -> Option<String> {
        self.lines
            .next()?
            .inspect_err(|error| assert_ne!(error.kind(), ErrorKind::WouldBlock, "no answer"))
            .ok()
    }
}

#[test]
fn clients_that_are_there_go_by_the_new_limits() {
    let place = Place::new();
    let mut server = Server::start(&place, &place.ours(), "");
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(&server.address)).collect();
    for client in &mut clients {
        client.send("CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n");
        assert_eq!(client.line().as_deref(), Some("PONG"));
    }
    let line = server.reload(&place, "max_payload: 4\nmax_control_line: 300");
    assert!(line.contains("[INF] Reloaded"), "{line}");
    let mut large = clients.remove(0);
    large.send("PUB a 5\r\nhello\r\n");
    assert_eq!(large.line().as_deref(), Some("-ERR 'Maximum Payload Violation'"));
    assert_eq!(large.line(), None);
    let mut long = clients.remove(0);
    long.send(&format!("SUB {} 1\r\n", "a".repeat(400)));
    assert_eq!(long.line().as_deref(), Some("-ERR 'maximum control line exceeded'"));
    let mut fits = clients.remove(0);
    fits.send("SUB a 1\r\nPUB a 4\r\nhell\r\n");
    assert_eq!(fits.line().as_deref(), Some("MSG a 1 4"));

    let mut others: Vec<Client> = (0..2).map(|_| Client::connect(&server.address)).collect();
    for client in &mut others {
        client.send("CONNECT {\"verbose\":false}\r\nPING\r\n");
        assert_eq!(client.line().as_deref(), Some("PONG"));
    }
    server.reload(&place, "max_connections: 1");
    // Which of them is closed is left to chance.
    others.push(fits);
    let closed: Vec<bool> = others
        .iter_mut()
        .map(|client| {
            client.stream.write_all(b"PING\r\n").is_err() || {
                let said: Vec<String> =
                    std::iter::from_fn(|| client.line()).take_while(|line| line != "PONG").collect();
                said.iter().any(|line| line == "-ERR 'maximum connections exceeded'")
            }
        })
        .collect();
    assert_eq!(closed.iter().filter(|closed| **closed).count(), 2, "{closed:?}");
}

#[test]
fn an_empty_file_changes_nothing() {
    let place = Place::new();
    let mut server = Server::start(&place, &place.ours(), "authorization { token: s3cret }\n");
    place.write("server.conf", "# it is being written\n");
    server.running.signal(Signal::SIGHUP);
    let line = server.running.until_it_says("server configuration");
    assert!(
        line.ends_with("Failed to reload server configuration: config has no values or is empty"),
        "{line}"
    );
    let mut client = Client::connect(&server.address);
    client.send("CONNECT {\"verbose\":false}\r\nPING\r\n");
    assert_eq!(client.line().as_deref(), Some("-ERR 'Authorization Violation'"), "who asks is still asked");
}

#[test]
fn clients_are_told_where_the_server_is_said_to_be_now() {
    let place = Place::new();
    for program in [place.ours(), theirs()] {
        let mut server = Server::start(&place, &program, "");
        let host = |address: &str| {
            let line = BufReader::new(TcpStream::connect(address).expect("it listens")).lines().next();
            let line = line.expect("INFO").expect("INFO");
            let info: serde_json::Value =
                serde_json::from_str(line.trim_start_matches("INFO ")).expect("JSON");
            (info["host"].as_str().unwrap_or_default().to_owned(), info["port"].as_u64())
        };
        let bound = server.address.rsplit(':').next().and_then(|port| port.parse().ok());
        server.reload(&place, "client_advertise: \"bus.example.org:4333\"");
        assert_eq!(host(&server.address), ("bus.example.org".to_owned(), Some(4333)));
        server.reload(&place, "");
        assert_eq!(host(&server.address), ("127.0.0.1".to_owned(), bound));
    }
}

#[test]
fn a_subscription_that_a_reload_ends_is_told_as_by_nats_server() {
    let place = Place::new();
    let users = |deny: &str| {
        format!(
            "authorization {{ users: [{{user: a, password: b, permissions: {{subscribe: {{deny: {deny}}}}}}}] }}\n"
        )
    };
    for program in [place.ours(), theirs()] {
        let mut server = Server::start(&place, &program, &users("other"));
        let mut client = Client::connect(&server.address);
        client.send("CONNECT {\"verbose\":false,\"user\":\"a\",\"pass\":\"b\"}\r\nSUB foo 1\r\nPING\r\n");
        assert_eq!(client.line().as_deref(), Some("PONG"));
        server.reload(&place, &users("foo"));
        let error = "-ERR 'Permissions Violation for Subscription to \"foo\" (sid \"1\")'";
        assert_eq!(client.line().as_deref(), Some(error));
        server.running.signal(Signal::SIGTERM);
        let log = server.running.end().stderr;
        let removed = "Removed sub \"foo\" (sid \"1\") for User \"a\" - not authorized";
        assert!(log.lines().any(|line| line.contains("[INF] ") && line.ends_with(removed)), "{log}");
    }
}

#[test]
fn the_log_and_the_files_go_where_the_file_says_now() {
    let place = Place::new();
    std::fs::create_dir(place.path().join("ports")).expect("a new directory");
    let server = Server::start(&place, &place.ours(), "");
    let config = "log_file: \"second.log\"\npid_file: \"new.pid\"\nports_file_dir: \"ports\"\nlogtime: false";
    place.write("server.conf", &format!("{BASE}{config}"));
    server.running.signal(Signal::SIGHUP);
    let log = super::running::wait_for(|| {
        let log = std::fs::read_to_string(place.path().join("second.log")).ok()?;
        log.contains("Reloaded server configuration").then_some(log)
    });
    let pid = place.read("new.pid");
    assert!(log.starts_with(&format!("[{pid}] [INF] Reloaded server configuration")), "{log}");
    let ports = place.read(&format!("ports/nats-server_{pid}.ports"));
    assert!(ports.contains(&format!("nats://{}", server.address)), "{ports}");
    server.running.signal(Signal::SIGTERM);
    assert_eq!(server.running.end().code(), 0);
}

#[test]
fn tls_comes_and_goes_and_its_files_change() {
    let place = Place::new();
    let (first, second) = (Authority::make(), Authority::make());
    let certificates = [first.sign(&["127.0.0.1"]), second.sign(&["127.0.0.1"])];
    let config = |n: usize| {
        let (cert, key) = (&certificates[n].cert_file, &certificates[n].key_file);
        format!("tls {{ cert_file: \"{}\", key_file: \"{}\" }}\n", cert.display(), key.display())
    };
    let mut server = Server::start(&place, &place.ours(), "");
    let requires_tls = |address: &str| {
        let info = BufReader::new(TcpStream::connect(address).expect("it listens")).lines().next();
        info.is_some_and(|line| line.is_ok_and(|line| line.contains("\"tls_required\":true")))
    };
    assert!(!requires_tls(&server.address));
    server.reload(&place, &config(0));
    assert!(requires_tls(&server.address));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let url = format!("tls://{}", server.address);
    let connects = |authority: &Authority| {
        let options = async_nats::ConnectOptions::new().add_root_certificates(authority.ca_file());
        runtime.block_on(options.require_tls(true).connect(&url)).is_ok()
    };
    assert!(connects(&first) && !connects(&second));
    server.reload(&place, &config(1));
    assert!(!connects(&first) && connects(&second));
    let line = server.reload(&place, "tls { cert_file: \"missing.pem\", key_file: \"missing.pem\" }");
    assert!(
        line.contains("error parsing X509 certificate/key pair: open missing.pem: no such file"),
        "{line}"
    );
    assert!(connects(&second), "nothing has changed");
    server.reload(&place, "");
    assert!(!requires_tls(&server.address));
}
