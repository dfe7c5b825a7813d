//! Readers: one blocking read for all followed streams that lie together, shared by all live subscriptions.
//!
//! Streams lie together where their keys have the same hash tag: a configured or built-in stream by itself, inboxes in
//! a few groups. So the number of connections grows neither with subjects nor with subscriptions.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{ServerError, Value};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::deleted::Deleted;
use super::entry::{Entry, EntryId, array, entries, list, print_id, text};
use super::link::{Failure, Link};
use super::refusal;
use super::track::Track;

/// Most entries of one stream in one read, and the bytes that a read is to bring: how many entries that is, the read
/// before tells.
const READ_ENTRIES: usize = 256;
const READ_BYTES: usize = 4 << 20;
/// Longest time one read blocks, and how much longer it may take until its connection counts as broken.
const BLOCK: Duration = Duration::from_secs(5);
const BLOCK_GRACE: Duration = Duration::from_secs(2);
/// How often a read that is to end is told so again.
const URGE_INTERVAL: Duration = Duration::from_millis(10);
/// Delay before a read that failed is tried again: the link's own delays are for the server as a whole.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// The longest delay before a read that the server refuses for good is tried again.
const REFUSED_DELAY_MAX: Duration = Duration::from_secs(2);

/// See the module's text.
pub(super) struct Reader {
    /// Tells it from others that read the same streams.
    number: u64,
    link: Arc<Link>,
    /// Any key with the tag of its streams: says which server to read from.
    key: String,
    /// The streams it reads, by key. Held for one map operation, or to copy the list.
    tracks: Mutex<HashMap<String, Arc<Track>>>,
    /// There is something to read differently.
    changed: Notify,
    /// The last read was not refused.
    is_well: AtomicBool,
    stop: CancellationToken,
}

impl Reader {
    /// A reader of nothing yet. [`Reader::run`] is to be spawned.
    pub(super) fn new(link: &Arc<Link>, key: &str, stop: CancellationToken) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = key.to_owned();
        Arc::new(Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            link: link.clone(),
            key,
            tracks: Mutex::default(),
            changed: Notify::new(),
            is_well: AtomicBool::new(true),
            stop,
        })
    }

    /// The track of the stream with this key, made by `make` where it is not followed yet.
    pub(super) fn follow(&self, key: &str, make: impl FnOnce() -> Arc<Track>) -> Arc<Track> {
        let mut tracks = self.tracks.lock();
        if let Some(track) = tracks.get(key) {
            return track.clone();
        }
        let track = make();
        tracks.insert(key.to_owned(), track.clone());
        self.changed.notify_one();
        track
    }

    /// Has the read that is under way begin anew: a track was turned back.
    pub(super) fn begin_anew(&self) {
        self.changed.notify_one();
    }

    /// Ends a track that nobody takes from. Says whether nothing is left to read.
    pub(super) fn forget(&self, track: &Track) -> bool {
        let mut tracks = self.tracks.lock();
        tracks.remove(&track.home().key);
        track.ended.cancel();
        // The read under way asks for one stream too many until it ends; what it brings, nobody takes.
        tracks.is_empty()
    }

    /// Ends the reader.
    pub(super) fn end(&self) {
        self.stop.cancel();
    }

    /// Reads until it is stopped.
    pub(super) async fn run(self: Arc<Self>) {
        let reading = async {
            let mut refused_delay = RETRY_DELAY;
            loop {
                // Only a link that is closed for good has no next connection.
                let Some(current) = self.link.connected(&self.key).await else { return };
                let read = tokio::select! {
                    read = self.read_on_one_connection() => read,
                    () = current.lost.cancelled() => Ok(()),
                };
                match read {
                    Ok(()) => refused_delay = RETRY_DELAY,
                    Err(Failure::Refused(error)) if !refusal::is_passing(&error) => {
                        if self.is_well.swap(false, Ordering::SeqCst) {
                            refused_delay = RETRY_DELAY;
                        }
                        self.tell_refused(&error);
                        tokio::time::sleep(refused_delay).await;
                        refused_delay = (refused_delay * 2).min(REFUSED_DELAY_MAX);
                    }
                    Err(error) => {
                        tracing::debug!(?error, "a read failed and is tried again");
                        self.link.suspect();
                        tokio::time::sleep(RETRY_DELAY).await;
                    }
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = reading => {}
        }
        self.link.note_refused_read(self.number, None);
    }

    /// The server is well and does not give these streams out: somebody else has put something in their place, or it is
    /// not allowed. Nothing but a person changes that, so it is said once, and in the status for as long as it lasts.
    fn tell_refused(&self, error: &ServerError) {
        let reason = format!("{} cannot be read: {error}", self.key);
        if self.link.note_refused_read(self.number, Some(reason)) {
            tracing::warn!(key = self.key, %error, "subscriptions are given nothing: the server refuses the read");
        }
    }

    /// A read was answered.
    fn note_well(&self) {
        if !self.is_well.swap(true, Ordering::SeqCst) && self.link.note_refused_read(self.number, None) {
            tracing::info!(key = self.key, "subscriptions are given messages again");
        }
    }

    /// What to read next: each stream, and after which id.
    async fn plan(&self) -> Vec<(Arc<Track>, EntryId)> {
        loop {
            let tracks: Vec<Arc<Track>> = self.tracks.lock().values().cloned().collect();
            if tracks.is_empty() {
                self.changed.notified().await;
                continue;
            }
            for track in &tracks {
                track.wait_for_room().await;
            }
            return tracks
                .into_iter()
                .map(|track| {
                    let from = track.next_read();
                    (track, from)
                })
                .collect();
        }
    }

    async fn read_on_one_connection(&self) -> Result<(), Failure> {
        let broken = |error: redis::RedisError| Failure::NotConnected(error.to_string());
        let mut connection = self.link.open(&self.key).await?;
        let reader = connection.reader();
        let mut count = READ_ENTRIES;
        loop {
            let plan = self.plan().await;
            let mut command = redis::cmd("XREAD");
            let block = u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX);
            command.arg("COUNT").arg(count).arg("BLOCK").arg(block).arg("STREAMS");
            for (track, _) in &plan {
                command.arg(&track.home().key);
            }
            for (_, from) in &plan {
                command.arg(print_id(*from));
            }
            let reading = connection.read(&self.link, &command);
            tokio::pin!(reading);
            let mut urged = false;
            let answer = loop {
                tokio::select! {
                    answer = &mut reading => break answer.map_err(broken)?,
                    () = self.changed.notified() => {
                        urged = true;
                        self.link.unblock(&reader).await;
                    }
                    // The first one may have come to the server before the read did.
                    () = tokio::time::sleep(URGE_INTERVAL), if urged => self.link.unblock(&reader).await,
                    () = tokio::time::sleep(BLOCK + BLOCK_GRACE) => {
                        return Err(Failure::Unknown(BLOCK + BLOCK_GRACE));
                    }
                }
            };
            if let Value::ServerError(error) = answer {
                return Err(Failure::Refused(error));
            }
            self.note_well();
            let (mut bytes, mut messages, mut longest) = (0, 0, 1);
            for (key, entries) in read_streams(answer)? {
                let Some((track, _)) = plan.iter().find(|(track, _)| track.home().key == key) else {
                    continue;
                };
                bytes += entries.iter().map(Entry::size_bytes).sum::<usize>();
                messages += entries.len();
                longest = longest.max(entries.len());
                let deleted = Deleted::among(&self.link, track.home(), track.index(), &entries).await?;
                track.hand_out(entries, &deleted);
            }
            if let Some(each) = bytes.checked_div(messages) {
                let streams = messages.div_ceil(longest);
                count = (READ_BYTES / each.max(1) / streams).clamp(1, READ_ENTRIES);
            }
        }
    }
}

/// The entries in the answer of a read, by the key of the stream; nothing is no streams.
fn read_streams(answer: Value) -> Result<Vec<(String, Vec<Entry>)>, Failure> {
    let streams = list(answer)?.into_iter().map(|stream| {
        let [key, found] = array::<2>(stream)?;
        Ok((text(&key)?, entries(found)?))
    });
    streams.collect()
}
