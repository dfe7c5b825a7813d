//! A disk that is full: what was stored stays, what cannot be is refused with the server's word, and all goes on when
//! there is room. The disk is a limit on the length of the server's files, at which writes fail as on a full disk.

use std::time::Duration;

use futures_util::future::join_all;
use trunkline::backend::redis::RedisBackend;
use trunkline::backend::{Backend as _, LiveSource, Member, PublishError, PublishOptions};
use trunkline_testkit::{RedisServer, RedisVersion};

use super::{
    Ledger, Told, ack, back, connect, ensure, fetch, join, message, next, noticed, on_every_version,
    payloads, publish, publish_again, soon, stored, subscribe, wait_for,
};

/// As long as the file of the server may become: some bursts.
const ROOM: u64 = 512 * 1024;

on_every_version! {
    full_disk_refuses_until_there_is_room;
    full_disk_ends_a_server_that_syncs_each_write;
}

/// Publishes bursts until something is not stored, and gives why the first of that was not.
async fn publish_until_full(backend: &RedisBackend, ledger: &mut Ledger) -> PublishError {
    for burst in 0..100 {
        let payloads: Vec<String> = (0..100).map(|n| format!("{burst}-{n}-{}", "x".repeat(1000))).collect();
        // In the order in which they are queued; together they take every way there is for a batch.
        let publishing: Vec<_> = payloads
            .iter()
            .map(|payload| backend.publish(message(payload), PublishOptions::default()).outcome())
            .collect();
        let mut first = None;
        for (payload, outcome) in payloads.into_iter().zip(soon(join_all(publishing)).await) {
            ledger.enter(payload, &outcome);
            first = first.or(outcome.err());
        }
        if let Some(error) = first {
            return error;
        }
    }
    panic!("ten megabytes are stored where there is room for {ROOM} bytes")
}

/// All that was stored comes to a consumer and to subscriptions, and what is published now, too.
async fn everybody_gets(
    ledger: &Ledger,
    backend: &RedisBackend,
    member: &dyn Member,
    sources: [&mut dyn LiveSource; 2],
) {
    publish_again(backend, "last").await;
    for source in sources {
        let mut seen = vec![next(source).await];
        while seen.last().is_some_and(|event| event != "last") {
            seen.push(next(source).await);
        }
        all_stored_are_in(ledger, &seen);
    }
    let mut handled = Vec::new();
    while handled.last().is_none_or(|payload| payload != "last") {
        let fetched = fetch(member, 512).await;
        ack(member, &fetched).await;
        handled.extend(payloads(&fetched));
    }
    all_stored_are_in(ledger, &handled);
}

fn all_stored_are_in(ledger: &Ledger, seen: &[String]) {
    let seen: std::collections::BTreeSet<&String> = seen.iter().collect();
    for (payload, told) in &ledger.0 {
        let came = seen.contains(payload);
        assert!(came || !matches!(told, Told::Stored(_)), "{payload:.12} was stored and does not come");
    }
}

/// A server that syncs every second stays, answers `MISCONF` to every write, and says so to who asks for the status.
async fn full_disk_refuses_until_there_is_room(version: RedisVersion) {
    let server =
        RedisServer::start_on_small_disk(version, ["--appendonly", "yes", "--appendfsync", "everysec"]);
    let backend = connect(&server).await;
    ensure(&backend, None).await;
    let member = join(&backend, Duration::from_secs(600)).await;
    let (mut plain, mut group) = (subscribe(&backend, None).await, subscribe(&backend, Some("q")).await);
    let mut ledger = Ledger::default();
    server.fill_disk(ROOM);
    publish_until_full(&backend, &mut ledger).await;
    assert!(ledger.count(|told| matches!(told, Told::Stored(_))) >= 100, "there was room for some");
    wait_for(&backend, |state| state.reason().is_some_and(|reason| reason.contains("MISCONF"))).await;
    for n in 0..3 {
        let outcome = publish(&backend, format!("full {n}")).await;
        let says =
            matches!(&outcome, Err(PublishError::NotConnected { reason, .. }) if reason.contains("MISCONF"));
        assert!(says, "{outcome:?}");
        ledger.enter(format!("full {n}"), &outcome);
    }

    server.free_disk();
    back(&backend).await;
    ledger.is_true_of(&stored(&backend).await);
    everybody_gets(&ledger, &backend, &*member, [&mut *plain, &mut *group]).await;
}

/// A server that syncs each write ends itself rather than confirm what it could not write: an outage, after which
/// everything is there that was confirmed.
async fn full_disk_ends_a_server_that_syncs_each_write(version: RedisVersion) {
    let mut server =
        RedisServer::start_on_small_disk(version, ["--appendonly", "yes", "--appendfsync", "always"]);
    let backend = connect(&server).await;
    ensure(&backend, None).await;
    let member = join(&backend, Duration::from_secs(600)).await;
    let (mut plain, mut group) = (subscribe(&backend, None).await, subscribe(&backend, Some("q")).await);
    let mut ledger = Ledger::default();
    server.fill_disk(ROOM);
    publish_until_full(&backend, &mut ledger).await;
    assert!(ledger.count(|told| matches!(told, Told::Stored(_))) >= 100, "there was room for some");
    let ended = tokio::task::block_in_place(|| server.wait_for_exit());
    assert_eq!(ended.code(), Some(1), "{}", server.log());
    noticed(&backend).await;
    let outcome = publish(&backend, "away").await;
    assert!(matches!(outcome, Err(PublishError::NotConnected { .. })), "{outcome:?}");
    ledger.enter("away".to_owned(), &outcome);

    // Who starts it again has made room.
    tokio::task::block_in_place(|| server.restart());
    back(&backend).await;
    ledger.is_true_of(&stored(&backend).await);
    everybody_gets(&ledger, &backend, &*member, [&mut *plain, &mut *group]).await;
}
