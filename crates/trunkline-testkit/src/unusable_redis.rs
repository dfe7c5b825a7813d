//! Redis servers that a bus cannot use, each for another reason: what a fallback is for.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::redis_server::RedisServer;

/// A URL that no bus can be made of.
pub struct UnusableRedis {
    /// What is wrong, for the messages of tests.
    pub name: &'static str,
    /// Where to connect.
    pub url: String,
    /// A word that tells the operator what is wrong.
    pub says: &'static str,
    /// Whether the same may work later without another configuration.
    pub retryable: bool,
    /// A password that is shown nowhere.
    pub secret: Option<&'static str>,
    /// What has to stay for the URL to be as bad as it is.
    _kept: Kept,
}

enum Kept {
    Nothing,
    Listener { _listener: TcpListener },
    Server { _server: RedisServer },
    Stranger { _stranger: Stranger },
    Unroutable { _unroutable: Unroutable },
}

/// An address to which packets go and from which none come back, as behind a firewall or a route to nowhere: a listener
/// that accepts nobody and whose queue is full, so that the system drops what else asks for a connection.
struct Unroutable {
    address: SocketAddr,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Unroutable {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let mut waiting = Vec::new();
        // Where there is room a connection on the same machine is made at once.
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            waiting.push(stream);
            assert!(waiting.len() < 10_000, "the queue of {address} never fills");
        }
        Self { address, _listener: listener, _waiting: waiting }
    }
}

/// A server of something else: it answers whatever it is asked as a web server does. Ends when dropped.
struct Stranger {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stranger {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // Whoever has gone meanwhile needs no answer.
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let _ = stream.read(&mut [0; 256]);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Has it look.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One for each reason.
///
/// # Panics
/// As [`RedisServer::start`].
pub fn unusable_redis() -> Vec<UnusableRedis> {
    // Connections are accepted by the system, and nobody ever reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent_at = silent.local_addr().expect("a bound socket has an address");
    let server = |arguments: &str| RedisServer::start_with(arguments.split_whitespace());
    let (locked, limited, plain) = (
        server("--appendonly no --requirepass s3cret"),
        server("--appendonly no --user reader on >s3cret ~* +ping +client +hello +select +get"),
        server("--appendonly no"),
    );
    let (stranger, unroutable) = (Stranger::start(), Unroutable::start());
    let at = |server: &RedisServer| format!("127.0.0.1:{}", server.port());
    let keep = |server| Kept::Server { _server: server };
    vec![
        UnusableRedis {
            name: "nobody listens",
            url: "redis://127.0.0.1:1".to_owned(),
            says: "refused",
            retryable: true,
            secret: None,
            _kept: Kept::Nothing,
        },
        UnusableRedis {
            name: "accepts and says nothing",
            url: format!("redis://{silent_at}"),
            says: "within",
            retryable: true,
            secret: None,
            _kept: Kept::Listener { _listener: silent },
        },
        UnusableRedis {
            name: "no way to it",
            url: format!("redis://{}", unroutable.address),
            says: "within",
            retryable: true,
            secret: None,
            _kept: Kept::Unroutable { _unroutable: unroutable },
        },
        UnusableRedis {
            name: "wrong password",
            url: format!("redis://:wr0ng@{}", at(&locked)),
            says: "refused the credentials",
            retryable: false,
            secret: Some("wr0ng"),
            _kept: keep(locked),
        },
        UnusableRedis {
            name: "a user without the rights",
            url: format!("redis://reader:s3cret@{}", at(&limited)),
            says: "refused the credentials",
            retryable: false,
            secret: Some("s3cret"),
            _kept: keep(limited),
        },
        UnusableRedis {
            name: "TLS where there is none",
            url: format!("rediss://{}", at(&plain)),
            says: "rediss://",
            retryable: true,
            secret: None,
            _kept: keep(plain),
        },
        UnusableRedis {
            name: "something else listens",
            url: format!("redis://{}", stranger.address),
            says: "something else",
            retryable: true,
            secret: None,
            _kept: Kept::Stranger { _stranger: stranger },
        },
    ]
}
