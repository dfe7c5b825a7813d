//! The task that sends what is queued.
//!
//! A batch is checked for each stream it goes to: that the routes are those by which the stream was chosen. Then it is
//! appended. Several batches are under way at a time, so that the server has work while answers travel. What has not
//! left is refused as not connected; what may have left and has no answer is an unknown outcome.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use hashbrown::HashMap;
use redis::aio::MultiplexedConnection;
use redis::{ServerError, Value};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use trunkline_core::{Headers, Message, StreamOffset, Subject};

use super::super::entry::{self, number};
use super::super::link::{Current, is_unknown_script};
use super::super::routes::{Home, Routes, millis};
use super::super::scripts::{APPEND, PUBLISH};
use super::super::shared::{STALE_RETRIES, Shared};
use super::batch::{Batch, Broken, Stored, is_plain};
use super::queue::{ENOUGH, Item, Order, Queue};
use super::standing::Standings;
use super::{not_left, ticket};
use crate::backend::{Fut, PublishError, Receipt};

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
pub(in crate::backend::redis) struct Writer {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    /// The messages of the batches under way, in the order of their answers.
    flights: VecDeque<Flight>,
    /// The outcome of a message is unknown, and nobody was told.
    lost: bool,
    /// Version of the routes by which the batches under way were sent.
    version: u64,
    /// Streams by subject, as those routes say.
    homes: HashMap<Subject, Arc<Home>, foldhash::fast::RandomState>,
    standings: Standings,
    late: Interval,
    /// The connection for publishes that wait for replicas, since the server carries out nothing else on it meanwhile; and
    /// what tells that it is to be made anew.
    own: Option<(CancellationToken, MultiplexedConnection)>,
}

/// What was sent together.
struct Flight {
    batches: Vec<Batch>,
    /// No message has an earlier deadline.
    soonest: Instant,
}

/// The telling answer to each batch of one flight; fewer where the connection was lost.
type Answers = Vec<Value>;
type Answering = FuturesOrdered<Fut<'static, Answers>>;

impl Writer {
    pub(super) fn new(queue: Arc<Queue>, shared: Arc<Shared>) -> Self {
        let mut late = tokio::time::interval(LATE_INTERVAL);
        late.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            queue,
            shared,
            flights: VecDeque::new(),
            lost: false,
            version: 0,
            homes: HashMap::default(),
            standings: Standings::default(),
            late,
            own: None,
        }
    }

    /// Sends what is queued, until `stop`.
    pub(in crate::backend::redis) async fn run(mut self, stop: CancellationToken) {
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
            let queue = self.queue.clone();
            tokio::select! {
                biased;
                Some(answers) = answering.next(), if !answering.is_empty() => {
                    self.finish(answers, &mut answering).await;
                }
                () = queue.filled() => {}
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
        // Batches by other routes would overtake one that is refused for its old ones.
        if routes.version != self.version {
            while let Some(answers) = self.next_answers(answering).await {
                if self.finish(answers, answering).await {
                    return;
                }
            }
            self.version = routes.version;
            self.homes.clear();
            self.standings.clear();
        }
        let mut items = self.queue.take(BATCH_MESSAGES, BATCH_BYTES);
        let now = Instant::now();
        for item in items.extract_if(.., |item| item.deadline <= now) {
            self.tell_not_left(item);
        }
        let Some(current) = self.shared.link.current() else {
            for mut item in items {
                item.ticket.tell(Err(self.shared.link.not_connected()));
            }
            return;
        };
        if items.is_empty() {
            return;
        }
        let Some(current) = self.connection(current).await else {
            for mut item in items {
                item.ticket.tell(Err(self.shared.link.not_connected()));
            }
            return;
        };
        let groups = self.groups(&routes, items);
        let must_wait = |(home, items): &(Arc<Home>, Vec<Item>)| {
            self.standings.must_wait(home, is_plain(home, items), items.len())
        };
        if !groups.iter().any(must_wait) {
            return self.send(current, groups, answering);
        }
        for item in groups.into_iter().flat_map(|(_, items)| items).rev().collect::<Vec<_>>() {
            self.queue.put_first(Order::Publish(item));
        }
        while let Some(answers) = self.next_answers(answering).await {
            self.finish(answers, answering).await;
        }
    }

    /// The connection to send on: the one that everything shares, unless replicas are waited for.
    async fn connection(&mut self, shared: Current) -> Option<Current> {
        if self.shared.options.wait_replicas == 0 {
            return Some(shared);
        }
        if let Some((lost, connection)) = &self.own
            && !lost.is_cancelled()
        {
            return Some(Current { connection: connection.clone(), lost: lost.clone() });
        }
        let Ok(connection) = self.shared.link.open().await else {
            self.shared.link.suspect();
            return None;
        };
        // A script that is not known would cost the time that replicas are waited for.
        load_scripts(&self.shared).await;
        // Given up with the shared one, and by itself when it fails.
        let lost = shared.lost.child_token();
        self.own = Some((lost.clone(), connection.clone()));
        Some(Current { connection, lost })
    }

    fn send(&mut self, current: Current, groups: Vec<(Arc<Home>, Vec<Item>)>, answering: &mut Answering) {
        let items = groups.iter().flat_map(|(_, items)| items);
        let soonest = items.map(|item| item.deadline).min().unwrap_or_else(Instant::now);
        let (mut batches, mut counts) = (Vec::with_capacity(groups.len()), Vec::with_capacity(groups.len()));
        let mut pipeline = redis::Pipeline::new();
        for (home, items) in groups {
            let bytes = items.iter().map(|item| item.entry.len()).sum();
            let way = self.standings.send(&home, is_plain(&home, &items), items.len(), bytes);
            let batch = Batch { home, items, way };
            counts.push(batch.add_to(&mut pipeline, &self.shared, self.version));
            batches.push(batch);
        }
        let wanted = self.shared.options.wait_replicas;
        if wanted > 0 {
            // So that the answer comes before the time of those who wait for it is over.
            let patience = soonest.saturating_duration_since(Instant::now()) / 2;
            let mut command = redis::cmd("WAIT");
            command.arg(wanted).arg(millis(patience).max(1));
            pipeline.add_command(command);
            counts.push(1);
        }
        self.flights.push_back(Flight { batches, soonest });
        let shared = self.shared.clone();
        let mut connection = current.connection;
        let mut sending: Fut<'static, Answers> = Box::pin(async move {
            let answer = tokio::select! {
                answer = connection.send_packed_commands(&pipeline, 0, pipeline.len()) => answer,
                () = current.lost.cancelled() => Err(redis::RedisError::from((redis::ErrorKind::Io, "lost"))),
            };
            let Ok(values) = answer else {
                shared.link.suspect();
                if wanted > 0 {
                    current.lost.cancel();
                }
                return Vec::new();
            };
            let mut values = values.into_iter();
            counts.into_iter().filter_map(|count| values.nth(count - 1)).collect()
        });
        // Polled once so that batches leave in order.
        match sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answers) => answering.push_back(Box::pin(std::future::ready(answers))),
            Poll::Pending => answering.push_back(sending),
        }
    }

    /// The messages by stream, in order within each.
    fn groups(&mut self, routes: &Routes, items: Vec<Item>) -> Vec<(Arc<Home>, Vec<Item>)> {
        let mut groups: Vec<(Arc<Home>, Vec<Item>)> = Vec::new();
        let (mut latest, most) = (0, items.len());
        for item in items {
            let home = match self.homes.get(&item.subject) {
                Some(home) => home.clone(),
                None => {
                    if self.homes.len() >= HOMES_MAX {
                        self.homes.clear();
                    }
                    let home = routes.home(&item.subject);
                    self.homes.insert(item.subject.clone(), home.clone());
                    home
                }
            };
            let is_same =
                |(known, _): &(Arc<Home>, Vec<Item>)| Arc::ptr_eq(known, &home) || known.key == home.key;
            // Most messages go where the one before went.
            if !groups.get(latest).is_some_and(is_same) {
                latest = groups.iter().position(is_same).unwrap_or(groups.len());
            }
            match groups.get_mut(latest) {
                Some((_, items)) => items.push(item),
                None => {
                    let mut items = Vec::with_capacity(if latest == 0 { most } else { 1 });
                    items.push(item);
                    groups.push((home, items));
                }
            }
        }
        groups
    }

    /// Tells the publishers of one batch. `true` when some of it waits to be sent again, and must go first.
    async fn finish(&mut self, answers: Answers, answering: &mut Answering) -> bool {
        let mut again = self.tell(answers);
        if again.is_empty() {
            return false;
        }
        // The batches behind it may have been refused too: together they are sent again in order.
        while let Some(answers) = self.next_answers(answering).await {
            again.extend(self.tell(answers));
        }
        for item in again.into_iter().rev() {
            self.queue.put_first(Order::Publish(item));
        }
        let refreshing = refresh(self.shared.clone());
        tokio::pin!(refreshing);
        loop {
            tokio::select! {
                () = &mut refreshing => return true,
                _ = self.late.tick() => self.tell_late(),
            }
        }
    }

    fn tell(&mut self, mut answers: Answers) -> Vec<Item> {
        let wanted = u64::from(self.shared.options.wait_replicas);
        let mut missing = None;
        if let Some(flight) = self.flights.front()
            && wanted > 0
            && answers.len() > flight.batches.len()
        {
            let replicas = answers.pop().and_then(|answer| number(&answer).ok()).unwrap_or(0);
            missing = (replicas < wanted).then_some(replicas);
        }
        let batches = self.flights.pop_front().map(|flight| flight.batches).unwrap_or_default();
        let answers = answers.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let mut again = Vec::new();
        for (batch, answer) in batches.into_iter().zip(answers) {
            match answer.map_or(Err(Broken::Unknown), |answer| batch.read(answer)) {
                Ok(stored) => self.tell_stored(batch, stored, missing),
                Err(Broken::Refused(error)) => {
                    let outrun = matches!(error.code(), "OUTRUN" | "EXECABORT");
                    self.standings.failed(&batch.home, &batch.way, outrun);
                    if outrun || error.code() == "STALE" || is_unknown_script(&error) {
                        again.extend(batch.items.into_iter().filter_map(|item| resend(item, &error)));
                    } else {
                        batch.items.into_iter().for_each(|item| self.tell_refused(item, &error));
                    }
                }
                Err(Broken::Unknown) => {
                    self.standings.failed(&batch.home, &batch.way, false);
                    batch.items.into_iter().for_each(|item| self.tell_unknown(item));
                }
            }
        }
        again
    }

    /// Tells what was stored; `replicas` have it, where that is too few.
    fn tell_stored(&mut self, batch: Batch, stored: Stored, replicas: Option<u64>) {
        let newest = stored.outcomes.last().filter(|last| !last.duplicate).map(|last| last.id);
        self.standings.stored(&batch.home, &batch.way, newest, stored.clock);
        for (mut item, outcome) in batch.items.into_iter().zip(stored.outcomes) {
            if outcome.nobody
                && let Some(reply) = &item.reply
            {
                self.queue.put_first(Order::Publish(no_responders(reply, item.timeout)));
            }
            if let (Some(replicas), true) = (replicas, batch.home.stores) {
                let server = self.shared.link.server.clone();
                let wanted = u64::from(self.shared.options.wait_replicas);
                self.lost |= !item.ticket.tell(Err(PublishError::NotReplicated { server, replicas, wanted }));
                continue;
            }
            let receipt = match batch.home.stores {
                true => Receipt::Stored {
                    stream: batch.home.name.clone(),
                    offset: StreamOffset::Entry(outcome.id.0, outcome.id.1),
                    duplicate: outcome.duplicate,
                },
                false => Receipt::Accepted,
            };
            item.ticket.tell(Ok(receipt));
        }
    }

    fn tell_unknown(&mut self, mut item: Item) {
        let server = self.shared.link.server.clone();
        let unknown = PublishError::OutcomeUnknown { server, waited: Duration::ZERO };
        self.lost |= !item.ticket.tell(Err(unknown));
    }

    fn tell_not_left(&self, mut item: Item) {
        item.ticket.tell(Err(not_left(&self.shared, item.timeout)));
    }

    fn tell_refused(&mut self, mut item: Item, error: &ServerError) {
        let reason = error.to_string();
        let refused = match error.code() {
            // These come before anything of the script was done.
            "LOADING" | "READONLY" | "MASTERDOWN" | "BUSY" | "MISCONF" | "OOM" => {
                PublishError::NotConnected { server: self.shared.link.server.clone(), reason }
            }
            "NOPERM" | "NOAUTH" => PublishError::Denied { subject: item.subject.clone(), reason },
            _ => {
                tracing::warn!(subject = %item.subject, %reason, "a publish failed half way");
                return self.tell_unknown(item);
            }
        };
        item.ticket.tell(Err(refused));
    }

    /// Tells those whose time is over: what has not left is taken back, what has left may still be stored.
    fn tell_late(&mut self) {
        let now = Instant::now();
        for item in self.queue.expired(now) {
            self.tell_not_left(item);
        }
        for flight in self.flights.iter_mut().filter(|flight| flight.soonest <= now) {
            let mut soonest: Option<Instant> = None;
            for item in flight.batches.iter_mut().flat_map(|batch| &mut batch.items) {
                if item.deadline <= now {
                    let (server, waited) = (self.shared.link.server.clone(), item.timeout);
                    self.lost |= !item.ticket.tell(Err(PublishError::OutcomeUnknown { server, waited }));
                } else {
                    soonest = Some(soonest.map_or(item.deadline, |soonest| soonest.min(item.deadline)));
                }
            }
            flight.soonest = soonest.unwrap_or_else(|| now + Duration::from_secs(3600));
        }
    }

    fn flushed(&mut self) -> Result<(), PublishError> {
        let link = &self.shared.link;
        if std::mem::take(&mut self.lost) {
            return Err(PublishError::OutcomeUnknown { server: link.server.clone(), waited: Duration::ZERO });
        }
        match link.is_connected() {
            true => Ok(()),
            false => Err(link.not_connected()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Has the server know the scripts, and the routes from the server.
async fn refresh(shared: Arc<Shared>) {
    load_scripts(&shared).await;
    if let Err(failure) = shared.refresh().await {
        tracing::debug!(?failure, "the routes cannot be read now");
    }
}

async fn load_scripts(shared: &Shared) {
    for script in [&APPEND, &PUBLISH] {
        // Where it fails, so will what needs the script.
        let _ = shared.link.query(redis::cmd("SCRIPT").arg("LOAD").arg(script.source())).await;
    }
}

/// A message that was refused for old routes, to be sent once more, unless that leads nowhere or nobody waits.
fn resend(mut item: Item, error: &ServerError) -> Option<Item> {
    if item.ticket.is_told() {
        return None;
    }
    item.stale += 1;
    if item.stale <= STALE_RETRIES {
        return Some(item);
    }
    let reason = format!("the streams keep changing: {error}");
    let denied = PublishError::Denied { subject: item.subject.clone(), reason };
    item.ticket.tell(Err(denied));
    None
}

/// The answer to a request that nobody answers.
fn no_responders(reply: &Subject, timeout: Duration) -> Item {
    let mut headers = Headers::new();
    headers.append("Status", "503").expect("a valid header");
    let answer = Message { subject: reply.clone(), reply: None, headers, payload: Bytes::new() };
    let (ticket, _) = ticket::ticket();
    Item {
        entry: entry::encode(&answer),
        subject: answer.subject,
        reply: None,
        dedupe_id: None,
        stale: 0,
        timeout,
        deadline: Instant::now() + timeout,
        ticket,
    }
}
