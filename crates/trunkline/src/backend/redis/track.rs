//! One stream as this process follows it: how far it has been read, and who is given what.
//!
//! A track keeps the id it has been read up to, through every reconnect, and each subscription the id it has been given.
//! A subscription whose start lies before what was read turns the track back; the others skip what they have had. The
//! running numbers of entries tell when limits took something away before it was read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use trunkline_core::{Pattern, Role, Router, SubscriptionId};

use super::deleted::Deleted;
use super::entry::{Entry, EntryId};
use super::groups::Group;
use super::routes::Home;
use crate::backend::inbox::Inbox;
use crate::backend::{Gap, LiveEvent};

/// One subscription's share of one stream.
pub(super) struct Attachment {
    pattern: Pattern,
    pub(super) inbox: Arc<Inbox>,
    /// Last id that was looked at for it. Taken for a few instructions, within the track's own lock.
    given: Mutex<EntryId>,
    /// What is read waits for room in the inbox, because it is kept on the server: a replay.
    paced: bool,
}

impl Attachment {
    pub(super) fn new(pattern: Pattern, inbox: Arc<Inbox>, start: EntryId, paced: bool) -> Arc<Self> {
        Arc::new(Self { pattern, inbox, given: Mutex::new(start), paced })
    }
}

/// Who is given messages of a stream.
#[derive(Clone)]
pub(super) enum Taker {
    /// A subscription by itself.
    Alone(Arc<Attachment>),
    /// A queue group's members in this process.
    Group(Arc<Group>),
}

impl Taker {
    fn pattern(&self) -> &Pattern {
        match self {
            Self::Alone(attachment) => &attachment.pattern,
            Self::Group(group) => group.pattern(),
        }
    }

    fn start(&self) -> EntryId {
        match self {
            Self::Alone(attachment) => *attachment.given.lock(),
            Self::Group(group) => group.given(),
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Alone(one), Self::Alone(other)) => Arc::ptr_eq(one, other),
            (Self::Group(one), Self::Group(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// See the module's text.
pub(super) struct Track {
    home: Arc<Home>,
    /// Messages that had no room, in the whole backend.
    dropped: Arc<AtomicU64>,
    /// Held to attach, detach, and hand a batch out; locks of inboxes and groups are taken inside.
    state: Mutex<State>,
    /// How far it has been read.
    position: watch::Sender<EntryId>,
    /// A group holds something that it is to claim.
    pub(super) claim: Notify,
    /// Somebody claims for the groups.
    claiming: AtomicBool,
    /// Cancelled when nobody is left.
    pub(super) ended: CancellationToken,
}

struct State {
    position: EntryId,
    /// Running number of the message at `position`; `None` when it is not known.
    index: Option<u64>,
    /// `position` was turned back while a read was under way.
    turned_back: bool,
    attached: Router<(usize, Taker)>,
    /// Everybody in `attached`, by the number that stands there.
    takers: HashMap<usize, (Taker, SubscriptionId)>,
    next: usize,
    /// Groups that hold something since the list was taken last.
    touched: Vec<Arc<Group>>,
}

impl Track {
    /// A track that goes on after `position`, where `index` is the running number of the message.
    pub(super) fn new(
        home: Arc<Home>,
        dropped: &Arc<AtomicU64>,
        (position, index): (EntryId, Option<u64>),
        ended: CancellationToken,
    ) -> Arc<Self> {
        let state = State {
            position,
            index,
            turned_back: false,
            attached: Router::new(),
            takers: HashMap::new(),
            next: 0,
            touched: Vec::new(),
        };
        Arc::new(Self {
            home,
            dropped: dropped.clone(),
            state: Mutex::new(state),
            position: watch::Sender::new(position),
            claim: Notify::new(),
            claiming: AtomicBool::new(false),
            ended,
        })
    }

    /// Gives `taker` everything after its start; `index` is the running number of the message there. Says whether what
    /// is being read begins too late for it.
    pub(super) fn attach(&self, taker: Taker, index: Option<u64>) -> bool {
        let mut state = self.state.lock();
        let start = taker.start();
        let back = start < state.position;
        if back {
            state.position = start;
            state.index = index;
            state.turned_back = true;
            self.position.send_replace(start);
        }
        let number = state.next;
        state.next += 1;
        let id = state.attached.insert(taker.pattern(), Role::Subscriber, (number, taker.clone()));
        state.takers.insert(number, (taker, id));
        back
    }

    /// Stops giving to `taker`. Says whether nobody is left.
    pub(super) fn detach(&self, taker: &Taker) -> bool {
        let mut state = self.state.lock();
        let found = state.takers.iter().find(|(_, (known, _))| known.is(taker)).map(|(number, _)| *number);
        if let Some((known, id)) = found.and_then(|number| state.takers.remove(&number)) {
            state.attached.remove(known.pattern(), id);
        }
        state.takers.is_empty()
    }

    pub(super) fn home(&self) -> &Arc<Home> {
        &self.home
    }

    /// Whether the caller is to claim for the groups from now on: the first one that asks.
    pub(super) fn is_first_to_claim(&self) -> bool {
        !self.claiming.swap(true, Ordering::SeqCst)
    }

    /// Waits until everything up to `id` has been handed out.
    pub(super) async fn has_read(&self, id: EntryId) {
        let mut position = self.position.subscribe();
        tokio::select! {
            // The sender lives as long as this.
            _ = position.wait_for(|position| *position >= id) => {}
            () = self.ended.cancelled() => {}
        }
    }

    /// Where the next read begins.
    pub(super) fn next_read(&self) -> EntryId {
        let mut state = self.state.lock();
        state.turned_back = false;
        state.position
    }

    /// The groups that have something to claim since this was asked last, or with `all` all of them, and how far
    /// everything was handed out.
    pub(super) fn groups_to_claim(&self, all: bool) -> (Vec<Arc<Group>>, EntryId) {
        let mut state = self.state.lock();
        let touched = std::mem::take(&mut state.touched);
        if !all {
            return (touched, state.position);
        }
        let groups = state.takers.values().filter_map(|(taker, _)| match taker {
            Taker::Group(group) => Some(group.clone()),
            Taker::Alone(_) => None,
        });
        (groups.collect(), state.position)
    }

    /// Waits until those whose start lies in the past have room for more.
    pub(super) async fn wait_for_room(&self) {
        let paced: Vec<Arc<Inbox>> = {
            let state = self.state.lock();
            let paced = state.takers.values().filter_map(|(taker, _)| match taker {
                Taker::Alone(attachment) if attachment.paced => Some(attachment.inbox.clone()),
                _ => None,
            });
            paced.collect()
        };
        for inbox in paced {
            inbox.room().await;
        }
    }

    /// Running number of the last message that was handed out; `None` when it is not known.
    pub(super) fn index(&self) -> Option<u64> {
        self.state.lock().index
    }

    /// Hands out what a read from [`Track::next_read`] brought. What was deleted is not missed.
    pub(super) fn hand_out(&self, entries: Vec<Entry>, deleted: &Deleted) {
        let mut state = self.state.lock();
        if state.turned_back || entries.is_empty() {
            return;
        }
        let mut claims: Vec<Arc<Group>> = Vec::new();
        let mut batches: HashMap<usize, (Arc<Attachment>, Vec<LiveEvent>)> = HashMap::new();
        for entry in entries {
            if let (Some(before), Some(index)) = (state.index, entry.index)
                && index > before + 1 + deleted.between(before, index)
            {
                let missed = index - before - 1 - deleted.between(before, index);
                for (number, (taker, _)) in &state.takers {
                    let gap = self.gap_for(taker.pattern(), missed);
                    match taker {
                        Taker::Alone(attachment) => {
                            if *attachment.given.lock() < entry.id {
                                let batch = batches.entry(*number);
                                let batch = batch.or_insert_with(|| (attachment.clone(), Vec::new()));
                                batch.1.push(LiveEvent::Gap(gap));
                            }
                        }
                        Taker::Group(group) => group.note_trimmed(entry.id, gap),
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
            let offset = self.home.stores.then(|| entry.offset());
            let matches = state.attached.matches(message.subject.as_bytes());
            for (number, taker) in &matches.subscribers {
                let attachment = match taker {
                    Taker::Alone(attachment) => attachment,
                    Taker::Group(group) => {
                        if group.hold(entry.id, message) {
                            claims.push(group.clone());
                        }
                        continue;
                    }
                };
                let mut given = attachment.given.lock();
                if *given < entry.id {
                    *given = entry.id;
                    let batch = batches.entry(*number);
                    let batch = batch.or_insert_with(|| (attachment.clone(), Vec::new()));
                    batch.1.push(LiveEvent::Message { message: message.clone(), offset });
                }
            }
        }
        for (attachment, mut events) in batches.into_values() {
            attachment.inbox.push(&mut events, &self.dropped);
        }
        if !claims.is_empty() {
            state.touched.append(&mut claims);
            self.claim.notify_one();
        }
        self.position.send_replace(state.position);
    }

    /// A gap of so many messages of the stream: of how many of the subscription is known only where it takes them all.
    fn gap_for(&self, pattern: &Pattern, missed: u64) -> Gap {
        let takes_all = self
            .home
            .config
            .as_ref()
            .is_some_and(|config| config.subjects.iter().all(|subjects| pattern.covers(subjects)));
        Gap { missed: takes_all.then_some(missed) }
    }
}
