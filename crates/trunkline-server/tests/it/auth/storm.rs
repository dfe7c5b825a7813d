//! A flood of wrong passwords, and everybody else.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use trunkline_server::Server;

use super::super::client::{Raw, get, json, within};
use super::{VIOLATION, answer, auth, client, connect, server_with, user};

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

/// Wrong passwords from this address until it is over, many at a time and without a look at the answers.
struct Storm {
    over: Arc<AtomicBool>,
    attackers: Vec<tokio::task::JoinHandle<()>>,
}

impl Storm {
    /// Connections of one attacker that stand at a time.
    const OPEN: usize = 40;

    /// `name` makes a name of a number.
    fn begin(address: SocketAddr, name: fn(u64) -> String) -> Self {
        let (over, guesses) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let attack = |_| {
            let (over, guesses) = (over.clone(), guesses.clone());
            tokio::spawn(async move {
                let mut open = VecDeque::new();
                while !over.load(Ordering::Relaxed) {
                    let n = guesses.fetch_add(1, Ordering::Relaxed);
                    let mut raw = Raw::connect(address).await;
                    raw.send(connect(&user(&name(n), &format!("guess {n}")))).await;
                    open.push_back(raw);
                    if open.len() > Self::OPEN {
                        open.pop_front();
                    }
                }
            })
        };
        let attackers = (0..8).map(attack).collect();
        Self { over, attackers }
    }

    async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        for attacker in self.attackers {
            within("the end of an attacker", attacker).await.expect("it is let connect");
        }
    }
}

/// Several users whose hashes take some time, and nothing of them known.
async fn server_of_many() -> Server {
    let user = |n: usize| {
        let hash = bcrypt::hash(format!("right {n}"), COST).expect("short enough");
        format!("{{user: user{n}, password: '{hash}'}}")
    };
    let users: Vec<String> = (0..8).map(user).collect();
    server_with(|options| options.auth = auth(&format!("{{users: [{}]}}", users.join(", ")))).await
}

async fn refused(server: &Server, reason: &str) -> u64 {
    let page = get(server.http_addr().expect("served"), "/metrics").await.body;
    let start = format!("trunkline_server_auth_failures_total{{reason=\"{reason}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&start)).expect("it is told");
    line.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_come_in_for_the_first_time_beside_a_storm_from_their_own_address() {
    for name in [|n| format!("nobody {n}"), |_| "user0".to_owned()] as [fn(u64) -> String; 2] {
        let server = server_of_many().await;
        let address = server.nats_addr();
        let storm = Storm::begin(address, name);
        let mut took = Vec::new();
        for n in 1..8 {
            // From the fourth on the address has had as many hashes as it may ask for, or its victim has; from the sixth on
            // there are no more looks ahead at names that nobody has, either.
            let too_many = [(4, 1), (6, 500)].into_iter().find(|(at, _)| *at == n);
            if let Some((_, many)) = too_many {
                within("too many guesses", async { while refused(&server, "too_many").await < many {} })
                    .await;
            }
            let began = Instant::now();
            let answered = answer(address, &user(&format!("user{n}"), &format!("right {n}"))).await;
            assert_eq!(answered, "PONG\r\n", "user{n} beside {}", name(0));
            took.push(began.elapsed());
        }
        println!("beside {}: {took:?}", name(0));
        storm.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_beside_a_storm_is_so_whether_or_not_the_name_exists() {
    let server = server_of_many().await;
    let address = server.nats_addr();
    for n in 0..120 {
        let answered = answer(address, &user(&format!("nobody {n}"), "guess")).await;
        assert_eq!(answered, VIOLATION);
    }
    let held = Duration::from_millis(1500);
    let asking = ["user1", "nobody", "user2", "somebody"].map(|name| {
        tokio::spawn(async move {
            let began = Instant::now();
            assert_eq!(answer(address, &user(name, "guess")).await, VIOLATION, "{name}");
            began.elapsed()
        })
    });
    let mut took = Vec::new();
    for asked in asking {
        took.push(within("a refusal", asked).await.expect("it is told"));
    }
    assert!(took.iter().all(|time| (held..2 * held).contains(time)), "{took:?}");
}
