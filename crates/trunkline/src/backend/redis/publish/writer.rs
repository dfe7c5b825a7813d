//! The task that sends what is queued.
//!
//! A batch is checked for each stream it goes to: that the routes are those by which the stream was chosen. Then it is
//! appended. What a node refuses because it does not serve the stream now is sent again, one batch at a time, until it
//! arrives. Several batches are under way at a time, so that the server has work while answers travel. What has not
//! left is refused as not connected; what may have left and has no answer is an unknown outcome.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesOrdered;
use hashbrown::HashMap;
use redis::Value;
use tokio::time::{Interval, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use trunkline_core::Subject;

use super::super::link::Current;
use super::super::routes::{Home, Routes};
use super::super::shared::Shared;
use super::super::slots::Address;
use super::batch::{Batch, Known, answering, is_plain};
use super::doubts::{Doubt, Doubts};
use super::queue::{ENOUGH, Item, Order, Queue};
use super::sending::{Answers, follow, not_sent, send_to};
use super::standing::{Standings, Way};
use super::telling::no_responders;
use crate::backend::Fut;

/// Most messages, and most bytes, that one script appends: while it runs the server does nothing else.
const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// Batches under way at once.
const BATCHES_MAX: usize = 4;
/// How often is looked for messages whose time is over.
const LATE_INTERVAL: Duration = Duration::from_millis(10);
/// Subjects whose streams are remembered.
const HOMES_MAX: usize = 1024;

/// See the module's text.
pub(super) struct Writer {
    pub(super) queue: Arc<Queue>,
    pub(super) shared: Arc<Shared>,
    /// The messages of the batches under way, in the order of their answers.
    pub(super) flights: VecDeque<Flight>,
    /// The outcome of a message is unknown, and nobody was told.
    pub(super) lost: bool,
    /// Version of the routes, and the map of the slots, by which the batches under way were sent.
    way: (u64, u64),
    /// The batch under way is to be answered before the next one leaves.
    alone: bool,
    /// Keys of the streams that have taken a message: they know a version of the routes.
    pub(super) known: HashSet<String>,
    /// The routes have just been read again: the next batch goes by them wherever none are known.
    confirmed: bool,
    /// Something was refused that is to be carried out elsewhere or later: the next batch is followed to where it goes.
    pub(super) careful: bool,
    /// Streams by subject, as those routes say.
    pub(super) homes: HashMap<Subject, Arc<Home>, foldhash::fast::RandomState>,
    pub(super) standings: Standings,
    pub(super) doubts: Doubts,
    late: Interval,
    /// The connections for publishes that wait for replicas, since a server carries out nothing else on them meanwhile.
    own: HashMap<Address, Current, foldhash::fast::RandomState>,
    /// The connections on which transactions are sent, which the server does not answer command by command; where there
    /// is none, because the server does not have it so, the shared one.
    quiet: HashMap<Address, Quiet, foldhash::fast::RandomState>,
}

/// What was sent together.
pub(super) struct Flight {
    pub(super) batches: Vec<Batch>,
    /// No message has an earlier deadline.
    pub(super) soonest: Instant,
    /// Of each connection on which they were sent what is cancelled when it is given up; where there was none it is so.
    sent_on: Vec<CancellationToken>,
}

/// Messages of one stream, and the connections to its server.
struct Group {
    home: Arc<Home>,
    items: Vec<Item>,
    current: Option<Current>,
    quiet: Option<Current>,
}

/// A connection for transactions.
struct Quiet {
    current: Current,
    /// The server lets it be quiet.
    is: bool,
}

type Answering = FuturesOrdered<Fut<'static, Answers>>;

impl Writer {
    pub(super) fn new(queue: Arc<Queue>, shared: Arc<Shared>) -> Self {
        let mut late = tokio::time::interval(LATE_INTERVAL);
        late.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let scripts_only = shared.link.topology.redirects();
        Self {
            queue,
            doubts: Doubts::new(shared.clone()),
            shared,
            flights: VecDeque::new(),
            lost: false,
            way: (0, 0),
            alone: false,
            known: HashSet::new(),
            confirmed: false,
            careful: false,
            homes: HashMap::default(),
            standings: Standings::new(scripts_only),
            late,
            own: HashMap::default(),
            quiet: HashMap::default(),
        }
    }

    /// Sends what is queued, until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.send_all() => {}
        }
        // Whoever still waits is answered by the end of its ticket.
    }

    async fn send_all(&mut self) {
        let mut answering = Answering::new();
        loop {
            let waiting = self.queue.len();
            // While others are under way a small batch would cost more than it brings: it grows until they are answered.
            let worth_it = waiting >= ENOUGH || answering.is_empty() || self.queue.flush_is_first();
            if waiting > 0 && worth_it && answering.len() < BATCHES_MAX {
                self.send_next(&mut answering).await;
                continue;
            }
            let idle = waiting == 0 && answering.is_empty();
            self.queue.set_idle(idle);
            // Whatever came before that was said has woken nobody.
            if idle && self.queue.len() > 0 {
                continue;
            }
            let queue = self.queue.clone();
            tokio::select! {
                biased;
                Some(answers) = answering.next(), if !answering.is_empty() => {
                    self.finish(answers, &mut answering).await;
                }
                () = queue.filled() => {}
                unanswered = self.doubts.unanswered() => {
                    for Doubt { reply, timeout, .. } in unanswered {
                        self.queue.put_first(Order::Publish(no_responders(&reply, timeout)));
                    }
                }
                _ = self.late.tick(), if !idle => self.tell_late(),
            }
        }
    }

    /// The next answer, if a batch is under way; who waits for too long is told meanwhile.
    async fn next_answers(&mut self, answering: &mut Answering) -> Option<Answers> {
        loop {
            tokio::select! {
                biased;
                answers = answering.next() => return answers,
                _ = self.late.tick() => self.tell_late(),
            }
        }
    }

    /// Sends one batch of what waits, or answers a flush whose turn it is.
    async fn send_next(&mut self, answering: &mut Answering) {
        if self.queue.flush_is_first() {
            while let Some(answers) = self.next_answers(answering).await {
                if self.finish(answers, answering).await {
                    return;
                }
            }
            // An answer that nobody responds may have come in front: it is sent first.
            if let Some(done) = self.queue.take_flush() {
                let _ = done.send(self.flushed());
            }
            return;
        }
        let routes = self.shared.routes();
        // What goes by other routes, or to other servers, would overtake a batch that is refused where it went.
        let way = (routes.version, self.shared.link.map_changes());
        if way != self.way || self.alone {
            while let Some(answers) = self.next_answers(answering).await {
                if self.finish(answers, answering).await {
                    return;
                }
            }
            if way != self.way {
                self.way = way;
                self.homes.clear();
                self.standings.clear();
            }
            self.alone = false;
        }
        let items = self.queue.take(BATCH_MESSAGES, BATCH_BYTES);
        let items = self.still_to_send(items);
        if items.is_empty() {
            return;
        }
        let mut groups = self.groups(&routes, items);
        for group in &mut groups {
            group.current = self.connection(&group.home.key).await;
            let may_lead =
                self.standings.may_lead(&group.home, is_plain(&group.home, &group.items), group.items.len());
            if let (Some(current), true) = (&group.current, may_lead) {
                group.quiet = self.quiet_beside(current).await;
            }
        }
        let must_wait = |Group { home, items, .. }: &Group| {
            self.standings.must_wait(home, is_plain(home, items), items.len())
        };
        // Where a connection was lost, what was sent on it may be lost, too: on the next one nothing overtakes it. Looked
        // at after the connections were taken, since one is given up before another takes its place.
        let on_lost = |flight: &Flight| flight.sent_on.iter().any(CancellationToken::is_cancelled);
        if !groups.iter().any(must_wait) && !self.flights.iter().any(on_lost) {
            return self.send(routes.version, groups, answering);
        }
        for item in groups.into_iter().flat_map(|group| group.items).rev().collect::<Vec<_>>() {
            self.queue.put_first(Order::Publish(item));
        }
        while let Some(answers) = self.next_answers(answering).await {
            self.finish(answers, answering).await;
        }
    }

    /// Of these, what is neither too late nor behind a message that was given back; who published the others is told.
    fn still_to_send(&mut self, items: Vec<Item>) -> Vec<Item> {
        let now = Instant::now();
        if !items.iter().any(|item| item.deadline <= now || self.queue.is_behind_break(item)) {
            return items;
        }
        let (late, items): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.deadline <= now);
        self.tell_not_left(late);
        let mut left = Vec::with_capacity(items.len());
        for item in items {
            match self.queue.is_behind_break(&item) {
                true => self.tell_behind(item),
                false => left.push(item),
            }
        }
        left
    }

    /// Whether the stream may refuse this batch and, a moment later, take the one behind it: because its server does not
    /// know the script yet, because it does not know any version of the routes yet, or because its slot moves and these
    /// messages, not those, need keys that no node may decide about meanwhile.
    fn may_be_refused(&self, batch: &Batch, current: Option<&Current>) -> bool {
        if current.is_some_and(|current| !current.ran.has(batch.scripts())) {
            return true;
        }
        batch.home.stores
            && (!self.known.contains(&batch.home.key)
                || self.shared.link.topology.redirects() && !is_plain(&batch.home, &batch.items))
    }

    /// The connection to the server of a stream: the one that everything shares, unless replicas are waited for.
    async fn connection(&mut self, key: &str) -> Option<Current> {
        let shared = self.shared.link.current(key)?;
        if self.shared.options.wait_replicas == 0 {
            return Some(shared);
        }
        if let Some(own) = self.own.get(&shared.address)
            && !own.lost.is_cancelled()
        {
            return Some(own.clone());
        }
        let Ok(own) = self.shared.link.open_beside(&shared).await else {
            self.shared.link.suspect();
            return None;
        };
        self.own.retain(|_, own| !own.lost.is_cancelled());
        self.own.insert(own.address.clone(), own.clone());
        Some(own)
    }

    /// The connection for transactions to the same server, where there can be one.
    async fn quiet_beside(&mut self, shared: &Current) -> Option<Current> {
        if self.shared.options.wait_replicas > 0 {
            return None;
        }
        if let Some(known) =
            self.quiet.get(&shared.address).filter(|known| !known.current.lost.is_cancelled())
        {
            return known.is.then(|| known.current.clone());
        }
        let mut quiet = Quiet { current: shared.clone(), is: false };
        if let Ok(mut opened) = self.shared.link.open_beside(shared).await {
            let speak = answering("ON");
            let asked = opened.connection.send(&speak, false);
            if let Ok(Ok(Value::Okay)) = timeout(self.shared.link.answer_timeout, asked).await {
                quiet = Quiet { current: opened, is: true };
            }
        }
        self.quiet.retain(|_, known| !known.current.lost.is_cancelled());
        let found = quiet.is.then(|| quiet.current.clone());
        self.quiet.insert(shared.address.clone(), quiet);
        found
    }

    /// Sends to each server what is stored there.
    fn send(&mut self, version: u64, groups: Vec<Group>, answering: &mut Answering) {
        let known = Known { version, confirmed: std::mem::take(&mut self.confirmed) };
        let careful = std::mem::take(&mut self.careful);
        let items = groups.iter().flat_map(|group| &group.items);
        let soonest = items.map(|item| item.deadline).min().unwrap_or_else(Instant::now);
        let mut servers: Vec<(Option<Current>, Vec<Batch>)> = Vec::new();
        for Group { home, items, current, quiet } in groups {
            let (plain, bytes) = (is_plain(&home, &items), items.iter().map(|item| item.entry.len()).sum());
            let way = match careful {
                true => self.standings.send_by_script(&home, plain, items.len(), bytes),
                false => self.standings.send(&home, plain, items.len(), bytes),
            };
            let quiet = quiet.filter(|_| matches!(way, Way::Led(_)));
            let batch = Batch { home, items, way, quiet: quiet.is_some() };
            let current = quiet.or(current);
            self.alone |= careful || self.may_be_refused(&batch, current.as_ref());
            // What must stay in order goes behind nothing that may be refused for a moment while this is taken.
            self.alone |= !matches!(batch.way, Way::Led(_))
                && batch.items.iter().any(|item| item.unbroken_since.is_some());
            let address = |current: &Option<Current>| current.as_ref().map(|current| current.address.clone());
            let is_same = |(known, batches): &&mut (Option<Current>, Vec<Batch>)| {
                address(known) == address(&current)
                    && batches.first().is_some_and(|first| first.quiet == batch.quiet)
            };
            match servers.iter_mut().find(is_same) {
                Some((_, batches)) => batches.push(batch),
                None => servers.push((current, vec![batch])),
            }
        }
        let (mut batches, mut sending, mut sent_on) = (Vec::new(), Vec::new(), Vec::new());
        for (current, of_server) in servers {
            sent_on.push(current.as_ref().map_or_else(cancelled, |current| current.lost.clone()));
            sending.push(match (current, careful) {
                (None, _) => not_sent(of_server.len()),
                (Some(current), true) => follow(&self.shared, current, known, &of_server, soonest),
                (Some(current), false) => send_to(&self.shared, current, known, &of_server, soonest),
            });
            batches.extend(of_server);
        }
        self.flights.push_back(Flight { batches, soonest, sent_on });
        let mut sending: Fut<'static, Answers> = match sending.len() {
            1 => sending.remove(0),
            _ => Box::pin(async move { join_all(sending).await.into_iter().flatten().collect() }),
        };
        // Polled once so that batches leave in order.
        match sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answers) => answering.push_back(Box::pin(std::future::ready(answers))),
            Poll::Pending => answering.push_back(sending),
        }
    }

    /// The messages by stream, in order within each; no connections yet.
    fn groups(&mut self, routes: &Routes, items: Vec<Item>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let (mut latest, most) = (0, items.len());
        if let Some((first, others)) = items.split_first() {
            let home = self.home(routes, &first.subject);
            if others.iter().all(|item| Arc::ptr_eq(&self.home(routes, &item.subject), &home)) {
                return vec![Group { home, items, current: None, quiet: None }];
            }
        }
        for item in items {
            let home = self.home(routes, &item.subject);
            let is_same = |known: &Group| Arc::ptr_eq(&known.home, &home) || known.home.key == home.key;
            // Most messages go where the one before went.
            if !groups.get(latest).is_some_and(is_same) {
                latest = groups.iter().position(is_same).unwrap_or(groups.len());
            }
            match groups.get_mut(latest) {
                Some(group) => group.items.push(item),
                None => {
                    let mut items = Vec::with_capacity(if latest == 0 { most } else { 1 });
                    items.push(item);
                    groups.push(Group { home, items, current: None, quiet: None });
                }
            }
        }
        groups
    }

    /// The stream of a subject.
    fn home(&mut self, routes: &Routes, subject: &Subject) -> Arc<Home> {
        if let Some(home) = self.homes.get(subject) {
            return home.clone();
        }
        if self.homes.len() >= HOMES_MAX {
            self.homes.clear();
        }
        let home = routes.home(subject);
        self.homes.insert(subject.clone(), home.clone());
        home
    }

    /// Tells the publishers of one batch. `true` when some of it waits to be sent again, and must go first.
    async fn finish(&mut self, answers: Answers, answering: &mut Answering) -> bool {
        let mut stale = None;
        let mut again = self.tell(answers, &mut stale);
        if again.is_empty() {
            return false;
        }
        // The batches behind it may have been refused too: together they are sent again in order.
        while let Some(answers) = self.next_answers(answering).await {
            again.extend(self.tell(answers, &mut stale));
        }
        for item in again.into_iter().rev() {
            self.queue.put_first(Order::Publish(item));
        }
        if let Some(known) = stale {
            self.refresh(known).await;
        }
        true
    }

    /// Reads the routes again, because a stream knows those of version `known`.
    async fn refresh(&mut self, known: u64) {
        // Streams come and go; that those that are gone are remembered must not add up.
        self.known.clear();
        let shared = self.shared.clone();
        let refreshing = async move {
            match shared.refresh().await {
                Ok(routes) if routes.version < known => shared.raise_above(known).await,
                refreshed => refreshed,
            }
        };
        tokio::pin!(refreshing);
        let refreshed = loop {
            tokio::select! {
                refreshed = &mut refreshing => break refreshed,
                _ = self.late.tick() => self.tell_late(),
            }
        };
        match refreshed {
            Ok(_) => self.confirmed = true,
            Err(failure) => tracing::debug!(?failure, "the routes cannot be read now"),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// What stands for a connection that there was not.
fn cancelled() -> CancellationToken {
    let lost = CancellationToken::new();
    lost.cancel();
    lost
}
