//! Servers that answer, and refuse to write: full memory, a replica, a disk that fails. Publishers are told that nothing
//! was stored, and all goes on when the reason is gone.

use std::fs;
use std::time::Duration;

use trunkline::backend::redis::RedisBackend;
use trunkline::backend::{Backend, PublishError};
use trunkline_testkit::{RedisServer, RedisVersion};

use super::{
    Ledger, ack, connect, ensure, fetch, join, on_every_version, payloads, publish, raw, run, soon, stored,
};

on_every_version! {
    full_memory_refuses_publishes_and_consumers_go_on;
    replica_refuses_publishes_until_it_is_promoted;
    failing_disk_refuses_publishes_until_it_works;
}

/// The publish is refused, with the server's word for it, and it is sure that nothing was stored.
async fn is_refused(backend: &RedisBackend, ledger: &mut Ledger, payload: &str, word: &str) {
    let outcome = publish(backend, payload).await;
    match &outcome {
        Err(PublishError::NotConnected { reason, .. }) => assert!(reason.contains(word), "{word}: {reason}"),
        other => panic!("{word}: {other:?}"),
    }
    ledger.enter(payload.to_owned(), &outcome);
}

/// Waits until a publish goes through again.
async fn goes_through(backend: &RedisBackend, ledger: &mut Ledger, payload: &str) {
    let publishing = async {
        for n in 0.. {
            let outcome = publish(backend, format!("{payload} {n}")).await;
            ledger.enter(format!("{payload} {n}"), &outcome);
            if outcome.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(publishing).await;
}

/// `maxmemory` is reached and nothing may be evicted: nothing more is stored; what is stored can be read, handled and
/// acknowledged.
async fn full_memory_refuses_publishes_and_consumers_go_on(version: RedisVersion) {
    let server = RedisServer::start_durable(version);
    let (backend, mut ledger) = (connect(&server).await, Ledger::default());
    ensure(&backend, None).await;
    let member = join(&backend, Duration::from_secs(30)).await;
    for n in 0..3 {
        let outcome = publish(&backend, n).await;
        ledger.enter(n.to_string(), &outcome);
    }
    let mut raw = raw(&server).await;
    let _: String = run(&mut raw, "CONFIG SET maxmemory-policy noeviction").await;
    let _: String = run(&mut raw, "CONFIG SET maxmemory 1").await;
    for n in 0..3 {
        is_refused(&backend, &mut ledger, &format!("full {n}"), "OOM").await;
    }
    let got = fetch(&*member, 2).await;
    assert_eq!(payloads(&got), ["0", "1"]);
    ack(&*member, &got).await;
    assert!(backend.status().borrow().state.is_ready(), "the server is there");
    let _: String = run(&mut raw, "CONFIG SET maxmemory 0").await;
    goes_through(&backend, &mut ledger, "after").await;
    assert_eq!(payloads(&fetch(&*member, 1).await), ["2"]);
    ledger.is_true_of(&stored(&backend).await);
}

/// A primary that is made a replica under a bus takes no writes, until it is a primary again.
async fn replica_refuses_publishes_until_it_is_promoted(version: RedisVersion) {
    let server = RedisServer::start_durable(version);
    let (backend, mut ledger) = (connect(&server).await, Ledger::default());
    ensure(&backend, None).await;
    let outcome = publish(&backend, "before").await;
    ledger.enter("before".to_owned(), &outcome);
    let mut raw = raw(&server).await;
    // Of nobody: it keeps what it has, and waits.
    let _: String = run(&mut raw, "REPLICAOF 127.0.0.1 1").await;
    is_refused(&backend, &mut ledger, "read only", "replica").await;
    let _: String = run(&mut raw, "REPLICAOF NO ONE").await;
    goes_through(&backend, &mut ledger, "promoted").await;
    ledger.is_true_of(&stored(&backend).await);
}

/// The disk takes no more snapshots, and the server refuses writes because of it.
async fn failing_disk_refuses_publishes_until_it_works(version: RedisVersion) {
    let server = RedisServer::start_version(version, ["--appendonly", "no", "--save", "3600", "1000000"]);
    let (backend, mut ledger) = (connect(&server).await, Ledger::default());
    ensure(&backend, None).await;
    let outcome = publish(&backend, "before").await;
    ledger.enter("before".to_owned(), &outcome);
    // A directory where the snapshot has to go.
    let blocked = server.directory().join("dump.rdb");
    fs::create_dir(&blocked).expect("the server's directory is ours");
    let mut raw = raw(&server).await;
    save(&mut raw, "err").await;
    is_refused(&backend, &mut ledger, "full", "MISCONF").await;
    fs::remove_dir(&blocked).expect("it is empty");
    save(&mut raw, "ok").await;
    goes_through(&backend, &mut ledger, "after").await;
    ledger.is_true_of(&stored(&backend).await);
}

/// Takes a snapshot in the background and waits for how it ends.
async fn save(raw: &mut redis::aio::MultiplexedConnection, ends: &str) {
    let _: String = run(raw, "BGSAVE").await;
    let saving = async {
        loop {
            let info: String = run(raw, "INFO persistence").await;
            let ended = info.contains("rdb_bgsave_in_progress:0");
            if ended && info.contains(&format!("rdb_last_bgsave_status:{ends}")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(saving).await;
}
