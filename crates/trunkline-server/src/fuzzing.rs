//! Sessions and WebSocket frames without any socket, for what is fuzzed and for nothing else: no part of the API.

use std::net::SocketAddr;
use std::sync::Arc;

use trunkline::backend::memory::Hub;
use trunkline::memory::{Charge, Holding, MemoryBudget};

use crate::auth::{Auth, AuthError, AuthOptions};
use crate::client::{Client, Kind};
use crate::options::Limits;
use crate::outbox::Outbox;
use crate::session::Session;
use crate::shared::{Shared, Shown};
use crate::socket;
use crate::staging::Staging;
use crate::tls::Slots;
use crate::websocket::{Gate, Origins, WebSocketOptions};

/// What a process has that is short of memory.
const MEMORY_BYTES: u64 = 256 << 20;

/// Clients of one server, as far as their sessions go.
pub struct Sessions {
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    staging: Staging,
    peers: Vec<Peer>,
    /// Takes the memory that nobody is to have.
    _ballast: Option<Charge>,
}

struct Peer {
    client: Arc<Client>,
    session: Session,
    /// The start of an operation that is not complete.
    partial: Vec<u8>,
    output: Vec<u8>,
    is_closed: bool,
}

impl Sessions {
    /// So many clients of a server with these users and limits. Their subscriptions together may take about `room` bytes;
    /// `None` is any number.
    ///
    /// # Errors
    /// Users that cannot be.
    pub fn new(
        auth: &AuthOptions,
        limits: Limits,
        count: u64,
        room: Option<usize>,
    ) -> Result<Self, AuthError> {
        let hub = Arc::new(Hub::default());
        let reserved: trunkline::Pattern = "nachos.dead.>".parse().expect("a pattern");
        let auth = Auth::new(auth, hub.clone(), reserved.clone())?;
        let address = SocketAddr::from(([127, 0, 0, 1], 4222));
        let shown = Shown {
            headers: true,
            name: None,
            version: "0.0.0".to_owned(),
            trace_payloads: false,
            tags: Vec::new(),
            metadata: Default::default(),
            advertise: None,
        };
        let memory = Arc::new(MemoryBudget::from_setting(room.map(|_| MEMORY_BYTES)));
        let ballast = room.map(|room| {
            let share = memory.share(Holding::Subscriptions);
            Charge::of(&memory, Holding::Subscriptions, share.saturating_sub(room))
        });
        let shared = Shared::new(
            (hub.clone(), None, memory.clone()),
            auth,
            (Slots::default(), None),
            (reserved, "nachos.system.policy.reload".parse().expect("a pattern")),
            limits,
            shown,
            address,
        );
        let shared = Arc::new(shared);
        let peers = (1..=count).map(|id| {
            let outbox = Outbox::without_socket();
            let client = Client::new(id, (address, Kind::Nats), outbox, None, None, memory.clone());
            let client = Arc::new(client);
            Peer {
                session: Session::new(shared.clone(), client.clone()),
                client,
                partial: Vec::new(),
                output: Vec::new(),
                is_closed: false,
            }
        });
        let peers = peers.collect();
        Ok(Self { peers, hub, shared, staging: Staging::default(), _ballast: ballast })
    }

    /// Has a client's session act on what one read of its socket would have brought.
    pub fn feed(&mut self, at: usize, bytes: &[u8]) {
        let peer = &mut self.peers[at];
        if peer.is_closed {
            return;
        }
        peer.partial.extend_from_slice(bytes);
        loop {
            let peer = &mut self.peers[at];
            let input = std::mem::take(&mut peer.partial);
            self.staging.begin(self.shared.staging);
            let fed = peer.session.feed(&input, &mut self.staging);
            assert!(!fed.wait, "no password of these users takes a hash");
            assert!(fed.consumed <= input.len());
            peer.partial.extend_from_slice(&input[fed.consumed..]);
            if fed.need > 0 {
                assert!(fed.need > peer.partial.len(), "more than there is");
                let limits = self.shared.limits();
                // A line, a message, and the ends of both.
                let most = limits.max_control_line + limits.max_payload + 16;
                assert!(fed.need <= most, "{} bytes are waited for, {most} are allowed", fed.need);
            }
            if fed.close.is_some() {
                peer.is_closed = true;
                peer.partial = Vec::new();
                let ended = peer.session.take_all();
                ended.iter().for_each(|subscription| subscription.end());
                peer.session.forget_all(&ended);
            }
            self.collect(&input);
            if !fed.more {
                return;
            }
        }
    }

    fn collect(&mut self, input: &[u8]) {
        for (id, bytes) in self.staging.take(input) {
            if let Some(peer) = self.peers.iter_mut().find(|peer| peer.client.id == id) {
                peer.output.extend_from_slice(&bytes);
            }
        }
    }

    /// Everything that a client was sent.
    pub fn output(&self, at: usize) -> &[u8] {
        &self.peers[at].output
    }

    /// Whether a client was sent away.
    pub fn is_closed(&self, at: usize) -> bool {
        self.peers[at].is_closed
    }

    /// Bytes kept of an operation that is not complete.
    pub fn kept(&self, at: usize) -> usize {
        self.peers[at].partial.len()
    }

    /// Subscriptions of a client, as the client's own table has them.
    pub fn subscriptions(&self, at: usize) -> usize {
        self.peers[at].client.table.lock().len()
    }

    /// Subscriptions in the routing tables of all accounts.
    pub fn routed(&self) -> u64 {
        let accounts = self.shared.auth.accounts();
        let hubs = accounts.iter().map(|account| &account.hub).filter(|hub| !Arc::ptr_eq(hub, &self.hub));
        hubs.chain([&self.hub]).map(|hub| hub.router().stats().subscriptions).sum()
    }

    /// All clients go.
    pub fn leave(&mut self) {
        for peer in &mut self.peers {
            let ended = peer.session.take_all();
            ended.iter().for_each(|subscription| subscription.end());
            peer.session.forget_all(&ended);
            peer.client.part();
        }
    }
}

impl Sessions {
    /// The server goes, behind its clients. Returns how many bytes are still charged for them.
    pub fn end(self) -> usize {
        let memory = self.shared.memory.clone();
        drop(self);
        memory.used()
    }
}

/// What came of the bytes of one WebSocket client.
#[derive(Debug, PartialEq, Eq)]
pub struct Unframed {
    /// What was in its frames.
    pub opened: Vec<u8>,
    /// What it was answered.
    pub answers: Vec<u8>,
    /// The client closed, or broke the protocol, and nothing more was read.
    pub is_over: bool,
    /// Its request was answered by a WebSocket.
    pub is_open: bool,
}

/// Reads a WebSocket client's request and frames from the pieces in which they come.
pub fn unframe<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, max_payload: usize) -> Unframed {
    let options = WebSocketOptions::at(([127, 0, 0, 1], 0).into());
    let origins = Origins::new(&options).expect("no origins at all");
    let gate = Gate::new(Arc::new(origins), false, max_payload);
    let (mut opened, mut answers) = (Vec::new(), Vec::new());
    let (is_over, is_open) = socket::unframe(gate, pieces, &mut opened, &mut answers);
    Unframed { opened, answers, is_over, is_open }
}
