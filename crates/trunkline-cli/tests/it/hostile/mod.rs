//! One hostile client at a time against the built server with little memory: the process stays within what it was given,
//! whoever takes too much is cut off or refused, told and counted, and a well-behaved client beside it gets every answer.
//!
//! How long those answers take is measured by `trunkline bench hostile`; a machine that runs all tests at once cannot tell.

mod doors;
mod memory;
mod open;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use trunkline_testkit::servers::TrunklineServer;

use crate::command::{PATIENCE, text};

/// What the process is given, in bytes. Code that is not optimised takes 20 MB more before it does anything.
const MEMORY: u64 = if cfg!(debug_assertions) { 96 << 20 } else { 64 << 20 };

/// A server of this configuration with little memory.
struct Target {
    server: TrunklineServer,
    _directory: TempDir,
}

impl Target {
    /// `more` is YAML beside the section `runtime`.
    fn start(more: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("config.yaml");
        let yaml = format!("runtime: {{resources: {{memory: {}MiB, cpus: 2}}}}\n{more}\n", MEMORY >> 20);
        std::fs::write(&path, yaml).expect("writable");
        let binary = Path::new(env!("CARGO_BIN_EXE_trunkline"));
        let server = TrunklineServer::start(binary, ["--config", text(&path)]);
        Self { server, _directory: directory }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.server.port()))
    }

    /// A client that has said CONNECT.
    fn client(&self) -> Wire {
        let mut wire = Wire::connect(self.address());
        wire.send(b"CONNECT {\"verbose\":false,\"headers\":true}\r\nPING\r\n");
        wire.until("PONG");
        wire
    }

    fn get(&self, path: &str) -> String {
        let authority = self.server.http().trim_start_matches("http://");
        let mut stream = TcpStream::connect(authority).expect("monitoring listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n").expect("the request is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the answer is text");
        answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned()
    }

    fn varz(&self) -> Value {
        serde_json::from_str(&self.get("/varz")).expect("JSON")
    }

    /// The value of a series; 0 where there is none.
    fn metric(&self, series: &str) -> f64 {
        let page = self.get("/metrics");
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until a series has at least this value.
    fn metric_reaches(&self, series: &str, least: f64) {
        self.metric_becomes(series, |value| value >= least, &format!("{least} at least"));
    }

    /// Waits until a series has at most this value.
    fn metric_falls_to(&self, series: &str, most: f64) {
        self.metric_becomes(series, |value| value <= most, &format!("{most} at most"));
    }

    fn metric_becomes(&self, series: &str, is_right: impl Fn(f64) -> bool, expected: &str) {
        let since = Instant::now();
        loop {
            let value = self.metric(series);
            if is_right(value) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{series} is {value}, expected {expected}");
        }
    }

    /// The most memory that the process ever had. The budget is held against what the process takes ten times a second, so a
    /// moment may have a little more.
    fn is_within_its_memory(&self) {
        self.has_exceeded_by_at_most(MEMORY / 16);
    }

    fn has_exceeded_by_at_most(&self, more: u64) {
        let process = procfs::process::Process::new(self.server.pid() as i32).expect("it runs");
        let status = process.status().expect("readable");
        let most = status.vmhwm.expect("a process of its own memory") * 1024;
        println!("{} of {} KiB at most, {} now", most >> 10, MEMORY >> 10, status.vmrss.unwrap_or_default());
        assert!(most < MEMORY + more, "the process took {most} bytes, and was given {MEMORY}");
    }
}

/// A connection on which the test says every byte.
struct Wire {
    stream: TcpStream,
    /// What was read and not looked at.
    seen: Vec<u8>,
}

impl Wire {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        Self::over(stream)
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a connected socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time");
        Self { stream, seen: Vec::new() }
    }

    /// With hardly any room for what it does not read.
    fn narrow(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a size that is possible");
        socket.connect(&address.into()).expect("the server listens");
        Self::over(socket.into())
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the connection stands");
    }

    /// The next line, without its end; `None` when the connection is closed.
    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.seen.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.seen.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let mut more = [0; 64 << 10];
            match self.stream.read(&mut more) {
                Ok(n) if n > 0 => self.seen.extend_from_slice(&more[..n]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => {
                    panic!("nothing came within {PATIENCE:?}")
                }
                _ => return None,
            }
        }
    }

    /// The lines before this one.
    fn until(&mut self, last: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.line() {
                Some(line) if line == last => return lines,
                Some(line) => lines.push(line),
                None => panic!("closed after {:?}", lines.last()),
            }
        }
    }

    /// Reads to the end of the connection, and keeps the last bytes of it.
    fn last_words(&mut self) -> String {
        let mut all = std::mem::take(&mut self.seen);
        let mut more = vec![0; 64 << 10];
        while let Ok(n) = self.stream.read(&mut more)
            && n > 0
        {
            all.extend_from_slice(&more[..n]);
            let surplus = all.len().saturating_sub(1000);
            all.drain(..surplus);
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// A well-behaved client that asks and answers itself, on demand.
struct Bystander {
    wire: Wire,
    rounds: u32,
}

impl Bystander {
    fn new(target: &Target) -> Self {
        let mut wire = target.client();
        wire.send(b"SUB bystander.ask 1\r\nSUB bystander.answer 2\r\n");
        let mut bystander = Self { wire, rounds: 0 };
        bystander.asks();
        bystander
    }

    /// A whole round: asked, answered, and the answer is the right one.
    fn asks(&mut self) {
        self.rounds += 1;
        let text = format!("round {}", self.rounds);
        let size = text.len();
        self.wire.send(format!("PUB bystander.ask bystander.answer {size}\r\n{text}\r\n").as_bytes());
        self.expect(&format!("MSG bystander.ask 1 bystander.answer {size}"), &text);
        self.wire.send(format!("PUB bystander.answer {size}\r\n{text}\r\n").as_bytes());
        self.expect(&format!("MSG bystander.answer 2 {size}"), &text);
    }

    fn expect(&mut self, head: &str, text: &str) {
        let mut next = || loop {
            match self.wire.line().expect("the bystander stays connected") {
                ping if ping == "PING" => self.wire.send(b"PONG\r\n"),
                line => return line,
            }
        };
        assert_eq!((next().as_str(), next().as_str()), (head, text));
    }

    /// Some rounds; and it is still the connection that it was.
    fn is_fine(&mut self) {
        for _ in 0..20 {
            self.asks();
        }
    }
}

/// Pauses the caller for a moment within a loop that looks at something that cannot be awaited.
fn look_again() {
    std::thread::sleep(Duration::from_millis(5));
}
