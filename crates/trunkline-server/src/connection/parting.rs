//! How a connection is taken leave of.

use std::io::ErrorKind;
use std::time::Duration;

use crate::closed::Closed;
use crate::socket::{Goodbye, Socket};

/// How long a client that is sent away is still read, so that it gets all that was sent to it before its connection is
/// reset. Clients close as soon as they have it.
const LINGER: Duration = Duration::from_secs(1);

/// What a close frame says of it.
pub(super) fn goodbye(why: Closed) -> Goodbye {
    match why {
        Closed::ByClient | Closed::ReadError | Closed::ClientError => Goodbye::Normal,
        Closed::Shutdown => Goodbye::GoingAway,
        Closed::Protocol | Closed::Handshake => Goodbye::ProtocolError,
        Closed::PayloadTooLarge => Goodbye::TooLarge,
        Closed::SlowConsumer
        | Closed::LineTooLong
        | Closed::Stale
        | Closed::Unauthorized
        | Closed::AuthTimeout
        | Closed::TooMany
        | Closed::Silent => Goodbye::NotAllowed(not_allowed(why)),
        Closed::Backend => Goodbye::ServerError("Backend Unavailable"),
        Closed::Memory => Goodbye::ServerError("Memory Limit"),
    }
}

/// What a close frame says that was not allowed, in nats-server's words.
fn not_allowed(why: Closed) -> &'static str {
    match why {
        Closed::SlowConsumer => "Slow Consumer",
        Closed::LineTooLong => "Maximum Control Line Exceeded",
        Closed::Stale => "Stale Connection",
        Closed::AuthTimeout => "Authentication Timeout",
        Closed::TooMany | Closed::Silent => "Maximum Connections Exceeded",
        _ => "Authentication Failure",
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
