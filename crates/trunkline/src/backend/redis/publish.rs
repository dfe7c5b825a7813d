//! Publishing: one queue, one task that sends it in batches, the outcome for each message.
//!
//! A batch is one script for each stream it goes to: it checks that the routes are those by which the stream was chosen,
//! and appends. What a node refuses because it does not serve the stream now is sent again, one batch at a time, until it
//! arrives. Two batches are under way at a time, so that the server has work while answers travel. What has not left
//! is refused as not connected; what may have left and has no answer is an unknown outcome.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesOrdered;
use redis::{ServerError, Value};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use trunkline_core::{Headers, Message, StreamOffset, Subject};

use super::acl::{denied, is_denied};
use super::entry::{self, array, entry_id, list, number};
use super::link::{Current, Failure, is_unknown_script};
use super::routes::{Home, millis};
use super::scripts::PUBLISH;
use super::shared::{STALE_RETRIES, Shared};
use crate::backend::{Fut, PublishError, Publishing, Receipt};

/// Most messages, and most bytes, that one script appends: while it runs the server does nothing else.
const BATCH_MESSAGES: usize = 128;
const BATCH_BYTES: usize = 1 << 20;
/// Batches under way at once.
const BATCHES_MAX: usize = 2;

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const ABANDONED: u8 = 2;

/// One message on its way.
struct Item {
    subject: Subject,
    reply: Option<Subject>,
    entry: Vec<u8>,
    dedupe_id: Option<String>,
    /// How often it was sent by routes that turned out to be old, or to a server that does not have the stream.
    refused: usize,
    /// `QUEUED`, then `SENT`, or `ABANDONED` by a publisher that waits no longer: what is queued can be taken back.
    state: Arc<AtomicU8>,
    outcome: oneshot::Sender<Result<Receipt, PublishError>>,
}

enum Order {
    Publish(Item),
    Flush(oneshot::Sender<Result<(), PublishError>>),
}

/// The publishers' end of the queue.
pub(super) struct Publisher {
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
    /// Where timers live, for callers outside of it.
    runtime: Handle,
}

impl Publisher {
    /// The queue and the task that empties it, to be spawned.
    pub(super) fn new(shared: &Arc<Shared>) -> (Self, Writer) {
        let (orders, queue) = mpsc::channel(shared.options.max_pending.max(1));
        let publisher = Self { orders, shared: shared.clone(), runtime: Handle::current() };
        let writer = Writer {
            queue,
            shared: shared.clone(),
            waiting: VecDeque::new(),
            lost: AtomicBool::new(false),
            way: (0, 0),
            alone: false,
            known: HashSet::new(),
            confirmed: false,
            careful: false,
        };
        (publisher, writer)
    }

    pub(super) fn publish(
        &self,
        message: Message,
        dedupe_id: Option<String>,
        timeout: Duration,
    ) -> Publishing {
        let link = &self.shared.link;
        if link.refusing.load(Ordering::SeqCst) {
            return Publishing::Ready(Err(PublishError::Closed));
        }
        let (size, limit) =
            (message.headers.size_bytes() + message.payload.len(), self.shared.options.max_payload);
        if size > limit {
            return Publishing::Ready(Err(PublishError::TooLarge { size, limit }));
        }
        if !link.is_connected() {
            return Publishing::Ready(Err(link.not_connected()));
        }
        let (outcome, answer) = oneshot::channel();
        let state = Arc::new(AtomicU8::new(QUEUED));
        let item = Item {
            entry: entry::encode(&message),
            subject: message.subject,
            reply: message.reply,
            dedupe_id,
            refused: 0,
            state: state.clone(),
            outcome,
        };
        let queueing = match self.orders.try_send(Order::Publish(item)) {
            Ok(()) => None,
            Err(mpsc::error::TrySendError::Closed(_)) => return Publishing::Ready(Err(PublishError::Closed)),
            Err(mpsc::error::TrySendError::Full(order)) => {
                let orders = self.orders.clone();
                let mut sending: Fut<'static, _> = Box::pin(async move { orders.send(order).await.is_ok() });
                // Polled once so that it takes its place: what is published next stays behind it.
                match sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(_) => None,
                    Poll::Pending => Some(sending),
                }
            }
        };
        let deadline = {
            // The caller may be outside of the runtime; the timer must not be.
            let _runtime = self.runtime.enter();
            tokio::time::sleep(timeout)
        };
        let shared = self.shared.clone();
        Publishing::Pending(Box::pin(async move {
            let answered = async {
                if let Some(queueing) = queueing {
                    queueing.await;
                }
                answer.await
            };
            tokio::select! {
                biased;
                answer = answered => answer.unwrap_or(Err(PublishError::Closed)),
                () = deadline => Err(timed_out(&shared, &state, timeout)),
            }
        }))
    }

    /// Waits until everything queued before has an outcome.
    pub(super) async fn flush(&self, wait: Duration) -> Result<(), PublishError> {
        let link = &self.shared.link;
        let unknown = || PublishError::OutcomeUnknown { server: link.server.clone(), waited: wait };
        let (done, answer) = oneshot::channel();
        let flushing = async {
            self.orders.send(Order::Flush(done)).await.map_err(|_| PublishError::Closed)?;
            answer.await.map_err(|_| PublishError::Closed)?
        };
        tokio::time::timeout(wait, flushing).await.unwrap_or_else(|_| Err(unknown()))
    }
}

fn timed_out(shared: &Shared, state: &AtomicU8, waited: Duration) -> PublishError {
    let server = shared.link.server.clone();
    match state.compare_exchange(QUEUED, ABANDONED, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {
            let reason = format!("others were sent first for {waited:?}, this message has not left");
            PublishError::NotConnected { server, reason }
        }
        Err(_) => PublishError::OutcomeUnknown { server, waited },
    }
}

/// The task's end of the queue.
pub(super) struct Writer {
    queue: mpsc::Receiver<Order>,
    shared: Arc<Shared>,
    /// Taken from the queue, or to be sent again, in order.
    waiting: VecDeque<Order>,
    /// The outcome of a message is unknown, and nobody was told.
    lost: AtomicBool,
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
}

/// The messages of one batch that go to one stream.
struct Group {
    home: Arc<Home>,
    items: Vec<Item>,
}

/// What became of them.
struct Answered {
    group: Group,
    answer: Result<Value, Broken>,
}

/// Why there is no answer.
enum Broken {
    /// They have not left.
    NotSent,
    Refused(ServerError),
    /// Another server has the stream, or one will have it soon.
    Redirected(ServerError),
    Unknown,
}

type Batches = FuturesOrdered<Fut<'static, Vec<Answered>>>;

impl Writer {
    /// Sends what is queued, until the queue is closed or `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.send_all() => {}
        }
        // Whoever still waits is answered by the end of its channel.
    }

    async fn send_all(&mut self) {
        let mut batches = Batches::new();
        loop {
            let room = batches.len() < BATCHES_MAX;
            if room && !self.waiting.is_empty() {
                self.send_next(&mut batches).await;
                continue;
            }
            tokio::select! {
                biased;
                Some(answered) = batches.next(), if !batches.is_empty() => {
                    self.finish(answered, &mut batches).await;
                }
                order = self.queue.recv(), if room => match order {
                    Some(order) => {
                        self.waiting.push_back(order);
                        while self.waiting.len() < BATCH_MESSAGES && let Ok(order) = self.queue.try_recv() {
                            self.waiting.push_back(order);
                        }
                    }
                    None if batches.is_empty() => return,
                    None => {
                        if let Some(answered) = batches.next().await {
                            self.finish(answered, &mut batches).await;
                        }
                    }
                },
            }
        }
    }

    /// Sends one batch of what waits, or answers a flush whose turn it is.
    async fn send_next(&mut self, batches: &mut Batches) {
        if let Some(Order::Flush(_)) = self.waiting.front() {
            while let Some(answered) = batches.next().await {
                if self.finish(answered, batches).await {
                    return;
                }
            }
            // An answer that nobody responds may have come in front: it is sent first.
            match self.waiting.pop_front() {
                Some(Order::Flush(done)) => {
                    let _ = done.send(self.flushed());
                }
                Some(other) => self.waiting.push_front(other),
                None => {}
            }
            return;
        }
        let routes = self.shared.routes();
        // What goes by other routes, or to other servers, would overtake a batch that is refused where it went.
        let way = (routes.version, self.shared.link.map_changes());
        if way != self.way || self.alone {
            while let Some(answered) = batches.next().await {
                if self.finish(answered, batches).await {
                    return;
                }
            }
            self.way = way;
        }
        let mut groups: Vec<Group> = Vec::new();
        for item in self.take_batch() {
            let home = routes.home(&item.subject);
            match groups.iter_mut().find(|group| group.home.key == home.key) {
                Some(group) => group.items.push(item),
                None => groups.push(Group { home, items: vec![item] }),
            }
        }
        let confirmed = std::mem::take(&mut self.confirmed);
        let careful = std::mem::take(&mut self.careful);
        self.alone = careful || groups.iter().any(|group| self.may_be_refused(group));
        let mut sending = match careful {
            true => self.follow(confirmed, routes.version, groups),
            false => self.send(confirmed, routes.version, groups),
        };
        // Polled once so that batches leave in order.
        match sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answered) => batches.push_back(Box::pin(std::future::ready(answered))),
            Poll::Pending => batches.push_back(sending),
        }
    }

    /// Whether the stream may refuse this batch and, a moment later, take the one behind it: because it does not know any
    /// version of the routes yet, or because its slot moves and these messages, not those, need keys that no node may
    /// decide about meanwhile.
    fn may_be_refused(&self, group: &Group) -> bool {
        let optional = |item: &Item| item.dedupe_id.is_some() || item.reply.is_some();
        let stores = group.home.stores;
        stores && !self.known.contains(&group.home.key)
            || self.shared.link.topology.redirects() && stores && group.items.iter().any(optional)
    }

    fn take_batch(&mut self) -> Vec<Item> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        while items.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
            match self.waiting.pop_front() {
                Some(Order::Publish(item)) => {
                    let sent = item.state.compare_exchange(QUEUED, SENT, Ordering::SeqCst, Ordering::SeqCst);
                    if sent != Err(ABANDONED) {
                        bytes += item.entry.len();
                        items.push(item);
                    }
                }
                Some(flush) => {
                    self.waiting.push_front(flush);
                    break;
                }
                None => break,
            }
        }
        items
    }

    /// Sends a batch, to each server what is stored there.
    fn send(&self, confirmed: bool, version: u64, groups: Vec<Group>) -> Fut<'static, Vec<Answered>> {
        let link = &self.shared.link;
        let mut servers: Vec<(Current, Vec<Group>)> = Vec::new();
        let mut answered = Vec::new();
        for group in groups {
            let Some(current) = link.current(&group.home.key) else {
                answered.push(Answered { group, answer: Err(Broken::NotSent) });
                continue;
            };
            match servers.iter_mut().find(|(known, _)| known.address == current.address) {
                Some((_, groups)) => groups.push(group),
                None => servers.push((current, vec![group])),
            }
        }
        let sending = servers.into_iter().map(|(current, groups)| {
            let mut pipeline = redis::Pipeline::with_capacity(groups.len());
            for group in &groups {
                pipeline.add_command(self.command(confirmed, version, group));
            }
            send_to(self.shared.clone(), current, pipeline, groups)
        });
        let sending = join_all(sending);
        Box::pin(async move {
            answered.extend(sending.await.into_iter().flatten());
            answered
        })
    }

    /// Sends a batch, with the next one behind it only when all of this one has an answer.
    fn follow(&self, confirmed: bool, version: u64, groups: Vec<Group>) -> Fut<'static, Vec<Answered>> {
        let sending = groups.into_iter().map(|group| {
            let (shared, command) = (self.shared.clone(), self.command(confirmed, version, &group));
            async move {
                let answer = shared.link.query_script(&group.home.key, &PUBLISH, &command).await;
                let answer = answer.map_err(|failure| match failure {
                    Failure::NotConnected(_) => Broken::NotSent,
                    Failure::Refused(error) => Broken::Refused(error),
                    Failure::Unknown(_) | Failure::Unexpected(_) => Broken::Unknown,
                });
                Answered { group, answer }
            }
        });
        Box::pin(join_all(sending))
    }

    fn command(&self, confirmed: bool, version: u64, Group { home, items }: &Group) -> redis::Cmd {
        let options = &self.shared.options;
        let mut keys = vec![home.key.clone(), home.version_key(), home.beside("added")];
        if self.shared.link.topology.redirects() {
            // While its slot moves, a script that names all its keys is refused before it has done anything.
            for item in items {
                keys.extend(item.dedupe_id.iter().map(|id| home.of_consumer("dedupe", id)));
                if item.reply.is_some() && home.stores {
                    keys.push(home.responders_key(Some(item.subject.as_str())));
                    keys.push(home.responders_key(None));
                }
            }
        }
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut command = PUBLISH.command(&keys);
        let limits = &home.limits;
        command
            .arg(u8::from(confirmed))
            .arg(if home.stores { version.to_string() } else { String::new() })
            .arg(limits.max_messages.unwrap_or(0))
            .arg(if limits.exact { "=" } else { "~" })
            .arg(limits.max_age.map_or(0, millis))
            .arg(limits.max_bytes.unwrap_or(0))
            .arg(limits.expiry.map_or(0, millis));
        for item in items {
            command.arg(&item.entry);
            match &item.dedupe_id {
                Some(id) => {
                    command.arg(home.of_consumer("dedupe", id)).arg(millis(options.dedupe_window).max(1))
                }
                None => command.arg("").arg(0),
            };
            // An inbox is listed nowhere; who replies to one wants no answer from a registry.
            let asks = item.reply.is_some() && home.stores;
            command.arg(if asks { item.subject.as_str() } else { "" });
        }
        command
    }

    /// Tells the publishers of one batch. `true` when some of it waits to be sent again, and must go first.
    async fn finish(&mut self, answered: Vec<Answered>, batches: &mut Batches) -> bool {
        let mut stale = None;
        let mut again = self.tell(answered, &mut stale);
        if again.is_empty() {
            return false;
        }
        // The batch behind it may have been refused too: together they are sent again in order.
        while let Some(answered) = batches.next().await {
            again.extend(self.tell(answered, &mut stale));
        }
        for item in again.into_iter().rev() {
            self.waiting.push_front(Order::Publish(item));
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
        let refreshed = match self.shared.refresh().await {
            Ok(routes) if routes.version < known => self.shared.raise_above(known).await,
            refreshed => refreshed,
        };
        match refreshed {
            Ok(_) => self.confirmed = true,
            Err(failure) => tracing::debug!(?failure, "the routes cannot be read now"),
        }
    }

    /// Tells the publishers, and gives back what is to be sent again. `stale` becomes the newest version of the routes
    /// that a stream has been heard to know.
    fn tell(&mut self, answered: Vec<Answered>, stale: &mut Option<u64>) -> Vec<Item> {
        let mut again = Vec::new();
        for Answered { group: Group { items, home }, answer } in answered {
            match answer {
                Ok(value) => self.tell_stored(items, &home, value),
                Err(Broken::Redirected(error)) => {
                    self.careful = true;
                    again.extend(items.into_iter().filter_map(|item| retried(item, &error)));
                }
                Err(Broken::Refused(error)) if error.code() == "STALE" => {
                    let known = error.details().and_then(|known| known.parse().ok()).unwrap_or(0);
                    *stale = (*stale).max(Some(known));
                    again.extend(items.into_iter().filter_map(|item| retried(item, &error)));
                }
                Err(Broken::Refused(error)) => {
                    items.into_iter().for_each(|item| self.tell_refused(item, &error))
                }
                Err(Broken::NotSent) => items.into_iter().for_each(|item| {
                    let _ = item.outcome.send(Err(self.shared.link.not_connected()));
                }),
                Err(Broken::Unknown) => items.into_iter().for_each(|item| self.tell_unknown(item)),
            }
        }
        again
    }

    fn tell_stored(&mut self, items: Vec<Item>, home: &Home, value: Value) {
        if home.stores && !self.known.contains(&home.key) {
            self.known.insert(home.key.clone());
        }
        let answers = list(value).unwrap_or_default();
        let answers = answers.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        for (item, answer) in items.into_iter().zip(answers) {
            let stored = answer.and_then(|answer| {
                let [id, duplicate, nobody] = array::<3>(answer).ok()?;
                Some((entry_id(&id).ok()?, number(&duplicate).ok()? == 1, number(&nobody).ok()? == 1))
            });
            let Some((id, duplicate, nobody)) = stored else {
                self.tell_unknown(item);
                continue;
            };
            // Right after an outage those who answer may not have listed themselves again: who asks waits, rather than being
            // told that there is nobody.
            if nobody
                && !self.shared.link.is_settling()
                && let Some(reply) = &item.reply
            {
                self.waiting.push_front(Order::Publish(no_responders(reply)));
            }
            let receipt = match home.stores {
                true => Receipt::Stored {
                    stream: home.name.clone(),
                    offset: StreamOffset::Entry(id.0, id.1),
                    duplicate,
                },
                false => Receipt::Accepted,
            };
            let _ = item.outcome.send(Ok(receipt));
        }
    }

    fn tell_unknown(&self, item: Item) {
        let server = self.shared.link.server.clone();
        let unknown = PublishError::OutcomeUnknown { server, waited: Duration::ZERO };
        if item.outcome.send(Err(unknown)).is_err() {
            self.lost.store(true, Ordering::SeqCst);
        }
    }

    fn tell_refused(&self, item: Item, error: &ServerError) {
        let reason = error.to_string();
        let refused = match error.code() {
            _ if is_denied(error) => PublishError::Denied { subject: item.subject, reason: denied(error) },
            // These come before anything of the script was done.
            "LOADING" | "READONLY" | "MASTERDOWN" | "BUSY" | "MISCONF" | "OOM" | "MOVED" | "ASK"
            | "TRYAGAIN" | "CLUSTERDOWN" => {
                PublishError::NotConnected { server: self.shared.link.server.clone(), reason }
            }
            _ => {
                tracing::warn!(subject = %item.subject, %reason, "a publish failed half way");
                return self.tell_unknown(item);
            }
        };
        let _ = item.outcome.send(Err(refused));
    }

    fn flushed(&self) -> Result<(), PublishError> {
        let link = &self.shared.link;
        if self.lost.swap(false, Ordering::SeqCst) {
            return Err(PublishError::OutcomeUnknown { server: link.server.clone(), waited: Duration::ZERO });
        }
        match link.is_connected() {
            true => Ok(()),
            false => Err(link.not_connected()),
        }
    }
}

/// What was refused before anything was done, to be sent again, unless it has been too often.
fn retried(mut item: Item, error: &ServerError) -> Option<Item> {
    item.refused += 1;
    if item.refused <= STALE_RETRIES {
        return Some(item);
    }
    let reason = format!("the streams keep changing: {error}");
    let denied = PublishError::Denied { subject: item.subject, reason };
    let _ = item.outcome.send(Err(denied));
    None
}

/// Sends to one server what is stored there.
async fn send_to(
    shared: Arc<Shared>,
    mut current: Current,
    pipeline: redis::Pipeline,
    groups: Vec<Group>,
) -> Vec<Answered> {
    let count = groups.len();
    let answer = tokio::select! {
        answer = current.connection.send_packed_commands(&pipeline, 0, count) => answer,
        () = current.lost.cancelled() => Err(redis::RedisError::from((redis::ErrorKind::Io, "lost"))),
    };
    let link = &shared.link;
    let answers: Vec<Result<Value, Broken>> = match answer {
        Ok(values) => values
            .into_iter()
            .map(|value| match value {
                Value::ServerError(error)
                    if is_unknown_script(&error) || link.redirected(&error, &current.address).is_some() =>
                {
                    Err(Broken::Redirected(error))
                }
                Value::ServerError(error) => Err(Broken::Refused(error)),
                value => Ok(value),
            })
            .collect(),
        Err(_) => {
            link.suspect();
            Vec::new()
        }
    };
    let answers = answers.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    let answered = groups.into_iter().zip(answers);
    answered
        .map(|(group, answer)| Answered { group, answer: answer.unwrap_or(Err(Broken::Unknown)) })
        .collect()
}

/// The answer to a request that nobody answers.
fn no_responders(reply: &Subject) -> Item {
    let mut headers = Headers::new();
    headers.append("Status", "503").expect("a valid header");
    let answer = Message { subject: reply.clone(), reply: None, headers, payload: Bytes::new() };
    Item {
        entry: entry::encode(&answer),
        subject: answer.subject,
        reply: None,
        dedupe_id: None,
        refused: 0,
        state: Arc::new(AtomicU8::new(QUEUED)),
        outcome: oneshot::channel().0,
    }
}
