//! Live subscriptions: what each of them draws from, and its end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline_core::Pattern;

use super::claims;
use super::entry::EntryId;
use super::groups::{Group, Seated, group_name};
use super::link::Failure;
use super::presence::Presence;
use super::reader::Reader;
use super::routes::Home;
use super::shared::{Shared, Tip};
use super::shares::{Joinable, Shares};
use super::source::RedisSource;
use super::streams::{StartAfter, start_after};
use super::track::{Attachment, Taker, Track};
use crate::backend::inbox::Inbox;
use crate::backend::{BackendKind, LiveSource, StreamError, SubscribeError, SubscribeOptions, Unsupported};

/// All live subscriptions of one backend.
pub(super) struct Live {
    pub(super) shared: Arc<Shared>,
    pub(super) presence: Arc<Presence>,
    /// The reader of the streams with one tag. Held to attach and detach; locks of readers and tracks are taken inside.
    readers: Mutex<HashMap<String, Arc<Reader>>>,
    /// This process's share of each queue group.
    shares: Shares<Share>,
    /// Held for one map operation, or to copy the list.
    subscriptions: Mutex<HashMap<u64, Arc<Subscription>>>,
    next_id: AtomicU64,
    /// Messages that had no room.
    pub(super) dropped: Arc<AtomicU64>,
    /// All tasks of the backend: ended by `stop`, awaited by a drain.
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// For subscriptions that are dropped outside of the runtime.
    pub(super) runtime: Handle,
}

/// One live subscription.
pub(super) struct Subscription {
    id: u64,
    pub(super) pattern: Pattern,
    queue: Option<String>,
    pub(super) inbox: Arc<Inbox>,
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
    drawn: Vec<Source>,
}

/// What a subscription draws from.
#[derive(Clone)]
struct Source {
    reader: Arc<Reader>,
    track: Arc<Track>,
    taker: Taker,
}

/// This process's share of a queue group.
struct Share {
    group: Arc<Group>,
    /// Where it is attached, once it has a member.
    source: OnceLock<Source>,
}

impl Joinable for Share {
    fn is_joined(&self) -> bool {
        self.source.get().is_some()
    }
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
            shares: Shares::default(),
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
            inbox: Arc::new(Inbox::within(
                options.max_pending.unwrap_or(self.shared.options.max_pending),
                &self.shared.options.memory,
            )),
            queue: options.queue.map(|queue| queue.to_string()),
            pattern,
            sources: Mutex::default(),
            responder: Mutex::new(None),
            ended: AtomicBool::new(false),
        });
        // Made first, so that whatever fails below is undone by dropping it.
        let source = RedisSource::new(&subscription, self);
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
    pub(super) async fn draw_from(
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
        let source = match &subscription.queue {
            Some(queue) => self.take_seat(subscription, home, queue).await?,
            None => {
                let inbox = subscription.inbox.clone();
                let attachment = Attachment::new(subscription.pattern.clone(), inbox, start, false);
                self.attach(home, Taker::Alone(attachment), (start, index))
            }
        };
        subscription.sources.lock().drawn.push(source);
        // It may have ended while this was made.
        if subscription.ended.load(Ordering::SeqCst) {
            self.abandon(subscription);
        }
        Ok(())
    }

    /// Has `taker` given what comes after its start.
    fn attach(
        self: &Arc<Self>,
        home: Arc<Home>,
        taker: Taker,
        (start, index): (EntryId, Option<u64>),
    ) -> Source {
        let mut readers = self.readers.lock();
        let reader = readers.entry(home.tag().to_owned()).or_insert_with(|| {
            let reader = Reader::new(&self.shared.link, &home.key, self.stop.child_token());
            self.tasks.spawn_on(reader.clone().run(), &self.runtime);
            reader
        });
        let key = home.key.clone();
        let make = || Track::new(home, &self.dropped, (start, index), self.stop.child_token());
        let track = reader.follow(&key, make);
        if track.attach(taker.clone(), index) {
            reader.begin_anew();
        }
        if matches!(taker, Taker::Group(_)) && track.is_first_to_claim() {
            self.tasks.spawn_on(claims::run(track.clone(), self.shared.clone()), &self.runtime);
        }
        Source { reader: reader.clone(), track, taker }
    }

    /// Takes the place of a member in this process's share of a queue group.
    async fn take_seat(
        self: &Arc<Self>,
        subscription: &Arc<Subscription>,
        home: Arc<Home>,
        queue: &str,
    ) -> Result<Source, Failure> {
        let key = (home.key.clone(), group_name(&subscription.pattern, queue));
        loop {
            let joining = self.shares.join(&key, || {
                let (pattern, dropped) = (&subscription.pattern, &self.dropped);
                let group = Group::new(&self.shared, &self.presence, dropped, home.clone(), pattern, queue);
                Share { group, source: OnceLock::new() }
            });
            let share = &joining.share;
            let group = &share.group;
            let (start, index) = group.join().await?;
            match group.seat(&subscription.inbox) {
                // Attached with a member in its seat: what is given to nobody would be claimed all the same.
                Seated::Beside => {
                    let taker = || Taker::Group(group.clone());
                    let attach = || self.attach(home.clone(), taker(), (start, Some(index)));
                    return Ok(share.source.get_or_init(attach).clone());
                }
                Seated::Closing => self.forget_group(group),
            }
        }
    }

    fn forget_group(&self, group: &Arc<Group>) {
        let key = (group.home.key.clone(), group.name.clone());
        self.shares.forget(&key, |share| Arc::ptr_eq(&share.group, group));
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
            let reader = Reader::new(link, &home.key, self.stop.child_token());
            let key = home.key.clone();
            let make = || Track::new(home, &self.dropped, (start, index), self.stop.child_token());
            let track = reader.follow(&key, make);
            let taker = Taker::Alone(attachment);
            track.attach(taker.clone(), index);
            self.tasks.spawn_on(reader.clone().run(), &self.runtime);
            subscription.sources.lock().drawn.push(Source { reader, track, taker });
        }
        Ok(())
    }

    /// Takes somebody from a stream at once.
    fn detach(&self, source: &Source) {
        let mut readers = self.readers.lock();
        if source.track.detach(&source.taker) && source.reader.forget(&source.track) {
            // Nobody reads these streams any more; a private reader is in no map.
            readers.retain(|_, known| !Arc::ptr_eq(known, &source.reader));
            source.reader.end();
        }
    }

    /// Ends a subscription after what is on its way: everything stored by now has been given to it.
    pub(super) async fn finish(&self, subscription: &Arc<Subscription>) -> Result<(), SubscribeError> {
        if subscription.ended.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.unlist(subscription).await;
        let link = &self.shared.link;
        let ending = async {
            let sources = subscription.sources.lock().drawn.clone();
            let homes: Vec<Arc<Home>> = sources.iter().map(|source| source.track.home().clone()).collect();
            if homes.is_empty() {
                return Ok(());
            }
            let tips: Vec<Tip> = self.shared.tips_of(&homes).await?;
            for (source, tip) in sources.iter().zip(tips) {
                if let Some(newest) = tip.newest {
                    source.track.has_read(newest).await;
                }
                if let Taker::Group(group) = &source.taker {
                    group.settled().await;
                }
            }
            Ok::<_, Failure>(())
        };
        let ended = tokio::time::timeout(link.answer_timeout, ending).await;
        self.leave_all(subscription).await;
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => Err(link.subscribe_error(failure)),
            Err(_) => Err(link.subscribe_error(Failure::Unknown(link.answer_timeout))),
        }
    }

    /// Ends a subscription whose reader is gone: nothing more is given to it from now on.
    pub(super) fn abandon(self: &Arc<Self>, subscription: &Arc<Subscription>) {
        subscription.ended.store(true, Ordering::SeqCst);
        subscription.inbox.close();
        let alone = |source: &Source| matches!(source.taker, Taker::Alone(_));
        let (now, later): (Vec<Source>, Vec<Source>) = {
            let mut sources = subscription.sources.lock();
            std::mem::take(&mut sources.drawn).into_iter().partition(alone)
        };
        now.iter().for_each(|source| self.detach(source));
        self.subscriptions.lock().remove(&subscription.id);
        if later.is_empty() && subscription.responder.lock().is_none() {
            return;
        }
        subscription.sources.lock().drawn.extend(later);
        let (live, subscription) = (self.clone(), subscription.clone());
        let leaving = async move {
            live.unlist(&subscription).await;
            live.leave_all(&subscription).await;
        };
        self.tasks.spawn_on(leaving, &self.runtime);
    }

    /// Whether it was ended before.
    pub(super) fn has_ended(subscription: &Subscription) -> bool {
        subscription.ended.load(Ordering::SeqCst)
    }

    async fn unlist(&self, subscription: &Subscription) {
        self.subscriptions.lock().remove(&subscription.id);
        let listed = subscription.responder.lock().take();
        if let Some(listed) = listed {
            self.presence.unlist(listed).await;
        }
    }

    /// Takes a subscription from all it draws from. The last member of a queue group leaves it.
    async fn leave_all(&self, subscription: &Subscription) {
        let sources = std::mem::take(&mut subscription.sources.lock().drawn);
        for source in sources {
            match &source.taker {
                Taker::Alone(_) => self.detach(&source),
                Taker::Group(group) => {
                    if group.unseat(&subscription.inbox) {
                        self.detach(&source);
                        group.leave().await;
                        self.forget_group(group);
                    }
                }
            }
        }
        subscription.inbox.close();
    }

    /// All subscriptions there are.
    pub(super) fn subscriptions(&self) -> Vec<Arc<Subscription>> {
        self.subscriptions.lock().values().cloned().collect()
    }
}

impl Subscription {
    /// The subscription does not draw from the stream with this key after all.
    pub(super) fn forget_to_draw(&self, key: &str) {
        self.sources.lock().keys.retain(|known| known != key);
    }
}

fn offset(id: EntryId) -> trunkline_core::StreamOffset {
    trunkline_core::StreamOffset::Entry(id.0, id.1)
}
