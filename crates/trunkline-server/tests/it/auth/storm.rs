//! A flood of wrong passwords, and everybody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::client::{Raw, json, within};
use super::{VIOLATION, auth, client, connect, server_with, user};

/// Attackers at a time; each connects, fails, and comes again.
const ATTACKERS: u64 = 32;
/// Round trips of those who are in, while it goes on.
const ROUNDS: u32 = 200;
/// So slow that a storm of hashes on the threads that serve would be seen, and a test without optimisation still ends.
const COST: u32 = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_wrong_passwords_keeps_nobody_else_waiting() {
    let hash = |password: &str| bcrypt::hash(password, COST).expect("short enough");
    let yaml = format!(
        "{{users: [{{user: ann, password: '{}'}}, {{user: bob, password: '{}'}}]}}",
        hash("a"),
        hash("b")
    );
    let server = server_with(|options| {
        options.auth = auth(&yaml);
        // Every attempt is checked: it is the work that must not get in the way.
        options.auth.failures_max = None;
        options.auth.timeout = Duration::from_secs(60);
    })
    .await;
    let address = server.nats_addr();
    let mut inside = client(address, "ann", "a").await;
    inside.send("SUB ping 1\r\n").await;
    assert_eq!(inside.flush().await, "");
    let (over, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let attackers: Vec<_> = (0..ATTACKERS)
        .map(|n| {
            let (over, refused) = (over.clone(), refused.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let mut raw = Raw::connect(address).await;
                    // Some names exist, some do not.
                    let name = if n % 2 == 0 { "bob".to_owned() } else { format!("user {n}") };
                    raw.send(connect(&user(&name, "wrong"))).await;
                    assert_eq!(raw.until_closed().await, VIOLATION);
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // The storm has begun once the first of it is over.
    within("the first refusal", async {
        while refused.load(Ordering::Relaxed) == 0 {
            inside.flush().await;
        }
    })
    .await;
    let (mut longest, started, before) = (Duration::ZERO, Instant::now(), refused.load(Ordering::Relaxed));
    for round in 0..ROUNDS {
        let asked = Instant::now();
        inside.send("PUB ping 1\r\n!\r\n").await;
        assert_eq!(inside.flush().await, "MSG ping 1 1\r\n!\r\n", "{round}");
        longest = longest.max(asked.elapsed());
    }
    let (took, during) = (started.elapsed(), refused.load(Ordering::Relaxed) - before);
    // Whose password is known comes in past all who wait for a hash.
    let known = Instant::now();
    drop(client(address, "ann", "a").await);
    let known = known.elapsed();
    over.store(true, Ordering::Relaxed);
    for attacker in attackers {
        within("the end of an attacker", attacker).await.expect("every attempt was refused");
    }
    println!(
        "{ROUNDS} rounds took {took:?}, the longest {longest:?}, with {during} refusals; a known user {known:?}"
    );
    // One hash takes some 10 ms here. With all attackers before it, a round would take ten times as long as allowed.
    assert!(longest < Duration::from_secs(2), "a round took {longest:?}");
    assert!(known < Duration::from_secs(5), "a user whose password is known waited {known:?}");
    let varz = json(server.http_addr().expect("served"), "/varz").await;
    assert_eq!(varz["auth_failures"].as_u64(), Some(refused.load(Ordering::Relaxed)));
}
