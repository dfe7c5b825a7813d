//! Queue groups over several processes: who is given a message, and what becomes of it when one of them is gone.

use std::collections::BTreeMap;

use trunkline::backend::{LiveSource, StreamConfig, SubscribeOptions};
use trunkline::status::BackendState;
use trunkline_testkit::RedisServer;

use super::{
    connect, connect_through, ensure, next, proxy, publish, publish_surely, raw, run, soon, subscribe,
    wait_for, wait_for_disconnected,
};

pub(super) fn queue(name: &str) -> SubscribeOptions {
    SubscribeOptions { queue: Some(name.parse().expect("a token")), ..SubscribeOptions::default() }
}

/// Groups, subjects and inboxes cost entries in tables, not connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_groups_are_served_by_a_few_connections() {
    let server = RedisServer::start();
    let backend = connect(&server).await;
    let mut sources = Vec::new();
    for n in 0..300 {
        sources.push(subscribe(&backend, &format!("nachos.tool.t{n}.call"), queue("workers")).await);
        sources.push(subscribe(&backend, &format!("nachos.skill.s{n}.*"), SubscribeOptions::default()).await);
    }
    // As an embedded server has them: one for each client that makes requests.
    for n in 0..300 {
        sources.push(subscribe(&backend, &format!("_INBOX.client{n}.*"), SubscribeOptions::default()).await);
    }
    for n in 0..300 {
        publish(&backend, &format!("nachos.tool.t{n}.call"), n).await.unwrap();
        publish(&backend, &format!("nachos.skill.s{n}.event"), n).await.unwrap();
        publish(&backend, &format!("_INBOX.client{n}.1"), n).await.unwrap();
    }
    for (n, source) in sources.iter_mut().enumerate() {
        let expected = if n < 600 { n / 2 } else { n - 600 };
        assert_eq!(next(&mut **source).await, expected.to_string());
    }
    let clients: String = run(&mut raw(&server).await, "CLIENT LIST").await;
    // One for commands, one each for the two families, the changes of streams and the groups of inboxes, and the test's
    // own.
    assert!(clients.lines().count() <= 5 + 16, "{clients}");
    let keys: Vec<String> = run(&mut raw(&server).await, "KEYS *:queues").await;
    assert_eq!(keys.len(), 1, "{keys:?}");
}

/// What a process had not claimed when it went away, the others take, also what was published before they came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_process_did_not_take_goes_to_the_next() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (lost, other) = (connect_through(&proxy).await, connect(&server).await);
    let mut first = subscribe(&lost, "nachos.tool.x", queue("q")).await;
    publish(&other, "nachos.tool.x", "before").await.unwrap();
    assert_eq!(next(&mut *first).await, "before");
    proxy.cut();
    wait_for_disconnected(&lost).await;
    for n in 0..700 {
        publish(&other, "nachos.tool.x", n).await.unwrap();
        publish(&other, "nachos.tool.y", n).await.unwrap();
    }
    // The one that is away is still listed: the group goes on where it stood.
    let mut second = subscribe(&other, "nachos.tool.x", queue("q")).await;
    publish(&other, "nachos.tool.x", 700).await.unwrap();
    for n in 0..=700 {
        assert_eq!(next(&mut *second).await, n.to_string());
    }
    // It comes back, and is not given again what others had.
    proxy.heal();
    let mut sources = [first, second];
    for n in 0.. {
        publish(&other, "nachos.tool.x", format!("after {n}")).await.unwrap();
        let (who, seen) = next_of(&mut sources).await;
        // A claim may have been under way when the connection broke; then it says that it does not know.
        assert!(seen == format!("after {n}") || (who == 0 && seen == "gap ?"), "{seen}");
        if who == 0 && seen != "gap ?" {
            break;
        }
    }
}

/// A member that is away for longer than its entry lasts, and comes back after another has joined, costs no message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_while_all_others_are_away_goes_on_where_they_were() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (away, other) = (connect_through(&proxy).await, connect(&server).await);
    let mut first = subscribe(&away, "nachos.tool.x", queue("q")).await;
    publish(&other, "nachos.tool.x", "before").await.unwrap();
    assert_eq!(next(&mut *first).await, "before");
    proxy.cut();
    wait_for_disconnected(&away).await;
    for n in 0..50 {
        publish(&other, "nachos.tool.x", n).await.unwrap();
    }
    // As after six seconds.
    let mut raw = raw(&server).await;
    let members = "atlas_bus:{family.tool}:queue:nachos.tool.x q";
    let member: Vec<String> =
        redis::cmd("ZRANGE").arg(members).arg(0).arg(-1).query_async(&mut raw).await.unwrap();
    let _: i64 =
        redis::cmd("ZADD").arg(members).arg("XX").arg(1).arg(&member).query_async(&mut raw).await.unwrap();
    let mut second = subscribe(&other, "nachos.tool.x", queue("q")).await;
    publish(&other, "nachos.tool.x", 50).await.unwrap();
    for n in 0..=50 {
        assert_eq!(next(&mut *second).await, n.to_string());
    }
}

/// Processes that have nothing else to do are given about as much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_processes_take_turns() {
    let server = RedisServer::start();
    let (one, two) = (connect(&server).await, connect(&server).await);
    let mut sources = [
        subscribe(&one, "nachos.tool.x", queue("q")).await,
        subscribe(&two, "nachos.tool.x", queue("q")).await,
    ];
    let mut given = [0, 0];
    for n in 0..40 {
        publish(&one, "nachos.tool.x", n).await.unwrap();
        let (who, seen) = next_of(&mut sources).await;
        assert_eq!(seen, n.to_string());
        given[who] += 1;
    }
    assert!(given.iter().all(|given| *given >= 10), "{given:?}");
}

/// Connections that break at any moment, also between a claim and its answer: nothing comes twice, and what may be
/// missing is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_connections_give_no_message_twice() {
    let server = RedisServer::start();
    let proxies = [proxy(&server).await, proxy(&server).await];
    let writer = connect(&server).await;
    let backends = [connect_through(&proxies[0]).await, connect_through(&proxies[1]).await];
    let mut sources = [
        subscribe(&backends[0], "nachos.tool.x", queue("q")).await,
        subscribe(&backends[1], "nachos.tool.x", queue("q")).await,
    ];
    let publishing = async {
        for n in 0..600 {
            if n % 40 == 0 {
                proxies[n / 40 % 2].cut_once();
            }
            publish_surely(&writer, "nachos.tool.x", n as u64).await;
        }
    };
    let reading = async {
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        while seen.values().sum::<u32>() < 500 {
            *seen.entry(next_of(&mut sources).await.1).or_default() += 1;
        }
        seen
    };
    let ((), mut seen) = tokio::join!(publishing, reading);
    for (source, backend) in sources.iter_mut().zip(&backends) {
        wait_for(backend, BackendState::is_ready).await;
        soon(source.stop()).await.unwrap();
        loop {
            match next(&mut **source).await.as_str() {
                "end" => break,
                event => *seen.entry(event.to_owned()).or_default() += 1,
            }
        }
    }
    let gaps = seen.remove("gap ?").unwrap_or_default();
    for (event, times) in &seen {
        assert_eq!(*times, 1, "{event} came more than once");
    }
    assert!(gaps > 0 || seen.len() == 600, "{} of 600 came, and no gap was told", seen.len());
}

/// What limits removed before anybody claimed it is a gap of the group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_before_it_was_claimed_is_a_gap() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (member, writer) = (connect_through(&proxy).await, connect(&server).await);
    let mut config = StreamConfig::new("short", vec!["short.*".parse().unwrap()]);
    config.max_messages = Some(10);
    ensure(&writer, config).await;
    let mut source = subscribe(&member, "short.>", queue("q")).await;
    proxy.cut();
    wait_for_disconnected(&member).await;
    for n in 0..100 {
        publish(&writer, "short.x", n).await.unwrap();
    }
    proxy.heal();
    assert_eq!(next(&mut *source).await, "gap 90");
    for n in 90..100 {
        assert_eq!(next(&mut *source).await, n.to_string());
    }
}

/// The next event of any of them, and whose it is.
async fn next_of(sources: &mut [Box<dyn LiveSource>]) -> (usize, String) {
    let mut events = Vec::new();
    let polling = std::future::poll_fn(|cx| {
        for (n, source) in sources.iter_mut().enumerate() {
            if source.poll_batch(cx, 1, &mut events).is_ready() {
                return std::task::Poll::Ready(n);
            }
        }
        std::task::Poll::Pending
    });
    let who = soon(polling).await;
    (who, super::shown(events.pop()))
}
