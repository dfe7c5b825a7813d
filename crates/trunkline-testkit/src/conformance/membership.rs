//! Members of a consumer: how they share, inherit and leave; the lease of a keyed consumer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use trunkline::backend::{ConsumeError, ConsumerConfig, Lease, Settle, Settled, StreamError};

use super::Harness;
use super::probe::{
    ACK_WAIT, LONG_ACK_WAIT, PATIENCE, ack, consumer, delivered_numbers, ensure, fetch, fetch_all,
    fetch_nothing, fetch_one, join, number, publish_numbers, settle, soon, streams, tells,
};

/// Makes the stream `work` over `work.*`, and gives its name.
async fn work(harness: &Harness) -> String {
    let name = harness.stream("work");
    ensure(&*harness.backend().await, &name, harness.pattern("work.*")).await;
    name
}

/// A keyed consumer from the beginning.
fn keyed(ack_wait: Duration) -> ConsumerConfig {
    let mut config = consumer("keyed", ack_wait);
    config.keyed = true;
    config
}

/// Asks for the lease.
async fn lease(member: &dyn trunkline::backend::Member, ttl: Duration) -> Lease {
    soon("lease", member.lease(ttl)).await.expect("asking for the lease on a live connection")
}

/// Asks for the lease until it is this member's.
async fn lease_at_last(member: &dyn trunkline::backend::Member, ttl: Duration) -> Duration {
    let asked = Instant::now();
    loop {
        match lease(member, ttl).await {
            Lease::Held { new } => {
                assert!(new, "it was another's before");
                return asked.elapsed();
            }
            Lease::Standby => assert!(asked.elapsed() < PATIENCE, "the lease does not pass on"),
        }
        // The trait has no event for a free lease: members ask again, and so does this.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Members on several connections get each message once between them, and all get some.
pub async fn members_share_the_work(harness: &Harness) {
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    let mut members = Vec::new();
    for backend in [&one, &one, &two] {
        members.push(join(&**backend, &stream, consumer("c", LONG_ACK_WAIT)).await);
    }
    let names: BTreeSet<_> = members.iter().map(|member| member.name().to_owned()).collect();
    assert_eq!(names.len(), 3, "members have names of their own");
    publish_numbers(&*one, &harness.subject("work.x"), 0..90).await;
    let mut all = Vec::new();
    for member in &members {
        let deliveries = fetch_all(&**member, 30).await;
        for delivery in &deliveries {
            assert_eq!(delivery.attempt, 1);
            ack(&**member, delivery).await;
        }
        let numbers = delivered_numbers(&deliveries);
        assert!(numbers.is_sorted(), "each member gets them in order: {numbers:?}");
        all.extend(numbers);
    }
    all.sort_unstable();
    assert_eq!(all, (0..90).collect::<Vec<_>>());
}

/// What a member held when it died comes to the others after `ack_wait`, with the next attempt; what it had
/// acknowledged does not.
pub async fn dead_member_leaves_its_messages_to_the_others(harness: &Harness) {
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    publish_numbers(&*one, &harness.subject("work.x"), 0..10).await;
    let dying = join(&*one, &stream, consumer("c", harness.lease(ACK_WAIT))).await;
    let heir = join(&*two, &stream, consumer("c", harness.lease(ACK_WAIT))).await;
    let held = fetch_all(&*dying, 10).await;
    for delivery in &held[..4] {
        ack(&*dying, delivery).await;
    }
    // No leave: the member and its whole connection are gone.
    drop((dying, one));
    let inherited = fetch_all(&*heir, 6).await;
    assert_eq!(delivered_numbers(&inherited), (4..10).collect::<Vec<_>>());
    for delivery in &inherited {
        assert_eq!(delivery.attempt, 2);
        ack(&*heir, delivery).await;
    }
    fetch_nothing(&*heir, 2 * harness.lease(ACK_WAIT), "acknowledged").await;
}

/// What a leaving member held comes to the others at once, long before `ack_wait`.
pub async fn leaving_member_hands_over_at_once(harness: &Harness) {
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    publish_numbers(&*one, &harness.subject("work.x"), 0..5).await;
    let leaving = join(&*one, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let staying = join(&*two, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let held = fetch_all(&*leaving, 5).await;
    ack(&*leaving, &held[2]).await;
    // The other one waits already: leaving wakes it.
    let (inherited, left) =
        tokio::join!(fetch_all(&*staying, 4), async { soon("leave", leaving.leave()).await });
    assert_eq!(left, Ok(()));
    let mut numbers = delivered_numbers(&inherited);
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 3, 4]);
    for delivery in &inherited {
        assert_eq!(delivery.attempt, 2);
        ack(&*staying, delivery).await;
    }
}

/// A consumer is durable: it goes on where it was after its last member and that member's connection are gone.
pub async fn consumer_outlives_its_members(harness: &Harness) {
    let stream = work(harness).await;
    let subject = harness.subject("work.x");
    for round in 0..3 {
        let backend = harness.backend().await;
        publish_numbers(&*backend, &subject, round * 10..round * 10 + 10).await;
        let member = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
        // Half of it is left for the next one.
        let expected = round * 5..round * 5 + 5;
        let deliveries = fetch_all(&*member, 5).await;
        assert_eq!(delivered_numbers(&deliveries), expected.collect::<Vec<_>>());
        for delivery in &deliveries {
            ack(&*member, delivery).await;
        }
        assert_eq!(soon("leave", member.leave()).await, Ok(()));
    }
}

/// A member that has left fetches and settles no more.
pub async fn left_member_can_do_nothing(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    publish_numbers(&*backend, &harness.subject("work.x"), 0..2).await;
    let member = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let held = fetch_one(&*member).await;
    assert_eq!(soon("leave", member.leave()).await, Ok(()));
    let fetched = soon("fetch", member.fetch(1, PATIENCE)).await;
    assert_eq!(fetched.err(), Some(ConsumeError::Closed));
    match soon("settle", member.settle(vec![(held.token, Settle::Ack)])).await {
        Ok(answers) => assert_eq!(answers, [Settled::LeaseLost]),
        Err(error) => assert_eq!(error, ConsumeError::Closed),
    }
    let next = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
    assert_eq!(delivered_numbers(&fetch_all(&*next, 2).await), [0, 1], "the late ack did not count");
}

/// The info counts lag, pending, redeliveries and members, and shows the ack floor.
pub async fn consumer_info_tells_how_it_stands(harness: &Harness) {
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    publish_numbers(&*one, &harness.subject("work.x"), 0..10).await;
    let member = join(&*one, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let idle = join(&*two, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let info = || {
        let info = streams(&*two).consumer_info(&stream, "c");
        async move { soon("info", info).await.expect("the stream is there").expect("the consumer is there") }
    };
    tells(harness, 10, || async { info().await.lag }).await;
    let fresh = info().await;
    assert_eq!((fresh.lag, fresh.pending, fresh.redelivered, fresh.members), (10, 0, 0, 2));
    assert_eq!((fresh.delivered, fresh.ack_floor, fresh.oldest_pending), (None, None, None));

    let held = fetch_all(&*member, 6).await;
    ack(&*member, &held[0]).await;
    ack(&*member, &held[1]).await;
    ack(&*member, &held[4]).await;
    tells(harness, 3, || async { info().await.pending }).await;
    let busy = info().await;
    assert_eq!((busy.lag, busy.pending, busy.missed), (4, 3, 0));
    assert_eq!(busy.delivered, Some(held[5].offset));
    assert_eq!(busy.ack_floor, Some(held[1].offset), "the third message is not settled");
    assert!(busy.oldest_pending.is_some());

    assert_eq!(settle(&*member, &held[2], Settle::Nak(Duration::ZERO)).await, Settled::Done);
    let again = fetch_one(&*member).await;
    assert_eq!((again.offset, again.attempt), (held[2].offset, 2));
    tells(harness, 1, || async { info().await.redelivered }).await;
    assert_eq!(soon("leave", idle.leave()).await, Ok(()));
    tells(harness, 1, || async { info().await.members }).await;
}

/// Members agree on what the consumer is: another filter or key mode is refused, showing both sides.
pub async fn joining_with_another_definition_is_a_conflict(harness: &Harness) {
    let (stream, backend) = (work(harness).await, harness.backend().await);
    let _member = join(&*backend, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let mut filtered = consumer("c", LONG_ACK_WAIT);
    filtered.filter = Some(harness.pattern("work.y"));
    let mut by_key = consumer("c", LONG_ACK_WAIT);
    by_key.keyed = true;
    for config in [filtered, by_key] {
        match soon("join", streams(&*backend).join(&stream, config.clone())).await {
            Err(StreamError::Conflict { what, found, wanted }) => {
                assert!(what.contains('c') && found != wanted, "{what}: {found} and {wanted}");
            }
            Err(other) => panic!("{config:?} conflicts, yet the error is {other:?}"),
            Ok(_) => panic!("{config:?} conflicts, yet it joined"),
        }
    }
}

/// A member of a removed consumer or stream learns that it is gone, also while it waits.
pub async fn removed_consumer_is_gone(harness: &Harness) {
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    let member = join(&*one, &stream, consumer("c", LONG_ACK_WAIT)).await;
    let all = streams(&*two);
    let removing = async { soon("remove", all.remove_consumer(&stream, "c")).await };
    let (fetched, removed) = tokio::join!(soon("fetch", member.fetch(1, PATIENCE)), removing);
    assert_eq!(removed, Ok(true));
    let gone = || Some(ConsumeError::Gone { stream: stream.clone(), consumer: "c".to_owned() });
    assert_eq!(fetched.err(), gone());

    let member = join(&*one, &stream, consumer("c", LONG_ACK_WAIT)).await;
    assert_eq!(soon("remove", all.remove(&stream)).await, Ok(true));
    assert_eq!(soon("fetch", member.fetch(1, PATIENCE)).await.err(), gone());
}

/// Of a keyed consumer one member is active; the others stand by and are given nothing.
pub async fn keyed_consumer_gives_only_to_the_lease_holder(harness: &Harness) {
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    publish_numbers(&*one, &harness.subject("work.x"), 0..10).await;
    let active = join(&*one, &stream, keyed(LONG_ACK_WAIT)).await;
    let standby = join(&*two, &stream, keyed(LONG_ACK_WAIT)).await;
    fetch_nothing(&*active, Duration::from_millis(20), "nobody holds the lease").await;
    assert_eq!(lease(&*active, LONG_ACK_WAIT).await, Lease::Held { new: true });
    assert_eq!(lease(&*standby, LONG_ACK_WAIT).await, Lease::Standby);
    assert_eq!(lease(&*active, LONG_ACK_WAIT).await, Lease::Held { new: false });
    fetch_nothing(&*standby, Duration::from_millis(50), "it stands by").await;
    assert_eq!(delivered_numbers(&fetch_all(&*active, 10).await), (0..10).collect::<Vec<_>>());
}

/// A lease that is not renewed passes on after its time, not before, and the old holder is fenced off.
pub async fn lease_passes_on_when_it_is_not_renewed(harness: &Harness) {
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    publish_numbers(&*one, &harness.subject("work.x"), 0..3).await;
    let old = join(&*one, &stream, keyed(LONG_ACK_WAIT)).await;
    let new = join(&*two, &stream, keyed(LONG_ACK_WAIT)).await;
    assert_eq!(lease(&*old, harness.lease(ACK_WAIT)).await, Lease::Held { new: true });
    let held = fetch_all(&*old, 2).await;
    let waited = lease_at_last(&*new, LONG_ACK_WAIT).await;
    assert!(waited < PATIENCE / 2, "the lease took {waited:?} to pass on");
    let inherited = fetch_all(&*new, 2).await;
    assert_eq!(delivered_numbers(&inherited), [0, 1], "in order, although they were delivered before");
    assert_eq!(settle(&*old, &held[0], Settle::Ack).await, Settled::LeaseLost);
    fetch_nothing(&*old, Duration::from_millis(20), "its lease is over").await;
    assert_eq!(lease(&*old, harness.lease(ACK_WAIT)).await, Lease::Standby);
    for delivery in &inherited {
        ack(&*new, delivery).await;
    }
    assert_eq!(number(&fetch_one(&*new).await.message), 2);
}

/// A holder that leaves frees the lease at once.
pub async fn lease_passes_on_at_once_when_its_holder_leaves(harness: &Harness) {
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    publish_numbers(&*one, &harness.subject("work.x"), 0..3).await;
    let old = join(&*one, &stream, keyed(LONG_ACK_WAIT)).await;
    let new = join(&*two, &stream, keyed(LONG_ACK_WAIT)).await;
    assert_eq!(lease(&*old, LONG_ACK_WAIT).await, Lease::Held { new: true });
    fetch_all(&*old, 2).await;
    assert_eq!(soon("leave", old.leave()).await, Ok(()));
    assert_eq!(lease(&*new, LONG_ACK_WAIT).await, Lease::Held { new: true });
    assert_eq!(delivered_numbers(&fetch_all(&*new, 3).await), [0, 1, 2]);
}

/// What the holder before left unsettled comes to the new one first, by offset, before anything new, although
/// its lease of single messages is still long.
pub async fn new_lease_holder_starts_with_what_was_unsettled(harness: &Harness) {
    let (stream, one, two) = (work(harness).await, harness.backend().await, harness.backend().await);
    publish_numbers(&*one, &harness.subject("work.x"), 0..20).await;
    let old = join(&*one, &stream, keyed(LONG_ACK_WAIT)).await;
    let new = join(&*two, &stream, keyed(LONG_ACK_WAIT)).await;
    assert_eq!(lease(&*old, harness.lease(ACK_WAIT)).await, Lease::Held { new: true });
    let held = fetch_all(&*old, 10).await;
    for at in [0, 3, 4, 8] {
        ack(&*old, &held[at]).await;
    }
    drop((old, one));
    lease_at_last(&*new, LONG_ACK_WAIT).await;
    let mut got = Vec::new();
    while got.len() < 16 {
        // In small bites, so that an order that only holds within a fetch shows.
        got.extend(fetch(&*new, 3, PATIENCE).await);
    }
    let numbers = delivered_numbers(&got);
    assert_eq!(numbers, [1, 2, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
    let attempts: Vec<u32> = got.iter().map(|delivery| delivery.attempt).collect();
    assert_eq!(attempts, [[2; 6].as_slice(), &[1; 10]].concat());
}
