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

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesOrdered;
use hashbrown::HashMap;
use redis::{ServerError, Value};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use trunkline_core::{Headers, Message, StreamOffset, Subject};

use super::super::acl::{denied, is_denied};
use super::super::entry::{self, number};
use super::super::link::{Current, Failure, Ran, is_unknown_script};
use super::super::refusal;
use super::super::routes::{Home, Routes, millis};
use super::super::shared::{STALE_RETRIES, Shared};
use super::super::slots::{Address, Redirect};
use super::batch::{Batch, Broken, Known, Stored, is_plain};
use super::doubts::{Doubt, Doubts};
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
    /// Version of the routes, and the map of the slots, by which the batches under way were sent.
    way: (u64, u64),
    /// The batch under way is to be answered before the next one leaves.
    alone: bool,
    /// Keys of the streams that have taken a message: they know a version of the routes.
    known: HashSet<String>,
    /// The routes have just been read again: the next batch goes by them wherever none are known.
    confirmed: bool,
    /// Something was refused that is to be carried out elsewhere or later: the next batch is followed to where it goes.
    careful: bool,
    /// Streams by subject, as those routes say.
    homes: HashMap<Subject, Arc<Home>, foldhash::fast::RandomState>,
    standings: Standings,
    doubts: Doubts,
    late: Interval,
    /// The connections for publishes that wait for replicas, since a server carries out nothing else on them meanwhile.
    own: HashMap<Address, Current, foldhash::fast::RandomState>,
}

/// What was sent together.
struct Flight {
    batches: Vec<Batch>,
    /// No message has an earlier deadline.
    soonest: Instant,
    /// Of each connection on which they were sent what is cancelled when it is given up; where there was none it is so.
    sent_on: Vec<CancellationToken>,
}

/// Messages of one stream, and the connection to its server.
struct Group {
    home: Arc<Home>,
    items: Vec<Item>,
    current: Option<Current>,
}

/// The telling answer to each batch of one flight, and how many replicas have it where that was asked.
struct Answer {
    answer: Result<Value, Broken>,
    replicas: Option<u64>,
}

type Answers = Vec<Answer>;
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

    /// Sends to each server what is stored there.
    fn send(&mut self, version: u64, groups: Vec<Group>, answering: &mut Answering) {
        let known = Known { version, confirmed: std::mem::take(&mut self.confirmed) };
        let careful = std::mem::take(&mut self.careful);
        let items = groups.iter().flat_map(|group| &group.items);
        let soonest = items.map(|item| item.deadline).min().unwrap_or_else(Instant::now);
        let mut servers: Vec<(Option<Current>, Vec<Batch>)> = Vec::new();
        for Group { home, items, current } in groups {
            let (plain, bytes) = (is_plain(&home, &items), items.iter().map(|item| item.entry.len()).sum());
            let way = match careful {
                true => self.standings.send_by_script(&home, plain, items.len(), bytes),
                false => self.standings.send(&home, plain, items.len(), bytes),
            };
            let batch = Batch { home, items, way };
            self.alone |= careful || self.may_be_refused(&batch, current.as_ref());
            let address = |current: &Option<Current>| current.as_ref().map(|current| current.address.clone());
            match servers.iter_mut().find(|(known, _)| address(known) == address(&current)) {
                Some((_, batches)) => batches.push(batch),
                None => servers.push((current, vec![batch])),
            }
        }
        let (mut batches, mut sending, mut sent_on) = (Vec::new(), Vec::new(), Vec::new());
        for (current, of_server) in servers {
            sent_on.push(current.as_ref().map_or_else(cancelled, |current| current.lost.clone()));
            sending.push(match (current, careful) {
                (None, _) => not_sent(of_server.len()),
                (Some(current), true) => self.follow(current, known, &of_server, soonest),
                (Some(current), false) => self.send_to(current, known, &of_server, soonest),
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

    /// Sends to one server what is stored there.
    fn send_to(
        &self,
        mut current: Current,
        known: Known,
        batches: &[Batch],
        soonest: Instant,
    ) -> Fut<'static, Answers> {
        let mut pipeline = redis::Pipeline::new();
        let counts: Vec<usize> =
            batches.iter().map(|batch| batch.add_to(&mut pipeline, &self.shared, known)).collect();
        let waits = self.shared.options.wait_replicas > 0;
        if waits {
            pipeline.add_command(waiting(&self.shared, soonest));
        }
        let scripts: Vec<u8> = batches.iter().map(Batch::scripts).collect();
        let shared = self.shared.clone();
        Box::pin(async move {
            let answer = tokio::select! {
                answer = current.connection.send_packed_commands(&pipeline, 0, pipeline.len()) => answer,
                () = current.lost.cancelled() => Err(redis::RedisError::from((redis::ErrorKind::Io, "lost"))),
            };
            let link = &shared.link;
            let Ok(mut values) = answer else {
                link.suspect();
                if waits {
                    current.lost.cancel();
                }
                return counts
                    .iter()
                    .map(|_| Answer { answer: Err(Broken::Unknown), replicas: None })
                    .collect();
            };
            let replicas = waits.then(|| values.pop()).flatten().map(|answer| number(&answer).unwrap_or(0));
            let mut values = values.into_iter();
            let answers = counts.into_iter().zip(scripts).map(|(count, scripts)| {
                let answer = match values.nth(count - 1) {
                    Some(Value::ServerError(error))
                        if is_unknown_script(&error)
                            || link.redirected(&error, &current.address).is_some() =>
                    {
                        Err(Broken::Redirected(error))
                    }
                    Some(answer) => {
                        current.ran.add(scripts);
                        Ok(answer)
                    }
                    None => Err(Broken::Unknown),
                };
                Answer { answer, replicas }
            });
            answers.collect()
        })
    }

    /// Sends what is stored on one server and follows it to another, with the next batch behind it only when all of this
    /// one has an answer.
    fn follow(
        &self,
        current: Current,
        known: Known,
        batches: &[Batch],
        soonest: Instant,
    ) -> Fut<'static, Answers> {
        let sending = batches.iter().map(|batch| {
            let ((script, command), key) = (batch.script(&self.shared, known), batch.home.key.clone());
            let (shared, current) = (self.shared.clone(), current.clone());
            async move {
                if shared.options.wait_replicas > 0 {
                    return append_and_wait(&shared, current, &script.in_full(&command), soonest).await;
                }
                let answer = shared.link.query_script(&key, script, &command).await;
                let answer = answer.map_err(|failure| match failure {
                    Failure::NotConnected(_) => Broken::NotSent,
                    Failure::Refused(error) => Broken::Refused(error),
                    Failure::Unknown(_) | Failure::Unexpected(_) => Broken::Unknown,
                });
                Answer { answer, replicas: None }
            }
        });
        Box::pin(join_all(sending.collect::<Vec<_>>()))
    }

    /// The messages by stream, in order within each; no connections yet.
    fn groups(&mut self, routes: &Routes, items: Vec<Item>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let (mut latest, most) = (0, items.len());
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
                    groups.push(Group { home, items, current: None });
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

    /// Tells the publishers, and gives back what is to be sent again. `stale` becomes the newest version of the routes
    /// that a stream has been heard to know.
    fn tell(&mut self, answers: Answers, stale: &mut Option<u64>) -> Vec<Item> {
        let wanted = u64::from(self.shared.options.wait_replicas);
        let batches = self.flights.pop_front().map(|flight| flight.batches).unwrap_or_default();
        let mut again = Vec::new();
        for (batch, Answer { answer, replicas }) in batches.into_iter().zip(answers) {
            let missing = replicas.filter(|replicas| *replicas < wanted);
            let read = answer.and_then(|answer| batch.read(answer));
            let error = match read {
                Ok(stored) => {
                    self.tell_stored(batch, stored, missing);
                    continue;
                }
                Err(Broken::Refused(error)) => error,
                Err(broken) => {
                    self.standings.failed(&batch.home, &batch.way, false);
                    match broken {
                        Broken::Redirected(error) => {
                            self.careful = true;
                            again.extend(self.resend(batch.items, &error));
                        }
                        Broken::NotSent => {
                            self.tell_not_sent(&batch.home, batch.items, |shared| shared.link.not_connected())
                        }
                        Broken::Refused(_) | Broken::Unknown => self.tell_unknown(batch.items),
                    }
                    continue;
                }
            };
            let outrun = matches!(error.code(), "OUTRUN" | "EXECABORT");
            self.standings.failed(&batch.home, &batch.way, outrun);
            if error.code() == "STALE" {
                let known = error.details().and_then(|known| known.parse().ok()).unwrap_or(0);
                *stale = (*stale).max(Some(known));
            }
            if outrun || error.code() == "STALE" {
                again.extend(self.resend(batch.items, &error));
            } else {
                self.tell_refused(batch, &error);
            }
        }
        again
    }

    /// Tells what was stored; `replicas` have it, where that is too few.
    fn tell_stored(&mut self, batch: Batch, stored: Stored, replicas: Option<u64>) {
        if batch.home.stores && !self.known.contains(&batch.home.key) {
            self.known.insert(batch.home.key.clone());
        }
        let newest = stored.outcomes.last().filter(|last| !last.duplicate).map(|last| last.id);
        self.standings.stored(&batch.home, &batch.way, newest, stored.clock);
        for (mut item, outcome) in batch.items.into_iter().zip(stored.outcomes) {
            if outcome.nobody
                && let Some(reply) = &item.reply
            {
                self.note_nobody(&batch.home, &item, reply);
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

    /// Nobody is listed who answers this request.
    fn note_nobody(&mut self, home: &Arc<Home>, item: &Item, reply: &Subject) {
        if self.shared.link.settling().is_none() {
            return self.queue.put_first(Order::Publish(no_responders(reply, item.timeout)));
        }
        self.doubts.add(Doubt {
            home: home.clone(),
            subject: item.subject.clone(),
            reply: reply.clone(),
            timeout: item.timeout,
            deadline: item.deadline,
        });
    }

    fn tell_unknown(&mut self, items: Vec<Item>) {
        self.note_break(&items);
        for mut item in items {
            let server = self.shared.link.server.clone();
            let unknown = PublishError::OutcomeUnknown { server, waited: Duration::ZERO };
            self.lost |= !item.ticket.tell(Err(unknown));
        }
    }

    /// Tells that messages were not sent, or not taken, and takes back those for the same stream that wait behind them:
    /// they would overtake what is published again.
    fn tell_not_sent(&mut self, home: &Home, items: Vec<Item>, error: impl Fn(&Shared) -> PublishError) {
        self.note_break(&items);
        let routes = self.shared.routes();
        let same_stream = |subject: &Subject| match self.homes.get(subject) {
            Some(known) => known.key == home.key,
            None => routes.home(subject).key == home.key,
        };
        // Of the others each says itself whether it may be sent, when its turn comes.
        let behind = self.queue.take_out(|item| item.unbroken_since.is_none() && same_stream(&item.subject));
        for mut item in items.into_iter().chain(behind) {
            item.ticket.tell(Err(error(&self.shared)));
        }
    }

    fn tell_not_left(&self, items: Vec<Item>) {
        self.note_break(&items);
        for mut item in items {
            item.ticket.tell(Err(not_left(&self.shared, item.timeout)));
        }
    }

    fn tell_behind(&self, mut item: Item) {
        let server = self.shared.link.server.clone();
        let reason = "a message before it was not sent, or not surely; this one has not left".to_owned();
        item.ticket.tell(Err(PublishError::NotConnected { server, reason }));
    }

    /// These are about to be given back: what is not to overtake them must not be sent. Once for all of them, since who
    /// publishes meanwhile goes by the new number.
    fn note_break(&self, items: &[Item]) {
        if items.iter().any(|item| item.unbroken_since.is_some()) {
            self.queue.note_break();
        }
    }

    fn tell_refused(&mut self, batch: Batch, error: &ServerError) {
        let reason = error.to_string();
        match refusal::code(error) {
            _ if is_denied(error) => {
                for mut item in batch.items {
                    let (subject, reason) = (item.subject.clone(), denied(error));
                    item.ticket.tell(Err(PublishError::Denied { subject, reason }));
                }
            }
            // These come before anything of the script was done.
            "LOADING" | "READONLY" | "MASTERDOWN" | "BUSY" | "MISCONF" | "OOM" | "MOVED" | "ASK"
            | "TRYAGAIN" | "CLUSTERDOWN" => self.tell_not_sent(&batch.home, batch.items, |shared| {
                PublishError::NotConnected { server: shared.link.server.clone(), reason: reason.clone() }
            }),
            _ => {
                tracing::warn!(stream = batch.home.name, %reason, "a publish failed half way");
                self.tell_unknown(batch.items);
            }
        }
    }

    /// Of messages that were refused for a way that is not the right one any more, those to be sent once more: unless that
    /// leads nowhere, or nobody waits.
    fn resend(&self, items: Vec<Item>, error: &ServerError) -> Vec<Item> {
        // Those whose time was over while they were under way have been given back by that.
        let (given_back, items): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.ticket.is_told());
        self.note_break(&given_back);
        let mut again = Vec::with_capacity(items.len());
        for mut item in items {
            item.refused += 1;
            if item.refused <= STALE_RETRIES {
                again.push(item);
                continue;
            }
            let reason = format!("the streams keep changing: {error}");
            let denied = PublishError::Denied { subject: item.subject.clone(), reason };
            item.ticket.tell(Err(denied));
        }
        again
    }

    /// Tells those whose time is over: what has not left is taken back, what has left may still be stored.
    fn tell_late(&mut self) {
        let now = Instant::now();
        self.tell_not_left(self.queue.expired(now));
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

/// What stands for a connection that there was not.
fn cancelled() -> CancellationToken {
    let lost = CancellationToken::new();
    lost.cancel();
    lost
}

/// The answers to batches for which there is no connection.
fn not_sent(count: usize) -> Fut<'static, Answers> {
    let answer = || Answer { answer: Err(Broken::NotSent), replicas: None };
    Box::pin(std::future::ready(std::iter::repeat_with(answer).take(count).collect()))
}

/// The command that waits for replicas: its answer comes before the time of those who wait for it is over.
fn waiting(shared: &Shared, soonest: Instant) -> redis::Cmd {
    let patience = soonest.saturating_duration_since(Instant::now()) / 2;
    let mut command = redis::cmd("WAIT");
    command.arg(shared.options.wait_replicas).arg(millis(patience).max(1));
    command
}

/// Appends, then waits for replicas on the connection that has written. What is on its way to another node is appended
/// there, on a connection for this alone, since its server carries out nothing else on it meanwhile.
async fn append_and_wait(
    shared: &Shared,
    mut current: Current,
    append: &redis::Cmd,
    soonest: Instant,
) -> Answer {
    let link = &shared.link;
    let broken = |broken| Answer { answer: Err(broken), replicas: None };
    let mut asking = false;
    let stored = loop {
        let appending = tokio::time::timeout(link.answer_timeout, current.connection.send(append, asking));
        let error = match appending.await {
            Ok(Ok(Value::ServerError(error))) => error,
            Ok(Ok(stored)) => break stored,
            Ok(Err(_)) | Err(_) => {
                link.suspect();
                current.lost.cancel();
                return broken(Broken::Unknown);
            }
        };
        match link.redirected(&error, &current.address) {
            None => return Answer { answer: Ok(Value::ServerError(error)), replicas: None },
            Some(Redirect::Ask(address)) if !asking => {
                let Ok(connection) = link.connector.open(&address).await else {
                    return broken(Broken::Redirected(error));
                };
                let lost = current.lost.child_token();
                (current, asking) = (Current { address, connection, lost, ran: Ran::default() }, true);
            }
            Some(_) => return broken(Broken::Redirected(error)),
        }
    };
    let command = waiting(shared, soonest);
    let waited = current.connection.send(&command, false);
    let replicas = match tokio::time::timeout(link.answer_timeout, waited).await {
        Ok(Ok(answer)) => number(&answer).unwrap_or(0),
        // It is stored; that replicas have it, nobody says.
        Ok(Err(_)) | Err(_) => {
            link.suspect();
            current.lost.cancel();
            0
        }
    };
    Answer { answer: Ok(stored), replicas: Some(replicas) }
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
        unbroken_since: None,
        refused: 0,
        timeout,
        deadline: Instant::now() + timeout,
        ticket,
    }
}
