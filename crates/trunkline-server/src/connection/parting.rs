//! How a connection is taken leave of.

use std::io::ErrorKind;
use std::time::Duration;

use crate::closed::Closed;
use crate::socket::{Goodbye, Socket};

/// How long a client that is sent away is still read, so that it gets all that was sent to it before its connection is
/// reset. Clients close as soon as they have it.
const LINGER: Duration = Duration::from_secs(1);

/// What a close frame says of it, as on nats-server: the reason in words is the one that monitoring shows.
pub(super) fn goodbye(why: Closed) -> Goodbye {
    match why {
        Closed::ByClient | Closed::ReadError => Goodbye::Normal,
        Closed::Shutdown | Closed::Stale => Goodbye::GoingAway(why.shown(None)),
        Closed::Protocol | Closed::ClientError => Goodbye::ProtocolError(why.shown(None)),
        // Of TLS nobody is told by a close frame.
        Closed::Handshake => Goodbye::ProtocolError("Protocol Violation"),
        Closed::PayloadTooLarge => Goodbye::TooLarge,
        Closed::SlowConsumer
        | Closed::LineTooLong
        | Closed::Unauthorized
        | Closed::AuthTimeout
        | Closed::TooMany
        | Closed::Silent => Goodbye::NotAllowed(why.shown(None)),
        Closed::Backend | Closed::Memory => Goodbye::ServerError(why.shown(None)),
    }
}

/// Reads and drops what a refused client still sends, for a moment: closing a socket with unread bytes resets it, and
/// the client might never see the error.
pub(super) async fn linger(socket: &Socket) {
    let socket = socket.tcp();
    let drain = async {
        let _ = socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write);
        // On the heap: as part of the task's state it would cost every idle connection its size.
        let mut sink = vec![0; 4096];
        while socket.readable().await.is_ok() {
            match socket.try_read(&mut sink) {
                Ok(0) => break,
                Err(error) if error.kind() != ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}
