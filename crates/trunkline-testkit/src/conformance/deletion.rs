//! Single messages that are deleted: gone for everybody, missed by nobody.

use std::time::Duration;

use trunkline::StreamOffset;
use trunkline::backend::{ReadRequest, Settle, Settled, Start, StreamError};

use super::Harness;
use super::probe::{
    LONG_ACK_WAIT, Listener, ack, consumer, delivered_numbers, ensure, fetch_all, fetch_nothing, join,
    number, publish_numbers, settle, soon, stored_at, streams, tells,
};

async fn delete(harness: &Harness, stream: &str, offsets: Vec<StreamOffset>) -> Result<u64, StreamError> {
    let backend = harness.backend().await;
    soon("delete", streams(&*backend).delete(stream, offsets)).await
}

async fn read(harness: &Harness, stream: &str) -> Vec<(u64, StreamOffset)> {
    let backend = harness.backend().await;
    let request = ReadRequest { from: Start::Beginning, filter: None, max: 1000 };
    let page = soon("read", streams(&*backend).read(stream, request)).await.expect("the stream is there");
    assert_eq!(page.missed, 0, "a deletion is no loss");
    page.messages.iter().map(|stored| (number(&stored.message), stored.offset)).collect()
}

/// Deleted messages are gone, each counted once, and the others stay where they are.
pub async fn deleted_messages_are_gone_and_the_others_stay(harness: &Harness) {
    let backend = harness.backend().await;
    let (name, subject) = (harness.stream("sparse"), harness.subject("sparse"));
    ensure(&*backend, &name, harness.pattern("sparse")).await;
    let receipts = publish_numbers(&*backend, &subject, 0..10).await;
    let at = |n: usize| stored_at(&receipts[n]);
    assert_eq!(delete(harness, &name, vec![at(3), at(0), at(3), at(7)]).await, Ok(3));
    let left: Vec<_> = [1, 2, 4, 5, 6, 8, 9].into_iter().map(|n| (n as u64, at(n))).collect();
    assert_eq!(read(harness, &name).await, left);
    assert_eq!(delete(harness, &name, vec![at(3)]).await, Ok(0), "it is gone already");
    assert_eq!(delete(harness, &name, Vec::new()).await, Ok(0));
    let all = soon("list", streams(&*backend).list()).await.expect("listing streams");
    let info = all.into_iter().find(|info| info.config.name == name).expect("the stream is listed");
    assert_eq!((info.messages, info.first, info.last), (7, Some(at(1)), Some(at(9))));
    // Nothing of it is done when one of them cannot be.
    let foreign = match at(0) {
        StreamOffset::Sequence(_) => StreamOffset::Entry(1, 1),
        StreamOffset::Entry(..) => StreamOffset::Sequence(1),
    };
    let refused = delete(harness, &name, vec![at(1), foreign]).await;
    assert_eq!(refused, Err(StreamError::ForeignOffset(foreign)));
    let nowhere = harness.stream("nowhere");
    assert_eq!(delete(harness, &nowhere, vec![at(1)]).await, Err(StreamError::NoStream(nowhere)));
    // Everything may go, and what comes then is a new message.
    let rest = left.iter().map(|(_, offset)| *offset).collect();
    assert_eq!(delete(harness, &name, rest).await, Ok(7));
    let next = publish_numbers(&*backend, &subject, 10..11).await;
    assert!(stored_at(&next[0]) > at(9), "offsets grow");
    assert_eq!(read(harness, &name).await, [(10, stored_at(&next[0]))]);
}

/// A consumer is not given what was deleted, does not count it as missed or as work to do, and cannot settle it where the
/// server fences acks.
pub async fn deleted_messages_are_missed_by_no_consumer(harness: &Harness) {
    let backend = harness.backend().await;
    let (name, subject) = (harness.stream("wanted"), harness.subject("wanted"));
    ensure(&*backend, &name, harness.pattern("wanted")).await;
    let receipts = publish_numbers(&*backend, &subject, 0..10).await;
    let busy = join(&*backend, &name, consumer("busy", LONG_ACK_WAIT)).await;
    let fresh = join(&*backend, &name, consumer("fresh", LONG_ACK_WAIT)).await;
    let held = fetch_all(&*busy, 4).await;
    assert_eq!(delivered_numbers(&held), [0, 1, 2, 3]);
    // One that is being worked on, two next to each other that nobody was given, and the newest.
    let offsets = [1, 5, 6, 9].map(|n: usize| stored_at(&receipts[n])).to_vec();
    assert_eq!(delete(harness, &name, offsets).await, Ok(4));
    let info = |consumer: &'static str| {
        let info = streams(&*backend).consumer_info(&name, consumer);
        async move {
            let info = soon("info", info).await.expect("the stream is there").expect("the consumer is there");
            (info.pending, info.lag, info.missed)
        }
    };
    tells(harness, (3, 3, 0), || info("busy")).await;
    tells(harness, (0, 6, 0), || info("fresh")).await;
    let settled = settle(&*busy, &held[1], Settle::Ack).await;
    // A server that does not fence acks takes one for what is not there any more.
    assert!(settled == Settled::LeaseLost || !backend.capabilities().fenced_acks, "{settled:?}");
    for n in [0, 2, 3] {
        ack(&*busy, &held[n]).await;
    }
    assert_eq!(delivered_numbers(&fetch_all(&*busy, 3).await), [4, 7, 8]);
    fetch_nothing(&*busy, Duration::from_millis(50), "the newest was deleted").await;
    assert_eq!(delivered_numbers(&fetch_all(&*fresh, 6).await), [0, 2, 3, 4, 7, 8]);
    publish_numbers(&*backend, &subject, 10..12).await;
    for member in [&busy, &fresh] {
        assert_eq!(delivered_numbers(&fetch_all(&**member, 2).await), [10, 11]);
    }
    tells(harness, (5, 0, 0), || info("busy")).await;
    tells(harness, (8, 0, 0), || info("fresh")).await;
}

/// A subscription that had not come so far, live or in the stored past, reports no gap for what was deleted.
pub async fn deleted_messages_are_no_gap(harness: &Harness) {
    let (backend, reader) = (harness.backend().await, harness.backend().await);
    let (name, subject) = (harness.stream("seen"), harness.subject("seen"));
    ensure(&*backend, &name, harness.pattern("seen")).await;
    let mut live = Listener::plain(&*reader, &subject).await;
    let receipts = publish_numbers(&*backend, &subject, 0..10).await;
    assert_eq!(live.numbers(10).await, (0..10).collect::<Vec<_>>());
    let offsets = [2, 3, 6, 9].map(|n: usize| stored_at(&receipts[n])).to_vec();
    assert_eq!(delete(harness, &name, offsets).await, Ok(4));
    publish_numbers(&*backend, &subject, 10..12).await;
    assert_eq!(live.numbers(2).await, [10, 11]);
    for (start, expected) in [
        (Start::Beginning, vec![0, 1, 4, 5, 7, 8, 10, 11]),
        (Start::After(stored_at(&receipts[1])), vec![4, 5, 7, 8, 10, 11]),
        (Start::After(stored_at(&receipts[8])), vec![10, 11]),
    ] {
        let mut replay = Listener::from(&*reader, &subject, start).await;
        assert_eq!(replay.numbers(expected.len()).await, expected, "from {start:?}");
    }
}
