//! Data that the server loses while it is used: what belongs to the bus is made again, said, and costs no hot loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use trunkline::backend::PublishOptions;
use trunkline::backend::{Backend, Receipt};
use trunkline_testkit::{RedisServer, RedisVersion};

use super::{
    KEY, STREAM, ack, back, commands_per_second, connect, ensure, fetch, join, message, next, noticed,
    on_every_version, payloads, publish, publish_again, raw, run, soon, streams, subscribe, until,
};

/// Commands of a second that a quiet bus with one subscription, one queue group and one member may cost, scripts
/// counted with all they call. It is about 30.
const QUIET: u64 = 150;

on_every_version! {
    emptied_server_costs_no_hot_loop;
    deleted_stream_is_begun_anew;
    destroyed_consumer_group_is_made_again_with_what_was_pending;
    forgotten_scripts_are_loaded_again;
}

/// A server that comes back empty, and one that is emptied, under load: what is stored afterwards reaches everybody,
/// and the server is not asked more than before.
async fn emptied_server_costs_no_hot_loop(version: RedisVersion) {
    let mut server = RedisServer::start_version(version, ["--appendonly", "no"]);
    let backend = Arc::new(connect(&server).await);
    ensure(&backend, None).await;
    let (mut plain, mut group) = (subscribe(&backend, None).await, subscribe(&backend, Some("q")).await);
    let member = join(&backend, Duration::from_secs(30)).await;
    for how in ["restart", "flush"] {
        let published = Arc::new(AtomicU64::new(0));
        let load = tokio::spawn({
            let (backend, published) = (backend.clone(), published.clone());
            async move {
                loop {
                    let _ = backend.publish(message("load"), PublishOptions::default()).outcome().await;
                    published.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        while published.load(Ordering::Relaxed) < 50 {
            tokio::task::yield_now().await;
        }
        if how == "restart" {
            server.kill();
            noticed(&backend).await;
            server.restart();
            back(&backend).await;
        } else {
            let _: String = run(&mut raw(&server).await, "FLUSHALL").await;
        }
        load.abort();
        let _ = load.await;
        publish_again(&backend, how).await;
        let receipt = publish(&backend, format!("{how} again")).await.expect("the stream is there again");
        assert!(matches!(&receipt, Receipt::Stored { stream, .. } if stream == STREAM), "{receipt:?}");
        until(&mut *plain, format!("{how} again")).await;
        loop {
            let got = fetch(&*member, 512).await;
            ack(&*member, &got).await;
            if payloads(&got).contains(&format!("{how} again")) {
                break;
            }
        }
        // Live: the group may not have been there when it was published, and says so by a gap.
        publish_until_group_sees(&backend, &mut *group, &format!("{how} late")).await;
        let mut watching = raw(&server).await;
        let fetching = tokio::spawn({
            let member = member.clone();
            async move { member.fetch(10, Duration::from_secs(5)).await }
        });
        let rate = commands_per_second(&mut watching).await;
        assert!(rate < QUIET, "{how}: {rate} commands a second with nothing to do");
        fetching.abort();
        let _ = fetching.await;
    }
}

/// Publishes until a queue group that was made again gets it.
async fn publish_until_group_sees(
    backend: &trunkline::backend::redis::RedisBackend,
    group: &mut dyn trunkline::backend::LiveSource,
    payload: &str,
) {
    loop {
        publish_again(backend, payload).await;
        while let Ok(seen) = tokio::time::timeout(Duration::from_millis(200), next(group)).await {
            if seen == payload {
                return;
            }
        }
    }
}

/// DEL of the stream's key alone: subscriptions and consumers go on with what comes.
async fn deleted_stream_is_begun_anew(version: RedisVersion) {
    let server = RedisServer::start_durable(version);
    let backend = connect(&server).await;
    ensure(&backend, None).await;
    let (mut plain, mut group) = (subscribe(&backend, None).await, subscribe(&backend, Some("q")).await);
    let member = join(&backend, Duration::from_millis(300)).await;
    publish(&backend, "before").await.expect("stored");
    assert_eq!(next(&mut *plain).await, "before");
    assert_eq!(next(&mut *group).await, "before");
    // One delivery is pending, one message is unread.
    assert_eq!(payloads(&fetch(&*member, 1).await), ["before"]);
    publish(&backend, "unread").await.expect("stored");
    assert_eq!(next(&mut *plain).await, "unread");
    let mut raw = raw(&server).await;
    assert_eq!(run::<i64>(&mut raw, &format!("DEL {KEY}")).await, 1);
    publish(&backend, "after").await.expect("stored");
    assert_eq!(until(&mut *plain, "after").await.last().map(String::as_str), Some("after"));
    let got = fetch(&*member, 10).await;
    assert_eq!(payloads(&got), ["after"]);
    ack(&*member, &got).await;
    publish_until_group_sees(&backend, &mut *group, "late").await;
    let info =
        soon(streams(&backend).consumer_info(STREAM, "c")).await.expect("a stream").expect("a consumer");
    assert!(info.missed >= 1, "what was unread is counted: {info:?}");
    let idle = tokio::spawn({
        let member = member.clone();
        async move { member.fetch(1, Duration::from_secs(3)).await }
    });
    assert!(commands_per_second(&mut raw).await < QUIET);
    idle.abort();
    let _ = idle.await;
}

/// XGROUP DESTROY behind the bus's back: what was pending comes again, nothing is skipped. Of what was settled, that which
/// came after the oldest delivery not settled may come again, since only the group knew of it.
async fn destroyed_consumer_group_is_made_again_with_what_was_pending(version: RedisVersion) {
    let server = RedisServer::start_durable(version);
    let backend = connect(&server).await;
    ensure(&backend, None).await;
    let member = join(&backend, Duration::from_millis(400)).await;
    for n in 0..6 {
        publish(&backend, n).await.expect("stored");
    }
    let got = fetch(&*member, 4).await;
    assert_eq!(payloads(&got), ["0", "1", "2", "3"]);
    // 0 and 2 are settled, 1 and 3 are at work, 4 and 5 unread.
    ack(&*member, &[got[0].clone(), got[2].clone()]).await;
    let mut raw = raw(&server).await;
    let groups: Vec<BTreeMap<String, redis::Value>> = run(&mut raw, &format!("XINFO GROUPS {KEY}")).await;
    let mut names = groups.into_iter().filter_map(|mut group| match group.remove("name")? {
        redis::Value::BulkString(name) => String::from_utf8(name).ok(),
        _ => None,
    });
    let group = names.find(|name| name.starts_with("c:c")).expect("the consumer has a group");
    assert_eq!(run::<i64>(&mut raw, &format!("XGROUP DESTROY {KEY} {group}")).await, 1);
    let mut seen = Vec::new();
    while !["1", "3", "4", "5"].iter().all(|unsettled| seen.iter().any(|seen| seen == unsettled)) {
        let got = fetch(&*member, 10).await;
        seen.extend(payloads(&got));
        ack(&*member, &got).await;
    }
    assert!(seen.is_sorted() && seen.len() <= 6, "in order, and each once: {seen:?}");
    let info =
        soon(streams(&backend).consumer_info(STREAM, "c")).await.expect("a stream").expect("a consumer");
    assert_eq!((info.pending, info.lag, info.missed), (0, 0, 0), "{info:?}");
}

/// SCRIPT FLUSH costs nobody anything.
async fn forgotten_scripts_are_loaded_again(version: RedisVersion) {
    let server = RedisServer::start_durable(version);
    let backend = connect(&server).await;
    ensure(&backend, None).await;
    let mut plain = subscribe(&backend, None).await;
    let member = join(&backend, Duration::from_secs(30)).await;
    let mut raw = raw(&server).await;
    for n in 0..20 {
        let _: String = run(&mut raw, "SCRIPT FLUSH").await;
        publish(&backend, n).await.expect("a script that is forgotten is no failure");
        let _: String = run(&mut raw, "SCRIPT FLUSH").await;
        let got = fetch(&*member, 1).await;
        let _: String = run(&mut raw, "SCRIPT FLUSH").await;
        ack(&*member, &got).await;
        assert_eq!((payloads(&got), next(&mut *plain).await), (vec![n.to_string()], n.to_string()));
    }
    assert!(backend.status().borrow().state.is_ready());
}
