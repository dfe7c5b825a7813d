//! Live subscriptions: which readers and queue groups each of them draws from, and its end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use redis::Value;
use std::collections::HashMap;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline_core::Pattern;

use super::entry::{EntryId, array, list, number, parse_id, print_id, text};
use super::groups::{GroupReader, Seated, group_name};
use super::link::Failure;
use super::presence::Presence;
use super::reader::{Attachment, Reader};
use super::routes::Home;
use super::shared::{Shared, Tip};
use super::streams::{StartAfter, start_after};
use crate::backend::inbox::Inbox;
use crate::backend::{
    BackendKind, Fut, LiveEvent, LiveSource, StreamError, SubscribeError, SubscribeOptions, Unsupported,
};

/// How long the reader of the control stream blocks at a time, and how much longer a read may take.
const CONTROL_BLOCK: Duration = Duration::from_secs(5);
const CONTROL_GRACE: Duration = Duration::from_secs(2);
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// All live subscriptions of one backend.
pub(super) struct Live {
    pub(super) shared: Arc<Shared>,
    pub(super) presence: Arc<Presence>,
    /// The reader of each stream, by its key. Held to look up, attach and detach; a reader's own lock is taken inside.
    readers: Mutex<HashMap<String, Arc<Reader>>>,
    /// The reader of each queue group, by stream and group. Held for one map operation.
    groups: Mutex<HashMap<(String, String), Arc<GroupReader>>>,
    /// Held for one map operation, or to copy the list.
    subscriptions: Mutex<HashMap<u64, Arc<Subscription>>>,
    next_id: AtomicU64,
    /// Messages that had no room.
    pub(super) dropped: Arc<AtomicU64>,
    /// All tasks of the backend: ended by `stop`, awaited by a drain.
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// For subscriptions that are dropped outside of the runtime.
    runtime: Handle,
}

/// One live subscription.
pub(super) struct Subscription {
    id: u64,
    pattern: Pattern,
    queue: Option<String>,
    inbox: Arc<Inbox>,
    /// Held to add a stream or take them all; other locks are taken inside only by nobody.
    sources: Mutex<Sources>,
    /// Number of its entry among the responders.
    responder: Mutex<Option<u64>>,
    ended: AtomicBool,
}

#[derive(Default)]
struct Sources {
    /// Keys of the streams it draws from, or is about to.
    keys: Vec<String>,
    readers: Vec<(Arc<Reader>, Arc<Attachment>)>,
    groups: Vec<Arc<GroupReader>>,
}

impl Live {
    pub(super) fn new(
        shared: &Arc<Shared>,
        presence: &Arc<Presence>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: shared.clone(),
            presence: presence.clone(),
            readers: Mutex::default(),
            groups: Mutex::default(),
            subscriptions: Mutex::default(),
            next_id: AtomicU64::new(0),
            dropped: Arc::default(),
            tasks: tasks.clone(),
            stop: stop.clone(),
            runtime: Handle::current(),
        })
    }

    pub(super) async fn subscribe(
        self: &Arc<Self>,
        pattern: Pattern,
        options: SubscribeOptions,
    ) -> Result<Box<dyn LiveSource>, SubscribeError> {
        let link = &self.shared.link;
        if link.refusing.load(Ordering::SeqCst) {
            return Err(SubscribeError::Closed);
        }
        let start = start_after(options.start.unwrap_or_default()).map_err(|error| match error {
            StreamError::ForeignOffset(offset) => SubscribeError::ForeignOffset(offset),
            _ => SubscribeError::NotStored(pattern.clone()),
        })?;
        let past = matches!(start, StartAfter::Id { .. });
        if past && options.queue.is_some() {
            let operation = "a queue group that starts in the past; a consumer can";
            return Err(Unsupported { operation, backend: BackendKind::Redis }.into());
        }
        let subscription = Arc::new(Subscription {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            inbox: Arc::new(Inbox::new(options.max_pending.unwrap_or(self.shared.options.max_pending))),
            queue: options.queue.map(|queue| queue.to_string()),
            pattern,
            sources: Mutex::default(),
            responder: Mutex::new(None),
            ended: AtomicBool::new(false),
        });
        // Made first, so that whatever fails below is undone by dropping it.
        let source = RedisSource { subscription: subscription.clone(), live: Arc::downgrade(self) };
        let failed = |failure| link.subscribe_error(failure);
        match start {
            StartAfter::New => {
                // Listed before the routes are read, so that streams which come between are not missed.
                self.subscriptions.lock().insert(subscription.id, subscription.clone());
                let tips =
                    self.shared.tips(|routes| routes.touched(&subscription.pattern)).await.map_err(failed)?;
                for (home, tip) in tips {
                    self.draw_from(&subscription, home, (tip.last, Some(tip.index))).await.map_err(failed)?;
                }
            }
            StartAfter::Id { id, saved } => self.replay(&subscription, id, saved).await?,
        }
        if options.responder {
            let listed = self.presence.list_responder(&subscription.pattern).await.map_err(failed)?;
            *subscription.responder.lock() = Some(listed);
        }
        Ok(Box::new(source))
    }

    /// Has a subscription draw from one more stream, from where it stands.
    async fn draw_from(
        self: &Arc<Self>,
        subscription: &Arc<Subscription>,
        home: Arc<Home>,
        (start, index): (EntryId, Option<u64>),
    ) -> Result<(), Failure> {
        {
            let mut sources = subscription.sources.lock();
            if sources.keys.contains(&home.key) {
                return Ok(());
            }
            sources.keys.push(home.key.clone());
        }
        if let Some(queue) = &subscription.queue {
            return self.draw_from_group(subscription, home, queue).await;
        }
        let inbox = subscription.inbox.clone();
        let attachment = Attachment::new(subscription.pattern.clone(), inbox, start, false);
        let reader = {
            let mut readers = self.readers.lock();
            let reader = readers.entry(home.key.clone()).or_insert_with(|| {
                let (link, stop) = (&self.shared.link, self.stop.child_token());
                let reader = Reader::new(home, link, &self.dropped, (start, index), stop);
                self.tasks.spawn_on(reader.clone().run(), &self.runtime);
                reader
            });
            reader.attach(&attachment, index);
            reader.clone()
        };
        subscription.sources.lock().readers.push((reader, attachment));
        // It may have ended while this was made.
        if subscription.ended.load(Ordering::SeqCst) {
            self.detach(subscription);
        }
        Ok(())
    }

    async fn draw_from_group(
        self: &Arc<Self>,
        subscription: &Arc<Subscription>,
        home: Arc<Home>,
        queue: &str,
    ) -> Result<(), Failure> {
        let key = (home.key.clone(), group_name(&subscription.pattern, queue));
        loop {
            let reader = {
                let mut groups = self.groups.lock();
                let make = || {
                    let (shared, presence) = (&self.shared, &self.presence);
                    GroupReader::new(
                        shared,
                        presence,
                        &self.dropped,
                        home.clone(),
                        &subscription.pattern,
                        queue,
                    )
                };
                groups.entry(key.clone()).or_insert_with(make).clone()
            };
            reader.join().await?;
            match reader.seat(&subscription.inbox) {
                Seated::Running => {}
                Seated::First => {
                    self.tasks.spawn_on(reader.clone().run(self.stop.child_token()), &self.runtime);
                }
                Seated::Closing => {
                    self.forget_group(&reader);
                    continue;
                }
            }
            subscription.sources.lock().groups.push(reader);
            return Ok(());
        }
    }

    fn forget_group(&self, reader: &Arc<GroupReader>) {
        let mut groups = self.groups.lock();
        let key = (reader.home.key.clone(), reader.group.clone());
        if groups.get(&key).is_some_and(|known| Arc::ptr_eq(known, reader)) {
            groups.remove(&key);
        }
    }

    /// Has a subscription read what is stored, by readers of its own that wait for it.
    async fn replay(
        self: &Arc<Self>,
        subscription: &Arc<Subscription>,
        start: EntryId,
        saved: bool,
    ) -> Result<(), SubscribeError> {
        let link = &self.shared.link;
        let failed = |failure| link.subscribe_error(failure);
        let pattern = &subscription.pattern;
        let tips = self.shared.tips(|routes| match routes.covering(pattern) {
            Some(home) => vec![home],
            None => routes.touched(pattern),
        });
        let tips = tips.await.map_err(failed)?;
        let newest = tips.iter().max_by_key(|(_, tip)| tip.last);
        if let Some((home, tip)) = newest
            && saved
            && start > tip.last
        {
            let (offset, last) = (offset(start), offset(tip.last));
            return Err(SubscribeError::OffsetAhead { stream: home.name.clone(), offset, last });
        }
        for (home, _) in tips {
            let index = match saved {
                true => self.shared.index_of(&home, start).await.map_err(failed)?,
                false => None,
            };
            let attachment = Attachment::new(pattern.clone(), subscription.inbox.clone(), start, true);
            let stop = self.stop.child_token();
            let reader = Reader::new(home, link, &self.dropped, (start, index), stop);
            reader.attach(&attachment, index);
            self.tasks.spawn_on(reader.clone().run(), &self.runtime);
            subscription.sources.lock().readers.push((reader, attachment));
        }
        Ok(())
    }

    /// Takes a subscription from its readers at once.
    fn detach(&self, subscription: &Subscription) {
        let taken = std::mem::take(&mut subscription.sources.lock().readers);
        for (reader, attachment) in taken {
            let mut readers = self.readers.lock();
            if reader.detach(&attachment) {
                // Nobody reads this stream any more; a private reader is in no map.
                readers.retain(|_, known| !Arc::ptr_eq(known, &reader));
                reader.end();
            }
        }
    }

    /// Ends a subscription after what is on its way: everything stored by now has been given to it.
    pub(super) async fn finish(&self, subscription: &Arc<Subscription>) -> Result<(), SubscribeError> {
        if subscription.ended.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.subscriptions.lock().remove(&subscription.id);
        let listed = subscription.responder.lock().take();
        if let Some(listed) = listed {
            self.presence.unlist(listed).await;
        }
        let link = &self.shared.link;
        let ending = async {
            let readers = subscription.sources.lock().readers.clone();
            let homes: Vec<Arc<Home>> = readers.iter().map(|(reader, _)| reader.home().clone()).collect();
            if !homes.is_empty() {
                let tips: Vec<Tip> = self.shared.tips_of(&homes).await?;
                for ((reader, _), tip) in readers.iter().zip(tips) {
                    if let Some(newest) = tip.newest {
                        reader.has_read(newest).await;
                    }
                }
            }
            let groups = std::mem::take(&mut subscription.sources.lock().groups);
            for group in groups {
                if group.leave(&subscription.inbox).await {
                    self.forget_group(&group);
                }
            }
            Ok::<_, Failure>(())
        };
        let ended = tokio::time::timeout(link.answer_timeout, ending).await;
        self.detach(subscription);
        subscription.inbox.close();
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => Err(link.subscribe_error(failure)),
            Err(_) => Err(link.subscribe_error(Failure::Unknown(link.answer_timeout))),
        }
    }

    /// All subscriptions there are.
    pub(super) fn subscriptions(&self) -> Vec<Arc<Subscription>> {
        self.subscriptions.lock().values().cloned().collect()
    }

    /// Follows the changes of the routes: a stream that comes is drawn from, from where it stood then, by every
    /// subscription that it concerns.
    pub(super) async fn follow_routes(self: Arc<Self>, start: EntryId) {
        let mut position = start;
        let following = async {
            loop {
                let Some(current) = self.shared.link.connected(&self.shared.control_key()).await else {
                    return;
                };
                tokio::select! {
                    () = self.read_control(&mut position) => self.shared.link.suspect(),
                    () = current.lost.cancelled() => {}
                }
                tokio::time::sleep(RETRY_DELAY).await;
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = following => {}
        }
    }

    /// Ends when the connection fails.
    async fn read_control(self: &Arc<Self>, position: &mut EntryId) {
        let key = self.shared.control_key();
        let Ok(mut connection) = self.shared.link.open(&key).await else { return };
        // What the connection before had not told, and whether the server still knows.
        if self.shared.refresh().await.is_err() {
            return;
        }
        loop {
            let mut command = redis::cmd("XREAD");
            let block = u64::try_from(CONTROL_BLOCK.as_millis()).unwrap_or(u64::MAX);
            command.arg("BLOCK").arg(block).arg("STREAMS").arg(&key).arg(print_id(*position));
            let reading = connection.read(&self.shared.link, &command);
            let Ok(Ok(answer)) = tokio::time::timeout(CONTROL_BLOCK + CONTROL_GRACE, reading).await else {
                return;
            };
            let Ok(changes) = read_changes(answer) else { return };
            if changes.is_empty() {
                continue;
            }
            if self.shared.refresh().await.is_err() {
                return;
            }
            for change in changes {
                self.apply(&change).await;
                *position = change.id;
            }
        }
    }

    async fn apply(self: &Arc<Self>, change: &Change) {
        let routes = self.shared.routes();
        let Some(home) = routes.streams.get(&change.name) else { return };
        for subscription in self.subscriptions() {
            if routes.touched(&subscription.pattern).iter().any(|touched| touched.key == home.key)
                && let Err(failure) =
                    self.draw_from(&subscription, home.clone(), (change.tip, Some(change.index))).await
            {
                tracing::warn!(
                    stream = change.name,
                    ?failure,
                    "a subscription does not see the new stream yet"
                );
                subscription.sources.lock().keys.retain(|key| *key != home.key);
                subscription.inbox.push_unknown_gap();
            }
        }
    }
}

fn offset(id: EntryId) -> trunkline_core::StreamOffset {
    trunkline_core::StreamOffset::Entry(id.0, id.1)
}

/// One change of the routes.
struct Change {
    id: EntryId,
    name: String,
    /// Where the stream stood then.
    tip: EntryId,
    index: u64,
}

fn read_changes(answer: Value) -> Result<Vec<Change>, Failure> {
    let Some(stream) = list(answer)?.into_iter().next() else { return Ok(Vec::new()) };
    let [_key, entries] = array::<2>(stream)?;
    let mut changes = Vec::new();
    for entry in list(entries)? {
        let [id, fields] = array::<2>(entry)?;
        let fields = list(fields)?;
        if let [_, name, _, tip, _, index] = fields.as_slice() {
            changes.push(Change {
                id: parse_id(&text(&id)?).unwrap_or_default(),
                name: text(name)?,
                tip: parse_id(&text(tip)?).unwrap_or_default(),
                index: number(index)?,
            });
        }
    }
    Ok(changes)
}

/// The reader's end of a subscription.
pub(super) struct RedisSource {
    subscription: Arc<Subscription>,
    /// Weak, so that a source alone does not keep a dropped backend alive.
    live: Weak<Live>,
}

impl LiveSource for RedisSource {
    fn poll_batch(&mut self, cx: &mut Context<'_>, max: usize, out: &mut Vec<LiveEvent>) -> Poll<usize> {
        self.subscription.inbox.poll_take(cx, max, out)
    }

    fn stop(&mut self) -> Fut<'_, Result<(), SubscribeError>> {
        Box::pin(async move {
            match self.live.upgrade() {
                // A task, because a group that is left half way would hold its place: it ends also when nobody waits.
                Some(live) => {
                    let (tasks, runtime) = (live.tasks.clone(), live.runtime.clone());
                    let subscription = self.subscription.clone();
                    let ending = async move { live.finish(&subscription).await };
                    tasks.spawn_on(ending, &runtime).await.unwrap_or(Err(SubscribeError::Closed))
                }
                None => Ok(()),
            }
        })
    }
}

impl Drop for RedisSource {
    fn drop(&mut self) {
        let subscription = &self.subscription;
        let Some(live) = self.live.upgrade() else { return };
        if subscription.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        live.subscriptions.lock().remove(&subscription.id);
        live.detach(subscription);
        subscription.inbox.close();
        let groups = std::mem::take(&mut subscription.sources.lock().groups);
        let listed = subscription.responder.lock().take();
        if groups.is_empty() && listed.is_none() {
            return;
        }
        let (subscription, tasks, runtime) = (subscription.clone(), live.tasks.clone(), live.runtime.clone());
        tasks.spawn_on(
            async move {
                if let Some(listed) = listed {
                    live.presence.unlist(listed).await;
                }
                for group in groups {
                    if group.leave(&subscription.inbox).await {
                        live.forget_group(&group);
                    }
                }
            },
            &runtime,
        );
    }
}
