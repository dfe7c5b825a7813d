//! The task of one connection: reads batches, has them acted on, writes what waits.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{Interest, Ready};
use tokio::task::JoinHandle;
use trunkline::memory::{Charge, Holding};

use crate::arrival::Arrival;
use crate::auth::{Failure, Identity};
use crate::bridge::lane::Lane;
use crate::bridge::orders::{End, Orders};
use crate::client::{Client, Kind};
use crate::closed::Closed;
use crate::outbox::Ending;
use crate::session::Session;
use crate::shared::Shared;
use crate::socket::Socket;
use crate::threads::Place;
use crate::trace::{self, about};
use crate::turns::{LongTurn, Turns};
use crate::view::ClientView;

mod input;
mod parting;
mod reading;

use input::Input;
use parting::{goodbye, linger};
use reading::{Read, SHORT_BYTES, STAGING};

/// A connection is read in pieces of so many bytes, until it fills one; from then on in larger ones, up to
/// [`StagingBounds::read_bytes`](crate::memory::StagingBounds). Large ones are a fifth faster; but what is left
/// of a piece that leads to more than one turn has to be kept, of each connection.
const PIECE_BYTES: usize = 256 << 10;
/// Longest pause of a publisher whose reader does not keep up, once a batch.
const PAUSE_MAX: Duration = Duration::from_millis(10);
/// A client is not read for so long when the process has no memory.
const HOLD: Duration = Duration::from_millis(1);
/// A connection that has read so much since it last let others run does so now: a client that sends without pause never
/// leaves its socket empty, and its task would never wait for anything.
const TURN_BYTES: usize = 1 << 20;
/// Most that may wait for a client that sends for TLS or WebSocket alone, such as pings: their answers are counted when they are
/// made, and not bounded by what its outbox may have.
const ANSWERS_BYTES_MAX: usize = 256 << 10;
/// Subscriptions that leave the routing table before others run again: some take microseconds.
const LEAVING_AT_ONCE: usize = 64;

pub(crate) struct Connection {
    server: Arc<Shared>,
    client: Arc<Client>,
    /// Shared with the client's outbox, which lets go of it when the connection is over.
    socket: Arc<Socket>,
    session: Session,
    input: Input,
    /// How many bytes `input` must have before it is worth parsing.
    need: usize,
    /// `input` has whole operations that were left for another turn.
    more: bool,
    /// A password that is being checked; nothing is read meanwhile.
    verifying: Option<Verifying>,
    /// When the client has to have said who it is, until it has.
    say_who_by: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Most bytes that are read at a time.
    piece_bytes: usize,
    /// The client does not take what its TLS or WebSocket is answered, and is not read until it does.
    answers_wait: bool,
    /// Bytes read, or offered to the socket, since others could run.
    turn_bytes: usize,
    /// For `input`, and for what the session remembers.
    charge: Charge,
    /// How often it was not read in a row, as there was no memory.
    held: u32,
    /// Bytes read, of which half is forgotten each time that the socket is found empty.
    lately_bytes: usize,
    /// The client was sent away and may not have read why: see [`linger`].
    lingers: bool,
    /// Given back with everything else.
    place: Option<Place>,
}

/// Who the client is, or why it is nobody, once that is known. On the heap, as few connections wait for it, and briefly.
type Verifying = Pin<Box<dyn Future<Output = Result<Arc<Identity>, Failure>> + Send + Sync>>;

impl Connection {
    pub(crate) fn new(
        server: Arc<Shared>,
        client: Arc<Client>,
        socket: Arc<Socket>,
        place: Option<Place>,
    ) -> Self {
        let session = Session::new(server.clone(), client.clone());
        let charge = Charge::new(&server.memory, Holding::Input);
        Self {
            server,
            client,
            socket,
            session,
            input: Input::default(),
            need: 0,
            more: false,
            verifying: None,
            say_who_by: None,
            piece_bytes: PIECE_BYTES,
            answers_wait: false,
            turn_bytes: 0,
            charge,
            held: 0,
            lately_bytes: 0,
            lingers: false,
            place,
        }
    }

    /// Serves the client until one side ends it. On the heap, as a task's state has what it is made of twice.
    pub(crate) async fn run(mut self: Box<Self>) {
        if let Err(why) = self.arrive().await {
            let view = self.server.view(&self.client);
            self.socket.say_goodbye(goodbye(why));
            if matches!(why, Closed::Handshake | Closed::TooMany) {
                linger(&self.socket).await;
            }
            self.server.leave(&self.client, view, why);
            self.client.outbox.close();
            about!(debug, self.client, reason = why.shown(None), "connection closed");
            self.client.part();
            return;
        }
        self.client.set_settled();
        let lane = self.start_lane();
        // Also where there is a user for those who do not say: that counts once they say anything.
        let auth = &self.server.auth;
        let has_to_say = auth.is_configured() && !self.session.is_admitted();
        let time = has_to_say.then(|| auth.configured_timeout());
        self.say_who_by = time.map(|time| Box::pin(tokio::time::sleep(time)));
        let mut subscriptions = 0;
        let why = self.serve(&mut subscriptions).await;
        // Named when it is told that it was cut off.
        let slow = self.client.outbox.slow().filter(|_| why == Closed::SlowConsumer);
        let patterns = slow.map(|_| self.client.some_patterns()).unwrap_or_default();
        self.leave_routing(&mut subscriptions).await;
        // Monitoring shows the subscriptions that it had.
        let view = ClientView { subscriptions, ..self.server.view(&self.client) };
        if let Some((orders, lane)) = lane {
            // The client need not wait for what it has published; this connection ends when that is over.
            self.client.outbox.close();
            orders.end(End::Close);
            if let Err(error) = lane.await {
                tracing::error!(client = self.client.id, %error, "the lane of a connection broke");
            }
        }
        // One at a time: a thousand clients that end in one moment are not to keep a line waiting.
        let turns = self.place.as_ref().map(Place::turns).cloned();
        let turn = self.leaving_turn(turns.as_deref()).await;
        self.socket.say_goodbye(goodbye(why));
        if let Some(slow) = slow {
            self.server.count_slow(&self.client, slow, patterns);
        }
        self.server.leave(&self.client, view, why);
        if let Some(observer) = self.session.observer() {
            observer.client_left(self.client.id);
        }
        self.client.outbox.close();
        about!(debug, self.client, reason = why.shown(slow.map(|slow| slow.by)), "connection closed");
        self.client.part();
        // It is gone from monitoring already: nothing that it sends is looked at any more.
        if self.lingers {
            self.input = Input::default();
            drop(turn);
            linger(&self.socket).await;
            return;
        }
        // What it held is given back within its turn.
        drop(self);
        drop(turn);
    }

    /// Waits for the turn to leave in; where others need what this connection holds, for none.
    async fn leaving_turn<'a>(&self, turns: Option<&'a Turns>) -> Option<LongTurn<'a>> {
        let turns = turns.filter(|_| !self.server.memory.is_exceeded())?;
        let turn = turns.long(self.client.id, self.long()).await;
        turns.room.make();
        Some(turn)
    }

    /// Brings the client to where INFO is on its way to it.
    async fn arrive(&self) -> Result<(), Closed> {
        if self.server.tls.clients.get().is_some() || self.client.kind != Kind::Nats {
            let arrival = Arrival::new(self.server.clone(), self.client.clone(), self.socket.clone());
            // On the heap: as part of the task's state it would cost every idle connection its size.
            return Box::pin(arrival.settle()).await;
        }
        let info = self.server.info(&self.client);
        self.client.outbox.write_later(|out| info.write(out));
        Ok(())
    }

    /// On a bridge, the task that carries out what the client asks for. It ends by the orders' end, and is awaited when the
    /// connection is over.
    fn start_lane(&self) -> Option<(Arc<Orders>, JoinHandle<()>)> {
        let (bridge, orders) = (self.server.bridge.clone()?, self.client.orders.clone()?);
        let lane = Lane::new(self.server.clone(), bridge, self.client.clone(), orders.clone());
        Some((orders, tokio::spawn(lane.run())))
    }

    /// Ends the subscriptions, as soon as the connection is to end and not when it has: whoever publishes meanwhile would
    /// take this client for somebody who listens. Adds how many there were.
    async fn leave_routing(&mut self, subscriptions: &mut u64) {
        let mut ended = self.session.take_all();
        *subscriptions += ended.len() as u64;
        for some in ended.chunks(LEAVING_AT_ONCE) {
            some.iter().for_each(|subscription| subscription.end());
            if trace::is_wanted() {
                some.iter().for_each(|subscription| trace::unsubscribed(&self.client, &subscription.sid));
            }
            if some.len() == LEAVING_AT_ONCE {
                self.let_others_run().await;
            }
        }
        while !ended.is_empty() {
            let rest = ended.len().saturating_sub(LEAVING_AT_ONCE);
            self.session.forget_all(&ended[rest..]);
            // What they held is given back step by step, too: a million at once would take a tenth of a second.
            ended.truncate(rest);
            if rest > 0 {
                self.let_others_run().await;
            }
        }
    }

    /// Those of this thread, and those who wait for its processor.
    async fn let_others_run(&self) {
        tokio::task::yield_now().await;
        if let Some(place) = &self.place {
            place.turns().room.make();
        }
    }

    async fn serve(&mut self, subscriptions: &mut u64) -> Closed {
        let (client, socket) = (self.client.clone(), self.socket.clone());
        let turns = self.place.as_ref().map(Place::turns).cloned();
        let outbox = &client.outbox;
        // What `outbox` could not write at once.
        let mut writing = false;
        let mut refused = None;
        loop {
            match outbox.ending() {
                Ending::No => {}
                Ending::WhenFlushed if refused.is_none() => {
                    refused = Some(self.why_ended());
                    self.leave_routing(subscriptions).await;
                }
                Ending::WhenFlushed => {}
                Ending::Now => {
                    if let Some(
                        why @ (Closed::Protocol
                        | Closed::PayloadTooLarge
                        | Closed::LineTooLong
                        | Closed::Stale
                        | Closed::Shutdown
                        | Closed::Backend
                        | Closed::Unauthorized
                        | Closed::AuthTimeout
                        | Closed::TooMany),
                    ) = refused
                    {
                        self.lingers = true;
                        return why;
                    }
                    return refused.unwrap_or_else(|| self.why_ended());
                }
            }
            if self.turn_bytes > TURN_BYTES {
                self.turn_bytes = 0;
                tokio::task::yield_now().await;
            }
            if refused.is_none() && self.session.is_outdated() {
                refused = self.reconsider();
                if refused.is_some() {
                    outbox.end(Ending::WhenFlushed);
                    self.leave_routing(subscriptions).await;
                    continue;
                }
            }
            let deaf = refused.is_some() || self.verifying.is_some() || self.answers_wait;
            let interest = match (deaf, writing) {
                (false, false) => Some(Interest::READABLE),
                (false, true) => Some(Interest::READABLE | Interest::WRITABLE),
                (true, true) => Some(Interest::WRITABLE),
                (true, false) => None,
            };
            let again = self.more && !deaf;
            let ready = tokio::select! {
                biased;
                () = outbox.woken() => {
                    if self.server.memory.is_exceeded() {
                        self.session.forget_answers();
                        self.charge_input();
                    }
                    writing = self.write();
                    continue;
                }
                identity = verified(&mut self.verifying), if self.verifying.is_some() && refused.is_none() => {
                    self.verifying = None;
                    refused = self.settle(identity);
                    if refused.is_some() {
                        outbox.end(Ending::WhenFlushed);
                        self.leave_routing(subscriptions).await;
                    }
                    continue;
                }
                () = passed(&mut self.say_who_by), if self.say_who_by.is_some() && refused.is_none() => {
                    self.say_who_by = None;
                    self.verifying = None;
                    refused = self.time_out();
                    outbox.end(Ending::WhenFlushed);
                    continue;
                }
                // What was read is not all acted on, so nothing is waited for.
                () = tokio::task::yield_now(), if again => Ok(Ready::READABLE),
                ready = socket.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() && !again => ready,
            };
            let Ok(ready) = ready else { return Closed::ReadError };
            if writing && (again || ready.is_writable() || ready.is_write_closed()) {
                writing = self.write();
            }
            if !deaf && (ready.is_readable() || ready.is_read_closed()) {
                let (turn, most) = self.take_turn(turns.as_deref()).await;
                let read = self.read(most);
                drop(turn);
                match read {
                    Read::Empty => writing |= self.socket.is_covered() && outbox.note_unsent(),
                    Read::Aside => {
                        writing |= outbox.note_unsent();
                        self.answers_wait = self.socket.unsent() > ANSWERS_BYTES_MAX;
                    }
                    Read::Held => writing |= self.hold().await,
                    Read::Batch { behind: None } => writing |= self.wait_for_room().await,
                    Read::Batch { behind: Some(reader) } => writing |= self.pause_for(&reader).await,
                    // One that only stopped sending may still read what waits for it.
                    Read::Close(why @ (Closed::ByClient | Closed::ReadError)) if outbox.pending() == 0 => {
                        return why;
                    }
                    Read::Close(why) => {
                        refused = Some(why);
                        outbox.end(Ending::WhenFlushed);
                        self.leave_routing(subscriptions).await;
                    }
                }
            }
        }
    }

    /// Waits for its turn to read, if there are others, and says how much may be read in it.
    async fn take_turn<'a>(&mut self, turns: Option<&'a Turns>) -> (Option<LongTurn<'a>>, usize) {
        let Some(turns) = turns else { return (None, usize::MAX) };
        if !self.takes_long() {
            turns.short();
            return (None, SHORT_BYTES);
        }
        let at_once = turns.another(self.client.id, self.long());
        let turn = match at_once {
            Some(turn) => turn,
            None => {
                let turn = turns.long(self.client.id, self.long()).await;
                self.turn_bytes = 0;
                turn
            }
        };
        let most = turn.most;
        (Some(turn), most)
    }

    /// Has the session look at users and permissions that were replaced; says why the connection ends, if it does.
    fn reconsider(&mut self) -> Option<Closed> {
        let (fed, _) = self.feed(&[]);
        self.start_verifying();
        fed.close
    }

    /// Tells the session whose password it was that was checked.
    fn settle(&mut self, identity: Result<Arc<Identity>, Failure>) -> Option<Closed> {
        let closed = STAGING.with_borrow_mut(|staging| {
            let closed = self.session.settle(identity, staging);
            staging.flush(self.client.id, &[]);
            closed
        });
        self.forget_deadline();
        closed
    }

    fn time_out(&mut self) -> Option<Closed> {
        STAGING.with_borrow_mut(|staging| {
            let closed = self.session.give_up(Failure::Timeout, staging);
            staging.flush(self.client.id, &[]);
            Some(closed)
        })
    }

    fn start_verifying(&mut self) {
        if let Some(verification) = self.session.take_verification() {
            let server = self.server.clone();
            self.verifying = Some(Box::pin(async move { server.auth.verify(verification).await }));
        }
    }

    fn forget_deadline(&mut self) {
        if self.say_who_by.is_some() && self.session.is_admitted() {
            self.say_who_by = None;
        }
    }

    /// Writes what waits; says whether something still does.
    fn write(&mut self) -> bool {
        let writing = !self.client.outbox.flush();
        self.answers_wait &= writing && self.socket.unsent() > ANSWERS_BYTES_MAX;
        if writing {
            self.turn_bytes += TURN_BYTES / 4;
        }
        writing
    }

    fn why_ended(&self) -> Closed {
        match self.client.outbox.slow().is_some() {
            true => Closed::SlowConsumer,
            false => self.client.ending_reason().unwrap_or(Closed::ByClient),
        }
    }

    /// Gives a reader that does not keep up a moment to catch up; meanwhile writes what waits for this client itself.
    /// Says whether something still waits.
    async fn pause_for(&self, reader: &Arc<Client>) -> bool {
        self.server.count_stalled();
        let outbox = &self.client.outbox;
        let until = tokio::time::Instant::now() + PAUSE_MAX;
        loop {
            let pending = !outbox.flush();
            tokio::select! {
                () = reader.outbox.has_drained() => return pending,
                () = tokio::time::sleep_until(until) => return pending,
                () = outbox.woken() => {}
                _ = self.socket.writable(), if pending => {}
            }
        }
    }

    /// On a bridge, waits until the lane has room for more; meanwhile writes what waits for this client. Says whether
    /// something still waits.
    async fn wait_for_room(&self) -> bool {
        let Some(orders) = self.client.orders.as_ref().filter(|orders| orders.is_full()) else {
            return false;
        };
        let outbox = &self.client.outbox;
        loop {
            let pending = !outbox.flush();
            if outbox.ending() != Ending::No {
                return pending;
            }
            tokio::select! {
                () = orders.has_room() => return pending,
                () = outbox.woken() => {}
                _ = self.socket.writable(), if pending => {}
            }
        }
    }

    /// Gives those who were cut off for want of memory the time to give back what they held. Says whether something waits.
    async fn hold(&mut self) -> bool {
        let client = self.client.clone();
        self.held += 1;
        tokio::select! {
            () = client.outbox.woken() => {}
            () = tokio::time::sleep(HOLD) => {}
        }
        self.write()
    }
}

async fn verified(verifying: &mut Option<Verifying>) -> Result<Arc<Identity>, Failure> {
    match verifying {
        Some(verifying) => verifying.await,
        None => std::future::pending().await,
    }
}

async fn passed(time: &mut Option<Pin<Box<tokio::time::Sleep>>>) {
    match time {
        Some(time) => time.as_mut().await,
        None => std::future::pending().await,
    }
}
