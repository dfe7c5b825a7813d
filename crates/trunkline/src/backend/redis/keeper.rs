//! What keeps the connections of a link: looks at the servers often, finds out who serves which slots, connects
//! to who is missing, and says in the status how all of it stands.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout};

use super::connect::{ConnectFailure, Connection};
use super::link::{Current, Link};
use super::slots::{Address, SlotMap};
use super::topology::{Health, LOOK_TIMEOUT, takes_writes};
use crate::backend::Fut;
use crate::status::BackendState;

/// How often the servers are looked at, and how often while one is missing that may be replaced by another. Together with
/// `LOOK_TIMEOUT` it is less than the two seconds within which a server that stands still must be known for it.
const LOOK_INTERVAL: Duration = Duration::from_millis(800);
const SEARCH_INTERVAL: Duration = Duration::from_millis(100);
/// How often the map of the slots is asked for where nothing seems to have changed.
const MAP_INTERVAL: Duration = Duration::from_secs(3);
/// Shortest time between two looks that suspicion asks for.
const SUSPECT_INTERVAL: Duration = Duration::from_millis(20);
/// First and longest delay between attempts, and the longest while somebody waits for the first connection.
const DELAY_MIN: Duration = Duration::from_millis(20);
const DELAY_MAX: Duration = Duration::from_secs(2);
const FIRST_DELAY_MAX: Duration = Duration::from_millis(200);

type Attempt<'a> = Fut<'a, (Address, Result<Connection, ConnectFailure>)>;

/// See the module's text.
pub(super) struct Keeper<'a> {
    link: &'a Link,
    /// Nobody uses the link yet.
    first: bool,
    attempts: FuturesUnordered<Attempt<'a>>,
    /// Addresses of the attempts under way.
    under_way: HashSet<Address>,
    /// How long the next attempt at an address waits, and what the last one failed with.
    failed: HashMap<Address, (Duration, ConnectFailure)>,
    /// Why the slots are not known.
    unknown: Option<ConnectFailure>,
    /// Why nodes that are connected serve nothing.
    idle: HashMap<Address, String>,
    next_look: Instant,
    next_map: Instant,
}

impl<'a> Keeper<'a> {
    /// A keeper that looks at once if it is the `first`.
    pub(super) fn new(link: &'a Link, first: bool) -> Self {
        let now = Instant::now();
        let next_look = if first { now } else { now + LOOK_INTERVAL };
        Self {
            link,
            first,
            attempts: FuturesUnordered::new(),
            under_way: HashSet::new(),
            failed: HashMap::new(),
            unknown: None,
            idle: HashMap::new(),
            next_look,
            next_map: now,
        }
    }

    /// Keeps the connections for ever.
    pub(super) async fn keep(&mut self) {
        loop {
            self.step().await;
        }
    }

    /// Works until every server that is needed is connected, or something fails that would fail again.
    pub(super) async fn until_complete(&mut self) -> Result<(), ConnectFailure> {
        loop {
            self.step().await;
            let found = self.unknown.iter().chain(self.failed.values().map(|(_, failure)| failure));
            if let Some(failure) = found.into_iter().find(|failure| failure.is_final()) {
                return Err(failure.clone());
            }
            if self.missing().is_none() {
                return Ok(());
            }
        }
    }

    /// What the last attempt failed with.
    pub(super) fn last_failure(&self) -> Option<String> {
        self.missing()
    }

    async fn step(&mut self) {
        self.attempt_missing();
        tokio::select! {
            () = tokio::time::sleep_until(self.next_look) => self.look().await,
            () = self.link.suspect.notified() => {
                self.next_map = Instant::now();
                self.look().await;
                // Whoever is redirected asks for a look each time; the servers have other things to do, too.
                tokio::time::sleep(SUSPECT_INTERVAL).await;
            }
            Some((address, connected)) = self.attempts.next() => self.attempted(address, connected).await,
        }
        self.tell();
    }

    /// Looks at every server, and at the map of the slots where that is due.
    async fn look(&mut self) {
        let link = self.link;
        let nodes: Vec<Current> = link.layout.borrow().nodes.values().cloned().collect();
        let demoted = link.demoted.load(Ordering::SeqCst) && !link.topology.can_change();
        let looking = join_all(nodes.into_iter().map(|mut node| async move {
            let health = match demoted {
                true => takes_writes(&mut node.connection).await,
                false => link.topology.look_at(&mut node.connection).await,
            };
            (node, health)
        }));
        let complete = self.missing().is_none();
        let due = Instant::now() >= self.next_map || !complete || link.topology.deposes();
        let known = self.best_informed();
        let finding = async {
            match due {
                true => Some(timeout(LOOK_TIMEOUT, link.topology.find(&link.connector, known)).await),
                false => None,
            }
        };
        let (looked, found) = tokio::join!(looking, finding);
        self.idle.clear();
        for (node, health) in looked {
            match health {
                Health::Fine if demoted => link.demoted.store(false, Ordering::SeqCst),
                Health::Fine => {}
                Health::Idle(reason) => {
                    self.idle.insert(node.address, reason);
                }
                Health::Denied(reason) | Health::Lost(reason) => self.give_up(&node, &reason),
            }
        }
        match found {
            None => {}
            Some(Ok(Ok(slots))) => {
                self.unknown = None;
                self.next_map = Instant::now() + MAP_INTERVAL;
                self.follow(slots);
            }
            Some(Ok(Err(failure))) => self.unknown = Some(failure),
            Some(Err(_)) => {
                self.unknown = Some(ConnectFailure::Failed(format!("no answer within {LOOK_TIMEOUT:?}")));
            }
        }
        let search = link.topology.can_change() && self.missing().is_some();
        self.next_look = Instant::now() + if search { SEARCH_INTERVAL } else { LOOK_INTERVAL };
    }

    /// Nodes to ask for the slots: who is said to know first, then the others in any order.
    fn best_informed(&self) -> Vec<(Address, Connection)> {
        let layout = self.link.layout.borrow();
        let mut nodes: Vec<_> =
            layout.nodes.values().map(|node| (node.address.clone(), node.connection.clone())).collect();
        fastrand::shuffle(&mut nodes);
        if let Some(first) = self.link.well_informed.lock().take()
            && let Some(at) = nodes.iter().position(|(address, _)| *address == first)
        {
            nodes.swap(0, at);
        }
        nodes
    }

    /// Takes a map of the slots into use.
    fn follow(&mut self, slots: SlotMap) {
        let wanted = slots.owners(&self.link.needed());
        let layout = self.link.layout.borrow().clone();
        let leaving: Vec<Current> =
            layout.nodes.values().filter(|node| !wanted.contains(&node.address)).cloned().collect();
        self.failed.retain(|address, _| wanted.contains(address));
        if layout.slots == slots && leaving.is_empty() {
            return;
        }
        if layout.slots != slots && !self.first {
            tracing::info!(server = self.link.server, "other servers than before serve the slots");
        }
        self.link.change(|layout| {
            layout.changes += u64::from(layout.slots != slots);
            layout.slots = slots;
            layout.nodes.retain(|address, _| wanted.contains(address));
        });
        // A node that no longer serves a slot says so to who still reads there, and answers what it has been asked. Of
        // a master that was replaced nobody may expect that.
        if self.link.topology.deposes() {
            leaving.iter().for_each(|node| node.lost.cancel());
        }
    }

    fn give_up(&mut self, node: &Current, reason: &str) {
        node.lost.cancel();
        self.link.change(|layout| {
            let same = |known: &Current| known.lost.is_cancelled();
            if layout.nodes.get(&node.address).is_some_and(same) {
                layout.nodes.remove(&node.address);
            }
        });
        tracing::warn!(server = %node.address, reason, "the connection to Redis is lost");
        let reason = ConnectFailure::Failed(format!("{}: {reason}", node.address));
        self.failed.insert(node.address.clone(), (DELAY_MIN, reason));
    }

    fn attempt_missing(&mut self) {
        let link = self.link;
        let layout = link.layout.borrow().clone();
        for address in layout.slots.owners(&link.needed()) {
            if layout.nodes.contains_key(&address) || !self.under_way.insert(address.clone()) {
                continue;
            }
            let delay = self.failed.get(&address).map(|(delay, _)| *delay);
            self.attempts.push(Box::pin(async move {
                if let Some(delay) = delay {
                    // Jitter, so that all clients of a restarted server do not come back in the same moment.
                    tokio::time::sleep(delay.mul_f64(fastrand::f64().mul_add(0.5, 1.0))).await;
                }
                let connected = link.connector.open(&address).await;
                (address, connected)
            }));
        }
    }

    async fn attempted(&mut self, address: Address, connected: Result<Connection, ConnectFailure>) {
        self.under_way.remove(&address);
        let failure = match connected {
            Err(failure) => failure,
            Ok(mut connection) => match self.link.topology.look_at(&mut connection).await {
                Health::Denied(reason) => ConnectFailure::Unauthorized(format!("{address}: {reason}")),
                Health::Lost(reason) => ConnectFailure::Failed(format!("{address}: {reason}")),
                health => {
                    if let Health::Idle(reason) = health {
                        self.idle.insert(address.clone(), reason);
                    }
                    if self.failed.remove(&address).is_some() && !self.first {
                        tracing::info!(server = %address, "connected to Redis again");
                    }
                    if !self.first {
                        self.link.settle();
                    }
                    self.link.install(address, connection);
                    return;
                }
            },
        };
        let max = if self.first { FIRST_DELAY_MAX } else { DELAY_MAX };
        let delay = self.failed.get(&address).map_or(DELAY_MIN, |(delay, _)| (*delay * 2).min(max));
        let failure = match failure {
            ConnectFailure::Failed(reason) => ConnectFailure::Failed(format!("cannot connect: {reason}")),
            other => other,
        };
        self.failed.insert(address, (delay, failure));
    }

    /// Why something that the bus needs is not served; `None` when all is.
    fn missing(&self) -> Option<String> {
        let link = self.link;
        let layout = link.layout.borrow();
        for slot in link.needed().iter() {
            let Some(owner) = layout.slots.owner(*slot) else {
                let unknown = self.unknown.as_ref().map(|failure| failure.reason().to_owned());
                return Some(unknown.unwrap_or_else(|| format!("no server serves the slot {slot}")));
            };
            if !layout.nodes.contains_key(owner) {
                let failed = self.failed.get(owner).map(|(_, failure)| failure.reason().to_owned());
                return Some(failed.unwrap_or_else(|| format!("{owner} is being connected to")));
            }
            if let Some(reason) = self.idle.get(owner) {
                return Some(format!("{owner}: {reason}"));
            }
        }
        None
    }

    fn tell(&self) {
        match self.missing() {
            None => self.link.set_well(),
            Some(_) if self.first => {}
            Some(reason) => self.link.set_state(BackendState::Disconnected { reason }),
        }
    }
}
