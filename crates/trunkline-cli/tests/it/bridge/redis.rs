//! Questions to the Redis server itself, as inline commands.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use trunkline_testkit::RedisServer;

use crate::command::PATIENCE;

/// The stream of subjects that belong to no family of the platform.
pub(super) const OTHER: &str = "atlas_bus:{family.other}";

/// The answer to one command: a number, or the elements of an array.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Number(i64),
    List(Vec<String>),
}

pub(super) fn ask(redis: &RedisServer, command: &str) -> Answer {
    let socket = TcpStream::connect(("127.0.0.1", redis.port())).expect("Redis listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
    let mut socket = BufReader::new(socket);
    socket.get_mut().write_all(format!("{command}\r\n").as_bytes()).expect("Redis reads");
    let head = line(&mut socket);
    let (kind, rest) = head.split_at(1);
    let number: i64 = rest.parse().unwrap_or_else(|_| panic!("{command}: {head}"));
    match kind {
        ":" => Answer::Number(number),
        "*" => Answer::List((0..number).map(|_| bulk(&mut socket)).collect()),
        _ => panic!("{command}: {head}"),
    }
}

fn bulk(socket: &mut BufReader<TcpStream>) -> String {
    let length: usize = line(socket).trim_start_matches('$').parse().expect("a length");
    let mut bytes = vec![0; length + 2];
    socket.read_exact(&mut bytes).expect("an answer in time");
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn line(socket: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    socket.read_line(&mut line).expect("an answer in time");
    line.trim_end().to_owned()
}
