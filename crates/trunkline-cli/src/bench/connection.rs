//! One raw client connection: a blocking socket, a large read buffer, and nothing between it and the load.
//! Every wait ends after [`POLL`] to look at [`Halt`]. Messages are interpreted by who reads them.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Instant;

use serde::Deserialize;

use super::endpoint::Endpoint;
use super::error::BenchError;
use super::frames::{self, Frame};
use super::halt::{Halt, POLL};

/// Buffer of connections that read only control frames; grows when a frame needs it.
pub(super) const CONTROL_BUFFER_BYTES: usize = 8 * 1024;

/// A frame larger than this is not waited for. Above any `max_payload` that NATS allows.
const FRAME_BYTES_MAX: usize = 80 * 1024 * 1024;

/// The fields of INFO that matter to a load.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ServerInfo {
    server_name: String,
    version: String,
    max_payload: Option<usize>,
    tls_required: bool,
}

/// What a wait for bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    Bytes,
    /// Nothing came for [`POLL`].
    Tick,
}

/// What messages are to who waits for control frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Messages {
    /// There can be none.
    Foreign,
    Dropped,
}

/// A connection that the server has accepted and whose credentials it has checked.
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    info: ServerInfo,
}

impl Connection {
    /// Connects, sends CONNECT and waits until a PING is answered, so that every refusal shows here.
    ///
    /// # Errors
    /// No connection, no NATS server, TLS wanted, or credentials refused.
    pub(super) fn open(endpoint: &Endpoint, buffer_bytes: usize, halt: &Halt) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Connect { address: endpoint.address(), source };
        let mut stream = Err(std::io::Error::from(ErrorKind::AddrNotAvailable));
        for address in (endpoint.host.as_str(), endpoint.port).to_socket_addrs().map_err(failed)? {
            stream = TcpStream::connect_timeout(&address, halt.timeout);
            if stream.is_ok() {
                break;
            }
        }
        let stream = stream.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(POLL)).map_err(failed)?;
        stream.set_write_timeout(Some(POLL)).map_err(failed)?;
        let buffer = vec![0; buffer_bytes.max(CONTROL_BUFFER_BYTES)].into();
        let mut connection = Self { stream, buffer, start: 0, end: 0, info: ServerInfo::default() };
        connection.shake_hands(endpoint, halt)?;
        Ok(connection)
    }

    /// What the server calls itself: name and version.
    pub(super) fn server(&self) -> (&str, &str) {
        (&self.info.server_name, &self.info.version)
    }

    /// # Errors
    /// [`BenchError::PayloadLimit`] when the server would refuse such payloads.
    pub(super) fn check_payload(&self, payload_bytes: usize) -> Result<(), BenchError> {
        match self.info.max_payload {
            Some(max_payload) if payload_bytes > max_payload => {
                Err(BenchError::PayloadLimit { payload_bytes, max_payload })
            }
            _ => Ok(()),
        }
    }

    /// The bytes received and not yet consumed.
    pub(super) fn pending(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Drops bytes from the front of [`Self::pending`].
    pub(super) fn consume(&mut self, bytes: usize) {
        self.start += bytes.min(self.end - self.start);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Waits for bytes, at most for [`POLL`].
    ///
    /// # Errors
    /// The run has ended, or the connection has.
    pub(super) fn fill(&mut self, halt: &Halt) -> Result<Fill, BenchError> {
        self.make_room()?;
        loop {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(BenchError::Closed),
                Ok(bytes) => {
                    self.end += bytes;
                    return Ok(Fill::Bytes);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    halt.check()?;
                    return Ok(Fill::Tick);
                }
                Err(source) => {
                    return Err(BenchError::Socket { doing: "read from the server", source });
                }
            }
        }
    }

    /// Writes everything, however long the server pushes back, up to the timeout without progress.
    ///
    /// # Errors
    /// The run has ended, the connection has, or the server took nothing for the timeout. What the server
    /// said before it closed is preferred to the bare broken pipe.
    pub(super) fn send(&mut self, mut bytes: &[u8], halt: &Halt) -> Result<(), BenchError> {
        let mut stuck_since: Option<Instant> = None;
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    stuck_since = None;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    halt.check()?;
                    let since = *stuck_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= halt.timeout {
                        return Err(BenchError::Stalled {
                            role: "a full socket".to_owned(),
                            waited: halt.timeout,
                        });
                    }
                }
                Err(source) => return Err(self.last_words(source)),
            }
        }
        Ok(())
    }

    /// Answers what the server asked on a connection that only publishes, without waiting for it.
    ///
    /// # Errors
    /// As [`Self::fill`], or what the server says with `-ERR`.
    pub(super) fn answer_pings(&mut self, halt: &Halt) -> Result<(), BenchError> {
        let nonblocking = |on, stream: &TcpStream| {
            stream
                .set_nonblocking(on)
                .map_err(|source| BenchError::Socket { doing: "switch the socket's mode", source })
        };
        nonblocking(true, &self.stream)?;
        let filled = self.fill(halt);
        nonblocking(false, &self.stream)?;
        if filled? == Fill::Bytes {
            self.handle_control(Messages::Foreign, halt)?;
        }
        Ok(())
    }

    /// Sends PING and waits for the PONG: the server has then handled all that was sent before.
    /// Only for connections that receive no messages.
    ///
    /// # Errors
    /// As [`Self::fill`], `-ERR`, or no PONG within the timeout.
    pub(super) fn round_trip(&mut self, role: &str, halt: &Halt) -> Result<(), BenchError> {
        self.wait_for_pong(role, Messages::Foreign, halt)
    }

    /// The same amid messages that others publish, which are dropped.
    ///
    /// # Errors
    /// As [`Self::round_trip`].
    pub(super) fn round_trip_amid_messages(&mut self, role: &str, halt: &Halt) -> Result<(), BenchError> {
        self.wait_for_pong(role, Messages::Dropped, halt)
    }

    fn wait_for_pong(&mut self, role: &str, messages: Messages, halt: &Halt) -> Result<(), BenchError> {
        self.send(b"PING\r\n", halt)?;
        let since = Instant::now();
        loop {
            if self.handle_control(messages, halt)? {
                return Ok(());
            }
            if self.fill(halt)? == Fill::Tick && since.elapsed() >= halt.timeout {
                return Err(BenchError::Stalled { role: role.to_owned(), waited: halt.timeout });
            }
        }
    }

    fn shake_hands(&mut self, endpoint: &Endpoint, halt: &Halt) -> Result<(), BenchError> {
        let since = Instant::now();
        self.info = loop {
            match frames::next(self.pending())? {
                Some((Frame::Info(json), length)) => {
                    let info = serde_json::from_slice(json).unwrap_or_default();
                    self.consume(length);
                    break info;
                }
                Some((Frame::Error(text), _)) => {
                    return Err(BenchError::Refused { text: frames::shown(text) });
                }
                Some((_, length)) => self.consume(length),
                None => {
                    if self.fill(halt)? == Fill::Tick && since.elapsed() >= halt.timeout {
                        let role = "the handshake".to_owned();
                        return Err(BenchError::Stalled { role, waited: halt.timeout });
                    }
                }
            }
        };
        if self.info.tls_required {
            return Err(BenchError::TlsRequired { address: endpoint.address() });
        }
        self.send(endpoint.connect_line().as_bytes(), halt)?;
        self.round_trip("the handshake", halt)
    }

    /// Acts on all whole frames in the buffer. True when one was a PONG.
    fn handle_control(&mut self, messages: Messages, halt: &Halt) -> Result<bool, BenchError> {
        let mut pong = false;
        loop {
            let pending = self.pending();
            let Some((frame, length)) = frames::next(pending)? else {
                return Ok(pong);
            };
            match frame {
                Frame::Pong => pong = true,
                Frame::Ping => self.send(b"PONG\r\n", halt)?,
                Frame::Info(_) | Frame::Ok => {}
                Frame::Error(text) => {
                    return Err(BenchError::Refused { text: frames::shown(text) });
                }
                Frame::Message(_) if messages == Messages::Dropped => {}
                Frame::Message(_) => {
                    let line = frames::shown(&pending[..length.min(80)]);
                    return Err(BenchError::Foreign { role: "a publisher".to_owned(), line });
                }
            }
            self.consume(length);
        }
    }

    /// Leaves room for at least half a buffer, or doubles the buffer when one frame fills it.
    fn make_room(&mut self) -> Result<(), BenchError> {
        if self.start > 0 && self.buffer.len() - self.end < self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            if self.buffer.len() >= FRAME_BYTES_MAX {
                return Err(BenchError::Frame(frames::FrameError::LineTooLong));
            }
            let mut larger = vec![0; self.buffer.len() * 2];
            larger[..self.end].copy_from_slice(&self.buffer);
            self.buffer = larger.into();
        }
        Ok(())
    }

    /// After a failed write: the `-ERR` that explains it, if the server sent one before it closed.
    fn last_words(&mut self, source: std::io::Error) -> BenchError {
        while self.make_room().is_ok() {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(bytes) if bytes > 0 => self.end += bytes,
                _ => break,
            }
        }
        while let Ok(Some((frame, length))) = frames::next(self.pending()) {
            if let Frame::Error(text) = frame {
                return BenchError::Refused { text: frames::shown(text) };
            }
            self.consume(length);
        }
        BenchError::Socket { doing: "write to the server", source }
    }
}
