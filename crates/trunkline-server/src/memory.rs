//! Keeping the process within `runtime.resources.memory`: how much of it is for buffers, and who gives way when they have
//! used it up.
//!
//! Every buffer is charged to the account of the process ([`MemoryBudget`]). The account cannot know everything: code, the
//! allocator's own, what clients of the admin API are just being told. So what is for buffers is what the process leaves, and
//! a task compares it with what the kernel says, ten times a second.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use trunkline::memory::{MemoryBudget, Relief};
use trunkline_protocol::ServerError;

use crate::client::Client;
use crate::closed::Closed;
use crate::outbox::{Ending, SlowBy};
use crate::process;
use crate::shared::Shared;

/// What the program grows by when it begins to work: code that is read in, buffers of worker threads.
const WORKING_BYTES: u64 = 8 << 20;
/// How often the account is compared with what the kernel says.
const PERIOD: Duration = Duration::from_millis(100);
/// A reader that has less than this waiting is not what used up the memory, unless nobody has more.
const SLOW_BYTES: usize = 64 << 10;
/// The same for a publisher with an operation that is not whole.
const LARGE_BYTES: usize = 32 << 10;

/// When nobody was found who could give way, so long nobody is looked for.
const FUTILE: Duration = Duration::from_millis(2);

/// Bounds of what a worker thread stages in one turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StagingBounds {
    pub(crate) turn_bytes: usize,
    /// Most that is read of a connection at a time.
    pub(crate) read_bytes: usize,
    /// A destination with more than this is written before the turn is over.
    pub(crate) slot_bytes: usize,
    /// Buffers larger than this are given back.
    pub(crate) kept_bytes: usize,
}

impl StagingBounds {
    /// With little memory turns are shorter: what all threads stage at a time is a small part of it.
    pub(crate) fn of(memory: &MemoryBudget) -> Self {
        let part =
            memory.configured().map_or(usize::MAX, |bytes| usize::try_from(bytes / 64).unwrap_or(usize::MAX));
        let turn_bytes = part.clamp(256 << 10, 16 << 20);
        let slot_bytes = turn_bytes / 16;
        let read_bytes = (turn_bytes / 8).clamp(256 << 10, 1 << 20);
        Self { turn_bytes, read_bytes, slot_bytes, kept_bytes: slot_bytes * 2 }
    }
}

/// What of `configured` bytes is for buffers in a process that takes `resident` bytes before it has any. Two
/// thirds of what is left are the allocator's: it gives back late and in pieces, and what one thread has given back another does
/// not get at once.
fn for_buffers(configured: u64, resident: u64) -> usize {
    let left = configured.saturating_sub(resident + WORKING_BYTES);
    usize::try_from(left / 3).unwrap_or(usize::MAX)
}

/// What of `configured` bytes, as `runtime.resources.memory` says, a server started by this program would have for buffers;
/// `None` where the system does not tell what the program takes by itself.
pub fn room_for_buffers(configured: u64) -> Option<usize> {
    let memory = MemoryBudget::new(configured);
    memory.set_limit(for_buffers(configured, process::resident_bytes()?));
    memory.limit()
}

/// The limit from now on, `most` at most. A process that has come close to what it may take does not shrink when buffers are
/// given up, since the allocator keeps most of it for what comes; so buffers may have from then on what they have now, half of
/// `most` at least, and slowly more again where there is room.
fn adjusted(limit: usize, most: usize, used: usize, resident: u64, configured: u64) -> usize {
    if resident > configured / 8 * 7 {
        limit.min(used.max(most / 2))
    } else if resident < configured / 4 * 3 {
        limit.saturating_add(most / 128).min(most)
    } else {
        limit
    }
}

/// Sets the limit for buffers, and keeps it right. Owned by the server's tracker; ends by `stop`.
pub(crate) async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    let memory = shared.memory.clone();
    let (Some(configured), Some(resident)) = (memory.configured(), process::resident_bytes()) else { return };
    memory.set_limit(for_buffers(configured, resident));
    let most = memory.limit().unwrap_or(usize::MAX);
    if configured < resident + 2 * WORKING_BYTES {
        tracing::warn!(
            configured,
            resident,
            "runtime.resources.memory is hardly more than the program takes by itself: buffers are bounded, and the process \
             may take more than that"
        );
    }
    let max_payload = shared.limits().max_payload;
    if max_payload > most {
        tracing::warn!(
            max_payload,
            configured,
            buffers = most,
            "server.limits.max_payload is larger than what runtime.resources.memory leaves for all buffers together: whoever \
             sends or reads a message of that size may be cut off for it"
        );
    }
    tracing::debug!(configured, resident, buffers = most, "memory is bounded");
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        shared.charge_routes();
        if let (Some(limit), Some(resident)) = (memory.limit(), process::resident_bytes()) {
            memory.set_limit(adjusted(limit, most, memory.used(), resident, configured));
        }
        memory.keep();
    }
}

impl Relief for Shared {
    /// Spare pages are nobody's. Then the slowest consumers go first: those for whom most waits. Only where they are not the reason, publishers go that
    /// have sent most of an operation and not the rest. An eighth more is freed than has to be, so that the next message does
    /// not begin it anew.
    fn relieve(&self, memory: &MemoryBudget) {
        let mut not_before = self.relieving.lock();
        let now = Instant::now();
        let Some(limit) = memory.limit().filter(|_| memory.is_exceeded() && now >= *not_before) else {
            return;
        };
        self.spares.clear();
        if !memory.is_exceeded() {
            return;
        }
        let wanted = limit - limit / 8;
        let clients = self.clients();
        for least in [SLOW_BYTES, LARGE_BYTES] {
            cut_off_readers(&clients, memory, wanted, least);
            if !memory.is_exceeded() {
                return;
            }
            cut_off_publishers(&clients, memory, wanted, least);
        }
        if memory.is_exceeded() {
            cut_off_readers(&clients, memory, wanted, 1);
            // What is remembered for them only makes them faster: each forgets it in its own task.
            clients.iter().for_each(|client| client.outbox.rouse());
            *not_before = now + FUTILE;
        }
    }
}

fn largest(
    clients: &[Arc<Client>],
    least: usize,
    held: impl Fn(&Client) -> usize,
) -> impl Iterator<Item = (usize, &Arc<Client>)> {
    let mut holding: Vec<_> = clients.iter().map(|client| (held(client), client)).collect();
    holding.retain(|(held, _)| *held >= least);
    holding.sort_unstable_by_key(|(held, _)| std::cmp::Reverse(*held));
    holding.into_iter()
}

fn cut_off_readers(clients: &[Arc<Client>], memory: &MemoryBudget, wanted: usize, least: usize) {
    for (_, client) in largest(clients, least, |client| client.outbox.held()) {
        if memory.used() <= wanted {
            return;
        }
        client.outbox.cut_off_slow(SlowBy::Memory);
    }
}

/// What they hold is free when their tasks have ended, so it is counted as if it were free now.
fn cut_off_publishers(clients: &[Arc<Client>], memory: &MemoryBudget, wanted: usize, least: usize) {
    let held = |client: &Client| client.partial_bytes.load(Ordering::Relaxed);
    let (mut leaving, mut staying) = (0, Vec::new());
    for (bytes, client) in largest(clients, least, held) {
        match client.outbox.ending() {
            Ending::No => staying.push((bytes, client)),
            _ => leaving += bytes,
        }
    }
    for (bytes, client) in staying {
        if memory.used().saturating_sub(leaving) <= wanted {
            return;
        }
        tracing::warn!(
            client = client.id,
            address = %client.address,
            held_bytes = bytes,
            "no memory for the rest of what this client sends (runtime.resources.memory), cut off"
        );
        client.set_ending_reason(Closed::Memory);
        client.write_later(|out| ServerError::InsufficientMemory.write(out));
        client.outbox.flush();
        client.outbox.end(Ending::Now);
        leaving += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn buffers_have_what_the_program_leaves() {
        assert_eq!(for_buffers(512 * MB, 24 * MB), (160 * MB) as usize);
        assert_eq!(for_buffers(64 * MB, 23 * MB), (11 * MB) as usize);
        assert_eq!(for_buffers(16 * MB, 20 * MB), 0);
    }

    #[test]
    fn the_limit_shrinks_near_the_bound_and_recovers_slowly() {
        let (most, configured) = (32 << 20, 64 * MB);
        let near = adjusted(most, most, 30 << 20, 61 * MB, configured);
        assert_eq!(near, 30 << 20);
        assert_eq!(adjusted(near, most, 31 << 20, 61 * MB, configured), near);
        assert_eq!(adjusted(near, most, 30 << 20, 50 * MB, configured), near);
        assert_eq!(adjusted(near, most, 0, 40 * MB, configured), near + most / 128);
        assert_eq!(adjusted(near, most, 0, 64 * MB, configured), most / 2, "there is always room for some");
    }

    #[test]
    fn with_little_memory_turns_are_short() {
        let of = |bytes| StagingBounds::of(&MemoryBudget::from_setting(bytes)).turn_bytes;
        assert_eq!(
            [of(None), of(Some(8 << 30)), of(Some(64 * MB)), of(Some(16 * MB))],
            [16 << 20, 16 << 20, 1 << 20, 256 << 10]
        );
    }
}
