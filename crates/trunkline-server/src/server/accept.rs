//! Accepting: from a connection that the kernel has to a client that is served, or sent away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline_protocol::ServerError;

use crate::bridge::orders::Orders;
use crate::client::{Client, Kind};
use crate::connection::Connection;
use crate::outbox::Outbox;
use crate::room::Room;
use crate::shared::{Entry, Shared};
use crate::socket::Socket;
use crate::threads::{self, Place, Threads};
use crate::trace::about;

/// Pause after an accept that failed for want of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What it takes to serve whoever connects to a listener.
pub(super) struct Accepting {
    pub(super) kind: Kind,
    pub(super) shared: Arc<Shared>,
    pub(super) threads: Arc<Threads>,
    pub(super) tasks: TaskTracker,
}

impl Accepting {
    /// Owned by the server's tracker; ends by `stop`.
    pub(super) async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let room = Room::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, address)) => {
                    self.welcome(socket, address);
                    // Those who serve clients may wait for this processor.
                    room.make();
                }
                Err(error) => {
                    // Out of file descriptors, mostly: those who wait are served when others have left.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn welcome(&self, socket: TcpStream, address: SocketAddr) {
        let (shared, kind) = (&self.shared, self.kind);
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%address, %error, "connection lost before it was served");
            return;
        }
        if !shared.may_come(address.ip()) {
            // In plain text, and only where that is what the client speaks.
            if kind == Kind::Nats && shared.tls.clients.get().is_none() {
                tell_there_are_too_many(&socket);
            }
            return;
        }
        let (socket, place) = match self.threads.place(socket) {
            Ok(placed) => placed,
            Err(error) => return tracing::warn!(%address, %error, "a connection cannot be served"),
        };
        let socket = Arc::new(Socket::new(socket));
        let outbox = Outbox::new(socket.clone(), shared.limits().max_pending, &shared.memory);
        let orders = shared.bridge.as_ref().map(|_| Arc::new(Orders::new(&shared.memory)));
        let nonce = shared.auth.nonce();
        let memory = shared.memory.clone();
        let mut client = Client::new(shared.next_client_id(), (address, kind), outbox, nonce, orders, memory);
        client.shows_payloads = shared.trace_payloads;
        let client = Arc::new(client);
        client.touch(shared.now_ms());
        match shared.enter(&client) {
            Entry::Served => {
                about!(debug, client, "connection created");
                let runtime = place.as_ref().map(Place::runtime).cloned();
                let connection = Connection::new(shared.clone(), client, socket, place);
                threads::spawn(runtime.as_ref(), &self.tasks, Box::new(connection).run());
            }
            // It would not understand.
            Entry::Full if kind == Kind::WebSocket => {}
            Entry::Full => tell_there_are_too_many(socket.tcp()),
            Entry::Stopping => {}
        }
    }
}

/// Not through the runtime, which has yet to learn that one can write to the socket. Nobody waits for the client: it may
/// have to do without.
fn tell_there_are_too_many(socket: &TcpStream) {
    let mut line = Vec::new();
    ServerError::MaxConnections.write(&mut line);
    let _ = socket2::SockRef::from(socket).send(&line);
}
