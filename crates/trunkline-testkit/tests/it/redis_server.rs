//! A `redis-server` under test starts, breaks and comes back, with its data or without.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use trunkline_testkit::RedisServer;

/// Sends one inline command on a fresh connection, and gives the first line of the answer.
fn ask(server: &RedisServer, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("the timeout is not zero");
    stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
    BufReader::new(stream).lines().next()?.ok()
}

#[test]
fn redis_with_a_log_keeps_its_data_through_a_kill() {
    let mut server = RedisServer::start();
    assert_eq!(ask(&server, "SET a 1").as_deref(), Some("+OK"));
    server.kill();
    assert_eq!(ask(&server, "PING"), None);
    server.restart();
    assert_eq!(ask(&server, "STRLEN a").as_deref(), Some(":1"));
}

#[test]
fn redis_without_a_log_comes_back_empty() {
    let mut server = RedisServer::start_volatile();
    assert_eq!(ask(&server, "SET a 1").as_deref(), Some("+OK"));
    server.restart();
    assert_eq!(ask(&server, "STRLEN a").as_deref(), Some(":0"));
}

#[test]
fn paused_redis_is_silent_until_resumed() {
    let server = RedisServer::start();
    server.pause();
    assert_eq!(ask(&server, "PING"), None);
    server.resume();
    assert_eq!(ask(&server, "PING").as_deref(), Some("+PONG"));
}

#[test]
fn dropped_redis_leaves_nothing_behind() {
    let server = RedisServer::start();
    let (directory, pid) = (server.directory().to_owned(), server.pid());
    drop(server);
    assert!(!directory.exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}
