//! What one hostile client does, at full speed and for as long as it is let: plain sockets, and no interest in how it ends.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use socket2::{Domain, Socket, Type};

use super::hello::client_hello;

/// How long a connection is waited for, and an answer where one is wanted.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause before the next attempt where the server accepts nobody.
const AGAIN: Duration = Duration::from_millis(5);
/// Connections of a storm that stand at a time.
const STORM_CONNECTIONS: usize = 500;
/// Most that one system call sends. In a kernel that is not preempted a call keeps the processor until it is over, and copying a
/// mebibyte of which the server is to have nothing yet would be measured as if the server did it.
const SENT_AT_ONCE: usize = 16 << 10;
const HELLO: &[u8] = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n";

/// What a client may do to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Attack {
    /// Subscribers that read nothing, and a publisher that floods them
    SlowReader,
    /// A subscriber to everything that reads nothing
    EverythingReader,
    /// A million subscriptions of one client, again and again
    Subscriptions,
    /// Subscriptions that come and go under the first token of everybody's subjects
    Churn,
    /// Subscriptions that come and go with a wildcard first, which concern every subject
    WildcardChurn,
    /// Messages that are header for the most part and never end
    GiantHeaders,
    /// Lines that are no operation, as long as they may be
    LongLines,
    /// Connections that come, say CONNECT, and go
    Connections,
    /// Connections that come and say nothing
    HalfOpen,
    /// Messages to a subject that nobody listens to
    Flood,
    /// Messages to a subject that somebody answers, as requests whose replies nobody reads
    RequestFlood,
    /// Connections that begin a TLS handshake and go when the server has signed its part
    Handshakes,
    /// Connections that say a wrong password, which the server checks against a hash
    Passwords,
}

/// Where, and until when.
pub(super) struct Scene<'a> {
    pub(super) address: SocketAddr,
    /// The first token of the subjects that the others use.
    pub(super) token: &'a str,
    pub(super) over: &'a AtomicBool,
    /// How often it was done: operations, messages, connections, or batches of 256 KiB.
    pub(super) done: AtomicU64,
    /// Called once, when it was done for the first time, or refused.
    pub(super) begun: &'a (dyn Fn() + Sync),
}

impl Attack {
    /// What it attacks is not there in a server with its defaults.
    pub(super) fn wants_guards(self) -> bool {
        matches!(self, Self::Handshakes | Self::Passwords)
    }

    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Goes on until it is over.
    pub(super) fn run(self, scene: &Scene<'_>) {
        while !scene.is_over() {
            let outcome = match self {
                Self::SlowReader => scene.slow_reader("hostile.flood", 4),
                Self::EverythingReader => scene.slow_reader(">", 1),
                Self::Subscriptions => scene.subscriptions(),
                Self::Churn => scene.churn(&format!("{}.hostile", scene.token)),
                Self::WildcardChurn => scene.churn("*.hostile"),
                Self::GiantHeaders => scene.giant_headers(),
                Self::LongLines => scene.long_lines(),
                Self::Connections => scene.connections(),
                Self::HalfOpen => scene.half_open(),
                Self::Flood => scene.flood("hostile.nobody", None),
                Self::Handshakes => scene.handshakes(),
                Self::Passwords => scene.passwords(),
                Self::RequestFlood => scene.flood(&format!("{}.ask", scene.token), Some("hostile.reply")),
            };
            if outcome.is_err() {
                scene.did(0);
                thread::sleep(AGAIN);
            }
        }
    }
}

type Outcome = std::io::Result<()>;

impl Scene<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn did(&self, times: u64) {
        if self.done.fetch_add(times, Ordering::Relaxed) == 0 {
            (self.begun)();
        }
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        self.prepare(stream)
    }

    fn prepare(&self, mut stream: TcpStream) -> std::io::Result<TcpStream> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(HELLO)?;
        Ok(stream)
    }

    /// With hardly any room for what it does not read.
    fn narrow(&self) -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None)?;
        socket.set_recv_buffer_size(4096)?;
        socket.connect_timeout(&self.address.into(), PATIENCE)?;
        self.prepare(socket.into())
    }

    fn slow_reader(&self, pattern: &str, readers: usize) -> Outcome {
        let mut deaf = Vec::new();
        for _ in 0..readers {
            let mut stream = self.narrow()?;
            stream.write_all(format!("SUB {pattern} 1\r\n").as_bytes())?;
            deaf.push(stream);
        }
        let batch = format!("PUB hostile.flood 1024\r\n{}\r\n", "x".repeat(1024)).repeat(256);
        let mut publisher = self.connect()?;
        // They come again when they were cut off, about that often.
        for _ in 0..256 {
            if self.is_over() {
                break;
            }
            send(&mut publisher, batch.as_bytes())?;
            self.did(1);
        }
        Ok(())
    }

    fn subscriptions(&self) -> Outcome {
        let mut stream = self.connect()?;
        // What it is refused is read, so that it is not cut off before it has asked for all of them.
        let mut answers = stream.try_clone()?;
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut sink = vec![0; 64 << 10];
                while matches!(answers.read(&mut sink), Ok(n) if n > 0) {}
            });
            let outcome = (0..1000).try_for_each(|thousand| {
                if self.is_over() {
                    return Ok(());
                }
                let from = thousand * 1000;
                let lines: String =
                    (from..from + 1000).map(|n| format!("SUB hostile.{n}.* {n}\r\n")).collect();
                self.did(1000);
                send(&mut stream, lines.as_bytes())
            });
            let _ = stream.shutdown(std::net::Shutdown::Both);
            outcome
        })
    }

    fn churn(&self, start: &str) -> Outcome {
        let mut stream = self.connect()?;
        let lines: String = (0..1000).map(|n| format!("SUB {start}.{n} 1\r\nUNSUB 1\r\n")).collect();
        while !self.is_over() {
            send(&mut stream, lines.as_bytes())?;
            self.did(1000);
        }
        Ok(())
    }

    fn giant_headers(&self) -> Outcome {
        let head = "HPUB hostile.giant 1000000 1000100\r\nNATS/1.0\r\nX: ";
        let most = [head.as_bytes(), &vec![b'h'; 950_000]].concat();
        let mut open = Vec::new();
        while !self.is_over() && open.len() < STORM_CONNECTIONS {
            let mut stream = self.connect()?;
            send(&mut stream, &most)?;
            open.push(stream);
            self.did(1);
        }
        Ok(())
    }

    fn long_lines(&self) -> Outcome {
        let mut stream = self.connect()?;
        send(&mut stream, &vec![b'S'; 64 << 10])?;
        self.did(1);
        // Until it was sent away.
        let mut sink = [0; 4096];
        while !self.is_over() && matches!(stream.read(&mut sink), Ok(n) if n > 0) {}
        Ok(())
    }

    fn connections(&self) -> Outcome {
        while !self.is_over() {
            drop(self.connect()?);
            self.did(1);
        }
        Ok(())
    }

    fn half_open(&self) -> Outcome {
        let mut open = Vec::new();
        while !self.is_over() && open.len() < STORM_CONNECTIONS {
            open.push(TcpStream::connect_timeout(&self.address, PATIENCE)?);
            self.did(1);
        }
        Ok(())
    }

    fn handshakes(&self) -> Outcome {
        let mut sink = [0; 16 << 10];
        while !self.is_over() {
            let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            // INFO, where it comes first.
            some(stream.read(&mut sink)?)?;
            stream.write_all(&client_hello(std::array::from_fn(|_| fastrand::u8(..))))?;
            // What has come is signed.
            some(stream.read(&mut sink)?)?;
            self.did(1);
        }
        Ok(())
    }

    fn passwords(&self) -> Outcome {
        let mut open = VecDeque::new();
        while !self.is_over() {
            let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.write_all(b"CONNECT {\"user\":\"bench\",\"pass\":\"wrong\"}\r\n")?;
            open.push_back(stream);
            self.did(1);
            if open.len() > STORM_CONNECTIONS {
                open.pop_front();
            }
        }
        Ok(())
    }

    fn flood(&self, subject: &str, reply: Option<&str>) -> Outcome {
        let mut stream = self.connect()?;
        let reply = reply.map_or_else(String::new, |reply| format!("{reply} "));
        let batch = format!("PUB {subject} {reply}128\r\n{}\r\n", "x".repeat(128)).repeat(1000);
        while !self.is_over() {
            send(&mut stream, batch.as_bytes())?;
            self.did(1000);
        }
        Ok(())
    }
}

fn send(stream: &mut TcpStream, bytes: &[u8]) -> Outcome {
    bytes.chunks(SENT_AT_ONCE).try_for_each(|some| stream.write_all(some))
}

/// The server has not closed.
fn some(bytes: usize) -> Outcome {
    if bytes == 0 { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}
