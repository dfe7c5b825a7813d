//! Whether every rule was kept.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use trunkline::StreamOffset;
use trunkline::backend::nats::NatsBackend;
use trunkline::backend::{ReadRequest, Start};
use trunkline_testkit::history::{Event, Expectations, MessageId, Told, check};

use super::load::{Load, id_of};
use super::members::LEASE;
use super::{STREAM, again, streams};

/// Everything that the stream keeps, as this client reads it.
pub(super) async fn read_all(backend: &NatsBackend) -> Vec<(StreamOffset, MessageId)> {
    let (mut from, mut all) = (Start::Beginning, Vec::new());
    loop {
        let request = || ReadRequest { from, filter: None, max: 1000 };
        let page = again("a page", async || streams(backend).read(STREAM, request()).await).await;
        assert_eq!(page.missed, 0, "the stream keeps everything");
        all.extend(page.messages.iter().map(|stored| (stored.offset, id_of(&stored.message))));
        if page.end {
            return all;
        }
        from = page.next;
    }
}

/// Checks the history, and that the copies of the stream hold what publishers were told, once each.
pub(super) fn assert_kept(load: &Load, copies: &[Vec<(StreamOffset, MessageId)>], seed: u64) {
    let entries = load.history.entries();
    let expected = Expectations { ack_wait: Some(LEASE), doomed: Some(BTreeMap::new()) };
    let mut broken: Vec<String> = check(&entries, &expected).iter().map(ToString::to_string).collect();
    let kept = &copies[0];
    for (n, copy) in copies.iter().enumerate() {
        if copy != kept {
            broken.push(format!("copy {n} has {} messages, copy 0 has {}", copy.len(), kept.len()));
        }
    }
    let mut places: BTreeMap<MessageId, Vec<StreamOffset>> = BTreeMap::new();
    for (offset, id) in kept {
        places.entry(*id).or_default().push(*offset);
    }
    for entry in &entries {
        let Event::Published { id, told } = &entry.event else { continue };
        let found = places.get(id).map_or(&[][..], Vec::as_slice);
        let right = match told {
            Told::Stored(offset) => found == [*offset],
            Told::Refused => found.is_empty(),
            Told::Unknown | Told::Received => found.len() <= 1,
        };
        if !right {
            broken.push(format!("the publisher of {id:?} was told {told:?}, and it is at {found:?}"));
        }
    }
    let followed = load.followed.lock().unwrap_or_else(PoisonError::into_inner);
    if *followed != *kept {
        let at = followed.iter().zip(kept).position(|(followed, kept)| followed != kept);
        let at = at.unwrap_or(followed.len().min(kept.len()));
        broken.push(format!(
            "the follower was given {} of {} messages, and first differs at {at}",
            followed.len(),
            kept.len()
        ));
    }
    for (key, begun) in load.begun.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if let Some(at) = begun.windows(2).position(|pair| pair[0] > pair[1]) {
            let around = &begun[at.saturating_sub(2)..begun.len().min(at + 4)];
            broken.push(format!("key {key} ran out of order: {around:?}"));
        }
    }
    let count = broken.len();
    broken.truncate(20);
    let events = entries.len();
    assert!(count == 0, "seed {seed}: {count} broken rules in {events} events:\n{}", broken.join("\n"));
}
