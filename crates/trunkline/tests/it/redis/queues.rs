//! Queue groups over several processes: who is given a message, and what becomes of it when one of them is gone.

use std::collections::BTreeMap;

use trunkline::backend::{LiveSource, StreamConfig, SubscribeOptions};
use trunkline::status::BackendState;
use trunkline_testkit::RedisServer;
use trunkline_testkit::tcp_proxy::Lost;

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
        assert_eq!(seen, format!("after {n}"));
        if who == 0 {
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

/// Who does not hear what it has claimed asks again, and is given it although others have claimed since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_answer_was_lost_is_given_to_who_made_it() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (cut_off, other) = (connect_through(&proxy).await, connect(&server).await);
    let mut first = subscribe(&cut_off, "nachos.tool.x", queue("q")).await;
    // From here on the server knows the script, and no other command has the group's name by itself.
    publish(&other, "nachos.tool.x", "before").await.unwrap();
    assert_eq!(next(&mut *first).await, "before");
    proxy.lose_next("\r\nnachos.tool.x q\r\n", Lost::Answer);
    publish(&other, "nachos.tool.x", "claimed").await.unwrap();
    soon(proxy.wait_for_lost(1)).await;
    let mut second = subscribe(&other, "nachos.tool.x", queue("q")).await;
    for n in 0..3 {
        publish(&other, "nachos.tool.x", n).await.unwrap();
        assert_eq!(next(&mut *second).await, n.to_string());
    }
    proxy.cut_once();
    assert_eq!(next(&mut *first).await, "claimed");
    // It leaves nothing behind.
    for mut source in [first, second] {
        soon(source.stop()).await.unwrap();
    }
    let left: Vec<String> = run(&mut raw(&server).await, "HKEYS atlas_bus:{family.tool}:queues").await;
    assert!(left.is_empty(), "{left:?}");
}

/// The claim that makes a lost group anew, and whose answer is lost with the connection, is told again: what it brought
/// goes to who made it and to nobody else, and that something may be missing is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_claim_that_made_a_lost_group_anew_is_told_again() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (cut_off, other) = (connect_through(&proxy).await, connect(&server).await);
    let mut first = subscribe(&cut_off, "nachos.tool.x", queue("q")).await;
    for round in 1..=3 {
        // From here on the server knows the script, and nothing is left to claim.
        publish(&other, "nachos.tool.x", "before").await.unwrap();
        assert_eq!(next(&mut *first).await, "before");
        let mut raw = raw(&server).await;
        let lost: i64 = run(&mut raw, "DEL atlas_bus:{family.tool}:queues").await;
        assert_eq!(lost, 1, "the group is lost");
        proxy.lose_next("\r\nnachos.tool.x q\r\n", Lost::Answer);
        publish(&other, "nachos.tool.x", "claimed").await.unwrap();
        soon(proxy.wait_for_lost(round)).await;
        // It is made again by now, by a claim of which nobody has heard; another process shares the work since.
        let made: bool = run_words(&mut raw, &["HEXISTS", QUEUES, GROUP]).await;
        assert!(made, "the claim was carried out");
        let mut second = subscribe(&other, "nachos.tool.x", queue("q")).await;
        for n in 0..3 {
            publish(&other, "nachos.tool.x", n).await.unwrap();
            assert_eq!(next(&mut *second).await, n.to_string());
        }
        proxy.cut_once();
        assert_eq!(next(&mut *first).await, "gap ?");
        assert_eq!(next(&mut *first).await, "claimed");
        // The others have the rest: they end with nothing more, and leave the group to the first.
        soon(second.stop()).await.unwrap();
        assert_eq!(next(&mut *second).await, "end");
    }
    soon(first.stop()).await.unwrap();
    assert_eq!(next(&mut *first).await, "end");
}

const QUEUES: &str = "atlas_bus:{family.tool}:queues";
const GROUP: &str = "nachos.tool.x q";

async fn run_words<T: redis::FromRedisValue>(
    connection: &mut redis::aio::MultiplexedConnection,
    words: &[&str],
) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(connection).await.expect("the server answers")
}

/// A group whose members were killed is forgotten in time, one that has members is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_whose_members_are_gone_are_forgotten() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (killed, other) = (connect_through(&proxy).await, connect(&server).await);
    let mut first = subscribe(&killed, "nachos.tool.x", queue("q")).await;
    publish(&other, "nachos.tool.x", 1).await.unwrap();
    assert_eq!(next(&mut *first).await, "1");
    proxy.cut();
    wait_for_disconnected(&killed).await;
    // As after two hours.
    let mut raw = raw(&server).await;
    let queues = "atlas_bus:{family.tool}:queues";
    let names: Vec<String> = run(&mut raw, &format!("HKEYS {queues}")).await;
    assert_eq!(names.len(), 2, "the group and what its member has claimed: {names:?}");
    let claimed_at = |ms: u64| format!("{ms}-1 0-0 {ms}");
    for name in &names {
        let mut setting = redis::cmd("HSET");
        setting.arg(queues).arg(name).arg(claimed_at(1));
        let _: i64 = setting.query_async(&mut raw).await.unwrap();
    }
    let mut members = redis::cmd("DEL");
    let _: i64 =
        members.arg("atlas_bus:{family.tool}:queue:nachos.tool.x q").query_async(&mut raw).await.unwrap();
    let mut second = subscribe(&other, "nachos.tool.y", queue("q")).await;
    let sweeping = async {
        loop {
            let names: Vec<String> = run(&mut raw, &format!("HKEYS {queues}")).await;
            if !names.iter().any(|name| name.starts_with("nachos.tool.x q")) {
                return names;
            }
            tokio::task::yield_now().await;
        }
    };
    let names = soon(sweeping).await;
    assert!(names.contains(&"nachos.tool.y q".to_owned()), "{names:?}");
    publish(&other, "nachos.tool.y", 2).await.unwrap();
    assert_eq!(next(&mut *second).await, "2");
}

/// Connections that break at any moment, also between a claim and its answer: everything comes, and nothing twice.
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
    for (event, times) in &seen {
        assert_eq!(*times, 1, "{event} came more than once");
    }
    assert_eq!(seen.len(), 600, "{:?} came, too", seen.keys().filter(|event| event.starts_with("gap")));
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
