//! A server under test starts, stops, breaks and comes back the way `ServerProcess` says.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::panic;
use std::path::Path;
use std::time::Duration;

use trunkline_testkit::servers::{NatsServer, TrunklineServer};

fn start() -> NatsServer {
    NatsServer::start::<&str>([])
}

fn connect(server: &NatsServer) -> std::io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", server.port()))
}

/// Sends PING on a fresh connection and waits for the PONG at most this long.
fn answers(server: &NatsServer, within: Duration) -> bool {
    let Ok(mut stream) = connect(server) else {
        return false;
    };
    stream.set_read_timeout(Some(within)).expect("the timeout is not zero");
    stream.write_all(b"CONNECT {\"verbose\":false}\r\nPING\r\n").expect("the connection is fresh");
    let mut lines = BufReader::new(stream).lines();
    lines.by_ref().map_while(Result::ok).any(|line| line == "PONG")
}

const SOON: Duration = Duration::from_secs(5);

#[test]
fn started_server_answers_at_its_url() {
    let server = start();
    assert_eq!(server.url(), format!("nats://127.0.0.1:{}", server.port()));
    assert!(server.http().starts_with("http://127.0.0.1:"), "{}", server.http());
    assert!(answers(&server, SOON));
    assert!(server.log().contains("Server is ready"), "{}", server.log());
}

#[test]
fn stopped_server_is_gone_and_restart_brings_it_back_on_the_same_port() {
    let mut server = start();
    let (url, http, pid) = (server.url().to_owned(), server.http().to_owned(), server.pid());
    server.stop();
    assert!(connect(&server).is_err());
    server.restart();
    assert_eq!((server.url(), server.http()), (url.as_str(), http.as_str()));
    assert_ne!(server.pid(), pid);
    assert!(answers(&server, SOON));
    // Restarting one that runs stops it first.
    let pid = server.pid();
    server.restart();
    assert_ne!(server.pid(), pid);
    assert!(answers(&server, SOON));
}

#[test]
fn killed_server_comes_back_on_the_same_port() {
    let mut server = start();
    server.kill();
    assert!(connect(&server).is_err());
    server.restart();
    assert!(answers(&server, SOON));
}

#[test]
fn paused_server_is_silent_until_resumed() {
    let mut server = start();
    server.pause();
    assert!(!answers(&server, Duration::from_millis(100)));
    server.resume();
    assert!(answers(&server, SOON));
    // A paused server can still be stopped.
    server.pause();
    server.stop();
}

#[test]
fn dropped_server_leaves_nothing_behind() {
    let server = start();
    let (directory, pid) = (server.directory().to_owned(), server.pid());
    assert!(directory.exists() && Path::new(&format!("/proc/{pid}")).exists());
    drop(server);
    assert!(!directory.exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn config_file_reaches_the_server() {
    let server = NatsServer::start_with_config("max_payload: 2KB\nserver_name: from-the-file\n");
    let mut info = String::new();
    let stream = connect(&server).expect("the server listens");
    BufReader::new(stream).read_line(&mut info).expect("INFO comes first");
    assert!(
        info.contains(r#""server_name":"from-the-file""#) && info.contains(r#""max_payload":2048"#),
        "{info}"
    );
}

/// The message of a start that has to fail.
fn panic_message(start: impl FnOnce() + panic::UnwindSafe) -> String {
    let payload = panic::catch_unwind(start).expect_err("the server must not start");
    *payload.downcast::<String>().expect("the message is formatted")
}

#[test]
fn failed_start_shows_the_log_of_the_server() {
    let message = panic_message(|| drop(NatsServer::start(["--no-such-flag"])));
    assert!(message.contains("nats-server ended with exit status"), "{message}");
    assert!(message.contains("flag provided but not defined: -no-such-flag"), "{message}");
}

#[test]
fn missing_binary_is_named_with_the_way_to_get_it() {
    let message = panic_message(|| drop(TrunklineServer::start::<&str>(Path::new("/no/such/trunkline"), [])));
    assert!(
        message.contains("/no/such/trunkline") && message.contains("cargo test -p trunkline-cli"),
        "{message}"
    );
}
