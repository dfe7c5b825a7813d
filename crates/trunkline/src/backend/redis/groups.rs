//! Queue groups of live subscriptions: a consumer group for each pattern and name, read without acks.
//!
//! The members in one process share one blocking read of the group; which of them gets a message is decided here. A
//! group's reader that stops finishes the read that is under way, because what the server has given to it would be
//! lost to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::Value;
use tokio::sync::{Notify, OnceCell};
use tokio_util::sync::CancellationToken;
use trunkline_core::Pattern;

use super::entry::Entry;
use super::link::Failure;
use super::presence::{EXPIRY, Presence};
use super::reader::read_entries;
use super::routes::{Home, millis};
use super::scripts::{GROUP_JOIN, GROUP_LEAVE};
use super::shared::Shared;
use crate::backend::LiveEvent;
use crate::backend::inbox::Inbox;

/// Most entries of one read: what one process takes, the others cannot have.
const READ_ENTRIES: usize = 64;
const BLOCK: Duration = Duration::from_secs(5);
const BLOCK_GRACE: Duration = Duration::from_secs(2);
/// How often a read that is to end is told so again.
const URGE_INTERVAL: Duration = Duration::from_millis(10);
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// This process's share of one queue group on one stream.
pub(super) struct GroupReader {
    shared: Arc<Shared>,
    presence: Arc<Presence>,
    pub(super) home: Arc<Home>,
    pattern: Pattern,
    /// Pattern and name: what tells groups apart.
    pub(super) group: String,
    /// Name of this reader in the group.
    member: String,
    /// Whether the group is there, and this is a member of it; holds the number of its entry.
    joined: OnceCell<u64>,
    dropped: Arc<AtomicU64>,
    /// Held to add or remove a member, or to give a message to one; an inbox's lock is taken inside.
    seats: Mutex<Seats>,
    stopping: Notify,
    /// Cancelled when the read under way is over and nothing more is taken.
    stopped: CancellationToken,
}

#[derive(Default)]
struct Seats {
    members: Vec<Arc<Inbox>>,
    running: bool,
    /// The last member leaves: nobody can join any more.
    closing: bool,
}

/// What is to be done after a member has taken its seat.
pub(super) enum Seated {
    /// The reader runs.
    Running,
    /// The reader is to be spawned.
    First,
    /// The reader is closing: another one is needed.
    Closing,
}

impl GroupReader {
    pub(super) fn new(
        shared: &Arc<Shared>,
        presence: &Arc<Presence>,
        dropped: &Arc<AtomicU64>,
        home: Arc<Home>,
        pattern: &Pattern,
        queue: &str,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            group: group_name(pattern, queue),
            member: format!("{}-{}", shared.process, NEXT.fetch_add(1, Ordering::Relaxed)),
            shared: shared.clone(),
            presence: presence.clone(),
            home,
            pattern: pattern.clone(),
            joined: OnceCell::new(),
            dropped: dropped.clone(),
            seats: Mutex::default(),
            stopping: Notify::new(),
            stopped: CancellationToken::new(),
        })
    }

    /// Makes this process a member of the group; from then on the group keeps messages for it.
    pub(super) async fn join(&self) -> Result<(), Failure> {
        let joining = self.joined.get_or_try_init(|| async {
            self.enter_group().await?;
            Ok::<_, Failure>(self.presence.keep_member(&self.home, &self.group, &self.member))
        });
        joining.await.map(|_| ())
    }

    async fn enter_group(&self) -> Result<(), Failure> {
        let keys = self.shared.keys_of(&self.home, &[], &["queue"], &self.group);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let entering = self.shared.link.run_script(&GROUP_JOIN, &keys, |command| {
            command.arg(&self.group).arg(&self.member).arg(millis(EXPIRY));
        });
        entering.await.map(|_| ())
    }

    /// Adds a member in this process.
    pub(super) fn seat(&self, inbox: &Arc<Inbox>) -> Seated {
        let mut seats = self.seats.lock();
        if seats.closing {
            return Seated::Closing;
        }
        seats.members.push(inbox.clone());
        match std::mem::replace(&mut seats.running, true) {
            true => Seated::Running,
            false => Seated::First,
        }
    }

    /// Removes a member. The last one keeps its seat until the read that is under way has been handed out. Says whether
    /// it was the last.
    pub(super) async fn leave(&self, inbox: &Arc<Inbox>) -> bool {
        {
            let mut seats = self.seats.lock();
            let others = seats.members.iter().any(|member| !Arc::ptr_eq(member, inbox));
            if others {
                seats.members.retain(|member| !Arc::ptr_eq(member, inbox));
                return false;
            }
            seats.closing = true;
            if !seats.running {
                self.stopped.cancel();
            }
        }
        self.stopping.notify_one();
        self.stopped.cancelled().await;
        self.seats.lock().members.clear();
        if let Some(entry) = self.joined.get() {
            self.presence.unlist(*entry).await;
        }
        let keys = self.shared.keys_of(&self.home, &[], &["queue"], &self.group);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let leaving = self.shared.link.run_script(&GROUP_LEAVE, &keys, |command| {
            command.arg(&self.group).arg(&self.member);
        });
        if let Err(failure) = leaving.await {
            tracing::debug!(group = self.group, ?failure, "a queue group is left by expiry");
        }
        true
    }

    /// Reads until the last member has left.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let _stopped = self.stopped.clone().drop_guard();
        loop {
            let connected = tokio::select! {
                biased;
                connected = self.shared.link.connected(&self.home.key) => connected,
                () = self.stopping.notified() => return,
                () = stop.cancelled() => return,
            };
            let Some(current) = connected else { return };
            let read = tokio::select! {
                read = self.read_on_one_connection() => read,
                () = current.lost.cancelled() => Ok(false),
                () = stop.cancelled() => return,
            };
            match read {
                Ok(true) => return,
                Ok(false) if !self.seats.lock().closing => {}
                Ok(false) => return,
                Err(failure) => {
                    if self.seats.lock().closing {
                        return;
                    }
                    self.recover(failure).await;
                }
            }
        }
    }

    async fn recover(&self, failure: Failure) {
        if matches!(&failure, Failure::Refused(error) if error.code() == "NOGROUP") {
            tracing::warn!(
                group = self.group,
                stream = self.home.name,
                "the queue group is gone and made again"
            );
            self.seats.lock().members.iter().for_each(|member| member.push_unknown_gap());
            if self.enter_group().await.is_ok() {
                return;
            }
        }
        self.shared.link.suspect();
        tokio::time::sleep(RETRY_DELAY).await;
    }

    /// `true` once it is to stop and everything taken was handed out.
    async fn read_on_one_connection(&self) -> Result<bool, Failure> {
        let broken = |error: redis::RedisError| Failure::NotConnected(error.to_string());
        let link = &self.shared.link;
        let mut connection = link.open(&self.home.key).await?;
        let reader = connection.reader();
        loop {
            // The last reads of a group that closes do not wait: what was stored by then is handed out.
            let closing = self.seats.lock().closing;
            let mut command = redis::cmd("XREADGROUP");
            command.arg("GROUP").arg(format!("q:{}", self.group)).arg(&self.member);
            command.arg("COUNT").arg(READ_ENTRIES);
            if !closing {
                command.arg("BLOCK").arg(millis(BLOCK));
            }
            command.arg("NOACK");
            command.arg("STREAMS").arg(&self.home.key).arg(">");
            let reading = connection.read(link, &command);
            tokio::pin!(reading);
            let mut urged = false;
            let answer = loop {
                tokio::select! {
                    biased;
                    answer = &mut reading => break answer.map_err(broken)?,
                    () = self.stopping.notified() => {
                        urged = true;
                        link.unblock(&reader).await;
                    }
                    // The first one may have come to the server before the read did.
                    () = tokio::time::sleep(URGE_INTERVAL), if urged => link.unblock(&reader).await,
                    () = tokio::time::sleep(BLOCK + BLOCK_GRACE) => {
                        return Err(Failure::Unknown(BLOCK + BLOCK_GRACE));
                    }
                }
            };
            if let Value::ServerError(error) = answer {
                return Err(Failure::Refused(error));
            }
            let entries = read_entries(answer)?;
            let rest = entries.len() == READ_ENTRIES;
            self.hand_out(entries);
            if closing && !rest {
                return Ok(true);
            }
        }
    }

    fn hand_out(&self, entries: Vec<Entry>) {
        let seats = self.seats.lock();
        for entry in entries {
            let Ok(message) = &entry.message else { continue };
            if !self.pattern.matches(&message.subject) || seats.members.is_empty() {
                continue;
            }
            let offset = self.home.stores.then(|| entry.offset());
            let mut event = LiveEvent::Message { message: message.clone(), offset };
            let first = fastrand::usize(..seats.members.len());
            let taken = (0..seats.members.len()).any(|n| {
                match seats.members[(first + n) % seats.members.len()].offer(event.clone()) {
                    Ok(()) => true,
                    Err(refused) => {
                        event = refused;
                        false
                    }
                }
            });
            if !taken {
                // Nobody has room: it is missing where it would have gone first.
                seats.members[first].push(&mut vec![event], &self.dropped);
            }
        }
    }
}

/// The name of a queue group on the server: one name on two patterns is two groups.
pub(super) fn group_name(pattern: &Pattern, queue: &str) -> String {
    format!("{pattern} {queue}")
}
