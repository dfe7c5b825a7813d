//! Streams: what is stored, how it is read back, what limits remove.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use trunkline::backend::{PublishOptions, ReadPage, ReadRequest, Receipt, Start, StreamConfig, StreamError};
use trunkline::{Headers, Message, Pattern, StreamOffset};

use super::probe::{
    LONG_ACK_WAIT, consumer, ensure, ensure_config, flush, number, numbered, publish, publish_numbers, soon,
    stored_at, streams,
};
use super::{Column, Harness};

/// Longest time in which the servers of a cluster that were all started again agree on who leads them.
const ELECTED: Duration = Duration::from_secs(20);

/// Reads one page.
async fn read(harness: &Harness, stream: &str, from: Start, max: usize) -> ReadPage {
    read_filtered(harness, stream, from, max, None).await
}

/// Reads one page of what matches.
async fn read_filtered(
    harness: &Harness,
    stream: &str,
    from: Start,
    max: usize,
    filter: Option<Pattern>,
) -> ReadPage {
    let backend = harness.backend().await;
    let request = ReadRequest { from, filter, max };
    let page = soon("read", streams(&*backend).read(stream, request)).await.expect("reading a stream");
    assert!(page.messages.len() <= max, "a page has at most what was asked for");
    page
}

/// The numbers on a page.
fn numbers(page: &ReadPage) -> Vec<u64> {
    page.messages.iter().map(|stored| number(&stored.message)).collect()
}

/// An offset as another kind of backend would write it.
fn foreign(column: Column) -> StreamOffset {
    match column {
        Column::Redis => StreamOffset::Sequence(1),
        _ => StreamOffset::Entry(1, 0),
    }
}

/// The receipt names the stream and a growing offset where a stream matches, and only there.
pub async fn publish_is_stored_where_a_stream_matches(harness: &Harness) {
    let (one, two) = (harness.backend().await, harness.backend().await);
    let name = harness.stream("orders");
    ensure(&*one, &name, harness.pattern("orders.>")).await;
    let mut last = None;
    for n in 0..50 {
        // Two connections: a stream is one order for all of them.
        let backend = if n % 2 == 0 { &one } else { &two };
        match publish(&**backend, numbered(&harness.subject("orders.eu"), n)).await {
            Receipt::Stored { stream, offset, duplicate } => {
                assert_eq!((stream, duplicate), (name.clone(), false));
                assert!(Some(offset) > last, "{offset} after {last:?}");
                last = Some(offset);
            }
            other => panic!("a stream matches, yet the receipt is {other:?}"),
        }
    }
    let beside = publish(&*one, numbered(&harness.subject("orders"), 1)).await;
    assert!(!matches!(&beside, Receipt::Stored { stream, .. } if *stream == name), "{beside:?}");
    let info = soon("list", streams(&*two).list()).await.expect("listing streams");
    let info = info.into_iter().find(|info| info.config.name == name).expect("the stream is listed");
    assert_eq!((info.messages, info.last), (50, last));
}

/// Ensuring a stream again changes nothing, or its limits; it never loses a message that the limits allow.
pub async fn ensure_is_idempotent_and_updates_limits(harness: &Harness) {
    let backend = harness.backend().await;
    let (name, subject) = (harness.stream("orders"), harness.subject("orders.eu"));
    for _ in 0..2 {
        ensure(&*backend, &name, harness.pattern("orders.*")).await;
        publish_numbers(&*backend, &subject, 0..5).await;
    }
    assert_eq!(numbers(&read(harness, &name, Start::Beginning, 100).await), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    let mut config = StreamConfig::new(&name, vec![harness.pattern("orders.*")]);
    config.max_messages = Some(3);
    ensure_config(&*backend, config).await;
    // The new limit holds for what is there, and for what comes.
    assert_eq!(numbers(&read(harness, &name, Start::Beginning, 100).await), [2, 3, 4]);
    publish_numbers(&*backend, &subject, 5..6).await;
    assert_eq!(numbers(&read(harness, &name, Start::Beginning, 100).await), [3, 4, 5]);
}

/// Two streams never store the same message: a pattern that overlaps another stream's is refused, naming both.
pub async fn overlapping_streams_are_refused(harness: &Harness) {
    let backend = harness.backend().await;
    let name = harness.stream("one");
    ensure(&*backend, &name, harness.pattern("a.*")).await;
    for overlapping in ["a.*", "a.b", "a.>", ">", "*.b"] {
        let mine = StreamConfig::new(
            harness.stream("two"),
            vec![harness.pattern("apart"), harness.pattern(overlapping)],
        );
        match soon("ensure", streams(&*backend).ensure(mine)).await {
            Err(StreamError::Overlap { stream, pattern, other, other_pattern }) => {
                assert_eq!((stream, other), (harness.stream("two"), name.clone()));
                assert_eq!((pattern, other_pattern), (harness.pattern(overlapping), harness.pattern("a.*")));
            }
            other => panic!("{overlapping} overlaps a.*, yet the answer is {other:?}"),
        }
    }
    // What was refused left nothing behind.
    let listed = soon("list", streams(&*backend).list()).await.expect("listing streams");
    assert!(listed.iter().all(|info| info.config.name != harness.stream("two")));
    ensure(&*backend, &harness.stream("two"), harness.pattern("apart")).await;
}

/// Names with other characters, and streams without subjects, are refused by type.
pub async fn bad_stream_definitions_are_refused(harness: &Harness) {
    let backend = harness.backend().await;
    let pattern = || vec![harness.pattern("x")];
    for name in ["", "a.b", "a b", "a*", "ä", "a/b", &"x".repeat(65)] {
        let answer = soon("ensure", streams(&*backend).ensure(StreamConfig::new(name, pattern()))).await;
        assert_eq!(answer.map(|_| ()), Err(StreamError::BadName(name.to_owned())));
    }
    let name = harness.stream("empty");
    let answer = soon("ensure", streams(&*backend).ensure(StreamConfig::new(&name, Vec::new()))).await;
    assert_eq!(answer.map(|_| ()), Err(StreamError::NoSubjects(name)));

    let name = harness.stream("good");
    ensure(&*backend, &name, harness.pattern("x")).await;
    for bad in ["", "a.b", "a b", ">"] {
        let answer = soon("join", streams(&*backend).join(&name, consumer(bad, LONG_ACK_WAIT))).await;
        assert_eq!(answer.err(), Some(StreamError::BadName(bad.to_owned())));
    }
}

/// What asks for a stream that is not there is told its name.
pub async fn unknown_streams_are_named_in_the_error(harness: &Harness) {
    let backend = harness.backend().await;
    let name = harness.stream("nowhere");
    let unknown = || StreamError::NoStream(name.clone());
    let request = ReadRequest { from: Start::Beginning, filter: None, max: 1 };
    let all = streams(&*backend);
    assert_eq!(soon("read", all.read(&name, request)).await.err(), Some(unknown()));
    assert_eq!(soon("join", all.join(&name, consumer("c", LONG_ACK_WAIT))).await.err(), Some(unknown()));
    assert_eq!(soon("info", all.consumer_info(&name, "c")).await.err(), Some(unknown()));
    assert_eq!(soon("remove", all.remove_consumer(&name, "c")).await.err(), Some(unknown()));
    assert_eq!(soon("remove", all.remove(&name)).await, Ok(false));
    ensure(&*backend, &name, harness.pattern("x")).await;
    assert!(soon("info", all.consumer_info(&name, "c")).await.expect("the stream is there").is_none());
    assert_eq!(soon("remove", all.remove_consumer(&name, "c")).await, Ok(false));
}

/// The list has every stream once, by name, as every connection sees it.
pub async fn stream_list_is_by_name(harness: &Harness) {
    let (one, two) = (harness.backend().await, harness.backend().await);
    let names = ["b", "a", "C", "d_1", "a-2"].map(|name| harness.stream(name));
    for (n, name) in (0..).zip(&names) {
        ensure(&*one, name, harness.pattern(&format!("list.{n}"))).await;
    }
    let listed = soon("list", streams(&*two).list()).await.expect("listing streams");
    let listed: Vec<String> =
        listed.into_iter().map(|info| info.config.name).filter(|name| names.contains(name)).collect();
    let mut sorted = names.to_vec();
    sorted.sort();
    assert_eq!(listed, sorted);
}

/// A removed stream is gone with its messages, and its subjects are free again.
pub async fn removed_stream_stores_nothing(harness: &Harness) {
    let backend = harness.backend().await;
    let (name, subject) = (harness.stream("brief"), harness.subject("brief"));
    ensure(&*backend, &name, harness.pattern("brief")).await;
    publish_numbers(&*backend, &subject, 0..3).await;
    assert_eq!(soon("remove", streams(&*backend).remove(&name)).await, Ok(true));
    assert_eq!(soon("remove", streams(&*backend).remove(&name)).await, Ok(false));
    let receipt = publish(&*backend, numbered(&subject, 3)).await;
    assert!(!matches!(&receipt, Receipt::Stored { stream, .. } if *stream == name), "{receipt:?}");
    let again = harness.stream("again");
    ensure(&*backend, &again, harness.pattern("brief")).await;
    assert!(read(harness, &again, Start::Beginning, 10).await.messages.is_empty());
}

/// What is read is what was published, byte for byte, in the order and at the offsets of the receipts.
pub async fn stream_reads_back_whole_and_in_order(harness: &Harness) {
    let backend = harness.backend().await;
    let name = harness.stream("whole");
    ensure(&*backend, &name, harness.pattern("whole.*")).await;
    let mut headers = Headers::new();
    headers.append("X-Many", "1").expect("a valid header");
    headers.append("X-Many", "2").expect("a valid header");
    let before = SystemTime::now();
    let mut published = Vec::new();
    for (n, payload) in
        [Bytes::new(), Bytes::from_static(b"\r\n\0\xff"), Bytes::from(vec![7; 100_000])].iter().enumerate()
    {
        for headers in [Headers::new(), headers.clone()] {
            let message = Message {
                subject: harness.subject(&format!("whole.{n}")),
                reply: None,
                headers,
                payload: payload.clone(),
            };
            let receipt = publish(&*backend, message.clone()).await;
            published.push((stored_at(&receipt), message));
        }
    }
    let page = read(harness, &name, Start::Beginning, 100).await;
    assert!(page.end && page.missed == 0, "{page:?}");
    let mut time = before - std::time::Duration::from_secs(1);
    assert_eq!(page.messages.len(), published.len());
    for (stored, (offset, message)) in page.messages.iter().zip(&published) {
        assert_eq!(stored.offset, *offset);
        assert_eq!((&stored.message.subject, &stored.message.payload), (&message.subject, &message.payload));
        assert_eq!(stored.message.headers, message.headers);
        assert!(stored.time >= time, "stored in order of time");
        time = stored.time;
    }
    assert!(time <= SystemTime::now() + std::time::Duration::from_secs(1), "stored by now");
}

/// Reading starts at the beginning, after an offset, at a time or at the end, and takes only what a filter matches.
pub async fn stream_reads_from_offset_time_and_filter(harness: &Harness) {
    let backend = harness.backend().await;
    let name = harness.stream("read");
    ensure(&*backend, &name, harness.pattern("read.*")).await;
    let mut offsets = Vec::new();
    for n in 0..10u64 {
        let subject = harness.subject(if n % 2 == 0 { "read.even" } else { "read.odd" });
        offsets.push(stored_at(&publish(&*backend, numbered(&subject, n)).await));
    }
    flush(&*backend).await;
    assert_eq!(numbers(&read(harness, &name, Start::After(offsets[6]), 10).await), [7, 8, 9]);
    assert!(read(harness, &name, Start::After(offsets[9]), 10).await.messages.is_empty());
    let even = read_filtered(harness, &name, Start::Beginning, 10, Some(harness.pattern("read.even"))).await;
    assert_eq!(numbers(&even), [0, 2, 4, 6, 8]);

    let times: Vec<_> =
        read(harness, &name, Start::Beginning, 10).await.messages.iter().map(|stored| stored.time).collect();
    let from = read(harness, &name, Start::At(times[5]), 10).await;
    let expected: Vec<u64> = (0..10).filter(|&n| times[n as usize] >= times[5]).collect();
    assert_eq!(numbers(&from), expected, "everything stored at or after the time of the sixth message");
    let epoch = read(harness, &name, Start::At(SystemTime::UNIX_EPOCH), 10).await;
    assert_eq!(epoch.messages.len(), 10);

    let new = read(harness, &name, Start::New, 10).await;
    assert!(new.messages.is_empty() && new.end);
    publish_numbers(&*backend, &harness.subject("read.even"), 10..11).await;
    assert_eq!(numbers(&read(harness, &name, new.next, 10).await), [10]);
}

/// Pages follow each other without loss or repeat, also past what a filter skips and what comes in between.
pub async fn pages_continue_where_they_ended(harness: &Harness) {
    let backend = harness.backend().await;
    let name = harness.stream("pages");
    ensure(&*backend, &name, harness.pattern("pages.*")).await;
    for n in 0..100u64 {
        let subject = harness.subject(if n % 10 == 0 { "pages.rare" } else { "pages.often" });
        publish(&*backend, numbered(&subject, n)).await;
    }
    flush(&*backend).await;
    for (filter, expected) in [
        (None, (0..100).collect::<Vec<u64>>()),
        (Some(harness.pattern("pages.rare")), (0..100).step_by(10).collect()),
    ] {
        let (mut from, mut all) = (Start::Beginning, Vec::new());
        loop {
            let page = read_filtered(harness, &name, from, 7, filter.clone()).await;
            all.extend(numbers(&page));
            from = page.next;
            if page.end {
                break;
            }
            assert!(all.len() <= expected.len(), "reading goes round in circles: {all:?}");
        }
        assert_eq!(all, expected);
        let after = read_filtered(harness, &name, from, 7, filter).await;
        assert!(after.messages.is_empty() && after.end, "nothing comes after the end");
    }
}

/// Limits remove the oldest messages, and a reader that asks for them is told how many are gone.
pub async fn limit_removes_the_oldest_and_reading_says_so(harness: &Harness) {
    let backend = harness.backend().await;
    let (name, subject) = (harness.stream("short"), harness.subject("short"));
    let mut config = StreamConfig::new(&name, vec![harness.pattern("short")]);
    config.max_messages = Some(10);
    ensure_config(&*backend, config).await;
    let receipts = publish_numbers(&*backend, &subject, 0..100).await;
    let page = read(harness, &name, Start::After(stored_at(&receipts[49])), 100).await;
    assert_eq!(numbers(&page), (90..100).collect::<Vec<_>>());
    match harness.column() {
        // Redis numbers by time, so nobody knows how many there were.
        Column::Redis => assert!(page.missed <= 40),
        _ => assert_eq!(page.missed, 40, "messages 50 to 89 were removed"),
    }
    let info = soon("list", streams(&*backend).list()).await.expect("listing streams");
    let info = info.into_iter().find(|info| info.config.name == name).expect("the stream is listed");
    assert_eq!((info.messages, info.first), (10, Some(stored_at(&receipts[90]))));
}

/// An offset in another backend's form is refused, never taken for the end.
pub async fn offset_of_another_backend_is_refused(harness: &Harness) {
    let backend = harness.backend().await;
    let name = harness.stream("offsets");
    ensure(&*backend, &name, harness.pattern("offsets")).await;
    publish_numbers(&*backend, &harness.subject("offsets"), 0..3).await;
    let offset = foreign(harness.column());
    let all = streams(&*backend);
    let request = ReadRequest { from: Start::After(offset), filter: None, max: 1 };
    let refused = Some(StreamError::ForeignOffset(offset));
    assert_eq!(soon("read", all.read(&name, request)).await.err(), refused);
    let mut config = consumer("c", LONG_ACK_WAIT);
    config.start = Start::After(offset);
    assert_eq!(soon("join", all.join(&name, config)).await.err(), refused);
    assert!(soon("info", all.consumer_info(&name, "c")).await.expect("the stream is there").is_none());
    let options = trunkline::backend::SubscribeOptions {
        start: Some(Start::After(offset)),
        ..trunkline::backend::SubscribeOptions::default()
    };
    let answer = soon("subscribe", backend.subscribe(harness.pattern("offsets"), options)).await;
    assert_eq!(answer.err(), Some(trunkline::backend::SubscribeError::ForeignOffset(offset)));
}

/// A second publish with the same deduplication id is not stored, and answers with the first one's offset.
pub async fn duplicate_by_id_is_stored_once(harness: &Harness) {
    let (one, two) = (harness.backend().await, harness.backend().await);
    let (name, subject) = (harness.stream("once"), harness.subject("once"));
    ensure(&*one, &name, harness.pattern("once")).await;
    let with_id = |id: &str| PublishOptions { dedupe_id: Some(id.to_owned()), ..PublishOptions::default() };
    let first = soon("publish", one.publish(numbered(&subject, 1), with_id("a")).outcome()).await;
    let offset = stored_at(&first.expect("publishing on a live connection"));
    for backend in [&one, &two] {
        let again = soon("publish", backend.publish(numbered(&subject, 1), with_id("a")).outcome()).await;
        assert_eq!(again, Ok(Receipt::Stored { stream: name.clone(), offset, duplicate: true }));
    }
    let other = soon("publish", two.publish(numbered(&subject, 2), with_id("b")).outcome()).await;
    assert!(matches!(other, Ok(Receipt::Stored { duplicate: false, .. })), "{other:?}");
    assert_eq!(numbers(&read(harness, &name, Start::Beginning, 10).await), [1, 2]);
}

/// Equal messages without an id, and a redrive with the original's headers, are all stored.
pub async fn duplicates_are_only_suppressed_when_asked_for(harness: &Harness) {
    let backend = harness.backend().await;
    let (name, subject) = (harness.stream("twice"), harness.subject("twice"));
    ensure(&*backend, &name, harness.pattern("twice")).await;
    for _ in 0..3 {
        let receipt = publish(&*backend, numbered(&subject, 1)).await;
        assert!(matches!(receipt, Receipt::Stored { duplicate: false, .. }), "{receipt:?}");
    }
    assert_eq!(numbers(&read(harness, &name, Start::Beginning, 10).await), [1, 1, 1]);
}

/// What was `Stored` before the server was killed is there after it was started again.
pub async fn stored_messages_survive_a_killed_server(harness: &Harness) {
    let (name, subject) = (harness.stream("durable"), harness.subject("durable"));
    let backend = harness.backend().await;
    ensure(&*backend, &name, harness.pattern("durable")).await;
    publish_numbers(&*backend, &subject, 0..100).await;
    drop(backend);
    harness.faults().kill().await;
    harness.faults().restart().await;
    let (backend, since) = (harness.backend().await, Instant::now());
    let page = loop {
        let request = ReadRequest { from: Start::Beginning, filter: None, max: 200 };
        match soon("read", streams(&*backend).read(&name, request)).await {
            Ok(page) => break page,
            // The servers of a cluster may still be electing who answers, and that is told as an outage.
            Err(error) if error.is_retryable() && since.elapsed() < ELECTED => {}
            Err(error) => panic!("reading a stream: {error}"),
        }
    };
    assert_eq!(numbers(&page), (0..100).collect::<Vec<_>>());
}
