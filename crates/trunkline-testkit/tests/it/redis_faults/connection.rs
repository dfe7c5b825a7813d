//! Connections that break: how soon the status says so, and that all comes back.

use std::time::{Duration, Instant};

use trunkline::backend::Backend;
use trunkline_testkit::{RedisServer, RedisVersion, TcpProxy};

use super::{
    NOTICED, ack, back, connect, connect_through, ensure, fetch, join, next, noticed, payloads, proxy,
    publish, publish_again, raw, run, subscribe,
};

/// How soon all works again after the end of a fault: the longest delay between attempts, and an attempt.
const RECOVERED: Duration = Duration::from_secs(5);

type Fault = fn(&TcpProxy, &mut RedisServer);

/// Whatever the fault, the status tells of it within two seconds and of its end soon after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_tells_of_every_fault_within_two_seconds() {
    let mut server = RedisServer::start();
    let proxy = proxy(&server).await;
    let backend = connect_through(&proxy).await;
    let faults: [(&str, Fault); 4] = [
        ("cut", |proxy, _| proxy.cut()),
        ("half open", |proxy, _| proxy.half_open()),
        ("stopped", |_, server| server.pause()),
        ("killed", |_, server| server.kill()),
    ];
    for (name, fault) in faults {
        fault(&proxy, &mut server);
        let took = noticed(&backend).await;
        assert!(took < NOTICED, "{name}: noticed after {took:?}");
        let reason = backend.status().borrow().state.reason().map(str::to_owned);
        assert!(reason.as_ref().is_some_and(|reason| !reason.is_empty()), "{name}: {reason:?}");
        let error = publish(&backend, name).await.expect_err("the server is away");
        assert!(error.to_string().contains("not connected"), "{name}: {error}");
        proxy.heal();
        match name {
            "stopped" => server.resume(),
            "killed" => server.restart(),
            _ => {}
        }
        let since = Instant::now();
        back(&backend).await;
        assert!(since.elapsed() < RECOVERED, "{name}: back after {:?}", since.elapsed());
        publish_again(&backend, name).await;
    }
}

/// A slow network is no outage: everything works, only later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delay_is_no_outage() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let backend = connect_through(&proxy).await;
    ensure(&backend, None).await;
    let mut source = subscribe(&backend, None).await;
    let member = join(&backend, Duration::from_secs(30)).await;
    let mut status = backend.status();
    status.mark_unchanged();
    proxy.delay(Duration::from_millis(250));
    for n in 0..4 {
        publish(&backend, n).await.expect("a slow network is no outage");
        assert_eq!(next(&mut *source).await, n.to_string());
        let got = fetch(&*member, 1).await;
        assert_eq!(payloads(&got), [n.to_string()]);
        ack(&*member, &got).await;
    }
    assert!(!status.has_changed().expect("a backend"), "{:?}", status.borrow());
}

/// Every connection of the server is closed, again and again: consumers, subscriptions and queue groups go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_connections_are_made_again() {
    let server = RedisServer::start_durable(RedisVersion::System);
    let backend = connect(&server).await;
    ensure(&backend, None).await;
    let (mut plain, mut group) = (subscribe(&backend, None).await, subscribe(&backend, Some("q")).await);
    let member = join(&backend, Duration::from_secs(30)).await;
    let mut killer = raw(&server).await;
    for n in 0..5 {
        let closed: i64 = run(&mut killer, "CLIENT KILL TYPE normal SKIPME yes").await;
        assert!(closed > 0);
        publish_again(&backend, n).await;
        // What was stored by a publish whose answer was lost comes twice, with the retry.
        while next(&mut *plain).await != n.to_string() {}
        // A queue group is live: what was on its way on a closed connection is lost, the next is not.
        loop {
            let seen = tokio::time::timeout(Duration::from_millis(500), next(&mut *group)).await;
            match seen {
                Ok(seen) if seen == n.to_string() => break,
                Ok(_) => {}
                Err(_) => publish_again(&backend, n).await,
            }
        }
        loop {
            let got = fetch(&*member, 10).await;
            ack(&*member, &got).await;
            if payloads(&got).contains(&n.to_string()) {
                break;
            }
        }
    }
}
