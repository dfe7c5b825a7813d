//! The NATS client protocol, sans I/O: bytes in, values out, and the way back.
//!
//! What lives here: the parser of what clients send ([`parse`]), the writers of what a server sends
//! ([`encode`]), the two JSON objects of the handshake ([`ConnectOptions`], [`ServerInfo`]), header
//! blocks ([`headers`]), the texts of `-ERR` ([`ProtocolError`], [`ServerError`]), and the same
//! protocol seen from a client ([`client`]). What must never come in: sockets, clocks, tasks,
//! sessions, and any opinion on what a valid subject is.
//!
//! Parsed operations borrow from the buffer they were read from, and no operation allocates.
//!
//! The protocol is described on <https://docs.nats.io/reference/reference-protocols/nats-protocol>,
//! headers in ADR-4 of <https://github.com/nats-io/nats-architecture-and-design>.
//!
//! # Examples
//!
//! ```
//! use trunkline_protocol::{ClientOp, Limits, Parsed, encode, parse};
//!
//! let buf = b"PUB greet.oslo 5\r\nhello\r\n"; let Parsed::Op(ClientOp::Pub { subject, payload, ..
//! }, consumed) = parse(buf, &Limits::default())? else {
//!     panic!("the operation is complete");
//! };
//! assert_eq!((subject, payload, consumed), (&b"greet.oslo"[..], &b"hello"[..], buf.len()));
//!
//! let mut out = Vec::new();
//! encode::msg(&mut out, subject, b"7", None, None, payload);
//! assert_eq!(out, b"MSG greet.oslo 7 5\r\nhello\r\n");
//! # Ok::<(), trunkline_protocol::ProtocolError>(())
//! ```

pub mod client;
mod connect;
pub mod encode;
mod error;
pub mod headers;
mod info;
mod parse;
mod plain;
mod received;
mod scan;
mod server_error;

pub use connect::{ConnectError, ConnectOptions};
pub use error::{Problem, ProtocolError, Snippet};
pub use headers::{HeaderBlock, HeaderError, HeaderLines, header_lines, strip_headers};
pub use info::ServerInfo;
pub use parse::{ClientOp, Limits, Parsed, Progress, parse};
pub use plain::PlainPub;
pub use server_error::ServerError;
