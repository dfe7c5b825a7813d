//! Whether every rule was kept.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use trunkline::StreamOffset;
use trunkline::backend::nats::NatsBackend;
use trunkline::backend::{ReadRequest, Start};
use trunkline_testkit::history::{Entry, Event, Expectations, MessageId, Told, Violation, check};

use super::load::{FAULT_BEGINS, FAULT_ENDS, Load, id_of};
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

/// Whether another server took over the consumer between two deliveries of a message, and may have given it out so early.
///
/// nats-server tells the others of a cluster not when it gave out a delivery but when its message was stored, and one that
/// takes over counts `ack_wait` from there, as its source says (`deliverMsg` in `server/consumer.go`); with 2.15.1 a message
/// came again after 7.9 s of 10. Nothing but a renewal tells them the time. So two members may work on a message, and never before
/// `ack_wait` has passed since it was stored.
fn taken_over_between(entries: &[Entry], offset: StreamOffset, former: u32, later: u32) -> bool {
    let given = |wanted: u32| {
        entries.iter().find_map(|entry| match entry.event {
            Event::Delivered { offset: at, attempt, id, .. } if (at, attempt) == (offset, wanted) => {
                Some((entry.at, id))
            }
            _ => None,
        })
    };
    let (Some((former, id)), Some((later, _))) = (given(former), given(later)) else { return false };
    let published = entries.iter().find_map(|entry| match entry.event {
        Event::Publishing { id: published, .. } if published == id => Some(entry.at),
        _ => None,
    });
    if published.is_none_or(|published| later < published + LEASE) {
        return false;
    }
    let mut begun = None;
    entries.iter().any(|entry| match entry.event {
        Event::FetchAbandoned { member: FAULT_BEGINS } => {
            begun = begun.or(Some(entry.at));
            false
        }
        Event::FetchAbandoned { member: FAULT_ENDS } => {
            begun.take().is_some_and(|begun| begun <= later && entry.at >= former)
        }
        _ => false,
    })
}

/// What happened to one message, for people.
fn story(entries: &[Entry], wanted: StreamOffset) -> Vec<String> {
    let about = |entry: &&Entry| match &entry.event {
        Event::Delivered { offset, .. } | Event::Settling { offset, .. } | Event::Settled { offset, .. } => {
            *offset == wanted
        }
        Event::FetchAbandoned { member } => *member >= FAULT_ENDS,
        _ => false,
    };
    entries.iter().filter(about).map(|entry| format!("{:?} {:?}", entry.at, entry.event)).collect()
}

/// Messages that nobody has finished with.
pub(super) struct Unfinished(pub(super) usize);

/// Checks that handlers by key were given everything in order.
pub(super) fn assert_order(load: &Load, seed: u64) {
    let mut broken = Vec::new();
    for (key, begun) in load.begun.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if let Some(at) = begun.windows(2).position(|pair| pair[0].offset > pair[1].offset) {
            let earlier = begun[..at].iter().filter(|one| one.offset == begun[at + 1].offset);
            let around = begun[at.saturating_sub(6)..begun.len().min(at + 6)].iter();
            let lines: Vec<String> = earlier.chain(around).map(ToString::to_string).collect();
            broken.push(format!("key {key} ran out of order:\n  {}", lines.join("\n  ")));
        }
    }
    assert!(broken.is_empty(), "seed {seed}: {}", broken.join("\n"));
}

/// Checks the history, and that the copies of the stream hold what publishers were told, once each. A server that is
/// `stuck` may lack the newest messages, and have more to give out than it knows.
pub(super) fn assert_kept(
    load: &Load,
    copies: &[Vec<(StreamOffset, MessageId)>],
    stuck: bool,
    seed: u64,
) -> Unfinished {
    let entries = load.history.entries();
    let expected =
        Expectations { ack_wait: Some(LEASE), doomed: Some(BTreeMap::new()), ..Expectations::default() };
    let (mut broken, mut unfinished) = (Vec::new(), 0);
    for violation in check(&entries, &expected) {
        match violation {
            Violation::TwoLeases { offset, attempt, former }
                if taken_over_between(&entries, offset, former, attempt) =>
            {
                println!("{violation}: {}", story(&entries, offset).join("; "));
            }
            Violation::Dropped(_) => unfinished += 1,
            _ => broken.push(violation.to_string()),
        }
    }
    let kept = copies.iter().max_by_key(|copy| copy.len()).expect("there are three");
    for (n, copy) in copies.iter().enumerate() {
        let same = copy == kept || (stuck && kept.starts_with(copy));
        if !same {
            broken.push(format!("copy {n} has {} messages, another one has {}", copy.len(), kept.len()));
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
    let count = broken.len();
    broken.truncate(20);
    let events = entries.len();
    assert!(count == 0, "seed {seed}: {count} broken rules in {events} events:\n{}", broken.join("\n"));
    Unfinished(unfinished)
}
