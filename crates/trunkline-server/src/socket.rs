//! The connection to a client: plain TCP, or TLS, WebSocket or both on top of it.
//!
//! All of them are written to by whoever has something, without waiting, as plain sockets are: what is on top of TCP keeps
//! no task and does no I/O of its own, see [`layer`]. A plain socket pays for that with one test of a pointer.

mod layer;
mod queue;
mod web;

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::OnceLock;

use parking_lot::Mutex;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

pub(crate) use layer::{Goodbye, Layer, Progress};
pub(crate) use web::unframe;

/// Read buffer of a worker thread for what is to be decrypted or taken out of frames.
const SEALED_BYTES: usize = 64 << 10;

thread_local! {
    // Shared by all connections of a worker thread; made when the first of them needs it.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(crate) struct Socket {
    tcp: TcpStream,
    /// What is on top of TCP, once it is there. The mutex guards its state, and with it the order of what is written;
    /// it is taken inside that of the outbox, and never held across an await.
    layer: OnceLock<Box<Mutex<Layer>>>,
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self { tcp, layer: OnceLock::new() }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Puts a layer on top, once and for all: everything that is read and written from now on goes through it.
    pub(crate) fn cover(&self, layer: Layer) {
        let _ = self.layer.set(Box::new(Mutex::new(layer)));
    }

    #[inline]
    pub(crate) fn is_covered(&self) -> bool {
        self.layer.get().is_some()
    }

    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.tcp.ready(interest).await
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.tcp.readable().await
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.tcp.writable().await
    }

    /// Reads what there is; 0 is the end. As long as it has not said [`ErrorKind::WouldBlock`] there may be more, and
    /// [`Socket::ready`] returns at once. [`ErrorKind::Interrupted`] is a layer's: some bytes have come, and nothing in them was
    /// for who reads.
    #[inline]
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.layer.get() {
            None => self.tcp.try_read(buffer),
            Some(layer) => self.open(&mut layer.lock(), |opened| {
                let taken = opened.len().min(buffer.len());
                buffer[..taken].copy_from_slice(&opened[..taken]);
                taken
            }),
        }
    }

    /// Writes what the socket takes; says how much that was. With a layer, what it has taken may still be on its way to
    /// TCP: [`Socket::unsent`].
    #[inline]
    pub(crate) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.layer.get() {
            None => self.tcp.try_write_vectored(slices),
            Some(layer) => self.seal(&mut layer.lock(), slices),
        }
    }

    #[inline]
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.layer.get() {
            None => self.tcp.try_write(bytes),
            Some(layer) => self.seal(&mut layer.lock(), &[IoSlice::new(bytes)]),
        }
    }

    /// Bytes that were taken and that TCP has not taken yet.
    #[inline]
    pub(crate) fn unsent(&self) -> usize {
        self.layer.get().map_or(0, |layer| layer.lock().sealed().len())
    }

    /// Bytes of memory that the layer keeps of what came and is not a whole frame, or was not read yet.
    #[inline]
    pub(crate) fn held_bytes(&self) -> usize {
        self.layer.get().map_or(0, |layer| layer.lock().held_bytes())
    }

    /// How many bytes came when there was last nothing in them for who reads.
    pub(crate) fn came_aside(&self) -> usize {
        self.layer.get().map_or(0, |layer| layer.lock().aside())
    }

    /// Sends such bytes; says how many. None at all is [`ErrorKind::WouldBlock`].
    pub(crate) fn try_flush(&self) -> io::Result<usize> {
        self.layer.get().map_or(Ok(0), |layer| self.drain(&mut layer.lock()))
    }

    /// One step towards the end of the layer's handshakes.
    pub(crate) fn try_shake_hands(&self) -> io::Result<Progress> {
        let Some(layer) = self.layer.get() else { return Ok(Progress::Done) };
        let layer = &mut *layer.lock();
        loop {
            self.drain_some(layer)?;
            let progress = layer.progress();
            if matches!(progress, Progress::Done | Progress::Send) {
                return Ok(progress);
            }
            match self.take_in(layer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::Receive),
                Err(error) => return Err(error),
            }
        }
    }

    /// Looks at the layer, if there is one.
    pub(crate) fn layer<T>(&self, look: impl FnOnce(&Layer) -> T) -> Option<T> {
        self.layer.get().map(|layer| look(&layer.lock()))
    }

    /// Tells the other side, as its protocols do, that nothing more will come, as far as the socket takes it now.
    pub(crate) fn say_goodbye(&self, why: Goodbye) {
        if let Some(layer) = self.layer.get() {
            let layer = &mut *layer.lock();
            layer.say_goodbye(why);
            let _ = self.drain(layer);
        }
    }

    fn open(&self, layer: &mut Layer, take: impl FnOnce(&[u8]) -> usize) -> io::Result<usize> {
        // Once: of what is for the layer alone, such as pings, there may be no end, and others wait for this thread.
        if layer.opened().is_empty() {
            let came = self.take_in(layer)?;
            if came == 0 {
                return Ok(0);
            }
            if layer.opened().is_empty() {
                layer.set_aside(came);
                return Err(ErrorKind::Interrupted.into());
            }
        }
        let taken = take(layer.opened());
        layer.taken(taken);
        Ok(taken)
    }

    /// Reads once from TCP, and says how much; 0 when the other side has ended.
    fn take_in(&self, layer: &mut Layer) -> io::Result<usize> {
        if layer.has_ended() {
            return Ok(0);
        }
        SEALED.with_borrow_mut(|buffer| {
            buffer.resize(SEALED_BYTES, 0);
            let n = self.tcp.try_read(buffer)?;
            if n == 0 {
                layer.end();
                return Ok(0);
            }
            let outcome = layer.receive(&buffer[..n]);
            // Even of a failure the other side is told: an alert, a close frame, an HTTP error.
            let sent = self.drain_some(layer);
            outcome.and(sent).map(|()| n)
        })
    }

    fn seal(&self, layer: &mut Layer, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        // What was taken before goes first, or the layer would keep any amount.
        while !layer.sealed().is_empty() {
            self.drain(layer)?;
        }
        let taken = layer.send(slices)?;
        self.drain_some(layer)?;
        Ok(taken)
    }

    fn drain_some(&self, layer: &mut Layer) -> io::Result<()> {
        match self.drain(layer) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    fn drain(&self, layer: &mut Layer) -> io::Result<usize> {
        let mut drained = 0;
        while !layer.sealed().is_empty() {
            match self.tcp.try_write(layer.sealed()) {
                Ok(n) => {
                    layer.sent(n);
                    drained += n;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock && drained > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(drained)
    }
}
