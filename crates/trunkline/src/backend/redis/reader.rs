//! Readers: one blocking read for each stream, shared by all live subscriptions of this process.
//!
//! A reader keeps the id it has read up to, through every reconnect, and each subscription the id it has been given. A
//! subscription whose start lies before what the reader has read turns the reader back; the others skip what they have
//! had. The running numbers of entries tell when limits took something away before it was read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::Value;
use std::collections::HashMap;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use trunkline_core::{Pattern, Role, Router, SubscriptionId};

use super::deleted::Deleted;
use super::entry::{Entry, EntryId, array, entries, list, print_id};
use super::link::{Failure, Link};
use super::routes::Home;
use crate::backend::inbox::Inbox;
use crate::backend::{Gap, LiveEvent};

/// Most entries of one read, and the bytes that one is to bring: how many entries that is, the read before tells.
const READ_ENTRIES: usize = 256;
const READ_BYTES: usize = 4 << 20;
/// Longest time one read blocks, and how much longer it may take until its connection counts as broken.
const BLOCK: Duration = Duration::from_secs(5);
const BLOCK_GRACE: Duration = Duration::from_secs(2);
/// How often a read that is to end is told so again.
const URGE_INTERVAL: Duration = Duration::from_millis(10);
/// Delay before a read that failed is tried again: the link's own delays are for the server as a whole.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// What a reader fills: one subscription's share of one stream.
pub(super) struct Attachment {
    id: u64,
    pub(super) pattern: Pattern,
    pub(super) inbox: Arc<Inbox>,
    /// Last id that was looked at for it. Taken by the reader for a few instructions, within the reader's own lock.
    given: Mutex<EntryId>,
    /// The reader waits for room in the inbox, because what it reads is kept on the server: a replay.
    paced: bool,
}

impl Attachment {
    pub(super) fn new(pattern: Pattern, inbox: Arc<Inbox>, start: EntryId, paced: bool) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { id, pattern, inbox, given: Mutex::new(start), paced })
    }
}

/// The reader of one stream.
pub(super) struct Reader {
    home: Arc<Home>,
    link: Arc<Link>,
    /// Messages that had no room, in the whole backend.
    dropped: Arc<AtomicU64>,
    /// Held to attach, detach, and hand a batch out; an inbox's lock is taken inside.
    state: Mutex<State>,
    /// How far it has read.
    position: watch::Sender<EntryId>,
    /// There is something to do differently.
    changed: Notify,
    stop: CancellationToken,
}

struct State {
    position: EntryId,
    /// Running number of the message at `position`; `None` when it is not known.
    index: Option<u64>,
    /// `position` was turned back while a read was under way.
    turned_back: bool,
    attached: Router<Arc<Attachment>>,
    /// Each attachment by its id, and where it stands in `attached`.
    places: HashMap<u64, (Arc<Attachment>, SubscriptionId)>,
}

impl Reader {
    /// A reader that begins after `position`. [`Reader::run`] is to be spawned.
    pub(super) fn new(
        home: Arc<Home>,
        link: &Arc<Link>,
        dropped: &Arc<AtomicU64>,
        (position, index): (EntryId, Option<u64>),
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            home,
            link: link.clone(),
            dropped: dropped.clone(),
            state: Mutex::new(State {
                position,
                index,
                turned_back: false,
                attached: Router::new(),
                places: HashMap::new(),
            }),
            position: watch::Sender::new(position),
            changed: Notify::new(),
            stop,
        })
    }

    /// Gives `attachment` everything after its start; `index` is the running number of the message there.
    pub(super) fn attach(&self, attachment: &Arc<Attachment>, index: Option<u64>) {
        let mut state = self.state.lock();
        let start = *attachment.given.lock();
        if start < state.position {
            state.position = start;
            state.index = index;
            state.turned_back = true;
            self.position.send_replace(start);
            self.changed.notify_one();
        }
        let id = state.attached.insert(&attachment.pattern, Role::Subscriber, attachment.clone());
        state.places.insert(attachment.id, (attachment.clone(), id));
    }

    /// Stops giving to `attachment`. Says whether nobody is left.
    pub(super) fn detach(&self, attachment: &Arc<Attachment>) -> bool {
        let mut state = self.state.lock();
        if let Some((_, id)) = state.places.remove(&attachment.id) {
            state.attached.remove(&attachment.pattern, id);
        }
        state.places.is_empty()
    }

    /// The stream it reads.
    pub(super) fn home(&self) -> &Arc<Home> {
        &self.home
    }

    /// Ends the reader.
    pub(super) fn end(&self) {
        self.stop.cancel();
    }

    /// Waits until everything up to `id` has been handed out.
    pub(super) async fn has_read(&self, id: EntryId) {
        // The sender lives as long as this.
        let _ = self.position.subscribe().wait_for(|position| *position >= id).await;
    }

    /// Reads until it is stopped.
    pub(super) async fn run(self: Arc<Self>) {
        let reading = async {
            loop {
                // Only a link that is closed for good has no next connection.
                let Some(current) = self.link.connected().await else { return };
                let read = tokio::select! {
                    read = self.read_on_one_connection() => read,
                    () = current.lost.cancelled() => Ok(()),
                };
                if let Err(error) = read {
                    tracing::debug!(stream = self.home.name, ?error, "a read failed and is tried again");
                    self.link.suspect();
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = reading => {}
        }
    }

    async fn read_on_one_connection(&self) -> Result<(), Failure> {
        let broken = |error: redis::RedisError| Failure::NotConnected(error.to_string());
        let mut connection = self.link.open().await.map_err(broken)?;
        let id: i64 = redis::cmd("CLIENT").arg("ID").query_async(&mut connection).await.map_err(broken)?;
        let mut count = READ_ENTRIES;
        loop {
            self.wait_for_room().await;
            let from = {
                let mut state = self.state.lock();
                state.turned_back = false;
                state.position
            };
            let mut command = redis::cmd("XREAD");
            let block = u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX);
            command.arg("COUNT").arg(count).arg("BLOCK").arg(block);
            command.arg("STREAMS").arg(&self.home.key).arg(print_id(from));
            let reading = connection.send_packed_command(&command);
            tokio::pin!(reading);
            let mut urged = false;
            let answer = loop {
                tokio::select! {
                    answer = &mut reading => break answer.map_err(broken)?,
                    () = self.changed.notified() => {
                        urged = true;
                        self.link.unblock(id).await;
                    }
                    // The first one may have come to the server before the read did.
                    () = tokio::time::sleep(URGE_INTERVAL), if urged => self.link.unblock(id).await,
                    () = tokio::time::sleep(BLOCK + BLOCK_GRACE) => {
                        return Err(Failure::Unknown(BLOCK + BLOCK_GRACE));
                    }
                }
            };
            if let Value::ServerError(error) = answer {
                return Err(Failure::Refused(error));
            }
            let entries = read_entries(answer)?;
            let bytes: usize = entries.iter().map(Entry::size_bytes).sum();
            if let Some(each) = bytes.checked_div(entries.len()) {
                count = (READ_BYTES / each.max(1)).clamp(1, READ_ENTRIES);
            }
            let before = self.state.lock().index;
            let deleted = Deleted::among(&self.link, &self.home, before, &entries).await?;
            self.hand_out(entries, &deleted);
        }
    }

    async fn wait_for_room(&self) {
        let paced: Vec<Arc<Inbox>> = {
            let state = self.state.lock();
            let paced = state.places.values().filter(|(attachment, _)| attachment.paced);
            paced.map(|(attachment, _)| attachment.inbox.clone()).collect()
        };
        for inbox in paced {
            inbox.room().await;
        }
    }

    fn hand_out(&self, entries: Vec<Entry>, deleted: &Deleted) {
        let mut state = self.state.lock();
        if state.turned_back || entries.is_empty() {
            return;
        }
        let mut batches: HashMap<u64, Vec<LiveEvent>> = HashMap::new();
        for entry in entries {
            if let (Some(before), Some(index)) = (state.index, entry.index)
                && index > before + 1 + deleted.between(before, index)
            {
                let missed = index - before - 1 - deleted.between(before, index);
                for (key, (attachment, _)) in &state.places {
                    if *attachment.given.lock() < entry.id {
                        batches.entry(*key).or_default().push(self.gap_for(attachment, missed));
                    }
                }
            }
            state.position = entry.id;
            // What somebody else wrote has no number; where it stands the numbers go on.
            state.index = entry.index.or(state.index);
            let message = match &entry.message {
                Ok(message) => message,
                Err(error) => {
                    tracing::warn!(stream = self.home.name, id = ?entry.id, %error, "an entry is no message of the bus");
                    continue;
                }
            };
            let matches = state.attached.matches(message.subject.as_bytes());
            for attachment in &matches.subscribers {
                let mut given = attachment.given.lock();
                if *given < entry.id {
                    *given = entry.id;
                    batches.entry(attachment.id).or_default().push(LiveEvent::Message {
                        message: message.clone(),
                        offset: self.home.stores.then(|| entry.offset()),
                    });
                }
            }
        }
        for (key, mut events) in batches {
            if let Some((attachment, _)) = state.places.get(&key) {
                attachment.inbox.push(&mut events, &self.dropped);
            }
        }
        self.position.send_replace(state.position);
    }

    /// A gap of so many messages of the stream: of how many of the subscription is known only where it takes them all.
    fn gap_for(&self, attachment: &Attachment, missed: u64) -> LiveEvent {
        let subjects = self.home.config.iter().flat_map(|config| &config.subjects);
        let mut takes_all = self.home.config.is_some();
        for subjects in subjects {
            takes_all &= attachment.pattern.covers(subjects);
        }
        LiveEvent::Gap(Gap { missed: takes_all.then_some(missed) })
    }
}

/// The entries in the answer of a read of one stream; nothing is no entries.
pub(super) fn read_entries(answer: Value) -> Result<Vec<Entry>, Failure> {
    let Some(stream) = list(answer)?.into_iter().next() else { return Ok(Vec::new()) };
    let [_key, found] = array::<2>(stream)?;
    entries(found)
}
