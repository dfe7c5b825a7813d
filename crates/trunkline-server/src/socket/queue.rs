//! Bytes in both directions, between a codec that wants a stream and whoever does the I/O.

use std::io::{self, ErrorKind, Read, Write};

/// Buffers larger than this are given back once they are empty.
const KEPT_BYTES: usize = 16 << 10;

/// Bytes that are put in at the end and taken out at the start.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    /// How much of `bytes` was taken.
    head: usize,
}

impl Queue {
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    pub(super) fn put(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub(super) fn taken(&mut self, n: usize) {
        self.head += n;
        if self.head == self.bytes.len() {
            self.head = 0;
            match self.bytes.capacity() > KEPT_BYTES {
                true => self.bytes = Vec::new(),
                false => self.bytes.clear(),
            }
        }
    }

    /// Appends all that waits to `out`.
    pub(super) fn move_to(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.waiting());
        self.taken(self.waiting().len());
    }
}

/// A stream that never waits: what is not there yet is [`ErrorKind::WouldBlock`], and everything written is taken.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    /// From the other side.
    pub(super) incoming: Queue,
    /// To the other side.
    pub(super) outgoing: Queue,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let waiting = self.incoming.waiting();
        if waiting.is_empty() && !buffer.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = waiting.len().min(buffer.len());
        buffer[..n].copy_from_slice(&waiting[..n]);
        self.incoming.taken(n);
        Ok(n)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.put().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
