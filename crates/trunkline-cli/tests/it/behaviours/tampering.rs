//! A proxy that tells clients of a larger `max_payload` than the server has, so that a client which would never send more
//! than it is told sends more than the server takes.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Listens until it is dropped.
pub(super) struct TamperingProxy {
    port: u16,
    ended: Arc<AtomicBool>,
    /// Accepts, and starts two threads for each connection, which end with it. Ended and joined by `drop`.
    accepting: Option<JoinHandle<()>>,
}

impl TamperingProxy {
    pub(super) fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let ended = Arc::new(AtomicBool::new(false));
        let accepting = {
            let ended = Arc::clone(&ended);
            thread::spawn(move || {
                for client in listener.incoming().map_while(Result::ok) {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    // Whoever connects while the server is away sees that here too.
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", server)) {
                        let _ = carry(client, server);
                    }
                }
            })
        };
        Self { port, ended, accepting: Some(accepting) }
    }

    pub(super) fn url(&self) -> String {
        format!("nats://localhost:{}", self.port)
    }
}

impl Drop for TamperingProxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn carry(client: TcpStream, server: TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let mut client = client;
        let mut server = BufReader::new(server);
        let mut line = Vec::new();
        // Line by line, whatever the lines are: payloads pass as they are.
        while let Ok(1..) = server.read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line);
            let edited = match text.starts_with("INFO ") {
                true => text.replace("\"max_payload\":1024", "\"max_payload\":1048576").into_bytes(),
                false => line.clone(),
            };
            if client.write_all(&edited).is_err() {
                break;
            }
            line.clear();
        }
        let _ = client.shutdown(Shutdown::Both);
    });
    Ok(())
}
