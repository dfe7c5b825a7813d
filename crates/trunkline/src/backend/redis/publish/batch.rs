//! Messages of one stream as one script, and its answer.
//!
//! Most messages only have to be appended: they go through a lean script, whose answer is the id of the first one. A
//! batch in which one has a deduplication id, or asks for responders, goes through the full script as a whole, so that
//! its order stays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use redis::{Cmd, ServerError, Value};

use super::super::entry::{EntryId, entry_id, list, number};
use super::super::link::Failure;
use super::super::routes::{Home, millis};
use super::super::scripts::{APPEND, PUBLISH};
use super::super::shared::Shared;
use super::queue::Item;

/// Limits by age and bytes are applied at most so often by one publisher; reading applies them, too.
const TRIM_INTERVAL: Duration = Duration::from_millis(500);
/// Limits by bytes are applied also after this part of them was written.
const TRIM_BYTES_PART: u64 = 32;
/// Streams of which a publisher remembers when it applied their limits.
const TRIMMED_MAX: usize = 1024;

/// Messages of one stream.
pub(super) struct Batch {
    pub(super) home: Arc<Home>,
    pub(super) items: Vec<Item>,
}

/// What became of a message.
pub(super) struct Stored {
    pub(super) id: EntryId,
    pub(super) duplicate: bool,
    /// Nobody answers requests on its subject.
    pub(super) nobody: bool,
}

/// Why there is no answer.
pub(super) enum Broken {
    Refused(ServerError),
    Unknown,
}

impl Batch {
    /// An inbox is listed nowhere; who replies to one wants no answer from a registry.
    fn asks(&self, item: &Item) -> bool {
        item.reply.is_some() && self.home.stores
    }

    fn is_plain(&self) -> bool {
        self.items.iter().all(|item| item.dedupe_id.is_none() && !self.asks(item))
    }

    /// The script that appends them.
    pub(super) fn command(&self, shared: &Shared, version: u64, trims: &mut Trims) -> Cmd {
        let (home, limits, plain) = (&self.home, &self.home.limits, self.is_plain());
        let script = if plain { &APPEND } else { &PUBLISH };
        let bytes: usize = self.items.iter().map(|item| item.entry.len()).sum();
        let (age, most_bytes) = trims.due(home, bytes as u64);
        let mut command = script.command(&[&home.key, &shared.routes_key(), &home.beside("added")]);
        command
            .arg(if home.stores { version.to_string() } else { String::new() })
            .arg(limits.max_messages.unwrap_or(0))
            .arg(if limits.exact { "=" } else { "~" })
            .arg(age.map_or(0, millis))
            .arg(most_bytes.unwrap_or(0))
            .arg(limits.expiry.map_or(0, millis));
        if plain {
            for item in &self.items {
                command.arg(&item.entry);
            }
            return command;
        }
        command.arg(&shared.options.prefix);
        for item in &self.items {
            command.arg(&item.entry);
            match &item.dedupe_id {
                Some(id) => {
                    let window = millis(shared.options.dedupe_window).max(1);
                    command.arg(home.of_consumer("dedupe", id)).arg(window)
                }
                None => command.arg("").arg(0),
            };
            command.arg(if self.asks(item) { item.subject.as_str() } else { "" });
        }
        command
    }

    /// Reads the answer: one for each message, in order.
    pub(super) fn read(&self, answer: Value) -> Result<Vec<Stored>, Failure> {
        let parts = list(answer)?;
        if self.is_plain() {
            let [ms, first] = parts.as_slice() else { return Err(unexpected(&parts)) };
            let (ms, first) = (number(ms)?, number(first)?);
            let ids = (first..).take(self.items.len()).map(|seq| (ms, seq));
            return Ok(ids.map(|id| Stored { id, duplicate: false, nobody: false }).collect());
        }
        if parts.len() != 2 * self.items.len() {
            return Err(unexpected(&parts));
        }
        let stored = parts.chunks_exact(2).map(|pair| {
            let flags = number(&pair[1])?;
            Ok(Stored { id: entry_id(&pair[0])?, duplicate: flags & 1 != 0, nobody: flags & 2 != 0 })
        });
        stored.collect()
    }
}

fn unexpected(parts: &[Value]) -> Failure {
    Failure::Unexpected(format!("{} values for a batch", parts.len()))
}

/// When limits that cost more than a count were applied last, by stream.
#[derive(Default)]
pub(super) struct Trims(HashMap<String, Trimmed, foldhash::fast::RandomState>);

struct Trimmed {
    age: Option<Instant>,
    bytes: Option<Instant>,
    /// Bytes written since.
    written: u64,
}

impl Trims {
    /// Forgets everything: streams may have other limits now.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The limits by age and bytes that are to be applied with a batch of so many bytes.
    fn due(&mut self, home: &Home, bytes: u64) -> (Option<Duration>, Option<u64>) {
        let (max_age, max_bytes) = (home.limits.max_age, home.limits.max_bytes);
        if max_age.is_none() && max_bytes.is_none() {
            return (None, None);
        }
        if self.0.len() >= TRIMMED_MAX && !self.0.contains_key(&home.key) {
            self.0.clear();
        }
        let now = Instant::now();
        let trimmed = self.0.entry_ref(&home.key).or_insert(Trimmed { age: None, bytes: None, written: 0 });
        trimmed.written += bytes;
        let age = max_age.filter(|max_age| {
            let interval = TRIM_INTERVAL.min(*max_age / 4);
            let due = trimmed.age.is_none_or(|last| now.duration_since(last) >= interval);
            if due {
                trimmed.age = Some(now);
            }
            due
        });
        let bytes = max_bytes.filter(|max_bytes| {
            let due = trimmed.written >= max_bytes / TRIM_BYTES_PART
                || trimmed.bytes.is_none_or(|last| now.duration_since(last) >= TRIM_INTERVAL);
            if due {
                (trimmed.bytes, trimmed.written) = (Some(now), 0);
            }
            due
        });
        (age, bytes)
    }
}
