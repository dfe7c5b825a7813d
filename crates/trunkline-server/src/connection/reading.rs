//! From the socket to the session: what is read at a time, and what is kept of it.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::input::CARRIED_BYTES;
use super::{Connection, PIECE_BYTES};
use crate::batches::Batch;
use crate::client::Client;
use crate::closed::Closed;
use crate::session::Fed;
use crate::staging::Staging;
use crate::turns::Long;

/// Read buffer of a worker thread. What nobody has filled takes no memory.
const READ_BYTES: usize = 1 << 20;
/// Most that is read in a short turn. Clients that send half as much or more each time that they send take long ones.
pub(super) const SHORT_BYTES: usize = 32 << 10;
/// How often in a row a client is not read when the process has no memory.
const HELD_MAX: u32 = 10;

thread_local! {
    // Shared by all connections of a worker thread: used between two awaits, empty at each.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
    pub(super) static STAGING: RefCell<Staging> = RefCell::new(Staging::default());
}

/// What a read came to.
pub(super) enum Read {
    /// Go on; a receiver of what was published does not keep up.
    Batch { behind: Option<Arc<Client>> },
    /// Nothing to read now.
    Empty,
    /// Something came that was for TLS or WebSocket alone.
    Aside,
    /// Nothing was read, as the process has no memory for it.
    Held,
    /// The connection is over.
    Close(Closed),
}

impl Connection {
    /// Its next turn is one of those that wait for each other, see [`Turns`](crate::turns::Turns).
    pub(super) fn takes_long(&self) -> bool {
        self.more || self.lately_bytes >= SHORT_BYTES || self.input.is_large()
    }

    /// What such a turn is for.
    pub(super) fn long(&self) -> Long {
        if self.input.is_large() { Long::Part } else { Long::Batch }
    }

    /// Reads at most so many bytes, and has what is whole acted on.
    pub(super) fn read(&mut self, most: usize) -> Read {
        // Only for a while: what uses up the memory may be what nobody here can do anything about.
        if self.server.memory.is_exceeded() && self.held < HELD_MAX {
            self.server.memory.keep();
            if self.server.memory.is_exceeded() {
                return Read::Held;
            }
        }
        self.held = 0;
        let read = match self.need > CARRIED_BYTES {
            _ if self.more => self.go_on(),
            true => self.read_large(most),
            false => self.read_shared(most),
        };
        self.charge_input();
        // After each batch, and with no buffer in use: it may be this client that has to go.
        self.server.memory.keep();
        read
    }

    /// Charges what is kept until the next batch. A connection in a steady state has the same buffers after each.
    #[inline]
    pub(super) fn charge_input(&mut self) {
        let held = self.input.held_bytes() + self.socket.held_bytes();
        if self.client.partial_bytes.load(Ordering::Relaxed) != held {
            self.client.partial_bytes.store(held, Ordering::Relaxed);
        }
        self.charge.set(held + self.session.held_bytes());
    }

    /// Has more of what was read acted on.
    fn go_on(&mut self) -> Read {
        let (fed, behind) = self.feed_own();
        self.after(fed, behind)
    }

    /// Reads into the thread's buffer, behind the start of an operation if there is one.
    fn read_shared(&mut self, most: usize) -> Read {
        READ.with_borrow_mut(|buffer| {
            let start = self.input.len();
            buffer[..start].copy_from_slice(self.input.bytes());
            let end = buffer.len().min(start + self.piece_bytes.min(most));
            let outcome = self.socket.try_read(&mut buffer[start..end]);
            let n = match self.has_read(outcome) {
                Ok(n) => n,
                Err(read) => return read,
            };
            let input = &buffer[..start + n];
            let (fed, behind) = self.feed(input);
            if fed.more {
                self.piece_bytes = PIECE_BYTES;
            } else if n == self.piece_bytes {
                self.piece_bytes = (2 * self.piece_bytes).min(self.server.staging.read_bytes);
            }
            let total = if fed.more { 0 } else { fed.need };
            if let Err(error) = self.input.replace(&input[fed.consumed..], total, &self.server.spares) {
                return self.no_memory(&error);
            }
            self.after(fed, behind)
        })
    }

    /// Reads the rest of a large operation, and not a byte more.
    fn read_large(&mut self, most: usize) -> Read {
        if let Err(error) = self.input.reserve(self.need, &self.server.spares) {
            return self.no_memory(&error);
        }
        let missing = self.need - self.input.len();
        let outcome = self.socket.try_read(self.input.room(missing.min(most)));
        match self.has_read(outcome) {
            Ok(n) => self.input.fill(n),
            Err(read) => return read,
        }
        if self.input.len() < self.need {
            return Read::Batch { behind: None };
        }
        let (fed, behind) = self.feed_own();
        self.after(fed, behind)
    }

    /// Says how much has come, or what the read came to where that was nothing.
    fn has_read(&mut self, outcome: io::Result<usize>) -> Result<usize, Read> {
        match outcome {
            Ok(0) => Err(Read::Close(Closed::ByClient)),
            Ok(n) => {
                self.turn_bytes += n;
                self.lately_bytes += n;
                Ok(n)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.lately_bytes /= 2;
                Err(Read::Empty)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                let came = self.socket.came_aside();
                self.turn_bytes += came;
                self.lately_bytes += came;
                Err(Read::Aside)
            }
            Err(error) => Err(Read::Close(ending_of(&error))),
        }
    }

    fn no_memory(&self, error: &io::Error) -> Read {
        let (client, need_bytes) = (self.client.id, self.need);
        tracing::warn!(client, need_bytes, %error, "no memory for what this client sends, cut off");
        Read::Close(Closed::Memory)
    }

    /// Has what waits acted on.
    fn feed_own(&mut self) -> (Fed, Option<Arc<Client>>) {
        let input = std::mem::take(&mut self.input);
        let outcome = self.feed(input.bytes());
        self.input = input;
        self.input.consume(outcome.0.consumed);
        outcome
    }

    /// Has the input acted on and everything staged by it written.
    pub(super) fn feed(&mut self, input: &[u8]) -> (Fed, Option<Arc<Client>>) {
        let _batch = Batch::begin();
        STAGING.with_borrow_mut(|staging| {
            staging.begin(self.server.staging);
            let fed = self.session.feed(input, staging);
            let behind = staging.flush(self.client.id, input);
            (fed, behind)
        })
    }

    fn after(&mut self, fed: Fed, behind: Option<Arc<Client>>) -> Read {
        (self.need, self.more) = (fed.need, fed.more);
        if fed.wait {
            self.start_verifying();
        }
        self.forget_deadline();
        match fed.close {
            Some(why) => Read::Close(why),
            None => Read::Batch { behind },
        }
    }
}

/// What the end of a connection is called whose socket cannot be read. TLS that ends without saying so is an end like
/// others: most clients end it that way.
fn ending_of(error: &io::Error) -> Closed {
    match error.kind() {
        ErrorKind::UnexpectedEof => Closed::ByClient,
        _ => Closed::ReadError,
    }
}
