//! Who is here: who may come, and who has to go for that; who has left, and what all of them have done.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use hashbrown::HashMap;
use trunkline::memory::{Charge, Holding};
use trunkline_protocol::ServerError;

use super::Shared;
use crate::client::{Client, Kind};
use crate::closed::Closed;
use crate::outbox::Ending;
use crate::tally::{Tally, Totals};
use crate::trace::about;
use crate::view::{ClientView, Departed};

/// What an idle connection takes, as measured; its tables, tasks and timers, and a small buffer.
const CONNECTION_BYTES: usize = 6 << 10;
/// What WebSocket and TLS add to that.
const WEBSOCKET_BYTES: usize = 8 << 10;
const TLS_BYTES: usize = 24 << 10;

/// A client that has come is given so long to say CONNECT before another may have its place.
const SILENT_MIN: Duration = Duration::from_millis(250);
/// So many clients may be on their way out, and have given their place to others already.
const LEAVING_MAX: usize = 256;
/// So few that may have to be heard yet are not worth a look.
const UNHEARD_MIN: usize = 64;

/// What becomes of a client that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    Served,
    /// There are as many clients as there may be.
    Full,
    Stopping,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) clients: HashMap<u64, Arc<Client>, foldhash::fast::RandomState>,
    gone: Totals,
    departed: VecDeque<Departed>,
    /// Those who came and may not have said CONNECT yet, in the order in which they came.
    unheard: VecDeque<Weak<Client>>,
    /// Clients that have given their place to others and are still there.
    leaving: usize,
    /// How many were left in `unheard` when those were last let go of who had been heard.
    silent_after_trim: usize,
    /// No client is let in any more: one that was accepted while the others were told to end would be told nothing.
    pub(super) stopping: bool,
}

impl Table {
    /// Remembers a client that has yet to say CONNECT.
    fn note_unheard(&mut self, client: &Arc<Client>) {
        self.unheard.push_back(Arc::downgrade(client));
        // What was heard of since, or is gone, is let go of when it is most of the list: so much now and then, and so little
        // each time.
        if self.unheard.len() >= 2 * self.silent_after_trim.max(UNHEARD_MIN) {
            self.unheard.retain(|client| client.upgrade().is_some_and(|client| client.is_silent()));
            self.silent_after_trim = self.unheard.len();
        }
    }

    /// The client that has been silent for longest, if for long enough; from here on it is leaving.
    fn longest_silent(&mut self) -> Option<Arc<Client>> {
        while let Some(first) = self.unheard.front() {
            let silent = first.upgrade().filter(|client| client.is_silent());
            if silent.as_ref().is_some_and(|client| client.started_for() < SILENT_MIN) {
                return None;
            }
            self.unheard.pop_front();
            if let Some(client) = silent.filter(|client| self.clients.contains_key(&client.id)) {
                client.set_ending_reason(Closed::Silent);
                self.leaving += usize::from(client.ending_reason() == Some(Closed::Silent));
                return Some(client);
            }
        }
        None
    }
}

impl Shared {
    /// Whether this address may open another connection now.
    pub(crate) fn may_come(&self, address: IpAddr) -> bool {
        let Some(limit) = self.limits().connection_rate else { return true };
        if self.doorkeeper.count(address, Instant::now()) <= limit {
            return true;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        // Whoever storms is not to fill the log, too.
        if (self.refused_by_rate.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two() {
            tracing::warn!(
                %address,
                limit,
                "an address opens more connections within a second than it may (server.limits.connection_rate), refused"
            );
        }
        false
    }

    /// Enters a client, unless the server stops, or there are as many as there may be and all of them have said CONNECT: one
    /// that comes to say something goes before one that says nothing.
    pub(crate) fn enter(&self, client: &Arc<Client>) -> Entry {
        let bytes = self.connection_bytes(client.kind);
        let checked = self.memory.check(Holding::Connections, bytes);
        let limit = self.limits().max_connections;
        let mut table = self.table.lock();
        if table.stopping {
            return Entry::Stopping;
        }
        let is_full = table.clients.len() >= limit || checked.is_err();
        // Whoever gives way is still there until its task has run.
        let may_give_way = is_full && table.leaving < LEAVING_MAX;
        let silent = may_give_way.then(|| table.longest_silent()).flatten();
        if is_full && silent.is_none() {
            drop(table);
            let first = self.refused.fetch_add(1, Ordering::Relaxed).is_power_of_two();
            match checked {
                Err(error) if first => {
                    tracing::warn!(address = %client.address, %error, "a connection is refused");
                }
                Ok(()) if self.refusals.may_tell(Instant::now()) => {
                    about!(warn, client, limit, "a connection is refused: there are as many as there may be");
                }
                _ => {}
            }
            return Entry::Full;
        }
        self.accepted.fetch_add(1, Ordering::Relaxed);
        client.set_charge(Charge::of(&self.memory, Holding::Connections, bytes));
        table.clients.insert(client.id, client.clone());
        table.note_unheard(client);
        drop(table);
        if let Some(silent) = silent {
            Self::send_away_silent(&silent);
        }
        Entry::Served
    }

    fn send_away_silent(client: &Client) {
        about!(debug, client, "has not said CONNECT, and its place is needed");
        // Where its handshakes are not over, it would not understand.
        if client.is_settled() {
            client.end_with(|out| ServerError::MaxConnections.write(out));
            client.outbox.flush();
        }
        client.outbox.end(Ending::Now);
    }

    /// What a connection takes at least, whatever it does.
    fn connection_bytes(&self, kind: Kind) -> usize {
        let secure = match kind {
            Kind::Nats => self.tls.clients.get().is_some(),
            Kind::WebSocket => self.web.as_ref().is_some_and(|web| web.secure),
        };
        let web = usize::from(kind == Kind::WebSocket);
        CONNECTION_BYTES + web * WEBSOCKET_BYTES + usize::from(secure) * TLS_BYTES
    }

    /// A client leaves; `view` is what it was before its session closed.
    pub(crate) fn leave(&self, client: &Client, view: ClientView, why: Closed) {
        let kept = self.limits().closed_connections;
        let mut table = self.table.lock();
        if table.clients.remove(&client.id).is_some() {
            table.gone.add(client);
            if client.ending_reason() == Some(Closed::Silent) {
                table.leaving -= 1;
            }
            let slow = client.outbox.slow().map(|slow| slow.by).filter(|_| why == Closed::SlowConsumer);
            if let Some(identity) = client.identity() {
                identity.account.gone.lock().add(client, slow.is_some());
            }
            table.departed.push_back(Departed { view, stopped: SystemTime::now(), why, slow });
            let surplus = table.departed.len().saturating_sub(kept);
            table.departed.drain(..surplus);
            self.closed[why as usize].fetch_add(1, Ordering::Relaxed);
            if table.clients.is_empty() {
                self.emptied.notify_waiters();
            }
        }
    }

    /// Waits until no client is left.
    pub(crate) async fn nobody_left(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.connections() == 0 {
                return;
            }
            emptied.await;
        }
    }

    pub(crate) fn clients(&self) -> Vec<Arc<Client>> {
        self.table.lock().clients.values().cloned().collect()
    }

    /// What monitoring sees of a client now.
    pub(crate) fn view(&self, client: &Client) -> ClientView {
        ClientView::of(client, self.now_ms(), self.started)
    }

    /// The last connections that ended, oldest first.
    pub(crate) fn departed(&self) -> Vec<Departed> {
        self.table.lock().departed.iter().cloned().collect()
    }

    pub(crate) fn client(&self, id: u64) -> Option<Arc<Client>> {
        self.table.lock().clients.get(&id).cloned()
    }

    pub(crate) fn connections(&self) -> usize {
        self.table.lock().clients.len()
    }

    pub(crate) fn totals(&self) -> Totals {
        let table = self.table.lock();
        let mut totals = table.gone;
        table.clients.values().for_each(|client| totals.add(client));
        totals
    }

    /// What the clients of each account that somebody is or was in have done, by the account's name.
    pub(crate) fn tallies(&self) -> BTreeMap<Box<str>, Tally> {
        let table = self.table.lock();
        let accounts = self.auth.accounts();
        let mut tallies: BTreeMap<_, _> =
            accounts.iter().map(|account| (account.name.clone(), *account.gone.lock())).collect();
        for client in table.clients.values() {
            if let Some(tally) = client.identity().and_then(|who| tallies.get_mut(&who.account.name)) {
                tally.add(client, false);
                tally.here += 1;
                tally.subscriptions += client.subscriptions.load(Ordering::Relaxed);
            }
        }
        tallies
    }
}
