//! NATS inside WebSocket frames, as nats-server and its clients for browsers have it: what the frames carry is one stream
//! of bytes, and where a frame ends means nothing. See RFC 6455.

use std::io::{self, ErrorKind};

use tungstenite::error::ProtocolError;
use tungstenite::handshake::machine::TryParse as _;
use tungstenite::handshake::server::{Request, create_response};
use tungstenite::http::uri::Authority;
use tungstenite::http::{HeaderMap, HeaderValue, header};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use super::layer::Goodbye;
use super::queue::Pipe;
use crate::websocket::Gate;

/// Most bytes of the HTTP request that asks for a WebSocket.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Most bytes of the reason in a close frame, behind its code.
const REASON_BYTES_MAX: usize = 123;
/// By this header programs ask for frames without masks, as on nats-server.
const NO_MASKING: &str = "Nats-No-Masking";
/// What stands before the payload of a ping, and the mask behind that.
const CONTROL_HEAD_BYTES: usize = 2;
const MASK_BYTES: usize = 4;
/// The only version of WebSocket that there is.
const VERSION: &str = "13";
/// Where clients of nats-server ask for what is not NATS for clients.
const OTHER_PROTOCOLS: [&str; 2] = ["/mqtt", "/leafnode"];
/// What is set aside for each client to read into.
const READ_BUFFER_BYTES: usize = 4 << 10;

/// What came of bytes that were received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Taken,
    /// The other side closes, and was answered.
    Closed,
}

/// A client's WebSocket.
#[derive(Debug)]
pub(super) enum Web {
    /// It is still to be asked for.
    Asking {
        gate: Gate,
        request: Vec<u8>,
    },
    Open {
        web: Box<WebSocket<Pipe>>,
        unfinished: Unfinished,
    },
}

/// About how many bytes there are of a message that is not whole.
#[derive(Debug)]
pub(super) struct Unfinished {
    bytes: usize,
    /// A message may have no more.
    bytes_max: usize,
    /// Its frames need have no masks.
    unmasked: bool,
}

impl Unfinished {
    /// So many bytes came. Pings and the like are nobody's part, and frames may come between the parts of a message without
    /// end that have nothing in them: what they take is not held.
    fn came(&mut self, bytes: usize, read: &Progress) {
        let mask = if self.unmasked { 0 } else { MASK_BYTES };
        let beside = read.control_bytes + read.controls * (CONTROL_HEAD_BYTES + mask);
        // A frame may begin anywhere in what has just come.
        let before = if read.whole { 0 } else { self.bytes };
        self.bytes = (before + bytes).saturating_sub(beside).min(self.bytes_max);
    }
}

/// What was read of what came.
#[derive(Debug, Default)]
struct Progress {
    /// The end of a message.
    whole: bool,
    /// Frames that are no part of a message, and the bytes in them.
    controls: usize,
    control_bytes: usize,
}

impl Web {
    pub(super) fn new(gate: Gate) -> Self {
        Self::Asking { gate, request: Vec::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// About how many bytes of a frame, or of a message in several, were received and not given out yet.
    pub(super) fn held_bytes(&self) -> usize {
        match self {
            Self::Asking { request, .. } => request.len(),
            // A buffer that grows has room for as much again.
            Self::Open { unfinished, .. } => 2 * unfinished.bytes,
        }
    }

    /// Takes what came: appends what frames carry to `opened`, and what the other side is to be told to `out`.
    ///
    /// # Errors
    /// The other side breaks the protocol, or may not have a WebSocket.
    pub(super) fn receive(
        &mut self,
        input: &[u8],
        opened: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> io::Result<Received> {
        match self {
            Self::Open { web, unfinished } => {
                web.get_mut().incoming.put().extend_from_slice(input);
                let (received, progress) = read(web, opened, out);
                unfinished.came(input.len(), &progress);
                received
            }
            Self::Asking { gate, request } => {
                request.extend_from_slice(input);
                let Some(asked) = answer(gate, request, out)? else { return Ok(Received::Taken) };
                let config = config(gate.message_bytes_max).accept_unmasked_frames(asked.unmasked);
                let mut web = WebSocket::from_raw_socket(Pipe::default(), Role::Server, Some(config));
                web.get_mut().incoming.put().extend_from_slice(&request[asked.length..]);
                let (received, _) = read(&mut web, opened, out);
                let unfinished =
                    Unfinished { bytes: 0, bytes_max: gate.message_bytes_max, unmasked: asked.unmasked };
                *self = Self::Open { web: Box::new(web), unfinished };
                received
            }
        }
    }

    /// Appends a frame with these bytes to `out`.
    pub(super) fn send(&mut self, bytes: Vec<u8>, out: &mut Vec<u8>) -> io::Result<()> {
        let Self::Open { web, .. } = self else { return Err(ErrorKind::NotConnected.into()) };
        let sent = web.send(Message::Binary(bytes.into())).map_err(broken);
        web.get_mut().outgoing.move_to(out);
        sent
    }

    /// Appends a close frame to `out`, unless there has been one.
    pub(super) fn close(&mut self, why: Goodbye, out: &mut Vec<u8>) {
        let Self::Open { web, .. } = self else { return };
        let (code, reason) = match why {
            Goodbye::Normal => (CloseCode::Normal, "Client Closed"),
            Goodbye::GoingAway(reason) => (CloseCode::Away, reason),
            Goodbye::ProtocolError(reason) => (CloseCode::Protocol, reason),
            Goodbye::TooLarge => (CloseCode::Size, "Maximum Message Payload Exceeded"),
            Goodbye::NotAllowed(reason) => (CloseCode::Policy, reason),
            Goodbye::ServerError(reason) => (CloseCode::Error, reason),
        };
        let _ = web.close(Some(CloseFrame { code, reason: reason.into() }));
        let _ = web.flush();
        web.get_mut().outgoing.move_to(out);
    }
}

fn config(message_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        // Into the pipe at once, which takes everything.
        .write_buffer_size(0)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max))
}

/// What a client has asked for.
struct Asked {
    /// Of the request in bytes.
    length: usize,
    /// Its frames have no mask.
    unmasked: bool,
}

/// Answers the request once it is whole.
fn answer(gate: &Gate, request: &[u8], out: &mut Vec<u8>) -> io::Result<Option<Asked>> {
    let refuse = |out: &mut Vec<u8>, status: &str, why: &str| {
        let head = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nSec-WebSocket-Version: {VERSION}\r\nContent-Type: text/plain\r\n\
             Content-Length: {}\r\n\r\n{why}\n",
            why.len() + 1
        );
        out.extend_from_slice(head.as_bytes());
        Err(io::Error::new(ErrorKind::PermissionDenied, why.to_owned()))
    };
    let (length, mut parsed) = match Request::try_parse(request) {
        Ok(Some(parsed)) => parsed,
        Ok(None) if request.len() <= REQUEST_BYTES_MAX => return Ok(None),
        Ok(None) => return refuse(out, "431 Request Header Fields Too Large", "the request is too long"),
        Err(error @ Error::Protocol(ProtocolError::WrongHttpMethod)) => {
            return refuse(out, "405 Method Not Allowed", &error.to_string());
        }
        Err(error) => return refuse(out, "400 Bad Request", &error.to_string()),
    };
    if !has_host(parsed.headers()) {
        return refuse(out, "400 Bad Request", "there is not one header Host that names one");
    }
    if OTHER_PROTOCOLS.iter().any(|path| parsed.uri().path().ends_with(path)) {
        return refuse(out, "404 Not Found", "only NATS is spoken here");
    }
    simplify(parsed.headers_mut());
    let response = match create_response(&parsed) {
        Ok(response) => response,
        Err(error) => return refuse(out, "400 Bad Request", &error.to_string()),
    };
    if let Err(refusal) = gate.check(parsed.headers()) {
        return refuse(out, "403 Forbidden", &refusal.to_string());
    }
    // Programs that are no browsers may leave masks out and save the work: they have no pages that a proxy on the way
    // would have to be protected from. Browsers cannot send this header.
    let unmasked = parsed.headers().get(NO_MASKING).is_some_and(|value| value == "true");
    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map_or(&b""[..], HeaderValue::as_bytes);
    // In the letters of RFC 6455: what reads them letter by letter finds them.
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    );
    out.extend_from_slice(&[b"Sec-WebSocket-Accept: ", accept, b"\r\n"].concat());
    if unmasked {
        out.extend_from_slice(b"Nats-No-Masking: true\r\n");
    }
    out.extend_from_slice(b"\r\n");
    Ok(Some(Asked { length, unmasked }))
}

/// Whether there is one `Host`, and what it could be.
fn has_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let is_host = |host: &HeaderValue| Authority::try_from(host.as_bytes()).is_ok();
    hosts.next().is_some_and(is_host) && hosts.next().is_none()
}

/// Headers that are lists, of which one word is looked for, are that word from here on: they may come in any number and with
/// other words, as on nats-server, and are read further by who takes one word alone.
fn simplify(headers: &mut HeaderMap) {
    let wanted = [
        (header::UPGRADE, "websocket"),
        (header::CONNECTION, "upgrade"),
        (header::SEC_WEBSOCKET_VERSION, VERSION),
    ];
    for (name, word) in wanted {
        let values =
            headers.get_all(&name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        if values.map(<[u8]>::trim_ascii).any(|one| one.eq_ignore_ascii_case(word.as_bytes())) {
            headers.insert(name, HeaderValue::from_static(word));
        }
    }
}

fn read(
    web: &mut WebSocket<Pipe>,
    opened: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> (io::Result<Received>, Progress) {
    let mut progress = Progress::default();
    let received = loop {
        match web.read() {
            // Which of the two makes no difference to nats-server.
            Ok(Message::Binary(bytes)) => {
                opened.extend_from_slice(&bytes);
                progress.whole = true;
            }
            Ok(Message::Text(text)) => {
                opened.extend_from_slice(text.as_bytes());
                progress.whole = true;
            }
            // The answers to both are queued, and sent by the next call.
            Ok(Message::Ping(bytes) | Message::Pong(bytes)) => {
                progress.controls += 1;
                progress.control_bytes += bytes.len();
            }
            Ok(Message::Close(_) | Message::Frame(_)) => {}
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => break Ok(Received::Taken),
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => break Ok(Received::Closed),
            Err(error) => {
                let code = match &error {
                    Error::Capacity(_) => CloseCode::Size,
                    Error::Utf8(_) => CloseCode::Invalid,
                    _ => CloseCode::Protocol,
                };
                let _ = web.close(Some(CloseFrame { code, reason: reason(&error).into() }));
                break Err(broken(error));
            }
        }
    };
    let _ = web.flush();
    web.get_mut().outgoing.move_to(out);
    (received, progress)
}

/// What a close frame says of what was wrong, as far as there is room in it.
fn reason(error: &Error) -> String {
    let mut reason = error.to_string();
    while reason.len() > REASON_BYTES_MAX {
        reason.pop();
    }
    reason
}

/// Reads a client's request and frames from the pieces in which they come, for what is fuzzed. Says whether it is over, and
/// whether the request was answered by a WebSocket.
pub(crate) fn unframe<'a>(
    gate: Gate,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    opened: &mut Vec<u8>,
    answers: &mut Vec<u8>,
) -> (bool, bool) {
    let mut web = Web::new(gate);
    for piece in pieces {
        if !matches!(web.receive(piece, opened, answers), Ok(Received::Taken)) {
            return (true, web.is_open());
        }
    }
    (false, web.is_open())
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::new(ErrorKind::InvalidData, other),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::websocket::{Origins, WebSocketOptions};

    const MAX_PAYLOAD: usize = 1 << 20;

    fn open(more: &str) -> Web {
        let origins = Origins::new(&WebSocketOptions::at(([127, 0, 0, 1], 0).into())).expect("no origins");
        let mut web = Web::new(Gate::new(Arc::new(origins), false, MAX_PAYLOAD));
        let request = format!(
            "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{more}\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        receive(&mut web, request.as_bytes());
        assert!(web.is_open());
        web
    }

    fn receive(web: &mut Web, input: &[u8]) -> usize {
        let (mut opened, mut out) = (Vec::new(), Vec::new());
        assert_eq!(web.receive(input, &mut opened, &mut out).expect("good frames"), Received::Taken);
        opened.len()
    }

    /// With a mask that changes nothing.
    fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        assert!(length < 126);
        [&[head, 0x80 | length, 0, 0, 0, 0], payload].concat()
    }

    const BINARY: u8 = 0x82;
    const BEGIN: u8 = 0x02;
    const PART: u8 = 0x00;
    const END: u8 = 0x80;
    const PING: u8 = 0x89;
    const PONG: u8 = 0x8a;

    #[test]
    fn what_is_no_part_of_a_message_is_not_held() {
        for (head, payload) in [(PING, &b""[..]), (PING, b"a ping"), (PONG, b"pong"), (BINARY, b"")] {
            let mut web = open("");
            let some = frame(head, payload).repeat(1000);
            (0..1000).for_each(|_| assert_eq!(receive(&mut web, &some), 0));
            assert!(web.held_bytes() <= 2 * some.len(), "{head:x}: {}", web.held_bytes());
        }
        let mut web = open("Nats-No-Masking: true\r\n");
        let some = [PING, 0].repeat(1000);
        (0..1000).for_each(|_| assert_eq!(receive(&mut web, &some), 0));
        assert!(web.held_bytes() <= 2 * some.len(), "{}", web.held_bytes());
    }

    #[test]
    fn parts_of_a_message_are_held_until_it_is_whole_and_never_more_than_it_may_have() {
        let mut web = open("");
        receive(&mut web, &frame(BEGIN, b"PING"));
        receive(&mut web, &frame(PART, &[b' '; 100]).repeat(1000));
        assert!((200_000..250_000).contains(&web.held_bytes()), "{}", web.held_bytes());
        // Pings between the parts take nothing away from what is held.
        (0..100).for_each(|_| assert_eq!(receive(&mut web, &frame(PING, b"ping").repeat(1000)), 0));
        assert!(web.held_bytes() >= 200_000, "{}", web.held_bytes());
        let empty = frame(PART, b"").repeat(10_000);
        (0..1000).for_each(|_| assert_eq!(receive(&mut web, &empty), 0));
        assert!(web.held_bytes() <= 8 * MAX_PAYLOAD, "{}", web.held_bytes());
        assert_eq!(receive(&mut web, &frame(END, b"\r\n")), 4 + 100_000 + 2);
        assert!(web.held_bytes() < 100, "{}", web.held_bytes());
    }
}
