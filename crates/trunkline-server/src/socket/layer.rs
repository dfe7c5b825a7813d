//! What is on top of TCP: TLS, WebSocket, or WebSocket in TLS. Bytes in, bytes out; no socket comes in here.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};

use super::queue::Queue;
use super::web::{Received, Web};
use crate::websocket::Gate;

/// Most bytes that are sealed at a time: a frame, or four records of TLS.
const SEALED_AT_ONCE_BYTES: usize = 64 << 10;
/// Most bytes of the head of a frame.
const FRAME_HEAD_BYTES: usize = 14;

/// How far the handshakes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Done,
    /// The other side has to say something.
    Receive,
    /// The other side has to take something.
    Send,
}

/// Why the server ends a connection, as a close frame says it: the kind of reason, and in the words of nats-server which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goodbye {
    Normal,
    GoingAway(&'static str),
    ProtocolError(&'static str),
    TooLarge,
    NotAllowed(&'static str),
    ServerError(&'static str),
}

#[derive(Debug)]
pub(crate) struct Layer {
    /// Boxed, as it is a kilobyte that WebSocket without TLS does not have.
    tls: Option<Box<ServerConnection>>,
    web: Option<Web>,
    /// What came, without the layer's trimmings.
    opened: Queue,
    /// What is to go to TCP.
    sealed: Queue,
    /// How many bytes came when there was last nothing in them to open.
    aside: usize,
    /// Nothing more will come.
    ended: bool,
    parted: bool,
}

impl Layer {
    /// # Errors
    /// None that the configuration of a server could have.
    pub(crate) fn new(tls: Option<Arc<ServerConfig>>, gate: Option<Gate>) -> Result<Self, rustls::Error> {
        let tls = match tls {
            None => None,
            Some(config) => {
                let mut connection = ServerConnection::new(config)?;
                // What is sealed at a time is bounded here, and taken at once.
                connection.set_buffer_limit(None);
                Some(Box::new(connection))
            }
        };
        let (opened, sealed) = (Queue::default(), Queue::default());
        Ok(Self { tls, web: gate.map(Web::new), opened, sealed, aside: 0, ended: false, parted: false })
    }

    pub(crate) fn tls(&self) -> Option<&ServerConnection> {
        self.tls.as_deref()
    }

    pub(super) fn progress(&self) -> Progress {
        if !self.sealed.waiting().is_empty() {
            return Progress::Send;
        }
        let shaking = self.tls.as_ref().is_some_and(|tls| tls.is_handshaking());
        match shaking || self.web.as_ref().is_some_and(|web| !web.is_open()) {
            true => Progress::Receive,
            false => Progress::Done,
        }
    }

    /// Bytes that came and were not read.
    pub(super) fn held_bytes(&self) -> usize {
        self.opened.waiting().len() + self.web.as_ref().map_or(0, Web::held_bytes)
    }

    pub(super) fn opened(&self) -> &[u8] {
        self.opened.waiting()
    }

    pub(super) fn taken(&mut self, n: usize) {
        self.opened.taken(n);
    }

    pub(super) fn aside(&self) -> usize {
        self.aside
    }

    pub(super) fn set_aside(&mut self, bytes: usize) {
        self.aside = bytes;
    }

    pub(super) fn sealed(&self) -> &[u8] {
        self.sealed.waiting()
    }

    pub(super) fn sent(&mut self, n: usize) {
        self.sealed.taken(n);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Takes what came from TCP.
    ///
    /// # Errors
    /// The other side breaks a protocol. What it is to be told is in `sealed`.
    pub(super) fn receive(&mut self, mut input: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return self.receive_frames(input) };
        let mut plain = Vec::new();
        let outcome = loop {
            if input.is_empty() {
                break Ok(());
            }
            if let Err(error) = tls.read_tls(&mut input) {
                break Err(error);
            }
            match tls.process_new_packets() {
                Ok(state) => {
                    let start = plain.len();
                    plain.resize(start + state.plaintext_bytes_to_read(), 0);
                    if let Err(error) = tls.reader().read_exact(&mut plain[start..]) {
                        break Err(error);
                    }
                    if state.peer_has_closed() {
                        self.ended = true;
                        break Ok(());
                    }
                }
                Err(error) => break Err(io::Error::new(ErrorKind::InvalidData, error)),
            }
        };
        let sent = self.seal(&[]);
        let opened = self.receive_frames(&plain);
        outcome.and(sent).and(opened)
    }

    /// Takes what is WebSocket, if there is any.
    fn receive_frames(&mut self, input: &[u8]) -> io::Result<()> {
        let Some(web) = &mut self.web else {
            self.opened.put().extend_from_slice(input);
            return Ok(());
        };
        let mut out = Vec::new();
        let received = web.receive(input, self.opened.put(), &mut out);
        let sent = self.seal(&out);
        if received? == Received::Closed {
            self.ended = true;
        }
        sent
    }

    /// Takes what is to be sent, up to a bound; says how much that was.
    pub(super) fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut room = SEALED_AT_ONCE_BYTES;
        let mut bytes = Vec::with_capacity(room.min(slices.iter().map(|slice| slice.len()).sum()));
        for slice in slices {
            let taken = slice.len().min(room);
            bytes.extend_from_slice(&slice[..taken]);
            room -= taken;
        }
        let taken = bytes.len();
        if let Some(web) = &mut self.web {
            let mut out = Vec::with_capacity(taken + FRAME_HEAD_BYTES);
            web.send(bytes, &mut out)?;
            bytes = out;
        }
        self.seal(&bytes)?;
        Ok(taken)
    }

    /// Hands over to TCP, through TLS if there is any.
    fn seal(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            self.sealed.put().extend_from_slice(bytes);
            return Ok(());
        };
        tls.writer().write_all(bytes)?;
        while tls.wants_write() {
            tls.write_tls(self.sealed.put())?;
        }
        Ok(())
    }

    /// Says on every floor that this was all.
    pub(super) fn say_goodbye(&mut self, why: Goodbye) {
        if std::mem::replace(&mut self.parted, true) {
            return;
        }
        let mut out = Vec::new();
        if let Some(web) = &mut self.web {
            web.close(why, &mut out);
        }
        let _ = self.seal(&out);
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = self.seal(&[]);
        }
    }
}
