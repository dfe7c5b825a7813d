//! A NATS client of raw bytes, and an HTTP client of one request.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for anything; far more than it takes, for a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const PONG: &[u8] = b"PONG\r\n";

/// Waits for something that must come.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// A connection on which the test says every byte.
pub(crate) struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    /// Connects and reads INFO.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut raw = Self::without_info(address).await;
        let info = raw.line().await;
        assert!(info.starts_with("INFO {"), "{info}");
        raw
    }

    /// Connects and reads nothing.
    pub(crate) async fn without_info(address: SocketAddr) -> Self {
        let stream = within("connect", TcpStream::connect(address)).await.expect("the server listens");
        Self::over(stream)
    }

    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a connected socket");
        Self { stream, buffer: Vec::new() }
    }

    /// Connects with CONNECT, not verbose, with these further fields such as `"headers":true`, and a PING.
    pub(crate) async fn ready(address: SocketAddr, fields: &str) -> Self {
        let mut raw = Self::connect(address).await;
        let comma = if fields.is_empty() { "" } else { "," };
        raw.send(&format!("CONNECT {{\"verbose\":false,\"pedantic\":false{comma}{fields}}}\r\nPING\r\n"))
            .await;
        raw.expect("PONG\r\n").await;
        raw
    }

    /// The socket. What came and was not looked at is dropped.
    pub(crate) fn into_std(self) -> std::net::TcpStream {
        self.stream.into_std().expect("a socket of this runtime")
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("send", self.stream.write_all(bytes.as_ref())).await.expect("the connection stands");
    }

    /// Sends although the server may have closed the connection.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        within("send", self.stream.write_all(bytes)).await
    }

    /// Sends PING and takes what came before its PONG, the PONG excluded.
    pub(crate) async fn flush(&mut self) -> String {
        self.send("PING\r\n").await;
        let mut before = String::new();
        loop {
            match self.line().await.as_str() {
                "PONG" => return before,
                line => before.extend([line, "\r\n"]),
            }
        }
    }

    /// The next line, without its end.
    pub(crate) async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return line;
            }
            assert!(self.fill().await, "closed after {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// Takes these very bytes.
    pub(crate) async fn expect(&mut self, expected: impl AsRef<[u8]>) {
        let expected = expected.as_ref();
        while self.buffer.len() < expected.len() && self.fill().await {}
        let n = self.buffer.len().min(expected.len());
        let found: Vec<u8> = self.buffer.drain(..n).collect();
        assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(expected));
    }

    /// Takes so many bytes.
    pub(crate) async fn take(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            assert!(self.fill().await, "closed after {} of {n} bytes", self.buffer.len());
        }
        self.buffer.drain(..n).collect()
    }

    /// Everything until the server closes the connection.
    pub(crate) async fn until_closed(&mut self) -> String {
        while self.fill().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    /// Everything up to a PONG, or until the server closes the connection.
    pub(crate) async fn until_pong_or_closed(&mut self) -> String {
        while !self.buffer.ends_with(b"PONG\r\n") && self.fill().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    /// Everything up to the next PONG, which is there, too.
    pub(crate) async fn until_pong(&mut self) -> String {
        let mut looked_at = 0;
        loop {
            let new = &self.buffer[looked_at..];
            if let Some(at) = new.windows(PONG.len()).position(|bytes| bytes == PONG) {
                let all: Vec<u8> = self.buffer.drain(..looked_at + at + PONG.len()).collect();
                return String::from_utf8_lossy(&all).into_owned();
            }
            looked_at = self.buffer.len().saturating_sub(PONG.len() - 1);
            assert!(self.fill().await, "closed after {} bytes", self.buffer.len());
        }
    }

    /// Says that nothing more comes; what comes back can still be read.
    pub(crate) async fn finish_sending(&mut self) {
        within("shutdown", self.stream.shutdown()).await.expect("the connection stands");
    }

    /// Reads more; `false` when the connection is closed, by a reset too.
    async fn fill(&mut self) -> bool {
        within("read", self.stream.read_buf(&mut self.buffer)).await.is_ok_and(|n| n > 0)
    }
}

/// What HTTP answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    /// Reads the text of an answer, if it is whole.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head: head.to_owned(), body: body.to_owned() })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// Sends the text of a request, which asks to close, and reads the answer.
pub(crate) async fn http(address: SocketAddr, request: &str) -> Answer {
    let mut raw = Raw::without_info(address).await;
    raw.send(request).await;
    let text = raw.until_closed().await;
    Answer::parse(&text).unwrap_or_else(|| panic!("not an answer: {text:?}"))
}

/// GETs a path. By HTTP/1.0, so that no answer comes in chunks.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    http(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")).await
}

/// GETs a path that must answer with JSON.
pub(crate) async fn json(address: SocketAddr, path: &str) -> Value {
    let answer = get(address, path).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
    answer.json()
}
